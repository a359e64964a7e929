//! Both sides of an upgrade in seeded histories: messages take their time, workers come and go, either server dies,
//! hangs or says what it should not. Whatever happens, somebody accepts as long as one of them lives that may.

use super::{Incoming, IncomingStep, Message, Outgoing, OutgoingStep};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

const HISTORIES: u64 = 20_000;
const STEPS: usize = 60;
const BOOT_TIMEOUT: Duration = Duration::from_secs(1);

/// splitmix64
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33) % bound
    }
}

/// The two servers, and what lies between them.
struct World {
    now: Instant,
    outgoing: Outgoing,
    incoming: Incoming,
    to_new: VecDeque<Message>,
    to_old: VecDeque<Message>,
    old: Server,
    new: Server,
    serving: usize,
    wanted: usize,
    /// Whom systemd takes for the main process: the old one?
    is_old_main: bool,
    /// What whoever asked for the upgrade was told.
    result: Option<Result<(), String>>,
}

#[derive(Debug, Clone, Copy)]
struct Server {
    lives: bool,
    accepts: bool,
    hangs: bool,
}

impl World {
    fn new(random: &mut Random) -> World {
        let now = Instant::now();
        let wanted = random.below(3) as usize;
        World {
            now,
            outgoing: Outgoing::begin(BOOT_TIMEOUT, now),
            incoming: Incoming::new(wanted),
            to_new: VecDeque::new(),
            to_old: VecDeque::new(),
            old: Server { lives: true, accepts: true, hangs: false },
            new: Server { lives: true, accepts: false, hangs: random.below(8) == 0 },
            serving: 0,
            wanted,
            is_old_main: true,
            result: None,
        }
    }

    fn act(&mut self, random: &mut Random) {
        match random.below(12) {
            0..=2 => self.serving = (self.serving + 1).min(3),
            3 => self.serving = self.serving.saturating_sub(1),
            4..=6 => self.hear_old(),
            7..=9 => self.hear_new(),
            10 => self.now += Duration::from_millis(random.below(900)),
            _ => match random.below(12) {
                0 => self.end_new(),
                // A server that is killed; what comes of that is the other's to see.
                1 => self.old = Server { lives: false, accepts: false, hangs: false },
                2 => self.new.hangs = true,
                // Words of a broken one. (Who says `taken` when it may, and does not serve, is beyond help.)
                3 if self.is_old_main && !self.to_old.contains(&Message::Ready) => {
                    self.to_old.push_back(Message::Taken);
                }
                4 => self.to_old.push_back(Message::Go),
                _ => {}
            },
        }
        self.turn();
    }

    /// Both loops turn.
    fn turn(&mut self) {
        if self.new.lives && !self.new.hangs {
            for step in self.incoming.note_serving(self.serving) {
                self.do_new(step);
            }
            if !self.old.lives
                && self.to_new.is_empty()
                && let Some(step) = self.incoming.on_hang_up()
            {
                self.do_new(step);
            }
        }
        if self.old.lives {
            if let Some(step) = self.outgoing.on_deadline(self.now) {
                self.do_old(step);
            }
            if !self.new.lives && self.to_old.is_empty() {
                let step = self.outgoing.on_end(&"exit code 1");
                step.into_iter().for_each(|step| self.do_old(step));
            }
        }
        self.check();
    }

    fn hear_old(&mut self) {
        if self.old.lives
            && let Some(message) = self.to_old.pop_front()
            && let Some(step) = self.outgoing.on_message(&message)
        {
            self.do_old(step);
        }
    }

    fn hear_new(&mut self) {
        if self.new.lives
            && !self.new.hangs
            && let Some(message) = self.to_new.pop_front()
            && let Some(step) = self.incoming.on_message(&message)
        {
            self.do_new(step);
        }
    }

    fn do_old(&mut self, step: OutgoingStep) {
        match step {
            OutgoingStep::Progress { of, .. } => assert_eq!(of, self.wanted),
            OutgoingStep::Go => {
                self.is_old_main = false;
                self.to_new.push_back(Message::Go);
            }
            OutgoingStep::HandOver => {
                assert!(self.result.is_none(), "a second result");
                self.old.accepts = false;
                self.result = Some(Ok(()));
            }
            OutgoingStep::Fail { reason, was_going } => {
                assert!(self.result.is_none(), "a second result");
                assert_eq!(was_going, !self.is_old_main);
                self.is_old_main = true;
                self.result = Some(Err(reason));
                self.end_new();
            }
        }
    }

    fn do_new(&mut self, step: IncomingStep) {
        match step {
            IncomingStep::Say(message) => self.to_old.push_back(message),
            IncomingStep::TakeOver => {
                assert!(!self.is_old_main, "it serves before it was told to");
                self.new.accepts = true;
                self.to_old.push_back(Message::Taken);
            }
            IncomingStep::GiveUp => {
                assert!(!self.old.lives, "it gives up while the old one lives");
                self.end_new();
            }
        }
    }

    fn end_new(&mut self) {
        self.new = Server { lives: false, accepts: false, hangs: false };
    }

    fn check(&self) {
        let has_failed = matches!(self.result, Some(Err(_)));
        assert!(!has_failed || !self.new.lives, "a failed upgrade leaves a server over");
        assert!(!has_failed || !self.old.lives || self.old.accepts, "a failed upgrade ends the old server");
        assert!(!has_failed || self.is_old_main);
        assert!(!self.new.accepts || self.incoming.is_serving());
    }

    /// Nobody breaks anything any more: it comes to a result.
    fn settle(&mut self) {
        for _ in 0..20 {
            self.serving = 3;
            while !self.to_old.is_empty() && self.old.lives {
                self.hear_old();
            }
            while !self.to_new.is_empty() && self.new.lives && !self.new.hangs {
                self.hear_new();
            }
            self.turn();
            self.now += Duration::from_secs(1);
        }
        if self.old.lives {
            assert!(self.result.is_some(), "whoever asked waits for ever");
            assert!(!self.outgoing.is_open());
        }
        let is_lost = !self.old.lives && (!self.new.lives || self.new.hangs);
        // One that dies when it has taken over is a crash like any other.
        let has_crashed = self.result == Some(Ok(())) && !self.new.lives;
        assert!(self.old.accepts || self.new.accepts || is_lost || has_crashed, "nobody accepts");
    }
}

#[test]
fn whatever_happens_in_an_upgrade_somebody_accepts_and_there_is_one_result() {
    let mut results = [0; 2];
    for seed in 0..HISTORIES {
        let mut random = Random(seed);
        let mut world = World::new(&mut random);
        for _ in 0..STEPS {
            world.act(&mut random);
        }
        world.settle();
        match world.result {
            Some(Ok(())) => results[0] += 1,
            Some(Err(_)) => results[1] += 1,
            None => {}
        }
    }
    assert!(
        results.iter().all(|count| *count > HISTORIES / 20),
        "the histories are all of one kind: {results:?}"
    );
}
