//! Signals: which ones the server takes. None ends it by accident.

#[cfg(not(any(test, fuzzing)))]
use crate::process;
#[cfg(any(test, fuzzing))]
use crate::reactor::simulation::process;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Signals that keep what they do by default: faults of the program itself, which have to end it, job control, and
/// what is ignored anyway.
const LEFT_ALONE: [Signal; 13] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGTRAP,
    Signal::SIGABRT,
    Signal::SIGSYS,
    Signal::SIGKILL,
    Signal::SIGSTOP,
    Signal::SIGTSTP,
    Signal::SIGCONT,
    Signal::SIGWINCH,
    Signal::SIGURG,
];

/// Takes all signals from here on, those that were ignored at the start (`nohup`) excepted: one that is blocked and
/// ignored would still reach a signalfd.
///
/// # Errors
/// The kernel's.
pub(crate) fn open() -> nix::Result<SignalFd> {
    process::watch_children();
    let mut taken = SigSet::all();
    let ignored = Signal::iterator().filter(|signal| process::is_ignored(*signal));
    for signal in LEFT_ALONE.into_iter().chain(ignored) {
        taken.remove(signal);
    }
    taken.thread_block()?;
    // A bound on file sizes is an error of the write that meets it, and no end.
    taken.remove(Signal::SIGXFSZ);
    SignalFd::with_flags(&taken, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}
