//! How far the server's end is.

use std::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Running,
    /// Requests are finished until then. `signalled`: when a signal last asked for the end.
    Draining {
        signalled: Option<Instant>,
        until: Instant,
    },
    /// No request can come any more: the workers leave, and clients take what they have been answered until then.
    Leaving {
        signalled: Option<Instant>,
        until: Instant,
    },
    /// The workers end.
    Ending {
        signalled: Option<Instant>,
    },
}

impl Stage {
    pub(crate) fn deadline(self) -> Option<Instant> {
        match self {
            Stage::Draining { until, .. } | Stage::Leaving { until, .. } => Some(until),
            Stage::Running | Stage::Ending { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_ends_by_the_clock() {
        let until = Instant::now();
        assert_eq!(Stage::Draining { signalled: None, until }.deadline(), Some(until));
        assert_eq!(Stage::Leaving { signalled: None, until }.deadline(), Some(until));
        assert_eq!((Stage::Running.deadline(), Stage::Ending { signalled: None }.deadline()), (None, None));
    }
}
