//! Whom of those who wait a free worker serves: the oldest, or the newest.
//!
//! ```text
//!            losses for 4 s (lately turned: 0.5 s), while others are served
//!  OldestFirst ──────────────────────────────────────────────────────────▶ NewestFirst
//!       ▲                                                                       │
//!       └──────── nobody waits any more, or it is time for another trial ───────┘
//! ```
//!
//! In order of arrival everybody waits equally long, which is right until that is longer than clients and the queue
//! timeout allow: from then on each is served just too late, or leaves a moment before. Newest first, those who are
//! served are served at once, and the rest is lost either way.
//!
//! What tells the two apart is that waiting requests are *lost*, by their timeout or because their clients leave, again
//! and again while others are served. Connections that each wait for their answer, however many, lose nothing as long
//! as their turn comes within the timeout; so they are served in order, and newest first would starve most of them. A
//! stall of all workers loses requests as well, but serves none meanwhile, and is over soon. `perf/queue-rules` plays
//! all of this.

use std::time::{Duration, Instant};

/// Losses for so long are no stall and no burst.
const TURN_AFTER: Duration = Duration::from_millis(if cfg!(any(test, fuzzing)) { 400 } else { 4000 });
/// The same within [`LONGEST_TRIAL_WAIT`] of the last turn: it is the same overload.
const TURN_AGAIN_AFTER: Duration = Duration::from_millis(if cfg!(any(test, fuzzing)) { 50 } else { 500 });
/// Losses, or requests served, that lie further apart are not one overload.
const MAX_PAUSE: Duration = Duration::from_millis(if cfg!(any(test, fuzzing)) { 100 } else { 1000 });
/// Newest first may be what keeps the losses going: after so long the order of arrival is tried again, and each time
/// that loses requests too, after twice the time.
const FIRST_TRIAL_WAIT: Duration = Duration::from_secs(if cfg!(any(test, fuzzing)) { 1 } else { 60 });
const LONGEST_TRIAL_WAIT: Duration = Duration::from_secs(if cfg!(any(test, fuzzing)) { 10 } else { 600 });

/// What `--queue` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueRule {
    /// First come, first served.
    Fifo,
    /// The same, and newest first in a lasting overload.
    Adaptive,
}

/// Which waiting request is served next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Serving {
    OldestFirst,
    NewestFirst,
}

impl Serving {
    /// For status.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Serving::OldestFirst => "oldest first",
            Serving::NewestFirst => "newest first",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Order {
    rule: QueueRule,
    serving: Serving,
    /// Since when; `None`: since the start.
    since: Option<Instant>,
    changes: u64,
    losing: Option<Losing>,
    last_served: Option<Instant>,
    trial_wait: Duration,
    is_trial: bool,
}

/// Requests are being lost.
#[derive(Clone, Copy, Debug)]
struct Losing {
    since: Instant,
    last: Instant,
}

/// Getters.
impl Order {
    pub(crate) fn new(rule: QueueRule) -> Self {
        Order {
            rule,
            serving: Serving::OldestFirst,
            since: None,
            changes: 0,
            losing: None,
            last_served: None,
            trial_wait: FIRST_TRIAL_WAIT,
            is_trial: false,
        }
    }

    pub(crate) fn serving(&self) -> Serving {
        self.serving
    }

    /// Since when it is so; `None`: since the start.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.since
    }

    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }
}

/// Events in.
impl Order {
    /// A worker is free, and somebody waits: whom it serves.
    pub(crate) fn on_dispatch(&mut self, now: Instant) -> Serving {
        if self.rule == QueueRule::Fifo {
            return Serving::OldestFirst;
        }
        if self.last_served.is_none_or(|last| now > last + MAX_PAUSE) {
            self.losing = None;
        }
        self.last_served = Some(now);
        if self.serving == Serving::NewestFirst
            && self.since.is_some_and(|since| now >= since + self.trial_wait)
        {
            self.change(Serving::OldestFirst, now);
            self.is_trial = true;
        }
        self.serving
    }

    /// A worker is free, and nobody waits.
    pub(crate) fn on_idle(&mut self, now: Instant) {
        if self.serving == Serving::NewestFirst {
            self.change(Serving::OldestFirst, now);
            self.is_trial = false;
        }
    }

    /// A waiting request has timed out, or its client has left.
    pub(crate) fn on_loss(&mut self, now: Instant) {
        let is_serving = self.last_served.is_some_and(|last| now <= last + MAX_PAUSE);
        if self.rule == QueueRule::Fifo || self.serving == Serving::NewestFirst || !is_serving {
            return;
        }
        let since = match self.losing {
            Some(losing) if now <= losing.last + MAX_PAUSE => losing.since,
            Some(_) | None => now,
        };
        self.losing = Some(Losing { since, last: now });
        let was_lately = self.since.is_some_and(|changed| now < changed + LONGEST_TRIAL_WAIT);
        let limit = if was_lately { TURN_AGAIN_AFTER } else { TURN_AFTER };
        if now >= since + limit {
            self.trial_wait = match self.is_trial {
                true => (self.trial_wait * 2).min(LONGEST_TRIAL_WAIT),
                false => FIRST_TRIAL_WAIT,
            };
            self.change(Serving::NewestFirst, now);
        }
    }

    fn change(&mut self, serving: Serving, now: Instant) {
        self.serving = serving;
        self.since = Some(now);
        self.changes += 1;
        self.losing = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Play {
        order: Order,
        now: Instant,
    }

    impl Play {
        fn new(rule: QueueRule) -> Self {
            Play { order: Order::new(rule), now: Instant::now() }
        }

        /// For so many milliseconds a request is served and one is lost every 10.
        fn overload(&mut self, ms: u64) -> Serving {
            for _ in 0..ms / 10 {
                self.now += Duration::from_millis(10);
                self.order.on_dispatch(self.now);
                self.order.on_loss(self.now);
            }
            self.order.serving()
        }
    }

    #[test]
    fn lasting_losses_turn_the_order_and_an_empty_queue_turns_it_back() {
        let mut play = Play::new(QueueRule::Adaptive);
        assert_eq!(play.overload(400), Serving::OldestFirst);
        assert_eq!(play.overload(20), Serving::NewestFirst);
        play.order.on_idle(play.now);
        assert_eq!(play.order.serving(), Serving::OldestFirst);
        // The same overload goes on.
        assert_eq!(play.overload(70), Serving::NewestFirst);
        assert_eq!(play.order.changes(), 3);
    }

    #[test]
    fn a_stall_a_burst_and_losses_here_and_there_turn_nothing() {
        let mut play = Play::new(QueueRule::Adaptive);
        for _ in 0..10 {
            assert_eq!(play.overload(300), Serving::OldestFirst);
            play.now += MAX_PAUSE * 2;
        }
        // Nobody is served for a while, and everybody is lost.
        for _ in 0..100 {
            play.now += Duration::from_millis(10);
            play.order.on_loss(play.now);
        }
        assert_eq!(play.overload(300), Serving::OldestFirst);
    }

    #[test]
    fn the_order_of_arrival_is_tried_again_more_and_more_seldom() {
        let mut play = Play::new(QueueRule::Adaptive);
        let mut waits = Vec::new();
        play.overload(450);
        for _ in 0..6 {
            let since = play.now;
            while play.overload(10) == Serving::NewestFirst {}
            waits.push((play.now - since).as_secs_f64().round());
            while play.overload(10) == Serving::OldestFirst {}
        }
        assert_eq!(waits, [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]);
        // A trial that loses nobody lasts.
        while play.overload(10) == Serving::NewestFirst {}
        for _ in 0..10_000 {
            play.now += Duration::from_millis(10);
            assert_eq!(play.order.on_dispatch(play.now), Serving::OldestFirst);
        }
    }

    #[test]
    fn fifo_stays_in_order() {
        let mut play = Play::new(QueueRule::Fifo);
        assert_eq!(play.overload(6000), Serving::OldestFirst);
    }
}
