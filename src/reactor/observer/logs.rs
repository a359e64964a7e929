//! Everything that is written: access lines, the server's own words, and what the workers print.

use super::log_file::LogFile;
use super::stdio::{News, Output, wait_for_room};
use crate::deadlines::earliest;
use crate::observe::access::{AccessLog, Record};
use crate::reactor::io::token::Target;
use mio::Registry;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Access lines wait for so long, to be written together.
const LOG_DELAY: Duration = Duration::from_millis(50);
/// Or until there are so many bytes of them.
const LOG_BYTES: usize = 64 * 1024;
/// What still waits at the server's end may be read for so long, by all outputs together. Whoever reads takes 1 MiB in
/// far less; whoever does not read must not hold up the end, for which a supervisor waits.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The server's own words on their way to stderr. `log` wants a logger that could be called from any thread, hence
/// the mutex; there is only one.
static WORDS: Mutex<Vec<u8>> = Mutex::new(Vec::new());
/// There are some. Asked in each tick, where the mutex costs more.
static HAS_WORDS: AtomicBool = AtomicBool::new(false);

/// Takes the log's lines into [`WORDS`].
struct Words;

impl io::Write for Words {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        WORDS.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        HAS_WORDS.store(true, Ordering::Release);
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
pub(crate) struct Logs {
    access: Option<AccessLog>,
    lines: Vec<u8>,
    /// When `lines` are written at the latest.
    lines_due: Option<Instant>,
    is_json: bool,
    stdout: Output,
    /// Takes what stdout would have had; the line at the start alone stays there.
    file: Option<LogFile>,
    stderr: Output,
}

impl Logs {
    /// # Errors
    /// One line: which of the outputs cannot be had, and why.
    pub(crate) fn open(
        access: Option<AccessLog>,
        is_json: bool,
        file: Option<&Path>,
        registry: &Registry,
    ) -> Result<Self, String> {
        start_logger();
        let trouble = |error: io::Error| format!("standard output: {error}");
        let stdout = Output::new(io::stdout().as_fd().try_clone_to_owned().map_err(trouble)?, 1);
        let stderr = Output::new(io::stderr().as_fd().try_clone_to_owned().map_err(trouble)?, 2);
        stdout.register(registry, Target::Stdout.token());
        stderr.register(registry, Target::Stderr.token());
        let file = file.map(LogFile::open).transpose()?;
        if let Some(file) = &file {
            file.output.register(registry, Target::Stdout.token());
        }
        Ok(Logs { access, lines: Vec::new(), lines_due: None, is_json, stdout, file, stderr })
    }

    /// Keeps JSON access lines until they are taken, and drops everything else.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn kept() -> Self {
        let access = Some(AccessLog::new(true, "app"));
        let (stdout, stderr) = (Output::closed(), Output::closed());
        Logs { access, lines: Vec::new(), lines_due: None, is_json: true, stdout, file: None, stderr }
    }

    /// With files for both outputs.
    #[cfg(test)]
    pub(crate) fn in_files([stdout, stderr]: [std::fs::File; 2]) -> Self {
        Logs {
            access: None,
            is_json: false,
            stdout: Output::to(stdout),
            stderr: Output::to(stderr),
            ..Logs::kept()
        }
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn take_lines(&mut self) -> Vec<u8> {
        self.lines_due = None;
        std::mem::take(&mut self.lines)
    }

    /// The line at the start: on stdout, but in JSON mode that has access lines only.
    pub(crate) fn announce(&mut self, line: &[u8]) {
        if self.is_json { self.stderr.push(line) } else { self.stdout.push(line) }
    }

    /// Adds a request's line to those that wait; [`Logs::flush`] writes them.
    pub(crate) fn append_access_line(&mut self, record: &Record<'_>, unix: Duration, now: Instant) {
        if let Some(access) = &mut self.access {
            access.append(&mut self.lines, record, unix);
            self.lines_due.get_or_insert_with(|| now + LOG_DELAY);
        }
    }

    pub(crate) fn worker_line(&mut self, line: &[u8], is_stderr: bool, label: &str) {
        let mut out = Vec::with_capacity(label.len() + line.len() + 4);
        if !self.is_json {
            out.extend_from_slice(format!("[{label}] ").as_bytes());
        }
        out.extend_from_slice(line);
        out.push(b'\n');
        if is_stderr || self.is_json { self.stderr.push(&out) } else { self.main().push(&out) }
    }

    /// Where access lines go.
    fn main(&mut self) -> &mut Output {
        match &mut self.file {
            Some(file) => &mut file.output,
            None => &mut self.stdout,
        }
    }

    /// Opens the log file anew; lines of earlier requests go to the old one. `None`: there is none.
    ///
    /// # Errors
    /// Why it cannot be opened; the one that is open stays.
    pub(crate) fn reopen_file(&mut self, registry: &Registry) -> Option<Result<(), String>> {
        let file = self.file.as_mut()?;
        file.output.push(&std::mem::take(&mut self.lines));
        self.lines_due = None;
        file.output.flush();
        let result = file.reopen();
        file.output.register(registry, Target::Stdout.token());
        Some(result)
    }

    /// When lines must be written at the latest.
    pub(crate) fn next_flush(&self, now: Instant) -> Option<Instant> {
        // Output that tells nobody when it has room is asked again by the clock.
        let does_file = self.file.as_ref().is_some_and(|file| file.output.needs_clock());
        let is_asked = does_file || self.stdout.needs_clock() || self.stderr.needs_clock();
        earliest([self.lines_due, is_asked.then(|| now + LOG_DELAY)])
    }

    /// Writes what is due, without waiting for anybody.
    pub(crate) fn flush(&mut self, now: Instant) {
        let is_due = self.lines_due.is_some_and(|due| due <= now);
        if is_due || self.lines.len() >= LOG_BYTES {
            // The buffer is used again.
            let mut lines = std::mem::take(&mut self.lines);
            self.main().push(&lines);
            lines.clear();
            self.lines = lines;
            self.lines_due = None;
        }
        if HAS_WORDS.load(Ordering::Acquire) {
            HAS_WORDS.store(false, Ordering::Relaxed);
            let words = std::mem::take(&mut *WORDS.lock().unwrap_or_else(PoisonError::into_inner));
            self.stderr.push(&words);
        }
        self.write();
    }

    /// One of the outputs has room again.
    pub(crate) fn has_room(&mut self) {
        self.stdout.has_room();
        if let Some(file) = &mut self.file {
            file.output.has_room();
        }
        self.stderr.has_room();
        self.write();
    }

    fn write(&mut self) {
        // As in most ticks.
        let is_quiet = self.file.as_ref().is_none_or(|file| file.output.is_quiet());
        if is_quiet && self.stdout.is_quiet() && self.stderr.is_quiet() {
            return;
        }
        self.stdout.flush();
        self.stderr.flush();
        let of_file = self.file.as_mut().and_then(|file| {
            file.output.flush();
            file.output.news()
        });
        let all_news =
            [(Some("stdout"), self.stdout.news()), (Some("stderr"), self.stderr.news()), (None, of_file)];
        for (name, news) in all_news {
            let Some(news) = news else { continue };
            let file_name = || self.file.as_ref().map_or_else(String::new, LogFile::name);
            let name = name.map_or_else(file_name, str::to_owned);
            let line = match news {
                News::Failing(error) => {
                    format!("{name} cannot be written to: {error}; lines are dropped until it can")
                }
                News::Gone(error) => {
                    format!("{name} has no reader any more ({error}); what is for it is dropped from now on")
                }
                News::Dropped(count) => dropped(count, &name),
            };
            self.stderr.push(warning(&line).as_bytes());
        }
        self.stderr.flush();
    }

    /// The last lines, at the end: nobody looks for room any more, so it is waited for here.
    pub(crate) fn finish(&mut self) {
        self.finish_within(LAST_LINES);
    }

    fn finish_within(&mut self, bound: Duration) {
        let begun = Instant::now();
        let lines = std::mem::take(&mut self.lines);
        self.main().push(&lines);
        self.flush(begun);
        loop {
            let remaining = bound.saturating_sub(begun.elapsed());
            let outputs =
                [&self.stdout, &self.stderr].into_iter().chain(self.file.iter().map(|file| &file.output));
            if remaining.is_zero() || !wait_for_room(outputs, remaining) {
                break;
            }
            self.has_room();
        }
        self.give_up();
    }

    /// What has found no room is dropped, and stderr says how many lines that makes, where it has any.
    fn give_up(&mut self) {
        let is_in_line = self.stderr.is_in_line();
        let of_file = self.file.as_mut().map(|file| (file.output.give_up(), file.name()));
        let of_outputs =
            [(self.stdout.give_up(), "stdout".to_owned()), (self.stderr.give_up(), "stderr".to_owned())];
        let mut words = String::new();
        for (count, name) in of_outputs.into_iter().chain(of_file).filter(|(count, _)| *count > 0) {
            words.push_str(&warning(&dropped(count, &name)));
        }
        if !words.is_empty() && is_in_line {
            // They do not continue a line that was cut.
            words.insert(0, '\n');
        }
        self.stderr.push(words.as_bytes());
        self.stderr.has_room();
        self.stderr.flush();
    }

    pub(crate) fn dropped_lines(&self) -> u64 {
        let file = self.file.as_ref().map_or(0, |file| file.output.all_dropped_lines());
        self.stdout.all_dropped_lines() + file + self.stderr.all_dropped_lines()
    }
}

fn dropped(count: u64, name: &str) -> String {
    match count {
        1 => format!("1 line for {name} was dropped"),
        _ => format!("{count} lines for {name} were dropped"),
    }
}

/// A word of the server's own that does not come by its log.
fn warning(what: &str) -> String {
    format!("rip-server: warn: {what}\n")
}

#[cfg(test)]
mod tests;
