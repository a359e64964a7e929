//! Verbs that ask: a second stop, a server that does not answer, another user.

use super::*;

#[test]
fn a_second_stop_joins_the_wait() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    let hold = Hold::new();
    let mut client = hold.ask(&server);
    server.wait_until("it is at work", |server| is_busy(server));
    let stops: Vec<Output> = std::thread::scope(|scope| {
        let stops = [0, 1, 2].map(|_| scope.spawn(|| server.verb(["stop"])));
        wait_until("all have asked", || server.stderr_text().matches("waits for the end").count() == 2);
        hold.let_go();
        stops.into_iter().map(|stop| stop.join().expect("no panic")).collect()
    });
    for stop in stops {
        assert_eq!((stop.code, stop.stdout.as_str()), (0, "test-worker: stopped\n"), "{stop:?}");
    }
    assert!(!is_alive(server.pid()), "they return when it is gone");
    assert_eq!(client.read_response().text(), "held");
    assert_eq!(server.wait_exit(), 0);
}

#[test]
fn a_stop_and_a_signal_are_no_second_signal() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    let hold = Hold::new();
    let mut client = hold.ask(&server);
    server.wait_until("it is at work", |server| is_busy(server));
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| server.verb(["--stop"]));
        wait_until("it stops", || server.stderr_text().contains("stopping"));
        server.signal(Signal::SIGTERM);
        wait_until("it has heard that", || server.stderr_text().contains("stopping already"));
        hold.let_go();
        assert_eq!(stop.join().expect("no panic").code, 0);
    });
    assert_eq!(client.read_response().text(), "held");
    assert_eq!(server.wait_exit(), 0);
}

#[test]
fn a_server_that_does_not_answer_is_named_by_every_verb() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    server.signal(Signal::SIGSTOP);
    let silence = "does not answer within 5 s";
    let who = format!("(pid {})", server.pid());
    std::thread::scope(|scope| {
        let verbs = [&["status"][..], &["status", "--json"], &["reload"], &["stop"], &["--stop"]];
        let server = &server;
        let verbs = verbs.map(|words| scope.spawn(move || server.verb(words)));
        for output in verbs.map(|verb| verb.join().expect("no panic")) {
            says(&output, 1, &[silence, &who]);
        }
    });
    server.signal(Signal::SIGCONT);
}

#[test]
fn a_start_beside_a_server_that_does_not_answer_is_refused() {
    let server = Server::with_test_worker(&["w:1"]);
    server.signal(Signal::SIGSTOP);
    let second = server.verb(["w:1", "http:127.0.0.1:0"]);
    says(&second, 1, &["is served already", "does not answer", &format!("(pid {})", server.pid())]);
    server.signal(Signal::SIGCONT);
}

#[test]
fn verbs_of_another_user_say_whose_the_server_is() {
    if !is_root() {
        return skip::note("another user", "only root can be one");
    }
    let server = Server::with_test_worker(&["w:1"]);
    fs::set_permissions(server.dir(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    for phrase in ["status", "reload", "stop", "--stop"] {
        let mut command = verb(phrase, &test_worker(), server.dir());
        command.uid(STRANGER).gid(STRANGER);
        says(&output(command), 1, &["user 0", "test-worker"]);
    }
    assert_eq!(server.get("/ping").text(), "pong");
}

#[test]
fn verbs_of_root_are_obeyed_and_its_joins_are_not() {
    if !is_root() {
        return skip::note("root", "only root can be root");
    }
    let dir = folder();
    chown(dir.path(), Some(STRANGER), Some(STRANGER)).expect("root may");
    let app = dir.path().join("app");
    write_script(&app, &format!("#!/bin/sh\nexec {}\n", test_worker().display()));
    let mut command = serve(&app, dir.path(), &[]);
    command.uid(STRANGER).gid(STRANGER).current_dir(dir.path());
    let mut server = ByHand::start(command);
    let healthy = || output(verb("status", &app, dir.path()));
    wait_until("root is told that it is healthy", || healthy().stdout.contains("healthy"));
    let control = dir.path().join("s/rip_server2_app.ctl.sock");
    for op in [r#"{"op":"quit","workerId":0}"#, r#"{"op":"retire","workerId":0}"#] {
        let mut client = Client::connect_unix(&control);
        client.send_request("POST", "/worker", "", op.as_bytes());
        let response = client.read_response();
        assert_eq!(response.status, 403, "{op}");
        assert!(response.text().contains(&format!("user {STRANGER}")), "{}", response.text());
    }
    assert_eq!(Client::connect_unix(&control).get("/metrics").status, 200);
    let reload = output(verb("reload", &app, dir.path()));
    assert_eq!(reload.code, 0, "{reload:?}");
    let stop = output(verb("stop", &app, dir.path()));
    assert_eq!((stop.code, stop.stdout.as_str()), (0, "app: stopped\n"), "{stop:?}");
    assert_eq!(server.child.wait().expect("a child").code(), Some(0));
}

#[test]
fn another_user_at_an_open_socket_is_refused_with_the_owners_name() {
    if !is_root() {
        return skip::note("another user", "only root can be one");
    }
    let server = Server::with_test_worker(&["w:1"]);
    // Somebody has opened what the server keeps closed.
    for (path, mode) in [(server.dir().to_path_buf(), 0o755), (server.socket_dir(), 0o755)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    }
    fs::set_permissions(server.control_socket(), fs::Permissions::from_mode(0o666)).expect("it is ours");
    for phrase in ["status", "reload", "stop"] {
        let mut command = verb(phrase, &test_worker(), server.dir());
        command.uid(STRANGER).gid(STRANGER);
        says(&output(command), 1, &["refuses", "user 0"]);
    }
    assert_eq!(server.get("/ping").text(), "pong");
}
