//! The time, read once a tick, and what follows from it: the Date line, request ids.

use crate::http::digits::push_decimal;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant, SystemTime};

/// How often the wall clock is asked; between two looks it runs with the monotonic one.
const WALL_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Clock {
    pub now: Instant,
    /// Since 1970.
    pub unix: Duration,
    /// Since the wall clock was asked.
    since_wall: Duration,
    date_second: u64,
    /// `Date: …\r\n`, made once a second.
    pub date_line: Vec<u8>,
    /// The digits of `date_second`.
    seconds: Vec<u8>,
    /// Empty until somebody asks for it.
    unix_us: Vec<u8>,
}

/// The last six digits of a number, of which there may be leading zeros.
fn push_six_digits(out: &mut Vec<u8>, number: u32) {
    let mut digits = [0; 6];
    let mut left = number;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
    }
    out.extend_from_slice(&digits);
}

impl Clock {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        let mut clock = Clock {
            now,
            unix: Duration::ZERO,
            since_wall: Duration::ZERO,
            date_second: u64::MAX,
            date_line: Vec::new(),
            seconds: Vec::new(),
            unix_us: Vec::new(),
        };
        clock.ask_wall();
        clock
    }

    /// Reads the clock, once a tick; how much time has passed.
    pub(crate) fn read(&mut self) -> Duration {
        self.move_to(Instant::now())
    }

    /// It is `now`; how much time has passed.
    pub(crate) fn move_to(&mut self, now: Instant) -> Duration {
        let passed = now.duration_since(self.now);
        self.now = now;
        self.unix_us.clear();
        self.since_wall += passed;
        if self.since_wall >= WALL_EVERY {
            self.ask_wall();
            return passed;
        }
        self.unix += passed;
        if self.unix.as_secs() != self.date_second {
            self.set_date();
        }
        passed
    }

    /// µs since 1970 as digits, made once for all requests of a tick.
    pub(crate) fn unix_us(&mut self) -> &[u8] {
        if self.unix_us.is_empty() {
            // Its seconds are made with the date, as few ticks have others.
            self.unix_us.extend_from_slice(&self.seconds);
            push_six_digits(&mut self.unix_us, self.unix.subsec_micros());
        }
        &self.unix_us
    }

    fn ask_wall(&mut self) {
        self.since_wall = Duration::ZERO;
        // A clock before 1970 is no clock.
        self.unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.set_date();
    }

    fn set_date(&mut self) {
        self.date_second = self.unix.as_secs();
        self.seconds.clear();
        push_decimal(&mut self.seconds, self.date_second);
        let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(self.date_second));
        self.date_line = format!("Date: {date}\r\n").into_bytes();
    }
}

/// Each byte in hexadecimal.
const HEX_PAIRS: [[u8; 2]; 256] = {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [DIGITS[byte >> 4], DIGITS[byte & 15]];
        byte += 1;
    }
    pairs
};

/// Request ids: 16 hexadecimal digits, unpredictable enough not to collide, and cheap.
#[derive(Debug)]
pub(crate) struct Ids {
    state: u64,
    text: [u8; 16],
}

impl Ids {
    pub(crate) fn new() -> Self {
        Ids { state: seed(), text: [b'0'; 16] }
    }

    pub(crate) fn next(&mut self) -> &[u8] {
        // splitmix64: every state gives another id until all 2^64 have been given.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        for (pair, byte) in self.text.chunks_exact_mut(2).zip(mixed.to_be_bytes()) {
            pair.copy_from_slice(&HEX_PAIRS[usize::from(byte)]);
        }
        &self.text
    }
}

/// Randomness without a file: what std seeds its hash maps with.
pub(crate) fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digits_are_those_of_the_turn() {
        let mut clock = Clock::new();
        for _ in 0..3 {
            let digits = clock.unix.as_micros().to_string();
            assert_eq!(clock.unix_us(), digits.as_bytes());
            // Asked again in the same tick.
            assert_eq!(clock.unix_us(), digits.as_bytes());
            clock.move_to(clock.now + Duration::from_micros(700_001));
        }
    }
    /// A clock at the example's second of RFC 9110, a microsecond before the next one.
    fn clock_of_1994() -> Clock {
        let mut clock = Clock::new();
        clock.unix = Duration::new(784_111_777, 999_999_000);
        clock.set_date();
        clock
    }

    #[test]
    fn the_date_is_that_of_its_second_and_runs_with_the_monotonic_clock() {
        let mut clock = clock_of_1994();
        assert_eq!(clock.date_line, b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n");
        assert_eq!(clock.unix_us(), b"784111777999999");
        let step = Duration::from_micros(1);
        assert_eq!(clock.move_to(clock.now + step), step);
        assert_eq!(clock.date_line, b"Date: Sun, 06 Nov 1994 08:49:38 GMT\r\n");
        assert_eq!(clock.unix_us(), b"784111778000000");
    }

    #[test]
    fn the_wall_clock_is_asked_once_a_second() {
        let mut clock = clock_of_1994();
        clock.move_to(clock.now + Duration::from_millis(600));
        clock.move_to(clock.now + Duration::from_millis(399));
        assert_eq!(clock.unix.as_secs(), 784_111_778, "it has not been asked");
        clock.move_to(clock.now + Duration::from_millis(1));
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("later than 1970");
        assert!(wall - clock.unix < Duration::from_secs(60), "{:?}", clock.unix);
        assert_eq!(clock.unix_us().len(), 16);
    }

    #[test]
    fn the_clock_is_read_anew_each_tick() {
        let mut clock = Clock::new();
        let (before, start) = (clock.now, Instant::now());
        let passed = clock.read();
        assert!(clock.now >= start && clock.now == before + passed);
    }

    #[test]
    fn ids_are_those_of_splitmix64_in_hexadecimal_and_no_two_servers_begin_alike() {
        // The published example for this seed: 6457827717110365317, 3203168211198807973, 9817491932198370423.
        let mut ids = Ids { state: 1_234_567, text: [b'0'; 16] };
        for expected in ["599ed017fb08fc85", "2c73f08458540fa5", "883ebce5a3f27c77"] {
            assert_eq!(ids.next(), expected.as_bytes());
        }
        assert_ne!(seed(), seed());
        assert_ne!(Ids::new().next(), Ids::new().next());
    }
}
