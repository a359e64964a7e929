//! Where lines go, and when.

use super::*;
use nix::fcntl::OFlag;
use std::fs::File;
use std::io::{Read, Write};

const MS: Duration = Duration::from_millis(1);

impl Logs {
    /// Lines for people in a file, as `--log-file` has it; nobody hears the other outputs.
    pub(crate) fn to_file(path: &Path, registry: &Registry) -> Self {
        let file = LogFile::open(path).expect("a file");
        file.output.register(registry, Target::Stdout.token());
        Logs { access: Some(AccessLog::new(false, "app")), is_json: false, file: Some(file), ..Logs::kept() }
    }
}

/// An output, and its reader, who waits for nothing.
fn pipe() -> (File, Output) {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).expect("a pipe");
    (reader.into(), Output::to(writer.into()))
}

fn heard(mut reader: &File) -> String {
    let mut all = Vec::new();
    let _ = reader.read_to_end(&mut all);
    String::from_utf8(all).expect("text")
}

/// Logs with both outputs, and their readers.
fn logs(is_json: bool) -> (Logs, File, File) {
    let ((out, stdout), (err, stderr)) = (pipe(), pipe());
    let access = Some(AccessLog::new(is_json, "app"));
    (Logs { access, is_json, stdout, stderr, ..Logs::kept() }, out, err)
}

fn record() -> Record<'static> {
    Record {
        method: b"GET",
        path: b"/page",
        status: 200,
        total: MS,
        worker_time: MS,
        queue_time: MS,
        media_type: b"text/plain",
        body_bytes: 4,
        worker: None,
        id: b"",
        client: b"",
        peer: b"",
        reason: None,
    }
}

#[test]
fn people_read_stdout_and_a_worker_s_errors_on_stderr() {
    let (mut logs, out, err) = logs(false);
    logs.announce(b"it serves\n");
    logs.worker_line(b"printed", false, "1");
    logs.worker_line(b"complained", true, "2");
    logs.write();
    assert_eq!(heard(&out), "it serves\n[1] printed\n");
    assert!(heard(&err).ends_with("[2] complained\n"));
}

#[test]
fn in_json_mode_stdout_has_access_lines_alone() {
    let (mut logs, out, err) = logs(true);
    logs.announce(b"it serves\n");
    logs.worker_line(b"printed", false, "1");
    logs.worker_line(b"complained", true, "2");
    logs.write();
    assert_eq!((heard(&out).as_str(), heard(&err).as_str()), ("", "it serves\nprinted\ncomplained\n"));
}

#[test]
fn access_lines_wait_for_50_ms_or_64_kib() {
    let now = Instant::now();
    let (mut logs, out, _err) = logs(false);
    assert_eq!(logs.next_flush(now), None);
    logs.append_access_line(&record(), Duration::ZERO, now);
    logs.append_access_line(&record(), Duration::ZERO, now + MS);
    assert_eq!(logs.next_flush(now), Some(now + 50 * MS), "the first one's");
    logs.flush(now + 49 * MS);
    assert_eq!(heard(&out), "");
    logs.flush(now + 50 * MS);
    let text = heard(&out);
    assert_eq!((text.lines().count(), text.contains("GET /page")), (2, true));
    assert_eq!(logs.next_flush(now), None);

    let line_bytes = text.len() / 2;
    // A pipe holds no more than that.
    for _ in 0..64 * 1024 / line_bytes {
        logs.append_access_line(&record(), Duration::ZERO, now);
    }
    logs.flush(now);
    assert_eq!(heard(&out), "");
    logs.append_access_line(&record(), Duration::ZERO, now);
    logs.flush(now);
    assert!(!heard(&out).is_empty());

    logs.append_access_line(&record(), Duration::ZERO, now);
    logs.lines.resize(64 * 1024, b'\n');
    logs.flush(now);
    assert!(logs.lines.is_empty(), "exactly so many are written");
}

#[test]
fn the_last_lines_are_written_at_the_end() {
    let (mut logs, out, _err) = logs(false);
    logs.append_access_line(&record(), Duration::ZERO, Instant::now());
    logs.finish();
    assert!(heard(&out).contains("GET /page"));
}

/// More than a pipe holds.
const MANY: usize = 10_000;

fn many_lines() -> Vec<u8> {
    b"a line of sixteen\n".repeat(MANY)
}

#[test]
fn at_the_end_room_is_waited_for_while_somebody_reads() {
    let (mut logs, out, err) = logs(false);
    logs.announce(&many_lines());
    logs.stderr.push(&many_lines());
    let readers = [out, err].map(|reader| {
        std::thread::spawn(move || {
            let mut all = Vec::new();
            loop {
                let mut ready = [nix::poll::PollFd::new(reader.as_fd(), nix::poll::PollFlags::POLLIN)];
                nix::poll::poll(&mut ready, 60_000_u16).expect("polled");
                let mut piece = [0; 4096];
                match (&reader).read(&mut piece).expect("there is something, or the end") {
                    0 => return String::from_utf8(all).expect("text"),
                    bytes => all.extend_from_slice(&piece[..bytes]),
                }
            }
        })
    });
    // Longer than any machine needs: the end comes with the last line.
    logs.finish_within(60_000 * MS);
    assert_eq!(logs.dropped_lines(), 0);
    drop(logs);
    for text in readers.map(|reader| reader.join().expect("it reads")) {
        assert_eq!(text.lines().filter(|line| *line == "a line of sixteen").count(), MANY);
    }
}

#[test]
fn at_the_end_what_nobody_reads_within_the_bound_is_dropped_and_told_once() {
    let (mut logs, out, err) = logs(false);
    let begun = Instant::now();
    logs.announce(&many_lines());
    logs.finish_within(20 * MS);
    // The kernel waits for whole milliseconds.
    assert!(begun.elapsed() >= 19 * MS, "it was waited for");
    let lines = heard(&out).matches('\n').count();
    let dropped = MANY - lines;
    let expected = format!("rip-server: warn: {dropped} lines for stdout were dropped\n");
    let text = heard(&err);
    assert!(text.ends_with(&expected) && text.matches("lines for stdout").count() == 1, "{text}");
    assert_eq!(logs.dropped_lines(), dropped as u64);
}

#[test]
fn at_the_end_a_count_does_not_continue_a_line_that_was_cut() {
    let (mut logs, _out, err) = logs(false);
    logs.stderr.push(&many_lines());
    logs.write();
    // The pipe ends within a line, and is read too late.
    let cut = heard(&err);
    logs.give_up();
    assert!(!cut.ends_with('\n'));
    let dropped = MANY - cut.matches('\n').count();
    assert_eq!(heard(&err), format!("\nrip-server: warn: {dropped} lines for stderr were dropped\n"));
}

#[test]
fn at_the_end_nobody_waits_for_what_fails_or_has_no_reader() {
    let Ok(full) = File::options().write(true).open("/dev/full") else { return };
    let (mut logs, out, err) = logs(false);
    drop(out);
    logs.announce(b"it serves\n");
    logs.file = Some(LogFile::open(Path::new("/dev/null")).expect("a file"));
    logs.file.as_mut().expect("it is there").output = Output::to(full);
    logs.worker_line(b"printed", false, "1");
    let begun = Instant::now();
    logs.finish_within(60_000 * MS);
    assert!(begun.elapsed() < 30_000 * MS);
    let text = heard(&err);
    assert!(text.contains("stdout has no reader any more") && !text.contains("lines for stdout"), "{text}");
    assert!(text.ends_with("rip-server: warn: 1 line for '/dev/null' was dropped\n"), "{text}");
}

#[test]
fn a_log_file_has_what_stdout_would_have_but_for_the_line_at_the_start() {
    let (mut logs, out, err) = logs(false);
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("log");
    logs.file = Some(LogFile::open(&path).expect("a file"));
    logs.announce(b"it serves\n");
    logs.worker_line(b"printed", false, "1");
    logs.worker_line(b"complained", true, "1");
    logs.append_access_line(&record(), Duration::ZERO, Instant::now());
    logs.finish();
    assert_eq!(heard(&out), "it serves\n");
    assert!(heard(&err).ends_with("[1] complained\n"));
    let text = std::fs::read_to_string(&path).expect("it is there");
    assert!(text.starts_with("[1] printed\n[") && text.contains("GET /page"), "{text}");
}

#[test]
fn an_output_whose_reader_has_gone_is_told_of_on_stderr() {
    let (mut logs, out, err) = logs(false);
    drop(out);
    logs.announce(b"it serves\n");
    logs.write();
    let text = heard(&err);
    assert!(text.contains("rip-server: warn: stdout has no reader any more"), "{text}");
    assert_eq!(logs.dropped_lines(), 1);
    let Ok(full) = File::options().write(true).open("/dev/full") else { return };
    logs.stderr.push(b"printed\n");
    logs.file = Some(LogFile::open(Path::new("/dev/null")).expect("a file"));
    logs.file.as_mut().expect("it is there").output = Output::to(full);
    logs.worker_line(b"printed", false, "1");
    logs.write();
    let text = heard(&err);
    assert!(text.contains("rip-server: warn: '/dev/null' cannot be written to"), "{text}");
    assert_eq!(logs.dropped_lines(), 2);
    drop(err);
    logs.stderr.push(b"one\ntwo\n");
    logs.write();
    assert_eq!(logs.dropped_lines(), 5, "one, one, two, and the line that would tell of these");
}

#[test]
fn lines_that_were_dropped_are_told_of_once_there_is_room() {
    let (mut logs, out, err) = logs(false);
    let megabyte = b"a line of sixteen\n".repeat(60_000);
    logs.announce(&megabyte[..1024 * 1024]);
    logs.announce(b"one\ntwo\n");
    logs.write();
    assert_eq!(logs.dropped_lines(), 2);
    let mut all = 0;
    while all < 1024 * 1024 {
        all += heard(&out).len();
        logs.has_room();
    }
    assert!(heard(&err).ends_with("rip-server: warn: 2 lines for stdout were dropped\n"));
}

#[test]
fn an_output_that_tells_nobody_of_its_room_is_asked_by_the_clock() {
    let now = Instant::now();
    let dir = tempfile::tempdir().expect("a folder");
    for which in 0..3 {
        let (mut logs, _out, _err) = logs(false);
        // Nobody reads it, and it may be another's as well.
        let (reader, mut shared) = Output::shared();
        shared.push(&b"a line of sixteen\n".repeat(10_000));
        shared.flush();
        match which {
            0 => logs.stdout = shared,
            1 => logs.stderr = shared,
            _ => {
                let mut file = LogFile::open(&dir.path().join("log")).expect("a file");
                file.output = shared;
                logs.file = Some(file);
            }
        }
        assert_eq!(logs.next_flush(now), Some(now + 50 * MS));
        drop(reader);
    }
}

#[test]
fn the_file_is_opened_anew_where_there_is_one() {
    let registry = mio::Poll::new().expect("epoll").registry().try_clone().expect("a handle");
    let (mut logs, _out, _err) = logs(false);
    assert_eq!(logs.reopen_file(&registry), None);
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("log");
    logs.file = Some(LogFile::open(&path).expect("a file"));
    logs.append_access_line(&record(), Duration::ZERO, Instant::now());
    let old = dir.path().join("old");
    std::fs::rename(&path, &old).expect("moved");
    assert_eq!(logs.reopen_file(&registry), Some(Ok(())));
    assert_eq!(logs.next_flush(Instant::now()), None);
    logs.worker_line(b"later", false, "1");
    logs.write();
    assert!(std::fs::read_to_string(&old).expect("it is there").contains("GET /page"));
    assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "[1] later\n");
    std::fs::remove_file(&path).and_then(|()| std::fs::create_dir(&path)).expect("a folder in its place");
    assert!(logs.reopen_file(&registry).is_some_and(|result| result.is_err()));
    logs.worker_line(b"still", false, "1");
    logs.write();
    assert!(logs.file.as_ref().is_some_and(|file| file.output.is_quiet()), "the one that is open stays");
}

#[test]
fn words_of_the_server_are_taken_whole() {
    assert_eq!(Words.write(b"rip-server: a word\n").expect("taken"), 19);
    assert!(Words.flush().is_ok());
}
