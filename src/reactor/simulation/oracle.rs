//! A simple record of each request and each answer, with the rules that need nothing else.

use super::script::{Answer, Planned};
use crate::process::Exit;
use std::time::{Duration, Instant};

/// All requests and answers there ever were, by their numbers.
#[derive(Default)]
pub(crate) struct Oracle {
    pub tags: Vec<Tag>,
    pub answers: Vec<Said>,
    /// The status of each line that bears no number: of the server's own pages, and of requests that were cut off
    /// before the target's end.
    pub anonymous_file: Vec<u64>,
    /// A worker took so little at once that it may have a request in part, and not know which.
    pub has_little_room: bool,
    /// A request was refused when not all of `HEAD` had come.
    pub has_cut_method: bool,
    /// A worker that lives has closed a connection with nothing on it, which the server may have used before it knew.
    pub has_closed_idle: bool,
}

/// One answer, and how much of it a worker has said.
pub(crate) struct Said {
    /// The request that it answers.
    pub tag: usize,
    pub answer: Answer,
    pub is_all: bool,
    /// So much of it was said.
    pub said_bytes: usize,
    /// Its worker ended the connection in an orderly way, before or after the end.
    pub is_hung_up: bool,
    /// Another was said over its connection before.
    pub is_behind_another: bool,
    /// It did so by its process's end.
    pub died: Option<Exit>,
}

/// What a worker said to a request that it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Try {
    NoResponse,
    Busy,
    /// Bytes of no answer, over a connection that had one before.
    Stray,
    /// A byte of an answer.
    Heard,
}

/// One request.
pub(crate) struct Tag {
    pub planned: Planned,
    pub client: usize,
    pub first_sent: Option<Instant>,
    /// Each time that a worker got bytes of it.
    pub tries: Vec<Try>,
    /// When a worker last got something of it or said something to it.
    touched: Option<Instant>,
    /// When it was first given to a worker that may have it still.
    pub first_tried: Option<Instant>,
    /// The longest time that went by between two such moments.
    longest_pause: Duration,
    pub line: Option<LogLine>,
    /// Its client's connection is closed: nobody may get it any more.
    pub is_forsaken: bool,
    /// The server has closed its worker's connection.
    pub was_parted: bool,
    /// It has done so before the worker did.
    pub was_dropped: bool,
    /// Its worker was given it over a connection that had served another.
    pub is_over_used_connection: bool,
    /// A process has ended with it in hand.
    pub was_died_on: bool,
    /// A living worker has closed its connection with it in hand.
    pub was_closed_on: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct LogLine {
    pub status: u64,
    pub reason: String,
}

impl Tag {
    fn touch(&mut self, now: Instant) {
        self.longest_pause = self.pause(now);
        self.touched = Some(now);
    }

    /// The longest time, until now, that nothing passed between its worker and the server.
    pub(crate) fn pause(&self, now: Instant) -> Duration {
        self.longest_pause.max(self.touched.map_or(Duration::ZERO, |touched| now - touched))
    }
}

impl Oracle {
    pub(crate) fn expect(&mut self, planned: &Planned, client: usize) {
        assert_eq!(planned.tag, self.tags.len());
        self.tags.push(Tag {
            planned: planned.clone(),
            client,
            first_sent: None,
            tries: Vec::new(),
            touched: None,
            first_tried: None,
            longest_pause: Duration::ZERO,
            line: None,
            is_forsaken: false,
            was_parted: false,
            was_dropped: false,
            is_over_used_connection: false,
            was_died_on: false,
            was_closed_on: false,
        });
    }

    /// `is_used`: over a connection that had served another.
    pub(crate) fn tried(&mut self, tag: usize, is_used: bool, now: Instant) {
        let tag = &mut self.tags[tag];
        let name = &tag.planned.tag;
        assert!(!tag.is_forsaken, "request {name}: dispatched although its client's connection is closed");
        let is_over = tag.line.as_ref().is_some_and(|line| line.reason != "client_gone");
        assert!(!is_over, "request {name}: dispatched after its end");
        assert!(tag.tries.len() < 2, "request {name}: a third try");
        assert!(tag.planned.flaw.is_none(), "request {name}: dispatched, and it is to be refused");
        let method = tag.planned.method;
        match tag.tries.last() {
            None | Some(Try::Busy) => {}
            Some(Try::NoResponse | Try::Stray) => {
                let is_idempotent = tag.planned.is_idempotent();
                assert!(is_idempotent, "request {name}: {method} sent again after its bytes were out");
                let was_ended = tag.was_dropped && tag.tries.last() == Some(&Try::NoResponse);
                assert!(!was_ended, "request {name}: sent again after the server itself had ended it");
            }
            Some(Try::Heard) => panic!("request {name}: {method} sent again after a byte of an answer"),
        }
        tag.tries.push(Try::NoResponse);
        tag.is_over_used_connection = is_used;
        tag.first_tried.get_or_insert(now);
        tag.touch(now);
    }

    /// The head of an event stream was said to this request.
    pub(crate) fn is_stream(&self, tag: usize) -> bool {
        let is_its = |said: &&Said| said.tag == tag && said.answer.may_idle;
        self.answers.iter().filter(is_its).any(|said| said.said_bytes >= said.answer.head_bytes)
    }

    /// A worker has said all of an answer to this request. Where the connection's end ends it, a process that fails has
    /// cut it, also if it fails only when it has ended the connection: the server sees both at once.
    pub(crate) fn is_whole(&self, tag: usize) -> bool {
        self.answers.iter().filter(|said| said.tag == tag && said.is_all).any(
            |Said { answer, died, .. }| {
                let is_last = answer.is_sound && !answer.is_busy && !answer.is_tunnel;
                let was_cut = died.map_or(self.tags[tag].was_died_on, |exit| exit != Exit::Code(0));
                is_last && !(answer.ends_with_connection && was_cut)
            },
        )
    }

    /// `bytes` of an answer are said by now.
    pub(crate) fn said(&mut self, number: usize, bytes: usize, now: Instant) {
        if bytes == 0 {
            return;
        }
        let Said { tag, answer, is_all, said_bytes, is_behind_another, .. } = &mut self.answers[number];
        *said_bytes = bytes;
        let tag = &mut self.tags[*tag];
        tag.touch(now);
        *is_all = bytes == answer.bytes.len();
        if let Some(last) = tag.tries.last_mut() {
            *last = match answer {
                _ if answer.is_busy && bytes >= answer.head_bytes => Try::Busy,
                _ if answer.is_stray && *is_behind_another => Try::Stray,
                _ => Try::Heard,
            };
        }
    }
}
