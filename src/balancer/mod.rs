//! Who meets whom: the workers that have a place free, and the bounded queue of waiting requests (in order of arrival, or
//! newest first). Pure: events come in with the time, decisions go out.
//!
//! A worker has as many places as it takes requests at once. The one with the fewest requests at work is chosen, among
//! equals the one freed last; with one place each, the free workers are a stack (last in, first out). An event stream or
//! a tunnel leaves its place and is only counted, where its worker can do that.
//!
//! Invariant: a waiting request and a free place never exist together; but a request that asks for a stream waits while
//! only workers without room for one more are free, or such as have more streams than one that opens some right now. An event that frees several places is answered with the first
//! request, and [`Balancer::dispatch_more`] gives the others.

mod getters;
mod levels;
mod order;
mod queue;
mod retry;
mod share;
#[cfg(any(test, fuzzing))]
pub(crate) mod simulation;
#[cfg(test)]
mod tests;
mod worker;

pub(crate) use order::{QueueRule, Serving};
pub(crate) use retry::{Failure, may_retry};
pub(crate) use worker::Capacity;

use crate::keys::{ClientKey, WorkerKey};
use levels::Levels;
use queue::Queue;
use share::Share;
use std::time::{Duration, Instant};
use worker::{Worker, WorkerState};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Assign {
        worker: WorkerKey,
    },
    Enqueue,
    /// The queue is full.
    Reject,
    /// It asks for a stream, and no worker may hold another one.
    RejectStream,
}

/// What a request asks for, as far as its worker's choice hangs on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Answer,
    /// An event stream or a tunnel: it may stay for long.
    Stream,
}

/// What becomes of a worker that could take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextStep {
    /// The request that has waited longest.
    Dispatch { client: ClientKey, wish: Wish },
    /// It waits for one, or for the end of what it has.
    Idle,
    /// It was withdrawn meanwhile, and has now nothing to do.
    Retired,
}

#[derive(Debug)]
pub(crate) struct Balancer {
    /// Those that have a place free and may be given a request.
    free: Levels,
    workers: Vec<Option<Worker>>,
    queue: Queue,
    /// Workers with anything at work.
    busy: usize,
    /// Of those, the ones that get no other request.
    withdrawn: usize,
    /// Places at work of all others.
    places_at_work: usize,
    /// The most of them at once since the last look.
    most_places_at_work: usize,
    /// The places of the worker that joined last: all of a fleet have as many.
    places_each: usize,
    trial: Option<Share>,
}

impl Balancer {
    pub(crate) fn new(max_queue: usize, queue_timeout: Duration, rule: QueueRule) -> Self {
        Balancer {
            free: Levels::default(),
            workers: Vec::new(),
            queue: Queue::new(max_queue, queue_timeout, rule),
            busy: 0,
            withdrawn: 0,
            places_at_work: 0,
            most_places_at_work: 0,
            places_each: 1,
            trial: None,
        }
    }
}

/// Requests come and go.
impl Balancer {
    /// A whole request has arrived. If no place is free, it waits until `deadline`: [`Balancer::deadline`], or later
    /// where something more is waited for.
    pub(crate) fn submit(
        &mut self,
        client: ClientKey,
        wish: Wish,
        deadline: Instant,
        now: Instant,
    ) -> Decision {
        let decision = match self.choose(wish, now) {
            Some(worker) => self.assign(worker, wish, now),
            None if wish == Wish::Stream && self.are_all_full_of_streams() => Decision::RejectStream,
            None if self.queue.is_full() => Decision::Reject,
            None => {
                self.queue.add(client, wish, deadline);
                Decision::Enqueue
            }
        };
        self.check();
        decision
    }

    /// A request is tried once more: with a worker that has a place free, else before all that came after it, whatever
    /// the bound, since it was let in already. `deadline` is its first one. Whatever it asks for, it counts as
    /// [`Wish::Answer`].
    pub(crate) fn resubmit(&mut self, client: ClientKey, deadline: Instant, now: Instant) -> Decision {
        let decision = match self.top() {
            Some(worker) => self.assign(worker, Wish::Answer, now),
            None => {
                self.queue.add_second_try(client, deadline);
                Decision::Enqueue
            }
        };
        self.check();
        decision
    }

    /// A client gets an answer without a worker: it is not dispatched. `true`: it had waited.
    pub(crate) fn forget(&mut self, client: ClientKey) -> bool {
        self.queue.forget(client)
    }

    /// A client that may have waited has left: it is not dispatched. `true`: it had waited.
    pub(crate) fn depart(&mut self, client: ClientKey, now: Instant) -> bool {
        self.queue.depart(client, now)
    }

    /// Takes one waiting request out whose time is up. To be called until there is none.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<ClientKey> {
        self.queue.expire(now)
    }

    /// A request that waits for a stream, and the worker with a place free that may take it by now. To be called at the end
    /// of a tick, and until there is none.
    pub(crate) fn next_stream(&mut self, now: Instant) -> Option<(WorkerKey, ClientKey)> {
        if !self.queue.has_stream() {
            return None;
        }
        let worker = self.choose(Wish::Stream, now)?;
        let client = self.queue.pop_stream(now)?;
        self.take_place(worker, Wish::Stream, now);
        Some((worker, client))
    }

    /// Takes one out that waits for a stream when no worker may hold another one. To be called until there is none.
    pub(crate) fn refuse_stream(&mut self, now: Instant) -> Option<ClientKey> {
        let is_hopeless = self.queue.has_stream() && self.are_all_full_of_streams();
        if is_hopeless { self.queue.refuse_stream(now) } else { None }
    }

    /// Newest first: its caches are warm, and the oldest can retire. A stream goes to the worker with the fewest that may
    /// take one more; those are rare, so all free workers are looked through.
    fn choose(&self, wish: Wish, now: Instant) -> Option<WorkerKey> {
        match wish {
            Wish::Answer => self.top(),
            Wish::Stream => {
                let may_take = self.free.in_order().filter(|worker| self.may_take_stream(*worker, now));
                may_take.min_by_key(|worker| self.get(*worker).map(Worker::streams_to_be))
            }
        }
    }

    fn assign(&mut self, worker: WorkerKey, wish: Wish, now: Instant) -> Decision {
        self.take_place(worker, wish, now);
        Decision::Assign { worker }
    }
}

/// Workers come and go.
impl Balancer {
    /// A worker has joined. It serves the request that has waited longest; else it takes its predecessor's place in
    /// the stack: below it, which leaves, or on top if that one is busy, and would come back there. Without one it
    /// goes to the bottom: the coldest is not the first.
    pub(crate) fn join(
        &mut self,
        worker: WorkerKey,
        capacity: Capacity,
        predecessor: Option<WorkerKey>,
        now: Instant,
    ) -> NextStep {
        if self.workers.len() <= worker.0 {
            self.workers.resize(worker.0 + 1, None);
        }
        debug_assert!(self.workers[worker.0].is_none(), "joined twice");
        let before = predecessor.and_then(|old| Some((old, *self.get(old)?)));
        let mut entry = Worker::new(capacity, now);
        match before {
            Some((old, Worker { state: WorkerState::Admitted { since }, at_work: 0, .. })) => {
                self.free.insert_below(worker, old);
                entry.state = WorkerState::Admitted { since };
            }
            Some((
                _,
                Worker { state: WorkerState::Admitted { .. } | WorkerState::CoolingDown { .. }, .. },
            )) => {
                self.free.push_top(0, worker);
            }
            Some((_, Worker { state: WorkerState::Withdrawn, .. })) | None => {
                self.free.push_bottom(0, worker);
            }
        }
        self.workers[worker.0] = Some(entry);
        self.places_each = entry.capacity.places;
        self.dispatch_more(worker, now)
    }

    /// A worker is to get no further request. `true`: it had nothing to do, and is out at once; else
    /// [`NextStep::Retired`] comes with the end of its last.
    pub(crate) fn withdraw(&mut self, worker: WorkerKey) -> bool {
        let is_out = match self.get(worker).copied() {
            Some(entry) if entry.has_nothing_to_do() => {
                self.remove(worker);
                true
            }
            Some(_) => {
                self.close(worker, WorkerState::Withdrawn);
                false
            }
            None => true,
        };
        self.check();
        is_out
    }

    /// A worker that was withdrawn, and not replaced after all, may have requests again.
    pub(crate) fn readmit(&mut self, worker: WorkerKey, capacity: Capacity, now: Instant) -> NextStep {
        let Some(entry) = self.workers.get_mut(worker.0).and_then(Option::as_mut) else {
            return self.join(worker, capacity, None, now);
        };
        if entry.state == WorkerState::Withdrawn {
            if entry.at_work > 0 {
                self.withdrawn -= 1;
                self.places_at_work += entry.at_work;
                self.most_places_at_work = self.most_places_at_work.max(self.places_at_work);
            }
            self.open(worker, now);
        }
        self.dispatch_more(worker, now)
    }

    /// A worker that joins now is on trial: of so many requests it gets one, and no more unless nobody else is free.
    pub(crate) fn begin_trial(&mut self, worker: WorkerKey, every: usize) {
        self.trial = Some(Share::new(worker, every));
    }

    /// It is a worker like the others from now on.
    pub(crate) fn end_trial(&mut self) {
        self.trial = None;
    }

    fn is_on_trial(&self, worker: WorkerKey) -> bool {
        self.trial.is_some_and(|share| share.is_of(worker))
    }

    /// A worker is gone, whatever it did.
    pub(crate) fn remove(&mut self, worker: WorkerKey) {
        if self.is_on_trial(worker) {
            self.trial = None;
        }
        if let Some(entry) = self.workers.get_mut(worker.0).and_then(Option::take) {
            self.free.remove(entry.at_work, worker);
            self.busy -= usize::from(entry.at_work > 0);
            match entry.state {
                WorkerState::Withdrawn => self.withdrawn -= usize::from(entry.at_work > 0),
                WorkerState::Admitted { .. } | WorkerState::CoolingDown { .. } => {
                    self.places_at_work -= entry.at_work;
                }
            }
        }
        self.check();
    }

    /// How many workers were needed at once since the last call.
    pub(crate) fn take_deepest(&mut self) -> usize {
        let deepest = self.deepest();
        self.most_places_at_work = self.places_at_work;
        deepest
    }
}

/// What workers do.
impl Balancer {
    /// An answer has ended: its worker has a place free. `wish`: what its request was assigned with.
    pub(crate) fn release(&mut self, worker: WorkerKey, wish: Wish, now: Instant) -> NextStep {
        let Some(entry) =
            self.workers.get_mut(worker.0).and_then(Option::as_mut).filter(|entry| entry.at_work > 0)
        else {
            debug_assert!(false, "released without work");
            return NextStep::Idle;
        };
        entry.note_ended(wish);
        if entry.may_serve(now)
            && let Some((client, wish)) = self.pop_for(worker, now)
        {
            // It takes the place that it has just freed.
            if let Some(entry) = self.workers.get_mut(worker.0).and_then(Option::as_mut) {
                entry.note_begun(wish, now);
            }
            self.has_turn(worker);
            self.open(worker, now);
            return NextStep::Dispatch { client, wish };
        }
        self.free_place(worker, now);
        let next = self.settle(worker);
        self.check();
        next
    }

    /// A stream's head is out, or a tunnel stands: it leaves its place, unless its worker has too many of them already.
    /// `None`: it stays. The worker is not the next one, since it has a stream more than before. `wish`: what its request
    /// was assigned with.
    pub(crate) fn begin_stream(&mut self, worker: WorkerKey, wish: Wish, now: Instant) -> Option<NextStep> {
        let entry = self.workers.get_mut(worker.0).and_then(Option::as_mut)?;
        if entry.capacity.streams.is_none() || entry.is_full_of_streams() {
            return None;
        }
        entry.note_ended(wish);
        entry.streams += 1;
        self.free_place(worker, now);
        let level = self.get(worker)?.at_work;
        if self.free.remove(level, worker) {
            self.free.push_bottom(level, worker);
        }
        Some(self.dispatch_more(worker, now))
    }

    /// A stream that had left its place has ended: another one may wait for its room.
    pub(crate) fn end_stream(&mut self, worker: WorkerKey, now: Instant) -> NextStep {
        if let Some(entry) = self.workers.get_mut(worker.0).and_then(Option::as_mut) {
            debug_assert!(entry.streams > 0, "a stream that was not counted");
            entry.streams = entry.streams.saturating_sub(1);
        }
        match self.settle(worker) {
            NextStep::Idle => self.dispatch_more(worker, now),
            next => next,
        }
    }

    /// A worker that has answered busy gets nothing new until then; what is in it goes on. The place of that answer is
    /// released at that time.
    pub(crate) fn cool_down(&mut self, worker: WorkerKey, until: Instant) {
        if self.get(worker).is_some_and(|entry| entry.state != WorkerState::Withdrawn) {
            self.close(worker, WorkerState::CoolingDown { until });
        }
    }

    /// The next waiting request, while a worker has more places free: to be called behind each event that has freed some,
    /// until there is none.
    pub(crate) fn dispatch_more(&mut self, worker: WorkerKey, now: Instant) -> NextStep {
        let Some(&entry) = self.get(worker) else { return NextStep::Idle };
        let is_free = self.free.contains(entry.at_work, worker);
        match if is_free { self.pop_for(worker, now) } else { None } {
            Some((client, wish)) => {
                self.take_place(worker, wish, now);
                NextStep::Dispatch { client, wish }
            }
            None => {
                self.check();
                NextStep::Idle
            }
        }
    }
}

/// One door each for a place that is taken, one that is freed, and for a worker that may have requests or not.
impl Balancer {
    /// In its new level it is the last: whoever was taken before it had been freed later.
    fn take_place(&mut self, worker: WorkerKey, wish: Wish, now: Instant) {
        let Some(entry) = self.workers.get_mut(worker.0).and_then(Option::as_mut) else { return };
        self.free.remove(entry.at_work, worker);
        entry.at_work += 1;
        entry.note_begun(wish, now);
        if entry.at_work < entry.capacity.places {
            self.free.push_bottom(entry.at_work, worker);
        }
        self.busy += usize::from(entry.at_work == 1);
        self.places_at_work += 1;
        self.has_turn(worker);
    }

    /// What waits longest of what a worker may take.
    fn pop_for(&mut self, worker: WorkerKey, now: Instant) -> Option<(ClientKey, Wish)> {
        let takes_stream = self.queue.has_stream() && self.may_take_stream(worker, now);
        self.queue.pop(takes_stream, now)
    }

    /// A worker gets a request.
    fn has_turn(&mut self, worker: WorkerKey) {
        self.most_places_at_work = self.most_places_at_work.max(self.places_at_work);
        if let Some(share) = &mut self.trial {
            share.note(worker);
        }
    }

    fn free_place(&mut self, worker: WorkerKey, now: Instant) {
        let is_on_trial = self.is_on_trial(worker);
        let Some(entry) = self.workers.get_mut(worker.0).and_then(Option::as_mut) else { return };
        self.free.remove(entry.at_work, worker);
        entry.at_work -= 1;
        self.busy -= usize::from(entry.at_work == 0);
        match entry.state {
            WorkerState::Withdrawn => self.withdrawn -= usize::from(entry.at_work == 0),
            WorkerState::Admitted { .. } | WorkerState::CoolingDown { .. } => {
                self.places_at_work -= 1;
                if entry.may_serve(now) {
                    entry.state = WorkerState::Admitted { since: now };
                    if is_on_trial {
                        self.free.push_bottom(entry.at_work, worker);
                    } else {
                        self.free.push_top(entry.at_work, worker);
                    }
                }
            }
        }
    }

    /// A worker may have requests from now on.
    fn open(&mut self, worker: WorkerKey, now: Instant) {
        let Some(entry) = self.workers.get_mut(worker.0).and_then(Option::as_mut) else { return };
        if let WorkerState::Admitted { .. } = entry.state {
            return;
        }
        entry.state = WorkerState::Admitted { since: now };
        if entry.at_work < entry.capacity.places {
            self.free.push_top(entry.at_work, worker);
        }
    }

    /// A worker gets nothing more, for a while or for good.
    fn close(&mut self, worker: WorkerKey, state: WorkerState) {
        let Some(entry) = self.workers.get_mut(worker.0).and_then(Option::as_mut) else { return };
        self.free.remove(entry.at_work, worker);
        if state == WorkerState::Withdrawn && entry.state != WorkerState::Withdrawn {
            self.withdrawn += usize::from(entry.at_work > 0);
            self.places_at_work -= entry.at_work;
        }
        entry.state = state;
    }

    /// Something has ended: one that was withdrawn may have nothing left to do.
    fn settle(&mut self, worker: WorkerKey) -> NextStep {
        let is_out = self
            .get(worker)
            .is_some_and(|entry| entry.state == WorkerState::Withdrawn && entry.has_nothing_to_do());
        if is_out {
            self.remove(worker);
            return NextStep::Retired;
        }
        NextStep::Idle
    }

    fn check(&self) {
        debug_assert!(
            self.free.is_empty() || !self.queue.has_answer(),
            "a request waits beside a free place"
        );
    }
}
