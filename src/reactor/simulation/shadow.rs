//! What must hold, whatever happens: a naive record of each request and answer, and a look at everything after each
//! turn.

use super::reader;
use super::script::{Answer, Planned};
use super::street::{Life, Street};
use crate::keys::ClientKey;
use crate::reactor::GRACE;
use crate::reactor::entry::{Exchange, Phase, WorkerDeadline};
use crate::reactor::stopping::Stage;
use crate::reactor::token::Target;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// All requests and answers there ever were, by their numbers.
#[derive(Default)]
pub struct Truth {
    pub tags: Vec<Tag>,
    /// Which request it answers, and whether all of it was said.
    pub answers: Vec<(usize, Answer, bool)>,
    /// The status of each line that bears no number: of the server's own pages, and of requests that were cut off
    /// before the target's end.
    unnamed: Vec<u64>,
}

/// One request.
pub struct Tag {
    pub planned: Planned,
    pub client: usize,
    pub first_sent: Option<Instant>,
    /// Each time that a worker got bytes of it: whether that worker had said that it is busy.
    pub tries: Vec<bool>,
    /// When a worker last got something of it or said something to it.
    touched: Option<Instant>,
    /// When it was first given to a worker that may have it still.
    pub first_tried: Option<Instant>,
    /// The longest time that went by between two such moments.
    longest_pause: Duration,
    pub line: Option<LogLine>,
    /// Its client's connection is closed: nobody may get it any more.
    pub is_forsaken: bool,
}

#[derive(Debug, Clone)]
pub struct LogLine {
    pub status: u64,
    pub reason: String,
}

/// Who holds which key at the beginning of a turn.
pub struct Keys {
    clients: BTreeMap<usize, usize>,
    workers: BTreeMap<usize, i32>,
}

impl Tag {
    fn touch(&mut self, now: Instant) {
        self.longest_pause = self.pause(now);
        self.touched = Some(now);
    }

    /// The longest time, until now, that nothing passed between its worker and the server.
    fn pause(&self, now: Instant) -> Duration {
        self.longest_pause.max(self.touched.map_or(Duration::ZERO, |touched| now - touched))
    }
}

impl Truth {
    pub fn expect(&mut self, planned: &Planned, client: usize) {
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
        });
    }

    fn tried(&mut self, tag: usize, now: Instant) {
        let tag = &mut self.tags[tag];
        let name = &tag.planned.tag;
        assert!(!tag.is_forsaken, "request {name}: dispatched although its client's connection is closed");
        let is_over = tag.line.as_ref().is_some_and(|line| line.reason != "client_gone");
        assert!(!is_over, "request {name}: dispatched after its end");
        assert!(tag.tries.len() < 2, "request {name}: a third try");
        if let (Some(was_busy), false) = (tag.tries.last(), tag.planned.is_idempotent()) {
            assert!(was_busy, "request {name}: {} sent again after its bytes were out", tag.planned.method);
        }
        tag.tries.push(false);
        tag.first_tried.get_or_insert(now);
        tag.touch(now);
    }

    /// `bytes` of an answer are said by now.
    pub fn said(&mut self, tag: usize, answer: &Answer, bytes: usize, now: Instant) {
        let tag = &mut self.tags[tag];
        tag.touch(now);
        if answer.is_busy
            && bytes >= answer.head_bytes
            && let Some(was_busy) = tag.tries.last_mut()
        {
            *was_busy = true;
        }
        if bytes == answer.bytes.len() {
            let its = self.answers.iter_mut().rfind(|(of, _, _)| *of == tag.planned.tag);
            its.expect("made up before it is said").2 = true;
        }
    }
}

impl Street {
    pub fn keys(&self) -> Keys {
        let clients = self.clients.iter().enumerate().filter_map(|(at, client)| {
            let wire = client.wire.borrow();
            wire.token.filter(|_| !wire.is_server_gone).map(|token| (token.0, at))
        });
        let workers = self.reactor.workers.iter().map(|(key, entry)| (key, entry.pid.as_raw()));
        Keys { clients: clients.collect(), workers: workers.collect() }
    }

    /// Who is in the queue, and will be heard in this turn to have closed its side. Before that, or behind another
    /// request, a half-close is no departure.
    pub fn note_departures(&mut self) {
        for client in &mut self.clients {
            let wire = client.wire.borrow();
            let key = wire.token.and_then(Target::of).filter(|_| wire.has_edge() && wire.peer_has_ended);
            client.leaves_queue = match key {
                Some(Target::Client(key)) => matches!(
                    self.reactor.clients.get(key.0).map(|entry| &entry.phase),
                    Some(Phase::Queued(job)) if job.request.asked.keep_alive
                ),
                _ => false,
            };
        }
    }

    /// Where something is to be read or told, something happens in this turn.
    pub fn note_activity(&mut self) {
        let now = self.now;
        for line in self.workers.iter_mut().flat_map(|worker| &mut worker.lines) {
            let wire = line.wire.borrow();
            if !wire.to_server.is_empty() || wire.has_edge() {
                line.touched = now;
            }
        }
    }

    /// Takes in what the turn has done, and checks all of it.
    pub fn observe(&mut self, before: &Keys) {
        self.look_at_workers();
        self.read_log();
        self.look_at_clients();
        self.check_keys(before);
        self.check_balance();
        self.check_deadlines();
    }

    fn look_at_workers(&mut self) {
        let now = self.now;
        let mut tried = Vec::new();
        for worker in &mut self.workers {
            for wire in super::wire::accept_at(&worker.socket) {
                let line = super::street::Line { wire, parsed: 0, hand: None, touched: now };
                worker.lines.push(line);
            }
            for line in &mut worker.lines {
                let wire = line.wire.borrow();
                if wire.written.len() > line.parsed {
                    line.touched = if line.hand.is_none() { now } else { line.touched };
                }
                // The request that it has, and the one behind it.
                loop {
                    let rest = &wire.written[line.parsed..];
                    let Some(found) = reader::request(rest) else { break };
                    let Some(hand) = &mut line.hand else {
                        tried.push(found.tag);
                        line.hand = Some(super::street::Hand {
                            tag: found.tag,
                            began: now,
                            answer: None,
                            said: 0,
                            is_checked: false,
                        });
                        continue;
                    };
                    let Some(length) = found.bytes.filter(|&length| rest.len() >= length) else { break };
                    if !hand.is_checked {
                        hand.is_checked = true;
                        let body = &rest[length - found.body_bytes..length];
                        let planned = &self.truth.tags[hand.tag].planned;
                        assert!(body == planned.body, "request {}: its body is not as it was sent", hand.tag);
                    }
                    if hand.answer.as_ref().is_some_and(|answer| answer.is_tunnel) {
                        break;
                    }
                    if hand.is_done() {
                        line.parsed += length;
                        line.hand = None;
                        continue;
                    }
                    assert_eq!(
                        rest.len(),
                        length,
                        "worker {}: a second request before the last byte of its answer",
                        worker.pid
                    );
                    break;
                }
            }
            worker.lines.retain(|line| !line.wire.borrow().is_server_gone);
            assert!(worker.lines.len() <= 1, "worker {}: two connections", worker.pid);
            for line in &mut worker.lines {
                let mut wire = line.wire.borrow_mut();
                if wire.room_bytes == usize::MAX {
                    wire.take(usize::MAX);
                }
            }
        }
        let clock = self.clock();
        for tag in tried {
            super::tell(|| format!("  {clock}: a worker gets request {tag}"));
            self.truth.tried(tag, now);
        }
    }

    fn read_log(&mut self) {
        let lines = self.reactor.logs.take_lines();
        for line in lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let clock = self.clock();
            super::tell(|| format!("  {clock}: {}", String::from_utf8_lossy(line)));
            let value: Value = serde_json::from_slice(line).expect("a line of JSON");
            let status = value["status"].as_u64().expect("a status");
            let reason = value["reason"].as_str().unwrap_or_default().to_owned();
            let Some(tag) = reader::tag(value["path"].as_str().unwrap_or_default()) else {
                self.truth.unnamed.push(status);
                continue;
            };
            self.check_reason(tag, &reason);
            let tag = &mut self.truth.tags[tag];
            let line = LogLine { status, reason };
            assert!(
                tag.line.is_none(),
                "request {}: two lines, {:?} and {line:?}",
                tag.planned.tag,
                tag.line
            );
            tag.line = Some(line);
        }
    }

    /// A reason may stand in the log only where it is true.
    fn check_reason(&self, number: usize, reason: &str) {
        let tag = &self.truth.tags[number];
        let config = &self.reactor.config;
        let client = &self.clients[tag.client];
        let is_running = self.reactor.stage == Stage::Running;
        let is_true = match reason {
            // A worker with a full buffer may have got too little of it to tell which request it is.
            "read_timeout" => tag.tries.is_empty() || tag.pause(self.now) >= config.read_timeout,
            "client_timeout" => tag.first_sent.is_some_and(|first| self.now >= first + config.client_timeout),
            "stopping" => !is_running,
            "client_gone" => {
                let wire = client.wire.borrow();
                let is_deaf = self.now >= client.took_at + config.idle_timeout;
                wire.peer_has_ended || wire.is_reset || is_deaf || !is_running
            }
            "worker_busy" => tag.tries.last() == Some(&true),
            "" => tag.planned.is_local || !tag.tries.is_empty(),
            _ => true,
        };
        assert!(is_true, "request {number}: '{reason}' is not true of it");
    }

    fn look_at_clients(&mut self) {
        for at in 0..self.clients.len() {
            let wire = self.clients[at].wire.clone();
            let wire = wire.borrow();
            if wire.is_server_gone && !self.clients[at].is_closed {
                self.clients[at].is_closed = true;
                let begins = self.begins();
                for request in &self.clients[at].requests {
                    self.truth.tags[request.tag].is_forsaken = !begins.contains(&request.tag);
                }
                self.check_close(at);
            }
            let Some(Target::Client(key)) = wire.token.and_then(Target::of).filter(|_| !wire.is_server_gone)
            else {
                continue;
            };
            let Some(entry) = self.reactor.clients.get(key.0) else { continue };
            if let Phase::Queued(_) = &entry.phase
                && !wire.has_edge()
            {
                let is_gone = wire.is_reset || self.clients[at].leaves_queue;
                assert!(!is_gone, "client {at}: waits in the queue, and has gone");
            }
        }
    }

    /// Requests that a worker has been given, and no byte of yet: they are run even if their client leaves now.
    fn begins(&self) -> Vec<usize> {
        let exchanges = self.reactor.workers.iter().filter_map(|(_, entry)| entry.exchange.as_ref());
        let unsent = exchanges.filter(|exchange| exchange.head_sent_bytes == 0);
        let path = |exchange: &Exchange| reader::tag(std::str::from_utf8(exchange.job.request.path()).ok()?);
        unsent.filter_map(path).collect()
    }

    /// The server has closed a client's connection: it must have had a cause.
    fn check_close(&self, at: usize) {
        let client = &self.clients[at];
        let wire = client.wire.borrow();
        let heard = self.heard(at);
        let asked_for_it = heard.len().checked_sub(1).is_some_and(|last| {
            client.requests.get(last).is_some_and(|request| request.is_http10 && !request.keep_alive)
        });
        let has_last = asked_for_it
            || heard.last().is_some_and(|last| last.closes || !last.is_whole || last.ends_with_connection);
        let is_running = self.reactor.stage == Stage::Running;
        let patience = if is_running { self.reactor.config.idle_timeout } else { GRACE };
        let was_refused = client.requests.iter().any(|request| {
            self.truth.tags[request.tag].line.as_ref().is_some_and(|line| !line.reason.is_empty())
        });
        let has_cause = wire.peer_has_ended
            || wire.is_reset
            || has_last
            || was_refused
            || heard.iter().any(|heard| heard.status == 101)
            || self.reactor.stage == Stage::Ending
            || (wire.room() == 0 && self.now >= client.took_at + self.reactor.config.idle_timeout)
            || self.now >= client.sent_at + patience;
        assert!(
            has_cause,
            "client {at}: its connection was closed without a cause: {heard:?}, touched {:?} ago",
            self.now - client.sent_at
        );
    }

    /// What a client has been sent, as it understands it.
    pub fn heard(&self, at: usize) -> Vec<reader::Heard> {
        let client = &self.clients[at];
        let wire = client.wire.borrow();
        let is_head =
            |index: usize| client.requests.get(index).is_some_and(|request| request.method == "HEAD");
        let is_closed = wire.is_server_gone && !wire.server_resets && !wire.is_peer_gone;
        reader::answers(&wire.written, is_head, is_closed)
    }

    fn check_keys(&self, before: &Keys) {
        let after = self.keys();
        for (token, at) in &after.clients {
            let earlier = before.clients.get(token);
            assert!(
                earlier.is_none_or(|earlier| earlier == at),
                "a client's key was used again within a batch"
            );
        }
        for (key, pid) in &after.workers {
            let earlier = before.workers.get(key);
            assert!(
                earlier.is_none_or(|earlier| earlier == pid),
                "a worker's key was used again within a batch"
            );
        }
    }

    /// Who waits, who is idle and who is busy are those whose entries say so.
    fn check_balance(&self) {
        if self.reactor.exit.is_some() {
            return;
        }
        let reactor = &self.reactor;
        let mut waiting = 0;
        for (key, entry) in &reactor.clients {
            match &entry.phase {
                Phase::Queued(_) => {
                    waiting += 1;
                    assert!(reactor.balancer.is_waiting(ClientKey(key)), "client {key}: waits for nothing");
                }
                Phase::Assigned { worker } | Phase::Tunnel { worker } => {
                    let exchange = reactor.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
                    let is_its = exchange.is_some_and(|exchange| exchange.client == Some(ClientKey(key)));
                    assert!(is_its, "client {key}: no worker works for it");
                }
                Phase::Reading | Phase::Finishing { .. } | Phase::Lingering | Phase::Dead => {}
            }
        }
        assert_eq!(waiting, reactor.balancer.waiting(), "everybody in the queue waits");
        let mut at_work = 0;
        for (key, entry) in &reactor.workers {
            let worker = crate::keys::WorkerKey(key);
            if reactor.balancer.is_idle(worker) {
                assert!(
                    entry.exchange.is_none() && entry.has_joined,
                    "worker {key}: idle with a request in hand"
                );
            } else if reactor.balancer.is_at_work(worker) {
                at_work += 1;
                let rests = reactor.worker_deadlines.armed(key) == Some(WorkerDeadline::Rest);
                assert!(entry.exchange.is_some() || rests, "worker {key}: busy with nothing");
            }
        }
        assert_eq!(at_work, reactor.balancer.busy(), "everybody busy is there");
        let members = reactor.fleet.members().count();
        let alive = reactor.workers.iter().filter(|(_, entry)| entry.exit.is_none()).count();
        assert_eq!(members, alive, "idle, busy, booting and leaving are all workers");
    }

    /// Nothing that is due has been left for a later turn.
    fn check_deadlines(&self) {
        if self.reactor.exit.is_some() {
            return;
        }
        let (now, reactor) = (self.now, &self.reactor);
        reactor.balancer.check_deadlines(now);
        for (whose, due) in [
            ("a client's", reactor.client_deadlines.next()),
            ("a worker's", reactor.worker_deadlines.next()),
            ("the fleet's", reactor.fleet.next_deadline()),
        ] {
            assert!(due.is_none_or(|due| due > now), "{whose} deadline is late");
        }
        for worker in self.workers.iter().filter(|worker| worker.life != Life::Ended) {
            let Some(line) = worker.lines.first() else { continue };
            let Some(hand) = line.hand.as_ref().filter(|hand| !hand.is_done()) else { continue };
            let entry = reactor.workers.iter().find(|(_, entry)| entry.pid.as_raw() == worker.pid);
            let waits = entry.is_some_and(|(_, entry)| {
                !entry.is_held_back
                    && entry.exchange.as_ref().is_some_and(|exchange| exchange.client.is_some())
            });
            let may_idle = hand.answer.as_ref().is_some_and(|answer| answer.may_idle);
            let patience = if may_idle { reactor.config.idle_timeout } else { reactor.config.read_timeout };
            assert!(
                !waits || now < line.touched + patience,
                "request {}: its answer is late, and nobody minds",
                hand.tag
            );
        }
    }

    /// At rest nothing lies about that somebody wants.
    pub fn check_rest(&self) {
        let reactor = &self.reactor;
        for (at, client) in self.clients.iter().enumerate() {
            let wire = client.wire.borrow();
            let Some(Target::Client(key)) = wire.token.and_then(Target::of).filter(|_| !wire.is_server_gone)
            else {
                continue;
            };
            let Some(entry) = reactor.clients.get(key.0) else { continue };
            let is_open = entry.wants_bytes() && !reactor.is_tunnel_full(key);
            assert!(!is_open || wire.to_server.is_empty(), "client {at}: its bytes lie unread");
            assert!(
                !is_open || !wire.peer_has_ended || entry.conn.has_ended,
                "client {at}: its end goes unseen"
            );
            assert!(entry.out.is_read() || wire.room() == 0, "client {at}: has room, and its answer waits");
        }
        for (key, entry) in &reactor.workers {
            let Some(worker) = self.workers.iter().find(|worker| worker.pid == entry.pid.as_raw()) else {
                continue;
            };
            let (Some(line), Some(_)) = (worker.lines.first(), &entry.stream) else { continue };
            let wire = line.wire.borrow();
            let exchange = entry.exchange.as_ref();
            let tunnel = exchange.and_then(|exchange| exchange.tunnel.as_ref());
            let has_ended = tunnel.is_some_and(|tunnel| tunnel.worker_has_ended);
            let is_read = wire.to_server.is_empty() && !wire.peer_has_ended;
            assert!(entry.is_held_back || has_ended || is_read, "worker {key}: its bytes lie unread");
            if let Some(exchange) = exchange {
                let is_out = exchange.is_sent() || exchange.is_send_broken || exchange.is_reconnecting;
                assert!(is_out || wire.room() == 0, "worker {key}: has room, and its request waits");
                let waits = exchange.client.and_then(|client| reactor.clients.get(client.0));
                let waits = waits.is_some_and(|waiting| !waiting.out.is_read());
                assert!(!entry.is_held_back || waits, "worker {key}: held back for nobody");
            }
        }
    }

    /// A worker is told to end only with nothing in hand, or after it has had its time.
    pub fn check_signal(&self, at: usize, is_kill: bool) {
        let worker = &self.workers[at];
        let config = &self.reactor.config;
        // Its time runs from its being given to the worker, which may be a while before the first byte.
        let drain = config.drain_timeout - config.connect_timeout;
        let is_over = self.reactor.stage == Stage::Ending || self.reactor.exit.is_some() || is_kill;
        for line in &worker.lines {
            let Some(hand) = line.hand.as_ref().filter(|hand| !hand.is_done()) else { continue };
            let began = self.truth.tags[hand.tag].first_tried.unwrap_or(hand.began);
            let had_its_time = self.now >= began + drain;
            assert!(is_over || had_its_time, "request {}: its worker is replaced under it", hand.tag);
        }
    }

    /// All answers, each as its worker has said it, and one line for each request.
    pub fn check_answers(&self) {
        for at in 0..self.clients.len() {
            let client = &self.clients[at];
            let wire = client.wire.borrow();
            let heard = self.heard(at);
            assert!(heard.len() <= client.requests.len(), "client {at}: more answers than requests");
            let mut goes_on = true;
            for (request, heard) in client.requests.iter().zip(&heard) {
                assert!(goes_on, "client {at}: an answer behind the last one");
                self.check_answer(request, heard);
                goes_on = heard.is_whole && !heard.closes && heard.status != 101;
            }
            let is_there = !wire.is_peer_gone && !wire.is_reset;
            // Without any worker, the server may have given up.
            let has_given_up = self.reactor.exit == Some(1);
            let mut is_owed = goes_on && is_there && !has_given_up;
            for (index, request) in client.requests.iter().enumerate() {
                let tag = &self.truth.tags[request.tag];
                let is_sent = client.sent >= request.to && !request.is_local;
                let was_answered = heard.len() > index;
                let is_due = !tag.tries.is_empty();
                assert!(
                    !is_due || tag.line.is_some() || has_given_up,
                    "request {}: no line of it",
                    request.tag
                );
                let is_missing = is_owed && is_sent && !was_answered && !wire.is_server_gone;
                assert!(!is_missing, "request {}: no answer", request.tag);
                is_owed &= was_answered;
            }
        }
    }

    fn check_answer(&self, request: &Planned, heard: &reader::Heard) {
        let tag = request.tag;
        let line = self.truth.tags[tag].line.as_ref();
        let Some(number) = heard.number else {
            let status = u64::from(heard.status);
            let is_ours = match line {
                Some(line) => line.status == status || line.status == 499,
                None => [status, 499].iter().any(|status| self.truth.unnamed.contains(status)),
            };
            assert!(is_ours, "request {tag}: {heard:?} and the line {line:?}");
            return;
        };
        assert_eq!(heard.tag, Some(tag), "request {tag}: another's answer");
        let (of, answer, is_said) = &self.truth.answers[number];
        assert_eq!(*of, tag, "request {tag}: another's answer");
        assert_eq!(heard.status, answer.status, "request {tag}: its status");
        if answer.is_tunnel {
            return;
        }
        if heard.is_whole {
            assert!(*is_said && answer.is_sound, "request {tag}: an answer that is not whole looks so");
            assert!(heard.body == answer.body, "request {tag}: the body is not as it was said");
        } else {
            assert!(answer.body.starts_with(&heard.body), "request {tag}: bytes that nobody said");
        }
        let is_line_true = line.is_some_and(|line| {
            line.status == u64::from(heard.status) || line.status == 499 || !line.reason.is_empty()
        });
        assert!(is_line_true, "request {tag}: {} was heard, and the line is {line:?}", heard.status);
    }
}
