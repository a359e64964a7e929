//! The transfer codings of a request (RFC 9112 §6.1), judged over all its `Transfer-Encoding` lines.

use super::field;

/// The transfer codings read so far; several lines are one list.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Codings {
    /// Registered codings only.
    Known,
    /// At least one coding is not registered.
    Unknown,
    /// `chunked` alone.
    Chunked,
    /// `chunked` after others.
    OthersThenChunked,
    /// Not a list of codings, or something follows `chunked`, which must be the last.
    Invalid,
}

impl Codings {
    /// Adds the codings of one more line. `identity` is no longer registered, so it counts as unknown.
    pub(super) fn with(before: Option<Codings>, value: &[u8]) -> Codings {
        if before.is_none() && value.eq_ignore_ascii_case(b"chunked") {
            return Codings::Chunked;
        }
        let is = |coding: &[u8], name: &str| coding.eq_ignore_ascii_case(name.as_bytes());
        field::list(value)
            .fold(before, |before, coding| {
                let name = field::trim(coding.split(|&byte| byte == b';').next().unwrap_or(coding));
                let is_known = ["gzip", "x-gzip", "deflate", "compress", "x-compress"]
                    .iter()
                    .any(|known| is(name, known));
                Some(match before {
                    _ if name.is_empty() || !name.iter().copied().all(field::is_token_byte) => {
                        Codings::Invalid
                    }
                    Some(Codings::Invalid | Codings::Chunked | Codings::OthersThenChunked) => {
                        Codings::Invalid
                    }
                    None if is(coding, "chunked") => Codings::Chunked,
                    Some(_) if is(coding, "chunked") => Codings::OthersThenChunked,
                    // `chunked` has no parameters.
                    _ if is(name, "chunked") => Codings::Invalid,
                    None | Some(Codings::Known) if is_known => Codings::Known,
                    None | Some(Codings::Known | Codings::Unknown) => Codings::Unknown,
                })
            })
            .unwrap_or(Codings::Invalid)
    }
}
