//! What the last ten minutes were like, second by second. Pure: the time and the counters come in.
//!
//! A second is closed by the first tick after it. Until that tick nothing was counted and nobody came or went, so a
//! server that is idle has nothing to do for its history: any number of idle seconds is one entry.

use super::histogram::Histogram;
use super::metrics::Tally;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// How far back it goes. Who looks at a page asks what was a moment ago; longer times are for Prometheus.
pub(crate) const HISTORY_S: u64 = 600;

/// How much there is to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Requests that wait for a worker.
    pub waiting: usize,
    /// Workers with a request.
    pub at_work: usize,
    /// Of how many.
    pub workers: usize,
}

#[derive(Debug)]
pub(crate) struct History {
    start: Instant,
    /// The second that has not ended, counted from the start.
    second: u64,
    /// The most of each in that second.
    load: Load,
    /// The counters at its beginning.
    before: Tally,
    /// At most [`HISTORY_S`], as each covers a second or more.
    runs: VecDeque<Run>,
}

/// Seconds in a row that were alike.
#[derive(Debug)]
struct Run {
    first: u64,
    seconds: u64,
    figures: Figures,
}

/// What a second was like.
#[derive(Debug, Default, PartialEq)]
struct Figures {
    by_class: [u64; 5],
    median: Option<Duration>,
    p99: Option<Duration>,
    /// The 99th percentile of the waits for a worker.
    wait: Option<Duration>,
    load: Load,
    refusals: BTreeMap<&'static str, u64>,
}

impl History {
    pub(crate) fn new(now: Instant) -> Self {
        History {
            start: now,
            second: 0,
            load: Load::default(),
            before: Tally::default(),
            runs: VecDeque::new(),
        }
    }

    /// A tick begins: `load` has been there since the one before. `tally` gives what is counted until now.
    pub(crate) fn note(&mut self, load: Load, now: Instant, tally: impl FnOnce() -> Tally) {
        self.load = Load {
            waiting: self.load.waiting.max(load.waiting),
            at_work: self.load.at_work.max(load.at_work),
            workers: self.load.workers.max(load.workers),
        };
        let second = now.saturating_duration_since(self.start).as_secs();
        if second == self.second {
            return;
        }
        let tally = tally();
        let figures = Figures::between(&self.before, &tally, self.load);
        self.push(self.second, 1, figures);
        let idle = second - self.second - 1;
        if idle > 0 {
            self.push(self.second + 1, idle, Figures { load, ..Figures::default() });
        }
        (self.second, self.load, self.before) = (second, load, tally);
        let oldest = second.saturating_sub(HISTORY_S);
        while self.runs.front().is_some_and(|run| run.first + run.seconds <= oldest) {
            self.runs.pop_front();
        }
    }

    fn push(&mut self, first: u64, seconds: u64, figures: Figures) {
        match self.runs.back_mut().filter(|run| run.figures == figures) {
            Some(run) => run.seconds += seconds,
            None => self.runs.push_back(Run { first, seconds, figures }),
        }
    }

    /// The second that has not ended.
    pub(crate) fn second(&self) -> u64 {
        self.second
    }

    /// When it ends.
    pub(crate) fn next_second(&self) -> Instant {
        self.start + Duration::from_secs(self.second + 1)
    }

    /// The seconds from `from` on that have ended: `{"second": <the one that has not>, "runs": […]}`.
    pub(crate) fn since(&self, from: u64) -> Value {
        let from = from.max(self.second.saturating_sub(HISTORY_S));
        let runs = self.runs.iter().filter(|run| run.first + run.seconds > from);
        let runs: Vec<Value> = runs.map(|run| run.to_json(from)).collect();
        json!({"second": self.second, "runs": runs})
    }
}

impl Run {
    fn to_json(&self, from: u64) -> Value {
        let first = self.first.max(from);
        let Figures { by_class, median, p99, wait, load, refusals } = &self.figures;
        let ms = |time: &Option<Duration>| time.map(|time| time.as_micros() as f64 / 1000.0);
        json!({
            "second": first,
            "seconds": self.first + self.seconds - first,
            "answers": by_class,
            "p50Ms": ms(median),
            "p99Ms": ms(p99),
            "waitMs": ms(wait),
            "waiting": load.waiting,
            "atWork": load.at_work,
            "workers": load.workers,
            "refusals": refusals,
        })
    }
}

impl Figures {
    /// What was counted from one look at the counters to the next one.
    fn between(before: &Tally, after: &Tally, load: Load) -> Self {
        let grown = |index: usize| after.by_class[index].saturating_sub(before.by_class[index]);
        let mut refusals = BTreeMap::new();
        for (code, count) in &after.refusals {
            let earlier = before.refusals.get(code).copied().unwrap_or(0);
            if *count > earlier {
                refusals.insert(*code, *count - earlier);
            }
        }
        let quantile = |before: &Histogram, after: &Histogram, share| after.since(before).quantile(share);
        Figures {
            by_class: std::array::from_fn(grown),
            median: quantile(&before.total, &after.total, 0.5),
            p99: quantile(&before.total, &after.total, 0.99),
            wait: quantile(&before.queue, &after.queue, 0.99),
            load,
            refusals,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Load = Load { waiting: 0, at_work: 0, workers: 4 };

    /// A history, its time in ms, and its counters.
    struct World {
        history: History,
        start: Instant,
        tally: Tally,
    }

    impl World {
        fn new() -> World {
            let start = Instant::now();
            World { history: History::new(start), start, tally: Tally::default() }
        }

        fn tick(&mut self, at_ms: u64, load: Load) {
            let now = self.start + Duration::from_millis(at_ms);
            self.history.note(load, now, || self.tally.clone());
        }

        fn runs(&self, from: u64) -> Vec<Value> {
            self.history.since(from)["runs"].as_array().cloned().unwrap_or_default()
        }
    }

    #[test]
    fn what_is_counted_belongs_to_the_second_of_its_tick() {
        let mut world = World::new();
        world.tick(900, IDLE);
        world.tally.by_class[1] = 7;
        world.tally.refusals.insert("queue_full", 2);
        // The next tick comes long after.
        world.tick(5300, Load { at_work: 3, ..IDLE });
        let runs = world.runs(0);
        assert_eq!((&runs[0]["second"], &runs[0]["seconds"]), (&json!(0), &json!(1)));
        assert_eq!((&runs[0]["answers"], &runs[0]["atWork"]), (&json!([0, 7, 0, 0, 0]), &json!(3)));
        assert_eq!(runs[0]["refusals"], json!({"queue_full": 2}));
        assert_eq!((&runs[1]["second"], &runs[1]["seconds"]), (&json!(1), &json!(4)));
        assert_eq!((&runs[1]["answers"], &runs[1]["atWork"]), (&json!([0, 0, 0, 0, 0]), &json!(3)));
        assert_eq!(world.history.second(), 5);
        assert_eq!(world.history.next_second(), world.start + Duration::from_secs(6));
    }

    #[test]
    fn a_second_has_the_most_that_was_in_it() {
        let mut world = World::new();
        for (at_ms, at_work) in [(100, 1), (500, 4), (900, 2), (1100, 0)] {
            world.tick(at_ms, Load { at_work, ..IDLE });
        }
        assert_eq!(world.runs(0)[0]["atWork"], 4);
    }

    #[test]
    fn idle_seconds_are_one_entry_and_ten_minutes_are_kept() {
        let mut world = World::new();
        for second in 1..2000 {
            world.tick(second * 1000, IDLE);
        }
        assert_eq!(world.history.runs.len(), 1);
        assert_eq!(world.runs(0)[0]["seconds"], HISTORY_S);
        for second in 2000..4000 {
            world.tally.by_class[1] += second;
            world.tick(second * 1000, IDLE);
            assert!(world.history.runs.len() as u64 <= HISTORY_S);
        }
        let runs = world.runs(0);
        assert_eq!((runs.len() as u64, &runs[0]["second"]), (HISTORY_S, &json!(3999 - HISTORY_S)));
        // Whoever has seen the rest gets what is new.
        assert_eq!(world.runs(3998).len(), 1);
        assert!(world.runs(3999).is_empty());
        // A day without a tick costs nothing.
        world.tick(86_400_000, IDLE);
        assert_eq!(world.history.runs.len(), 1);
    }
}
