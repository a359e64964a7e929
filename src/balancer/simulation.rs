//! Seeded histories of the balancer against a model that is obviously right: vectors, searched from end to end.
//!
//! `RIP_SIMULATIONS=100000 cargo test balancer` plays more; a failure prints its seed, and `RIP_SEED=<seed>` plays
//! that history alone.

use super::order::Order;
use super::*;
use std::collections::BTreeMap;

const MAX_QUEUE: usize = 4;
const TIMEOUT: Duration = Duration::from_millis(300);

/// The obvious balancer.
#[derive(Debug)]
pub(crate) struct Model {
    pub workers: Vec<Modelled>,
    /// Who has a place free, by requests at work; the one to be chosen first is the last.
    pub levels: BTreeMap<usize, Vec<WorkerKey>>,
    /// By deadline.
    arrivals: Vec<(ClientKey, Instant)>,
    second_tries: Vec<(ClientKey, Instant)>,
    order: Order,
    max_queue: usize,
    /// Who is on trial, gets one request in how many, and how many others have had since.
    trial: Option<(WorkerKey, usize, usize)>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Modelled {
    pub key: WorkerKey,
    pub capacity: Capacity,
    pub at_work: usize,
    pub streams: usize,
    pub is_withdrawn: bool,
    pub cools_until: Option<Instant>,
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
        }
    }

    /// Everybody who waits, with its deadline.
    pub(crate) fn waiting(&self) -> Vec<(ClientKey, Instant)> {
        [&self.second_tries[..], &self.arrivals].concat()
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.waiting().into_iter().map(|(_, deadline)| deadline).min()
    }

    /// Second tries first; of the others the oldest, or the newest.
    fn next(&mut self, now: Instant) -> Option<ClientKey> {
        if self.waiting().is_empty() {
            self.order.on_idle(now);
            return None;
        }
        let serving = self.order.on_dispatch(now);
        if !self.second_tries.is_empty() {
            return Some(self.second_tries.remove(0).0);
        }
        match serving {
            Serving::OldestFirst => Some(self.arrivals.remove(0).0),
            Serving::NewestFirst => self.arrivals.pop().map(|(client, _)| client),
        }
    }

    /// `true`: it had waited.
    pub(crate) fn forget(&mut self, client: ClientKey) -> bool {
        let before = self.waiting().len();
        for list in [&mut self.arrivals, &mut self.second_tries] {
            list.retain(|(other, _)| *other != client);
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
        let due = |list: &[(ClientKey, Instant)]| list.iter().find(|(_, deadline)| *deadline <= now).copied();
        let (client, _) = due(&self.arrivals).or(due(&self.second_tries))?;
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
    fn top(&self) -> Option<WorkerKey> {
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
    ) -> Decision {
        let free = self.free();
        let streams = |key: &WorkerKey| self.worker(*key).expect("it is there").streams;
        let chosen = match wish {
            Wish::Answer => self.top(),
            Wish::Stream => free.iter().copied().min_by_key(streams),
        };
        if let Some(worker) = chosen {
            let most = self.worker(worker).and_then(|worker| worker.capacity.streams);
            if wish == Wish::Stream && most.is_some_and(|most| streams(&worker) >= most) {
                return Decision::RejectStream;
            }
            self.change(worker, |entry| entry.at_work += 1);
            self.put(worker, At::Bottom);
            self.note_turn(worker);
            return Decision::Assign { worker };
        }
        if !is_second_try && self.waiting().len() >= self.max_queue {
            return Decision::Reject;
        }
        let list = if is_second_try { &mut self.second_tries } else { &mut self.arrivals };
        // By deadline; those that wait already go first among equals.
        let at = list.iter().position(|(_, other)| *other > deadline).unwrap_or(list.len());
        list.insert(at, (client, deadline));
        Decision::Enqueue
    }

    pub(crate) fn join(
        &mut self,
        key: WorkerKey,
        capacity: Capacity,
        predecessor: Option<WorkerKey>,
        now: Instant,
    ) -> NextStep {
        let old = predecessor.and_then(|old| self.worker(old)).filter(|old| !old.is_withdrawn);
        self.workers.push(Modelled {
            key,
            capacity,
            at_work: 0,
            streams: 0,
            is_withdrawn: false,
            cools_until: None,
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
        self.serve_with(key, now)
    }

    /// If somebody waits, it has the next one.
    fn serve_with(&mut self, key: WorkerKey, now: Instant) -> NextStep {
        match self.dispatch_more(key, now) {
            Some(client) => NextStep::Dispatch { client },
            None => NextStep::Idle,
        }
    }

    pub(crate) fn dispatch_more(&mut self, key: WorkerKey, now: Instant) -> Option<ClientKey> {
        if !self.free().contains(&key) {
            return None;
        }
        let client = self.next(now)?;
        self.change(key, |entry| entry.at_work += 1);
        self.put(key, At::Bottom);
        self.note_turn(key);
        Some(client)
    }

    pub(crate) fn release(&mut self, key: WorkerKey, now: Instant) -> NextStep {
        let is_cool = self.worker(key).and_then(|entry| entry.cools_until).is_none_or(|until| until <= now);
        let was_cooling = self.worker(key).is_some_and(|entry| entry.cools_until.is_some());
        if is_cool {
            self.change(key, |entry| entry.cools_until = None);
        }
        let worker = self.worker(key).expect("it is there");
        if is_cool
            && !worker.is_withdrawn
            && let Some(client) = self.next(now)
        {
            if was_cooling {
                self.put(key, At::Top);
            }
            self.note_turn(key);
            return NextStep::Dispatch { client };
        }
        self.change(key, |entry| entry.at_work -= 1);
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

    pub(crate) fn begin_stream(&mut self, key: WorkerKey, now: Instant) -> Option<NextStep> {
        let worker = self.worker(key)?;
        if worker.capacity.streams.is_none_or(|most| worker.streams >= most) {
            return None;
        }
        self.change(key, |entry| {
            entry.streams += 1;
            entry.at_work -= 1;
            entry.cools_until = entry.cools_until.filter(|until| *until > now);
        });
        self.put(key, At::Bottom);
        Some(self.serve_with(key, now))
    }

    pub(crate) fn end_stream(&mut self, key: WorkerKey) -> NextStep {
        self.change(key, |entry| entry.streams -= 1);
        self.retired(key)
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
            });
            self.put(key, At::Top);
        }
        self.serve_with(key, now)
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

    fn places_at_work(&self) -> usize {
        let counted = self.workers.iter().filter(|worker| !worker.is_withdrawn);
        counted.map(|worker| worker.at_work).sum()
    }
}

/// How often the order has changed.
fn play(seed: u64) -> u64 {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) as usize % below.max(1)
    };
    let rule = if next(4) == 0 { QueueRule::Fifo } else { QueueRule::Adaptive };
    let (mut balancer, mut model) = (Balancer::new(MAX_QUEUE, TIMEOUT, rule), Model::new(MAX_QUEUE, rule));
    // Half of the histories have one place a worker, and so many requests at once at most.
    let places = [1, 1, 2, 3, 4, 1][next(6)];
    let (mut now, mut clients) = (Instant::now(), 0);
    // In some more come than can be served, and clients leave, for so long that the order turns.
    let is_overload = next(16) == 0;
    let steps = if is_overload { 900 } else { 150 };
    for step in 0..steps {
        let context = format!("seed {seed}, step {step}");
        let keys: Vec<WorkerKey> = model.workers.iter().map(|worker| worker.key).collect();
        let fresh = (0..).map(WorkerKey).find(|key| !keys.contains(key)).expect("a free key");
        let at_work: Vec<WorkerKey> =
            model.workers.iter().filter(|worker| worker.at_work > 0).map(|worker| worker.key).collect();
        let capacity = Capacity {
            places: if next(8) == 0 { 1 + next(4) } else { places },
            streams: [None, Some(0), Some(1), Some(100)][next(4)],
        };
        // Whoever has places free now serves those that wait.
        let mut opened = None;
        let action = if is_overload { [0, 0, 0, 4, 5, 7, 9, 16, 16][next(9)] } else { next(17) };
        match action {
            0..=3 => {
                let client = ClientKey(clients);
                clients += 1;
                // Some wait for something that takes longer.
                let deadline = now + TIMEOUT * (1 + u32::from(next(6) == 0));
                let wish = if next(4) == 0 { Wish::Stream } else { Wish::Answer };
                let expected = model.submit(client, wish, deadline, false);
                assert_eq!(balancer.submit(client, wish, deadline), expected, "{context}");
            }
            4..=6 if !at_work.is_empty() => {
                let worker = at_work[next(at_work.len())];
                assert_eq!(balancer.release(worker, now), model.release(worker, now), "{context}");
                opened = Some(worker);
            }
            7 if next(4) == 0 => {
                if next(3) == 0 {
                    balancer.end_trial();
                    model.end_trial();
                } else {
                    let (worker, every) = (WorkerKey(next(6)), 2 + next(3));
                    balancer.begin_trial(worker, every);
                    model.begin_trial(worker, every);
                }
            }
            7 if keys.len() < 6 => {
                // Of somebody there, of somebody gone, of nobody.
                let predecessor = (next(3) > 0).then(|| WorkerKey(next(8))).filter(|old| *old != fresh);
                let expected = model.join(fresh, capacity, predecessor, now);
                assert_eq!(balancer.join(fresh, capacity, predecessor, now), expected, "{context}");
                opened = Some(fresh);
            }
            8 if !keys.is_empty() => {
                let worker = keys[next(keys.len())];
                if next(2) == 0 {
                    model.remove(worker);
                    balancer.remove(worker);
                } else {
                    assert_eq!(balancer.withdraw(worker), model.withdraw(worker), "{context}");
                }
            }
            9 if !model.waiting().is_empty() => {
                let waiting = model.waiting();
                let (client, _) = waiting[next(waiting.len())];
                if next(2) == 0 {
                    assert_eq!(balancer.depart(client, now), model.depart(client, now), "{context}");
                } else {
                    assert_eq!(balancer.forget(client), model.forget(client), "{context}");
                }
                assert!(!balancer.forget(client), "{context}: forgotten once");
            }
            10 => {
                // A second try, under a deadline from before.
                let client = ClientKey(clients);
                clients += 1;
                let deadline = now + TIMEOUT - Duration::from_millis(next(300) as u64);
                let expected = model.submit(client, Wish::Answer, deadline, true);
                assert_eq!(balancer.resubmit(client, deadline), expected, "{context}");
            }
            11 => {
                // One that was idle when it was withdrawn, or one of those that are there.
                let worker = if next(2) == 0 { fresh } else { keys.first().copied().unwrap_or(fresh) };
                assert_eq!(
                    balancer.readmit(worker, capacity, now),
                    model.readmit(worker, capacity, now),
                    "{context}"
                );
                opened = Some(worker);
            }
            12..=13 if !at_work.is_empty() => {
                let worker = at_work[next(at_work.len())];
                assert_eq!(balancer.begin_stream(worker, now), model.begin_stream(worker, now), "{context}");
                opened = Some(worker);
            }
            14 => {
                let holds_one = model.workers.iter().find(|worker| worker.streams > 0);
                if let Some(worker) = holds_one.map(|worker| worker.key) {
                    assert_eq!(balancer.end_stream(worker), model.end_stream(worker), "{context}");
                }
            }
            15 if !at_work.is_empty() => {
                let worker = at_work[next(at_work.len())];
                let until = now + Duration::from_millis(50);
                balancer.cool_down(worker, until);
                model.cool_down(worker, until);
            }
            _ => {
                // To the edge of a deadline, or a little on.
                now = match balancer.next_deadline() {
                    Some(deadline) if !is_overload && next(2) == 0 => deadline,
                    Some(_) if is_overload => now + Duration::from_millis(next(10) as u64),
                    _ => now + Duration::from_millis(next(40) as u64),
                };
                while let Some(client) = model.expire(now) {
                    assert_eq!(balancer.expire(now), Some(client), "{context}");
                }
                assert_eq!(balancer.expire(now), None, "{context}");
                let is_due = |(_, deadline): &(ClientKey, Instant)| *deadline <= now;
                assert!(!model.waiting().iter().any(is_due), "{context}: nobody waits beyond its deadline");
            }
        }
        while let Some(worker) = opened {
            let client = balancer.dispatch_more(worker, now);
            assert_eq!(client, model.dispatch_more(worker, now), "{context}");
            opened = opened.filter(|_| client.is_some());
        }
        assert!(
            balancer.waiting() == 0 || !balancer.has_free_place(),
            "{context}: a waiting request and a free place never exist together"
        );
        assert_eq!(balancer.free.in_order().collect::<Vec<_>>(), model.free(), "{context}: the order");
        assert_eq!((balancer.idle(), balancer.busy(), balancer.waiting()), model.counts(), "{context}");
        let in_use = model.workers.iter().filter(|worker| worker.at_work > 0 && !worker.is_withdrawn);
        assert_eq!(balancer.in_use(), in_use.count(), "{context}: who is withdrawn is no measure");
        assert_eq!(balancer.places_at_work, model.places_at_work(), "{context}");
        for worker in &model.workers {
            assert!(worker.at_work <= worker.capacity.places, "{context}: more than it takes at once");
            assert_eq!(balancer.streams_of(worker.key), worker.streams, "{context}");
        }
        assert_eq!(balancer.next_deadline(), model.next_deadline(), "{context}");
        assert_eq!(balancer.serving(), model.order.serving(), "{context}");
    }
    balancer.order_changes()
}

#[test]
fn every_history_is_that_of_the_obvious_balancer() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("RIP_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RIP_SIMULATIONS").unwrap_or(10_000),
    };
    let count = seeds.clone().count();
    let changes: u64 = seeds.map(play).sum();
    assert!(changes > 0 || count < 10_000, "no history has an overload that lasts");
}
