//! Where a head ends, looked for from where the last look stopped, and its line ends checked on the way.

use super::{MAX_HEAD_BYTES, MAX_TARGET_BYTES, reason::Bad};
use memchr::memchr;

/// What a look at the beginning of a message found.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// The head takes that many bytes, its empty line included.
    Whole(usize),
    /// More bytes are needed.
    Partial,
}

/// More of a first line than a method, a target at its bound and a version can take.
const MAX_FIRST_LINE_BYTES: usize = MAX_TARGET_BYTES + 128;

/// How far earlier looks came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scanned {
    /// Where the line at hand begins.
    line: usize,
    /// So far no line end was found.
    bytes: usize,
}

/// Looks for the end of the head in `bytes`. `scanned` remembers how far earlier looks came, so that a dripped head
/// costs no more than a whole one.
///
/// # Errors
/// [`Bad::LineEnd`] for an LF without CR before it (RFC 9112 §2.2 lets a server accept it, but two readers then
/// disagree about where a line ends), [`Bad::HeadTooLong`], [`Bad::TargetTooLong`]. The same in any segmentation.
pub fn look(bytes: &[u8], scanned: &mut Scanned) -> Result<Look, Bad> {
    loop {
        let found = memchr(b'\n', &bytes[scanned.bytes..]);
        // A line without an end by now is measured as one that has come whole: by what it takes at least.
        let end = found.map_or(bytes.len(), |at| scanned.bytes + at + 1);
        if scanned.line == 0 && end > MAX_FIRST_LINE_BYTES {
            return Err(Bad::TargetTooLong);
        }
        if end > MAX_HEAD_BYTES {
            return Err(Bad::HeadTooLong);
        }
        let line = &bytes[scanned.line..end];
        scanned.bytes = end;
        if found.is_none() {
            return Ok(Look::Partial);
        }
        let Some(line) = line.strip_suffix(b"\r\n") else { return Err(Bad::LineEnd) };
        scanned.line = end;
        if line.is_empty() {
            return Ok(Look::Whole(end));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dripped_head_is_found_where_a_whole_one_is() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
        let mut scanned = Scanned::default();
        for end in 0..head.len() - 4 {
            assert_eq!(look(&head[..end], &mut scanned), Ok(Look::Partial), "{end}");
        }
        assert_eq!(look(head, &mut scanned), Ok(Look::Whole(head.len() - 4)));
    }

    #[test]
    fn a_bare_lf_is_refused() {
        assert_eq!(look(b"GET / HTTP/1.1\nHost: a\n\n", &mut Scanned::default()), Err(Bad::LineEnd));
        assert_eq!(look(b"\n", &mut Scanned::default()), Err(Bad::LineEnd));
    }

    #[test]
    fn endless_heads_hit_their_bounds() {
        assert_eq!(look(&[b'u'; 20_000], &mut Scanned::default()), Err(Bad::TargetTooLong));
        let mut long = b"GET / HTTP/1.1\r\nX: ".to_vec();
        long.resize(70_000, b'v');
        assert_eq!(look(&long, &mut Scanned::default()), Err(Bad::HeadTooLong));
    }
}
