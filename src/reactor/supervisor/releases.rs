//! What a start runs: the release that the last roll brought, fixed when that roll began. A moved link is followed by
//! the next reload, and by nothing else.

use crate::app::{App, Runtime};
use crate::fleet::Release;
use std::os::unix::fs::MetadataExt;

/// The entry's inode, size and time: what tells that a file is another one by now.
type Print = (u64, u64, i64, i64);

/// An app as it was found when its roll began.
#[derive(Debug, Clone)]
struct Found {
    app: App,
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
    fn new(app: App) -> Self {
        let print = print(&app);
        Found { app, print }
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
    pub(super) fn new(found: Result<App, String>) -> Self {
        Releases { good: found.map(Found::new), next: None }
    }

    /// What a start of that release runs.
    ///
    /// # Errors
    /// Why there is no app, as it was when its roll began.
    pub(super) fn app(&self, release: Release) -> Result<App, String> {
        let found = match (release, &self.next) {
            (Release::New, Some(next)) => next,
            (Release::New, None) | (Release::Good, _) => &self.good,
        };
        found.as_ref().map(|found| found.app.clone()).map_err(Clone::clone)
    }

    /// A roll begins.
    pub(super) fn begin(&mut self, found: Result<App, String>) {
        self.next = Some(found.map(Found::new));
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
    use std::path::Path;

    fn app(dir: &Path, name: &str) -> App {
        std::fs::write(dir.join(name), name).expect("written");
        App {
            name: "app".into(),
            dir: dir.into(),
            entry: dir.join(name),
            runtime: Runtime::Executable,
            target: None,
        }
    }

    #[test]
    fn until_a_roll_has_succeeded_every_start_but_its_own_runs_the_last_good_release() {
        let dir = tempfile::tempdir().expect("a folder");
        let (one, two) = (app(dir.path(), "one"), app(dir.path(), "two"));
        let mut releases = Releases::new(Ok(one.clone()));
        releases.begin(Ok(two.clone()));
        assert_eq!(
            (releases.app(Release::Good), releases.app(Release::New)),
            (Ok(one.clone()), Ok(two.clone()))
        );
        releases.end();
        assert_eq!(releases.app(Release::Good), Ok(one));
        releases.begin(Ok(two.clone()));
        releases.adopt();
        releases.end();
        assert_eq!(releases.app(Release::Good), Ok(two));
    }

    #[test]
    fn files_that_change_under_a_release_are_noticed() {
        let dir = tempfile::tempdir().expect("a folder");
        let releases = Releases::new(Ok(app(dir.path(), "one")));
        assert!(!releases.has_changed());
        std::fs::write(dir.path().join("one"), "something longer").expect("written");
        assert!(releases.has_changed());
        std::fs::remove_file(dir.path().join("one")).expect("removed");
        assert!(releases.has_changed());
    }
}
