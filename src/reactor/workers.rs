//! Workers come and go: what the fleet says is done here, and what became of it is told back.

use super::backend::UpstreamDeadline;
use super::tick::Reactor;
use crate::control::Join;
use crate::fleet::{Action, RollEnd, STREAMS_DELAY};
use crate::keys::WorkerKey;
use crate::process::Exit;
use std::path::Path;
use std::time::Instant;

impl Reactor {
    /// Does what the fleet wants, until it wants nothing more.
    pub(super) fn perform_fleet_actions(&mut self) {
        while let Some(action) = self.supervisor.fleet_mut().next_action() {
            match action {
                // The server ends with this tick: nobody would end what is started now.
                Action::Spawn { .. } | Action::StartTemplate { .. } if self.exit.is_some() => {}
                Action::Spawn { slot, version, why, release, template } => {
                    let from = (release, template);
                    self.supervisor.spawn(slot, version, why, from, &self.io, &mut self.observer);
                }
                Action::StartTemplate { template, release } => {
                    self.supervisor.start_template(template, release, &self.io, &mut self.observer);
                }
                Action::EndTemplate { template, why } => {
                    self.supervisor.end_template(template, why, &self.io, &mut self.observer);
                }
                Action::Admit { worker, predecessor } => self.admit(worker, predecessor),
                Action::AdmitOnTrial { worker, every } => {
                    log::info!(
                        "reload: {} is on trial, and gets one request in {every}",
                        self.supervisor.label(worker)
                    );
                    self.admin.tell_trial(self.supervisor.identity(worker), every, &self.io);
                    self.balancer.begin_trial(worker, every);
                    self.admit(worker, None);
                }
                Action::Replaced { why } => self.observer.worker_replaced(why),
                Action::NoTrial => {
                    log::warn!("reload: no worker of the old release serves, so the new one has no trial");
                }
                Action::EndTrial => self.balancer.end_trial(),
                Action::Readmit { worker } if self.supervisor.is_withheld_at_once(worker) => {}
                Action::Readmit { worker } => {
                    let capacity = self.supervisor.capacity(worker);
                    let next = self.balancer.readmit(worker, capacity, self.io.now());
                    self.go_on_with_worker(worker, next);
                }
                Action::Withdraw { worker } => {
                    if self.balancer.withdraw(worker) {
                        self.supervisor.fleet_mut().idle(worker, self.io.now());
                    }
                }
                Action::Terminate { worker } => self.terminate(worker),
                Action::Cut { worker } => self.cut_worker(worker),
                Action::Kill { worker } => self.supervisor.kill(worker, self.is_stopping()),
                Action::Wait { slot, failures, wait } => {
                    let times = match failures {
                        1 => "once".to_owned(),
                        more => format!("{more} times in a row"),
                    };
                    log::warn!(
                        "worker {slot}: failed {times} before it had served; the next start is in {} ms",
                        wait.as_millis()
                    );
                }
                Action::RollBegins => {
                    self.observer.rolls_mut().begin(self.io.now(), self.io.unix());
                    self.supervisor.begin_roll();
                }
                Action::Adopt => {
                    self.supervisor.adopt(&self.io);
                    self.end_quarantine();
                    self.renewal_ended(true);
                }
                Action::RollProgress { replaced, of } => {
                    log::info!("reload: {replaced} of {of} replaced");
                    self.observer.rolls_mut().progress(replaced, of);
                    self.admin.tell_roll_progress(replaced, of, &self.io);
                }
                Action::RollEnded(end) => self.tell_roll_end(end),
                Action::GiveUp if self.host.is_waiting() => {
                    let failure = self.supervisor.last_failure();
                    self.fail_to_follow(format!(
                        "none of its workers joined, and each has failed three times{failure}"
                    ));
                }
                Action::GiveUp if self.supervisor.waits_for_edits() => {
                    let cause = self.supervisor.last_failure();
                    log::error!(
                        "no worker ever joined, and each has failed three times{cause}; waiting for the next edit"
                    );
                }
                Action::GiveUp => {
                    let cause = self.supervisor.last_failure();
                    log::error!(
                        "no worker ever joined, and each has failed three times{cause}; RIP_KEEP_TRYING=1 goes on trying"
                    );
                    self.end_now(1);
                }
            }
        }
    }

    fn tell_roll_end(&mut self, end: RollEnd) {
        let result = self.supervisor.end_roll(end);
        self.observer.rolls_mut().end(&result, self.io.now(), self.io.unix());
        self.renewal_ended(result.is_ok());
        self.admin.answer_roll_followers(&result, &self.io);
    }

    /// Takes in what became of the starts.
    pub(super) fn on_spawner(&mut self) {
        while let Some(worker) = self.supervisor.next_started(&self.io, &mut self.observer) {
            self.backend.add(worker);
            if self.supervisor.is_command(worker)
                && let Some(upstream) = self.backend.next_upstream_of(worker)
            {
                self.backend.arm(upstream, UpstreamDeadline::Probe, self.io.now());
            }
        }
    }

    /// A worker that came by itself (`w:0`). Whoever has joined under the same socket before is replaced: what it has
    /// at work may end, and nothing more comes to it.
    pub(super) fn add_external(&mut self, worker_id: usize, join: &Join, peer_pid: i32) {
        for earlier in self.supervisor.externals_at(Path::new(&join.socket)) {
            log::info!("{}: another one joins under its socket", self.supervisor.label(earlier));
            self.part_from_external(earlier);
        }
        let worker = self.supervisor.add_external(worker_id, join, peer_pid, self.io.now());
        self.backend.add(worker);
        self.admit(worker, None);
    }

    /// A worker from outside gets nothing more, and is forgotten when it has nothing at work.
    pub(super) fn part_from_external(&mut self, worker: WorkerKey) {
        if self.balancer.withdraw(worker) {
            self.forget_worker(worker);
        }
    }

    /// A worker has joined: it gets requests from now on.
    fn admit(&mut self, worker: WorkerKey, predecessor: Option<WorkerKey>) {
        let now = self.io.now();
        let Some(connects) = self.supervisor.admit(worker, &mut self.observer, now) else { return };
        if connects
            && let Some(upstream) = self.backend.next_upstream_of(worker)
            && let Some(endpoint) = self.supervisor.endpoint(worker)
        {
            self.backend.connect_ahead(upstream, endpoint, &self.io);
        }
        if self.supervisor.is_withheld_at_once(worker) {
            return;
        }
        let capacity = self.supervisor.capacity(worker);
        let next = self.balancer.join(worker, capacity, predecessor, self.io.now());
        self.go_on_with_worker(worker, next);
    }

    fn terminate(&mut self, worker: WorkerKey) {
        self.supervisor.terminate(worker);
        self.backend.close_unused(worker);
    }

    /// The end of a worker's drain: whoever waits for it is told, and its connections are closed before it is killed.
    fn cut_worker(&mut self, worker: WorkerKey) {
        let upstreams = self.backend.upstreams_of(worker);
        for &upstream in &upstreams {
            if !self.backend.is_question(upstream) {
                self.cut_exchange(upstream);
            }
        }
        self.balancer.remove(worker);
        for upstream in upstreams {
            self.backend.close(upstream);
            self.backend.disarm(upstream);
            self.backend.drop_exchange(upstream, &mut self.io);
        }
    }

    /// Takes in all children that have ended.
    pub(super) fn reap(&mut self) {
        self.reap_successor();
        if self.supervisor.launcher().starts() > 0 {
            // A template that has ended may have named workers.
            self.on_spawner();
        }
        for (worker, exit) in self.supervisor.ended_workers() {
            self.on_exit(worker, exit);
            self.supervisor.end_group(worker, self.io.now());
        }
        self.supervisor.reap_others(&mut self.io, &mut self.observer);
    }

    fn on_exit(&mut self, worker: WorkerKey, exit: Exit) {
        self.supervisor.note_exit(worker, exit);
        // It must not be met again while its last bytes are read.
        self.balancer.remove(worker);
        // What it had written before its end is still to be read: an answer may be whole.
        let upstreams = self.backend.upstreams_of(worker);
        for &upstream in &upstreams {
            self.blame_for_death(worker, upstream);
            self.read_rest(upstream);
        }
        self.supervisor.finish_output(worker, &mut self.io, &mut self.observer);
        for upstream in upstreams {
            self.backend.disarm(upstream);
            self.end_exchange_of_the_dead(upstream, exit);
        }
        self.blame_for_end(worker);
        self.balancer.remove(worker);
        self.supervisor.worker_is_gone(worker, exit, &self.io, &mut self.observer);
    }
}

/// How many workers load needs: growth while requests wait, retirement from the bottom of the stack.
impl Reactor {
    /// Looks whether the fleet should grow or shrink. Costs nothing where its size is fixed.
    pub(super) fn resize(&mut self) {
        let now = self.io.now();
        let size = self.supervisor.fleet().size();
        self.observer.note_order(self.balancer.serving(), self.balancer.order_changes());
        self.observer.note_size(size, || self.balancer.take_deepest(), now);
        let most = self.supervisor.fleet().max_workers();
        if size > most {
            let idle = self.balancer.bottom().map(|(worker, _)| worker);
            self.supervisor.fleet_mut().trim(idle, now);
        }
        if self.supervisor.fleet().is_fixed() {
            return;
        }
        let needed = self.balancer.needed_for_waiting();
        if needed > 0 && !self.supervisor.waits_for_new_code() && size < most {
            self.supervisor.fleet_mut().grow(needed, now);
        }
        if self.next_shrink().is_some_and(|due| due <= now) {
            self.shrink(&format!(", not needed for {} s", self.config.shrink_after.as_secs()));
        }
    }

    /// One slot fewer, if there may be: an empty one, else that of the worker at the bottom of the stack.
    pub(super) fn shrink(&mut self, why: &str) {
        let now = self.io.now();
        if let Some(slot) = self.supervisor.fleet_mut().give_up_spare_slot(now) {
            log::info!("worker {slot}: is not started again{why}");
        } else if let Some((worker, _)) = self.balancer.bottom()
            && self.supervisor.fleet_mut().shrink(worker, now)
        {
            log::info!("{}: retires{why}", self.supervisor.label(worker));
        }
    }

    /// When the worker at the bottom of the stack will not have been needed for long enough. Not asked for while neither
    /// that one may go nor a slot without a worker: whatever changes that brings a tick of the loop.
    pub(super) fn next_shrink(&self) -> Option<Instant> {
        if self.supervisor.fleet().is_fixed() {
            return None;
        }
        let fleet = self.supervisor.fleet();
        let bottom = self.balancer.bottom();
        let (worker, since) =
            bottom.filter(|(worker, _)| fleet.spare_slot().is_some() || fleet.may_shrink(*worker))?;
        let has_streams = self.balancer.streams_of(worker) > 0;
        let after = self.config.shrink_after;
        Some(since + if has_streams { after.max(STREAMS_DELAY) } else { after })
    }
}
