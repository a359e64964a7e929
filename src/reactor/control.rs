//! The control socket: workers join and leave here, and the command line's verbs ask here. HTTP/1.1, same user only.
//! What is asked for is done in this file; the connections are in [`connections`].

pub(super) mod connections;

use super::listen::{Listener, bind_unix};
use super::socket_dir::{Locked, NameLock};
use super::stopping::StopCause;
use super::token::Target;
use super::{Reactor, Source, StartError};
use crate::conn::Request;
use crate::control::{Join, Message, Sender};
use crate::fleet::RetireReason;
use crate::keys::WorkerKey;
use crate::names::Names;
use crate::paths::{quoted, shown};
use crate::process::Exit;
use connections::{Connections, ControlPeer};
use mio::{Interest, Registry};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
pub struct ControlSocket {
    listener: Listener,
    pub connections: Connections,
    pub last_spawn_error: Option<String>,
    pub was_ever_healthy: bool,
    /// How the last worker of each slot ended.
    last_exits: HashMap<usize, Exit>,
}

impl ControlSocket {
    /// A stale socket is removed; a live one is another server, of this app or of one with the same name.
    pub fn bind(names: &Names, source: &Source, registry: &Registry) -> Result<Self, StartError> {
        /// A child of a server that was killed holds its sockets for as long as it takes to become a worker: what
        /// listens and breaks off without an answer is looked at again.
        const MAX_LOOKS: usize = 3;
        let mut looks = 0;
        let mut listener = loop {
            match bind_unix(&names.control) {
                Ok(listener) => break listener,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    looks += 1;
                    let answer = crate::client::ask(&names.control, "GET", "/status", "");
                    let breaks_off = answer.as_ref().is_err_and(|error| !crate::client::is_silence(error));
                    if !breaks_off || looks == MAX_LOOKS {
                        return Err(StartError::Trouble(already_running(names, source, answer.ok(), None)));
                    }
                }
                Err(error) => {
                    let path = shown(&names.control);
                    return Err(StartError::Trouble(format!(
                        "the control socket '{path}' cannot be made: {error}"
                    )));
                }
            }
        };
        let _ = std::fs::set_permissions(&names.control, std::fs::Permissions::from_mode(0o600));
        registry
            .register(&mut listener, Target::ControlListener.token(), Interest::READABLE)
            .map_err(|error| StartError::Trouble(format!("the control socket: {error}")))?;
        Ok(ControlSocket::on(listener))
    }

    pub(super) fn on(listener: Listener) -> Self {
        ControlSocket {
            listener,
            connections: Connections::default(),
            last_spawn_error: None,
            was_ever_healthy: false,
            last_exits: HashMap::new(),
        }
    }

    pub fn note_exit(&mut self, slot: usize, exit: Exit) {
        self.last_exits.insert(slot, exit);
    }

    pub fn last_exit(&self, slot: usize) -> Option<Exit> {
        self.last_exits.get(&slot).copied()
    }
}

/// The app's name, for as long as the server lives.
pub(super) fn take_name(names: &Names, source: &Source) -> Result<NameLock, StartError> {
    NameLock::take(names).map_err(|locked| match locked {
        Locked::Held { pid, status } => StartError::Trouble(already_running(names, source, status, pid)),
        Locked::Trouble(error) => {
            StartError::Trouble(format!("'{}' cannot be locked: {error}", shown(&names.lock())))
        }
    })
}

/// Who holds the name already, by its answer to a question for its status.
fn already_running(
    names: &Names,
    source: &Source,
    answer: Option<crate::client::Answer>,
    holder: Option<i32>,
) -> String {
    let app = &names.app;
    let status: Option<Value> = answer.and_then(|answer| serde_json::from_str(&answer.body).ok());
    let Some(status) = status else {
        let socket = shown(&names.control);
        let pid = holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        return format!(
            "'{app}' is served already, by a server{pid} that does not answer on '{socket}'; --variant=<name> would start another one beside it"
        );
    };
    let pid = status["pid"].as_u64().map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    let path = Path::new(status["path"].as_str().unwrap_or("?"));
    if path != source.path() {
        return format!(
            "another app '{app}' is served already, from '{}'{pid}; --variant=<name> tells the two apart",
            shown(path)
        );
    }
    let place = &names.flags;
    let stop = match source {
        Source::Path { .. } => format!("rip-server stop {}{place}", quoted(path)),
        Source::Embedded { .. } => format!("{} stop{place}", quoted(path)),
    };
    format!("'{app}' is served already{pid}; {stop} would end that")
}

impl Reactor {
    fn handle_control(&mut self, key: usize, request: &Request, body: &[u8]) {
        let Some(peer) = self.control.connections.peer(key) else { return };
        let is_scraper = peer == ControlPeer::Scraper;
        match (request.method(), request.path()) {
            _ if peer == ControlPeer::Stranger => self.refuse_stranger(key, request),
            (b"GET" | b"HEAD", b"/server") if !is_scraper => {
                self.respond_with(key, request, 200, "text/plain", b"ok")
            }
            (b"GET" | b"HEAD", b"/metrics") => {
                let text = self.metrics_text();
                self.respond_with(key, request, 200, METRICS_TYPE, text.as_bytes());
            }
            _ if is_scraper => {
                self.respond(
                    key,
                    request,
                    404,
                    &json!({"ok": false, "error": "GET /metrics is all there is"}),
                );
            }
            (b"GET" | b"HEAD", b"/status") => {
                let details = self.status_details();
                self.respond(key, request, 200, &details);
            }
            (b"POST", b"/worker" | b"/control") => match Message::parse(body) {
                Ok(message) if peer == ControlPeer::Root && message.is_of_worker() => {
                    self.refuse_stranger(key, request);
                }
                Ok(message) => self.obey(key, request, peer, message),
                Err(error) => self.respond(key, request, 400, &json!({"ok": false, "error": error})),
            },
            _ => self.respond(
                key,
                request,
                404,
                &json!({"ok": false, "error": "POST /worker, GET /status, GET /metrics, GET /server"}),
            ),
        }
    }

    /// Whoever asks is another user, or no worker.
    fn refuse_stranger(&mut self, key: usize, request: &Request) {
        let owner = nix::unistd::geteuid();
        let error =
            format!("it belongs to user {owner}: that user and root may ask, and its workers are its own");
        self.respond(key, request, 403, &json!({"ok": false, "error": error}));
    }

    fn obey(&mut self, key: usize, request: &Request, peer: ControlPeer, message: Message) {
        let now = self.clock.now;
        let peer_pid = match peer {
            ControlPeer::Process { pid } => pid,
            ControlPeer::Root | ControlPeer::Stranger | ControlPeer::Scraper => 0,
        };
        let result = match message {
            Message::Join(join) => self.join(&join, peer_pid),
            Message::Quit(sender) => self.speaker(&sender, peer_pid).map(|worker| self.quit(worker)),
            Message::Reloaded(sender) => self.speaker(&sender, peer_pid).map(|worker| {
                if let Some(entry) = self.workers.get_mut(worker.0) {
                    entry.reloads += 1;
                }
            }),
            Message::Retire(sender) => self
                .speaker(&sender, peer_pid)
                .map(|worker| self.fleet.retire(worker, RetireReason::RequestContext, now)),
            Message::Reload => {
                self.follow_roll(key);
                self.fleet.reload(now);
                return;
            }
            Message::Stop => {
                self.respond(key, request, 200, &json!({"ok": true}));
                self.await_end(key);
                self.begin_stop(StopCause::Command);
                return;
            }
        };
        match result {
            Ok(()) => self.respond(key, request, 200, &json!({"ok": true})),
            Err(error) => {
                log::warn!("the control socket refused a worker: {error}");
                self.respond(key, request, 400, &json!({"ok": false, "error": error}));
            }
        }
    }

    /// A join counts only from a slot that is booting, or from anybody where workers come from outside.
    fn join(&mut self, join: &Join, peer_pid: i32) -> Result<(), String> {
        let Join { sender, socket, version, abilities, .. } = join;
        let worker_id =
            usize::try_from(sender.worker_id).map_err(|_| "'workerId' is too large".to_owned())?;
        if self.config.workers.max == 0 {
            self.add_external(worker_id, join, peer_pid);
            return Ok(());
        }
        self.check_instance(sender)?;
        let version = *version;
        let Some(worker) = self.fleet.booting(worker_id, version) else {
            return Err(format!("no worker {worker_id} of generation {version} is booting"));
        };
        let expected = self.workers.get(worker.0).and_then(|entry| entry.endpoint.path());
        if expected != Some(Path::new(socket)) {
            return Err(format!(
                "worker {worker_id} of generation {version} has another socket than '{}'",
                shown(socket)
            ));
        }
        if let Some(entry) = self.workers.get_mut(worker.0) {
            entry.abilities = *abilities;
            entry.can_be_asked = join.speaks_second_version();
        }
        self.fleet.joined(worker, abilities.drains, self.clock.now);
        Ok(())
    }

    /// A worker that another run of the server has started has nothing to say here. The protocol's first version names
    /// no instance.
    fn check_instance(&self, sender: &Sender) -> Result<(), String> {
        match &sender.instance {
            Some(instance) if *instance != self.instance => Err(format!(
                "worker {} belongs to the instance '{}', and this one is '{}'",
                sender.worker_id,
                instance.escape_default(),
                self.instance
            )),
            _ => Ok(()),
        }
    }

    /// The joined worker of that number that speaks: of two generations the one whose process it is, else (a
    /// runtime may speak from a child) the older, since it is the old one that leaves.
    fn speaker(&self, sender: &Sender, peer_pid: i32) -> Result<WorkerKey, String> {
        let worker_id = sender.worker_id;
        if self.config.workers.max != 0 {
            self.check_instance(sender)?;
        }
        self.workers
            .iter()
            .filter(|(_, entry)| {
                entry.origin.worker_id() as u64 == worker_id && entry.has_joined && !entry.is_dead
            })
            .min_by_key(|(_, entry)| (entry.pid.as_raw() != peer_pid, entry.started))
            .map(|(key, _)| WorkerKey(key))
            .ok_or_else(|| format!("there is no worker {worker_id}"))
    }

    /// A worker leaves by itself: no new request goes out to it after the answer to this.
    fn quit(&mut self, worker: WorkerKey) {
        match self.workers.get(worker.0).map(|entry| entry.origin) {
            Some(super::entry::Origin::Slot { .. }) => {
                self.quit_slot(worker);
                self.perform_fleet_actions();
            }
            Some(super::entry::Origin::Outside { .. }) => self.part_from_external(worker),
            None => {}
        }
    }
}
