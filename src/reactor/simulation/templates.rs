//! Templates on the street: they load the app or do not, fork at once, late or not at all, and die.

use super::process::{self, Started};
use super::tell;
use super::world::World;
use crate::process::Exit;
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, recv, send};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A template process; its end of the line is a real socket.
#[derive(Debug)]
pub(crate) struct Template {
    pub pid: i32,
    pub line: OwnedFd,
    is_ready: bool,
    /// Workers that it is to fork.
    orders: VecDeque<(u64, Started)>,
}

/// What a template does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    /// It has loaded the app.
    Loads,
    /// It has seen that the app is not to be forked.
    Refuses,
    Forks,
    /// It makes a worker, and dies before it has named it.
    ForksAndDies,
    CannotFork,
    Dies,
}

impl Template {
    pub(crate) fn new(pid: i32, line: OwnedFd) -> Self {
        Template { pid, line, is_ready: false, orders: VecDeque::new() }
    }

    fn say(&self, text: &str) {
        // The server may have closed it.
        let _ = send(self.line.as_raw_fd(), text.as_bytes(), MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
    }

    fn read_orders(&mut self) {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = recv(self.line.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            let variable = |name: &str| {
                let found = text.split('\0').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
                found.expect("a worker's variable")
            };
            let number = |name: &str| variable(name).parse().expect("a number");
            let id = text.split('\0').next().and_then(|id| id.parse().ok()).expect("an order's number");
            let socket = PathBuf::from(variable("SOCKET_PATH"));
            let started =
                Started { slot: number("WORKER_ID") as usize, version: number("RIP_VERSION"), socket };
            self.orders.push_back((id, started));
        }
    }
}

/// A folder with a Python app and an interpreter beside it, neither of which is ever run.
pub(crate) fn app() -> &'static Path {
    static APP: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = APP.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a folder");
        let interpreter = dir.path().join(".venv/bin/python3");
        std::fs::create_dir_all(dir.path().join(".venv/bin")).expect("folders");
        std::fs::write(dir.path().join("app.py"), "app = None\n").expect("an app");
        std::fs::write(&interpreter, "").expect("an interpreter");
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&interpreter, permissions).expect("it may be run");
        dir
    });
    dir.path()
}

impl World {
    pub(crate) fn template_does(&mut self, number: usize, deed: Deed) {
        process::table(|table| {
            let fits = |template: &mut Template| {
                template.read_orders();
                match deed {
                    Deed::Loads | Deed::Refuses => !template.is_ready,
                    Deed::Forks | Deed::ForksAndDies | Deed::CannotFork => {
                        template.is_ready && !template.orders.is_empty()
                    }
                    Deed::Dies => true,
                }
            };
            let count = table.templates.len();
            let fit: Vec<usize> = (0..count).filter(|&at| fits(&mut table.templates[at])).collect();
            if fit.is_empty() {
                return;
            }
            let at = fit[number % fit.len()];
            let template = &mut table.templates[at];
            tell(|| format!("  template {} {deed:?}", template.pid));
            // A start that it was asked for may have failed with it.
            self.has_failing_spawns |= matches!(deed, Deed::ForksAndDies | Deed::CannotFork | Deed::Dies);
            match deed {
                Deed::Loads => {
                    template.is_ready = true;
                    template.say("ready");
                }
                Deed::Refuses => {
                    template.say("refused a thread runs");
                    table.end_template(at, Exit::Code(0));
                }
                Deed::Forks => table.fork(at, true),
                Deed::ForksAndDies => {
                    table.fork(at, false);
                    table.end_template(at, Exit::Signal(Signal::SIGKILL));
                }
                Deed::CannotFork => {
                    if let Some((id, _)) = template.orders.pop_front() {
                        template.say(&format!("failed {id} no memory"));
                    }
                }
                Deed::Dies => table.end_template(at, Exit::Signal(Signal::SIGSEGV)),
            }
            table.has_said = true;
        });
        self.reaps_soon();
    }

    /// All have loaded the app, and do what they were asked for.
    pub(crate) fn templates_are_kind(&mut self) {
        while self.has_template_work() {
            self.template_does(0, Deed::Loads);
            self.template_does(0, Deed::Forks);
        }
    }

    pub(crate) fn has_template_work(&self) -> bool {
        process::table(|table| {
            table.templates.iter_mut().any(|template| {
                template.read_orders();
                !template.is_ready || !template.orders.is_empty()
            })
        })
    }
}

impl process::Table {
    /// A worker comes of it, which is the server's child; `is_named`: the server hears of it.
    fn fork(&mut self, at: usize, is_named: bool) {
        let Some((id, started)) = self.templates[at].orders.pop_front() else { return };
        let pid = self.new_pid();
        if is_named {
            self.alive.insert(pid, started);
            self.fresh.push(pid);
            self.templates[at].say(&format!("forked {id} {pid}"));
        } else {
            // It is refused when it joins, and ends.
            self.ended.push_back((pid, Exit::Code(1)));
        }
    }

    fn end_template(&mut self, at: usize, exit: Exit) {
        let template = self.templates.swap_remove(at);
        self.end(template.pid, exit);
    }

    /// It was killed.
    pub(crate) fn kill_template(&mut self, pid: i32) -> bool {
        let at = self.templates.iter().position(|template| template.pid == pid);
        if let Some(at) = at {
            self.end_template(at, Exit::Signal(Signal::SIGKILL));
        }
        at.is_some()
    }
}
