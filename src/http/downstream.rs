//! Answers to the client: an app's, with the head written anew, and the server's own.

use super::digits::{push, push_decimal};
use super::phrase::phrase;
use super::response::RequestContext;
use super::{Framing, Reason, ResponseHead, Version, field, request};

/// How the body of an answer is framed for the client, and whether its connection stays open behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Downstream {
    pub framing: Framing,
    pub keep_alive: bool,
}

impl Downstream {
    /// Lengths stay; everything else is chunked. HTTP/1.0 has no chunks, so there the body ends with the connection.
    pub fn of(head: &ResponseHead<'_, '_>, context: RequestContext) -> Self {
        let framing = match (head.framing, context.version) {
            (Framing::Empty, _) => Framing::Empty,
            (Framing::Length(length), _) => Framing::Length(length),
            (Framing::Chunked | Framing::UntilClose, Version::Http11) => Framing::Chunked,
            (Framing::Chunked | Framing::UntilClose, Version::Http10) => Framing::UntilClose,
        };
        Downstream { framing, keep_alive: context.keep_alive && framing != Framing::UntilClose }
    }
}

/// Writes an answer's head for the client. `date` is a whole line, for answers without a valid one.
pub fn write_response_head(
    out: &mut Vec<u8>,
    head: &ResponseHead<'_, '_>,
    context: RequestContext,
    downstream: Downstream,
    date: &[u8],
) {
    let is_interim = head.status < 200;
    write_status_line(out, head.status, head.phrase.as_bytes());
    let mut dated = is_interim;
    for header in head.fields {
        let value = field::trim(header.value);
        if answer_field_stops_here(head, header.name) {
            continue;
        }
        if field::is(header.name, b"date") {
            if dated || !is_date(value) {
                continue;
            }
            dated = true;
        }
        push(out, &[header.name.as_bytes(), b": ", value, b"\r\n"]);
    }
    if head.status == 101 {
        out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
        return;
    }
    if is_interim {
        out.extend_from_slice(b"\r\n");
        return;
    }
    if !dated {
        out.extend_from_slice(date);
    }
    let length = match downstream.framing {
        Framing::Length(length) => Some(length),
        // A 204 has no length (RFC 9110 §8.6); HEAD and 304 may say what a GET would bring.
        Framing::Empty if head.status != 204 => head.length,
        Framing::Empty | Framing::UntilClose => None,
        Framing::Chunked => {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
            None
        }
    };
    if let Some(length) = length {
        out.extend_from_slice(b"Content-Length: ");
        push_decimal(out, length);
        out.extend_from_slice(b"\r\n");
    }
    if head.status == UPGRADE_REQUIRED {
        write_wanted_upgrades(out, head.fields);
    }
    write_connection(out, context.version, downstream.keep_alive);
    out.extend_from_slice(b"\r\n");
}

const UPGRADE_REQUIRED: u16 = 426;

/// A 426 has to say what it wants (RFC 9110 §15.5.22), and that this is about the connection (§7.8).
fn write_wanted_upgrades(out: &mut Vec<u8>, fields: &[httparse::Header<'_>]) {
    let upgrades = || {
        let lines = fields.iter().filter(|header| field::is(header.name, b"upgrade"));
        lines.map(|header| field::trim(header.value)).filter(|value| !value.is_empty())
    };
    for value in upgrades() {
        push(out, &[b"Upgrade: ", value, b"\r\n"]);
    }
    if upgrades().next().is_some() {
        out.extend_from_slice(b"Connection: Upgrade\r\n");
    }
}

/// Whether a field of an answer is not forwarded.
fn answer_field_stops_here(head: &ResponseHead<'_, '_>, name: &str) -> bool {
    field::is(name, b"content-length")
        || field::is_hop_by_hop(name)
        || field::is_internal(name)
        || (head.nominates && request::is_nominated(head.fields, name) && !is_indispensable(name))
}

/// Fields that `Connection` cannot remove: without them it would be another answer.
fn is_indispensable(name: &str) -> bool {
    field::is(name, b"date")
        || field::is(name, b"content-type")
        || field::is(name, b"content-encoding")
        || field::is(name, b"set-cookie")
}

fn is_date(value: &[u8]) -> bool {
    std::str::from_utf8(value).is_ok_and(|text| httpdate::parse_http_date(text).is_ok())
}

/// A whole answer of the server's own.
pub struct LocalResponse<'a> {
    pub status: u16,
    pub content_type: &'static str,
    /// Further fields, each a whole line.
    pub fields: &'a [u8],
    pub body: &'a [u8],
    /// Whether to send `Retry-After: 1`.
    pub retry_soon: bool,
    /// The request was a HEAD: no body is sent.
    pub is_head: bool,
    pub version: Version,
    pub keep_alive: bool,
    /// A whole `Date` line.
    pub date: &'a [u8],
}

impl LocalResponse<'_> {
    /// Writes head and body.
    pub fn write(&self, out: &mut Vec<u8>) {
        write_status_line(out, self.status, phrase(self.status).as_bytes());
        push(out, &[b"Content-Type: ", self.content_type.as_bytes(), b"\r\nContent-Length: "]);
        push_decimal(out, self.body.len() as u64);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(self.date);
        out.extend_from_slice(self.fields);
        if self.retry_soon {
            out.extend_from_slice(b"Retry-After: 1\r\n");
        }
        write_connection(out, self.version, self.keep_alive);
        out.extend_from_slice(b"\r\n");
        if !self.is_head {
            out.extend_from_slice(self.body);
        }
    }
}

/// The body of a refusal: the reason's sentence.
pub fn refusal_body(reason: Reason) -> String {
    format!("{}\n", reason.message())
}

fn write_status_line(out: &mut Vec<u8>, status: u16, phrase: &[u8]) {
    // Three digits, whatever the number.
    let digit = |place: u16| b'0' + (status / place % 10) as u8;
    push(out, &[b"HTTP/1.1 ", &[digit(100), digit(10), digit(1), b' '], phrase, b"\r\n"]);
}

/// Writes `Connection` only where it is not the default: HTTP/1.1 keeps connections, HTTP/1.0 closes them.
fn write_connection(out: &mut Vec<u8>, version: Version, keep_alive: bool) {
    match (version, keep_alive) {
        (Version::Http11, true) | (Version::Http10, false) => {}
        (Version::Http11, false) => out.extend_from_slice(b"Connection: close\r\n"),
        (Version::Http10, true) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &[u8] = b"Date: today\r\n";
    const GET: RequestContext =
        RequestContext { is_head: false, wants_websocket: false, version: Version::Http11, keep_alive: true };

    /// An answer's head as the client gets it.
    fn passed_on(head: &str, context: RequestContext) -> String {
        let (mut fields, mut out) = (request::header_buffer(), Vec::new());
        let head = ResponseHead::parse(head.as_bytes(), &mut fields, context).expect("a valid head");
        write_response_head(&mut out, &head, context, Downstream::of(&head, context), DATE);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn an_answer_says_how_its_body_is_framed_for_the_client() {
        let old = RequestContext { version: Version::Http10, ..GET };
        let last = RequestContext { keep_alive: false, ..GET };
        let head = RequestContext { is_head: true, ..GET };
        let (length, chunked) = ("Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n");
        for (line, fields, context, expected) in [
            ("1.1 200 OK", length, GET, "Content-Length: 5\r\n"),
            ("1.1 200 OK", length, last, "Content-Length: 5\r\nConnection: close\r\n"),
            ("1.1 200 OK", length, old, "Content-Length: 5\r\nConnection: keep-alive\r\n"),
            ("1.1 200 OK", length, RequestContext { keep_alive: false, ..old }, "Content-Length: 5\r\n"),
            ("1.1 200 OK", length, head, "Content-Length: 5\r\n"),
            ("1.1 200 OK", chunked, GET, chunked),
            ("1.1 200 OK", chunked, head, ""),
            ("1.1 200 OK", chunked, old, ""),
            ("1.0 200 OK", "", GET, chunked),
            ("1.1 304 Same", length, GET, "Content-Length: 5\r\n"),
            ("1.1 204 None", length, GET, ""),
            ("1.1 404 Not Found", length, GET, "Content-Length: 5\r\n"),
        ] {
            let (_, status) = line.split_once(' ').expect("a status");
            let out = passed_on(&format!("HTTP/{line}\r\n{fields}\r\n"), context);
            assert_eq!(
                out,
                format!("HTTP/1.1 {status}\r\nDate: today\r\n{expected}\r\n"),
                "{fields} {context:?}"
            );
        }
    }

    #[test]
    fn interim_answers_have_no_date_and_no_framing() {
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(passed_on(hints, GET), "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
        let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: y\r\n\r\n";
        let switched = "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: y\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\n\r\n";
        assert_eq!(passed_on(switch, RequestContext { wants_websocket: true, ..GET }), switched);
    }

    #[test]
    fn an_answer_has_one_date_and_a_valid_one() {
        let (valid, other) =
            ("Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n", "Date: Mon, 07 Nov 1994 08:49:37 GMT\r\n");
        for (said, expected) in [
            (String::new(), "Date: today\r\n"),
            (valid.to_owned(), valid),
            ("Date: yesterday\r\n".to_owned(), "Date: today\r\n"),
            (format!("Date: \u{e9}\r\n{valid}{other}"), valid),
        ] {
            let out = passed_on(&format!("HTTP/1.1 200 OK\r\n{said}Content-Length: 0\r\n\r\n"), GET);
            assert_eq!(out, format!("HTTP/1.1 200 OK\r\n{expected}Content-Length: 0\r\n\r\n"), "{said}");
        }
    }

    #[test]
    fn fields_of_the_workers_connection_reach_no_client() {
        let nominates =
            "Connection: X-Inner, Date, Content-Type, Content-Encoding, Set-Cookie\r\nX-Inner: 1\r\n";
        let own = "Keep-Alive: 5\r\nTrailer: X-Sum\r\nProxy-Authenticate: Basic\r\nRip-Worker-Id: 1\r\n";
        let kept = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: text/css\r\nContent-Encoding: br\r\n\
             Set-Cookie: a=b\r\nX-Kept: 2\r\nETag: x\r\n";
        let head = format!("HTTP/1.1 200 OK\r\n{own}{nominates}{kept}Content-Length: 5\r\n\r\n");
        assert_eq!(passed_on(&head, GET), format!("HTTP/1.1 200 OK\r\n{kept}Content-Length: 5\r\n\r\n"));
    }

    #[test]
    fn an_answer_of_the_servers_own_is_whole() {
        let refusal = refusal_body(Reason::QueueTimeout);
        assert_eq!(refusal, "No worker became free in time.\n");
        let answer = LocalResponse {
            status: 504,
            content_type: "text/plain",
            fields: b"X: y\r\n",
            body: refusal.as_bytes(),
            retry_soon: true,
            is_head: false,
            version: Version::Http11,
            keep_alive: false,
            date: DATE,
        };
        let written = |answer: &LocalResponse<'_>| {
            let mut out = Vec::new();
            answer.write(&mut out);
            String::from_utf8(out).expect("text")
        };
        let head = "HTTP/1.1 504 Gateway Timeout\r\nContent-Type: text/plain\r\nContent-Length: 31\r\nDate: today\r\nX: y\r\n";
        assert_eq!(written(&answer), format!("{head}Retry-After: 1\r\nConnection: close\r\n\r\n{refusal}"));
        let answer = LocalResponse { retry_soon: false, is_head: true, keep_alive: true, ..answer };
        assert_eq!(written(&answer), format!("{head}\r\n"));
    }

    #[test]
    fn a_426_says_which_upgrade_it_wants() {
        const HEAD: &str = "HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade, X-Inner\r\nUpgrade: websocket\r\n\
             X-Inner: 1\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n";
        let upgrades = "HTTP/1.1 426 Upgrade Required\r\nDate: today\r\nContent-Length: 0\r\nUpgrade: websocket\r\n\
             Upgrade: h2c\r\nConnection: Upgrade\r\n";
        assert_eq!(passed_on(HEAD, GET), format!("{upgrades}\r\n"));
        let last = passed_on(HEAD, RequestContext { keep_alive: false, ..GET });
        assert_eq!(last, format!("{upgrades}Connection: close\r\n\r\n"));
        // In any other answer `Upgrade` is about the worker's connection, and is dropped.
        let other = passed_on(&HEAD.replace("426 Upgrade Required", "400 Bad Request"), GET);
        assert_eq!(other, "HTTP/1.1 400 Bad Request\r\nDate: today\r\nContent-Length: 0\r\n\r\n");
        // One that names no upgrade has none.
        let silent = passed_on("HTTP/1.1 426 Upgrade Required\r\nUpgrade:\r\nContent-Length: 0\r\n\r\n", GET);
        assert_eq!(silent, "HTTP/1.1 426 Upgrade Required\r\nDate: today\r\nContent-Length: 0\r\n\r\n");
    }
}
