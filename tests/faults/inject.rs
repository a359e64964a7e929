//! A library that is loaded before the server (`LD_PRELOAD`) and has calls of libc fail as a plan says: the kernel's
//! bad days, on the real binary. It is at work in the server's own process alone: it takes itself out of the
//! environment before `main`, and out of each child at its fork.
//!
//! This is the one file of the tests with `unsafe`: it stands between a program and its libc.
//!
//! A fault is as the kernel would have it. After an injected EAGAIN or a short count the descriptor is armed anew, so
//! that epoll tells of it again, as it would of bytes that came late. After a reset or a broken pipe the connection
//! is shut down, so that both sides see its end.

#[path = "inject/plan.rs"]
mod plan;

use nix::libc::{self, c_char, c_int, c_uint, c_void, iovec, off_t, size_t, ssize_t};
use plan::{Call, PAGE_WORDS, Rule, ServerId, What};
use std::mem::{transmute, zeroed};
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64};

struct Plan {
    rules: Vec<Rule>,
    seed: u64,
    page: &'static [AtomicU64],
}

static PLAN: OnceLock<Plan> = OnceLock::new();
/// Set in a child: from its fork on it is left alone.
static IS_CHILD: AtomicBool = AtomicBool::new(false);

/// Descriptors above it are left alone.
const MAX_DESCRIPTORS: usize = 4096;
/// What each descriptor is, as far as it has been asked: 0, or a [`Place`]'s number and 1.
static PLACES: [AtomicU8; MAX_DESCRIPTORS] = [const { AtomicU8::new(0) }; MAX_DESCRIPTORS];
/// How each is watched: epoll's descriptor and the events, and the token. 0: not at all.
static WATCHED: [AtomicU64; MAX_DESCRIPTORS] = [const { AtomicU64::new(0) }; MAX_DESCRIPTORS];
static TOKENS: [AtomicU64; MAX_DESCRIPTORS] = [const { AtomicU64::new(0) }; MAX_DESCRIPTORS];

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

/// Before `main`.
extern "C" fn start() {
    let is_server = std::fs::read_link("/proc/self/exe").is_ok_and(|path| path.ends_with("rip-server"));
    let (Ok(text), Ok(page)) = (std::env::var("RIP_FAULTS"), std::env::var("RIP_FAULTS_PAGE")) else {
        return;
    };
    if !is_server {
        // A shell, say, that is to start the server.
        return;
    }
    for name in [c"LD_PRELOAD", c"RIP_FAULTS", c"RIP_FAULTS_PAGE"] {
        // SAFETY: there is one thread so far.
        unsafe { libc::unsetenv(name.as_ptr()) };
    }
    let (rules, seed) = plan::parse(&text).unwrap_or_else(|phrase| fail(&format!("no rule: {phrase}")));
    let page = map(&page).unwrap_or_else(|error| fail(&format!("{page}: {error}")));
    page[PAGE_WORDS - 1].store(1, Relaxed);
    let _ = PLAN.set(Plan { rules, seed, page });
}

fn fail(why: &str) -> ! {
    eprintln!("fault injector: {why}");
    std::process::abort()
}

fn map(path: &str) -> std::io::Result<&'static [AtomicU64]> {
    use std::os::fd::AsRawFd;
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, of a file that the test has made as long as this and that nobody unmaps.
    unsafe {
        let place =
            libc::mmap(std::ptr::null_mut(), plan::PAGE_BYTES, access, libc::MAP_SHARED, file.as_raw_fd(), 0);
        if place == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(std::slice::from_raw_parts(place.cast(), PAGE_WORDS))
    }
}

/// What happens to this call, if something does, with a random number.
fn strike(call: Call, place: impl Fn() -> ServerId) -> Option<(What, u64)> {
    let plan = PLAN.get()?;
    if IS_CHILD.load(Relaxed) {
        return None;
    }
    plan.rules.iter().enumerate().filter(|(_, rule)| rule.call == call).find_map(|(index, rule)| {
        let words = &plan.page[index * plan::WORDS..];
        if words[plan::IS_ON].load(Relaxed) == 0 || !rule.is_for(call, place()) {
            return None;
        }
        let nth = words[plan::SEEN].fetch_add(1, Relaxed) + 1;
        let lot = plan::lot(plan.seed, index, nth);
        rule.strikes(nth, lot).then(|| {
            words[plan::HITS].fetch_add(1, Relaxed);
            (rule.what, lot / 997)
        })
    })
}

fn set_errno(code: i32) {
    // SAFETY: libc's own errno of this thread.
    unsafe { *libc::__errno_location() = code };
}

/// The function that this one stands before.
macro_rules! next {
    ($name:literal, fn($($kind:ty),*) -> $result:ty) => {{
        static FOUND: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
        let mut found = FOUND.load(Relaxed);
        if found.is_null() {
            // SAFETY: a name with its NUL.
            found = unsafe { libc::dlsym(libc::RTLD_NEXT, $name.as_ptr()) };
            FOUND.store(found, Relaxed);
        }
        // SAFETY: libc's function of that name has this type.
        unsafe { transmute::<*mut c_void, unsafe extern "C" fn($($kind),*) -> $result>(found) }
    }};
}

fn slot(fd: c_int) -> Option<usize> {
    usize::try_from(fd).ok().filter(|fd| *fd < MAX_DESCRIPTORS)
}

/// What a descriptor is; asked once.
fn place_of(fd: c_int) -> ServerId {
    const ALL: [ServerId; 9] = [
        ServerId::Any,
        ServerId::Client,
        ServerId::Control,
        ServerId::Worker,
        ServerId::Spool,
        ServerId::Stdout,
        ServerId::Stderr,
        ServerId::Pipe,
        ServerId::Kernel,
    ];
    let Some(slot) = slot(fd) else { return ServerId::Other };
    let known = PLACES[slot].load(Relaxed);
    if known > 0 {
        return ALL.get(usize::from(known) - 1).copied().unwrap_or(ServerId::Other);
    }
    // SAFETY: errno is libc's own.
    let errno = unsafe { *libc::__errno_location() };
    let place = classify(fd);
    set_errno(errno);
    let number = ALL.iter().position(|other| *other == place).unwrap_or(ALL.len());
    PLACES[slot].store(number as u8 + 1, Relaxed);
    place
}

fn classify(fd: c_int) -> ServerId {
    let Some(stat) = status(fd) else { return ServerId::Other };
    let is_same = |other: c_int| {
        status(other).is_some_and(|other| (other.st_dev, other.st_ino) == (stat.st_dev, stat.st_ino))
    };
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFSOCK => classify_socket(fd),
        _ if is_same(1) => ServerId::Stdout,
        _ if is_same(2) => ServerId::Stderr,
        libc::S_IFREG if stat.st_nlink == 0 => ServerId::Spool,
        libc::S_IFIFO => ServerId::Pipe,
        0 => ServerId::Kernel,
        _ => ServerId::Other,
    }
}

fn status(fd: c_int) -> Option<libc::stat> {
    // SAFETY: a plain structure that the kernel fills.
    unsafe {
        let mut stat = zeroed();
        (libc::fstat(fd, &mut stat) == 0).then_some(stat)
    }
}

fn classify_socket(fd: c_int) -> ServerId {
    type Ask = unsafe extern "C" fn(c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> c_int;
    let name = |ask: Ask| {
        // SAFETY: a plain structure that the kernel fills, as long as it is said to be.
        unsafe {
            let mut address: libc::sockaddr_un = zeroed();
            let mut length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
            (ask(fd, (&raw mut address).cast(), &mut length) == 0).then_some((address, length as usize))
        }
    };
    match name(libc::getsockname) {
        Some((address, _)) if i32::from(address.sun_family) != libc::AF_UNIX => ServerId::Client,
        Some((address, length)) if length > 2 => match path_place(&address) {
            ServerId::Worker => ServerId::Client,
            place => place,
        },
        Some(_) => match name(libc::getpeername) {
            Some((address, length)) if length > 2 => path_place(&address),
            _ => ServerId::Other,
        },
        None => ServerId::Other,
    }
}

/// One of the control sockets, or a worker's.
fn path_place(address: &libc::sockaddr_un) -> ServerId {
    let path: Vec<u8> =
        address.sun_path.iter().map(|byte| *byte as u8).take_while(|byte| *byte > 0).collect();
    let is_control = path.ends_with(b".ctl.sock") || path.ends_with(b".ctl");
    if is_control { ServerId::Control } else { ServerId::Worker }
}

/// Has epoll tell of a descriptor again, if there is something to tell.
fn arm_anew(fd: c_int) {
    let Some(slot) = slot(fd) else { return };
    let watched = WATCHED[slot].load(Relaxed);
    if watched != 0 {
        let mut event = libc::epoll_event { events: watched as u32, u64: TOKENS[slot].load(Relaxed) };
        let next = next!(c"epoll_ctl", fn(c_int, c_int, c_int, *mut libc::epoll_event) -> c_int);
        // SAFETY: an event that the program itself has registered before.
        unsafe { next((watched >> 32) as c_int, libc::EPOLL_CTL_MOD, fd, &mut event) };
    }
}

/// Runs a read or a write under the plan. `run` gets the most bytes that it may move.
fn transfer(call: Call, fd: c_int, all: usize, run: impl FnOnce(usize) -> ssize_t) -> ssize_t {
    let most = match strike(call, || place_of(fd)) {
        None => return run(all),
        Some((What::Fail(code), _)) => {
            match code {
                libc::EAGAIN => arm_anew(fd),
                libc::ECONNRESET | libc::EPIPE | libc::ETIMEDOUT => {
                    // SAFETY: a call with two numbers; on what is no socket it fails.
                    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
                }
                _ => {}
            }
            set_errno(code);
            return -1;
        }
        Some((What::OneByte, _)) => all.min(1),
        Some((_, lot)) if call == Call::Read => all.min(1 + lot as usize % 50),
        Some((_, lot)) => 1 + lot as usize % all.max(2).saturating_sub(1),
    };
    let count = run(most.min(all));
    if count > 0 {
        arm_anew(fd);
    }
    count
}

/// The beginning of a vector, up to so many bytes.
fn cut(parts: &[iovec], most: usize) -> ([iovec; 16], usize) {
    let mut beginning = [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 16];
    let (mut count, mut left) = (0, most);
    for part in parts.iter().take(beginning.len()) {
        if left == 0 {
            break;
        }
        beginning[count] = iovec { iov_base: part.iov_base, iov_len: part.iov_len.min(left) };
        left -= beginning[count].iov_len;
        count += 1;
    }
    (beginning, count)
}

/// # Safety
/// As libc's `readv` and `writev` want it.
unsafe fn parts<'a>(vector: *const iovec, count: usize) -> &'a [iovec] {
    if count == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(vector, count) }
}

fn length(parts: &[iovec]) -> usize {
    parts.iter().map(|part| part.iov_len).sum()
}

/// The plain calls: what the plan leaves is the caller's own call, with no more bytes than it asked for.
macro_rules! transfers {
    ($($call:ident $text:literal $name:ident($($before:ident: $before_kind:ty),*; $bytes:ident $(; $after:ident: $after_kind:ty)?);)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(fd: c_int, $($before: $before_kind,)* $bytes: size_t $(, $after: $after_kind)?) -> ssize_t {
            let next = next!($text, fn(c_int, $($before_kind,)* size_t $(, $after_kind)?) -> ssize_t);
            // SAFETY: the caller's call.
            transfer(Call::$call, fd, $bytes, |most| unsafe { next(fd, $($before,)* most $(, $after)?) })
        }
    )*};
}

transfers! {
    Read c"read" read(buffer: *mut c_void; bytes);
    Read c"recv" recv(buffer: *mut c_void; bytes; flags: c_int);
    Write c"write" write(buffer: *const c_void; bytes);
    Write c"send" send(buffer: *const c_void; bytes; flags: c_int);
    Write c"pwrite64" pwrite64(buffer: *const c_void; bytes; offset: off_t);
    Read c"pread64" pread64(buffer: *mut c_void; bytes; offset: off_t);
}

/// Two places can fail: the file, and the socket that is written to.
#[unsafe(no_mangle)]
unsafe extern "C" fn sendfile(to: c_int, from: c_int, offset: *mut off_t, bytes: size_t) -> ssize_t {
    if let Some((What::Fail(code), _)) = strike(Call::Send, || place_of(from)) {
        set_errno(code);
        return -1;
    }
    let next = next!(c"sendfile", fn(c_int, c_int, *mut off_t, size_t) -> ssize_t);
    // SAFETY: the caller's call.
    transfer(Call::Write, to, bytes, |most| unsafe { next(to, from, offset, most) })
}

macro_rules! vectors {
    ($($call:ident $text:literal $name:ident;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(fd: c_int, vector: *const iovec, count: c_int) -> ssize_t {
            let next = next!($text, fn(c_int, *const iovec, c_int) -> ssize_t);
            // SAFETY: the caller's call.
            let all = unsafe { parts(vector, count as usize) };
            transfer(Call::$call, fd, length(all), |most| {
                let (beginning, parts) = cut(all, most);
                // SAFETY: no more than the caller's parts.
                unsafe { next(fd, beginning.as_ptr(), parts as c_int) }
            })
        }
    )*};
}

vectors! {
    Read c"readv" readv;
    Write c"writev" writev;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sendmsg(fd: c_int, message: *const libc::msghdr, flags: c_int) -> ssize_t {
    let next = next!(c"sendmsg", fn(c_int, *const libc::msghdr, c_int) -> ssize_t);
    // SAFETY: the caller's call.
    let (mut message, all) = unsafe { (*message, parts((*message).msg_iov, (*message).msg_iovlen)) };
    transfer(Call::Write, fd, length(all), |most| {
        let (mut beginning, parts) = cut(all, most);
        message.msg_iov = beginning.as_mut_ptr();
        message.msg_iovlen = parts;
        // SAFETY: no more than the caller's parts.
        unsafe { next(fd, &message, flags) }
    })
}

/// A call that is done, or fails as a whole.
fn whole(call: Call, place: impl Fn() -> ServerId, run: impl FnOnce() -> c_int) -> c_int {
    match strike(call, place) {
        Some((What::Fail(code), _)) => {
            set_errno(code);
            -1
        }
        _ => run(),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn accept4(
    fd: c_int,
    address: *mut libc::sockaddr,
    length: *mut libc::socklen_t,
    flags: c_int,
) -> c_int {
    let next = next!(c"accept4", fn(c_int, *mut libc::sockaddr, *mut libc::socklen_t, c_int) -> c_int);
    // SAFETY: the caller's call.
    let accepted = whole(Call::Accept, || place_of(fd), || unsafe { next(fd, address, length, flags) });
    // A connection that waits is told of again, as one that has just come would be.
    // SAFETY: errno is libc's own.
    if accepted < 0 && unsafe { *libc::__errno_location() } == libc::EAGAIN {
        arm_anew(fd);
        set_errno(libc::EAGAIN);
    }
    accepted
}

#[unsafe(no_mangle)]
unsafe extern "C" fn connect(fd: c_int, address: *const libc::sockaddr, length: libc::socklen_t) -> c_int {
    let next = next!(c"connect", fn(c_int, *const libc::sockaddr, libc::socklen_t) -> c_int);
    let place = || {
        // SAFETY: the caller's address, of the family that it says.
        unsafe {
            let is_unix = i32::from((*address).sa_family) == libc::AF_UNIX;
            if is_unix { path_place(&*address.cast::<libc::sockaddr_un>()) } else { ServerId::Other }
        }
    };
    // SAFETY: the caller's call.
    whole(Call::Connect, place, || unsafe { next(fd, address, length) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_int {
    let next = next!(c"socket", fn(c_int, c_int, c_int) -> c_int);
    // SAFETY: the caller's call.
    whole(Call::Socket, || ServerId::Any, || unsafe { next(family, kind, protocol) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn socketpair(family: c_int, kind: c_int, protocol: c_int, pair: *mut c_int) -> c_int {
    let next = next!(c"socketpair", fn(c_int, c_int, c_int, *mut c_int) -> c_int);
    // SAFETY: the caller's call.
    whole(Call::Pair, || ServerId::Any, || unsafe { next(family, kind, protocol, pair) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    option: c_int,
    value: *const c_void,
    length: libc::socklen_t,
) -> c_int {
    let next = next!(c"setsockopt", fn(c_int, c_int, c_int, *const c_void, libc::socklen_t) -> c_int);
    // SAFETY: the caller's call, here and below.
    if level != libc::SOL_SOCKET || option != libc::SO_BINDTOIFINDEX {
        return unsafe { next(fd, level, option, value, length) };
    }
    whole(Call::Deafen, || ServerId::Any, || unsafe { next(fd, level, option, value, length) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let next = next!(c"rename", fn(*const c_char, *const c_char) -> c_int);
    // SAFETY: the caller's call.
    whole(Call::Rename, || ServerId::Any, || unsafe { next(from, to) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fork() -> libc::pid_t {
    let next = next!(c"fork", fn() -> libc::pid_t);
    // SAFETY: the caller's call.
    let pid = whole(Call::Fork, || ServerId::Any, || unsafe { next() });
    if pid == 0 {
        IS_CHILD.store(true, Relaxed);
    }
    pid
}

/// In C the mode is a variadic argument, which is passed as this one is on the processors that Linux runs on.
#[unsafe(no_mangle)]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    let next = next!(c"open64", fn(*const c_char, c_int, c_uint) -> c_int);
    let place = || {
        // SAFETY: the caller's text.
        let path = unsafe { std::ffi::CStr::from_ptr(path) }.to_bytes();
        let is_spool = flags & libc::O_TMPFILE == libc::O_TMPFILE
            || path.windows(11).any(|window| window == b".rip-spool-");
        if is_spool { ServerId::Spool } else { ServerId::Other }
    };
    // SAFETY: the caller's call.
    whole(Call::Open, place, || unsafe { next(path, flags, mode) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memfd_create(name: *const c_char, flags: c_uint) -> c_int {
    let next = next!(c"memfd_create", fn(*const c_char, c_uint) -> c_int);
    // SAFETY: the caller's call.
    whole(Call::Memfd, || ServerId::Spool, || unsafe { next(name, flags) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pipe2(ends: *mut c_int, flags: c_int) -> c_int {
    let next = next!(c"pipe2", fn(*mut c_int, c_int) -> c_int);
    // SAFETY: the caller's call.
    whole(Call::Pipe, || ServerId::Any, || unsafe { next(ends, flags) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn close(fd: c_int) -> c_int {
    let next = next!(c"close", fn(c_int) -> c_int);
    if let Some(slot) = slot(fd)
        && !IS_CHILD.load(Relaxed)
    {
        PLACES[slot].store(0, Relaxed);
        WATCHED[slot].store(0, Relaxed);
    }
    // SAFETY: the caller's call.
    unsafe { next(fd) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_ctl(epoll: c_int, verb: c_int, fd: c_int, event: *mut libc::epoll_event) -> c_int {
    let next = next!(c"epoll_ctl", fn(c_int, c_int, c_int, *mut libc::epoll_event) -> c_int);
    // SAFETY: the caller's call.
    let result = whole(Call::Watch, || place_of(fd), || unsafe { next(epoll, verb, fd, event) });
    if let (0, Some(slot)) = (result, slot(fd)) {
        let watched = if verb == libc::EPOLL_CTL_DEL || event.is_null() {
            0
        } else {
            // SAFETY: the kernel has just read it.
            let event = unsafe { *event };
            TOKENS[slot].store(event.u64, Relaxed);
            (epoll as u64) << 32 | u64::from(event.events)
        };
        WATCHED[slot].store(watched, Relaxed);
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut libc::epoll_event,
    most: c_int,
    timeout_ms: c_int,
) -> c_int {
    let next = next!(c"epoll_wait", fn(c_int, *mut libc::epoll_event, c_int, c_int) -> c_int);
    // SAFETY: the caller's call.
    whole(Call::Wait, || ServerId::Any, || unsafe { next(epoll, events, most, timeout_ms) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    let next = next!(c"clock_gettime", fn(libc::clockid_t, *mut libc::timespec) -> c_int);
    // SAFETY: the caller's call.
    let result = unsafe { next(clock, time) };
    let call = match clock {
        libc::CLOCK_REALTIME => Call::Realtime,
        libc::CLOCK_MONOTONIC => Call::Monotonic,
        _ => return result,
    };
    if let Some((What::AheadMs(ms), _)) = strike(call, || ServerId::Any) {
        // SAFETY: the kernel has just filled it.
        let time = unsafe { &mut *time };
        let ns =
            i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec) + i128::from(ms) * 1_000_000;
        time.tv_sec = (ns.div_euclid(1_000_000_000)) as libc::time_t;
        time.tv_nsec = (ns.rem_euclid(1_000_000_000)) as _;
    }
    result
}
