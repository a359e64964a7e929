//! Whoever has more to do without a new event: it used up the tick's budget, or something that it waited for has come.

use super::token::Target;

#[derive(Debug, Default)]
pub(crate) struct ReadyList {
    targets: Vec<Target>,
    /// The list of the turn before, empty: the two take turns, so that neither is allocated anew.
    spare: Vec<Target>,
}

impl ReadyList {
    pub(crate) fn push(&mut self, target: Target) {
        self.targets.push(target);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// All that are to go on in this tick, each once: whoever has an event besides is pushed twice, and would else be
    /// pushed once more in each tick, until all its budgets together keep everybody else waiting.
    pub(crate) fn take(&mut self) -> Vec<Target> {
        let mut targets = std::mem::replace(&mut self.targets, std::mem::take(&mut self.spare));
        targets.sort_unstable();
        targets.dedup();
        targets
    }

    /// Gives the list back that [`Again::take`] gave.
    pub(crate) fn give_back(&mut self, mut targets: Vec<Target>) {
        targets.clear();
        self.spare = targets;
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn contains(&self, target: &Target) -> bool {
        self.targets.contains(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{ClientKey, UpstreamKey};

    #[test]
    fn whoever_is_pushed_twice_goes_on_once() {
        let mut ready = ReadyList::default();
        let (client, worker) = (Target::Client(ClientKey(3)), Target::Upstream(UpstreamKey(3)));
        for _ in 0..3 {
            ready.push(client);
            ready.push(worker);
        }
        let taken = ready.take();
        assert_eq!((taken.len(), taken.contains(&client), taken.contains(&worker)), (2, true, true));
        ready.give_back(taken);
        assert!(ready.is_empty() && ready.take().is_empty());
    }

    #[test]
    fn whoever_is_pushed_while_the_list_is_worked_on_is_in_the_next_one() {
        let mut ready = ReadyList::default();
        let (client, worker) = (Target::Client(ClientKey(1)), Target::Upstream(UpstreamKey(2)));
        ready.push(client);
        let taken = ready.take();
        ready.push(worker);
        assert!(!ready.is_empty() && ready.contains(&worker) && !ready.contains(&client));
        ready.give_back(taken);
        assert_eq!(ready.take(), [worker]);
        assert!(ready.take().capacity() > 0, "the two lists are used in turns");
    }
}
