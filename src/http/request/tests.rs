//! Heads of requests: what they ask for, and why they are refused.

use super::*;

/// Why a head is refused.
pub(crate) fn refusal(head: &str) -> Reason {
    RequestHead::parse(head.as_bytes(), &mut header_buffer()).map(|head| head.method.to_owned()).unwrap_err()
}

pub(crate) fn with(fields: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")
}

#[test]
fn framing_that_two_readers_could_read_in_two_ways_is_refused() {
    for (fields, bad) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", Bad::LengthAndCoding),
        ("Content-Length: 5\r\nContent-Length: 5", Bad::LengthTwice),
        ("Content-Length: 5, 5", Bad::LengthTwice),
        ("Content-Length: +5", Bad::LengthInvalid),
        ("Transfer-Encoding: chunked, identity", Bad::CodingInvalid),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", Bad::CodingInvalid),
        ("Transfer-Encoding: \u{a0}chunked", Bad::CodingInvalid),
        ("Transfer-Encoding: chunked;q=1", Bad::CodingInvalid),
        ("Transfer-Encoding: gzip", Bad::CodingInvalid),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: deflate", Bad::CodingInvalid),
        ("Transfer-Encoding: chunked, cow", Bad::CodingInvalid),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: cow", Bad::CodingInvalid),
        ("Transfer-Encoding: cow, chunked, chunked", Bad::CodingInvalid),
        ("Transfer-Encoding: ,chunked", Bad::CodingInvalid),
        ("Transfer-Encoding:", Bad::CodingInvalid),
        ("Transfer-Encoding: cow moo", Bad::CodingInvalid),
        ("Expect: 200-ok", Bad::Expectation),
    ] {
        assert_eq!(refusal(&with(fields)), Reason::BadRequest(bad), "{fields}");
    }
    let huge = with("Content-Length: 99999999999999999999999");
    let framing = RequestHead::parse(huge.as_bytes(), &mut header_buffer()).map(|head| head.framing);
    assert_eq!(framing, Ok(Framing::Length(u64::MAX)));
}

#[test]
fn a_coding_that_nobody_here_knows_is_not_implemented() {
    for codings in [
        "cow",
        "cow, chunked",
        "gzip, chunked",
        "GZIP , Chunked",
        "gzip;level=1, chunked",
        "identity",
        "gzip, cow",
        "cow, gzip",
        "gzip\r\nTransfer-Encoding: chunked",
        "cow\r\nTransfer-Encoding: chunked",
    ] {
        let refusal = refusal(&with(&format!("Transfer-Encoding: {codings}")));
        assert_eq!((refusal, refusal.status()), (Reason::BadRequest(Bad::CodingNotServed), 501), "{codings}");
    }
}

#[test]
fn a_later_http_1_is_read_as_1_1() {
    let lowered = |version: &str| {
        let mut head = format!("GET /HTTP/1.2 {version}\r\nX: HTTP/1.3\r\n\r\n").into_bytes();
        let is_later = lower_version(&mut head);
        let version = head
            .strip_prefix(b"GET /HTTP/1.2 ")
            .and_then(|remaining| remaining.strip_suffix(b"\r\nX: HTTP/1.3\r\n\r\n"));
        let version = version.expect("nothing else is touched").to_vec();
        is_later.then(|| String::from_utf8(version).expect("text"))
    };
    for minor in '2'..='9' {
        assert_eq!(lowered(&format!("HTTP/1.{minor}")).as_deref(), Some("HTTP/1.1"));
    }
    for other in
        ["HTTP/1.0", "HTTP/1.1", "HTTP/2.2", "HTTP/1.22", "HTTP/1.x", "http/1.2", "XHTTP/1.2", "2", ""]
    {
        assert_eq!(lowered(other), None, "{other}");
    }
    assert!(!lower_version(&mut []));
}

#[test]
fn absolute_form_gives_its_own_host_and_an_origin_form() {
    let mut fields = header_buffer();
    let head = RequestHead::parse(b"GET http://b.example?x=1 HTTP/1.1\r\nHost: a\r\n\r\n", &mut fields);
    let head = head.expect("absolute form is to be accepted");
    assert_eq!((head.target_lead, head.target, head.host), ("/", "?x=1", &b"b.example"[..]));
}

#[test]
fn only_a_whole_websocket_offer_is_an_upgrade() {
    let offers = |head: &str| {
        RequestHead::parse(head.as_bytes(), &mut header_buffer())
            .map(|head| head.wants_websocket)
            .unwrap_or(false)
    };
    let get = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
    assert!(offers(&get("Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket")));
    for offer in
        ["websocket, h2c", "h2c , websocket", "h2c\r\nUpgrade: websocket", "websocket\r\nUpgrade: h2c"]
    {
        assert!(offers(&get(&format!("Connection: upgrade\r\nUpgrade: {offer}"))), "{offer}");
    }
    // Without a body: it may be announced in any way as long as it is empty, which its end tells.
    for empty in ["Content-Length: 0", "Content-Length: 00", "Transfer-Encoding: chunked"] {
        let offer = get(&format!("{empty}\r\nConnection: upgrade\r\nUpgrade: websocket"));
        assert!(offers(&offer), "{empty}");
    }
    assert!(!offers(&get("Connection: upgrade\r\nUpgrade: websocket/13, websockets")));
    assert!(!offers(&get("Upgrade: websocket")));
    assert!(!offers("GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"));
    assert!(!offers(&get("Connection: upgrade\r\nUpgrade: h2c")));
    assert!(!offers(&with("Connection: upgrade\r\nUpgrade: websocket")));
}

fn parsed<T>(head: &str, of: impl FnOnce(RequestHead<'_, '_>) -> T) -> Result<T, Reason> {
    RequestHead::parse(head.as_bytes(), &mut header_buffer()).map(of)
}

#[test]
fn a_target_has_one_of_four_forms() {
    for (method, target, expected) in [
        ("GET", "/", ("", "/", "a")),
        ("GET", "//b/c?d", ("", "//b/c?d", "a")),
        ("OPTIONS", "*", ("", "*", "a")),
        ("OPTIONS", "/*", ("", "/*", "a")),
        ("OPTIONS", "http://b", ("", "*", "b")),
        ("OPTIONS", "http://b/", ("", "/", "b")),
        ("OPTIONS", "http://b?c", ("/", "?c", "b")),
        ("GET", "http://b", ("/", "", "b")),
        ("GET", "http://b:80/c?d=/", ("", "/c?d=/", "b:80")),
        ("GET", "HTTPS://b/c", ("", "/c", "b")),
        ("GET", "https://b?c/d", ("/", "?c/d", "b")),
    ] {
        let head = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let form =
            parsed(&head, |head| (head.target_lead.to_owned(), head.target.to_owned(), head.host.to_vec()));
        let (lead, rest, host) = expected;
        assert_eq!(form, Ok((lead.to_owned(), rest.to_owned(), host.into())), "{method} {target}");
    }
    for (method, target) in [
        ("GET", "*"),
        ("options", "*"),
        ("GET", "ftp://b/"),
        ("GET", "xhttp://b/"),
        ("GET", "http:/b"),
        ("GET", "http:///c"),
        ("GET", "https://?c"),
        ("GET", "b/c"),
        ("GET", "/#c"),
    ] {
        let head = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(refusal(&head), Reason::BadRequest(Bad::Target), "{method} {target}");
    }
}

#[test]
fn methods_and_targets_may_fill_their_bounds() {
    let head = |method: usize, target: usize| {
        format!("{} /{} HTTP/1.1\r\nHost: a\r\n\r\n", "M".repeat(method), "t".repeat(target - 1))
    };
    assert_eq!(parsed(&head(MAX_METHOD_BYTES, MAX_TARGET_BYTES), |_| ()), Ok(()));
    assert_eq!(refusal(&head(MAX_METHOD_BYTES + 1, 1)), Reason::BadRequest(Bad::MethodTooLong));
    assert_eq!(refusal(&head(1, MAX_TARGET_BYTES + 1)), Reason::BadRequest(Bad::TargetTooLong));
}

#[test]
fn a_request_has_one_host_and_each_that_it_names_is_checked() {
    let host = |head: &str| parsed(head, |head| String::from_utf8_lossy(head.host).into_owned());
    let bad = |bad| Err(Reason::BadRequest(bad));
    for (head, expected) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok("a".to_owned())),
        ("GET / HTTP/1.1\r\n\r\n", bad(Bad::HostMissing)),
        ("GET http://b/ HTTP/1.1\r\n\r\n", bad(Bad::HostMissing)),
        ("GET / HTTP/1.0\r\n\r\n", Ok("localhost".to_owned())),
        ("GET / HTTP/1.0\r\nHost: a\r\n\r\n", Ok("a".to_owned())),
        ("GET http://b/ HTTP/1.0\r\n\r\n", Ok("b".to_owned())),
        ("GET http://b/ HTTP/1.1\r\nHost: a b\r\n\r\n", bad(Bad::Host)),
        ("GET http://b@c/ HTTP/1.1\r\nHost: a\r\n\r\n", bad(Bad::Host)),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", bad(Bad::Host)),
        ("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", bad(Bad::HostTwice)),
        ("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", bad(Bad::HostTwice)),
    ] {
        assert_eq!(host(head), expected, "{head:?}");
    }
}

#[test]
fn bodies_are_framed_by_one_field() {
    for (version, fields, expected) in [
        ("1.1", "", Ok(Framing::Empty)),
        ("1.1", "Content-Length: 0", Ok(Framing::Length(0))),
        ("1.1", "Content-Length: 5", Ok(Framing::Length(5))),
        ("1.0", "Content-Length: 5", Ok(Framing::Length(5))),
        ("1.1", "Transfer-Encoding: Chunked", Ok(Framing::Chunked)),
        ("1.0", "Transfer-Encoding: chunked", Err(Bad::CodingInHttp10)),
        ("1.0", "Transfer-Encoding: cow", Err(Bad::CodingInHttp10)),
        ("1.1", "Content-Length:", Err(Bad::LengthInvalid)),
        ("1.1", "Content-Length: 5 5", Err(Bad::LengthInvalid)),
        ("1.1", "Content-Length: 5,", Err(Bad::LengthTwice)),
    ] {
        let fields = if fields.is_empty() { String::new() } else { format!("{fields}\r\n") };
        let framing =
            parsed(&format!("PUT / HTTP/{version}\r\nHost: a\r\n{fields}\r\n"), |head| head.framing);
        assert_eq!(framing, expected.map_err(Reason::BadRequest), "{version} {fields}");
    }
}

#[test]
fn connections_stay_open_as_the_version_and_the_client_have_it() {
    for (version, fields, keep_alive) in [
        ("1.1", "X: y", true),
        ("1.1", "Connection: close", false),
        ("1.1", "Connection: keep-alive, Close", false),
        ("1.1", "Connection: X-Close", true),
        ("1.1", "Connection: ,", true),
        ("1.0", "X: y", false),
        ("1.0", "Connection: Keep-Alive", true),
        ("1.0", "Connection: close, keep-alive", false),
        ("1.0", "Connection: upgrade", false),
    ] {
        let head = format!("GET / HTTP/{version}\r\nHost: a\r\n{fields}\r\n\r\n");
        assert_eq!(parsed(&head, |head| head.keep_alive), Ok(keep_alive), "{version} {fields}");
    }
}

#[test]
fn a_100_is_awaited_before_a_body_and_in_http_1_1_only() {
    for (version, fields, expected) in [
        ("1.1", "Expect: 100-Continue\r\nContent-Length: 5", Ok(true)),
        ("1.1", "Expect: 100-continue\r\nTransfer-Encoding: chunked", Ok(true)),
        ("1.1", "Expect: 100-continue", Ok(false)),
        ("1.1", "Content-Length: 5", Ok(false)),
        ("1.0", "Expect: 100-continue\r\nContent-Length: 5", Ok(false)),
        ("1.0", "Expect: else\r\nContent-Length: 5", Ok(false)),
        ("1.1", "Expect: else", Err(Reason::BadRequest(Bad::Expectation))),
        ("1.1", "Expect: 100-continue\r\nExpect: else", Err(Reason::BadRequest(Bad::Expectation))),
    ] {
        let head = format!("POST / HTTP/{version}\r\nHost: a\r\n{fields}\r\n\r\n");
        assert_eq!(parsed(&head, |head| head.expects_continue), expected, "{version} {fields}");
    }
}

#[test]
fn event_streams_are_accepted_by_name_and_by_get() {
    for (method, accept, accepts) in [
        ("GET", "text/event-stream", true),
        ("GET", "text/html, Text/Event-Stream ;q=0.5", true),
        ("GET", "text/event-stream\r\nAccept: */*", true),
        ("GET", "*/*", false),
        ("GET", "text/*;a=text/event-stream", false),
        ("GET", "text/event-streams", false),
        ("POST", "text/event-stream", false),
        ("HEAD", "text/event-stream", false),
    ] {
        let head = format!("{method} / HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n");
        assert_eq!(parsed(&head, |head| head.accepts_events), Ok(accepts), "{method} {accept}");
    }
}

#[test]
fn a_field_is_nominated_where_connection_names_it() {
    let nominated = |connection: &str| {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{connection}X: y\r\n\r\n");
        parsed(&head, |head| ["x", "y"].map(|name| head.is_nominated(name)))
    };
    assert_eq!(nominated("Connection: close, X\r\n"), Ok([true, false]));
    assert_eq!(nominated("Connection: close\r\nConnection: Y\r\n"), Ok([false, true]));
    assert_eq!(nominated("Connections: X\r\n"), Ok([false, false]));
    assert_eq!(nominated(""), Ok([false, false]));
}

#[test]
fn a_path_ends_before_the_first_question_mark() {
    for (target, path) in [("/", "/"), ("/a/b", "/a/b"), ("/a?b?c", "/a"), ("/?", "/"), ("http://b?c", "")] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(parsed(&head, |head| head.path().to_owned()).as_deref(), Ok(path), "{target}");
    }
}

#[test]
fn a_request_may_be_repeated_where_its_method_says_that_this_does_no_harm() {
    for method in
        ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "SEARCH", "REPORT", "QUERY"]
    {
        assert!(is_idempotent(method), "{method}");
    }
    for method in ["POST", "PATCH", "CONNECT", "LOCK", "get", ""] {
        assert!(!is_idempotent(method), "{method}");
    }
}
