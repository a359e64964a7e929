//! CGI/1.1 (RFC 3875): one process a request, ended with everything it started when nobody waits any more.

use super::message::{Request, Response};
use crate::http::field;
use crate::paths::shown;
use crate::unnamed;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// The most bytes of a script's head.
const MOST_HEAD_BYTES: usize = 64 * 1024;
/// Local redirects in a row (RFC 3875 §6.2.2); more is a circle.
const MOST_REDIRECTS: usize = 10;
/// What the worker protocol puts into the environment, and a script has no use for.
const PROTOCOL_VARIABLES: [&str; 13] = [
    "WORKER_ID",
    "SOCKET_PATH",
    "RIP_CONTROL_SOCKET",
    "RIP_INSTANCE",
    "RIP_VERSION",
    "RIP_APP_NAME",
    "RIP_APP_ENTRY",
    "RIP_SOCKET_PREFIX",
    "RIP_CONCURRENCY",
    "RIP_MAX_STREAMS",
    "RIP_HOT_RELOAD",
    "RIP_MAX_RELOADS",
    "RIP_LOG_JSON",
];

/// The server has shut its side down. (POLLRDHUP, which `nix` has no name for.)
const NOBODY_WAITS: PollFlags = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);

/// Answers a request by running `script`.
pub fn run(script: &Path, request: &mut Request<'_>) -> Response {
    match try_run(script, request) {
        Ok(response) => response,
        Err(error) => {
            let id = request.header("x-request-id").unwrap_or("-");
            eprintln!("{}: {error} (request {id})", shown(&script));
            Response::text("Internal Server Error\n").with_status(500)
        }
    }
}

fn try_run(script: &Path, request: &mut Request<'_>) -> io::Result<Response> {
    let stdin = request_body(request)?;
    let mut target = request.target.clone();
    let mut method = request.method.clone();
    for _ in 0..MOST_REDIRECTS {
        let mut process = Script::start(script, request, &method, &target, stdin.try_clone()?)?;
        let connection = request.connection().try_clone()?;
        let head = process.read_head(&connection)?;
        match head.local_redirect() {
            // The path is this script's as well, so it is asked again.
            Some(path) => {
                target = path.to_owned();
                method = "GET".to_owned();
            }
            None => return Ok(process.into_response(head, connection)),
        }
    }
    Err(io::Error::other("redirects in a circle"))
}

/// The whole body as a file: a script may read it when and as slowly as it likes.
fn request_body(request: &mut Request<'_>) -> io::Result<File> {
    let folder = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    let (mut file, _) = unnamed::open(&folder)?;
    io::copy(request.body(), &mut file)?;
    file.rewind()?;
    Ok(file)
}

/// A running script. Dropping it ends its process group.
struct Script {
    child: Child,
    stdout: ChildStdout,
    /// What was read beyond the head.
    rest: Vec<u8>,
}

/// What the script has said before its document.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: Option<u16>,
    fields: Vec<(String, String)>,
}

impl Script {
    fn start(
        script: &Path,
        request: &Request<'_>,
        method: &str,
        target: &str,
        stdin: File,
    ) -> io::Result<Script> {
        let mut command = Command::new(script);
        for name in PROTOCOL_VARIABLES {
            command.env_remove(name);
        }
        command
            .envs(variables(script, request, method, target)?)
            .current_dir(script.parent().unwrap_or(Path::new("/")))
            .stdin(stdin)
            .stdout(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
        Ok(Script { child, stdout, rest: Vec::new() })
    }

    /// Reads until the empty line. Lines may end with LF alone here.
    fn read_head(&mut self, connection: &UnixStream) -> io::Result<Head> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            if let Some((end, from)) = end_of_head(&bytes) {
                self.rest = bytes.split_off(from);
                bytes.truncate(end);
                return Head::parse(&bytes);
            }
            if bytes.len() > MOST_HEAD_BYTES {
                return Err(io::Error::other("a head beyond 64 KiB"));
            }
            match self.read(&mut buffer, connection)? {
                0 => {
                    return Err(io::Error::other(
                        "ended without a head (a line such as Content-Type, then an empty one)",
                    ));
                }
                count => bytes.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// Reads what the script writes, unless nobody waits any more: then it ends, with all that it has started.
    fn read(&mut self, buffer: &mut [u8], connection: &UnixStream) -> io::Result<usize> {
        loop {
            let mut asked = [
                PollFd::new(self.stdout.as_fd(), PollFlags::POLLIN),
                PollFd::new(connection.as_fd(), NOBODY_WAITS),
            ];
            match poll(&mut asked, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                result => result?,
            };
            // First, since a script that never stops writing has to end as well. `nix` has no name for POLLRDHUP, and
            // answers None where it is set.
            if asked[1].any() != Some(false) {
                return Err(io::Error::other("nobody waits for the answer any more"));
            }
            if asked[0].any().unwrap_or(false) {
                return self.stdout.read(buffer);
            }
        }
    }

    fn into_response(mut self, head: Head, connection: UnixStream) -> Response {
        let status = head.status.unwrap_or(if head.field("location").is_some() { 302 } else { 200 });
        let length = head.field("content-length").and_then(|value| value.parse().ok());
        let mut response = Response::new(status);
        for (name, value) in head.fields {
            let is_ours = ["status", "content-length", "transfer-encoding", "connection"];
            if !is_ours.iter().any(|ours| name.eq_ignore_ascii_case(ours)) {
                response = response.with_header(name, value);
            }
        }
        let write = move |out: &mut dyn Write| {
            out.write_all(&std::mem::take(&mut self.rest))?;
            let mut buffer = [0; 64 * 1024];
            loop {
                match self.read(&mut buffer, &connection)? {
                    0 => return Ok(()),
                    count => out.write_all(&buffer[..count])?,
                }
            }
        };
        match length {
            Some(length) => response.with_sized_stream(length, write),
            None => response.with_stream(write),
        }
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // Not reaped yet, so the group is still its own; after an orderly end there is usually nobody left in it.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

impl Head {
    fn parse(bytes: &[u8]) -> io::Result<Head> {
        let bad = |what: &str| io::Error::other(format!("{what} in its head"));
        let text = String::from_utf8_lossy(bytes);
        let mut head = Head { status: None, fields: Vec::new() };
        for (number, line) in text.lines().enumerate() {
            // A script that writes whole answers ("nph").
            if number == 0 && line.starts_with("HTTP/") {
                let code = line.split(' ').nth(1).and_then(|code| code.parse().ok());
                head.status = Some(code.ok_or_else(|| bad("no status code"))?);
                continue;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| bad("a line without a colon"))?;
            let value = value.trim();
            if name.is_empty()
                || !name.bytes().all(field::is_token_byte)
                || !field::is_value(value.as_bytes())
            {
                return Err(bad("a field that is not valid"));
            }
            if name.eq_ignore_ascii_case("status") {
                let code = value.split(' ').next().and_then(|code| code.parse().ok());
                head.status = Some(
                    code.filter(|code| (200..1000).contains(code)).ok_or_else(|| bad("no status code"))?,
                );
            }
            head.fields.push((name.to_owned(), value.to_owned()));
        }
        Ok(head)
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// RFC 3875 §6.2.2: a path alone is followed here, the client sees nothing of it.
    fn local_redirect(&self) -> Option<&str> {
        let path = self.field("location")?;
        (self.status.is_none() && self.fields.len() == 1 && path.starts_with('/')).then_some(path)
    }
}

/// Where the head ends, and where what follows it begins.
fn end_of_head(bytes: &[u8]) -> Option<(usize, usize)> {
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

/// RFC 3875 §4.1.
fn variables(
    script: &Path,
    request: &Request<'_>,
    method: &str,
    target: &str,
) -> io::Result<Vec<(OsString, OsString)>> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path_info = percent_decoded(path);
    if path_info.contains(&0) {
        return Err(io::Error::other("a NUL in the path"));
    }
    let host = request.header("host").unwrap_or("localhost");
    let is_https = request.header("x-forwarded-proto") == Some("https");
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            (name, port)
        }
        _ => (host, if is_https { "443" } else { "80" }),
    };
    let peer =
        request.header("x-forwarded-for").and_then(|chain| chain.rsplit(',').next()).unwrap_or("").trim();
    let is_redirected = target != request.target;
    let mut all: Vec<(OsString, OsString)> = Vec::new();
    let mut set = |name: &str, value: &[u8]| all.push((name.into(), OsString::from_vec(value.to_vec())));
    set("GATEWAY_INTERFACE", b"CGI/1.1");
    set("SERVER_PROTOCOL", b"HTTP/1.1");
    set("SERVER_SOFTWARE", concat!("rip-server/", env!("CARGO_PKG_VERSION")).as_bytes());
    set("SERVER_NAME", name.as_bytes());
    set("SERVER_PORT", port.as_bytes());
    set("REQUEST_METHOD", method.as_bytes());
    set("REQUEST_URI", target.as_bytes());
    set("SCRIPT_NAME", b"");
    set("SCRIPT_FILENAME", script.as_os_str().as_encoded_bytes());
    set("PATH_INFO", &path_info);
    let translated =
        [script.parent().unwrap_or(Path::new("")).as_os_str().as_encoded_bytes(), &path_info[..]].concat();
    set("PATH_TRANSLATED", &translated);
    set("QUERY_STRING", query.as_bytes());
    set("REMOTE_ADDR", peer.as_bytes());
    set("REMOTE_HOST", peer.as_bytes());
    if is_https {
        set("HTTPS", b"on");
    }
    for (name, value) in request.headers() {
        let lower = name.to_ascii_lowercase();
        match lower.as_str() {
            // A redirect is followed without the body.
            "content-length" | "content-type" if is_redirected => {}
            "content-length" => set("CONTENT_LENGTH", value),
            "content-type" => set("CONTENT_TYPE", value),
            // Credentials are the server's business (§4.1.18), and `Proxy` would become HTTP_PROXY.
            "authorization" | "proxy-authorization" | "proxy" | "connection" => {}
            _ => set(&format!("HTTP_{}", name.to_ascii_uppercase().replace('-', "_")), value),
        }
    }
    Ok(all)
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| bytes[at] == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_say_status_and_fields() {
        let head = Head::parse(b"Status: 404 Not Found\r\nContent-Type: text/plain").expect("valid");
        assert_eq!((head.status, head.field("content-type")), (Some(404), Some("text/plain")));
        let nph = Head::parse(b"HTTP/1.1 201 Created\nX-A: b").expect("valid");
        assert_eq!((nph.status, nph.field("x-a")), (Some(201), Some("b")));
        assert!(Head::parse(b"hello world").is_err());
    }

    #[test]
    fn a_path_alone_is_a_local_redirect() {
        let local = |text: &[u8]| Head::parse(text).expect("valid").local_redirect().map(str::to_owned);
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

    #[test]
    fn paths_are_decoded_once() {
        assert_eq!(percent_decoded("/a%20b%2525%zz%"), b"/a b%25%zz%");
    }
}
