//! What systemd is told: each thing at its moment, and nothing at a wrong one.

use super::world::{WATCHDOG, World};
use crate::reactor::stage::Stage;
use std::time::Instant;

#[derive(Default)]
pub(crate) struct Notes {
    is_ready: bool,
    is_reloading: bool,
    is_stopping: bool,
    beat: Option<Instant>,
    /// Another server speaks.
    is_silent: bool,
}

impl World {
    pub(crate) fn check_notes(&mut self) {
        let (now, reactor) = (self.now, &mut self.reactor);
        let is_stopping = reactor.stage != Stage::Running;
        let has_served = reactor.supervisor.was_ever_healthy();
        let is_rolling = reactor.supervisor.fleet().is_rolling();
        let notes = &mut self.notes;
        let has_ended = reactor.exit.is_some();
        for line in reactor.host.notifier.take_kept().iter().flat_map(|message| message.split('\n')) {
            assert!(!notes.is_silent, "'{line}' from a server that is not the service any more");
            match line {
                _ if line.starts_with("MAINPID=") => notes.is_silent = true,
                "READY=1" => {
                    assert!(has_served && !is_stopping, "ready before its time");
                    assert!(!notes.is_ready || notes.is_reloading, "ready a second time");
                    (notes.is_ready, notes.is_reloading) = (true, false);
                }
                "RELOADING=1" => {
                    // Of one that has failed within the tick the end follows at once.
                    assert!(notes.is_ready && !notes.is_reloading && !is_stopping, "no reload begins");
                    notes.is_reloading = true;
                }
                "STOPPING=1" => {
                    assert!(is_stopping && !notes.is_stopping, "no stop begins");
                    notes.is_stopping = true;
                }
                "WATCHDOG=1" => notes.beat = Some(now),
                _ => assert!(line.starts_with("STATUS=") || line.starts_with("MONOTONIC_USEC="), "{line}"),
            }
        }
        if has_ended || notes.is_silent {
            return;
        }
        assert_eq!(notes.is_ready, has_served && (notes.is_ready || !is_stopping), "a readiness is not told");
        assert_eq!(notes.is_stopping, is_stopping, "a stop is not told");
        assert!(
            is_stopping || notes.is_reloading == (is_rolling && notes.is_reloading),
            "an end of a reload is not told"
        );
        let is_beating = notes.beat.is_some_and(|beat| now < beat + WATCHDOG);
        assert!(is_beating || !notes.is_ready, "the watchdog has heard nothing");
    }
}
