//! More short histories, each of which shows one rule: who leaves and until when, stuck workers, the fleet's size.

use super::scenarios::{serving, serving_as};
use super::*;
use crate::fleet::slot::WorkerState;

/// Beside the second between SIGTERM and SIGKILL.
const LONG_DRAIN: Duration = Duration::from_secs(5);

impl World {
    pub(super) fn phase(&self, key: usize) -> Phase {
        self.fleet.find(WorkerKey(key)).expect("it is there").1.phase()
    }

    pub(super) fn booting(&mut self) -> Option<usize> {
        self.pick(|life| life == Life::Booting)
    }

    /// The successor that boots joins.
    pub(super) fn successor_joins(&mut self) -> usize {
        let successor = self.booting().expect("a successor boots");
        self.join_as(successor, true);
        self.obey();
        successor
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.fleet.tick(self.now);
        self.obey();
    }

    fn stuck(&mut self, key: usize, has_others: bool) {
        self.alive.get_mut(&key).expect("it is there").may_be_told = true;
        self.fleet.stuck(WorkerKey(key), has_others, self.now);
        self.obey();
    }

    fn set_drain_timeout(&mut self, time: Duration) {
        self.plan.drain_timeout = time;
        self.fleet.plan.drain_timeout = time;
    }
}

/// One that has requests in hand as long as the test wants, and its successor, which has joined.
fn leaving_beside_successor(drains: bool) -> (World, usize, usize) {
    let mut world = serving_as(1, drains);
    world.set_drain_timeout(LONG_DRAIN);
    let old = world.pick(|_| true).expect("one");
    world.fleet.note_streams(WorkerKey(old), true, world.now);
    world.fleet.retire(WorkerKey(old), RetireReason::Memory, world.now);
    world.obey();
    let successor = world.successor_joins();
    (world, old, successor)
}

#[test]
fn a_fleet_that_follows_another_begins_behind_its_generation_and_within_its_own_bounds() {
    let world = serving(1);
    for (asked, workers) in [(0, 2), (3, 3), (9, 4)] {
        let plan = Plan { min_workers: 2, max_workers: 4, ..world.plan };
        let beginning = Beginning { workers: asked, generation: 41 };
        let mut fleet = Fleet::following(plan, beginning, world.now);
        assert_eq!((fleet.size(), fleet.generation()), (workers, 42));
        let starts = std::iter::from_fn(|| fleet.next_action());
        let versions: Vec<u64> = starts
            .filter_map(|action| match action {
                Action::Spawn { version, .. } => Some(version),
                _ => None,
            })
            .collect();
        assert_eq!(versions, vec![42; workers]);
    }
    let plan = Plan { min_workers: 0, max_workers: 0, forks: true, ..world.plan };
    let mut none = Fleet::following(plan, Beginning { workers: 0, generation: 41 }, world.now);
    assert_eq!((none.size(), none.generation(), none.next_action()), (0, 41, None), "nor a template");
}

#[test]
fn limits_are_drawn_by_xorshift_as_it_was_published_and_differ_whatever_the_seed() {
    let mut world = serving(1);
    // Marsaglia's example of 2003, with its seed: 8748534153485358512, 3040900993826735515, 3453997556048239312.
    world.fleet.random = 88_172_645_463_325_252;
    world.fleet.plan.max_requests = u64::MAX;
    let limits: Vec<u64> = (0..3).filter_map(|_| world.fleet.draw_request_limit()).collect();
    let expected = [17_076_907_549_708_013_751, 17_250_517_487_253_771_262, 16_837_420_925_032_267_465];
    assert_eq!(limits, expected, "u64::MAX less what is left of each modulo a tenth");
    for seed in 0..4 {
        let mut fleet = Fleet::new(Plan { seed, ..world.plan }, world.now);
        let limits: BTreeSet<u64> = (0..200).filter_map(|_| fleet.draw_request_limit()).collect();
        assert_eq!(limits, BTreeSet::from([18, 19, 20]), "seed {seed}");
    }
    let mut unlimited = Fleet::new(Plan { max_requests: 0, ..world.plan }, world.now);
    assert_eq!(unlimited.draw_request_limit(), None);
}

#[test]
fn who_leaves_already_is_not_replaced_again_and_takes_nobody_along() {
    let (mut world, old, successor) = leaving_beside_successor(false);
    world.fleet.retire(WorkerKey(old), RetireReason::Memory, world.now);
    world.obey();
    world.fleet.quit(WorkerKey(old), Ending::Served, world.now);
    world.obey();
    assert_eq!(world.booting(), None);
    assert!(matches!(world.phase(successor), Phase::Serving { .. }));
    world.exit(old);
    world.obey();
    assert_eq!((world.fleet.serving(), world.alive.len()), (1, 1));
}

#[test]
fn who_has_nothing_left_to_do_has_its_drain_to_end_and_a_second_at_least() {
    for (drain, left) in [(LONG_DRAIN, LONG_DRAIN), (KILL_AFTER / 2, KILL_AFTER)] {
        let mut world = serving_as(1, false);
        world.set_drain_timeout(drain);
        let old = world.pick(|_| true).expect("one");
        world.fleet.note_streams(WorkerKey(old), true, world.now);
        world.fleet.retire(WorkerKey(old), RetireReason::Memory, world.now);
        world.obey();
        world.successor_joins();
        assert_eq!(world.phase(old), Phase::Leaving { until: world.now + drain });
        world.alive.get_mut(&old).expect("it leaves").may_be_told = true;
        world.fleet.idle(WorkerKey(old), world.now);
        world.obey();
        assert_eq!(world.phase(old), Phase::Terminating { kill_at: world.now + left });
    }
}

#[test]
fn the_drains_end_cuts_who_is_left_and_a_second_later_it_is_killed() {
    let (mut world, old, _) = leaving_beside_successor(false);
    world.pass(LONG_DRAIN - Duration::from_millis(1));
    assert!(matches!(world.phase(old), Phase::Leaving { .. }) && !world.alive[&old].is_cut);
    world.pass(Duration::from_millis(1));
    assert_eq!(world.phase(old), Phase::Terminating { kill_at: world.now + KILL_AFTER });
    assert!(world.alive[&old].is_cut);
    world.pass(KILL_AFTER);
    assert_eq!(world.phase(old), Phase::Killed);
}

#[test]
fn a_stuck_worker_has_a_second_when_its_successor_has_joined_or_failed() {
    for joins in [true, false] {
        let mut world = serving(1);
        world.set_drain_timeout(LONG_DRAIN);
        let old = world.pick(|_| true).expect("one");
        world.stuck(old, false);
        assert!(matches!(world.phase(old), Phase::Serving { .. }) && world.fleet.is_stuck(WorkerKey(old)));
        assert_eq!(world.fleet.serving(), 0, "it is of no use");
        if joins {
            world.successor_joins();
        } else {
            let successor = world.booting().expect("a successor");
            world.exit(successor);
            world.obey();
            let (_, failures, at) = world.fleet.empty_slots().next().expect("nobody is there");
            assert_eq!((failures, at - world.now), (1, Duration::from_millis(100)));
        }
        assert_eq!(world.phase(old), Phase::Terminating { kill_at: world.now + KILL_AFTER });
    }
}

#[test]
fn a_worker_that_is_stuck_with_one_request_has_the_drain_timeout_for_its_others() {
    for drains in [true, false] {
        let mut world = serving_as(1, drains);
        world.set_drain_timeout(LONG_DRAIN);
        let old = world.pick(|_| true).expect("one");
        world.fleet.note_streams(WorkerKey(old), true, world.now);
        world.stuck(old, true);
        world.successor_joins();
        let drained = world.now + LONG_DRAIN;
        let expected = match drains {
            true => Phase::Terminating { kill_at: drained },
            false => Phase::Leaving { until: drained },
        };
        assert_eq!(world.phase(old), expected);
        // Another one hangs as well, beside a last one.
        world.pass(Duration::from_millis(500));
        world.stuck(old, true);
        assert_eq!(world.phase(old), expected);
        world.stuck(old, false);
        assert_eq!(world.phase(old), Phase::Terminating { kill_at: world.now + KILL_AFTER });
    }
}

#[test]
fn an_operator_moves_both_bounds_and_a_worker_comes_or_goes() {
    let mut world = serving(2);
    world.has_size_of(2);
    assert!(world.resize(Resize::More));
    world.has_size_of(3);
    world.successor_joins();
    assert!(world.resize(Resize::Fewer) && world.resize(Resize::Fewer));
    world.fleet.trim(None, world.now);
    world.fleet.trim(None, world.now);
    world.obey();
    world.has_size_of(1);
    assert!(!world.resize(Resize::Fewer), "there is to be one at least");
    world.fleet.trim(None, world.now);
    world.has_size_of(1);
    world.fleet.drain(world.now);
    assert!(!world.resize(Resize::More), "it drains");
}

impl World {
    fn resize(&mut self, change: Resize) -> bool {
        let is_done = self.fleet.change_size(change, self.now);
        (self.plan.min_workers, self.plan.max_workers) = (self.fleet.min_workers(), self.fleet.max_workers());
        self.obey();
        is_done
    }

    fn has_size_of(&self, workers: usize) {
        assert_eq!(self.fleet.size(), workers);
        let staying = |process: &&Process| process.life != Life::Withdrawn;
        assert_eq!(self.alive.values().filter(staying).count(), workers);
    }
}

#[test]
fn workers_that_an_operator_adds_make_a_roll_no_unstable_one() {
    let mut world = serving(1);
    world.rolls_asked = true;
    world.fleet.reload(None, world.now);
    world.obey();
    for _ in 0..4 {
        assert!(world.resize(Resize::More));
    }
    assert!(world.fleet.is_rolling(), "{:?}", world.roll_end);
}

#[test]
fn one_fewer_and_one_more_again_before_anybody_left_starts_nobody() {
    let mut world = serving(2);
    assert!(world.resize(Resize::Fewer) && world.resize(Resize::More));
    world.has_size_of(2);
}

#[test]
fn a_fleet_without_workers_stays_without() {
    let mut world = serving(1);
    world.begin_anew(Plan { min_workers: 0, max_workers: 0, ..world.plan });
    assert!(!world.resize(Resize::More) && !world.resize(Resize::Fewer));
    world.has_size_of(0);
    world.begin_anew(Plan { min_workers: 0, max_workers: 1, ..world.plan });
    world.grow(1);
    world.obey();
    world.has_size_of(1);
}

#[test]
fn of_one_too_many_an_empty_slot_is_given_up_first_then_who_is_idle_then_the_last() {
    let mut world = serving(3);
    let keys: Vec<usize> = world.alive.keys().copied().collect();
    world.resize(Resize::Fewer);
    world.alive.get_mut(&keys[1]).expect("it serves").has_served = false;
    world.exit(keys[1]);
    world.fleet.trim(Some(WorkerKey(keys[0])), world.now);
    world.obey();
    assert_eq!((world.fleet.size(), world.alive.len(), world.fleet.empty_slots().count()), (2, 2, 0));

    let mut world = serving(3);
    world.resize(Resize::Fewer);
    world.fleet.trim(Some(WorkerKey(keys[0])), world.now);
    world.obey();
    assert_eq!(world.alive[&keys[0]].life, Life::Withdrawn, "the idle one");

    // The last is being replaced: the one before it goes.
    let mut world = serving(3);
    world.fleet.retire(WorkerKey(keys[2]), RetireReason::Memory, world.now);
    world.obey();
    world.resize(Resize::Fewer);
    world.fleet.trim(None, world.now);
    world.obey();
    assert_eq!(world.alive[&keys[1]].life, Life::Withdrawn);
}

/// An elastic fleet at its fewest with a slot more, whose worker boots, and who serves.
fn grown(fewest: usize) -> (World, Vec<usize>, usize) {
    let mut world = serving(fewest);
    world.plan.max_workers = fewest + 1;
    world.fleet.plan = world.plan;
    let serving = world.alive.keys().copied().collect();
    world.grow(1);
    world.obey();
    let booting = world.booting().expect("one more");
    (world, serving, booting)
}

#[test]
fn nobody_retires_while_only_the_fewest_serve_whatever_slots_there_are_beside_them() {
    for fewest in 1..4 {
        let (mut world, serving, booting) = grown(fewest);
        world.shrink(serving[0]);
        assert_eq!((world.fleet.spare_slot(), world.fleet.serving()), (None, fewest), "one boots");
        world.exit(booting);
        world.obey();
        world.shrink(serving[0]);
        assert_eq!((world.fleet.serving(), world.fleet.size()), (fewest, fewest + 1), "its slot waits");
        assert_eq!(world.fleet.give_up_spare_slot(world.now), Some(fewest), "nobody is in it");
        world.obey();
        assert_eq!(world.fleet.give_up_spare_slot(world.now), None, "the fewest stay");
        world.has_size_of(fewest);
        assert_eq!(world.booting(), None);

        // One that has joined makes room for another one.
        let (mut world, serving, booting) = grown(fewest);
        world.join_as(booting, true);
        world.obey();
        world.shrink(serving[0]);
        assert_eq!(world.fleet.serving(), fewest);
        world.obey();
    }
}

#[test]
fn a_worker_beside_one_that_hangs_does_not_retire() {
    let (mut world, serving, booting) = grown(1);
    world.join_as(booting, true);
    world.obey();
    world.stuck(serving[0], false);
    world.shrink(booting);
    assert_eq!(world.fleet.serving(), 1);
}

#[test]
fn one_fewer_waits_for_the_join_of_who_boots_and_takes_an_empty_slot_at_once() {
    let (mut world, old, booting) = grown(1);
    world.plan.max_workers = 1;
    world.fleet.plan = world.plan;
    world.fleet.trim(Some(WorkerKey(old[0])), world.now);
    world.obey();
    assert_eq!(
        (world.fleet.serving(), world.fleet.size()),
        (1, 2),
        "who serves stays until another one does"
    );
    world.join_as(booting, true);
    world.obey();
    world.fleet.trim(Some(WorkerKey(booting)), world.now);
    world.obey();
    assert_eq!((world.phase(old[0]).state(), world.fleet.size()), (WorkerState::Serving, 1));

    let (mut world, old, booting) = grown(1);
    world.plan.max_workers = 1;
    world.fleet.plan = world.plan;
    world.exit(booting);
    world.obey();
    world.fleet.trim(Some(WorkerKey(old[0])), world.now);
    world.obey();
    assert_eq!((world.phase(old[0]).state(), world.fleet.size()), (WorkerState::Serving, 1));
}

#[test]
fn nobody_is_one_too_many_while_a_roll_goes_on_or_the_server_drains() {
    for drains in [true, false] {
        let mut world = serving(2);
        world.resize(Resize::Fewer);
        if drains {
            world.fleet.drain(world.now);
        } else {
            world.rolls_asked = true;
            world.fleet.reload(None, world.now);
        }
        world.obey();
        let idle = world.pick(|life| life == Life::Admitted).map(WorkerKey);
        world.fleet.trim(idle, world.now);
        world.obey();
        assert_eq!(world.fleet.size(), 2);
        assert!(idle.is_some_and(|idle| !world.fleet.may_shrink(idle)));
    }
}

#[test]
fn a_worker_that_the_draining_server_lets_go_has_no_successor() {
    let mut world = serving(2);
    world.set_drain_timeout(LONG_DRAIN);
    let keys: Vec<usize> = world.alive.keys().copied().collect();
    world.fleet.release(WorkerKey(keys[0]), world.now);
    world.obey();
    assert_eq!(world.fleet.serving(), 2, "it does not drain yet");
    world.fleet.drain(world.now);
    // One that is stuck is on its way out already.
    world.stuck(keys[1], false);
    for key in keys.clone() {
        world.fleet.release(WorkerKey(key), world.now);
        world.obey();
    }
    assert_eq!(world.phase(keys[0]), Phase::Terminating { kill_at: world.now + LONG_DRAIN });
    assert!(matches!(world.phase(keys[1]), Phase::Serving { .. }));
    assert_eq!(world.fleet.size(), 1);
    let successor = world.successor_joins();
    world.fleet.release(WorkerKey(keys[1]), world.now);
    world.obey();
    assert_eq!(world.fleet.serving(), 1, "the stuck one was replaced, and takes nobody along");
    world.fleet.release(WorkerKey(successor), world.now);
    world.obey();
    assert_eq!(world.fleet.size(), 0);
    assert!(!world.fleet.is_gone(), "they still have something to do");
}

#[test]
fn who_has_lived_for_ten_seconds_did_not_fail_at_its_start() {
    for (lived, is_failure) in [(9_999, true), (10_000, false)] {
        let mut world = serving(2);
        let key = world.pick(|_| true).expect("one");
        world.alive.get_mut(&key).expect("it serves").has_served = false;
        world.now += Duration::from_millis(lived);
        world.exit(key);
        world.obey();
        assert_eq!(world.fleet.empty_slots().count(), usize::from(is_failure), "after {lived} ms");
    }
}

impl World {
    /// Whoever boots in that slot ends, and so again until it has failed so often in all.
    fn fail_slot(&mut self, slot: usize, failures: u32) {
        while self.fleet.slots[slot].backoff.failures() < failures {
            let fits =
                |(_, process): &(&usize, &Process)| process.slot == slot && process.life == Life::Booting;
            let key = self.alive.iter().find(fits).map(|(key, _)| *key);
            match key {
                Some(key) => self.exit(key),
                None => {
                    self.now = self.fleet.next_deadline().expect("it is tried again");
                    self.fleet.tick(self.now);
                }
            }
            self.obey();
        }
    }
}

#[test]
fn only_a_fleet_of_which_nobody_ever_joined_gives_up_and_only_when_all_slots_have_failed() {
    let mut world = serving(2);
    world.begin_anew(Plan { boot_timeout: LONG_DRAIN * 100, ..world.plan });
    world.fail_slot(0, 5);
    assert!(!world.has_given_up, "one of two slots");
    world.fail_slot(1, 2);
    assert!(!world.has_given_up, "two failures are few");
    world.fail_slot(1, 3);
    assert!(world.has_given_up);

    let mut world = serving(1);
    let key = world.pick(|_| true).expect("one");
    world.alive.get_mut(&key).expect("it serves").has_served = false;
    world.exit(key);
    world.obey();
    world.fail_slot(0, 5);
    assert!(!world.has_given_up, "one has joined before");

    let mut world = serving(1);
    world.begin_anew(Plan { keep_trying: true, ..world.plan });
    world.fail_slot(0, 5);
    assert!(!world.has_given_up, "as it was told");

    let mut world = serving(1);
    world.begin_anew(world.plan);
    world.fleet.drain(world.now);
    world.fail_slot(0, 5);
    assert!(!world.has_given_up, "it drains");
}

#[test]
fn one_that_joins_after_all_mends_a_fleet_that_has_given_up() {
    let mut world = serving(2);
    world.begin_anew(Plan { boot_timeout: LONG_DRAIN * 100, ..world.plan });
    world.fail_slot(1, 3);
    while !world.alive.values().any(|process| process.slot == 1) {
        world.now = world.fleet.next_deadline().expect("it is tried again");
        world.fleet.tick(world.now);
        world.obey();
    }
    world.fail_slot(0, 3);
    assert!(world.has_given_up);
    world.successor_joins();
    assert_eq!((world.fleet.serving(), world.fleet.stage), (1, Stage::Running));
    world.pass(Duration::from_secs(30));
    world.successor_joins();
    assert_eq!(world.fleet.serving(), 2, "the other slot is tried again");
}

#[test]
fn status_tells_when_each_empty_slot_is_tried_next() {
    let mut world = serving(2);
    for _ in 0..20 {
        world.fail_all();
    }
    for key in world.alive.keys().copied().collect::<Vec<_>>() {
        world.exit(key);
    }
    world.obey();
    let waits: Vec<Duration> = world.fleet.empty_slots().map(|(_, _, at)| at - world.now).collect();
    let is_soon = |wait: &&Duration| **wait <= Duration::from_secs(1);
    assert_eq!(waits.len(), 2);
    assert_eq!(waits.iter().filter(is_soon).count(), 1, "one is tried each second, {waits:?}");
}
