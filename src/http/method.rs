//! Methods by name.

/// Methods that a server may be expected to know: those of the IANA registry (RFC 9110 §16.1) and the common ones
/// beyond it. Methods are case-sensitive.
pub fn is_registered(method: &[u8]) -> bool {
    matches!(
        method,
        b"ACL"
            | b"BASELINE-CONTROL"
            | b"BIND"
            | b"CHECKIN"
            | b"CHECKOUT"
            | b"CONNECT"
            | b"COPY"
            | b"DELETE"
            | b"GET"
            | b"HEAD"
            | b"LABEL"
            | b"LINK"
            | b"LOCK"
            | b"MERGE"
            | b"MKACTIVITY"
            | b"MKCALENDAR"
            | b"MKCOL"
            | b"MKREDIRECTREF"
            | b"MKWORKSPACE"
            | b"MOVE"
            | b"M-SEARCH"
            | b"NOTIFY"
            | b"OPTIONS"
            | b"ORDERPATCH"
            | b"PATCH"
            | b"POST"
            | b"PROPFIND"
            | b"PROPPATCH"
            | b"PURGE"
            | b"PUT"
            | b"QUERY"
            | b"REBIND"
            | b"REPORT"
            | b"SEARCH"
            | b"SUBSCRIBE"
            | b"TRACE"
            | b"UNBIND"
            | b"UNCHECKOUT"
            | b"UNLINK"
            | b"UNLOCK"
            | b"UNSUBSCRIBE"
            | b"UPDATE"
            | b"UPDATEREDIRECTREF"
            | b"VERSION-CONTROL"
    )
}

#[cfg(test)]
mod tests {
    use super::is_registered;

    #[test]
    fn methods_are_known_by_their_exact_names() {
        for method in ["GET", "PROPFIND", "M-SEARCH", "VERSION-CONTROL"] {
            assert!(is_registered(method.as_bytes()), "{method}");
        }
        for method in ["BREW", "get", "GETS", ""] {
            assert!(!is_registered(method.as_bytes()), "{method}");
        }
    }
}
