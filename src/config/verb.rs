//! What a running server is asked for, and how it is found.

use crate::control::CanaryPlan;
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Status {
        json: bool,
        watch: bool,
        /// Only whether it is healthy.
        check: bool,
        /// What has failed; with `watch` what fails from now on.
        failures: bool,
    },
    /// A rolling restart, perhaps with its first worker on trial.
    Reload {
        canary: Option<CanaryPlan>,
    },
    /// The server is replaced by a new one on the same sockets.
    Upgrade,
    Stop,
}

/// How an app's server is found: by the app's name in the socket folder.
#[derive(Debug, Clone)]
pub struct ServerId {
    /// As typed; a program that carries the server has none.
    pub app: Option<PathBuf>,
    pub socket_dir: PathBuf,
    pub variant: String,
    pub socket_prefix: Option<String>,
    /// The flags that were given for it: a verb needs the same.
    pub given: Vec<String>,
}

impl Verb {
    pub const ALL: [Verb; 4] = [
        Verb::Status { json: false, watch: false, check: false, failures: false },
        Verb::Reload { canary: None },
        Verb::Upgrade,
        Verb::Stop,
    ];

    pub const fn code(self) -> &'static str {
        match self {
            Verb::Status { .. } => "status",
            Verb::Reload { .. } => "reload",
            Verb::Upgrade => "upgrade",
            Verb::Stop => "stop",
        }
    }
}
