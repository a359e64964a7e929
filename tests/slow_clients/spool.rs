//! Where large bodies wait: a folder, memory where there is none, and what happens when there is no room.

use crate::support::{Server, length_and_checksum, test_worker};
use crate::tools::{asking, line_of, server_behind};
use std::process::Command;

const MIB: usize = 1024 * 1024;
/// A file system of 1 MiB of its own for what is spooled.
const TINY_TMPFS: &str = r#"exec unshare --user --map-root-user --mount sh -c '
    mount -t tmpfs -o size=1m tmpfs "$TMPDIR"; exec "$@"' sh "$@""#;

/// Whether this machine lets a user mount something. Says so where it does not.
fn may_mount() -> bool {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]);
    let may = command.output().is_ok_and(|output| output.status.success());
    if !may {
        crate::support::skip::note("a folder of its own", "this machine has no unshare --user --mount");
    }
    may
}

fn body(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| (index % 251) as u8).collect()
}

/// A request that finds no room is refused, and nothing else is.
fn assert_refuses_only_what_does_not_fit(server: &mut Server, bytes: usize) {
    let fits = body(100_000);
    assert_eq!(server.client().post("/sha", &fits).text(), length_and_checksum(&fits));
    let mut kept = server.client();
    assert_eq!(kept.get("/ping").text(), "pong");
    let mut large = server.client();
    large.send(format!("POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: {bytes}\r\n\r\n"));
    for piece in body(bytes).chunks(100_000) {
        // Refused before all of it was sent.
        if large.try_send(piece).is_err() {
            break;
        }
    }
    let response = large.read_response();
    assert_eq!((response.status, response.header("connection")), (503, Some("close")));
    let line = line_of(server, "/large");
    assert_eq!((&line["status"], &line["reason"]), (&503.into(), &"spool_full".into()), "{line}");
    assert!(line.get("worker").is_none(), "no worker has seen it: {line}");
    assert_eq!(kept.get("/ping").text(), "pong", "the other connection is as before");
    assert_eq!(server.client().post("/sha", &fits).text(), length_and_checksum(&fits), "there is room again");
}

#[test]
fn without_a_folder_bodies_wait_in_memory_up_to_a_bound() {
    let mut server = Server::builder(test_worker())
        .args(["w:1", "--json", "--max-body=300m"])
        .env("TMPDIR", "/no/such/folder")
        .start();
    let fits = body(20 * MIB);
    assert_eq!(server.client().post("/sha", &fits).text(), length_and_checksum(&fits));
    assert_refuses_only_what_does_not_fit(&mut server, 66 * MIB);
    // An answer that nobody takes may fill it as well.
    let mut greedy = asking(&server, "/bytes?n=30000000");
    assert_eq!(server.get("/ping").text(), "pong");
    assert_eq!(greedy.read_response().body.len(), 30_000_000);
}

#[test]
fn a_folder_that_cannot_be_written_to_is_no_folder() {
    let server = Server::builder(test_worker()).arg("w:1").env("TMPDIR", "/proc").start();
    let large = body(MIB);
    assert_eq!(server.client().post("/sha", &large).text(), length_and_checksum(&large));
}

#[test]
fn a_full_disk_refuses_the_request_that_does_not_fit_and_nothing_else() {
    if !may_mount() {
        return;
    }
    let mut server = server_behind(TINY_TMPFS, test_worker()).args(["w:1", "--json"]).start();
    assert_refuses_only_what_does_not_fit(&mut server, 4 * MIB);
}

/// What one of the metrics is.
fn metric(server: &Server, name: &str) -> f64 {
    let text = server.control("GET", "/metrics", "").text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Several slow clients of more than there is room for get all of it, the other workers serve on, and the trouble is
/// told once. `folder_says`: what the one line says.
#[track_caller]
fn assert_holds_back_and_cuts_nothing(server: &mut Server, folder_says: &[&str]) {
    const ANSWER: usize = 30_000_000;
    server.wait_for_workers(5);
    let mut slow: Vec<_> = (0..4).map(|_| asking(server, &format!("/bytes?n={ANSWER}"))).collect();
    server.wait_until("workers that are held back", |server| {
        metric(server, "rip_spool_hold_backs_total") > 0.0
    });
    assert_eq!(server.get("/ping").text(), "pong", "somebody else's request");
    for client in &mut slow {
        let response = client.read_response();
        assert_eq!(response.status, 200);
        assert!(response.body.len() == ANSWER && response.body.iter().all(|byte| *byte == b'x'));
    }
    server.wait_until("the files' end", |server| {
        ["disk", "memfd"]
            .iter()
            .all(|place| metric(server, &format!("rip_spooled_bytes{{in=\"{place}\"}}")) == 0.0)
    });
    assert_eq!(metric(server, "rip_refusals_total{reason=\"spool_full\"}"), 0.0);
    for said in folder_says {
        let lines = server.stderr_lines();
        let count = |words: &str| lines.iter().filter(|line| line.contains(words)).count();
        // Once, and once more each time that there was room meanwhile.
        let most = 1 + count("there is room for temporary files");
        assert!((1..=most).contains(&count(said)), "'{said}' once: {lines:#?}");
    }
}

#[test]
fn a_full_disk_holds_workers_back_and_cuts_no_answer() {
    if !may_mount() {
        return;
    }
    let mut server = server_behind(TINY_TMPFS, test_worker()).args(["w:5", "--json"]).start();
    let folder = format!("no room for temporary files in '{}': No space left", server.spool_dir().display());
    assert_holds_back_and_cuts_nothing(&mut server, &[&folder]);
    let fits = body(100_000);
    assert_eq!(server.client().post("/sha", &fits).text(), length_and_checksum(&fits));
}

#[test]
fn without_a_folder_workers_are_held_back_and_no_answer_is_cut() {
    let mut server =
        Server::builder(test_worker()).args(["w:5", "--json"]).env("TMPDIR", "/no/such/folder").start();
    let (no_folder, no_room) = (
        "the temporary folder '/no/such/folder' cannot be used: No such file or directory",
        "no room for temporary files in '/no/such/folder': the 64 MiB in memory",
    );
    assert_holds_back_and_cuts_nothing(&mut server, &[no_folder, no_room]);
}

#[test]
fn max_spool_bounds_what_waits_on_disk_for_all_together() {
    let mut server = Server::builder(test_worker()).args(["w:5", "--json", "--max-spool=1m"]).start();
    assert_eq!(metric(&server, "rip_spool_max_bytes"), MIB as f64);
    assert_holds_back_and_cuts_nothing(&mut server, &["--max-spool=1048576 bytes are used up"]);
    assert_refuses_only_what_does_not_fit(&mut server, 4 * MIB);
}

#[test]
fn a_spool_bound_of_zero_leaves_small_ones_in_memory() {
    let mut server = Server::builder(test_worker()).args(["w:1", "--json", "--max-spool=0"]).start();
    let small = body(60_000);
    assert_eq!(server.client().post("/sha", &small).text(), length_and_checksum(&small));
    let mut large = asking(&server, "/bytes?n=20000000");
    assert_eq!(large.read_response().body.len(), 20_000_000);
    assert_eq!(server.client().post("/large", &body(100_000)).status, 503);
    assert_eq!(line_of(&mut server, "/large")["reason"], "spool_full");
}

#[test]
fn a_bound_on_file_sizes_refuses_the_request_that_does_not_fit_and_nothing_else() {
    // In units of 512 bytes: 1 MiB.
    let mut server =
        server_behind(r#"ulimit -f 2048; exec "$@""#, test_worker()).args(["w:1", "--json"]).start();
    assert_refuses_only_what_does_not_fit(&mut server, 4 * MIB);
}

#[test]
fn many_middling_bodies_at_once_do_not_fill_memory() {
    const BODIES: usize = 200;
    let server = Server::builder(test_worker()).args(["w:1"]).start();
    let before_kib = server.rss_kib();
    let clients: Vec<_> = (0..BODIES)
        .map(|_| {
            let mut client = server.client();
            client.send("POST /sha HTTP/1.1\r\nHost: a\r\nContent-Length: 200001\r\n\r\n");
            client.send(body(200_000));
            client
        })
        .collect();
    assert_eq!(server.get("/ping").text(), "pong");
    let grown_kib = server.rss_kib().saturating_sub(before_kib);
    // 64 KiB each in memory, the rest in files.
    assert!(grown_kib < 100 * BODIES as u64, "{grown_kib} KiB");
    let expected = length_and_checksum(&[body(200_000), b"!".to_vec()].concat());
    for mut client in clients {
        client.send("!");
        assert_eq!(client.read_response().text(), expected);
    }
}

#[test]
fn a_refusal_reaches_a_client_that_sends_everything_before_it_reads() {
    // More than the buffers on the way hold.
    const SENT: usize = 8 * MIB;
    let server = Server::builder(test_worker()).args(["w:1", "--max-body=1m"]).start();
    let length = format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {SENT}\r\n\r\n");
    let chunked = "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n800000\r\n";
    let no_host = "POST /a HTTP/1.1\r\nContent-Length: 20\r\n\r\n";
    let long = format!("POST /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(20_000));
    let all = body(SENT);
    for (head, status) in [(&length[..], 413), (chunked, 413), (no_host, 400), (&long, 414)] {
        for _ in 0..5 {
            let mut client = server.client();
            client.send(head);
            for piece in all.chunks(64 * 1024) {
                client.send(piece);
            }
            assert_eq!(client.read_response().status, status, "{}", &head[..40]);
        }
    }
}
