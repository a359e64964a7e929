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
            let (word, bit) = place(level);
            self.occupied[word] &= !bit;
        }
        was_there
    }

    /// The list of a level that is about to have somebody.
    fn list(&mut self, level: usize) -> &mut KeyList {
        let (word, bit) = place(level);
        if self.lists.len() <= level {
            self.lists.resize_with(level + 1, KeyList::default);
            self.occupied.resize(word + 1, 0);
        }
        self.occupied[word] |= bit;
        &mut self.lists[level]
    }

    /// A look at sixteen words at most.
    fn lowest(&self) -> Option<usize> {
        let word = self.occupied.iter().position(|&word| word != 0)?;
        Some(word * 64 + self.occupied[word].trailing_zeros() as usize)
    }
}

/// The word of a level, and its bit in there.
fn place(level: usize) -> (usize, u64) {
    (level / 64, 1 << (level % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, VecDeque};

    /// On both sides of the words' borders, and the highest that `c:` allows.
    const LEVELS: [usize; 8] = [0, 1, 63, 64, 65, 127, 128, 1023];

    proptest! {
        /// Compares with a simple model: a deque a level, the one freed last at the front.
        #[test]
        fn the_fewest_at_work_come_first_and_of_those_the_last_freed(
            steps in prop::collection::vec((0..4u8, 0..LEVELS.len(), 0..5usize), 1..100)
        ) {
            let (mut levels, mut model) = (Levels::default(), BTreeMap::<usize, VecDeque<usize>>::new());
            for (step, level, key) in steps {
                let (level, worker) = (LEVELS[level], WorkerKey(key));
                let was_at = model.iter().find(|(_, list)| list.contains(&key)).map(|(level, _)| *level);
                match (step, was_at) {
                    (0, None) => {
                        levels.push_top(level, worker);
                        model.entry(level).or_default().push_front(key);
                    }
                    (1, None) => {
                        levels.push_bottom(level, worker);
                        model.entry(level).or_default().push_back(key);
                    }
                    (2, None) => {
                        let idle = model.entry(0).or_default();
                        if let Some(&at) = idle.back() {
                            levels.insert_below(worker, WorkerKey(at));
                            idle.push_back(key);
                        }
                    }
                    _ => {
                        prop_assert_eq!(levels.remove(level, worker), was_at == Some(level));
                        model.entry(level).or_default().retain(|other| *other != key);
                    }
                }
                let expected: Vec<WorkerKey> = model.values().flatten().copied().map(WorkerKey).collect();
                prop_assert_eq!(levels.in_order().collect::<Vec<_>>(), expected.clone());
                prop_assert_eq!((levels.top(), levels.is_empty()), (expected.first().copied(), expected.is_empty()));
                let idle = model.get(&0);
                prop_assert_eq!(levels.idle(), idle.map_or(0, VecDeque::len));
                prop_assert_eq!(levels.bottom(), idle.and_then(|idle| idle.back().copied()).map(WorkerKey));
                for level in LEVELS {
                    let is_there = model.get(&level).is_some_and(|list| list.contains(&key));
                    prop_assert_eq!(levels.contains(level, worker), is_there);
                }
            }
        }
    }
}
