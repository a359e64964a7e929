//! The contract suite's app (`tests/apps/contract/README.md`) as a Rust handler.

use rip_server::{Request, Response};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const PIECE_BYTES: usize = 64 * 1024;

/// What stands behind `run` is the shutdown's hook.
pub fn run() -> ExitCode {
    let code = rip_server::Server::concurrent(answer).run();
    std::thread::sleep(Duration::from_millis(150));
    if let Some(dir) = std::env::var_os("CONTRACT_DIR") {
        touch(Path::new(&dir), "hook");
    }
    code
}

fn answer(request: &mut Request<'_>) -> Response {
    let path = request.path().to_owned();
    let dir = PathBuf::from(request.query());
    let mut words = path.split('/').skip(1);
    let (name, kind) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
    match name {
        "hello" => Response::text("hello"),
        "pid" => Response::text(std::process::id().to_string()),
        "ready" => Response::text("the app's"),
        "env" => environment(),
        "sha" => Response::text(super::length_and_checksum(request)),
        "ignore" => Response::text("ignored"),
        "part" => match request.body().read(&mut [0; 1000]) {
            Ok(_) => Response::text("left"),
            Err(error) => Response::text(error.to_string()).with_status(500),
        },
        "file" => match std::fs::read(&dir) {
            Ok(bytes) => Response::new(200).with_body(bytes),
            Err(error) => Response::text(error.to_string()).with_status(500),
        },
        "pieces" => Response::new(200).with_stream(move |out| pieces(&dir, out)),
        "wait" => {
            touch(&dir, "started");
            super::wait_for(&dir.join("go"));
            touch(&dir, "ended");
            Response::text("done")
        }
        "ticks" => Response::new(200)
            .with_header("Content-Type", "text/event-stream")
            .with_stream(move |out| ticks(&dir, out).inspect_err(|_| touch(&dir, "told"))),
        "fail" => fail(&kind),
        "break" => Response::new(200).with_stream(move |out| {
            out.write_all(b"first\n")?;
            super::wait_for(&dir.join("go"));
            if kind == "error" { Err(io::Error::other("told to fail")) } else { fail(&kind) }
        }),
        "fields" => fields(request),
        "nobody" => Response::text("hello").with_status(kind.parse().unwrap_or(500)),
        "client" => Response::text(client(request)),
        path => Response::text(format!("no {path} here\n")).with_status(404),
    }
}

fn touch(dir: &Path, name: &str) {
    std::fs::write(dir.join(name), "").expect("the test's folder");
}

fn ticks(dir: &Path, out: &mut dyn Write) -> io::Result<()> {
    loop {
        out.write_all(b"data: 0\n\n")?;
        if dir.join("go").exists() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn pieces(path: &Path, out: &mut dyn Write) -> io::Result<()> {
    let (mut file, mut piece) = (File::open(path)?, vec![0; PIECE_BYTES]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(()),
            count => out.write_all(&piece[..count])?,
        }
    }
}

struct Embedded;

fn fail(kind: &str) -> ! {
    match kind {
        "own" => std::panic::panic_any(Embedded),
        "kill" => super::die(),
        _ => panic!("told to fail"),
    }
}

fn environment() -> Response {
    let mut text = format!("cwd={}\n", std::env::current_dir().unwrap_or_default().display());
    for (name, value) in std::env::vars_os() {
        text += &format!("{}={}\n", name.to_string_lossy(), value.to_string_lossy());
    }
    Response::text(text)
}

fn client(request: &Request<'_>) -> String {
    let client = request.client().map(|address| address.to_string()).unwrap_or_default();
    client + request.header("rip-client").unwrap_or_default()
}

fn fields(request: &Request<'_>) -> Response {
    let mut body = Vec::new();
    let mut latin = Vec::new();
    for (name, glue) in [("x-many", ","), ("cookie", "; "), ("x-latin", ",")] {
        let values: Vec<&[u8]> = request
            .headers()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect();
        let line = values.join(glue.as_bytes());
        latin.clone_from(&line);
        body.extend_from_slice(&line);
        body.push(b'\n');
    }
    Response::new(200)
        .with_header("X-Latin", latin)
        .with_header("X-Out", "a")
        .with_header("X-Out", "b")
        .with_header("Set-Cookie", "a=1")
        .with_header("Set-Cookie", "b=2")
        .with_body(body)
}
