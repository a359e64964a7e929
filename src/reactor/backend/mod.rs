//! The workers' side: connections to workers, the exchanges on them, and their deadlines. Today each worker has one
//! connection at most.

mod connecting;
pub(crate) mod exchange;
mod receiving;
#[cfg(test)]
mod seen;
mod sending;
mod tunnels;

pub(crate) use connecting::{NoConnection, Started};
pub(crate) use receiving::Piece;
pub(crate) use sending::Sent;

use super::crossing::Job;
use super::io::Io;
use super::io::stream::Stream;
use super::io::token::Readiness;
use super::limits::COOLDOWN;
use crate::config::Config;
use crate::conn::worker::{Answer, End};
use crate::conn::{self, Request};
use crate::deadlines::{Deadlines, deadline_kinds, earliest};
use crate::keys::{ClientKey, UpstreamKey, WorkerKey};
use exchange::{Exchange, Stage};
use slab::Slab;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Between two tries to connect to a full backlog.
const CONNECT_AGAIN: Duration = Duration::from_millis(5);
/// Between two looks whether a command answers.
const PROBE_EVERY: Duration = Duration::from_millis(50);
/// Between two questions whether a worker is idle.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How long the exit status of a process that is ending is waited for: one that frees gigabytes or writes a core file
/// takes a while.
const EXIT_WAIT: Duration = Duration::from_secs(2);

deadline_kinds! {
    /// What a connection to a worker waits for.
    pub(crate) enum UpstreamDeadline {
        /// The next byte of an answer.
        Read,
        /// The same, where a stream may be idle for long.
        Idle,
        /// The end of an answer that nobody waits for.
        Stall,
        /// Another try to connect: the backlog was full.
        Connect,
        /// The end of its cooldown after a busy answer or a strange end.
        Cooldown,
        /// Another look whether a command answers by now.
        Probe,
        /// The exit status of a process that is ending.
        Exit,
    }
}

deadline_kinds! {
    /// What runs beside [`UpstreamDeadline::Stall`], while a worker is asked whether it is idle.
    pub(crate) enum AskDeadline {
        /// The next time that it is asked.
        Repeat,
    }
}

/// A connection to a worker, or the place for one.
#[derive(Debug)]
pub(crate) struct Upstream {
    worker: WorkerKey,
    stream: Option<Stream>,
    conn: conn::Worker,
    exchange: Option<Exchange>,
    /// The kernel is watched for room to write, after a short write.
    is_watched_for_room: bool,
    /// The worker sends no more, which is still to be read.
    is_closing: bool,
    /// Since when it is tried to connect.
    connecting_since: Option<Instant>,
}

pub(crate) struct Backend {
    upstreams: Slab<Upstream>,
    /// By the worker's key.
    of_workers: Vec<Option<UpstreamKey>>,
    deadlines: Deadlines<UpstreamDeadline>,
    ask_deadlines: Deadlines<AskDeadline>,
    config: Rc<Config>,
}

impl Backend {
    pub(crate) fn new(config: Rc<Config>) -> Self {
        Backend {
            upstreams: Slab::new(),
            of_workers: Vec::new(),
            deadlines: Deadlines::new(|kind| match kind {
                UpstreamDeadline::Read => config.read_timeout,
                UpstreamDeadline::Idle => config.idle_timeout,
                UpstreamDeadline::Stall => config.drain_timeout,
                UpstreamDeadline::Connect => CONNECT_AGAIN,
                UpstreamDeadline::Cooldown => COOLDOWN,
                UpstreamDeadline::Probe => PROBE_EVERY,
                UpstreamDeadline::Exit => EXIT_WAIT,
            }),
            ask_deadlines: Deadlines::new(|kind| match kind {
                AskDeadline::Repeat => ASK_EVERY,
            }),
            config,
        }
    }

    fn get(&self, upstream: UpstreamKey) -> Option<&Upstream> {
        self.upstreams.get(upstream.0)
    }

    fn get_mut(&mut self, upstream: UpstreamKey) -> Option<&mut Upstream> {
        self.upstreams.get_mut(upstream.0)
    }

    fn exchange_mut(&mut self, upstream: UpstreamKey) -> Option<&mut Exchange> {
        self.get_mut(upstream)?.exchange.as_mut()
    }
}

/// Getters.
impl Backend {
    pub(crate) fn upstream_of(&self, worker: WorkerKey) -> Option<UpstreamKey> {
        self.of_workers.get(worker.0).copied().flatten()
    }

    pub(crate) fn worker_of(&self, upstream: UpstreamKey) -> Option<WorkerKey> {
        self.get(upstream).map(|entry| entry.worker)
    }

    pub(crate) fn keys(&self) -> Vec<UpstreamKey> {
        self.upstreams.iter().map(|(key, _)| UpstreamKey(key)).collect()
    }

    pub(crate) fn exchange(&self, upstream: UpstreamKey) -> Option<&Exchange> {
        self.get(upstream)?.exchange.as_ref()
    }

    /// Who waits for its answer.
    pub(crate) fn client_of(&self, upstream: UpstreamKey) -> Option<ClientKey> {
        self.exchange(upstream)?.client
    }

    pub(crate) fn is_question(&self, upstream: UpstreamKey) -> bool {
        self.exchange(upstream).is_some_and(Exchange::is_question)
    }

    pub(crate) fn is_tunnel(&self, upstream: UpstreamKey) -> bool {
        self.exchange(upstream).is_some_and(Exchange::is_tunnel)
    }

    pub(crate) fn is_event_stream(&self, upstream: UpstreamKey) -> bool {
        self.exchange(upstream).is_some_and(Exchange::is_event_stream)
    }

    pub(crate) fn is_held_back(&self, upstream: UpstreamKey) -> bool {
        self.exchange(upstream).is_some_and(Exchange::is_held_back)
    }

    pub(crate) fn is_watched_for_room(&self, upstream: UpstreamKey) -> bool {
        self.get(upstream).is_some_and(|entry| entry.is_watched_for_room)
    }

    /// Sending has begun, and there is more to do without an event.
    pub(crate) fn has_more_to_send(&self, upstream: UpstreamKey) -> bool {
        let exchange = self.get(upstream).filter(|entry| !entry.is_watched_for_room);
        exchange.and_then(|entry| entry.exchange.as_ref()).is_some_and(Exchange::is_half_sent)
    }

    /// Tunnels with both of their ends.
    pub(crate) fn tunnels(&self) -> usize {
        let is_one = |exchange: &Exchange| exchange.is_tunnel() && exchange.client.is_some();
        self.upstreams.iter().filter(|(_, entry)| entry.exchange.as_ref().is_some_and(is_one)).count()
    }

    /// Workers that hold an event stream or a tunnel.
    pub(crate) fn workers_with_streams(&self) -> Vec<WorkerKey> {
        let has_stream = |entry: &Upstream| entry.exchange.as_ref().is_some_and(Exchange::is_stream);
        let with = self.upstreams.iter().filter(|(_, entry)| has_stream(entry));
        with.map(|(_, entry)| entry.worker).collect()
    }

    /// The job of an exchange of which the worker has seen nothing.
    pub(crate) fn unsent_job(&mut self, upstream: UpstreamKey) -> Option<&mut Job> {
        let exchange = self.exchange_mut(upstream)?;
        exchange.is_unsent().then_some(&mut exchange.job)
    }

    /// The final head of the answer, if it has come.
    pub(crate) fn answer_of(&self, upstream: UpstreamKey) -> Option<Answer> {
        self.exchange(upstream)?.answer
    }
}

/// Workers come and go.
impl Backend {
    pub(crate) fn add(&mut self, worker: WorkerKey) {
        let upstream = self.upstreams.insert(Upstream {
            worker,
            stream: None,
            conn: conn::Worker::default(),
            exchange: None,
            is_watched_for_room: false,
            is_closing: false,
            connecting_since: None,
        });
        if self.of_workers.len() <= worker.0 {
            self.of_workers.resize(worker.0 + 1, None);
        }
        self.of_workers[worker.0] = Some(UpstreamKey(upstream));
    }

    pub(crate) fn remove(&mut self, worker: WorkerKey) {
        if let Some(upstream) = self.of_workers.get_mut(worker.0).and_then(Option::take) {
            self.deadlines.disarm(upstream.0);
            self.ask_deadlines.disarm(upstream.0);
            self.upstreams.try_remove(upstream.0);
        }
    }

    /// A worker's process has ended: what it had written before is still to be read to its end.
    pub(crate) fn worker_has_ended(&mut self, upstream: UpstreamKey) {
        if let Some(entry) = self.get_mut(upstream) {
            entry.is_closing = true;
        }
    }

    /// The connection has ended; how far its answer had come.
    pub(crate) fn end_connection(&mut self, upstream: UpstreamKey, is_reset: bool) -> Option<End> {
        self.get_mut(upstream).map(|entry| entry.conn.end(is_reset))
    }

    pub(crate) fn close(&mut self, upstream: UpstreamKey) {
        if let Some(entry) = self.get_mut(upstream) {
            entry.close();
        }
    }

    /// Clients' connections are to end with the answers at work.
    pub(crate) fn close_clients(&mut self) {
        for (_, entry) in &mut self.upstreams {
            entry.conn.close_client();
        }
    }
}

impl Upstream {
    fn close(&mut self) {
        self.stream = None;
        self.conn = conn::Worker::default();
        self.is_closing = false;
    }
}

/// Exchanges begin and end.
impl Backend {
    /// A client's request is the worker's from now on. Inlined, since a call would move all of it once more.
    #[inline(always)]
    pub(crate) fn begin(&mut self, upstream: UpstreamKey, client: ClientKey, job: Job, now: Instant) {
        let Some(entry) = self.get_mut(upstream) else { return };
        debug_assert!(entry.exchange.is_none(), "one request at a time");
        let is_connection_new = entry.stream.is_none();
        entry.exchange = Some(Exchange::of_client(client, job, now, is_connection_new));
    }

    /// A command is asked whether it answers by now.
    pub(crate) fn begin_probe(&mut self, upstream: UpstreamKey, io: &mut Io) {
        let question = Request::probe(io.take_buffer(), io.now());
        let exchange = Exchange::probe(question, io.spools(), io.now());
        if let Some(entry) = self.get_mut(upstream) {
            entry.exchange = Some(exchange);
        }
    }

    /// A worker is asked whether it is idle after an earlier request. The time for its answer's end runs.
    pub(crate) fn begin_asking_idle(
        &mut self,
        upstream: UpstreamKey,
        about: Request,
        assigned: Instant,
        io: &mut Io,
    ) {
        let question = Request::ask_idle(io.take_buffer(), io.now());
        let exchange = Exchange::ask_idle(question, about, assigned, io.spools());
        let Some(entry) = self.get_mut(upstream) else { return };
        entry.exchange = Some(exchange);
        self.arm_stall(upstream, io.now());
    }

    /// The same request, over a fresh connection to the process that has just closed one.
    pub(crate) fn begin_again(&mut self, upstream: UpstreamKey, mut exchange: Exchange) {
        exchange.is_connection_new = true;
        exchange.enter(Stage::Reconnecting);
        exchange.send_again();
        if let Some(entry) = self.get_mut(upstream) {
            entry.exchange = Some(exchange);
        }
    }

    /// The same question once more.
    pub(crate) fn ask_again(&mut self, upstream: UpstreamKey) -> bool {
        let exchange = self.exchange_mut(upstream).filter(|exchange| exchange.is_asking_idle());
        exchange.map(Exchange::send_again).is_some()
    }

    /// An exchange is over.
    pub(crate) fn take_exchange(&mut self, upstream: UpstreamKey) -> Option<Exchange> {
        self.get_mut(upstream)?.exchange.take()
    }

    /// An answer is whole. Its connection is closed if no other request may follow on it. Inlined, since a call would move
    /// the exchange once more.
    #[inline(always)]
    pub(crate) fn end_exchange(&mut self, upstream: UpstreamKey, is_reusable: bool) -> Option<Exchange> {
        let entry = self.get_mut(upstream)?;
        if !is_reusable || !entry.exchange.as_ref()?.has_left_the_way_open() {
            entry.close();
        }
        entry.exchange.take()
    }

    /// An exchange ends without a word about it.
    pub(crate) fn drop_exchange(&mut self, upstream: UpstreamKey, io: &mut Io) {
        self.close(upstream);
        self.ask_deadlines.disarm(upstream.0);
        if let Some(exchange) = self.take_exchange(upstream) {
            for request in exchange.into_requests() {
                io.give_back(request.head);
            }
        }
    }

    /// A request of which its worker has seen nothing is not sent any more. `true`: the worker is free; else it is cooling
    /// down, and goes on with that.
    pub(crate) fn call_off(&mut self, upstream: UpstreamKey, io: &mut Io) -> bool {
        self.close(upstream);
        let Some(entry) = self.get_mut(upstream) else { return false };
        entry.connecting_since = None;
        if let Some(exchange) = entry.exchange.take() {
            io.give_back(exchange.job.request.head);
        }
        let is_free = self.deadlines.armed(upstream.0) != Some(UpstreamDeadline::Cooldown);
        if is_free {
            self.deadlines.disarm(upstream.0);
        }
        is_free
    }

    /// The answer has ended with its connection: the exit status tells whether that was all.
    pub(crate) fn await_exit(
        &mut self,
        upstream: UpstreamKey,
        suffix: &'static [u8],
        deadline: UpstreamDeadline,
        now: Instant,
    ) {
        if let Some(exchange) = self.exchange_mut(upstream) {
            exchange.enter(Stage::AwaitingExit { suffix });
            self.deadlines.arm(upstream.0, deadline, now);
        }
    }

    /// What makes an answer whole whose end hangs on an exit status.
    pub(crate) fn awaited_suffix(&self, upstream: UpstreamKey) -> Option<&'static [u8]> {
        match self.exchange(upstream)?.stage() {
            Stage::AwaitingExit { suffix } => Some(suffix),
            Stage::Serving
            | Stage::Reconnecting
            | Stage::Tunnel { .. }
            | Stage::Probing
            | Stage::AskingIdle { .. } => None,
        }
    }

    /// An exchange goes on for nobody: whatever its worker still says is read and thrown away.
    pub(crate) fn let_client_go(&mut self, upstream: UpstreamKey, io: &mut Io) -> Option<ClientKey> {
        let client = self.exchange_mut(upstream)?.client.take();
        self.release_held_back(upstream, io);
        client
    }

    /// For the log: the exchange keeps its own request, since its worker may still be at it.
    pub(crate) fn copy_request(&self, upstream: UpstreamKey, io: &mut Io) -> Option<Request> {
        Some(self.exchange(upstream)?.job.request.copy_into(io.take_buffer()))
    }
}

/// Deadlines.
impl Backend {
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        earliest([self.deadlines.next(), self.ask_deadlines.next()])
    }

    /// Takes one connection whose deadline is due.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<(UpstreamKey, UpstreamDeadline)> {
        let (key, kind) = self.deadlines.expire(now)?;
        Some((UpstreamKey(key), kind))
    }

    /// Takes one worker that is to be asked again.
    pub(crate) fn expire_question(&mut self, now: Instant) -> Option<UpstreamKey> {
        self.ask_deadlines.expire(now).map(|(key, AskDeadline::Repeat)| UpstreamKey(key))
    }

    pub(crate) fn armed(&self, upstream: UpstreamKey) -> Option<UpstreamDeadline> {
        self.deadlines.armed(upstream.0)
    }

    pub(crate) fn arm(&mut self, upstream: UpstreamKey, kind: UpstreamDeadline, now: Instant) {
        self.deadlines.arm(upstream.0, kind, now);
    }

    pub(crate) fn disarm(&mut self, upstream: UpstreamKey) {
        self.deadlines.disarm(upstream.0);
    }

    /// A worker's time to end an answer that nobody waits for. Where it runs, nothing sets it back.
    pub(crate) fn arm_stall(&mut self, upstream: UpstreamKey, now: Instant) {
        if self.armed(upstream) != Some(UpstreamDeadline::Stall) {
            self.arm(upstream, UpstreamDeadline::Stall, now);
        }
    }

    /// A question is asked again after a while.
    pub(crate) fn arm_question(&mut self, upstream: UpstreamKey, now: Instant) {
        self.ask_deadlines.arm(upstream.0, AskDeadline::Repeat, now);
    }

    /// The worker takes bytes, so it lives.
    pub(crate) fn note_progress(&mut self, upstream: UpstreamKey, now: Instant) {
        if self.armed(upstream) == Some(UpstreamDeadline::Read) {
            self.arm(upstream, UpstreamDeadline::Read, now);
        }
    }

    /// A piece of an answer has come, and it goes on. Once nobody waits, the stall's clock runs and is not set back by more
    /// bytes.
    pub(crate) fn answer_goes_on(&mut self, upstream: UpstreamKey, now: Instant) {
        let may_idle = self.answer_of(upstream).is_some_and(|answer| answer.may_idle);
        if self.armed(upstream) != Some(UpstreamDeadline::Stall) {
            let kind = if may_idle { UpstreamDeadline::Idle } else { UpstreamDeadline::Read };
            self.arm(upstream, kind, now);
        }
    }

    /// An event has come. `false`: of nobody.
    pub(crate) fn note(&mut self, upstream: UpstreamKey, event: Readiness) -> bool {
        let Some(entry) = self.get_mut(upstream) else { return false };
        entry.is_closing |= event.is_read_closed;
        true
    }
}
