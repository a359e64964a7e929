//! What systemd is told (`sd_notify(3)`): when the server is ready, reloads and stops, how it stands, and that its loop
//! turns.

use crate::deadlines::earliest;
use nix::time::{ClockId, clock_gettime};
use std::collections::VecDeque;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// A message that finds no room is tried again after so long.
const RETRY: Duration = Duration::from_millis(100);
/// At most this many messages wait: one of each kind, and some more.
const MAX_WAITING: usize = 16;

#[derive(Debug)]
pub(crate) struct Notifier {
    outlet: Outlet,
    /// What is to be told, first come, first served.
    waiting: VecDeque<String>,
    retry: Option<Instant>,
    watchdog: Option<Watchdog>,
    /// What was told last; `None`: not ready yet.
    told: Option<ServiceState>,
    status: String,
    /// Another server speaks for the service.
    is_silent: bool,
}

#[derive(Debug)]
enum Outlet {
    /// Nobody asked to be told.
    None,
    Socket(UnixDatagram, SocketAddr),
    #[cfg(any(test, fuzzing))]
    Kept(Vec<String>),
}

/// Somebody wants to hear from the loop that it turns.
#[derive(Debug)]
struct Watchdog {
    /// Half of the time after which it counts as hung.
    every: Duration,
    next: Instant,
}

/// How the server stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServiceState {
    /// A worker has joined, or workers come by themselves.
    pub is_ready: bool,
    pub is_rolling: bool,
    pub is_stopping: bool,
    pub serving: usize,
    pub of: usize,
}

impl Notifier {
    /// By `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`. `is_successor`: those were meant for the server before
    /// this one, and are its now.
    pub(crate) fn from_environment(
        environment: &dyn Fn(&str) -> Option<String>,
        is_successor: bool,
        now: Instant,
    ) -> Self {
        let outlet = match environment("NOTIFY_SOCKET").filter(|at| !at.is_empty()) {
            None => Outlet::None,
            Some(at) => match open(&at) {
                Ok((socket, address)) => Outlet::Socket(socket, address),
                Err(error) => {
                    log::warn!("NOTIFY_SOCKET='{at}' cannot be used: {error}");
                    Outlet::None
                }
            },
        };
        let pid = environment("WATCHDOG_PID").filter(|_| !is_successor);
        let is_ours = pid.is_none_or(|pid| pid == std::process::id().to_string());
        let usec = environment("WATCHDOG_USEC").and_then(|usec| usec.parse().ok());
        let every = usec.filter(|usec| is_ours && *usec > 0).map(|usec: u64| Duration::from_micros(usec / 2));
        // It speaks when it has taken over.
        Notifier { is_silent: is_successor, ..Notifier::new(outlet, every, now) }
    }

    fn new(outlet: Outlet, every: Option<Duration>, now: Instant) -> Self {
        Notifier {
            outlet,
            waiting: VecDeque::new(),
            retry: None,
            watchdog: every.map(|every| Watchdog { every, next: now }),
            told: None,
            status: String::new(),
            is_silent: false,
        }
    }

    /// One whose messages are kept for a test.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn kept(every: Duration, now: Instant) -> Self {
        Notifier::new(Outlet::Kept(Vec::new()), Some(every), now)
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn take_kept(&mut self) -> Vec<String> {
        match &mut self.outlet {
            Outlet::Kept(messages) => std::mem::take(messages),
            Outlet::None | Outlet::Socket(..) => Vec::new(),
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        !matches!(self.outlet, Outlet::None)
    }

    /// When something is to be told by the clock.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let beat = self.watchdog.as_ref().filter(|_| self.is_on() && self.told.is_some() && !self.is_silent);
        earliest([self.retry, beat.map(|watchdog| watchdog.next)])
    }

    /// Tells what has changed, and the watchdog's beat where it is due. Called once a tick, so it comes only while the
    /// loop turns.
    pub(crate) fn note(&mut self, state: ServiceState, now: Instant) {
        if !self.is_on() || self.is_silent {
            return;
        }
        let before = self.told;
        if before != Some(state) {
            let message = self.message(before, state);
            if !message.is_empty() {
                self.push(message);
            }
            if state.is_ready || state.is_stopping {
                // A roll that has begun before the first join is told of behind that.
                let is_rolling = state.is_rolling && before.is_some();
                self.told = Some(ServiceState { is_rolling, ..state });
            }
        }
        if self.told.is_some()
            && let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| watchdog.next <= now)
        {
            watchdog.next = now + watchdog.every;
            self.push("WATCHDOG=1".to_owned());
        }
        self.flush(now);
    }

    /// Another process speaks for the service from now on.
    pub(crate) fn name_main(&mut self, pid: i32, now: Instant) {
        if self.is_on() {
            self.push(format!("MAINPID={pid}"));
            self.flush(now);
            self.is_silent = true;
        }
    }

    /// This server speaks for the service.
    pub(crate) fn speak_again(&mut self) {
        self.is_silent = false;
    }

    /// What has changed, each thing on a line.
    fn message(&mut self, before: Option<ServiceState>, state: ServiceState) -> String {
        let mut lines = Vec::new();
        let was = |of: fn(ServiceState) -> bool| before.is_some_and(of);
        match () {
            () if state.is_stopping && !was(|before| before.is_stopping) => {
                lines.push("STOPPING=1".to_owned())
            }
            () if state.is_stopping || !state.is_ready => {}
            () if state.is_rolling && before.is_some_and(|before| !before.is_rolling) => {
                lines.push(format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_us()));
            }
            () if before.is_none() || (!state.is_rolling && was(|before| before.is_rolling)) => {
                lines.push("READY=1".to_owned());
            }
            () => {}
        }
        let status = match state {
            ServiceState { is_stopping: true, .. } => "stopping".to_owned(),
            ServiceState { is_ready: false, .. } => "starting".to_owned(),
            ServiceState { serving, of: 0, .. } => format!("{serving} workers have joined"),
            ServiceState { serving, of, .. } => format!("{serving} of {of} workers serve"),
        };
        if status != self.status {
            lines.push(format!("STATUS={status}"));
            self.status = status;
        }
        lines.join("\n")
    }

    fn push(&mut self, message: String) {
        if self.waiting.len() == MAX_WAITING {
            // The oldest that is no turning point: nobody needs an old status or beat.
            let is_minor =
                |message: &String| message.starts_with("STATUS") || message.starts_with("WATCHDOG");
            match self.waiting.iter().position(is_minor) {
                Some(at) => drop(self.waiting.remove(at)),
                None => drop(self.waiting.pop_front()),
            }
        }
        self.waiting.push_back(message);
    }

    /// Sends what can be sent now.
    fn flush(&mut self, now: Instant) {
        self.retry = None;
        while let Some(message) = self.waiting.front() {
            let sent = match &mut self.outlet {
                Outlet::None => Ok(()),
                Outlet::Socket(socket, address) => {
                    socket.send_to_addr(message.as_bytes(), address).map(|_| ())
                }
                #[cfg(any(test, fuzzing))]
                Outlet::Kept(messages) => {
                    messages.push(message.clone());
                    Ok(())
                }
            };
            match sent {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if is_full(&error) => {
                    self.retry = Some(now + RETRY);
                    return;
                }
                Err(error) => {
                    log::warn!("NOTIFY_SOCKET does not take '{}': {error}", message.escape_default())
                }
                Ok(()) => {}
            }
            self.waiting.pop_front();
        }
    }
}

/// Whoever reads has not read what came before.
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || super::super::io::listen::is_shortage(error)
}

/// A datagram socket for the address: a path, or `@` and an abstract name.
fn open(at: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match at.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None if at.starts_with('/') => SocketAddr::from_pathname(at)?,
        None => return Err(io::Error::other("it is neither an absolute path nor an abstract name")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

/// µs of the clock that systemd compares with.
fn monotonic_us() -> i64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() * 1_000_000 + time.tv_nsec() / 1000)
}

#[cfg(test)]
mod tests;
