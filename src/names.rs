//! What a server is called on disk: how its verbs and its workers find it.

use crate::app;
use crate::config::Place;
use std::path::PathBuf;

/// The server's names on disk.
#[derive(Debug, Clone)]
pub struct Names {
    pub app: String,
    pub prefix: String,
    pub dir: PathBuf,
    pub control: PathBuf,
    pub harness_dir: PathBuf,
}

impl Names {
    pub fn new(place: &Place, app: &str) -> Self {
        let prefix = place.socket_prefix.clone().unwrap_or_else(|| format!("rip_{}_{app}", place.variant));
        let dir = app::absolute(&place.socket_dir);
        Names {
            app: app.to_owned(),
            control: dir.join(format!("{prefix}.ctl.sock")),
            harness_dir: dir.join(format!("{prefix}.harness")),
            prefix,
            dir,
        }
    }

    pub fn worker_socket(&self, slot: usize, version: u64) -> PathBuf {
        self.dir.join(format!("{}.{slot}.{version}.sock", self.prefix))
    }
}
