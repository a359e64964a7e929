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

    /// Every so many milliseconds a request is served, and every so many one is lost, for two seconds: after how long
    /// the order turns.
    fn turns_after_ms(dispatch_every: u64, loss_every: u64) -> Option<u64> {
        let mut play = Play::new(QueueRule::Adaptive);
        (0..2000).find(|ms| {
            if ms % dispatch_every == 0 {
                play.order.on_dispatch(play.now);
            }
            if ms % loss_every == 0 {
                play.order.on_loss(play.now);
            }
            let has_turned = play.order.serving() == Serving::NewestFirst;
            play.now += Duration::from_millis(1);
            has_turned
        })
    }

    #[test]
    fn what_lies_up_to_the_longest_pause_apart_is_one_overload_and_what_lies_further_apart_is_none() {
        assert_eq!(turns_after_ms(1, 1), Some(400), "as soon as it has lasted");
        assert_eq!((turns_after_ms(100, 10), turns_after_ms(101, 10)), (Some(400), None), "requests served");
        assert_eq!((turns_after_ms(10, 100), turns_after_ms(10, 101)), (Some(400), None), "requests lost");
    }

    #[test]
    fn losses_count_until_the_longest_pause_after_the_last_request_served() {
        // Served at the start and 401 ms later, lost in between; the later one is too late to count.
        for (pause_ms, is_one) in [(100, true), (101, false)] {
            let mut play = Play::new(QueueRule::Adaptive);
            play.overload(400);
            play.now += Duration::from_millis(pause_ms);
            play.order.on_loss(play.now);
            assert_eq!(play.order.serving() == Serving::NewestFirst, is_one, "{pause_ms} ms");
        }
    }

    #[test]
    fn an_overload_is_the_same_one_until_the_longest_wait_for_a_trial_is_over() {
        for (after, turns_after_ms) in [(0, 60), (9930, 60), (9940, 410)] {
            let mut play = Play::new(QueueRule::Adaptive);
            play.overload(450);
            play.order.on_idle(play.now);
            let turned = play.now;
            play.now += Duration::from_millis(after);
            let since = play.now;
            while play.overload(10) == Serving::OldestFirst {}
            assert_eq!((play.now - since).as_millis(), turns_after_ms, "{after} ms after {turned:?}");
        }
    }

    #[test]
    fn a_trial_begins_when_its_wait_is_over_and_not_before() {
        let mut play = Play::new(QueueRule::Adaptive);
        play.overload(450);
        let turned = play.order.since().expect("it has turned");
        assert_eq!(play.order.on_dispatch(turned + Duration::from_millis(999)), Serving::NewestFirst);
        assert_eq!(play.order.on_dispatch(turned + Duration::from_millis(1000)), Serving::OldestFirst);
    }

    #[test]
    fn status_tells_the_order_since_when_it_is_so_and_how_often_it_has_changed() {
        let mut play = Play::new(QueueRule::Adaptive);
        let told = |order: &Order| (order.serving().code(), order.since(), order.changes());
        assert_eq!(told(&play.order), ("oldest first", None, 0));
        play.overload(410);
        assert_eq!(told(&play.order), ("newest first", Some(play.now), 1));
        play.now += Duration::from_millis(5);
        play.order.on_idle(play.now);
        assert_eq!(told(&play.order), ("oldest first", Some(play.now), 2));
        play.order.on_idle(play.now + MAX_PAUSE);
        assert_eq!(told(&play.order), ("oldest first", Some(play.now), 2), "it was so already");
    }

    #[test]
    fn fifo_stays_in_order() {
        let mut play = Play::new(QueueRule::Fifo);
        assert_eq!(play.overload(6000), Serving::OldestFirst);
    }
}
