//! What single rooms of the reactor need in their unit tests: settings, io with a clock that is moved by hand, requests.
//! Their sockets are [`super::wire`]'s.

use super::process;
use crate::config::{self, Command, Config};
use crate::conn::Request;
use crate::http::RequestHead;
use crate::http::forward::{ForwardedTrust, Origin};
use crate::http::request::header_buffer;
use crate::reactor::crossing::Job;
use crate::reactor::io::Io;
use crate::reactor::io::spool::Spool;
use mio::Poll;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Of a server that is its own app, unless the words say otherwise. `NAME=value` among them is a variable.
pub(crate) fn config(words: &str) -> Rc<Config> {
    let is_app = !words.contains(" -- ");
    let (variables, words): (Vec<&str>, Vec<&str>) = words
        .split_whitespace()
        .partition(|word| word.contains('=') && word.starts_with(|letter: char| letter.is_ascii_uppercase()));
    let environment = |name: &str| {
        let mut pairs = variables.iter().filter_map(|variable| variable.split_once('='));
        pairs.find(|(other, _)| *other == name).map(|(_, value)| value.to_owned())
    };
    match config::read(words.iter().map(Into::into).collect(), &environment, is_app) {
        Ok(Command::Serve(config)) => Rc::from(config),
        other => panic!("{words:?}: {other:?}"),
    }
}

pub(in crate::reactor) fn io() -> Io {
    let poll = Poll::new().expect("epoll");
    Io::new(poll, process::raise_descriptor_limit(), std::env::temp_dir(), 1 << 20)
}

pub(crate) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Moves the clock on.
pub(in crate::reactor) fn pass(io: &mut Io, time: Duration) -> Instant {
    let now = io.now() + time;
    io.move_clock_to(now);
    now
}

/// A request with such a first line and such fields, whose head has no end yet.
pub(in crate::reactor) fn request(line: &str, fields: &str, io: &Io) -> Request {
    let text = format!("{line}\r\nHost: a\r\n{fields}\r\n");
    let mut buffer = header_buffer();
    let head = RequestHead::parse(text.as_bytes(), &mut buffer).expect("a head");
    let origin =
        Origin { address: "192.0.2.7", trust: ForwardedTrust::Ignored, fresh_id: b"fresh", start_us: b"1" };
    Request::new(&head, Vec::new(), origin, io.now())
}

/// A job with such a body.
pub(in crate::reactor) fn job(line: &str, body: &[u8], io: &Io) -> Job {
    let fields = match body {
        [] => String::new(),
        body => format!("Content-Length: {}\r\n", body.len()),
    };
    let mut request = request(line, &fields, io);
    request.seal(body.len() as u64);
    let mut spool = Spool::new(io.spools());
    spool.push_all(body);
    let now = io.now();
    Job { request, body: spool, submitted: now, deadline: now, tries: 1, is_client_asked: false }
}

thread_local! {
    /// What is logged in this thread, where somebody keeps it.
    static LOG: RefCell<Option<String>> = const { RefCell::new(None) };
}

struct Keeper;

impl log::Log for Keeper {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        LOG.with_borrow(Option::is_some)
    }

    fn log(&self, record: &log::Record<'_>) {
        LOG.with_borrow_mut(|log| {
            if let Some(log) = log {
                log.push_str(&format!("{} {}\n", record.level(), record.args()));
            }
        });
    }

    fn flush(&self) {}
}

/// Keeps what this thread logs from now on, for [`logged`].
pub(crate) fn keep_log() {
    if log::set_logger(&Keeper).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
    LOG.set(Some(String::new()));
}

/// What this thread has logged since this was asked last: `WARN …`, a line each.
pub(crate) fn logged() -> String {
    LOG.replace(Some(String::new())).unwrap_or_default()
}
