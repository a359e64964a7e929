//! New code in development: changed sources have the workers replaced at the change, requests wait for the new code,
//! and an app that does not start is waited for, and says why.

use super::Supervisor;
use super::watch::{Limit, Watch};
use super::worker::Worker;
use crate::config::HotReload;
use crate::deadlines::earliest;
use crate::fleet;
use crate::keys::WorkerKey;
use crate::paths::shown;
use crate::reactor::io::Io;
use crate::reactor::source::Source;
use mio::Registry;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What the server knows of code that is to come.
#[derive(Default)]
pub(super) struct Renewal {
    watch: Option<Watch>,
    /// Requests wait for it.
    hold: Option<Hold>,
    /// Nobody has asked since it began.
    has_begun_roll: bool,
    /// Since when the newest code that has joined is the sources': who is older is not asked again beside it.
    good_since: Option<Instant>,
    /// The last replacement failed: what serves is older than the sources.
    is_behind: bool,
    /// How the last start failed, until a worker joins.
    failure: Option<String>,
    /// The bound that was told of, once.
    reported: Option<Limit>,
}

/// Workers with the old code get nothing.
#[derive(Debug, Clone, Copy)]
struct Hold {
    /// Whose start was asked for before may have the old code: its process may be there for longer than is known.
    changed_at: Instant,
    /// By then the new code has come, or the old one goes on.
    until: Instant,
}

/// What has come of changes that have settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewed {
    /// The workers take them over by themselves: nobody waits for new code.
    Nothing,
    /// The workers are to be replaced. `is_slowed`: nobody waits for it, since the app changes its sources in a loop.
    Replace { is_slowed: bool },
}

impl Renewal {
    pub(super) fn note_failure(&mut self, failure: String) {
        self.failure = Some(failure);
    }
}

/// Watching.
impl Supervisor {
    /// Begins to watch, or goes on with the folder that the app's path leads to now.
    pub(crate) fn start_watch(&mut self, io: &Io) {
        if self.config.hot_reload != HotReload::Module || self.config.workers.max == 0 {
            return;
        }
        let Ok(app) = self.launcher.releases().app(fleet::Release::Good) else { return };
        if self.renewal.watch.as_ref().is_some_and(|watch| watch.sees(&app)) {
            return;
        }
        let watch = Watch::start(app, io.registry());
        self.use_watch(watch);
    }

    pub(super) fn use_watch(&mut self, watch: Result<Option<Watch>, Limit>) {
        match watch {
            Ok(watch) => self.renewal.watch = watch,
            Err(limit) => {
                self.renewal.watch = None;
                let path = self.launcher.source().path().to_path_buf();
                self.tell_unseen(limit, &path);
            }
        }
        self.report_unseen();
    }

    fn report_unseen(&mut self) {
        if let Some((limit, path)) = self.renewal.watch.as_mut().and_then(Watch::take_unseen) {
            self.tell_unseen(limit, &path);
        }
    }

    /// Once for each bound.
    fn tell_unseen(&mut self, limit: Limit, path: &Path) {
        if self.renewal.reported != Some(limit) {
            self.renewal.reported = Some(limit);
            log::warn!("hot reload: changes below '{}' go unseen: {limit}", shown(path));
        }
    }

    /// Takes in what has changed. `true`: requests are to wait for the new code.
    pub(crate) fn read_watch(&mut self, io: &Io) -> bool {
        let now = io.now();
        let Some(watch) = &mut self.renewal.watch else { return false };
        let news = watch.read(now);
        if news.is_lost {
            self.look_anew(io.registry(), now);
        }
        self.report_unseen();
        let Some(watch) = &self.renewal.watch else { return false };
        // Where nobody has the last code, a change of the entry itself is waited for as well.
        let counts_all = news.is_lost || !self.is_up_to_date();
        let must_wait = news.needs_new_workers || counts_all && watch.changes.due().is_some();
        must_wait && !watch.changes.is_slowed(now)
    }

    /// The app's folder may be another one by now, or gone.
    fn look_anew(&mut self, registry: &Registry, now: Instant) {
        let Some(watch) = self.renewal.watch.take() else { return };
        let source = self.launcher.source();
        let watch = match source.find() {
            Ok(app) => watch.start_anew(app, registry, now),
            Err(_) => watch.wait_for_return(registry).and_then(|watch| match source.find() {
                // It has come back in this moment.
                Ok(app) => watch.start_anew(app, registry, now),
                Err(_) => Ok(Some(watch)),
            }),
        };
        self.use_watch(watch);
    }

    /// When something is to be done about changes.
    pub(super) fn renewal_deadline(&self) -> Option<Instant> {
        let change = self.renewal.watch.as_ref().and_then(|watch| watch.changes.due());
        let hold = self.renewal.hold.map(|hold| hold.until);
        earliest([change, hold])
    }

    /// Changes have been seen whose code has not come yet.
    pub(crate) fn awaits_new_code(&self) -> bool {
        self.renewal_deadline().is_some()
    }

    /// Looks at changes that have settled by now.
    pub(crate) fn settle_changes(&mut self, now: Instant) -> Option<Renewed> {
        let watch = self.renewal.watch.as_mut()?;
        let paths = watch.changes.take(now)?;
        let changed = watch.settle(paths);
        Some(self.sources_changed(&changed, now))
    }

    fn sources_changed(&mut self, changed: &[PathBuf], now: Instant) -> Renewed {
        let is_up_to_date = self.is_up_to_date();
        let Some(watch) = self.renewal.watch.as_mut() else { return Renewed::Nothing };
        let counts = |path: &&PathBuf| !(is_up_to_date && watch.swaps(path));
        let Some(first) = changed.iter().find(counts) else { return Renewed::Nothing };
        let name = match self.launcher.source() {
            Source::Path { .. } => first.strip_prefix(&watch.app.dir).unwrap_or(first),
            Source::Embedded { .. } => first,
        };
        let name = if name == Path::new("") { first } else { name };
        let name = shown(name).to_string();
        let more = match changed.len() {
            1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        log::info!("hot reload: {name} has changed{more}; the workers are replaced");
        let was_slowed = watch.changes.is_slowed(now);
        let is_loop = watch.changes.replaced(now);
        if is_loop {
            log::warn!(
                "hot reload: {name} changes again and again, perhaps by the app itself; from now on that counts every few seconds. What an app writes may lie in a folder whose name begins with a dot"
            );
        }
        Renewed::Replace { is_slowed: was_slowed || watch.changes.is_slowed(now) }
    }

    /// Whether every worker is there, with the last code but for what it takes over by itself.
    fn is_up_to_date(&self) -> bool {
        self.fleet.serving() == self.fleet.size() && !self.renewal.is_behind
    }
}

/// Rolls.
impl Supervisor {
    pub(crate) fn begin_roll(&mut self) {
        self.renewal.has_begun_roll = true;
        self.launcher.begin_release();
        self.outputs.folds.forget();
    }

    /// Whether one has begun since this was asked last: it may be over by then.
    pub(crate) fn take_begun_roll(&mut self) -> bool {
        std::mem::take(&mut self.renewal.has_begun_roll)
    }

    /// All slots have what the roll brought.
    pub(crate) fn adopt(&mut self, io: &Io) {
        self.launcher.adopt_release();
        self.start_watch(io);
    }

    /// All workers are replaced, or that was given up. `true`: nobody waits for new code any more.
    pub(crate) fn end_renewal(&mut self, is_done: bool) -> bool {
        self.renewal.is_behind = !is_done;
        let has_more = self.renewal.watch.as_ref().is_some_and(|watch| watch.changes.due().is_some());
        !has_more
    }
}

/// Requests that wait for the new code.
impl Supervisor {
    /// From now on nobody with the old code gets a request; those who had it, and might have.
    pub(crate) fn hold(&mut self, now: Instant) -> Vec<WorkerKey> {
        self.renewal.hold = Some(Hold { changed_at: now, until: now + self.config.boot_timeout });
        let old: Vec<WorkerKey> = self.keys().into_iter().filter(|worker| self.may_serve(*worker)).collect();
        for worker in &old {
            if let Some(entry) = self.get_mut(*worker) {
                entry.is_withheld = true;
            }
        }
        old
    }

    /// Whether a worker has joined and is not on its way out.
    fn may_serve(&self, worker: WorkerKey) -> bool {
        self.get(worker).is_some_and(|entry| !entry.is_dead() && !entry.is_withheld)
            && matches!(
                self.phase_of(worker),
                Some(fleet::Phase::Serving { .. } | fleet::Phase::Reserve { is_serving: true, .. })
            )
            // Its answer may end by now, but it is on its way out.
            && !self.fleet.is_stuck(worker)
    }

    /// New code is waited for no longer: whoever has the old code and is still there.
    pub(crate) fn end_hold(&mut self) -> Vec<WorkerKey> {
        if self.renewal.hold.take().is_none() {
            return Vec::new();
        }
        let is_newest = |entry: &Worker| Some(entry.process.asked) >= self.renewal.good_since;
        let all = self.workers.iter().filter(|(_, entry)| entry.has_joined() && !entry.is_dead());
        let has_newest = all.clone().any(|(_, entry)| is_newest(entry));
        let withheld = all.filter(|(_, entry)| entry.is_withheld && (is_newest(entry) || !has_newest));
        withheld.map(|(key, _)| WorkerKey(key)).collect()
    }

    /// A worker that was withheld is so no more. Whether it may get requests: of a dying one the end is about to be heard.
    pub(crate) fn end_withholding(&mut self, worker: WorkerKey) -> bool {
        if let Some(entry) = self.get_mut(worker) {
            entry.is_withheld = false;
        }
        self.may_serve(worker) && self.is_ending(worker) != Some(true)
    }

    /// A worker has joined, or is back: whether it has the old code, and is withheld like all others that have.
    pub(crate) fn is_withheld_at_once(&mut self, worker: WorkerKey) -> bool {
        self.renewal.failure = None;
        let Some(hold) = self.renewal.hold else { return false };
        let Some(entry) = self.workers.get_mut(worker.0) else { return false };
        entry.is_withheld = entry.process.asked < hold.changed_at && entry.origin.is_own();
        if !entry.is_withheld {
            self.renewal.good_since = Some(hold.changed_at);
        }
        entry.is_withheld
    }

    /// Requests wait for new code, and not for want of workers.
    pub(crate) fn waits_for_new_code(&self) -> bool {
        self.renewal.hold.is_some()
    }

    /// Until when the new code has come, or the old one goes on.
    pub(crate) fn hold_until(&self) -> Option<Instant> {
        self.renewal.hold.map(|hold| hold.until)
    }
}

/// An app that does not start.
impl Supervisor {
    /// Whether edits are waited for where the server would else end.
    pub(crate) fn waits_for_edits(&self) -> bool {
        self.renewal.watch.is_some()
    }

    /// Whether the app has failed to start, nobody serves, and nobody is about to.
    pub(crate) fn has_failed_to_start(&self) -> bool {
        let is_coming = |member: &fleet::Member| {
            matches!(member.phase(), fleet::Phase::Booting { .. } | fleet::Phase::Serving { .. })
        };
        let may_tell = self.renewal.watch.is_some() && self.renewal.hold.is_none();
        may_tell
            && self.renewal.failure.is_some()
            && !self.fleet.members().any(|(_, member)| is_coming(member))
    }

    /// A start has failed, and no worker has joined since.
    pub(crate) fn has_failure(&self) -> bool {
        self.renewal.failure.is_some()
    }

    /// A worker has ended before it had joined.
    pub(super) fn note_failed_start(&mut self, worker: WorkerKey, how: String) {
        let was_late = matches!(self.phase_of(worker), Some(fleet::Phase::Killed));
        let Some(entry) = self.get_mut(worker) else { return };
        // Anybody may kill it: what the server has done the fleet knows, as long as it has the worker.
        entry.process.was_late = was_late;
        let words = entry.said.last_words.iter().map(|line| format!("\n  {line}"));
        let failure = words.fold(how, |text, line| text + &line);
        self.renewal.note_failure(failure);
    }

    /// Why the last start failed, to be said in one line behind what follows from it; nothing where it is not known.
    pub(crate) fn last_failure(&self) -> String {
        let Some(failure) = &self.renewal.failure else { return String::new() };
        let mut lines = failure.lines().map(str::trim).filter(|line| !line.is_empty());
        let Some(how) = lines.next() else { return String::new() };
        // A stack trace may go on behind its error; Node ends it with its version.
        let words: Vec<&str> = lines.collect();
        let is_error = |line: &&&str| line.contains("rror");
        match words.iter().rev().find(is_error).or(words.last()) {
            Some(word) => format!(" (the last: {how}: {word})"),
            None => format!(" (the last: {how})"),
        }
    }

    /// Nobody serves, and the last start has failed: then that is why a request has waited in vain.
    pub(crate) fn knows_failed_start(&self) -> bool {
        self.renewal.watch.is_some() && self.renewal.failure.is_some() && self.fleet.serving() == 0
    }

    /// Why the app does not start, for whoever asks.
    pub(crate) fn failed_start_text(&self) -> String {
        let app = &self.launcher.names().app;
        let why = match &self.renewal.failure {
            Some(failure) if self.config.is_development => failure,
            Some(_) | None => "The server's log says why.",
        };
        format!("The app '{app}' does not start.\n\n{why}\n\nThe server waits for the next edit.\n")
    }
}
