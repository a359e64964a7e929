//! What a handler takes and gives.

use crate::http::{field, reason};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// A request as the handler sees it.
pub struct Request<'a> {
    pub method: String,
    /// Path and query, as the client sent them.
    pub target: String,
    pub(super) fields: Vec<(String, Vec<u8>)>,
    pub(super) body: Body<'a>,
    pub(super) connection: &'a UnixStream,
}

/// A request's body, read as it comes.
pub struct Body<'a> {
    pub(super) source: &'a mut dyn Read,
    pub(super) left_bytes: u64,
}

impl Request<'_> {
    /// The path without the query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or(&self.target)
    }

    /// What stands behind the `?`; empty where there is none.
    pub fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    /// The first value of a query parameter, as it stands there.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query()
            .split('&')
            .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))
            .map(|(_, value)| value)
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

    /// The server's connection: its end tells that nobody waits for the answer.
    pub(crate) fn connection(&self) -> &UnixStream {
        self.connection
    }

    /// The body, to be read at leisure: it never blocks for a slow client, since the server has it in full.
    pub fn body(&mut self) -> &mut dyn Read {
        &mut self.body
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
}

impl Body<'_> {
    pub fn len(&self) -> u64 {
        self.left_bytes
    }

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

type Writer = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()>>;

/// What the handler answers.
pub struct Response {
    status: u16,
    fields: Vec<(String, String)>,
    content: Content,
}

enum Content {
    Bytes(Vec<u8>),
    /// `length_bytes`: how much will be written, where that is known.
    Stream {
        write: Writer,
        length_bytes: Option<u64>,
    },
}

impl Response {
    pub fn new(status: u16) -> Self {
        Response { status, fields: Vec::new(), content: Content::Bytes(Vec::new()) }
    }

    /// 200, `text/plain`.
    pub fn text(text: impl Into<String>) -> Self {
        Response::new(200).with_header("Content-Type", "text/plain; charset=utf-8").with_body(text.into())
    }

    pub fn with_status(self, status: u16) -> Self {
        Response { status, ..self }
    }

    /// Adds a field. One that would not be valid HTTP is left out: it could only break the answer.
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let (name, value) = (name.into(), value.into());
        let is_valid =
            !name.is_empty() && name.bytes().all(field::is_token_byte) && field::is_value(value.as_bytes());
        debug_assert!(is_valid, "not a field: {name}: {value}");
        if is_valid {
            self.fields.push((name, value));
        }
        self
    }

    pub fn with_body(self, body: impl Into<Vec<u8>>) -> Self {
        Response { content: Content::Bytes(body.into()), ..self }
    }

    /// A body that is written piece by piece; each write reaches the client at once.
    pub fn with_stream(self, write: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'static) -> Self {
        Response { content: Content::Stream { write: Box::new(write), length_bytes: None }, ..self }
    }

    /// The same, of a length that is known before. Writing another amount cuts the answer.
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

    /// Writes the answer.
    pub(super) fn send(self, to: &mut dyn Write, is_head: bool) -> io::Result<()> {
        let mut head = Vec::with_capacity(256);
        write!(head, "HTTP/1.1 {} {}\r\n", self.status, reason::phrase(self.status))?;
        for (name, value) in &self.fields {
            write!(head, "{name}: {value}\r\n")?;
        }
        let has_body = !(is_head || self.status == 204 || self.status == 304);
        match self.content {
            Content::Bytes(bytes) => {
                if self.status != 204 {
                    write!(head, "Content-Length: {}\r\n", bytes.len())?;
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
                        if sized.left_bytes == 0 { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
                    }
                    None => {
                        write(&mut Chunks(to))?;
                        to.write_all(b"0\r\n\r\n")
                    }
                }
            }
        }
    }
}

/// No more than was announced.
struct Announced<'a> {
    to: &'a mut dyn Write,
    left_bytes: u64,
}

impl Write for Announced<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left_bytes = self
            .left_bytes
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| io::Error::other("more than the announced length"))?;
        self.to.write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Each write is a chunk.
struct Chunks<'a>(&'a mut dyn Write);

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !bytes.is_empty() {
            let mut chunk = Vec::with_capacity(bytes.len() + 16);
            crate::http::forward::write_chunk_size(&mut chunk, bytes.len());
            chunk.extend_from_slice(bytes);
            chunk.extend_from_slice(b"\r\n");
            self.0.write_all(&chunk)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
