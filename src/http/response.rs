//! The head of a worker's answer.

use super::{Framing, MAX_FIELDS, Version, field, request::Fields};
use httparse::{Header, Status};

/// An answer head that is valid HTTP and frames its body in one way only.
#[derive(Debug)]
pub struct ResponseHead<'h, 'b> {
    pub status: u16,
    pub phrase: &'b str,
    pub fields: &'h [Header<'b>],
    /// What follows the head, given the request's method.
    pub framing: Framing,
    /// The announced length where no body follows (HEAD, 304), so that it can be passed on.
    pub length: Option<u64>,
    /// The worker's connection may be reused after this answer.
    pub keep_alive: bool,
    /// A 503 that says that the worker is busy and has not begun with the request.
    pub is_busy: bool,
    pub nominates: bool,
    /// `text/plain`, without parameters; empty where there is none.
    pub media_type: &'b [u8],
}

/// What an answer's framing needs to know of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestContext {
    pub is_head: bool,
    pub wants_websocket: bool,
    /// The client's version: before 1.1 there are no 1xx and no chunks.
    pub version: Version,
    pub keep_alive: bool,
}

/// An answer that the server cannot pass on; the client gets 502.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid(pub &'static str);

impl<'h, 'b> ResponseHead<'h, 'b> {
    /// Reads a whole head, its empty line included.
    ///
    /// # Errors
    /// [`Invalid`] with what is wrong with it, in words for the log.
    pub fn parse(
        bytes: &'b [u8],
        header_buffer: &'h mut Fields<'b>,
        context: RequestContext,
    ) -> Result<Self, Invalid> {
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        match config.parse_response_with_uninit_headers(&mut parsed, bytes, header_buffer) {
            Ok(Status::Complete(_)) => {}
            Ok(Status::Partial) => return Err(Invalid("an incomplete head")),
            Err(httparse::Error::Status | httparse::Error::Version) => return Err(Invalid("no status line")),
            Err(httparse::Error::TooManyHeaders) => return Err(Invalid("more than 200 fields")),
            Err(_) => return Err(Invalid("a field that is not valid")),
        }
        let (Some(minor), Some(status)) = (parsed.version, parsed.code) else {
            return Err(Invalid("no status line"));
        };
        if parsed.headers.len() > MAX_FIELDS {
            return Err(Invalid("more than 200 fields"));
        }
        let fields: &'h [Header<'b>] = parsed.headers;
        let (mut length, mut chunked, mut close, mut keep, mut nominates, mut busy) =
            (None, false, false, false, false, false);
        let mut media_type = None;
        for header in fields {
            let value = field::trim(header.value);
            match header.name {
                name if media_type.is_none() && field::is(name, b"content-type") => {
                    let kind = value.split(|&byte| byte == b';').next().unwrap_or(value);
                    media_type = Some(field::trim(kind));
                }
                name if field::is(name, b"content-length") => {
                    let Some(said) = field::decimal(value) else {
                        return Err(Invalid("a Content-Length that is not a number"));
                    };
                    if length.replace(said).is_some_and(|before| before != said) {
                        return Err(Invalid("two different Content-Lengths"));
                    }
                }
                name if field::is(name, b"transfer-encoding") => {
                    if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Invalid("a Transfer-Encoding other than chunked"));
                    }
                    chunked = true;
                }
                name if field::is(name, b"connection") => {
                    for option in field::list(value) {
                        match option {
                            _ if option.eq_ignore_ascii_case(b"close") => close = true,
                            _ if option.eq_ignore_ascii_case(b"keep-alive") => keep = true,
                            _ => nominates = true,
                        }
                    }
                }
                name if status == 503 && field::is(name, b"rip-worker-busy") => busy = true,
                _ => {}
            }
        }
        if status < 100 {
            return Err(Invalid("a status below 100"));
        }
        if status == 101 && !context.wants_websocket {
            return Err(Invalid("a 101 that nobody asked for"));
        }
        let framing = if context.is_head || status < 200 || status == 204 || status == 304 {
            Framing::Empty
        } else if chunked && minor == 0 {
            return Err(Invalid("a Transfer-Encoding in HTTP/1.0"));
        } else if chunked && length.is_some() {
            return Err(Invalid("both Content-Length and Transfer-Encoding"));
        } else if chunked {
            Framing::Chunked
        } else {
            length.map_or(Framing::UntilClose, Framing::Length)
        };
        // The announced body may still come, and would be taken for the next answer.
        let may_have_body = framing == Framing::Empty && status >= 200 && (chunked || length > Some(0));
        Ok(ResponseHead {
            status,
            phrase: parsed.reason.unwrap_or(""),
            fields,
            framing,
            length,
            keep_alive: !close && (minor == 1 || keep) && framing != Framing::UntilClose && !may_have_body,
            is_busy: busy,
            nominates,
            media_type: media_type.unwrap_or(b""),
        })
    }

    /// Server-sent events: a stream that may be quiet for long.
    pub fn is_event_stream(&self) -> bool {
        self.media_type.eq_ignore_ascii_case(b"text/event-stream")
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::header_buffer;
    use super::*;

    const GET: RequestContext =
        RequestContext { is_head: false, wants_websocket: false, version: Version::Http11, keep_alive: true };

    fn framing(head: &str, context: RequestContext) -> Result<Framing, Invalid> {
        ResponseHead::parse(head.as_bytes(), &mut header_buffer(), context).map(|head| head.framing)
    }

    #[test]
    fn answers_frame_their_body_in_one_way() {
        let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        assert_eq!(framing(&head("Content-Length: 5\r\n"), GET), Ok(Framing::Length(5)));
        assert_eq!(framing(&head("Content-Length: 5\r\nContent-Length: 5\r\n"), GET), Ok(Framing::Length(5)));
        assert_eq!(framing(&head("Transfer-Encoding: chunked\r\n"), GET), Ok(Framing::Chunked));
        assert_eq!(framing(&head(""), GET), Ok(Framing::UntilClose));
        let head_request = RequestContext { is_head: true, ..GET };
        assert_eq!(framing(&head("Content-Length: 5\r\n"), head_request), Ok(Framing::Empty));
        for bad in [
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: cow\r\n",
            "X: b\0c\r\n",
        ] {
            assert!(framing(&head(bad), GET).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_connection_is_not_used_again_behind_an_answer_that_may_still_get_a_body() {
        let head_request = RequestContext { is_head: true, ..GET };
        for (status, fields, context, keep_alive) in [
            (200, "Content-Length: 5\r\n", head_request, false),
            (200, "Transfer-Encoding: chunked\r\n", head_request, false),
            (200, "Content-Length: 0\r\n", head_request, true),
            (200, "", head_request, true),
            (204, "Content-Length: 5\r\n", GET, false),
            (204, "Transfer-Encoding: chunked\r\n", GET, false),
            (204, "Content-Length: 0\r\n", GET, true),
            (204, "", GET, true),
            (304, "Content-Length: 5\r\n", GET, false),
            (304, "", GET, true),
            (200, "Content-Length: 5\r\n", GET, true),
        ] {
            let head = format!("HTTP/1.1 {status} X\r\n{fields}\r\n");
            let parsed = ResponseHead::parse(head.as_bytes(), &mut header_buffer(), context)
                .map(|head| head.keep_alive);
            assert_eq!(parsed, Ok(keep_alive), "{status} {fields}");
        }
    }

    #[test]
    fn a_switch_that_nobody_asked_for_is_invalid() {
        let head = "HTTP/1.1 101 Switching Protocols\r\n\r\n";
        assert!(framing(head, GET).is_err());
        assert!(framing(head, RequestContext { wants_websocket: true, ..GET }).is_ok());
    }

    #[test]
    fn what_frames_no_body_in_one_way_is_invalid() {
        let fields = |many: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(many));
        assert_eq!(framing(&fields(200), GET), Ok(Framing::UntilClose));
        for (head, complaint) in [
            (fields(201), "200 fields"),
            (fields(209), "200 fields"),
            ("HTTP/1.1 200 OK\r\n".into(), "incomplete"),
            ("HTTP/2 200 OK\r\n\r\n".into(), "no status line"),
            ("HTTP/1.1 2xx OK\r\n\r\n".into(), "no status line"),
            ("HTTP/1.1 099 ?\r\n\r\n".into(), "below 100"),
            ("HTTP/1.1 200 OK\r\nX Y: z\r\n\r\n".into(), "a field"),
            ("HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n".into(), "not a number"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
                "chunked",
            ),
            ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".into(), "HTTP/1.0"),
            ("HTTP/1.1 101 ?\r\n\r\n".into(), "nobody asked"),
        ] {
            let Err(Invalid(text)) = framing(&head, GET) else { panic!("{head:?} is accepted") };
            assert!(text.contains(complaint), "{head:?}: {text}");
        }
        let switch = RequestContext { wants_websocket: true, ..GET };
        assert_eq!(framing("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", switch), Ok(Framing::Length(5)));
        assert_eq!(framing("HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n", GET), Ok(Framing::Empty));
        assert_eq!(framing("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", GET), Ok(Framing::Length(5)));
    }

    #[test]
    fn a_workers_connection_stays_open_as_the_version_and_the_worker_have_it() {
        for (version, fields, keep_alive) in [
            ("1.1", "X: y\r\n", true),
            ("1.1", "Connection: keep-alive, Close\r\n", false),
            ("1.1", "Connection: X-Close\r\n", true),
            ("1.0", "X: y\r\n", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: close, keep-alive\r\n", false),
        ] {
            let head = format!("HTTP/{version} 200 OK\r\nContent-Length: 5\r\n{fields}\r\n");
            let parsed =
                ResponseHead::parse(head.as_bytes(), &mut header_buffer(), GET).map(|head| head.keep_alive);
            assert_eq!(parsed, Ok(keep_alive), "{version} {fields}");
        }
        let until_close = ResponseHead::parse(b"HTTP/1.1 200 OK\r\n\r\n", &mut header_buffer(), GET)
            .map(|head| head.keep_alive);
        assert_eq!(until_close, Ok(false));
        let interim = b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n";
        let interim = ResponseHead::parse(interim, &mut header_buffer(), GET).map(|head| head.keep_alive);
        assert_eq!(interim, Ok(true));
    }

    #[test]
    fn a_503_with_a_field_of_its_own_says_that_the_worker_is_busy() {
        for (status, field, is_busy) in [
            (503, "Rip-Worker-Busy: 1", true),
            (503, "Rip-Worker-Id: 1", false),
            (500, "Rip-Worker-Busy: 1", false),
        ] {
            let head = format!("HTTP/1.1 {status} X\r\n{field}\r\nContent-Length: 0\r\n\r\n");
            let parsed =
                ResponseHead::parse(head.as_bytes(), &mut header_buffer(), GET).map(|head| head.is_busy);
            assert_eq!(parsed, Ok(is_busy), "{status} {field}");
        }
    }

    #[test]
    fn a_media_type_stands_before_its_parameters() {
        for (fields, media_type, is_event_stream) in [
            ("Content-Type: text/html ; charset=utf-8", "text/html", false),
            ("Content-Type: Text/Event-Stream;charset=utf-8", "Text/Event-Stream", true),
            ("Content-Type: text/plain\r\nContent-Type: text/event-stream", "text/plain", false),
            ("Content-Types: text/event-stream", "", false),
        ] {
            let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
            let mut buffer = header_buffer();
            let head = ResponseHead::parse(head.as_bytes(), &mut buffer, GET).expect("a valid head");
            assert_eq!((head.media_type, head.is_event_stream()), (media_type.as_bytes(), is_event_stream));
        }
    }
}
