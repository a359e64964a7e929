//! The command line's side of the control socket: `status`, `reload`, `stop`.

use crate::app;
use crate::config::{Place, Verb};
use crate::control::Message;
use crate::names::Names;
use crate::observe::status;
use crate::process;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a server may take for one answer; a reload's lines may be further apart.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// An answer of the control socket.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// Asks once, and reads the whole answer.
///
/// # Errors
/// Nobody listens there, or the connection broke.
pub fn ask(control: &Path, method: &str, path: &str, body: &str) -> io::Result<Answer> {
    let mut reader = send(control, method, path, body)?;
    reader.get_ref().set_read_timeout(Some(ANSWER_WITHIN))?;
    let status = read_head(&mut reader)?;
    let mut body = String::new();
    reader.read_to_string(&mut body)?;
    Ok(Answer { status, body })
}

fn send(control: &Path, method: &str, path: &str, body: &str) -> io::Result<BufReader<UnixStream>> {
    let mut stream = UnixStream::connect(control)?;
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    Ok(BufReader::new(stream))
}

/// The status; the body is what is left.
fn read_head(reader: &mut BufReader<UnixStream>) -> io::Result<u16> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("the server's answer is no HTTP"))?;
    while line.trim_end() != "" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(status)
}

/// Carries out a verb; what is to be said goes to stdout, a complaint comes back.
///
/// # Errors
/// One line for stderr; the exit code is then 1.
pub fn carry_out(verb: Verb, place: &Place, own_program: Option<&Path>) -> Result<(), String> {
    let path = match (&place.app, own_program) {
        (Some(path), _) => app::absolute(path),
        (None, Some(program)) => program.to_path_buf(),
        (None, None) => return Err("which app?".into()),
    };
    let names = Names::new(place, &app::name(&path));
    let complaint = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
            "no server for '{}' ({}); --variant or --socket-dir of its start may be missing",
            names.app,
            names.control.display()
        ),
        _ => format!("the server for '{}': {error}", names.app),
    };
    match verb {
        Verb::Status { json: true, .. } => {
            let answer = ask(&names.control, "GET", "/status", "").map_err(complaint)?;
            print(&answer.body)
        }
        Verb::Status { watch: true, .. } if io::stdout().is_terminal() => watch(&names, complaint),
        Verb::Status { .. } => print(&status_table(&names).map_err(complaint)?),
        Verb::Stop => {
            let mut reader =
                send(&names.control, "POST", "/control", &Message::Stop.to_json()).map_err(complaint)?;
            let server = getsockopt(reader.get_ref(), sockopt::PeerCredentials).map(|peer| peer.pid());
            // The connection ends with the server, a moment before its process does.
            let mut all = Vec::new();
            let _ = reader.read_to_end(&mut all);
            if let Ok(server @ 1..) = server {
                wait_for_end(Pid::from_raw(server));
            }
            print(&format!("{}: stopped\n", names.app))
        }
        Verb::Reload => reload(&names, complaint),
    }
}

fn status_table(names: &Names) -> io::Result<String> {
    let answer = ask(&names.control, "GET", "/status", "")?;
    let value: Value = serde_json::from_str(&answer.body)?;
    Ok(status::table(&value))
}

/// Draws the table anew each second, on the terminal's other screen, until a signal or the server's end; then the
/// terminal is as it was.
fn watch(names: &Names, complaint: impl Fn(io::Error) -> String) -> Result<(), String> {
    const EVERY_MS: u16 = 1000;
    const OTHER_SCREEN: &str = "\x1b[?1049h\x1b[?25l";
    const FIRST_SCREEN: &str = "\x1b[?25h\x1b[?1049l";
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    let caught = signals.thread_block().and_then(|()| SignalFd::new(&signals));
    let caught = caught.map_err(|error| format!("signals: {error}"))?;
    // Before anything is drawn, so that a complaint stands on the first screen.
    let mut table = status_table(names).map_err(&complaint)?;
    // Where it cannot be drawn, there is nobody to be told so.
    let _ = print(OTHER_SCREEN);
    let end = loop {
        // From the top; each line clears what stood behind it, and the last one all below.
        let _ = print(&format!("\x1b[H{}\x1b[J", table.replace('\n', "\x1b[K\r\n")));
        let mut asked = [PollFd::new(caught.as_fd(), PollFlags::POLLIN)];
        match poll(&mut asked, PollTimeout::from(EVERY_MS)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => break Ok(()),
            Err(error) => break Err(error.to_string()),
        }
        table = match status_table(names) {
            Ok(table) => table,
            Err(error) => break Err(complaint(error)),
        };
    };
    let _ = print(FIRST_SCREEN);
    end
}

fn reload(names: &Names, complaint: impl Fn(io::Error) -> String) -> Result<(), String> {
    let mut reader =
        send(&names.control, "POST", "/control", &Message::Reload.to_json()).map_err(&complaint)?;
    read_head(&mut reader).map_err(&complaint)?;
    for line in reader.lines() {
        let line = line.map_err(&complaint)?;
        let value: Value = serde_json::from_str(&line).map_err(|_| format!("the server said: {line}"))?;
        match (value["ok"].as_bool(), &value["replaced"], &value["of"]) {
            // The reload goes on, and its end is what counts.
            (None, replaced, of) => drop(print(&format!("{replaced} of {of} replaced\n"))),
            (Some(true), _, _) => return Ok(()),
            (Some(false), _, _) => {
                return Err(format!("reload stopped: {}", value["error"].as_str().unwrap_or("?")));
            }
        }
    }
    Err("the server ended during the reload".into())
}

/// Waits until the process is gone, or ended and only not taken in by its parent.
fn wait_for_end(pid: Pid) {
    /// Ending takes milliseconds; what takes longer is not waited for.
    const WITHIN: Duration = Duration::from_secs(2);
    const EVERY: Duration = Duration::from_millis(2);
    let since = Instant::now();
    while process::lives(pid) && since.elapsed() < WITHIN {
        std::thread::sleep(EVERY);
    }
}

/// Prints what was asked for. A reader that has gone (`| head`) has had all that it wanted.
///
/// # Errors
/// One line for stderr: what was to be said is lost.
pub fn print(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("standard output cannot be written to: {error}"))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
