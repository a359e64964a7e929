//! The folder that a server's sockets lie in: made if missing, locked for the server's life, and swept of what
//! killed servers of the same name have left.

use super::source::StartError;
use crate::client;
use crate::names::Names;
use crate::paths::MAX_SOCKET_PATH_BYTES;
use crate::paths::shown;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{DirBuilder, File};
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a start waits for another one of the same name, or for a server that is ending.
const LOCK_WITHIN: Duration = Duration::from_secs(2);
const LOCK_EVERY: Duration = Duration::from_millis(10);

/// A run's name: hexadecimal digits, enough that two of one server are never called the same.
pub(super) const INSTANCE_DIGITS: usize = 8;

/// A server's name is its own for as long as this lives.
#[derive(Debug)]
pub(super) struct NameLock {
    /// Unlocked by the kernel, whatever the server dies of.
    file: Option<Flock<File>>,
    path: PathBuf,
    /// The file is this server's to remove.
    is_owner: bool,
}

/// Why the name is not to be had.
#[derive(Debug)]
pub(super) enum Locked {
    /// Another server has it, or is about to: its process, if it has said, and its status, if it answers.
    Held {
        pid: Option<i32>,
        status: Option<client::Answer>,
    },
    Trouble(io::Error),
}

impl NameLock {
    /// Takes the name, or waits a moment for whoever starts or ends at the same time.
    pub(super) fn take(names: &Names) -> Result<Self, Locked> {
        let path = names.lock();
        let since = Instant::now();
        loop {
            match NameLock::try_take(&path) {
                Ok(Some(lock)) => return Ok(lock),
                Ok(None) => {}
                Err(error) => return Err(Locked::Trouble(error)),
            }
            let status = client::ask(&names.control, "GET", "/status", "");
            let waits = status.as_ref().is_err_and(|error| !client::is_silence(error));
            if !waits || since.elapsed() >= LOCK_WITHIN {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                return Err(Locked::Held { pid: text.trim().parse().ok(), status: status.ok() });
            }
            std::thread::sleep(LOCK_EVERY);
        }
    }

    /// `None`: somebody else has it.
    fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            // Some file systems have no locks. A control socket that answers is still an obstacle there.
            Err((_, Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL)) => {
                return Ok(Some(NameLock { file: None, path: path.to_path_buf(), is_owner: true }));
            }
            Err((_, error)) => return Err(error.into()),
        };
        // Whoever had it before has removed the file that is locked now: only the one at the path counts.
        let is_at_path = std::fs::symlink_metadata(path)
            .ok()
            .zip(file.metadata().ok())
            .is_some_and(|(there, here)| there.dev() == here.dev() && there.ino() == here.ino());
        if !is_at_path {
            return Ok(None);
        }
        sign(&mut file)?;
        Ok(Some(NameLock { file: Some(file), path: path.to_path_buf(), is_owner: true }))
    }

    /// The lock of the server before this one, whose description both hold.
    pub(super) fn handed_over(names: &Names, fd: Option<OwnedFd>) -> Result<Self, Errno> {
        let lock = |fd: OwnedFd| Flock::lock(File::from(fd), FlockArg::LockExclusiveNonblock);
        let file = fd.map(lock).transpose().map_err(|(_, error)| error)?;
        Ok(NameLock { file, path: names.lock(), is_owner: false })
    }

    /// For the way to the next server. `None`: the file system has no locks.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|file| file.as_fd())
    }

    /// The name is this server's from now on.
    pub(super) fn take_over(&mut self) {
        self.is_owner = true;
        if let Some(file) = &mut self.file {
            // The pid is for complaints.
            let _ = sign(file);
        }
    }

    /// The name is another server's from now on.
    pub(super) fn hand_over(&mut self) {
        self.is_owner = false;
    }
}

/// Writes whose lock it is.
fn sign(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

impl Drop for NameLock {
    fn drop(&mut self) {
        // Before it is unlocked, so that it is nobody else's by then. One that was handed over stays locked.
        if self.file.is_some() && self.is_owner {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The folder for the sockets: made if missing, ours alone, and no symlink that somebody planted.
pub(crate) fn prepare(dir: &Path) -> Result<(), StartError> {
    let refuse = |what: String| {
        StartError::Trouble(format!("the socket folder '{}' {what}; --socket-dir names another", shown(dir)))
    };
    if std::fs::symlink_metadata(dir).is_err() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| refuse(format!("cannot be made: {error}")))?;
    }
    let metadata =
        std::fs::symlink_metadata(dir).map_err(|error| refuse(format!("cannot be looked at: {error}")))?;
    if !metadata.is_dir() {
        return Err(refuse("is not a folder".into()));
    }
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        return Err(refuse(format!("belongs to user {}", metadata.uid())));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(refuse(format!(
            "is open to others (mode {:o}, not 700)",
            metadata.permissions().mode() & 0o777
        )));
    }
    Ok(())
}

/// Removes what a killed server of this name has left: the sockets of its workers, on which nobody listens, and its
/// harnesses. To be called with the name's lock.
pub(super) fn sweep(names: &Names) {
    for file in std::fs::read_dir(&names.dir).into_iter().flatten().flatten() {
        let Some(name) = file.file_name().to_str().map(str::to_owned) else { continue };
        if names.is_own_socket(&name) {
            let answer = client::connect(&file.path());
            if answer.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
                let _ = std::fs::remove_file(file.path());
            }
        } else if names.is_harness_dir(&name) {
            let _ = std::fs::remove_dir_all(file.path());
        }
    }
}

/// Removes the files of one run of this server, which has ended.
pub(super) fn sweep_run(names: &Names, instance: &str) {
    for file in std::fs::read_dir(&names.dir).into_iter().flatten().flatten() {
        match file.file_name().to_str() {
            Some(name) if names.is_of_run(name, instance) => {
                let removed = std::fs::remove_file(file.path());
                if removed.is_err() {
                    let _ = std::fs::remove_dir_all(file.path());
                }
            }
            Some(_) | None => {}
        }
    }
}

/// The longest of the server's own paths must fit into a socket's address.
pub(super) fn check_lengths(names: &Names) -> Result<(), StartError> {
    let longest =
        names.worker_socket(&"0".repeat(INSTANCE_DIGITS), crate::config::MAX_WORKERS, 1_000_000_000);
    let (bytes, dir_bytes) = (longest.as_os_str().len(), names.dir.as_os_str().len());
    if bytes <= MAX_SOCKET_PATH_BYTES {
        return Ok(());
    }
    // What may always be had as a folder; a name that is too long for that one is too long for any.
    let short_dir = format!("/tmp/rip-{}", nix::unistd::geteuid());
    let what_to_do = if bytes - dir_bytes + short_dir.len() > MAX_SOCKET_PATH_BYTES {
        "the name is what is long: --socket-prefix=app would do".to_owned()
    } else {
        format!("the folder is what is long: --socket-dir={short_dir} would do")
    };
    Err(StartError::Usage(format!(
        "'{}' is too long for a Unix socket ({bytes} bytes, {MAX_SOCKET_PATH_BYTES} fit); {what_to_do}",
        shown(&longest)
    )))
}

#[cfg(test)]
mod tests;
