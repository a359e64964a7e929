//! What systemd hears, of servers in each state, and over sockets that lack room.

use super::*;
use nix::errno::Errno;

const STARTING: ServiceState =
    ServiceState { is_ready: false, is_rolling: false, is_stopping: false, serving: 0, of: 2 };

#[test]
fn each_turning_point_is_told_once() {
    let begin = Instant::now();
    let mut notifier = Notifier::kept(Duration::from_secs(5), begin);
    let mut told = |state: ServiceState, seconds: u64| {
        notifier.note(state, begin + Duration::from_secs(seconds));
        notifier.note(state, begin + Duration::from_secs(seconds));
        notifier.take_kept().join(" ").replace('\n', " ")
    };
    let serving = ServiceState { is_ready: true, serving: 2, ..STARTING };
    let rolling = ServiceState { is_rolling: true, ..serving };
    assert_eq!(told(STARTING, 0), "STATUS=starting");
    assert_eq!(
        told(ServiceState { is_ready: true, serving: 1, ..STARTING }, 1),
        "READY=1 STATUS=1 of 2 workers serve WATCHDOG=1"
    );
    assert_eq!(told(serving, 2), "STATUS=2 of 2 workers serve");
    let reloading = told(rolling, 3);
    assert!(reloading.starts_with("RELOADING=1 MONOTONIC_USEC="), "{reloading}");
    assert_eq!(told(serving, 4), "READY=1");
    assert_eq!(told(serving, 6), "WATCHDOG=1");
    assert_eq!(told(ServiceState { is_stopping: true, ..serving }, 7), "STOPPING=1 STATUS=stopping");
    assert_eq!(told(ServiceState { is_stopping: true, serving: 1, ..serving }, 8), "");
}

#[test]
fn a_stop_before_the_first_join_is_told_without_a_readiness() {
    let mut notifier = Notifier::kept(Duration::from_secs(5), Instant::now());
    notifier.note(STARTING, Instant::now());
    notifier.note(ServiceState { is_stopping: true, ..STARTING }, Instant::now());
    assert_eq!(notifier.take_kept()[..2], ["STATUS=starting", "STOPPING=1\nSTATUS=stopping"]);
}

const SECOND: Duration = Duration::from_secs(1);

fn serving(serving: usize, of: usize) -> ServiceState {
    ServiceState { is_ready: true, serving, of, ..STARTING }
}

/// A notifier by these variables, as a first server or as a successor.
fn notifier(variables: &[(&str, &str)], is_successor: bool, now: Instant) -> Notifier {
    let variable = |name: &str| {
        let mut all = variables.iter().filter(|(other, _)| *other == name);
        all.next().map(|(_, value)| (*value).to_owned())
    };
    Notifier::from_environment(&variable, is_successor, now)
}

/// Where systemd listens.
fn systemd() -> (tempfile::TempDir, UnixDatagram, String) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_nonblocking(true).expect("an option");
    (dir, socket, path.to_str().expect("a plain path").to_owned())
}

/// All that it has heard.
fn heard(socket: &UnixDatagram) -> Vec<String> {
    let mut bytes = [0; 1000];
    std::iter::from_fn(|| {
        socket.recv(&mut bytes).ok().map(|count| String::from_utf8_lossy(&bytes[..count]).into())
    })
    .collect()
}

#[test]
fn nothing_is_told_where_nobody_asks_and_where_the_address_is_none() {
    let now = Instant::now();
    for address in [None, Some(""), Some("relative/path")] {
        let variables: Vec<_> = address
            .map(|at| ("NOTIFY_SOCKET", at))
            .into_iter()
            .chain([("WATCHDOG_USEC", "2000000")])
            .collect();
        let mut notifier = notifier(&variables, false, now);
        assert!(!notifier.is_on());
        notifier.note(serving(1, 1), now);
        notifier.name_main(7, now);
        assert!(notifier.waiting.is_empty() && notifier.next_deadline().is_none());
    }
}

#[test]
fn a_socket_at_a_path_or_with_an_abstract_name_hears_how_the_server_stands() {
    let now = Instant::now();
    let (_dir, socket, path) = systemd();
    let mut at_path = notifier(&[("NOTIFY_SOCKET", &path)], false, now);
    at_path.note(serving(1, 2), now);
    assert_eq!(heard(&socket), ["READY=1\nSTATUS=1 of 2 workers serve"]);
    at_path.note(serving(2, 0), now);
    assert_eq!(heard(&socket), ["STATUS=2 workers have joined"]);
    assert_eq!(at_path.next_deadline(), None, "nobody waits for a beat");

    let name = format!("rip-notify-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let socket = UnixDatagram::bind_addr(&address).expect("a socket");
    socket.set_nonblocking(true).expect("an option");
    notifier(&[("NOTIFY_SOCKET", &format!("@{name}"))], false, now).note(serving(1, 1), now);
    assert_eq!(heard(&socket), ["READY=1\nSTATUS=1 of 1 workers serve"]);
}

#[test]
fn the_watchdog_is_this_process_s_and_gets_a_beat_in_half_of_its_time() {
    let now = Instant::now();
    let (_dir, socket, path) = systemd();
    let own = std::process::id().to_string();
    let every = |usec: &str, pid: Option<&str>, is_successor: bool| {
        let pid = pid.map(|pid| ("WATCHDOG_PID", pid));
        let variables: Vec<_> =
            [("NOTIFY_SOCKET", path.as_str()), ("WATCHDOG_USEC", usec)].into_iter().chain(pid).collect();
        notifier(&variables, is_successor, now).watchdog.map(|watchdog| watchdog.every)
    };
    assert_eq!(every("2000000", None, false), Some(SECOND));
    assert_eq!(every("2000000", Some(&own), false), Some(SECOND));
    assert_eq!(every("2000000", Some("1"), false), None, "another process's");
    assert_eq!(every("2000000", Some("1"), true), Some(SECOND), "the server's before this one");
    assert_eq!((every("0", None, false), every("soon", None, false)), (None, None));
    assert_eq!(every("1", None, false), Some(Duration::ZERO));

    let variables = [("NOTIFY_SOCKET", path.as_str()), ("WATCHDOG_USEC", "2000000")];
    let mut notifier = notifier(&variables, false, now);
    notifier.note(STARTING, now);
    assert_eq!((heard(&socket), notifier.next_deadline()), (vec!["STATUS=starting".into()], None), "not yet");
    notifier.note(serving(1, 1), now);
    assert_eq!(heard(&socket), ["READY=1\nSTATUS=1 of 1 workers serve", "WATCHDOG=1"]);
    assert_eq!(notifier.next_deadline(), Some(now + SECOND));
    notifier.note(serving(1, 1), now + SECOND - Duration::from_nanos(1));
    assert!(heard(&socket).is_empty(), "too early");
    notifier.note(serving(1, 1), now + SECOND);
    assert_eq!(heard(&socket), ["WATCHDOG=1"]);
    assert_eq!(notifier.next_deadline(), Some(now + 2 * SECOND));
}

#[test]
fn one_of_two_servers_speaks_for_the_service() {
    let now = Instant::now();
    let (_dir, socket, path) = systemd();
    let variables = [("NOTIFY_SOCKET", path.as_str()), ("WATCHDOG_USEC", "2000000")];
    let (mut old, mut new) = (notifier(&variables, false, now), notifier(&variables, true, now));
    old.note(serving(1, 1), now);
    new.note(serving(1, 1), now);
    assert_eq!(heard(&socket).len(), 2, "of the old one");
    old.name_main(42, now);
    assert_eq!(heard(&socket), ["MAINPID=42"]);
    old.note(serving(1, 3), now + 2 * SECOND);
    assert!(heard(&socket).is_empty() && old.next_deadline().is_none());
    new.speak_again();
    new.note(serving(1, 2), now);
    assert_eq!(heard(&socket), ["READY=1\nSTATUS=1 of 2 workers serve", "WATCHDOG=1"]);
}

#[test]
fn a_roll_that_begins_before_the_first_join_is_told_behind_it() {
    let now = Instant::now();
    let mut notifier = Notifier::kept(SECOND, now);
    let rolling = ServiceState { is_rolling: true, ..serving(1, 1) };
    let mut told = |state| {
        notifier.note(state, now);
        let all = notifier.take_kept().join(" ");
        all.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(told(rolling), "READY=1");
    assert_eq!(told(rolling), "RELOADING=1");
    assert_eq!(told(ServiceState { serving: 0, ..rolling }), "STATUS=0 of 1 workers serve", "no second time");
    assert_eq!(told(serving(1, 1)), "READY=1");
    assert_eq!(told(ServiceState { is_ready: false, is_rolling: true, ..serving(1, 1) }), "STATUS=starting");
    assert_eq!(told(ServiceState { is_stopping: true, ..rolling }), "STOPPING=1");
    assert_eq!(
        told(rolling),
        "STATUS=1 of 1 workers serve",
        "a stop is told once, and no start of a roll behind it"
    );
}

#[test]
fn a_reload_is_told_with_the_time_of_the_monotonic_clock() {
    let us = |time: nix::sys::time::TimeSpec| time.tv_sec() * 1_000_000 + time.tv_nsec() / 1000;
    let clock = || us(clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock"));
    let before = clock();
    let time = monotonic_us();
    assert!((before..=clock()).contains(&time), "{time}");
}

#[test]
fn what_finds_no_room_is_told_a_little_later_and_in_order() {
    let now = Instant::now();
    let (_dir, socket, path) = systemd();
    let mut notifier = notifier(&[("NOTIFY_SOCKET", &path)], false, now);
    let mut sent = 0;
    // Nobody reads: the kernel keeps some of them.
    while notifier.retry.is_none() {
        assert!(sent < 10_000, "it has room for everything");
        notifier.note(serving(sent, 9), now);
        sent += 1;
    }
    assert_eq!(notifier.next_deadline(), Some(now + Duration::from_millis(100)));
    notifier.note(serving(sent, 9), now);
    assert_eq!(notifier.waiting.len(), 2);
    let mut all = heard(&socket);
    notifier.note(serving(sent, 9), now);
    assert!(notifier.waiting.is_empty() && notifier.next_deadline().is_none());
    all.extend(heard(&socket));
    assert_eq!(all.len(), sent + 1);
    for (count, message) in all.iter().enumerate() {
        assert!(message.ends_with(&format!("STATUS={count} of 9 workers serve")), "{message}");
    }
}

#[test]
fn a_socket_that_is_gone_keeps_nothing_waiting() {
    let now = Instant::now();
    let (_dir, socket, path) = systemd();
    let mut notifier = notifier(&[("NOTIFY_SOCKET", &path)], false, now);
    drop(socket);
    notifier.note(serving(1, 1), now);
    assert!(notifier.waiting.is_empty() && notifier.retry.is_none());
}

#[test]
fn only_want_of_room_is_tried_again() {
    for errno in [Errno::EAGAIN, Errno::ENOBUFS] {
        assert!(is_full(&errno.into()), "{errno}");
    }
    assert!(!is_full(&Errno::ECONNREFUSED.into()));
}

#[test]
fn too_many_messages_lose_the_oldest_beat_or_status_and_then_the_oldest() {
    let mut notifier = Notifier::kept(SECOND, Instant::now());
    let first = ["READY=1", "WATCHDOG=1", "STATUS=a"];
    for message in first.iter().copied().chain(["STOPPING=1"; 13]) {
        notifier.push(message.to_owned());
    }
    assert_eq!(notifier.waiting.len(), 16);
    for expected in [["READY=1", "STATUS=a"], ["READY=1", "STOPPING=1"], ["STOPPING=1", "STOPPING=1"]] {
        notifier.push("MAINPID=7".to_owned());
        assert_eq!(notifier.waiting.len(), 16);
        assert_eq!([&notifier.waiting[0], &notifier.waiting[1]], expected);
    }
    assert_eq!(notifier.waiting.iter().filter(|message| *message == "MAINPID=7").count(), 3);
}
