//! Heads that are to be refused, each with the status and the reason that fit.

/// What is wrong with a request's head.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flaw {
    pub version: &'static str,
    pub host: &'static str,
    /// A whole line, or nothing.
    pub field: &'static str,
    pub status: u16,
    /// As the log names it.
    pub reason: &'static str,
}

const fn flaw(host: &'static str, field: &'static str, status: u16, reason: &'static str) -> Flaw {
    Flaw { version: "1.1", host, field, status, reason }
}

pub(crate) const FLAWS: &[Flaw] = &[
    flaw("h", "Host: h\r\n", 400, "bad_request: host_twice"),
    flaw("%zz", "", 400, "bad_request: host"),
    flaw("[zzz]", "", 400, "bad_request: host"),
    flaw("h:99999", "", 400, "bad_request: host"),
    flaw("1.2.3.4.5", "", 400, "bad_request: host"),
    flaw("", "", 400, "bad_request: host"),
    flaw("h", " folded: 1\r\n", 400, "bad_request: field_folded"),
    flaw("h", "X Y: 1\r\n", 400, "bad_request: field_name"),
    flaw("h", "Transfer-Encoding: cow\r\n", 501, "bad_request: coding_not_served"),
    flaw("h", "Transfer-Encoding: gzip\r\n", 400, "bad_request: coding_invalid"),
    flaw("h", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400, "bad_request: length_and_coding"),
    flaw("h", "Content-Length: 99999999999999\r\n", 413, "body_too_large"),
    flaw("h", "Expect: tea\r\n", 417, "bad_request: expectation"),
    Flaw { version: "2.0", ..flaw("h", "", 505, "bad_request: version") },
];
