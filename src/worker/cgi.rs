//! CGI/1.1 (RFC 3875): one process for each request. It is ended, with everything it has started, when nobody waits for
//! its answer any more, and when its worker ends.

mod head;
mod variables;

use super::outlet::{Leaving, NOBODY_WAITS, gone, is_gone};
use super::request::{Request, percent_decoded};
use super::response::Response;
use crate::anonymous_file;
use crate::http::field;
use crate::process::{self, GuardLine};
use head::{Head, end_of_head};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use variables::{PROTOCOL_VARIABLES, variables};

/// The longest head of a script's output.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// The most local redirects in a row (RFC 3875 §6.2.2), since more may be a loop.
const MAX_REDIRECTS: usize = 10;
/// The children of a script that has exited may still have its stdout. What they write belongs to the answer, which
/// ends when they have written nothing for so long. A script that has closed its stdout gets the same time to exit.
const LINGER: Duration = Duration::from_secs(1);
/// What is run for each request, and how.
pub struct Cgi {
    script: PathBuf,
    /// Whether the script gets `HTTP_AUTHORIZATION`.
    passes_authorization: bool,
    /// After so much silence a half-close means that the client got a 504.
    read_timeout: Option<Duration>,
    /// Ends the script if its worker is killed. `None` if it could not be started.
    guard: Option<GuardLine>,
}

impl Cgi {
    /// For the script that the environment names; the server has set it.
    pub fn from_environment() -> Option<Cgi> {
        let variable = |name: &str| std::env::var(name).ok();
        Some(Cgi {
            script: std::env::var_os("RIP_APP_ENTRY")?.into(),
            passes_authorization: variable("RIP_CGI_PASS_AUTH").is_some_and(|value| value == "1"),
            read_timeout: variable("RIP_READ_TIMEOUT_MS")
                .and_then(|value| value.parse().ok())
                .map(Duration::from_millis),
            guard: process::start_guard(crate::config::CGI_GUARD)
                .inspect_err(|error| eprintln!("scripts outlive a worker that is killed: {error}"))
                .ok(),
        })
    }

    /// Answers a request by running the script.
    pub fn run(&self, request: &mut Request<'_>) -> Response {
        match self.try_run(request) {
            Ok(response) => response,
            Err(error) => {
                let failed = Response::text("Internal Server Error\n").with_status(500);
                if is_gone(&error) {
                    return failed;
                }
                failed.with_complaint(format!("{}: {error}", self.script.display()))
            }
        }
    }

    fn try_run(&self, request: &mut Request<'_>) -> io::Result<Response> {
        if percent_decoded(request.path().as_bytes()).contains(&0) {
            return Ok(Response::text("The path has a NUL in it.\n").with_status(400));
        }
        let stdin = request_body(request)?;
        let mut target = request.target.clone();
        let mut method = request.method.clone();
        for _ in 0..MAX_REDIRECTS {
            let mut process = Script::start(self, request, &method, &target, stdin.try_clone()?)?;
            let head = process.read_head()?;
            match head.local_redirect() {
                // All paths lead to this script, so it runs again.
                Some(path) => {
                    target = path;
                    method = "GET".to_owned();
                }
                None => return Ok(process.into_response(head)),
            }
        }
        Err(io::Error::other("redirects in a circle"))
    }
}

/// The whole body as a file, so that a script may read it at any time and speed.
fn request_body(request: &mut Request<'_>) -> io::Result<File> {
    let folder = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    let (mut file, _) = anonymous_file::open(&folder)?;
    io::copy(request.body(), &mut file).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => gone("the request's body has ended early"),
        _ => error,
    })?;
    file.rewind()?;
    Ok(file)
}

/// A running script. Dropping it ends its process group.
struct Script {
    child: Child,
    stdout: ChildStdout,
    /// Readable when the script has exited. `None` on kernels without pidfds; then only its stdout tells.
    exit: Option<OwnedFd>,
    /// What was read beyond the head.
    remaining: Vec<u8>,
    /// When it wrote something last.
    heard_at: Instant,
    has_exited: bool,
    waits: Waits,
    guard: Option<GuardLine>,
}

/// Who waits for a script's answer.
struct Waits {
    connection: UnixStream,
    leaving: Arc<Leaving>,
    read_timeout: Option<Duration>,
    /// The method is safe, so nothing is lost if the script is ended.
    is_safe: bool,
    streams_events: bool,
    /// Nobody waits any more, and the script goes on.
    is_alone: bool,
}

impl Script {
    fn start(
        cgi: &Cgi,
        request: &Request<'_>,
        method: &str,
        target: &str,
        stdin: File,
    ) -> io::Result<Script> {
        let script = &cgi.script;
        let mut command = Command::new(script);
        for name in PROTOCOL_VARIABLES {
            command.env_remove(name);
        }
        command
            .envs(variables(cgi, request, method, target))
            .current_dir(script.parent().unwrap_or(Path::new("/")))
            .stdin(stdin)
            .stdout(Stdio::piped())
            .process_group(0);
        let mut child = process::spawn_script(command, cgi.guard.as_ref())?;
        let stdout = child.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
        Ok(Script {
            exit: process::exit_watch(child.id()),
            child,
            stdout,
            remaining: Vec::new(),
            heard_at: Instant::now(),
            has_exited: false,
            waits: Waits {
                connection: request.connection.try_clone()?,
                leaving: request.leaving.clone(),
                read_timeout: cgi.read_timeout,
                is_safe: request.is_safe(),
                streams_events: false,
                is_alone: false,
            },
            guard: cgi.guard.clone(),
        })
    }

    /// Reads up to the empty line. Lines may end with LF alone here.
    fn read_head(&mut self) -> io::Result<Head> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            if let Some((end, from)) = end_of_head(&bytes) {
                self.remaining = bytes.split_off(from);
                bytes.truncate(end);
                return Head::parse(&bytes);
            }
            if bytes.len() > MAX_HEAD_BYTES {
                return Err(io::Error::other("a head beyond 64 KiB"));
            }
            match self.read(&mut buffer)? {
                0 => {
                    return Err(io::Error::other(
                        "ended without a head (a line such as Content-Type, then an empty one)",
                    ));
                }
                count => bytes.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// Reads what the script writes; 0 at its end.
    ///
    /// # Errors
    /// Nobody waits for it any more, or a signal has ended it.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let linger = match self.has_exited {
                true => LINGER.saturating_sub(self.heard_at.elapsed()),
                false => Duration::MAX,
            };
            let [has_bytes, has_exited] =
                self.waits.poll(&self.stdout, self.exit.as_ref(), linger, self.heard_at)?;
            if has_bytes {
                let count = self.stdout.read(buffer)?;
                self.heard_at = Instant::now();
                return if count == 0 { self.ended().map(|()| 0) } else { Ok(count) };
            }
            if has_exited && self.exit.take().is_some() {
                self.has_exited = true;
                self.heard_at = Instant::now();
            } else if self.has_exited && self.heard_at.elapsed() >= LINGER {
                return self.ended().map(|()| 0);
            }
        }
    }

    /// Checks that no signal has ended the script. Its exit code says nothing: it is that of its last command.
    fn ended(&mut self) -> io::Result<()> {
        if let Some(exit) = &self.exit {
            let timeout = PollTimeout::try_from(LINGER).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(exit.as_fd(), PollFlags::POLLIN)], timeout);
        }
        // The process is not reaped, so its pid still names its group.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(self.pid()), flags) {
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                Err(io::Error::other(format!("the script was ended by {signal}")))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    fn into_response(mut self, head: Head) -> Response {
        let status = head.status.unwrap_or(if head.field("location").is_some() { 302 } else { 200 });
        let length = head.field("content-length").and_then(field::decimal);
        let mut response = Response::new(status);
        for (name, value) in head.fields {
            if !["status", "content-length"].iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
                response = response.with_header(name, value);
            }
        }
        self.waits.streams_events = response.streams_events();
        let write = move |out: &mut dyn Write| {
            out.write_all(&std::mem::take(&mut self.remaining))?;
            let mut buffer = [0; 64 * 1024];
            loop {
                match self.read(&mut buffer)? {
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

impl Waits {
    /// Waits until the script has said something, has exited, or `linger` is over.
    ///
    /// # Errors
    /// The script is to end: nobody waits for it, or it streams events and the worker leaves.
    fn poll(
        &mut self,
        stdout: &ChildStdout,
        exit: Option<&OwnedFd>,
        linger: Duration,
        heard_at: Instant,
    ) -> io::Result<[bool; 2]> {
        // One millisecond more, since poll rounds down.
        let linger = linger.saturating_add(Duration::from_millis(1));
        let timeout = PollTimeout::try_from(linger).unwrap_or(PollTimeout::NONE);
        let mut context = vec![PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        let mut ask = |fd, flags| {
            context.push(PollFd::new(fd, flags));
            context.len() - 1
        };
        let exit = exit.map(|exit| ask(exit.as_fd(), PollFlags::POLLIN));
        let client = (!self.is_alone).then(|| ask(self.connection.as_fd(), NOBODY_WAITS));
        let ends_with_worker = self.streams_events && self.is_safe;
        let leaving = ends_with_worker.then(|| ask(self.leaving.fd(), PollFlags::empty()));
        loop {
            match poll(&mut context, timeout) {
                Err(Errno::EINTR) => continue,
                result => result?,
            };
            break;
        }
        // `nix` has no name for POLLRDHUP, and answers None where it is set.
        let has_news = |at: Option<usize>| at.is_some_and(|at| context[at].any() != Some(false));
        // Checked first, since a script that never stops writing has to end too.
        if has_news(leaving) {
            return Err(gone("this worker leaves"));
        }
        if has_news(client) {
            let is_timed_out = self.read_timeout.is_some_and(|time| heard_at.elapsed() >= time);
            if self.is_safe || self.streams_events || is_timed_out {
                return Err(gone("nobody waits for the answer any more"));
            }
            // A request that may change something is not interrupted.
            self.is_alone = true;
        }
        Ok([has_news(Some(0)), has_news(exit)])
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // The process is not reaped yet, so the group is still its own. After a normal exit it is usually empty.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        if let Some(guard) = &self.guard {
            guard.forget();
        }
        let _ = self.child.wait();
    }
}
