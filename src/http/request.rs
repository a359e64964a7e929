//! A request's head, parsed once and checked strictly.

use super::codings::Codings;
use super::explain::{explain, first_line};
use super::{
    Framing, MAX_FIELDS, MAX_METHOD_BYTES, MAX_TARGET_BYTES, OWN_FIELDS, Reason, Version, field, host,
    reason::Bad,
};
use httparse::{Header, Status};
use std::mem::MaybeUninit;

/// Space for the fields of one head: a client's, or one for a worker, which has the server's own fields too. The caller
/// keeps it on the stack.
pub type Fields<'b> = [MaybeUninit<Header<'b>>; MAX_FIELDS + OWN_FIELDS];

/// Empty space for [`RequestHead::parse`] and [`super::ResponseHead::parse`].
pub const fn header_buffer<'b>() -> Fields<'b> {
    [const { MaybeUninit::uninit() }; MAX_FIELDS + OWN_FIELDS]
}

/// A request head that every strict parser understands in the same way. Borrows the bytes that it was parsed from.
#[derive(Debug)]
pub struct RequestHead<'h, 'b> {
    pub method: &'b str,
    /// `/` if the target was in absolute form and had no path (RFC 9112 §3.2.2), else empty.
    pub target_lead: &'static str,
    /// Origin form, or `*`.
    pub target: &'b str,
    /// The target's host if it was in absolute form, else that of the Host field.
    pub host: &'b [u8],
    pub version: Version,
    pub fields: &'h [Header<'b>],
    pub framing: Framing,
    /// The client waits for a 100 before it sends the body (RFC 9110 §10.1.1).
    pub expects_continue: bool,
    /// The client wants its connection to stay open (RFC 9112 §9.3).
    pub keep_alive: bool,
    /// The client asks for a WebSocket, the only upgrade that is forwarded. It counts only if no body follows.
    pub wants_websocket: bool,
    /// A GET that accepts `text/event-stream` by name.
    pub accepts_events: bool,
    /// `Connection` names further fields that must not be forwarded.
    pub nominates: bool,
}

impl<'h, 'b> RequestHead<'h, 'b> {
    /// Reads a whole head, its empty line included.
    ///
    /// # Errors
    /// The [`Reason`] to refuse the request with. Nobody can tell then where the next request begins.
    pub fn parse(bytes: &'b [u8], header_buffer: &'h mut Fields<'b>) -> Result<Self, Reason> {
        let mut parsed = httparse::Request::new(&mut []);
        match parsed.parse_with_uninit_headers(bytes, header_buffer) {
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
        if method.len() > MAX_METHOD_BYTES {
            return Err(Reason::BadRequest(Bad::MethodTooLong));
        }
        let (target_lead, target, target_host) = form(method, target)?;
        // Both are checked if both are there (RFC 9112 §3.2).
        if let Some(host) = seen.host {
            host::check(host).map_err(Reason::BadRequest)?;
        }
        if let Some(host) = target_host {
            host::check(host.as_bytes()).map_err(Reason::BadRequest)?;
        }
        let host = match (target_host, seen.host, version) {
            (_, None, Version::Http11) => return Err(Reason::BadRequest(Bad::HostMissing)),
            (Some(host), _, _) => host.as_bytes(),
            (None, Some(host), _) => host,
            (None, None, Version::Http10) => b"localhost",
        };
        let framing = seen.framing(version)?;
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
            wants_websocket: http11 && seen.upgrade_named && seen.upgrade_websocket && method == "GET",
            accepts_events: seen.accepts_events && method == "GET",
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

/// Whether repeating a request with this method does no harm (RFC 9110 §9.2.2, and the IANA registry for others).
pub fn is_idempotent(method: &str) -> bool {
    matches!(
        method,
        "GET" | "HEAD" | "PUT" | "DELETE" | "OPTIONS" | "TRACE" | "PROPFIND" | "SEARCH" | "REPORT" | "QUERY"
    )
}

/// What the fields say, gathered in one pass.
#[derive(Default)]
struct Seen<'b> {
    host: Option<&'b [u8]>,
    length: Option<&'b [u8]>,
    codings: Option<Codings>,
    close: bool,
    keep_alive: bool,
    upgrade_named: bool,
    upgrade_websocket: bool,
    accepts_events: bool,
    nominates: bool,
    expects_continue: bool,
    expects_other: bool,
}

/// Notes a field that may occur only once.
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
                self.codings = Some(Codings::with(self.codings, value));
            }
            name if field::is(name, b"connection") => self.take_connection(value),
            name if field::is(name, b"upgrade") => {
                self.upgrade_websocket |=
                    field::list(value).any(|protocol| protocol.eq_ignore_ascii_case(b"websocket"));
            }
            name if field::is(name, b"accept") => {
                let is_stream = |range: &[u8]| {
                    let kind = range.split(|&byte| byte == b';').next().unwrap_or_default();
                    field::trim(kind).eq_ignore_ascii_case(b"text/event-stream")
                };
                self.accepts_events |= field::list(value).any(is_stream);
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
                _ if option.eq_ignore_ascii_case(b"close") => self.close = true,
                _ if option.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
                _ if option.eq_ignore_ascii_case(b"upgrade") => self.upgrade_named = true,
                _ => self.nominates = true,
            }
        }
    }

    fn framing(&self, version: Version) -> Result<Framing, Reason> {
        let bad = match (self.codings, self.length) {
            (None, None) => return Ok(Framing::Empty),
            (Some(_), Some(_)) => Bad::LengthAndCoding,
            (Some(_), None) if version == Version::Http10 => Bad::CodingInHttp10,
            (Some(Codings::Chunked), None) => return Ok(Framing::Chunked),
            (Some(Codings::OthersThenChunked | Codings::Unknown), None) => Bad::CodingNotServed,
            // Without a last `chunked` nothing says where the body ends (RFC 9112 §6.3).
            (Some(Codings::Known | Codings::Invalid), None) => Bad::CodingInvalid,
            (None, Some(length)) => match field::decimal(length) {
                Some(length) => return Ok(Framing::Length(length)),
                // A valid number, larger than any bound.
                None if !length.is_empty() && length.iter().all(u8::is_ascii_digit) => {
                    return Ok(Framing::Length(u64::MAX));
                }
                None if length.contains(&b',') => Bad::LengthTwice,
                None => Bad::LengthInvalid,
            },
        };
        Err(Reason::BadRequest(bad))
    }
}

/// Reads the four forms of a target (RFC 9112 §3.2). Returns what to put before it, the target for the worker, and its
/// host.
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
    let remaining = &target[scheme_bytes..];
    let (host, path) = remaining.split_at(remaining.find(['/', '?']).unwrap_or(remaining.len()));
    if host.is_empty() {
        return Err(BAD);
    }
    match path {
        "" if method == "OPTIONS" => Ok(("", "*", Some(host))),
        path if path.starts_with('/') => Ok(("", path, Some(host))),
        path => Ok(("/", path, Some(host))),
    }
}

/// Replaces a later HTTP/1.x in the first line by HTTP/1.1, since it is to be read as that (RFC 9110 §2.5).
///
/// `false`: it is not a later HTTP/1.x.
pub fn lower_version(head: &mut [u8]) -> bool {
    let end = first_line(head).len();
    match &mut head[..end] {
        [.., b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor] if matches!(minor, b'2'..=b'9') => {
            *minor = b'1';
            true
        }
        _ => false,
    }
}

#[cfg(test)]
pub(super) mod tests;
