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

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
    use nix::sys::signal::raise;

    /// Signals go to the thread that raises them.
    #[test]
    fn signals_are_read_and_end_nothing() {
        let signals = open().expect("a signalfd");
        let flags = fcntl(&signals, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate).expect("its flags");
        let kept = fcntl(&signals, FcntlArg::F_GETFD).map(FdFlag::from_bits_truncate).expect("its flags");
        assert!(flags.contains(OFlag::O_NONBLOCK) && kept.contains(FdFlag::FD_CLOEXEC));
        assert!(signals.read_signal().expect("it is ours").is_none());
        raise(Signal::SIGXFSZ).expect("it is blocked");
        raise(Signal::SIGUSR1).expect("it is blocked");
        let told = signals.read_signal().expect("it is ours").expect("a signal");
        assert_eq!(told.ssi_signo, Signal::SIGUSR1 as u32, "an error of the write, not a signal");
        assert!(signals.read_signal().expect("it is ours").is_none());
        let blocked = SigSet::thread_get_mask().expect("this thread's");
        for signal in LEFT_ALONE {
            assert!(!blocked.contains(signal), "{signal}");
        }
        for signal in [Signal::SIGTERM, Signal::SIGXFSZ] {
            // Whoever starts the tests may have them ignored.
            assert!(blocked.contains(signal) || process::is_ignored(signal), "{signal}");
        }
    }
}
