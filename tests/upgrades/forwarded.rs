//! What workers are told about the client, and by whom.

use crate::support::{Answer, Client, Head, RawWorker, Server};
use crate::tools::line_of;
use std::time::SystemTime;

/// What a client, or a proxy before it, may claim.
const CLAIMS: &str = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\nX-Forwarded-Proto: https\r\n\
     X-Forwarded-Host: shop.example\r\nX-Forwarded-Port: 443\r\nForwarded: for=6.6.6.6;proto=https\r\n\
     X-Request-Id: theirs-1\r\nX-Request-Start: t=1\r\n";

fn server(words: &[&str]) -> (Server, RawWorker) {
    let server = Server::without_workers(words);
    let worker = RawWorker::join(&server, 1, |_| Answer::ok(""));
    (server, worker)
}

/// The head that the worker gets of a request with these fields.
fn seen(client: &mut Client, worker: &RawWorker, fields: &str) -> Head {
    client.send(format!("GET /seen HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n"));
    assert_eq!(client.read_response().status, 200);
    let request = worker.requests().pop().expect("the worker was asked");
    assert_eq!(crate::support::message::request_head_faults(&request.head), Vec::<String>::new());
    request.head
}

fn values<'a>(head: &'a Head, name: &str) -> Vec<&'a str> {
    head.values(name).collect()
}

/// As if no claim had been made.
#[track_caller]
fn assert_only_ours(head: &Head) {
    assert_eq!(values(head, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(values(head, "x-forwarded-proto"), ["http"]);
    assert_eq!(values(head, "x-forwarded-host"), ["a.example"]);
    for name in ["x-forwarded-port", "forwarded", "x-real-ip"] {
        assert!(!head.has(name), "{name}: {:?}", values(head, name));
    }
    let ids = values(head, "x-request-id");
    assert!(ids.len() == 1 && ids[0].len() >= 8 && !ids[0].contains("theirs"), "{ids:?}");
    assert_eq!(head.count("x-request-start"), 1);
}

#[test]
fn nobody_is_believed_by_default() {
    let (server, worker) = server(&[]);
    let mut client = server.client();
    assert_only_ours(&seen(&mut client, &worker, ""));
    assert_only_ours(&seen(&mut client, &worker, &format!("{CLAIMS}X-Real-IP: 6.6.6.6\r\n")));
}

#[test]
fn the_start_of_a_request_is_told_in_microseconds() {
    let (server, worker) = server(&[]);
    let now_us = || SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_micros();
    let before = now_us();
    let head = seen(&mut server.client(), &worker, "X-Request-Start: t=1\r\n");
    let reported =
        head.header("x-request-start").and_then(|value| value.strip_prefix("t=")?.parse::<u128>().ok());
    let reported = reported.unwrap_or_else(|| panic!("no start in {head:?}"));
    // The clock is read once a turn, so it may be a little behind.
    assert!(
        (before - 1_000_000..=now_us()).contains(&reported),
        "{reported} is not between {before} and now"
    );
}

#[test]
fn each_request_has_an_id_of_its_own() {
    let (mut server, worker) = server(&["--json"]);
    let mut client = server.client();
    let mut ids: Vec<String> = (0..50)
        .map(|_| seen(&mut client, &worker, "").header("x-request-id").unwrap_or_default().to_owned())
        .collect();
    let last = ids[49].clone();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 50);
    client.send("GET /last HTTP/1.1\r\nHost: a\r\nX-Request-Id: theirs\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    let line = line_of(&mut server, "/last");
    assert!(line["id"] != last && line["id"] != "theirs", "{line}");
}

#[test]
fn a_trusted_proxy_is_believed_and_its_chain_appended_to() {
    for trust in ["--trust-proxy=loopback", "--trust-proxy=all", "--trust-proxy=10.0.0.0/8,127.0.0.1"] {
        let (mut server, worker) = server(&[trust, "--json"]);
        let head = seen(&mut server.client(), &worker, CLAIMS);
        assert_eq!(values(&head, "x-forwarded-for"), ["6.6.6.6, 7.7.7.7, 127.0.0.1"], "{trust}");
        assert_eq!(values(&head, "x-forwarded-proto"), ["https"]);
        assert_eq!(values(&head, "x-forwarded-host"), ["shop.example"]);
        assert_eq!(values(&head, "x-forwarded-port"), ["443"]);
        assert_eq!(values(&head, "forwarded"), ["for=6.6.6.6;proto=https"]);
        assert_eq!(values(&head, "x-request-id"), ["theirs-1"]);
        assert_eq!(values(&head, "x-request-start"), ["t=1"]);
        assert_eq!(line_of(&mut server, "/seen")["id"], "theirs-1");
    }
}

#[test]
fn a_trusted_proxy_that_says_nothing_gets_what_everybody_gets() {
    let (server, worker) = server(&["--trust-proxy=loopback"]);
    assert_only_ours(&seen(&mut server.client(), &worker, ""));
}

#[test]
fn whoever_is_not_in_the_list_is_not_believed() {
    let (server, worker) = server(&["--trust-proxy=10.0.0.0/8,192.0.2.7,::1"]);
    assert_only_ours(&seen(&mut server.client(), &worker, CLAIMS));
}

#[test]
fn an_ipv4_address_in_ipv6_clothes_counts_as_ipv4() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        crate::support::skip::note("IPv6", "this machine has none");
        return;
    }
    for (trust, chain) in
        [("127.0.0.0/8", "6.6.6.6, 7.7.7.7, 127.0.0.1"), ("::/0", "127.0.0.1"), ("::1", "127.0.0.1")]
    {
        let server =
            Server::builder("/bin/true").args(["w:0", "--trust-proxy", trust]).http("[::]:0").start();
        let worker = RawWorker::join(&server, 1, |_| Answer::ok(""));
        let mut client = Client::connect(([127, 0, 0, 1], server.address().port()).into());
        assert_eq!(values(&seen(&mut client, &worker, CLAIMS), "x-forwarded-for"), [chain], "{trust}");
    }
}

#[test]
fn a_unix_peer_counts_as_loopback() {
    for (words, chain) in
        [(&["--trust-proxy=loopback"][..], "6.6.6.6, 7.7.7.7, 127.0.0.1"), (&[], "127.0.0.1")]
    {
        let dir = tempfile::Builder::new().prefix("rip").tempdir().expect("a temporary folder");
        let path = dir.path().join("front.sock");
        let server = Server::builder("/bin/true")
            .arg("w:0")
            .args(words)
            .http(&format!("unix:{}", path.display()))
            .start();
        let worker = RawWorker::join(&server, 1, |_| Answer::ok(""));
        let head = seen(&mut Client::connect_unix(&path), &worker, CLAIMS);
        assert_eq!(values(&head, "x-forwarded-for"), [chain]);
    }
}

#[test]
fn the_client_is_the_rightmost_address_that_no_trusted_proxy_has() {
    for (trust, chain, client) in [
        ("loopback", "6.6.6.6, 7.7.7.7", "7.7.7.7"),
        ("loopback,7.7.7.7", "6.6.6.6, 7.7.7.7", "6.6.6.6"),
        ("loopback,7.0.0.0/8", "6.6.6.6\r\nX-Forwarded-For: [::ffff:7.7.7.7]:80", "6.6.6.6"),
        ("all", "6.6.6.6, 7.7.7.7", "6.6.6.6"),
        ("loopback", "6.6.6.6, unknown", "127.0.0.1"),
        ("loopback", "2001:DB8::1", "2001:db8::1"),
    ] {
        let (mut server, worker) = server(&["--json", "--trust-proxy", trust]);
        let fields = format!("X-Forwarded-For: {chain}\r\nRip-Client: 9.9.9.9\r\n");
        let head = seen(&mut server.client(), &worker, &fields);
        assert_eq!(values(&head, "rip-client"), [client], "{trust} {chain}");
        // What the server answers by itself has the same client.
        let mut other = server.client();
        other.send(format!("GET /server HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        assert_eq!(other.read_response().status, 200);
        for path in ["/seen", "/server"] {
            let line = line_of(&mut server, path);
            assert_eq!((&line["client"], &line["peer"]), (&client.into(), &"127.0.0.1".into()), "{line}");
        }
    }
}

#[test]
fn a_stranger_is_the_client_whatever_it_says() {
    let (mut server, worker) = server(&["--json"]);
    let head = seen(&mut server.client(), &worker, "X-Forwarded-For: 6.6.6.6\r\nRip-Client: 6.6.6.6\r\n");
    // The chain is the one address then, so it is not said twice.
    assert_eq!((values(&head, "x-forwarded-for"), head.has("rip-client")), (vec!["127.0.0.1"], false));
    let line = line_of(&mut server, "/seen");
    assert_eq!((&line["client"], &line["peer"]), (&"127.0.0.1".into(), &"127.0.0.1".into()), "{line}");
}

#[test]
fn a_request_id_that_would_harm_the_log_is_replaced() {
    let (mut server, worker) = server(&["--trust-proxy=loopback", "--json"]);
    let long = "x".repeat(129);
    for bad in ["", "two words", "caf\u{e9}", &long] {
        let head = seen(&mut server.client(), &worker, &format!("X-Request-Id: {bad}\r\n"));
        let ids = values(&head, "x-request-id");
        assert!(ids.len() == 1 && !ids[0].is_empty() && ids[0] != bad, "{bad}: {ids:?}");
    }
    let fits = "x".repeat(128);
    let head = seen(&mut server.client(), &worker, &format!("X-Request-Id: {fits}\r\n"));
    assert_eq!(values(&head, "x-request-id"), [fits]);
    server.wait_until("five lines", |server| crate::tools::lines_of(server, "/seen").len() == 5);
}

#[test]
fn twins_and_internal_fields_never_reach_a_worker() {
    const ODD: &str = "X_Forwarded_For: 6.6.6.6\r\nX_FORWARDED_PROTO: https\r\nX-Forwarded_Host: b\r\n\
         Content_Length: 5\r\nTransfer_Encoding: chunked\r\nX_Request_Id: theirs\r\nX_Real_IP: 6.6.6.6\r\n\
         Proxy: http://evil.example\r\nRip-Probe: 1\r\nRip-Worker-Busy: 1\r\nRip-Anything: 1\r\nRip_Probe: 1\r\n\
         Rip-Client: 6.6.6.6\r\nRip_Client: 6.6.6.6\r\n\
         X_Harmless: 1\r\nRipe: 1\r\n";
    // Not even from a trusted proxy.
    for words in [&[][..], &["--trust-proxy=all"]] {
        let (server, worker) = server(words);
        let head = seen(&mut server.client(), &worker, ODD);
        assert_only_ours(&head);
        for (name, _) in &head.headers {
            let plain = name.to_ascii_lowercase().replace('_', "-");
            let is_twin = name.contains('_') && plain != "x-harmless";
            let is_internal = plain.starts_with("rip-") && name != "Rip-Client";
            assert!(!is_twin && plain != "proxy" && !is_internal, "{name} reached the worker");
        }
        assert!(values(&head, "rip-client").iter().all(|client| *client == "127.0.0.1"), "{head:?}");
        assert_eq!((values(&head, "x_harmless"), values(&head, "ripe")), (vec!["1"], vec!["1"]));
    }
}

#[test]
fn connection_strips_what_the_client_names_but_nothing_of_ours() {
    let (server, worker) = server(&[]);
    let strips = "Connection: close, X-Secret, X-Forwarded-For, X-Forwarded-Proto, X-Request-Id, Host\r\n\
         X-Secret: 1\r\n";
    let head = seen(&mut server.client(), &worker, strips);
    assert_only_ours(&head);
    assert!(!head.has("x-secret") && !head.has("connection"));
    assert_eq!(values(&head, "host"), ["a.example"]);
}

#[test]
fn connection_does_not_strip_what_a_trusted_proxy_says() {
    let (server, worker) = server(&["--trust-proxy=loopback"]);
    let strips = format!("{CLAIMS}Connection: X-Forwarded-For, X-Forwarded-Proto, X-Request-Id\r\n");
    let head = seen(&mut server.client(), &worker, &strips);
    assert_eq!(values(&head, "x-forwarded-for"), ["6.6.6.6, 7.7.7.7, 127.0.0.1"]);
    assert_eq!(values(&head, "x-forwarded-proto"), ["https"]);
    assert_eq!(values(&head, "x-request-id"), ["theirs-1"]);
}
