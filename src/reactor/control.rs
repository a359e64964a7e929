//! The control socket: workers join and leave here, and the command line's verbs ask here. HTTP/1.1, same user only.

use super::listen::{Accepted, Listener, bind_unix};
use super::stream::{Io, Stream, attempt};
use super::token::{Readiness, Target};
use super::{Reactor, Source, StartError};
use crate::conn::client::Event;
use crate::conn::inbox::Unread;
use crate::conn::{self, Request};
use crate::control::{Join, Message, Sender};
use crate::fleet::Why;
use crate::http::forward::{Canned, Origin, Word};
use crate::keys::WorkerKey;
use crate::names::Names;
use crate::process::Exit;
use mio::{Interest, Registry};
use nix::sys::socket::{getsockopt, sockopt};
use serde_json::{Value, json};
use slab::Slab;
use std::collections::HashMap;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Scrapers are few; one more connection ends the oldest.
const MOST_SCRAPERS: usize = 64;
/// A message is a line of JSON; more is none of ours.
const MOST_BODY_BYTES: usize = 64 * 1024;
/// Each worker says its word and goes; verbs are few.
const MOST_CONNECTIONS: usize = crate::config::MAX_WORKERS + 64;

pub struct ControlSocket {
    listener: Listener,
    connections: Slab<Connection>,
    pub last_spawn_error: Option<String>,
    pub was_ever_healthy: bool,
    /// How the last worker of each slot ended.
    last_exits: HashMap<usize, Exit>,
    accepted: u64,
}

#[derive(Debug)]
struct Connection {
    stream: Stream,
    conn: conn::Client,
    body: Vec<u8>,
    out: Vec<u8>,
    /// Told of the rolling restart's progress, then closed.
    watches_roll: bool,
    /// Kept open until the server ends, which its end then tells.
    watches_end: bool,
    closes: bool,
    /// Who is on the other side, as the kernel says.
    peer_pid: i32,
    /// Came by the metrics' listener, and gets nothing else.
    is_stranger: bool,
    /// Grows with each connection.
    number: u64,
}

impl ControlSocket {
    /// A stale socket is removed; a live one is another server, of this app or of one with the same name.
    pub fn bind(names: &Names, source: &Source, registry: &Registry) -> Result<Self, StartError> {
        /// A child of a server that was killed holds its sockets for as long as it takes to become a worker: what
        /// listens and breaks off without an answer is looked at again.
        const MOST_LOOKS: usize = 3;
        let mut looks = 0;
        let mut listener = loop {
            match bind_unix(&names.control) {
                Ok(listener) => break listener,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    looks += 1;
                    let answer = crate::client::ask(&names.control, "GET", "/status", "");
                    let breaks_off = answer.as_ref().is_err_and(|error| !is_silence(error));
                    if !breaks_off || looks == MOST_LOOKS {
                        return Err(StartError::Trouble(already_running(names, source, answer.ok())));
                    }
                }
                Err(error) => {
                    let path = names.control.display();
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
            connections: Slab::new(),
            last_spawn_error: None,
            was_ever_healthy: false,
            last_exits: HashMap::new(),
            accepted: 0,
        }
    }

    pub fn note_exit(&mut self, slot: usize, exit: Exit) {
        self.last_exits.insert(slot, exit);
    }

    pub fn last_exit(&self, slot: usize) -> Option<Exit> {
        self.last_exits.get(&slot).copied()
    }
}

/// Whoever listens says nothing for as long as an answer may take.
fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Who holds the name already, by its answer to a question for its status.
fn already_running(names: &Names, source: &Source, answer: Option<crate::client::Answer>) -> String {
    let app = &names.app;
    let status: Option<Value> = answer.and_then(|answer| serde_json::from_str(&answer.body).ok());
    let Some(status) = status else {
        let socket = names.control.display();
        return format!(
            "'{app}' is served already, by a server that does not answer on '{socket}'; --variant=<name> would start another one beside it"
        );
    };
    let pid = status["pid"].as_u64().map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    let path = status["path"].as_str().unwrap_or("?");
    if Path::new(path) != source.path() {
        return format!(
            "another app '{app}' is served already, from '{path}'{pid}; --variant=<name> tells the two apart"
        );
    }
    let stop = match source {
        Source::Path { .. } => format!("rip-server stop {path}"),
        Source::Own { .. } => format!("{path} stop"),
    };
    format!("'{app}' is served already{pid}; {stop} would end that")
}

impl Reactor {
    pub(super) fn accept_control(&mut self) {
        loop {
            let stream = match self.control.listener.accept() {
                Accepted::Peer(stream, _) => stream,
                Accepted::Nobody => return,
                Accepted::GoneAlready => continue,
                Accepted::NotNow(error) => return self.pause_accepting(&error),
            };
            let own_user = nix::unistd::geteuid().as_raw();
            let peer =
                getsockopt(&stream, sockopt::PeerCredentials).ok().filter(|peer| peer.uid() == own_user);
            let Some(peer) = peer.filter(|_| self.control.connections.len() < MOST_CONNECTIONS) else {
                log::warn!("the control socket: a connection of another user, or one too many, was refused");
                continue;
            };
            self.watch_control(stream, peer.pid(), false);
        }
    }

    /// Takes connections of those who ask for metrics alone.
    pub(super) fn accept_scraper(&mut self, index: usize) {
        while let Some(listener) = self.metrics_listeners.get(index) {
            let stream = match listener.accept() {
                Accepted::Peer(stream, _) => stream,
                Accepted::Nobody => return,
                Accepted::GoneAlready => continue,
                Accepted::NotNow(error) => return self.pause_accepting(&error),
            };
            let strangers: Vec<usize> = self
                .control
                .connections
                .iter()
                .filter(|(_, other)| other.is_stranger)
                .map(|(key, _)| key)
                .collect();
            if strangers.len() >= MOST_SCRAPERS
                && let Some(oldest) =
                    strangers.into_iter().min_by_key(|key| self.control.connections[*key].number)
            {
                self.control.connections.remove(oldest);
            }
            self.watch_control(stream, 0, true);
        }
    }

    pub(super) fn watch_control(&mut self, mut stream: Stream, peer_pid: i32, is_stranger: bool) {
        self.control.accepted += 1;
        let entry = self.control.connections.vacant_entry();
        let token = Target::Control(entry.key()).token();
        if self.poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE).is_ok()
        {
            entry.insert(Connection {
                stream,
                conn: conn::Client::default(),
                body: Vec::new(),
                out: Vec::new(),
                watches_roll: false,
                watches_end: false,
                closes: false,
                peer_pid,
                is_stranger,
                number: self.control.accepted,
            });
        } else {
            self.metrics.accept_failures += 1;
        }
    }

    pub(super) fn control_event(&mut self, key: usize, event: Readiness) {
        if event.is_writable {
            self.flush_control(key);
        }
        if event.is_readable || event.is_read_closed {
            self.read_control(key);
        }
    }

    fn read_control(&mut self, key: usize) {
        let mut scratch = std::mem::take(&mut self.scratch);
        while let Some(connection) = self.control.connections.get_mut(key) {
            match connection.stream.receive(&mut scratch) {
                Io::Bytes(bytes) => self.feed_control(key, &mut scratch[..bytes]),
                Io::Later => break,
                Io::End | Io::Gone => {
                    self.control.connections.remove(key);
                    break;
                }
            }
        }
        self.scratch = scratch;
    }

    fn feed_control(&mut self, key: usize, fresh: &mut [u8]) {
        let Some(connection) = self.control.connections.get_mut(key) else {
            return;
        };
        let mut unread = Unread::join(connection.conn.inbox.take(), fresh);
        let origin = Origin { address: "", word: Word::Ignored, fresh_id: "", start_us: b"" };
        loop {
            let Some(connection) = self.control.connections.get_mut(key) else {
                return;
            };
            let bound = MOST_BODY_BYTES as u64;
            let step = connection.conn.advance(unread.rest(), origin, bound, Vec::new, self.clock.now);
            match step.event {
                Event::More | Event::End | Event::Tunnel(_) => {
                    unread.consume(step.consumed);
                    break;
                }
                Event::Continue => connection.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n"),
                Event::Body(range) => connection.body.extend_from_slice(&unread.rest()[range]),
                Event::Refused(reason, request) => {
                    connection.closes = true;
                    self.respond(
                        key,
                        &request,
                        reason.status(),
                        &json!({"ok": false, "error": reason.sentence()}),
                    );
                }
                Event::Request(request) => {
                    let body = std::mem::take(&mut connection.body);
                    self.handle_control(key, &request, &body);
                    if let Some(connection) = self.control.connections.get_mut(key)
                        && connection.conn.is_busy()
                    {
                        connection.conn.answered();
                    }
                }
            }
            unread.consume(step.consumed);
        }
        if let Some(connection) = self.control.connections.get_mut(key) {
            connection.conn.inbox.keep(unread);
        }
        self.flush_control(key);
    }

    fn handle_control(&mut self, key: usize, request: &Request, body: &[u8]) {
        let is_stranger = self.control.connections.get(key).is_none_or(|connection| connection.is_stranger);
        match (request.method(), request.path()) {
            (b"GET" | b"HEAD", b"/server") if !is_stranger => {
                self.respond_with(key, request, 200, "text/plain", b"ok")
            }
            (b"GET" | b"HEAD", b"/metrics") => {
                let text = self.metrics_text();
                self.respond_with(key, request, 200, METRICS_TYPE, text.as_bytes());
            }
            _ if is_stranger => {
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
                Ok(message) => self.obey(key, request, message),
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

    fn obey(&mut self, key: usize, request: &Request, message: Message) {
        let now = self.clock.now;
        let peer_pid = self.control.connections.get(key).map_or(0, |connection| connection.peer_pid);
        let result = match message {
            Message::Join(join) => self.join(&join),
            Message::Quit(sender) => self.speaker(&sender, peer_pid).map(|worker| self.quit(worker)),
            Message::Reloaded(sender) => self.speaker(&sender, peer_pid).map(|worker| {
                if let Some(entry) = self.workers.get_mut(worker.0) {
                    entry.reloads += 1;
                }
            }),
            Message::Retire(sender) => {
                self.speaker(&sender, peer_pid).map(|worker| self.fleet.retire(worker, Why::Asked, now))
            }
            Message::Reload => {
                if let Some(connection) = self.control.connections.get_mut(key) {
                    connection.watches_roll = true;
                    connection.out.extend_from_slice(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n",
                    );
                }
                self.fleet.reload(now);
                return;
            }
            Message::Stop => {
                self.respond(key, request, 200, &json!({"ok": true}));
                if let Some(connection) = self.control.connections.get_mut(key) {
                    connection.watches_end = true;
                }
                self.begin_stop("asked by a command");
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
    fn join(&mut self, join: &Join) -> Result<(), String> {
        let Join { sender, pid, socket, version, abilities } = join;
        let worker_id =
            usize::try_from(sender.worker_id).map_err(|_| "'workerId' is too large".to_owned())?;
        if self.config.workers.max == 0 {
            self.add_outsider(worker_id, *pid, socket.into(), *abilities);
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
                "worker {worker_id} of generation {version} has another socket than '{socket}'"
            ));
        }
        if let Some(entry) = self.workers.get_mut(worker.0) {
            entry.abilities = *abilities;
        }
        self.fleet.joined(worker, self.clock.now);
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
                self.fleet.quit(worker, self.clock.now);
                self.perform_fleet_actions();
            }
            Some(super::entry::Origin::Outside { .. }) if self.balancer.withdraw(worker) => {
                self.forget_worker(worker)
            }
            Some(super::entry::Origin::Outside { .. }) | None => {}
        }
    }

    fn respond(&mut self, key: usize, request: &Request, status: u16, value: &Value) {
        let text = format!("{value}\n");
        self.respond_with(key, request, status, "application/json", text.as_bytes());
    }

    fn respond_with(
        &mut self,
        key: usize,
        request: &Request,
        status: u16,
        content_type: &'static str,
        body: &[u8],
    ) {
        let Some(connection) = self.control.connections.get_mut(key) else {
            return;
        };
        let keep_alive = request.asked.keep_alive && !connection.closes;
        connection.closes = !keep_alive;
        let canned = Canned {
            status,
            content_type,
            body,
            retry_soon: false,
            is_head: request.asked.is_head,
            version: request.asked.version,
            keep_alive,
            date: &self.clock.date_line,
        };
        canned.write(&mut connection.out);
    }

    fn flush_control(&mut self, key: usize) {
        let Some(connection) = self.control.connections.get_mut(key) else {
            return;
        };
        while !connection.out.is_empty() {
            match attempt(|| connection.stream.write(&connection.out)) {
                Io::Bytes(bytes) => drop(connection.out.drain(..bytes)),
                Io::Later => return,
                Io::End | Io::Gone => {
                    self.control.connections.remove(key);
                    return;
                }
            }
        }
        if connection.closes && !connection.watches_roll && !connection.watches_end {
            self.control.connections.remove(key);
        }
    }

    pub(super) fn tell_roll_progress(&mut self, replaced: usize, of: usize) {
        log::info!("reload: {replaced} of {of} replaced");
        self.tell_roll_watchers(&json!({"replaced": replaced, "of": of}), false);
    }

    pub(super) fn answer_roll_watchers(&mut self, result: &Result<usize, String>) {
        let last = match result {
            Ok(replaced) => json!({"ok": true, "replaced": replaced}),
            Err(error) => json!({"ok": false, "error": error}),
        };
        self.tell_roll_watchers(&last, true);
    }

    fn tell_roll_watchers(&mut self, value: &Value, is_last: bool) {
        let watchers: Vec<usize> = self
            .control
            .connections
            .iter()
            .filter(|(_, other)| other.watches_roll)
            .map(|(key, _)| key)
            .collect();
        for key in watchers {
            if let Some(connection) = self.control.connections.get_mut(key) {
                connection.out.extend_from_slice(format!("{value}\n").as_bytes());
                if is_last {
                    connection.watches_roll = false;
                    connection.closes = true;
                }
            }
            self.flush_control(key);
        }
    }
}
