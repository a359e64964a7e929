//! Templates: processes that have loaded the app, and fork workers on the server's word.

use super::launching::Start;
use super::releases::Found;
use super::worker::{Origin, Worker};
use super::{Supervisor, process};
use crate::fleet::{Release, TemplateEnd, TemplateId};
use crate::keys::WorkerKey;
use crate::process::{Exit, Said};
use crate::reactor::endpoint::Endpoint;
use crate::reactor::io::Io;
use crate::reactor::io::token::Target;
use crate::reactor::observer::Observer;
use crate::runtime;
use mio::Interest;
use mio::unix::SourceFd;
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// The server's side of a template: one for each release at most, and those that are about to end.
#[derive(Debug)]
pub(super) struct Template {
    pub id: TemplateId,
    pub line: process::Line,
    /// Workers that it was asked for and has not named: one for each slot at most.
    pub forks: Vec<Start>,
    /// Its process; `None`: that was asked for, and is not there yet.
    worker: Option<WorkerKey>,
    /// The spawner's number of its start.
    start_id: u64,
    /// Until it is there.
    outputs: Option<[OwnedFd; 2]>,
    pub program: String,
    /// Why it is not to be forked, as it says.
    refusal: Option<String>,
}

/// All templates, and what came of those that were.
#[derive(Debug, Default)]
pub(super) struct Templates {
    /// Those that are there, or are not gone.
    pub there: Vec<Template>,
    /// What they have said, and is to be taken in.
    said: VecDeque<(TemplateId, Said)>,
    /// Starts of those that are not needed any more.
    pub doomed: Vec<(u64, TemplateId)>,
}

impl Template {
    fn is_start(&self, id: u64) -> bool {
        self.worker.is_none() && self.start_id == id
    }
}

impl Supervisor {
    /// Asks for a template of that release.
    pub(crate) fn start_template(
        &mut self,
        id: TemplateId,
        release: Release,
        io: &Io,
        observer: &mut Observer,
    ) {
        match self.launcher.begin_template(id, release, &self.config, io) {
            Ok(true) => {}
            // Its runtime has none: nothing to say.
            Ok(false) => self.fleet.template_refused(id, io.now()),
            Err(complaint) => self.template_start_failed(id, &complaint, io, observer),
        }
    }

    fn template_start_failed(&mut self, id: TemplateId, complaint: &str, io: &Io, observer: &mut Observer) {
        log::error!("the template cannot be started: {complaint}");
        observer.start_failed();
        self.history.last_spawn_error = Some(complaint.to_owned());
        self.drop_template(id, "its template could not be started", io, observer);
        self.fleet.template_ended(id, io.now());
    }

    /// Its process is there.
    pub(super) fn template_started(&mut self, start_id: u64, pid: Pid, io: &Io) {
        if let Some(at) = self.launcher.templates.doomed.iter().position(|(doomed, _)| *doomed == start_id) {
            let (_, id) = self.launcher.templates.doomed.swap_remove(at);
            self.add_template(id, start_id, pid, io);
            return process::kill_group(pid);
        }
        let Some(at) = self.launcher.templates.there.iter().position(|template| template.is_start(start_id))
        else {
            return;
        };
        let template = &mut self.launcher.templates.there[at];
        let Some(outputs) = template.outputs.take() else { return };
        let (id, program) = (template.id, template.program.clone());
        let worker = self.add_template(id, start_id, pid, io);
        self.launcher.templates.there[at].worker = Some(worker);
        if let Some(entry) = self.get_mut(worker) {
            entry.process.program = program;
        }
        self.add_outputs(worker, outputs, io);
    }

    fn add_template(&mut self, id: TemplateId, start_id: u64, pid: Pid, io: &Io) -> WorkerKey {
        // It listens nowhere.
        let nowhere = Endpoint::Unix(PathBuf::new());
        let mut entry = Worker::new(Origin::Template { id }, pid, nowhere, false, io.now());
        entry.process.start_id = Some(start_id);
        log::debug!("{}: started", entry.label());
        // Its end may have been told before its start was.
        self.has_ended_children = true;
        WorkerKey(self.workers.insert(entry))
    }

    /// The kernel refused to make its process.
    pub(super) fn template_not_started(
        &mut self,
        start_id: u64,
        complaint: &str,
        io: &Io,
        observer: &mut Observer,
    ) {
        self.launcher.templates.doomed.retain(|(doomed, _)| *doomed != start_id);
        let template = self.launcher.templates.there.iter_mut().find(|template| template.is_start(start_id));
        if let Some(template) = template {
            let id = template.id;
            template.outputs = None;
            self.template_start_failed(id, complaint, io, observer);
        }
    }

    /// What the templates have said: the next worker that is there.
    pub(super) fn next_forked(&mut self, io: &Io, observer: &mut Observer) -> Option<WorkerKey> {
        if self.launcher.templates.said.is_empty() {
            for template in &mut self.launcher.templates.there {
                let id = template.id;
                self.launcher.templates.said.extend(template.line.said().into_iter().map(|said| (id, said)));
            }
        }
        while let Some((id, said)) = self.launcher.templates.said.pop_front() {
            match said {
                Said::Ready => self.template_ready(id, io),
                Said::Refused(why) => {
                    log::warn!("workers are not forked, and start one by one: {why}");
                    if let Some(template) = self.launcher.templates.get_mut(id) {
                        template.refusal = Some(why);
                    }
                    self.fleet.template_refused(id, io.now());
                }
                Said::Forked { id: fork, pid } => {
                    if let Some(start) = self.launcher.templates.take_fork(id, fork) {
                        return Some(self.worker_started(start, pid, io, observer));
                    }
                }
                Said::NotForked { id: fork, why } => {
                    if let Some(start) = self.launcher.templates.take_fork(id, fork) {
                        self.start_failed(
                            start.slot,
                            format!("its template cannot fork: {why}"),
                            io,
                            observer,
                        );
                    }
                }
            }
        }
        None
    }

    fn template_ready(&mut self, id: TemplateId, io: &Io) {
        let worker = self.launcher.templates.get_mut(id).and_then(|template| template.worker);
        if let Some(entry) = worker.and_then(|worker| self.get(worker)) {
            let loaded_ms = io.now().duration_since(entry.process.started).as_millis();
            log::info!(
                "{}: has loaded the app after {loaded_ms} ms; workers are forked from it",
                entry.label()
            );
        }
        self.fleet.template_ready(id, io.now());
    }

    /// Ends a template: it has nothing to finish.
    pub(crate) fn end_template(
        &mut self,
        id: TemplateId,
        why: TemplateEnd,
        io: &Io,
        observer: &mut Observer,
    ) {
        let timeout_ms = self.config.boot_timeout.as_millis();
        match why {
            TemplateEnd::Unneeded => {}
            TemplateEnd::LoadsTooLong => {
                log::warn!("the template has not loaded the app within --boot-timeout-ms={timeout_ms}");
            }
            TemplateEnd::Unresponsive => {
                self.history.unresponsive_template = Some(id);
                log::warn!("the template has not answered within --boot-timeout-ms={timeout_ms}");
            }
            TemplateEnd::ForksFail => log::warn!(
                "forked workers end before they have joined; from now on workers start one by one (--fork=never does that from the start)"
            ),
        }
        if let Some(entry) = self.template_entry(id).filter(|entry| entry.is_own_child()) {
            process::kill_group(entry.process.pid);
        }
        self.drop_template(id, "its template was ended", io, observer);
    }

    /// What a template was asked for and has not named is not to come.
    fn drop_template(&mut self, id: TemplateId, why: &str, io: &Io, observer: &mut Observer) {
        for start in self.launcher.templates.remove(id) {
            self.start_failed(start.slot, why.to_owned(), io, observer);
        }
    }

    pub(super) fn template_entry(&self, id: TemplateId) -> Option<&Worker> {
        let is_it = |entry: &Worker| entry.origin == Origin::Template { id };
        self.workers.iter().map(|(_, entry)| entry).find(|entry| is_it(entry))
    }

    /// A template's process has ended. What it has named before still counts.
    pub(super) fn template_is_gone(
        &mut self,
        id: TemplateId,
        worker: WorkerKey,
        exit: Exit,
        io: &Io,
        observer: &mut Observer,
    ) {
        let Some(entry) = self.workers.get(worker.0) else { return };
        let (label, failure) = (entry.label(), entry.process.exec_failure.clone());
        let program = entry.process.program.clone();
        let lived_ms = io.now().duration_since(entry.process.started).as_millis();
        // One that was ended is not in the list any more.
        let was_used = self.launcher.templates.get_mut(id).is_some_and(|template| template.refusal.is_none());
        match failure {
            Some(error) => {
                log::error!("{label}: cannot be started: '{program}': {error}");
                observer.start_failed();
            }
            None if was_used => log::warn!("{label}: {exit} after {lived_ms} ms"),
            None => log::debug!("{label}: {exit} after {lived_ms} ms"),
        }
        self.drop_template(id, "its template has died", io, observer);
        self.fleet.template_ended(id, io.now());
        self.closed.push(worker);
    }
}

/// The launcher's part.
impl super::Launcher {
    /// `false`: workers of that runtime cannot be forked, or not even started.
    fn begin_template(
        &mut self,
        id: TemplateId,
        release: Release,
        config: &crate::config::Config,
        io: &Io,
    ) -> Result<bool, String> {
        // Where there is nothing to run, the workers' starts say so.
        let Ok(Found { app, variables, .. }) = self.releases.found(release) else { return Ok(false) };
        if !runtime::can_fork(app.runtime) {
            return Ok(false);
        }
        self.provide_harnesses(app.runtime)?;
        let control_socket = self.names.own_control(&self.instance);
        let launch = runtime::launch_template(&app, config, &self.identity(&control_socket), &variables)?;
        let program = crate::paths::shown(&launch.program).to_string();
        let complaint = |error: std::io::Error| format!("'{program}': {error}");
        let (line, far) = process::Line::new().map_err(complaint)?;
        io.registry()
            .register(&mut SourceFd(&line.fd()), Target::Spawner.token(), Interest::READABLE)
            .map_err(complaint)?;
        let begun = self.begin_process(&launch, Some(far), io).map_err(complaint)?;
        let start_id = begun.id;
        self.templates.there.push(Template {
            id,
            line,
            forks: Vec::new(),
            worker: None,
            start_id,
            outputs: Some([begun.stdout, begun.stderr]),
            program,
            refusal: None,
        });
        Ok(true)
    }
}

impl Templates {
    /// Processes that were asked for, and are not there yet.
    pub(super) fn starts(&self) -> usize {
        let forks: usize = self.there.iter().map(|template| template.forks.len()).sum();
        self.doomed.len() + forks
    }

    /// The starts of those whose process is not there yet.
    pub(super) fn unstarted(&self) -> Vec<u64> {
        let unstarted = self.there.iter().filter(|template| template.outputs.is_some());
        unstarted.map(|template| template.start_id).collect()
    }

    pub(super) fn get_mut(&mut self, id: TemplateId) -> Option<&mut Template> {
        self.there.iter_mut().find(|template| template.id == id)
    }

    fn take_fork(&mut self, id: TemplateId, fork: u64) -> Option<Start> {
        let template = self.get_mut(id)?;
        let at = template.forks.iter().position(|start| start.begun.id == fork)?;
        Some(template.forks.swap_remove(at))
    }

    /// Its line is closed; the workers that were asked for there and are not named.
    fn remove(&mut self, id: TemplateId) -> Vec<Start> {
        self.said.retain(|(other, _)| *other != id);
        let Some(at) = self.there.iter().position(|template| template.id == id) else {
            return Vec::new();
        };
        let template = self.there.swap_remove(at);
        if template.worker.is_none() && template.outputs.is_some() {
            // It is ended as soon as it is known.
            self.doomed.push((template.start_id, id));
        }
        template.forks
    }
}
