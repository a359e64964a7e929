//! The spawner: a small process, forked from the server once, that starts workers on its word. A fork copies the page
//! tables of whoever forks, and waiting for an `exec` is waiting for a turn on the processor; the server does neither:
//! it sends a message and goes on.
//!
//! The worker becomes the server's own child (`CLONE_PARENT`), so its end is the server's to reap, and its death signal
//! is tied to the server. It says its pid itself before it becomes the program, so that the server has heard of it
//! before it can join.
//!
//! ```text
//!  server ──start──▶ spawner ──clone──▶ worker ──exec──▶ the app's program
//!     ▲────────────started, failed────────┘
//! ```

use super::{
    DescriptorLimit, Launch, clone_sibling, close_all_but, exit_copy, fork_spawner, receive_all, reset,
};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, send, sendmsg, socketpair,
};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, getpid, getppid, setpgid};
use std::collections::VecDeque;
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A start's message at most: words of a command and an `--env-file`. A Unix socket takes about as much at once.
const MAX_MESSAGE_BYTES: usize = 128 * 1024;
/// An answer: what it is, the start's number, a pid or an error.
const ANSWER_BYTES: usize = 13;

/// A start that is on its way.
#[derive(Debug)]
pub(crate) struct Begun {
    /// Names it in the answers.
    pub id: u64,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// What became of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A process is there. May be said twice.
    Started { id: u64, pid: Pid },
    /// The kernel refused to make one.
    Failed { id: u64, error: Errno },
    /// The process could not become the program, and ends.
    NotRun { id: u64, error: Errno },
    /// The spawner has died, and with it all starts that have no answer.
    SpawnerDied,
}

impl Answer {
    fn to_bytes(self) -> [u8; ANSWER_BYTES] {
        let (kind, id, number) = match self {
            Answer::Started { id, pid } => (b's', id, pid.as_raw()),
            Answer::Failed { id, error } => (b'f', id, error as i32),
            Answer::NotRun { id, error } => (b'n', id, error as i32),
            Answer::SpawnerDied => (b'd', 0, 0),
        };
        let mut bytes = [kind; ANSWER_BYTES];
        bytes[1..9].copy_from_slice(&id.to_le_bytes());
        bytes[9..].copy_from_slice(&number.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Answer> {
        let id = u64::from_le_bytes(bytes.get(1..9)?.try_into().ok()?);
        let number = i32::from_le_bytes(bytes.get(9..ANSWER_BYTES)?.try_into().ok()?);
        match bytes.first()? {
            b's' => Some(Answer::Started { id, pid: Pid::from_raw(number) }),
            b'f' => Some(Answer::Failed { id, error: Errno::from_raw(number) }),
            b'n' => Some(Answer::NotRun { id, error: Errno::from_raw(number) }),
            _ => None,
        }
    }
}

/// The server's side.
#[derive(Debug)]
pub(crate) struct Spawner {
    limit: DescriptorLimit,
    process: Option<(Pid, OwnedFd)>,
    /// Starts that the socket has no room for.
    waiting: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    last_id: u64,
}

impl Spawner {
    pub(crate) fn new(limit: DescriptorLimit) -> Self {
        Spawner { limit, process: None, waiting: VecDeque::new(), last_id: 0 }
    }

    /// Makes sure that the spawner runs. Its socket, if it is a new one: answers come there.
    ///
    /// # Errors
    /// The kernel's refusal to fork.
    pub(crate) fn ensure(&mut self) -> io::Result<Option<RawFd>> {
        if self.process.is_some() {
            return Ok(None);
        }
        let flags = SockFlag::SOCK_CLOEXEC;
        let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        let server = getpid();
        match fork_spawner()? {
            ForkResult::Child => {
                let _ = run(&far, server, self.limit);
                exit_copy(0)
            }
            ForkResult::Parent { child } => {
                let fd = near.as_raw_fd();
                self.process = Some((child, near));
                Ok(Some(fd))
            }
        }
    }

    /// Has a child started in a process group of its own (so that Ctrl-C reaches only the server), with an empty
    /// signal mask, the old descriptor bound, and its end tied to the server's. `input`: its standard input, else a
    /// closed pipe. [`Spawner::ensure`] goes before it.
    ///
    /// # Errors
    /// A lack of descriptors, or words that no program can be given.
    pub(crate) fn start(&mut self, launch: &Launch, input: Option<OwnedFd>) -> io::Result<Begun> {
        self.last_id += 1;
        let id = self.last_id;
        let message = write(launch, id)?;
        let (stdout, child_stdout) = io::pipe()?;
        let (stderr, child_stderr) = io::pipe()?;
        let outputs = [child_stdout.into(), child_stderr.into()];
        self.waiting.push_back((message, outputs.into_iter().chain(input).collect()));
        self.send_waiting();
        Ok(Begun { id, stdout: stdout.into(), stderr: stderr.into() })
    }

    fn send_waiting(&mut self) {
        let Some((_, socket)) = &self.process else { return };
        while let Some((message, pipes)) = self.waiting.front() {
            let fds: Vec<RawFd> = pipes.iter().map(AsRawFd::as_raw_fd).collect();
            let words = [IoSlice::new(message)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(socket.as_raw_fd(), &words, &[ControlMessage::ScmRights(&fds)], flags, None) {
                Err(Errno::EINTR) => {}
                // There will be room when those before it are answered; of its death its answers tell.
                Err(Errno::EAGAIN | Errno::EPIPE | Errno::ECONNRESET) => return,
                Ok(_) | Err(_) => drop(self.waiting.pop_front()),
            }
        }
    }

    /// The next answer that has come.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        let (_, socket) = self.process.as_ref()?;
        let mut bytes = [0; ANSWER_BYTES];
        loop {
            match recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                // A reset is told once, and before what was said: it had not read all that was asked of it.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(Errno::EAGAIN) => {
                    self.send_waiting();
                    return None;
                }
                Ok(ANSWER_BYTES) => return Answer::parse(&bytes),
                Ok(_) | Err(_) => {
                    self.process = None;
                    self.waiting.clear();
                    return Some(Answer::SpawnerDied);
                }
            }
        }
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        if let Some((pid, _)) = self.process.take() {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

/// The message: number, death signal, how many words of each kind, then the words, each ended by a zero byte.
fn write(launch: &Launch, id: u64) -> io::Result<Vec<u8>> {
    let mut out = id.to_le_bytes().to_vec();
    out.extend_from_slice(&(launch.death_signal as i32).to_le_bytes());
    for count in [launch.arguments.len(), launch.environment.len(), launch.removed.len()] {
        out.extend_from_slice(&(count as u32).to_le_bytes());
    }
    let mut push = |argument: &[u8]| {
        out.extend_from_slice(argument);
        out.push(0);
        if argument.contains(&0) { Err(io::Error::other("a word has a zero byte in it")) } else { Ok(()) }
    };
    push(launch.program.as_os_str().as_bytes())?;
    push(launch.dir.as_os_str().as_bytes())?;
    for argument in &launch.arguments {
        push(argument.as_bytes())?;
    }
    for (name, value) in &launch.environment {
        push(&[name.as_bytes(), b"=", value.as_bytes()].concat())?;
    }
    for name in &launch.removed {
        push(name.as_bytes())?;
    }
    if out.len() > MAX_MESSAGE_BYTES {
        let most = MAX_MESSAGE_BYTES;
        return Err(io::Error::other(format!("its words and variables take more than {most} bytes")));
    }
    Ok(out)
}

/// What is to be run, as the spawner reads it.
struct Order {
    id: u64,
    death_signal: Signal,
    /// The program is the first one.
    arguments: Vec<CString>,
    dir: CString,
    environment: Vec<CString>,
}

fn read(bytes: &[u8], inherited: &[(OsString, OsString)]) -> Option<Order> {
    let id = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let number = |at: usize| Some(i32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let death_signal = Signal::try_from(number(8)?).ok()?;
    let count = |at: usize| usize::try_from(number(at)?).ok();
    let (arguments, set, removed) = (count(12)?, count(16)?, count(20)?);
    let mut words = bytes.get(24..)?.split(|&byte| byte == 0);
    let program = CString::new(words.next()?).ok()?;
    let dir = CString::new(words.next()?).ok()?;
    let mut take = |count: usize| -> Option<Vec<CString>> {
        (0..count).map(|_| CString::new(words.next()?).ok()).collect()
    };
    let arguments = [vec![program], take(arguments)?].concat();
    let (set, removed) = (take(set)?, take(removed)?);
    let name_of =
        |argument: &CString| argument.as_bytes().split(|&byte| byte == b'=').next().map(<[u8]>::to_vec);
    let replaced: Vec<Vec<u8>> = set.iter().chain(&removed).filter_map(name_of).collect();
    let kept = inherited.iter().filter(|(name, _)| !replaced.iter().any(|other| other == name.as_bytes()));
    let kept = kept
        .filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok());
    let environment = kept.chain(set.iter().cloned()).collect();
    Some(Order { id, death_signal, arguments, dir, environment })
}

/// The spawner's life: until the server closes its side, or dies.
fn run(socket: &OwnedFd, server: Pid, limit: DescriptorLimit) -> nix::Result<()> {
    // Ctrl-C is for the server; whoever signals the group of a unit leaves this one alone.
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != server {
        return Err(Errno::ESRCH);
    }
    let _ = prctl::set_name(c"rip-spawner");
    // Not /dev/null, which an empty root lacks: a pipe that nobody writes to. Workers get it as their input.
    let (input, _) = io::pipe().map_err(|_| Errno::EMFILE)?;
    dup2_stdin(&input)?;
    dup2_stdout(&input)?;
    dup2_stderr(&input)?;
    close_all_but(socket.as_raw_fd());
    let inherited: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    let mut message = vec![0; MAX_MESSAGE_BYTES];
    loop {
        let (length, pipes) = match receive_all(socket.as_fd(), &mut message, MsgFlags::empty()) {
            Ok(received) => received,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error),
        };
        if length == 0 {
            return Ok(());
        }
        let Some(order) = read(&message[..length], &inherited) else { continue };
        match clone_sibling() {
            Ok(None) => {
                let error = become_program(socket.as_fd(), &order, &pipes, server, limit);
                tell(socket.as_fd(), Answer::NotRun { id: order.id, error });
                exit_copy(127)
            }
            // Said by the child as well, and before it runs; but it may not have come so far.
            Ok(Some(pid)) => tell(socket.as_fd(), Answer::Started { id: order.id, pid }),
            Err(error) => tell(socket.as_fd(), Answer::Failed { id: order.id, error }),
        }
    }
}

fn tell(socket: BorrowedFd<'_>, answer: Answer) {
    while send(socket.as_raw_fd(), &answer.to_bytes(), MsgFlags::MSG_NOSIGNAL) == Err(Errno::EINTR) {}
}

/// Turns the new process into the program; comes back only if that fails.
fn become_program(
    socket: BorrowedFd<'_>,
    order: &Order,
    pipes: &[OwnedFd],
    server: Pid,
    limit: DescriptorLimit,
) -> Errno {
    let prepare = || -> nix::Result<()> {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        prctl::set_pdeathsig(order.death_signal)?;
        // The server may have died before the line above took effect.
        if getppid() != server {
            return Err(Errno::ESRCH);
        }
        tell(socket, Answer::Started { id: order.id, pid: getpid() });
        let [stdout, stderr, input @ ..] = pipes else { return Err(Errno::EBADF) };
        if let [input] = input {
            dup2_stdin(input)?;
        }
        dup2_stdout(stdout)?;
        dup2_stderr(stderr)?;
        nix::unistd::chdir(Path::new(OsStr::from_bytes(order.dir.as_bytes())))?;
        setrlimit(Resource::RLIMIT_NOFILE, limit.soft, limit.hard)?;
        // The one signal that Rust's own start has ignored.
        reset(Signal::SIGPIPE)?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
    };
    match prepare() {
        // A script without a first line that names its interpreter is run by the shell.
        Ok(()) => match nix::unistd::execvpe(&order.arguments[0], &order.arguments, &order.environment) {
            Err(error) => error,
            Ok(never) => match never {},
        },
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn an_order_arrives_as_it_was_given() {
        let launch = Launch {
            program: "/bin/app".into(),
            arguments: vec!["-x".into(), "".into(), OsString::from_vec(vec![0xff, 0xfe])],
            environment: vec![("A".into(), "1=2".into()), ("B".into(), "".into())],
            removed: vec!["PORT"],
            dir: "/srv".into(),
            death_signal: Signal::SIGTERM,
        };
        let inherited = [("A", "old"), ("PORT", "80"), ("HOME", "/root")];
        let inherited = inherited.map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let bytes = write(&launch, 7).expect("it fits");
        let order = read(&bytes, &inherited).expect("it can be read");
        let text =
            |words: &[CString]| words.iter().map(|argument| argument.to_bytes().to_vec()).collect::<Vec<_>>();
        assert_eq!((order.id, order.death_signal), (7, Signal::SIGTERM));
        assert_eq!(text(&order.arguments), [&b"/bin/app"[..], b"-x", b"", &[0xff, 0xfe]]);
        assert_eq!(text(&order.environment), [&b"HOME=/root"[..], b"A=1=2", b"B="]);
        assert_eq!(order.dir.as_bytes(), b"/srv");
        for cut in 0..bytes.len() {
            let _ = read(&bytes[..cut], &inherited);
        }
    }

    #[test]
    fn what_no_program_can_be_given_is_refused() {
        let launch = |argument: &str| Launch {
            program: "/bin/app".into(),
            arguments: vec![argument.into()],
            environment: Vec::new(),
            removed: Vec::new(),
            dir: "/".into(),
            death_signal: Signal::SIGKILL,
        };
        assert!(write(&launch("a\0b"), 1).is_err());
        assert!(write(&launch(&"x".repeat(MAX_MESSAGE_BYTES)), 1).is_err());
    }

    #[test]
    fn answers_survive_the_way() {
        for answer in [
            Answer::Started { id: 1 << 40, pid: Pid::from_raw(42) },
            Answer::Failed { id: 2, error: Errno::EAGAIN },
            Answer::NotRun { id: 3, error: Errno::ENOENT },
        ] {
            assert_eq!(Answer::parse(&answer.to_bytes()), Some(answer));
        }
        assert_eq!(Answer::parse(b"s"), None);
    }
}
