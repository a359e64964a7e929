//! The obvious balancer, which the real one is compared with: lists that are searched from end to end.

use crate::balancer::order::Order;
use crate::balancer::*;
use std::collections::BTreeMap;

/// The obvious balancer.
#[derive(Debug)]
pub(crate) struct Model {
    pub workers: Vec<Modelled>,
    /// Who has a place free, by requests at work; the one to be chosen first is the last.
    pub levels: BTreeMap<usize, Vec<WorkerKey>>,
    /// By deadline.
    arrivals: Vec<(ClientKey, Instant, Wish)>,
    second_tries: Vec<(ClientKey, Instant, Wish)>,
    pub(super) order: Order,
    max_queue: usize,
    /// Who is on trial, gets one request in how many, and how many others have had since.
    trial: Option<(WorkerKey, usize, usize)>,
    /// The most that have waited at once.
    pub(super) longest_queue: usize,
    /// The places of the worker that joined last.
    pub(super) places_each: usize,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Modelled {
    pub key: WorkerKey,
    pub capacity: Capacity,
    pub at_work: usize,
    /// Of them, those that ask for a stream.
    pub asking: usize,
    pub asked_at: Option<Instant>,
    pub streams: usize,
    pub is_withdrawn: bool,
    pub cools_until: Option<Instant>,
    /// It joined, or a place of it was freed.
    pub since: Instant,
}

/// Where a worker comes to lie in its level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Top,
    Bottom,
}

impl Model {
    pub(crate) fn new(max_queue: usize, rule: QueueRule) -> Self {
        Model {
            workers: Vec::new(),
            levels: BTreeMap::new(),
            arrivals: Vec::new(),
            second_tries: Vec::new(),
            order: Order::new(rule),
            max_queue,
            trial: None,
            longest_queue: 0,
            places_each: 1,
        }
    }

    /// Everybody who waits, with its deadline.
    pub(crate) fn waiting(&self) -> Vec<(ClientKey, Instant)> {
        let all = self.second_tries.iter().chain(&self.arrivals);
        all.map(|(client, deadline, _)| (*client, *deadline)).collect()
    }

    /// Those that wait although somebody who is free could serve them.
    pub(crate) fn fitting(&self, now: Instant) -> Vec<ClientKey> {
        let free = self.free();
        let fits = |wish: Wish| free.iter().any(|key| self.may_take(*key, wish, now));
        let all = self.second_tries.iter().chain(&self.arrivals);
        all.filter(|(_, _, wish)| fits(*wish)).map(|(client, _, _)| *client).collect()
    }

    fn may_take(&self, key: WorkerKey, wish: Wish, now: Instant) -> bool {
        let worker = self.worker(key).expect("it is there");
        let has_room = |of: &Modelled| of.streams + of.asking < of.capacity.streams.unwrap_or(usize::MAX);
        let is_far_behind = |of: &Modelled| {
            of.streams + of.asking + 4 < worker.streams + worker.asking
                && (of.asking > 0 && has_room(of) && !of.is_withdrawn && of.cools_until.is_none())
                && of.asked_at.is_some_and(|at| now < at + Duration::from_millis(100))
        };
        wish == Wish::Answer || (has_room(&worker) && !self.workers.iter().any(is_far_behind))
    }

    pub(crate) fn next_stream(&mut self, now: Instant) -> Option<(WorkerKey, ClientKey)> {
        let is_stream = |(_, _, wish): &(ClientKey, Instant, Wish)| *wish == Wish::Stream;
        let worker = self.chosen(Wish::Stream, now)?;
        let first = self.arrivals.iter().position(is_stream)?;
        let at = match self.order.on_dispatch(now) {
            Serving::OldestFirst => first,
            Serving::NewestFirst => self.arrivals.iter().rposition(is_stream)?,
        };
        let (client, _, wish) = self.arrivals.remove(at);
        self.take_place(worker, wish, now);
        Some((worker, client))
    }

    fn chosen(&self, wish: Wish, now: Instant) -> Option<WorkerKey> {
        let streams = |key: &WorkerKey| {
            let worker = self.worker(*key).expect("it is there");
            worker.streams + worker.asking
        };
        match wish {
            Wish::Answer => self.top(),
            Wish::Stream => {
                let free = self.free();
                free.iter().copied().filter(|key| self.may_take(*key, wish, now)).min_by_key(streams)
            }
        }
    }

    /// There are workers, and all have as many streams as they may.
    fn are_all_full(&self) -> bool {
        let mut all = self.workers.iter().filter(|worker| !worker.is_withdrawn).peekable();
        let is_full = |worker: &Modelled| worker.capacity.streams.is_some_and(|most| worker.streams >= most);
        all.peek().is_some() && all.all(is_full)
    }

    pub(crate) fn refuse_stream(&mut self, now: Instant) -> Option<ClientKey> {
        let first = self.arrivals.iter().position(|(_, _, wish)| *wish == Wish::Stream)?;
        if !self.are_all_full() {
            return None;
        }
        self.order.on_loss(now);
        Some(self.arrivals.remove(first).0)
    }

    /// When one that waits for a stream is looked at again by a worker with room: another one opens some until then.
    pub(super) fn stream_deadline(&self, now: Instant) -> Option<Instant> {
        let has_room = |of: &Modelled| of.streams + of.asking < of.capacity.streams.unwrap_or(usize::MAX);
        let waits = self.arrivals.iter().any(|(_, _, wish)| *wish == Wish::Stream);
        let is_free = self.free().iter().any(|key| self.worker(*key).is_some_and(|worker| has_room(&worker)));
        let gets_some = |of: &&Modelled| !of.is_withdrawn && of.cools_until.is_none();
        let opens = |of: &&Modelled| of.asking > 0 && has_room(of);
        let opening = self.workers.iter().filter(gets_some).filter(opens);
        let until = opening.filter_map(|of| of.asked_at).map(|at| at + Duration::from_millis(100));
        until.filter(|until| waits && is_free && now < *until).min()
    }

    /// Who has had nothing at work for the longest time, and since when.
    pub(super) fn bottom(&self) -> Option<(WorkerKey, Instant)> {
        let key = self.levels.get(&0)?.first()?;
        self.worker(*key).map(|worker| (*key, worker.since))
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.waiting().into_iter().map(|(_, deadline)| deadline).min()
    }

    /// What that worker serves next: second tries first; of the others the oldest, or the newest, but no stream where it
    /// has no room for one.
    fn next(&mut self, key: WorkerKey, now: Instant) -> Option<(ClientKey, Wish)> {
        if self.waiting().is_empty() {
            self.order.on_idle(now);
            return None;
        }
        let fit: Vec<usize> =
            (0..self.arrivals.len()).filter(|at| self.may_take(key, self.arrivals[*at].2, now)).collect();
        if self.second_tries.is_empty() && fit.is_empty() {
            return None;
        }
        let serving = self.order.on_dispatch(now);
        if !self.second_tries.is_empty() {
            return Some((self.second_tries.remove(0).0, Wish::Answer));
        }
        let at = match serving {
            Serving::OldestFirst => *fit.first()?,
            Serving::NewestFirst => *fit.last()?,
        };
        let (client, _, wish) = self.arrivals.remove(at);
        Some((client, wish))
    }

    /// `true`: it had waited.
    pub(crate) fn forget(&mut self, client: ClientKey) -> bool {
        let before = self.waiting().len();
        for list in [&mut self.arrivals, &mut self.second_tries] {
            list.retain(|(other, _, _)| *other != client);
        }
        self.waiting().len() < before
    }

    pub(crate) fn depart(&mut self, client: ClientKey, now: Instant) -> bool {
        let had_waited = self.forget(client);
        if had_waited {
            self.order.on_loss(now);
        }
        had_waited
    }

    pub(crate) fn expire(&mut self, now: Instant) -> Option<ClientKey> {
        let is_due = |(_, deadline, _): &&(ClientKey, Instant, Wish)| *deadline <= now;
        let of = |wish: Wish| self.arrivals.iter().filter(is_due).find(|(_, _, other)| *other == wish);
        let second = || self.second_tries.iter().find(is_due);
        let (client, _, _) = *of(Wish::Answer).or(of(Wish::Stream)).or_else(second)?;
        self.depart(client, now);
        Some(client)
    }

    pub(crate) fn begin_trial(&mut self, worker: WorkerKey, every: usize) {
        self.trial = Some((worker, every, 0));
    }

    pub(crate) fn end_trial(&mut self) {
        self.trial = None;
    }

    fn is_on_trial(&self, worker: WorkerKey) -> bool {
        self.trial.is_some_and(|(on_trial, _, _)| on_trial == worker)
    }

    fn note_turn(&mut self, worker: WorkerKey) {
        if let Some((on_trial, _, since)) = &mut self.trial {
            *since = if *on_trial == worker { 0 } else { *since + 1 };
        }
    }

    /// The first of those that are free; but one on trial only if its turn has come, or nobody else is.
    pub(super) fn top(&self) -> Option<WorkerKey> {
        let free = self.free();
        let due = self.trial.filter(|(_, every, since)| since + 1 >= *every).map(|(worker, _, _)| worker);
        let due = due.filter(|due| free.contains(due));
        let other = free.iter().copied().find(|worker| !self.is_on_trial(*worker));
        due.or(other).or(free.first().copied())
    }

    pub(crate) fn worker(&self, key: WorkerKey) -> Option<Modelled> {
        self.workers.iter().copied().find(|worker| worker.key == key)
    }

    fn change(&mut self, key: WorkerKey, change: impl FnOnce(&mut Modelled)) {
        change(self.workers.iter_mut().find(|worker| worker.key == key).expect("it is there"));
    }

    fn take_out(&mut self, key: WorkerKey) {
        self.levels.values_mut().for_each(|level| level.retain(|other| *other != key));
    }

    /// Puts it where it belongs now, if it may have a request.
    fn put(&mut self, key: WorkerKey, at: At) {
        self.take_out(key);
        let worker = self.worker(key).expect("it is there");
        if !worker.is_withdrawn && worker.cools_until.is_none() && worker.at_work < worker.capacity.places {
            let level = self.levels.entry(worker.at_work).or_default();
            level.insert(if at == At::Top { level.len() } else { 0 }, key);
        }
    }

    pub(crate) fn free(&self) -> Vec<WorkerKey> {
        self.levels.values().flat_map(|level| level.iter().rev()).copied().collect()
    }

    pub(crate) fn submit(
        &mut self,
        client: ClientKey,
        wish: Wish,
        deadline: Instant,
        is_second_try: bool,
        now: Instant,
    ) -> Decision {
        if let Some(worker) = self.chosen(wish, now) {
            self.take_place(worker, wish, now);
            return Decision::Assign { worker };
        }
        if wish == Wish::Stream && self.are_all_full() {
            return Decision::RejectStream;
        }
        if !is_second_try && self.waiting().len() >= self.max_queue {
            return Decision::Reject;
        }
        let list = if is_second_try { &mut self.second_tries } else { &mut self.arrivals };
        // By deadline; those that wait already go first among equals.
        let at = list.iter().position(|(_, other, _)| *other > deadline).unwrap_or(list.len());
        list.insert(at, (client, deadline, wish));
        self.longest_queue = self.longest_queue.max(self.waiting().len());
        Decision::Enqueue
    }

    fn take_place(&mut self, key: WorkerKey, wish: Wish, now: Instant) {
        self.change(key, |entry| entry.at_work += 1);
        self.note_begun(key, wish, now);
        self.put(key, At::Bottom);
        self.note_turn(key);
    }

    fn note_begun(&mut self, key: WorkerKey, wish: Wish, now: Instant) {
        if wish == Wish::Stream {
            self.change(key, |entry| {
                entry.asking += 1;
                entry.asked_at = Some(now);
            });
        }
    }

    pub(crate) fn join(
        &mut self,
        key: WorkerKey,
        capacity: Capacity,
        predecessor: Option<WorkerKey>,
        now: Instant,
    ) -> NextStep {
        let old = predecessor.and_then(|old| self.worker(old)).filter(|old| !old.is_withdrawn);
        // Unneeded for as long as the one before it.
        let is_idle = |old: &Modelled| old.at_work == 0 && old.cools_until.is_none();
        let since = old.filter(is_idle).map_or(now, |old| old.since);
        self.places_each = capacity.places;
        self.workers.push(Modelled {
            key,
            capacity,
            at_work: 0,
            asking: 0,
            asked_at: None,
            streams: 0,
            is_withdrawn: false,
            cools_until: None,
            since,
        });
        let idle = self.levels.entry(0).or_default();
        let at = match old {
            Some(Modelled { key: old, at_work: 0, cools_until: None, .. }) => {
                idle.iter().position(|other| *other == old).expect("it is idle")
            }
            Some(_) => idle.len(),
            None => 0,
        };
        idle.insert(at, key);
        self.dispatch_more(key, now)
    }

    /// If somebody waits, it has the next one.
    pub(crate) fn dispatch_more(&mut self, key: WorkerKey, now: Instant) -> NextStep {
        let next = if self.free().contains(&key) { self.next(key, now) } else { None };
        let Some((client, wish)) = next else { return NextStep::Idle };
        self.take_place(key, wish, now);
        NextStep::Dispatch { client, wish }
    }

    pub(crate) fn release(&mut self, key: WorkerKey, wish: Wish, now: Instant) -> NextStep {
        self.change(key, |entry| entry.asking -= usize::from(wish == Wish::Stream));
        let is_cool = self.worker(key).and_then(|entry| entry.cools_until).is_none_or(|until| until <= now);
        let was_cooling = self.worker(key).is_some_and(|entry| entry.cools_until.is_some());
        if is_cool {
            self.change(key, |entry| entry.cools_until = None);
        }
        let worker = self.worker(key).expect("it is there");
        if is_cool
            && !worker.is_withdrawn
            && let Some((client, wish)) = self.next(key, now)
        {
            self.note_begun(key, wish, now);
            if was_cooling {
                self.put(key, At::Top);
            }
            self.note_turn(key);
            return NextStep::Dispatch { client, wish };
        }
        self.change(key, |entry| {
            entry.at_work -= 1;
            entry.since = now;
        });
        self.put(key, if self.is_on_trial(key) { At::Bottom } else { At::Top });
        self.retired(key)
    }

    fn retired(&mut self, key: WorkerKey) -> NextStep {
        let worker = self.worker(key).expect("it is there");
        if worker.is_withdrawn && worker.at_work + worker.streams == 0 {
            self.remove(key);
            return NextStep::Retired;
        }
        NextStep::Idle
    }

    pub(crate) fn begin_stream(&mut self, key: WorkerKey, wish: Wish, now: Instant) -> Option<NextStep> {
        let worker = self.worker(key)?;
        if worker.capacity.streams.is_none_or(|most| worker.streams >= most) {
            return None;
        }
        self.change(key, |entry| {
            entry.streams += 1;
            entry.at_work -= 1;
            entry.since = now;
            entry.asking -= usize::from(wish == Wish::Stream);
            entry.cools_until = entry.cools_until.filter(|until| *until > now);
        });
        self.put(key, At::Bottom);
        Some(self.dispatch_more(key, now))
    }

    pub(crate) fn end_stream(&mut self, key: WorkerKey, now: Instant) -> NextStep {
        self.change(key, |entry| entry.streams -= 1);
        match self.retired(key) {
            NextStep::Idle => self.dispatch_more(key, now),
            next => next,
        }
    }

    pub(crate) fn cool_down(&mut self, key: WorkerKey, until: Instant) {
        if self.worker(key).is_some_and(|worker| !worker.is_withdrawn) {
            self.change(key, |entry| entry.cools_until = Some(until));
            self.take_out(key);
        }
    }

    /// `true`: it had nothing to do, and is out.
    pub(crate) fn withdraw(&mut self, key: WorkerKey) -> bool {
        let Some(worker) = self.worker(key) else { return true };
        if worker.at_work + worker.streams == 0 {
            self.remove(key);
            return true;
        }
        self.change(key, |entry| entry.is_withdrawn = true);
        self.take_out(key);
        false
    }

    pub(crate) fn readmit(&mut self, key: WorkerKey, capacity: Capacity, now: Instant) -> NextStep {
        let Some(worker) = self.worker(key) else { return self.join(key, capacity, None, now) };
        if worker.is_withdrawn {
            self.change(key, |entry| {
                entry.is_withdrawn = false;
                entry.cools_until = None;
                entry.since = now;
            });
            self.put(key, At::Top);
        }
        self.dispatch_more(key, now)
    }

    pub(crate) fn remove(&mut self, key: WorkerKey) {
        if self.is_on_trial(key) {
            self.trial = None;
        }
        self.take_out(key);
        self.workers.retain(|worker| worker.key != key);
    }

    /// Workers with nothing at work that may have a request; those with something; what waits.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let idle = self.levels.get(&0).map_or(0, Vec::len);
        let busy = self.workers.iter().filter(|worker| worker.at_work > 0).count();
        (idle, busy, self.waiting().len())
    }

    pub(super) fn places_at_work(&self) -> usize {
        let counted = self.workers.iter().filter(|worker| !worker.is_withdrawn);
        counted.map(|worker| worker.at_work).sum()
    }
}
