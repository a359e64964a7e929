//! What happens, as data: a history is a configuration and a list of actions, both functions of its seed alone, or of
//! the bytes that a fuzzer makes up. An operand is taken modulo what exists, so that any part of a history can be played.

use super::disk::Disk;
use super::templates::Deed;
use crate::fleet::Resize;
use crate::process::Exit;
use crate::reactor::limits::TICK_BYTES;
use nix::sys::signal::Signal;

/// Where a history gets its choices from.
trait Choose {
    /// 0 up to `bound`, which is left out.
    fn below(&mut self, bound: usize) -> usize;

    fn chance(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }
}

/// Bytes that somebody else has chosen, as many for each choice as it needs. Zeros follow them.
struct Chosen<'b>(&'b [u8]);

impl Choose for Chosen<'_> {
    fn below(&mut self, bound: usize) -> usize {
        let width = match bound {
            0..=0x100 => 1,
            0x101..=0x1_0000 => 2,
            _ => 4,
        };
        let (now, later) = self.0.split_at(self.0.len().min(width));
        self.0 = later;
        now.iter().fold(0, |number, &byte| number << 8 | usize::from(byte)) % bound.max(1)
    }
}

/// A small generator: xorshift64, reproducible.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Neighbouring seeds begin alike otherwise.
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d | 1);
        for _ in 0..4 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub(crate) fn chance(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }
}

impl Choose for Random {
    fn below(&mut self, bound: usize) -> usize {
        Random::below(self, bound)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// A client connects; `script` seeds what it will send, `room` is how much it takes unread.
    Arrive {
        script: u32,
        capacity: usize,
    },
    /// It sends the next bytes of its script.
    Send {
        client: usize,
        bytes: usize,
    },
    /// It sends no more, and waits.
    HalfClose {
        client: usize,
    },
    Leave {
        client: usize,
        has_read_all: bool,
    },
    Reset {
        client: usize,
    },
    /// It reads.
    Take {
        client: usize,
        bytes: usize,
    },
    /// A worker makes up its answer to the request in hand.
    Answer {
        worker: usize,
        style: usize,
        size: usize,
    },
    /// It begins an event stream, and is silent behind the head.
    Stream {
        worker: usize,
        size: usize,
    },
    /// It writes the next bytes of its answer.
    Say {
        worker: usize,
        bytes: usize,
    },
    /// It makes up a whole answer and writes it at once.
    Serve {
        worker: usize,
        size: usize,
    },
    /// It begins an answer, says some of it, and closes its connection or dies; `is_at_once`: all in one tick.
    Break {
        worker: usize,
        style: usize,
        size: usize,
        bytes: usize,
        is_at_once: bool,
        dies: Option<Death>,
    },
    /// Handlers that run on without a connection end.
    Finish {
        worker: usize,
    },
    /// It closes its connection.
    HangUp {
        worker: usize,
    },
    /// It takes some of the request, and has room for so much.
    Listen {
        worker: usize,
        capacity: usize,
    },
    /// Its backlog is full, or has room again.
    Backlog {
        worker: usize,
        is_full: bool,
    },
    /// It has loaded the app, and says so.
    Join {
        worker: usize,
    },
    /// Its process ends; `is_late`: the server hears of that some ticks later.
    Crash {
        worker: usize,
        is_late: bool,
        death: Death,
    },
    /// All that have nothing in hand end in one moment, and a client sends in the same one.
    EndIdle {
        client: usize,
        death: Death,
    },
    /// It says so much of an answer that only the connection's end ends, and dies at once: a tick does not read all of it.
    Overrun {
        worker: usize,
        bytes: usize,
        death: Death,
    },
    /// It says that it is busy, or closes its connection, and the client of that request resets a tick later.
    Desert {
        worker: usize,
        is_busy: bool,
    },
    /// One that was told to end does so.
    Obey {
        worker: usize,
    },
    Quit {
        worker: usize,
    },
    Retire {
        worker: usize,
    },
    FailSpawns {
        count: u8,
    },
    Template {
        template: usize,
        deed: Deed,
    },
    /// A source of the app changes, and requests wait for the new code.
    Edit,
    /// Somebody asks for a rolling restart and follows it.
    Reload {
        capacity: usize,
    },
    /// Somebody pipelines requests for metrics and other pages.
    Pages {
        is_scraper: bool,
        count: usize,
        capacity: usize,
    },
    /// Somebody looks at the page's events.
    ViewPage {
        capacity: usize,
    },
    /// The folder for temporary files gets worse, or well again.
    SetDisk {
        disk: Disk,
    },
    /// An operator wants one worker more or fewer.
    ChangeSize {
        change: Resize,
    },
    /// An operator reads.
    OperatorTakes {
        operator: usize,
        bytes: usize,
    },
    OperatorLeaves {
        operator: usize,
    },
    Stop,
    /// A new server takes over the listening sockets.
    HandOver,
    /// The server sleeps, and wakes at each of its deadlines.
    Sleep {
        ms: usize,
    },
    /// The server is held up.
    Lag {
        ms: usize,
    },
    /// Right to the next deadline, or to a moment before it.
    Edge {
        is_early: bool,
    },
    /// Right to the next deadline, and what clients do in that moment is told a tick too late.
    CloseEdge {
        client: usize,
    },
    /// One tick of the loop; the events come in this order.
    Tick {
        rotation: usize,
    },
}

/// How a process ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    Crash,
    Fails,
    Exits,
}

impl Death {
    fn draw(random: &mut impl Choose) -> Self {
        [Death::Crash, Death::Fails, Death::Exits][random.below(3)]
    }

    pub(crate) fn exit(self) -> Exit {
        match self {
            Death::Crash => Exit::Signal(Signal::SIGSEGV),
            Death::Fails => Exit::Code(1),
            Death::Exits => Exit::Code(0),
        }
    }
}

/// Whole messages are as frequent as pieces of them.
const ALL: usize = usize::MAX;

/// The history of a seed.
pub(crate) fn history(seed: u64, steps: usize) -> Vec<Action> {
    let mut random = Random::new(seed);
    // Some histories are calm, so that there is load without failures, and deadlines are met.
    let is_calm = random.chance(3);
    // In some, most answers are of one kind, so that what is rare happens to several.
    let favourite = random.chance(3).then(|| random.below(STYLES));
    let mut actions = Vec::with_capacity(steps * 2);
    for _ in 0..steps {
        let mut action = next(&mut random, is_calm);
        if let (Some(favourite), Action::Answer { style, .. } | Action::Break { style, .. }) =
            (favourite, &mut action)
            && !random.chance(4)
        {
            *style = favourite;
        }
        actions.push(action);
        if random.below(4) < 3 {
            actions.push(Action::Tick { rotation: random.below(4) });
        }
    }
    actions
}

/// The history that `bytes` are read as, and its seed: two bytes of it, a byte for the temper, then actions to the end.
/// Ticks are actions as others are, three of eight.
pub(crate) fn chosen(bytes: &[u8], max_actions: usize) -> (u64, Vec<Action>) {
    let mut choices = Chosen(bytes);
    let seed = choices.below(1 << 16) as u64;
    let is_calm = choices.chance(3);
    let mut actions = Vec::new();
    while !choices.0.is_empty() && actions.len() < max_actions {
        let kind = choices.below(8);
        actions.push(match kind {
            0..=2 => Action::Tick { rotation: kind },
            _ => next(&mut choices, is_calm),
        });
    }
    (seed, actions)
}

fn next(random: &mut impl Choose, is_calm: bool) -> Action {
    use Action::*;
    let client = random.below(64);
    let worker = random.below(64);
    let bytes = if random.chance(2) { ALL } else { 1 + random.below(80) };
    let size = if random.chance(4) { random.below(2500) } else { random.below(60) };
    let style = random.below(STYLES);
    match random.below(if is_calm { 80 } else { 121 }) {
        0..=9 => {
            let capacity = if random.chance(3) { random.below(300) } else { 100_000 };
            Arrive { script: random.below(1 << 30) as u32, capacity }
        }
        10..=24 => Send { client, bytes },
        25..=29 => Take { client, bytes: random.below(400) },
        30..=42 => Serve { worker, size },
        43..=51 => Answer { worker, style, size },
        52..=61 => Say { worker, bytes: if random.chance(2) { bytes } else { 1 + random.below(300) } },
        62..=64 => Join { worker },
        65..=66 => Stream { worker, size: 40 + size },
        67..=69 => Sleep { ms: [1, 20, 120, 400][random.below(4)] },
        70..=71 => Edge { is_early: random.chance(2) },
        72 => CloseEdge { client },
        73 => Lag { ms: [1, 30, 600][random.below(3)] },
        74 => Obey { worker },
        75 => Finish { worker },
        76 => HalfClose { client },
        77 => Leave { client, has_read_all: random.chance(2) },
        78..=79 => Template { template: worker, deed: Deed::Forks },
        114 => Template { template: worker, deed: Deed::Loads },
        117 => Overrun { worker, bytes: random.below(4 * TICK_BYTES), death: Death::draw(random) },
        118 => Desert { worker, is_busy: random.chance(2) },
        119 => EndIdle { client, death: Death::draw(random) },
        115..=116 => {
            let deeds =
                [Deed::Refuses, Deed::ForksAndDies, Deed::CannotFork, Deed::Dies, Deed::Forks, Deed::Loads];
            Template { template: worker, deed: deeds[random.below(6)] }
        }
        80 => Leave { client, has_read_all: random.chance(2) },
        81..=82 => Reset { client },
        83..=84 => HangUp { worker },
        85..=86 => Listen { worker, capacity: if random.chance(2) { 24 + random.below(200) } else { ALL } },
        87..=88 => Backlog { worker, is_full: random.below(3) > 0 },
        89..=91 => Crash { worker, is_late: random.chance(2), death: Death::draw(random) },
        92 => Quit { worker },
        93..=94 => Retire { worker },
        95 => FailSpawns { count: 1 + random.below(3) as u8 },
        96 if random.chance(2) => Edit,
        96 => Reload { capacity: if random.chance(2) { random.below(200) } else { ALL } },
        106..=107 => {
            let capacity = if random.chance(2) { random.below(400) } else { 100_000 };
            if random.chance(4) {
                return ViewPage { capacity };
            }
            Pages { is_scraper: random.chance(2), count: 1 + random.below(12), capacity }
        }
        108..=109 => OperatorTakes { operator: random.below(6), bytes: random.below(3000) },
        111..=113 => {
            let disk = [
                Disk::Full,
                Disk::NearlyFull(random.below(4)),
                Disk::Missing,
                Disk::FullFolder,
                Disk::NoDescriptors,
                Disk::Works,
            ];
            SetDisk { disk: disk[random.below(6)] }
        }
        120 => ChangeSize { change: if random.chance(2) { Resize::More } else { Resize::Fewer } },
        110 => OperatorLeaves { operator: random.below(6) },
        97 if random.chance(3) && random.chance(4) => HandOver,
        97 if random.chance(3) => Stop,
        97..=99 => Sleep { ms: [700, 2500, 11_000][random.below(3)] },
        _ => {
            let bytes = random.below(size + 200);
            let dies = random.chance(2).then(|| Death::draw(random));
            Break { worker, style, size, bytes, is_at_once: random.chance(2), dies }
        }
    }
}

/// The ways to answer, of [`super::script::compose`].
pub(crate) const STYLES: usize = 21;
