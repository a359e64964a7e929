//! Process groups whose leaders have ended. A leader is left unreaped until nobody is left in its group, so that no
//! number is signalled that could be a stranger's by now.

#[cfg(not(any(test, fuzzing)))]
use crate::process;
#[cfg(any(test, fuzzing))]
use crate::reactor::simulation::process;
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// Between the SIGTERM and the SIGKILL of what a worker has left behind.
const KILL_AFTER: Duration = Duration::from_secs(1);
/// What SIGKILL has not ended by then hangs in the kernel: nothing is waited for any longer.
const FORGET_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Group {
    leader: Pid,
    step: Step,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// SIGTERM is out.
    Terminated { kill_at: Instant },
    /// SIGKILL is out.
    Killed { forget_at: Instant },
}

impl Step {
    fn due(self) -> Instant {
        match self {
            Step::Terminated { kill_at } => kill_at,
            Step::Killed { forget_at } => forget_at,
        }
    }
}

/// Groups that are being ended. As many as workers that end within a second.
#[derive(Debug)]
pub(super) struct Groups {
    groups: Vec<Group>,
    /// Leaders that were let go, and whose groups' outputs are still to be closed.
    let_go: Vec<Pid>,
    /// Orphans become ours, so that it can be asked whether somebody lives in a group. Else everybody is supposed to.
    sees_orphans: bool,
}

impl Groups {
    pub(super) fn new(sees_orphans: bool) -> Self {
        Groups { groups: Vec::new(), let_go: Vec::new(), sees_orphans }
    }

    /// Whether somebody is left in the group of a leader that has ended, or may be.
    pub(super) fn lives(&self, leader: Pid) -> bool {
        !self.sees_orphans || process::group_lives(leader)
    }

    /// The leader has ended. `true`: somebody is left, and is told to end.
    pub(super) fn end(&mut self, leader: Pid, now: Instant) -> bool {
        let is_left = self.lives(leader);
        if is_left {
            process::terminate_group(leader);
            self.groups.push(Group { leader, step: Step::Terminated { kill_at: now + KILL_AFTER } });
        } else {
            process::release(leader);
            self.let_go.push(leader);
        }
        is_left && self.sees_orphans
    }

    /// Children have ended: lets go of the groups in which nobody is left.
    pub(super) fn look(&mut self) {
        let Groups { groups, let_go, sees_orphans } = self;
        groups.retain(|group| {
            let is_left = !*sees_orphans || process::group_lives(group.leader);
            if !is_left {
                process::release(group.leader);
                let_go.push(group.leader);
            }
            is_left
        });
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.groups.iter().map(|group| group.step.due()).min()
    }

    /// SIGKILL for those whose time is up.
    pub(super) fn expire(&mut self, now: Instant) {
        let Groups { groups, let_go, .. } = self;
        groups.retain_mut(|group| match group.step {
            Step::Terminated { kill_at } if kill_at <= now => {
                process::kill_group(group.leader);
                group.step = Step::Killed { forget_at: now + FORGET_AFTER };
                true
            }
            Step::Killed { forget_at } if forget_at <= now => {
                process::release(group.leader);
                let_go.push(group.leader);
                false
            }
            Step::Terminated { .. } | Step::Killed { .. } => true,
        });
    }

    /// The server ends, and nobody waits any more.
    pub(super) fn kill_all(&mut self) {
        for group in self.groups.drain(..) {
            process::kill_group(group.leader);
        }
    }

    /// The leaders that were let go since this was asked last.
    pub(super) fn take_let_go(&mut self) -> Vec<Pid> {
        std::mem::take(&mut self.let_go)
    }

    pub(super) fn has_let_go(&self) -> bool {
        !self.let_go.is_empty()
    }

    pub(super) fn holds(&self, pid: Pid) -> bool {
        self.groups.iter().any(|group| group.leader == pid)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }
}
