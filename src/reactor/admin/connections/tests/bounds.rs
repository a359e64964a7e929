//! How many connections there may be, and which ones make room.

use super::followers::viewer;
use super::*;
use crate::reactor::admin::connections::accepting::share_of_descriptors;

#[test]
fn operators_have_a_share_of_few_descriptors() {
    for (descriptors, expected) in [(0, 2), (23, 2), (24, 3), (80, 10), (1 << 40, 64)] {
        let office = Office::with(descriptors, Vec::new(), Vec::new(), Vec::new());
        assert_eq!(share_of_descriptors(8, 64, &office.io), expected, "{descriptors}");
    }
}

#[test]
fn the_oldest_idle_control_connection_makes_room() {
    let mut office = Office::new();
    let (_scraper, _w) = office.connect(ControlPeer::Scraper, 10);
    let (arriving, wire) = office.connect(OWN, 10);
    wire.borrow_mut().send(&ASK[..20]);
    office.tell(&wire);
    assert_eq!(office.admin.connections.idle_control(), None);
    let (first, _w) = office.connect(ControlPeer::Stranger, 10);
    let (second, _w) = office.connect(ControlPeer::Root, 10);
    assert_eq!(office.admin.connections.idle_control(), Some(first));
    assert!(office.admin.connections.is_at_bound(3) && !office.admin.connections.is_at_bound(4));
    office.admin.note(first, Readiness::READABLE);
    assert_eq!(office.admin.connections.idle_control(), Some(second), "the first one has something to do");
    office.work();
    office.admin.close(first);
    assert_eq!(office.admin.connections.idle_control(), Some(second));
    assert!(office.admin.connections.is_at_bound(2) && !office.admin.connections.is_at_bound(3));
    office.admin.close(second);
    office.admin.close(arriving);
    assert_eq!(office.admin.connections.idle_control(), None);
}

#[test]
fn of_viewers_and_scrapers_one_that_is_idle_and_old_makes_room() {
    let mut office = Office::new();
    let (watching, _w) = viewer(&mut office, 1000);
    let (arriving, wire) = office.connect(ControlPeer::Viewer, 10);
    wire.borrow_mut().send(&ASK[..20]);
    office.tell(&wire);
    let (old, _w) = office.connect(ControlPeer::Viewer, 10);
    let (_young, _w) = office.connect(ControlPeer::Viewer, 10);
    let (scraper, _w) = office.connect(ControlPeer::Scraper, 10);
    let one = |office: &Office, bound| office.admin.connections.one_to_close(ControlPeer::Viewer, bound);
    assert_eq!((one(&office, 5), one(&office, 4)), (None, Some(old)));
    assert_eq!(office.admin.connections.one_to_close(ControlPeer::Scraper, 1), Some(scraper));
    office.admin.close(old);
    assert_eq!(one(&office, 4), None, "it counts no longer");
    office.admin.close(_young);
    assert_eq!(one(&office, 1), Some(arriving));
    office.admin.close(arriving);
    assert_eq!(one(&office, 1), Some(watching));
}

#[test]
fn peers_may_ask_by_where_they_come_from() {
    let peers = [OWN, ControlPeer::Root, ControlPeer::Stranger, ControlPeer::Scraper, ControlPeer::Viewer];
    assert_eq!(peers.map(ControlPeer::is_control), [true, true, true, false, false]);
    assert_eq!(peers.map(ControlPeer::may_ask_for_status), [true, true, false, false, false]);
}

#[test]
fn control_connections_are_accepted_up_to_a_bound_and_idle_ones_make_room() {
    let door = Rc::new(RefCell::new(Door::default()));
    let listeners = vec![Listener::scripted(UnixListener::at(&door), Holders::Own)];
    let mut office = Office::with(24, listeners, Vec::new(), Vec::new());
    let knock = |count: usize| {
        for _ in 0..count {
            door.borrow_mut().waiting.push_back(Wire::new(Kind::Unix, 100));
        }
    };
    let accept = |office: &mut Office, index| {
        let accepted = office.admin.accept_control(index, &mut office.io, &mut office.observer);
        accepted.expect("nothing lacks");
    };
    knock(5);
    accept(&mut office, 1);
    assert_eq!(door.borrow().accepted, 0, "there is no such listener");
    accept(&mut office, 0);
    // Three are a share of 24, and whoever has just come is about to ask.
    assert_eq!((office.admin.connections(), door.borrow().waiting.len()), (3, 2));
    assert!(office.admin.connections.is_full);
    assert_eq!(office.admin.connections.slab[0].peer, ControlPeer::Stranger, "nobody tells whose it is");
    office.pass(99);
    accept(&mut office, 0);
    assert_eq!(door.borrow().waiting.len(), 2);
    office.pass(1);
    accept(&mut office, 0);
    assert_eq!(door.borrow().waiting.len(), 0);
    assert_eq!(office.phase(0), Phase::Closed, "the oldest");
    assert!(office.phase(3) == Phase::Reading && office.phase(4) == Phase::Reading, "the newest stay");
    assert!(!office.io.has_ready());
    office.admin.remove_closed(&mut office.io);
    let before = office.admin.connections();
    office.pass(500);
    accept(&mut office, 0);
    office.admin.remove_closed(&mut office.io);
    assert_eq!(office.admin.connections(), before, "nobody waits, so nobody makes room");
}

#[test]
fn a_deadline_of_the_fleet_s_is_put_off_once_for_whoever_has_just_come() {
    let door = Rc::new(RefCell::new(Door::default()));
    let listeners = vec![Listener::scripted(UnixListener::at(&door), Holders::Own)];
    let mut office = Office::with(4096, listeners, Vec::new(), Vec::new());
    let due = office.io.now();
    let come = |office: &mut Office| {
        door.borrow_mut().waiting.push_back(Wire::new(Kind::Unix, 100));
        office.admin.accept_control(0, &mut office.io, &mut office.observer).expect("nothing lacks");
    };
    assert!(!office.admin.puts_off(due), "nobody has come");
    come(&mut office);
    assert!(office.admin.puts_off(due));
    assert!(!office.admin.puts_off(due), "nobody else has");
    come(&mut office);
    assert!(!office.admin.puts_off(due), "more of them put it off no further");
    come(&mut office);
    assert!(office.admin.puts_off(due + seconds(1)), "another one");
}

#[test]
fn no_more_are_accepted_than_a_tick_may_take() {
    let door = Rc::new(RefCell::new(Door::default()));
    let listeners = vec![Listener::scripted(UnixListener::at(&door), Holders::Own)];
    let mut office = Office::with(4096, listeners, Vec::new(), Vec::new());
    for _ in 0..130 {
        door.borrow_mut().waiting.push_back(Wire::new(Kind::Unix, 100));
    }
    office.admin.accept_control(0, &mut office.io, &mut office.observer).expect("nothing lacks");
    assert_eq!(office.admin.connections(), 128);
    assert_eq!(office.io.take_ready(), [Target::ControlListener(0)]);
}

type Accept = fn(&mut Admin, usize, &mut Io, &mut Observer) -> std::io::Result<()>;

#[test]
fn scrapers_and_viewers_are_accepted_and_one_too_many_ends_another() {
    let bind = || Listener::bind_loopback(0).expect("a port");
    let mut office = Office::with(32, Vec::new(), vec![bind()], vec![bind()]);
    let ports: Vec<u16> = [office.admin.metrics_listeners(), office.admin.page_listeners()]
        .iter()
        .map(|listeners| listeners[0].port().expect("a port"))
        .collect();
    let kinds: [(Accept, ControlPeer); 2] =
        [(Admin::accept_scraper, ControlPeer::Scraper), (Admin::accept_viewer, ControlPeer::Viewer)];
    for ((accept, peer), port) in kinds.into_iter().zip(ports) {
        let clients: Vec<_> =
            (0..3).map(|_| std::net::TcpStream::connect(("127.0.0.1", port)).expect("connected")).collect();
        let before = office.admin.connections();
        let deadline = Instant::now() + seconds(10);
        while office.admin.connections() < before + clients.len() {
            accept(&mut office.admin, 0, &mut office.io, &mut office.observer).expect("nothing lacks");
            assert!(Instant::now() < deadline, "they do not come");
        }
        accept(&mut office.admin, 1, &mut office.io, &mut office.observer)
            .expect("there is no such listener");
        let phases: Vec<Phase> = office
            .admin
            .all()
            .filter(|(_, connection)| connection.peer == peer)
            .map(|(_, connection)| connection.phase)
            .collect();
        // Two are a share of 32.
        assert_eq!(phases, [Phase::Closed, Phase::Reading, Phase::Reading]);
        assert!(!office.io.has_ready());
    }
}
