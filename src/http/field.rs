//! Field names and values: which ones stop here, and how lists and numbers in them are read.

/// Whether a method or a field name may contain this byte (RFC 9110 §5.6.2).
pub const fn is_token_byte(byte: u8) -> bool {
    matches!(byte,
        b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z')
}

/// Whether these bytes may be a field's value (RFC 9110 §5.5): visible bytes, blanks and bytes from 80 to FF; no CR,
/// LF, NUL or other control byte. `httparse` has checked this for what it has read.
pub fn is_value(value: &[u8]) -> bool {
    value.iter().all(|&byte| (byte >= 0x20 && byte != 0x7f) || byte == b'\t')
}

/// Strips optional whitespace (SP and HTAB only) from both ends.
pub fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', remaining @ ..] = value {
        value = remaining;
    }
    while let [remaining @ .., b' ' | b'\t'] = value {
        value = remaining;
    }
    value
}

/// The elements of a comma-separated list, trimmed, empty ones included.
pub fn list(value: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim)
}

/// Parses digits only, as RFC 9110 §8.6 says: no sign, no blank, no underscore. `None` also if it exceeds a `u64`.
pub fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0u64, |sum, &byte| match byte {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// Whether a name equals `known` (which is in lower case), ignoring ASCII case. Most names differ in length already.
/// Otherwise all bytes are compared without an early exit, which takes a handful of instructions.
pub fn is<const BYTES: usize>(name: &str, known: &[u8; BYTES]) -> bool {
    name.len() == BYTES && starts_with(name, known)
}

/// Whether `name` begins with `known` (which is in lower case), ignoring ASCII case.
pub fn starts_with<const BYTES: usize>(name: &str, known: &[u8; BYTES]) -> bool {
    const CASE: u8 = 0x20;
    let difference = |(&byte, &known): (&u8, &u8)| {
        let aside = if known.is_ascii_lowercase() { CASE } else { 0 };
        (byte ^ known) & !aside
    };
    let begin = name.as_bytes().first_chunk::<BYTES>();
    begin.is_some_and(|begin| begin.iter().zip(known).map(difference).fold(0, |all, one| all | one) == 0)
}

/// Whether a field is about one connection and must not be forwarded (RFC 9110 §7.6.1), older fields of this kind
/// included.
pub fn is_hop_by_hop(name: &str) -> bool {
    // The first letter is enough to let most names pass.
    match name.as_bytes().first().map(u8::to_ascii_lowercase) {
        Some(b'c') => is(name, b"connection"),
        Some(b'h') => is(name, b"http2-settings"),
        Some(b'k') => is(name, b"keep-alive"),
        Some(b'p') => {
            is(name, b"proxy-connection")
                || is(name, b"proxy-authorization")
                || is(name, b"proxy-authenticate")
        }
        Some(b't') => is(name, b"te") || is(name, b"trailer") || is(name, b"transfer-encoding"),
        Some(b'u') => is(name, b"upgrade"),
        _ => false,
    }
}

/// Whether a field is between the server and its workers (`Rip-Worker-Busy` …): it is not forwarded in either
/// direction.
pub fn is_internal(name: &str) -> bool {
    starts_with(name, b"rip-")
}

/// Whether a field says something about the client behind a proxy. It is believed only from the proxies that
/// `--trust-proxy` names.
pub fn is_forwarded(name: &str) -> bool {
    starts_with(name, b"x-forwarded-") || is(name, b"forwarded") || is(name, b"x-real-ip")
}

/// Whether `name` is the underscore spelling of a field that the server sets or reads. CGI, WSGI and Rack turn
/// both spellings into one variable, so a client could replace what the server says.
pub fn is_underscore_twin(name: &str) -> bool {
    if !name.contains('_') {
        return false;
    }
    let dashed = name.replace('_', "-");
    is_hop_by_hop(&dashed)
        || is_internal(&dashed)
        || is_forwarded(&dashed)
        || is(&dashed, b"content-length")
        || is(&dashed, b"x-request-id")
        || is(&dashed, b"x-request-start")
}

#[cfg(test)]
mod tests {
    use super::super::request::header_buffer;
    use super::super::response::RequestContext;
    use super::super::{RequestHead, ResponseHead, Version};
    use super::*;

    /// `httparse` looks at eight or 32 bytes at once, so each byte is tried at many places; but for LF, which
    /// [`super::super::head::look`] has refused before.
    #[test]
    fn a_value_that_was_parsed_has_no_control_byte_at_any_place() {
        const CONTEXT: RequestContext = RequestContext {
            is_head: false,
            wants_websocket: false,
            version: Version::Http11,
            keep_alive: true,
        };
        let bytes = || (0..=255u8).filter(|&byte| byte != b'\n');
        for (length, byte) in (1..=80).flat_map(|length| bytes().map(move |byte| (length, byte))) {
            for at in [0, length / 3, length / 2, length - 1] {
                let mut value = vec![b'v'; length];
                value[at] = byte;
                let head = |first: &[u8]| [first, b"\r\nHost: a\r\nX: ", &value, b"\r\n\r\n"].concat();
                let is_fit = is_value(&value);
                let request = head(b"GET / HTTP/1.1");
                assert_eq!(
                    RequestHead::parse(&request, &mut header_buffer()).is_ok(),
                    is_fit,
                    "{byte:#x} at {at}"
                );
                let answer = head(b"HTTP/1.1 200 OK");
                assert_eq!(
                    ResponseHead::parse(&answer, &mut header_buffer(), CONTEXT).is_ok(),
                    is_fit,
                    "{byte:#x} at {at}"
                );
            }
        }
    }

    #[test]
    fn names_are_known_by_all_their_bytes_and_in_any_case() {
        for name in ["te", "TE", "Te", "tE"] {
            assert!(is(name, b"te"), "{name}");
        }
        assert!(is("HTTP2-Settings", b"http2-settings") && starts_with("X-ForWarded-For", b"x-forwarded-"));
        for other in ["", "t", "tee", "ue", "tf", "ud", "T\u{5}"] {
            assert!(!is(other, b"te"), "{other}");
        }
        // Only letters have a case: in other bytes that bit is part of the value.
        assert!(!is("http2\rsettings", b"http2-settings") && !is("http\u{12}-settings", b"http2-settings"));
        assert!(!starts_with("x-forwarded", b"x-forwarded-"));
    }

    #[test]
    fn hop_by_hop_fields_are_known_in_any_case() {
        for name in [
            "Connection",
            "Keep-Alive",
            "Proxy-Connection",
            "TE",
            "Trailer",
            "Transfer-Encoding",
            "Upgrade",
            "Proxy-Authorization",
            "Proxy-Authenticate",
            "HTTP2-Settings",
        ] {
            let (lower, upper) = (name.to_ascii_lowercase(), name.to_ascii_uppercase());
            assert!(is_hop_by_hop(name) && is_hop_by_hop(&lower) && is_hop_by_hop(&upper), "{name}");
        }
        for other in ["", "Content-Length", "Host", "Proxy", "Trailers", "Upgrades", "Date"] {
            assert!(!is_hop_by_hop(other), "{other}");
        }
    }

    #[test]
    fn decimal_takes_digits_alone() {
        assert_eq!(decimal(b"010"), Some(10));
        for odd in [&b""[..], b"+5", b"-1", b"0x5", b"1_0", b"1 0", b"18446744073709551616"] {
            assert_eq!(decimal(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn underscore_twins_of_what_the_server_says_are_known() {
        for twin in [
            "X_Forwarded_For",
            "X-Forwarded_For",
            "x_forwarded_anything",
            "X_Real_IP",
            "X_Request_Id",
            "X_Request_Start",
            "Content_Length",
            "Rip_Probe",
            "transfer_encoding",
            "Keep_Alive",
        ] {
            assert!(is_underscore_twin(twin), "{twin}");
        }
        for other in ["X-Forwarded-For", "my_header", "user_agent"] {
            assert!(!is_underscore_twin(other), "{other}");
        }
    }

    #[test]
    fn no_break_space_is_no_blank() {
        assert_eq!(trim(b"\t chunked \t"), b"chunked");
        assert_eq!(trim(b"\xa0chunked"), b"\xa0chunked");
    }
}
