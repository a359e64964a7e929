//! What is asked for on the control socket and on the metrics listeners. [`super::page`] has the page's.

use super::admin::connections::{Ask, ControlDeadline, ControlPeer};
use super::stopping::StopCause;
use super::tick::Reactor;
use crate::conn::Request;
use crate::control::{Join, Message};
use crate::fleet::RetireReason;
use crate::keys::WorkerKey;
use serde_json::json;
use std::time::Duration;

/// Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Status tells what is known by then; a fleet whose workers have not all been looked at is a large one.
const MAX_WEIGHING: Duration = Duration::from_millis(250);

impl Reactor {
    pub(super) fn accept_control(&mut self, index: usize) {
        if let Err(error) = self.admin.accept_control(index, &mut self.io, &mut self.observer) {
            self.pause_accepting(&error);
        }
    }

    /// Takes connections of those who ask for metrics alone.
    pub(super) fn accept_scraper(&mut self, index: usize) {
        if let Err(error) = self.admin.accept_scraper(index, &mut self.io, &mut self.observer) {
            self.pause_accepting(&error);
        }
    }

    /// Goes on with the connections that have something to do, as many as a tick may take.
    pub(super) fn advance_operators(&mut self) {
        let postponed = self.admin.take_postponed();
        if !postponed.is_empty() {
            self.supervisor.weigh_next(self.io.now());
        }
        for ask in postponed {
            self.answer_operator(ask);
        }
        for _ in 0..self.admin.steps() {
            let Some(key) = self.admin.next_ready() else { return };
            self.advance_operator(key);
        }
    }

    fn advance_operator(&mut self, key: usize) {
        if let Some(ask) = self.admin.advance(key, &self.io) {
            self.answer_operator(ask);
        }
    }

    /// Status tells the memory that workers use, which is looked at for one of them a tick.
    fn answer_operator(&mut self, ask: Ask) {
        let now = self.io.now();
        let is_for_status = ask.peer.may_ask_for_status() && ask.request.path() == b"/status";
        if is_for_status && self.supervisor.has_to_weigh(now) && now < ask.arrived + MAX_WEIGHING {
            return self.admin.postpone(ask);
        }
        let key = ask.key;
        self.obey_request(&ask);
        self.admin.flush(key, &self.io);
    }

    pub(super) fn on_control_deadline(&mut self, key: usize, kind: ControlDeadline) {
        match kind {
            ControlDeadline::Idle => {
                self.admin.look_once_more(key);
                self.advance_operator(key);
                self.admin.close_if_idle(key);
            }
            ControlDeadline::Receive => self.admin.refuse_arriving(key, &self.io),
            ControlDeadline::Take | ControlDeadline::Linger | ControlDeadline::View => self.admin.close(key),
        }
    }

    fn obey_request(&mut self, ask: &Ask) {
        let Ask { key, peer, request, body, .. } = ask;
        let (key, peer) = (*key, *peer);
        let is_scraper = peer == ControlPeer::Scraper;
        match (request.method(), request.path()) {
            _ if peer == ControlPeer::Stranger => self.refuse_stranger(key, request),
            _ if peer == ControlPeer::Viewer => self.show_page(ask),
            (b"GET" | b"HEAD", b"/server") if !is_scraper => {
                self.admin.respond_with(key, request, 200, "text/plain", b"ok", &self.io)
            }
            (b"GET" | b"HEAD", b"/metrics") => {
                let text = self.metrics_text();
                self.admin.respond_with(key, request, 200, METRICS_TYPE, text.as_bytes(), &self.io);
            }
            _ if is_scraper => {
                self.admin.respond(
                    key,
                    request,
                    404,
                    &json!({"ok": false, "error": "GET /metrics is all there is"}),
                    &self.io,
                );
            }
            (b"GET" | b"HEAD", b"/status") => {
                let details = self.status_details();
                self.admin.respond(key, request, 200, &details, &self.io);
            }
            (b"POST", b"/worker" | b"/control") => match Message::parse(body) {
                Ok(message) if peer == ControlPeer::Root && message.is_of_worker() => {
                    self.refuse_stranger(key, request);
                }
                Ok(message) => self.obey(key, request, peer, message),
                Err(error) => {
                    self.admin.respond(key, request, 400, &json!({"ok": false, "error": error}), &self.io)
                }
            },
            _ => self.admin.respond(
                key,
                request,
                404,
                &json!({"ok": false, "error": "POST /worker, GET /status, GET /metrics, GET /server"}),
                &self.io,
            ),
        }
    }

    /// Whoever asks is another user, or no worker.
    fn refuse_stranger(&mut self, key: usize, request: &Request) {
        let owner = nix::unistd::geteuid();
        let error =
            format!("it belongs to user {owner}: that user and root may ask, and its workers are its own");
        self.admin.respond(key, request, 403, &json!({"ok": false, "error": error}), &self.io);
    }

    fn obey(&mut self, key: usize, request: &Request, peer: ControlPeer, message: Message) {
        let now = self.io.now();
        let peer_pid = match peer {
            ControlPeer::Process { pid } => pid,
            ControlPeer::Root | ControlPeer::Stranger | ControlPeer::Scraper | ControlPeer::Viewer => 0,
        };
        let result = match message {
            Message::Join(join) => self.join(&join, peer_pid),
            Message::Quit(sender) => {
                self.supervisor.speaker(&sender, peer_pid).map(|worker| self.quit(worker))
            }
            Message::Reloaded(sender) => {
                let speaker = self.supervisor.speaker(&sender, peer_pid);
                speaker.map(|worker| {
                    self.supervisor.note_reload(worker);
                    self.end_quarantine();
                })
            }
            Message::Retire(sender) => {
                let speaker = self.supervisor.speaker(&sender, peer_pid);
                speaker.map(|worker| {
                    self.supervisor.fleet_mut().retire(worker, RetireReason::Requested, now);
                })
            }
            Message::Reload(_) if self.host.is_upgrading() => {
                let error = "an upgrade is under way, and brings new workers; it has to end first";
                self.admin.respond(key, request, 409, &json!({"ok": false, "error": error}), &self.io);
                return;
            }
            Message::Upgrade => {
                match self.begin_upgrade() {
                    Ok(()) => self.admin.follow_upgrade(key),
                    Err(error) => {
                        let answer = json!({"ok": false, "error": error});
                        self.admin.respond(key, request, 409, &answer, &self.io);
                    }
                }
                return;
            }
            Message::Reload(canary) => {
                self.admin.follow_roll(key);
                self.supervisor.fleet_mut().reload(canary, now);
                return;
            }
            Message::Stop => {
                self.admin.respond(key, request, 200, &json!({"ok": true}), &self.io);
                self.admin.await_end(key);
                self.begin_stop(StopCause::Command);
                return;
            }
        };
        match result {
            Ok(()) => self.admin.respond(key, request, 200, &json!({"ok": true}), &self.io),
            Err(error) => {
                log::warn!("the control socket refused a worker: {error}");
                self.admin.respond(key, request, 400, &json!({"ok": false, "error": error}), &self.io);
            }
        }
    }

    /// A join counts only from a slot that is booting, or from anybody where workers come from outside.
    fn join(&mut self, join: &Join, peer_pid: i32) -> Result<(), String> {
        let worker_id =
            usize::try_from(join.sender.worker_id).map_err(|_| "'workerId' is too large".to_owned())?;
        if self.config.workers.max == 0 {
            self.add_external(worker_id, join, peer_pid);
            return Ok(());
        }
        self.supervisor.join(worker_id, join, self.io.now())
    }

    /// A worker leaves by itself: no new request goes out to it after the answer to this.
    fn quit(&mut self, worker: WorkerKey) {
        if self.supervisor.is_external(worker) {
            self.part_from_external(worker);
        } else {
            self.supervisor.quit(worker, self.io.now());
            self.perform_fleet_actions();
        }
    }
}
