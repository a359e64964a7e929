//! The server is replaced by a new one on the same sockets: the old one's side and the new one's. What is decided, and
//! when, is in `crate::handover`.

use super::host::line::{Heard, Line};
use super::host::{Host, Successor};
use super::inherited::Service;
use super::io::token::Target;
use super::socket_dir;
use super::stopping::StopCause;
use super::tick::Reactor;
use crate::config::activation;
use crate::handover::{IncomingStep, Message, Outgoing, OutgoingStep, SERVER_STOPS, SocketOffer, VARIABLE};
use crate::observe::counters::Counters;
use crate::process;
use mio::Interest;
use mio::unix::SourceFd;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The old server's side.
impl Reactor {
    /// Starts the server that is to follow this one. What becomes of it is told to those who follow the upgrade.
    ///
    /// # Errors
    /// Why this cannot be, now or at all, and what would do.
    pub(super) fn begin_upgrade(&mut self) -> Result<(), String> {
        if let Some(why_not) = self.why_no_upgrade() {
            return Err(why_not);
        }
        let begun = self.start_successor();
        begun.map_err(|error| format!("the new server cannot be started: {error}"))
    }

    pub(super) fn why_no_upgrade(&self) -> Option<String> {
        let environment = |name: &str| std::env::var(name).ok();
        let why_not = if self.is_stopping() {
            "the server is stopping"
        } else if self.host.is_upgrading() {
            "an upgrade is under way; it has to end first"
        } else if self.host.predecessor.is_some() {
            "the server before this one still finishes its requests; status shows when it is gone"
        } else if self.supervisor.fleet().is_rolling() {
            "a reload is under way; it has to end first"
        } else if self.supervisor.awaits_new_code() {
            "the app's files have changed just now; the new code has to come first"
        } else if std::process::id() == 1 {
            "it is process 1, with which the container ends; a new container would do"
        } else if is_started_by_systemd(&environment) && !self.host.notifier.is_on() {
            "systemd would take its end for the service's; Type=notify in the unit would do, since it is then told of the new process"
        } else {
            return None;
        };
        Some(why_not.to_owned())
    }

    fn start_successor(&mut self) -> io::Result<()> {
        let (line, far) = Line::pair()?;
        self.offer_everything(&line)?;
        let fd = line.as_fd().as_raw_fd();
        self.io.registry().register(&mut SourceFd(&fd), Target::Successor.token(), Interest::READABLE)?;
        let environment = activation::for_successor(&|name| std::env::var(name).ok(), std::process::id());
        let pid = process::start_successor(far.as_fd(), VARIABLE, &environment, self.supervisor.limit())?;
        log::info!("upgrade: the new server is started (pid {pid})");
        let machine = Outgoing::begin(self.config.boot_timeout, self.io.now());
        self.host.successor = Some(Successor::new(pid, line, machine));
        Ok(())
    }

    /// All that the new server needs lies on the line before it is started.
    pub(super) fn offer_everything(&mut self, line: &Line) -> io::Result<()> {
        let http = self.frontend.listeners().iter().map(|listener| (Service::Http, listener));
        let metrics = self.admin.metrics_listeners().iter().map(|listener| (Service::Metrics, listener));
        let page = self.admin.page_listeners().iter().map(|listener| (Service::Page, listener));
        for (service, listener) in http.chain(metrics).chain(page) {
            let offer = SocketOffer {
                service: service.token().to_owned(),
                at: listener.place().to_owned(),
                is_given: listener.is_given(),
                has_file: listener.has_file(),
            };
            line.say(&Message::Socket(offer), Some(listener.descriptor()))?;
        }
        line.say(&Message::Lock, self.supervisor.launcher().lock())?;
        for (join, process) in self.supervisor.external_joins() {
            line.say(&Message::Worker { join, process }, None)?;
        }
        let fleet = self.supervisor.fleet();
        let (serving, size, generation) = (fleet.serving(), fleet.size(), fleet.generation());
        line.say(&Message::Begin { serving, size, generation }, None)
    }

    /// The new server has said something, or is gone.
    pub(super) fn on_successor(&mut self) {
        while let Some(successor) = &mut self.host.successor {
            let step = match successor.line.hear() {
                Heard::Message(Some(message), _) => match message {
                    // It stops, or ends at once, and takes this one with it.
                    Message::Stop if !successor.machine.is_open() => {
                        self.begin_stop(StopCause::Command);
                        None
                    }
                    Message::End if !successor.machine.is_open() => {
                        self.end_now(0);
                        None
                    }
                    Message::Named { instance } => {
                        successor.instance = Some(instance);
                        None
                    }
                    message => successor.machine.on_message(&message),
                },
                Heard::Message(None, _) => None,
                Heard::Nothing => return,
                Heard::End => {
                    // Its exit tells more, and may come in a moment.
                    let has_ended = process::is_ending(successor.pid) != Some(false);
                    if !has_ended && let Some(step) = successor.machine.on_hang_up() {
                        self.follow_outgoing(step);
                    }
                    return;
                }
            };
            if let Some(step) = step {
                self.follow_outgoing(step);
            }
        }
    }

    /// Looks whether the new server's process has ended.
    pub(super) fn reap_successor(&mut self) {
        let Some(pid) = self.host.successor.as_ref().map(|successor| successor.pid) else { return };
        let Some(exit) = process::exit_of(pid) else { return };
        process::release(pid);
        // What it has said before.
        self.on_successor();
        if let Some(successor) = &mut self.host.successor
            && let Some(step) = successor.machine.on_end(&exit)
        {
            self.follow_outgoing(step);
        }
        let failed = self.host.successor.take().filter(|successor| !successor.has_taken_over);
        if let Some(instance) = failed.and_then(|successor| successor.instance) {
            // What was killed has removed nothing.
            socket_dir::sweep_run(self.supervisor.launcher().names(), &instance);
        }
    }

    /// What is due by the clock.
    pub(super) fn expire_upgrade(&mut self) {
        let now = self.io.now();
        let Some(successor) = &mut self.host.successor else { return };
        let step = successor.machine.on_deadline(now);
        let is_report_due = successor.next_report.is_some_and(|at| at <= now);
        if let Some(step) = step {
            self.follow_outgoing(step);
        }
        if is_report_due {
            self.report_to_successor();
        }
    }

    fn follow_outgoing(&mut self, step: OutgoingStep) {
        match step {
            OutgoingStep::Progress { now, of } => {
                log::info!("upgrade: {now} of {of} new workers serve");
                self.admin.tell_upgrade_progress(now, of, &self.io);
            }
            OutgoingStep::Go => {
                let Some(successor) = &mut self.host.successor else { return };
                self.host.notifier.name_main(successor.pid.as_raw(), self.io.now());
                if let Err(error) = successor.line.say(&Message::Go, None) {
                    let reason = format!("the new server cannot be told to serve: {error}");
                    if let Some(step) = successor.machine.fail(reason) {
                        self.follow_outgoing(step);
                    }
                }
            }
            OutgoingStep::HandOver => {
                let Some(successor) = &mut self.host.successor else { return };
                successor.has_taken_over = true;
                let pid = successor.pid.as_raw();
                self.hand_over();
                self.admin.answer_upgrade_followers(&Ok(pid), &self.io);
            }
            OutgoingStep::Fail { reason, was_going } => {
                if reason == SERVER_STOPS {
                    log::info!("upgrade given up: {reason}");
                } else {
                    log::error!("upgrade failed, and this server goes on: {reason}");
                }
                if was_going {
                    self.host.notifier.name_main(std::process::id().cast_signed(), self.io.now());
                    self.host.notifier.speak_again();
                }
                // It is reaped when its end is told.
                if let Some(successor) = &self.host.successor {
                    successor.kill();
                }
                self.admin.answer_upgrade_followers(&Err(reason), &self.io);
                // What has come meanwhile.
                self.read_watch();
                self.do_owed_reload();
            }
        }
    }

    /// This server stops before it is known which of the two goes on: it is the one that ends, and the new one with it.
    pub(super) fn abort_upgrade(&mut self) {
        let step = self.host.successor.as_mut();
        let step = step.and_then(|successor| successor.machine.fail(SERVER_STOPS.into()));
        if let Some(step) = step {
            self.follow_outgoing(step);
        }
    }

    /// The reload that had to wait for the end of an upgrade.
    fn do_owed_reload(&mut self) {
        if std::mem::take(&mut self.host.owes_reload) {
            log::info!("SIGHUP: reload");
            self.supervisor.fleet_mut().reload(None, self.io.now());
        }
    }

    /// The new server serves. This one lets go of what is its now, and finishes what it has.
    pub(super) fn hand_over(&mut self) {
        if self.is_stopping() {
            return;
        }
        let (busy, waiting) = (self.balancer.busy(), self.balancer.waiting());
        log::info!("upgrade: the new server serves; {busy} at work here, {waiting} waiting");
        for listener in self.frontend.listeners_mut().iter_mut().chain(self.admin.handed_listeners()) {
            listener.hand_over();
        }
        self.admin.stop_listening(self.io.registry());
        self.supervisor.launcher_mut().hand_over_name();
        self.drain(None);
        if let Some(successor) = &self.host.successor {
            // If it does not get through, the new server takes the sockets for shared ones.
            let _ = successor.line.say(&Message::Released, None);
            if std::mem::take(&mut self.host.owes_reload) {
                successor.ask_for_reload();
            }
        }
        self.report_to_successor();
    }

    /// The new server hears how far this one is, and what it has counted.
    pub(super) fn report_to_successor(&mut self) {
        if self.host.successor.as_ref().is_none_or(|successor| successor.machine.is_open()) {
            return;
        }
        let report = Message::Report {
            clients: self.frontend.connections(),
            workers: self.supervisor.keys().len(),
            metrics: Counters::only(&self.metrics_text()),
        };
        if let Some(successor) = &mut self.host.successor {
            successor.report(&report, self.io.now());
        }
    }
}

/// The new server's side.
impl Reactor {
    /// The old server has said something, or is gone.
    pub(super) fn on_predecessor(&mut self) {
        while let Some(predecessor) = &mut self.host.predecessor {
            match predecessor.line.hear() {
                Heard::Message(Some(Message::Released), _) => {
                    let operators = self.admin.handed_listeners();
                    for listener in self.frontend.listeners_mut().iter_mut().chain(operators) {
                        listener.is_released();
                    }
                }
                Heard::Message(Some(Message::Report { clients, workers, metrics }), _) => {
                    (predecessor.clients, predecessor.workers) = (clients, workers);
                    self.host.counted = Counters::parse(&metrics);
                }
                Heard::Message(Some(message), _) => {
                    if let Some(step) = predecessor.machine.on_message(&message) {
                        self.follow_incoming(step);
                    }
                }
                Heard::Message(None, _) => {}
                Heard::Nothing => return,
                Heard::End => {
                    let step = predecessor.machine.on_hang_up();
                    self.host.predecessor = None;
                    match step {
                        Some(step) => self.follow_incoming(step),
                        None => log::info!("upgrade: the server before this one has ended"),
                    }
                    return;
                }
            }
        }
    }

    /// Looks whether enough workers serve.
    pub(super) fn note_readiness(&mut self) {
        if !self.host.is_waiting() {
            return;
        }
        let serving = self.supervisor.fleet().serving();
        let steps =
            self.host.predecessor.as_mut().map(|predecessor| predecessor.machine.note_serving(serving));
        for step in steps.unwrap_or_default() {
            self.follow_incoming(step);
        }
    }

    fn follow_incoming(&mut self, step: IncomingStep) {
        match step {
            IncomingStep::Say(message) => self.tell_predecessor(&message),
            IncomingStep::TakeOver => match self.take_over() {
                Ok(()) => self.tell_predecessor(&Message::Taken),
                Err(reason) => self.fail_to_follow(reason),
            },
            IncomingStep::GiveUp => self.fail_to_follow("the server before this one has gone".into()),
        }
    }

    fn tell_predecessor(&mut self, message: &Message) {
        if let Some(predecessor) = &self.host.predecessor {
            // One that hears nothing is gone, or will end this one at its deadline.
            let _ = predecessor.line.say(message, None);
        }
    }

    /// This server does not become the one that serves.
    pub(super) fn fail_to_follow(&mut self, reason: String) {
        log::error!("upgrade: {reason}");
        self.tell_predecessor(&Message::Failed { reason });
        self.end_now(1);
    }

    /// The name, the files and the sockets are this server's from now on.
    fn take_over(&mut self) -> Result<(), String> {
        let trouble = |what: &str, error: io::Error| format!("{what}: {error}");
        let registry = self.io.registry();
        let control = super::admin::socket::take_over(self.supervisor.launcher().names(), registry)?;
        self.admin.add_listener(control);
        self.supervisor.launcher_mut().take_over_name();
        self.frontend.begin_listening(registry).map_err(|error| trouble("the listening sockets", error))?;
        self.admin.begin_listening(registry).map_err(|error| trouble("the operators' sockets", error))?;
        for listener in self.frontend.listeners_mut().iter_mut().chain(self.admin.handed_listeners()) {
            if !listener.is_given() {
                listener.own_file();
            }
        }
        if let Err(complaint) = self.host.write_pid_file(self.config.pid_file.as_deref()) {
            log::warn!("{complaint}");
        }
        self.host.notifier.speak_again();
        self.say_addresses();
        self.do_owed_reload();
        Ok(())
    }
}

impl Host {
    /// What `status` tells of the server before this one.
    pub(super) fn predecessor_details(&self) -> serde_json::Value {
        match &self.predecessor {
            Some(before) => serde_json::json!({"clients": before.clients, "workers": before.workers}),
            None => serde_json::Value::Null,
        }
    }
}

/// Whether systemd has started this process itself: then its end is the service's.
fn is_started_by_systemd(environment: &dyn Fn(&str) -> Option<String>) -> bool {
    match environment("SYSTEMD_EXEC_PID") {
        Some(pid) => pid == std::process::id().to_string(),
        // Before systemd 248.
        None => environment("INVOCATION_ID").is_some() && nix::unistd::getppid().as_raw() == 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_names_the_process_that_it_has_started() {
        let own = std::process::id().to_string();
        let with = |name: &'static str, value: &str| {
            let value = value.to_owned();
            move |asked: &str| (asked == name).then(|| value.clone())
        };
        assert!(is_started_by_systemd(&with("SYSTEMD_EXEC_PID", &own)));
        assert!(!is_started_by_systemd(&with("SYSTEMD_EXEC_PID", "1")), "that of its parent");
        assert!(!is_started_by_systemd(&|_| None));
        let is_child_of_one = nix::unistd::getppid().as_raw() == 1;
        assert_eq!(is_started_by_systemd(&with("INVOCATION_ID", "5e55")), is_child_of_one);
    }
}
