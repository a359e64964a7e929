//! Who is told of progress, and who looks at the page.

use super::*;

#[test]
fn followers_hear_of_each_step_that_they_have_room_for_and_of_the_end() {
    let mut office = Office::new();
    let (roll, roll_wire) = office.asked(OWN, 10_000, ASK);
    let (upgrade, upgrade_wire) = office.asked(OWN, 10_000, ASK);
    let (slow, slow_wire) = office.asked(OWN, 0, ASK);
    office.admin.follow_roll(roll.key);
    office.admin.follow_upgrade(upgrade.key);
    office.admin.follow_roll(slow.key);
    office.admin.flush(upgrade.key, &office.io);
    office.admin.flush(roll.key, &office.io);
    let head = said(&roll_wire);
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("x-ndjson"), "{head}");
    assert!(office.admin.connections.slab[roll.key].follows_roll());
    assert!(!office.admin.connections.slab[upgrade.key].follows_roll());
    office.admin.tell_roll_progress(1, 4, &office.io);
    assert_eq!(said(&roll_wire), "{\"of\":4,\"replaced\":1}\n");
    assert_eq!(office.armed(roll.key), None, "it waits for the server");
    let take = Some((ControlDeadline::Take, seconds(3)));
    assert_eq!(office.armed(slow.key), take);
    office.admin.tell_trial(Some((2, 42)), 10, &office.io);
    assert_eq!(said(&roll_wire), "{\"every\":10,\"pid\":42,\"worker\":2}\n");
    office.admin.tell_upgrade_progress(2, 4, &office.io);
    assert!(said(&upgrade_wire).ends_with("\r\n\r\n{\"of\":4,\"serving\":2}\n"));
    assert_eq!(said(&roll_wire), "");

    office.pass(1000);
    office.admin.tell_roll_progress(2, 4, &office.io);
    assert_eq!(office.armed(slow.key), Some((ControlDeadline::Take, seconds(2))), "it has taken nothing");
    let slow_out =
        |office: &Office| String::from_utf8_lossy(&office.admin.connections.slab[slow.key].out).into_owned();
    assert!(!slow_out(&office).contains("replaced"), "progress is left out for it");
    office.admin.answer_roll_followers(&Ok(4), &office.io);
    assert!(slow_out(&office).ends_with("\r\n\r\n{\"ok\":true,\"replaced\":4}\n"), "its end is not");
    assert!(said(&roll_wire).ends_with("{\"ok\":true,\"replaced\":4}\n"));
    assert_eq!(office.phase(roll.key), Phase::Closed);
    slow_wire.borrow_mut().set_capacity(1000);
    office.tell(&slow_wire);
    assert_eq!(office.phase(slow.key), Phase::Closed);
    office.admin.answer_upgrade_followers(&Err("no".into()), &office.io);
    assert_eq!(said(&upgrade_wire), "{\"error\":\"no\",\"ok\":false}\n");

    let (roll, wire) = office.asked(OWN, 10_000, ASK);
    office.admin.follow_roll(roll.key);
    office.admin.flush(roll.key, &office.io);
    office.admin.tell_trial(None, 10, &office.io);
    office.admin.answer_roll_followers(&Err("no".into()), &office.io);
    assert!(
        said(&wire)
            .ends_with("{\"every\":10,\"pid\":null,\"worker\":null}\n{\"error\":\"no\",\"ok\":false}\n")
    );
    let (upgrade, wire) = office.asked(OWN, 10_000, ASK);
    office.admin.follow_upgrade(upgrade.key);
    office.admin.answer_upgrade_followers(&Ok(42), &office.io);
    assert!(said(&wire).ends_with("{\"ok\":true,\"pid\":42}\n"));
}

#[test]
fn a_follower_gets_progress_up_to_a_bound() {
    let mut office = Office::new();
    let (ask, _wire) = office.asked(OWN, 0, ASK);
    office.admin.connections.slab[ask.key].phase = Phase::FollowsRoll;
    let out_bytes = |office: &Office| office.admin.connections.slab[ask.key].out.len();
    let line = "{\"of\":40,\"replaced\":11}\n".len();
    for lines in [1, 2, 3, 3] {
        office.admin.tell_roll_progress(11, 40, &office.io);
        assert_eq!(out_bytes(&office), lines * line);
    }
    office.admin.connections.slab[ask.key].out.resize(64, b' ');
    office.admin.tell_roll_progress(11, 40, &office.io);
    assert_eq!(out_bytes(&office), 64, "so much may wait");
}

#[test]
fn whoever_waits_for_news_and_goes_is_closed() {
    for begin in [Admin::follow_roll, Admin::follow_upgrade, Admin::await_end] {
        let mut office = Office::new();
        let (ask, wire) = office.asked(OWN, 10_000, ASK);
        begin(&mut office.admin, ask.key);
        office.admin.flush(ask.key, &office.io);
        said(&wire);
        assert!(!office.admin.connections.slab[ask.key].waits_for_peer());
        wire.borrow_mut().end();
        office.tell(&wire);
        assert_ne!(office.phase(ask.key), Phase::Closed, "it may be a half-close");
        wire.borrow_mut().close();
        office.tell(&wire);
        assert_eq!(office.phase(ask.key), Phase::Closed);
    }
}

/// A viewer that takes so much at once.
pub(super) fn viewer(office: &mut Office, room_bytes: usize) -> (usize, Shared) {
    let (ask, wire) = office.asked(ControlPeer::Viewer, room_bytes, ASK);
    office.admin.begin_watching(ask.key, "head\r\n\r\n");
    office.admin.flush(ask.key, &office.io);
    (ask.key, wire)
}

#[test]
fn viewers_get_an_event_a_second_and_no_more_than_one_waits_for_each() {
    let mut office = Office::new();
    let now = office.io.now();
    assert_eq!((office.admin.viewers(), office.admin.next_deadline()), (0, None));
    office.admin.set_next_event(now);
    assert!(!office.admin.is_event_due(now), "nobody is there");
    let (quick, quick_wire) = viewer(&mut office, 10_000);
    let (slow, slow_wire) = viewer(&mut office, 3);
    assert_eq!(office.admin.viewers(), 2);
    assert!(office.admin.is_event_due(now) && !office.admin.is_event_due(now - seconds(1)));
    office.admin.set_next_event(now + seconds(1));
    assert!(!office.admin.is_event_due(now));
    assert!(office.admin.connections.slab[quick].is_watching());
    assert_eq!(office.armed(quick), None);
    let view = Some((ControlDeadline::View, STALLED_AFTER));
    assert_eq!(office.armed(slow), view);
    assert_eq!(office.admin.ready_viewers(), [(quick, 0)], "the slow one has not taken its head");
    office.admin.send_event(quick, "data: 1\n\n", 7, &office.io);
    assert_eq!(said(&quick_wire), "head\r\n\r\ndata: 1\n\n");
    assert_eq!(office.admin.ready_viewers(), [(quick, 7)]);
    office.pass(500);
    office.admin.flush(slow, &office.io);
    assert_eq!(office.armed(slow), Some((ControlDeadline::View, STALLED_AFTER - Duration::from_millis(500))));
    slow_wire.borrow_mut().take(1);
    office.tell(&slow_wire);
    assert_eq!(office.armed(slow), view, "a byte is enough");
    // No viewer, no event.
    let (ask, wire) = office.asked(ControlPeer::Viewer, 10_000, ASK);
    office.admin.send_event(ask.key, "data: 2\n\n", 8, &office.io);
    assert_eq!(said(&wire), "");
    quick_wire.borrow_mut().end();
    office.tell(&quick_wire);
    assert_eq!((office.phase(quick), office.admin.viewers()), (Phase::Closed, 1), "nobody looks any more");
    office.admin.close_viewers();
    assert_eq!((office.phase(slow), office.admin.viewers()), (Phase::Closed, 0));
    assert_eq!(office.phase(ask.key), Phase::Reading);
}

#[test]
fn so_many_may_look_at_the_page() {
    let mut office = Office::new();
    assert_eq!(office.admin.max_viewers(&office.io), 8);
    for _ in 0..8 {
        assert!(!office.admin.is_full_of_viewers(&office.io));
        viewer(&mut office, 1000);
    }
    assert!(office.admin.is_full_of_viewers(&office.io));
    let few = Office::with(100, Vec::new(), Vec::new(), Vec::new());
    assert_eq!(few.admin.max_viewers(&few.io), 3);
}
