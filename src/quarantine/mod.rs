//! Requests in which workers die again and again are refused, so that they take no further worker with them. Pure:
//! deaths, hangs and arrivals come in with the time, verdicts go out.
//!
//! ```text
//!  (unknown) ─ a death ─▶ Suspected ─ another within a minute ─▶ Refused ─ a minute ─▶ Trial
//!       ▲                     │ a minute without one                ▲                   │
//!       └─────────────────────┴───────── it is answered ────────────┼───────────────────┤
//!                                                                   └──── it kills ─────┘
//! ```
//!
//! While nothing is remembered, which is nearly always, a request costs one look at [`Quarantine::is_empty`].

mod fingerprint;
#[cfg(any(test, fuzzing))]
mod simulation;

pub(crate) use fingerprint::{Fingerprint, MAX_HASHED_BODY_BYTES};

use fingerprint::Hasher;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Deaths that lie further apart have little to do with each other. It is also how long a request is refused before
/// one of its kind is let through.
const INTERVAL: Duration = Duration::from_secs(60);
/// So many requests are remembered: each stands for a worker's death, so that many within minutes mean that no table
/// helps. With some 400 bytes an entry that is 400 KiB.
const MAX_ENTRIES: usize = 1024;
/// Of each request the workers that died last are told.
const MAX_VICTIMS: usize = 4;
/// More refusals than one in so many are no protection any more, but an outage.
const LIFTED_ABOVE_ONE_IN: u64 = 100;
/// Below so many refusals a share says nothing.
const MIN_REFUSALS_TO_LIFT: u64 = 10;

/// A worker that a request has ended: its slot and its process.
pub(crate) type Victim = (usize, i32);

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passes,
    /// It is refused, but nobody of its kind has been tried for a minute: this one is.
    PassesOnTrial,
    Refused,
    /// So many requests would be refused that the whole table was emptied; this one passes.
    Lifted,
}

/// What a death has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Consequence {
    /// It does not count: the quarantine is off, or was lifted less than a minute ago.
    None,
    Remembered,
    /// From now on such requests are refused. `is_new`: they were not before.
    Refused {
        deaths: u32,
        is_new: bool,
    },
}

/// A remembered request, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row<'a> {
    /// Its method and path.
    pub request: &'a str,
    pub deaths: u32,
    /// The last workers that it has ended.
    pub victims: &'a [Victim],
    pub refused: u64,
    /// Until then all of its kind are refused.
    pub until: Instant,
}

#[derive(Debug)]
pub(crate) struct Quarantine {
    /// So many deaths, each within a minute of the one before, and a request is refused. 0: never.
    max_deaths: u32,
    hasher: Hasher,
    entries: BTreeMap<Fingerprint, Entry>,
    /// Workers whose connection has ended in the middle of a request, and whose end is not known yet.
    suspects: Vec<(usize, Suspect)>,
    window: Window,
    /// The last answer of any worker.
    last_answer: Option<Instant>,
    lifted_until: Option<Instant>,
    counts: Counts,
    /// Evictions that are to be told of when there are so many.
    tells_evictions_at: u64,
}

/// What happened, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Requests that began to be refused.
    pub quarantined: u64,
    /// Times that the table was emptied because it refused too much.
    pub lifted: u64,
    /// Entries that made room for others.
    pub evicted: u64,
}

/// A request that was at work in a worker whose connection has ended.
#[derive(Clone, Debug)]
pub(crate) struct Suspect {
    pub fingerprint: Fingerprint,
    /// Its method and path.
    pub request: String,
}

#[derive(Debug)]
struct Entry {
    request: String,
    deaths: u32,
    last_death: Instant,
    victims: Vec<Victim>,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Suspected,
    Refused {
        since: Instant,
        until: Instant,
        refused: u64,
        /// Who was refused last, as a hash: one client that repeats itself counts once in the share.
        last_client: Option<u64>,
    },
}

/// How many of the requests are refused. Counted only while the table is not empty.
#[derive(Debug, Default)]
struct Window {
    since: Option<Instant>,
    requests: u64,
    requests_before: u64,
    refused: u64,
}

impl Entry {
    /// Nothing has happened for so long that it is as if nothing ever had.
    fn is_over(&self, now: Instant) -> bool {
        match self.state {
            State::Suspected => now >= self.last_death + INTERVAL,
            State::Refused { until, .. } => now >= until + INTERVAL,
        }
    }
}

/// Getters.
impl Quarantine {
    /// `max_deaths`: 0 switches it off.
    pub(crate) fn new(max_deaths: u32) -> Self {
        Quarantine {
            max_deaths,
            hasher: Hasher::default(),
            entries: BTreeMap::new(),
            suspects: Vec::new(),
            window: Window::default(),
            last_answer: None,
            lifted_until: None,
            counts: Counts::default(),
            tells_evictions_at: 1,
        }
    }

    pub(crate) fn is_off(&self) -> bool {
        self.max_deaths == 0
    }

    /// Nothing is remembered: every request passes.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// The requests that are refused now.
    pub(crate) fn rows(&self, now: Instant) -> impl Iterator<Item = Row<'_>> {
        self.entries.values().filter(move |entry| !entry.is_over(now)).filter_map(|entry| match entry.state {
            State::Suspected => None,
            State::Refused { until, refused, .. } => Some(Row {
                request: &entry.request,
                deaths: entry.deaths,
                victims: &entry.victims,
                refused,
                until,
            }),
        })
    }

    /// Of a request, from its head as the worker gets it, and its body's length and first [`MAX_HASHED_BODY_BYTES`].
    pub(crate) fn fingerprint(&self, head: &[u8], body: impl FnOnce() -> (u64, Vec<u8>)) -> Fingerprint {
        let (length, start) = body();
        Fingerprint { head: self.hasher.head(head), body: self.hasher.body(length, &start) }
    }

    /// The same of one that arrives; `None`: no remembered one has such a head. Only else `body` is asked for: the length,
    /// and the first [`MAX_HASHED_BODY_BYTES`].
    pub(crate) fn known_fingerprint(
        &self,
        head: &[u8],
        body: impl FnOnce() -> (u64, Vec<u8>),
    ) -> Option<Fingerprint> {
        let head = self.hasher.head(head);
        let alike = Fingerprint { head, body: 0 }..=Fingerprint { head, body: u64::MAX };
        self.entries.range(alike).next()?;
        let (length, start) = body();
        Some(Fingerprint { head, body: self.hasher.body(length, &start) })
    }

    /// Of any bytes, with the run's key: who asks, for [`Quarantine::judge`].
    pub(crate) fn hash(&self, bytes: &[u8]) -> u64 {
        self.hasher.bytes(bytes)
    }
}

/// Events in, verdicts out.
impl Quarantine {
    /// A request has arrived, while something is remembered. `None`: no such head is known.
    pub(crate) fn judge(&mut self, request: Option<Fingerprint>, client: u64, now: Instant) -> Verdict {
        self.turn_window(now);
        self.window.requests += 1;
        let Some(entry) = request.and_then(|request| self.entries.get_mut(&request)) else {
            return Verdict::Passes;
        };
        if entry.is_over(now) {
            return Verdict::Passes;
        }
        let State::Refused { until, refused, last_client, .. } = &mut entry.state else {
            return Verdict::Passes;
        };
        if now >= *until {
            *until = now + INTERVAL;
            return Verdict::PassesOnTrial;
        }
        *refused += 1;
        if last_client.replace(client) != Some(client) {
            self.window.refused += 1;
        }
        if self.window.is_too_much() {
            self.counts.lifted += 1;
            self.lifted_until = Some(now + INTERVAL);
            self.clear();
            return Verdict::Lifted;
        }
        Verdict::Refused
    }

    /// Whether a request that has waited since `submitted` may still go to a worker: not if such requests have been
    /// refused since then.
    pub(crate) fn may_go_on(&self, request: Option<Fingerprint>, submitted: Instant, now: Instant) -> bool {
        match request.and_then(|request| self.entries.get(&request)) {
            Some(entry) => match entry.state {
                State::Refused { since, .. } => since < submitted || entry.is_over(now),
                State::Suspected => true,
            },
            None => true,
        }
    }

    /// A worker's connection has ended in the middle of a request: if the worker's end follows, that counts.
    pub(crate) fn suspect(&mut self, worker: usize, suspect: Suspect) {
        self.acquit(worker);
        self.suspects.push((worker, suspect));
    }

    /// The worker lives, and does something else.
    pub(crate) fn acquit(&mut self, worker: usize) {
        self.suspects.retain(|(other, _)| *other != worker);
    }

    /// The worker has ended: the request that it was at work on.
    pub(crate) fn take_suspect(&mut self, worker: usize) -> Option<Suspect> {
        let at = self.suspects.iter().position(|(other, _)| *other == worker)?;
        Some(self.suspects.swap_remove(at).1)
    }

    /// A worker has died in a request by itself, and was at work on nothing else.
    pub(crate) fn on_death(&mut self, suspect: Suspect, victim: Option<Victim>, now: Instant) -> Consequence {
        if self.is_off() || self.lifted_until.is_some_and(|until| now < until) {
            return Consequence::None;
        }
        let Suspect { fingerprint, request } = suspect;
        if !self.entries.contains_key(&fingerprint) {
            self.make_room(now);
        }
        let entry = self.entries.entry(fingerprint).or_insert_with(|| Entry {
            request,
            deaths: 0,
            last_death: now,
            victims: Vec::new(),
            state: State::Suspected,
        });
        if entry.is_over(now) {
            entry.deaths = 0;
            entry.victims.clear();
            entry.state = State::Suspected;
        }
        entry.deaths += 1;
        entry.last_death = now;
        if entry.victims.len() == MAX_VICTIMS {
            entry.victims.remove(0);
        }
        entry.victims.extend(victim);
        let (since, until) = (now, now + INTERVAL);
        let is_new = match &mut entry.state {
            State::Suspected if entry.deaths < self.max_deaths => return Consequence::Remembered,
            State::Suspected => {
                entry.state = State::Refused { since, until, refused: 0, last_client: None };
                self.counts.quarantined += 1;
                true
            }
            State::Refused { since: earlier, until: later, .. } => {
                (*earlier, *later) = (since, until);
                false
            }
        };
        Consequence::Refused { deaths: entry.deaths, is_new }
    }

    /// A worker is stuck in a request since `since`. That is the request's doing only if others answered meanwhile: else
    /// what all of them need may be gone.
    pub(crate) fn on_hang(
        &mut self,
        suspect: Suspect,
        victim: Option<Victim>,
        since: Instant,
        now: Instant,
    ) -> Consequence {
        match self.last_answer {
            Some(answered) if answered > since => self.on_death(suspect, victim, now),
            Some(_) | None => Consequence::None,
        }
    }

    /// A worker has answered something.
    pub(crate) fn note_answer(&mut self, now: Instant) {
        self.last_answer = Some(now);
    }

    /// A worker has answered this request while something is remembered: one on trial has passed it.
    pub(crate) fn on_answer(
        &mut self,
        request: Option<Fingerprint>,
        submitted: Instant,
        now: Instant,
    ) -> bool {
        let Some(request) = request else { return false };
        let entry = self.entries.get(&request).filter(|entry| !entry.is_over(now));
        let has_passed = match entry.map(|entry| entry.state) {
            Some(State::Refused { since, .. }) => since < submitted,
            Some(State::Suspected) | None => false,
        };
        has_passed && self.entries.remove(&request).is_some()
    }

    /// New code: what the old one died of says nothing of it. How many requests were refused till now.
    pub(crate) fn clear(&mut self) -> usize {
        let refused = |entry: &&Entry| matches!(entry.state, State::Refused { .. });
        let count = self.entries.values().filter(refused).count();
        self.entries.clear();
        self.window = Window::default();
        count
    }

    /// How many entries have made room for others, when that is twice as many as when it was last told.
    pub(crate) fn news_of_evictions(&mut self) -> Option<u64> {
        let count = self.counts.evicted;
        let is_news = count >= self.tells_evictions_at;
        is_news.then(|| {
            self.tells_evictions_at = 2 * count;
            count
        })
    }

    fn make_room(&mut self, now: Instant) {
        if self.entries.len() < MAX_ENTRIES {
            return;
        }
        self.forget_old(now);
        if self.entries.len() < MAX_ENTRIES {
            return;
        }
        // Those that kill once are less of a danger than those that did so twice.
        let oldest = self
            .entries
            .iter()
            .min_by_key(|(_, entry)| (matches!(entry.state, State::Refused { .. }), entry.last_death));
        if let Some(oldest) = oldest.map(|(fingerprint, _)| *fingerprint) {
            self.entries.remove(&oldest);
            self.counts.evicted += 1;
        }
    }

    fn forget_old(&mut self, now: Instant) {
        self.entries.retain(|_, entry| !entry.is_over(now));
    }

    /// Once a minute: what is over is forgotten, so that requests cost nothing again.
    fn turn_window(&mut self, now: Instant) {
        let since = *self.window.since.get_or_insert(now);
        if now >= since + INTERVAL {
            let requests_before = self.window.requests;
            self.forget_old(now);
            self.window = Window { since: Some(now), requests_before, ..Window::default() };
        }
    }
}

impl Window {
    fn is_too_much(&self) -> bool {
        let requests = self.requests.max(self.requests_before);
        self.refused >= MIN_REFUSALS_TO_LIFT && self.refused * LIFTED_ABOVE_ONE_IN > requests
    }
}
