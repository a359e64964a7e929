//! What can be asked of the balancer. Nothing here changes it.

use super::*;

/// Streams that a worker may have more than another one that opens some right now, and take one more.
const MAX_LEAD: usize = 4;

impl Balancer {
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// How many workers more would have places for all that wait.
    pub(crate) fn needed_for_waiting(&self) -> usize {
        self.queue.len().div_ceil(self.places_each)
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

    pub(crate) fn order_changes(&self) -> u64 {
        self.queue.order().changes()
    }

    /// Whether a request that came now would be assigned at once.
    pub(crate) fn has_free_place(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether a worker has a place free.
    pub(crate) fn has_place(&self, worker: WorkerKey) -> bool {
        self.get(worker).is_some_and(|entry| entry.at_work < entry.capacity.places)
    }

    /// Workers with anything at work, streams aside.
    pub(crate) fn busy(&self) -> usize {
        self.busy
    }

    /// Those of them that get requests: the depth of the stack. One that leaves or is stuck is no measure of what load
    /// needs.
    pub(crate) fn in_use(&self) -> usize {
        self.busy - self.withdrawn
    }

    /// The most workers that were needed at once since the last [`Balancer::take_deepest`].
    pub(crate) fn deepest(&self) -> usize {
        self.most_places_at_work.div_ceil(self.places_each)
    }

    /// Those of a stack that wait for a request.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn idle(&self) -> usize {
        self.free.idle()
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn is_waiting(&self, client: ClientKey) -> bool {
        self.queue.contains(client)
    }

    /// It may be given requests, and has none.
    pub(crate) fn is_idle(&self, worker: WorkerKey) -> bool {
        self.free.contains(0, worker)
    }

    /// Event streams and tunnels that a worker holds beside its requests.
    pub(crate) fn streams_of(&self, worker: WorkerKey) -> usize {
        self.get(worker).map_or(0, |entry| entry.streams)
    }

    /// Whether a worker may be given one more stream: it has room, and not many more than another one that is about to be
    /// free for it. A burst of streams would else fill whichever worker the machine happens to run.
    pub(super) fn may_take_stream(&self, worker: WorkerKey, now: Instant) -> bool {
        let Some(entry) = self.get(worker).filter(|entry| entry.has_room_for_stream()) else { return false };
        let fewest = self.opening(now).map(|(other, _)| other.streams_to_be()).min();
        fewest.is_none_or(|fewest| entry.streams_to_be() <= fewest + MAX_LEAD)
    }

    /// Workers that open streams right now, and until when they count as such.
    fn opening(&self, now: Instant) -> impl Iterator<Item = (&Worker, Instant)> {
        let is_admitted = |other: &&Worker| matches!(other.state, WorkerState::Admitted { .. });
        let admitted = self.workers.iter().flatten().filter(is_admitted);
        let opening = admitted.filter_map(|other| other.opens_until().map(|until| (other, until)));
        opening.filter(move |(_, until)| now < *until)
    }

    /// When a worker is looked at again that has a place free, and has not taken a stream that waits.
    pub(crate) fn stream_deadline(&self, now: Instant) -> Option<Instant> {
        if !self.queue.has_stream() {
            return None;
        }
        let room = |worker: &WorkerKey| self.get(*worker).is_some_and(Worker::has_room_for_stream);
        self.free.in_order().find(room)?;
        self.opening(now).map(|(_, until)| until).min()
    }

    /// There are workers, and none of them may hold a further stream.
    pub(super) fn are_all_full_of_streams(&self) -> bool {
        let all = self.workers.iter().flatten().filter(|entry| entry.state != WorkerState::Withdrawn);
        let mut all = all.peekable();
        all.peek().is_some() && all.all(Worker::is_full_of_streams)
    }

    /// When the next waiting request gives up.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.queue.next_deadline()
    }

    /// The worker that gets the next request.
    pub(crate) fn top(&self) -> Option<WorkerKey> {
        match &self.trial {
            None => self.free.top(),
            Some(share) => self.top_beside_trial(share),
        }
    }

    /// The workers that have a place free, in the order in which they would be chosen.
    pub(crate) fn stack(&self) -> impl Iterator<Item = WorkerKey> + '_ {
        self.free.in_order()
    }

    /// The worker on trial, if it is free and its turn has come; else it is the last choice.
    pub(super) fn top_beside_trial(&self, share: &Share) -> Option<WorkerKey> {
        let is_free = |worker: &WorkerKey| {
            self.get(*worker).is_some_and(|entry| self.free.contains(entry.at_work, *worker))
        };
        let due = share.due().filter(is_free);
        let other = || self.free.in_order().find(|worker| !share.is_of(*worker));
        due.or_else(other).or_else(|| self.free.top())
    }

    /// The idle worker at the bottom of the stack, and since when load has not needed it.
    pub(crate) fn bottom(&self) -> Option<(WorkerKey, Instant)> {
        let worker = self.free.bottom()?;
        match self.get(worker)?.state {
            WorkerState::Admitted { since } => Some((worker, since)),
            WorkerState::CoolingDown { .. } | WorkerState::Withdrawn => None,
        }
    }

    /// The deadline of a request that is submitted now.
    pub(crate) fn deadline(&self, now: Instant) -> Instant {
        self.queue.deadline(now)
    }

    pub(super) fn get(&self, worker: WorkerKey) -> Option<&Worker> {
        self.workers.get(worker.0)?.as_ref()
    }
}
