//! The places of workers: one that has come free serves the next request, and a stream leaves its own.

use super::backend::PlaceState;
use super::crossing::Times;
use super::supervisor::worker::Origin;
use super::tick::Reactor;
use crate::balancer::NextStep;
use crate::http::Reason;
use crate::keys::{UpstreamKey, WorkerKey};

impl Reactor {
    /// The work on a connection is over: its place serves the next waiting request, or waits for one, or its worker leaves.
    pub(super) fn is_free(&mut self, upstream: UpstreamKey) {
        let now = self.io.now();
        let Some(worker) = self.backend.worker_of(upstream) else { return };
        if self.quarantine.has_suspects() {
            self.quarantine.acquit(worker.0);
        }
        let place = self.backend.release_upstream(upstream, now);
        if self.supervisor.is_dead(worker) {
            // Nobody else is to meet it.
            self.balancer.remove(worker);
            if self.supervisor.is_external(worker) {
                self.forget_when_over(worker);
            } else if self.backend.exchanges_of(worker).next().is_none() {
                self.supervisor.fleet_mut().idle(worker, now);
            }
            return;
        }
        let next = match place {
            Some(PlaceState::Held { wish }) => {
                self.supervisor.check_limits(worker, now);
                self.balancer.release(worker, wish, now)
            }
            Some(PlaceState::Left) => {
                let next = self.balancer.end_stream(worker, now);
                if self.balancer.streams_of(worker) == 0 {
                    self.supervisor.fleet_mut().note_streams(worker, false, now);
                }
                self.supervisor.check_limits(worker, now);
                next
            }
            Some(PlaceState::Unused { .. } | PlaceState::Closed) | None => NextStep::Idle,
        };
        self.go_on_with_worker(worker, next);
    }

    /// Gives a worker the requests that wait, while it has places free.
    pub(super) fn go_on_with_worker(&mut self, worker: WorkerKey, mut next: NextStep) {
        while let NextStep::Dispatch { client, wish } = next {
            next = match self.frontend.end_wait(client) {
                // Workers have died of its like while it waited.
                Some(job) if !self.quarantine.is_empty() && !self.may_go_on(&job) => {
                    let times = Times { queue: self.io.now() - job.submitted, ..Times::default() };
                    self.refuse(client, job.request, Reason::Quarantined, times, None);
                    self.balancer.release(worker, wish, self.io.now())
                }
                Some(job) => {
                    self.assign(worker, client, job, wish);
                    self.balancer.dispatch_more(worker, self.io.now())
                }
                None => self.balancer.release(worker, wish, self.io.now()),
            };
        }
        if next == NextStep::Retired {
            self.worker_has_left(worker);
        }
    }

    /// A worker that was withdrawn has nothing at work any more.
    fn worker_has_left(&mut self, worker: WorkerKey) {
        match self.supervisor.origin(worker) {
            Some(Origin::Outside { .. }) => self.forget_worker(worker),
            Some(Origin::Slot { .. } | Origin::Template { .. }) | None => {
                // One that was told to end waits for this.
                self.backend.close_unused(worker);
                self.supervisor.fleet_mut().idle(worker, self.io.now());
            }
        }
    }

    /// A stream's head is out, or a tunnel stands: from here on it holds nobody, where its worker can do that.
    pub(super) fn begin_stream_if_one(&mut self, upstream: UpstreamKey) {
        let now = self.io.now();
        let Some(worker) = self.backend.worker_of(upstream) else { return };
        let Some((times, total)) = self.backend.begin_stream(upstream, now) else { return };
        self.observer.stream_began(&times, total);
        if let Some(PlaceState::Held { wish }) = self.backend.place(upstream)
            && let Some(next) = self.balancer.begin_stream(worker, wish, now)
        {
            self.backend.leave_place(upstream);
            if self.balancer.streams_of(worker) == 1 {
                self.supervisor.fleet_mut().note_streams(worker, true, now);
            }
            self.go_on_with_worker(worker, next);
        }
    }
}
