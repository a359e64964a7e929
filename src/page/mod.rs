//! The operators' page: what is answered to whom. Pure.
//!
//! A browser is easily made to ask addresses of its own machine, by any page that it shows. So it is answered only under
//! a host that no stranger's name can stand for (see [`host`]), and never to another site.

mod host;

pub(crate) use host::{HostNames, is_name};

use std::fmt::Write;

/// The page: one file, which asks for nothing from elsewhere.
const PAGE: &str = include_str!("page.html");
/// Stands in [`PAGE`] where the nonce belongs.
const NONCE_MARK: &str = "{nonce}";

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query<'a> {
    pub method: &'a [u8],
    pub path: &'a [u8],
    pub host: &'a [u8],
    /// What a browser says of who asks (`Sec-Fetch-Site`).
    pub site: Option<&'a [u8]>,
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    Page,
    /// The stream of events, from now on.
    Events,
    Refusal(u16, &'static str),
}

/// More viewers than that are refused.
pub(crate) const TOO_MANY_VIEWERS: Reply =
    Reply::Refusal(503, "Too many look at this page already; close one of the others.\n");

const WRONG_HOST: &str = "This page is shown under an IP address, localhost or a name given by --page-host alone, \
                          so that no other site can read it.\n";
const OTHER_SITE: &str = "This page is not for other sites.\n";
const WRONG_METHOD: &str = "GET and HEAD are all that there is.\n";
const NOT_FOUND: &str = "GET / is the page, GET /events its stream.\n";

/// Decides what is answered. Whether there are too many viewers is the caller's to know.
pub(crate) fn reply(query: Query<'_>, names: &HostNames) -> Reply {
    let is_foreign = query.site.is_some_and(|site| !matches!(site, b"same-origin" | b"none"));
    match (query.method, query.path) {
        _ if !names.allow(query.host) => Reply::Refusal(421, WRONG_HOST),
        (b"GET" | b"HEAD", b"/") => Reply::Page,
        (b"GET" | b"HEAD", b"/events") if is_foreign => Reply::Refusal(403, OTHER_SITE),
        (b"GET" | b"HEAD", b"/events") => Reply::Events,
        (_, b"/" | b"/events") => Reply::Refusal(405, WRONG_METHOD),
        _ => Reply::Refusal(404, NOT_FOUND),
    }
}

/// Fields of every answer: it is nobody else's to keep, to frame, to guess at or to embed.
pub(crate) const FIELDS: &str = "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
     Referrer-Policy: no-referrer\r\nCross-Origin-Resource-Policy: same-origin\r\n\
     Cross-Origin-Opener-Policy: same-origin\r\n";

/// The fields of a refusal.
pub(crate) fn refusal_fields(status: u16) -> String {
    let allow = if status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
    format!("{FIELDS}Content-Security-Policy: default-src 'none'; frame-ancestors 'none'\r\n{allow}")
}

/// The page with its fields. `nonce`: what scripts and styles are known by, another one each time.
pub(crate) fn document(nonce: &str) -> (String, String) {
    let fields = format!(
        "{FIELDS}Content-Security-Policy: default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
    );
    (fields, PAGE.replace(NONCE_MARK, nonce))
}

/// The head of the stream. Its length is not known, so it ends with its connection.
pub(crate) fn stream_head(date: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{date}{FIELDS}Connection: close\r\n\r\n")
}

/// One event. JSON has no line end, so one line of data is enough.
pub(crate) fn event(value: &serde_json::Value) -> String {
    let mut text = String::with_capacity(8192);
    // Writing to a String cannot fail. A viewer that was cut off comes back after a second.
    let _ = write!(text, "retry: 1000\ndata: {value}\n\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: &str, path: &str, host: &str, site: Option<&str>) -> Reply {
        let query = Query {
            method: method.as_bytes(),
            path: path.as_bytes(),
            host: host.as_bytes(),
            site: site.map(str::as_bytes),
        };
        reply(query, &HostNames::default())
    }

    fn status(reply: Reply) -> u16 {
        match reply {
            Reply::Page | Reply::Events => 200,
            Reply::Refusal(status, _) => status,
        }
    }

    #[test]
    fn there_is_a_page_and_a_stream_and_nothing_else() {
        for (method, path, expected) in [
            ("GET", "/", 200),
            ("HEAD", "/", 200),
            ("GET", "/events", 200),
            ("POST", "/", 405),
            ("DELETE", "/events", 405),
            ("GET", "/favicon.ico", 404),
            ("GET", "/metrics", 404),
            ("POST", "/control", 404),
            ("GET", "/../", 404),
        ] {
            assert_eq!(status(ask(method, path, "localhost:1", None)), expected, "{method} {path}");
            assert_eq!(status(ask(method, path, "evil.example", None)), 421, "{method} {path}");
        }
    }

    #[test]
    fn another_site_may_lead_to_the_page_and_gets_no_stream() {
        for (site, expected) in [
            (None, 200),
            (Some("same-origin"), 200),
            (Some("none"), 200),
            (Some("cross-site"), 403),
            (Some("same-site"), 403),
        ] {
            assert_eq!(status(ask("GET", "/events", "localhost", site)), expected, "{site:?}");
            assert_eq!(status(ask("GET", "/", "localhost", site)), 200);
        }
    }

    #[test]
    fn the_page_names_no_other_place_and_has_its_nonce() {
        let (fields, page) = document("abc");
        assert!(fields.contains("script-src 'nonce-abc'") && !fields.contains("unsafe"));
        let tags = ["<script", "<style"].map(|tag| page.matches(tag).count());
        assert_eq!(tags, [1, 1], "one of each");
        assert_eq!(page.matches("nonce=\"abc\"").count(), 2);
        assert!(!page.contains(NONCE_MARK));
        // A name of XML, and a place in the page itself.
        let other = page.replace("http://www.w3.org/2000/svg", "").replace("url(#", "");
        let places = ["https:", "http:", "src=", "@import", "url("].into_iter();
        let places: Vec<&str> = places.filter(|place| other.contains(place)).collect();
        assert!(places.is_empty(), "{places:?}");
        // What a stranger has written never becomes markup.
        for door in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            " style=",
            " onclick=",
        ] {
            assert!(!page.contains(door), "{door}");
        }
    }

    #[test]
    fn an_event_is_one_line_of_data() {
        let text = event(&serde_json::json!({"error": "a\nb\r\n\r\ndata: c"}));
        assert_eq!(text.lines().filter(|line| line.starts_with("data: ")).count(), 1);
        assert!(text.ends_with("}\n\n") && text.matches("\n\n").count() == 1);
    }
}
