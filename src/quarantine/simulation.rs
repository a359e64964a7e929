//! Seeded histories against a model that is obviously right: a list of all deaths, looked through from end to end.

use super::*;

const CLIENTS: usize = 3;

/// Everything that was ever done with one request.
#[derive(Debug, Default)]
struct Known {
    deaths: u32,
    last_death: Option<Instant>,
    since: Option<Instant>,
    until: Option<Instant>,
}

impl Known {
    fn forget_if_over(&mut self, now: Instant) {
        let ends = self.until.or(self.last_death);
        if ends.is_some_and(|end| now >= end + INTERVAL) {
            *self = Known::default();
        }
    }
}

struct World {
    quarantine: Quarantine,
    known: Vec<Known>,
    now: Instant,
    /// When each that was let through and not answered yet was submitted.
    at_work: Vec<(usize, Instant)>,
    deaths_to_refuse: u32,
}

fn head(request: usize) -> String {
    format!("GET /{request} HTTP/1.1\r\nHost: h\r\n\r\n")
}

impl World {
    fn fingerprint(&self, request: usize) -> Option<Fingerprint> {
        // Two requests share a head, and differ in their bodies.
        let body = || (1, vec![request as u8]);
        self.quarantine.known_fingerprint(head(request / 2).as_bytes(), body)
    }

    fn arrive(&mut self, request: usize, client: u64, context: &str) {
        let now = self.now;
        if self.quarantine.is_empty() {
            assert!(
                self.known[request].until.is_none_or(|until| now >= until),
                "{context}: forgotten too early"
            );
            self.at_work.push((request, now));
            return;
        }
        let fingerprint = self.fingerprint(request);
        let verdict = self.quarantine.judge(fingerprint, client, now);
        self.known[request].forget_if_over(now);
        let expected = match &mut self.known[request].until {
            None => Verdict::Passes,
            Some(until) if now >= *until => {
                *until = now + INTERVAL;
                Verdict::PassesOnTrial
            }
            Some(_) => Verdict::Refused,
        };
        if verdict == Verdict::Lifted {
            assert_eq!(expected, Verdict::Refused, "{context}: lifted by one that would have passed");
            self.known.iter_mut().for_each(|known| *known = Known::default());
        } else {
            assert_eq!(verdict, expected, "{context}: request {request}");
        }
        if verdict != Verdict::Refused {
            self.at_work.push((request, now));
        }
    }

    fn die(&mut self, at: usize, context: &str) {
        let (request, _) = self.at_work.swap_remove(at);
        let fingerprint =
            self.quarantine.fingerprint(head(request / 2).as_bytes(), || (1, vec![request as u8]));
        let suspect = Suspect { fingerprint, request: format!("GET /{request}") };
        let is_lifted = self.quarantine.lifted_until.is_some_and(|until| self.now < until);
        let consequence = self.quarantine.on_death(suspect, Some((request, 1)), self.now);
        if is_lifted {
            return assert_eq!(consequence, Consequence::None, "{context}");
        }
        let known = &mut self.known[request];
        known.forget_if_over(self.now);
        known.deaths += 1;
        known.last_death = Some(self.now);
        let is_new = known.until.is_none();
        let is_refused = !is_new || known.deaths >= self.deaths_to_refuse;
        if is_refused {
            (known.since, known.until) = (Some(self.now), Some(self.now + INTERVAL));
        }
        let expected = match is_refused {
            true => Consequence::Refused { deaths: known.deaths, is_new },
            false => Consequence::Remembered,
        };
        assert_eq!(consequence, expected, "{context}: request {request}");
    }

    fn answer(&mut self, at: usize, context: &str) {
        let (request, submitted) = self.at_work.swap_remove(at);
        self.quarantine.note_answer(self.now);
        let is_freed = self.quarantine.on_answer(self.fingerprint(request), submitted, self.now);
        let known = &mut self.known[request];
        known.forget_if_over(self.now);
        let was_on_trial = known.since.is_some_and(|since| since < submitted);
        assert_eq!(is_freed, was_on_trial, "{context}: request {request}");
        if was_on_trial {
            *known = Known::default();
        }
    }
}

fn play(seed: u64) {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) as usize % below.max(1)
    };
    let deaths_to_refuse = 1 + next(3) as u32;
    let mut world = World {
        quarantine: Quarantine::new(deaths_to_refuse),
        known: (0..4).map(|_| Known::default()).collect(),
        now: Instant::now(),
        at_work: Vec::new(),
        deaths_to_refuse,
    };
    for step in 0..120 {
        let context = format!("seed {seed}, step {step}");
        match next(10) {
            0..=3 => world.arrive(next(4), next(CLIENTS) as u64, &context),
            4..=6 if !world.at_work.is_empty() => world.die(next(world.at_work.len()), &context),
            7 if !world.at_work.is_empty() => world.answer(next(world.at_work.len()), &context),
            8 => {
                let (request, submitted) = (next(4), world.now);
                world.now += Duration::from_millis(1);
                let may_go_on = world.quarantine.may_go_on(world.fingerprint(request), submitted, world.now);
                let known = &mut world.known[request];
                known.forget_if_over(world.now);
                let is_since = known.since.is_some_and(|since| since >= submitted);
                assert_eq!(may_go_on, !is_since, "{context}: request {request}");
            }
            _ => world.now += Duration::from_millis(next(30_000) as u64),
        }
        let refused =
            world.known.iter().filter(|known| known.until.is_some_and(|until| world.now < until + INTERVAL));
        assert_eq!(world.quarantine.rows(world.now).count(), refused.count(), "{context}");
    }
}

#[test]
fn every_history_is_that_of_the_obvious_quarantine() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("RIP_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RIP_SIMULATIONS").unwrap_or(10_000),
    };
    seeds.for_each(play);
}

fn suspect(quarantine: &Quarantine, request: usize) -> Suspect {
    let fingerprint = quarantine.fingerprint(head(request).as_bytes(), || (0, Vec::new()));
    Suspect { fingerprint, request: format!("GET /{request}") }
}

fn judge(quarantine: &mut Quarantine, request: usize, client: u64, now: Instant) -> Verdict {
    let fingerprint = quarantine.known_fingerprint(head(request).as_bytes(), || (0, Vec::new()));
    quarantine.judge(fingerprint, client, now)
}

#[test]
fn one_client_that_repeats_itself_does_not_lift_it_and_many_do() {
    let now = Instant::now();
    let mut quarantine = Quarantine::new(1);
    quarantine.on_death(suspect(&quarantine, 0), None, now);
    for _ in 0..1000 {
        assert_eq!(judge(&mut quarantine, 0, 7, now), Verdict::Refused);
    }
    let verdicts: Vec<Verdict> = (0..20).map(|client| judge(&mut quarantine, 0, client, now)).collect();
    // One in a hundred of some thousand requests.
    let lifted = verdicts.iter().position(|verdict| *verdict == Verdict::Lifted);
    assert_eq!(lifted, Some(9), "{verdicts:?}");
    assert_eq!(judge(&mut quarantine, 0, 1, now), Verdict::Passes);
    let later = now + INTERVAL / 2;
    let consequence = quarantine.on_death(suspect(&quarantine, 0), None, later);
    assert_eq!(consequence, Consequence::None, "for a minute nothing counts");
    let later = now + INTERVAL;
    let consequence = quarantine.on_death(suspect(&quarantine, 0), None, later);
    assert_eq!(consequence, Consequence::Refused { deaths: 1, is_new: true });
}

#[test]
fn ten_thousand_different_ones_leave_a_table_that_is_bounded() {
    let mut now = Instant::now();
    let mut quarantine = Quarantine::new(2);
    for request in 0..10_000 {
        now += Duration::from_millis(1);
        for _ in 0..2 {
            quarantine.on_death(suspect(&quarantine, request), Some((0, 1)), now);
        }
    }
    assert_eq!(quarantine.entries.len(), MAX_ENTRIES);
    assert_eq!(quarantine.counts.evicted, 10_000 - MAX_ENTRIES as u64);
    assert_eq!(quarantine.news_of_evictions(), Some(10_000 - MAX_ENTRIES as u64));
    assert_eq!(quarantine.news_of_evictions(), None, "told once");
    assert_eq!(judge(&mut quarantine, 9_999, 0, now), Verdict::Refused);
    assert_eq!(judge(&mut quarantine, 0, 0, now), Verdict::Passes, "the oldest made room");
    assert_eq!(judge(&mut quarantine, 0, 0, now + 3 * INTERVAL), Verdict::Passes);
    assert!(quarantine.is_empty(), "what is over costs nothing any more");
}

#[test]
fn a_hang_counts_only_if_another_worker_answered_meanwhile() {
    let now = Instant::now();
    let (since, later) = (now + Duration::from_secs(1), now + Duration::from_secs(2));
    let mut quarantine = Quarantine::new(1);
    quarantine.note_answer(now);
    assert_eq!(quarantine.on_hang(suspect(&quarantine, 0), None, since, later), Consequence::None);
    quarantine.note_answer(later);
    let consequence = quarantine.on_hang(suspect(&quarantine, 0), None, since, later);
    assert_eq!(consequence, Consequence::Refused { deaths: 1, is_new: true });
}

#[test]
fn a_worker_that_lives_on_has_no_suspect() {
    let mut quarantine = Quarantine::new(1);
    let first = suspect(&quarantine, 0);
    quarantine.suspect(3, first);
    quarantine.acquit(3);
    assert!(quarantine.take_suspect(3).is_none());
    let (second, third) = (suspect(&quarantine, 1), suspect(&quarantine, 2));
    quarantine.suspect(3, second);
    quarantine.suspect(3, third);
    let taken = quarantine.take_suspect(3).map(|suspect| suspect.request);
    assert_eq!(taken.as_deref(), Some("GET /2"), "the last that it had at work");
    assert!(!quarantine.has_suspects());
}
