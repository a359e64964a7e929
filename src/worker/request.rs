//! The request of a handler.

use super::outlet::Leaving;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// A request as the handler sees it.
///
/// ```no_run
/// use rip_server::{Error, Request, Response};
///
/// fn add(request: &mut Request<'_>) -> Result<Response, Error> {
///     let number = |name| -> Result<i64, Error> {
///         let text = request.parameter(name).ok_or_else(|| Error::new(400, format!("{name} is missing")))?;
///         Ok(text.parse()?)
///     };
///     Ok(Response::text(format!("{}\n", number("a")? + number("b")?)))
/// }
///
/// fn main() -> std::process::ExitCode {
///     rip_server::run(add)
/// }
/// ```
pub struct Request<'a> {
    /// As the client sent it: `GET`, `POST`, any other token.
    pub method: String,
    /// Path and query, as the client sent them.
    pub target: String,
    pub(super) fields: Vec<(String, Vec<u8>)>,
    pub(super) body: Body<'a>,
    pub(super) client: Option<IpAddr>,
    pub(super) connection: &'a UnixStream,
    pub(super) leaving: &'a Arc<Leaving>,
}

/// A request's body, to be read: [`Request::body`].
///
/// ```
/// use rip_server::{Error, Request};
/// use std::io::Read;
///
/// /// Counts line ends without holding the body in memory.
/// fn count(request: &mut Request<'_>) -> Result<String, Error> {
///     let body = request.body();
///     let mut piece = vec![0; 64 * 1024];
///     let mut lines = 0;
///     while !body.is_empty() {
///         let bytes = body.read(&mut piece)?;
///         lines += piece[..bytes].iter().filter(|byte| **byte == b'\n').count();
///     }
///     Ok(format!("{lines} lines\n"))
/// }
/// # let _: fn(&mut Request<'_>) -> Result<String, Error> = count;
/// ```
pub struct Body<'a> {
    pub(super) source: &'a mut dyn Read,
    pub(super) left_bytes: u64,
}

impl<'a> Request<'a> {
    /// The path without the query, as the client sent it.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or(&self.target)
    }

    /// The path with its percents decoded. What is not UTF-8 in it becomes U+FFFD, and `%2F` a `/` like any other:
    /// who has to tell them apart splits [`Request::path`] first.
    pub fn decoded_path(&self) -> String {
        String::from_utf8_lossy(&percent_decoded(self.path().as_bytes())).into_owned()
    }

    /// The query without its `?`, as the client sent it; empty if there is none.
    pub fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    /// The first value of a query parameter, decoded: `%C3%BC` is `ü`, `+` a blank. A name without `=` has an empty
    /// one.
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.parameters().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// All parameters of the query in order, names and values decoded.
    pub fn parameters(&self) -> impl Iterator<Item = (String, String)> {
        let pairs = self.query().split('&').filter(|pair| !pair.is_empty());
        pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (form_decoded(name), form_decoded(value))
        })
    }

    /// The first field of that name, if its value is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }

    /// All fields in order, names as the client wrote them.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// The client's address: the peer's, or behind proxies that `--trust-proxy` names the one that they forward.
    /// `None` if the request did not come through the server.
    pub fn client(&self) -> Option<IpAddr> {
        self.client
    }

    /// The request's id, as in the log; empty if the request did not come through the server.
    pub fn id(&self) -> &str {
        self.header("x-request-id").unwrap_or("")
    }

    /// The body. Reading it never waits for a slow client, since the server has it in full.
    pub fn body(&mut self) -> &mut Body<'a> {
        &mut self.body
    }

    /// How many bytes of the body are still to be read.
    pub fn body_bytes_left(&self) -> u64 {
        self.body.left_bytes
    }

    /// The whole body.
    ///
    /// # Errors
    /// The connection broke.
    pub fn read_body(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.body.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Whether the method is one of the common safe ones (RFC 9110 §9.2.1).
    pub(super) fn is_safe(&self) -> bool {
        matches!(self.method.as_str(), "GET" | "HEAD" | "OPTIONS" | "TRACE")
    }
}

impl Body<'_> {
    /// How many bytes are still to be read.
    pub fn len(&self) -> u64 {
        self.left_bytes
    }

    /// Whether all of it has been read.
    pub fn is_empty(&self) -> bool {
        self.left_bytes == 0
    }
}

impl Read for Body<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left_bytes).unwrap_or(usize::MAX).min(bytes.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.source.read(&mut bytes[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left_bytes -= count as u64;
        Ok(count)
    }
}

/// Decodes as HTML forms are encoded.
fn form_decoded(text: &str) -> String {
    let blanks = text.replace('+', " ");
    String::from_utf8_lossy(&percent_decoded(blanks.as_bytes())).into_owned()
}

/// Decodes once. A percent sign without two hexadecimal digits stays as it is.
pub(super) fn percent_decoded(bytes: &[u8]) -> Vec<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|&byte| char::from(byte).to_digit(16));
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(target: &str) -> Vec<(String, String)> {
        let (stream, _other) = UnixStream::pair().expect("two sockets");
        let leaving = Arc::new(Leaving::new().expect("a pipe"));
        let request = Request {
            method: "GET".into(),
            target: target.into(),
            fields: Vec::new(),
            body: Body { source: &mut io::empty(), left_bytes: 0 },
            client: None,
            connection: &stream,
            leaving: &leaving,
        };
        request.parameters().collect()
    }

    #[test]
    fn parameters_are_decoded_as_forms_encode_them() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            parameters("/?a=1+2%26&n%C3%A4me=gr%c3%bc%C3%9Fe&flag&&=x&a=b=c&bad=%zz%2"),
            [
                pair("a", "1 2&"),
                pair("näme", "grüße"),
                pair("flag", ""),
                pair("", "x"),
                pair("a", "b=c"),
                pair("bad", "%zz%2"),
            ]
        );
        assert_eq!(parameters("/"), []);
        assert_eq!(parameters("/?x=%ff"), [pair("x", "\u{fffd}")]);
    }

    #[test]
    fn percents_are_decoded_once() {
        assert_eq!(percent_decoded(b"/a%20b%2525%zz%+%+1"), b"/a b%25%zz%+%+1");
    }
}
