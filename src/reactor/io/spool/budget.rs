//! What all spools share: the folder for their files, and the bounds on memory, on disk, and on the work of one tick.

#[cfg(not(any(test, fuzzing)))]
use crate::anonymous_file;
#[cfg(any(test, fuzzing))]
use crate::reactor::simulation::disk as anonymous_file;
use nix::errno::Errno;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What all spools together hold in memory, so that many middling ones cannot fill it.
const MAX_MEMORY_BYTES: usize = 64 * 1024 * 1024;
/// What all spools together hold in memfds, where there is no folder for temporary files.
pub(super) const MAX_MEMFD_BYTES: u64 =
    if cfg!(any(test, fuzzing)) { 4 * 1024 * 1024 } else { 64 * 1024 * 1024 };
/// Files made in one tick, and small ones closed: either takes a file system up to half a millisecond.
const MAX_FILES_PER_TICK: usize = if cfg!(any(test, fuzzing)) { 1 } else { 4 };
/// Files up to that size count as small. Closing a large one takes the kernel 2 ms, so one is closed a tick.
const SMALL_BYTES: u64 = 4 * 1024 * 1024;
/// A folder that has taken everything for so long is well again. Shorter, and each slow client would add two lines.
const WELL_AFTER: Duration = Duration::from_secs(10);

/// The shared bounds.
#[derive(Debug)]
pub(crate) struct SpoolBudget {
    folder: PathBuf,
    /// `--max-spool`
    max_disk_bytes: u64,
    memory_bytes: Cell<usize>,
    memfd_bytes: Cell<u64>,
    disk_bytes: Cell<u64>,
    /// Files that may still be made in this tick.
    files_left: Cell<usize>,
    /// All that are open.
    files: Cell<usize>,
    /// The last file could not be made for want of a descriptor.
    lacks_descriptors: Cell<bool>,
    /// Files that nobody reads any more.
    leaving: RefCell<VecDeque<Segment>>,
    /// The folder takes no files.
    folder_trouble: RefCell<Trouble>,
    /// There is no room, in the folder or in what stands in for it.
    room_trouble: RefCell<Trouble>,
}

/// What spools hold now, for the metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Spooled {
    pub memory_bytes: u64,
    pub memfd_bytes: u64,
    pub disk_bytes: u64,
    pub max_disk_bytes: u64,
}

/// One file of a spool.
#[derive(Debug)]
pub(crate) struct Segment {
    pub file: File,
    /// Where in the spool's files together it begins.
    pub start: u64,
    pub bytes: u64,
    pub is_memfd: bool,
}

/// Why bytes find no place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// So many files have been made in this tick, or there was no descriptor; there may be room in the next.
    TickIsOver,
    /// The disk, `--max-spool` or the memfds' bound are used up.
    Full,
}

/// Trouble that is told once, and again only after everything has been well for a while.
#[derive(Debug, Default)]
struct Trouble {
    /// When it was last met; `None`: all is well.
    last: Option<Instant>,
    /// Met in this tick.
    met: Option<String>,
    /// Something has gone well in this tick.
    has_gone_well: bool,
}

impl Trouble {
    fn meet(&mut self, text: impl FnOnce() -> String) {
        self.met.get_or_insert_with(text);
    }

    /// At the end of a tick: what is to be told.
    fn tell(&mut self, now: Instant) -> Option<Notice> {
        let has_gone_well = std::mem::take(&mut self.has_gone_well);
        match (self.met.take(), self.last) {
            (Some(text), None) => {
                self.last = Some(now);
                Some(Notice::Trouble(text))
            }
            (Some(_), Some(_)) => {
                self.last = Some(now);
                None
            }
            (None, Some(last)) if has_gone_well && now.duration_since(last) >= WELL_AFTER => {
                self.last = None;
                Some(Notice::IsWell)
            }
            (None, _) => None,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Notice {
    Trouble(String),
    IsWell,
}

impl SpoolBudget {
    /// `folder`: where temporary files are made.
    pub(crate) fn new(folder: PathBuf, max_disk_bytes: u64) -> Rc<Self> {
        Rc::new(SpoolBudget {
            folder,
            max_disk_bytes,
            memory_bytes: Cell::new(0),
            memfd_bytes: Cell::new(0),
            disk_bytes: Cell::new(0),
            files_left: Cell::new(MAX_FILES_PER_TICK),
            files: Cell::new(0),
            lacks_descriptors: Cell::new(false),
            leaving: RefCell::default(),
            folder_trouble: RefCell::default(),
            room_trouble: RefCell::default(),
        })
    }

    pub(crate) fn spooled(&self) -> Spooled {
        Spooled {
            memory_bytes: self.memory_bytes.get() as u64,
            memfd_bytes: self.memfd_bytes.get(),
            disk_bytes: self.disk_bytes.get(),
            max_disk_bytes: self.max_disk_bytes,
        }
    }

    /// No more files are made in this tick.
    pub(crate) fn is_tick_over(&self) -> bool {
        self.files_left.get() == 0
    }

    /// How many files are open.
    pub(crate) fn files(&self) -> usize {
        self.files.get()
    }

    /// The last file could not be made for want of a descriptor: it is tried again when there is one.
    pub(crate) fn lacks_descriptors(&self) -> bool {
        self.lacks_descriptors.get()
    }

    /// Whether files are still to be closed.
    pub(crate) fn has_leaving_files(&self) -> bool {
        !self.leaving.borrow().is_empty()
    }

    /// What is left of the memory for all.
    pub(crate) fn memory_left(&self) -> usize {
        MAX_MEMORY_BYTES.saturating_sub(self.memory_bytes.get())
    }

    pub(crate) fn take_memory(&self, bytes: usize) {
        self.memory_bytes.set(self.memory_bytes.get() + bytes);
    }

    pub(crate) fn give_memory_back(&self, bytes: usize) {
        self.memory_bytes.set(self.memory_bytes.get() - bytes);
    }

    /// The end of a tick: files are closed, trouble is told, and the next tick may make files again.
    pub(crate) fn end_tick(&self, now: Instant) {
        self.files_left.set(MAX_FILES_PER_TICK);
        self.close_leaving(MAX_FILES_PER_TICK);
        let folder = crate::paths::shown(&self.folder);
        match self.folder_trouble.borrow_mut().tell(now) {
            Some(Notice::Trouble(error)) => log::warn!(
                "the temporary folder '{folder}' cannot be used: {error}; up to 64 MiB of bodies and answers wait in memory instead (TMPDIR names another folder)"
            ),
            Some(Notice::IsWell) => log::info!("the temporary folder '{folder}' can be used again"),
            None => {}
        }
        match self.room_trouble.borrow_mut().tell(now) {
            Some(Notice::Trouble(error)) => log::warn!(
                "no room for temporary files in '{folder}': {error}; up to 64 MiB of answers wait in memory, then slow clients keep their workers waiting; large request bodies get 503"
            ),
            Some(Notice::IsWell) => {
                log::info!("there is room for temporary files in '{folder}' again")
            }
            None => {}
        }
    }

    /// A new, empty file in memory, for what must not be lost where the folder has no room.
    pub(crate) fn open_in_memory(&self, start: u64) -> Result<Segment, NoRoom> {
        if self.memfd_bytes.get() >= MAX_MEMFD_BYTES {
            return Err(NoRoom::Full);
        }
        let file = anonymous_file::open_in_memory().map_err(|error| self.is_full(&error))?;
        self.files.set(self.files.get() + 1);
        Ok(Segment { file, start, bytes: 0, is_memfd: true })
    }

    /// A new, empty file.
    pub(crate) fn open(&self, start: u64) -> Result<Segment, NoRoom> {
        if self.files_left.get() == 0 {
            return Err(NoRoom::TickIsOver);
        }
        if self.disk_bytes.get() >= self.max_disk_bytes {
            return Err(self.bound_is_reached());
        }
        self.files_left.set(self.files_left.get() - 1);
        let opened = anonymous_file::open(&self.folder).map_err(|error| {
            let full = self.is_full(&error);
            self.lacks_descriptors.set(lacks_descriptors(&error));
            if self.lacks_descriptors.get() {
                // Nor would another one be made.
                self.files_left.set(0);
                return NoRoom::TickIsOver;
            }
            full
        });
        let (file, no_folder) = opened?;
        self.lacks_descriptors.set(false);
        self.files.set(self.files.get() + 1);
        match &no_folder {
            Some(error) => self.folder_trouble.borrow_mut().meet(|| error.to_string()),
            None => self.folder_trouble.borrow_mut().has_gone_well = true,
        }
        Ok(Segment { file, start, bytes: 0, is_memfd: no_folder.is_some() })
    }

    /// Writes behind what stands in `segment`; all of it, or what would count as nothing.
    pub(crate) fn append(&self, segment: &mut Segment, bytes: &[u8]) -> Result<(), NoRoom> {
        let (held, bound) = match segment.is_memfd {
            true => (&self.memfd_bytes, MAX_MEMFD_BYTES),
            false => (&self.disk_bytes, self.max_disk_bytes),
        };
        let after = held.get() + bytes.len() as u64;
        if after > bound && segment.is_memfd {
            let text = || "the 64 MiB in memory that stand in for it are used up".to_owned();
            self.room_trouble.borrow_mut().meet(text);
            return Err(NoRoom::Full);
        }
        if after > bound {
            return Err(self.bound_is_reached());
        }
        anonymous_file::write(&segment.file, bytes, segment.bytes).map_err(|error| self.is_full(&error))?;
        self.room_trouble.borrow_mut().has_gone_well = true;
        segment.bytes += bytes.len() as u64;
        held.set(after);
        Ok(())
    }

    /// Nobody reads a segment any more. Many that go at once are closed one tick after the other.
    pub(crate) fn give_file_back(&self, segment: Segment) {
        self.leaving.borrow_mut().push_back(segment);
    }

    /// Closes so many small ones at most, or up to a large one.
    fn close_leaving(&self, most_files: usize) {
        for _ in 0..most_files {
            let Some(segment) = self.leaving.borrow_mut().pop_front() else { return };
            let is_small = segment.bytes <= SMALL_BYTES;
            self.close(segment);
            if !is_small {
                return;
            }
        }
    }

    fn close(&self, segment: Segment) {
        let held = if segment.is_memfd { &self.memfd_bytes } else { &self.disk_bytes };
        held.set(held.get() - segment.bytes);
        self.files.set(self.files.get() - 1);
    }

    fn is_full(&self, error: &io::Error) -> NoRoom {
        self.room_trouble.borrow_mut().meet(|| error.to_string());
        NoRoom::Full
    }

    fn bound_is_reached(&self) -> NoRoom {
        let text = || format!("--max-spool={} bytes are used up", self.max_disk_bytes);
        self.room_trouble.borrow_mut().meet(text);
        NoRoom::Full
    }
}

fn lacks_descriptors(error: &io::Error) -> bool {
    let codes = [Errno::EMFILE as i32, Errno::ENFILE as i32];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

#[cfg(test)]
mod tests;
