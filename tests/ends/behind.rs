//! What comes behind something that lasts into a stop is served as well.

use super::support::{Answer, RawWorker, Server, Signal, Then};
use super::{assert_last, load};
use std::fs;

#[test]
fn a_request_behind_an_answer_that_lasts_into_the_stop_is_served() {
    // More than the second that idle connections get.
    const PAUSES: usize = 60;
    for is_pipelined in [true, false] {
        let mut server = Server::without_workers(&[]);
        let worker = RawWorker::join(&server, 1, |request| match request.target.as_str() {
            "/long" => {
                let head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n".to_vec();
                let pauses = std::iter::repeat_n(Vec::new(), PAUSES);
                Answer {
                    writes: std::iter::once(head).chain(pauses).chain([b"long".to_vec()]).collect(),
                    then: Then::Keep,
                }
            }
            _ => Answer::ok("next"),
        });
        let mut client = server.client();
        client.send_request("GET", "/long", "", b"");
        if is_pipelined {
            client.send_request("GET", "/next", "", b"");
        }
        let head = client.read_head();
        assert_eq!(head.header("connection"), None, "another request may follow");
        server.signal(Signal::SIGTERM);
        server.wait_until("it stops", |server| load::has_line(server, "stopping"));
        assert_eq!(client.read_exactly(4), b"long");
        if !is_pipelined {
            client.send_request("GET", "/next", "", b"");
        }
        let response = client.read_response();
        assert_eq!((response.status, response.text().as_str()), (200, "next"));
        assert_eq!(server.wait_exit(), 0);
        drop(worker);
    }
}

/// A `POST` that is answered with an event stream holds its worker until that ends, which may be awaited.
#[test]
fn a_request_behind_streams_that_end_is_served_though_the_server_stops() {
    let mut server = Server::with_test_worker(&["w:2", "--queue-timeout-ms=20000"]);
    server.wait_for_workers(2);
    let mut idle = server.client();
    assert_eq!(idle.get("/ping").status, 200);
    let until = server.dir().join("enough");
    let target = format!("/events?ms=20&until={}", until.display());
    let streams: Vec<_> = (0..2)
        .map(|_| {
            let mut client = server.client();
            client.send_request("POST", &target, "", b"");
            assert_eq!(client.read_head().status(), Ok(200));
            client
        })
        .collect();
    server.signal(Signal::SIGTERM);
    server.wait_until("it stops", |server| load::has_line(server, "stopping"));
    idle.send_request("GET", "/ping", "", b"");
    server.wait_until("it waits", |server| server.details()["queue"]["now"] == 1);
    fs::write(until, "").expect("a file");
    assert_last(&idle.read_response(), "pong");
    assert_eq!(server.wait_exit(), 0);
    drop(streams);
}
