//! What clients and workers do when an action is played.

use super::actions::Action;
use super::line::Hand;
use super::oracle::Said;
use super::peers::{Client, Life, Worker};
use super::script::{self, EVENT_STREAM};
use super::wire::{self, Kind, Wire};
use super::world::World;
use super::{disk, process, tell};
use crate::control::{Abilities, Join, Message, Sender};
use crate::process::Exit;
use crate::reactor::admin::connections::ControlPeer;
use crate::reactor::stage::Stage;
use nix::sys::signal::Signal;
use std::rc::Rc;
use std::time::Duration;

/// More clients than that only make a history slow.
const MAX_CLIENTS: usize = 24;

impl World {
    pub(crate) fn act(&mut self, action: Action) {
        if self.reactor.exit.is_some() {
            return;
        }
        match action {
            Action::Arrive { script, capacity } => self.arrive(script, capacity),
            Action::Send { client, bytes } => {
                if let Some(client) = pick(client, self.clients.len(), |at| self.clients[at].can_send()) {
                    self.send(client, bytes);
                }
            }
            Action::HalfClose { client } => self.with_client(client, |client| client.wire.borrow_mut().end()),
            Action::Leave { client, has_read_all } => self.with_client(client, |client| {
                client.ended_early |= client.wire.borrow().peer_has_ended;
                let mut wire = client.wire.borrow_mut();
                if has_read_all {
                    // Else the kernel makes a reset of its close.
                    wire.take(usize::MAX);
                }
                wire.close();
            }),
            Action::Reset { client } => self.with_client(client, |client| client.wire.borrow_mut().reset()),
            Action::Take { client, bytes } => {
                let now = self.now;
                let waits = |at: usize| !self.clients[at].wire.borrow().from_server.is_empty();
                if let Some(client) = pick(client, self.clients.len(), waits) {
                    let client = &mut self.clients[client];
                    if !client.wire.borrow_mut().take(bytes).is_empty() {
                        client.took_at = now;
                    }
                }
            }
            Action::Answer { worker: number, style, size } => {
                if let Some(worker) = self.pick_worker(number, Worker::is_asked) {
                    self.workers[worker].look_at(number, Hand::is_asked);
                    self.answer(worker, style, size);
                }
            }
            Action::Stream { worker: number, size } => {
                if let Some(worker) = self.pick_worker(number, Worker::is_asked) {
                    self.workers[worker].look_at(number, Hand::is_asked);
                    self.answer(worker, EVENT_STREAM, size);
                    let head = self.workers[worker].hand().and_then(|hand| hand.answer.as_ref());
                    let bytes = head.map_or(0, |answer| answer.head_bytes);
                    self.say(worker, bytes);
                }
            }
            Action::Say { worker: number, bytes } => {
                if let Some(worker) = self.pick_worker(number, Worker::is_speaking) {
                    self.workers[worker].look_at(number, Hand::is_speaking);
                    self.say(worker, bytes);
                }
            }
            Action::Serve { worker: number, size } => {
                if let Some(worker) =
                    self.pick_worker(number, |worker| worker.is_asked() || worker.is_speaking())
                {
                    self.workers[worker].look_at(number, |hand| !hand.is_done());
                    self.answer(worker, 0, size);
                    self.say(worker, usize::MAX);
                }
            }
            Action::Break { worker: number, style, size, bytes, is_at_once, dies } => {
                if let Some(worker) =
                    self.pick_worker(number, |worker| worker.is_asked() || worker.is_speaking())
                {
                    self.workers[worker].look_at(number, |hand| !hand.is_done());
                    self.answer(worker, style, size);
                    self.say(worker, bytes);
                    if !is_at_once {
                        self.tick(0);
                    }
                    if let Some(death) = dies {
                        self.end_process(worker, death.exit());
                        self.reaps_soon();
                    } else {
                        self.workers[worker].hang_up_here(&mut self.oracle);
                    }
                }
            }
            Action::HangUp { worker } => {
                if let Some(worker) = self.pick_worker(worker, |worker| !worker.lines.is_empty()) {
                    self.workers[worker].hang_up(&mut self.oracle);
                }
            }
            Action::Finish { worker } => {
                if let Some(worker) = self.pick_worker(worker, |worker| !worker.running.is_empty()) {
                    self.workers[worker].running.clear();
                }
            }
            Action::Listen { worker, capacity } => {
                if let Some(worker) = self.pick_worker(worker, |worker| worker.life == Life::Joined) {
                    self.oracle.has_little_room |= capacity != usize::MAX;
                    self.workers[worker].listen(capacity);
                }
            }
            Action::Backlog { worker, is_full } => {
                if let Some(worker) = self.pick_worker(worker, |worker| worker.life == Life::Joined) {
                    wire::set_backlog(&self.workers[worker].socket, is_full);
                }
            }
            Action::Join { worker } => {
                if let Some(worker) = self.pick_worker(worker, |worker| worker.life == Life::Booting) {
                    self.join(worker);
                }
            }
            Action::Crash { worker, is_late, death } => {
                if let Some(worker) = self.pick_worker(worker, |worker| worker.life != Life::Ended) {
                    self.end_process(worker, death.exit());
                    self.reaps_in = if is_late { 3 } else { 1 };
                }
            }
            Action::EndIdle { client, death } => self.end_idle(client, death.exit()),
            Action::Overrun { worker, bytes, death } => self.overrun(worker, bytes, death.exit()),
            Action::Desert { worker, is_busy } => self.desert(worker, is_busy),
            Action::Obey { worker } => {
                if let Some(worker) = self.pick_worker(worker, Worker::may_go) {
                    self.end_process(worker, Exit::Code(0));
                    self.reaps_in = 1;
                }
            }
            Action::Quit { worker } => {
                if let Some(worker) = self.pick_worker(worker, |worker| worker.life == Life::Joined) {
                    self.workers[worker].has_quit = true;
                    let worker_id = self.workers[worker].slot as u64;
                    self.tell(&Message::Quit(Sender { instance: None, worker_id }), self.workers[worker].pid);
                }
            }
            Action::Retire { worker } => {
                if let Some(worker) = self.pick_worker(worker, |worker| worker.life == Life::Joined) {
                    let worker_id = self.workers[worker].slot as u64;
                    self.tell(
                        &Message::Retire(Sender { instance: None, worker_id }),
                        self.workers[worker].pid,
                    );
                }
            }
            Action::Template { template, deed } => self.template_does(template, deed),
            Action::FailSpawns { count } => {
                self.has_failing_spawns = true;
                process::table(|table| table.failing_spawns = count);
            }
            Action::Edit => self.edit(),
            Action::Reload { capacity } => self.ask_for_reload(capacity),
            Action::Pages { is_scraper, count, capacity } => self.ask_for_pages(is_scraper, count, capacity),
            Action::ViewPage { capacity } => self.look_at_page(capacity),
            Action::SetDisk { disk } => disk::set(disk),
            Action::ChangeSize { change } => self.reactor.change_size("a signal", change),
            Action::OperatorTakes { operator, bytes } => self.operator_takes(operator, bytes),
            Action::OperatorLeaves { operator } => self.operator_leaves(operator),
            Action::Stop => {
                // A second one joins the wait.
                self.is_stop_told = true;
                self.tell(&Message::Stop, 0);
            }
            Action::HandOver => {
                if self.reactor.stage == Stage::Running {
                    self.is_stop_told = true;
                    self.door.borrow_mut().is_shared = true;
                    self.accepted_at_stop = Some(self.door.borrow().accepted);
                    self.reactor.host.notifier.name_main(4242, self.now);
                    self.reactor.hand_over();
                }
            }
            Action::Sleep { ms } => self.sleep_until(self.now + Duration::from_millis(ms as u64)),
            Action::Lag { ms } => {
                self.now += Duration::from_millis(ms as u64);
                self.tick(0);
            }
            Action::Edge { is_early } => {
                self.remaining();
                if let Some(due) = self.reactor.next_deadline() {
                    let early = Duration::from_nanos(u64::from(is_early));
                    self.now = self.now.max(due - early);
                    self.tick(0);
                }
            }
            Action::CloseEdge { client } => {
                self.remaining();
                if let Some(due) = self.reactor.next_deadline() {
                    self.now = self.now.max(due);
                    if let Some(client) = pick(client, self.clients.len(), |at| self.clients[at].can_send()) {
                        self.send(client, usize::MAX);
                    }
                    self.hears_clients_later = true;
                    self.tick(0);
                    self.hears_clients_later = false;
                }
            }
            Action::Tick { rotation } => self.tick(rotation),
        }
    }

    fn with_client(&mut self, client: usize, act: impl FnOnce(&mut Client)) {
        let is_there = |at: usize| {
            let wire = self.clients[at].wire.borrow();
            !wire.is_peer_gone && !wire.is_server_gone
        };
        if let Some(client) = pick(client, self.clients.len(), is_there) {
            act(&mut self.clients[client]);
        }
    }

    pub(super) fn pick_worker(&self, number: usize, fits: impl Fn(&Worker) -> bool) -> Option<usize> {
        pick(number, self.workers.len(), |at| fits(&self.workers[at]))
    }

    fn arrive(&mut self, seed: u32, capacity: usize) {
        let is_refused = self.door.borrow().is_deaf || self.door.borrow().is_closed;
        if self.clients.len() >= MAX_CLIENTS || is_refused {
            return;
        }
        let is_proxied = self.reactor.config.proxied.contains(&true);
        let (script, requests, header) = script::script(seed, self.oracle.tags.len(), is_proxied);
        for request in &requests {
            self.oracle.expect(request, self.clients.len());
        }
        let kind = if seed.is_multiple_of(4) { Kind::Unix } else { Kind::Tcp };
        let wire = Wire::new(kind, capacity);
        if seed.is_multiple_of(3) {
            let handshake = Duration::from_micros(1 + u64::from(seed % 5000));
            self.door.borrow_mut().on_the_way.push((self.now + handshake, wire.clone()));
        } else {
            self.door.borrow_mut().waiting.push_back(wire.clone());
            self.has_knocked = true;
        }
        self.clients.push(Client {
            wire,
            script,
            sent: 0,
            requests,
            header,
            sent_at: self.now,
            took_at: self.now,
            active_at: self.now,
            written_bytes: 0,
            is_closed: false,
            parted_at: None,
            ended_early: false,
            leaves_queue: false,
        });
    }

    pub(crate) fn send(&mut self, at: usize, bytes: usize) {
        let client = &mut self.clients[at];
        let to = client.sent.saturating_add(bytes).min(client.script.len());
        tell(|| format!("  client {at}: {}", client.script[client.sent..to].escape_ascii()));
        for request in client.requests.iter().filter(|request| (client.sent..to).contains(&request.at.start))
        {
            self.oracle.tags[request.tag].first_sent = Some(self.now);
        }
        client.wire.borrow_mut().send(&client.script[client.sent..to]);
        client.sent = to;
        client.sent_at = self.now;
    }

    /// Makes up the answer of a worker's request in hand.
    pub(crate) fn answer(&mut self, at: usize, style: usize, size: usize) {
        let number = self.oracle.answers.len();
        for line in &self.workers[at].lines {
            line.wire.borrow_mut().take(usize::MAX);
        }
        let Some(hand) = self.workers[at].hand() else { return };
        if hand.answer.is_some() {
            return;
        }
        let tag = &self.oracle.tags[hand.tag];
        let answer = script::compose(style, size, number, &tag.planned);
        tell(|| format!("  answer {number} to request {}: {}", hand.tag, answer.bytes.escape_ascii()));
        self.oracle.answers.push(Said {
            tag: hand.tag,
            answer: answer.clone(),
            is_all: false,
            said_bytes: 0,
            is_hung_up: false,
            is_behind_another: hand.is_behind_another,
            died: None,
        });
        hand.answer = Some(answer);
    }

    pub(crate) fn say(&mut self, at: usize, bytes: usize) {
        let worker = &mut self.workers[at];
        let Some(line) = worker.line_looked_at() else { return };
        let line = &mut worker.lines[line];
        let Some(hand) = &mut line.hand else { return };
        if let Some(number) = worker.running.iter().position(|running| running.tag == hand.tag) {
            // Its connection is closed, so this is only the handler's end.
            worker.running.remove(number);
            return;
        }
        let Some(answer) = &hand.answer else { return };
        if line.wire.borrow().peer_has_ended {
            self.oracle.answers[answer.number].is_hung_up = true;
        }
        let mut to = hand.said.saturating_add(bytes).min(answer.bytes.len());
        if to + answer.surplus_bytes >= answer.bytes.len() {
            to = answer.bytes.len();
        }
        line.wire.borrow_mut().send(&answer.bytes[hand.said..to]);
        hand.said = to;
        let is_all = to == answer.bytes.len();
        self.oracle.said(answer.number, to, self.now);
        if is_all && answer.closes {
            let mut wire = line.wire.borrow_mut();
            wire.take(usize::MAX);
            // The other way of a tunnel stays open.
            if answer.is_tunnel {
                wire.end()
            } else {
                wire.close()
            }
            self.oracle.tags[hand.tag].was_closed_on = true;
            self.oracle.answers[answer.number].is_hung_up = true;
        }
    }

    pub(crate) fn join(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        worker.life = Life::Joined;
        wire::listen_at(&worker.socket);
        if self.reactor.config.command.is_some() {
            return;
        }
        let message = Message::Join(Join {
            sender: Sender {
                instance: worker
                    .speaks_second
                    .then(|| self.reactor.supervisor.launcher().instance().to_owned()),
                worker_id: worker.slot as u64,
            },
            pid: worker.pid,
            socket: worker.socket.to_string_lossy().into_owned(),
            version: worker.version,
            abilities: Abilities {
                drains: worker.drains,
                streams: worker.takes_streams,
                concurrency: worker.concurrency,
            },
        });
        let pid = worker.pid;
        self.tell(&message, pid);
    }

    /// Says something on the control socket.
    pub(crate) fn tell(&mut self, message: &Message, pid: i32) {
        let wire = Wire::new(Kind::Unix, usize::MAX);
        self.watch_operator(wire.clone(), ControlPeer::Process { pid });
        let body = message.to_json();
        let text =
            format!("POST /worker HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        wire.borrow_mut().send(text.as_bytes());
        if !matches!(message, Message::Stop) {
            // Whoever waits for the answer's end; the others hear of more.
            wire.borrow_mut().end();
        }
        self.controls.push(wire);
    }

    pub(crate) fn end_process(&mut self, at: usize, exit: Exit) {
        let worker = &mut self.workers[at];
        worker.life = Life::Ended;
        worker.running.clear();
        for line in &worker.lines {
            let is_unread = !line.wire.borrow().to_server.is_empty();
            if let Some(last) = line.last.filter(|_| is_unread) {
                self.oracle.tags[last].was_died_on = true;
            }
            let Some(hand) = &line.hand else { continue };
            self.oracle.tags[hand.tag].was_died_on = true;
            if let Some(answer) = hand.answer.as_ref().filter(|_| !line.wire.borrow().peer_has_ended) {
                self.oracle.answers[answer.number].died = Some(exit);
            }
        }
        worker.hang_up(&mut self.oracle);
        wire::leave(&worker.socket);
        process::table(|table| table.end(worker.pid, exit));
    }

    pub(crate) fn meet_new_workers(&mut self) {
        let is_command = self.reactor.config.command.is_some();
        for pid in process::table(|table| std::mem::take(&mut table.fresh)) {
            let Some(started) = process::table(|table| table.alive.get(&pid).cloned()) else { continue };
            // A wrapper, whose child may take no notice of SIGTERM.
            if pid % 4 == 0 {
                let child = process::Offspring { group: pid, is_told: false, is_unresponsive: pid % 8 == 0 };
                process::table(|table| table.children.push(child));
            }
            self.workers.push(Worker {
                pid,
                slot: started.slot,
                version: started.version,
                socket: started.socket,
                life: Life::Booting,
                // Both kinds, mixed.
                drains: pid % 3 != 0 && !is_command,
                lines: Vec::new(),
                looks_at: None,
                speaks_second: !is_command && !self.manners.chance(3),
                takes_streams: !is_command && self.manners.chance(2),
                concurrency: 1 + self.manners.below(5) as u64,
                closes_when_told: self.manners.chance(2),
                running: Vec::new(),
                probes: Rc::default(),
                has_served: false,
                has_quit: false,
            });
        }
    }

    /// The server hears in the next tick of children that have ended.
    pub(crate) fn reaps_soon(&mut self) {
        self.reaps_in = 1;
    }

    /// Processes take their signals.
    pub(crate) fn take_signals(&mut self) {
        let has_ended = process::table(|table| {
            let before = table.children.len();
            table.children.retain(|child| child.is_unresponsive || !child.is_told);
            table.children.len() < before
        });
        if has_ended {
            // Adopted by the server, which hears of its end.
            self.reaps_in = 1;
        }
        for (pid, is_kill) in process::table(|table| std::mem::take(&mut table.signals)) {
            if is_kill && process::table(|table| table.kill_template(pid)) {
                self.reaps_in = 1;
                continue;
            }
            let Some(at) = self.workers.iter().position(|worker| worker.pid == pid) else { continue };
            if self.workers[at].life == Life::Ended {
                continue;
            }
            let clock = self.clock();
            tell(|| format!("  {clock}: worker {pid} gets {}", if is_kill { "SIGKILL" } else { "SIGTERM" }));
            self.check_signal(at, is_kill);
            if is_kill {
                self.end_process(at, Exit::Signal(Signal::SIGKILL));
                self.reaps_in = 1;
            } else {
                self.workers[at].life = Life::Leaving;
            }
        }
    }
}

/// The `number`th of those that fit, counted round and round.
pub(super) fn pick(number: usize, of: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    let fit: Vec<usize> = (0..of).filter(|&at| fits(at)).collect();
    (!fit.is_empty()).then(|| fit[number % fit.len()])
}
