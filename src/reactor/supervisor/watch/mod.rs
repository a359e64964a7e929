//! Hot reload in `module` mode, as far as it is the server's: which files are an app's sources, and when one of them
//! has other content. What follows is in [`super::renewal`]. (A change in the entry itself is seen by the worker,
//! between two requests, where the runtime can swap in place.)

mod changes;
mod contents;
mod limits;

pub(super) use limits::Limit;

use crate::app::{App, Runtime};
use crate::reactor::io::token::Target;
use changes::Changes;
use contents::Contents;
use limits::MAX_FOLDERS;
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Folders that hold no sources of the app's own.
const PASSED_OVER: [&str; 5] = ["node_modules", "__pycache__", "target", "venv", "site-packages"];
/// JSON that the runtime itself reads, wherever it lies.
const CONFIG_FILES: [&str; 2] = ["package.json", "tsconfig.json"];
/// How deep folders are followed: deeper ones are no sources, and stacks have an end.
const MAX_DEPTH: usize = 64;

/// Watches an app's folder.
pub(super) struct Watch {
    inotify: Inotify,
    folders: HashMap<WatchDescriptor, PathBuf>,
    /// Whose own fate counts: the app's folder and those above it, each with the name in it that leads to the app; of an
    /// app that is gone the nearest that is there.
    anchors: HashMap<WatchDescriptor, Option<OsString>>,
    /// The app's folder, as it was when it began to be watched.
    folder: Option<(u64, u64)>,
    pub app: App,
    state: State,
    contents: Contents,
    pub changes: Changes,
    /// What goes unseen, and why.
    unseen: Option<(Limit, PathBuf)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Watching,
    /// The app's folder, or one above it, has been moved or removed.
    Lost,
}

/// What a look at the kernel's news has brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct News {
    /// A source has changed that workers do not take over by themselves.
    pub needs_new_workers: bool,
    /// The folder may be another one by now.
    pub is_lost: bool,
}

/// The endings of a runtime's own sources.
fn endings(runtime: Runtime) -> &'static [&'static str] {
    const JAVASCRIPT: &[&str] = &["rip", "ts", "tsx", "mts", "cts", "js", "jsx", "mjs", "cjs", "json"];
    match runtime {
        Runtime::JavaScript => JAVASCRIPT,
        // Templates are kept in memory too, by Django and Jinja.
        Runtime::Python => &["py", "html", "jinja", "jinja2", "j2", "djhtml", "mako"],
        Runtime::Ruby => &["rb", "ru", "erb"],
        // A command may be of any runtime.
        Runtime::Command => {
            &["py", "rb", "ru", "rip", "ts", "tsx", "mts", "js", "jsx", "mjs", "cjs", "php", "pl", "lua"]
        }
        Runtime::Cgi | Runtime::Executable => &[],
    }
}

/// Whether the worker sees a change of its entry by itself.
fn swaps_in_place(runtime: Runtime) -> bool {
    match runtime {
        Runtime::JavaScript | Runtime::Python | Runtime::Ruby => true,
        Runtime::Cgi | Runtime::Executable | Runtime::Command => false,
    }
}

impl Watch {
    /// `None`: this app needs no watching, since each request runs its script anew.
    ///
    /// # Errors
    /// No inotify, or too many watches.
    pub(super) fn start(app: App, registry: &Registry) -> Result<Option<Self>, Limit> {
        if app.runtime == Runtime::Cgi {
            return Ok(None);
        }
        let mut watch = Watch::open(app, registry)?;
        let dir = watch.root();
        if watch.is_entry_alone() {
            watch.add(&dir)?;
            let entry = watch.app.entry.clone();
            watch.contents.scan(&entry);
        } else {
            watch.add(&dir)?;
            watch.add_below(&dir, 0, &mut |watch, file| watch.contents.scan(file));
        }
        watch.add_anchors(&dir);
        watch.folder = folder_id(&dir);
        Ok(Some(watch))
    }

    fn open(app: App, registry: &Registry) -> Result<Self, Limit> {
        let inotify =
            Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(Limit::of_init)?;
        let fd = inotify.as_fd().as_raw_fd();
        registry.register(&mut SourceFd(&fd), Target::Watch.token(), Interest::READABLE).map_err(
            |error| Limit::Kernel(error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)),
        )?;
        Ok(Watch {
            inotify,
            folders: HashMap::new(),
            anchors: HashMap::new(),
            folder: None,
            app,
            state: State::Watching,
            contents: Contents::default(),
            changes: Changes::default(),
            unseen: None,
        })
    }

    /// Begins anew with the folder that is there now; what differs from before counts as changed.
    ///
    /// # Errors
    /// No inotify, or too many watches.
    pub(super) fn start_anew(
        self,
        app: App,
        registry: &Registry,
        now: Instant,
    ) -> Result<Option<Self>, Limit> {
        let Some(mut fresh) = Watch::start(app, registry)? else { return Ok(None) };
        let before = self.contents;
        fresh.changes = self.changes;
        let all: BTreeSet<PathBuf> = before.paths().chain(fresh.contents.paths()).cloned().collect();
        for path in all.into_iter().filter(|path| before.differs(path)) {
            fresh.changes.touch(path, now);
        }
        if fresh.folder != self.folder {
            // Workers live in the old one, whatever the new one holds.
            fresh.changes.touch(fresh.root(), now);
        }
        fresh.contents = before;
        Ok(Some(fresh))
    }

    /// Waits for an app that is gone, by the nearest folder above it that is there.
    ///
    /// # Errors
    /// No inotify, or too many watches.
    pub(super) fn wait_for_return(self, registry: &Registry) -> Result<Self, Limit> {
        let mut watch = Watch { state: State::Lost, ..Watch::open(self.app.clone(), registry)? };
        (watch.contents, watch.changes, watch.folder) = (self.contents, self.changes, self.folder);
        let coming = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let root = watch.root();
        // The folder itself is there if only its entry is not.
        for folder in root.ancestors() {
            match watch.inotify.add_watch(folder, coming) {
                Ok(descriptor) => {
                    watch.anchors.insert(descriptor, None);
                    return Ok(watch);
                }
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => {}
                Err(error) => return Err(Limit::of_add(error)),
            }
        }
        Ok(watch)
    }

    /// Whether it still sees the folder that the app has.
    pub(super) fn sees(&self, app: &App) -> bool {
        self.state == State::Watching && self.app == *app && folder_id(&self.root()) == self.folder
    }

    /// What has begun to go unseen, to be told once.
    pub(super) fn take_unseen(&mut self) -> Option<(Limit, PathBuf)> {
        self.unseen.take()
    }

    /// Only the entry counts, and only its own folder is watched.
    fn is_entry_alone(&self) -> bool {
        self.app.runtime == Runtime::Executable
    }

    fn root(&self) -> PathBuf {
        // Of a package right below the root of the file system its own folder: everything would be too much.
        let is_everything = self.app.dir.parent().is_none();
        if self.is_entry_alone() || is_everything {
            self.app.entry.parent().unwrap_or(Path::new("/")).to_path_buf()
        } else {
            self.app.dir.clone()
        }
    }

    fn add(&mut self, folder: &Path) -> Result<(), Limit> {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        if self.folders.len() >= MAX_FOLDERS {
            return Err(Limit::Folders);
        }
        let descriptor = self.inotify.add_watch(folder, flags).map_err(Limit::of_add)?;
        self.folders.insert(descriptor, folder.to_path_buf());
        Ok(())
    }

    /// What becomes of the app's folder itself, and of those above it.
    fn add_anchors(&mut self, root: &Path) {
        let own = self.folders.iter().find(|(_, folder)| *folder == root).map(|(descriptor, _)| *descriptor);
        self.anchors.extend(own.map(|descriptor| (descriptor, None)));
        // A folder in which a process works tells of its own removal only when that process has gone.
        let fate = AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ONLYDIR;
        for folder in root.ancestors() {
            let (Some(above), Some(name)) = (folder.parent(), folder.file_name()) else { return };
            // One that cannot be looked at cannot be replaced by this user either.
            if let Ok(descriptor) = self.inotify.add_watch(above, fate) {
                self.anchors.insert(descriptor, Some(name.to_os_string()));
            }
        }
    }

    /// All sources below a watched folder go to `each`, and the folders there are watched. Symlinks are not followed,
    /// so there are no circles.
    fn add_below(&mut self, folder: &Path, depth: usize, each: &mut impl FnMut(&mut Self, &Path)) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => {
                    if depth < MAX_DEPTH && !is_passed_over(&entry.file_name()) {
                        self.add_all(&path, depth + 1, each);
                    }
                }
                Ok(_) if self.has_ending(&path) => each(self, &path),
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// A folder and those below it.
    fn add_all(&mut self, folder: &Path, depth: usize, each: &mut impl FnMut(&mut Self, &Path)) {
        match self.add(folder) {
            Ok(()) => self.add_below(folder, depth, each),
            // Gone meanwhile, or not to be read: nothing to watch there.
            Err(Limit::Kernel(_)) => {}
            Err(limit) => drop(self.unseen.get_or_insert_with(|| (limit, folder.to_path_buf()))),
        }
    }

    /// A folder has gone, with all below it: so have the watches, so that the bound is one of what is there.
    fn remove_all(&mut self, folder: &Path, now: Instant) {
        let gone = self.folders.iter().filter(|(_, path)| path.starts_with(folder));
        let gone: Vec<WatchDescriptor> = gone.map(|(descriptor, _)| *descriptor).collect();
        for descriptor in gone {
            // The kernel has dropped those of a removed folder by itself.
            let _ = self.inotify.rm_watch(descriptor);
            self.folders.remove(&descriptor);
        }
        let files: Vec<PathBuf> =
            self.contents.paths().filter(|path| path.starts_with(folder)).cloned().collect();
        for file in files {
            self.look_at(&file, now);
        }
    }

    /// Takes in what the kernel has noticed.
    pub(super) fn read(&mut self, now: Instant) -> News {
        let mut news = News::default();
        loop {
            match self.inotify.read_events() {
                Ok(events) => {
                    for event in &events {
                        let one = self.take(event, now);
                        news.needs_new_workers |= one.needs_new_workers;
                        news.is_lost |= one.is_lost;
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => return news,
            }
        }
    }

    fn take(&mut self, event: &InotifyEvent, now: Instant) -> News {
        const FATE: AddWatchFlags =
            AddWatchFlags::IN_MOVE_SELF.union(AddWatchFlags::IN_DELETE_SELF).union(AddWatchFlags::IN_UNMOUNT);
        let lost = News { is_lost: true, ..News::default() };
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) || self.state == State::Lost {
            return lost;
        }
        if event.mask.intersects(FATE) {
            return if self.anchors.contains_key(&event.wd) { lost } else { News::default() };
        }
        if let Some(Some(name)) = self.anchors.get(&event.wd) {
            return if event.name.as_ref() == Some(name) { lost } else { News::default() };
        }
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.folders.remove(&event.wd);
            return News::default();
        }
        let (Some(folder), Some(name)) = (self.folders.get(&event.wd), &event.name) else {
            return News::default();
        };
        let path = folder.join(name);
        let before = self.changes.count();
        if event.mask.contains(AddWatchFlags::IN_ISDIR) {
            self.take_folder(event.mask, &path, name, now);
        } else if !is_begun(event.mask, &path) {
            self.look_at(&path, now);
        }
        News { needs_new_workers: self.changes.count() > before && !self.swaps(&path), is_lost: false }
    }

    fn take_folder(&mut self, mask: AddWatchFlags, path: &Path, name: &OsStr, now: Instant) {
        if self.is_entry_alone() || is_passed_over(name) {
            return;
        }
        if mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO) {
            // What it held before it was watched has come with it.
            let depth = path.components().count().saturating_sub(self.app.dir.components().count());
            self.add_all(path, depth, &mut |watch, file| watch.look_at(file, now));
        } else if mask.intersects(AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE) {
            self.remove_all(path, now);
        }
    }

    /// Notes a source that has other content than before.
    fn look_at(&mut self, path: &Path, now: Instant) {
        if self.counts(path) && self.contents.differs(path) {
            self.changes.touch(path.to_path_buf(), now);
        }
    }

    /// Those of the paths whose change stands, which is from now on no change any more.
    pub(super) fn settle(&mut self, paths: BTreeSet<PathBuf>) -> Vec<PathBuf> {
        let root = self.root();
        let has_changed = |path: &PathBuf| *path == root || self.contents.differs(path);
        let changed: Vec<PathBuf> = paths.into_iter().filter(has_changed).collect();
        for path in changed.iter().filter(|path| **path != root) {
            self.contents.learn(path);
        }
        changed
    }

    /// Whether the workers see a change of that file by themselves.
    pub(super) fn swaps(&self, path: &Path) -> bool {
        path == self.app.entry && swaps_in_place(self.app.runtime)
    }

    fn counts(&self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default();
        let is_json = path.extension().is_some_and(|ending| ending == "json");
        if is_json && path != self.app.entry {
            let is_setting = CONFIG_FILES.iter().any(|file| name == *file);
            return self.has_ending(path) && (is_setting || self.contents.import_json(path));
        }
        self.has_ending(path)
    }

    /// The entry, or a file with one of the runtime's endings.
    fn has_ending(&self, path: &Path) -> bool {
        if path == self.app.entry {
            return true;
        }
        let ending = path.extension().and_then(OsStr::to_str);
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        !self.is_entry_alone()
            && !is_hidden
            && ending.is_some_and(|ending| endings(self.app.runtime).contains(&ending))
    }
}

/// A file that is being written is created empty; a link (as `cargo build` makes) is whole at once.
fn is_begun(mask: AddWatchFlags, path: &Path) -> bool {
    let is_link = std::fs::symlink_metadata(path).is_ok_and(|file| file.nlink() > 1 || file.is_symlink());
    mask.contains(AddWatchFlags::IN_CREATE) && !is_link
}

/// Which folder a path leads to: device and inode.
fn folder_id(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn is_passed_over(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".") || PASSED_OVER.iter().any(|other| name == *other)
}

#[cfg(test)]
mod tests;
