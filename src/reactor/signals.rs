//! Signals: which ones the server takes, and what each asks for. None ends it by accident.

use super::Reactor;
use super::stopping::StopCause;
use crate::config::HotReload;
#[cfg(not(test))]
use crate::process;
#[cfg(test)]
use crate::reactor::simulation::process;
use nix::errno::Errno;
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
pub fn open() -> nix::Result<SignalFd> {
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

impl Reactor {
    pub(super) fn take_signals(&mut self) {
        loop {
            match self.signals.read_signal() {
                Ok(Some(signal)) => self.take_signal(signal.ssi_signo),
                Err(Errno::EINTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn take_signal(&mut self, number: u32) {
        let signal = i32::try_from(number).ok().and_then(|number| Signal::try_from(number).ok());
        match signal {
            Some(Signal::SIGCHLD) => self.has_ended_children = true,
            Some(signal @ (Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT)) => {
                self.begin_stop(StopCause::Signal(signal));
            }
            Some(Signal::SIGHUP) => match self.config.hot_reload {
                HotReload::Process => {
                    log::info!("SIGHUP: reload");
                    self.fleet.reload(self.clock.now);
                }
                // The terminal is gone.
                HotReload::Module => self.begin_stop(StopCause::Signal(Signal::SIGHUP)),
                HotReload::None => {
                    log::info!("SIGHUP: nothing to do (--hot-reload=process would reload)");
                }
            },
            Some(signal) => log::info!("{}: nothing to do", signal.as_str()),
            None => log::info!("signal {number}: nothing to do"),
        }
    }
}
