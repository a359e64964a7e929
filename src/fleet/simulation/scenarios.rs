//! Short histories, each of which shows one rule of the fleet.

use super::*;

/// A fleet with an app that boots at once, for the rules below and beside.
pub(super) fn serving(workers: usize) -> World {
    serving_as(workers, true)
}

/// The same with workers that finish what they have on SIGTERM, or not.
pub(super) fn serving_as(workers: usize, drains: bool) -> World {
    let mut world = World::new(7);
    let plan = Plan {
        min_workers: workers,
        max_workers: workers,
        max_age: None,
        keep_trying: false,
        forks: false,
        roll: RollMode::Side,
        ..world.plan
    };
    world.is_kind = true;
    world.begin_anew(plan);
    for key in world.alive.keys().copied().collect::<Vec<_>>() {
        world.join_as(key, drains);
        world.obey();
    }
    assert_eq!(world.fleet.serving(), workers);
    world
}

#[test]
fn the_old_worker_is_withdrawn_only_after_its_successor_is_admitted() {
    let mut world = serving(1);
    let old = world.pick(|_| true).expect("one");
    world.fleet.retire(WorkerKey(old), RetireReason::Requests, world.now);
    world.obey();
    assert_eq!(world.alive[&old].life, Life::Admitted, "still at work while the successor boots");
    let successor = world.pick(|life| life == Life::Booting).expect("a successor");
    world.join_as(successor, true);
    world.obey();
    assert_eq!((world.alive[&successor].life, world.alive[&old].life), (Life::Admitted, Life::Withdrawn));
}

#[test]
fn a_roll_stops_at_the_first_successor_that_dies_and_the_old_one_goes_on() {
    let mut world = serving(2);
    world.rolls_asked = true;
    world.fleet.reload(None, world.now);
    world.obey();
    let successor = world.pick(|life| life == Life::Booting).expect("a successor");
    world.exit(successor);
    world.obey();
    assert!(!world.rolls_asked, "the end is told");
    assert_eq!(world.fleet.serving(), 2);
}

#[test]
fn if_nobody_ever_joins_it_gives_up_after_three_failures_each() {
    let mut world = serving(1);
    world.begin_anew(world.plan);
    for failures in 0..3 {
        assert!(!world.has_given_up, "{failures}");
        let key = world.pick(|_| true).expect("tried again");
        world.exit(key);
        world.obey();
        if let Some(deadline) = world.fleet.next_deadline() {
            world.now = deadline;
            world.fleet.tick(deadline);
            world.obey();
        }
    }
    assert!(world.has_given_up);
}

#[test]
fn a_stuck_worker_gets_no_more_requests_while_its_successor_boots() {
    let mut world = serving(1);
    let stuck = world.pick(|_| true).expect("one");
    world.fleet.stuck(WorkerKey(stuck), false, world.now);
    world.obey();
    assert_eq!(world.alive[&stuck].life, Life::Withdrawn);
    assert!(world.pick(|life| life == Life::Booting).is_some(), "a successor is on its way");
}

#[test]
fn nothing_is_done_to_a_worker_that_is_gone() {
    let mut world = serving(1);
    let old = world.pick(|_| true).expect("one");
    world.fleet.retire(WorkerKey(old), RetireReason::Requests, world.now);
    world.obey();
    let successor = world.pick(|life| life == Life::Booting).expect("a successor");
    world.join_as(successor, true);
    world.exit(successor);
    let about = |action: &Action| action.worker() == Some(WorkerKey(successor));
    assert!(!world.fleet.actions.iter().any(about), "{:?}", world.fleet.actions);
}

#[test]
fn a_burst_is_met_by_forks_all_at_once_and_by_other_starts_one_by_one() {
    for (forks, booting) in [(true, 3), (false, 1)] {
        let mut world = serving(1);
        world.begin_anew(Plan { max_workers: 4, forks, ..world.plan });
        world.templates_are_kind();
        let first = world.pick(|_| true).expect("one");
        world.join_as(first, true);
        for _ in 0..2 {
            world.grow(9);
            world.obey();
            assert_eq!(world.alive.values().filter(|process| process.life == Life::Booting).count(), booting);
        }
    }
}

#[test]
fn a_worker_that_is_being_replaced_does_not_retire_for_good() {
    let mut world = serving(1);
    world.plan.max_workers = 2;
    world.fleet.plan = world.plan;
    world.grow(1);
    world.obey();
    let second = world.pick(|life| life == Life::Booting).expect("one more");
    world.join_as(second, true);
    world.obey();
    assert!(world.fleet.may_shrink(WorkerKey(second)));
    world.fleet.retire(WorkerKey(second), RetireReason::Requests, world.now);
    world.obey();
    assert!(!world.fleet.may_shrink(WorkerKey(second)));
}

#[test]
fn request_limits_are_drawn_between_90_and_100_percent() {
    let mut world = serving(1);
    let limits: Vec<u64> = (0..100).filter_map(|_| world.fleet.draw_request_limit()).collect();
    assert!(limits.iter().all(|limit| (18..=20).contains(limit)), "{limits:?}");
    assert!(limits.iter().any(|limit| *limit != limits[0]), "they differ");
}

#[test]
fn a_worker_that_has_served_for_its_time_is_replaced_and_serves_until_its_successor_has_joined() {
    let mut world = serving(1);
    world.plan.max_age = Some(MAX_AGE);
    world.begin_anew(world.plan);
    let old = world.pick(|_| true).expect("one");
    world.join_as(old, true);
    world.obey();
    let due = world.fleet.next_deadline().expect("its age");
    let age = due - world.now;
    assert!((MAX_AGE * 9 / 10..=MAX_AGE).contains(&age), "{age:?}");
    world.now = due;
    world.fleet.tick(due);
    world.obey();
    assert_eq!(world.alive[&old].life, Life::Admitted, "still at work while the successor boots");
    let successor = world.pick(|life| life == Life::Booting).expect("a successor");
    world.join_as(successor, true);
    world.obey();
    assert_eq!((world.alive[&successor].life, world.alive[&old].life), (Life::Admitted, Life::Withdrawn));
}

#[test]
fn a_worker_whose_time_is_over_during_a_failed_reload_is_replaced_behind_it() {
    let mut world = serving(1);
    world.plan.max_age = Some(MAX_AGE);
    world.begin_anew(world.plan);
    let old = world.pick(|_| true).expect("one");
    world.join_as(old, true);
    world.rolls_asked = true;
    world.fleet.reload(None, world.now);
    world.obey();
    let failing = world.pick(|life| life == Life::Booting).expect("the reload's");
    world.now += MAX_AGE;
    world.exit(failing);
    world.obey();
    let successor = world.pick(|life| life == Life::Booting).expect("one for its age");
    assert_ne!(successor, failing);
}

/// A reload's workers that join at once; how many of the old ones drain at a time at most.
fn most_that_drain_in_a_roll(mode: RollMode) -> usize {
    let mut world = serving(4);
    world.plan.roll = mode;
    world.fleet.plan = world.plan;
    world.rolls_asked = true;
    world.fleet.reload(None, world.now);
    world.obey();
    let mut most = 0;
    while world.rolls_asked {
        let leaving =
            |world: &World| world.alive.values().filter(|process| process.life == Life::Withdrawn).count();
        match world.pick(|life| life == Life::Booting) {
            Some(successor) => world.join_as(successor, true),
            // Its drain is over.
            None => {
                let old = world.pick(|life| life == Life::Withdrawn).expect("somebody is waited for");
                world.exit(old);
            }
        }
        world.obey();
        most = most.max(leaving(&world));
    }
    assert_eq!((world.fleet.serving(), world.alive.len()), (4, 4));
    most
}

#[test]
fn a_rolls_successors_follow_each_other_as_they_join_and_the_old_ones_drain_side_by_side() {
    assert_eq!(most_that_drain_in_a_roll(RollMode::Side), 4);
    assert_eq!(most_that_drain_in_a_roll(RollMode::Serial), 1);
}

#[test]
fn a_further_roll_waits_for_the_oldest_that_drain() {
    let mut world = serving(2);
    for _ in 0..2 {
        world.rolls_asked = true;
        world.fleet.reload(None, world.now);
        world.obey();
        while let Some(successor) = world.pick(|life| life == Life::Booting) {
            world.join_as(successor, true);
            world.obey();
        }
    }
    assert_eq!((world.alive.len(), world.fleet.is_rolling()), (4, true), "two serve, two drain");
    let oldest = world.pick(|life| life == Life::Withdrawn).expect("one that drains");
    world.exit(oldest);
    world.obey();
    assert!(world.pick(|life| life == Life::Booting).is_some(), "the next one follows");
}

/// A roll of three workers that hold streams, with so many successors that have joined.
pub(super) fn roll_beside_streams(joined: usize) -> (World, Vec<usize>) {
    let mut world = serving(3);
    let old: Vec<usize> = world.alive.keys().copied().collect();
    for &key in &old {
        world.fleet.note_streams(WorkerKey(key), true, world.now);
    }
    world.rolls_asked = true;
    world.fleet.reload(None, world.now);
    world.obey();
    for _ in 0..joined {
        let successor = world.pick(|life| life == Life::Booting).expect("a successor");
        world.join_as(successor, true);
        world.obey();
    }
    (world, old)
}

/// How many of them have had their SIGTERM.
pub(super) fn count_told(world: &World, workers: &[usize]) -> usize {
    let is_told = |(_, member): &(usize, &Member)| {
        workers.contains(&member.worker.0) && matches!(member.phase(), Phase::Terminating { .. })
    };
    world.fleet.members().filter(is_told).count()
}

#[test]
fn streams_are_told_of_a_reload_when_all_successors_have_joined_one_worker_after_the_other() {
    let (world, old) = roll_beside_streams(2);
    assert_eq!(count_told(&world, &old), 0);
    let (mut world, old) = roll_beside_streams(3);
    let (since, mut counts) = (world.now, vec![(0, count_told(&world, &old))]);
    while count_told(&world, &old) < 3 {
        world.now = world.fleet.next_deadline().expect("the others are to be told");
        world.fleet.tick(world.now);
        world.obey();
        counts.push(((world.now - since).as_millis(), count_told(&world, &old)));
    }
    assert_eq!(counts, [(0, 1), (333, 2), (666, 3)], "milliseconds, and how many know");
    assert!(old.iter().all(|worker| !world.alive[worker].is_cut), "they have the drain timeout from then on");
}

#[test]
fn streams_are_told_at_their_rolls_end_also_when_one_of_the_old_workers_has_gone_by_then() {
    let (mut world, old) = roll_beside_streams(2);
    world.exit(old[0]);
    world.obey();
    assert_eq!(count_told(&world, &old), 0, "the last successor boots");
    let successor = world.pick(|life| life == Life::Booting).expect("the last one");
    world.join_as(successor, true);
    world.obey();
    assert_eq!(count_told(&world, &old), 1);
}

#[test]
fn streams_do_not_wait_for_a_roll_that_fails_or_does_not_come_on() {
    let (mut world, old) = roll_beside_streams(1);
    let successor = world.pick(|life| life == Life::Booting).expect("the next one");
    world.exit(successor);
    world.obey();
    assert_eq!((count_told(&world, &old), world.fleet.is_rolling()), (1, false));

    // Successors that boot for longer than the drain timeout.
    let (mut world, old) = roll_beside_streams(0);
    world.fleet.plan.boot_timeout = world.plan.drain_timeout * 2;
    let successor = world.pick(|life| life == Life::Booting).expect("the first one");
    world.join_as(successor, true);
    world.obey();
    let told_at = world.now + world.plan.drain_timeout;
    world.now = world.fleet.next_deadline().expect("its time runs");
    world.fleet.tick(world.now);
    world.obey();
    assert_eq!((world.now, count_told(&world, &old), world.fleet.is_rolling()), (told_at, 1, true));
}

#[test]
fn a_worker_that_has_served_its_number_is_replaced_when_its_streams_have_ended_or_after_an_hour() {
    for ends in [true, false] {
        let mut world = serving(1);
        let old = world.pick(|_| true).expect("one");
        world.fleet.note_streams(WorkerKey(old), true, world.now);
        world.fleet.note_used_up(WorkerKey(old), world.now);
        world.obey();
        assert_eq!(world.alive.len(), 1, "its streams go on");
        if ends {
            world.fleet.note_streams(WorkerKey(old), false, world.now);
        } else {
            assert_eq!(world.fleet.next_deadline(), Some(world.now + STREAMS_DELAY));
            world.now += STREAMS_DELAY;
            world.fleet.tick(world.now);
        }
        world.obey();
        assert!(world.pick(|life| life == Life::Booting).is_some(), "its successor boots");
    }
}

#[test]
fn a_draining_predecessor_blocks_no_cycle() {
    let mut world = serving(2);
    for _ in 0..2 {
        let old = world.pick(|life| life == Life::Admitted).expect("one that serves");
        world.fleet.retire(WorkerKey(old), RetireReason::Requests, world.now);
        world.obey();
        let successor = world.pick(|life| life == Life::Booting).expect("its successor boots");
        world.join_as(successor, true);
        world.obey();
    }
    assert_eq!(world.alive.values().filter(|process| process.life == Life::Withdrawn).count(), 2);
}

#[test]
fn of_several_that_are_to_be_replaced_who_has_waited_longest_is_the_next() {
    let mut world = serving(3);
    let old: Vec<usize> = world.alive.keys().copied().collect();
    let order = [old[1], old[2], old[0]];
    for worker in order {
        world.fleet.retire(WorkerKey(worker), RetireReason::Requests, world.now);
        world.now += Duration::from_millis(1);
    }
    for worker in order {
        world.obey();
        assert_eq!(world.alive[&worker].life, Life::Admitted);
        let successor = world.pick(|life| life == Life::Booting).expect("one successor at a time");
        world.join_as(successor, true);
        world.obey();
        assert_eq!(world.alive[&worker].life, Life::Withdrawn, "{worker} of {order:?}");
    }
}

#[test]
fn a_new_worker_that_ends_before_it_has_served_stops_the_roll() {
    let mut world = serving(2);
    world.rolls_asked = true;
    world.fleet.reload(None, world.now);
    world.obey();
    let successor = world.pick(|life| life == Life::Booting).expect("a successor");
    world.join_as(successor, true);
    world.obey();
    world.alive.get_mut(&successor).expect("it joined").has_served = false;
    world.exit(successor);
    world.obey();
    assert!(!world.rolls_asked && !world.has_next_release, "the end is told, and the release is not adopted");
}

#[test]
fn who_has_served_is_started_again_at_once_and_who_has_not_waits() {
    let mut world = serving(2);
    let keys: Vec<usize> = world.alive.keys().copied().collect();
    let (good, bad) = (keys[0], keys[1]);
    world.alive.get_mut(&good).expect("it serves").has_served = true;
    world.alive.get_mut(&bad).expect("it serves").has_served = false;
    world.exit(good);
    world.exit(bad);
    assert_eq!(
        world.fleet.empty_slots().map(|(slot, failures, _)| (slot, failures)).collect::<Vec<_>>(),
        [(1, 1)]
    );
}

impl World {
    /// All workers end before they have served, and time goes on to the next start.
    pub(super) fn fail_all(&mut self) {
        for key in self.alive.keys().copied().collect::<Vec<_>>() {
            self.alive.get_mut(&key).expect("it is alive").has_served = false;
            self.exit(key);
        }
        self.now = self.fleet.next_deadline().expect("somebody is tried again");
        self.fleet.tick(self.now);
        self.obey();
    }
}

#[test]
fn while_nobody_serves_one_slot_is_tried_every_second() {
    let mut world = serving(2);
    let mut starts = Vec::new();
    // Long in vain: both wait for half a minute by now.
    for _ in 0..40 {
        world.fail_all();
        starts.push(world.now);
    }
    let waits = starts[20..].windows(2).map(|pair| pair[1] - pair[0]);
    assert!(waits.clone().all(|wait| wait == Duration::from_secs(1)), "{:?}", waits.collect::<Vec<_>>());
}

#[test]
fn a_quit_is_no_failure_and_no_loop() {
    let mut world = serving(1);
    for _ in 0..3 {
        let key = world.pick(|life| life == Life::Admitted).expect("it serves");
        world.has_quit.insert(key);
        world.fleet.quit(WorkerKey(key), Ending::Quit, world.now);
        world.obey();
        let (_, failures, at) = world.fleet.empty_slots().next().expect("to be started again");
        assert_eq!((failures, at - world.now), (0, Duration::from_millis(100)));
        world.now = at;
        world.fleet.tick(at);
        world.obey();
        let next = world.pick(|life| life == Life::Booting).expect("started again");
        world.join_as(next, true);
        world.obey();
    }
}
