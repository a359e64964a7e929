//! Outputs of each kind: files, pipes, sockets, such as are full, fail or have gone.

use super::*;
use nix::fcntl::OFlag;
use std::io::Read;
use std::os::unix::net::UnixStream;

fn pipe() -> (File, Output) {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).expect("a pipe");
    (File::from(reader), Output::to(File::from(writer)))
}

impl Output {
    /// One that may be another's as well, and its reader.
    pub(in crate::reactor::observer) fn shared() -> (OwnedFd, Self) {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        (reader, Output::through(Way::Shared(writer)))
    }
}

/// What is there to be read by now.
fn heard(reader: &mut impl Read) -> Vec<u8> {
    let (mut all, mut piece) = (Vec::new(), [0; 65536]);
    while let Ok(bytes @ 1..) = reader.read(&mut piece) {
        all.extend_from_slice(&piece[..bytes]);
    }
    all
}

fn lines(count: usize) -> Vec<u8> {
    b"a line of sixteen\n".repeat(count)
}

#[test]
fn lines_are_written_as_soon_as_they_can_be() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("log");
    let mut output = Output::to(File::create(&path).expect("a file"));
    assert!(output.is_quiet());
    output.push(b"one\n");
    assert!(!output.is_quiet(), "it is to be written");
    output.push(b"two\n");
    output.push(b"");
    output.flush();
    assert!(output.is_quiet() && !output.needs_clock());
    assert_eq!(std::fs::read(&path).expect("it is there"), b"one\ntwo\n");
    assert!(output.news().is_none());
}

#[test]
fn a_socket_is_written_to_without_waiting() {
    let (mut reader, writer) = UnixStream::pair().expect("a pair");
    reader.set_nonblocking(true).expect("it is set");
    let mut output = Output::new(writer.into(), 1);
    output.push(&lines(3));
    output.flush();
    assert_eq!(heard(&mut reader), lines(3));
    // More than it takes at once.
    output.push(&lines(50_000));
    output.flush();
    assert!(!output.is_quiet() && !output.needs_clock(), "an event will tell");
    let mut all = Vec::new();
    for _ in 0..1000 {
        all.extend(heard(&mut reader));
        output.has_room();
        output.flush();
    }
    assert_eq!(all.len(), lines(50_000).len());
    assert!(output.is_quiet());
}

#[test]
fn beyond_a_bound_lines_are_dropped_and_counted_and_that_is_told_when_there_is_room() {
    let (mut reader, mut output) = pipe();
    let megabyte = vec![b'\n'; MAX_WAITING_BYTES];
    output.push(&megabyte);
    assert_eq!(output.all_dropped_lines(), 0, "exactly what may wait");
    output.push(b"one\ntwo\n");
    assert_eq!(output.all_dropped_lines(), 2);
    output.flush();
    assert!(output.news().is_none(), "the others still wait");
    let before = output.waiting.len();
    output.flush();
    assert_eq!(output.waiting.len(), before, "an event will tell of room");
    let mut all = 0;
    for _ in 0..1000 {
        all += heard(&mut reader).len();
        output.has_room();
        output.flush();
    }
    assert_eq!(all, MAX_WAITING_BYTES);
    assert_eq!(output.waiting.capacity(), 0, "a burst leaves no memory behind");
    assert!(!output.is_quiet(), "there is something to tell");
    assert!(matches!(output.news(), Some(News::Dropped(2))));
    assert!(output.news().is_none() && output.is_quiet());
    assert_eq!(output.all_dropped_lines(), 2, "in all");
}

#[test]
fn a_reader_that_has_gone_is_told_once_and_what_is_for_it_is_counted() {
    let (reader, mut output) = pipe();
    drop(reader);
    output.push(b"one\ntwo\n");
    output.flush();
    assert!(!output.is_quiet());
    assert!(matches!(output.news(), Some(News::Gone(_))));
    assert!(output.news().is_none());
    output.push(b"three\n");
    output.flush();
    assert!(output.news().is_none(), "it is known");
    assert_eq!(output.all_dropped_lines(), 3);
}

#[test]
fn a_full_disk_is_told_once_and_what_was_lost_when_there_is_room_again() {
    let Ok(full) = File::options().write(true).open("/dev/full") else { return };
    let mut output = Output::to(full);
    for _ in 0..3 {
        output.push(b"lost\n");
        output.flush();
    }
    assert!(matches!(output.news(), Some(News::Failing(_))));
    output.push(b"lost\n");
    output.flush();
    assert!(output.news().is_none(), "it was told");
    assert_eq!(output.all_dropped_lines(), 4);
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("log");
    output.go_on_in(File::create(&path).expect("a file"));
    output.push(b"kept\n");
    assert!(output.news().is_none(), "not before it is written");
    output.flush();
    assert!(matches!(output.news(), Some(News::Dropped(4))));
    assert_eq!(std::fs::read(&path).expect("it is there"), b"kept\n");
}

#[test]
fn a_line_that_was_begun_in_one_file_has_no_rest_in_the_next() {
    let (mut reader, mut output) = pipe();
    // The pipe ends within a line.
    let all = lines(10_000);
    output.push(&all);
    output.flush();
    let begun = heard(&mut reader).len();
    assert!(begun > 0 && begun < all.len());
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("log");
    output.go_on_in(File::create(&path).expect("a file"));
    output.flush();
    let written = std::fs::read(&path).expect("it is there");
    let line = lines(1).len();
    assert_eq!(written.len() % line, 0, "whole lines alone");
    assert_eq!(begun.div_ceil(line) + written.len() / line, 10_000, "and all others");
    let cut = u64::from(begun % line > 0);
    assert_eq!(output.all_dropped_lines(), cut);
}

#[test]
fn an_output_that_is_shared_is_asked_before_each_small_write_and_looked_at_by_the_clock() {
    let (reader, mut output) = Output::shared();
    // More than a pipe holds: a write that blocks would never return.
    let all = lines(10_000);
    output.push(&all);
    output.flush();
    assert!(output.needs_clock());
    let written = all.len() - output.waiting.len();
    assert!(written >= PIPE_BYTES && written.is_multiple_of(PIPE_BYTES), "{written}");
    let mut piece = vec![0; written];
    File::from(reader).read_exact(&mut piece).expect("it is there");
    assert!(all.starts_with(&piece));
}

#[test]
fn what_is_closed_from_the_start_wants_nothing() {
    let mut output = Output::closed();
    output.push(b"one\n");
    output.flush();
    assert!(output.is_quiet() && output.news().is_none());
    assert_eq!(output.all_dropped_lines(), 0);
}

#[test]
fn an_event_tells_of_room_where_that_can_be_watched() {
    let mut poll = mio::Poll::new().expect("epoll");
    let mut events = mio::Events::with_capacity(4);
    let (_reader, embedded) = pipe();
    let (near, _far) = UnixStream::pair().expect("a pair");
    for (number, output) in [embedded, Output::new(near.into(), 1)].iter().enumerate() {
        output.register(poll.registry(), Token(number));
        poll.poll(&mut events, Some(std::time::Duration::from_secs(10))).expect("polled");
        let told: Vec<_> = events.iter().map(|event| (event.token(), event.is_writable())).collect();
        assert_eq!(told, [(Token(number), true)]);
    }
    let (_reader, shared) = Output::shared();
    shared.register(poll.registry(), Token(2));
    poll.poll(&mut events, Some(std::time::Duration::ZERO)).expect("polled");
    assert!(events.is_empty(), "a shared one is asked");
}

#[test]
fn only_want_of_room_may_pass() {
    let (_reader, pipe) = pipe();
    for code in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG, libc::ENOMEM, libc::ENOBUFS] {
        assert!(pipe.may_recover(&io::Error::from_raw_os_error(code)), "{code}");
    }
    let broken = io::Error::from_raw_os_error(libc::EIO);
    assert!(!pipe.may_recover(&broken));
    let dir = tempfile::tempdir().expect("a folder");
    let file = Output::to(File::create(dir.path().join("log")).expect("a file"));
    assert!(file.may_recover(&broken), "a disk is mounted anew");
}

#[test]
fn the_rest_of_a_line_that_was_begun_waits_for_room() {
    let (_reader, mut output) = pipe();
    output.is_in_line = true;
    output.push(b"end\none\ntwo\n");
    output.lose(io::Error::from_raw_os_error(libc::ENOSPC));
    assert_eq!((output.waiting.as_slice(), output.all_dropped_lines()), (b"end\n".as_slice(), 2));
    assert!(matches!(output.news(), Some(News::Failing(_))));
    output.lose(io::Error::from_raw_os_error(libc::ENOSPC));
    assert!(output.news().is_none(), "it was told");
    output.is_in_line = false;
    output.lose(io::Error::from_raw_os_error(libc::ENOSPC));
    assert_eq!((output.waiting.len(), output.all_dropped_lines()), (0, 3));
}

#[test]
fn what_is_for_a_reader_that_has_gone_is_counted_and_nothing_of_it_waits() {
    let (_reader, mut output) = pipe();
    output.way = Way::Gone;
    output.push(b"one\n");
    assert_eq!((output.waiting.len(), output.all_dropped_lines()), (0, 1));
    output.waiting.extend_from_slice(b"two\n");
    output.flush();
    assert!(output.waiting.is_empty());
    output.push(&lines(MAX_WAITING_BYTES / 18 + 1));
    assert_eq!(output.all_dropped_lines(), 2 + (MAX_WAITING_BYTES / 18) as u64);
}

#[test]
fn memory_of_a_usual_size_is_kept_for_the_next_lines() {
    let (_reader, mut output) = pipe();
    let dir = tempfile::tempdir().expect("a folder");
    output.go_on_in(File::create(dir.path().join("log")).expect("a file"));
    output.waiting.reserve_exact(128 * 1024);
    output.push(b"one\n");
    output.flush();
    assert_eq!(output.waiting.capacity(), 128 * 1024);
    output.waiting.reserve_exact(128 * 1024 + 1);
    output.push(b"one\n");
    output.flush();
    assert_eq!(output.waiting.capacity(), 0);
}
