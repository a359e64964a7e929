//! The worker's side in Rust: what `rip_server::run` does in the processes that the server starts.

pub mod cgi;
mod error;
#[cfg(feature = "http")]
mod http_types;
mod outlet;
mod places;
mod request;
mod response;
mod serve;

pub use error::{Error, IntoResponse};
pub use places::Handler;
pub use request::{Body, Request};
pub use response::{InvalidHeader, Response};
pub use serve::serve;

use std::path::PathBuf;

/// Who this worker is, from the environment that the server gave it.
#[derive(Debug)]
pub struct Identity {
    pub worker_id: u64,
    pub version: u64,
    pub instance: Option<String>,
    pub socket: PathBuf,
    pub control: PathBuf,
    /// How many requests at once it is asked to take, and how many event streams beside them.
    pub concurrency: usize,
    pub max_streams: usize,
}

impl Identity {
    /// `None`: this process was not started by a server.
    pub fn from_environment() -> Option<Identity> {
        fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
            std::env::var(name).ok()?.parse().ok()
        }
        Some(Identity {
            worker_id: number("WORKER_ID")?,
            version: number("RIP_VERSION")?,
            socket: std::env::var_os("SOCKET_PATH")?.into(),
            control: std::env::var_os("RIP_CONTROL_SOCKET")?.into(),
            instance: std::env::var("RIP_INSTANCE").ok(),
            concurrency: number("RIP_CONCURRENCY").unwrap_or(1),
            max_streams: number("RIP_MAX_STREAMS").unwrap_or(0),
        })
    }
}
