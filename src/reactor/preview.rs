//! What a start would run, looked at without a start.

use super::descriptors;
use super::io::socket_access::SocketAccess;
use super::socket_dir;
use super::source::{Source, StartError};
use crate::app::App;
use crate::config::{Config, env_file};
use crate::names::Names;
use crate::process;
use crate::runtime::{self, Identity};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(crate) struct Preview {
    pub app: App,
    /// What runs a worker.
    pub program: PathBuf,
    /// How many variables the `--env-file` has.
    pub variables: usize,
}

/// Everything that a start reads before it makes anything.
///
/// # Errors
/// As of a start.
pub(crate) fn preview(config: &Config, embedded: Option<PathBuf>) -> Result<Preview, StartError> {
    let app = Source::of(config, embedded)?.find().map_err(StartError::Usage)?;
    descriptors::check(config, process::descriptor_limit())?;
    SocketAccess::find(config).map_err(StartError::Usage)?;
    let names = Names::new(&config.place, &app.name);
    socket_dir::check_lengths(&names)?;
    let variables = config.env_file.as_deref().map_or(Ok(Vec::new()), env_file::read);
    let variables = variables.map_err(StartError::Usage)?;
    let identity = Identity::probe(&names.prefix, Path::new("/"));
    let launch = runtime::launch(&app, config, &identity, &variables).map_err(StartError::Usage)?;
    Ok(Preview { app, program: launch.program, variables: variables.len() })
}
