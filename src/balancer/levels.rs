//! Workers with a free place, by how many requests each has at work: a list a level, and the lowest level that has
//! anybody, in O(1).

use crate::keys::WorkerKey;
use crate::list::KeyList;

#[derive(Debug, Default)]
pub(super) struct Levels {
    /// By the number of requests at work; of each the one freed last is at the back. As long as the highest level that
    /// was ever used, so at most the bound of `c:`.
    lists: Vec<KeyList>,
    /// A bit for each level that has anybody.
    occupied: Vec<u64>,
}

impl Levels {
    pub(super) fn is_empty(&self) -> bool {
        self.lowest().is_none()
    }

    /// The worker with the fewest requests at work; among equals the one freed last.
    pub(super) fn top(&self) -> Option<WorkerKey> {
        self.lists[self.lowest()?].back().map(WorkerKey)
    }

    /// The worker with nothing at work that was freed first.
    pub(super) fn bottom(&self) -> Option<WorkerKey> {
        self.lists.first()?.front().map(WorkerKey)
    }

    /// Workers with nothing at work.
    #[cfg(any(test, fuzzing))]
    pub(super) fn idle(&self) -> usize {
        self.lists.first().map_or(0, KeyList::len)
    }

    /// In the order in which they would be chosen.
    pub(super) fn in_order(&self) -> impl Iterator<Item = WorkerKey> + '_ {
        self.lists.iter().flat_map(KeyList::iter_back).map(WorkerKey)
    }

    pub(super) fn contains(&self, level: usize, worker: WorkerKey) -> bool {
        self.lists.get(level).is_some_and(|list| list.contains(worker.0))
    }

    pub(super) fn push_top(&mut self, level: usize, worker: WorkerKey) {
        self.list(level).push_back(worker.0);
    }

    pub(super) fn push_bottom(&mut self, level: usize, worker: WorkerKey) {
        self.list(level).push_front(worker.0);
    }

    /// Right below `at`, which has nothing at work either.
    pub(super) fn insert_below(&mut self, worker: WorkerKey, at: WorkerKey) {
        self.list(0).insert_before(worker.0, at.0);
    }

    /// `false`: it was not there.
    pub(super) fn remove(&mut self, level: usize, worker: WorkerKey) -> bool {
        let Some(list) = self.lists.get_mut(level) else { return false };
        let was_there = list.remove(worker.0);
        if list.is_empty() {
            self.occupied[level / 64] &= !(1 << (level % 64));
        }
        was_there
    }

    /// The list of a level that is about to have somebody.
    fn list(&mut self, level: usize) -> &mut KeyList {
        if self.lists.len() <= level {
            self.lists.resize_with(level + 1, KeyList::default);
            self.occupied.resize(level / 64 + 1, 0);
        }
        self.occupied[level / 64] |= 1 << (level % 64);
        &mut self.lists[level]
    }

    /// A look at sixteen words at most.
    fn lowest(&self) -> Option<usize> {
        let word = self.occupied.iter().position(|&word| word != 0)?;
        Some(word * 64 + self.occupied[word].trailing_zeros() as usize)
    }
}
