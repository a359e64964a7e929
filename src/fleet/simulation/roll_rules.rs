//! Short histories of rolls, and of replacements that fail.

use super::scenarios::{count_told, roll_beside_streams, serving};
use super::trial_rules::{PLAN, on_trial};
use super::*;

pub(super) const LONG_DRAIN: Duration = Duration::from_secs(5);

impl World {
    pub(super) fn reload(&mut self, canary: Option<CanaryPlan>) {
        (self.rolls_asked, self.asks_for_trial) = (true, canary.is_some());
        self.fleet.reload(canary, self.now);
        self.obey();
    }

    /// All successors join, one after the other.
    pub(super) fn roll_to_its_end(&mut self) {
        for _ in 0..20 {
            if self.fleet.is_rolling() {
                self.roll_on();
            }
        }
    }

    /// Who boots joins, and where nobody does, one that drains ends. A worker of the new release that has joined.
    pub(super) fn roll_on(&mut self) -> Option<usize> {
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
    pub(super) fn ends(&mut self, key: usize) {
        self.alive.get_mut(&key).expect("it joined").has_served = true;
        self.exit(key);
        self.obey();
    }

    /// So many answers of each that gets requests; those of the one on trial fail or not.
    pub(super) fn answers(&mut self, count: u64, fails: bool) {
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
