//! What passes between the rooms: values, each owned by one room at a time.

use super::io::spool::{Spool, SpoolBudget};
use crate::conn::Request;
use crate::conn::worker::Answer;
use crate::http::Reason;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A request on its way through the server: from the frontend to the backend, and back for a second try.
#[derive(Debug)]
pub(super) struct Job {
    pub request: Request,
    pub body: Spool,
    pub submitted: Instant,
    /// Until when it waits for a worker, first and second try together.
    pub deadline: Instant,
    pub tries: u8,
    /// Its client has sent its FIN, and was asked by a `100 Continue` whether it is there.
    pub is_client_asked: bool,
}

impl Job {
    /// Of a question that the server asks for itself.
    pub(super) fn of_server(request: Request, budget: &Rc<SpoolBudget>, now: Instant) -> Self {
        Job {
            request,
            body: Spool::new(budget),
            submitted: now,
            deadline: now,
            tries: 1,
            is_client_asked: false,
        }
    }
}

/// A request that has had its answer, for the log.
#[derive(Debug)]
pub(super) struct Finished {
    pub request: Request,
    pub answer: Answer,
    pub reason: Option<Reason>,
    pub body_bytes: u64,
    pub times: Times,
    /// The slot and process that answered, or failed.
    pub worker: Option<(usize, i32)>,
}

/// How long a request waited, and how long a worker had it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Times {
    pub queue: Duration,
    pub worker: Duration,
    /// The age of a stream since its head.
    pub stream: Option<Duration>,
}

impl Times {
    /// Of a job that a worker has had since `assigned`.
    pub(crate) fn of(job: &Job, assigned: Instant, now: Instant) -> Self {
        Times {
            queue: assigned - job.submitted,
            worker: now.saturating_duration_since(assigned),
            stream: None,
        }
    }

    /// The same of one that may have become a stream.
    pub(crate) fn of_stream(job: &Job, assigned: Instant, since: Option<Instant>, now: Instant) -> Self {
        let stream = since.map(|since| now.saturating_duration_since(since));
        Times { stream, ..Times::of(job, assigned, now) }
    }
}

/// What follows when the client has all of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// The next request.
    Keep,
    Close,
    /// Close in a way that shows that the answer is not whole.
    Cut {
        reset: bool,
    },
}

/// How a delivery to a client went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// The kernel has it all.
    Sent,
    /// Some of it waits. `is_full`: no more should come before the client has taken some.
    Waits {
        is_full: bool,
    },
    Gone,
    /// What the client has not taken cannot be read back.
    SpoolFull,
}

/// What a read came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    Bytes(usize),
    /// The peer will send no more.
    End,
    /// The connection is broken.
    Gone,
}
