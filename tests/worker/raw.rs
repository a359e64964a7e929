//! A worker that speaks the protocol by hand, for what no runtime should do: answers without an end, processes that die in
//! the middle of one, connections that are closed while a handler runs on.
//!
//! `TEST_RAW` says which version of the protocol its join speaks; `command`: it does not join, answers busy to the first
//! two probes and begins an answer without an end to the third. Asked by path:
//!
//! - `/open…?then=exit0|exit1|kill|close|hang`: an answer that ends with its connection, of which `some` is written;
//! - `/left?bytes=N`: stops the server, leaves a whole answer of N bytes in the connection, and ends;
//! - `/none?then=…`: the same without a byte of an answer; `/busy?then=…`: behind a busy answer;
//! - `/leave?ms=N`: waits for the end of its connection, closes it at once, and is at work for N ms more;
//! - `/told?ms=N`: at work for so long, or until the end of its connection; `/was-told`: how often it was that;
//! - `/overlaps`: how often a request came while another was at work; `/asked`: how often it was asked whether it is idle;
//! - anything else: its pid.
//!
//! `TEST_RAW=port`: a command on the port that its first word says. It answers `/reset?bytes=N` with N bytes up to the
//! connection's end, has the kernel reset that behind them, since the request's body is not read, and answers whatever else
//! with 200.

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::getppid;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

const BUSY: &[u8] = b"HTTP/1.1 503 Busy\r\nRip-Worker-Busy: 1\r\nContent-Length: 4\r\n\r\nbusy";

static AT_WORK: AtomicUsize = AtomicUsize::new(0);
static OVERLAPS: AtomicUsize = AtomicUsize::new(0);
static CONTEXT: AtomicUsize = AtomicUsize::new(0);
static TOLD: AtomicUsize = AtomicUsize::new(0);

pub fn serve(version: &str) -> ExitCode {
    if version == "port" {
        return serve_port();
    }
    let socket = std::env::var("SOCKET_PATH").expect("a worker's environment");
    let listener = UnixListener::bind(&socket).expect("a free path");
    if version != "command" {
        join(version, &socket);
    }
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || converse(stream));
    }
    ExitCode::SUCCESS
}

fn serve_port() -> ExitCode {
    let port = std::env::args().nth(1).and_then(|word| word.parse().ok()).expect("a port");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port");
    for mut stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let mut reader = BufReader::with_capacity(1024, stream.try_clone().expect("a descriptor"));
            let Some((target, _)) = read_request(&mut reader) else { return };
            let bytes = target.strip_prefix("/reset?bytes=").map(|count| count.parse().expect("a size"));
            let _ = match bytes {
                Some(bytes) => {
                    stream.write_all(&[&b"HTTP/1.1 200 OK\r\n\r\n"[..], &vec![b'x'; bytes]].concat())
                }
                None => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                }
            };
        });
    }
    ExitCode::SUCCESS
}

fn join(version: &str, socket: &str) {
    let variable = |name: &str| std::env::var(name).expect("a worker's environment");
    let instance = match version {
        "1" => String::new(),
        _ => format!(r#""instance":"{}","#, variable("RIP_INSTANCE")),
    };
    let join = format!(
        r#"{{"op":"join",{instance}"workerId":{},"pid":{},"socket":"{socket}","version":{}}}"#,
        variable("WORKER_ID"),
        std::process::id(),
        variable("RIP_VERSION")
    );
    let mut control = UnixStream::connect(variable("RIP_CONTROL_SOCKET")).expect("a server");
    let length = join.len();
    let text = format!("POST /worker HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{join}");
    control.write_all(text.as_bytes()).expect("the server reads");
    let mut answer = [0; 12];
    control.read_exact(&mut answer).expect("the server answers");
    assert_eq!(&answer, b"HTTP/1.1 200");
}

fn converse(stream: UnixStream) {
    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
    while let Some((target, probe)) = read_request(&mut reader) {
        if let Some(probe) = probe {
            let number = CONTEXT.fetch_add(1, SeqCst);
            let answer = match probe.as_str() {
                "idle" if AT_WORK.load(SeqCst) == 0 => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                "1" if number == 2 => &b"HTTP/1.1 404 Not Found\r\n\r\nand so on"[..],
                _ => BUSY,
            };
            let _ = (&stream).write_all(answer);
            continue;
        }
        let others = AT_WORK.fetch_add(1, SeqCst);
        OVERLAPS.fetch_add(usize::from(others > 0), SeqCst);
        let goes_on = answer(&stream, &mut reader, &target);
        AT_WORK.fetch_sub(1, SeqCst);
        if !goes_on {
            return;
        }
    }
}

/// The target of a GET, and what it asks of the server's own.
fn read_request(reader: &mut impl BufRead) -> Option<(String, Option<String>)> {
    let (mut target, mut probe) = (None, None);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            return Some((target?, probe));
        }
        probe = probe.or(line.strip_prefix("Rip-Probe: ").map(|what| what.trim_end().to_owned()));
        target.get_or_insert_with(|| line.split(' ').nth(1).unwrap_or_default().to_owned());
    }
}

/// `false`: the connection is over.
fn answer(mut stream: &UnixStream, reader: &mut BufReader<UnixStream>, target: &str) -> bool {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (_, value) = query.split_once('=').unwrap_or_default();
    match path {
        path if path.starts_with("/open") => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nsome");
            end(value);
            return false;
        }
        "/left" => {
            let bytes: usize = value.parse().expect("a size");
            setsockopt(stream, sockopt::SndBuf, &(2 * bytes)).expect("a larger buffer");
            kill(getppid(), Signal::SIGSTOP).expect("a server");
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
            stream.write_all(&[head.as_bytes(), &vec![b'x'; bytes]].concat()).expect("it fits");
            std::process::exit(1);
        }
        "/busy" => {
            let _ = stream.write_all(BUSY);
            end(value);
            return true;
        }
        "/none" => {
            end(value);
            return false;
        }
        "/leave" => {
            // The end of the connection is the only thing that can come.
            let _ = reader.read(&mut [0; 1]);
            let _ = stream.shutdown(std::net::Shutdown::Both);
            std::thread::sleep(Duration::from_millis(value.parse().expect("a time")));
            return false;
        }
        "/told" => {
            let time = Duration::from_millis(value.parse().expect("a time"));
            reader.get_ref().set_read_timeout(Some(time)).expect("a timeout");
            if matches!(reader.read(&mut [0; 1]), Ok(0)) {
                TOLD.fetch_add(1, SeqCst);
            }
            reader.get_ref().set_read_timeout(None).expect("no timeout");
        }
        _ => {}
    }
    let text = match path {
        "/overlaps" => OVERLAPS.load(SeqCst).to_string(),
        "/was-told" => TOLD.load(SeqCst).to_string(),
        "/asked" => CONTEXT.load(SeqCst).to_string(),
        _ => std::process::id().to_string(),
    };
    let length = text.len();
    stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}").as_bytes()).is_ok()
}

fn end(how: &str) {
    match how {
        "exit0" => std::process::exit(0),
        "exit1" => std::process::exit(1),
        "kill" => super::die(),
        "hang" => loop {
            std::thread::park();
        },
        _ => {}
    }
}
