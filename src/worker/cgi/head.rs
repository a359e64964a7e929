//! The head of a script's output (RFC 3875 §6).

use crate::http::field;
use std::io;

/// The head of a script's output.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: Option<u16>,
    pub(super) fields: Vec<(String, Vec<u8>)>,
}

impl Head {
    pub(super) fn parse(bytes: &[u8]) -> io::Result<Head> {
        let bad = |what: &str| io::Error::other(format!("{what} in its head"));
        let code = |value: &[u8]| {
            let digits = value.split(|&byte| byte == b' ').find(|part| !part.is_empty())?;
            field::decimal(digits)
                .and_then(|code| u16::try_from(code).ok())
                .filter(|code| (200..1000).contains(code))
        };
        let mut head = Head { status: None, fields: Vec::new() };
        let lines = bytes.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        for (number, line) in lines.filter(|line| !line.is_empty()).enumerate() {
            // A script that writes a status line itself ("nph").
            if let (0, Some(remaining)) = (number, line.strip_prefix(b"HTTP/")) {
                let at = memchr::memchr(b' ', remaining).unwrap_or(remaining.len());
                head.status = Some(code(&remaining[at..]).ok_or_else(|| bad("no status code"))?);
                continue;
            }
            let colon = memchr::memchr(b':', line).ok_or_else(|| bad("a line without a colon"))?;
            let (name, value) = (&line[..colon], field::trim(&line[colon + 1..]));
            let is_name = !name.is_empty() && name.iter().all(|&byte| field::is_token_byte(byte));
            if !is_name || !field::is_value(value) {
                return Err(bad("a field that is not valid"));
            }
            if name.eq_ignore_ascii_case(b"status") {
                head.status = Some(code(value).ok_or_else(|| bad("no status code"))?);
            }
            // Token bytes are ASCII.
            head.fields.push((String::from_utf8_lossy(name).into_owned(), value.to_vec()));
        }
        Ok(head)
    }

    pub(super) fn field(&self, name: &str) -> Option<&[u8]> {
        let field = self.fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name));
        field.map(|(_, value)| value.as_slice())
    }

    /// A head that is only a path is followed here, and the client does not see it (RFC 3875 §6.2.2).
    pub(super) fn local_redirect(&self) -> Option<String> {
        let path = std::str::from_utf8(self.field("location")?).ok()?;
        let is_local = self.status.is_none() && self.fields.len() == 1 && path.starts_with('/');
        is_local.then(|| path.to_owned())
    }
}

/// Where the head ends, and where what follows it begins.
pub(super) fn end_of_head(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut from = 0;
    while let Some(at) = memchr::memchr(b'\n', &bytes[from..]) {
        let line = &bytes[from..from + at];
        if line.is_empty() || line == b"\r" {
            return Some((from, from + at + 1));
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_say_status_and_fields() {
        let head = Head::parse(b"Status: 404 Not Found\r\nContent-Type: text/plain").expect("valid");
        assert_eq!((head.status, head.field("content-type")), (Some(404), Some(b"text/plain".as_slice())));
        let nph = Head::parse(b"HTTP/1.1 201 Created\nX-A: b").expect("valid");
        assert_eq!((nph.status, nph.field("x-a")), (Some(201), Some(b"b".as_slice())));
        assert!(Head::parse(b"hello world").is_err());
    }

    #[test]
    fn a_path_alone_is_a_local_redirect() {
        let local = |text: &[u8]| Head::parse(text).expect("valid").local_redirect();
        assert_eq!(local(b"Location: /other?x=1"), Some("/other?x=1".into()));
        assert_eq!(local(b"Location: http://example.com/"), None);
        assert_eq!(local(b"Status: 303 See Other\nLocation: /other"), None);
    }

    #[test]
    fn heads_end_at_an_empty_line_of_either_kind() {
        assert_eq!(end_of_head(b"A: b\n\nrest"), Some((5, 6)));
        assert_eq!(end_of_head(b"A: b\r\n\r\nrest"), Some((6, 8)));
        assert_eq!(end_of_head(b"A: b\r\n"), None);
    }
}
