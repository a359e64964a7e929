//! What connections wait for, and for how long.

use super::*;

#[test]
fn each_deadline_comes_after_its_time() {
    use UpstreamDeadline::*;
    let mut room = Room::new();
    let upstream = room.begin(WORKER, "GET / HTTP/1.1", b"");
    let start = room.io.now();
    for (kind, after_ms) in
        [(Read, 500), (Idle, 3000), (Stall, 1700), (Connect, 5), (Cooldown, 100), (Probe, 50), (Exit, 2000)]
    {
        room.backend.arm(upstream, kind, start);
        assert_eq!(room.backend.armed(upstream), Some(kind));
        assert_eq!(room.backend.next_deadline(), Some(start + ms(after_ms)), "{kind:?}");
        assert_eq!(room.backend.expire(start + ms(after_ms) - ms(1)), None);
        assert_eq!(room.backend.expire(start + ms(after_ms)), Some((upstream, kind)));
        assert_eq!(room.backend.armed(upstream), None);
    }
    room.backend.arm_question(upstream, start);
    assert_eq!(room.backend.next_deadline(), Some(start + ms(50)));
    assert_eq!(room.backend.expire_question(start + ms(49)), None);
    assert_eq!(room.backend.expire_question(start + ms(50)), Some(upstream));
    assert_eq!(room.backend.next_deadline(), None);
}

#[test]
fn the_time_of_an_answer_that_nobody_waits_for_is_not_set_back() {
    let mut room = Room::new();
    let upstream = room.begin(WORKER, "GET / HTTP/1.1", b"");
    let start = room.io.now();
    room.backend.arm(upstream, UpstreamDeadline::Read, start);
    room.backend.arm_stall(upstream, start);
    let due = room.backend.next_deadline();
    assert_eq!(due, Some(start + ms(1700)));
    room.backend.arm_stall(upstream, start + ms(10));
    room.backend.note_progress(upstream, start + ms(10));
    room.backend.answer_goes_on(upstream, start + ms(10));
    assert_eq!(
        (room.backend.armed(upstream), room.backend.next_deadline()),
        (Some(UpstreamDeadline::Stall), due)
    );
}

#[test]
fn a_worker_that_takes_bytes_or_gives_some_has_its_time_anew() {
    use UpstreamDeadline::*;
    let mut room = Room::new();
    let (upstream, wire) = room.ask("GET / HTTP/1.1", b"");
    let start = room.io.now();
    assert_eq!(room.backend.next_deadline(), Some(start + ms(500)), "since its request began");
    room.backend.note_progress(upstream, start + ms(10));
    assert_eq!(room.backend.next_deadline(), Some(start + ms(510)));
    room.backend.answer_goes_on(upstream, start + ms(20));
    assert_eq!((room.backend.armed(upstream), room.due_in(upstream)), (Some(Read), Some(ms(520))));
    room.backend.arm(upstream, Cooldown, start);
    room.backend.note_progress(upstream, start + ms(30));
    assert_eq!(room.due_in(upstream), Some(ms(100)), "only the wait for its answer");
    room.hear(upstream, &wire, EVENTS);
    room.backend.answer_goes_on(upstream, start + ms(40));
    assert_eq!((room.backend.armed(upstream), room.due_in(upstream)), (Some(Idle), Some(ms(3040))));
}
