//! Who meets whom: the stack of idle workers (last in, first out) and the bounded queue of waiting requests
//! (in order of arrival, or newest first). Pure: events come in with the time, decisions go out.
//!
//! Invariant, asserted after each event: a waiting request and an idle worker never exist together.

mod order;
mod queue;
mod retry;
mod share;
#[cfg(test)]
pub(crate) mod simulation;

pub(crate) use order::{QueueRule, Serving};
pub(crate) use retry::{Failure, may_retry};

use crate::keys::{ClientKey, WorkerKey};
use crate::list::KeyList;
use queue::Queue;
use share::Share;
use std::time::{Duration, Instant};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Assign {
        worker: WorkerKey,
    },
    Enqueue,
    /// The queue is full.
    Reject,
}

/// What becomes of a worker that could take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextStep {
    /// The request that has waited longest.
    Dispatch { client: ClientKey },
    /// Onto the top of the stack.
    Idle,
    /// It was withdrawn meanwhile, and has now nothing to do.
    Retired,
}

#[derive(Debug)]
pub(crate) struct Balancer {
    /// The top of the stack is the list's back.
    idle: KeyList,
    standing: Vec<Option<WorkerState>>,
    queue: Queue,
    busy: usize,
    /// Of the busy ones, those that get no other request.
    withdrawn: usize,
    /// The most workers that were in use at once since the last look.
    deepest: usize,
    trial: Option<Share>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WorkerState {
    Idle {
        since: Instant,
    },
    Busy,
    /// Busy, and to get no other request.
    Withdrawn,
}

/// Getters.
impl Balancer {
    pub(crate) fn new(max_queue: usize, queue_timeout: Duration, rule: QueueRule) -> Self {
        Balancer {
            idle: KeyList::default(),
            standing: Vec::new(),
            queue: Queue::new(max_queue, queue_timeout, rule),
            busy: 0,
            withdrawn: 0,
            deepest: 0,
            trial: None,
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn longest_queue(&self) -> usize {
        self.queue.longest()
    }

    /// Whom of those who wait a free worker serves.
    pub(crate) fn serving(&self) -> Serving {
        self.queue.order().serving()
    }

    /// Since when it is so; `None`: since the start.
    pub(crate) fn serving_since(&self) -> Option<Instant> {
        self.queue.order().since()
    }

    /// How often that has changed.
    pub(crate) fn order_changes(&self) -> u64 {
        self.queue.order().changes()
    }

    pub(crate) fn idle(&self) -> usize {
        self.idle.len()
    }

    pub(crate) fn busy(&self) -> usize {
        self.busy
    }

    /// Busy workers of those that get requests: the depth of the stack. One that leaves or is stuck is no measure of
    /// what load needs.
    pub(crate) fn in_use(&self) -> usize {
        self.busy - self.withdrawn
    }

    /// The most workers that were in use at once since the last [`Balancer::take_deepest`].
    pub(crate) fn deepest(&self) -> usize {
        self.deepest
    }

    #[cfg(test)]
    pub(crate) fn is_waiting(&self, client: ClientKey) -> bool {
        self.queue.contains(client)
    }

    pub(crate) fn is_idle(&self, worker: WorkerKey) -> bool {
        self.idle.contains(worker.0)
    }

    /// When the next waiting request gives up.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.queue.next_deadline()
    }

    /// The idle worker that gets the next request.
    pub(crate) fn top(&self) -> Option<WorkerKey> {
        self.due_on_trial().or(self.idle.back().map(WorkerKey))
    }

    /// The worker on trial, if it is idle and its turn has come.
    fn due_on_trial(&self) -> Option<WorkerKey> {
        self.trial?.due().filter(|worker| self.idle.contains(worker.0))
    }

    /// The idle worker at the bottom of the stack, and since when load has not needed it.
    pub(crate) fn bottom(&self) -> Option<(WorkerKey, Instant)> {
        let worker = self.idle.front()?;
        let Some(WorkerState::Idle { since }) = self.standing[worker] else { return None };
        Some((WorkerKey(worker), since))
    }
}

/// Events in, decisions out.
impl Balancer {
    /// A whole request has arrived. If no worker is idle, it waits until `deadline`: [`Balancer::deadline`], or later
    /// where something more is waited for.
    pub(crate) fn submit(&mut self, client: ClientKey, deadline: Instant) -> Decision {
        let decision = match self.take_top() {
            Some(worker) => Decision::Assign { worker },
            None if self.queue.is_full() => Decision::Reject,
            None => {
                self.queue.add(client, deadline);
                Decision::Enqueue
            }
        };
        self.check();
        decision
    }

    /// A request is tried once more: with an idle worker, else before all that came after it, whatever the bound,
    /// since it was let in already. `deadline` is its first one.
    pub(crate) fn resubmit(&mut self, client: ClientKey, deadline: Instant) -> Decision {
        let decision = match self.take_top() {
            Some(worker) => Decision::Assign { worker },
            None => {
                self.queue.add_second_try(client, deadline);
                Decision::Enqueue
            }
        };
        self.check();
        decision
    }

    /// The deadline of a request that is submitted now.
    pub(crate) fn deadline(&self, now: Instant) -> Instant {
        self.queue.deadline(now)
    }

    /// A worker has joined. It serves the request that has waited longest; else it takes its predecessor's place in
    /// the stack: below it, which leaves, or on top if that one is busy, and would come back there. Without one it
    /// goes to the bottom: the coldest is not the first.
    pub(crate) fn join(
        &mut self,
        worker: WorkerKey,
        predecessor: Option<WorkerKey>,
        now: Instant,
    ) -> NextStep {
        if self.standing.len() <= worker.0 {
            self.standing.resize(worker.0 + 1, None);
        }
        debug_assert!(self.standing[worker.0].is_none(), "joined twice");
        let next = match self.queue.pop(now) {
            Some(client) => {
                self.standing[worker.0] = Some(WorkerState::Busy);
                self.busy += 1;
                self.has_turn(worker);
                NextStep::Dispatch { client }
            }
            None => {
                let place = predecessor.and_then(|old| Some((old, (*self.standing.get(old.0)?)?)));
                let since = match place {
                    Some((old, WorkerState::Idle { since })) => {
                        self.idle.insert_before(worker.0, old.0);
                        since
                    }
                    Some((_, WorkerState::Busy)) => {
                        self.idle.push_back(worker.0);
                        now
                    }
                    Some((_, WorkerState::Withdrawn)) | None => {
                        self.idle.push_front(worker.0);
                        now
                    }
                };
                self.standing[worker.0] = Some(WorkerState::Idle { since });
                NextStep::Idle
            }
        };
        self.check();
        next
    }

    /// A worker's answer has ended.
    pub(crate) fn release(&mut self, worker: WorkerKey, now: Instant) -> NextStep {
        let next = match self.standing.get(worker.0).copied().flatten() {
            Some(WorkerState::Busy) => match self.queue.pop(now) {
                Some(client) => {
                    self.has_turn(worker);
                    NextStep::Dispatch { client }
                }
                None => {
                    self.busy -= 1;
                    self.standing[worker.0] = Some(WorkerState::Idle { since: now });
                    self.put_back(worker);
                    NextStep::Idle
                }
            },
            Some(WorkerState::Withdrawn) => {
                self.remove(worker);
                NextStep::Retired
            }
            Some(WorkerState::Idle { .. }) | None => {
                debug_assert!(false, "released without work");
                NextStep::Idle
            }
        };
        self.check();
        next
    }

    /// A worker is to get no further request. `true`: it was idle, and is out at once; else [`Next::Leave`] comes
    /// with its release.
    pub(crate) fn withdraw(&mut self, worker: WorkerKey) -> bool {
        let is_out = match self.standing.get(worker.0).copied().flatten() {
            Some(WorkerState::Busy) => {
                self.standing[worker.0] = Some(WorkerState::Withdrawn);
                self.withdrawn += 1;
                false
            }
            Some(WorkerState::Withdrawn) => false,
            Some(WorkerState::Idle { .. }) | None => {
                self.remove(worker);
                true
            }
        };
        self.check();
        is_out
    }

    /// A worker that was withdrawn, and not replaced after all, may have requests again.
    pub(crate) fn readmit(&mut self, worker: WorkerKey, now: Instant) -> NextStep {
        match self.standing.get(worker.0).copied().flatten() {
            None => self.join(worker, None, now),
            Some(WorkerState::Withdrawn) => {
                self.standing[worker.0] = Some(WorkerState::Busy);
                self.withdrawn -= 1;
                self.deepest = self.deepest.max(self.in_use());
                NextStep::Idle
            }
            Some(WorkerState::Idle { .. } | WorkerState::Busy) => NextStep::Idle,
        }
    }

    /// A worker that joins now is on trial: of so many requests it gets one, and no more unless nobody else is idle.
    pub(crate) fn begin_trial(&mut self, worker: WorkerKey, every: usize) {
        self.trial = Some(Share::new(worker, every));
    }

    /// It is a worker like the others from now on.
    pub(crate) fn end_trial(&mut self) {
        self.trial = None;
    }

    /// A worker is gone, whatever it did.
    pub(crate) fn remove(&mut self, worker: WorkerKey) {
        if self.is_on_trial(worker) {
            self.trial = None;
        }
        match self.standing.get_mut(worker.0).and_then(Option::take) {
            Some(WorkerState::Idle { .. }) => {
                self.idle.remove(worker.0);
            }
            Some(WorkerState::Busy) => self.busy -= 1,
            Some(WorkerState::Withdrawn) => {
                self.busy -= 1;
                self.withdrawn -= 1;
            }
            None => {}
        }
        self.check();
    }

    /// A client is gone, or gets an answer without a worker: it is not dispatched. `true`: it had waited.
    pub(crate) fn forget(&mut self, client: ClientKey) -> bool {
        self.queue.forget(client)
    }

    /// A client that may have waited has left: it is not dispatched. `true`: it had waited.
    pub(crate) fn depart(&mut self, client: ClientKey, now: Instant) -> bool {
        self.queue.depart(client, now)
    }

    /// Takes one waiting request out whose time is up. To be called until there is none.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<ClientKey> {
        self.queue.expire(now)
    }

    /// How many workers were needed at once since the last call: the depth of the stack.
    pub(crate) fn take_deepest(&mut self) -> usize {
        let in_use = self.in_use();
        std::mem::replace(&mut self.deepest, in_use)
    }

    fn take_top(&mut self) -> Option<WorkerKey> {
        // Newest first: its caches are warm, and the oldest can retire.
        let worker = self.top()?;
        self.idle.remove(worker.0);
        self.standing[worker.0] = Some(WorkerState::Busy);
        self.busy += 1;
        self.has_turn(worker);
        Some(worker)
    }

    /// A worker gets a request.
    fn has_turn(&mut self, worker: WorkerKey) {
        self.deepest = self.deepest.max(self.in_use());
        if let Some(share) = &mut self.trial {
            share.note(worker);
        }
    }

    /// Onto the top of the stack; one on trial to its bottom.
    fn put_back(&mut self, worker: WorkerKey) {
        if self.is_on_trial(worker) { self.idle.push_front(worker.0) } else { self.idle.push_back(worker.0) }
    }

    fn is_on_trial(&self, worker: WorkerKey) -> bool {
        self.trial.is_some_and(|share| share.is_of(worker))
    }

    fn check(&self) {
        debug_assert!(self.queue.is_empty() || self.idle.is_empty(), "a request waits beside an idle worker");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: WorkerKey = WorkerKey(0);
    const B: WorkerKey = WorkerKey(1);
    const C: WorkerKey = WorkerKey(2);

    fn balancer_with(workers: &[WorkerKey], now: Instant) -> Balancer {
        let mut balancer = Balancer::new(2, Duration::from_millis(300), QueueRule::Adaptive);
        for &worker in workers {
            assert_eq!(balancer.join(worker, None, now), NextStep::Idle);
        }
        balancer
    }

    fn submit(balancer: &mut Balancer, client: usize, now: Instant) -> Decision {
        balancer.submit(ClientKey(client), balancer.deadline(now))
    }

    #[test]
    fn a_withdrawn_worker_that_is_not_replaced_serves_again() {
        let now = Instant::now();
        let mut balancer = balancer_with(&[A, B], now);
        assert_eq!(submit(&mut balancer, 0, now), Decision::Assign { worker: A });
        assert!(balancer.withdraw(B) && !balancer.withdraw(A));
        assert_eq!(submit(&mut balancer, 1, now), Decision::Enqueue);
        assert_eq!(balancer.readmit(B, now), NextStep::Dispatch { client: ClientKey(1) });
        assert_eq!(balancer.readmit(A, now), NextStep::Idle);
        assert_eq!((balancer.in_use(), balancer.busy()), (2, 2));
        assert_eq!(balancer.release(A, now), NextStep::Idle, "it stays");
        assert_eq!(submit(&mut balancer, 2, now), Decision::Assign { worker: A });
    }

    #[test]
    fn the_last_freed_is_next() {
        let now = Instant::now();
        let mut balancer = balancer_with(&[A, B], now);
        assert_eq!(submit(&mut balancer, 0, now), Decision::Assign { worker: A });
        assert_eq!(submit(&mut balancer, 1, now), Decision::Assign { worker: B });
        balancer.release(B, now);
        balancer.release(A, now);
        assert_eq!(submit(&mut balancer, 2, now), Decision::Assign { worker: A });
    }

    #[test]
    fn who_joins_goes_to_the_bottom_and_a_successor_into_its_predecessors_place() {
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let order = |balancer: &Balancer| balancer.idle.iter().collect::<Vec<_>>();
        let mut balancer = balancer_with(&[A, B], now);
        assert_eq!(order(&balancer), [B.0, A.0], "from the bottom: the coldest is not the first");
        // An idle one's.
        assert_eq!(balancer.join(C, Some(A), later), NextStep::Idle);
        balancer.withdraw(A);
        assert_eq!(order(&balancer), [B.0, C.0]);
        assert_eq!(balancer.join(A, Some(B), later), NextStep::Idle);
        balancer.withdraw(B);
        assert_eq!(order(&balancer), [A.0, C.0]);
        assert_eq!(balancer.bottom(), Some((A, now)), "unneeded for as long as the one before it");
        // A busy one comes back to the top.
        assert_eq!(submit(&mut balancer, 0, later), Decision::Assign { worker: C });
        assert_eq!(balancer.join(B, Some(C), later), NextStep::Idle);
        assert_eq!(order(&balancer), [A.0, B.0]);
    }

    #[test]
    fn who_leaves_or_is_stuck_is_not_needed() {
        let now = Instant::now();
        let mut balancer = balancer_with(&[A, B], now);
        submit(&mut balancer, 0, now);
        assert_eq!((balancer.take_deepest(), balancer.deepest()), (1, 1));
        balancer.withdraw(A);
        submit(&mut balancer, 1, now);
        assert_eq!((balancer.in_use(), balancer.busy(), balancer.take_deepest()), (1, 2, 1));
        assert_eq!(balancer.release(A, now), NextStep::Retired);
        assert_eq!((balancer.in_use(), balancer.busy()), (1, 1));
    }

    #[test]
    fn queued_client_gives_up_at_its_deadline_and_not_before() {
        let now = Instant::now();
        let mut balancer = balancer_with(&[], now);
        assert_eq!(submit(&mut balancer, 7, now), Decision::Enqueue);
        assert_eq!(balancer.expire(now + Duration::from_millis(299)), None);
        assert_eq!(balancer.expire(now + Duration::from_millis(300)), Some(ClientKey(7)));
    }

    #[test]
    fn full_queue_rejects_and_departed_clients_make_room() {
        let now = Instant::now();
        let mut balancer = balancer_with(&[], now);
        submit(&mut balancer, 0, now);
        submit(&mut balancer, 1, now);
        assert_eq!(submit(&mut balancer, 2, now), Decision::Reject);
        assert!(balancer.forget(ClientKey(0)));
        assert_eq!(submit(&mut balancer, 2, now), Decision::Enqueue);
        assert_eq!(balancer.join(A, None, now), NextStep::Dispatch { client: ClientKey(1) });
    }

    #[test]
    fn a_withdrawn_worker_leaves_when_its_answer_has_ended() {
        let now = Instant::now();
        let mut balancer = balancer_with(&[A, B], now);
        assert!(balancer.withdraw(A));
        assert_eq!(submit(&mut balancer, 0, now), Decision::Assign { worker: B });
        assert!(!balancer.withdraw(B));
        submit(&mut balancer, 1, now);
        assert_eq!(balancer.release(B, now), NextStep::Retired);
        assert_eq!(balancer.waiting(), 1);
    }

    #[test]
    fn a_second_try_goes_before_those_that_came_later() {
        let now = Instant::now();
        let mut balancer = balancer_with(&[A], now);
        let first = balancer.deadline(now);
        submit(&mut balancer, 0, now);
        let later = now + Duration::from_millis(10);
        submit(&mut balancer, 1, later);
        assert_eq!(balancer.resubmit(ClientKey(0), first), Decision::Enqueue);
        assert_eq!(balancer.release(A, later), NextStep::Dispatch { client: ClientKey(0) });
    }
}
