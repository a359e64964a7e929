//! The two connection state machines. Pure: bytes and events go in, bytes and events come out. The reactor reads and
//! writes for them, and the balancer decides which request goes to which worker.
//!
//! ```text
//!  client:  Idle ─▶ Head ─▶ Body ─▶ Busy ─▶ Idle …        worker:  Idle ─▶ Head ─▶ Body ─▶ Idle …
//!             │       │       │       ├─▶ Tunnel                      │       ├─▶ Tunnel
//!             └───────┴───────┴───────┴─▶ Lingering                   └───────┴───────┴─▶ Spent
//! ```

pub mod client;
pub mod read_buffer;
pub mod request;
pub mod worker;

pub use client::Client;
pub use read_buffer::ReadBuffer;
pub use request::Request;
pub use worker::Worker;
