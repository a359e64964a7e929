//! Short histories of templates, with a fleet alone: what is asked for, what ends it, and who starts without one.

use super::*;

const BOOT_TIMEOUT: Duration = Duration::from_millis(500);
const ONE: TemplateId = TemplateId(1);
const TWO: TemplateId = TemplateId(2);

/// A fleet whose workers are forked, and the time.
struct Play {
    fleet: Fleet,
    now: Instant,
    next_key: usize,
}

impl Play {
    fn new(workers: usize) -> Self {
        let plan = Plan {
            min_workers: workers,
            max_workers: workers,
            max_requests: 0,
            max_age: None,
            boot_timeout: BOOT_TIMEOUT,
            drain_timeout: BOOT_TIMEOUT,
            roll: RollMode::Side,
            forks: true,
            keep_trying: true,
            seed: 1,
        };
        let now = Instant::now();
        Play { fleet: Fleet::new(plan, now), now, next_key: 0 }
    }

    /// One whose first template is ready and has forked all workers, which have joined.
    fn serving(workers: usize) -> Self {
        let mut play = Play::new(workers);
        play.is_ready(ONE);
        for slot in 0..workers {
            play.forked(slot, true);
        }
        play.actions();
        play
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.fleet.next_action()).collect()
    }

    fn is_ready(&mut self, template: TemplateId) {
        self.fleet.template_ready(template, self.now);
    }

    fn forked(&mut self, slot: usize, joins: bool) -> WorkerKey {
        let worker = WorkerKey(self.next_key);
        self.next_key += 1;
        self.fleet.spawned(slot, worker, self.now);
        if joins {
            self.fleet.joined(worker, true, self.now);
        }
        worker
    }

    /// Time passes; what is to be done.
    fn pass(&mut self, ms: u64) -> Vec<Action> {
        self.now += Duration::from_millis(ms);
        self.fleet.tick(self.now);
        self.actions()
    }

    fn due_in_ms(&self) -> Option<u128> {
        self.fleet.next_deadline().map(|deadline| (deadline - self.now).as_millis())
    }
}

/// The templates that starts come from, in order.
fn origins(actions: &[Action]) -> Vec<Option<TemplateId>> {
    let origin = |action: &Action| match action {
        Action::Spawn { template, .. } => Some(*template),
        _ => None,
    };
    actions.iter().filter_map(origin).collect()
}

fn starts(template: TemplateId, release: Release) -> Action {
    Action::StartTemplate { template, release }
}

fn ends(template: TemplateId, why: TemplateEnd) -> Action {
    Action::EndTemplate { template, why }
}

#[test]
fn starts_wait_for_the_first_template_until_it_takes_too_long() {
    let mut play = Play::new(2);
    assert_eq!((play.actions(), play.due_in_ms()), (vec![starts(ONE, Release::Good)], Some(500)));
    assert_eq!(play.pass(499), []);
    let actions = play.pass(1);
    assert_eq!(actions[0], ends(ONE, TemplateEnd::LoadsTooLong));
    assert_eq!(origins(&actions), [None, None]);
    // It is tried again, and meanwhile nobody waits.
    assert_eq!((play.pass(99), play.due_in_ms()), (vec![], Some(1)));
    assert_eq!(play.pass(1), [starts(TWO, Release::Good)]);
    play.fleet.template_ended(TWO, play.now);
    assert_eq!((play.pass(199), play.pass(1)), (vec![], vec![starts(TemplateId(3), Release::Good)]));
}

#[test]
fn a_template_that_names_no_worker_in_time_is_ended() {
    let mut play = Play::new(2);
    play.pass(10);
    play.is_ready(ONE);
    assert_eq!(origins(&play.actions()), [Some(ONE), Some(ONE)]);
    play.forked(0, true);
    play.actions();
    assert_eq!((play.pass(499), play.due_in_ms()), (vec![], Some(1)), "the other one is waited for");
    assert_eq!(play.pass(1)[0], ends(ONE, TemplateEnd::Unresponsive));
    play.fleet.spawn_failed(1, play.now);
    assert!(play.actions().iter().any(|action| matches!(action, Action::Wait { slot: 1, .. })));

    let mut play = Play::serving(2);
    assert_eq!((play.due_in_ms(), play.pass(60_000)), (None, vec![]), "nothing is to be done");
}

#[test]
fn an_app_whose_forks_end_thrice_before_they_join_is_not_forked() {
    let fail = |play: &mut Play, times: u64| {
        let mut last = Vec::new();
        for _ in 0..times {
            let worker = play.forked(0, false);
            play.fleet.exited(worker, false, play.now);
            last = play.actions();
            last.extend(play.pass(30_000));
        }
        last
    };
    let mut play = Play::new(1);
    play.is_ready(ONE);
    assert_eq!(origins(&fail(&mut play, 2)), [Some(ONE)]);
    // One that joins after all.
    let worker = play.forked(0, true);
    play.fleet.exited(worker, true, play.now);
    play.actions();
    assert_eq!(origins(&fail(&mut play, 2)), [Some(ONE)]);
    let actions = fail(&mut play, 1);
    assert!(actions.contains(&ends(ONE, TemplateEnd::ForksFail)));
    assert_eq!(origins(&actions), [None]);

    // One that does not join in time has failed as well.
    let mut play = Play::new(1);
    play.is_ready(ONE);
    play.actions();
    for number in 1..4 {
        let worker = play.forked(0, false);
        let has_ended = play.pass(500).contains(&ends(ONE, TemplateEnd::ForksFail));
        assert_eq!(has_ended, number == 3);
        play.fleet.exited(worker, false, play.now);
        play.pass(30_000);
        if has_ended {
            break;
        }
    }
}

#[test]
fn an_app_that_is_not_to_be_forked_starts_without_a_template_for_good() {
    let mut play = Play::new(1);
    play.fleet.template_refused(ONE, play.now);
    assert_eq!(origins(&play.actions()), [None]);
    let worker = play.forked(0, true);
    play.fleet.exited(worker, true, play.now);
    let mut actions = play.pass(60_000);
    actions.retain(|action| !matches!(action, Action::Admit { .. }));
    assert_eq!((origins(&actions), actions.len()), (vec![None], 1));
}

#[test]
fn a_template_of_use_that_ends_is_started_again_at_once_and_starts_wait_for_it() {
    let mut play = Play::serving(1);
    play.fleet.template_ended(ONE, play.now);
    play.fleet.exited(WorkerKey(0), true, play.now);
    assert_eq!(play.actions(), [starts(TWO, Release::Good)]);
    play.is_ready(TWO);
    assert_eq!(origins(&play.actions()), [Some(TWO)]);
    // Of another one that is gone nobody hears.
    play.fleet.template_ended(ONE, play.now);
    assert_eq!(play.actions(), []);
}

#[test]
fn a_rolls_template_is_there_before_any_worker_is_touched_and_replaces_the_old_one() {
    let mut play = Play::serving(1);
    play.fleet.reload(None, play.now);
    assert_eq!(play.actions(), [Action::RollBegins, starts(TWO, Release::New)]);
    assert_eq!(play.pass(400), []);
    play.is_ready(TWO);
    assert_eq!(origins(&play.actions()), [Some(TWO)]);
    play.forked(0, true);
    let actions = play.actions();
    let at = |wanted: &Action| actions.iter().position(|action| action == wanted);
    assert!(at(&Action::Adopt).is_some() && at(&Action::Adopt) < at(&ends(ONE, TemplateEnd::Unneeded)));
    // Starts come from the new one.
    play.fleet.exited(WorkerKey(1), true, play.now);
    assert_eq!(origins(&play.actions()), [Some(TWO)]);
}

#[test]
fn a_roll_whose_template_fails_before_any_worker_was_touched_has_failed() {
    let failed = Action::RollEnded(RollEnd::TemplateFailed { template: TWO });
    let mut play = Play::serving(1);
    play.fleet.reload(None, play.now);
    play.actions();
    play.fleet.template_ended(TWO, play.now);
    assert_eq!((play.actions(), play.fleet.serving()), (vec![failed.clone()], 1));

    // One that has been of use is replaced, and the roll goes on.
    let mut play = Play::serving(2);
    play.fleet.reload(None, play.now);
    play.is_ready(TWO);
    play.forked(0, true);
    play.actions();
    play.fleet.template_ended(TWO, play.now);
    assert_eq!(play.actions(), [starts(TemplateId(3), Release::New)]);
    assert!(play.fleet.is_rolling());
    play.fleet.template_ended(TemplateId(3), play.now);
    assert!(!play.actions().contains(&failed) && play.fleet.is_rolling());

    // Where the old release's fails as well, workers of both start without.
    let mut play = Play::new(1);
    play.fleet.template_ended(ONE, play.now);
    play.forked(0, true);
    play.actions();
    play.fleet.reload(None, play.now);
    play.actions();
    play.fleet.template_ended(TWO, play.now);
    assert_eq!(origins(&play.actions()), [None]);
}

#[test]
fn nothing_is_started_once_the_server_stops() {
    let mut play = Play::serving(2);
    play.fleet.reload(None, play.now);
    play.actions();
    play.fleet.stop(play.now + BOOT_TIMEOUT, play.now);
    let actions = play.actions();
    for template in [ONE, TWO] {
        assert!(actions.contains(&ends(template, TemplateEnd::Unneeded)));
    }
    assert!(actions.contains(&Action::RollEnded(RollEnd::Stopping)));
    let is_start = |action: &Action| matches!(action, Action::Spawn { .. } | Action::StartTemplate { .. });
    assert!(!actions.iter().any(is_start));
    assert!(!play.pass(60_000).iter().any(is_start));

    // What was asked for a moment ago is void.
    let mut play = Play::new(1);
    play.fleet.stop(play.now, play.now);
    assert!(!play.actions().iter().any(is_start));
    assert!(play.fleet.is_gone());
}

#[test]
fn status_tells_of_no_empty_slots_while_starts_wait_for_the_template() {
    let mut play = Play::new(2);
    play.actions();
    assert_eq!((play.fleet.empty_slots().count(), play.fleet.is_loading(ONE)), (0, true));
    // It has died, and workers start without: of one that fails there is something to tell.
    play.fleet.template_ended(ONE, play.now);
    play.actions();
    let worker = play.forked(0, false);
    play.fleet.exited(worker, false, play.now);
    let told: Vec<(usize, u32)> =
        play.fleet.empty_slots().map(|(slot, failures, _)| (slot, failures)).collect();
    assert_eq!(told, [(0, 1)]);

    // One that is started again is waited for as the first one was.
    let mut play = Play::serving(2);
    assert!(!play.fleet.is_loading(ONE));
    play.fleet.template_ended(ONE, play.now);
    play.fleet.exited(WorkerKey(0), true, play.now);
    play.actions();
    assert!(play.fleet.is_loading(TWO) && !play.fleet.is_loading(ONE));
    assert_eq!((play.fleet.empty_slots().count(), play.fleet.serving()), (0, 1));
}
