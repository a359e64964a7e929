//! Short histories of rolls, their trials, and replacements that fail.

use super::scenarios::{count_told, roll_beside_streams, serving, serving_as};
use super::*;

const LONG_DRAIN: Duration = Duration::from_secs(5);
const PLAN: CanaryPlan = CanaryPlan { length: TrialLength::Requests(60), max_errors_percent: 5 };

impl World {
    fn reload(&mut self, canary: Option<CanaryPlan>) {
        (self.rolls_asked, self.asks_for_trial) = (true, canary.is_some());
        self.fleet.reload(canary, self.now);
        self.obey();
    }

    /// All successors join, one after the other.
    fn roll_to_its_end(&mut self) {
        for _ in 0..20 {
            if self.fleet.is_rolling() {
                self.roll_on();
            }
        }
    }

    /// Who boots joins, and where nobody does, one that drains ends. A worker of the new release that has joined.
    fn roll_on(&mut self) -> Option<usize> {
        let before = self.progress.0;
        if let Some(key) = self.booting() {
            self.join_as(key, true);
            self.obey();
            return (self.progress.0 > before).then_some(key);
        }
        let old = self.pick(|life| life == Life::Withdrawn).expect("somebody is waited for");
        self.exit(old);
        self.obey();
        None
    }

    /// It ends, and had served.
    fn ends(&mut self, key: usize) {
        self.alive.get_mut(&key).expect("it joined").has_served = true;
        self.exit(key);
        self.obey();
    }

    /// So many answers of each that gets requests; those of the one on trial fail or not.
    fn answers(&mut self, count: u64, fails: bool) {
        let admitted = self.alive.iter().filter(|(_, process)| process.life == Life::Admitted);
        for key in admitted.map(|(key, _)| *key).collect::<Vec<_>>() {
            for target in 0..count {
                let is_failed = fails && self.on_trial == Some(key);
                let outcome = if is_failed { TrialOutcome::Failed } else { TrialOutcome::Fine };
                self.fleet.note_outcome(WorkerKey(key), target, outcome, self.now);
            }
        }
        self.obey();
    }
}

/// A reload's first successor on trial, and its predecessor.
fn on_trial(workers: usize, drains: bool, plan: CanaryPlan) -> (World, usize, usize) {
    let mut world = serving_as(workers, drains);
    world.plan.drain_timeout = LONG_DRAIN;
    world.fleet.plan.drain_timeout = LONG_DRAIN;
    let before: Vec<usize> = world.alive.keys().copied().collect();
    for &key in &before {
        world.fleet.note_streams(WorkerKey(key), true, world.now);
    }
    world.reload(Some(plan));
    let canary = world.booting().expect("a successor");
    world.fleet.joined(WorkerKey(canary), drains, world.now);
    world.alive.get_mut(&canary).expect("it joins").drains = drains;
    let admit = Action::AdmitOnTrial { worker: WorkerKey(canary), every: workers.max(2) };
    assert!(world.fleet.actions.contains(&admit), "its share of the requests: {:?}", world.fleet.actions);
    world.obey();
    world.fleet.note_streams(WorkerKey(canary), true, world.now);
    let is_reserve = |key: &usize| matches!(world.phase(*key), Phase::Reserve { .. });
    let old = before.into_iter().find(is_reserve).expect("one in reserve");
    assert_eq!((world.on_trial, world.fleet.is_judging(), world.booting()), (Some(canary), true, None));
    (world, old, canary)
}

#[test]
fn a_first_worker_on_trial_has_its_share_and_its_predecessor_waits_in_reserve() {
    for workers in 1..4 {
        let (world, old, _) = on_trial(workers, true, PLAN);
        let expected = if workers == 1 { Life::Admitted } else { Life::Reserve };
        assert_eq!(world.alive[&old].life, expected, "alone it is the only one of the old release");
        assert_eq!(world.fleet.serving(), workers);
    }
}

#[test]
fn a_good_trial_goes_on_as_a_roll_and_a_bad_one_brings_the_old_worker_back() {
    let (mut world, old, canary) = on_trial(2, true, PLAN);
    world.answers(60, false);
    assert_eq!((world.alive[&old].life, world.on_trial), (Life::Withdrawn, None));
    assert_eq!(world.progress, (1, 2));
    world.successor_joins();
    assert_eq!((world.has_next_release, world.progress), (false, (2, 2)), "adopted");
    assert!(matches!(world.phase(canary), Phase::Serving { .. }));

    for workers in [1, 2] {
        let (mut world, old, canary) = on_trial(workers, true, PLAN);
        world.answers(60, true);
        assert_eq!((world.alive[&old].life, world.on_trial), (Life::Admitted, None));
        assert!(matches!(world.phase(old), Phase::Serving { .. }));
        assert_eq!(world.phase(canary), Phase::Terminating { kill_at: world.now + LONG_DRAIN });
        let Some(RollEnd::NotTaken { worker, failure: TrialFailure::Errors { own, .. }, .. }) =
            world.roll_end
        else {
            panic!("{:?}", world.roll_end);
        };
        assert_eq!((worker, own.answers, own.failed), (WorkerKey(canary), 50, 50));
        assert_eq!((world.fleet.serving(), world.booting()), (workers, None));
    }
}

#[test]
fn a_trial_of_a_time_ends_by_the_clock() {
    let time = Duration::from_secs(3);
    let plan = CanaryPlan { length: TrialLength::Time(time), max_errors_percent: 5 };
    let (mut world, old, _) = on_trial(2, true, plan);
    world.answers(60, false);
    assert_eq!((world.fleet.next_deadline(), world.fleet.is_judging()), (Some(world.now + time), true));
    world.pass(time);
    assert_eq!((world.alive[&old].life, world.fleet.is_judging()), (Life::Withdrawn, false));
}

#[test]
fn a_worker_on_trial_that_ends_leaves_or_hangs_is_not_taken() {
    for drains in [true, false] {
        let is_back = |world: &World, old: usize, failure: TrialFailure| {
            let end = world.roll_end.expect("it has ended");
            assert!(matches!(end, RollEnd::NotTaken { failure: why, .. } if why == failure), "{end:?}");
            assert_eq!((world.alive[&old].life, world.fleet.serving()), (Life::Admitted, 2));
        };
        let leaves = |world: &World| match drains {
            true => Phase::Terminating { kill_at: world.now + LONG_DRAIN },
            false => Phase::Leaving { until: world.now + LONG_DRAIN },
        };
        let (mut world, old, canary) = on_trial(2, drains, PLAN);
        world.exit(canary);
        world.obey();
        is_back(&world, old, TrialFailure::Ended);
        assert_eq!(world.alive.len(), 2);

        let (mut world, old, canary) = on_trial(2, drains, PLAN);
        world.fleet.quit(WorkerKey(canary), Ending::Served, world.now);
        world.obey();
        is_back(&world, old, TrialFailure::Left);
        assert_eq!(world.phase(canary), leaves(&world));

        for has_others in [true, false] {
            let (mut world, old, canary) = on_trial(2, drains, PLAN);
            world.alive.get_mut(&canary).expect("it is there").may_be_told = true;
            world.fleet.stuck(WorkerKey(canary), has_others, world.now);
            world.obey();
            is_back(&world, old, TrialFailure::Stuck);
            let killed = Phase::Terminating { kill_at: world.now + KILL_AFTER };
            assert_eq!(world.phase(canary), if has_others { leaves(&world) } else { killed });
        }
    }
}

/// A reload whose first successor boots, and the worker that it is to follow.
fn before_trial(workers: usize) -> (World, usize, usize) {
    let mut world = serving(workers);
    world.reload(Some(PLAN));
    let canary = world.booting().expect("a successor");
    let slot = world.alive[&canary].slot;
    let of_slot = |key: &usize| *key != canary && world.alive[key].slot == slot;
    let old = world.alive.keys().copied().find(of_slot).expect("it serves");
    (world, old, canary)
}

#[test]
fn a_first_worker_whose_predecessor_has_died_is_on_trial_without_a_reserve() {
    for is_worse in [true, false] {
        let (mut world, old, canary) = before_trial(3);
        world.ends(old);
        world.successor_joins();
        assert_eq!((world.on_trial, world.fleet.serving(), world.booting()), (Some(canary), 3, None));
        world.answers(60, is_worse);
        assert_eq!(world.on_trial, None);
        let back = world.booting().expect("a slot goes on");
        if is_worse {
            assert!(matches!(world.roll_end, Some(RollEnd::NotTaken { .. })), "{:?}", world.roll_end);
            assert!(!world.alive[&back].is_new && world.alive[&canary].life == Life::Withdrawn);
        } else {
            assert!(world.alive[&back].is_new && world.alive[&canary].life == Life::Admitted);
            assert_eq!(world.progress, (1, 3));
        }
    }
}

#[test]
fn a_first_worker_without_a_reserve_that_ends_leaves_or_hangs_is_followed_by_the_old_release() {
    for how in 0..3 {
        let (mut world, old, canary) = before_trial(2);
        world.ends(old);
        world.successor_joins();
        world.alive.get_mut(&canary).expect("it is there").may_be_told = true;
        match how {
            0 => world.exit(canary),
            1 => world.fleet.quit(WorkerKey(canary), Ending::Served, world.now),
            _ => world.fleet.stuck(WorkerKey(canary), false, world.now),
        }
        world.obey();
        assert!(matches!(world.roll_end, Some(RollEnd::NotTaken { .. })), "{:?}", world.roll_end);
        let next = world.booting().expect("the slot is started anew");
        assert!(!world.alive[&next].is_new);
    }
}

#[test]
fn a_first_worker_whose_predecessor_hangs_is_on_trial_and_that_one_goes() {
    let (mut world, old, canary) = before_trial(2);
    world.alive.get_mut(&old).expect("it is there").may_be_told = true;
    world.fleet.stuck(WorkerKey(old), false, world.now);
    world.obey();
    world.successor_joins();
    assert_eq!(world.on_trial, Some(canary));
    assert!(matches!(world.phase(old), Phase::Terminating { .. }));
}

#[test]
fn a_trial_is_held_where_a_worker_serves_and_an_empty_slot_is_left_to_the_old_release() {
    for empty in 0..2 {
        let mut world = serving(2);
        let key = world.alive.keys().copied().nth(empty).expect("two");
        world.alive.get_mut(&key).expect("it serves").has_served = false;
        world.exit(key);
        world.obey();
        world.reload(Some(PLAN));
        let canary = world.booting().expect("a successor");
        assert_eq!((world.alive[&canary].slot, world.alive[&canary].is_new), (1 - empty, true));
        world.pass(Duration::from_millis(100));
        let again = world.alive.iter().find(|(_, process)| process.slot == empty).expect("the empty one");
        assert!(!again.1.is_new, "as after any crash");
        world.join_as(canary, true);
        world.obey();
        assert_eq!(world.on_trial, Some(canary));
    }
}

#[test]
fn a_first_worker_that_joins_alone_serves_until_the_old_release_is_back() {
    let (mut world, old, canary) = before_trial(1);
    world.ends(old);
    world.successor_joins();
    assert_eq!((world.alive[&canary].life, world.on_trial), (Life::Admitted, None));
    let end = RollEnd::NotTaken { slot: 0, worker: WorkerKey(canary), failure: TrialFailure::Alone };
    assert_eq!((world.roll_end, world.has_next_release), (Some(end), false));
    let back = world.booting().expect("the old release");
    assert!(!world.alive[&back].is_new);
    world.successor_joins();
    assert_eq!((world.alive[&back].life, world.alive[&canary].life), (Life::Admitted, Life::Withdrawn));
}

#[test]
fn a_new_release_has_no_trial_where_the_old_one_does_not_serve_at_all() {
    let mut world = serving(2);
    for key in world.alive.keys().copied().collect::<Vec<_>>() {
        world.alive.get_mut(&key).expect("it serves").has_served = false;
        world.exit(key);
        world.obey();
    }
    world.reload(Some(PLAN));
    world.roll_to_its_end();
    assert_eq!((world.trials, world.roll_end), (0, Some(RollEnd::Done { replaced: 2 })));
}

#[test]
fn who_is_in_reserve_and_hangs_does_not_come_back() {
    for (drains, has_others) in [(true, true), (true, false), (false, true), (false, false)] {
        let (mut world, old, _) = on_trial(2, drains, PLAN);
        world.alive.get_mut(&old).expect("it is there").may_be_told = true;
        world.fleet.stuck(WorkerKey(old), has_others, world.now);
        world.obey();
        let expected = match (drains, has_others) {
            (_, false) => Phase::Terminating { kill_at: world.now + KILL_AFTER },
            (true, true) => Phase::Terminating { kill_at: world.now + LONG_DRAIN },
            (false, true) => Phase::Leaving { until: world.now + LONG_DRAIN },
        };
        assert_eq!(world.phase(old), expected);
        // The trial goes on; where the new one fails as well, the slot is started anew with the old release.
        world.answers(60, true);
        assert!(world.booting().is_some() && !world.fleet.is_rolling());
    }
}

#[test]
fn who_is_on_trial_is_replaced_for_nothing_else_and_nobody_beside_it() {
    let (mut world, _, canary) = on_trial(2, true, PLAN);
    let all: Vec<usize> = world.alive.keys().copied().collect();
    for key in all {
        world.fleet.retire(WorkerKey(key), RetireReason::Memory, world.now);
        world.obey();
    }
    assert_eq!(world.booting(), None);
    world.answers(60, true);
    // What was wanted meanwhile is done now: of the other old one.
    assert!(world.booting().is_some());
    assert!(matches!(world.phase(canary), Phase::Terminating { .. }));
}

#[test]
fn a_server_that_drains_judges_nobody() {
    let (mut world, old, canary) = on_trial(2, true, PLAN);
    world.fleet.drain(world.now);
    world.obey();
    assert_eq!((world.fleet.is_judging(), world.roll_end), (false, Some(RollEnd::Stopping)));
    assert!(matches!(world.phase(canary), Phase::Serving { .. }));
    assert!(matches!(world.phase(old), Phase::Terminating { .. }));
    world.reload(None);
    assert_eq!((world.booting(), world.roll_end), (None, Some(RollEnd::Stopping)), "nor begins to roll");
}

#[test]
fn a_reload_during_a_roll_starts_over_with_the_newest_code_and_is_adopted_once() {
    let mut world = serving(2);
    world.reload(None);
    world.roll_on();
    world.reload(None);
    world.roll_on();
    assert!(world.has_next_release && world.fleet.is_rolling(), "that was not the newest");
    world.roll_to_its_end();
    assert!(!world.has_next_release);
    assert_eq!((world.roll_end, world.progress), (Some(RollEnd::Done { replaced: 2 }), (2, 2)));
}

#[test]
fn a_reload_during_one_that_fails_is_tried_all_the_same() {
    let mut world = serving(2);
    world.reload(None);
    let broken = world.booting().expect("a successor");
    world.reload(None);
    world.exit(broken);
    world.obey();
    assert_eq!((world.roll_end, world.fleet.is_rolling()), (None, true), "that was not the newest");
    world.roll_to_its_end();
    assert_eq!(world.roll_end, Some(RollEnd::Done { replaced: 2 }));
}

#[test]
fn a_reload_goes_on_when_an_earlier_successor_does_not_join() {
    let mut world = serving(1);
    let old = world.pick(|_| true).expect("one");
    world.fleet.retire(WorkerKey(old), RetireReason::Memory, world.now);
    world.obey();
    let successor = world.booting().expect("a successor");
    world.reload(None);
    world.exit(old);
    world.exit(successor);
    world.obey();
    assert!(world.roll_end.is_none() && world.booting().is_some(), "{:?}", world.roll_end);
    world.roll_on();
    assert_eq!(world.roll_end, Some(RollEnd::Done { replaced: 1 }));
}

#[test]
fn a_reload_during_a_trial_that_fails_is_tried_all_the_same() {
    let (mut world, _, canary) = on_trial(2, true, PLAN);
    world.reload(None);
    world.exit(canary);
    world.obey();
    assert_eq!((world.roll_end, world.fleet.is_judging()), (None, false), "that was not the newest");
    world.roll_to_its_end();
    assert_eq!(world.roll_end, Some(RollEnd::Done { replaced: 2 }));
}

#[test]
fn newer_code_is_hope_where_all_starts_have_failed() {
    let mut world = serving(1);
    world.begin_anew(world.plan);
    let first = world.booting().expect("the first start");
    world.exit(first);
    world.obey();
    world.reload(None);
    let second = world.booting().expect("its turn comes whatever its wait");
    world.reload(None);
    // As if it had been tried beside a template that loads.
    for _ in 0..2 {
        world.fleet.slots[0].backoff.fail();
    }
    world.exit(second);
    world.obey();
    assert!(!world.has_given_up);
    assert!(world.booting().is_some(), "the newer code is tried");
}

#[test]
fn a_roll_lasts_until_all_it_has_replaced_are_gone() {
    let mut world = serving(2);
    world.reload(None);
    world.successor_joins();
    assert_eq!(world.progress, (1, 2));
    world.successor_joins();
    assert_eq!((world.progress, world.has_next_release), ((2, 2), false));
    let leaving = [(); 2].map(|()| {
        assert!(world.fleet.is_rolling());
        let old = world.pick(|life| life == Life::Withdrawn).expect("an old one");
        world.exit(old);
        world.obey();
        old
    });
    assert_ne!(leaving[0], leaving[1]);
    assert_eq!(world.roll_end, Some(RollEnd::Done { replaced: 2 }));
}

#[test]
fn a_new_worker_that_ends_after_it_has_served_stops_no_roll() {
    let mut world = serving(2);
    world.reload(None);
    let successor = world.roll_on().expect("the first one");
    world.ends(successor);
    assert!(world.fleet.is_rolling());
    for _ in 0..20 {
        if world.has_next_release {
            world.roll_on();
        }
    }
    assert_eq!(world.progress, (3, 3), "its slot had the old release back, and its turn once more");
}

#[test]
fn new_workers_that_end_again_and_again_make_a_roll_unstable() {
    let mut world = serving(2);
    world.reload(None);
    let mut ended = 0;
    for _ in 0..100 {
        if world.fleet.is_rolling()
            && let Some(successor) = world.roll_on()
        {
            world.ends(successor);
            ended += 1;
        }
    }
    assert!(matches!(world.roll_end, Some(RollEnd::Unstable { .. })), "{:?}", world.roll_end);
    assert_eq!(ended, 5, "three turns a slot: two at first, and one more for each that has ended");
}

#[test]
fn streams_that_waited_for_their_roll_are_told_at_once_when_the_server_drains() {
    let (mut world, old) = roll_beside_streams(2);
    assert_eq!(count_told(&world, &old), 0);
    world.fleet.drain(world.now);
    world.obey();
    assert_eq!(count_told(&world, &old), 2);
}

#[test]
fn a_cycles_successor_that_fails_is_told_and_tried_again_after_a_while() {
    let mut world = serving(2);
    let old = world.pick(|_| true).expect("one");
    world.fleet.retire(WorkerKey(old), RetireReason::Memory, world.now);
    world.obey();
    for wait in [100, 200, 400].map(Duration::from_millis) {
        let successor = world.booting().expect("a successor");
        world.alive.remove(&successor);
        world.fleet.exited(WorkerKey(successor), false, world.now);
        let told = |action: &Action| matches!(action, Action::Wait { wait: told, .. } if *told == wait);
        assert!(world.fleet.actions.iter().any(told), "{wait:?}: {:?}", world.fleet.actions);
        world.obey();
        assert_eq!((world.booting(), world.fleet.serving()), (None, 2), "the old one goes on");
        assert_eq!(world.fleet.next_deadline(), Some(world.now + wait));
        world.pass(wait);
    }
    world.successor_joins();
    assert_eq!(world.alive[&old].life, Life::Withdrawn);
}

#[test]
fn a_reloads_successor_that_fails_waits_for_nothing() {
    let mut world = serving(2);
    world.reload(None);
    let successor = world.booting().expect("a successor");
    world.alive.remove(&successor);
    world.fleet.exited(WorkerKey(successor), false, world.now);
    let waits = |action: &Action| matches!(action, Action::Wait { .. });
    assert!(!world.fleet.actions.iter().any(waits), "{:?}", world.fleet.actions);
    world.obey();
    let end = RollEnd::Failed { slot: 0, worker: Some(WorkerKey(successor)) };
    assert_eq!((world.roll_end, world.fleet.next_deadline()), (Some(end), None));
    // And the next reload is one like the first.
    world.reload(None);
    world.successor_joins();
    assert_eq!(world.progress, (1, 2));
}

#[test]
fn a_replacement_is_told_once_when_the_successor_has_the_place() {
    let mut world = serving(1);
    let old = world.pick(|_| true).expect("one");
    world.fleet.retire(WorkerKey(old), RetireReason::Memory, world.now);
    world.obey();
    for _ in 0..3 {
        let successor = world.booting().expect("a successor");
        world.exit(successor);
        world.obey();
        world.now = world.fleet.next_deadline().expect("it is tried again");
        world.fleet.tick(world.now);
        world.obey();
    }
    assert_eq!(world.replaced, []);
    world.successor_joins();
    assert_eq!(world.replaced, [RetireReason::Memory]);

    // A trial's predecessor has its place until the verdict.
    for (fails, told) in [(true, vec![]), (false, vec![RetireReason::Reload])] {
        let (mut world, ..) = on_trial(1, true, PLAN);
        assert_eq!(world.replaced, []);
        world.answers(60, fails);
        assert_eq!(world.replaced, told);
    }
}
