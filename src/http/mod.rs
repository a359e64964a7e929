//! HTTP/1.1 as bytes: heads (parsed by `httparse`), framing, the chunked coding, and what is forwarded in either
//! direction. Pure: no socket, no clock, no file.
//!
//! Strict by design (RFC 9112): what two parsers could read in two ways is refused, because the worker has a parser of
//! its own.

pub mod chain;
pub mod chunked;
mod codings;
pub mod digits;
pub mod downstream;
mod explain;
pub mod field;
pub mod forward;
pub mod head;
pub mod host;
pub mod method;
pub mod phrase;
pub mod proxy_header;
pub mod reason;
pub mod request;
pub mod response;

pub use chunked::Chunked;
pub use reason::Reason;
pub use request::RequestHead;
pub use response::ResponseHead;

/// The most bytes of a head, of a request or an answer: four times what browsers and proxies send at most (431).
pub const MAX_HEAD_BYTES: usize = 64 * 1024;
/// The most fields of a head: enough behind several proxies, too few to attack a hash table with (431).
pub const MAX_FIELDS: usize = 200;
/// The most bytes of a Host: a name has at most 253 and a port, and the worker gets it twice (400).
pub const MAX_HOST_BYTES: usize = 1024;
/// The fields that the server adds for the worker, on top of the client's.
pub const OWN_FIELDS: usize = 8;
/// The most bytes of a method: the longest registered one has 17 (501).
pub const MAX_METHOD_BYTES: usize = 64;
/// The most bytes of a request target: twice what RFC 9112 §3 asks everybody to support (414).
pub const MAX_TARGET_BYTES: usize = 16 * 1024;
/// The most bytes of a chunk-size line, extensions included: nobody uses them, so they get no more (400).
pub const MAX_CHUNK_LINE_BYTES: usize = 4 * 1024;
/// The most bytes of a trailer section, which is read only to be dropped (431).
pub const MAX_TRAILER_BYTES: usize = 16 * 1024;

/// How a message says where its body ends (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    Empty,
    /// That many bytes.
    Length(u64),
    /// The chunked coding.
    Chunked,
    /// Until the connection ends; answers only.
    UntilClose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}
