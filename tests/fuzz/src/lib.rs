//! What is checked of the HTTP code for any bytes, by `tests/http_properties.rs` and by the fuzz targets: that their
//! meaning does not depend on segments, and that what goes out is what our own strict readers take.

use rip_server::internals::conn::client::Event;
use rip_server::internals::conn::read_buffer::PendingBytes;
use rip_server::internals::conn::request::Local;
use rip_server::internals::conn::worker::{Answer, End, Outcome};
use rip_server::internals::conn::{Client, Request, Worker};
use rip_server::internals::http::chunked::Fault;
use rip_server::internals::http::downstream::{self, Downstream};
use rip_server::internals::http::forward::{self, ForwardedTrust, Origin};
use rip_server::internals::http::proxy_header::{self, Fault as HeaderFault, MAX_V2_BYTES, Scan, Source};
use rip_server::internals::http::request::header_buffer;
use rip_server::internals::http::response::RequestContext;
use rip_server::internals::http::{
    Chunked, Framing, MAX_FIELDS, Reason, RequestHead, ResponseHead, Version, field, head,
};
use std::net::IpAddr;
use std::time::Instant;

/// More than the bodies here have, so that only announced sizes go beyond it.
pub const MAX_BODY_BYTES: u64 = 1 << 20;
const DATE: &[u8] = b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
const ORIGIN: Origin<'_> = Origin {
    address: "192.0.2.7",
    trust: ForwardedTrust::Believed(&is_proxy),
    fresh_id: b"fresh",
    start_us: b"1000000",
};

fn is_proxy(address: IpAddr) -> bool {
    address.is_loopback() || address == IpAddr::from([192, 0, 2, 7])
}

// A client's connection.

/// All that came of a client's bytes.
#[derive(Debug, Default, PartialEq)]
pub struct Heard {
    pub requests: Vec<Whole>,
    pub refused: Option<Reason>,
    continues: usize,
    tunnel: Vec<u8>,
    /// What a proxy has said in front.
    source: Option<Source>,
    no_header: Option<Option<HeaderFault>>,
}

/// A request as the rest of the server gets it, in what a person can read.
#[derive(Debug, PartialEq)]
pub struct Whole {
    pub method: String,
    pub body: Vec<u8>,
    pub context: RequestContext,
    path: String,
    id: String,
    framing: Framing,
    is_idempotent: bool,
    local: Option<Local>,
    head: String,
}

/// What is heard of `bytes` in one piece, which is what is heard of them in `pieces`, and byte by byte.
pub fn read_alike(bytes: &[u8], pieces: &[&[u8]]) -> Heard {
    read_all_alike(bytes, pieces, Client::default)
}

/// The same where a proxy says first who has connected to it. What follows its header is heard as without one.
pub fn read_behind_header_alike(bytes: &[u8], pieces: &[&[u8]]) -> Heard {
    check_header(bytes);
    let heard = read_all_alike(bytes, pieces, Client::with_proxy_header);
    match proxy_header::scan(bytes) {
        Ok(Scan::Whole { source, bytes: length }) => {
            let alone = Heard { source: Some(source), ..read(&[&bytes[length..]], Client::default) };
            assert_eq!(heard, alone);
        }
        Ok(Scan::Partial) if bytes.is_empty() => assert_eq!(heard, Heard::default()),
        Ok(Scan::Partial) => assert_eq!(heard, Heard { no_header: Some(None), ..Heard::default() }),
        Err(fault) => assert_eq!(heard, Heard { no_header: Some(Some(fault)), ..Heard::default() }),
    }
    heard
}

/// A header is one by its own bytes alone: its beginnings are beginnings, and what follows changes nothing.
fn check_header(bytes: &[u8]) {
    let whole = proxy_header::scan(bytes);
    for end in 0..bytes.len().min(MAX_V2_BYTES + 1) {
        let beginning = proxy_header::scan(&bytes[..end]);
        match (beginning, whole) {
            (Ok(Scan::Partial), Ok(Scan::Whole { bytes: length, .. })) => assert!(end < length),
            (Ok(Scan::Partial), Ok(Scan::Partial) | Err(_)) => assert!(end < MAX_V2_BYTES),
            (Ok(Scan::Whole { bytes: length, .. }), _) => {
                assert!(length <= end && beginning == whole, "{beginning:?}, then {whole:?}");
            }
            (Err(_), _) => assert_eq!(beginning, whole, "once it is none, it is none"),
        }
    }
}

fn read_all_alike(bytes: &[u8], pieces: &[&[u8]], client: fn() -> Client) -> Heard {
    let whole = read(&[bytes], client);
    assert_eq!(read(pieces, client), whole, "in {} pieces", pieces.len());
    assert_eq!(read(&bytes.chunks(1).collect::<Vec<_>>(), client), whole, "byte by byte");
    whole
}

fn read(segments: &[&[u8]], client: fn() -> Client) -> Heard {
    let (mut client, mut heard, mut body) = (client(), Heard::default(), Vec::new());
    for segment in segments.iter().chain([&&b""[..]]) {
        client.has_ended = segment.is_empty();
        let mut fresh = segment.to_vec();
        // What stands behind a request is looked at when that has been answered, as in the reactor.
        while let Some(request) = feed(&mut client, &mut fresh, &mut heard, &mut body) {
            match request.context {
                RequestContext { wants_websocket: true, .. } => client.upgraded(),
                RequestContext { keep_alive: true, .. } => client.answered(),
                _ => client.linger(),
            }
            let target = request.head.split(|&byte| byte == b' ').nth(1).expect("a target");
            assert_eq!(
                text(request.path()),
                text(target.split(|&byte| byte == b'?').next().expect("a path"))
            );
            heard.requests.push(Whole {
                method: text(request.method()),
                body: std::mem::take(&mut body),
                context: request.context,
                path: text(request.path()),
                id: text(request.id()),
                framing: request.framing,
                is_idempotent: request.is_idempotent,
                local: request.local,
                head: text(&request.head),
            });
            fresh.clear();
        }
    }
    if heard.no_header.is_some() {
        return heard;
    }
    let step = client.advance(&mut [], ORIGIN, MAX_BODY_BYTES, Vec::new, Instant::now());
    assert!(matches!(step.event, Event::End), "{:?} although the client has ended", step.event);
    heard
}

/// As the reactor's: steps until a request is whole or more bytes are needed.
fn feed(client: &mut Client, fresh: &mut [u8], heard: &mut Heard, body: &mut Vec<u8>) -> Option<Request> {
    let mut pending_bytes = PendingBytes::join(client.read_buffer.take(), fresh);
    let (mut request, mut is_over) = (None, false);
    while !is_over {
        let step =
            client.advance(pending_bytes.remaining(), ORIGIN, MAX_BODY_BYTES, Vec::new, Instant::now());
        match step.event {
            Event::More => is_over = true,
            Event::ProxyHeader(source) => heard.source = Some(source),
            Event::NoProxyHeader(fault) => (heard.no_header, is_over) = (Some(fault), true),
            Event::Continue => heard.continues += 1,
            Event::Body(range) => body.extend_from_slice(&pending_bytes.remaining()[range]),
            Event::Request(whole) => (request, is_over) = (Some(whole), true),
            Event::Refused(reason, _) => heard.refused = Some(reason),
            Event::Tunnel(range) => heard.tunnel.extend_from_slice(&pending_bytes.remaining()[range]),
            Event::End => is_over = true,
        }
        pending_bytes.consume(step.consumed);
    }
    client.read_buffer.keep(pending_bytes);
    request
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

// A worker's connection.

/// All that came of an answer's bytes.
#[derive(Debug, PartialEq)]
pub struct Passed {
    pub status: Option<u16>,
    /// What the worker's body is decoded to.
    pub body: Vec<u8>,
    outcome: Outcome,
    end: Option<End>,
    heads: String,
}

/// What is passed on of an answer in one piece, which is what is passed on of it in `pieces`, and byte by byte.
pub fn pass_alike(bytes: &[u8], pieces: &[&[u8]], context: RequestContext) -> Passed {
    let whole = pass(&[bytes], context);
    assert_eq!(pass(pieces, context), whole, "in {} pieces", pieces.len());
    assert_eq!(pass(&bytes.chunks(1).collect::<Vec<_>>(), context), whole, "byte by byte");
    whole
}

fn pass(segments: &[&[u8]], context: RequestContext) -> Passed {
    let mut worker = Worker::default();
    worker.ask(context);
    let (mut sent, mut body, mut outcome) = (Vec::new(), Vec::new(), Outcome::Going);
    let mut answer: Option<Answer> = None;
    for segment in segments.iter().filter(|segment| !segment.is_empty()) {
        let mut fresh = segment.to_vec();
        let mut pending_bytes = PendingBytes::join(worker.read_buffer.take(), &mut fresh);
        let mut prefix = Vec::new();
        let step = worker.receive(pending_bytes.remaining(), DATE, &mut prefix);
        outcome = match (outcome, step.outcome) {
            // What comes behind an answer, at once or later, takes the connection out of use.
            (Outcome::Ended { .. }, _) => Outcome::Ended { reusable: false },
            (Outcome::Upgraded, Outcome::Going) => Outcome::Upgraded,
            // A busy answer is not waited for, so how much of it has come depends on the segments.
            (_, Outcome::Busy { .. }) => Outcome::Busy { reusable: false },
            (_, now) => now,
        };
        if matches!(outcome, Outcome::Busy { .. } | Outcome::Invalid(_) | Outcome::Stray { .. }) {
            // What had gone out before depends on the segments; that this is no answer does not.
            return Passed { status: None, body: Vec::new(), outcome, end: None, heads: String::new() };
        }
        let data = &pending_bytes.remaining()[step.data];
        sent.extend([&prefix, data, step.suffix].concat());
        body.extend_from_slice(data);
        answer = answer.or(step.answer);
        pending_bytes.consume(step.consumed);
        worker.read_buffer.keep(pending_bytes);
    }
    let end = (!matches!(outcome, Outcome::Ended { .. })).then(|| worker.end(false));
    if let Some(End::Whole(suffix)) = end {
        sent.extend_from_slice(suffix);
    }
    let is_whole = matches!((outcome, end), (Outcome::Ended { .. }, _) | (_, Some(End::Whole(_))));
    let framed = sent.split_off(heads_bytes(&sent, context));
    match answer.map(|answer| answer.downstream) {
        // A whole body decodes to what the worker said; a cut one has no end.
        Some(Framing::Chunked) => {
            assert_eq!(decode_naively(&framed), is_whole.then(|| (body.clone(), framed.len())));
        }
        Some(Framing::Length(length)) if is_whole => {
            assert_eq!((length, &framed), (body.len() as u64, &body));
        }
        _ => assert_eq!(framed, body),
    }
    Passed { status: answer.map(|answer| answer.status), body, outcome, end, heads: text(&sent) }
}

/// The bytes of all heads that were sent: interim ones, and a final one or a 101.
fn heads_bytes(sent: &[u8], context: RequestContext) -> usize {
    let mut at = 0;
    while let Some(head) = whole_head(&sent[at..]) {
        at += head.len();
        if !head.starts_with(b"HTTP/1.1 1") || head.starts_with(b"HTTP/1.1 101") {
            break;
        }
        // A 100 is the server's own to send, and HTTP/1.0 knows no interim answers.
        assert!(context.version == Version::Http11 && !head.starts_with(b"HTTP/1.1 100"), "{}", text(head));
    }
    at
}

// Heads that go out.

/// What a worker gets of a request head that is accepted, if `bytes` begin with one.
pub fn check_request_head(bytes: &[u8], is_trusted: bool) {
    let mut fields = header_buffer();
    let Some(head) = whole_head(bytes).and_then(|head| RequestHead::parse(head, &mut fields).ok()) else {
        return;
    };
    if head.fields.len() > MAX_FIELDS {
        // Only the server's own fields may go beyond.
        return;
    }
    let (framing, body_bytes) = match head.framing {
        _ if head.wants_websocket => (Framing::Empty, 0),
        Framing::Length(bytes) => (head.framing, bytes),
        Framing::Chunked => (Framing::Length(7), 7),
        Framing::Empty | Framing::UntilClose => (Framing::Empty, 0),
    };
    let trust = if is_trusted { ORIGIN.trust } else { ForwardedTrust::Ignored };
    let written = write_request_head(&head, Origin { trust, ..ORIGIN }, body_bytes);
    let mut fields = header_buffer();
    let second = RequestHead::parse(&written, &mut fields).expect("what goes to a worker is valid");
    let target = [head.target_lead, head.target].concat();
    assert_eq!((second.method, second.target, second.host), (head.method, &*target, head.host));
    assert_eq!((second.framing, second.wants_websocket), (framing, head.wants_websocket));
    let count =
        |name: &str| second.fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).count();
    let lengths = usize::from(framing != Framing::Empty);
    assert_eq!([count("host"), count("content-length"), count("transfer-encoding")], [1, lengths, 0]);

    // Serialised once more, only the chain of addresses grows.
    let rewritten = write_request_head(&second, ORIGIN, body_bytes);
    assert_eq!(lines_but_the_chain(&rewritten), lines_but_the_chain(&written));
}

fn write_request_head(head: &RequestHead<'_, '_>, origin: Origin<'_>, body_bytes: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let forward::Written { id, client } = forward::write_request_head(&mut out, head, origin);
    assert!(text(client.of(&out)).parse::<IpAddr>().is_ok(), "{}", text(&out));
    let id = [b"X-Request-Id: ", id.of(&out), b"\r\n"].concat();
    assert!(out.ends_with(&id), "{}", text(&out));
    forward::end_request_head(&mut out, head.framing, head.wants_websocket, body_bytes);
    check_lines(&out);
    out
}

fn lines_but_the_chain(head: &[u8]) -> Vec<&[u8]> {
    let is_chain = |line: &&[u8]| line.starts_with(b"X-Forwarded-For: ") || line.starts_with(b"Rip-Client: ");
    let lines = head.split(|&byte| byte == b'\n').filter(|line| !is_chain(line));
    let mut lines: Vec<&[u8]> = lines.collect();
    lines.sort_unstable();
    lines
}

/// What a client gets of an answer's head that is accepted, if `bytes` begin with one.
pub fn check_answer_head(bytes: &[u8], context: RequestContext) {
    let mut fields = header_buffer();
    let Some(head) = whole_head(bytes).and_then(|head| ResponseHead::parse(head, &mut fields, context).ok())
    else {
        return;
    };
    let downstream = Downstream::of(&head, context);
    let mut out = Vec::new();
    downstream::write_response_head(&mut out, &head, context, downstream, DATE);
    check_lines(&out);
    let mut fields = header_buffer();
    let second = ResponseHead::parse(&out, &mut fields, context).expect("what goes to a client is valid");
    assert_eq!(
        (second.status, second.phrase, second.framing),
        (head.status, head.phrase, downstream.framing)
    );
    let dates = second.fields.iter().filter(|field| field.name.eq_ignore_ascii_case("date")).count();
    assert_eq!(dates, usize::from(head.status >= 200));
    for field in second.fields {
        let may_stand = match (field.name, field.value) {
            ("Connection", b"Upgrade") | ("Upgrade", _) => matches!(head.status, 101 | 426),
            ("Connection", b"close") => context.version == Version::Http11 && !downstream.keep_alive,
            ("Connection", b"keep-alive") => context.version == Version::Http10 && downstream.keep_alive,
            ("Transfer-Encoding", b"chunked") => downstream.framing == Framing::Chunked,
            (name, _) => !field::is_hop_by_hop(name) && !field::is_internal(name),
        };
        assert!(may_stand, "{field:?}");
    }
}

fn whole_head(bytes: &[u8]) -> Option<&[u8]> {
    match head::look(bytes, &mut head::Scanned::default()) {
        Ok(head::HeadScan::Whole(length)) => Some(&bytes[..length]),
        Ok(head::HeadScan::Partial) | Err(_) => None,
    }
}

/// Lines end with CR LF, the head with an empty one, and no control byte stands anywhere else.
fn check_lines(head: &[u8]) {
    let lines = head.strip_suffix(b"\r\n\r\n").expect("an empty line at the end");
    for line in lines.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)) {
        let is_text = line.iter().all(|byte| !byte.is_ascii_control() || *byte == b'\t');
        assert!(is_text && !line.is_empty(), "{}", text(head));
    }
}

// The chunked coding.

/// The data and the bytes of a whole body; nothing of a cut one.
type Decoded = Option<(Vec<u8>, usize)>;

/// `bytes` decode in one piece, in `pieces` and byte by byte to what a naive reader makes of them.
pub fn decode_alike(bytes: &[u8], pieces: &[&[u8]]) {
    let whole = decode(&[bytes]);
    assert_eq!(decode(pieces), whole, "in {} pieces", pieces.len());
    assert_eq!(decode(&bytes.chunks(1).collect::<Vec<_>>()), whole, "byte by byte");
    assert_eq!(decode_naively(bytes), whole.ok().flatten());
}

fn decode(segments: &[&[u8]]) -> Result<Decoded, Fault> {
    let (mut decoder, mut data, mut consumed, mut has_ended) = (Chunked::default(), Vec::new(), 0, false);
    for segment in segments {
        let mut bytes = segment.to_vec();
        let decoded = decoder.decode(&mut bytes, u64::MAX)?;
        assert_eq!(bytes[decoded.consumed..], segment[decoded.consumed..], "what is behind stays as it was");
        data.extend_from_slice(&bytes[decoded.data]);
        consumed += decoded.consumed;
        has_ended = decoded.ended;
    }
    Ok(has_ended.then_some((data, consumed)))
}

/// RFC 9112 §7.1 read line by line, with the whole body at hand.
fn decode_naively(bytes: &[u8]) -> Decoded {
    let (mut data, mut remaining) = (Vec::new(), bytes);
    loop {
        let line = take_line(&mut remaining)?;
        let extension_at = line.iter().position(|&byte| byte == b';');
        let digits = extension_at.map_or(line, |at| line[..at].trim_ascii_end());
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        match usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()? {
            0 => break,
            size => data.extend_from_slice(remaining.split_off(..size)?),
        }
        remaining = remaining.strip_prefix(b"\r\n")?;
    }
    loop {
        let trailer = take_line(&mut remaining)?;
        if trailer.is_empty() {
            return Some((data, bytes.len() - remaining.len()));
        }
        let name = trailer.split(|&byte| byte == b':').next()?;
        if name.is_empty() || name.len() == trailer.len() || !name.iter().copied().all(field::is_token_byte) {
            return None;
        }
    }
}

fn take_line<'b>(remaining: &mut &'b [u8]) -> Option<&'b [u8]> {
    let end = remaining.windows(2).position(|pair| pair == b"\r\n")?;
    let line = remaining.split_off(..end + 2)?.strip_suffix(b"\r\n")?;
    field::is_value(line).then_some(line)
}
