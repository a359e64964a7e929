//! The folder for temporary files, which sometimes fails. Stands where the spools have `crate::anonymous_file`.

use crate::anonymous_file;
use nix::errno::Errno;
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::path::Path;

/// How the folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    Works,
    /// No file can be made, and nothing written.
    Full,
    /// Files can be made, and so many more writes find room.
    NearlyFull(usize),
    /// No file can be made in it, but in memory.
    FullFolder,
    /// It is no usable folder.
    Missing,
    /// No descriptor is left for a file.
    NoDescriptors,
}

thread_local! {
    static DISK: Cell<Disk> = const { Cell::new(Disk::Works) };
    static LACKED_DESCRIPTORS: Cell<bool> = const { Cell::new(false) };
    /// Files that were to be made.
    static OPENED: Cell<usize> = const { Cell::new(0) };
    static WAS_FULL: Cell<bool> = const { Cell::new(false) };
}

pub(crate) fn set(disk: Disk) {
    DISK.set(disk);
}

/// For a new history.
pub(crate) fn begin() {
    set(Disk::Works);
    WAS_FULL.set(false);
    LACKED_DESCRIPTORS.set(false);
}

/// Whether anything has found no room.
pub(crate) fn was_full() -> bool {
    WAS_FULL.get()
}

/// Whether there was no descriptor for a file, so that quiet connections had to make room.
pub(crate) fn lacked_descriptors() -> bool {
    LACKED_DESCRIPTORS.get()
}

/// How many files were to be made in the folder since this was asked last.
pub(crate) fn take_opened() -> usize {
    OPENED.take()
}

fn no_space() -> io::Error {
    WAS_FULL.set(true);
    Errno::ENOSPC.into()
}

pub(crate) fn open(folder: &Path) -> io::Result<(File, Option<io::Error>)> {
    OPENED.set(OPENED.get() + 1);
    match DISK.get() {
        Disk::Full | Disk::FullFolder => Err(no_space()),
        Disk::Works | Disk::NearlyFull(_) => anonymous_file::open(folder),
        Disk::NoDescriptors => {
            WAS_FULL.set(true);
            LACKED_DESCRIPTORS.set(true);
            Err(Errno::EMFILE.into())
        }
        Disk::Missing => anonymous_file::open(Path::new("/nonexistent")),
    }
}

pub(crate) fn open_in_memory() -> io::Result<File> {
    anonymous_file::open_in_memory()
}

pub(crate) fn write(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    match DISK.get() {
        Disk::Full | Disk::NearlyFull(0) => return Err(no_space()),
        Disk::NearlyFull(writes) => DISK.set(Disk::NearlyFull(writes - 1)),
        Disk::Works | Disk::FullFolder | Disk::Missing | Disk::NoDescriptors => {}
    }
    anonymous_file::write(file, bytes, offset)
}
