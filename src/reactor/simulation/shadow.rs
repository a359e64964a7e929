//! What must hold for clients and workers, whatever happens: each request and answer arrives once, complete or visibly
//! cut, and the reason in the log is the right one.

use super::inside::Keys;
use super::line::{Hand, Line};
use super::oracle::{LogLine, Said};
use super::peers::Life;
use super::script::Planned;
use super::world::World;
use super::{disk, process, reader, tell, wire};
use crate::http::Version;
use crate::process::Exit;
use crate::reactor::backend::exchange::Exchange;
use crate::reactor::frontend::phase::{Phase, Wait};
use crate::reactor::io::token::Target;
use crate::reactor::limits::{COOLDOWN, GRACE};
use crate::reactor::stage::Stage;
use serde_json::Value;
use std::time::Instant;

impl World {
    /// Who is in the queue, and will be heard in this tick to have closed its side. Before that, or behind another
    /// request, a half-close is no departure.
    pub(crate) fn note_departures(&mut self) {
        for client in &mut self.clients {
            let wire = client.wire.borrow();
            let is_heard = wire.has_edge() && !self.hears_clients_later;
            let key = wire.token.and_then(Target::of).filter(|_| is_heard && wire.peer_has_ended);
            client.leaves_queue = match key {
                Some(Target::Client(key)) => {
                    matches!(
                        self.reactor.frontend.phase(key),
                        Some(Phase::Waiting { job, wait: Wait::Queued }) if job.request.context.version == Version::Http11
                    ) && wire.is_peer_gone
                }
                _ => false,
            };
        }
    }

    /// Where something is to be read or told, something happens in this tick.
    pub(crate) fn note_activity(&mut self) {
        let now = self.now;
        for client in &mut self.clients {
            client.note_activity(now);
            // What it had sent before is looked at now.
            let target = client.wire.borrow().token.and_then(Target::of);
            if target.is_some_and(|target| self.reactor.io.is_ready(&target)) {
                client.active_at = now;
            }
        }
        for line in self.workers.iter_mut().flat_map(|worker| &mut worker.lines) {
            let wire = line.wire.borrow();
            if !wire.to_server.is_empty() || wire.has_edge() {
                line.touched = now;
            }
        }
    }

    /// Takes in what the tick has done, and checks all of it.
    pub(crate) fn observe(&mut self, before: &Keys) {
        self.look_at_workers();
        self.read_log();
        for client in &mut self.clients {
            client.note_activity(self.now);
        }
        self.look_at_clients();
        self.check_door();
        self.check_notes();
        self.check_keys(before);
        self.check_balance();
        self.check_deadlines();
        self.check_operators();
        self.check_starts();
        self.note_rolls();
    }

    fn look_at_workers(&mut self) {
        let now = self.now;
        let mut tried = Vec::new();
        let queue_timeout = self.reactor.config.queue_timeout;
        let concurrency = self.reactor.config.concurrency as u64;
        let is_command = self.reactor.config.command.is_some();
        for worker in &mut self.workers {
            worker.go_on_without();
            let accepted = wire::accept_at(&worker.socket);
            worker.lines.extend(accepted.into_iter().map(|wire| Line::new(wire, now)));
            let probe_answer = worker.probe_answer(is_command);
            for line in &mut worker.lines {
                let fresh = line.read(&self.oracle, now, &probe_answer);
                // A second try that may not wait any more goes to the process that has just closed, without a question.
                let may_wait = |tag: &&usize| {
                    let first_sent = self.oracle.tags[**tag].first_sent;
                    first_sent.is_some_and(|first_sent| now < first_sent + queue_timeout)
                };
                // For the end of a stream's handler the server does not wait.
                let is_stream = |tag: usize| worker.takes_streams && self.oracle.is_stream(tag);
                let held = worker.running.iter().filter(|running| !is_stream(running.tag)).count() as u64;
                let is_single = held < worker.concurrency.min(concurrency) || !worker.speaks_second;
                assert!(
                    is_single || !fresh.iter().any(|tag| may_wait(&tag)),
                    "request {fresh:?}: its worker is at work on {:?} still",
                    worker.running
                );
                let is_used = line.hand.as_ref().is_some_and(|hand| hand.is_behind_another);
                tried.extend(fresh.into_iter().map(|tag| (tag, is_used, worker.pid)));
            }
            let parted = worker.lines.iter().filter(|line| line.wire.borrow().is_server_gone);
            for (tag, line) in parted.filter_map(|line| Some((line.last?, line))) {
                self.oracle.tags[tag].was_parted = true;
                self.oracle.tags[tag].was_dropped |= !line.wire.borrow().peer_has_ended;
            }
            worker.close_what_is_shut(&mut self.oracle);
            worker.lines.retain(|line| !line.wire.borrow().is_server_gone);
            let is_at_work = |line: &&Line| {
                let is_stream = |hand: &Hand| worker.takes_streams && self.oracle.is_stream(hand.tag);
                let is_open = !line.wire.borrow().peer_has_ended;
                is_open && line.hand.as_ref().is_some_and(|hand| !hand.is_done() && !is_stream(hand))
            };
            let at_work = worker.lines.iter().filter(is_at_work).count() as u64;
            let most = if is_command { concurrency } else { worker.concurrency.min(concurrency) };
            assert!(
                at_work <= most,
                "worker {}: {at_work} requests at once, and it takes {most}",
                worker.pid
            );
            for line in &mut worker.lines {
                let mut wire = line.wire.borrow_mut();
                if wire.room_bytes == usize::MAX {
                    wire.take(usize::MAX);
                }
            }
        }
        let clock = self.clock();
        for (tag, is_used, pid) in tried {
            tell(|| format!("  {clock}: worker {pid} gets request {tag}"));
            self.check_code(tag, pid);
            self.oracle.tried(tag, is_used, now);
        }
    }

    fn read_log(&mut self) {
        let lines = self.reactor.observer.take_lines();
        for line in lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let clock = self.clock();
            tell(|| format!("  {clock}: {}", String::from_utf8_lossy(line)));
            let value: Value = serde_json::from_slice(line).expect("a line of JSON");
            let status = value["status"].as_u64().expect("a status");
            let reason = value["reason"].as_str().unwrap_or_default().to_owned();
            let Some(tag) = reader::tag(value["path"].as_str().unwrap_or_default()) else {
                self.oracle.anonymous_file.push(status);
                self.oracle.has_cut_method |= matches!(value["method"].as_str(), Some("H" | "HE" | "HEA"));
                continue;
            };
            let pid = value["pid"].as_i64().filter(|_| reason.is_empty());
            if let Some(worker) = self.workers.iter_mut().find(|worker| pid == Some(worker.pid.into())) {
                worker.has_served |= worker.life == Life::Joined && !worker.has_quit;
            }
            self.check_reason(tag, &reason);
            self.check_second_try(tag, &reason);
            self.check_address(tag, &reason, value["client"].as_str());
            let tag = &mut self.oracle.tags[tag];
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

    fn look_at_clients(&mut self) {
        for at in 0..self.clients.len() {
            let wire = self.clients[at].wire.clone();
            let wire = wire.borrow();
            if wire.server_has_ended && self.clients[at].parted_at.is_none() {
                self.check_close(at);
                self.clients[at].parted_at = Some(self.now);
            }
            if wire.is_server_gone && !self.clients[at].is_closed {
                self.clients[at].is_closed = true;
                let begins = self.begins();
                for request in &self.clients[at].requests {
                    self.oracle.tags[request.tag].is_forsaken = !begins.contains(&request.tag);
                }
                self.check_close(at);
            }
            let Some(Target::Client(key)) = wire.token.and_then(Target::of).filter(|_| !wire.is_server_gone)
            else {
                continue;
            };
            if let Some(&Phase::Assigned { upstream }) = self.reactor.frontend.phase(key)
                && !wire.has_edge()
            {
                let is_stream = self.reactor.backend.is_event_stream(upstream)
                    && !self.reactor.frontend.has_undelivered(key);
                let has_left = wire.is_peer_gone && !self.clients[at].ended_early;
                assert!(!is_stream || !has_left, "client {at}: has left its event stream, which goes on");
            }
            if self.reactor.frontend.is_waiting(key, Wait::Queued) && !wire.has_edge() {
                let is_gone = wire.is_reset || self.clients[at].leaves_queue;
                assert!(!is_gone, "client {at}: waits in the queue, and has gone");
            }
        }
    }

    /// Whose connection was made is accepted, or left to the other holder of the socket.
    fn check_door(&mut self) {
        // With nobody to serve and no worker left, the tick that begins the stop is its end as well.
        let is_orderly = matches!(self.reactor.exit, None | Some(0));
        let is_stopping = self.reactor.stage != Stage::Running && is_orderly;
        let is_cut = matches!(self.reactor.stage, Stage::Ending { .. });
        let mut door = self.door.borrow_mut();
        if is_stopping && door.is_shared {
            let before = *self.accepted_at_stop.get_or_insert(door.accepted);
            assert_eq!(door.accepted, before, "a backlog that is another's was emptied");
            assert!(door.is_closed, "a socket that is another's is kept");
            // They are served there.
            door.waiting.drain(..).for_each(|wire| wire.borrow_mut().reset());
            door.on_the_way.drain(..).for_each(|(_, wire)| wire.borrow_mut().reset());
        }
        let is_lost = door.is_closed && !is_cut && !(door.waiting.is_empty() && door.on_the_way.is_empty());
        assert!(!is_lost, "a connection was made, and nobody has accepted it");
    }

    /// Requests of which a worker has been given something: they are run even if their client leaves now.
    fn begins(&self) -> Vec<usize> {
        let exchanges = self.reactor.backend.upstreams().filter_map(|(_, entry)| entry.exchange());
        let exchanges = exchanges.filter(|exchange| !exchange.is_unsent());
        let path = |exchange: &Exchange| reader::tag(std::str::from_utf8(exchange.job.request.path()).ok()?);
        exchanges.filter_map(path).collect()
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
        let poll_timeout = if is_running { self.reactor.config.idle_timeout } else { GRACE };
        // At a stop, an idle connection is ended, and closed only later: a request that crosses the end meets no reset.
        let is_ended = is_running || (wire.server_has_ended && !wire.is_server_gone);
        let was_refused = client.requests.iter().any(|request| {
            self.oracle.tags[request.tag].line.as_ref().is_some_and(|line| !line.reason.is_empty())
        });
        // Who has only half-closed waits for its answers.
        let sent = client.requests.iter().filter(|request| client.sent >= request.at.end).count();
        // It took nothing since it came.
        let header_until =
            if is_running { client.took_at + self.reactor.config.client_timeout } else { self.now };
        self.check_linger(at);
        let has_cause = wire.is_peer_gone
            || client.has_no_header(header_until, self.now)
            || (wire.peer_has_ended && heard.len() >= sent)
            || (disk::lacked_descriptors() && wire.to_server.is_empty())
            || wire.is_reset
            || has_last
            || was_refused
            || heard.iter().any(|heard| heard.status == 101)
            || matches!(self.reactor.stage, Stage::Ending { .. })
            || (wire.capacity() == 0 && self.now >= client.took_at + self.reactor.config.idle_timeout)
            || client.parted_at.is_some_and(|at| self.now >= at + GRACE)
            || (is_ended && self.now >= client.sent_at + poll_timeout && wire.to_server.is_empty());
        assert!(
            has_cause,
            "client {at}: its connection was closed without a cause: {heard:?}, touched {:?} ago",
            self.now - client.sent_at
        );
    }

    /// What a client has been sent, as it understands it.
    pub(crate) fn heard(&self, at: usize) -> Vec<reader::Heard> {
        let client = &self.clients[at];
        let wire = client.wire.borrow();
        let is_closed = wire.is_server_gone && !wire.server_resets && !wire.is_peer_gone;
        reader::answers(&wire.written, |index| client.is_head(index), is_closed)
    }

    /// Its time runs from its being given to the worker, which may be a while before the first byte: it rests, or its
    /// backlog is full.
    pub(super) fn had_its_drain(&self, began: Option<Instant>) -> bool {
        let config = &self.reactor.config;
        let drain = config.drain_timeout - config.connect_timeout - COOLDOWN;
        began.is_some_and(|began| self.now >= began + drain)
    }

    /// A worker is told to end only with nothing in hand, or after it has had its time.
    pub(crate) fn check_signal(&self, at: usize, is_kill: bool) {
        let worker = &self.workers[at];
        let config = &self.reactor.config;
        // Its time runs from its being given to the worker, which may be a while before the first byte: it rests, or its
        // backlog is full.
        let drain = config.drain_timeout - config.connect_timeout - COOLDOWN;
        let is_over = matches!(self.reactor.stage, Stage::Ending { .. })
            || self.reactor.exit.is_some()
            || is_kill
            || worker.drains;
        for line in &worker.lines {
            let Some(hand) = line.hand.as_ref().filter(|hand| !hand.is_done()) else { continue };
            let began = self.oracle.tags[hand.tag].first_tried.unwrap_or(hand.began);
            let had_its_time = self.now >= began + drain;
            assert!(is_over || had_its_time, "request {}: its worker is replaced under it", hand.tag);
        }
    }

    /// All answers, each as its worker has said it, and one line for each request.
    pub(crate) fn check_answers(&self) {
        for at in 0..self.clients.len() {
            let client = &self.clients[at];
            let wire = client.wire.borrow();
            let heard = self.heard(at);
            assert!(heard.len() <= client.requests.len(), "client {at}: more answers than requests");
            let surplus = reader::surplus(&wire.written, |index| client.is_head(index));
            let is_all = surplus.is_empty() || self.oracle.has_cut_method;
            assert!(is_all, "client {at}: bytes behind an answer's end: {}", surplus.escape_ascii());
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
                let tag = &self.oracle.tags[request.tag];
                let is_sent = client.sent >= request.at.end && !request.is_local;
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
        let line = self.oracle.tags[tag].line.as_ref();
        let Some(number) = heard.number else {
            let status = u64::from(heard.status);
            if let (Some(flaw), Some(line)) = (request.flaw, line) {
                let is_its = line.reason != flaw.reason || flaw.status == heard.status;
                assert!(is_its, "request {tag}: {} for '{}'", heard.status, line.reason);
            }
            // The server's own answers hang on no app; /status tells with a 503 that nobody serves.
            let is_own = matches!(heard.status, 200 | 400 | 408 | 503) || !request.is_local;
            assert!(is_own, "request {tag}: {heard:?} from the server itself");
            let is_ours = match line {
                Some(line) => line.status == status || line.status == 499,
                None => [status, 499].iter().any(|status| self.oracle.anonymous_file.contains(status)),
            };
            assert!(is_ours, "request {tag}: {heard:?} and the line {line:?}");
            return;
        };
        assert_eq!(heard.tag, Some(tag), "request {tag}: another's answer");
        let Said { tag: of, answer, is_all, is_hung_up, died, .. } = &self.oracle.answers[number];
        assert_eq!(*of, tag, "request {tag}: another's answer");
        assert_eq!(heard.status, answer.status, "request {tag}: its status");
        let says_what = answer.status != 426 || heard.has_upgrade;
        assert!(says_what, "request {tag}: a 426 that does not say which protocol it wants");
        if answer.is_tunnel {
            // All that came through, and in its order; what a cut has kept back is nobody's to say.
            assert!(
                answer.body.starts_with(&heard.body),
                "request {tag}: bytes that nobody said in its tunnel"
            );
            return;
        }
        if heard.is_whole && answer.ends_with_connection && *is_hung_up {
            // Nobody can tell whether that was all; but a process that failed has cut it.
            let is_sound = died.is_none_or(|exit| exit == Exit::Code(0));
            let knows_little = process::table(|table| table.tells_little);
            assert!(is_sound || knows_little, "request {tag}: cut by {died:?}, and looks whole");
            assert!(answer.body.starts_with(&heard.body), "request {tag}: bytes that nobody said");
        } else if heard.is_whole {
            assert!(*is_all && answer.is_sound, "request {tag}: an answer that is not whole looks so");
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
