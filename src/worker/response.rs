//! The answer of a handler.

use super::outlet::Outlet;
use crate::http::phrase::phrase;
use crate::http::{digits, field};
use std::fmt;
use std::io::{self, Write};

type Writer = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()>>;

/// What the handler answers.
///
/// ```
/// use rip_server::Response;
///
/// let page = Response::new(200).with_header("Content-Type", "text/html").with_body("<h1>Hello</h1>");
/// let moved = Response::new(301).with_header("Location", "/elsewhere");
/// let events = Response::new(200).with_header("Content-Type", "text/event-stream").with_stream(|out| {
///     for number in 0.. {
///         write!(out, "data: {number}\n\n")?; // an error where nobody listens any more
///         std::thread::sleep(std::time::Duration::from_secs(1));
///     }
///     Ok(())
/// });
/// # drop((page, moved, events));
/// ```
pub struct Response {
    status: u16,
    fields: Vec<(String, Vec<u8>)>,
    content: Content,
    /// The first field that is not valid; the answer becomes a 500.
    invalid: Option<InvalidHeader>,
    /// What is printed to stderr, if the answer was made from an error.
    complaint: Option<String>,
}

enum Content {
    Bytes(Vec<u8>),
    /// `length_bytes`: how much will be written, where that is known.
    Stream {
        write: Writer,
        length_bytes: Option<u64>,
    },
}

/// A name that is no token, or a value with a line break or another control byte in it (RFC 9110 §5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidHeader {
    name: String,
    value: String,
}

impl fmt::Display for InvalidHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a header field: {:?}: {:?}", self.name, self.value)
    }
}

impl std::error::Error for InvalidHeader {}

/// Whether the server sets this field itself: it is about the connection, or the body's length.
const OURS: [&str; 6] =
    ["connection", "keep-alive", "proxy-connection", "trailer", "transfer-encoding", "upgrade"];

impl Response {
    /// An empty answer of that status: 200 to 999; any other is answered as a 500.
    pub fn new(status: u16) -> Self {
        Response {
            status,
            fields: Vec::new(),
            content: Content::Bytes(Vec::new()),
            invalid: None,
            complaint: None,
        }
    }

    /// 200, `text/plain`.
    pub fn text(text: impl Into<String>) -> Self {
        Response::new(200).with_header("Content-Type", "text/plain; charset=utf-8").with_body(text.into())
    }

    /// The same answer with another status.
    ///
    /// ```
    /// use rip_server::Response;
    ///
    /// let busy = Response::text("please come back\n").with_status(503).with_header("Retry-After", "5");
    /// assert_eq!((busy.status(), busy.header("retry-after")), (503, Some("5")));
    /// ```
    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        Response { status, ..self }
    }

    /// The status that goes out.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Adds a field. One that is not valid HTTP makes the answer a 500, with a line on stderr that names it: for
    /// names and values that come from outside there is [`Response::try_with_header`]. Bytes beyond ASCII go out as
    /// they are, so a `String` as UTF-8. `Content-Length`, `Connection` and the like are the server's to set, and are
    /// left out.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        if let Err(error) = self.add_header(name.into(), value.into()) {
            self.invalid.get_or_insert(error);
        }
        self
    }

    /// Adds a field whose name or value comes from outside.
    ///
    /// ```
    /// use rip_server::Response;
    ///
    /// let named = |name: &str| {
    ///     Response::new(200).try_with_header("Content-Disposition", format!("attachment; filename={name}"))
    /// };
    /// assert!(named("report.pdf").is_ok());
    /// assert!(named("a\r\nSet-Cookie: b=c").is_err());
    /// ```
    ///
    /// # Errors
    /// It is not valid HTTP.
    pub fn try_with_header(
        mut self,
        name: impl Into<String>,
        value: impl Into<Vec<u8>>,
    ) -> Result<Self, InvalidHeader> {
        self.add_header(name.into(), value.into())?;
        Ok(self)
    }

    fn add_header(&mut self, name: String, value: Vec<u8>) -> Result<(), InvalidHeader> {
        let is_name = !name.is_empty() && name.bytes().all(field::is_token_byte);
        if !is_name || !field::is_value(&value) {
            return Err(InvalidHeader { name, value: String::from_utf8_lossy(&value).into_owned() });
        }
        self.fields.push((name, value));
        Ok(())
    }

    /// The same answer with this body.
    #[must_use]
    pub fn with_body(self, body: impl Into<Vec<u8>>) -> Self {
        Response { content: Content::Bytes(body.into()), ..self }
    }

    /// A body that is written piece by piece; each write reaches the client at once. An error cuts the answer. A write
    /// to a client that has gone is an error, where the method is safe or the answer an event stream; so is a write to
    /// an event stream of a worker that is about to end.
    ///
    /// ```
    /// use rip_server::Response;
    ///
    /// let countdown = Response::new(200).with_stream(|out| {
    ///     for number in (1..=3).rev() {
    ///         writeln!(out, "{number}")?;
    ///     }
    ///     Ok(())
    /// });
    /// assert_eq!(countdown.into_body()?, b"3\n2\n1\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn with_stream(self, write: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'static) -> Self {
        Response { content: Content::Stream { write: Box::new(write), length_bytes: None }, ..self }
    }

    /// The same, of a length that is known before. Writing another amount cuts the answer.
    #[must_use]
    pub fn with_sized_stream(
        self,
        length_bytes: u64,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'static,
    ) -> Self {
        Response {
            content: Content::Stream { write: Box::new(write), length_bytes: Some(length_bytes) },
            ..self
        }
    }

    /// The fields in order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// The first field of that name, if its value is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }

    /// The body as bytes; a stream is written to its end.
    ///
    /// # Errors
    /// The stream's own.
    pub fn into_body(self) -> io::Result<Vec<u8>> {
        match self.content {
            Content::Bytes(bytes) => Ok(bytes),
            Content::Stream { write, .. } => {
                let mut bytes = Vec::new();
                write(&mut bytes)?;
                Ok(bytes)
            }
        }
    }

    pub(super) fn with_complaint(self, complaint: String) -> Self {
        Response { complaint: Some(complaint), ..self }
    }

    /// What is printed to stderr before the answer is sent.
    pub(super) fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }

    /// Checks that the answer can be sent.
    ///
    /// # Errors
    /// What is wrong with it, for stderr.
    pub(super) fn check(&self) -> Result<(), String> {
        match &self.invalid {
            Some(invalid) => Err(invalid.to_string()),
            None if !(200..1000).contains(&self.status) => {
                Err(format!("{} is no status of an answer; 200 to 999 are", self.status))
            }
            None => Ok(()),
        }
    }

    pub(super) fn streams_events(&self) -> bool {
        let media_type = self.header("content-type").unwrap_or_default();
        media_type.get(..17).is_some_and(|start| start.eq_ignore_ascii_case("text/event-stream"))
    }

    /// Writes the answer. `is_cancelled`: the method is safe, so a client that has gone ends a stream, and a worker that
    /// leaves an event stream.
    pub(super) fn send(self, to: &mut Outlet<'_>, is_head: bool, is_cancelled: bool) -> io::Result<()> {
        let streams_events = self.streams_events();
        let mut head = Vec::with_capacity(256);
        write!(head, "HTTP/1.1 {} {}\r\n", self.status, phrase(self.status))?;
        let mut announced = None;
        for (name, value) in &self.fields {
            if name.eq_ignore_ascii_case("content-length") {
                announced = field::decimal(value);
            } else if !OURS.iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
                head.extend_from_slice(name.as_bytes());
                head.extend_from_slice(b": ");
                head.extend_from_slice(value);
                head.extend_from_slice(b"\r\n");
            }
        }
        let has_body = !(is_head || self.status == 204 || self.status == 304);
        match self.content {
            Content::Bytes(bytes) => {
                // In answers to HEAD and with 304 an app may announce the length of a body that is not sent.
                let length = bytes.len() as u64;
                let length = announced.filter(|_| !has_body && bytes.is_empty()).unwrap_or(length);
                if self.status != 204 {
                    write!(head, "Content-Length: {length}\r\n")?;
                }
                head.extend_from_slice(b"\r\n");
                // Head and body in one write where they are small: one wake-up of the server instead of two.
                const JOINED_BYTES: usize = 64 * 1024;
                if has_body && bytes.len() <= JOINED_BYTES {
                    head.extend_from_slice(&bytes);
                    return to.write_all(&head);
                }
                to.write_all(&head)?;
                if has_body { to.write_all(&bytes) } else { Ok(()) }
            }
            Content::Stream { write, length_bytes } => {
                match length_bytes {
                    Some(bytes) => write!(head, "Content-Length: {bytes}\r\n\r\n")?,
                    None if has_body => head.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n"),
                    None => head.extend_from_slice(b"\r\n"),
                }
                to.write_all(&head)?;
                match length_bytes {
                    _ if !has_body => Ok(()),
                    Some(bytes) => {
                        let mut sized = Announced { to, left_bytes: bytes };
                        write(&mut sized)?;
                        match sized.left_bytes {
                            0 => Ok(()),
                            left => Err(io::Error::other(format!(
                                "the body is {left} bytes shorter than its announced length"
                            ))),
                        }
                    }
                    None => {
                        let ends_with_worker = is_cancelled && streams_events;
                        let is_cancelled = is_cancelled || streams_events;
                        write(&mut Chunks { to, is_cancelled, ends_with_worker })?;
                        to.write_all(b"0\r\n\r\n")
                    }
                }
            }
        }
    }
}

/// Writes at most as much as was announced.
struct Announced<'a, 'b> {
    to: &'a mut Outlet<'b>,
    left_bytes: u64,
}

impl Write for Announced<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left_bytes = self
            .left_bytes
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| io::Error::other("the body is longer than its announced length"))?;
        self.to.write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Writes each piece as a chunk.
struct Chunks<'a, 'b> {
    to: &'a mut Outlet<'b>,
    is_cancelled: bool,
    ends_with_worker: bool,
}

impl Write for Chunks<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.is_cancelled {
            // A stream may be endless: only here it can notice that nobody listens.
            self.to.check(self.ends_with_worker)?;
        }
        let mut chunk = Vec::with_capacity(bytes.len() + 16);
        digits::write_chunk_size(&mut chunk, bytes.len());
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.to.write_all(&chunk)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::outlet::Leaving;
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn sent(response: Response, is_head: bool) -> String {
        let (stream, mut other) = UnixStream::pair().expect("two sockets");
        let leaving = Leaving::new().expect("a pipe");
        response.send(&mut Outlet { stream: &stream, leaving: &leaving }, is_head, true).expect("sent");
        drop(stream);
        let mut text = String::new();
        other.read_to_string(&mut text).expect("what was sent");
        text
    }

    #[test]
    fn an_invalid_field_is_an_error_and_neither_a_panic_nor_dropped() {
        let invalid = |name: &str, value: &str| Response::new(200).try_with_header(name, value).is_err();
        assert!(
            invalid("X-A", "b\r\nX-C: d") && invalid("X A", "b") && invalid("", "b") && invalid("X-A", "\0")
        );
        let complaint = Response::text("x").with_header("X-A", "b\nc").check().expect_err("invalid");
        assert_eq!(complaint, r#"not a header field: "X-A": "b\nc""#);
        assert!(Response::new(101).check().is_err() && Response::new(200).check().is_ok());
    }

    #[test]
    fn the_framing_is_not_the_handlers_to_say() {
        let response = Response::new(200)
            .with_header("Content-Length", "99")
            .with_header("Transfer-Encoding", "chunked")
            .with_header("Connection", "close")
            .with_body("hello");
        assert_eq!(sent(response, false), "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        let head = Response::new(200).with_header("Content-Length", "99");
        assert_eq!(sent(head, true), "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n");
    }

    #[test]
    fn statuses_have_their_phrases() {
        for (status, phrase) in [(201, "Created"), (304, "Not Modified"), (429, "Too Many Requests")] {
            let start = format!("HTTP/1.1 {status} {phrase}\r\n");
            assert!(sent(Response::new(status), false).starts_with(&start), "{status}");
        }
        assert!(sent(Response::new(299), false).starts_with("HTTP/1.1 299 \r\n"));
    }

    #[test]
    fn bytes_of_a_field_go_out_as_they_are() {
        let response = Response::new(200).with_header("X-A", b"caf\xe9".to_vec());
        assert_eq!(response.headers().next(), Some(("X-A", b"caf\xe9".as_slice())));
    }
}
