//! The bytes that clients and workers send. Each message has a number by which it is recognised.

use super::actions::Random;
use super::flaws::{FLAWS, Flaw};
use std::ops::Range;

/// One request of a client's script.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub tag: usize,
    pub method: &'static str,
    pub is_http10: bool,
    pub keep_alive: bool,
    pub wants_websocket: bool,
    /// A WebSocket, or an event stream.
    pub asks_for_stream: bool,
    /// It is to be refused for that.
    pub flaw: Option<&'static Flaw>,
    /// Answered by the server itself, without a tag in its line.
    pub is_local: bool,
    pub body: Vec<u8>,
    /// What its client sends behind it; into the tunnel, if it gets one.
    pub behind: Vec<u8>,
    /// Whom it comes from, if its peer is a trusted proxy.
    pub forwarded_for: Option<String>,
    /// Where it stands in the script.
    pub at: Range<usize>,
}

impl Planned {
    pub(crate) fn is_idempotent(&self) -> bool {
        !matches!(self.method, "POST" | "BREW")
    }
}

/// The body of a request or an answer: its own number, again and again.
pub(crate) fn pattern(letter: char, number: usize, bytes: usize) -> Vec<u8> {
    format!("{letter}{number}.").into_bytes().into_iter().cycle().take(bytes).collect()
}

/// What a proxy says of a client in front of its requests.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub bytes: Vec<u8>,
    /// Whom it names; `None`: it is no header, and nothing behind it may be read.
    pub client: Option<String>,
}

fn header(random: &mut Random) -> Header {
    let host = 1 + random.below(200);
    let binary = |command: u8, family: u8, addresses: &[u8]| {
        let fixed = [command, family, 0, addresses.len() as u8];
        [&b"\r\n\r\n\0\r\nQUIT\n"[..], &fixed, addresses].concat()
    };
    let ipv4 = [192, 0, 2, host as u8, 127, 0, 0, 1, 0, 1, 0, 2];
    let named = Some(format!("192.0.2.{host}"));
    let own = Some("127.0.0.1".to_owned());
    let (bytes, client) = match random.below(12) {
        0..=3 => (format!("PROXY TCP4 192.0.2.{host} 127.0.0.1 1 2\r\n").into_bytes(), named),
        4 => (b"PROXY UNKNOWN\r\n".to_vec(), own),
        5 => (binary(0x20, 0, &[]), own),
        6..=8 => (binary(0x21, 0x11, &ipv4), named),
        9 => (binary(0x21, 0x11, &ipv4[..11]), None),
        10 => (b"PROXY TCP4 192.0.2.7\r\n".to_vec(), None),
        _ => (Vec::new(), None),
    };
    Header { bytes, client }
}

/// Ways to offer a WebSocket.
const OFFERS: &[&[u8]] = &[
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Connection: keep-alive, Upgrade\r\nUpgrade: h2c, WebSocket\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n",
];

/// Ways to say that there is no body, with the head's end.
const NO_BODIES: &[&[u8]] = &[b"Content-Length: 0\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"];

/// Proxies on the way, and what somebody in front of them has made up. The client that is to be believed.
fn forwarded_for(random: &mut Random, bytes: &mut Vec<u8>) -> String {
    let client = format!("203.0.113.{}", 1 + random.below(200));
    let before = ["", "6.6.6.6, "][random.below(2)];
    let behind = ["", ", 127.0.0.1"][random.below(2)];
    bytes.extend_from_slice(format!("X-Forwarded-For: {before}{client}{behind}\r\n").as_bytes());
    client
}

/// A client's requests with their bytes, behind what its proxy says. `first_tag`: the number of the first one.
pub(crate) fn script(
    seed: u32,
    first_tag: usize,
    is_proxied: bool,
) -> (Vec<u8>, Vec<Planned>, Option<Header>) {
    let mut random = Random::new(seed.into());
    let header = is_proxied.then(|| header(&mut random));
    let mut bytes = header.as_ref().map_or_else(Vec::new, |header| header.bytes.clone());
    let mut requests = Vec::new();
    let count = 1 + random.below(3);
    for index in 0..count {
        let tag = first_tag + index;
        let kind = random.below(20);
        let method = match kind {
            0..=6 => "GET",
            7 => "HEAD",
            // No runtime knows it.
            8 if random.chance(2) => "BREW",
            8..=12 => "POST",
            13..=14 => "PUT",
            16 if random.chance(3) => "HEAD",
            _ => "GET",
        };
        let is_http10 = matches!(kind, 15 | 19);
        let flaw = (kind == 16).then(|| &FLAWS[random.below(FLAWS.len())]);
        let is_local = kind == 17;
        let wants_websocket = kind == 18;
        let accepts_events = method == "GET" && !is_http10 && random.chance(4);
        let keep_alive = flaw.is_none() && !is_http10 && !random.chance(8);
        let has_body = matches!(method, "POST" | "PUT");
        let length = if random.chance(4) { random.below(1500) } else { random.below(40) };
        let body = if has_body { pattern('b', tag, length) } else { Vec::new() };
        let is_chunked = has_body && random.chance(3);
        let from = bytes.len();
        let target = match is_local {
            true => ["/server", "/status"][random.below(2)].to_owned(),
            false => format!("/t{tag}/"),
        };
        let version = match flaw {
            Some(flaw) => flaw.version,
            None if is_http10 => "1.0",
            // To be read as 1.1.
            None if random.chance(16) => "1.2",
            None => "1.1",
        };
        let (host, line) = flaw.map_or(("h", ""), |flaw| (flaw.host, flaw.field));
        bytes.extend_from_slice(
            format!("{method} {target} HTTP/{version}\r\nHost: {host}\r\n{line}").as_bytes(),
        );
        let is_forwarded = flaw.is_none() && random.chance(4);
        let forwarded_for = is_forwarded.then(|| forwarded_for(&mut random, &mut bytes));
        if wants_websocket {
            bytes.extend_from_slice(OFFERS[random.below(OFFERS.len())]);
            bytes.extend_from_slice(
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            );
        } else if !keep_alive && !is_http10 {
            bytes.extend_from_slice(b"Connection: close\r\n");
        }
        if accepts_events {
            bytes.extend_from_slice(b"Accept: text/event-stream\r\n");
        }
        if has_body && random.chance(4) {
            bytes.extend_from_slice(b"Expect: 100-continue\r\n");
        }
        if is_chunked {
            bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            chunk(&mut bytes, &body, 1 + random.below(50));
        } else if has_body {
            bytes.extend_from_slice(format!("Content-Length: {length}\r\n\r\n").as_bytes());
            bytes.extend_from_slice(&body);
        } else if is_local && random.chance(2) {
            bytes.extend_from_slice(NO_BODIES[random.below(NO_BODIES.len())]);
        } else {
            bytes.extend_from_slice(b"\r\n");
        }
        let to = bytes.len();
        if flaw.is_some_and(|flaw| flaw.status == 413) {
            let some = random.below(4000);
            bytes.extend_from_slice(&pattern('b', tag, some));
        }
        requests.push(Planned {
            tag,
            method,
            is_http10,
            keep_alive,
            wants_websocket,
            asks_for_stream: wants_websocket || accepts_events,
            flaw,
            is_local,
            body,
            behind: Vec::new(),
            forwarded_for,
            at: from..to,
        });
    }
    for request in &mut requests {
        request.behind = bytes[request.at.end..].to_vec();
    }
    if header.as_ref().is_some_and(|header| header.client.is_none()) {
        requests.clear();
    }
    (bytes, requests, header)
}

fn chunk(out: &mut Vec<u8>, body: &[u8], most_bytes: usize) {
    for part in body.chunks(most_bytes) {
        out.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
}

/// A worker's answer, made up whole before its first byte is said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub number: usize,
    pub bytes: Vec<u8>,
    /// What is said before the answer can be told apart from another: its head, with interim ones before it.
    pub head_bytes: usize,
    pub status: u16,
    pub body: Vec<u8>,
    /// The worker closes the connection behind it.
    pub closes: bool,
    /// All its bytes make a whole answer.
    pub is_sound: bool,
    pub is_busy: bool,
    /// It begins with bytes of no answer.
    pub is_stray: bool,
    /// It has no body, and announces one: that may still come.
    pub may_have_late_body: bool,
    /// It may be quiet for long.
    pub may_idle: bool,
    pub is_tunnel: bool,
    /// Bytes behind its end, that nobody asked for; they come together with its last one.
    pub surplus_bytes: usize,
    /// Only the end of the connection ends it.
    pub ends_with_connection: bool,
}

/// The way to answer with server-sent events.
pub(crate) const EVENT_STREAM: usize = 17;
/// With a body that only the connection's end ends.
pub(crate) const UNTIL_CLOSE: usize = 9;
/// Not at all: another worker is to be asked.
pub(crate) const BUSY: usize = 12;

/// An answer in one of [`super::actions::STYLES`] ways to the request `tag`. `number` is the answer's own.
pub(crate) fn compose(style: usize, size: usize, number: usize, context: &Planned) -> Answer {
    let tag = context.tag;
    // Those who ask for a tunnel mostly get one.
    let style = match style % 4 {
        0 => style,
        _ if context.wants_websocket => 18,
        _ if context.asks_for_stream => EVENT_STREAM,
        _ => style,
    };
    let is_head = context.method == "HEAD";
    let sound = Answer { status: 200, is_sound: true, ..Answer::default() };
    let mut body = pattern('a', number, size);
    let head = |status: &str, fields: &str| {
        format!("HTTP/1.1 {status}\r\nX-Tag: {tag}\r\nX-Number: {number}\r\n{fields}\r\n").into_bytes()
    };
    let shown = |body: &[u8]| if is_head { Vec::new() } else { body.to_vec() };
    let mut answer = match style {
        7 | 8 => {
            let mut bytes = head("200 OK", "Transfer-Encoding: chunked\r\n");
            let head_bytes = bytes.len();
            if !is_head {
                chunk(&mut bytes, &body, 37);
            }
            Answer { bytes, head_bytes, ..sound }
        }
        UNTIL_CLOSE => {
            let bytes = head("200 OK", "Connection: close\r\n");
            let head_bytes = bytes.len();
            let bytes = [bytes, shown(&body)].concat();
            Answer { bytes, head_bytes, closes: true, ends_with_connection: !is_head, ..sound }
        }
        10 => {
            body.clear();
            let bytes = head("204 No Content", &format!("Content-Length: {}\r\n", size % 3));
            Answer { head_bytes: bytes.len(), bytes, status: 204, ..sound }
        }
        11 => {
            let interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".to_vec();
            let bytes = [interim, head("200 OK", &format!("Content-Length: {size}\r\n"))].concat();
            let head_bytes = bytes.len();
            Answer { bytes: [bytes, shown(&body)].concat(), head_bytes, ..sound }
        }
        BUSY | 19 => {
            let bytes = head("503 Busy", "Rip-Worker-Busy: 1\r\nContent-Length: 4\r\n");
            let head_bytes = bytes.len();
            let bytes = [bytes, shown(b"busy")].concat();
            Answer { bytes, head_bytes, status: 503, is_busy: true, is_sound: false, ..Answer::default() }
        }
        13 => {
            let bytes = head("200 OK", &format!("Content-Length: {}\r\n", size + 10));
            let head_bytes = bytes.len();
            let bytes = [bytes, shown(&body)].concat();
            // Of a HEAD's answer nothing is missing.
            Answer { bytes, head_bytes, closes: true, is_sound: is_head, ..sound }
        }
        14 => {
            // As if an earlier answer had had too much; what follows must not be taken for this one's.
            let stray = [&b"HTTP/3 what\r\n\r\n"[..], b"late", b"\r\n"][size % 3];
            let bytes = [stray, &head("200 OK", "Content-Length: 0\r\n")].concat();
            Answer { head_bytes: bytes.len(), bytes, is_sound: false, is_stray: true, ..Answer::default() }
        }
        15 => {
            let bytes = head("200 OK", &format!("Connection: close\r\nContent-Length: {size}\r\n"));
            let head_bytes = bytes.len();
            Answer { bytes: [bytes, shown(&body)].concat(), head_bytes, closes: true, ..sound }
        }
        16 => {
            let bytes = head("200 OK", &format!("Content-Length: {size}\r\n"));
            let head_bytes = bytes.len();
            let bytes = [bytes, shown(&body), b"?".to_vec()].concat();
            Answer { bytes, head_bytes, surplus_bytes: 1, ..sound }
        }
        EVENT_STREAM => {
            let mut bytes =
                head("200 OK", "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n");
            let head_bytes = bytes.len();
            if !is_head {
                chunk(&mut bytes, &body, 90);
            }
            Answer { bytes, head_bytes, may_idle: true, ..sound }
        }
        18 if context.wants_websocket => {
            let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
            let bytes = head("101 Switching Protocols", fields);
            let head_bytes = bytes.len();
            let bytes = [bytes, body.clone()].concat();
            Answer { bytes, head_bytes, status: 101, closes: true, is_tunnel: true, may_idle: true, ..sound }
        }
        20 => {
            let fields = format!("Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: {size}\r\n");
            let bytes = head("426 Upgrade Required", &fields);
            let head_bytes = bytes.len();
            Answer { bytes: [bytes, shown(&body)].concat(), head_bytes, status: 426, ..sound }
        }
        18 => {
            // It ends before it has said anything final.
            let bytes = b"HTTP/1.1 103 Early Hints\r\n\r\n".to_vec();
            Answer { head_bytes: bytes.len(), bytes, closes: true, is_sound: false, ..Answer::default() }
        }
        _ => {
            let bytes = head("200 OK", &format!("Content-Length: {size}\r\n"));
            let head_bytes = bytes.len();
            Answer { bytes: [bytes, shown(&body)].concat(), head_bytes, ..sound }
        }
    };
    answer.number = number;
    let text = String::from_utf8_lossy(&answer.bytes);
    let is_empty = !text.contains("Transfer-Encoding")
        && (!text.contains("Content-Length") || text.contains("Content-Length: 0\r"));
    answer.may_have_late_body = (is_head || answer.status == 204) && !is_empty;
    answer.body = if is_head { Vec::new() } else { body };
    answer
}
