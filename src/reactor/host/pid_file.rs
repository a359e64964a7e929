//! `--pid-file`: which process the server is, for supervisors that follow an upgrade by it.

use crate::paths::shown;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
}

impl PidFile {
    /// Writes it; whoever reads sees the old pid or the new one, whole.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(crate) fn write(path: &Path) -> Result<Self, String> {
        let pid = std::process::id();
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".{pid}"));
        let write = || -> io::Result<()> {
            let mut options = std::fs::File::options();
            let mut file = options.write(true).create(true).truncate(true).mode(0o644).open(&aside)?;
            writeln!(file, "{pid}")?;
            std::fs::rename(&aside, path)
        };
        write().map_err(|error| {
            let _ = std::fs::remove_file(&aside);
            format!("--pid-file='{}' cannot be written: {error}; another path would do", shown(&path))
        })?;
        Ok(PidFile { path: path.to_path_buf() })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // By now it may be the next server's.
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        if text.trim() == std::process::id().to_string() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
