//! New code in development: changed sources have the workers replaced at the change, requests wait for the new code,
//! and an app that does not start is waited for, and says why.

use super::entry::{Origin, Phase, Times};
use super::watch::{Limit, Watch};
use super::{MAX_REFUSALS_PER_TICK, Reactor, Source};
use crate::balancer::NextStep;
use crate::config::HotReload;
use crate::conn::Request;
use crate::fleet;
use crate::keys::{ClientKey, WorkerKey};
use crate::paths::shown;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What the server knows of code that is to come.
#[derive(Debug, Default)]
pub struct Renewal {
    /// Requests wait for it.
    hold: Option<Hold>,
    /// Since when the newest code that has joined is the sources': who is older is not asked again beside it.
    good_since: Option<Instant>,
    /// The last replacement failed: what serves is older than the sources.
    is_behind: bool,
    /// How the last start failed, until a worker joins.
    pub failure: Option<String>,
    /// The bound that was told of, once.
    reported: Option<Limit>,
}

/// Workers with the old code get nothing.
#[derive(Debug, Clone, Copy)]
struct Hold {
    /// Who was started before has the old code.
    changed_at: Instant,
    /// By then the new code has come, or the old one goes on.
    until: Instant,
}

/// Watching.
impl Reactor {
    /// Begins to watch, or goes on with the folder that the app's path leads to now.
    pub(super) fn start_watch(&mut self) {
        if self.config.hot_reload != HotReload::Module || self.config.workers.max == 0 {
            return;
        }
        let Ok(app) = self.releases.app(fleet::Release::Good) else { return };
        if self.watch.as_ref().is_some_and(|watch| watch.sees(&app)) {
            return;
        }
        let watch = Watch::start(app, self.poll.registry());
        self.use_watch(watch);
    }

    fn use_watch(&mut self, watch: Result<Option<Watch>, Limit>) {
        match watch {
            Ok(watch) => self.watch = watch,
            Err(limit) => {
                self.watch = None;
                let path = self.source.path().to_path_buf();
                self.tell_unseen(limit, &path);
            }
        }
        self.report_unseen();
    }

    fn report_unseen(&mut self) {
        if let Some((limit, path)) = self.watch.as_mut().and_then(Watch::take_unseen) {
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

    /// Takes in what has changed. Before each request too, so that the first one after an edit meets the new code.
    pub(super) fn read_watch(&mut self) {
        let now = self.clock.now;
        let Some(watch) = &mut self.watch else { return };
        let news = watch.read(now);
        if news.is_lost {
            self.look_anew();
        }
        self.report_unseen();
        let Some(watch) = &self.watch else { return };
        // Where nobody has the last code, a change of the entry itself is waited for as well.
        let counts_all = news.is_lost || !self.is_up_to_date();
        let must_wait = news.needs_new_workers || counts_all && watch.changes.due().is_some();
        if must_wait && !watch.changes.is_slowed(now) {
            self.hold_requests();
        }
    }

    /// The app's folder may be another one by now, or gone.
    fn look_anew(&mut self) {
        let (registry, now) = (self.poll.registry(), self.clock.now);
        let Some(watch) = self.watch.take() else { return };
        let watch = match self.source.find() {
            Ok(app) => watch.start_anew(app, registry, now),
            Err(_) => watch.wait_for_return(registry).and_then(|watch| match self.source.find() {
                // It has come back in this moment.
                Ok(app) => watch.start_anew(app, registry, now),
                Err(_) => Ok(Some(watch)),
            }),
        };
        self.use_watch(watch);
    }

    /// When something is to be done about changes.
    pub(super) fn renewal_deadline(&self) -> Option<Instant> {
        let change = self.watch.as_ref().and_then(|watch| watch.changes.due());
        let hold = self.renewal.hold.map(|hold| hold.until);
        change.into_iter().chain(hold).min()
    }

    /// Acts on changes that have settled, and on code that has not come in time.
    pub(super) fn act_on_changes(&mut self) {
        let now = self.clock.now;
        if let Some(watch) = &mut self.watch
            && let Some(paths) = watch.changes.take(now)
        {
            let changed = watch.settle(paths);
            self.sources_changed(&changed);
        }
        if self.renewal.hold.is_some_and(|hold| hold.until <= now) {
            let within_ms = self.config.boot_timeout.as_millis();
            log::warn!("hot reload: the new code has not come within {within_ms} ms; the old one goes on");
            self.release_requests();
        }
    }

    fn sources_changed(&mut self, changed: &[PathBuf]) {
        let is_up_to_date = self.is_up_to_date();
        let Some(watch) = self.watch.as_mut() else { return };
        let counts = |path: &&PathBuf| !(is_up_to_date && watch.swaps(path));
        let Some(first) = changed.iter().find(counts) else {
            if !self.fleet.is_rolling() {
                self.release_requests();
            }
            return;
        };
        let name = match &self.source {
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
        let now = self.clock.now;
        let was_slowed = watch.changes.is_slowed(now);
        let is_loop = watch.changes.replaced(now);
        if is_loop {
            log::warn!(
                "hot reload: {name} changes again and again, perhaps by the app itself; from now on that counts every few seconds. What an app writes may lie in a folder whose name begins with a dot"
            );
        }
        let is_slowed = was_slowed || watch.changes.is_slowed(now);
        self.renew(is_slowed);
    }

    /// Whether every worker is there, with the last code but for what it takes over by itself.
    fn is_up_to_date(&self) -> bool {
        self.fleet.serving() == self.fleet.size() && !self.renewal.is_behind
    }

    /// Has all workers replaced; requests wait for the new ones, but where a loop is slowed down.
    pub(super) fn renew(&mut self, is_slowed: bool) {
        if !is_slowed {
            self.hold_requests();
        }
        self.fleet.reload(self.clock.now);
    }
}

/// Requests that wait for the new code.
impl Reactor {
    /// From now on nobody with the old code gets a request.
    fn hold_requests(&mut self) {
        if self.is_stopping() {
            return;
        }
        let now = self.clock.now;
        self.renewal.hold = Some(Hold { changed_at: now, until: now + self.config.boot_timeout });
        let keys: Vec<usize> = self.workers.iter().map(|(key, _)| key).collect();
        for worker in keys.into_iter().map(WorkerKey) {
            if self.may_serve(worker) {
                self.balancer.withdraw(worker);
                if let Some(entry) = self.workers.get_mut(worker.0) {
                    entry.is_withheld = true;
                }
            }
        }
    }

    /// Whether a worker has joined and is not on its way out.
    fn may_serve(&self, worker: WorkerKey) -> bool {
        let serves = |member: &fleet::Member| {
            member.worker == worker && matches!(member.phase, fleet::Phase::Serving { .. })
        };
        let is_fit = |entry: &super::entry::WorkerEntry| {
            let is_own = matches!(entry.origin, Origin::Slot { .. });
            is_own && entry.has_joined && !entry.is_dead && !entry.is_withheld
        };
        self.workers.get(worker.0).is_some_and(is_fit)
            && self.fleet.members().any(|(_, member)| serves(member))
    }

    /// Whoever has the old code and is still there gets requests again.
    pub(super) fn release_requests(&mut self) {
        if self.renewal.hold.take().is_none() {
            return;
        }
        let is_newest = |entry: &super::entry::WorkerEntry| Some(entry.started) >= self.renewal.good_since;
        let all = self.workers.iter().filter(|(_, entry)| entry.has_joined && !entry.is_dead);
        let has_newest = all.clone().any(|(_, entry)| is_newest(entry));
        let withheld = all.filter(|(_, entry)| entry.is_withheld && (is_newest(entry) || !has_newest));
        let withheld: Vec<usize> = withheld.map(|(key, _)| key).collect();
        for worker in withheld.into_iter().map(WorkerKey) {
            if let Some(entry) = self.workers.get_mut(worker.0) {
                entry.is_withheld = false;
            }
            // Of a dying one the end is about to be heard.
            if !self.may_serve(worker) || self.is_ending(worker) == Some(true) {
                continue;
            }
            if let NextStep::Dispatch { client } = self.balancer.readmit(worker, self.clock.now)
                && let Some(job) = self.take_job(client)
            {
                self.assign(worker, client, job);
            }
        }
    }

    /// A worker has joined: whether it has the old code, and is withheld like all others that have.
    pub(super) fn is_withheld_at_once(&mut self, worker: WorkerKey) -> bool {
        self.renewal.failure = None;
        let Some(hold) = self.renewal.hold else { return false };
        let Some(entry) = self.workers.get_mut(worker.0) else { return false };
        entry.is_withheld = entry.started < hold.changed_at && matches!(entry.origin, Origin::Slot { .. });
        if !entry.is_withheld {
            self.renewal.good_since = Some(hold.changed_at);
        }
        entry.is_withheld
    }

    /// All workers are replaced, or that was given up.
    pub(super) fn renewal_ended(&mut self, is_done: bool) {
        self.renewal.is_behind = !is_done;
        let has_more = self.watch.as_ref().is_some_and(|watch| watch.changes.due().is_some());
        if !has_more {
            self.release_requests();
        }
    }

    /// Requests wait for that, and not for want of workers.
    pub(super) fn waits_for_new_code(&self) -> bool {
        self.renewal.hold.is_some()
    }

    /// Until when a request that comes now waits for a worker.
    pub(super) fn queue_deadline(&self) -> Instant {
        let usual = self.balancer.deadline(self.clock.now);
        self.renewal.hold.map_or(usual, |hold| usual.max(hold.until + self.config.queue_timeout))
    }
}

/// An app that does not start.
impl Reactor {
    /// Whether edits are waited for where the server would else end.
    pub(super) fn waits_for_edits(&self) -> bool {
        self.watch.is_some()
    }

    /// How the app has failed to start, if nobody serves and nobody is about to.
    fn failed_start(&self) -> Option<&str> {
        let is_coming = |member: &fleet::Member| {
            matches!(member.phase, fleet::Phase::Booting { .. } | fleet::Phase::Serving { .. })
        };
        let may_tell = self.watch.is_some() && self.renewal.hold.is_none() && !self.is_stopping();
        let failure = self.renewal.failure.as_deref().filter(|_| may_tell)?;
        (!self.fleet.members().any(|(_, member)| is_coming(member))).then_some(failure)
    }

    /// A worker has ended before it had joined.
    pub(super) fn note_failed_start(&mut self, worker: WorkerKey, how: String) {
        let Some(entry) = self.workers.get(worker.0) else { return };
        let words = entry.last_words.iter().map(|line| format!("\n  {line}"));
        self.renewal.failure = Some(words.fold(how, |text, line| text + &line));
    }

    pub(super) fn has_failed_to_start(&self) -> bool {
        self.failed_start().is_some()
    }

    /// Whoever waits while the app does not start is told why, as many as a tick may take.
    pub(super) fn answer_failed_start(&mut self) {
        if !self.has_to_tell_failure() {
            return;
        }
        let waiting = self.clients.iter().filter(|(_, entry)| matches!(entry.phase, Phase::Queued(_)));
        let waiting: Vec<usize> = waiting.map(|(key, _)| key).take(MAX_REFUSALS_PER_TICK).collect();
        for client in waiting.into_iter().map(ClientKey) {
            self.balancer.forget(client);
            if let Some(job) = self.take_job(client) {
                let times = Times { queue: self.clock.now - job.submitted, ..Times::default() };
                self.refuse_failed_start(client, job.request, times);
            }
        }
    }

    /// Nobody serves, and the last start has failed: then that is why a request has waited in vain.
    pub(super) fn knows_failed_start(&self) -> bool {
        self.watch.is_some() && self.renewal.failure.is_some() && self.fleet.serving() == 0
    }

    /// Some who wait have not been told yet.
    pub(super) fn has_to_tell_failure(&self) -> bool {
        self.renewal.failure.is_some() && self.balancer.waiting() > 0 && self.has_failed_to_start()
    }

    pub(super) fn refuse_failed_start(&mut self, client: ClientKey, request: Request, times: Times) {
        let app = &self.names.app;
        let why = match &self.renewal.failure {
            Some(failure) if self.config.is_development => failure,
            Some(_) | None => "The server's log says why.",
        };
        let text =
            format!("The app '{app}' does not start.\n\n{why}\n\nThe server waits for the next edit.\n");
        if request.takes_html() {
            let page = html(&text);
            self.refuse_with(client, request, "text/html; charset=utf-8", page.as_bytes(), times);
        } else {
            self.refuse_with(client, request, "text/plain; charset=utf-8", text.as_bytes(), times);
        }
    }
}

/// A text as a page.
fn html(text: &str) -> String {
    let mut safe = String::with_capacity(text.len() + 128);
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            letter => safe.push(letter),
        }
    }
    format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>The app does not start</title>\n<pre style=\"white-space: pre-wrap\">{safe}</pre>\n"
    )
}
