//! What a start runs: the release that the last roll brought, fixed when that roll began. A moved link is followed by
//! the next reload, and by nothing else; so is an edit of the file of variables.

use crate::app::{App, Runtime};
use crate::config::env_file::{self, Variable};
use crate::fleet::Release;
use crate::reactor::source::Source;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The entry's inode, size and time: what tells that a file is another one by now.
type Print = (u64, u64, i64, i64);

/// An app as it was found when its roll began, and what its workers were to have in their environment.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub app: App,
    pub variables: Vec<Variable>,
    print: Option<Print>,
}

/// The releases that starts may run.
#[derive(Debug)]
pub(super) struct Releases {
    good: Result<Found, String>,
    /// Of the roll that goes on, if it has not been adopted.
    next: Option<Result<Found, String>>,
}

impl Found {
    /// What is there now.
    ///
    /// # Errors
    /// Why there is no app, or what is wrong with the file of variables.
    pub(super) fn look(source: &Source, env_file: Option<&Path>) -> Result<Self, String> {
        let variables = env_file.map_or(Ok(Vec::new()), env_file::read)?;
        source.find().map(|app| Found { print: print(&app), app, variables })
    }
}

/// `None`: nothing to compare. A command's entry is its folder, in which files come and go.
fn print(app: &App) -> Option<Print> {
    if app.runtime == Runtime::Command {
        return None;
    }
    let file = app.entry.metadata().ok()?;
    Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
}

impl Releases {
    pub(super) fn new(found: Result<Found, String>) -> Self {
        Releases { good: found, next: None }
    }

    /// What a start of that release runs.
    ///
    /// # Errors
    /// Why it has nothing to run, as it was when its roll began.
    pub(super) fn found(&self, release: Release) -> Result<Found, String> {
        let found = match (release, &self.next) {
            (Release::New, Some(next)) => next,
            (Release::New, None) | (Release::Good, _) => &self.good,
        };
        found.clone()
    }

    /// The app of that release.
    ///
    /// # Errors
    /// As [`Releases::found`].
    pub(super) fn app(&self, release: Release) -> Result<App, String> {
        self.found(release).map(|found| found.app)
    }

    /// A roll begins.
    pub(super) fn begin(&mut self, found: Result<Found, String>) {
        self.next = Some(found);
    }

    /// All slots have what the roll brought.
    pub(super) fn adopt(&mut self) {
        if let Some(next) = self.next.take() {
            self.good = next;
        }
    }

    /// The roll has ended, adopted or not.
    pub(super) fn end(&mut self) {
        self.next = None;
    }

    /// The files that each start uses are not those that the fleet was started with.
    pub(super) fn has_changed(&self) -> bool {
        self.good.as_ref().is_ok_and(|good| good.print != print(&good.app))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::Wanted;
    use std::os::unix::fs::PermissionsExt;

    /// A release in a folder, and its file of variables.
    fn look(dir: &Path, name: &str) -> Result<Found, String> {
        let entry = dir.join(name);
        std::fs::write(&entry, name).expect("written");
        std::fs::set_permissions(&entry, PermissionsExt::from_mode(0o755)).expect("it is ours");
        let source = Source::Path { path: entry, wanted: Wanted::Entry };
        Found::look(&source, Some(&dir.join("variables")))
    }

    /// What a start of that release runs, and its variables.
    fn runs(releases: &Releases, release: Release) -> (String, Vec<Variable>) {
        let found = releases.found(release).expect("something to run");
        let name = found.app.entry.file_name().expect("a file");
        (name.to_string_lossy().into_owned(), found.variables)
    }

    fn variable(value: &str) -> Vec<Variable> {
        vec![("A".to_owned(), value.to_owned())]
    }

    #[test]
    fn until_a_roll_has_succeeded_every_start_but_its_own_runs_the_last_good_release() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |text: &str| std::fs::write(dir.path().join("variables"), text).expect("written");
        write("A=1");
        let mut releases = Releases::new(look(dir.path(), "one"));
        write("A=2");
        releases.begin(look(dir.path(), "two"));
        assert_eq!(runs(&releases, Release::Good), ("one".into(), variable("1")));
        assert_eq!(runs(&releases, Release::New), ("two".into(), variable("2")));
        releases.end();
        assert_eq!(runs(&releases, Release::Good), ("one".into(), variable("1")));
        assert_eq!(runs(&releases, Release::New), ("one".into(), variable("1")));
        write("A=1\nB");
        releases.begin(look(dir.path(), "two"));
        assert!(releases.found(Release::New).is_err_and(|reason| reason.contains("line 2")));
        assert_eq!(runs(&releases, Release::Good), ("one".into(), variable("1")));
        releases.end();
        write("A=3");
        releases.begin(look(dir.path(), "two"));
        releases.adopt();
        releases.end();
        assert_eq!(runs(&releases, Release::Good), ("two".into(), variable("3")));
    }

    #[test]
    fn files_that_change_under_a_release_are_noticed() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("variables"), "").expect("written");
        let releases = Releases::new(look(dir.path(), "one"));
        assert!(!releases.has_changed());
        std::fs::write(dir.path().join("one"), "something longer").expect("written");
        assert!(releases.has_changed());
        std::fs::remove_file(dir.path().join("one")).expect("removed");
        assert!(releases.has_changed());
    }
}
