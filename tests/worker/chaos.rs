//! A worker that does to the server whatever a worker can do, by the request's query: `/c/<id>?do=<deed>`. It speaks
//! the worker protocol by hand, so that it can break it. In `diary`, in its folder, it notes which requests it has
//! begun (`begun <id> <pid>`), and that it is about to go without a word (`exit <pid>`). Where it is to take several
//! requests at once, each connection has a thread.

#[path = "noise.rs"]
mod noise;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{setsockopt, sockopt};
use noise::Noise;
use rip_server::internals::client;
use rip_server::internals::control::{Abilities, Join, Message, Sender};
use rip_server::internals::worker::Identity;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::sleep;
use std::time::Duration;

const PIECE_BYTES: usize = 64 * 1024;
/// The kernel gives what it may.
const ROOM_BYTES: usize = 1024 * 1024;

/// Serves until the server says that it is over.
pub fn serve(dir: PathBuf) -> ExitCode {
    match try_serve(dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chaos worker: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Worker {
    identity: Identity,
    dir: PathBuf,
    diary: File,
    /// It has said that it goes, and serves what is on its connections.
    is_leaving: AtomicBool,
    /// Connections with a thread of their own.
    threads: AtomicUsize,
    /// Something to look at for who waits in `poll`: a thread has ended, or the worker is to go.
    waker: UnixStream,
}

struct Request {
    method: String,
    id: String,
    query: String,
    body_bytes: usize,
}

/// What follows an answer.
enum Then {
    Keep,
    Close,
    Quit,
    Exit,
}

fn try_serve(dir: PathBuf) -> io::Result<()> {
    let identity = Identity::from_environment().ok_or_else(|| io::Error::other("no server started this"))?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK)?;
    let listener = UnixListener::bind(&identity.socket)?;
    let diary = File::options().append(true).create(true).open(dir.join("diary"))?;
    let (waker, woken) = UnixStream::pair()?;
    for end in [&waker, &woken] {
        end.set_nonblocking(true)?;
    }
    let at_once = identity.concurrency;
    let worker = Worker {
        identity,
        dir,
        diary,
        is_leaving: AtomicBool::new(false),
        threads: AtomicUsize::new(0),
        waker,
    };
    // A thread may sleep in a request for as long as this process lives.
    let worker: &'static Worker = Box::leak(Box::new(worker));
    let join = Message::Join(Join {
        sender: worker.sender(),
        pid: std::process::id() as i32,
        socket: worker.identity.socket.to_string_lossy().into_owned(),
        version: worker.identity.version,
        abilities: Abilities { drains: true, concurrency: at_once as u64, ..Abilities::default() },
    });
    worker.tell(&join)?;
    let mut connections: Vec<UnixStream> = Vec::new();
    loop {
        let fds = [listener.as_fd(), signals.as_fd(), woken.as_fd()];
        let fds = fds.into_iter().chain(connections.iter().map(UnixStream::as_fd));
        let mut ready: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        poll(&mut ready, PollTimeout::NONE)?;
        let ready: Vec<bool> = ready.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        if ready[1] && signals.read_signal()?.is_some() {
            worker.quit();
        }
        // A connection that breaks is the server's business, and no reason to go.
        let mut looked_at = ready[3..].iter();
        connections.retain_mut(|connection| {
            !looked_at.next().copied().unwrap_or(false) || worker.serve_one(connection).unwrap_or(false)
        });
        if ready[0] {
            let connection = listener.accept()?.0;
            // So that more may lie there at once than the server reads in one turn.
            setsockopt(&connection, sockopt::SndBuf, &ROOM_BYTES)?;
            if at_once > 1 {
                worker.threads.fetch_add(1, SeqCst);
                std::thread::spawn(move || worker.serve_all(connection));
            } else {
                connections.push(connection);
            }
        }
        if ready[2] {
            let _ = (&woken).read(&mut [0; 100]);
        }
        if worker.is_leaving.load(SeqCst) && connections.is_empty() && worker.threads.load(SeqCst) == 0 {
            return Ok(());
        }
    }
}

impl Worker {
    fn tell(&self, message: &Message) -> io::Result<()> {
        let answer = client::ask(&self.identity.control, "POST", "/worker", &message.to_json())?;
        if answer.status == 200 { Ok(()) } else { Err(io::Error::other(answer.body)) }
    }

    fn sender(&self) -> Sender {
        Sender { instance: self.identity.instance.clone(), worker_id: self.identity.worker_id }
    }

    fn quit(&self) {
        if !self.is_leaving.swap(true, SeqCst) {
            // Refused, or no server there: it goes all the same.
            let _ = self.tell(&Message::Quit(self.sender()));
        }
        self.wake();
    }

    /// Full: it is awake.
    fn wake(&self) {
        let _ = (&self.waker).write(&[0]);
    }

    /// A connection's requests, in its own thread.
    fn serve_all(&self, mut connection: UnixStream) {
        while self.serve_one(&mut connection).unwrap_or(false) {}
        drop(connection);
        self.threads.fetch_sub(1, SeqCst);
        self.wake();
    }

    /// One request. `false`: the connection is over.
    fn serve_one(&self, connection: &mut UnixStream) -> io::Result<bool> {
        let Some(request) = read_request(connection)? else {
            return Ok(false);
        };
        match self.answer(&request, connection)? {
            Then::Keep => Ok(true),
            Then::Close => Ok(false),
            Then::Quit => {
                self.quit();
                Ok(true)
            }
            Then::Exit => {
                self.note("exit")?;
                std::process::exit(0)
            }
        }
    }

    fn answer(&self, request: &Request, out: &mut UnixStream) -> io::Result<Then> {
        let deed = request.text("do");
        if deed == "busy" || deed == "busy-once" && self.is_first(&request.id) {
            read_body(out, request.body_bytes)?;
            out.write_all(b"HTTP/1.1 503 Busy\r\nRip-Worker-Busy: 1\r\nContent-Length: 4\r\n\r\nbusy")?;
            return Ok(Then::Keep);
        }
        self.note(&format!("begun {}", request.id))?;
        let body = read_body(out, request.body_bytes)?;
        let n = request.number("n");
        match deed {
            "die" => self.die()?,
            "slow" => sleep(Duration::from_millis(request.number("ms") as u64)),
            "hang" => sleep(Duration::from_millis(request.number("ms") as u64)),
            "leak" => drop(vec![1_u8; n].leak()),
            "retire" => {
                // It may be leaving already.
                let _ = self.tell(&Message::Retire(self.sender()));
            }
            "garbage" => {
                out.write_all(b"this is no answer\r\nat: all\r\n\r\n")?;
                return Ok(Then::Close);
            }
            "body" => return request.write_body(out, n, n),
            "cut" => {
                request.write_body(out, n, n / 2)?;
                return Ok(Then::Close);
            }
            "die-mid" => {
                request.write_body(out, n, n / 2)?;
                self.die()?;
            }
            "stream" => return request.write_stream(out, n),
            "tunnel" => return tunnel(out, n),
            _ => {}
        }
        let text = format!("{} {body}", request.id);
        let shown = if request.method == "HEAD" { "" } else { &text };
        let (id, length) = (&request.id, text.len());
        let head = format!("HTTP/1.1 200 OK\r\nX-Id: {id}\r\nContent-Length: {length}\r\n\r\n");
        out.write_all(format!("{head}{shown}").as_bytes())?;
        Ok(match deed {
            "quit" => Then::Quit,
            "exit" => Then::Exit,
            _ => Then::Keep,
        })
    }

    /// Written at once, whole, so that lines of several workers do not mix.
    fn note(&self, line: &str) -> io::Result<()> {
        (&self.diary).write_all(format!("{line} {}\n", std::process::id()).as_bytes())
    }

    /// As the kernel kills for memory: at once.
    fn die(&self) -> io::Result<()> {
        self.note("exit")?;
        nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGKILL)?;
        loop {
            std::thread::park();
        }
    }

    /// Whether nobody has seen that request before.
    fn is_first(&self, id: &str) -> bool {
        File::create_new(self.dir.join(format!("busy-{id}"))).is_ok()
    }
}

impl Request {
    fn text(&self, name: &str) -> &str {
        let mut pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }

    fn number(&self, name: &str) -> usize {
        self.text(name).parse().unwrap_or(0)
    }

    /// Announces so many bytes, and writes so many.
    fn write_body(&self, out: &mut UnixStream, announced: usize, written: usize) -> io::Result<Then> {
        let id = &self.id;
        let head = format!("HTTP/1.1 200 OK\r\nX-Id: {id}\r\nContent-Length: {announced}\r\n\r\n");
        // In one write: whoever is killed has said all of its head, or nothing.
        out.write_all(head.as_bytes())?;
        if self.method != "HEAD" {
            self.write_noise(written, |piece| out.write_all(piece))?;
        }
        Ok(Then::Keep)
    }

    fn write_stream(&self, out: &mut UnixStream, bytes: usize) -> io::Result<Then> {
        let id = &self.id;
        let head = format!("HTTP/1.1 200 OK\r\nX-Id: {id}\r\nTransfer-Encoding: chunked\r\n\r\n");
        out.write_all(head.as_bytes())?;
        if self.method != "HEAD" {
            self.write_noise(bytes, |piece| {
                write!(out, "{:x}\r\n", piece.len())?;
                out.write_all(piece)?;
                out.write_all(b"\r\n")
            })?;
            out.write_all(b"0\r\n\r\n")?;
        }
        Ok(Then::Keep)
    }

    fn write_noise(&self, bytes: usize, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        // Every other body in one write: then the kernel has more as fast as the server reads.
        let piece_bytes = if bytes.is_multiple_of(2) { PIECE_BYTES } else { bytes };
        let noise = Noise::of(&self.id);
        for from in (0..bytes).step_by(piece_bytes) {
            write(&noise.bytes(from, piece_bytes.min(bytes - from)))?;
        }
        Ok(())
    }
}

/// Echoes, and ends after so many bytes, if that is a number above 0.
fn tunnel(connection: &mut UnixStream, most_bytes: usize) -> io::Result<Then> {
    connection.write_all(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    )?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut echoed = 0;
    while most_bytes == 0 || echoed < most_bytes {
        match connection.read(&mut piece)? {
            0 => break,
            count => {
                connection.write_all(&piece[..count])?;
                echoed += count;
            }
        }
    }
    Ok(Then::Close)
}

/// Nothing where the connection ended before a head.
fn read_request(connection: &mut UnixStream) -> io::Result<Option<Request>> {
    let mut head = Vec::new();
    let mut byte = [0];
    // The kernel is asked for each byte, so that none of the body is taken.
    while !head.ends_with(b"\r\n\r\n") {
        match connection.read(&mut byte)? {
            0 if head.is_empty() => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => head.push(byte[0]),
        }
    }
    let text = String::from_utf8_lossy(&head);
    let mut words = text.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let lengths = text.lines().filter_map(|line| line.split_once(": "));
    let mut lengths = lengths.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    Ok(Some(Request {
        method: method.to_owned(),
        id: path.trim_start_matches("/c/").to_owned(),
        query: query.to_owned(),
        body_bytes: lengths.next_back().and_then(|(_, value)| value.parse().ok()).unwrap_or(0),
    }))
}

/// Its length and FNV-1a checksum.
fn read_body(connection: &mut UnixStream, bytes: usize) -> io::Result<String> {
    let mut piece = vec![0; PIECE_BYTES.min(bytes)];
    let (mut left, mut checksum) = (bytes, 0xcbf2_9ce4_8422_2325_u64);
    while left > 0 {
        let most = left.min(piece.len());
        let count = connection.read(&mut piece[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= count;
        for &byte in &piece[..count] {
            checksum = (checksum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    Ok(format!("{bytes} {checksum:016x}"))
}
