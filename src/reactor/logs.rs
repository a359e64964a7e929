//! Everything that is written: access lines, the server's own words, and what the workers print.

use super::entry::{Finished, Origin};
use super::stdio::{News, Output};
use super::stream::{Io, attempt};
use super::token::Target;
use super::{LOG_BYTES, LOG_DELAY, Reactor};
use crate::keys::{ClientKey, WorkerKey};
use crate::observe::access::{AccessLog, Record};
use crate::observe::metrics::Served;
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A worker's line is cut here, so that a line without an end takes no more.
const MAX_LINE_BYTES: usize = 8 * 1024;
/// What is kept of a worker's last words on stderr, for whoever asks why it died: a stack trace, with what stands
/// above it.
const LAST_WORDS: usize = 24;
const LAST_WORD_BYTES: usize = 500;
/// Read from one worker's output in one turn: a chatty worker keeps no request waiting.
const PIPE_TURN_BYTES: usize = 64 * 1024;

/// The server's own words on their way to stderr. `log` wants a logger that could be called from any thread, hence
/// the mutex; there is only one.
static WORDS: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Takes the log's lines into [`WORDS`].
struct Words;

impl io::Write for Words {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        WORDS.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Short lines: `rip-server: what happened`, with the level where it is not the usual one.
fn start_logger() {
    use io::Write;
    let filter = env_logger::Env::default().default_filter_or("info");
    let started = env_logger::Builder::from_env(filter)
        .target(env_logger::Target::Pipe(Box::new(Words)))
        .format(|out, record| match record.level() {
            log::Level::Info => writeln!(out, "rip-server: {}", record.args()),
            level => writeln!(out, "rip-server: {}: {}", level.as_str().to_ascii_lowercase(), record.args()),
        })
        .try_init();
    // A program that carries the server may have a logger of its own; its lines then go where it wants them.
    drop(started);
}

#[derive(Debug)]
pub struct Logs {
    access: Option<AccessLog>,
    lines: Vec<u8>,
    /// When `lines` are written at the latest.
    lines_due: Option<Instant>,
    is_json: bool,
    stdout: Output,
    stderr: Output,
}

impl Logs {
    pub fn open(access: Option<AccessLog>, is_json: bool, registry: &Registry) -> io::Result<Self> {
        start_logger();
        let stdout = Output::new(io::stdout().as_fd().try_clone_to_owned()?, 1);
        let stderr = Output::new(io::stderr().as_fd().try_clone_to_owned()?, 2);
        stdout.register(registry, Target::Stdout.token());
        stderr.register(registry, Target::Stderr.token());
        Ok(Logs { access, lines: Vec::new(), lines_due: None, is_json, stdout, stderr })
    }

    /// Keeps JSON access lines until they are taken, and drops everything else.
    #[cfg(test)]
    pub fn kept() -> Self {
        let access = Some(AccessLog::new(true, "app"));
        let (stdout, stderr) = (Output::closed(), Output::closed());
        Logs { access, lines: Vec::new(), lines_due: None, is_json: true, stdout, stderr }
    }

    #[cfg(test)]
    pub fn take_lines(&mut self) -> Vec<u8> {
        self.lines_due = None;
        std::mem::take(&mut self.lines)
    }

    /// The line at the start: on stdout, but in JSON mode that has access lines only.
    pub fn announce(&mut self, line: &[u8]) {
        if self.is_json { self.stderr.push(line) } else { self.stdout.push(line) }
    }

    fn access(&mut self, record: &Record<'_>, unix: Duration, now: Instant) {
        if let Some(access) = &mut self.access {
            access.write(&mut self.lines, record, unix);
            self.lines_due.get_or_insert_with(|| now + LOG_DELAY);
        }
    }

    fn worker_line(&mut self, line: &[u8], is_stderr: bool, label: &str) {
        let mut out = Vec::with_capacity(label.len() + line.len() + 4);
        if !self.is_json {
            out.extend_from_slice(format!("[{label}] ").as_bytes());
        }
        out.extend_from_slice(line);
        out.push(b'\n');
        if is_stderr || self.is_json { self.stderr.push(&out) } else { self.stdout.push(&out) }
    }

    /// When lines must be written at the latest.
    pub fn next_flush(&self, now: Instant) -> Option<Instant> {
        // Output that tells nobody when it has room is asked again by the clock.
        let context = (self.stdout.needs_clock() || self.stderr.needs_clock()).then(|| now + LOG_DELAY);
        self.lines_due.into_iter().chain(context).min()
    }

    /// Writes what is due, without waiting for anybody.
    pub fn flush(&mut self, now: Instant) {
        let is_due = self.lines_due.is_some_and(|due| due <= now);
        if is_due || self.lines.len() >= LOG_BYTES {
            self.stdout.push(&self.lines);
            self.lines.clear();
            self.lines_due = None;
        }
        let words = std::mem::take(&mut *WORDS.lock().unwrap_or_else(PoisonError::into_inner));
        self.stderr.push(&words);
        self.write();
    }

    /// One of the two outputs has room again.
    pub fn has_room(&mut self) {
        self.stdout.has_room();
        self.stderr.has_room();
        self.write();
    }

    fn write(&mut self) {
        self.stdout.flush();
        self.stderr.flush();
        for (name, news) in [("stdout", self.stdout.news()), ("stderr", self.stderr.news())] {
            let line = match news {
                Some(News::Failing(error)) => {
                    format!("{name} cannot be written to: {error}; lines are dropped until it can")
                }
                Some(News::Gone(error)) => {
                    format!("{name} has no reader any more ({error}); what is for it is dropped from now on")
                }
                Some(News::Dropped(count)) => format!("{count} lines for {name} were dropped"),
                None => continue,
            };
            self.stderr.push(format!("rip-server: warn: {line}\n").as_bytes());
        }
        self.stderr.flush();
    }

    /// The last lines, at the end.
    pub fn finish(&mut self) {
        self.stdout.push(&std::mem::take(&mut self.lines));
        self.flush(Instant::now());
    }

    pub fn dropped_lines(&self) -> u64 {
        self.stdout.all_dropped_lines() + self.stderr.all_dropped_lines()
    }
}

/// One of a worker's two outputs.
#[derive(Debug)]
pub struct Pipe {
    fd: OwnedFd,
    worker: WorkerKey,
    label: String,
    is_stderr: bool,
    partial: Vec<u8>,
}

impl Pipe {
    pub fn new(fd: OwnedFd, worker: WorkerKey, label: String, is_stderr: bool) -> Self {
        Pipe { fd, worker, label, is_stderr, partial: Vec::new() }
    }

    pub fn worker(&self) -> WorkerKey {
        self.worker
    }

    /// Watches it; non-blocking on our side only, since the two ends of a pipe are two descriptions.
    pub fn register(&self, registry: &Registry, token: mio::Token) -> io::Result<()> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        fcntl(&self.fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        registry.register(&mut SourceFd(&self.fd.as_raw_fd()), token, Interest::READABLE)
    }
}

impl Reactor {
    /// Passes a worker's output on, line by line.
    pub(super) fn read_pipe(&mut self, key: usize) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut budget = PIPE_TURN_BYTES;
        while let Some(pipe) = self.pipes.get_mut(key) {
            match attempt(|| nix::unistd::read(&pipe.fd, &mut scratch).map_err(io::Error::from)) {
                Io::Bytes(bytes) => {
                    self.take_output(key, &scratch[..bytes]);
                    budget = budget.saturating_sub(bytes);
                    if budget == 0 {
                        self.ready_list.push(Target::Pipe(key));
                        break;
                    }
                }
                Io::Later => break,
                Io::End | Io::Gone => {
                    self.close_pipe(key);
                    break;
                }
            }
        }
        self.scratch = scratch;
    }

    fn take_output(&mut self, key: usize, bytes: &[u8]) {
        let Some(pipe) = self.pipes.get_mut(key) else {
            return;
        };
        let mut partial = std::mem::take(&mut pipe.partial);
        partial.extend_from_slice(bytes);
        let mut from = 0;
        while let Some(end) = memchr::memchr(b'\n', &partial[from..]) {
            self.worker_line(key, &partial[from..from + end]);
            from += end + 1;
        }
        partial.drain(..from);
        if partial.len() >= MAX_LINE_BYTES {
            self.worker_line(key, &partial);
            partial.clear();
        }
        if let Some(pipe) = self.pipes.get_mut(key) {
            pipe.partial = partial;
        }
    }

    fn worker_line(&mut self, key: usize, line: &[u8]) {
        let Some(pipe) = self.pipes.get(key) else { return };
        let mut is_repeated = false;
        if let Some(entry) = self.workers.get_mut(pipe.worker.0) {
            if pipe.is_stderr {
                remember(&mut entry.last_words, line);
            }
            if entry.requests == 0 {
                is_repeated = self.folds.is_repeated(&mut entry.boot_output, line, self.clock.now);
            }
        }
        if !is_repeated {
            self.logs.worker_line(line, pipe.is_stderr, &pipe.label);
        }
    }

    /// Ends a worker's output; an unfinished line is a line.
    pub(super) fn close_pipe(&mut self, key: usize) {
        let Some(pipe) = self.pipes.get_mut(key) else {
            return;
        };
        let remaining = std::mem::take(&mut pipe.partial);
        if !remaining.is_empty() {
            self.worker_line(key, &remaining);
        }
        self.pipes.try_remove(key);
    }

    /// A request's one line.
    pub(super) fn log(&mut self, client: ClientKey, finished: &Finished) {
        let now = self.clock.now;
        let request = &finished.request;
        let peer = self.clients.get(client.0).map_or(&b""[..], |entry| entry.address.as_bytes());
        let record = Record {
            method: request.method(),
            path: request.path(),
            status: finished.answer.status,
            total: now.saturating_duration_since(request.started),
            worker_time: finished.times.worker,
            queue_time: finished.times.queue,
            media_type: finished.answer.media_type(),
            body_bytes: finished.body_bytes,
            worker: finished.worker,
            id: request.id(),
            client: request.client().unwrap_or(peer),
            peer,
            reason: finished.reason,
        };
        self.metrics.served(Served {
            status: record.status,
            reason: record.reason,
            queue: record.queue_time,
            worker: record.worker_time,
            total: record.total,
            body_bytes: record.body_bytes,
            reached_worker: record.worker.is_some(),
        });
        self.longest_wait = self.longest_wait.max(record.queue_time);
        self.logs.access(&record, self.clock.unix, now);
    }

    /// `worker 3 (pid 42)`
    pub(super) fn label(&self, worker: WorkerKey) -> String {
        match self.workers.get(worker.0) {
            Some(entry) => format!("worker {} (pid {})", entry.origin.worker_id(), entry.pid),
            None => "a worker".to_owned(),
        }
    }

    /// A worker's number and process, for the log.
    pub(super) fn identity(&self, worker: WorkerKey) -> Option<(usize, i32)> {
        let entry = self.workers.get(worker.0)?;
        Some((entry.origin.worker_id(), entry.pid.as_raw()))
    }

    /// What is said in front of a worker's lines.
    pub(super) fn output_label(origin: Origin) -> String {
        format!("worker {}", origin.worker_id())
    }
}

fn remember(words: &mut VecDeque<String>, line: &[u8]) {
    if words.len() == LAST_WORDS {
        words.pop_front();
    }
    words.push_back(String::from_utf8_lossy(&line[..line.len().min(LAST_WORD_BYTES)]).into_owned());
}
