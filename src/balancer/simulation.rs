//! Seeded histories of the balancer against a model that is obviously right: vectors, searched from end to end.
//!
//! `RIP_SIMULATIONS=100000 cargo test balancer` plays more; a failure prints its seed, and `RIP_SEED=<seed>` plays
//! that history alone.

mod checks;
mod model;

pub(crate) use model::Model;

use super::*;
use checks::Depth;

const MAX_QUEUE: usize = 4;
const TIMEOUT: Duration = Duration::from_millis(300);

/// What one of a worker's requests was assigned with: `is_stream` says which, where it has both.
fn assigned_with(model: &Model, worker: WorkerKey, is_stream: bool) -> Wish {
    let entry = model.worker(worker).expect("it is there");
    let is_stream = entry.asking > 0 && (is_stream || entry.asking == entry.at_work);
    if is_stream { Wish::Stream } else { Wish::Answer }
}

/// Where in which history something is; written out only where an assertion fails.
#[derive(Clone, Copy)]
struct Step {
    seed: u64,
    step: usize,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {}, step {}", self.seed, self.step)
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
    let (mut now, mut clients, mut depth) = (Instant::now(), 0, Depth::default());
    // In some more come than can be served, and clients leave, for so long that the order turns.
    let is_overload = next(16) == 0;
    let steps = if is_overload { 900 } else { 150 };
    for step in 0..steps {
        let context = Step { seed, step };
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
                let expected = model.submit(client, wish, deadline, false, now);
                assert_eq!(balancer.submit(client, wish, deadline, now), expected, "{context}");
            }
            4..=6 if !at_work.is_empty() => {
                let worker = at_work[next(at_work.len())];
                let wish = assigned_with(&model, worker, next(2) == 0);
                assert_eq!(
                    balancer.release(worker, wish, now),
                    model.release(worker, wish, now),
                    "{context}"
                );
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
                let expected = model.submit(client, Wish::Answer, deadline, true, now);
                assert_eq!(balancer.resubmit(client, deadline, now), expected, "{context}");
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
                let wish = assigned_with(&model, worker, next(4) > 0);
                let expected = model.begin_stream(worker, wish, now);
                assert_eq!(balancer.begin_stream(worker, wish, now), expected, "{context}");
                opened = Some(worker);
            }
            14 => {
                let holds_one = model.workers.iter().find(|worker| worker.streams > 0);
                if let Some(worker) = holds_one.map(|worker| worker.key) {
                    assert_eq!(balancer.end_stream(worker, now), model.end_stream(worker, now), "{context}");
                    opened = Some(worker);
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
                let deadlines = [balancer.next_deadline(), balancer.stream_deadline(now)];
                now = match deadlines.into_iter().flatten().min() {
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
            let step = balancer.dispatch_more(worker, now);
            assert_eq!(step, model.dispatch_more(worker, now), "{context}");
            opened = opened.filter(|_| step != NextStep::Idle);
        }
        while let Some(next) = model.next_stream(now) {
            assert_eq!(balancer.next_stream(now), Some(next), "{context}");
        }
        assert_eq!(balancer.next_stream(now), None, "{context}");
        while let Some(client) = model.refuse_stream(now) {
            assert_eq!(balancer.refuse_stream(now), Some(client), "{context}");
        }
        assert_eq!(balancer.refuse_stream(now), None, "{context}");
        assert!(
            model.fitting(now).is_empty(),
            "{context}: a waiting request and a free place for it never exist together"
        );
        checks::check(&balancer, &model, ClientKey(clients.saturating_sub(1)), now, context);
        depth.check(&mut balancer, &model, context);
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
