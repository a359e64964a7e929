//! A doubly linked list of slab keys. Every operation is O(1), and nothing is allocated once the slab has its full
//! size.

/// A list of keys, each at most once.
#[derive(Debug, Default)]
pub(crate) struct KeyList {
    links: Vec<Option<Link>>,
    front: Option<u32>,
    back: Option<u32>,
    len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    before: Option<u32>,
    after: Option<u32>,
}

impl KeyList {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn contains(&self, key: usize) -> bool {
        self.links.get(key).is_some_and(Option::is_some)
    }

    pub(crate) fn front(&self) -> Option<usize> {
        self.front.map(|key| key as usize)
    }

    pub(crate) fn back(&self) -> Option<usize> {
        self.back.map(|key| key as usize)
    }

    /// The key after `key`.
    pub(crate) fn after(&self, key: usize) -> Option<usize> {
        self.links.get(key).copied().flatten().and_then(|link| link.after).map(|key| key as usize)
    }

    pub(crate) fn push_back(&mut self, key: usize) {
        self.link(key, self.back, None);
    }

    pub(crate) fn push_front(&mut self, key: usize) {
        self.link(key, None, self.front);
    }

    /// Inserts `key` before `at`, which is in the list.
    pub(crate) fn insert_before(&mut self, key: usize, at: usize) {
        let before = self.links.get(at).copied().flatten().and_then(|link| link.before);
        self.link(key, before, Some(at as u32));
    }

    pub(crate) fn pop_front(&mut self) -> Option<usize> {
        let key = self.front()?;
        self.remove(key);
        Some(key)
    }

    pub(crate) fn pop_back(&mut self) -> Option<usize> {
        let key = self.back()?;
        self.remove(key);
        Some(key)
    }

    /// Removes `key`. `false`: it was not in the list.
    pub(crate) fn remove(&mut self, key: usize) -> bool {
        let Some(link) = self.links.get_mut(key).and_then(Option::take) else {
            return false;
        };
        match link.before {
            Some(before) => self.update(before, |link_before| link_before.after = link.after),
            None => self.front = link.after,
        }
        match link.after {
            Some(after) => self.update(after, |link_after| link_after.before = link.before),
            None => self.back = link.before,
        }
        self.len -= 1;
        true
    }

    /// From back to front.
    pub(crate) fn iter_back(&self) -> impl Iterator<Item = usize> + '_ {
        let before = |&key: &usize| self.links.get(key).copied().flatten()?.before.map(|key| key as usize);
        std::iter::successors(self.back(), before)
    }

    /// From front to back.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(self.front(), |&key| self.after(key))
    }

    fn link(&mut self, key: usize, before: Option<u32>, after: Option<u32>) {
        debug_assert!(!self.contains(key), "{key} is in the list already");
        if self.links.len() <= key {
            self.links.resize(key + 1, None);
        }
        self.links[key] = Some(Link { before, after });
        // Slab keys are far below 2^32: each stands for a descriptor.
        let own = Some(key as u32);
        match before {
            Some(before) => self.update(before, |link| link.after = own),
            None => self.front = own,
        }
        match after {
            Some(after) => self.update(after, |link| link.before = own),
            None => self.back = own,
        }
        self.len += 1;
    }

    fn update(&mut self, key: u32, change: impl FnOnce(&mut Link)) {
        if let Some(Some(link)) = self.links.get_mut(key as usize) {
            change(link);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn behaves_like_a_deque(steps in prop::collection::vec((0..6u8, 0..8usize), 0..200)) {
            let (mut list, mut model) = (KeyList::default(), VecDeque::new());
            for (step, key) in steps {
                let is_in = model.contains(&key);
                match step {
                    0 if !is_in => { list.push_back(key); model.push_back(key) }
                    1 if !is_in => { list.push_front(key); model.push_front(key) }
                    2 => prop_assert_eq!(list.pop_front(), model.pop_front()),
                    3 => prop_assert_eq!(list.pop_back(), model.pop_back()),
                    4 => { prop_assert_eq!(list.remove(key), is_in); model.retain(|&other| other != key) }
                    5 if !is_in && !model.is_empty() => {
                        let at = key % model.len();
                        list.insert_before(key, model[at]);
                        model.insert(at, key);
                    }
                    _ => {}
                }
                prop_assert_eq!(list.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                prop_assert!(list.iter_back().eq(model.iter().rev().copied()));
                prop_assert_eq!(list.len(), model.len());
                prop_assert_eq!(list.back(), model.back().copied());
            }
        }
    }
}
