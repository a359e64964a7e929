//! What makes two requests the same: the head as the worker gets it, without what the server puts there itself, and the
//! body.

use std::hash::{BuildHasher, Hasher as _, RandomState};

/// So much of a body is hashed, beside its length: nearly all forms whole, and a large upload costs no time in the loop.
pub(crate) const MAX_HASHED_BODY_BYTES: usize = 64 * 1024;

/// Two requests with the same one are the same request, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fingerprint {
    pub(super) head: u64,
    pub(super) body: u64,
}

/// Fields that differ from one to the next of the same request, or follow from its body.
const SERVERS_FIELDS: [&[u8]; 7] = [
    b"content-length",
    b"rip-client",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-request-id",
    b"x-request-start",
];

/// With a key of its own in each run, so that nobody can make a request that looks like another.
#[derive(Debug, Default)]
pub(super) struct Hasher(RandomState);

impl Hasher {
    pub(super) fn head(&self, head: &[u8]) -> u64 {
        let mut hasher = self.0.build_hasher();
        let mut lines = head.split(|&byte| byte == b'\n');
        if let Some(request_line) = lines.next() {
            hasher.write(request_line);
        }
        for line in lines.filter(|line| !is_servers(line)) {
            hasher.write_u8(b'\n');
            hasher.write(line);
        }
        hasher.finish()
    }

    pub(super) fn body(&self, length: u64, start: &[u8]) -> u64 {
        let mut hasher = self.0.build_hasher();
        hasher.write_u64(length);
        hasher.write(start);
        hasher.finish()
    }

    pub(super) fn bytes(&self, bytes: &[u8]) -> u64 {
        self.0.hash_one(bytes)
    }
}

fn is_servers(line: &[u8]) -> bool {
    // Most fields are told apart by their first letter.
    if !matches!(line.first(), Some(b'c' | b'C' | b'r' | b'R' | b'x' | b'X')) {
        return false;
    }
    SERVERS_FIELDS
        .iter()
        .any(|name| line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_sets_makes_no_difference_and_all_else_does() {
        let hasher = Hasher::default();
        let head = |target: &str, fields: &str| {
            hasher.head(format!("GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n").as_bytes())
        };
        let first = head(
            "/a",
            "Cookie: x\r\nX-Request-Id: 1\r\nX-Forwarded-For: 1.2.3.4\r\nX-Request-Start: t=1\r\n",
        );
        let second =
            head("/a", "Cookie: x\r\nX-Request-Id: 2\r\nX-Forwarded-For: ::1\r\nX-Request-Start: t=2\r\n");
        assert_eq!(first, second);
        assert_ne!(first, head("/a?b", "Cookie: x\r\n"));
        assert_ne!(first, head("/a", "Cookie: y\r\n"));
        assert_ne!(first, head("/a", "Cookie: x\r\nX-Request-Idea: 1\r\n"));
        assert_ne!(hasher.body(3, b"abc"), hasher.body(3, b"abd"));
        assert_ne!(hasher.body(3, b"abc"), hasher.body(4, b"abc"));
    }

    #[test]
    fn any_bytes_have_a_fingerprint() {
        let hasher = Hasher::default();
        for bytes in [&b""[..], b"\n", b"x", b"GET / HTTP/1.1\r\nx", b"\n\nx-request-id:", b"\xff\n:"] {
            hasher.head(bytes);
        }
    }
}
