//! Processes without a kernel. The reactor starts, signals and reaps them, and the world decides what they do. Stands
//! where the reactor has `crate::process`.

use super::templates::Template;
use crate::process::{Answer, Begun, DescriptorLimit, Exit, Launch};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;

pub(crate) use crate::process::{Line, is_ignored, raise_descriptor_limit, watch_children};

thread_local! {
    static TABLE: RefCell<Table> = RefCell::new(Table::default());
}

/// The kernel's table of processes.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub alive: BTreeMap<i32, Started>,
    /// Started, and not yet seen by the world.
    pub fresh: Vec<i32>,
    pub ended: VecDeque<(i32, Exit)>,
    /// SIGTERM and (`true`) SIGKILL, in their order.
    pub signals: Vec<(i32, bool)>,
    /// What workers have started, and is still there.
    pub children: Vec<Offspring>,
    /// Of starts, not yet taken by the reactor.
    pub answers: VecDeque<Answer>,
    pub templates: Vec<Template>,
    /// A template has said something, or died, which is to be told.
    pub has_said: bool,
    pub failing_spawns: u8,
    /// Without `/proc` nothing tells whether a process is on its way out, or what one weighs.
    pub tells_little: bool,
    /// What each process weighs; one that has just ended: nothing that could be read.
    pub resident_bytes: Option<u64>,
    next_pid: i32,
}

/// A child of a worker's, in its process group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offspring {
    pub group: i32,
    /// SIGTERM has come.
    pub is_told: bool,
    /// It takes no notice of SIGTERM.
    pub is_unresponsive: bool,
}

/// What a worker finds in its environment.
#[derive(Debug, Clone)]
pub(crate) struct Started {
    pub slot: usize,
    pub version: u64,
    pub socket: PathBuf,
}

pub(crate) fn table<R>(look: impl FnOnce(&mut Table) -> R) -> R {
    TABLE.with_borrow_mut(look)
}

impl Table {
    pub(crate) fn new_pid(&mut self) -> i32 {
        self.next_pid += 1;
        self.last_pid()
    }

    /// Of the newest process.
    pub(crate) fn last_pid(&self) -> i32 {
        1_000_000 + self.next_pid
    }

    pub(crate) fn end(&mut self, pid: i32, exit: Exit) {
        if self.alive.remove(&pid).is_some() {
            self.ended.push_back((pid, exit));
        }
    }
}

/// Starts processes at once, and tells of them in the next tick.
#[derive(Debug)]
pub(crate) struct Spawner {
    last_id: u64,
}

impl Spawner {
    pub(crate) fn new(_: DescriptorLimit) -> Self {
        Spawner { last_id: 0 }
    }

    pub(crate) fn ensure(&mut self) -> io::Result<Option<RawFd>> {
        Ok(None)
    }

    pub(crate) fn start(&mut self, launch: &Launch, input: Option<OwnedFd>) -> io::Result<Begun> {
        let variable = |name: &str| {
            let found = launch.environment.iter().find(|(other, _)| other == name);
            found.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let number = |name: &str| variable(name).to_string_lossy().parse().unwrap_or_default();
        let (slot, version) = (number("WORKER_ID"), number("RIP_VERSION"));
        let socket = PathBuf::from(variable("SOCKET_PATH"));
        self.last_id += 1;
        let id = self.last_id;
        table(|table| {
            if table.failing_spawns > 0 {
                table.failing_spawns -= 1;
                // In one of two ways.
                if table.failing_spawns.is_multiple_of(2) {
                    return Err(io::Error::from(io::ErrorKind::OutOfMemory));
                }
                table.answers.push_back(Answer::Failed { id, error: Errno::EAGAIN });
                return Ok(());
            }
            let pid = table.new_pid();
            table.alive.insert(pid, Started { slot: slot as usize, version, socket });
            match input {
                Some(line) => table.templates.push(Template::new(pid, line)),
                None => table.fresh.push(pid),
            }
            // Said by the process and by the spawner.
            let started = Answer::Started { id, pid: Pid::from_raw(pid) };
            table.answers.extend([started, started]);
            Ok(())
        })?;
        // It prints nothing, and the reactor finds that nothing can be watched there.
        let null = File::open("/dev/null")?;
        Ok(Begun { id, stdout: null.try_clone()?.into(), stderr: null.into() })
    }

    pub(crate) fn answer(&mut self) -> Option<Answer> {
        table(|table| table.answers.pop_front())
    }
}

pub(crate) fn adopt_orphans() -> bool {
    true
}

pub(crate) fn exit_of(pid: Pid) -> Option<Exit> {
    table(|table| table.ended.iter().find(|(other, _)| *other == pid.as_raw()).map(|(_, exit)| *exit))
}

pub(crate) fn any_exit() -> Option<(Pid, Exit)> {
    table(|table| table.ended.front().map(|&(pid, exit)| (Pid::from_raw(pid), exit)))
}

/// Whether a child of that leader's is left.
pub(crate) fn group_lives(leader: Pid) -> bool {
    table(|table| table.children.iter().any(|child| child.group == leader.as_raw()))
}

pub(crate) fn release(pid: Pid) {
    table(|table| table.ended.retain(|(other, _)| *other != pid.as_raw()));
}

pub(crate) fn terminate_group(leader: Pid) {
    check_leader(leader);
    table(|table| {
        for child in table.children.iter_mut().filter(|child| child.group == leader.as_raw()) {
            child.is_told = true;
        }
    });
}

/// A group may be signalled only while its number cannot be another's.
fn check_leader(leader: Pid) {
    table(|table| {
        let pid = leader.as_raw();
        let is_held = table.alive.contains_key(&pid) || table.ended.iter().any(|(other, _)| *other == pid);
        assert!(
            is_held,
            "group {pid}: a signal to one whose leader was reaped, and whose number may be another's"
        );
    });
}

fn signal(pid: Pid, is_kill: bool) {
    table(|table| {
        let pid = pid.as_raw();
        let is_alive = table.alive.contains_key(&pid);
        let is_reaped = !is_alive && !table.ended.iter().any(|(other, _)| *other == pid);
        assert!(!is_reaped, "process {pid}: a signal to one that was reaped, whose pid may be another's");
        if is_alive {
            table.signals.push((pid, is_kill));
        }
    });
}

pub(crate) fn terminate(pid: Pid) {
    signal(pid, false);
}

pub(crate) fn kill_group(pid: Pid) {
    check_leader(pid);
    table(|table| {
        for child in table.children.iter_mut().filter(|child| child.group == pid.as_raw()) {
            (child.is_told, child.is_unresponsive) = (true, false);
        }
    });
    signal(pid, true);
}

pub(crate) fn is_ending(pid: Pid) -> Option<bool> {
    table(|table| (!table.tells_little).then(|| !table.alive.contains_key(&pid.as_raw())))
}

/// Some tell it, and some do not.
pub(crate) fn proportional_bytes(pid: Pid) -> Option<u64> {
    (pid.as_raw() % 3 > 0).then_some(1 << 20)
}

pub(crate) fn tells_memory() -> bool {
    table(|table| !table.tells_little)
}

pub(crate) fn resident_bytes(_: Pid) -> Option<u64> {
    table(|table| table.resident_bytes)
}
