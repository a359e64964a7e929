//! One place for a worker: who serves in it, who is to follow, who is on the way out.

use super::backoff::Backoff;
use crate::keys::WorkerKey;
use std::time::Instant;

/// Why a worker is replaced. The log's and the metrics' word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It has served its number of requests.
    Requests,
    /// Its memory has grown beyond the bound.
    Memory,
    /// It asked for it, after its last reload say.
    Asked,
    /// A rolling restart.
    Reload,
    /// Its answer does not end.
    Stuck,
    /// It answered busy, or refused connections, again and again.
    Deaf,
}

impl Why {
    pub const ALL: [Why; 6] = [Why::Requests, Why::Memory, Why::Asked, Why::Reload, Why::Stuck, Why::Deaf];

    pub const fn word(self) -> &'static str {
        match self {
            Why::Requests => "requests",
            Why::Memory => "memory",
            Why::Asked => "asked",
            Why::Reload => "reload",
            Why::Stuck => "stuck",
            Why::Deaf => "deaf",
        }
    }
}

/// A worker process as the fleet sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub worker: WorkerKey,
    pub version: u64,
    pub phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Spawned, and not joined by now.
    Booting { until: Instant },
    /// Joined: it gets requests.
    Serving { since: Instant },
    /// It gets no more requests, and finishes what it has.
    Leaving { until: Instant },
    /// SIGTERM is out.
    Terminating { kill_at: Instant },
    /// SIGKILL is out.
    Killed,
}

impl Phase {
    /// When this phase runs out by itself.
    pub fn deadline(self) -> Option<Instant> {
        match self {
            Phase::Booting { until } | Phase::Leaving { until } => Some(until),
            Phase::Terminating { kill_at } => Some(kill_at),
            Phase::Serving { .. } | Phase::Killed => None,
        }
    }
}

/// What is to happen at the front of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// Nobody, and to be tried at that time.
    Empty { retry_at: Instant },
    /// Asked for; the answer to [`super::Action::Spawn`] is on its way.
    Spawning,
    /// The worker that boots or serves here.
    Held(Member),
    /// The slot is given up as soon as its last member is gone.
    Closed,
}

/// Whether and how the front of a slot is being replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Succession {
    None,
    /// It is to be, when its turn comes and not before that time.
    Wanted {
        why: Why,
        not_before: Instant,
    },
    /// The successor is being spawned, or boots.
    Spawning {
        why: Why,
    },
    Booting {
        why: Why,
        successor: Member,
    },
    /// The successor serves; the old one (in `leaving`) is not gone yet.
    Handing,
}

#[derive(Debug)]
pub struct Slot {
    pub front: Front,
    pub succession: Succession,
    /// Those that were replaced and are not gone yet.
    pub leaving: Vec<Member>,
    pub backoff: Backoff,
    /// The generation of the newest worker of this slot; grows with each spawn.
    pub version: u64,
}

impl Slot {
    pub fn new(now: Instant) -> Self {
        Slot {
            front: Front::Empty { retry_at: now },
            succession: Succession::None,
            leaving: Vec::new(),
            backoff: Backoff::default(),
            version: 0,
        }
    }

    /// Everybody who has a process here.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        let front = match &self.front {
            Front::Held(member) => Some(member),
            Front::Empty { .. } | Front::Spawning | Front::Closed => None,
        };
        let successor = match &self.succession {
            Succession::Booting { successor, .. } => Some(successor),
            Succession::None
            | Succession::Wanted { .. }
            | Succession::Spawning { .. }
            | Succession::Handing => None,
        };
        front.into_iter().chain(successor).chain(&self.leaving)
    }

    pub fn is_gone(&self) -> bool {
        self.front == Front::Closed && self.members().next().is_none()
    }

    pub fn is_serving(&self) -> bool {
        matches!(self.front, Front::Held(Member { phase: Phase::Serving { .. }, .. }))
    }

    /// A worker serves, and no successor is on its way.
    pub fn may_be_replaced(&self) -> bool {
        self.is_serving() && matches!(self.succession, Succession::None | Succession::Wanted { .. })
    }

    /// When something here is to be done by the clock.
    pub fn deadline(&self) -> Option<Instant> {
        let retry = match self.front {
            Front::Empty { retry_at } => Some(retry_at),
            Front::Spawning | Front::Held(_) | Front::Closed => None,
        };
        let succession = match self.succession {
            Succession::Wanted { not_before, .. } => Some(not_before),
            Succession::None
            | Succession::Spawning { .. }
            | Succession::Booting { .. }
            | Succession::Handing => None,
        };
        self.members().filter_map(|member| member.phase.deadline()).chain(retry).chain(succession).min()
    }
}
