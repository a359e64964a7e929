//! Files without a name: nothing is left behind, whatever happens.

use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Opens one in `folder`; where that is no usable folder, in memory (then the reason stands beside it).
///
/// # Errors
/// There are no descriptors left, or the disk is full.
pub(crate) fn open(folder: &Path) -> io::Result<(File, Option<io::Error>)> {
    let anonymous_file = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC)
        .open(folder);
    match anonymous_file.or_else(|_| open_and_unlink(folder)) {
        Ok(file) => Ok((file, None)),
        Err(error) if is_shortage(&error) => Err(error),
        Err(error) => Ok((open_in_memory()?, Some(error))),
    }
}

/// One in memory, whatever the folder is.
///
/// # Errors
/// There are no descriptors left, or no memory.
pub(crate) fn open_in_memory() -> io::Result<File> {
    Ok(File::from(memfd_create(c"rip-spool", MFdFlags::MFD_CLOEXEC)?))
}

/// Writes all of it, or fails.
///
/// # Errors
/// The disk is full or broken.
pub(crate) fn write(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}

/// The folder is usable, and something lacks for now.
fn is_shortage(error: &io::Error) -> bool {
    let codes = [libc::EMFILE, libc::ENFILE, libc::ENOSPC, libc::EDQUOT];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// For file systems without O_TMPFILE.
fn open_and_unlink(folder: &Path) -> io::Result<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!(".rip-spool-{}-{count}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
