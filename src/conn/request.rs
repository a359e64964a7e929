//! A request that has been read: its head as the worker gets it, and what is needed of it later.

use crate::http::forward::{self, ForwardedTrust, Origin, Span, Written};
use crate::http::{Framing, RequestHead, Version, request::is_idempotent, response::RequestContext};
use std::time::Instant;

/// What the server answers by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// `/server`: the front end lives.
    Server,
    /// `/status`: the front end and its workers.
    Status,
}

/// One request, from its head to its log line. It moves with the work: from the client's connection to the queue,
/// to the worker, and back for the log.
#[derive(Debug)]
pub struct Request {
    /// The head for the worker, kept until the answer is there, since a second try sends it again. For requests that
    /// reach no worker it has only the method and the path.
    pub head: Vec<u8>,
    method: Span,
    path: Span,
    id: Span,
    client: Span,
    pub context: RequestContext,
    pub framing: Framing,
    /// It accepts `text/event-stream` by name.
    accepts_events: bool,
    pub is_idempotent: bool,
    pub local: Option<Local>,
    /// When the first byte of its head came.
    pub started: Instant,
}

impl Request {
    /// Writes `head` into `buffer`, which it keeps. [`Request::seal`] adds the length of the body.
    pub fn new(
        head: &RequestHead<'_, '_>,
        mut buffer: Vec<u8>,
        origin: Origin<'_>,
        started: Instant,
    ) -> Self {
        let path = head.path();
        let local = match path {
            _ if !matches!(head.method, "GET" | "HEAD") => None,
            "/server" => Some(Local::Server),
            "/status" => Some(Local::Status),
            _ => None,
        };
        buffer.clear();
        let Written { id, client } = match local {
            Some(_) => {
                buffer.extend_from_slice(head.method.as_bytes());
                buffer.push(b' ');
                buffer.extend_from_slice(head.target.as_bytes());
                let client = match origin.trust {
                    ForwardedTrust::Ignored => Span::default(),
                    ForwardedTrust::Believed(is_proxy) => {
                        buffer.push(b' ');
                        forward::push_client(&mut buffer, head.fields, is_proxy, origin.address)
                    }
                };
                Written { id: Span::default(), client }
            }
            None => forward::write_request_head(&mut buffer, head, origin),
        };
        let method_bytes = head.method.len();
        Request {
            head: buffer,
            path: Span::new(method_bytes + 1, head.target_lead.len() + path.len()),
            method: Span::new(0, method_bytes),
            id,
            client,
            context: RequestContext {
                is_head: head.method == "HEAD",
                wants_websocket: head.wants_websocket,
                version: head.version,
                keep_alive: head.keep_alive,
            },
            framing: head.framing,
            accepts_events: head.accepts_events,
            is_idempotent: is_idempotent(head.method),
            local,
            started,
        }
    }

    /// A request that was refused because it could not be parsed: its first line, for the log.
    pub fn refused(first_line: &[u8], mut buffer: Vec<u8>, started: Instant) -> Self {
        /// The longest first line that is kept of a request that was not understood: more would only fill the log.
        const MAX_BYTES: usize = 256;
        buffer.clear();
        let mut parts = first_line.splitn(3, |&byte| byte == b' ');
        let method = parts.next().filter(|method| method.len() <= 32).unwrap_or(b"");
        let target = parts.next().unwrap_or(b"");
        let path = target.split(|&byte| byte == b'?').next().unwrap_or(b"");
        buffer.extend_from_slice(method);
        buffer.push(b' ');
        buffer.extend_from_slice(&path[..path.len().min(MAX_BYTES)]);
        Request {
            method: Span::new(0, method.len()),
            path: Span::new(method.len() + 1, buffer.len() - method.len() - 1),
            id: Span::default(),
            client: Span::default(),
            head: buffer,
            context: RequestContext {
                // The answer to a HEAD has no body, even if the rest of it is wrong (RFC 9110 §9.3.2).
                is_head: method == b"HEAD",
                wants_websocket: false,
                version: Version::Http11,
                keep_alive: false,
            },
            framing: Framing::Empty,
            accepts_events: false,
            is_idempotent: false,
            local: None,
            started,
        }
    }

    /// Asks a command whether it answers yet. Sent on a connection of its own, which the command may close.
    pub fn probe(buffer: Vec<u8>, now: Instant) -> Self {
        Request::question(b"1", b"", buffer, now)
    }

    /// The question whether a worker has no handler at work; with an id, none of the request of that id. On a connection
    /// of its own as well.
    pub fn ask_idle(id: &[u8], buffer: Vec<u8>, now: Instant) -> Self {
        Request::question(b"idle", id, buffer, now)
    }

    fn question(what: &[u8], id: &[u8], buffer: Vec<u8>, now: Instant) -> Self {
        let mut request = Request::refused(b"GET /ready", buffer, now);
        let about: &[u8] = if id.is_empty() { b"" } else { b"\r\nX-Request-Id: " };
        let start = b" HTTP/1.1\r\nHost: localhost\r\nRip-Probe: ";
        let remaining = [&start[..], what, about, id, b"\r\nConnection: close\r\n\r\n"];
        remaining.iter().for_each(|part| request.head.extend_from_slice(part));
        request
    }

    /// A copy for the log, while the request is still with its worker. Its head is in `buffer`.
    pub fn copy_into(&self, mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.extend_from_slice(&self.head);
        Request { head: buffer, ..*self }
    }

    /// Ends the head when the body's length is known. A request with a body does not ask for a WebSocket.
    pub fn seal(&mut self, body_bytes: u64) {
        self.context.wants_websocket &= body_bytes == 0;
        if self.local.is_none() {
            let wants_websocket = self.context.wants_websocket;
            forward::end_request_head(&mut self.head, self.framing, wants_websocket, body_bytes);
        }
    }

    /// Whether the client asks for what may go on for long: an event stream, or a WebSocket.
    pub fn asks_for_stream(&self) -> bool {
        self.accepts_events || self.context.wants_websocket
    }

    /// Whether the client asks for a page.
    pub fn takes_html(&self) -> bool {
        self.head.split(|&byte| byte == b'\n').skip(1).any(|line| {
            let mut parts = line.splitn(2, |&byte| byte == b':');
            let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let value = value.to_ascii_lowercase();
            name.eq_ignore_ascii_case(b"accept") && value.windows(9).any(|trust| trust == b"text/html")
        })
    }

    /// A field of the head as the worker gets it; of several the first one. A request that is answered here has none.
    pub fn field(&self, wanted: &str) -> Option<&[u8]> {
        let lines = self.head.split(|&byte| byte == b'\n').skip(1);
        lines.filter_map(|line| line.split_at_checked(line.iter().position(|&byte| byte == b':')?)).find_map(
            |(name, value)| name.eq_ignore_ascii_case(wanted.as_bytes()).then(|| value[1..].trim_ascii()),
        )
    }

    pub fn method(&self) -> &[u8] {
        self.method.of(&self.head)
    }

    /// The path without the query, which may have secrets in it.
    pub fn path(&self) -> &[u8] {
        self.path.of(&self.head)
    }

    /// The request's id as the worker sees it; empty if it has none.
    pub fn id(&self) -> &[u8] {
        self.id.of(&self.head)
    }

    /// The client's address, if the head has it; otherwise the client is the peer.
    pub fn client(&self) -> Option<&[u8]> {
        Some(self.client.of(&self.head)).filter(|client| !client.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request::header_buffer;

    const STRANGER: Origin<'_> =
        Origin { address: "192.0.2.7", trust: ForwardedTrust::Ignored, fresh_id: b"fresh", start_us: b"1" };

    fn request(head: &str, origin: Origin<'_>) -> Request {
        let mut fields = header_buffer();
        let head = RequestHead::parse(head.as_bytes(), &mut fields).expect("a valid head");
        Request::new(&head, b"what was there".to_vec(), origin, Instant::now())
    }

    fn get(target: &str, fields: &str) -> Request {
        request(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n"), STRANGER)
    }

    #[test]
    fn a_request_knows_its_parts() {
        let request = get("http://b?x=1", "");
        assert!(request.head.starts_with(b"GET /?x=1 HTTP/1.1\r\nHost: b\r\n"));
        assert_eq!((request.method(), request.path(), request.id()), (&b"GET"[..], &b"/"[..], &b"fresh"[..]));
        assert_eq!((request.client(), request.is_idempotent), (Some(&b"192.0.2.7"[..]), true));
        let copy = request.copy_into(b"what was there".to_vec());
        assert_eq!(
            (copy.head.clone(), copy.path(), copy.id()),
            (request.head.clone(), request.path(), request.id())
        );
        assert_eq!((copy.context, copy.started), (request.context, request.started));
    }

    #[test]
    fn the_server_answers_two_paths_by_itself() {
        for (line, local) in [
            ("GET /server", Some(Local::Server)),
            ("HEAD /server?x", Some(Local::Server)),
            ("GET /status", Some(Local::Status)),
            ("GET http://b/status", Some(Local::Status)),
            ("POST /status", None),
            ("GET /server/", None),
            ("GET /", None),
        ] {
            let mut request = request(&format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n"), STRANGER);
            assert_eq!(request.local, local, "{line}");
            if local.is_some() {
                let head = line.replace("http://b", "").into_bytes();
                assert_eq!((&request.head, request.id(), request.client()), (&head, &b""[..], None));
                request.seal(0);
                assert_eq!(request.head, head, "it has no end, since nobody gets it");
            }
        }
        let proxy = Origin { trust: ForwardedTrust::Believed(&|_| false), ..STRANGER };
        let behind = request("GET /status HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n", proxy);
        assert_eq!((behind.path(), behind.client()), (&b"/status"[..], Some(&b"1.1.1.1"[..])));
    }

    #[test]
    fn of_a_refused_request_the_log_has_what_its_first_line_says() {
        let (method, path) = ("M".repeat(32), format!("/{}", "p".repeat(255)));
        for (line, expected_method, expected_path) in [
            ("GET /a?b HTTP/1.1", "GET", "/a"),
            ("GET", "GET", ""),
            ("", "", ""),
            (&format!("{method} / HTTP/1.1"), &method, "/"),
            (&format!("{method}M / HTTP/1.1"), "", "/"),
            (&format!("GET {path} HTTP/1.1"), "GET", &path),
            (&format!("GET {path}p HTTP/1.1"), "GET", &path),
        ] {
            let request = Request::refused(line.as_bytes(), b"what was there".to_vec(), Instant::now());
            let parts = (request.method(), request.path());
            assert_eq!(parts, (expected_method.as_bytes(), expected_path.as_bytes()), "{line}");
            assert_eq!((request.id(), request.client()), (&b""[..], None), "{line}");
            assert!(!request.context.is_head && !request.context.keep_alive && !request.is_idempotent);
        }
        assert!(Request::refused(b"HEAD / HTTP/3", Vec::new(), Instant::now()).context.is_head);
    }

    #[test]
    fn workers_are_asked_on_a_connection_of_its_own() {
        let head = |question: &str| {
            format!(
                "GET /ready HTTP/1.1\r\nHost: localhost\r\nRip-Probe: {question}\r\nConnection: close\r\n\r\n"
            )
        };
        let now = Instant::now();
        let asked = [Request::probe(Vec::new(), now), Request::ask_idle(b"", Vec::new(), now)];
        assert_eq!(
            asked.map(|request| request.head),
            ["1", "idle"].map(|question| head(question).into_bytes())
        );
        let about = Request::ask_idle(b"id", Vec::new(), now);
        assert_eq!(about.head, head("idle\r\nX-Request-Id: id").into_bytes());
        assert_eq!((about.method(), about.path()), (&b"GET"[..], &b"/ready"[..]));
    }

    #[test]
    fn a_stream_is_asked_for_by_name_or_by_an_upgrade_without_a_body() {
        const UPGRADE: &str = "Connection: upgrade\r\nUpgrade: websocket\r\n";
        assert!(get("/", "Accept: text/event-stream\r\n").asks_for_stream());
        assert!(get("/", UPGRADE).asks_for_stream());
        assert!(!get("/", "").asks_for_stream());
        for (fields, body_bytes, is_upgrade, end) in [
            (UPGRADE.to_owned(), 0, true, "fresh\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
            (format!("{UPGRADE}Content-Length: 5\r\n"), 5, false, "fresh\r\nContent-Length: 5\r\n\r\n"),
            ("Content-Length: 0\r\n".to_owned(), 0, false, "fresh\r\nContent-Length: 0\r\n\r\n"),
            (String::new(), 0, false, "fresh\r\n\r\n"),
        ] {
            let mut request = get("/", &fields);
            request.seal(body_bytes);
            assert_eq!(
                (request.context.wants_websocket, request.asks_for_stream()),
                (is_upgrade, is_upgrade)
            );
            assert!(
                request.head.ends_with(end.as_bytes()),
                "{fields}: {:?}",
                String::from_utf8_lossy(&request.head)
            );
        }
    }

    #[test]
    fn a_page_is_asked_for_by_its_type() {
        for (fields, takes_html) in [
            ("Accept: text/html\r\n", true),
            ("X: y\r\naccept: application/json, Text/HTML;q=0.5\r\n", true),
            ("Accept: */*\r\n", false),
            ("Accept: text/htm\r\n", false),
            ("X-Accept: text/html\r\n", false),
            ("", false),
        ] {
            assert_eq!(get("/", fields).takes_html(), takes_html, "{fields}");
        }
        assert!(!get("/accept:text/html", "").takes_html());
    }

    #[test]
    fn a_field_is_found_by_its_name_in_any_case() {
        let request = get("/x:y", "X-One:  1 \r\nX-Two: a:b\r\nX-Two: c\r\nX-None:\r\n");
        for (name, value) in [
            ("x-one", Some(&b"1"[..])),
            ("X-TWO", Some(b"a:b")),
            ("x-none", Some(b"")),
            ("host", Some(b"a")),
            ("one", None),
            ("GET /x", None),
        ] {
            assert_eq!(request.field(name), value, "{name}");
        }
        assert_eq!(Request::refused(b"GET / HTTP/1.1", Vec::new(), Instant::now()).field("host"), None);
    }
}
