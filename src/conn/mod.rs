//! The two connection machines. Pure: bytes and events go in, bytes and events come out; the reactor reads and
//! writes for them, the balancer decides who meets whom.
//!
//! ```text
//!  client:  Idle ─▶ Head ─▶ Body ─▶ Busy ─▶ Idle …        worker:  Quiet ─▶ Head ─▶ Body ─▶ Quiet …
//!             │       │       │       ├─▶ Tunnel                      │       ├─▶ Tunnel
//!             └───────┴───────┴───────┴─▶ Lingering                   └───────┴──────┴─▶ Spent
//! ```

pub mod client;
pub mod read_buffer;
pub mod request;
pub mod worker;

pub use client::Client;
pub use read_buffer::ReadBuffer;
pub use request::Request;
pub use worker::Worker;
