//! What is wrong with a request head that `httparse` does not accept, as precisely as a client's author needs it.

use super::reason::Bad;
use super::{MAX_METHOD_BYTES, MAX_TARGET_BYTES, field};
use httparse::Error;

/// Translates an error of `httparse`, which knows less about the cause than the client's author needs.
pub(super) fn explain(error: Error, bytes: &[u8]) -> Bad {
    match error {
        Error::HeaderName if is_first_bad_line_folded(bytes) => Bad::FieldFolded,
        Error::HeaderName => Bad::FieldName,
        Error::HeaderValue => Bad::FieldValue,
        Error::TooManyHeaders => Bad::TooManyFields,
        Error::NewLine if is_version(first_line(bytes).rsplit(|&byte| byte == b' ').next()) => Bad::LineEnd,
        Error::Token | Error::Version | Error::NewLine | Error::Status => explain_line(first_line(bytes)),
    }
}

pub(super) fn first_line(head: &[u8]) -> &[u8] {
    head.split(|&byte| byte == b'\r').next().unwrap_or(head)
}

/// `HTTP/` and two digits.
fn is_version(part: Option<&[u8]>) -> bool {
    matches!(part, Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor])
        if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// Finds the first part of a request line that is not valid.
fn explain_line(line: &[u8]) -> Bad {
    let mut parts = line.splitn(4, |&byte| byte == b' ');
    let method = parts.next().unwrap_or(b"");
    if method.is_empty() || !method.iter().copied().all(field::is_token_byte) {
        return Bad::Method;
    }
    if method.len() > MAX_METHOD_BYTES {
        return Bad::MethodTooLong;
    }
    match (parts.next(), parts.next(), parts.next()) {
        (Some(target), Some(b"HTTP/1.0" | b"HTTP/1.1"), None) if target.len() > MAX_TARGET_BYTES => {
            Bad::TargetTooLong
        }
        (Some(_), Some(b"HTTP/1.0" | b"HTTP/1.1"), None) => Bad::Target,
        (Some(_), version, None) if is_version(version) => Bad::Version,
        _ => Bad::RequestLine,
    }
}

/// Whether the first line that is not a field begins with a blank, as a folded line does.
fn is_first_bad_line_folded(head: &[u8]) -> bool {
    let is_field = |line: &&[u8]| {
        let name = line.iter().position(|&byte| byte == b':').map_or(&b""[..], |colon| &line[..colon]);
        !name.is_empty() && name.iter().copied().all(field::is_token_byte)
    };
    let first_bad = head.split(|&byte| byte == b'\n').skip(1).find(|line| !is_field(line));
    matches!(first_bad, Some([b' ' | b'\t', ..]))
}

#[cfg(test)]
mod tests {
    use crate::http::reason::Bad;
    use crate::http::request::tests::{refusal, with};
    use crate::http::{MAX_METHOD_BYTES, MAX_TARGET_BYTES, Reason};

    #[test]
    fn a_field_line_is_refused_for_what_is_wrong_with_it() {
        for (fields, bad) in [
            ("X: a\r\n b", Bad::FieldFolded),
            ("X: a\r\n\tb", Bad::FieldFolded),
            ("X: a\r\n ", Bad::FieldFolded),
            (" X: a", Bad::FieldFolded),
            ("X Y: a\r\n b", Bad::FieldName),
            ("X : a", Bad::FieldName),
            (": a", Bad::FieldName),
            ("X", Bad::FieldName),
            ("X: a\u{1}\r\n b", Bad::FieldValue),
        ] {
            assert_eq!(refusal(&with(fields)), Reason::BadRequest(bad), "{fields:?}");
        }
        let first = "GET / HTTP/1.1\r\n Host: a\r\n\r\n";
        assert_eq!(refusal(first), Reason::BadRequest(Bad::FieldFolded));
    }

    #[test]
    fn request_lines_are_judged_by_their_parts() {
        for (line, bad) in [
            ("GET /a b HTTP/1.1", Bad::RequestLine),
            ("GET /", Bad::RequestLine),
            ("G{T / HTTP/1.1", Bad::Method),
            ("GET / HTTP/2.0", Bad::Version),
            ("GET / HTTP/0.9", Bad::Version),
            ("GET / http/1.1", Bad::RequestLine),
            ("GET / HTTP/1.10", Bad::RequestLine),
            ("GET /\u{1} HTTP/1.1", Bad::Target),
            ("GET * HTTP/1.1", Bad::Target),
            ("GET a:80 HTTP/1.1", Bad::Target),
            ("GET /a#b HTTP/1.1", Bad::Target),
            ("TRACE / HTTP/1.1", Bad::MethodNotServed),
            ("CONNECT a:80 HTTP/1.1", Bad::MethodNotServed),
            (" / HTTP/1.1", Bad::Method),
            ("GET / HTTP/1.1\rX", Bad::LineEnd),
            ("GET / HTTP/2.0\rX", Bad::Version),
        ] {
            assert_eq!(refusal(&format!("{line}\r\nHost: a\r\n\r\n")), Reason::BadRequest(bad), "{line}");
        }
    }

    #[test]
    fn a_long_part_is_what_is_wrong_with_a_line_before_the_parts_behind_it() {
        let (method, target) =
            ("M".repeat(MAX_METHOD_BYTES), format!("/{}", "t".repeat(MAX_TARGET_BYTES - 1)));
        for (line, bad) in [
            (format!("{method} / HTTP/2.0"), Bad::Version),
            (format!("{method}M / HTTP/2.0"), Bad::MethodTooLong),
            (format!("GET {target}\u{1} HTTP/1.1"), Bad::TargetTooLong),
            (format!("GET {}\u{1} HTTP/1.1", &target[1..]), Bad::Target),
        ] {
            assert_eq!(
                refusal(&format!("{line}\r\nHost: a\r\n\r\n")),
                Reason::BadRequest(bad),
                "{}",
                &line[..5]
            );
        }
    }
}
