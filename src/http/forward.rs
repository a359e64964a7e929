//! What crosses from one side to the other: heads serialised anew, so that nothing passes that was not read.

use super::response::RequestContext;
use super::{Framing, Reason, RequestHead, ResponseHead, Version, chain, field, reason, request};
use std::net::IpAddr;

/// What the server says about a client to the worker.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    /// The address of who has connected as text, IPv4 as IPv4.
    pub address: &'a str,
    pub trust: ForwardedTrust<'a>,
    /// A fresh request id, for requests that bring none that counts.
    pub fresh_id: &'a str,
    /// When the request's head was whole, in µs since 1970, as digits.
    pub start_us: &'a [u8],
}

/// Whether what somebody says about the client behind it is believed (`--trust-proxy`).
#[derive(Clone, Copy)]
pub enum ForwardedTrust<'a> {
    Ignored,
    /// A trusted proxy's; the function knows the others, whose addresses may stand in the chain.
    Believed(&'a dyn Fn(IpAddr) -> bool),
}

/// A part of a head for a worker. Half as large as a range, since it moves about with each request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    from: u32,
    bytes: u32,
}

impl Span {
    /// A head has at most some 128 KiB.
    pub fn new(from: usize, bytes: usize) -> Self {
        debug_assert!(u32::try_from(from + bytes).is_ok());
        Span { from: from as u32, bytes: bytes as u32 }
    }

    pub fn of(self, head: &[u8]) -> &[u8] {
        let from = self.from as usize;
        &head[from..from + self.bytes as usize]
    }
}

/// What of a head for a worker the log needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    pub id: Span,
    /// The client's address.
    pub client: Span,
}

/// The longest `X-Request-Id` that is taken over from a trusted proxy: longer ones would fill logs.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// The request line and all fields but those that hang on the body, and the final empty line: [`end_request_head`] adds
/// these when the body's length is known.
pub fn write_request_head(out: &mut Vec<u8>, head: &RequestHead<'_, '_>, origin: Origin<'_>) -> Written {
    let is_trusted = matches!(origin.trust, ForwardedTrust::Believed(_));
    push(out, &[head.method.as_bytes(), b" ", head.target_lead.as_bytes(), head.target.as_bytes()]);
    push(out, &[b" HTTP/1.1\r\nHost: ", head.host, b"\r\n"]);
    let mut trusted_fields = ForwardedFields::default();
    for header in head.fields {
        let value = field::trim(header.value);
        if stops_here(head, header.name, is_trusted) {
            continue;
        }
        if is_trusted && trusted_fields.take(header.name, value) {
            continue;
        }
        push(out, &[header.name.as_bytes(), b": ", value, b"\r\n"]);
    }
    out.extend_from_slice(b"X-Forwarded-For: ");
    if trusted_fields.forwarded_for {
        let is_chain = |header: &&httparse::Header<'_>| field::is(header.name, b"x-forwarded-for");
        for value in head.fields.iter().filter(is_chain).map(|header| field::trim(header.value)) {
            if !value.is_empty() {
                push(out, &[value, b", "]);
            }
        }
    }
    let from = out.len();
    push(out, &[origin.address.as_bytes(), b"\r\n"]);
    let mut client = Span::new(from, origin.address.len());
    if let ForwardedTrust::Believed(is_proxy) = origin.trust {
        out.extend_from_slice(b"Rip-Client: ");
        client = push_client(out, head.fields, is_proxy, origin.address);
        out.extend_from_slice(b"\r\n");
    }
    if !trusted_fields.proto {
        out.extend_from_slice(b"X-Forwarded-Proto: http\r\n");
    }
    if !trusted_fields.host {
        push(out, &[b"X-Forwarded-Host: ", head.host, b"\r\n"]);
    }
    if !trusted_fields.start {
        // The form that New Relic, Scout and others read the queue's time from.
        push(out, &[b"X-Request-Start: t=", origin.start_us, b"\r\n"]);
    }
    let id = trusted_fields.id.unwrap_or(origin.fresh_id.as_bytes());
    out.extend_from_slice(b"X-Request-Id: ");
    let from = out.len();
    push(out, &[id, b"\r\n"]);
    Written { id: Span::new(from, id.len()), client }
}

/// Writes the address of the client behind a trusted proxy; without one that it names, the proxy's own.
pub fn push_client(
    out: &mut Vec<u8>,
    fields: &[httparse::Header<'_>],
    is_proxy: &dyn Fn(IpAddr) -> bool,
    address: &str,
) -> Span {
    let from = out.len();
    match chain::client(fields, is_proxy) {
        Some(client) => client.push(out),
        None => out.extend_from_slice(address.as_bytes()),
    }
    Span::new(from, out.len() - from)
}

/// Ends a head begun by [`write_request_head`]. A WebSocket offer has no body and announces none.
pub fn end_request_head(out: &mut Vec<u8>, framing: Framing, wants_websocket: bool, body_bytes: u64) {
    if wants_websocket {
        out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
    } else if framing != Framing::Empty {
        out.extend_from_slice(b"Content-Length: ");
        push_decimal(out, body_bytes);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// What a trusted proxy has said already, and so is not said again.
#[derive(Default)]
struct ForwardedFields<'b> {
    forwarded_for: bool,
    proto: bool,
    host: bool,
    start: bool,
    id: Option<&'b [u8]>,
}

impl<'b> ForwardedFields<'b> {
    /// Notes one field of a trusted proxy's. `true`: it is written later, in the server's own place.
    fn take(&mut self, name: &str, value: &'b [u8]) -> bool {
        if field::is(name, b"x-forwarded-for") {
            self.forwarded_for = true;
            return true;
        }
        if field::is(name, b"x-request-id") {
            let is_fit = (1..=MAX_REQUEST_ID_BYTES).contains(&value.len())
                && value.iter().all(|byte| byte.is_ascii_graphic())
                && self.id.is_none();
            if is_fit {
                self.id = Some(value);
            }
            return true;
        }
        self.proto |= field::is(name, b"x-forwarded-proto");
        self.host |= field::is(name, b"x-forwarded-host");
        self.start |= field::is(name, b"x-request-start");
        false
    }
}

/// Whether a request's field ends at this server.
fn stops_here(head: &RequestHead<'_, '_>, name: &str, is_trusted: bool) -> bool {
    let is_ours = match name.as_bytes().first().map(u8::to_ascii_lowercase) {
        // Only fields with these initials are the server's business; all others pass after one look.
        Some(b'c') => field::is(name, b"content-length") || field::is(name, b"connection"),
        Some(b'e') => field::is(name, b"expect"),
        Some(b'f') => field::is(name, b"forwarded") && !is_trusted,
        Some(b'h') => field::is(name, b"host") || field::is(name, b"http2-settings"),
        Some(b'p') => field::is(name, b"proxy") || field::is_hop_by_hop(name),
        Some(b'k' | b't' | b'u') => field::is_hop_by_hop(name),
        Some(b'r') => field::is_internal(name),
        Some(b'x') => {
            !is_trusted
                && (field::is_forwarded(name)
                    || field::is(name, b"x-request-id")
                    || field::is(name, b"x-request-start"))
        }
        _ => false,
    };
    is_ours
        || field::is_underscore_twin(name)
        // `Connection` cannot strip what the server or a trusted proxy says.
        || (head.nominates
            && head.is_nominated(name)
            && !(field::is_forwarded(name) || field::starts_with(name, b"x-request-")))
}

/// How the body of an answer is framed for the client, and whether its connection stays open behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Onward {
    pub framing: Framing,
    pub keep_alive: bool,
}

/// Decides the framing towards the client: lengths stay, everything else is chunked, and HTTP/1.0 clients, who
/// know neither chunks nor 1xx, read until the end.
pub fn downstream(head: &ResponseHead<'_, '_>, context: RequestContext) -> Onward {
    let framing = match (head.framing, context.version) {
        (Framing::Empty, _) => Framing::Empty,
        (Framing::Length(length), _) => Framing::Length(length),
        (Framing::Chunked | Framing::UntilClose, Version::Http11) => Framing::Chunked,
        (Framing::Chunked | Framing::UntilClose, Version::Http10) => Framing::UntilClose,
    };
    Onward { framing, keep_alive: context.keep_alive && framing != Framing::UntilClose }
}

/// Serialises an answer's head for the client. `date` is a whole line, for answers that bring no valid one.
pub fn write_response_head(
    out: &mut Vec<u8>,
    head: &ResponseHead<'_, '_>,
    context: RequestContext,
    downstream: Onward,
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

/// Whether an answer's field ends at this server.
fn answer_field_stops_here(head: &ResponseHead<'_, '_>, name: &str) -> bool {
    field::is(name, b"content-length")
        || field::is_hop_by_hop(name)
        || field::is_internal(name)
        || (head.nominates && request::is_nominated(head.fields, name) && !is_indispensable(name))
}

/// Fields of an answer that no `Connection` can take away without making another answer of it.
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
    pub body: &'a [u8],
    /// Said to the client as `Retry-After: 1`.
    pub retry_soon: bool,
    /// A HEAD request's answer is a head alone.
    pub is_head: bool,
    pub version: Version,
    pub keep_alive: bool,
    /// A whole `Date` line.
    pub date: &'a [u8],
}

impl LocalResponse<'_> {
    /// Serialises head and body.
    pub fn write(&self, out: &mut Vec<u8>) {
        write_status_line(out, self.status, reason::phrase(self.status).as_bytes());
        push(out, &[b"Content-Type: ", self.content_type.as_bytes(), b"\r\nContent-Length: "]);
        push_decimal(out, self.body.len() as u64);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(self.date);
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

/// The body of a refusal: one sentence and its word, so that a person and a log can be brought together.
pub fn refusal_body(reason: Reason) -> String {
    format!("{}\n", reason.message())
}

fn write_status_line(out: &mut Vec<u8>, status: u16, phrase: &[u8]) {
    // A status has three digits, whoever made it.
    let digit = |place: u16| b'0' + (status / place % 10) as u8;
    push(out, &[b"HTTP/1.1 ", &[digit(100), digit(10), digit(1), b' '], phrase, b"\r\n"]);
}

/// Persistence is HTTP/1.1's default and HTTP/1.0's exception; only what is not the default is said.
fn write_connection(out: &mut Vec<u8>, version: Version, keep_alive: bool) {
    match (version, keep_alive) {
        (Version::Http11, true) | (Version::Http10, false) => {}
        (Version::Http11, false) => out.extend_from_slice(b"Connection: close\r\n"),
        (Version::Http10, true) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
    }
}

/// The size line before a chunk.
pub fn write_chunk_size(out: &mut Vec<u8>, size: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut shift = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1) * 4;
    while shift > 0 {
        shift -= 4;
        out.push(DIGITS[(size >> shift) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

fn push(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Decimal digits without the formatting machinery, which costs more than the rest of a small head; two a division,
/// which halves the cost of `X-Request-Start`.
pub fn push_decimal(out: &mut Vec<u8>, mut number: u64) {
    const MAX_DIGITS: usize = 20;
    let mut digits = [0u8; MAX_DIGITS];
    let mut at = MAX_DIGITS;
    while number > 9 {
        let pair = (number % 100) as u8;
        number /= 100;
        at -= 2;
        digits[at] = b'0' + pair / 10;
        digits[at + 1] = b'0' + pair % 10;
    }
    // The first of an odd count, or a lone zero.
    if number > 0 || at == MAX_DIGITS {
        at -= 1;
        digits[at] = b'0' + number as u8;
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::super::request::header_buffer;
    use super::*;

    const STRANGER: Origin<'_> = Origin {
        address: "192.0.2.7",
        trust: ForwardedTrust::Ignored,
        fresh_id: "fresh",
        start_us: b"1000000",
    };

    fn forwarded(head: &str, origin: Origin<'_>) -> String {
        let mut out = Vec::new();
        let mut fields = header_buffer();
        let head = RequestHead::parse(head.as_bytes(), &mut fields).expect("a valid head");
        let written = write_request_head(&mut out, &head, origin);
        assert!(!written.id.of(&out).is_empty());
        let client = std::str::from_utf8(written.client.of(&out)).expect("text");
        assert!(client.parse::<IpAddr>().is_ok(), "{client}");
        end_request_head(&mut out, head.framing, head.wants_websocket, 5);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn what_a_stranger_says_of_itself_is_replaced() {
        let worker = forwarded(
            "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6\r\n\
             X-Request-Id: evil\r\nX_Forwarded_For: 6\r\nProxy: evil\r\nRip-Probe: 1\r\nX-Kept: 2\r\n\r\n",
            STRANGER,
        );
        assert_eq!(
            worker,
            "GET / HTTP/1.1\r\nHost: a\r\nX-Kept: 2\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\n\
             X-Forwarded-Host: a\r\nX-Request-Start: t=1000000\r\nX-Request-Id: fresh\r\n\r\n"
        );
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_its_chain_is_appended_to() {
        let worker = forwarded(
            "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\n\
             X-Forwarded-Proto: https\r\nX-Request-Id: theirs\r\nConnection: X-Forwarded-Proto\r\n\r\n",
            Origin {
                trust: ForwardedTrust::Believed(&|address| address == IpAddr::from([2, 2, 2, 2])),
                ..STRANGER
            },
        );
        assert!(worker.contains("X-Forwarded-For: 1.1.1.1, 2.2.2.2, 192.0.2.7\r\n"), "{worker}");
        assert!(worker.contains("Rip-Client: 1.1.1.1\r\n"), "{worker}");
        assert!(worker.contains("X-Forwarded-Proto: https\r\n"), "{worker}");
        assert!(worker.contains("X-Request-Id: theirs\r\n"), "{worker}");
        assert_eq!(worker.matches("X-Forwarded-Proto").count(), 1);
    }

    #[test]
    fn nominated_fields_stop_here_but_never_ours() {
        let worker = forwarded(
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: X-Secret, Host, Content-Length\r\nX-Secret: 1\r\n\
             Content-Length: 5\r\nKeep-Alive: 5\r\nTE: trailers\r\n\r\n",
            STRANGER,
        );
        assert!(
            !worker.contains("Secret") && !worker.contains("Keep-Alive") && !worker.contains("TE:"),
            "{worker}"
        );
        assert!(worker.contains("Host: a\r\n") && worker.ends_with("Content-Length: 5\r\n\r\n"), "{worker}");
    }

    #[test]
    fn a_426_says_which_upgrade_it_wants() {
        const HEAD: &str = "HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade, X-Inner\r\nUpgrade: websocket\r\n\
             X-Inner: 1\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n";
        let passed = |head: &str, keep_alive, version| {
            let context = RequestContext { is_head: false, wants_websocket: false, version, keep_alive };
            let (mut fields, mut out) = (request::header_buffer(), Vec::new());
            let head = ResponseHead::parse(head.as_bytes(), &mut fields, context).expect("a valid head");
            write_response_head(&mut out, &head, context, downstream(&head, context), b"");
            String::from_utf8(out).expect("text")
        };
        let upgrades = "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n\
             Connection: Upgrade\r\n";
        assert_eq!(passed(HEAD, true, Version::Http11), format!("{upgrades}\r\n"));
        assert_eq!(passed(HEAD, false, Version::Http11), format!("{upgrades}Connection: close\r\n\r\n"));
        // Elsewhere it is about the worker's connection, and no upgrade but a WebSocket passes.
        let other = passed(&HEAD.replace("426 Upgrade Required", "400 Bad Request"), true, Version::Http11);
        assert_eq!(other, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    }

    #[test]
    fn decimals_are_written_as_everybody_writes_them() {
        let powers = (0..20).map(|power| 10u64.pow(power));
        let near = powers.flat_map(|power| [power - 1, power, power + 1, power.saturating_mul(3)]);
        for number in near.chain([u64::MAX]) {
            let mut out = Vec::new();
            push_decimal(&mut out, number);
            assert_eq!(String::from_utf8(out), Ok(number.to_string()));
        }
    }

    #[test]
    fn chunk_sizes_are_written_in_hexadecimal() {
        for (size, line) in [(1, "1\r\n"), (16, "10\r\n"), (65_535, "ffff\r\n")] {
            let mut out = Vec::new();
            write_chunk_size(&mut out, size);
            assert_eq!(out, line.as_bytes());
        }
    }
}
