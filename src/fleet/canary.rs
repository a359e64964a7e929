//! Whether a new release that a first worker serves on trial is as good as the old one. Pure: what became of requests
//! comes in with the time, a verdict goes out.
//!
//! Counted are the app's own 5xx, deaths and hangs. Targets that have failed on the old release within a minute count
//! on neither side: they say nothing of the new one, and one client that asks for them again and again would.

use crate::control::{CanaryPlan, TrialLength};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Fewer answers on either side say nothing.
const MIN_ANSWERS: u64 = 50;
/// For so long a target that has failed on the old release is no sign against the new one.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// So many failed targets are remembered on each side; of more, the rest counts.
const MAX_TARGETS: usize = 1024;
/// Before the trial's end the new release has to be worse by so many standard deviations beyond what is allowed: of a
/// thousand looks at a good one none is to be mistaken.
const EARLY_SIGMAS: f64 = 4.0;
/// At its end, what is beyond what is allowed has to be no accident of few answers.
const FINAL_SIGMAS: f64 = 2.5;
/// With too little traffic to judge by, the reload goes on after so long.
const MAX_TRIAL: Duration = Duration::from_secs(if cfg!(any(test, fuzzing)) { 20 } else { 60 * 60 });

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrialOutcome {
    Fine,
    /// The app's own 5xx, a death or a hang.
    Failed,
}

/// Answers, and how many of them failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub answers: u64,
    pub failed: u64,
}

impl Tally {
    fn note(&mut self, outcome: TrialOutcome) {
        self.answers += 1;
        self.failed += u64::from(outcome == TrialOutcome::Failed);
    }

    fn forget_failures(&mut self, count: u64) {
        self.answers -= count;
        self.failed -= count;
    }

    fn share(self) -> f64 {
        self.failed as f64 / self.answers.max(1) as f64
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Undecided,
    Good,
    Bad,
}

#[derive(Debug)]
pub(crate) struct Trial {
    plan: CanaryPlan,
    since: Instant,
    own: Tally,
    others: Tally,
    /// Targets that have failed on the old release, and when last.
    failed_before: HashMap<u64, Instant>,
    /// How often targets have failed on the new one.
    failed_now: HashMap<u64, u64>,
}

impl Trial {
    pub(crate) fn new(plan: CanaryPlan, now: Instant) -> Self {
        Trial {
            plan,
            since: now,
            own: Tally::default(),
            others: Tally::default(),
            failed_before: HashMap::new(),
            failed_now: HashMap::new(),
        }
    }

    pub(crate) fn own(&self) -> Tally {
        self.own
    }

    pub(crate) fn others(&self) -> Tally {
        self.others
    }

    /// When the clock alone may end it.
    pub(crate) fn deadline(&self, now: Instant) -> Instant {
        let longest = self.since + MAX_TRIAL;
        match self.plan.length {
            TrialLength::Time(time) if now < self.since + time => longest.min(self.since + time),
            TrialLength::Time(_) | TrialLength::Requests(_) => longest,
        }
    }

    /// A request to `target` has ended, on the new release or on the old one.
    pub(crate) fn note(&mut self, is_own: bool, target: u64, outcome: TrialOutcome, now: Instant) {
        let is_known = |failed: &Instant| now < *failed + REMEMBERED_FOR;
        let failed_before = self.failed_before.get(&target).is_some_and(is_known);
        match (is_own, outcome) {
            (true, TrialOutcome::Fine) => self.own.note(outcome),
            (true, TrialOutcome::Failed) if failed_before => {}
            (true, TrialOutcome::Failed) => {
                self.own.note(outcome);
                if self.failed_now.len() < MAX_TARGETS || self.failed_now.contains_key(&target) {
                    *self.failed_now.entry(target).or_default() += 1;
                }
            }
            (false, TrialOutcome::Fine) => self.others.note(outcome),
            (false, TrialOutcome::Failed) => {
                // What the new one has failed at was no fault of its own.
                let count = self.failed_now.remove(&target).unwrap_or(0);
                self.own.forget_failures(count);
                if !failed_before {
                    self.others.note(outcome);
                }
                if self.failed_before.len() >= MAX_TARGETS {
                    self.failed_before.retain(|_, failed| is_known(failed));
                }
                if self.failed_before.len() < MAX_TARGETS {
                    self.failed_before.insert(target, now);
                }
            }
        }
    }

    pub(crate) fn verdict(&self, now: Instant) -> Verdict {
        let is_over = match self.plan.length {
            TrialLength::Requests(count) => self.own.answers >= count,
            TrialLength::Time(time) => now >= self.since + time,
        };
        if self.own.answers < MIN_ANSWERS || self.others.answers < MIN_ANSWERS {
            return if now >= self.since + MAX_TRIAL { Verdict::Good } else { Verdict::Undecided };
        }
        let (own, others) = (self.own.share(), self.others.share());
        let more = own - others;
        let allowed = self.plan.max_errors_percent as f64 / 100.0;
        let variance = |share: f64, answers: u64| {
            // As if each side had one failure and one success more: a side without any is not certain.
            let share = (share * answers as f64 + 1.0) / (answers as f64 + 2.0);
            share * (1.0 - share) / answers as f64
        };
        let sigma = (variance(own, self.own.answers) + variance(others, self.others.answers)).sqrt();
        if more - EARLY_SIGMAS * sigma > allowed {
            return Verdict::Bad;
        }
        match is_over || now >= self.since + MAX_TRIAL {
            true if more > allowed && more > FINAL_SIGMAS * sigma => Verdict::Bad,
            true => Verdict::Good,
            false => Verdict::Undecided,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: CanaryPlan = CanaryPlan { length: TrialLength::Requests(500), max_errors_percent: 5 };

    /// Four workers, one of them on trial; 5 % of failures everywhere, in bursts of one client that asks for the same
    /// target again and again, and so many more on the new release.
    fn play(seed: u64, more_percent: u64) -> Verdict {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 11) % below
        };
        let mut now = Instant::now();
        let mut trial = Trial::new(PLAN, now);
        let (mut burst, mut target) = (0, 0);
        loop {
            now += Duration::from_millis(2);
            let is_own = next(4) == 0;
            // A burst of ten begins so often that one request in twenty belongs to one.
            if burst == 0 && next(190) == 0 {
                (burst, target) = (10, 1_000_000 + next(1_000_000));
            }
            // Beside the rest.
            let is_burst = burst > 0 && next(2) == 0;
            burst -= u64::from(is_burst);
            let fails = is_burst || (is_own && next(100) < more_percent);
            let outcome = if fails { TrialOutcome::Failed } else { TrialOutcome::Fine };
            let asked = if is_burst { target } else { next(1000) };
            trial.note(is_own, asked, outcome, now);
            match trial.verdict(now) {
                Verdict::Undecided => {}
                verdict => return verdict,
            }
        }
    }

    #[test]
    fn good_releases_pass_and_those_that_fail_at_15_percent_do_not() {
        let undone = |more: u64| (1..=1000).filter(|seed| play(*seed, more) == Verdict::Bad).count();
        let (good, bad) = (undone(0), undone(10));
        assert!(good <= 1, "{good} of 1000 good ones undone");
        assert!(bad >= 990, "{bad} of 1000 bad ones undone");
    }

    #[test]
    fn one_that_fails_at_everything_is_undone_at_once() {
        let now = Instant::now();
        let mut trial = Trial::new(PLAN, now);
        for target in 0..60 {
            trial.note(false, target, TrialOutcome::Fine, now);
        }
        for target in 0..49 {
            trial.note(true, target, TrialOutcome::Failed, now);
            assert_eq!(trial.verdict(now), Verdict::Undecided);
        }
        trial.note(true, 49, TrialOutcome::Failed, now);
        assert_eq!(trial.verdict(now), Verdict::Bad);
    }

    #[test]
    fn what_fails_on_the_old_release_too_does_not_count() {
        let now = Instant::now();
        let mut trial = Trial::new(PLAN, now);
        // Before the old one has, and after.
        trial.note(true, 7, TrialOutcome::Failed, now);
        assert_eq!(trial.own(), Tally { answers: 1, failed: 1 });
        trial.note(false, 7, TrialOutcome::Failed, now);
        trial.note(true, 7, TrialOutcome::Failed, now);
        assert_eq!(trial.own(), Tally { answers: 0, failed: 0 });
        assert_eq!(trial.others(), Tally { answers: 1, failed: 1 });
        trial.note(true, 7, TrialOutcome::Failed, now + REMEMBERED_FOR);
        assert_eq!(trial.own().failed, 1, "that was long ago");
    }

    #[test]
    fn with_too_little_traffic_the_reload_goes_on_after_an_hour() {
        let now = Instant::now();
        let plan = CanaryPlan { length: TrialLength::Time(Duration::from_secs(10)), max_errors_percent: 5 };
        let trial = Trial::new(plan, now);
        assert_eq!(trial.deadline(now), now + Duration::from_secs(10));
        let later = now + Duration::from_secs(10);
        assert_eq!((trial.verdict(later), trial.deadline(later)), (Verdict::Undecided, now + MAX_TRIAL));
        assert_eq!(trial.verdict(now + MAX_TRIAL), Verdict::Good);
    }
}
