//! A request's head, read once and judged strictly.

use super::{
    Framing, MAX_FIELDS, MAX_HOST_BYTES, MAX_TARGET_BYTES, OWN_FIELDS, Reason, Version, field, reason::Bad,
};
use httparse::{Error, Header, Status};
use std::mem::MaybeUninit;

/// Room for the fields of one head, a client's or, with the server's own, a worker's; lives on the stack of whoever parses.
pub type Fields<'b> = [MaybeUninit<Header<'b>>; MAX_FIELDS + OWN_FIELDS];

/// Empty room for [`RequestHead::parse`] and [`super::ResponseHead::parse`].
pub const fn room<'b>() -> Fields<'b> {
    [const { MaybeUninit::uninit() }; MAX_FIELDS + OWN_FIELDS]
}

/// A request head that every strict reader understands alike. Borrows the bytes that it was read from.
#[derive(Debug)]
pub struct RequestHead<'h, 'b> {
    pub method: &'b str,
    /// `/` where the target was in absolute form and had no path (RFC 9112 §3.2.2), else nothing.
    pub target_lead: &'static str,
    /// Origin form, or `*`.
    pub target: &'b str,
    /// The target's host where it was in absolute form, else the Host field's.
    pub host: &'b [u8],
    pub version: Version,
    pub fields: &'h [Header<'b>],
    pub framing: Framing,
    /// The client waits for a 100 before it sends the body (RFC 9110 §10.1.1).
    pub expects_continue: bool,
    /// The client wants its connection to stay open (RFC 9112 §9.3).
    pub keep_alive: bool,
    /// A WebSocket offer; of upgrades only that one passes.
    pub wants_websocket: bool,
    /// `Connection` names fields that stop here besides the standing ones.
    pub nominates: bool,
}

impl<'h, 'b> RequestHead<'h, 'b> {
    /// Reads a whole head, its empty line included. `max_body_bytes` bounds an announced length.
    ///
    /// # Errors
    /// The [`Reason`] to refuse the request with; the connection has then lost its place.
    pub fn parse(bytes: &'b [u8], room: &'h mut Fields<'b>, max_body_bytes: u64) -> Result<Self, Reason> {
        let mut parsed = httparse::Request::new(&mut []);
        match parsed.parse_with_uninit_headers(bytes, room) {
            Ok(Status::Complete(_)) => {}
            Ok(Status::Partial) => return Err(Reason::BadRequest(Bad::LineEnd)),
            Err(error) => return Err(Reason::BadRequest(explain(error, bytes))),
        }
        let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(Reason::BadRequest(Bad::RequestLine));
        };
        let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
        let fields: &'h [Header<'b>] = parsed.headers;

        let mut seen = Seen::default();
        for header in fields {
            seen.take(header)?;
        }
        let (target_lead, target, target_host) = form(method, target)?;
        let host = match (target_host, seen.host, version) {
            (_, None, Version::Http11) => return Err(Reason::BadRequest(Bad::HostMissing)),
            (Some(host), _, _) => host.as_bytes(),
            (None, Some(host), _) => host,
            (None, None, Version::Http10) => b"localhost",
        };
        if host.len() > MAX_HOST_BYTES || !is_host(host) {
            return Err(Reason::BadRequest(Bad::Host));
        }
        let framing = seen.framing(version, max_body_bytes)?;
        let http11 = version == Version::Http11;
        if http11 && seen.expects_other {
            return Err(Reason::BadRequest(Bad::Expectation));
        }
        Ok(RequestHead {
            method,
            target_lead,
            target,
            host,
            version,
            fields,
            framing,
            expects_continue: http11 && seen.expects_continue && framing != Framing::Empty,
            keep_alive: !seen.close && (http11 || seen.keep_alive),
            wants_websocket: http11
                && seen.upgrade_named
                && seen.upgrade_websocket
                && method == "GET"
                && framing == Framing::Empty,
            nominates: seen.nominates,
        })
    }

    /// Whether `Connection` names this field (RFC 9110 §7.6.1).
    pub fn is_nominated(&self, name: &str) -> bool {
        self.nominates && is_nominated(self.fields, name)
    }

    /// The path without the query.
    pub fn path(&self) -> &'b str {
        let query = self.target.bytes().position(|byte| byte == b'?');
        &self.target[..query.unwrap_or(self.target.len())]
    }
}

/// Whether a `Connection` field among `fields` names `name`.
pub fn is_nominated(fields: &[Header<'_>], name: &str) -> bool {
    fields
        .iter()
        .filter(|header| field::is(header.name, b"connection"))
        .flat_map(|header| field::list(header.value))
        .any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
}

/// Methods whose repetition does no harm (RFC 9110 §9.2.2, and the registry for those beyond it).
pub fn is_idempotent(method: &str) -> bool {
    matches!(
        method,
        "GET" | "HEAD" | "PUT" | "DELETE" | "OPTIONS" | "TRACE" | "PROPFIND" | "SEARCH" | "REPORT" | "QUERY"
    )
}

/// What the fields said, gathered in one pass.
#[derive(Default)]
struct Seen<'b> {
    host: Option<&'b [u8]>,
    length: Option<&'b [u8]>,
    coding: Option<Coding>,
    close: bool,
    keep_alive: bool,
    upgrade_named: bool,
    upgrade_websocket: bool,
    nominates: bool,
    expects_continue: bool,
    expects_other: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Coding {
    Chunked,
    KnownThenChunked,
    Invalid,
}

/// Notes a field that may stand there once only.
fn once<'b>(place: &mut Option<&'b [u8]>, value: &'b [u8], twice: Bad) -> Result<(), Reason> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Reason::BadRequest(twice)),
    }
}

impl<'b> Seen<'b> {
    fn take(&mut self, header: &Header<'b>) -> Result<(), Reason> {
        let value = field::trim(header.value);
        match header.name {
            name if field::is(name, b"host") => once(&mut self.host, value, Bad::HostTwice)?,
            name if field::is(name, b"content-length") => {
                once(&mut self.length, value, Bad::LengthTwice)?;
            }
            name if field::is(name, b"transfer-encoding") => {
                // Two lines are one list, so whatever the second says, the first is not the last coding.
                let coding = if self.coding.is_some() { Coding::Invalid } else { coding(value) };
                self.coding = Some(coding);
            }
            name if field::is(name, b"connection") => self.take_connection(value),
            name if field::is(name, b"upgrade") => {
                self.upgrade_websocket = value.eq_ignore_ascii_case(b"websocket");
            }
            name if field::is(name, b"expect") => {
                if value.eq_ignore_ascii_case(b"100-continue") {
                    self.expects_continue = true;
                } else {
                    self.expects_other = true;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn take_connection(&mut self, value: &[u8]) {
        for option in field::list(value) {
            match option {
                b"" => {}
                _ if option.eq_ignore_ascii_case(b"close") => self.close = true,
                _ if option.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
                _ if option.eq_ignore_ascii_case(b"upgrade") => self.upgrade_named = true,
                _ => self.nominates = true,
            }
        }
    }

    fn framing(&self, version: Version, max_body_bytes: u64) -> Result<Framing, Reason> {
        let bad = match (self.coding, self.length) {
            (None, None) => return Ok(Framing::Empty),
            (Some(_), Some(_)) => Bad::LengthAndCoding,
            (Some(_), None) if version == Version::Http10 => Bad::CodingInHttp10,
            (Some(Coding::Chunked), None) => return Ok(Framing::Chunked),
            (Some(Coding::KnownThenChunked), None) => Bad::CodingNotServed,
            (Some(Coding::Invalid), None) => Bad::CodingInvalid,
            (None, Some(length)) => match field::decimal(length) {
                Some(length) if length > max_body_bytes => return Err(Reason::BodyTooLarge),
                Some(length) => return Ok(Framing::Length(length)),
                None if !length.is_empty() && length.iter().all(u8::is_ascii_digit) => {
                    return Err(Reason::BodyTooLarge);
                }
                None if length.contains(&b',') => Bad::LengthTwice,
                None => Bad::LengthInvalid,
            },
        };
        Err(Reason::BadRequest(bad))
    }
}

/// RFC 9112 §6.1: `chunked`, once and last. `identity` has left the registry, so it is as unknown as any other.
fn coding(value: &[u8]) -> Coding {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Coding::Chunked;
    }
    let known = |coding: &[u8]| {
        [&b"gzip"[..], b"x-gzip", b"deflate", b"compress", b"x-compress"]
            .iter()
            .any(|name| coding.eq_ignore_ascii_case(name))
    };
    let codings: Vec<&[u8]> = field::list(value).collect();
    match codings.split_last() {
        Some((last, before))
            if last.eq_ignore_ascii_case(b"chunked") && before.iter().all(|&coding| known(coding)) =>
        {
            Coding::KnownThenChunked
        }
        _ => Coding::Invalid,
    }
}

/// The four forms of a target (RFC 9112 §3.2): what is put before it, the target for the worker, its own host.
fn form<'b>(method: &str, target: &'b str) -> Result<(&'static str, &'b str, Option<&'b str>), Reason> {
    const BAD: Reason = Reason::BadRequest(Bad::Target);
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(Reason::BadRequest(Bad::MethodNotServed));
    }
    if target.len() > MAX_TARGET_BYTES {
        return Err(Reason::BadRequest(Bad::TargetTooLong));
    }
    if target.as_bytes().contains(&b'#') {
        return Err(BAD);
    }
    if target.starts_with('/') {
        return Ok(("", target, None));
    }
    if target == "*" {
        return if method == "OPTIONS" { Ok(("", target, None)) } else { Err(BAD) };
    }
    let scheme_bytes = match target {
        _ if field::starts_with(target, b"http://") => "http://".len(),
        _ if field::starts_with(target, b"https://") => "https://".len(),
        _ => return Err(BAD),
    };
    let rest = &target[scheme_bytes..];
    let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if host.is_empty() {
        return Err(BAD);
    }
    match path {
        "" if method == "OPTIONS" => Ok(("", "*", Some(host))),
        path if path.starts_with('/') => Ok(("", path, Some(host))),
        path => Ok(("/", path, Some(host))),
    }
}

/// RFC 3986 §3.2.2 and §3.2.3: a name or an address, then perhaps a port; never user information.
fn is_host(host: &[u8]) -> bool {
    let is_port =
        |port: &[u8]| matches!(port, [] | [b':', ..]) && port.iter().skip(1).all(u8::is_ascii_digit);
    if let Some(rest) = host.strip_prefix(b"[") {
        let Some(end) = rest.iter().position(|&byte| byte == b']') else {
            return false;
        };
        let is_address = |byte: &u8| {
            byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'.' | b'%' | b'-' | b'_' | b'~')
        };
        return end > 0 && rest[..end].iter().all(is_address) && is_port(&rest[end + 1..]);
    }
    let is_name = |byte: &u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')')
            || matches!(byte, b'*' | b'+' | b',' | b';' | b'=')
    };
    is_port(&host[host.iter().take_while(|byte| is_name(byte)).count()..])
}

/// `httparse`'s complaint in this server's words.
fn explain(error: Error, bytes: &[u8]) -> Bad {
    match error {
        Error::HeaderName => Bad::FieldName,
        Error::HeaderValue => Bad::FieldValue,
        Error::TooManyHeaders => Bad::TooManyFields,
        Error::NewLine | Error::Status => Bad::LineEnd,
        Error::Token | Error::Version => {
            let line = bytes.split(|&byte| byte == b'\r').next().unwrap_or(bytes);
            let parts: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
            match parts[..] {
                [method, _, _]
                    if method.is_empty() || !method.iter().all(|&byte| field::is_token_byte(byte)) =>
                {
                    Bad::Method
                }
                [_, _, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]]
                    if major.is_ascii_digit()
                        && minor.is_ascii_digit()
                        && !matches!((major, minor), (b'1', b'0' | b'1')) =>
                {
                    Bad::Version
                }
                [_, _, _] => Bad::Target,
                _ => Bad::RequestLine,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(head: &str) -> Reason {
        RequestHead::parse(head.as_bytes(), &mut room(), 1000).map(|head| head.method.to_owned()).unwrap_err()
    }

    fn with(fields: &str) -> String {
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
            ("Transfer-Encoding: gzip, chunked", Bad::CodingNotServed),
            ("Transfer-Encoding: \u{a0}chunked", Bad::CodingInvalid),
            ("Expect: 200-ok", Bad::Expectation),
        ] {
            assert_eq!(refusal(&with(fields)), Reason::BadRequest(bad), "{fields}");
        }
        assert_eq!(refusal(&with("Content-Length: 1001")), Reason::BodyTooLarge);
        assert_eq!(refusal(&with("Content-Length: 99999999999999999999999")), Reason::BodyTooLarge);
    }

    #[test]
    fn request_lines_are_judged_by_their_parts() {
        for (line, bad) in [
            ("GET /a b HTTP/1.1", Bad::RequestLine),
            ("GET /", Bad::RequestLine),
            ("G{T / HTTP/1.1", Bad::Method),
            ("GET / HTTP/2.0", Bad::Version),
            ("GET / http/1.1", Bad::Target),
            ("GET * HTTP/1.1", Bad::Target),
            ("GET a:80 HTTP/1.1", Bad::Target),
            ("GET /a#b HTTP/1.1", Bad::Target),
            ("TRACE / HTTP/1.1", Bad::MethodNotServed),
        ] {
            assert_eq!(refusal(&format!("{line}\r\nHost: a\r\n\r\n")), Reason::BadRequest(bad), "{line}");
        }
    }

    #[test]
    fn absolute_form_gives_its_own_host_and_an_origin_form() {
        let mut fields = room();
        let head =
            RequestHead::parse(b"GET http://b.example?x=1 HTTP/1.1\r\nHost: a\r\n\r\n", &mut fields, 0);
        let head = head.expect("absolute form is to be accepted");
        assert_eq!((head.target_lead, head.target, head.host), ("/", "?x=1", &b"b.example"[..]));
    }

    #[test]
    fn hosts_are_hosts() {
        for good in ["", "a", "a:80", "[::1]:5002", "a.example:"] {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in ["a@evil", "a evil", "a/evil", "a:b", "[", "[]", "a:80:80", "\u{e9}"] {
            assert!(!is_host(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn only_a_whole_websocket_offer_is_an_upgrade() {
        let offers = |head: &str| {
            RequestHead::parse(head.as_bytes(), &mut room(), 9)
                .map(|head| head.wants_websocket)
                .unwrap_or(false)
        };
        let get = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
        assert!(offers(&get("Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket")));
        assert!(!offers(&get("Upgrade: websocket")));
        assert!(!offers(&get("Connection: upgrade\r\nUpgrade: h2c")));
        assert!(!offers(&with("Connection: upgrade\r\nUpgrade: websocket")));
    }
}
