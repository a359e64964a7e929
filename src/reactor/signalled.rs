//! What each signal asks for.

use super::descriptors;
use super::stopping::StopCause;
use super::tick::Reactor;
use crate::config::{HotReload, MAX_WORKERS};
use crate::fleet::Resize;
use nix::errno::Errno;
use nix::sys::signal::Signal;

impl Reactor {
    pub(super) fn on_signals(&mut self) {
        loop {
            match self.host.signals.read_signal() {
                Ok(Some(signal)) => self.take_signal(signal.ssi_signo),
                Err(Errno::EINTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    pub(super) fn take_signal(&mut self, number: u32) {
        let signal = i32::try_from(number).ok().and_then(|number| Signal::try_from(number).ok());
        match signal {
            Some(Signal::SIGCHLD) => self.supervisor.note_ended_children(),
            Some(signal @ (Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT)) => {
                self.begin_stop(StopCause::Signal(signal));
            }
            Some(Signal::SIGHUP) => match self.config.hot_reload {
                HotReload::Process if self.is_stopping() => {
                    log::info!("SIGHUP: nothing to do (the server is stopping)");
                }
                HotReload::Process if self.host.is_upgrading() => {
                    log::info!("SIGHUP: an upgrade is under way; the reload comes behind it");
                    self.host.owes_reload = true;
                }
                HotReload::Process => {
                    log::info!("SIGHUP: reload");
                    self.supervisor.fleet_mut().reload(None, self.io.now());
                }
                // The terminal is gone.
                HotReload::Module => self.begin_stop(StopCause::Signal(Signal::SIGHUP)),
                HotReload::None => {
                    log::info!("SIGHUP: nothing to do (--hot-reload=process would reload)");
                }
            },
            Some(Signal::SIGUSR1) => self.reopen_log_file(),
            Some(Signal::SIGUSR2) => match self.begin_upgrade() {
                Ok(()) => {}
                Err(why_not) => log::warn!("SIGUSR2: no upgrade: {why_not}"),
            },
            Some(Signal::SIGTTIN) => self.add_worker(),
            Some(Signal::SIGTTOU) => self.remove_worker(),
            Some(signal) => log::info!("{}: nothing to do", signal.as_str()),
            None => log::info!("signal {number}: nothing to do"),
        }
    }

    /// Logs are rotated by a rename and this signal.
    fn reopen_log_file(&mut self) {
        match self.observer.reopen_log_file(&self.io) {
            None => log::info!("SIGUSR1: nothing to do (a --log-file would be opened anew)"),
            Some(Ok(())) => log::info!("SIGUSR1: the log file is opened anew"),
            Some(Err(complaint)) => log::warn!("SIGUSR1: {complaint}; the one that is open stays"),
        }
    }

    /// SIGTTIN: one worker more than there was to be, until the next start.
    fn add_worker(&mut self) {
        let most = self.supervisor.fleet().max_workers() + 1;
        if most > MAX_WORKERS {
            log::warn!("SIGTTIN: {MAX_WORKERS} workers are the most");
        } else if let Some(complaint) = descriptors::shortage(&self.config, most, self.io.descriptors()) {
            log::warn!("SIGTTIN: {complaint}");
        } else {
            self.change_size("SIGTTIN", Resize::More);
        }
    }

    /// SIGTTOU: one worker fewer.
    fn remove_worker(&mut self) {
        self.change_size("SIGTTOU", Resize::Fewer);
    }

    pub(super) fn change_size(&mut self, signal: &str, change: Resize) {
        let now = self.io.now();
        if !self.supervisor.fleet_mut().change_size(change, now) {
            log::info!("{signal}: nothing to do ({})", self.why_no_new_size());
            return;
        }
        let (min, max) = (self.supervisor.fleet().min_workers(), self.supervisor.fleet().max_workers());
        let size = if min == max { format!("w:{max}") } else { format!("w:{min}..{max}") };
        log::info!("{signal}: {size} until the next start");
        self.frontend.keep_descriptors(descriptors::kept(&self.config, max, self.io.descriptors()));
        if change == Resize::Fewer {
            // Where the fewest serve and another one boots, that one's join is waited for.
            self.shrink("");
        }
    }

    fn why_no_new_size(&self) -> &'static str {
        match self.config.workers.max {
            0 => "w:0 starts no workers",
            _ if self.is_stopping() => "the server is stopping",
            _ => "one worker is the fewest",
        }
    }
}
