//! The workers' side: connections to workers, the exchanges on them, and their deadlines.

mod connecting;
mod deadlines;
pub(crate) mod exchange;
pub(crate) mod link;
mod receiving;
#[cfg(any(test, fuzzing))]
mod seen;
mod sending;
#[cfg(test)]
mod tests;
mod tunnels;
mod upstreams;

pub(crate) use connecting::NoConnection;
pub(crate) use deadlines::{AskDeadline, UpstreamDeadline};
pub(crate) use receiving::Piece;
pub(crate) use sending::Sent;
pub(crate) use upstreams::PlaceState;

use super::crossing::{Job, Times};
use super::io::Io;
use crate::balancer::Wish;
use crate::config::Config;
use crate::conn::Request;
use crate::conn::worker::{Answer, End};
use crate::deadlines::Deadlines;
use crate::keys::{ClientKey, UpstreamKey, WorkerKey};
use exchange::{Exchange, Receiving, Stage};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};
use upstreams::{Upstream, Upstreams};

/// The ends of a dead worker's connections may be read in several ticks.
const CRASH_LASTS: Duration = Duration::from_secs(1);

/// A worker that has ended with something at work.
#[derive(Debug, Clone, Copy)]
struct Crash {
    worker: WorkerKey,
    at: Instant,
    exchanges: usize,
}

pub(crate) struct Backend {
    upstreams: Upstreams,
    deadlines: Deadlines<UpstreamDeadline>,
    ask_deadlines: Deadlines<AskDeadline>,
    /// The last one.
    crash: Option<Crash>,
    config: Rc<Config>,
}

impl Backend {
    pub(crate) fn new(config: Rc<Config>) -> Self {
        Backend {
            upstreams: Upstreams::default(),
            deadlines: deadlines::deadlines(&config),
            ask_deadlines: deadlines::ask_deadlines(),
            crash: None,
            config,
        }
    }

    fn get(&self, upstream: UpstreamKey) -> Option<&Upstream> {
        self.upstreams.get(upstream)
    }

    fn get_mut(&mut self, upstream: UpstreamKey) -> Option<&mut Upstream> {
        self.upstreams.get_mut(upstream)
    }

    fn exchange_mut(&mut self, upstream: UpstreamKey) -> Option<&mut Exchange> {
        self.get_mut(upstream)?.exchange.as_mut()
    }
}

/// Getters.
impl Backend {
    /// All connections to a worker.
    pub(crate) fn upstreams_of(&self, worker: WorkerKey) -> Vec<UpstreamKey> {
        let of_it = self.upstreams.iter().filter(|(_, entry)| entry.worker == worker);
        of_it.map(|(key, _)| key).collect()
    }

    /// The one that the next request to this worker would go over.
    pub(crate) fn next_upstream_of(&self, worker: WorkerKey) -> Option<UpstreamKey> {
        self.upstreams.next_of(worker)
    }

    /// What a worker has at work, streams included.
    pub(crate) fn exchanges_of(&self, worker: WorkerKey) -> impl Iterator<Item = &Exchange> {
        let of_it = self.upstreams.iter().filter(move |(_, entry)| entry.worker == worker);
        of_it.filter_map(|(_, entry)| entry.exchange.as_ref())
    }

    /// Whether the end of an answer was waited for in vain: the fleet has the deadlines of such a worker.
    pub(crate) fn is_any_stuck(&self, worker: WorkerKey) -> bool {
        let of_it = self.upstreams.iter().filter(|(_, entry)| entry.worker == worker);
        of_it.filter(|(_, entry)| entry.exchange.is_some()).any(|(key, _)| self.armed(key).is_none())
    }

    /// Whether a worker has something at work that may still end in time.
    pub(crate) fn has_others_at_work(&self, worker: WorkerKey) -> bool {
        let of_it = self.upstreams.iter().filter(|(_, entry)| entry.worker == worker);
        of_it.filter(|(_, entry)| entry.exchange.is_some()).any(|(key, _)| self.armed(key).is_some())
    }

    /// How many exchanges a worker had that is crashing right now.
    pub(crate) fn crashed_with(&self, worker: WorkerKey, now: Instant) -> usize {
        self.crash
            .filter(|crash| crash.worker == worker && now.saturating_duration_since(crash.at) < CRASH_LASTS)
            .map_or(0, |crash| crash.exchanges)
    }

    /// What a connection's work counts as.
    pub(crate) fn place(&self, upstream: UpstreamKey) -> Option<PlaceState> {
        self.get(upstream).map(|entry| entry.place)
    }

    pub(crate) fn worker_of(&self, upstream: UpstreamKey) -> Option<WorkerKey> {
        self.get(upstream).map(|entry| entry.worker)
    }

    pub(crate) fn keys(&self) -> Vec<UpstreamKey> {
        self.upstreams.iter().map(|(key, _)| key).collect()
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
        self.get(upstream).is_some_and(Upstream::is_watched_for_room)
    }

    /// What the worker has not taken of an exchange that is being sent.
    pub(crate) fn unsent_bytes(&self, upstream: UpstreamKey) -> u64 {
        self.exchange(upstream).map_or(0, Exchange::unsent_bytes)
    }

    /// Sending has begun, and there is more to do without an event.
    pub(crate) fn has_more_to_send(&self, upstream: UpstreamKey) -> bool {
        let exchange = self.get(upstream).filter(|entry| !entry.is_watched_for_room());
        exchange.and_then(|entry| entry.exchange.as_ref()).is_some_and(Exchange::is_half_sent)
    }

    /// Tunnels with both of their ends.
    pub(crate) fn tunnels(&self) -> usize {
        let is_one = |exchange: &Exchange| exchange.is_tunnel() && exchange.client.is_some();
        self.upstreams.iter().filter(|(_, entry)| entry.exchange.as_ref().is_some_and(is_one)).count()
    }

    /// Whether the head of an answer that is at work has told its client that another request may follow. A stream has
    /// no end that could be waited for.
    pub(crate) fn keeps_clients(&self) -> bool {
        let keeps = |exchange: &Exchange| {
            let is_told = exchange.answer.is_some_and(|answer| answer.keep_alive && !answer.may_idle);
            exchange.client.is_some() && is_told && !exchange.is_tunnel()
        };
        self.upstreams.iter().any(|(_, entry)| entry.exchange.as_ref().is_some_and(keeps))
    }

    /// Workers of which an event stream or a tunnel without an end holds a place.
    pub(crate) fn workers_held_by_streams(&self) -> BTreeSet<WorkerKey> {
        let is_stream = |entry: &Upstream| entry.exchange.as_ref().is_some_and(Exchange::is_open_stream);
        let is_held = |entry: &Upstream| matches!(entry.place, PlaceState::Held { .. }) && is_stream(entry);
        let held = self.upstreams.iter().filter(|(_, entry)| is_held(entry));
        held.map(|(_, entry)| entry.worker).collect()
    }

    /// Event streams and tunnels, whether they hold a place or not.
    pub(crate) fn streams(&self) -> usize {
        let is_one = |exchange: &Exchange| exchange.streaming_since.is_some();
        self.upstreams.iter().filter(|(_, entry)| entry.exchange.as_ref().is_some_and(is_one)).count()
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
        self.upstreams.add_worker(worker);
    }

    /// To be called behind a tick, so that no key is used again inside one batch of events.
    pub(crate) fn remove(&mut self, worker: WorkerKey) {
        self.crash.take_if(|crash| crash.worker == worker);
        for upstream in self.upstreams.remove_worker(worker) {
            self.deadlines.disarm(upstream.0);
            self.ask_deadlines.disarm(upstream.0);
        }
    }

    /// The same for connections that are not needed any more.
    pub(crate) fn remove_closed(&mut self) {
        for upstream in self.upstreams.remove_closed() {
            self.deadlines.disarm(upstream.0);
            self.ask_deadlines.disarm(upstream.0);
        }
    }

    /// A connection for a request that holds one of the worker's places: the one that was used last, so that the others
    /// can be closed some time.
    #[inline(always)]
    pub(crate) fn take_upstream(&mut self, worker: WorkerKey, wish: Wish) -> Option<UpstreamKey> {
        self.upstreams.take(worker, wish)
    }

    /// The work on a connection is over, and what it counted as.
    pub(crate) fn release_upstream(&mut self, upstream: UpstreamKey, now: Instant) -> Option<PlaceState> {
        self.upstreams.release(upstream, now)
    }

    /// A stream has left its place.
    pub(crate) fn leave_place(&mut self, upstream: UpstreamKey) {
        if let Some(entry) = self.get_mut(upstream) {
            entry.place = PlaceState::Left;
        }
    }

    /// A worker's connections without an exchange are closed.
    pub(crate) fn close_unused(&mut self, worker: WorkerKey) {
        for upstream in self.upstreams_of(worker) {
            if self.exchange(upstream).is_none() {
                self.close(upstream);
            }
        }
    }

    /// A worker is not to come back after a cooldown.
    pub(crate) fn end_cooldowns(&mut self, worker: WorkerKey) {
        for upstream in self.upstreams_of(worker) {
            if self.exchange(upstream).is_none() {
                self.disarm(upstream);
            }
        }
    }

    /// A worker's process has ended: what it had written before is still to be read to its end.
    pub(crate) fn worker_has_ended(&mut self, upstream: UpstreamKey) {
        let Some(entry) = self.get_mut(upstream) else { return };
        if let Some(socket) = entry.link.open_mut() {
            socket.is_closing = true;
        }
        if let Some(exchange) = &mut entry.exchange
            && exchange.receiving != Receiving::Ended
        {
            exchange.receiving = Receiving::Rest;
        }
    }

    /// A worker is crashing: what it has at work is counted before one after the other fails.
    pub(crate) fn note_crash(&mut self, worker: WorkerKey, now: Instant) {
        if self.crashed_with(worker, now) == 0 {
            let exchanges = self.exchanges_of(worker).filter(|exchange| !exchange.is_question()).count();
            self.crash = Some(Crash { worker, at: now, exchanges });
        }
    }

    /// The connection has ended; how far its answer had come. `loses`: bytes of it may be lost.
    pub(crate) fn end_connection(&mut self, upstream: UpstreamKey, loses: bool) -> Option<End> {
        self.get_mut(upstream).map(|entry| entry.conn.end(loses))
    }

    /// Whether a reset takes away what its worker has sent before: over TCP it does.
    pub(crate) fn loses_by_a_reset(&self, upstream: UpstreamKey) -> bool {
        let socket = self.get(upstream).and_then(|entry| entry.link.open());
        socket.is_none_or(|socket| socket.stream.loses_by_a_reset())
    }

    pub(crate) fn close(&mut self, upstream: UpstreamKey) {
        if let Some(entry) = self.get_mut(upstream) {
            entry.close();
        }
    }

    /// Clients' connections are to end with the answers at work.
    pub(crate) fn close_clients(&mut self) {
        for entry in self.upstreams.iter_mut() {
            entry.conn.close_client();
        }
    }
}

/// Exchanges begin and end.
impl Backend {
    /// A client's request is the worker's from now on. Inlined, since a call would move all of it once more.
    #[inline(always)]
    pub(crate) fn begin(&mut self, upstream: UpstreamKey, client: ClientKey, job: Job, now: Instant) {
        let Some(entry) = self.get_mut(upstream) else { return };
        debug_assert!(entry.exchange.is_none(), "one request at a time");
        let is_connection_new = entry.link.open().is_none();
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

    /// A worker is asked whether it is idle after an earlier request; `is_one_of_several`: whether that one's handler has
    /// ended, since others may be at work. The time for its answer's end runs.
    pub(crate) fn begin_asking_idle(
        &mut self,
        upstream: UpstreamKey,
        about: Request,
        assigned: Instant,
        is_one_of_several: bool,
        io: &mut Io,
    ) {
        let id = if is_one_of_several { about.id() } else { b"" };
        let question = Request::ask_idle(id, io.take_buffer(), io.now());
        let exchange = Exchange::ask_idle(question, about, assigned, io.spools());
        let Some(entry) = self.get_mut(upstream) else { return };
        entry.exchange = Some(exchange);
        self.arm_stall(upstream, io.now());
    }

    /// Notes that an exchange is a stream from now on, if it is one; its times until here, and since its first byte.
    pub(crate) fn begin_stream(&mut self, upstream: UpstreamKey, now: Instant) -> Option<(Times, Duration)> {
        let exchange = self.exchange_mut(upstream)?;
        if !exchange.is_open_stream() || exchange.streaming_since.is_some() {
            return None;
        }
        let times = exchange.times(now);
        exchange.streaming_since = Some(now);
        Some((times, now.saturating_duration_since(exchange.job.request.started)))
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
