//! The operators' page: who asks for it, and what it is told each second.

use super::admin::connections::Ask;
use super::io::clock;
use super::tick::Reactor;
use crate::observe::history::Load;
use crate::page::{self, Query, Reply, TOO_MANY_VIEWERS};

const HTML_TYPE: &str = "text/html; charset=utf-8";

impl Reactor {
    /// Takes connections of those who look at the page.
    pub(super) fn accept_viewer(&mut self, index: usize) {
        if let Err(error) = self.admin.accept_viewer(index, &mut self.io, &mut self.observer) {
            self.pause_accepting(&error);
        }
    }

    /// A tick begins: what has been until now goes into the history.
    pub(super) fn note_load(&mut self) {
        if !self.observer.has_history() {
            return;
        }
        let load = Load {
            waiting: self.balancer.waiting(),
            at_work: self.balancer.in_use(),
            workers: self.supervisor.fleet().size(),
        };
        self.observer.note_load(load, self.io.now());
    }

    pub(super) fn show_page(&mut self, ask: &Ask) {
        let Ask { key, request, .. } = ask;
        let query = Query {
            method: request.method(),
            path: request.path(),
            host: request.field("host").unwrap_or_default(),
            site: request.field("sec-fetch-site"),
        };
        let mut reply = page::reply(query, self.admin.page_hosts());
        if reply == Reply::Events && !request.context.is_head && self.admin.is_full_of_viewers(&self.io) {
            reply = TOO_MANY_VIEWERS;
        }
        match reply {
            Reply::Page => {
                // Drawn from the kernel's randomness, and never the same twice.
                let nonce = format!("{:016x}{:016x}", clock::seed(), clock::seed());
                let (fields, text) = page::document(&nonce);
                let kind = (200, HTML_TYPE, fields.as_str());
                self.admin.respond_with_fields(*key, request, kind, text.as_bytes(), &self.io);
            }
            Reply::Events if request.context.is_head => {
                let kind = (200, "text/event-stream", page::FIELDS);
                self.admin.respond_with_fields(*key, request, kind, b"", &self.io);
            }
            Reply::Events => {
                let date = String::from_utf8_lossy(self.io.date_line()).into_owned();
                self.admin.begin_watching(*key, &page::stream_head(&date));
                self.send_events(&[(*key, 0)]);
            }
            Reply::Refusal(status, text) => {
                let fields = page::refusal_fields(status);
                let kind = (status, "text/plain", fields.as_str());
                self.admin.respond_with_fields(*key, request, kind, text.as_bytes(), &self.io);
            }
        }
    }

    /// Sends an event to all viewers if one is due.
    pub(super) fn tell_viewers(&mut self) {
        if self.admin.is_event_due(self.io.now()) {
            let ready = self.admin.ready_viewers();
            self.send_events(&ready);
        }
    }

    /// What `status --json` tells, and behind it the seconds that each of these viewers has not seen.
    fn send_events(&mut self, viewers: &[(usize, u64)]) {
        let Some((second, next)) = self.observer.history_second() else { return };
        self.admin.set_next_event(next);
        if viewers.is_empty() {
            return;
        }
        let mut value = self.status_details();
        let mut text = (u64::MAX, String::new());
        for &(key, seen) in viewers {
            if text.0 != seen {
                value["history"] = self.observer.history_since(seen);
                text = (seen, page::event(&value));
            }
            self.admin.send_event(key, &text.1, second, &self.io);
        }
    }
}
