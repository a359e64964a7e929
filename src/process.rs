//! Processes: starting (by the [`spawner`]), signalling, reaping. The only file with `unsafe`: forks, what a signal
//! does, and system calls that no library wraps.

#[forbid(unsafe_code)]
mod guard;
#[forbid(unsafe_code)]
mod line;
#[forbid(unsafe_code)]
mod spawner;
#[cfg(test)]
mod tests;
#[forbid(unsafe_code)]
mod usage;

pub(crate) use guard::{GuardLine, guard, start_guard};
pub(crate) use line::{Line, Said};
pub(crate) use spawner::{Answer, Begun, Spawner};
pub(crate) use usage::{
    max_descriptors, open_descriptors, own_cpu, proportional_bytes, resident_bytes, tells_memory,
};

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, kill, killpg, sigaction, signal, sigprocmask,
};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdout, fork, getpid, getppid, setpgid};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};

/// What is to be started.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "internals"), allow(unreachable_pub))]
pub struct Launch {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub environment: Vec<(String, OsString)>,
    /// Variables of the server's environment that the child does not get.
    pub removed: Vec<&'static str>,
    pub dir: PathBuf,
    /// Sent by the kernel when the server dies, whatever it dies of.
    pub death_signal: Signal,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(Signal),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => f.write_str(signal.as_str()),
        }
    }
}

/// The soft and hard bound of descriptors, as they were at the start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DescriptorLimit {
    pub soft: u64,
    pub hard: u64,
}

/// Raises the soft bound of descriptors to the hard one; children get the old one back.
pub(crate) fn raise_descriptor_limit() -> DescriptorLimit {
    let limit = descriptor_limit();
    // A refusal leaves things as they are, and EMFILE is handled where it occurs.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, limit.hard, limit.hard);
    limit
}

pub(crate) fn descriptor_limit() -> DescriptorLimit {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    DescriptorLimit { soft, hard }
}

impl DescriptorLimit {
    /// How many descriptors this process may have now.
    pub(crate) fn raised(self) -> u64 {
        self.hard
    }
}

/// Asks the kernel for somewhat shorter turns on the processor than others take (EEVDF's slice, Linux 6.12 and
/// later; `sched_setattr(2)`): among those that are due, whoever wants less at a time goes first. So workers that
/// compute keep the front end waiting for less: beside six requests that compute on 2 cores the p99 of a quick one falls
/// from 3.9 to 3.3 ms. Children start with the usual turns. A refusal, or an older kernel, leaves things as
/// they are; so do another policy and a better niceness that somebody has chosen, which children would lose.
pub(crate) fn ask_for_shorter_turns() {
    let mut ticks = std::mem::MaybeUninit::<libc::sched_attr>::zeroed();
    let bytes = size_of::<libc::sched_attr>();
    // SAFETY: the kernel writes at most `bytes` bytes, all of which are ours; plain integers have no invalid values.
    let (result, mut ticks) = unsafe {
        (libc::syscall(libc::SYS_sched_getattr, 0, ticks.as_mut_ptr(), bytes, 0), ticks.assume_init())
    };
    if result != 0
        || ticks.sched_policy != libc::SCHED_OTHER as u32
        || ticks.sched_nice < 0
        || ticks.sched_runtime == 0
    {
        return;
    }
    ticks.sched_runtime -= ticks.sched_runtime / 4;
    ticks.sched_flags |= libc::SCHED_FLAG_RESET_ON_FORK as u64;
    // SAFETY: the kernel only reads `turns`, which tells its own size.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const ticks, 0) };
}

/// Binds a socket to an interface by its number (`SO_BINDTOIFINDEX`, Linux 5.0 and later; since 5.7 without privilege).
///
/// # Errors
/// The kernel's refusal.
pub(crate) fn bind_to_interface(socket: BorrowedFd<'_>, index: i32) -> io::Result<()> {
    let bytes = size_of_val(&index) as libc::socklen_t;
    let value = (&raw const index).cast();
    // SAFETY: the kernel reads `bytes` bytes of a number that lives longer than the call.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, value, bytes)
    };
    Ok(Errno::result(result).map(drop)?)
}

/// Takes a descriptor that this process was started with; no exec passes it on.
///
/// # Errors
/// There is none of that number. Nobody else may have it: it is asked for before anything is opened.
pub(crate) fn inherited_descriptor(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: sets a descriptor's flag; one that is not open is refused.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and no other value of this program stands for it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One message of a socket, and the descriptor that came with it. Nothing: the other end is closed.
pub(crate) fn receive(socket: BorrowedFd<'_>, message: &mut [u8]) -> nix::Result<(usize, Option<OwnedFd>)> {
    let (bytes, mut descriptors) = receive_all(socket, message, MsgFlags::MSG_DONTWAIT)?;
    Ok((bytes, descriptors.pop()))
}

/// One message, and the descriptors that came with it, three at most.
fn receive_all(
    socket: BorrowedFd<'_>,
    message: &mut [u8],
    flags: MsgFlags,
) -> nix::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 3]);
    let mut words = [io::IoSliceMut::new(message)];
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut words, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just made them for this process.
            descriptors.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((received.bytes, descriptors))
}

/// A fork whose child does nothing but [`spawner`]'s work, and never returns. That it allocates is fine: libc's own fork
/// leaves the allocator in order, whatever other threads did.
fn fork_spawner() -> nix::Result<ForkResult> {
    // SAFETY: the child calls nothing of the server's.
    unsafe { fork() }
}

/// A fork whose child is this process's sibling: the server's child. `None`: this is the child.
fn clone_sibling() -> nix::Result<Option<Pid>> {
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    let none: libc::c_long = 0;
    // SAFETY: a plain fork of a process with one thread: no memory is shared, and the stack is a copy of this one.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    match Errno::result(pid)? {
        0 => Ok(None),
        pid => Ok(Some(Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?))),
    }
}

/// Ends this process, which is a copy of another one, without what that has to do at its end.
fn exit_copy(code: i32) -> ! {
    // SAFETY: nothing is read or written any more.
    unsafe { libc::_exit(code) }
}

/// Closes what a fork has brought along: listening sockets, clients, everything.
fn close_all_but(kept: RawFd) {
    let ranges = [(3, kept - 1), (kept + 1, RawFd::MAX)];
    for (from, to) in ranges.into_iter().filter(|(from, to)| from <= to) {
        // SAFETY: whoever owned them does not live in this process.
        let result = unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        if result != 0 {
            // Before Linux 5.9.
            let (most, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
            for fd in from..=to.min(RawFd::try_from(most).unwrap_or(RawFd::MAX)) {
                // SAFETY: as above.
                unsafe { libc::close(fd) };
            }
        }
    }
}

/// Starts the server that is to follow this one: the program at this one's own path, which may be a new one, with the same
/// words. It inherits `line`, by the variable of that name, and what this one was started with; nothing ends it when
/// this one ends. `environment`: what it is told beside that, `None` for nothing.
///
/// # Errors
/// The kernel's refusal to fork or to run the program.
pub(crate) fn start_successor(
    line: BorrowedFd<'_>,
    variable: &str,
    environment: &[(&str, Option<&str>)],
    limit: DescriptorLimit,
) -> io::Result<Pid> {
    let program = own_path();
    let mut command = Command::new(&program);
    command.arg0(&program).args(std::env::args_os().skip(1));
    command.env(variable, line.as_raw_fd().to_string());
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let line = line.as_raw_fd();
    let before_exec = move || {
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        setrlimit(Resource::RLIMIT_NOFILE, limit.soft, limit.hard)?;
        // SAFETY: clears the flag that would have exec close it.
        Errno::result(unsafe { libc::fcntl(line, libc::F_SETFD, 0) })?;
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; `before_exec` makes three system calls and
    // allocates nothing.
    unsafe { command.pre_exec(before_exec) };
    let child = command.spawn()?;
    Ok(Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?))
}

/// Does work in a child, which ends with the code that comes of it: in a process group of its own, with what it says
/// going to `output`, without these variables, and with a SIGTERM when this process dies. Only for a process with one
/// thread.
///
/// # Errors
/// The kernel's refusal to fork.
pub(crate) fn fork_work(output: OwnedFd, removed: &[&str], work: impl FnOnce() -> u8) -> io::Result<Pid> {
    let parent = getpid();
    let prepare = || -> nix::Result<()> {
        prctl::set_pdeathsig(Signal::SIGTERM)?;
        if getppid() != parent {
            return Err(Errno::ESRCH);
        }
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        dup2_stdout(&output)?;
        dup2_stderr(&output)?;
        for name in removed {
            // SAFETY: no other thread reads or sets a variable, since there is none.
            unsafe { std::env::remove_var(name) };
        }
        Ok(())
    };
    // SAFETY: with one thread, the child has everything in the order in which the parent has it.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = prepare().map_or(1, |()| work());
            std::process::exit(i32::from(code))
        }
    }
}

/// SIGKILL to one process: a child that is not yet reaped.
pub(crate) fn kill_one(pid: Pid) {
    let _ = kill(pid, Signal::SIGKILL);
}

/// SIGHUP to one process: a child that is not yet reaped.
pub(crate) fn hang_up(pid: Pid) {
    let _ = kill(pid, Signal::SIGHUP);
}

/// Whether this process ignores a signal.
pub(crate) fn is_ignored(signal: Signal) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: nothing is set, and the kernel fills `action`, which is ours; all zeroes are a valid one.
    let (result, action) = unsafe {
        let result = libc::sigaction(signal as i32, std::ptr::null(), action.as_mut_ptr());
        (result, action.assume_init())
    };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Children's ends are told, even if whoever started this process did not want to hear of its own.
pub(crate) fn watch_children() {
    let _ = reset(Signal::SIGCHLD);
}

/// A signal does again what it does by default.
fn reset(number: Signal) -> nix::Result<()> {
    // SAFETY: no handler is installed.
    unsafe { signal(number, SigHandler::SigDfl) }.map(drop)
}

/// Orphans below this process become its children, wherever they come from: so it sees what a worker leaves behind.
/// `false`: this kernel cannot.
pub(crate) fn adopt_orphans() -> bool {
    prctl::set_child_subreaper(true).is_ok()
}

/// How a child has ended, if it has. It is not reaped: until [`release`] neither its pid nor its group's number can be
/// anybody else's.
pub(crate) fn exit_of(pid: Pid) -> Option<Exit> {
    peek(Id::Pid(pid)).map(|(_, exit)| exit)
}

/// Some child that has ended. It is not reaped.
pub(crate) fn any_exit() -> Option<(Pid, Exit)> {
    peek(Id::All)
}

fn peek(id: Id<'_>) -> Option<(Pid, Exit)> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(id, flags) {
        Ok(WaitStatus::Exited(pid, code)) => Some((pid, Exit::Code(code))),
        Ok(WaitStatus::Signaled(pid, signal, _)) => Some((pid, Exit::Signal(signal))),
        Ok(_) | Err(_) => None,
    }
}

/// Whether a child of ours, orphans that were adopted included, lives in the group. One that has ended is none that
/// this looks for, so the group's leader may be a zombie.
pub(crate) fn group_lives(group: Pid) -> bool {
    let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::PGid(group), flags).is_ok()
}

/// Reaps a child that has ended.
pub(crate) fn release(pid: Pid) {
    let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
}

/// Waits for the end of a child.
pub(crate) fn wait_for(pid: Pid) {
    let _ = waitpid(pid, None);
}

/// SIGTERM to a process group whose leader is a child that is not yet reaped.
pub(crate) fn terminate_group(group: Pid) {
    let _ = killpg(group, Signal::SIGTERM);
}

/// SIGTERM to one process. `pid` is a child that is not yet reaped, so it cannot be somebody else's by now.
pub(crate) fn terminate(pid: Pid) {
    // A child that has ended by itself meanwhile needs no signal.
    let _ = kill(pid, Signal::SIGTERM);
}

/// SIGKILL to a child and everything in its process group.
pub(crate) fn kill_group(pid: Pid) {
    let _ = killpg(pid, Signal::SIGKILL);
    let _ = kill(pid, Signal::SIGKILL);
}

/// Whether a process is on its way out, reaped or not, as only `/proc` tells. A dying process closes its connections
/// before its listener, so a connect that succeeds proves nothing; and one that was killed runs on until the kernel finds
/// the time to end it.
pub(crate) fn is_ending(pid: Pid) -> Option<bool> {
    /// The kernel's PF_EXITING.
    const EXITING: u64 = 0x4;
    const KILLED: u64 = 1 << (libc::SIGKILL - 1);
    let Some(Stat { has_ended, flags, pending_signals }) = stat(pid) else {
        // Its parent may have taken it in. Else `/proc` tells nothing of it, or no descriptor is left to read that.
        return (kill(pid, None) == Err(Errno::ESRCH)).then_some(true);
    };
    Some(has_ended || flags & EXITING != 0 || pending_signals & KILLED != 0)
}

/// Whether there is a process of that pid that has not ended; one that is not reaped has.
pub(crate) fn lives(pid: Pid) -> bool {
    stat(pid).map_or_else(|| kill(pid, None).is_ok(), |stat| !stat.has_ended)
}

/// A process as `/proc` tells of it.
struct Stat {
    has_ended: bool,
    flags: u64,
    pending_signals: u64,
}

fn stat(pid: Pid) -> Option<Stat> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so what follows is counted from its end.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    // The 9th and the 31st of all fields (proc_pid_stat(5)).
    let (flags, pending_signals) = (fields.nth(5)?.parse().ok()?, fields.nth(21)?.parse().ok()?);
    Some(Stat { has_ended: matches!(state, "Z" | "X"), flags, pending_signals })
}

/// The path by which this program was started, made absolute at once, so that after a deploy it is the new binary.
/// The kernel's link to its own file only if that is gone.
pub(crate) fn own_path() -> PathBuf {
    let first = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let by_argument = if first.components().count() > 1 {
        Some(crate::paths::absolute(&first))
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|dir| dir.join(&first)).find(|file| file.is_file())
    };
    match by_argument {
        Some(path) if path.is_file() => path,
        Some(path) => std::env::current_exe().unwrap_or(path),
        None => std::env::current_exe().unwrap_or(first),
    }
}

/// Starts a CGI script: an empty signal mask, none of the worker's descriptors but the standard three, and its end tied
/// to the worker's thread that waits for it.
///
/// # Errors
/// The kernel's refusal to fork or to run the program.
pub(crate) fn spawn_script(
    mut command: Command,
    guard: Option<&GuardLine>,
) -> io::Result<std::process::Child> {
    let worker = getpid();
    let (for_failure, guard) = (guard, guard.cloned());
    let before_exec = move || {
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The worker may have died before the line above took effect.
        if getppid() != worker {
            return Err(Errno::ESRCH.into());
        }
        if let Some(GuardLine(line)) = &guard {
            // A guard that has gone guards nothing.
            let _ = nix::unistd::write(&**line, &getpid().as_raw().to_ne_bytes());
        }
        // SAFETY: sets a flag on descriptors, and closes none. An older kernel refuses, and then it is as std left it:
        // all of ours are closed by exec.
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; `before_exec` makes six system calls and
    // allocates nothing.
    unsafe { command.pre_exec(before_exec) };
    command.spawn().inspect_err(|_| {
        if let Some(guard) = for_failure {
            guard.forget();
        }
    })
}

/// A descriptor that is readable when that child has ended (Linux 5.3 and later).
pub(crate) fn exit_watch(pid: u32) -> Option<OwnedFd> {
    // SAFETY: takes two numbers, and gives a new descriptor that nobody else has.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        i32::try_from(fd).ok().filter(|&fd| fd >= 0).map(|fd| std::os::fd::FromRawFd::from_raw_fd(fd))
    }
}

/// Where SIGTERM is written to, once somebody has asked for it.
static TERMINATION: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_sigterm(_: libc::c_int) {
    let errno = Errno::last_raw();
    // SAFETY: `write` may be called in a signal's handler, and the byte lives for ever.
    unsafe { libc::write(TERMINATION.load(Ordering::Relaxed), c"!".as_ptr().cast(), 1) };
    Errno::set_raw(errno);
}

extern "C" fn on_sigint(_: libc::c_int) {}

/// For a worker: a pipe that is readable after a SIGTERM; SIGINT is the server's business. By handlers, and not by a
/// mask: what a request's handler starts would inherit that, and could be ended by neither.
///
/// # Errors
/// There are no descriptors left.
pub(crate) fn watch_termination() -> io::Result<io::PipeReader> {
    let (reader, writer) = io::pipe()?;
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    TERMINATION.store(std::os::fd::IntoRawFd::into_raw_fd(writer), Ordering::Relaxed);
    for (signal, handler) in [(Signal::SIGTERM, on_sigterm as extern "C" fn(_)), (Signal::SIGINT, on_sigint)]
    {
        let action = SigAction::new(SigHandler::Handler(handler), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: both handlers call nothing but what a signal's handler may.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(reader)
}
