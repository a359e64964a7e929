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
const MAX_TRIAL: Duration = Duration::from_secs(if cfg!(any(test, fuzzing)) { 20 } else { 3600 });

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
                if self.failed_before.len() < MAX_TARGETS || self.failed_before.contains_key(&target) {
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

    /// So many answers on each side, and failures among them, all to different targets.
    fn verdict_of(plan: CanaryPlan, own: (u64, u64), others: (u64, u64), after: Duration) -> Verdict {
        let now = Instant::now();
        let mut trial = Trial::new(plan, now);
        let mut target = 0;
        for (is_own, (answers, failed)) in [(true, own), (false, others)] {
            for number in 0..answers {
                target += 1;
                let outcome = if number < failed { TrialOutcome::Failed } else { TrialOutcome::Fine };
                trial.note(is_own, target, outcome, now);
            }
        }
        trial.verdict(now + after)
    }

    /// With how many failures of so many answers of its own a release is first undone.
    fn undone_from(requests: u64, percent: u64, own: u64, others: (u64, u64)) -> Option<u64> {
        let plan = CanaryPlan { length: TrialLength::Requests(requests), max_errors_percent: percent };
        (0..=own).find(|failed| verdict_of(plan, (own, *failed), others, Duration::ZERO) == Verdict::Bad)
    }

    #[test]
    fn a_release_is_undone_where_chance_and_what_is_allowed_do_not_explain_its_failures() {
        // Computed apart: shares with one failure and one success added to each side, four deviations of their
        // difference beyond what is allowed while the trial goes on, two and a half in all at its end.
        assert_eq!(undone_from(51, 5, 50, (50, 0)), Some(17));
        assert_eq!(undone_from(51, 5, 50, (150, 0)), Some(16));
        assert_eq!(undone_from(61, 5, 60, (300, 15)), Some(22));
        assert_eq!(undone_from(201, 1, 200, (600, 6)), Some(23));
        assert_eq!(undone_from(401, 0, 400, (100, 20)), Some(156));
        assert_eq!(undone_from(101, 10, 100, (2000, 1000)), Some(78));
        // At the end.
        assert_eq!(undone_from(50, 5, 50, (50, 0)), Some(7));
        assert_eq!(undone_from(50, 5, 50, (150, 0)), Some(7));
        assert_eq!(undone_from(60, 5, 60, (300, 15)), Some(11));
        assert_eq!(undone_from(200, 1, 200, (600, 6)), Some(11));
        assert_eq!(undone_from(400, 0, 400, (100, 20)), Some(127));
        assert_eq!(undone_from(100, 10, 100, (2000, 1000)), Some(63));
    }

    #[test]
    fn exactly_what_is_allowed_is_allowed() {
        let plan = CanaryPlan { length: TrialLength::Requests(10_000), max_errors_percent: 5 };
        assert_eq!(verdict_of(plan, (10_000, 1000), (10_000, 500), Duration::ZERO), Verdict::Good);
        assert_eq!(verdict_of(plan, (10_000, 1001), (10_000, 500), Duration::ZERO), Verdict::Bad);
    }

    #[test]
    fn there_is_no_verdict_before_fifty_answers_on_each_side_nor_before_the_trials_end() {
        let requests = CanaryPlan { length: TrialLength::Requests(60), max_errors_percent: 5 };
        for (own, others, verdict) in
            [(60, 49, Verdict::Undecided), (60, 50, Verdict::Good), (59, 50, Verdict::Undecided)]
        {
            assert_eq!(verdict_of(requests, (own, 0), (others, 0), Duration::ZERO), verdict);
        }
        let own = (50, 50);
        assert_eq!(verdict_of(requests, own, (49, 0), Duration::ZERO), Verdict::Undecided);
        assert_eq!(verdict_of(requests, own, (50, 0), Duration::ZERO), Verdict::Bad);
        let ten = Duration::from_secs(10);
        let time = CanaryPlan { length: TrialLength::Time(ten), max_errors_percent: 5 };
        let moment = Duration::from_millis(1);
        assert_eq!(verdict_of(time, (50, 0), (50, 0), ten - moment), Verdict::Undecided);
        assert_eq!(verdict_of(time, (50, 0), (50, 0), ten), Verdict::Good);
        assert_eq!(verdict_of(time, (49, 0), (50, 0), ten), Verdict::Undecided);
        let long = CanaryPlan { length: TrialLength::Requests(5000), max_errors_percent: 5 };
        assert_eq!(verdict_of(long, (50, 0), (50, 0), MAX_TRIAL - moment), Verdict::Undecided);
        assert_eq!(verdict_of(long, (50, 0), (50, 0), MAX_TRIAL), Verdict::Good);
        assert_eq!(verdict_of(long, (49, 0), (49, 0), MAX_TRIAL - moment), Verdict::Undecided);
        assert_eq!(verdict_of(long, (49, 49), (49, 0), MAX_TRIAL), Verdict::Good, "too few to judge by");
    }

    #[test]
    fn a_bounded_number_of_failed_targets_is_remembered_on_each_side_and_of_more_each_failure_counts() {
        let now = Instant::now();
        let fails = |trial: &mut Trial, is_own: bool, targets: std::ops::RangeInclusive<u64>, at: Instant| {
            targets.for_each(|target| trial.note(is_own, target, TrialOutcome::Failed, at));
        };
        // On the new release first: what the old one fails at as well is forgiven, where it is remembered.
        let mut trial = Trial::new(PLAN, now);
        fails(&mut trial, true, 1..=1025, now);
        fails(&mut trial, true, 1..=1, now);
        fails(&mut trial, false, 1025..=1025, now);
        assert_eq!(trial.own(), Tally { answers: 1026, failed: 1026 });
        fails(&mut trial, false, 1..=1, now);
        assert_eq!(trial.own(), Tally { answers: 1024, failed: 1024 });
        // On the old one first.
        let mut trial = Trial::new(PLAN, now);
        fails(&mut trial, false, 1..=1025, now);
        fails(&mut trial, true, 1024..=1025, now);
        assert_eq!(trial.own(), Tally { answers: 1, failed: 1 }, "the last one was one too many");
        // Remembered for as long as it goes on.
        fails(&mut trial, false, 1..=1, now + REMEMBERED_FOR / 2);
        fails(&mut trial, true, 1..=1, now + REMEMBERED_FOR);
        assert_eq!(trial.own(), Tally { answers: 1, failed: 1 });
        assert_eq!(trial.others(), Tally { answers: 1025, failed: 1025 }, "each target once");
        // When others are forgotten there is room for more.
        fails(&mut trial, false, 2000..=2000, now + REMEMBERED_FOR);
        fails(&mut trial, true, 2000..=2000, now + REMEMBERED_FOR);
        assert_eq!(trial.own(), Tally { answers: 1, failed: 1 });
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
