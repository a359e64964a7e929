//! `--log-file`: how it is opened, and what is said where it cannot be.

use super::stdio::Output;
use crate::paths::shown;
use nix::libc;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    pub(super) output: Output,
}

impl LogFile {
    /// # Errors
    /// One line: the file, what is wrong with it, what would do.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        Ok(LogFile { output: Output::to(open(path)?), path: path.to_path_buf() })
    }

    /// Opens the path anew: whoever rotates logs has moved the file away.
    ///
    /// # Errors
    /// As at the start; the file that is open stays open.
    pub(super) fn reopen(&mut self) -> Result<(), String> {
        self.output.go_on_in(open(&self.path)?);
        Ok(())
    }

    /// As messages name it.
    pub(super) fn name(&self) -> String {
        format!("'{}'", shown(&self.path))
    }
}

fn open(path: &Path) -> Result<File, String> {
    // Appending, so that a file that is copied and truncated has no hole. A pipe without a reader would be waited for.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let file = OpenOptions::new().create(true).append(true).custom_flags(flags).open(path);
    file.map_err(|error| {
        format!("--log-file: '{}' cannot be opened: {}", shown(path), complaint(path, &error))
    })
}

fn complaint(path: &Path, error: &io::Error) -> String {
    let folder = path.parent().unwrap_or(path);
    let user = nix::unistd::geteuid();
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            format!(
                "there is no folder '{0}'; mkdir -p {1} would do",
                shown(folder),
                crate::paths::quoted(folder)
            )
        }
        Some(libc::EACCES) => {
            format!("user {user} may not write there; a file or a folder of that user would do")
        }
        Some(libc::EISDIR) => format!("it is a folder; a file in it would do, as {}/access.log", shown(path)),
        Some(libc::ENOTDIR) => format!("'{}' is no folder", shown(folder)),
        Some(libc::ENXIO) => "it is a pipe that nobody reads, or a socket; a file would do".to_owned(),
        Some(libc::ENOSPC | libc::EDQUOT) => "the disk is full".to_owned(),
        _ => error.to_string(),
    }
}
