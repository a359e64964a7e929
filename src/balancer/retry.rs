//! Whether a request whose worker failed is tried once more. One more try, at most, and never one that could do a
//! thing twice.

/// How a worker failed before it had answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It said that it is busy: it has not touched the request.
    Busy,
    /// No connection could be made.
    Connect,
    /// A connection that had been open before closed without one byte of the answer.
    ClosedWithoutResponse {
        /// No byte of the request had gone out.
        nothing_sent: bool,
    },
    /// What came over a connection that had been open before is not the beginning of an answer.
    StrayBytes,
    /// Anything else: bytes of the answer were there, or the connection was new, or time ran out.
    Other,
}

/// Whether to try again (RFC 9110 §9.2.2). `tries` counts the ones made.
pub(crate) fn may_retry(failure: Failure, tries: u8, is_idempotent: bool) -> bool {
    /// A second worker that fails alike says that the request or the app is the cause.
    const MAX_TRIES: u8 = 2;
    tries < MAX_TRIES
        && match failure {
            Failure::Busy | Failure::Connect => true,
            Failure::ClosedWithoutResponse { nothing_sent } => nothing_sent || is_idempotent,
            Failure::StrayBytes => is_idempotent,
            Failure::Other => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_post_is_sent_again_only_when_no_worker_can_have_seen_it() {
        assert!(may_retry(Failure::Busy, 1, false));
        assert!(may_retry(Failure::Connect, 1, false));
        assert!(may_retry(Failure::ClosedWithoutResponse { nothing_sent: true }, 1, false));
        assert!(!may_retry(Failure::ClosedWithoutResponse { nothing_sent: false }, 1, false));
        assert!(may_retry(Failure::ClosedWithoutResponse { nothing_sent: false }, 1, true));
        assert!(may_retry(Failure::StrayBytes, 1, true) && !may_retry(Failure::StrayBytes, 1, false));
        assert!(!may_retry(Failure::Other, 1, true));
    }

    #[test]
    fn there_is_no_third_try() {
        assert!(!may_retry(Failure::Busy, 2, true));
    }
}
