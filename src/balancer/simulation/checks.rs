//! What the balancer tells of itself, compared with the model after each step.

use super::*;

/// The most requests at work at once with workers that get more, since the last look at it.
#[derive(Debug, Default)]
pub(super) struct Depth {
    most_places: usize,
}

impl Depth {
    pub(super) fn check(&mut self, balancer: &mut Balancer, model: &Model, context: Step) {
        self.most_places = self.most_places.max(model.places_at_work());
        let needed = self.most_places.div_ceil(model.places_each);
        assert_eq!(balancer.deepest(), needed, "{context}: so many workers have the places that were needed");
        // Somebody looks now and then, and wants to know it of the time from there on.
        if context.step % 16 == 15 {
            assert_eq!(balancer.take_deepest(), needed, "{context}");
            self.most_places = model.places_at_work();
        }
    }
}

/// `client`: one of those that have come.
pub(super) fn check(balancer: &Balancer, model: &Model, client: ClientKey, now: Instant, context: Step) {
    check_workers(balancer, model, context);
    check_queue(balancer, model, client, now, context);
    assert_eq!(balancer.stream_deadline(now), model.stream_deadline(now), "{context}");
    assert_eq!(balancer.serving(), model.order.serving(), "{context}");
    assert_eq!(balancer.serving_since(), model.order.since(), "{context}");
    assert_eq!(balancer.order_changes(), model.order.changes(), "{context}");
}

fn check_workers(balancer: &Balancer, model: &Model, context: Step) {
    let free = model.free();
    assert_eq!(balancer.stack().collect::<Vec<_>>(), free, "{context}: the order");
    assert_eq!(balancer.top(), model.top(), "{context}: who is next");
    assert_eq!(balancer.has_free_place(), !free.is_empty(), "{context}");
    assert_eq!(balancer.bottom(), model.bottom(), "{context}: who is not needed, and for how long");
    assert_eq!((balancer.idle(), balancer.busy(), balancer.waiting()), model.counts(), "{context}");
    let in_use = model.workers.iter().filter(|worker| worker.at_work > 0 && !worker.is_withdrawn);
    assert_eq!(balancer.in_use(), in_use.count(), "{context}: who is withdrawn is no measure");
    assert_eq!(balancer.places_at_work, model.places_at_work(), "{context}");
    for worker in &model.workers {
        assert!(worker.at_work <= worker.capacity.places, "{context}: more than it takes at once");
        assert_eq!(balancer.streams_of(worker.key), worker.streams, "{context}");
        let is_idle = worker.at_work == 0 && free.contains(&worker.key);
        assert_eq!(balancer.is_idle(worker.key), is_idle, "{context}");
    }
    let stranger = (0..).map(WorkerKey).find(|key| model.worker(*key).is_none()).expect("a free key");
    assert!(!balancer.is_idle(stranger), "{context}: nobody is there");
    assert_eq!(balancer.streams_of(stranger), 0, "{context}: nobody is there");
}

fn check_queue(balancer: &Balancer, model: &Model, client: ClientKey, now: Instant, context: Step) {
    let waiting = model.waiting();
    let is_waiting = waiting.iter().any(|(other, _)| *other == client);
    assert_eq!(balancer.is_waiting(client), is_waiting, "{context}");
    assert!(waiting.iter().all(|(client, _)| balancer.is_waiting(*client)), "{context}");
    assert_eq!(balancer.longest_queue(), model.longest_queue, "{context}");
    assert_eq!(balancer.needed_for_waiting(), waiting.len().div_ceil(model.places_each), "{context}");
    assert_eq!(balancer.next_deadline(), model.next_deadline(), "{context}");
    assert_eq!(balancer.deadline(now), now + TIMEOUT, "{context}");
}
