//! Seeded histories of the balancer against a model that is obviously right: two vectors, searched from end to end.
//!
//! `RIP_SIMULATIONS=100000 cargo test balancer` plays more; a failure prints its seed, and `RIP_SEED=<seed>` plays
//! that history alone.

use super::order::Order;
use super::*;

const MAX_QUEUE: usize = 4;
const TIMEOUT: Duration = Duration::from_millis(300);

/// The obvious balancer.
#[derive(Debug)]
pub(crate) struct Model {
    /// The top of the stack is the last.
    pub idle: Vec<WorkerKey>,
    pub busy: Vec<WorkerKey>,
    pub withdrawn: Vec<WorkerKey>,
    /// By deadline.
    arrivals: Vec<(ClientKey, Instant)>,
    second_tries: Vec<(ClientKey, Instant)>,
    order: Order,
    max_queue: usize,
    /// Who is on trial, gets one request in how many, and how many others have had since.
    trial: Option<(WorkerKey, usize, usize)>,
}

impl Model {
    pub(crate) fn new(max_queue: usize, rule: QueueRule) -> Self {
        Model {
            idle: Vec::new(),
            busy: Vec::new(),
            withdrawn: Vec::new(),
            arrivals: Vec::new(),
            second_tries: Vec::new(),
            order: Order::new(rule),
            max_queue,
            trial: None,
        }
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

    /// The last of the stack, or the one on trial if it is there and its turn has come.
    fn pop_idle(&mut self) -> Option<WorkerKey> {
        let due = self.trial.filter(|(_, every, since)| since + 1 >= *every).map(|(worker, _, _)| worker);
        let at = due.and_then(|due| self.idle.iter().position(|worker| *worker == due));
        let worker = match at {
            Some(at) => self.idle.remove(at),
            None => self.idle.pop()?,
        };
        self.note_turn(worker);
        Some(worker)
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

    pub(crate) fn submit(&mut self, client: ClientKey, deadline: Instant, is_second_try: bool) -> Decision {
        if let Some(worker) = self.pop_idle() {
            self.busy.push(worker);
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
        worker: WorkerKey,
        predecessor: Option<WorkerKey>,
        now: Instant,
    ) -> NextStep {
        if let Some(client) = self.next(now) {
            self.busy.push(worker);
            self.note_turn(worker);
            return NextStep::Dispatch { client };
        }
        let idle_at = predecessor.and_then(|old| self.idle.iter().position(|other| *other == old));
        let is_busy = predecessor.is_some_and(|old| self.busy.contains(&old));
        let at = idle_at.unwrap_or(if is_busy { self.idle.len() } else { 0 });
        self.idle.insert(at, worker);
        NextStep::Idle
    }

    pub(crate) fn release(&mut self, worker: WorkerKey, now: Instant) -> NextStep {
        if self.withdrawn.contains(&worker) {
            self.remove(worker);
            return NextStep::Retired;
        }
        if let Some(client) = self.next(now) {
            self.note_turn(worker);
            return NextStep::Dispatch { client };
        }
        self.busy.retain(|other| *other != worker);
        let at = if self.is_on_trial(worker) { 0 } else { self.idle.len() };
        self.idle.insert(at, worker);
        NextStep::Idle
    }

    /// `true`: it was idle, and is out.
    pub(crate) fn withdraw(&mut self, worker: WorkerKey) -> bool {
        if self.busy.contains(&worker) {
            self.take_out(worker);
            self.withdrawn.push(worker);
            return false;
        }
        let is_at_work = self.withdrawn.contains(&worker);
        if !is_at_work {
            self.remove(worker);
        }
        !is_at_work
    }

    pub(crate) fn readmit(&mut self, worker: WorkerKey, now: Instant) -> NextStep {
        if let Some(at) = self.withdrawn.iter().position(|other| *other == worker) {
            self.busy.push(self.withdrawn.remove(at));
        }
        if self.everybody().contains(&worker) {
            return NextStep::Idle;
        }
        self.join(worker, None, now)
    }

    pub(crate) fn remove(&mut self, worker: WorkerKey) {
        if self.is_on_trial(worker) {
            self.trial = None;
        }
        self.take_out(worker);
    }

    fn take_out(&mut self, worker: WorkerKey) {
        for list in [&mut self.idle, &mut self.busy, &mut self.withdrawn] {
            list.retain(|other| *other != worker);
        }
    }

    fn everybody(&self) -> Vec<WorkerKey> {
        [&self.idle[..], &self.busy, &self.withdrawn].concat()
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
    let (mut now, mut clients) = (Instant::now(), 0);
    // In some more come than can be served, and clients leave, for so long that the order turns.
    let is_overload = next(16) == 0;
    let steps = if is_overload { 900 } else { 150 };
    for step in 0..steps {
        let context = format!("seed {seed}, step {step}");
        let at_work = [&model.busy[..], &model.withdrawn].concat();
        let action = if is_overload { [0, 0, 0, 4, 5, 7, 9, 12, 12][next(9)] } else { next(13) };
        match action {
            0..=3 => {
                let client = ClientKey(clients);
                clients += 1;
                // Some wait for something that takes longer.
                let deadline = now + TIMEOUT * (1 + u32::from(next(6) == 0));
                let expected = model.submit(client, deadline, false);
                assert_eq!(balancer.submit(client, deadline), expected, "{context}");
            }
            4..=6 if !at_work.is_empty() => {
                let worker = at_work[next(at_work.len())];
                assert_eq!(balancer.release(worker, now), model.release(worker, now), "{context}");
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
            7 if model.everybody().len() < 6 => {
                let worker =
                    (0..).map(WorkerKey).find(|key| !model.everybody().contains(key)).expect("a free key");
                // Of somebody there, of somebody gone, of nobody.
                let predecessor = (next(3) > 0).then(|| WorkerKey(next(8))).filter(|old| *old != worker);
                let expected = model.join(worker, predecessor, now);
                assert_eq!(balancer.join(worker, predecessor, now), expected, "{context}");
            }
            8 => {
                let everybody = model.everybody();
                if !everybody.is_empty() {
                    let worker = everybody[next(everybody.len())];
                    if next(2) == 0 {
                        model.remove(worker);
                        balancer.remove(worker);
                    } else {
                        assert_eq!(balancer.withdraw(worker), model.withdraw(worker), "{context}");
                    }
                }
            }
            11 => {
                let everybody = model.everybody();
                let fresh = (0..).map(WorkerKey).find(|key| !everybody.contains(key)).expect("a free key");
                // One that was idle when it was withdrawn, or one of those that are there.
                let worker = if next(2) == 0 { fresh } else { everybody.first().copied().unwrap_or(fresh) };
                assert_eq!(balancer.readmit(worker, now), model.readmit(worker, now), "{context}");
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
                let expected = model.submit(client, deadline, true);
                assert_eq!(balancer.resubmit(client, deadline), expected, "{context}");
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
        assert!(
            balancer.waiting() == 0 || balancer.idle() == 0,
            "{context}: waiting and idle never exist together"
        );
        let counts = (model.idle.len(), model.busy.len() + model.withdrawn.len(), model.waiting().len());
        assert_eq!((balancer.idle(), balancer.busy(), balancer.waiting()), counts, "{context}");
        assert_eq!(balancer.in_use(), model.busy.len(), "{context}: who is withdrawn is no measure");
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
