//! Where the app comes from, and why a server could not start.

use crate::app::{self, App, Wanted};
use crate::config::Config;
use crate::paths;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where the app comes from.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A path, absolute and as typed; looked at anew by each reload.
    Path { path: PathBuf, wanted: Wanted },
    /// This program is the app. It runs in the folder that it was started in, whatever a symlink on the way leads to
    /// by then.
    Embedded { program: PathBuf, dir: PathBuf },
}

/// Why the server could not start.
#[derive(Debug)]
pub(crate) enum StartError {
    /// Wrong words: exit 2.
    Usage(String),
    /// The machine's trouble: exit 1.
    Trouble(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Usage(complaint) | StartError::Trouble(complaint) => f.write_str(complaint),
        }
    }
}

impl Source {
    /// # Errors
    /// No app is named.
    pub(super) fn of(config: &Config, embedded: Option<PathBuf>) -> Result<Self, StartError> {
        match (embedded, &config.place.app) {
            (Some(program), _) => {
                let dir = paths::current_dir().unwrap_or_else(|| PathBuf::from("/"));
                Ok(Source::Embedded { program, dir })
            }
            (None, Some(path)) => {
                let wanted = match (&config.command, &config.target) {
                    (Some(_), _) => Wanted::Command,
                    (None, Some(target)) => Wanted::Target(target.clone()),
                    (None, None) => Wanted::Entry,
                };
                Ok(Source::Path { path: paths::absolute(path), wanted })
            }
            (None, None) => Err(StartError::Usage("no app given".into())),
        }
    }

    /// As typed, absolute.
    pub(super) fn path(&self) -> &Path {
        match self {
            Source::Path { path, .. } => path,
            Source::Embedded { program, .. } => program,
        }
    }

    /// # Errors
    /// Why there is no app, for people.
    pub(super) fn find(&self) -> Result<App, String> {
        match self {
            Source::Path { path, wanted } => App::find(path, wanted).map_err(|no_app| no_app.to_string()),
            Source::Embedded { program, dir } => Ok(App {
                name: app::name(program),
                dir: dir.clone(),
                entry: program.clone(),
                runtime: app::Runtime::Executable,
                target: None,
            }),
        }
    }
}
