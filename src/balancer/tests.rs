//! The balancer's rules, one by one.

use super::*;

const A: WorkerKey = WorkerKey(0);
const B: WorkerKey = WorkerKey(1);
const C: WorkerKey = WorkerKey(2);

const ONE: Capacity = Capacity { places: 1, streams: None };

fn balancer_with(workers: &[WorkerKey], now: Instant) -> Balancer {
    let mut balancer = Balancer::new(2, Duration::from_millis(300), QueueRule::Adaptive);
    for &worker in workers {
        assert_eq!(balancer.join(worker, ONE, None, now), NextStep::Idle);
    }
    balancer
}

fn submit(balancer: &mut Balancer, client: usize, now: Instant) -> Decision {
    balancer.submit(ClientKey(client), Wish::Answer, balancer.deadline(now), now)
}

#[test]
fn a_withdrawn_worker_that_is_not_replaced_serves_again() {
    let now = Instant::now();
    let mut balancer = balancer_with(&[A, B], now);
    assert_eq!(submit(&mut balancer, 0, now), Decision::Assign { worker: A });
    assert!(balancer.withdraw(B) && !balancer.withdraw(A));
    assert_eq!(submit(&mut balancer, 1, now), Decision::Enqueue);
    assert_eq!(
        balancer.readmit(B, ONE, now),
        NextStep::Dispatch { client: ClientKey(1), wish: Wish::Answer }
    );
    assert_eq!(balancer.readmit(A, ONE, now), NextStep::Idle);
    assert_eq!((balancer.in_use(), balancer.busy()), (2, 2));
    assert_eq!(balancer.release(A, Wish::Answer, now), NextStep::Idle, "it stays");
    assert_eq!(submit(&mut balancer, 2, now), Decision::Assign { worker: A });
}

#[test]
fn as_many_workers_are_needed_as_have_places_for_all_that_wait() {
    let now = Instant::now();
    let mut balancer = Balancer::new(9, Duration::from_millis(300), QueueRule::Adaptive);
    balancer.join(A, Capacity { places: 2, streams: None }, None, now);
    let needed: Vec<usize> = (0..6)
        .map(|client| {
            submit(&mut balancer, client, now);
            balancer.needed_for_waiting()
        })
        .collect();
    assert_eq!(needed, [0, 0, 1, 1, 2, 2]);
}

#[test]
fn the_last_freed_is_next() {
    let now = Instant::now();
    let mut balancer = balancer_with(&[A, B], now);
    assert_eq!(submit(&mut balancer, 0, now), Decision::Assign { worker: A });
    assert_eq!(submit(&mut balancer, 1, now), Decision::Assign { worker: B });
    balancer.release(B, Wish::Answer, now);
    balancer.release(A, Wish::Answer, now);
    assert_eq!(submit(&mut balancer, 2, now), Decision::Assign { worker: A });
}

#[test]
fn who_joins_goes_to_the_bottom_and_a_successor_into_its_predecessors_place() {
    let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(1));
    let order = |balancer: &Balancer| balancer.stack().map(|worker| worker.0).collect::<Vec<_>>();
    let mut balancer = balancer_with(&[A, B], now);
    assert_eq!(order(&balancer), [A.0, B.0], "from the top: the coldest is not the first");
    // An idle one's.
    assert_eq!(balancer.join(C, ONE, Some(A), later), NextStep::Idle);
    balancer.withdraw(A);
    assert_eq!(order(&balancer), [C.0, B.0]);
    assert_eq!(balancer.join(A, ONE, Some(B), later), NextStep::Idle);
    balancer.withdraw(B);
    assert_eq!(order(&balancer), [C.0, A.0]);
    assert_eq!(balancer.bottom(), Some((A, now)), "unneeded for as long as the one before it");
    // A busy one comes back to the top.
    assert_eq!(submit(&mut balancer, 0, later), Decision::Assign { worker: C });
    assert_eq!(balancer.join(B, ONE, Some(C), later), NextStep::Idle);
    assert_eq!(order(&balancer), [B.0, A.0]);
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
    assert_eq!(balancer.release(A, Wish::Answer, now), NextStep::Retired);
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
    assert_eq!(
        balancer.join(A, ONE, None, now),
        NextStep::Dispatch { client: ClientKey(1), wish: Wish::Answer }
    );
}

#[test]
fn a_withdrawn_worker_leaves_when_its_answer_has_ended() {
    let now = Instant::now();
    let mut balancer = balancer_with(&[A, B], now);
    assert!(balancer.withdraw(A));
    assert_eq!(submit(&mut balancer, 0, now), Decision::Assign { worker: B });
    assert!(!balancer.withdraw(B));
    submit(&mut balancer, 1, now);
    assert_eq!(balancer.release(B, Wish::Answer, now), NextStep::Retired);
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
    assert_eq!(balancer.resubmit(ClientKey(0), first, now), Decision::Enqueue);
    assert_eq!(
        balancer.release(A, Wish::Answer, later),
        NextStep::Dispatch { client: ClientKey(0), wish: Wish::Answer }
    );
}

const THREE: Capacity = Capacity { places: 3, streams: Some(2) };

#[test]
fn the_worker_with_the_fewest_at_work_is_chosen_and_needed_counts_places() {
    let now = Instant::now();
    let mut balancer = Balancer::new(2, Duration::from_millis(300), QueueRule::Adaptive);
    for worker in [A, B] {
        balancer.join(worker, THREE, None, now);
    }
    let chosen: Vec<Decision> = (0..7).map(|client| submit(&mut balancer, client, now)).collect();
    let expected = [A, B, A, B, A, B].map(|worker| Decision::Assign { worker });
    assert_eq!(chosen, [&expected[..], &[Decision::Enqueue]].concat());
    assert_eq!(
        balancer.release(B, Wish::Answer, now),
        NextStep::Dispatch { client: ClientKey(6), wish: Wish::Answer }
    );
    assert_eq!((balancer.in_use(), balancer.take_deepest()), (2, 2));
    balancer.release(B, Wish::Answer, now);
    balancer.release(B, Wish::Answer, now);
    assert_eq!(submit(&mut balancer, 8, now), Decision::Assign { worker: B }, "one at work, not three");
    (0..3).for_each(|_| assert_eq!(balancer.release(A, Wish::Answer, now), NextStep::Idle));
    (0..2).for_each(|_| assert_eq!(balancer.release(B, Wish::Answer, now), NextStep::Idle));
    balancer.take_deepest();
    submit(&mut balancer, 9, now);
    assert_eq!(balancer.take_deepest(), 1, "four places at work would be two workers");
}

#[test]
fn a_joining_worker_serves_as_many_as_it_takes_at_once() {
    let now = Instant::now();
    let mut balancer = Balancer::new(8, Duration::from_millis(300), QueueRule::Adaptive);
    (0..4).for_each(|client| assert_ne!(submit(&mut balancer, client, now), Decision::Reject));
    assert_eq!(
        balancer.join(A, THREE, None, now),
        NextStep::Dispatch { client: ClientKey(0), wish: Wish::Answer }
    );
    assert_eq!(
        balancer.dispatch_more(A, now),
        NextStep::Dispatch { client: ClientKey(1), wish: Wish::Answer }
    );
    assert_eq!(
        balancer.dispatch_more(A, now),
        NextStep::Dispatch { client: ClientKey(2), wish: Wish::Answer }
    );
    assert_eq!((balancer.dispatch_more(A, now), balancer.waiting()), (NextStep::Idle, 1));
}

#[test]
fn after_a_busy_answer_a_worker_gets_nothing_and_what_is_in_it_goes_on() {
    let (now, later) = (Instant::now(), Instant::now() + Duration::from_millis(100));
    let mut balancer = Balancer::new(8, Duration::from_millis(300), QueueRule::Adaptive);
    balancer.join(A, THREE, None, now);
    (0..2).for_each(|client| assert_ne!(submit(&mut balancer, client, now), Decision::Reject));
    balancer.cool_down(A, later);
    assert_eq!(submit(&mut balancer, 2, now), Decision::Enqueue);
    assert_eq!(submit(&mut balancer, 3, now), Decision::Enqueue);
    assert_eq!(balancer.release(A, Wish::Answer, now), NextStep::Idle, "another answer's end");
    assert_eq!(
        balancer.release(A, Wish::Answer, later),
        NextStep::Dispatch { client: ClientKey(2), wish: Wish::Answer }
    );
    assert_eq!(
        balancer.dispatch_more(A, later),
        NextStep::Dispatch { client: ClientKey(3), wish: Wish::Answer }
    );
}

#[test]
fn streams_leave_their_places_and_spread() {
    let now = Instant::now();
    let mut balancer = Balancer::new(8, Duration::from_millis(300), QueueRule::Adaptive);
    let one = Capacity { places: 1, streams: Some(2) };
    for worker in [A, B] {
        balancer.join(worker, one, None, now);
    }
    let open = |balancer: &mut Balancer, client: usize| match balancer.submit(
        ClientKey(client),
        Wish::Stream,
        balancer.deadline(now),
        now,
    ) {
        Decision::Assign { worker } => {
            assert_eq!(balancer.begin_stream(worker, Wish::Stream, now), Some(NextStep::Idle));
            Some(worker)
        }
        other => {
            assert_eq!(other, Decision::RejectStream);
            None
        }
    };
    let workers: Vec<_> = (0..5).map(|client| open(&mut balancer, client)).collect();
    assert_eq!(workers, [Some(A), Some(B), Some(A), Some(B), None], "beyond the bound none");
    assert_eq!(
        (balancer.busy(), balancer.streams_of(A), balancer.streams_of(B)),
        (0, 2, 2),
        "they hold nobody"
    );
    assert_eq!(submit(&mut balancer, 9, now), Decision::Assign { worker: A }, "the other had one last");
    assert_eq!(balancer.begin_stream(A, Wish::Answer, now), None, "no more of them: it stays where it is");
    assert!(!balancer.withdraw(B), "its streams are something to do");
    assert_eq!(balancer.end_stream(B, now), NextStep::Idle);
    assert_eq!(balancer.end_stream(B, now), NextStep::Retired);
}

#[test]
fn a_request_for_a_stream_waits_for_the_one_worker_with_room_and_others_pass_it() {
    let now = Instant::now();
    let mut balancer = Balancer::new(8, Duration::from_millis(300), QueueRule::Adaptive);
    balancer.join(A, Capacity { places: 1, streams: Some(0) }, None, now);
    balancer.join(B, Capacity { places: 2, streams: Some(1) }, None, now);
    let deadline = balancer.deadline(now);
    let ask = |balancer: &mut Balancer, client: usize| {
        balancer.submit(ClientKey(client), Wish::Stream, deadline, now)
    };
    assert_eq!(ask(&mut balancer, 0), Decision::Assign { worker: B });
    assert_eq!(ask(&mut balancer, 1), Decision::Enqueue, "the room is spoken for, and may come free");
    assert_eq!(submit(&mut balancer, 2, now), Decision::Assign { worker: A });
    assert_eq!(submit(&mut balancer, 3, now), Decision::Assign { worker: B });
    assert_eq!(submit(&mut balancer, 4, now), Decision::Enqueue);
    let answer = NextStep::Dispatch { client: ClientKey(4), wish: Wish::Answer };
    assert_eq!(balancer.release(A, Wish::Answer, now), answer, "the one before it is not for this worker");
    let stream = NextStep::Dispatch { client: ClientKey(1), wish: Wish::Stream };
    assert_eq!(balancer.release(B, Wish::Stream, now), stream, "it was no stream after all");
    assert_eq!(ask(&mut balancer, 5), Decision::Enqueue);
    assert_eq!(balancer.begin_stream(B, Wish::Stream, now), Some(NextStep::Idle));
    assert_eq!(balancer.refuse_stream(now), Some(ClientKey(5)), "nobody has room any more");
    assert_eq!(ask(&mut balancer, 6), Decision::RejectStream);
}

#[test]
fn a_stream_waits_a_tenth_of_a_second_for_a_worker_that_has_fewer_and_opens_one() {
    let now = Instant::now();
    let mut balancer = Balancer::new(8, Duration::from_secs(1), QueueRule::Adaptive);
    let capacity = Capacity { places: 1, streams: Some(100) };
    let deadline = balancer.deadline(now);
    let ask = |balancer: &mut Balancer, client: usize| {
        balancer.submit(ClientKey(client), Wish::Stream, deadline, now)
    };
    balancer.join(A, capacity, None, now);
    assert_eq!(ask(&mut balancer, 0), Decision::Assign { worker: A });
    balancer.join(B, capacity, None, now);
    for client in 1..=6 {
        assert_eq!(ask(&mut balancer, client), Decision::Assign { worker: B }, "{client}");
        assert_eq!(balancer.begin_stream(B, Wish::Stream, now), Some(NextStep::Idle));
    }
    assert_eq!(ask(&mut balancer, 7), Decision::Enqueue, "it has five more than the other");
    let until = now + Duration::from_millis(100);
    assert_eq!(balancer.stream_deadline(now), Some(until));
    let before = until - Duration::from_nanos(1);
    assert_eq!((balancer.stream_deadline(before), balancer.next_stream(before)), (Some(until), None));
    assert_eq!(
        balancer.stream_deadline(until),
        None,
        "a deadline that has passed would come again and again"
    );
    assert_eq!(balancer.next_stream(until), Some((B, ClientKey(7))));
}

#[test]
#[should_panic(expected = "released without work")]
fn an_answer_that_ends_twice_is_a_bug_that_is_told() {
    let now = Instant::now();
    let mut balancer = balancer_with(&[A], now);
    submit(&mut balancer, 0, now);
    balancer.release(A, Wish::Answer, now);
    balancer.release(A, Wish::Answer, now);
}

#[test]
#[should_panic(expected = "a request waits beside a free place")]
fn a_request_that_waits_beside_a_free_place_is_a_bug_that_is_told() {
    let now = Instant::now();
    let mut balancer = balancer_with(&[A, B], now);
    balancer.queue.add(ClientKey(0), Wish::Answer, now);
    submit(&mut balancer, 1, now);
}
