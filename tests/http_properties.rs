//! What holds for every input of the HTTP code, however it is cut into segments. No socket: bytes in, events out.
//! The checks are those of the fuzz targets; here stand the inputs.

#[path = "fuzz/src/lib.rs"]
mod checks;

use checks::{
    check_answer_head, check_request_head, decode_alike, pass_alike, read_alike, read_behind_header_alike,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use rip_server::internals::http::Version;
use rip_server::internals::http::response::RequestContext;

const CONTEXT: RequestContext =
    RequestContext { is_head: false, wants_websocket: false, version: Version::Http11, keep_alive: true };

proptest! {
    // A failure prints its smallest input, so no file of seeds is kept.
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pipelined_requests_are_read_alike_in_any_segmentation(sent in vec(request(), 1..5), cuts in cuts()) {
        let bytes: Vec<u8> = sent.iter().flat_map(|sent| sent.bytes.clone()).collect();
        let heard = read_alike(&bytes, &cut(&bytes, &cuts));
        prop_assert_eq!(heard.refused, None);
        for (request, sent) in heard.requests.iter().zip(&sent) {
            prop_assert_eq!((&*request.method, &request.body), (sent.method, &sent.body));
        }
        let last = heard.requests.last().map(|request| request.context);
        let is_over = last.is_some_and(|last| !last.keep_alive || last.wants_websocket);
        prop_assert!(is_over || heard.requests.len() == sent.len(), "{} requests", heard.requests.len());
    }

    #[test]
    fn broken_requests_are_refused_alike_in_any_segmentation(
        bytes in broken(requests(), REQUEST_SCRAPS), cuts in cuts(),
    ) {
        read_alike(&bytes, &cut(&bytes, &cuts));
    }

    #[test]
    fn what_a_proxy_says_in_front_is_read_alike_in_any_segmentation(
        header in header(), request in request(), cuts in cuts(),
    ) {
        let bytes = [header, request.bytes].concat();
        let heard = read_behind_header_alike(&bytes, &cut(&bytes, &cuts));
        prop_assert!(!heard.requests.is_empty());
    }

    #[test]
    fn broken_proxy_headers_are_refused_alike_in_any_segmentation(
        bytes in broken((header(), request()).prop_map(|(header, sent)| [header, sent.bytes].concat()), HEADER_SCRAPS),
        cuts in cuts(),
    ) {
        read_behind_header_alike(&bytes, &cut(&bytes, &cuts));
    }

    #[test]
    fn answers_reach_the_client_alike_in_any_segmentation(sent in answer(), context in context(), cuts in cuts()) {
        let passed = pass_alike(&sent.bytes, &cut(&sent.bytes, &cuts), context);
        if let Some(status @ 200..) = passed.status {
            let has_body = !context.is_head && status != 204 && status != 304;
            prop_assert_eq!(passed.body, if has_body { sent.body } else { Vec::new() });
        }
    }

    #[test]
    fn broken_answers_are_judged_alike_in_any_segmentation(
        bytes in broken(answers(), ANSWER_SCRAPS), context in context(), cuts in cuts(),
    ) {
        pass_alike(&bytes, &cut(&bytes, &cuts), context);
    }

    #[test]
    fn chunked_bodies_decode_as_by_a_naive_reader(
        bytes in prop_oneof![chunks_and_more(), broken(chunks_and_more(), REQUEST_SCRAPS)], cuts in cuts(),
    ) {
        decode_alike(&bytes, &cut(&bytes, &cuts));
    }

    #[test]
    fn heads_for_workers_pass_our_own_strict_reader(
        bytes in prop_oneof![requests(), broken(requests(), REQUEST_SCRAPS)], is_trusted: bool,
    ) {
        check_request_head(&bytes, is_trusted);
    }

    #[test]
    fn heads_for_clients_pass_our_own_strict_reader(
        bytes in prop_oneof![answers(), broken(answers(), ANSWER_SCRAPS)], context in context(),
    ) {
        check_answer_head(&bytes, context);
    }
}

#[test]
fn bounds_of_heads_hold_alike_in_any_segmentation() {
    let long = |bytes| "x".repeat(bytes);
    for head in [
        format!("{} /{} HTTP/1.1\r\nHost: a\r\n\r\n", long(200), long(16_380)),
        format!("GET /{} HTTP/1.1\n", long(17_000)),
        format!("GET / HTTP/1.1\r\nX: {}\n", long(66_000)),
    ] {
        read_alike(head.as_bytes(), &head.as_bytes().chunks(100).collect::<Vec<_>>());
    }
    let answer = format!("HTTP/1.1 200 {}\r\nContent-Length: 0\r\n\r\n", long(17_000));
    pass_alike(answer.as_bytes(), &answer.as_bytes().chunks(100).collect::<Vec<_>>(), CONTEXT);
}

#[test]
fn a_busy_answer_is_one_whatever_is_wrong_with_its_body() {
    let answer = b"HTTP/1.1 503 B\r\nRip-Worker-Busy: 1\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n";
    pass_alike(answer, &answer.chunks(20).collect::<Vec<_>>(), CONTEXT);
}

#[test]
fn a_chunk_too_large_is_refused_as_such_whatever_is_behind_it() {
    let body_bytes = usize::try_from(checks::MAX_BODY_BYTES).expect("a small bound") + 1;
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body_bytes:x}\r\n");
    let bytes = [head.as_bytes(), &vec![b'x'; body_bytes], b"no line end"].concat();
    read_alike(&bytes, &bytes.chunks(1000).collect::<Vec<_>>());
}

#[test]
fn the_largest_heads_that_are_accepted_pass_our_own_strict_reader() {
    let head = |fields: String| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    check_request_head(head("X: y\r\n".repeat(199)).as_bytes(), false);
    check_request_head(head(format!("X: {}\r\n", "y".repeat(65_480))).as_bytes(), false);
}

/// A message, and what its reader should get of it.
#[derive(Debug, Clone)]
struct Sent {
    bytes: Vec<u8>,
    method: &'static str,
    body: Vec<u8>,
}

/// A body with the field that frames it.
#[derive(Debug, Clone)]
struct Coded {
    field: String,
    wire: Vec<u8>,
    plain: Vec<u8>,
}

// Words between bars, for `one_of`.

const REQUEST_FIELDS: &str = "Connection: close|Connection: keep-alive, X-Kept|TE: trailers|\
    connection: Upgrade\r\nUpgrade: websocket|Connection: Host, Content-Length, X-Forwarded-For|\
    Expect: 100-continue|Keep-Alive: 5|X-Forwarded-For: 6.6.6.6, 7.7.7.7|X-Forwarded-Proto:https|\
    X-Forwarded-Host: b|Forwarded: for=6.6.6.6|\
    X-Request-Id: theirs|X-Request-Start: t=5|X_Forwarded_For: 6.6.6.6|content_length: 7|Rip-Probe: 1|Proxy: evil|\
    Cookie: a=b; c=\"d\"|X-Kept: \t blank, and \u{e9}\t |X-Empty:";
const ANSWER_FIELDS: &str = "Connection: close|Connection: Date, X-Kept, Set-Cookie|Keep-Alive: timeout=5|\
    Date: Tue, 15 Nov 1994 08:12:31 GMT|Date: yesterday|Trailer: X-Sum|Upgrade: websocket|Set-Cookie: a=b|\
    Proxy-Authenticate: Basic|Rip-Worker-Id: 3|Rip-Worker-Busy: 1|X-Kept: \t blank, and \u{e9}\t |\
    Content-Type: text/event-stream; charset=utf-8";
/// What comes into a message to break it, and what garbage is made of.
const REQUEST_SCRAPS: &str = "|\r|\n|\r\n|\r\n\r\n|\0| |\t|:|;|,|0|5|\u{e9}|/|GET |HTTP/1.0| HTTP/1.1\r\n|\
    GET / HTTP/1.1\r\n|Host: a\r\n|Host: a/b\r\n|Content-Length: 5\r\n|Content-Length: 9999999\r\n|\
    POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n|Transfer-Encoding: gzip, chunked\r\n|\
    Transfer-Encoding: chunked\r\n|5\r\nhello\r\n|0\r\n\r\n|fffffff\r\n|Expect: 200-ok\r\n|http://b@c|\u{16}\u{3}";
const ANSWER_SCRAPS: &str = "|\r|\n|\r\n|\r\n\r\n|\0| |\t|:|;|,|0|5|\u{e9}|HTTP/1.1 200 OK\r\n|HTTP/1.0 200 OK\r\n|\
    HTTP/1.1 103 Early Hints\r\n\r\n|HTTP/1.1 101 Switching Protocols\r\n\r\n|HTTP/1.1 099 ?\r\n|\
    HTTP/1.1 503 \r\nRip-Worker-Busy: 1\r\n|Content-Length: 5\r\n|Content-Length: 6\r\n|5\r\nhello\r\n|0\r\n\r\n|\
    Transfer-Encoding: chunked\r\n|Transfer-Encoding: cow\r\n|fffffff\r\n|HTTP/1.1 204 No Content\r\n\r\n";
const HEADER_SCRAPS: &str = "|\r|\n|\r\n|\0| |.|:|0|5|\u{e9}|PROXY |PROXY TCP4 |PROXY UNKNOWN|TCP6 |1.2.3.4 |::1 |65535|\
    \r\n\r\n\0\r\nQUIT\n|!\u{11}\0\u{c}|GET / HTTP/1.1\r\n";
const INTERIMS: &str = "HTTP/1.1 100 Continue\r\n\r\n|\
    HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nDate: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\n";
const STATUS_LINES: &str =
    "1.1 200 OK|1.1 200 OK|1.0 200|1.1 404 |1.1 204 None|1.1 304 Same|1.1 503 Later|1.1 101 Switch";

fn one_of(words: &'static str) -> impl Strategy<Value = &'static str> {
    select(words.split('|').collect::<Vec<_>>())
}

fn cuts() -> impl Strategy<Value = Vec<Index>> {
    vec(any::<Index>(), 0..6)
}

fn cut<'b>(bytes: &'b [u8], cuts: &[Index]) -> Vec<&'b [u8]> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut from = 0;
    let pieces = ends.into_iter().map(|to| &bytes[std::mem::replace(&mut from, to)..to]);
    // An empty piece would mean the end.
    pieces.filter(|piece| !piece.is_empty()).collect()
}

fn fields(known: &'static str) -> impl Strategy<Value = String> {
    let free = "X-[A-Za-z0-9_.]{0,8}:[ -~]{0,12}";
    let field = prop_oneof![3 => one_of(known).prop_map(str::to_owned), 1 => free];
    vec(field.prop_map(|field| field + "\r\n"), 0..6).prop_map(|fields| fields.concat())
}

/// Chunks in what variety the coding allows.
fn chunks() -> impl Strategy<Value = Coded> {
    let chunk = (vec(any::<u8>(), 1..20), one_of("|;a=b| ;a|;q=\"x;y\""));
    (vec(chunk, 0..5), one_of("|X-Sum: 1\r\n|A:\r\nB: b\r\n")).prop_map(|(chunks, trailer)| {
        let mut wire = Vec::new();
        for (data, extension) in &chunks {
            wire.extend([format!("{:02X}{extension}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat());
        }
        wire.extend(format!("0\r\n{trailer}\r\n").bytes());
        let plain = chunks.into_iter().flat_map(|(data, _)| data).collect();
        Coded { field: "Transfer-Encoding: chunked\r\n".to_owned(), wire, plain }
    })
}

fn chunks_and_more() -> impl Strategy<Value = Vec<u8>> {
    (chunks(), vec(any::<u8>(), 0..4)).prop_map(|(body, behind)| [body.wire, behind].concat())
}

/// `unframed`: what follows a head that frames no body.
fn body(unframed: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Coded> {
    let unframed = unframed.prop_map(|plain| Coded { field: String::new(), wire: plain.clone(), plain });
    let length = vec(any::<u8>(), 0..50).prop_map(|plain| Coded {
        field: format!("Content-Length: {}\r\n", plain.len()),
        wire: plain.clone(),
        plain,
    });
    prop_oneof![unframed, length, chunks()]
}

fn request() -> impl Strategy<Value = Sent> {
    let methods = one_of("GET|GET|HEAD|POST|PUT|OPTIONS|x~Y");
    let targets = one_of("/|/a?b=1%20|/server|/status?x|//a/\u{e9}|http://b?c=1|https://b:80/d");
    let versions = one_of("1.1|1.1|1.1|1.0");
    let parts = (methods, targets, versions, fields(REQUEST_FIELDS), body(Just(Vec::new())));
    parts.prop_map(|(method, target, version, fields, body)| {
        // HTTP/1.0 has no chunks.
        let version = if body.field.starts_with('T') { "1.1" } else { version };
        let head = format!("{method} {target} HTTP/{version}\r\nHost: a:80\r\n{fields}{}\r\n", body.field);
        Sent { bytes: [head.as_bytes(), &body.wire].concat(), method, body: body.plain }
    })
}

/// A PROXY protocol header of either version.
fn header() -> impl Strategy<Value = Vec<u8>> {
    let line = one_of(
        "UNKNOWN|UNKNOWN what ever|TCP4 192.0.2.7 198.51.100.1 56324 443|TCP4 0.0.0.0 1.1.1.1 0 65535|\
        TCP6 2001:db8::7 ::1 1 2|TCP6 ::ffff:192.0.2.7 ::1 1 2",
    );
    let line = line.prop_map(|line| format!("PROXY {line}\r\n").into_bytes());
    let kind = select(vec![
        (0x20, 0x00, 0),
        (0x20, 0x11, 0),
        (0x21, 0x00, 0),
        (0x21, 0x11, 12),
        (0x21, 0x21, 36),
        (0x21, 0x31, 216),
    ]);
    let binary =
        (kind, vec(any::<u8>(), 216), 0..40usize).prop_map(|((command, family, least), bits, more)| {
            let behind: Vec<u8> = bits.into_iter().cycle().take(least + more).collect();
            let length = u16::try_from(behind.len()).expect("short").to_be_bytes();
            [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, &behind].concat()
        });
    prop_oneof![line, binary]
}

fn requests() -> impl Strategy<Value = Vec<u8>> {
    let request = (one_of("||\r\n|\r\n\r\n"), request());
    let request = request.prop_map(|(blank, sent)| [blank.as_bytes(), &sent.bytes].concat());
    vec(request, 1..4).prop_map(|requests| requests.concat())
}

/// Perhaps some interim answers, and a final one.
fn answer() -> impl Strategy<Value = Sent> {
    let bodies = body(vec(any::<u8>(), 0..50));
    let parts = (vec(one_of(INTERIMS), 0..3), one_of(STATUS_LINES), fields(ANSWER_FIELDS), bodies);
    parts.prop_map(|(interims, line, fields, body)| {
        let line = if body.field.starts_with('T') { line.replace("1.0", "1.1") } else { line.to_owned() };
        let head = format!("{}HTTP/{line}\r\n{fields}{}\r\n", interims.concat(), body.field);
        Sent { bytes: [head.as_bytes(), &body.wire].concat(), method: "", body: body.plain }
    })
}

fn answers() -> impl Strategy<Value = Vec<u8>> {
    answer().prop_map(|sent| sent.bytes)
}

fn context() -> impl Strategy<Value = RequestContext> {
    any::<[bool; 4]>().prop_map(|[is_head, upgrade, is_old, keep_alive]| RequestContext {
        is_head,
        wants_websocket: upgrade && !is_head && !is_old,
        version: if is_old { Version::Http10 } else { Version::Http11 },
        keep_alive,
    })
}

/// Messages with a few scraps in the wrong places, or scraps and bytes alone.
fn broken(valid: impl Strategy<Value = Vec<u8>>, scraps: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let edits = vec((any::<Index>(), 0..4usize, one_of(scraps)), 1..4);
    let edited = (valid, edits).prop_map(|(mut bytes, edits)| {
        for (at, removed, scrap) in edits {
            let from = at.index(bytes.len() + 1);
            bytes.splice(from..bytes.len().min(from + removed), scrap.bytes());
        }
        bytes
    });
    let scrap = one_of(scraps).prop_map(|scrap| scrap.as_bytes().to_vec());
    let garbage = vec(prop_oneof![6 => scrap, 1 => vec(any::<u8>(), 1..3)], 0..30);
    prop_oneof![3 => edited, 1 => garbage.prop_map(|scraps| scraps.concat())]
}
