//! The serve loop: listens, joins, serves as many requests at once as the handler takes, and ends without losing one.
//!
//! Each connection has a thread, and each request takes a place. A thread that finds no free place answers "busy" at
//! once. The server opens a connection for each place and each stream, so there are usually no more threads than that.

use super::Identity;
use super::outlet::{Leaving, Outlet, is_gone};
use super::places::{Handler, Places};
use super::request::{Body, Request};
use super::response::Response;
use crate::client;
use crate::control::{Abilities, Join, Message, Sender};
use crate::http::request::header_buffer;
use crate::http::{Framing, MAX_HEAD_BYTES, RequestHead, Version};
use crate::paths::shown;
use crate::process;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Backlog, listen};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Connections beside those of requests and streams, which cover probes, reconnects and some that say nothing. Each has a
/// thread.
const SPARE_CONNECTIONS: usize = 256;
/// The backlog that the worker protocol asks for.
const BACKLOG: i32 = 4096;
/// How long to wait when there is no descriptor or thread left: one may become free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all connections share.
struct Shared {
    handler: Handler,
    /// A request has one until its answer is written.
    places: Places,
    leaving: Arc<Leaving>,
}

/// Serves until the server tells it to end.
pub fn serve(identity: &Identity, handler: Handler) -> ExitCode {
    match try_serve(identity, handler) {
        Ok(()) => ExitCode::SUCCESS,
        Err(complaint) => {
            eprintln!("{complaint}");
            ExitCode::FAILURE
        }
    }
}

fn try_serve(identity: &Identity, handler: Handler) -> Result<(), String> {
    let termination = process::watch_termination().map_err(|error| format!("signals: {error}"))?;
    let leaving = Arc::new(Leaving::new().map_err(|error| format!("a pipe: {error}"))?);
    let limit = if handler.is_concurrent() { identity.concurrency.max(1) } else { 1 };
    let max_streams = if handler.has_streams { identity.max_streams } else { 0 };
    let max_connections = limit + max_streams + SPARE_CONNECTIONS;
    let shared = Arc::new(Shared { handler, places: Places::new(limit, max_streams), leaving });

    let listener = listen_at(identity)
        .map_err(|error| format!("cannot listen on '{}': {error}", shown(&identity.socket)))?;
    join(identity, &shared)?;
    let mut connections = Vec::new();
    loop {
        let mut ready = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(termination.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(format!("poll: {error}")),
        }
        let is_to_leave = ready[1].any().unwrap_or(false);
        if ready[0].any().unwrap_or(false) {
            accept(&listener, &shared, max_connections, &mut connections);
        }
        if is_to_leave {
            break;
        }
    }
    shared.leaving.say();
    leave(identity, connections, &shared.places);
    Ok(())
}

fn listen_at(identity: &Identity) -> io::Result<UnixListener> {
    let _ = std::fs::remove_file(&identity.socket);
    let listener = UnixListener::bind(&identity.socket)?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}

/// If there is no thread for a connection, it is closed, and the server connects again.
fn accept(
    listener: &UnixListener,
    shared: &Arc<Shared>,
    max_connections: usize,
    connections: &mut Vec<JoinHandle<()>>,
) {
    let Ok((stream, _)) = listener.accept() else {
        std::thread::sleep(ACCEPT_PAUSE);
        return;
    };
    connections.retain(|thread| !thread.is_finished());
    if connections.len() < max_connections {
        let shared = shared.clone();
        let thread = std::thread::Builder::new().spawn(move || converse(&stream, &shared));
        connections.extend(thread);
    }
}

fn join(identity: &Identity, shared: &Shared) -> Result<(), String> {
    let message = Message::Join(Join {
        sender: sender(identity),
        pid: std::process::id() as i32,
        socket: identity.socket.to_string_lossy().into_owned(),
        version: identity.version,
        abilities: Abilities {
            drains: true,
            streams: shared.handler.has_streams,
            concurrency: shared.places.limit() as u64,
        },
    });
    let answer = client::ask(&identity.control, "POST", "/worker", &message.to_json())
        .map_err(|error| format!("cannot join at '{}': {error}", shown(&identity.control)))?;
    match answer.status {
        200 => Ok(()),
        _ => Err(format!("the server refused this worker: {}", answer.body.trim_end())),
    }
}

fn sender(identity: &Identity) -> Sender {
    Sender { instance: identity.instance.clone(), worker_id: identity.worker_id }
}

/// No new request comes after the answer to `quit`; what is on the connections is served until the server closes
/// them. Without a server the requests in hand are finished.
fn leave(identity: &Identity, connections: Vec<JoinHandle<()>>, places: &Places) {
    let message = Message::Quit(sender(identity));
    if client::ask(&identity.control, "POST", "/worker", &message.to_json()).is_ok() {
        for connection in connections {
            // A panic in a connection came from a handler, and was answered.
            let _ = connection.join();
        }
    } else {
        while !places.are_free("") {}
    }
}

/// Serves one connection until it ends.
fn converse(stream: &UnixStream, shared: &Shared) {
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    loop {
        wait_for_bytes(&reader);
        match serve_one(&mut reader, stream, shared) {
            Ok(true) => {}
            // The server has closed the connection, or it cannot be used any more.
            Ok(false) | Err(_) => break,
        }
    }
    // Shut down for all who may have it open, such as a child that the handler has forked.
    let _ = stream.shutdown(Shutdown::Both);
}

/// Waits for the next request in `poll`, not in the read itself: a read that blocks on a Unix socket is also woken each
/// time the other side takes what was sent (room to write, `unix_write_space` in Linux), which is once a request.
fn wait_for_bytes(reader: &BufReader<&UnixStream>) {
    if reader.buffer().is_empty() {
        // Whatever ends this wait, the read that follows blocks for as long as there is nothing to read.
        let _ = poll(&mut [PollFd::new(reader.get_ref().as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
    }
}

/// Serves one request. `false`: the connection has ended.
fn serve_one(reader: &mut BufReader<&UnixStream>, stream: &UnixStream, shared: &Shared) -> io::Result<bool> {
    let Some(bytes) = read_head(reader)? else {
        return Ok(false);
    };
    let mut fields = header_buffer();
    let head = RequestHead::parse(&bytes, &mut fields).ok().filter(|head| head.version == Version::Http11);
    let (head, left_bytes) = match head {
        Some(head) => match head.framing {
            Framing::Length(bytes) => (head, bytes),
            Framing::Empty => (head, 0),
            Framing::Chunked | Framing::UntilClose => return refuse(stream),
        },
        None => return refuse(stream),
    };
    let is_head = head.method == "HEAD";
    let server_fields = ServerFields::take(&head);
    let fields = head.fields.iter().filter(|field| !is_ours(field.name));
    let mut request = Request {
        method: head.method.to_owned(),
        target: head.target.to_owned(),
        fields: fields.map(|field| (field.name.to_owned(), field.value.to_vec())).collect(),
        body: Body { source: reader, left_bytes },
        client: server_fields.client,
        connection: stream,
        leaving: &shared.leaving,
    };
    let mut outlet = Outlet { stream, leaving: &shared.leaving };
    let probe = server_fields.probe.filter(|_| request.path() == "/ready");
    if probe == Some(Probe::Loaded) {
        Response::text("ok").send(&mut outlet, is_head, false)?;
        return Ok(true);
    }
    if probe == Some(Probe::Idle) {
        let response = if shared.places.are_free(request.id()) { Response::text("ok") } else { busy() };
        response.send(&mut outlet, is_head, false)?;
        return Ok(true);
    }
    // Held until the answer is written in full.
    let mut place = shared.places.take(request.id());
    let response = match &place {
        None => busy(),
        Some(_) => call(&shared.handler, &mut request),
    };
    if let Some(place) = &mut place
        && request.method == "GET"
        && response.streams_events()
    {
        place.go_on_beside();
    }
    // A body that the handler did not want is still on the connection.
    io::copy(&mut request.body, &mut io::sink())?;
    let is_safe = request.is_safe();
    match catch_unwind(AssertUnwindSafe(|| response.send(&mut outlet, is_head, is_safe))) {
        Ok(Ok(())) => Ok(true),
        Ok(Err(error)) => {
            if !is_gone(&error) {
                complain(&request, &format!("the answer is cut: {error}"));
            }
            Err(error)
        }
        Err(_) => {
            complain(&request, "the answer is cut: the handler panicked");
            Err(io::Error::other("a panic"))
        }
    }
}

/// Answers what the server would not send. Nobody can tell where the next request begins.
fn refuse(mut stream: &UnixStream) -> io::Result<bool> {
    stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")?;
    Ok(false)
}

/// What a probe asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Probe {
    Loaded,
    Idle,
}

/// What the server adds for the worker alone.
struct ServerFields {
    probe: Option<Probe>,
    client: Option<IpAddr>,
}

fn is_ours(name: &str) -> bool {
    ["rip-probe", "rip-client"].iter().any(|server_fields| name.eq_ignore_ascii_case(server_fields))
}

impl ServerFields {
    fn take(head: &RequestHead<'_, '_>) -> ServerFields {
        let value = |name: &str| {
            let field = head.fields.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(field.value).ok()
        };
        let probe = value("rip-probe").map(|kind| if kind == "idle" { Probe::Idle } else { Probe::Loaded });
        // The server's own word where a trusted proxy has connected; else it is who has.
        let client = value("rip-client").or_else(|| value("x-forwarded-for"));
        ServerFields { probe, client: client.and_then(|address| address.parse().ok()) }
    }
}

fn busy() -> Response {
    Response::text("busy").with_status(503).with_header("Rip-Worker-Busy", "1")
}

/// The handler's answer; a panic is a 500, not the worker's end.
fn call(handler: &Handler, request: &mut Request<'_>) -> Response {
    let failed = || Response::text("Internal Server Error\n").with_status(500);
    let answered = catch_unwind(AssertUnwindSafe(|| handler.answer(request)));
    let Ok(response) = answered else {
        complain(request, "the handler panicked");
        return failed();
    };
    if let Some(complaint) = response.complaint() {
        complain(request, complaint);
    }
    match response.check() {
        Ok(()) => response,
        Err(complaint) => {
            complain(request, &complaint);
            failed()
        }
    }
}

fn complain(request: &Request<'_>, what: &str) {
    eprintln!("{} {}: {what} (request {})", request.method, request.path(), request.id());
}

/// A whole head, or nothing where the connection ended before one. The server's own fields come on top of a
/// client's head at its bounds, so twice those will do.
fn read_head(reader: &mut BufReader<&UnixStream>) -> io::Result<Option<Vec<u8>>> {
    const MAX_BYTES: u64 = MAX_HEAD_BYTES as u64 * 2;
    let mut bytes = Vec::new();
    loop {
        let left_bytes = MAX_BYTES.saturating_sub(bytes.len() as u64);
        let line = reader.by_ref().take(left_bytes).read_until(b'\n', &mut bytes)?;
        match &bytes[bytes.len() - line..] {
            [] if bytes.is_empty() => return Ok(None),
            [] => return Err(io::ErrorKind::UnexpectedEof.into()),
            b"\r\n" => return Ok(Some(bytes)),
            _ => {}
        }
    }
}
