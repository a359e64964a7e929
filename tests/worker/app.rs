//! The integration tests' app, built on the library. What it can do is asked for by path; how it starts is said by
//! the environment:
//!
//! - `TEST_BOOT_MS`: so long its workers take before they serve;
//! - `TEST_BOOT_UNTIL`: until that file is there, they do not;
//! - `TEST_BOOT_FAIL=1`, or the file that `TEST_BOOT_FAIL_FILE` names exists: its workers fail at the start;
//! - `TEST_RAW`: its workers speak the protocol by hand (`raw.rs`);
//! - `TEST_SEVERAL`: its handler takes several requests at once;
//! - `TEST_CHAOS_DIR`: its workers do what the chaos test wants, and keep their diary in that folder;
//! - `TEST_DEFAULTS`: words of the command line that it has of its own;
//! - `CONTRACT_DIR`: it is the contract suite's app.

mod chaos;
mod contract;
mod raw;

use rip_server::{Error, IntoResponse, Request, Response};
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PIECE_BYTES: usize = 64 * 1024;

fn main() -> ExitCode {
    // A program that carries the server is its front end too, and that starts at once.
    let is_worker = std::env::var_os("WORKER_ID").is_some();
    if is_worker && let Err(complaint) = boot() {
        eprintln!("{complaint}");
        return ExitCode::FAILURE;
    }
    if is_worker && let Ok(version) = std::env::var("TEST_RAW") {
        return raw::serve(&version);
    }
    match std::env::var_os("TEST_CHAOS_DIR") {
        Some(dir) if is_worker => chaos::serve(dir.into()),
        _ if std::env::var_os("CONTRACT_DIR").is_some() => contract::run(),
        _ => {
            let server = match std::env::var_os("TEST_SEVERAL") {
                Some(_) => rip_server::Server::concurrent(answer),
                None => rip_server::Server::new(answer),
            };
            let defaults = variable("TEST_DEFAULTS");
            defaults.split_whitespace().fold(server, |all, phrase| all.with(phrase)).run()
        }
    }
}

fn boot() -> Result<(), String> {
    if let Some(time) = variable("TEST_BOOT_MS").parse().ok().map(Duration::from_millis) {
        std::thread::sleep(time);
    }
    if let Some(file) = std::env::var_os("TEST_BOOT_UNTIL") {
        wait_for(file.as_ref());
    }
    if variable("TEST_BOOT_FAIL") == "1" {
        return Err("test-worker: told to fail at its start".into());
    }
    let file = variable("TEST_BOOT_FAIL_FILE");
    if !file.is_empty() && Path::new(&file).exists() {
        return Err(format!("test-worker: cannot start while {file} exists"));
    }
    Ok(())
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// A number in the query.
fn number(request: &Request<'_>, name: &str, default: u64) -> u64 {
    request.parameter(name).and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// A test that has not made the file by then has failed.
const WAIT_FOR_AT_MOST: Duration = Duration::from_secs(300);

fn wait_for(file: &Path) {
    let deadline = Instant::now() + WAIT_FOR_AT_MOST;
    while !file.exists() {
        assert!(Instant::now() < deadline, "waited in vain for {}", file.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn size(request: &Request<'_>, name: &str) -> usize {
    usize::try_from(number(request, name, 0)).expect("a size that this machine can count")
}

fn answer(request: &mut Request<'_>) -> Response {
    match request.path() {
        "/ping" => Response::text("pong"),
        "/pid" => Response::text(std::process::id().to_string()),
        "/slot" => Response::text(format!("{} {}", variable("WORKER_ID"), variable("RIP_VERSION"))),
        "/sleep" => {
            std::thread::sleep(Duration::from_millis(number(request, "ms", 0)));
            Response::text("slept")
        }
        // At work until a file is there.
        "/hold" => {
            wait_for(request.parameter("until").unwrap_or_default().as_ref());
            Response::text("held")
        }
        "/echo" => echo(request),
        "/sha" => Response::text(length_and_checksum(request)),
        "/bytes" => {
            let count = size(request, "n");
            Response::new(200).with_sized_stream(count as u64, move |out| write_pieces(out, count))
        }
        // The same without a length.
        "/stream" => {
            let count = size(request, "n");
            Response::new(200).with_stream(move |out| write_pieces(out, count))
        }
        "/chunks" => chunks(number(request, "n", 1), Duration::from_millis(number(request, "ms", 0))),
        "/events" => {
            let gap = Duration::from_millis(number(request, "ms", 20));
            events(number(request, "n", u64::MAX), gap, request.parameter("until").map(PathBuf::from))
        }
        "/die" => die(),
        "/die-after-head" => Response::new(200).with_stream(|out| {
            out.write_all(b"the last words")?;
            die()
        }),
        "/panic" => panic!("told to panic"),
        "/headers" => headers(request),
        // What a process that a handler starts has blocked.
        "/childs-mask" => Response::text(childs_mask()),
        "/parse" => parse(request).into_response(),
        "/header" => {
            Response::text("fine").with_header("X-Given", request.parameter("value").unwrap_or_default())
        }
        "/told" => {
            let client = request.client().map(|address| address.to_string());
            let name = request.parameter("näme").unwrap_or_default();
            let text = format!("{} {} {name}", client.unwrap_or_default(), request.id());
            Response::text(text).with_status(207)
        }
        "/leak" => leak(size(request, "bytes")),
        "/env" => environment(),
        "/release" => release(),
        path => Response::text(format!("no {path} here\n")).with_status(404),
    }
}

/// Which release this is; `bad` fails at every third request, and `deadly` dies of its tenth.
fn release() -> Response {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    let (name, asked) = (variable("TEST_RELEASE"), 1 + ASKED.fetch_add(1, Ordering::Relaxed));
    match name.as_str() {
        "bad" if asked.is_multiple_of(3) => Response::text(name).with_status(500),
        "deadly" if asked == 10 => die(),
        _ => Response::text(name),
    }
}

/// The body, with the method in `X-Method`.
fn echo(request: &mut Request<'_>) -> Response {
    match request.read_body() {
        Ok(body) => Response::new(200).with_header("X-Method", request.method.clone()).with_body(body),
        Err(error) => Response::text(format!("{error}\n")).with_status(400),
    }
}

/// The body's length and FNV-1a checksum, as it is read: a body larger than memory will do.
fn length_and_checksum(request: &mut Request<'_>) -> String {
    let mut piece = vec![0; PIECE_BYTES];
    let (mut length, mut checksum) = (0, 0xcbf2_9ce4_8422_2325_u64);
    loop {
        match request.body().read(&mut piece) {
            Ok(0) => return format!("{length} {checksum:016x}"),
            Ok(count) => {
                length += count;
                for &byte in &piece[..count] {
                    checksum = (checksum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
                }
            }
            Err(error) => return format!("after {length} bytes: {error}"),
        }
    }
}

fn write_pieces(out: &mut dyn Write, bytes: usize) -> io::Result<()> {
    let piece = vec![b'x'; PIECE_BYTES];
    let mut left = bytes;
    while left > 0 {
        let count = left.min(piece.len());
        out.write_all(&piece[..count])?;
        left -= count;
    }
    Ok(())
}

/// `chunk 0`, `chunk 1`, … a line each.
fn chunks(count: u64, gap: Duration) -> Response {
    Response::new(200).with_header("Content-Type", "text/plain").with_stream(move |out| {
        for index in 0..count {
            if index > 0 {
                std::thread::sleep(gap);
            }
            out.write_all(format!("chunk {index}\n").as_bytes())?;
        }
        Ok(())
    })
}

/// An event stream: `data: 0`, `data: 1`, … It ends after so many, or when that file is there.
fn events(count: u64, gap: Duration, until: Option<PathBuf>) -> Response {
    let is_over = move || until.as_ref().is_some_and(|file| file.exists());
    Response::new(200).with_header("Content-Type", "text/event-stream").with_stream(move |out| {
        for index in (0..count).take_while(|_| !is_over()) {
            out.write_all(format!("data: {index}\n\n").as_bytes())?;
            std::thread::sleep(gap);
        }
        Ok(())
    })
}

/// As the kernel kills for memory: at once.
fn die() -> ! {
    let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
    loop {
        std::thread::park();
    }
}

/// The request's line and fields as the worker got them.
fn headers(request: &Request<'_>) -> Response {
    let mut text = format!("{} {}\n", request.method, request.target);
    for (name, value) in request.headers() {
        let _ = writeln!(text, "{name}: {}", String::from_utf8_lossy(value));
    }
    Response::text(text)
}

fn childs_mask() -> String {
    let child = std::process::Command::new("grep").args(["SigBlk", "/proc/self/status"]).output();
    child
        .map_or_else(|error| error.to_string(), |output| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A handler with `?` in it.
fn parse(request: &mut Request<'_>) -> Result<Response, Error> {
    let number = request.parameter("number").ok_or_else(|| Error::new(400, "which number?"))?;
    let number: u8 = number.parse()?;
    Ok(Response::text(number.to_string()))
}

/// Memory that is touched and never given back.
fn leak(bytes: usize) -> Response {
    let memory = vec![1_u8; bytes].leak();
    Response::text(memory.len().to_string())
}

fn environment() -> Response {
    let mut text = String::new();
    for (name, value) in std::env::vars_os() {
        let _ = writeln!(text, "{}={}", name.to_string_lossy(), value.to_string_lossy());
    }
    Response::text(text)
}
