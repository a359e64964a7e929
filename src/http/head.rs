//! Finds the end of a head, continuing where the last search stopped, and checks line ends on the way.

use super::{MAX_HEAD_BYTES, MAX_METHOD_BYTES, MAX_TARGET_BYTES, field, reason::Bad};
use memchr::memchr;

/// The result of a search for the end of a head.
#[derive(Debug, PartialEq, Eq)]
pub enum HeadScan {
    /// The head has that many bytes, including its empty line.
    Whole(usize),
    /// More bytes are needed.
    Partial,
}

/// The longest first line: a method and a target at their bounds, two blanks, a version and a line end.
const MAX_FIRST_LINE_BYTES: usize = MAX_METHOD_BYTES + 1 + MAX_TARGET_BYTES + 1 + "HTTP/1.1\r\n".len();

/// How far earlier searches came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scanned {
    /// Where the current line begins.
    line: usize,
    /// No line end was found before this place.
    bytes: usize,
}

/// Searches `bytes` for the end of the head. `scanned` remembers how far earlier searches came, so a head that arrives
/// byte by byte costs no more than a whole one.
///
/// # Errors
/// [`Bad::TargetTooLong`] and the like, for what is too long in the first line; [`Bad::HeadTooLong`]; [`Bad::LineEnd`]
/// for an LF without a CR (RFC 9112 §2.2 lets a server accept it, but two parsers may then disagree about where a line
/// ends). The result does not depend on how the bytes were split.
pub fn look(bytes: &[u8], scanned: &mut Scanned) -> Result<HeadScan, Bad> {
    loop {
        let found = memchr(b'\n', &bytes[scanned.bytes..]);
        // A line without an end by now is measured as one that has come whole: by what it takes at least.
        let end = found.map_or(bytes.len(), |at| scanned.bytes + at + 1);
        if scanned.line == 0 && end > MAX_FIRST_LINE_BYTES {
            return Err(explain_length(&bytes[..MAX_FIRST_LINE_BYTES]));
        }
        if end > MAX_HEAD_BYTES {
            return Err(Bad::HeadTooLong);
        }
        let line = &bytes[scanned.line..end];
        scanned.bytes = end;
        if found.is_none() {
            return Ok(HeadScan::Partial);
        }
        let Some(line) = line.strip_suffix(b"\r\n") else { return Err(Bad::LineEnd) };
        scanned.line = end;
        if line.is_empty() {
            return Ok(HeadScan::Whole(end));
        }
    }
}

/// Which part of a first line is too long, judged by the bytes up to the bound only, so that the answer does not depend
/// on how many more have come.
fn explain_length(line: &[u8]) -> Bad {
    let mut parts = line.splitn(3, |&byte| byte == b' ');
    let method = parts.next().unwrap_or(line);
    match parts.next() {
        _ if !method.iter().copied().all(field::is_token_byte) => Bad::Method,
        _ if method.len() > MAX_METHOD_BYTES => Bad::MethodTooLong,
        Some(target) if target.len() > MAX_TARGET_BYTES => Bad::TargetTooLong,
        _ => Bad::RequestLine,
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
            assert_eq!(look(&head[..end], &mut scanned), Ok(HeadScan::Partial), "{end}");
        }
        assert_eq!(look(head, &mut scanned), Ok(HeadScan::Whole(head.len() - 4)));
    }

    #[test]
    fn a_bare_lf_is_refused() {
        assert_eq!(look(b"GET / HTTP/1.1\nHost: a\n\n", &mut Scanned::default()), Err(Bad::LineEnd));
        assert_eq!(look(b"\n", &mut Scanned::default()), Err(Bad::LineEnd));
    }

    #[test]
    fn endless_heads_hit_their_bounds() {
        let long = "u".repeat(20_000);
        for (line, bad) in [
            (long.clone(), Bad::MethodTooLong),
            (format!("{long} / HTTP/1.1"), Bad::MethodTooLong),
            (format!("GET /{long}"), Bad::TargetTooLong),
            (format!("GET /{long} HTTP/1.1"), Bad::TargetTooLong),
            (format!("GET / {long}"), Bad::RequestLine),
            (format!("G\0T /{long}"), Bad::Method),
        ] {
            assert_eq!(look(line.as_bytes(), &mut Scanned::default()), Err(bad), "{}", &line[..20]);
        }
        let mut long = b"GET / HTTP/1.1\r\nX: ".to_vec();
        long.resize(70_000, b'v');
        assert_eq!(look(&long, &mut Scanned::default()), Err(Bad::HeadTooLong));
    }

    #[test]
    fn a_first_line_may_be_as_long_as_a_method_and_a_target_may_be() {
        let line = |method: usize, target: usize, version: &str| {
            format!("{} /{} {version}\r\n", "M".repeat(method), "t".repeat(target - 1))
        };
        let longest = line(MAX_METHOD_BYTES, MAX_TARGET_BYTES, "HTTP/1.1");
        for (line, expected) in [
            (longest.clone(), Ok(HeadScan::Partial)),
            (longest.replace('\n', ""), Ok(HeadScan::Partial)),
            (line(MAX_METHOD_BYTES + 1, MAX_TARGET_BYTES, "HTTP/1.1"), Err(Bad::MethodTooLong)),
            (line(MAX_METHOD_BYTES, MAX_TARGET_BYTES + 1, "HTTP/1.1"), Err(Bad::TargetTooLong)),
            (line(MAX_METHOD_BYTES, MAX_TARGET_BYTES, "HTTP/1.10"), Err(Bad::RequestLine)),
        ] {
            assert_eq!(look(line.as_bytes(), &mut Scanned::default()), expected, "{} bytes", line.len());
        }
        // Lines behind the first are bounded by the head alone.
        let second = format!("{longest}{}\r\n", "x".repeat(longest.len() + 1));
        assert_eq!(look(second.as_bytes(), &mut Scanned::default()), Ok(HeadScan::Partial));
    }

    #[test]
    fn a_head_may_have_64_kib_with_its_empty_line() {
        let head = |bytes: usize| {
            let mut head = b"GET / HTTP/1.1\r\nX: ".to_vec();
            head.resize(bytes - 4, b'v');
            [&head[..], b"\r\n\r\n"].concat()
        };
        let whole = |bytes| look(&head(bytes), &mut Scanned::default());
        assert_eq!(whole(64 * 1024), Ok(HeadScan::Whole(64 * 1024)));
        assert_eq!(whole(64 * 1024 + 1), Err(Bad::HeadTooLong));
    }
}
