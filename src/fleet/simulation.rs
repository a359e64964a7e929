//! Seeded histories of a fleet: spawns that fail, joins that come late or twice, exits at any moment, templates that
//! die, answer late or not at all, reloads, stops. A naive record of who is alive and admitted is kept beside it.
//!
//! `RIP_SIMULATIONS=100000 cargo test fleet` runs more; a failure prints its seed, and `RIP_SEED=<seed>` plays it again.

/// Adds a line to a world's trace, where it has one.
macro_rules! tell {
    ($world:ident, $($line:tt)*) => {
        if let Some(trace) = &mut $world.trace {
            trace.push(format!($($line)*));
        }
    };
}

mod checks;
mod ends;
mod getters;
mod roll_rules;
mod rules;
mod scenarios;
mod template_rules;
mod templates;
mod trial_rules;
mod trials;
use super::*;
use crate::control::{CanaryPlan, TrialLength};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Life {
    Booting,
    Admitted,
    /// Its successor is on trial: it gets no more requests, unless it is back.
    Reserve,
    /// Admitted once, and to get no more requests.
    Withdrawn,
}

/// A worker process as its kernel sees it.
#[derive(Clone, Copy, Debug)]
struct Process {
    slot: usize,
    life: Life,
    drains: bool,
    has_served: bool,
    /// SIGTERM may come to it, although it does not drain: it is idle, has had its time, or never joined.
    may_be_told: bool,
    is_cut: bool,
    /// Of the release that a roll brings, and that is not adopted.
    is_new: bool,
}

/// Short beside the times that pass.
const MAX_AGE: Duration = Duration::from_secs(10);

struct World {
    fleet: Fleet,
    plan: Plan,
    now: Instant,
    alive: BTreeMap<usize, Process>,
    next_key: usize,
    random: u64,
    /// Reloads asked for that have had no end, and whether spawns may fail.
    rolls_asked: bool,
    is_kind: bool,
    /// A roll has begun, and its release is not adopted.
    has_next_release: bool,
    is_stopping: bool,
    has_given_up: bool,
    /// Who is on trial, and who has been.
    on_trial: Option<usize>,
    trials: usize,
    /// The last reload was asked for with a trial, and the first worker of the roll that goes on is to have one still.
    asks_for_trial: bool,
    is_trial_due: bool,
    /// Why workers have left their places.
    replaced: Vec<RetireReason>,
    /// Template processes with their releases, and whether they have said that they are ready.
    templates: BTreeMap<TemplateId, (Release, bool)>,
    /// Forks that were asked for, and have no answer.
    asked: Vec<(usize, TemplateId)>,
    /// A template of the roll has loaded its app.
    had_roll_template: bool,
    /// Workers of a roll's release since it began.
    started_by_roll: usize,
    /// Of the worker that was asked for last.
    newest_version: u64,
    /// How the last roll has ended.
    roll_end: Option<RollEnd>,
    /// How far it has come: slots replaced, of so many.
    progress: (usize, usize),
    /// They left by themselves, and need not be told.
    has_quit: BTreeSet<usize>,
    /// What has happened, where somebody will read it.
    trace: Option<Vec<String>>,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let min_workers = 1 + (next(&mut random) % 4) as usize;
        let plan = Plan {
            min_workers,
            max_workers: min_workers + (next(&mut random) % 3) as usize,
            max_requests: 20,
            max_age: next(&mut random).is_multiple_of(2).then_some(MAX_AGE),
            boot_timeout: Duration::from_millis(500),
            drain_timeout: Duration::from_millis(700),
            roll: if next(&mut random).is_multiple_of(3) { RollMode::Serial } else { RollMode::Side },
            keep_trying: next(&mut random).is_multiple_of(2),
            forks: !next(&mut random).is_multiple_of(3),
            seed,
        };
        let mut world = World {
            fleet: Fleet::new(plan, now),
            plan,
            now,
            alive: BTreeMap::new(),
            next_key: 0,
            random,
            rolls_asked: false,
            is_kind: false,
            has_next_release: false,
            is_stopping: false,
            has_given_up: false,
            on_trial: None,
            trials: 0,
            asks_for_trial: false,
            is_trial_due: false,
            replaced: Vec::new(),
            templates: BTreeMap::new(),
            asked: Vec::new(),
            had_roll_template: false,
            started_by_roll: 0,
            newest_version: 0,
            roll_end: None,
            progress: (0, 0),
            has_quit: BTreeSet::new(),
            trace: std::env::var_os("RIP_SEED").map(|_| Vec::new()),
        };
        world.obey();
        world
    }

    /// Another fleet, of which nobody has joined.
    fn begin_anew(&mut self, plan: Plan) {
        self.alive.clear();
        self.templates.clear();
        self.asked.clear();
        (self.plan, self.newest_version) = (plan, 0);
        self.fleet = Fleet::new(plan, self.now);
        self.obey();
    }

    fn chance(&mut self, of: u64) -> bool {
        next(&mut self.random).is_multiple_of(of)
    }

    fn pick(&mut self, fits: impl Fn(Life) -> bool) -> Option<usize> {
        let fit: Vec<usize> =
            self.alive.iter().filter(|(_, process)| fits(process.life)).map(|(&key, _)| key).collect();
        (!fit.is_empty()).then(|| fit[(next(&mut self.random) % fit.len() as u64) as usize])
    }

    /// Does what the fleet says, as the reactor would, and checks that it may say so.
    fn obey(&mut self) {
        while let Some(action) = self.fleet.next_action() {
            tell!(self, "    -> {action:?}");
            match action {
                Action::Spawn { slot, version, release, template, .. } => {
                    self.newest_version = self.newest_version.max(version);
                    self.spawn(slot, release, template);
                }
                Action::StartTemplate { template, release } => self.start_template(template, release),
                Action::EndTemplate { template, .. } => self.template_dies(template, false),
                Action::Admit { worker, predecessor } => {
                    let slot = self.alive[&worker.0].slot;
                    if let Some(predecessor) = predecessor.and_then(|old| self.alive.get(&old.0)) {
                        assert_eq!(predecessor.slot, slot, "follows one of its own slot");
                    }
                    let process = self.alive.get_mut(&worker.0).expect("admits the living");
                    assert_eq!(process.life, Life::Booting, "admits once");
                    let is_untried = process.is_new && std::mem::take(&mut self.is_trial_due);
                    process.life = Life::Admitted;
                    process.may_be_told = false;
                    process.has_served = next(&mut self.random).is_multiple_of(2);
                    let serve = self.alive.values().filter(|process| process.life == Life::Admitted).count();
                    assert!(!is_untried || serve == 1, "not on trial, and others serve");
                }
                Action::AdmitOnTrial { worker, every } => {
                    assert!(std::mem::take(&mut self.is_trial_due), "a trial that nobody asked for");
                    assert!(every >= 2, "some of the requests are the others'");
                    assert!(self.on_trial.is_none(), "one at a time");
                    let process = self.alive.get_mut(&worker.0).expect("admits the living");
                    assert_eq!(process.life, Life::Booting, "admits once");
                    process.life = Life::Admitted;
                    process.may_be_told = false;
                    process.has_served = true;
                    self.on_trial = Some(worker.0);
                    self.trials += 1;
                }
                Action::Replaced { why } => self.replaced.push(why),
                Action::NoTrial => self.is_trial_due = false,
                Action::EndTrial => self.on_trial = None,
                Action::Readmit { worker } => {
                    let process = self.alive.get_mut(&worker.0).expect("readmits the living");
                    assert_eq!(process.life, Life::Reserve, "only who was in reserve is back");
                    process.life = Life::Admitted;
                    // One that is stuck may have come back in this moment.
                    process.may_be_told &= self
                        .fleet
                        .members()
                        .any(|(slot, member)| member.worker == worker && self.fleet.slots[slot].is_stuck());
                }
                Action::Withdraw { worker } if self.is_reserve(worker) => {
                    let process = self.alive.get_mut(&worker.0).expect("withdraws the living");
                    process.life = Life::Reserve;
                    // Nothing is to come of it.
                    self.fleet.idle(worker, self.now);
                }
                Action::Withdraw { worker } => {
                    let holds_streams = self.fleet.find(worker).is_some_and(|(_, member)| member.has_streams);
                    let is_idle = self.chance(2) && !holds_streams;
                    let Some(process) = self.alive.get_mut(&worker.0) else { continue };
                    process.life = Life::Withdrawn;
                    process.may_be_told |= is_idle;
                    // Some are idle and leave at once, others have a request in hand.
                    if is_idle {
                        self.fleet.idle(worker, self.now);
                    }
                }
                Action::Terminate { worker } => {
                    let process = self.alive.get(&worker.0).expect("signals only children not yet reaped");
                    let is_fit = process.drains || process.may_be_told;
                    assert!(is_fit, "{worker:?}: SIGTERM in mid-answer to one that dies of it");
                    assert_ne!(process.life, Life::Admitted, "{worker:?}: SIGTERM, and still on the stack");
                }
                Action::Cut { worker } => {
                    let process = self.alive.get_mut(&worker.0).expect("cuts the living");
                    assert_ne!(process.life, Life::Admitted, "{worker:?}: cut while it is on the stack");
                    process.is_cut = true;
                    process.may_be_told = true;
                }
                Action::Kill { worker } => {
                    let process = self.alive.get(&worker.0).expect("signals only children not yet reaped");
                    assert!(process.is_cut, "{worker:?}: its connections are closed before it is killed");
                }
                Action::Wait { slot, failures, wait } => {
                    assert!(failures > 0 && wait <= Duration::from_secs(30), "slot {slot}: {wait:?}");
                }
                Action::RollBegins => {
                    self.has_next_release = true;
                    (self.started_by_roll, self.had_roll_template) = (0, false);
                    self.is_trial_due = self.asks_for_trial;
                    self.forget_new();
                }
                Action::Adopt => {
                    assert!(self.has_next_release, "adopts what a roll has brought");
                    self.has_next_release = false;
                    assert!(!self.is_trial_due, "adopts what was not tried");
                    // The old one's is ended, and the new one's is the good one's.
                    self.templates.retain(|_, (release, _)| *release == Release::New);
                    self.templates.values_mut().for_each(|(release, _)| *release = Release::Good);
                }
                Action::RollProgress { replaced, of } => {
                    assert!(replaced <= of, "{replaced} of {of}");
                    self.progress = (replaced, of);
                }
                Action::RollEnded(end) => {
                    assert!(self.rolls_asked, "an end that nobody waits for");
                    if let RollEnd::TemplateFailed { .. } = end {
                        let was_ready = self.had_roll_template;
                        assert!(
                            was_ready || self.started_by_roll == 0,
                            "a worker was touched before its template"
                        );
                    }
                    self.rolls_asked = false;
                    self.has_next_release = false;
                    self.is_trial_due = false;
                    self.forget_new();
                    self.roll_end = Some(end);
                }
                Action::GiveUp => {
                    assert!(!self.plan.keep_trying, "goes on when asked to");
                    self.has_given_up = true;
                }
            }
        }
        self.check();
    }

    fn step(&mut self) {
        let now = self.now;
        match next(&mut self.random) % 25 {
            0..=5 => self.pass_time(),
            6..=10 => {
                if let Some(key) = self.pick(|life| life == Life::Booting) {
                    tell!(self, "join {key}");
                    self.join(key);
                    if self.chance(5) {
                        self.fleet.joined(WorkerKey(key), true, now);
                    }
                }
            }
            11 => {
                if let Some(key) = self.pick(|_| true) {
                    self.exit(key);
                }
            }
            12 => {
                if let Some(key) = self.pick(|life| life == Life::Admitted) {
                    match next(&mut self.random) % 4 {
                        0 => {
                            tell!(self, "retire {key}");
                            self.fleet.retire(WorkerKey(key), RetireReason::Memory, now);
                        }
                        1 => {
                            tell!(self, "used up {key}");
                            self.fleet.note_used_up(WorkerKey(key), now);
                        }
                        more => {
                            let has_streams = more == 2;
                            tell!(self, "streams of {key}: {has_streams}");
                            self.fleet.note_streams(WorkerKey(key), has_streams, now);
                        }
                    }
                }
            }
            13 => {
                if let Some(key) = self.pick(|life| life == Life::Admitted) {
                    tell!(self, "quit {key}");
                    let ending = match (self.alive[&key].has_served, self.chance(2)) {
                        (true, _) => Ending::Served,
                        (false, true) => Ending::Quit,
                        (false, false) => Ending::Failed,
                    };
                    self.has_quit.insert(key);
                    self.fleet.quit(WorkerKey(key), ending, now);
                }
            }
            14 => {
                if let Some(key) = self.pick(|life| life != Life::Booting) {
                    tell!(self, "stuck {key}");
                    let has_others = self.chance(4);
                    // It has had its time; how long the others in it get is the reactor's simulation to tell.
                    self.alive.get_mut(&key).expect("it was picked").may_be_told = true;
                    self.fleet.stuck(WorkerKey(key), has_others, now);
                }
            }
            15 => {
                // What ended before was told before.
                self.obey();
                if self.has_given_up {
                    return;
                }
                tell!(self, "reload");
                self.rolls_asked = true;
                let length = match next(&mut self.random) % 4 {
                    0 => Some(TrialLength::Requests(60)),
                    1 => Some(TrialLength::Time(Duration::from_millis(300))),
                    _ => None,
                };
                let canary = length.map(|length| CanaryPlan { length, max_errors_percent: 5 });
                self.asks_for_trial = canary.is_some();
                self.fleet.reload(canary, now);
            }
            16 => {
                let needed = 1 + (next(&mut self.random) % 4) as usize;
                self.grow(needed);
            }
            17 if self.chance(4) => self.give_up_spare_slot(),
            17 => {
                if let Some(key) = self.pick(|life| life == Life::Admitted) {
                    self.shrink(key);
                }
            }
            18 => {
                if let Some(key) = self.pick(|life| life == Life::Withdrawn) {
                    tell!(self, "idle {key}");
                    self.alive.get_mut(&key).expect("it was picked").may_be_told = true;
                    self.fleet.idle(WorkerKey(key), now);
                }
            }
            20..=24 => self.step_templates(),
            _ => {
                if self.chance(40) {
                    tell!(self, "drain");
                    self.fleet.drain(now);
                } else if self.chance(2) {
                    self.change_size();
                }
            }
        }
        if self.fleet.is_judging() && self.chance(2) {
            self.answer_some();
        }
        let idle = self.pick(|life| life == Life::Admitted).filter(|_| self.chance(2));
        self.fleet.trim(idle.map(WorkerKey), self.now);
        // The reactor hears of several things within a tick before it does what follows.
        if !self.chance(4) {
            self.obey();
        }
    }

    /// An operator wants one worker more or fewer.
    fn change_size(&mut self) {
        let change = if self.chance(2) { Resize::More } else { Resize::Fewer };
        tell!(self, "{change:?}");
        let before = (self.plan.min_workers, self.plan.max_workers);
        let is_done = self.fleet.change_size(change, self.now);
        (self.plan.min_workers, self.plan.max_workers) = match change {
            _ if !is_done => before,
            Resize::More => (before.0 + 1, before.1 + 1),
            Resize::Fewer => (before.0 - 1, before.1 - 1),
        };
        assert!(self.plan.min_workers >= 1 && (is_done || change == Resize::Fewer || self.is_over()));
    }

    fn is_over(&self) -> bool {
        self.fleet.stage != Stage::Running
    }

    /// To the edge of a deadline, a little, or far.
    fn pass_time(&mut self) {
        let step_ms = [1, 20, 100, 11_000][(next(&mut self.random) % 4) as usize];
        let far = self.now + Duration::from_millis(step_ms);
        self.now = match self.fleet.next_deadline() {
            Some(deadline) if self.chance(2) || deadline < far => deadline,
            _ => far,
        };
        tell!(self, "time {:?}", self.now);
        self.fleet.tick(self.now);
    }

    fn join(&mut self, key: usize) {
        let drains = self.chance(2);
        self.join_as(key, drains);
    }

    fn join_as(&mut self, key: usize, drains: bool) {
        let found = self.fleet.find(WorkerKey(key));
        if found.is_some_and(|(_, member)| matches!(member.phase(), Phase::Booting { .. })) {
            self.alive.get_mut(&key).expect("it joins").drains = drains;
        }
        self.fleet.joined(WorkerKey(key), drains, self.now);
    }

    fn exit(&mut self, key: usize) {
        tell!(self, "exit {key}");
        let Some(process) = self.alive.remove(&key) else { return };
        let was_front = self.fleet.slots[process.slot].front();
        self.fleet.exited(WorkerKey(key), process.has_served, self.now);
        let was_alone = matches!(was_front, Front::Held(member) if member.worker == WorkerKey(key));
        let may_start = self.fleet.stage == Stage::Running && !self.fleet.waits_for_template();
        if was_alone && process.has_served && may_start {
            let front = self.fleet.slots[process.slot].front();
            assert!(!matches!(front, Front::Empty { .. }), "who has served is started again at once");
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(trace) = &self.trace
        {
            eprintln!("{}", trace.join("\n"));
        }
    }
}

fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random >> 11
}

/// How many successors were on trial.
fn play(seed: u64, steps: usize) -> usize {
    let mut world = World::new(seed);
    for _ in 0..steps {
        if world.has_given_up {
            break;
        }
        world.step();
    }
    if world.fleet.stage == Stage::Running && !world.has_given_up {
        world.settle();
    }
    world.stop();
    world.trials
}

#[test]
fn every_history_keeps_the_fleet_whole() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("RIP_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RIP_SIMULATIONS").unwrap_or(10_000),
    };
    let (count, mut trials) = (seeds.end - seeds.start, 0);
    for seed in seeds {
        match std::panic::catch_unwind(|| play(seed, 120)) {
            Ok(of_this) => trials += of_this,
            Err(_) => {
                // The shortest beginning of the history that fails tells most.
                let steps = (0..=120)
                    .find(|&steps| std::panic::catch_unwind(|| play(seed, steps)).is_err())
                    .unwrap_or(120);
                panic!("seed {seed} fails within {steps} steps: RIP_SEED={seed} cargo test fleet");
            }
        }
    }
    assert!(trials > 0 || count < 10_000, "nobody was ever on trial");
}
