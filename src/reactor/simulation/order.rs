//! The balancer beside a simple model of it: each call goes to both, and both must decide the same. Stands where
//! the reactor has `crate::balancer::Balancer`.

use crate::balancer::simulation::Model;
use crate::balancer::{self, Capacity, Decision, NextStep, QueueRule, Wish};
use crate::keys::{ClientKey, WorkerKey};
use std::ops::Deref;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Balancer {
    real: balancer::Balancer,
    model: Model,
    /// Back in the queue since it was last looked through for those who are due.
    is_back: Vec<ClientKey>,
}

/// Getters are the real one's.
impl Deref for Balancer {
    type Target = balancer::Balancer;
    fn deref(&self) -> &Self::Target {
        &self.real
    }
}

impl Balancer {
    pub(crate) fn new(max_queue: usize, queue_timeout: Duration, rule: QueueRule) -> Self {
        Balancer {
            real: balancer::Balancer::new(max_queue, queue_timeout, rule),
            model: Model::new(max_queue, rule),
            is_back: Vec::new(),
        }
    }

    pub(crate) fn submit(
        &mut self,
        client: ClientKey,
        wish: Wish,
        deadline: Instant,
        now: Instant,
    ) -> Decision {
        let decision = self.real.submit(client, wish, deadline, now);
        let expected = self.model.submit(client, wish, deadline, false, now);
        assert_eq!(decision, expected, "submitted: the fewest at work, else the end of the queue");
        self.check();
        decision
    }

    pub(crate) fn resubmit(&mut self, client: ClientKey, deadline: Instant, now: Instant) -> Decision {
        let decision = self.real.resubmit(client, deadline, now);
        self.is_back.push(client);
        let expected = self.model.submit(client, Wish::Answer, deadline, true, now);
        assert_eq!(decision, expected, "tried again: the fewest at work, else by the first deadline");
        self.check();
        decision
    }

    pub(crate) fn join(
        &mut self,
        worker: WorkerKey,
        capacity: Capacity,
        predecessor: Option<WorkerKey>,
        now: Instant,
    ) -> NextStep {
        let next = self.real.join(worker, capacity, predecessor, now);
        assert_eq!(
            next,
            self.model.join(worker, capacity, predecessor, now),
            "joined: the queue's next, else its predecessor's place, else the bottom of the stack"
        );
        self.check();
        next
    }

    pub(crate) fn release(&mut self, worker: WorkerKey, wish: Wish, now: Instant) -> NextStep {
        let next = self.real.release(worker, wish, now);
        assert_eq!(
            next,
            self.model.release(worker, wish, now),
            "freed: the queue's next, else the top of the stack"
        );
        self.check();
        next
    }

    pub(crate) fn withdraw(&mut self, worker: WorkerKey) -> bool {
        let is_out = self.real.withdraw(worker);
        assert_eq!(is_out, self.model.withdraw(worker), "withdrawn: an idle one at once, a busy one later");
        self.check();
        is_out
    }

    pub(crate) fn begin_stream(&mut self, worker: WorkerKey, wish: Wish, now: Instant) -> Option<NextStep> {
        let next = self.real.begin_stream(worker, wish, now);
        assert_eq!(
            next,
            self.model.begin_stream(worker, wish, now),
            "a stream leaves its place, up to the bound"
        );
        self.check();
        next
    }

    pub(crate) fn end_stream(&mut self, worker: WorkerKey, now: Instant) -> NextStep {
        let next = self.real.end_stream(worker, now);
        assert_eq!(
            next,
            self.model.end_stream(worker, now),
            "a stream's end frees no place, but room for one"
        );
        self.check();
        next
    }

    pub(crate) fn cool_down(&mut self, worker: WorkerKey, until: Instant) {
        self.real.cool_down(worker, until);
        self.model.cool_down(worker, until);
        self.check();
    }

    pub(crate) fn dispatch_more(&mut self, worker: WorkerKey, now: Instant) -> NextStep {
        let next = self.real.dispatch_more(worker, now);
        assert_eq!(next, self.model.dispatch_more(worker, now), "a further place, for whoever waits");
        self.check();
        next
    }

    pub(crate) fn next_stream(&mut self, now: Instant) -> Option<(WorkerKey, ClientKey)> {
        let next = self.real.next_stream(now);
        assert_eq!(
            next,
            self.model.next_stream(now),
            "a stream that has waited for a worker that may take it"
        );
        self.check();
        next
    }

    pub(crate) fn refuse_stream(&mut self, now: Instant) -> Option<ClientKey> {
        let client = self.real.refuse_stream(now);
        assert_eq!(
            client,
            self.model.refuse_stream(now),
            "refused: who waits for a stream that nobody may hold"
        );
        client
    }

    pub(crate) fn readmit(&mut self, worker: WorkerKey, capacity: Capacity, now: Instant) -> NextStep {
        let next = self.real.readmit(worker, capacity, now);
        assert_eq!(
            next,
            self.model.readmit(worker, capacity, now),
            "readmitted: as a joined one, or it goes on"
        );
        self.check();
        next
    }

    pub(crate) fn begin_trial(&mut self, worker: WorkerKey, every: usize) {
        self.real.begin_trial(worker, every);
        self.model.begin_trial(worker, every);
    }

    pub(crate) fn end_trial(&mut self) {
        self.real.end_trial();
        self.model.end_trial();
    }

    pub(crate) fn remove(&mut self, worker: WorkerKey) {
        self.real.remove(worker);
        self.model.remove(worker);
        self.check();
    }

    pub(crate) fn forget(&mut self, client: ClientKey) -> bool {
        let had_waited = self.real.forget(client);
        assert_eq!(had_waited, self.model.forget(client), "forgotten: whoever waited");
        self.check();
        had_waited
    }

    pub(crate) fn depart(&mut self, client: ClientKey, now: Instant) -> bool {
        let had_waited = self.real.depart(client, now);
        assert_eq!(had_waited, self.model.depart(client, now), "left: whoever waited");
        self.check();
        had_waited
    }

    pub(crate) fn expire(&mut self, now: Instant) -> Option<ClientKey> {
        let expired = self.real.expire(now);
        let expected = self.model.expire(now);
        self.is_back.retain(|_| expected.is_some());
        assert_eq!(expired, expected, "expired: whoever is due, and nobody else");
        expired
    }

    pub(crate) fn take_deepest(&mut self) -> usize {
        self.real.take_deepest()
    }

    pub(crate) fn is_known(&self, worker: WorkerKey) -> bool {
        self.model.worker(worker).is_some()
    }

    /// How many of its places are at work.
    pub(crate) fn at_work(&self, worker: WorkerKey) -> usize {
        self.model.worker(worker).map_or(0, |worker| worker.at_work)
    }

    /// At rest: nobody waits while a place is free.
    pub(crate) fn check_rest(&self, now: Instant) {
        let free = self.model.free();
        let fits = self.model.fitting(now);
        assert!(fits.is_empty(), "{fits:?} wait beside free places of {free:?}");
    }

    /// Nobody waits beyond its deadline, at the end of a tick.
    pub(crate) fn check_deadlines(&self, now: Instant) {
        let may_wait =
            |(client, deadline): &(ClientKey, Instant)| *deadline > now || self.is_back.contains(client);
        assert!(self.model.waiting().iter().all(may_wait), "waits beyond its deadline");
    }

    fn check(&self) {
        let counts = self.model.counts();
        assert_eq!((self.real.idle(), self.real.busy(), self.real.waiting()), counts, "the counts add up");
        for worker in &self.model.workers {
            assert!(worker.at_work <= worker.capacity.places, "{worker:?}: more than it takes at once");
        }
        assert_eq!(self.real.next_deadline(), self.model.next_deadline(), "the first deadline is the next");
    }
}
