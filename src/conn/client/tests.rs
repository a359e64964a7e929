//! Clients' bytes in all states of their connection, and what they mean.

use super::*;
use crate::conn::read_buffer::PendingBytes;
use crate::http::Version;
use crate::http::forward::ForwardedTrust;

const ORIGIN: Origin<'_> =
    Origin { address: "192.0.2.7", trust: ForwardedTrust::Ignored, fresh_id: b"fresh", start_us: b"1000000" };

/// All events of `bytes`.
fn hear(client: &mut Client, bytes: &[u8], now: Instant) -> Event {
    let mut bytes = bytes.to_vec();
    let mut from = 0;
    loop {
        let step = client.advance(&mut bytes[from..], ORIGIN, 1000, Vec::new, now);
        from += step.consumed;
        if !matches!(step.event, Event::Body(_)) {
            return step.event;
        }
    }
}

fn refused(head: &str) -> Request {
    match hear(&mut Client::default(), head.as_bytes(), Instant::now()) {
        Event::Refused(_, request) => request,
        other => panic!("{other:?} instead of a refusal"),
    }
}

#[test]
fn a_refusal_knows_the_method_that_it_refuses() {
    for (head, is_head) in [
        ("HEAD / HTTP/1.1\r\n\r\n", true),
        ("HEAD / HTTP/3.0\r\n\r\n", true),
        ("HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n", true),
        ("HEAD / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n", true),
        ("HEADS / HTTP/1.1\r\n\r\n", false),
        ("head / HTTP/1.1\r\n\r\n", false),
        ("GET /HEAD HTTP/1.1\r\n\r\n", false),
    ] {
        let request = refused(head);
        assert_eq!(request.context.is_head, is_head, "{head:?}");
    }
}

#[test]
fn a_body_too_large_is_refused_with_all_that_its_head_says() {
    let request = refused("PUT /path?query HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n");
    assert_eq!((request.method(), request.path(), request.id()), (&b"PUT"[..], &b"/path"[..], &b"fresh"[..]));
    assert_eq!(request.client(), Some(&b"192.0.2.7"[..]));
}

#[test]
fn an_offer_of_a_websocket_stands_only_without_a_body() {
    let offers = |remaining: &str| {
        let head =
            format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n{remaining}");
        match hear(&mut Client::default(), head.as_bytes(), Instant::now()) {
            Event::Request(request) => {
                let worker = String::from_utf8_lossy(&request.head);
                assert_eq!(
                    worker.contains("Upgrade: websocket"),
                    request.context.wants_websocket,
                    "{worker}"
                );
                assert_ne!(worker.contains("Content-Length"), request.context.wants_websocket, "{worker}");
                request.context.wants_websocket
            }
            other => panic!("{other:?} instead of a request"),
        }
    };
    for none in ["\r\n", "Content-Length: 0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"] {
        assert!(offers(none), "{none:?}");
    }
    for body in ["Content-Length: 1\r\n\r\nx", "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"] {
        assert!(!offers(body), "{body:?}");
    }
}

/// One step: how many bytes it takes, and what they mean.
fn step(client: &mut Client, bytes: &str) -> (usize, Event) {
    let mut bytes = bytes.as_bytes().to_vec();
    let step = client.advance(&mut bytes, ORIGIN, 1000, Vec::new, Instant::now());
    (step.consumed, step.event)
}

fn state(client: &Client) -> String {
    let all = [
        (client.is_idle(), "idle"),
        (client.awaits_proxy_header(), "proxy-header"),
        (client.is_receiving(), "receiving"),
        (client.is_in_body(), "body"),
        (client.is_busy(), "busy"),
        (client.is_lingering(), "lingering"),
    ];
    all.iter().filter(|(is_so, _)| *is_so).map(|(_, name)| *name).collect::<Vec<_>>().join(" ")
}

fn ended() -> Client {
    Client { has_ended: true, ..Client::default() }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn a_connection_goes_from_state_to_state() {
    let mut client = Client::with_proxy_header();
    assert_eq!(state(&client), "idle proxy-header");
    assert!(matches!(
        step(&mut client, "PROXY UNKNOWN\r\nGET"),
        (15, Event::ProxyHeader(Source::Connection))
    ));
    assert_eq!(state(&client), "idle");
    let head = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    assert!(matches!(step(&mut client, &head[..20]), (0, Event::More)));
    assert_eq!(state(&client), "receiving");
    let is_whole = |consumed: usize| consumed == head.len();
    assert!(matches!(step(&mut client, head), (consumed, Event::Body(_)) if is_whole(consumed)));
    assert_eq!(state(&client), "receiving body");
    assert!(matches!(step(&mut client, "hel"), (3, Event::Body(data)) if data == (0..3)));
    assert!(matches!(step(&mut client, ""), (0, Event::More)));
    assert!(matches!(step(&mut client, "loGET"), (2, Event::Body(data)) if data == (0..2)));
    assert!(matches!(step(&mut client, "GET"), (0, Event::Request(_))));
    assert_eq!(state(&client), "busy");
    assert!(matches!(step(&mut client, "GET"), (0, Event::More)));
    client.answered();
    assert_eq!(state(&client), "idle");
    assert!(matches!(step(&mut client, GET), (27, Event::Request(_))));
    client.upgraded();
    assert_eq!(state(&client), "");
    assert!(matches!(step(&mut client, "abc"), (3, Event::Tunnel(data)) if data == (0..3)));
    assert!(matches!(step(&mut client, ""), (0, Event::More)));
    client.has_ended = true;
    assert!(matches!(step(&mut client, "abc"), (3, Event::Tunnel(_))));
    assert!(matches!(step(&mut client, ""), (0, Event::End)));
    client.has_ended = false;
    client.linger();
    assert_eq!(state(&client), "lingering");
    assert!(matches!(step(&mut client, "abc"), (3, Event::More)));
    client.has_ended = true;
    assert!(matches!(step(&mut client, "abc"), (3, Event::End)));
}

#[test]
#[should_panic(expected = "no way from Idle to Tunnel")]
fn a_way_that_is_not_drawn_is_a_bug() {
    Client::default().enter(State::Tunnel);
}

#[test]
fn empty_lines_before_a_request_are_skipped() {
    for (bytes, blank) in [("", 0), ("\r", 0), ("\r\n", 2), ("\r\n\r", 2), ("\r\n\r\n\r\n", 6)] {
        let mut client = Client::default();
        assert!(
            matches!(step(&mut client, bytes), (consumed, Event::More) if consumed == blank),
            "{bytes:?}"
        );
        assert_eq!(state(&client), "idle", "{bytes:?}");
        assert!(
            matches!(step(&mut ended(), bytes), (consumed, Event::End) if consumed == blank),
            "{bytes:?}"
        );
    }
    for (bytes, consumed) in [(format!("\r\n\r\n{GET}GET"), 31), (format!("{GET}\r\n"), 27)] {
        assert!(matches!(step(&mut Client::default(), &bytes), (all, Event::Request(_)) if all == consumed));
    }
    for bytes in ["\n", "\r\r", "\r\n\n", " GET", "\u{16}\u{3}\u{1}"] {
        let (_, event) = step(&mut Client::default(), bytes);
        assert!(
            matches!(event, Event::Refused(Reason::BadRequest(Bad::RequestLine), _)),
            "{bytes:?}: {event:?}"
        );
    }
}

#[test]
fn a_request_that_ends_in_the_middle_is_incomplete() {
    let incomplete = |event: &Event| matches!(event, Event::Refused(Reason::BadRequest(Bad::Incomplete), _));
    for bytes in
        ["G", "GET / HTTP/1.1\r\nHost: a\r\n", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell"]
    {
        let event = hear(&mut ended(), bytes.as_bytes(), Instant::now());
        assert!(incomplete(&event), "{bytes:?}: {event:?}");
    }
    let whole = hear(&mut ended(), GET.as_bytes(), Instant::now());
    assert!(matches!(whole, Event::Request(_)), "{whole:?}");
}

#[test]
fn a_body_may_fill_its_bound() {
    let head = |field: &str| format!("PUT / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
    let chunked = head("Transfer-Encoding: chunked");
    // The bound is 1000 bytes.
    let chunks = |bytes: &[usize]| {
        let chunks = bytes.iter().map(|&bytes| format!("{bytes:x}\r\n{}\r\n", "x".repeat(bytes)));
        [chunked.clone(), chunks.collect(), "0\r\n\r\n".to_owned()].concat()
    };
    for (bytes, is_taken) in [
        (format!("{}{}", head("Content-Length: 1000"), "x".repeat(1000)), true),
        (format!("{}{}", head("Content-Length: 1001"), "x".repeat(1001)), false),
        (chunks(&[600, 400]), true),
        (chunks(&[600, 401]), false),
        (chunks(&[1000]), true),
        (chunks(&[1001]), false),
    ] {
        let (mut client, mut taken, mut events) = (Client::default(), 0, Vec::new());
        let mut kept = Vec::new();
        // In pieces, so that a body's bytes are counted from call to call.
        for piece in bytes.as_bytes().chunks(50) {
            kept.extend_from_slice(piece);
            loop {
                let mut bytes = std::mem::take(&mut kept);
                let step = client.advance(&mut bytes, ORIGIN, 1000, Vec::new, Instant::now());
                kept = bytes[step.consumed..].to_vec();
                match step.event {
                    Event::Body(data) => taken += data.len(),
                    Event::More => break,
                    event => {
                        events.push(event);
                        break;
                    }
                }
            }
        }
        match &events[..] {
            [Event::Request(request)] => {
                assert!(is_taken && taken == 1000, "{taken} bytes");
                let length = request.field("content-length");
                assert!(length.is_none_or(|length| length == b"1000"), "{length:?}");
            }
            [Event::Refused(Reason::BodyTooLarge, _)] => assert!(!is_taken, "{taken} bytes"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_client_is_asked_to_continue_before_a_body_alone() {
    let event = |field: &str| {
        let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n{field}\r\n");
        step(&mut Client::default(), &head).1
    };
    assert!(matches!(event("Content-Length: 5\r\n"), Event::Continue));
    assert!(matches!(event("Transfer-Encoding: chunked\r\n"), Event::Continue));
    assert!(matches!(event("Content-Length: 0\r\n"), Event::Request(_)));
    assert!(matches!(event(""), Event::Request(_)));
}

#[test]
fn a_head_has_at_most_200_fields() {
    for (fields, is_taken) in [(200, true), (201, false), (208, false), (209, false), (1000, false)] {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(fields - 1));
        match step(&mut Client::default(), &head) {
            (_, Event::Request(_)) => assert!(is_taken, "{fields}"),
            (_, Event::Refused(reason, _)) => {
                assert_eq!((reason, is_taken), (Reason::BadRequest(Bad::TooManyFields), false), "{fields}");
            }
            other => panic!("{fields}: {other:?}"),
        }
    }
}

#[test]
fn a_later_http_1_is_served_and_http_2_is_not() {
    let event = |version: &str| step(&mut Client::default(), &GET.replace("HTTP/1.1", version)).1;
    assert!(
        matches!(event("HTTP/1.9"), Event::Request(request) if request.context.version == Version::Http11)
    );
    assert!(matches!(event("HTTP/2.0"), Event::Refused(Reason::BadRequest(Bad::Version), _)));
}

#[test]
fn a_proxys_header_comes_first_or_nothing_is_believed() {
    use HeaderFault::*;
    let event = |bytes: &str, has_ended: bool| {
        let mut client = Client { has_ended, ..Client::with_proxy_header() };
        let (consumed, event) = step(&mut client, bytes);
        assert_eq!((consumed, state(&client)), (0, "idle proxy-header".to_owned()), "{bytes:?}");
        event
    };
    assert!(matches!(event("", false), Event::More));
    assert!(matches!(event("PROXY TCP4", false), Event::More));
    assert!(matches!(event("", true), Event::End));
    assert!(matches!(event("PROXY TCP4", true), Event::NoProxyHeader(None)));
    assert!(matches!(event("GET", false), Event::NoProxyHeader(Some(Missing))));
    assert!(matches!(event("PROXY TCP4\r\n", true), Event::NoProxyHeader(Some(Line))));
}

#[test]
fn what_is_abandoned_is_known_as_far_as_it_came() {
    let now = Instant::now();
    let keep = |client: &mut Client, bytes: &str| {
        let mut bytes = bytes.as_bytes().to_vec();
        client.read_buffer.keep(PendingBytes::join(Vec::new(), &mut bytes));
    };
    let mut client = Client::default();
    step(&mut client, "GET /half HTTP/1.1\r\nHo");
    keep(&mut client, "GET /half HTTP/1.1\r\nHo");
    let request = client.abandon(Vec::new(), now).expect("a request");
    assert_eq!((request.method(), request.path()), (&b"GET"[..], &b"/half"[..]));
    assert!(client.is_lingering() && client.read_buffer.is_empty());

    let mut client = Client::default();
    step(&mut client, "PUT /body HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n");
    let request = client.abandon(Vec::new(), now).expect("a request");
    assert_eq!((request.method(), request.path(), request.id()), (&b"PUT"[..], &b"/body"[..], &b"fresh"[..]));

    let mut client = Client::default();
    step(&mut client, GET);
    let request = client.abandon(Vec::new(), now).expect("a request");
    assert_eq!((request.method(), request.started), (&b""[..], now));
    for mut idle in [Client::default(), Client::with_proxy_header()] {
        assert!(idle.abandon(Vec::new(), now).is_none() && idle.is_lingering());
    }

    let mut client = Client::default();
    keep(&mut client, "GET");
    client.linger();
    assert!(client.read_buffer.is_empty());
}

#[test]
fn a_refusal_knows_the_path_of_the_first_line() {
    for head in [
        "GET /x\r\nHost: a\r\n\r\n",
        "GET /x\nHost: a\n\n",
        "GET /x?y HTTP/3.0\r\n\r\n",
        "GET /x HTTP/1.1\r\n\r\n",
    ] {
        assert_eq!(refused(head).path(), b"/x", "{head:?}");
    }
}
