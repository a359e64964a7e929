//! Requests and new code: who waits for it, and what is answered while an app does not start.

use super::crossing::Times;
use super::limits::MAX_REFUSALS_PER_TICK;
use super::supervisor::Renewed;
use super::tick::Reactor;
use crate::conn::Request;
use crate::keys::ClientKey;
use std::time::Instant;

impl Reactor {
    /// Takes in what has changed. Before each request too, so that the first one after an edit meets the new code.
    pub(super) fn read_watch(&mut self) {
        // The server that is to follow sees it too, and has the new code; if it fails, this one looks then.
        if self.host.has_open_successor() {
            return;
        }
        if self.supervisor.read_watch(&self.io) {
            self.hold_requests();
        }
    }

    /// Acts on changes that have settled, and on code that has not come in time.
    pub(super) fn act_on_changes(&mut self) {
        let now = self.io.now();
        match self.supervisor.settle_changes(now) {
            Some(Renewed::Nothing) if !self.supervisor.fleet().is_rolling() => self.release_requests(),
            Some(Renewed::Nothing) | None => {}
            Some(Renewed::Replace { is_slowed }) => self.renew(is_slowed),
        }
        if self.supervisor.hold_until().is_some_and(|until| until <= now) {
            let within_ms = self.config.boot_timeout.as_millis();
            log::warn!("hot reload: the new code has not come within {within_ms} ms; the old one goes on");
            self.release_requests();
        }
    }

    /// Has all workers replaced; requests wait for the new ones, but where a loop is slowed down.
    pub(super) fn renew(&mut self, is_slowed: bool) {
        if !is_slowed {
            self.hold_requests();
        }
        self.supervisor.fleet_mut().reload(None, self.io.now());
    }

    /// From now on nobody with the old code gets a request.
    fn hold_requests(&mut self) {
        if !self.is_stopping() {
            for worker in self.supervisor.hold(self.io.now()) {
                self.balancer.withdraw(worker);
            }
        }
    }

    /// Whoever has the old code and is still there gets requests again.
    fn release_requests(&mut self) {
        for worker in self.supervisor.end_hold() {
            if self.supervisor.end_withholding(worker) {
                let capacity = self.supervisor.capacity(worker);
                let next = self.balancer.readmit(worker, capacity, self.io.now());
                self.go_on_with_worker(worker, next);
            }
        }
    }

    /// All workers are replaced, or that was given up.
    pub(super) fn renewal_ended(&mut self, is_done: bool) {
        if self.supervisor.end_renewal(is_done) {
            self.release_requests();
        }
    }

    /// Until when a request that comes now waits for a worker.
    pub(super) fn queue_deadline(&self) -> Instant {
        let usual = self.balancer.deadline(self.io.now());
        let hold_until = self.supervisor.hold_until();
        hold_until.map_or(usual, |until| usual.max(until + self.config.queue_timeout))
    }
}

/// An app that does not start.
impl Reactor {
    pub(super) fn has_failed_to_start(&self) -> bool {
        self.supervisor.has_failed_to_start() && !self.is_stopping()
    }

    pub(super) fn knows_failed_start(&self) -> bool {
        self.supervisor.knows_failed_start()
    }

    /// Some who wait have not been told yet.
    pub(super) fn has_to_tell_failure(&self) -> bool {
        self.supervisor.has_failure() && self.balancer.waiting() > 0 && self.has_failed_to_start()
    }

    /// Whoever waits while the app does not start is told why, as many as a tick may take.
    pub(super) fn answer_failed_start(&mut self) {
        if !self.has_to_tell_failure() {
            return;
        }
        let waiting: Vec<ClientKey> = self.frontend.queued().take(MAX_REFUSALS_PER_TICK).collect();
        for client in waiting {
            self.balancer.forget(client);
            if let Some(job) = self.frontend.end_wait(client) {
                let times = Times { queue: self.io.now() - job.submitted, ..Times::default() };
                self.refuse_failed_start(client, job.request, times);
            }
        }
    }

    pub(super) fn refuse_failed_start(&mut self, client: ClientKey, request: Request, times: Times) {
        let text = self.supervisor.failed_start_text();
        if request.takes_html() {
            let page = html(&text);
            self.refuse_with(client, request, "text/html; charset=utf-8", page.as_bytes(), times);
        } else {
            self.refuse_with(client, request, "text/plain; charset=utf-8", text.as_bytes(), times);
        }
    }
}

/// A text as a page.
fn html(text: &str) -> String {
    let mut safe = String::with_capacity(text.len() + 128);
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            letter => safe.push(letter),
        }
    }
    format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>The app does not start</title>\n<pre style=\"white-space: pre-wrap\">{safe}</pre>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_shown_in_a_page_as_it_is() {
        let page = html("a < b && c > d\n");
        assert!(page.ends_with("pre-wrap\">a &lt; b &amp;&amp; c &gt; d\n</pre>\n"), "{page}");
        assert!(page.starts_with("<!doctype html>\n"));
    }
}
