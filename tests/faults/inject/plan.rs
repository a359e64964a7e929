//! What the injector is told: rules, and when each of them strikes. Pure.
//!
//! A plan is words with blanks between them: `client.read=EAGAIN%3`, `any.fork=ENOMEM@1x3`, `worker.write=short~5`,
//! `any.realtime=7200000`, `seed=42`. A rule names a place, a call, what happens, and when: each Nth call (`%N`), so
//! many from the Nth on (`@NxM`, `@N` for one), one in N by lot (`~N`), or always.

use nix::libc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Read,
    Write,
    /// From a file to a socket.
    Send,
    Accept,
    Connect,
    Socket,
    Fork,
    /// Two sockets that are connected.
    Pair,
    /// That a listener takes no newcomers.
    Deafen,
    Rename,
    Pipe,
    /// A file for what is spooled.
    Open,
    /// The same in memory.
    Memfd,
    /// The sleep of the loop.
    Wait,
    /// That the loop is to be told of a descriptor.
    Watch,
    Realtime,
    Monotonic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerId {
    Any,
    Client,
    Control,
    Worker,
    /// A file without a name.
    Spool,
    Stdout,
    Stderr,
    /// What a worker prints.
    Pipe,
    /// Signals, changes of files.
    Kernel,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It fails with this number.
    Fail(i32),
    OneByte,
    /// Some of the bytes.
    Short,
    /// The clock is so far ahead.
    AheadMs(i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    Each(u64),
    From { first: u64, count: u64 },
    OneIn(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub place: ServerId,
    pub call: Call,
    pub what: What,
    when: When,
}

const CALLS: [(&str, Call); 17] = [
    ("read", Call::Read),
    ("write", Call::Write),
    ("send", Call::Send),
    ("accept", Call::Accept),
    ("connect", Call::Connect),
    ("socket", Call::Socket),
    ("fork", Call::Fork),
    ("pair", Call::Pair),
    ("deafen", Call::Deafen),
    ("rename", Call::Rename),
    ("pipe", Call::Pipe),
    ("open", Call::Open),
    ("memfd", Call::Memfd),
    ("wait", Call::Wait),
    ("watch", Call::Watch),
    ("realtime", Call::Realtime),
    ("monotonic", Call::Monotonic),
];

const PLACES: [(&str, ServerId); 9] = [
    ("any", ServerId::Any),
    ("client", ServerId::Client),
    ("control", ServerId::Control),
    ("worker", ServerId::Worker),
    ("spool", ServerId::Spool),
    ("stdout", ServerId::Stdout),
    ("stderr", ServerId::Stderr),
    ("pipe", ServerId::Pipe),
    ("kernel", ServerId::Kernel),
];

const ERRORS: [(&str, i32); 18] = [
    ("EAGAIN", libc::EAGAIN),
    ("EINTR", libc::EINTR),
    ("ECONNRESET", libc::ECONNRESET),
    ("ECONNABORTED", libc::ECONNABORTED),
    ("ECONNREFUSED", libc::ECONNREFUSED),
    ("ETIMEDOUT", libc::ETIMEDOUT),
    ("EPIPE", libc::EPIPE),
    ("EMFILE", libc::EMFILE),
    ("ENFILE", libc::ENFILE),
    ("ENOMEM", libc::ENOMEM),
    ("ENOBUFS", libc::ENOBUFS),
    ("ENOSPC", libc::ENOSPC),
    ("EDQUOT", libc::EDQUOT),
    ("EFBIG", libc::EFBIG),
    ("EIO", libc::EIO),
    ("EPERM", libc::EPERM),
    ("EACCES", libc::EACCES),
    ("EINVAL", libc::EINVAL),
];

/// All rules, and the seed of what is drawn by lot.
///
/// # Errors
/// The word that is no rule.
pub fn parse(text: &str) -> Result<(Vec<Rule>, u64), String> {
    let mut seed = 1;
    let mut rules = Vec::new();
    for phrase in text.split_whitespace() {
        match phrase.strip_prefix("seed=") {
            Some(number) => seed = number.parse().map_err(|_| phrase.to_owned())?,
            None => rules.push(Rule::parse(phrase).ok_or(phrase)?),
        }
    }
    Ok((rules, seed))
}

fn look_up<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(other, _)| *other == name).map(|(_, value)| *value)
}

impl Rule {
    fn parse(phrase: &str) -> Option<Rule> {
        let (place_and_call, remaining) = phrase.split_once('=')?;
        let (place, call) = place_and_call.split_once('.')?;
        let (what, when) = remaining.split_at(remaining.find(['%', '@', '~']).unwrap_or(remaining.len()));
        let what = match what {
            "one" => What::OneByte,
            "short" => What::Short,
            what => match what.parse() {
                Ok(ms) => What::AheadMs(ms),
                Err(_) => What::Fail(look_up(&ERRORS, what)?),
            },
        };
        let rule = Rule {
            place: look_up(&PLACES, place)?,
            call: look_up(&CALLS, call)?,
            what,
            when: When::parse(when)?,
        };
        let is_clock = matches!(rule.call, Call::Realtime | Call::Monotonic);
        (is_clock == matches!(what, What::AheadMs(_))).then_some(rule)
    }

    pub fn is_for(&self, call: Call, place: ServerId) -> bool {
        self.call == call && (self.place == ServerId::Any || self.place == place)
    }

    /// Whether it strikes at its `nth` call, counted from 1. `lot` is a random number.
    pub fn strikes(&self, nth: u64, lot: u64) -> bool {
        match self.when {
            When::Always => true,
            When::Each(n) => nth.is_multiple_of(n),
            When::From { first, count } => nth >= first && nth - first < count,
            When::OneIn(n) => lot.is_multiple_of(n),
        }
    }
}

impl When {
    fn parse(text: &str) -> Option<When> {
        let positive = |text: &str| text.parse().ok().filter(|number| *number > 0);
        match (text.get(..1), text.get(1..)) {
            (Some("%"), Some(remaining)) => positive(remaining).map(When::Each),
            (Some("~"), Some(remaining)) => positive(remaining).map(When::OneIn),
            (Some("@"), Some(remaining)) => {
                let (first, count) = remaining.split_once('x').unwrap_or((remaining, "1"));
                Some(When::From { first: positive(first)?, count: positive(count)? })
            }
            _ => text.is_empty().then_some(When::Always),
        }
    }
}

/// A random number of its own for each call of each rule, the same in each run (splitmix64).
pub fn lot(seed: u64, rule: usize, nth: u64) -> u64 {
    let mut mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (rule as u64) << 48 ^ nth;
    for _ in 0..2 {
        mixed = mixed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
    }
    mixed
}

/// The page that injector and test share is a file of 64-bit words: [`WORDS`] for each rule, and in the last one
/// whether the injector is at work.
pub const PAGE_BYTES: usize = 4096;
pub const PAGE_WORDS: usize = PAGE_BYTES / 8;
pub const WORDS: usize = 4;
/// Of a rule's words: whether it holds now.
pub const IS_ON: usize = 0;
/// Calls that it was for.
pub const SEEN: usize = 1;
/// Calls that it struck.
pub const HITS: usize = 2;
