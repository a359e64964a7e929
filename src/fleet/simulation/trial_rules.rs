//! Short histories of trials: a release whose first worker is judged beside the old ones.

use super::roll_rules::LONG_DRAIN;
use super::scenarios::{serving, serving_as};
use super::*;

pub(super) const PLAN: CanaryPlan = CanaryPlan { length: TrialLength::Requests(60), max_errors_percent: 5 };

/// A reload's first successor on trial, and its predecessor.
pub(super) fn on_trial(workers: usize, drains: bool, plan: CanaryPlan) -> (World, usize, usize) {
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
