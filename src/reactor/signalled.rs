//! What each signal asks for.

use super::stopping::StopCause;
use super::tick::Reactor;
use crate::config::HotReload;
use nix::errno::Errno;
use nix::sys::signal::Signal;

impl Reactor {
    pub(super) fn on_signals(&mut self) {
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
            Some(Signal::SIGCHLD) => self.supervisor.note_ended_children(),
            Some(signal @ (Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT)) => {
                self.begin_stop(StopCause::Signal(signal));
            }
            Some(Signal::SIGHUP) => match self.config.hot_reload {
                HotReload::Process => {
                    log::info!("SIGHUP: reload");
                    self.supervisor.fleet_mut().reload(self.io.now());
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
