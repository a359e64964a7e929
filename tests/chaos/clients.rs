//! The clients: well-behaved, slow, rude, and those that send what does harm.

mod rude;

use crate::ask::{ANSWER_WITHIN, Ask, Deed, Outcome};
use crate::noise::Noise;
use crate::random::Random;
use crate::support::wire::Wire;
use crate::support::{Trouble, comes_true};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const CLOSE: &str = "Connection: close\r\n";
const EXPECT: &str = "Expect: 100-continue\r\n";
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
/// More than a worker may have.
const LEAK_BYTES: usize = 60_000_000;
/// How a client behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Keep-alive, small things.
    Keeper,
    /// A connection for each request.
    Single,
    /// A head and a body in small pieces with pauses.
    Dribbler,
    SlowReader,
    /// Leaves at any moment, and says nonsense.
    Rude,
    Pipeliner,
    Uploader,
    Downloader,
    /// 101, and bytes through the tunnel.
    Upgrader,
    /// Has workers die, hang, leak and lie.
    Saboteur,
}

/// All that run at once.
pub const CREW: [Style; 12] = [
    Style::Keeper,
    Style::Keeper,
    Style::Single,
    Style::Dribbler,
    Style::SlowReader,
    Style::Rude,
    Style::Rude,
    Style::Pipeliner,
    Style::Uploader,
    Style::Downloader,
    Style::Upgrader,
    Style::Saboteur,
];

/// A client of one style, and all that it has asked.
pub struct Player {
    address: SocketAddr,
    random: Random,
    style: Style,
    number: usize,
    connections: usize,
    /// When the storm is over.
    until: Instant,
    pub asks: Vec<Ask>,
    pub faults: Vec<String>,
}

impl Player {
    pub fn new(address: SocketAddr, seed: u64, number: usize, style: Style) -> Player {
        let random = Random::new(seed, number as u64 + 1);
        let (until, asks, faults) = (Instant::now(), Vec::new(), Vec::new());
        Player { address, random, style, number, connections: 0, until, asks, faults }
    }

    pub fn play(&mut self, until: Instant) {
        let mut kept = None;
        self.until = until;
        while Instant::now() < until {
            match self.style {
                Style::Keeper => kept = self.ask_and_keep(kept),
                Style::Single => self.ask_once(),
                Style::Dribbler => self.dribble(),
                Style::SlowReader => self.read_slowly(),
                Style::Rude => self.be_rude(),
                Style::Pipeliner => self.pipeline(),
                Style::Uploader => self.upload(),
                Style::Downloader => self.download(),
                Style::Upgrader => self.upgrade(),
                Style::Saboteur => self.sabotage(),
            }
        }
    }

    /// So many plain requests on one connection, one after the other; what each took.
    pub fn ask_plainly(&mut self, count: usize) -> Vec<Duration> {
        let Some(mut wire) = self.connect() else { return Vec::new() };
        let mut times = Vec::new();
        for _ in 0..count {
            let mut ask = self.ask("GET", Deed::Plain, 0);
            let since = Instant::now();
            let goes_on = wire.write(&ask.bytes("")).is_ok() && ask.read_answer(&mut wire);
            times.push(since.elapsed());
            self.done(ask);
            if !goes_on {
                self.faults.push(format!("client {}: its connection was not kept", self.number));
                break;
            }
        }
        times
    }

    fn pause(&mut self, least_ms: usize, most_ms: usize) {
        let pause = Duration::from_millis(self.random.between(least_ms, most_ms) as u64);
        self.rests_until_the_end(pause);
    }

    /// Whether the storm is over within `time`.
    fn rests_until_the_end(&self, time: Duration) -> bool {
        comes_true(time, || Instant::now() >= self.until)
    }

    fn connect(&mut self) -> Option<Wire> {
        self.connections += 1;
        match Wire::tcp(self.address) {
            Ok(wire) => Some(wire),
            Err(error) => {
                self.faults.push(format!("client {}: no connection: {error}", self.number));
                self.rests_until_the_end(Duration::from_millis(100));
                None
            }
        }
    }

    /// Of fixed width, so that no cut one looks like another.
    fn ask(&mut self, method: &'static str, deed: Deed, upload_bytes: usize) -> Ask {
        let id = format!("{:02}-{:07}", self.number, self.asks.len());
        let note = format!("{:?}, connection {}", self.style, self.connections);
        let outcome = Outcome::Nothing(Trouble::TimedOut);
        let ask = Ask { id, method, deed, upload_bytes, outcome, note };
        // Its place is taken at once, since its number is its name.
        self.asks.push(ask.clone());
        ask
    }

    fn done(&mut self, ask: Ask) {
        if let Some(place) = self.asks.iter_mut().rev().find(|other| other.id == ask.id) {
            *place = ask;
        }
    }

    /// What every site serves all day.
    fn small_ask(&mut self) -> Ask {
        let method = self.random.pick(&["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE"]);
        let deed = match self.random.between(0, 9) {
            0 | 1 => Deed::Slow { ms: self.random.between(1, 30) },
            2 => Deed::Body { bytes: self.random.between(0, 100_000) },
            3 => Deed::Stream { bytes: self.random.between(0, 100_000) },
            4 => Deed::BusyOnce,
            _ => Deed::Plain,
        };
        let upload_bytes = match method {
            "POST" | "PUT" => self.random.between(0, 2000),
            _ => 0,
        };
        self.ask(method, deed, upload_bytes)
    }

    fn ask_and_keep(&mut self, kept: Option<Wire>) -> Option<Wire> {
        let mut wire = match kept {
            Some(wire) => wire,
            None => self.connect()?,
        };
        let mut ask = self.small_ask();
        // A connection that was kept has to take it.
        let goes_on = match wire.write(&ask.bytes("")) {
            Ok(()) => ask.read_answer(&mut wire),
            Err(_) => false,
        };
        self.done(ask);
        self.pause(0, 15);
        (goes_on && !self.random.chance(2)).then_some(wire)
    }

    fn ask_once(&mut self) {
        let Some(mut wire) = self.connect() else { return };
        let mut ask = self.small_ask();
        if wire.write(&ask.bytes(CLOSE)).is_ok() {
            let goes_on = ask.read_answer(&mut wire);
            if goes_on {
                self.faults.push(format!("{}: it was not told that the connection closes", ask.id));
            }
        }
        self.done(ask);
        self.pause(0, 10);
    }

    fn dribble(&mut self) {
        let Some(mut wire) = self.connect() else { return };
        let upload_bytes = self.random.between(1, 3000);
        let method = self.random.pick(&["POST", "PUT"]);
        let mut ask = self.ask(method, Deed::Plain, upload_bytes);
        let bytes = ask.bytes(self.random.pick(&["", CLOSE]));
        let mut at = 0;
        let mut is_taken = true;
        while at < bytes.len() && is_taken {
            let count = self.random.between(1, 200).min(bytes.len() - at);
            is_taken = wire.write(&bytes[at..at + count]).is_ok();
            at += count;
            self.pause(0, 5);
        }
        if is_taken {
            ask.read_answer(&mut wire);
        }
        self.done(ask);
    }

    fn read_slowly(&mut self) {
        let Some(mut wire) = self.connect() else { return };
        // The longest do not fit into what the kernel holds.
        let longest = self.random.pick(&[300_000, 2_000_000, 12_000_000]);
        let bytes = self.random.between(1, longest);
        let deed = self.random.pick(&[Deed::Body { bytes }, Deed::Stream { bytes }]);
        let mut ask = self.ask("GET", deed, 0);
        if wire.write(&ask.bytes(CLOSE)).is_ok() {
            // Nothing is read for a while, then slowly, then all that is left.
            self.pause(50, 400);
            for _ in 0..self.random.between(0, 20) {
                let deadline = Instant::now() + ANSWER_WITHIN;
                if wire.fill(deadline).is_err() {
                    break;
                }
                self.pause(1, 10);
            }
            ask.read_answer(&mut wire);
        }
        self.done(ask);
    }

    fn download(&mut self) {
        let Some(mut wire) = self.connect() else { return };
        for _ in 0..self.random.between(1, 4) {
            let bytes = self.random.between(100_000, 5_000_000);
            let deed = self.random.pick(&[Deed::Body { bytes }, Deed::Stream { bytes }]);
            let mut ask = self.ask("GET", deed, 0);
            let goes_on = wire.write(&ask.bytes("")).is_ok() && ask.read_answer(&mut wire);
            self.done(ask);
            self.pause(0, 40);
            if !goes_on {
                return;
            }
        }
    }

    fn upload(&mut self) {
        let Some(mut wire) = self.connect() else { return };
        for _ in 0..self.random.between(1, 3) {
            let longest = self.random.pick(&[1000, 100_000, 3_000_000]);
            let upload_bytes = self.random.between(1, longest);
            let method = self.random.pick(&["POST", "PUT"]);
            let mut ask = self.ask(method, Deed::Plain, upload_bytes);
            let goes_on = self.send_upload(&mut wire, &mut ask) && ask.read_answer(&mut wire);
            self.done(ask);
            self.pause(0, 40);
            if !goes_on {
                return;
            }
        }
    }

    /// Whether all of it is out.
    fn send_upload(&mut self, wire: &mut Wire, ask: &mut Ask) -> bool {
        let is_chunked = self.random.chance(50);
        let framing = match is_chunked {
            true => "Transfer-Encoding: chunked\r\n".to_owned(),
            false => format!("Content-Length: {}\r\n", ask.upload_bytes),
        };
        let expects = self.random.chance(30);
        let expectation = if expects { EXPECT } else { "" };
        if wire.write(ask.head(&format!("{expectation}{framing}")).as_bytes()).is_err() {
            return false;
        }
        if expects {
            match wire.read_head(Instant::now() + ANSWER_WITHIN).and_then(|head| head.status()) {
                Ok(100) => {}
                other => {
                    self.faults.push(format!("{}: {other:?} and not 100", ask.id));
                    return false;
                }
            }
        }
        let body = ask.upload();
        if !is_chunked {
            return wire.write(&body).is_ok();
        }
        let mut bytes = Vec::with_capacity(body.len() + body.len() / 8);
        let mut at = 0;
        let most = self.random.pick(&[50, 5000, 500_000]).max(body.len() / 1000);
        while at < body.len() {
            let count = self.random.between(1, most).min(body.len() - at);
            bytes.extend(format!("{count:x}\r\n").bytes());
            bytes.extend(&body[at..at + count]);
            bytes.extend(b"\r\n");
            at += count;
        }
        bytes.extend(b"0\r\n\r\n");
        wire.write(&bytes).is_ok()
    }

    /// Several in one write, or a write in the middle of one.
    fn pipeline(&mut self) {
        let Some(mut wire) = self.connect() else { return };
        for _ in 0..self.random.between(1, 3) {
            let mut asks: Vec<Ask> = (0..self.random.between(2, 6)).map(|_| self.small_ask()).collect();
            let bytes: Vec<u8> = asks.iter().flat_map(|ask| ask.bytes("")).collect();
            let writes = self.random.between(1, 3);
            let mut goes_on = true;
            for piece in bytes.chunks(bytes.len().div_ceil(writes)) {
                goes_on &= wire.write(piece).is_ok();
                self.pause(0, 3);
            }
            let mut has_ended = false;
            for ask in &mut asks {
                if has_ended {
                    ask.outcome = Outcome::Unanswered;
                } else {
                    has_ended = !ask.read_answer(&mut wire);
                }
            }
            asks.into_iter().for_each(|ask| self.done(ask));
            self.pause(0, 20);
            if has_ended || !goes_on {
                return;
            }
        }
    }

    fn upgrade(&mut self) {
        let Some(mut wire) = self.connect() else { return };
        let bytes = self.random.pick(&[0, 0, 0, 1, 5000, 50_000]);
        let mut ask = self.ask("GET", Deed::Tunnel { bytes }, 0);
        if wire.write(&ask.bytes(UPGRADE)).is_ok() {
            ask.read_answer(&mut wire);
            if matches!(ask.outcome, Outcome::Answered { status: 101, .. }) {
                ask.outcome = self.talk(&ask, wire);
            }
        }
        self.done(ask);
        self.pause(0, 50);
    }

    /// Says things into a tunnel, hears them back, and ends it in some way.
    fn talk(&mut self, ask: &Ask, mut wire: Wire) -> Outcome {
        let noise = Noise::of(&ask.id);
        let mut at = 0;
        let mut rounds = self.random.between(0, 5);
        if matches!(ask.deed, Deed::Tunnel { bytes: 1.. }) {
            // Until the worker has had enough.
            rounds = usize::MAX;
        }
        for _ in 0..rounds {
            let bytes = noise.bytes(at, self.random.between(1, 30_000));
            if wire.write(&bytes).is_err() {
                return Outcome::Cut { status: 101, fault: None };
            }
            match wire.read_exactly(bytes.len(), Instant::now() + ANSWER_WITHIN) {
                Ok(echo) if echo == bytes => at += bytes.len(),
                Ok(_) => {
                    let fault = Some(format!("the tunnel's echo is wrong behind byte {at}"));
                    return Outcome::Answered { status: 101, fault };
                }
                Err(Trouble::TimedOut) => {
                    let fault = Some(format!("no echo behind byte {at}"));
                    return Outcome::Answered { status: 101, fault };
                }
                Err(_) => return Outcome::Cut { status: 101, fault: None },
            }
            self.pause(0, 20);
        }
        match self.random.between(0, 3) {
            0 => wire.reset(),
            1 => drop(wire),
            // The worker sees the end, and ends too.
            _ => {
                let is_half_closed = wire.half_close().is_ok();
                let (remaining, trouble) = wire.read_to_end(Instant::now() + ANSWER_WITHIN);
                if !is_half_closed || trouble != Trouble::Closed {
                    let is_late = trouble == Trouble::TimedOut;
                    let fault = is_late.then(|| "the tunnel did not end".to_owned());
                    return Outcome::Cut { status: 101, fault };
                }
                let fault =
                    (!remaining.is_empty()).then(|| format!("{} bytes that nobody said", remaining.len()));
                return Outcome::Answered { status: 101, fault };
            }
        }
        Outcome::Left { status: Some(101), must_arrive: true }
    }

    fn sabotage(&mut self) {
        let bytes = self.random.between(10, 1_000_000);
        let deed = match self.random.between(0, 39) {
            0..4 => Deed::Die,
            4..8 => Deed::DieMid { bytes },
            8..12 => Deed::Cut { bytes },
            12..16 => Deed::Garbage,
            16..21 => Deed::Exit,
            21..25 => Deed::Quit,
            25..28 => Deed::Retire,
            28..31 => Deed::Leak { bytes: LEAK_BYTES },
            31..37 => Deed::Busy,
            // The shorter one ends before its worker counts as stuck.
            37..39 => Deed::Hang { ms: 4000 },
            _ => Deed::Hang { ms: 60_000 },
        };
        let method = self.random.pick(&["GET", "POST"]);
        if let Some(mut wire) = self.connect() {
            let mut ask = self.ask(method, deed, 0);
            if wire.write(&ask.bytes("")).is_ok() {
                ask.read_answer(&mut wire);
            }
            self.done(ask);
        }
        self.pause(20, 400);
    }
}
