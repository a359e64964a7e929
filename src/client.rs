//! The command line's side of the control socket: `status`, `reload`, `upgrade`, `stop`.

mod failures;
mod lasting;
mod progress;

pub(crate) use progress::Progress;

use lasting::{reload, stop, upgrade};

use crate::app;
use crate::config::{ServerId, Verb};
use crate::names::Names;
use crate::observe::status;
use crate::paths::{self, shown};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, getsockopt, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a server may take to accept, and for one answer. One that is well takes milliseconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// An answer of the control socket.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// Connects, for no longer than an answer may take: a full backlog would be waited for without an end. Whatever is
/// sent and read on the connection waits no longer either.
///
/// # Errors
/// The kernel's; [`io::ErrorKind::WouldBlock`] if the backlog stays full.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let fd: OwnedFd = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let time = TimeVal::milliseconds(i64::try_from(ANSWER_WITHIN.as_millis()).unwrap_or(i64::MAX));
    setsockopt(&fd, sockopt::SendTimeout, &time)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &time)?;
    let address = UnixAddr::new(path).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    loop {
        match socket::connect(fd.as_raw_fd(), &address) {
            Ok(()) => return Ok(UnixStream::from(fd)),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Asks once, and reads the whole answer.
///
/// # Errors
/// Nobody listens there, nobody answers in time, or the connection broke.
pub fn ask(control: &Path, method: &str, path: &str, body: &str) -> io::Result<Answer> {
    let mut reader = send(control, method, path, body)?;
    let status = read_head(&mut reader)?;
    let mut body = String::new();
    reader.read_to_string(&mut body)?;
    Ok(Answer { status, body })
}

fn send(control: &Path, method: &str, path: &str, body: &str) -> io::Result<BufReader<UnixStream>> {
    let mut stream = connect(control)?;
    write_request(&mut stream, method, path, body)?;
    Ok(BufReader::new(stream))
}

fn write_request(stream: &mut UnixStream, method: &str, path: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes())
}

/// The status; the body is what is left.
fn read_head(reader: &mut BufReader<UnixStream>) -> io::Result<u16> {
    read_head_with(reader, &mut |_| {})
}

/// The same; `field` sees each line of the head.
fn read_head_with(reader: &mut BufReader<UnixStream>, field: &mut dyn FnMut(&str)) -> io::Result<u16> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let status = line.split(' ').nth(1).and_then(|part| part.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("the server's answer is no HTTP"))?;
    while line.trim_end() != "" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        field(line.trim_end());
    }
    Ok(status)
}

/// A GET that has been sent.
#[derive(Debug)]
pub(crate) struct Get {
    stream: UnixStream,
    began: Instant,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Got {
    pub status: u16,
    pub media_type: Option<String>,
    /// Until its head was there.
    pub after: Duration,
    /// Of a plain text.
    pub first_line: Option<String>,
}

impl Get {
    /// Asks for a page with these fields of the head.
    ///
    /// # Errors
    /// As [`ask`].
    pub(crate) fn send(socket: &Path, target: &str, fields: &str) -> io::Result<Get> {
        let mut stream = connect(socket)?;
        let began = Instant::now();
        let head = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n");
        stream.write_all(head.as_bytes())?;
        Ok(Get { stream, began })
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Readable once the answer has begun.
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Reads the head of the answer, and the start of a plain text.
    ///
    /// # Errors
    /// As [`ask`].
    pub(crate) fn answer(self) -> io::Result<Got> {
        /// Of a line that is shown.
        const MAX_FIRST_LINE_BYTES: u64 = 200;
        let after = self.began.elapsed();
        let mut reader = BufReader::new(self.stream);
        let (mut media_type, mut length): (Option<String>, u64) = (None, 0);
        let status = read_head_with(&mut reader, &mut |line| {
            let (name, value) = line.split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap_or_default();
            }
            if name.eq_ignore_ascii_case("content-type") {
                media_type = value.split(';').next().map(|kind| kind.trim().to_owned());
            }
        })?;
        let first_line = match media_type.as_deref() {
            Some("text/plain") => {
                let mut start = Vec::new();
                // What has come until nothing more comes. The connection may stay.
                let _ = reader.take(length.min(MAX_FIRST_LINE_BYTES)).read_to_end(&mut start);
                String::from_utf8_lossy(&start).lines().next().map(str::to_owned)
            }
            _ => None,
        };
        Ok(Got { status, media_type, after, first_line })
    }
}

/// Whoever listens says nothing for as long as an answer may take.
pub fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Carries out a verb; what is to be said goes to stdout, a complaint comes back.
///
/// # Errors
/// One line for stderr; the exit code is then 1.
pub fn carry_out(verb: Verb, place: &ServerId, own_program: Option<&Path>) -> Result<(), String> {
    let path = match (&place.app, own_program) {
        (Some(path), _) => paths::absolute(path),
        (None, Some(program)) => program.to_path_buf(),
        (None, None) => return Err("which app?".into()),
    };
    let names = Names::new(place, &app::name(&path));
    if place.app.is_some() && matches!(verb, Verb::Stop | Verb::Reload { .. } | Verb::Upgrade) {
        check_path(&names, &path)?;
    }
    match verb {
        Verb::Status { json: true, .. } => print(&Inquiry::begin(&names, "GET", "/status", "")?.remaining()?),
        Verb::Status { failures: true, watch: true, .. } => failures::follow(&names),
        Verb::Status { failures: true, .. } => failures::tell(&names),
        Verb::Status { watch: true, .. } if io::stdout().is_terminal() => watch(&names),
        Verb::Status { check: true, .. } => check_health(&names),
        Verb::Status { .. } => print(&status_table(&names)?),
        Verb::Stop => stop(&names),
        Verb::Reload { canary } => reload(&names, canary),
        Verb::Upgrade => upgrade(&names),
    }
}

/// A verb's question to the server, whose answer has begun.
struct Inquiry<'a> {
    names: &'a Names,
    reader: BufReader<UnixStream>,
    /// The server's process, where the kernel tells.
    server: Option<Pid>,
}

impl<'a> Inquiry<'a> {
    /// # Errors
    /// There is no server, it is not ours, it does not answer, or it says no.
    fn begin(names: &'a Names, method: &str, path: &str, body: &str) -> Result<Self, String> {
        let mut stream = connect(&names.control).map_err(|error| no_connection(names, &error))?;
        let peer = getsockopt(&stream, sockopt::PeerCredentials).ok();
        let server = peer.map(|peer| peer.pid()).filter(|pid| *pid > 0).map(Pid::from_raw);
        // One that refuses may have said so before it was asked.
        let sent = write_request(&mut stream, method, path, body);
        let mut inquiry = Inquiry { names, reader: BufReader::new(stream), server };
        let head = read_head(&mut inquiry.reader).map_err(|error| sent.err().unwrap_or(error));
        match head.map_err(|error| inquiry.complaint(&error))? {
            200 => Ok(inquiry),
            _ => {
                let text = inquiry.remaining()?;
                let value: Option<Value> = serde_json::from_str(&text).ok();
                let error = value.as_ref().and_then(|value| value["error"].as_str());
                Err(format!("{} refuses: {}", inquiry.who(), shown(error.unwrap_or(text.trim()))))
            }
        }
    }

    /// `the server for 'shop' (pid 42)`
    fn who(&self) -> String {
        let pid = self.server.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        format!("the server for '{}'{pid}", self.names.app)
    }

    fn complaint(&self, error: &io::Error) -> String {
        let who = self.who();
        match error.kind() {
            _ if is_silence(error) => {
                format!("{who} does not answer within {} s", ANSWER_WITHIN.as_secs())
            }
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                format!("{who} broke off without an answer")
            }
            _ => format!("{who}: {error}"),
        }
    }

    /// A line of the answer.
    fn value(&self, line: &str) -> Result<Value, String> {
        serde_json::from_str(line).map_err(|_| format!("{} said: {}", self.who(), shown(line)))
    }

    /// The whole answer.
    fn remaining(&mut self) -> Result<String, String> {
        let mut text = String::new();
        match self.reader.read_to_string(&mut text) {
            Ok(_) => Ok(text),
            Err(error) => Err(self.complaint(&error)),
        }
    }

    /// The answer's next line, however long it takes, as long as the server answers others. `None`: the end.
    fn next_line(&mut self, progress: &mut Progress) -> Result<Option<String>, String> {
        let stream = self.reader.get_ref();
        // If that is refused, it looks less often.
        let _ = stream.set_read_timeout(Some(progress::EVERY));
        let mut silent_since = Instant::now();
        let mut line = Vec::new();
        loop {
            match self.reader.read_until(b'\n', &mut line) {
                Ok(_) if line.is_empty() => return Ok(None),
                Ok(_) => return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned())),
                Err(error) if is_silence(&error) => {
                    progress.tick();
                    if silent_since.elapsed() < ANSWER_WITHIN {
                        continue;
                    }
                    silent_since = Instant::now();
                    if let Err(error) = ask(&self.names.control, "GET", "/server", "")
                        && is_silence(&error)
                    {
                        return Err(self.complaint(&error));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(self.complaint(&error)),
            }
        }
    }
}

/// Why there is no connection to a control socket.
fn no_connection(names: &Names, error: &io::Error) -> String {
    let (app, control) = (&names.app, shown(&names.control));
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::InvalidInput => {
            format!(
                "no server for '{app}' ({control}); --variant, --socket-prefix or --socket-dir of its start may be missing"
            )
        }
        io::ErrorKind::PermissionDenied => {
            let owner = [&names.control, &names.dir].into_iter().find_map(|path| path.metadata().ok());
            let whose = owner.map(|owner| format!(" of user {}", owner.uid())).unwrap_or_default();
            format!(
                "'{app}' is closed to this user ({control}): its server is one{whose}; that user or root may ask"
            )
        }
        _ if is_silence(error) => {
            format!("the server for '{app}' ({control}) does not accept within {} s", ANSWER_WITHIN.as_secs())
        }
        _ => format!("the server for '{app}' ({control}): {error}"),
    }
}

/// Servers are found by the app's name. One of another folder that has the same name is not meant.
///
/// # Errors
/// The server serves another path, and both are there; or as for all questions.
fn check_path(names: &Names, typed: &Path) -> Result<(), String> {
    let mut inquiry = Inquiry::begin(names, "GET", "/status", "")?;
    let text = inquiry.remaining()?;
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    let served = Path::new(value["path"].as_str().unwrap_or_default());
    match (home(typed), home(served)) {
        (Some(one), Some(other)) if one != other => Err(format!(
            "{} serves '{}', not '{}'; that path, or --variant or --socket-dir of another server's start, would do",
            inquiry.who(),
            shown(served),
            shown(typed),
        )),
        _ => Ok(()),
    }
}

/// The folder that gives an app its name, wherever links lead to it; `shop` and `shop/current` are one app.
fn home(path: &Path) -> Option<PathBuf> {
    let is_current = path.file_name().is_some_and(|name| name == "current");
    let path = if is_current { path.parent().unwrap_or(path) } else { path };
    path.canonicalize().ok()
}

/// One line, and a complaint unless the server is healthy.
fn check_health(names: &Names) -> Result<(), String> {
    let mut inquiry = Inquiry::begin(names, "GET", "/status", "")?;
    let text = inquiry.remaining()?;
    let value: Value = serde_json::from_str(&text).map_err(|_| format!("{} gave no JSON", inquiry.who()))?;
    let (state, workers) = (value["status"].as_str().unwrap_or("?"), &value["workers"]);
    match state {
        "healthy" => print(&format!("{}: healthy, workers={workers}\n", names.app)),
        _ => Err(format!("{} is {}, workers={workers}", inquiry.who(), shown(state))),
    }
}

/// The running servers of this user: those in that folder and, where it was not given, in the other usual ones.
///
/// # Errors
/// One line: nothing can be written to.
pub fn list(socket_dir: &Path, is_given: bool) -> Result<(), String> {
    const ENDING: &str = ".ctl.sock";
    let entries = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<PathBuf>>()
    };
    let mut dirs = vec![socket_dir.to_path_buf()];
    if !is_given {
        dirs.push(format!("/tmp/rip-{}", nix::unistd::getuid()).into());
        // Where the unit of examples/deploy has a folder for each app.
        dirs.extend(entries(Path::new("/run/rip")));
    }
    let mut sockets: Vec<PathBuf> = dirs.iter().flat_map(|dir| entries(dir)).collect();
    sockets.retain(|path| path.to_string_lossy().ends_with(ENDING));
    sockets.sort();
    sockets.dedup();
    let answers = sockets.iter().filter_map(|path| ask(path, "GET", "/status", "").ok());
    let servers: Vec<Value> = answers.filter_map(|answer| serde_json::from_str(&answer.body).ok()).collect();
    print(&status::list(&servers))
}

fn status_table(names: &Names) -> Result<String, String> {
    let mut inquiry = Inquiry::begin(names, "GET", "/status", "")?;
    let text = inquiry.remaining()?;
    let value: Value = serde_json::from_str(&text).map_err(|_| format!("{} gave no JSON", inquiry.who()))?;
    Ok(status::table(&value))
}

/// What ends a verb that would go on without an end.
fn catch_signals() -> nix::Result<SignalFd> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    SignalFd::new(&signals)
}

/// Draws the table anew each second, on the terminal's other screen, until a signal or the server's end; then the
/// terminal is as it was.
fn watch(names: &Names) -> Result<(), String> {
    const EVERY_MS: u16 = 1000;
    const OTHER_SCREEN: &str = "\x1b[?1049h\x1b[?25l";
    const FIRST_SCREEN: &str = "\x1b[?25h\x1b[?1049l";
    let caught = catch_signals().map_err(|error| format!("signals: {error}"))?;
    // Before anything is drawn, so that a complaint stands on the first screen.
    let mut table = status_table(names)?;
    // Where it cannot be drawn, there is nobody to be told so.
    let _ = print(OTHER_SCREEN);
    let end = loop {
        // From the top; each line clears what stood behind it, and the last one all below.
        let _ = print(&format!("\x1b[H{}\x1b[J", table.replace('\n', "\x1b[K\r\n")));
        let mut context = [PollFd::new(caught.as_fd(), PollFlags::POLLIN)];
        match poll(&mut context, PollTimeout::from(EVERY_MS)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => break Ok(()),
            Err(error) => break Err(error.to_string()),
        }
        table = match status_table(names) {
            Ok(table) => table,
            Err(complaint) => break Err(complaint),
        };
    };
    let _ = print(FIRST_SCREEN);
    end
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
