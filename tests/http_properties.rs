//! What holds for every input of the HTTP code, however it is cut into segments. No socket: bytes in, events out.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use rip_server::conn::client::Event;
use rip_server::conn::inbox::Unread;
use rip_server::conn::request::Local;
use rip_server::conn::worker::{End, Outcome};
use rip_server::conn::{Client, Worker};
use rip_server::http::forward::{self, Origin};
use rip_server::http::request::room;
use rip_server::http::response::Asked;
use rip_server::http::{Chunked, Framing, Reason, RequestHead, ResponseHead, Version, field, head};
use std::time::Instant;

/// Larger than any body here, so that only announced sizes go beyond it.
const MAX_BODY_BYTES: u64 = 1 << 20;
const DATE: &[u8] = b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
const ORIGIN: Origin<'_> =
    Origin { address: "192.0.2.7", is_trusted: true, fresh_id: "fresh", start_us: 1_000_000 };

proptest! {
    // A failure prints its smallest input, so no file of seeds is kept.
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pipelined_requests_are_read_alike_in_any_segmentation(sent in vec(request(), 1..5), cuts in cuts()) {
        let bytes: Vec<u8> = sent.iter().flat_map(|sent| sent.bytes.clone()).collect();
        let heard = read_alike(&bytes, &cuts);
        prop_assert_eq!(heard.refused, None);
        for (heard, sent) in heard.requests.iter().zip(&sent) {
            prop_assert_eq!((&heard.method, &heard.body), (&sent.method, &sent.body));
        }
        let is_last = heard.requests.last().is_some_and(|last| !last.asked.keep_alive || last.asked.wants_websocket);
        prop_assert!(heard.requests.len() == sent.len() || is_last, "{} of {}", heard.requests.len(), sent.len());
    }

    #[test]
    fn broken_requests_are_refused_alike_in_any_segmentation(bytes in broken(requests(), REQUEST_SCRAPS), cuts in cuts()) {
        read_alike(&bytes, &cuts);
    }

    #[test]
    fn answers_reach_the_client_alike_in_any_segmentation(sent in answer(), asked in asked(), cuts in cuts()) {
        let passed = pass_alike(&sent.bytes, asked, &cuts);
        if let Some(status @ 200..) = passed.status {
            let has_body = !asked.is_head && status != 204 && status != 304;
            prop_assert_eq!(passed.body, if has_body { sent.body } else { Vec::new() });
        }
    }

    #[test]
    fn broken_answers_are_judged_alike_in_any_segmentation(
        bytes in broken(answer().prop_map(|sent| sent.bytes), ANSWER_SCRAPS), asked in asked(), cuts in cuts(),
    ) {
        pass_alike(&bytes, asked, &cuts);
    }

    #[test]
    fn chunked_bodies_decode_as_by_a_naive_reader(bytes in chunked_bodies(), cuts in cuts()) {
        let whole = decode(&[&bytes]);
        prop_assert_eq!(whole.clone().ok().flatten(), naively_dechunked(&bytes));
        prop_assert_eq!(&decode(&cut(&bytes, &cuts)), &whole);
        prop_assert_eq!(&decode(&bytes.chunks(1).collect::<Vec<_>>()), &whole);
    }

    #[test]
    fn heads_for_workers_pass_our_own_strict_reader(
        bytes in prop_oneof![requests(), broken(requests(), REQUEST_SCRAPS)], is_trusted: bool, body_bytes in 0..99u64,
    ) {
        if let Ok(head::Look::Whole(length)) = head::look(&bytes, &mut 0) {
            forwards_safely(&bytes[..length], Origin { is_trusted, ..ORIGIN }, body_bytes);
        }
    }

    #[test]
    fn heads_for_clients_pass_our_own_strict_reader(
        bytes in prop_oneof![answer().prop_map(|sent| sent.bytes), broken(answer().prop_map(|sent| sent.bytes), ANSWER_SCRAPS)],
        asked in asked(),
    ) {
        if let Ok(head::Look::Whole(length)) = head::look(&bytes, &mut 0) {
            answers_safely(&bytes[..length], asked);
        }
    }
}

// What is sent.

/// A message, and what its reader should get of it.
#[derive(Debug, Clone)]
struct Sent {
    bytes: Vec<u8>,
    method: Vec<u8>,
    body: Vec<u8>,
}

/// A body with the field that frames it.
#[derive(Debug, Clone)]
struct Coded {
    field: String,
    wire: Vec<u8>,
    plain: Vec<u8>,
}

const REQUEST_FIELDS: &[&str] = &[
    "Connection: close",
    "Connection: keep-alive, X-Kept",
    "connection: Upgrade",
    "Connection: Host, Content-Length, X-Forwarded-For",
    "Upgrade: websocket",
    "Expect: 100-continue",
    "Keep-Alive: 5",
    "TE: trailers",
    "Proxy: evil",
    "X-Forwarded-For: 6.6.6.6, 7.7.7.7",
    "X-Forwarded-Proto:https",
    "X-Forwarded-Host: there",
    "X-Request-Id: theirs",
    "X-Request-Start: t=5",
    "Forwarded: for=6.6.6.6",
    "X_Forwarded_For: 6.6.6.6",
    "content_length: 7",
    "Rip-Probe: 1",
    "Cookie: a=b; c=\"d\"",
    "X-Kept: \t blank, and \u{e9}\t ",
    "X-Empty:",
];
const ANSWER_FIELDS: &[&str] = &[
    "Connection: close",
    "Connection: Date, X-Kept, Set-Cookie",
    "Keep-Alive: timeout=5",
    "Date: Tue, 15 Nov 1994 08:12:31 GMT",
    "Date: yesterday",
    "Trailer: X-Sum",
    "Upgrade: websocket",
    "Proxy-Authenticate: Basic",
    "Rip-Worker-Id: 3",
    "Rip-Worker-Busy: 1",
    "Content-Type: text/event-stream; charset=utf-8",
    "Set-Cookie: a=b",
    "X-Kept: \t blank, and \u{e9}\t ",
];
/// What comes into a message to break it, and with which garbage is made.
const REQUEST_SCRAPS: &[&str] = &[
    "",
    "\r",
    "\n",
    "\r\n",
    "\r\n\r\n",
    "\0",
    " ",
    "\t",
    ":",
    ";",
    ",",
    "0",
    "5",
    "\u{e9}",
    "GET ",
    "POST / HTTP/1.1\r\n",
    "/",
    " HTTP/1.1\r\n",
    "HTTP/1.0",
    "Host: a\r\n",
    "Host: a/b\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 9999999\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "fffffff\r\n",
    "Expect: 200-ok\r\n",
    "http://b@c",
    "\u{16}\u{3}\u{1}",
];
const ANSWER_SCRAPS: &[&str] = &[
    "",
    "\r",
    "\n",
    "\r\n",
    "\r\n\r\n",
    "\0",
    " ",
    "\t",
    ":",
    ";",
    ",",
    "0",
    "5",
    "\u{e9}",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 103 Early Hints\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "HTTP/1.1 099 ?\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 503 \r\nRip-Worker-Busy: 1\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 6\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: cow\r\n",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "fffffff\r\n",
    "HTTP/1.1 204 No Content\r\n\r\n",
];

fn cuts() -> impl Strategy<Value = Vec<Index>> {
    vec(any::<Index>(), 0..6)
}

fn fields(known: &'static [&'static str]) -> impl Strategy<Value = String> {
    let free = "X-[A-Za-z0-9_.]{0,8}:[ -~]{0,12}";
    let one = prop_oneof![3 => select(known).prop_map(str::to_owned), 1 => free];
    vec(one, 0..6).prop_map(|lines| lines.iter().map(|line| format!("{line}\r\n")).collect())
}

/// Chunks of what the coding allows: any case, leading zeros, extensions, trailers.
fn chunks() -> impl Strategy<Value = Coded> {
    let chunk = (vec(any::<u8>(), 1..20), select(&["", ";a=b", ";q=\"x;y\""][..]));
    (vec(chunk, 0..5), select(&["", "X-Sum: 1\r\n", "A:\r\nB: b\r\n"][..])).prop_map(|(chunks, trailer)| {
        let mut wire = Vec::new();
        for (data, extension) in &chunks {
            wire.extend(format!("{:02X}{extension}\r\n", data.len()).bytes());
            wire.extend([data.as_slice(), b"\r\n"].concat());
        }
        wire.extend(format!("0\r\n{trailer}\r\n").bytes());
        Coded {
            field: "Transfer-Encoding: chunked\r\n".to_owned(),
            wire,
            plain: chunks.into_iter().flat_map(|(data, _)| data).collect(),
        }
    })
}

/// `unframed`: what a message holds that frames no body.
fn bodies(unframed: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Coded> {
    let coded = |field, plain: Vec<u8>| Coded { field, wire: plain.clone(), plain };
    prop_oneof![
        unframed.prop_map(move |plain| coded(String::new(), plain)),
        vec(any::<u8>(), 0..50)
            .prop_map(move |plain| coded(format!("Content-Length: {}\r\n", plain.len()), plain)),
        chunks(),
    ]
}

fn request() -> impl Strategy<Value = Sent> {
    let methods = &["GET", "GET", "HEAD", "POST", "PUT", "OPTIONS", "x~Y"][..];
    let targets =
        &["/", "/a?b=1%20", "/server", "/status?x", "//a/\u{e9}", "http://b?c=1", "https://b:80/d"][..];
    let versions = select(&["1.1", "1.1", "1.1", "1.0"][..]);
    let parts =
        (select(methods), select(targets), versions, fields(REQUEST_FIELDS), bodies(Just(Vec::new())));
    parts.prop_map(|(method, target, version, fields, body)| {
        // HTTP/1.0 has no chunks.
        let version = if body.field.starts_with('T') { "1.1" } else { version };
        let head = format!("{method} {target} HTTP/{version}\r\nHost: a:80\r\n{fields}{}\r\n", body.field);
        Sent {
            bytes: [head.as_bytes(), &body.wire].concat(),
            method: method.as_bytes().to_vec(),
            body: body.plain,
        }
    })
}

fn requests() -> impl Strategy<Value = Vec<u8>> {
    let blank = select(&["", "", "\r\n", "\r\n\r\n"][..]);
    let one = (blank, request()).prop_map(|(blank, sent)| [blank.as_bytes(), &sent.bytes].concat());
    vec(one, 1..4).prop_map(|all| all.concat())
}

/// Perhaps some interim answers, a final one, and perhaps something that nobody asked for.
fn answer() -> impl Strategy<Value = Sent> {
    let interims =
        &["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nDate: x\r\n\r\n"][..];
    let lines = &[
        "1.1 200 OK",
        "1.1 200 OK",
        "1.0 200",
        "1.1 404 ",
        "1.1 204 None",
        "1.1 304 Same",
        "1.1 503 Later",
        "1.1 101 Switching Protocols",
    ][..];
    let parts =
        (vec(select(interims), 0..3), select(lines), fields(ANSWER_FIELDS), bodies(vec(any::<u8>(), 0..50)));
    parts.prop_map(|(interims, line, fields, body)| {
        let line = if body.field.starts_with('T') { line.replace("1.0", "1.1") } else { line.to_owned() };
        let head = format!("{}HTTP/{line}\r\n{fields}{}\r\n", interims.concat(), body.field);
        Sent { bytes: [head.as_bytes(), &body.wire].concat(), method: Vec::new(), body: body.plain }
    })
}

fn asked() -> impl Strategy<Value = Asked> {
    (select(&[Version::Http11, Version::Http10][..]), any::<[bool; 3]>()).prop_map(
        |(version, [is_head, upgrade, keep_alive])| Asked {
            is_head,
            wants_websocket: upgrade && !is_head && version == Version::Http11,
            version,
            keep_alive,
        },
    )
}

/// Messages with a few scraps in the wrong places, or scraps and bytes alone.
fn broken(
    valid: impl Strategy<Value = Vec<u8>>,
    scraps: &'static [&'static str],
) -> impl Strategy<Value = Vec<u8>> {
    let edit = (any::<Index>(), 0..4usize, select(scraps));
    let edited = (valid, vec(edit, 1..4)).prop_map(|(mut bytes, edits)| {
        for (at, removed, scrap) in edits {
            let from = at.index(bytes.len() + 1);
            bytes.splice(from..bytes.len().min(from + removed), scrap.bytes());
        }
        bytes
    });
    let scrap = prop_oneof![6 => select(scraps).prop_map(|scrap| scrap.as_bytes().to_vec()), 1 => vec(any::<u8>(), 1..3)];
    prop_oneof![3 => edited, 1 => vec(scrap, 0..30).prop_map(|scraps| scraps.concat())]
}

fn chunked_bodies() -> impl Strategy<Value = Vec<u8>> {
    let valid = || (chunks(), vec(any::<u8>(), 0..4)).prop_map(|(body, behind)| [body.wire, behind].concat());
    prop_oneof![valid(), broken(valid(), REQUEST_SCRAPS)]
}

fn cut<'b>(bytes: &'b [u8], cuts: &[Index]) -> Vec<&'b [u8]> {
    let mut ends: Vec<usize> =
        cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([bytes.len()]).collect();
    ends.sort_unstable();
    let mut from = 0;
    let pieces = ends.into_iter().map(|to| &bytes[std::mem::replace(&mut from, to)..to]);
    pieces.filter(|piece| !piece.is_empty()).collect()
}

// A client's connection.

/// A request as the rest of the server gets it.
#[derive(Debug, PartialEq)]
struct Read {
    head: Vec<u8>,
    method: Vec<u8>,
    path: Vec<u8>,
    id: Vec<u8>,
    asked: Asked,
    framing: Framing,
    local: Option<Local>,
    body: Vec<u8>,
}

/// All that came of a client's bytes.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    requests: Vec<Read>,
    continues: usize,
    tunnel: Vec<u8>,
    refused: Option<Reason>,
    has_ended: bool,
}

fn read_alike(bytes: &[u8], cuts: &[Index]) -> Heard {
    let whole = read(&[bytes]);
    assert_eq!(read(&cut(bytes, cuts)), whole, "in some pieces");
    assert_eq!(read(&bytes.chunks(1).collect::<Vec<_>>()), whole, "byte by byte");
    whole
}

fn read(segments: &[&[u8]]) -> Heard {
    let (mut client, mut heard, mut body) = (Client::default(), Heard::default(), Vec::new());
    for segment in segments {
        feed(&mut client, segment, &mut heard, &mut body);
    }
    client.has_ended = true;
    feed(&mut client, &[], &mut heard, &mut body);
    heard
}

/// As the reactor does it: each request is answered before what is behind it is looked at.
fn feed(client: &mut Client, segment: &[u8], heard: &mut Heard, body: &mut Vec<u8>) {
    let mut fresh = segment.to_vec();
    let mut unread = Unread::join(client.inbox.take(), &mut fresh);
    loop {
        let step = client.advance(unread.rest(), ORIGIN, MAX_BODY_BYTES, Vec::new, Instant::now());
        let mut is_over = false;
        let mut request = None;
        match step.event {
            Event::More => is_over = true,
            Event::Continue => heard.continues += 1,
            Event::Body(range) => body.extend_from_slice(&unread.rest()[range]),
            Event::Request(whole) => request = Some(whole),
            Event::Refused(reason, _) => heard.refused = Some(reason),
            Event::Tunnel(range) => heard.tunnel.extend_from_slice(&unread.rest()[range]),
            Event::End => (heard.has_ended, is_over) = (true, true),
        }
        unread.consume(step.consumed);
        if let Some(request) = request {
            client.inbox.keep(unread);
            heard.requests.push(Read {
                method: request.method().to_vec(),
                path: request.path().to_vec(),
                id: request.id().to_vec(),
                asked: request.asked,
                framing: request.framing,
                local: request.local,
                head: request.head,
                body: std::mem::take(body),
            });
            match request.asked {
                Asked { wants_websocket: true, .. } => client.upgraded(),
                Asked { keep_alive: true, .. } => client.answered(),
                _ => client.linger(),
            }
            return feed(client, &[], heard, body);
        }
        if is_over {
            return client.inbox.keep(unread);
        }
    }
}

// A worker's connection.

/// All that came of an answer's bytes.
#[derive(Debug, PartialEq)]
struct Passed {
    outcome: Outcome,
    end: Option<End>,
    status: Option<u16>,
    media_type: Vec<u8>,
    /// The heads that reached the client, and the body behind them.
    heads: Vec<u8>,
    body: Vec<u8>,
}

fn pass_alike(bytes: &[u8], asked: Asked, cuts: &[Index]) -> Passed {
    let whole = pass(&[bytes], asked);
    assert_eq!(pass(&cut(bytes, cuts), asked), whole, "in some pieces");
    assert_eq!(pass(&bytes.chunks(1).collect::<Vec<_>>(), asked), whole, "byte by byte");
    whole
}

fn pass(segments: &[&[u8]], asked: Asked) -> Passed {
    let mut worker = Worker::default();
    worker.ask(asked);
    let (mut out, mut prefix, mut body, mut answer) = (Vec::new(), Vec::new(), Vec::new(), None);
    let mut outcome = Outcome::Going;
    for segment in segments.iter().filter(|segment| !segment.is_empty()) {
        prefix.clear();
        let mut fresh = segment.to_vec();
        let mut unread = Unread::join(worker.inbox.take(), &mut fresh);
        let step = worker.receive(unread.rest(), DATE, &mut prefix);
        let data = &unread.rest()[step.data];
        if !matches!(step.outcome, Outcome::Busy { .. } | Outcome::Invalid(_)) {
            out.extend([&prefix, data, step.suffix].concat());
            body.extend_from_slice(data);
            answer = answer.or(step.answer);
        }
        unread.consume(step.consumed);
        worker.inbox.keep(unread);
        outcome = match (outcome, step.outcome) {
            // What comes behind an answer, at once or later, takes the connection out of use.
            (Outcome::Ended { .. }, _) => Outcome::Ended { reusable: false },
            // A busy answer is judged by its head; a later piece of it was not waited for.
            (Outcome::Busy { .. }, _) | (_, Outcome::Busy { .. }) => Outcome::Busy { reusable: false },
            (Outcome::Invalid(invalid), _) => Outcome::Invalid(invalid),
            (Outcome::Upgraded, Outcome::Going) => Outcome::Upgraded,
            (_, now) => now,
        };
    }
    // What had gone out before an answer was found to be none depends on the segments; that it is none does not.
    if matches!(outcome, Outcome::Busy { .. } | Outcome::Invalid(_)) {
        return Passed {
            outcome,
            end: None,
            status: None,
            media_type: Vec::new(),
            heads: Vec::new(),
            body: Vec::new(),
        };
    }
    let end = (!matches!(outcome, Outcome::Ended { .. })).then(|| worker.end(false));
    if let Some(End::Whole(suffix)) = end {
        out.extend_from_slice(suffix);
    }
    let is_whole = matches!((outcome, end), (Outcome::Ended { .. }, _) | (_, Some(End::Whole(_))));
    let mut heads = 0;
    while let Ok(head::Look::Whole(length)) = head::look(&out[heads..], &mut 0) {
        let is_interim =
            out[heads..].starts_with(b"HTTP/1.1 1") && !out[heads..].starts_with(b"HTTP/1.1 101");
        heads += length;
        if !is_interim {
            break;
        }
    }
    let framed = out.split_off(heads);
    match answer.map(|answer| answer.onward) {
        // A whole body decodes to what the worker said; a cut one has no end.
        Some(Framing::Chunked) => {
            assert_eq!(naively_dechunked(&framed), is_whole.then(|| (body.clone(), framed.len())))
        }
        Some(Framing::Length(length)) if is_whole => {
            assert_eq!((length, &framed), (body.len() as u64, &body))
        }
        _ => assert_eq!(framed, body),
    }
    Passed {
        outcome,
        end,
        status: answer.map(|answer| answer.status),
        media_type: answer.map_or(Vec::new(), |answer| answer.media_type().to_vec()),
        heads: out,
        body,
    }
}

// Heads that go out.

fn forwards_safely(bytes: &[u8], origin: Origin<'_>, body_bytes: u64) {
    let mut fields = room();
    let Ok(head) = RequestHead::parse(bytes, &mut fields, MAX_BODY_BYTES) else { return };
    let (body_bytes, framing) = match head.framing {
        Framing::Length(length) => (length, head.framing),
        Framing::Chunked => (body_bytes, Framing::Length(body_bytes)),
        Framing::Empty | Framing::UntilClose => (0, Framing::Empty),
    };
    let written = write_request(&head, origin, body_bytes);
    let mut fields = room();
    let again = RequestHead::parse(&written, &mut fields, u64::MAX).expect("what goes to a worker is valid");
    let target = [head.target_lead, head.target].concat();
    assert_eq!((again.method, again.target, again.host), (head.method, &*target, head.host));
    assert_eq!((again.framing, again.wants_websocket), (framing, head.wants_websocket));
    let count =
        |name: &str| again.fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).count();
    assert_eq!((count("host"), count("transfer-encoding"), count("content-length") <= 1), (1, 0, true));

    // Serialised once more, only the chain of addresses grows.
    let rewritten = write_request(&again, ORIGIN, body_bytes);
    assert_eq!(lines_but_the_chain(&rewritten), lines_but_the_chain(&written));
}

fn write_request(head: &RequestHead<'_, '_>, origin: Origin<'_>, body_bytes: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let id = forward::write_request_head(&mut out, head, origin);
    assert!(out[..id.start].ends_with(b"X-Request-Id: ") && out[id.end..] == *b"\r\n", "{out:?}");
    forward::end_request_head(&mut out, head.framing, body_bytes);
    is_clean(&out);
    out
}

fn lines_but_the_chain(head: &[u8]) -> Vec<&[u8]> {
    let lines = head.split(|&byte| byte == b'\n');
    let mut lines: Vec<&[u8]> = lines.filter(|line| !line.starts_with(b"X-Forwarded-For: ")).collect();
    lines.sort_unstable();
    lines
}

fn answers_safely(bytes: &[u8], asked: Asked) {
    let mut fields = room();
    let Ok(head) = ResponseHead::parse(bytes, &mut fields, asked) else { return };
    let onward = forward::onward(&head, asked);
    let mut out = Vec::new();
    forward::write_response_head(&mut out, &head, asked, onward, DATE);
    is_clean(&out);
    let mut fields = room();
    let again = ResponseHead::parse(&out, &mut fields, asked).expect("what goes to a client is valid");
    assert_eq!((again.status, again.phrase, again.framing), (head.status, head.phrase, onward.framing));
    let dates = again.fields.iter().filter(|field| field.name.eq_ignore_ascii_case("date")).count();
    assert_eq!(dates, usize::from(head.status >= 200));
    for field in
        again.fields.iter().filter(|field| field::is_hop_by_hop(field.name) || field::is_internal(field.name))
    {
        let is_ours = match (field.name, field.value) {
            ("Connection" | "Upgrade", b"Upgrade" | b"websocket") => head.status == 101,
            ("Connection", b"close") => asked.version == Version::Http11 && !onward.keep_alive,
            ("Connection", b"keep-alive") => asked.version == Version::Http10 && onward.keep_alive,
            ("Transfer-Encoding", b"chunked") => onward.framing == Framing::Chunked,
            _ => false,
        };
        assert!(is_ours, "{field:?}");
    }
}

/// Lines end with CR LF, the head with an empty one, and no such byte stands anywhere else.
fn is_clean(head: &[u8]) {
    assert_eq!(head::look(head, &mut 0), Ok(head::Look::Whole(head.len())));
    let text = head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    assert!(text.clone().all(field::is_value), "{:?}", String::from_utf8_lossy(head));
}

// The chunked coding.

type Dechunked = Option<(Vec<u8>, usize)>;

/// The data and the bytes of a whole body; nothing of a cut one.
fn decode(segments: &[&[u8]]) -> Result<Dechunked, rip_server::http::reason::Bad> {
    let (mut decoder, mut data, mut consumed, mut has_ended) = (Chunked::default(), Vec::new(), 0, false);
    for segment in segments {
        let mut bytes = segment.to_vec();
        let decoded = decoder.decode(&mut bytes)?;
        data.extend_from_slice(&bytes[decoded.data]);
        consumed += decoded.consumed;
        has_ended = decoded.ended;
    }
    Ok(has_ended.then_some((data, consumed)))
}

/// The same by RFC 9112 §7.1 read line by line, with the whole body at hand.
fn naively_dechunked(bytes: &[u8]) -> Dechunked {
    let (mut data, mut rest) = (Vec::new(), bytes);
    loop {
        let line = line(&mut rest)?;
        let digits = line.split(|&byte| byte == b';').next()?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        match usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()? {
            0 => break,
            size => data.extend_from_slice(rest.split_off(..size)?),
        }
        rest = rest.strip_prefix(b"\r\n")?;
    }
    loop {
        match line(&mut rest)? {
            b"" => return Some((data, bytes.len() - rest.len())),
            trailer => {
                let name = &trailer[..trailer.iter().position(|&byte| byte == b':')?];
                if name.is_empty() || !name.iter().copied().all(field::is_token_byte) {
                    return None;
                }
            }
        }
    }
}

fn line<'b>(rest: &mut &'b [u8]) -> Option<&'b [u8]> {
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let line = rest.split_off(..end + 2)?.strip_suffix(b"\r\n")?;
    field::is_value(line).then_some(line)
}
