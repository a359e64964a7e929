//! Hot reload in `module` mode, as far as it is the server's: a change in a file that the entry imports, and any
//! change under a runtime that cannot swap in place, has the workers replaced at the next request. (A change in the
//! entry itself is seen by the worker, between two requests.)

use super::token::Target;
use super::{Reactor, Source};
use crate::app::{App, Runtime};
use crate::config::HotReload;
use crate::fleet::Release;
use crate::paths::shown;
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The most folders that are watched: each takes kernel memory, and sources seldom lie in more.
const MOST_FOLDERS: usize = 4096;
/// Folders that hold no sources of the app's own.
const PASSED_OVER: [&str; 5] = ["node_modules", "__pycache__", "target", "venv", "site-packages"];

/// Watches an app's folder.
pub struct Watch {
    inotify: Inotify,
    folders: HashMap<WatchDescriptor, PathBuf>,
    app: App,
    /// Only the entry counts, and only its own folder is watched.
    is_entry_alone: bool,
    /// What changed last, until a request comes.
    changed: Option<PathBuf>,
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
    /// The kernel's: no inotify, or too many watches.
    pub fn start(app: App, registry: &Registry) -> io::Result<Option<Self>> {
        if app.runtime == Runtime::Cgi {
            return Ok(None);
        }
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let fd = inotify.as_fd().as_raw_fd();
        registry.register(&mut SourceFd(&fd), Target::Watch.token(), Interest::READABLE)?;
        let is_entry_alone = app.runtime == Runtime::Executable;
        let mut watch = Watch { inotify, folders: HashMap::new(), app, is_entry_alone, changed: None };
        if is_entry_alone {
            let folder = watch.app.entry.parent().unwrap_or(Path::new("/")).to_path_buf();
            watch.add(&folder)?;
        } else {
            // Of a package right below the root of the file system its own folder: everything would be too much.
            let is_everything = watch.app.dir.parent().is_none();
            let dir =
                watch.app.entry.parent().filter(|_| is_everything).unwrap_or(&watch.app.dir).to_path_buf();
            watch.add_all(&dir)?;
        }
        Ok(Some(watch))
    }

    fn add(&mut self, folder: &Path) -> io::Result<()> {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        let descriptor = self.inotify.add_watch(folder, flags)?;
        self.folders.insert(descriptor, folder.to_path_buf());
        Ok(())
    }

    /// A folder and those below it; symlinks are not followed, so there are no circles.
    fn add_all(&mut self, folder: &Path) -> io::Result<()> {
        if self.folders.len() >= MOST_FOLDERS {
            log::warn!(
                "hot reload: more than {MOST_FOLDERS} folders; changes below '{}' go unseen",
                shown(&folder)
            );
            return Ok(());
        }
        self.add(folder)?;
        let entries = std::fs::read_dir(folder)?.flatten();
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            if !is_passed_over(&entry.file_name()) {
                // Gone meanwhile, or not to be read: nothing to watch there.
                let _ = self.add_all(&entry.path());
            }
        }
        Ok(())
    }

    /// Takes in what the kernel has noticed.
    fn read(&mut self) {
        loop {
            match self.inotify.read_events() {
                Ok(events) => events.iter().for_each(|event| self.take(event)),
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, event: &InotifyEvent) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            self.changed = Some(self.app.dir.clone());
            return;
        }
        let (Some(folder), Some(name)) = (self.folders.get(&event.wd), &event.name) else {
            return;
        };
        let path = folder.join(name);
        if event.mask.contains(AddWatchFlags::IN_ISDIR) {
            let has_come = event.mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO);
            if has_come && !self.is_entry_alone && !is_passed_over(name) {
                let _ = self.add_all(&path);
                // What it held before it was watched has come with it.
                if let Some(source) = self.first_source(&path) {
                    self.changed = Some(source);
                }
            }
            return;
        }
        // A file that is being written is created empty; a link (as `cargo build` makes) is whole at once.
        let is_link = |path: &Path| {
            std::fs::symlink_metadata(path).is_ok_and(|file| file.nlink() > 1 || file.is_symlink())
        };
        if event.mask.contains(AddWatchFlags::IN_CREATE) && !is_link(&path) {
            return;
        }
        if self.counts(&path) {
            self.changed = Some(path);
        }
    }

    /// A source file in a folder or below it.
    fn first_source(&self, folder: &Path) -> Option<PathBuf> {
        std::fs::read_dir(folder).ok()?.flatten().find_map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() && !is_passed_over(&entry.file_name()) => {
                self.first_source(&entry.path())
            }
            Ok(kind) if kind.is_file() && self.counts(&entry.path()) => Some(entry.path()),
            _ => None,
        })
    }

    fn counts(&self, path: &Path) -> bool {
        if path == self.app.entry {
            return !swaps_in_place(self.app.runtime);
        }
        let ending = path.extension().and_then(OsStr::to_str);
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        !self.is_entry_alone
            && !is_hidden
            && ending.is_some_and(|ending| endings(self.app.runtime).contains(&ending))
    }
}

fn is_passed_over(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".") || PASSED_OVER.iter().any(|other| name == *other)
}

impl Reactor {
    /// Begins to watch, or goes on with the folder that the app's path leads to now.
    pub(super) fn start_watch(&mut self) {
        if self.config.hot_reload != HotReload::Module || self.config.workers.max == 0 {
            return;
        }
        let Ok(app) = self.releases.app(Release::Good) else { return };
        let is_known = self.watch.as_ref().is_some_and(|watch| watch.app == app);
        if is_known {
            return;
        }
        match Watch::start(app, self.poll.registry()) {
            Ok(watch) => self.watch = watch,
            Err(error) => log::warn!("hot reload: changes in imported files go unseen: {error}"),
        }
    }

    pub(super) fn read_watch(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.read();
        }
    }

    /// A request has come: if sources have changed, the workers are replaced now.
    pub(super) fn reload_what_changed(&mut self) {
        let Some(changed) = self.watch.as_mut().and_then(|watch| watch.changed.take()) else {
            return;
        };
        let name = match &self.source {
            Source::Path { .. } => {
                self.watch.as_ref().and_then(|watch| changed.strip_prefix(&watch.app.dir).ok())
            }
            Source::Own { .. } => None,
        };
        log::info!("hot reload: {} has changed; the workers are replaced", shown(name.unwrap_or(&changed)));
        self.fleet.reload(self.clock.now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(runtime: Runtime, dir: &Path, entry: &str) -> Watch {
        let poll = mio::Poll::new().expect("epoll");
        let (name, entry) = ("app".into(), dir.join(entry));
        let app = App { name, dir: dir.to_path_buf(), entry, runtime, target: None };
        Watch::start(app, poll.registry()).expect("inotify").expect("is watched")
    }

    #[test]
    fn only_sources_of_the_apps_own_count() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(dir.path().join("node_modules/x")).expect("made");
        let mut watch = watch(Runtime::JavaScript, dir.path(), "index.js");
        for name in ["app.log", "index.js", ".index.js.swp", "node_modules/x/a.js", "data.db"] {
            std::fs::write(dir.path().join(name), "x").expect("written");
            watch.read();
            assert_eq!(watch.changed, None, "{name}");
        }
        std::fs::create_dir_all(dir.path().join("outside/lib")).expect("made");
        watch.read();
        std::fs::rename(dir.path().join("outside/lib"), dir.path().join("lib")).expect("renamed");
        watch.read();
        assert_eq!(watch.changed, None, "an empty folder is no source");
        let file = dir.path().join("lib/part.mjs");
        std::fs::write(&file, "x").expect("written");
        watch.read();
        assert_eq!(watch.changed, Some(file));
    }

    #[test]
    fn templates_of_python_apps_count() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(dir.path().join("templates")).expect("made");
        let mut watch = watch(Runtime::Python, dir.path(), "app.py");
        for (name, counts) in [("notes.txt", false), ("index.html", true), ("mail.jinja2", true)] {
            std::fs::write(dir.path().join("templates").join(name), "x").expect("written");
            watch.read();
            assert_eq!(watch.changed.take().is_some(), counts, "{name}");
        }
    }

    #[test]
    fn renames_and_links_count_for_an_executable() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut watch = watch(Runtime::Executable, dir.path(), "index");
        std::fs::write(dir.path().join("new"), "x").expect("written");
        watch.read();
        assert_eq!(watch.changed, None);
        std::fs::rename(dir.path().join("new"), dir.path().join("index")).expect("renamed");
        watch.read();
        assert!(watch.changed.take().is_some());
        std::fs::write(dir.path().join("deps"), "x").expect("written");
        std::fs::remove_file(dir.path().join("index")).expect("removed");
        std::fs::hard_link(dir.path().join("deps"), dir.path().join("index")).expect("linked");
        watch.read();
        assert!(watch.changed.is_some());
    }
}
