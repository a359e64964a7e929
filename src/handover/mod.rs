//! An upgrade: one server hands its listening sockets to the next. Pure: what is said and what has happened come in,
//! what is to be done goes out.
//!
//! ```text
//!  old (Outgoing)                          new (Incoming)
//!  Starting ──sockets, counts──▶           Booting        its workers start; it accepts nobody
//!     │       ◀──serving 1 of 4──             │
//!     │       ◀──ready────────────         Ready          as many serve as with the old one
//!  Going ─────go──────────────▶               │           (systemd has been told of its pid)
//!     │       ◀──taken────────────         Serving        it has the name, and accepts
//!  Over, drains ──released, reports──▶
//! ```
//!
//! Until `taken` the old server accepts and has the name, and whatever fails before it ends the upgrade and nothing
//! else. The new server serves only behind `go`, so at no moment does nobody accept.

mod incoming;
mod message;
mod outgoing;
#[cfg(any(test, fuzzing))]
mod simulation;

pub(crate) use incoming::{Incoming, IncomingStep};
pub(crate) use message::{Message, SocketOffer};
pub(crate) use outgoing::{Outgoing, OutgoingStep};

/// Why an upgrade ends with the server that it was to replace: only then does neither go on.
pub(crate) const SERVER_STOPS: &str = "the server stops";

/// The variable that tells a new server on which descriptor the old one speaks.
pub(crate) const VARIABLE: &str = "RIP_HANDOVER_FD";
