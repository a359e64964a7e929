//! Requests to a worker: the head is written anew, so nothing is forwarded that was not parsed.
//! [`super::downstream`] is the other way.

use super::digits::{push, push_decimal};
use super::{Framing, RequestHead, chain, field};
use std::net::IpAddr;

/// What the server says about a client to the worker.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    /// The peer's address as text; an IPv4-mapped IPv6 address as IPv4.
    pub address: &'a str,
    pub trust: ForwardedTrust<'a>,
    /// A new request id, for requests that have no trusted one.
    pub fresh_id: &'a [u8],
    /// When the request's head was whole, in µs since 1970, as digits.
    pub start_us: &'a [u8],
}

/// Whether what the peer says about the client behind it is believed (`--trust-proxy`).
#[derive(Clone, Copy)]
pub enum ForwardedTrust<'a> {
    Ignored,
    /// The peer is a trusted proxy. The function tells which addresses in the chain are trusted proxies too.
    Believed(&'a dyn Fn(IpAddr) -> bool),
}

/// A part of a head for a worker. Half the size of a `Range<usize>`, since it is moved with each request.
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

/// Where the log finds what it needs in a head for a worker.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    pub id: Span,
    /// The client's address.
    pub client: Span,
}

/// The longest `X-Request-Id` that is taken over from a trusted proxy: longer ones would fill logs.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Writes the request line and all fields except those that depend on the body. [`end_request_head`] adds these and the
/// empty line when the body's length is known.
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
    let id = trusted_fields.id.unwrap_or(origin.fresh_id);
    out.extend_from_slice(b"X-Request-Id: ");
    let from = out.len();
    push(out, &[id, b"\r\n"]);
    Written { id: Span::new(from, id.len()), client }
}

/// Writes the address of the client behind a trusted proxy, or the proxy's own address if the chain has none.
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

/// Ends a head that [`write_request_head`] began. A WebSocket request has no body and no length.
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

/// What a trusted proxy has sent, so the server does not add it.
#[derive(Default)]
struct ForwardedFields<'b> {
    forwarded_for: bool,
    proto: bool,
    host: bool,
    start: bool,
    id: Option<&'b [u8]>,
}

impl<'b> ForwardedFields<'b> {
    /// Notes a field that a trusted proxy has sent. `true`: the server writes it itself, later.
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

/// Whether a field of a request is not forwarded.
fn stops_here(head: &RequestHead<'_, '_>, name: &str, is_trusted: bool) -> bool {
    let is_ours = match name.as_bytes().first().map(u8::to_ascii_lowercase) {
        // Only names with these first letters need a closer look.
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
        // `Connection` cannot remove what the server or a trusted proxy says.
        || (head.nominates
            && head.is_nominated(name)
            && !(field::is_forwarded(name) || field::starts_with(name, b"x-request-")))
}

#[cfg(test)]
mod tests {
    use super::super::request::header_buffer;
    use super::*;

    const STRANGER: Origin<'_> = Origin {
        address: "192.0.2.7",
        trust: ForwardedTrust::Ignored,
        fresh_id: b"fresh",
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
             X-Kept: 2\r\nContent-Length: 5\r\nKeep-Alive: 5\r\nTE: trailers\r\n\r\n",
            STRANGER,
        );
        assert!(
            !worker.contains("Secret") && !worker.contains("Keep-Alive") && !worker.contains("TE:"),
            "{worker}"
        );
        assert!(
            worker.starts_with("POST / HTTP/1.1\r\nHost: a\r\nX-Kept: 2\r\nX-Forwarded-For:"),
            "{worker}"
        );
        assert!(worker.ends_with("Content-Length: 5\r\n\r\n"), "{worker}");
        let trusted = Origin { trust: ForwardedTrust::Believed(&|_| false), ..STRANGER };
        let worker = forwarded(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Real-IP, X-Request-Start, X-Secret\r\nX-Real-IP: 1.1.1.1\r\n\
             X-Request-Start: t=5\r\nX-Secret: 1\r\n\r\n",
            trusted,
        );
        assert!(
            worker.contains("X-Real-IP: 1.1.1.1\r\nX-Request-Start: t=5\r\nX-Forwarded-For:"),
            "{worker}"
        );
    }

    #[test]
    fn fields_of_one_connection_or_of_the_server_itself_reach_no_worker() {
        let trusted = Origin { trust: ForwardedTrust::Believed(&|_| false), ..STRANGER };
        // Whether a worker gets it from a stranger, and from a trusted proxy.
        for (field, by_stranger, by_proxy) in [
            ("Keep-Alive: mine", false, false),
            ("TE: mine", false, false),
            ("Trailer: mine", false, false),
            ("Upgrade: mine", false, false),
            ("Proxy-Connection: mine", false, false),
            ("Proxy-Authorization: mine", false, false),
            ("HTTP2-Settings: mine", false, false),
            ("Connection: mine", false, false),
            ("Expect: 100-continue", false, false),
            ("Proxy: mine", false, false),
            ("Rip-Probe: mine", false, false),
            ("Content_Length: mine", false, false),
            ("X_Forwarded_Proto: mine", false, false),
            ("Forwarded: mine", false, true),
            ("X-Real-IP: mine", false, true),
            ("X-Forwarded-Port: mine", false, true),
            ("X-Request-Start: mine", false, true),
            ("Cookie: mine", true, true),
            ("Content-Type: mine", true, true),
            ("ETag: mine", true, true),
            ("From: mine", true, true),
            ("Hosts: mine", true, true),
            ("Pragma: mine", true, true),
            ("Kind: mine", true, true),
            ("Tea: mine", true, true),
            ("User-Agent: mine", true, true),
            ("Range: mine", true, true),
            ("X-Mine: mine", true, true),
            ("my_field: mine", true, true),
        ] {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
            for (origin, passes) in [(STRANGER, by_stranger), (trusted, by_proxy)] {
                let worker = forwarded(&head, origin);
                assert_eq!(worker.contains(&format!("\r\n{field}\r\n")), passes, "{worker}");
                assert!(passes || !worker.contains("mine"), "{worker}");
            }
        }
        let worker = forwarded("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", STRANGER);
        assert_eq!((worker.matches("Content-Length").count(), worker.matches("\r\nHost: ").count()), (1, 1));
    }

    #[test]
    fn what_a_trusted_proxy_says_stands_alone() {
        let trusted = Origin { trust: ForwardedTrust::Believed(&|_| false), ..STRANGER };
        let said = "X-Forwarded-Proto: https\r\nX-Forwarded-Proto: wss\r\nX-Forwarded-Host: b\r\nX-Request-Start: t=5\r\n";
        let worker = forwarded(&format!("GET / HTTP/1.1\r\nHost: a\r\n{said}\r\n"), trusted);
        let expected = "X-Forwarded-For: 192.0.2.7\r\nRip-Client: 192.0.2.7\r\nX-Request-Id: fresh\r\n";
        assert_eq!(worker, format!("GET / HTTP/1.1\r\nHost: a\r\n{said}{expected}\r\n"));
    }

    #[test]
    fn a_trusted_proxys_request_id_is_kept_if_a_log_can_hold_it() {
        let trusted = Origin { trust: ForwardedTrust::Believed(&|_| false), ..STRANGER };
        let (longest, too_long) = ("i".repeat(128), "i".repeat(129));
        for (ids, expected) in [
            (&["theirs"][..], "theirs"),
            (&["first", "second"], "first"),
            (&["", "second"], "second"),
            (&["two words"], "fresh"),
            (&["\u{e9}"], "fresh"),
            (&[&longest], &longest),
            (&[&too_long], "fresh"),
        ] {
            let said: String = ids.iter().map(|id| format!("X-Request-Id: {id}\r\n")).collect();
            let worker = forwarded(&format!("GET / HTTP/1.1\r\nHost: a\r\n{said}\r\n"), trusted);
            assert!(worker.ends_with(&format!("\r\nX-Request-Id: {expected}\r\n\r\n")), "{worker}");
            assert_eq!(worker.matches("X-Request-Id").count(), 1, "{worker}");
        }
    }
}
