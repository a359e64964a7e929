//! Deadlines, O(1) to arm, to disarm and to expire. Each kind has one fixed duration, so its list is always sorted:
//! what is armed last is due last. A key has at most one deadline at a time, that of its state.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// The kinds of deadlines that a key can have: a small enum, made with [`deadline_kinds!`].
pub(crate) trait Kind: Copy + PartialEq + 'static {
    /// Each kind once, in the order of [`Kind::index`].
    const ALL: &'static [Self];
    fn index(self) -> usize;
}

/// An enum that is a [`Kind`], with all of its variants.
macro_rules! deadline_kinds {
    ($(#[$about:meta])* $visibility:vis enum $name:ident { $($(#[$when:meta])* $kind:ident,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $visibility enum $name { $($(#[$when])* $kind,)* }

        impl $crate::deadlines::Kind for $name {
            const ALL: &'static [Self] = &[$($name::$kind),*];
            fn index(self) -> usize {
                self as usize
            }
        }
    };
}
pub(crate) use deadline_kinds;

/// A list for each kind, threaded through the keys.
#[derive(Debug)]
pub(crate) struct Deadlines<K: Kind> {
    lists: Vec<List>,
    entries: Vec<Option<Entry<K>>>,
    /// When the next one is due. Computed once after each change, since each tick asks for it.
    next: Cell<NextDue>,
}

#[derive(Debug, Clone, Copy)]
enum NextDue {
    Known(Option<Instant>),
    Unknown,
}

/// The earliest of several deadlines.
pub(crate) fn earliest<const COUNT: usize>(deadlines: [Option<Instant>; COUNT]) -> Option<Instant> {
    let mut earliest = None;
    for deadline in deadlines {
        earliest = earlier(earliest, deadline);
    }
    earliest
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[derive(Debug)]
struct List {
    duration: Duration,
    first: Option<usize>,
    last: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Entry<K> {
    kind: K,
    due: Instant,
    before: Option<usize>,
    after: Option<usize>,
}

impl<K: Kind> Deadlines<K> {
    /// `duration`: how long each kind lasts.
    pub(crate) fn new(duration: impl Fn(K) -> Duration) -> Self {
        let list = |&kind| List { duration: duration(kind), first: None, last: None };
        Deadlines {
            lists: K::ALL.iter().map(list).collect(),
            entries: Vec::new(),
            next: Cell::new(NextDue::Known(None)),
        }
    }

    /// The deadline of `key`, if it has one.
    pub(crate) fn armed(&self, key: usize) -> Option<K> {
        self.entries.get(key).copied().flatten().map(|entry| entry.kind)
    }

    /// When `key` is due.
    pub(crate) fn due(&self, key: usize) -> Option<Instant> {
        self.entries.get(key).copied().flatten().map(|entry| entry.due)
    }

    /// The key of a kind that has been armed for the longest time.
    pub(crate) fn oldest(&self, kind: K) -> Option<usize> {
        self.lists[kind.index()].first
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        match self.next.get() {
            NextDue::Known(next) => next,
            NextDue::Unknown => {
                let mut next = None;
                for first in self.lists.iter().filter_map(|list| list.first) {
                    next = earlier(next, self.due(first));
                }
                self.next.set(NextDue::Known(next));
                next
            }
        }
    }

    /// Arms `key`. This replaces the deadline it had before.
    pub(crate) fn arm(&mut self, key: usize, kind: K, now: Instant) {
        self.disarm(key);
        if self.entries.len() <= key {
            self.entries.resize(key + 1, None);
        }
        let list = &mut self.lists[kind.index()];
        let before = list.last.replace(key);
        let due = now + list.duration;
        self.entries[key] = Some(Entry { kind, due, before, after: None });
        match before {
            Some(before) => self.update(before, |entry| entry.after = Some(key)),
            None => {
                list.first = Some(key);
                if let NextDue::Known(next) = self.next.get() {
                    self.next.set(NextDue::Known(earlier(next, Some(due))));
                }
            }
        }
    }

    pub(crate) fn disarm(&mut self, key: usize) {
        let Some(entry) = self.entries.get_mut(key).and_then(Option::take) else {
            return;
        };
        let list = &mut self.lists[entry.kind.index()];
        if entry.before.is_none() {
            list.first = entry.after;
            self.next.set(NextDue::Unknown);
        }
        if entry.after.is_none() {
            list.last = entry.before;
        }
        if let Some(before) = entry.before {
            self.update(before, |other| other.after = entry.after);
        }
        if let Some(after) = entry.after {
            self.update(after, |other| other.before = entry.before);
        }
    }

    /// Removes one key that is due. To be called until there is none.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<(usize, K)> {
        if self.next().is_none_or(|next| next > now) {
            return None;
        }
        let (key, kind) = self.lists.iter().filter_map(|list| list.first).find_map(|key| {
            let entry = self.entries.get(key).copied().flatten()?;
            (entry.due <= now).then_some((key, entry.kind))
        })?;
        self.disarm(key);
        Some((key, kind))
    }

    fn update(&mut self, key: usize, change: impl FnOnce(&mut Entry<K>)) {
        if let Some(Some(entry)) = self.entries.get_mut(key) {
            change(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    deadline_kinds! {
        #[derive(PartialOrd, Ord)]
        enum Two {
            Short,
            Long,
        }
    }

    fn duration(kind: Two) -> Duration {
        match kind {
            Two::Short => Duration::from_millis(20),
            Two::Long => Duration::from_millis(50),
        }
    }

    proptest! {
        /// Compares with a simple model: a map from key to due time, kind, and the step that armed it.
        #[test]
        fn each_fires_at_its_time_and_not_later(steps in prop::collection::vec((0..3u8, 0..6usize, 0..40u64), 1..200)) {
            let mut deadlines = Deadlines::new(duration);
            let (mut model, mut now) = (BTreeMap::new(), Instant::now());
            for (number, (step, key, wait_ms)) in steps.into_iter().enumerate() {
                now += Duration::from_millis(wait_ms);
                let mut fired = Vec::new();
                while let Some((key, kind)) = deadlines.expire(now) {
                    fired.push((key, kind));
                }
                fired.sort();
                let due: Vec<_> = model.iter().filter(|(_, (due, _, _))| *due <= now).map(|(&key, &(_, kind, _))| (key, kind)).collect();
                prop_assert_eq!(fired, due);
                model.retain(|_, (due, _, _)| *due > now);
                match step {
                    0 | 1 => {
                        let kind = if step == 0 { Two::Short } else { Two::Long };
                        deadlines.arm(key, kind, now);
                        model.insert(key, (now + duration(kind), kind, number));
                    }
                    _ => {
                        deadlines.disarm(key);
                        model.remove(&key);
                    }
                }
                prop_assert_eq!(deadlines.next(), model.values().map(|(due, _, _)| *due).min());
                for key in 0..6 {
                    let (due, kind) = model.get(&key).map(|&(due, kind, _)| (due, kind)).unzip();
                    prop_assert_eq!((deadlines.due(key), deadlines.armed(key)), (due, kind));
                }
                for &kind in Two::ALL {
                    let armed = model.iter().filter(|(_, (_, other, _))| *other == kind);
                    let oldest = armed.min_by_key(|(_, (_, _, number))| *number).map(|(&key, _)| key);
                    prop_assert_eq!(deadlines.oldest(kind), oldest);
                }
            }
        }
    }
}
