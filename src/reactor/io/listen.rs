//! Listening sockets, with a backlog that a burst fits into.

use super::stream::Stream;
use crate::client;
use crate::config::Listen;
use crate::paths::shown;
use crate::process;
#[cfg(test)]
use crate::reactor::simulation::wire::UnixListener;
use mio::event::Source;
use mio::net::TcpListener;
#[cfg(not(test))]
use mio::net::UnixListener;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, SockaddrStorage,
    UnixAddr, bind, getsockname, getsockopt, listen, setsockopt, socket, sockopt,
};
use std::ffi::OsStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// std and mio ask for 128 to 1,024; the kernel cuts this down to its own bound (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// A Unix socket's path has room for so many bytes.
pub(crate) const MAX_PATH_BYTES: usize = 107;

/// Which file a socket is: device and inode.
pub(crate) type FileId = (u64, u64);

#[derive(Debug)]
pub(crate) struct Listener {
    socket: Socket,
    holders: Holders,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix { listener: UnixListener, path: PathBuf, file: Option<FileId> },
}

/// Which processes have the socket. What is done to a socket is done for all of its holders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holders {
    /// Nobody but this server.
    Own,
    /// The server before this one as well, for a while.
    Handed,
    /// Somebody else as well, who goes on with it: whoever waits in its backlog is served there.
    Shared,
}

/// Who may still connect to a listener that refuses newcomers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnTheWay {
    Nobody,
    /// Those whose handshake has begun.
    Somebody,
}

/// An interface that no machine has: nothing that arrives comes from there.
const NO_INTERFACE: i32 = i32::MAX;

/// Who has connected, as the worker and the log are told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    Ip(IpAddr),
    Unix,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Ip(address) => address.fmt(f),
            Peer::Unix => f.write_str("a Unix socket"),
        }
    }
}

/// Who stands at the door.
#[derive(Debug)]
pub(crate) enum Accepted {
    Peer(Stream, Peer),
    Nobody,
    /// That connection had its end before it was taken; the next may be there.
    GoneAlready,
    /// The machine lacks something that comes back, a descriptor say, or refuses for a reason of its own: asked again
    /// at once it would say the same.
    NotNow(io::Error),
}

/// Whether something lacks that comes back.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    let codes = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    codes.iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// Errors of one connection. Linux tells those that lie ready on it already at its accepting (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    let codes = [
        Errno::EINTR,
        Errno::ECONNABORTED,
        Errno::ENETDOWN,
        Errno::EPROTO,
        Errno::ENOPROTOOPT,
        Errno::EHOSTDOWN,
        Errno::ENONET,
        Errno::EHOSTUNREACH,
        Errno::ENETUNREACH,
        Errno::ETIMEDOUT,
    ];
    codes.iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

impl Listener {
    /// # Errors
    /// The kernel's, for the message that names `at`.
    pub(crate) fn bind(at: &Listen) -> io::Result<Self> {
        match at {
            Listen::Tcp { address: Some(address), port } => bind_tcp(SocketAddr::new(*address, *port)),
            Listen::Tcp { address: None, port } => {
                match bind_tcp(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), *port)) {
                    // Without IPv6, IPv4 alone.
                    Err(error)
                        if matches!(error.raw_os_error(), Some(code)
                        if code == Errno::EAFNOSUPPORT as i32 || code == Errno::EADDRNOTAVAIL as i32) =>
                    {
                        bind_tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), *port))
                    }
                    result => result,
                }
            }
            Listen::Unix(path) => bind_unix(path),
            // Those were taken before anything was opened; by now the number is somebody else's.
            Listen::Descriptor(_) => Err(Errno::EBADF.into()),
        }
    }

    /// A listening socket that others may hold as well.
    ///
    /// # Errors
    /// The kernel's, or in words: it is none that connections can be accepted on.
    pub(crate) fn adopt(fd: OwnedFd, holders: Holders) -> io::Result<Self> {
        let unfit = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, what.to_owned()));
        match getsockopt(&fd, sockopt::SockType) {
            Ok(SockType::Stream) => {}
            Ok(_) => return unfit("is no stream socket"),
            Err(Errno::ENOTSOCK) => return unfit("is no socket"),
            Err(error) => return Err(error.into()),
        }
        if !getsockopt(&fd, sockopt::AcceptConn)? {
            return unfit("is a socket, and does not listen");
        }
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let address = getsockname::<SockaddrStorage>(fd.as_raw_fd())?;
        let socket = match address.family() {
            Some(AddressFamily::Inet | AddressFamily::Inet6) => {
                setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
                Socket::Tcp(TcpListener::from_std(fd.into()))
            }
            Some(AddressFamily::Unix) => {
                let at = address.as_unix_addr();
                let name = at.and_then(UnixAddr::as_abstract).map(|name| [b"@", name].concat());
                let name = name.map(|name| PathBuf::from(OsStr::from_bytes(&name)));
                let path = at.and_then(UnixAddr::path).map(Path::to_path_buf).or(name).unwrap_or_default();
                // Whoever made the file removes it.
                Socket::Unix { listener: UnixListener::from_std(fd.into()), path, file: None }
            }
            Some(_) | None => return unfit("is neither a TCP nor a Unix socket"),
        };
        Ok(Listener { socket, holders })
    }

    /// From now on nobody new finds a way in; whoever has connected already is accepted still. A Unix socket loses its
    /// file, and a connect that is under way is refused. A TCP socket is bound to an interface that does not exist: a
    /// new SYN is refused at once, and handshakes that have begun complete. Where the kernel lacks that, connections
    /// that come before the close are accepted as ever. Only for a socket that nobody else holds.
    pub(crate) fn refuse_newcomers(&self) -> OnTheWay {
        debug_assert_eq!(self.holders, Holders::Own, "everybody would go deaf");
        match &self.socket {
            Socket::Tcp(listener) => match process::bind_to_interface(listener.as_fd(), NO_INTERFACE) {
                Ok(()) => OnTheWay::Somebody,
                Err(_) => OnTheWay::Nobody,
            },
            #[cfg(not(test))]
            Socket::Unix { listener, .. } => {
                self.remove_file();
                // One that cannot be shut still ends with its close.
                let _ = nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Read);
                OnTheWay::Nobody
            }
            #[cfg(test)]
            Socket::Unix { listener, .. } => listener.refuse_newcomers(),
        }
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.holders != Holders::Own
    }

    /// Somebody else has given it, and holds it.
    pub(crate) fn is_given(&self) -> bool {
        self.holders == Holders::Shared
    }

    /// For the way to the next server.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_fd(),
            Socket::Unix { listener, .. } => listener.as_fd(),
        }
    }

    /// Whether it has a file that is this server's to remove.
    pub(crate) fn has_file(&self) -> bool {
        matches!(self.socket, Socket::Unix { file: Some(_), .. })
    }

    /// Its file is this server's from now on.
    pub(crate) fn own_file(&mut self) {
        if let Socket::Unix { path, file, .. } = &mut self.socket {
            *file = file_id(path);
        }
    }

    /// It is the next server's from now on, with its file.
    pub(crate) fn hand_over(&mut self) {
        self.holders = Holders::Shared;
        if let Socket::Unix { file, .. } = &mut self.socket {
            *file = None;
        }
    }

    /// The server before this one holds it no longer.
    pub(crate) fn is_released(&mut self) {
        if self.holders == Holders::Handed {
            self.holders = Holders::Own;
        }
    }

    /// Moves a Unix socket to another path, over whatever lies there.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn move_to(&mut self, target: &Path) -> io::Result<()> {
        if let Socket::Unix { path, .. } = &mut self.socket {
            std::fs::rename(&*path, target)?;
            *path = target.to_path_buf();
        }
        Ok(())
    }

    /// Whether all who connect are on this machine.
    pub(crate) fn is_local(&self) -> bool {
        match &self.socket {
            Socket::Tcp(listener) => {
                listener.local_addr().is_ok_and(|at| at.ip().to_canonical().is_loopback())
            }
            Socket::Unix { .. } => true,
        }
    }

    pub(crate) fn accept(&self) -> Accepted {
        let accepted = match &self.socket {
            Socket::Tcp(listener) => listener.accept().map(|(stream, address)| {
                // An IPv4 address in IPv6 clothes counts as IPv4.
                (Stream::Tcp(stream), Peer::Ip(address.ip().to_canonical()))
            }),
            Socket::Unix { listener, .. } => {
                listener.accept().map(|(stream, _)| (Stream::Unix(stream), Peer::Unix))
            }
        };
        match accepted {
            Ok((stream, peer)) => Accepted::Peer(stream, peer),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Accepted::Nobody,
            // What a Unix socket says that was shut, when all who had connected are accepted.
            Err(error)
                if matches!(self.socket, Socket::Unix { .. })
                    && error.raw_os_error() == Some(Errno::EINVAL as i32) =>
            {
                Accepted::Nobody
            }
            Err(error) if is_of_one_connection(&error) => Accepted::GoneAlready,
            Err(error) => Accepted::NotNow(error),
        }
    }

    /// Where it listens, as people write it.
    pub(crate) fn address(&self) -> String {
        match &self.socket {
            Socket::Tcp(listener) => match listener.local_addr() {
                Ok(address) => address.to_string(),
                Err(error) => format!("({error})"),
            },
            Socket::Unix { path, .. } => format!("unix:{}", shown(&path)),
        }
    }

    /// Takes a Unix socket out of its folder, unless another server's has taken its place.
    pub(crate) fn remove_file(&self) {
        if let Socket::Unix { path, file, .. } = &self.socket
            && file.is_some()
            && file_id(path) == *file
        {
            let _ = std::fs::remove_file(path);
        }
    }

    pub(crate) fn port(&self) -> Option<u16> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
            Socket::Unix { .. } => None,
        }
    }
}

#[cfg(test)]
impl Listener {
    /// Where scripted clients knock.
    pub(crate) fn scripted(listener: UnixListener, holders: Holders) -> Self {
        Listener { socket: Socket::Unix { listener, path: "/nonexistent/http".into(), file: None }, holders }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.remove_file();
    }
}

impl Source for Listener {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match &mut self.socket {
            Socket::Tcp(listener) => listener.register(registry, token, interests),
            Socket::Unix { listener, .. } => listener.register(registry, token, interests),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match &mut self.socket {
            Socket::Tcp(listener) => listener.reregister(registry, token, interests),
            Socket::Unix { listener, .. } => listener.reregister(registry, token, interests),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match &mut self.socket {
            Socket::Tcp(listener) => listener.deregister(registry),
            Socket::Unix { listener, .. } => listener.deregister(registry),
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<Listener> {
    let (family, address): (_, Box<dyn SockaddrLike>) = match address {
        SocketAddr::V4(address) => (AddressFamily::Inet, Box::new(SockaddrIn::from(address))),
        SocketAddr::V6(address) => (AddressFamily::Inet6, Box::new(SockaddrIn6::from(address))),
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd: OwnedFd = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    // Accepted sockets inherit it, which saves a call for each.
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    if family == AddressFamily::Inet6 {
        // One socket for both families, whatever the machine's default is.
        setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
    }
    bind(fd.as_raw_fd(), address.as_ref())?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(Listener { socket: Socket::Tcp(TcpListener::from_std(fd.into())), holders: Holders::Own })
}

/// Listens at a path. A stale socket there (nobody listens on it) is removed; everything else is somebody's.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] with words about what is there, or the kernel's.
pub(crate) fn bind_unix(path: &Path) -> io::Result<Listener> {
    match what_is_at(path) {
        Found::Nothing => {}
        Found::Stale => remove_stale(path)?,
        found => return Err(io::Error::new(io::ErrorKind::AddrInUse, found.to_string())),
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    let file = file_id(path);
    let socket = Socket::Unix { listener: UnixListener::from_std(listener), path: path.to_path_buf(), file };
    Ok(Listener { socket, holders: Holders::Own })
}

/// What lies where a Unix socket is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    /// A socket that nobody listens on.
    Stale,
    /// A socket that somebody listens on.
    Live,
    /// A socket of another user's that cannot be asked.
    Closed {
        owner: u32,
    },
    /// No socket at all: the word for what it is.
    Other(&'static str),
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Found::Nothing | Found::Stale => f.write_str("is free"),
            Found::Live => f.write_str("is in use"),
            Found::Closed { owner } => write!(f, "is in use, a socket of user {owner}"),
            Found::Other(what) => write!(f, "is {what}, not a socket"),
        }
    }
}

fn what_is_at(path: &Path) -> Found {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        // If it cannot be looked at, the bind says why.
        return Found::Nothing;
    };
    let kind = metadata.file_type();
    if !kind.is_socket() {
        return Found::Other(match () {
            () if kind.is_file() => "a plain file",
            () if kind.is_dir() => "a folder",
            () if kind.is_symlink() => "a symlink",
            () => "a device or a pipe",
        });
    }
    // Only a refusal shows that nobody listens: another user's socket says EACCES, one with a full backlog EAGAIN, and
    // a datagram socket EPROTOTYPE.
    match client::connect(path).map_err(|error| error.kind()) {
        Err(io::ErrorKind::ConnectionRefused) => Found::Stale,
        Err(io::ErrorKind::NotFound) => Found::Nothing,
        Err(io::ErrorKind::PermissionDenied) => Found::Closed { owner: metadata.uid() },
        Ok(_) | Err(_) => Found::Live,
    }
}

/// Removes a stale socket. It is moved aside and looked at again first: meanwhile another server may have put its own
/// into its place, which then goes back.
fn remove_stale(path: &Path) -> io::Result<()> {
    let aside = path.with_file_name(format!(".{}", std::process::id()));
    if aside.as_os_str().len() > MAX_PATH_BYTES {
        // A name that cannot be connected to.
        return std::fs::remove_file(path);
    }
    if let Err(error) = std::fs::rename(path, &aside) {
        // Somebody else was quicker.
        return if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
    }
    let found = what_is_at(&aside);
    if found != Found::Stale {
        // Never over a third one's.
        let _ = std::fs::hard_link(&aside, path);
        let _ = std::fs::remove_file(&aside);
        return Err(io::Error::new(io::ErrorKind::AddrInUse, found.to_string()));
    }
    std::fs::remove_file(&aside)
}

fn file_id(path: &Path) -> Option<FileId> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// The process that listens on a port, where `/proc` tells.
pub(crate) fn owner_of_port(port: u16) -> Option<u32> {
    const LISTENING: &str = "0A";
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let text: String = tables.iter().filter_map(|table| std::fs::read_to_string(table).ok()).collect();
    let inode = text.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (words.get(1)?, words.get(3)?, words.get(9)?);
        let is_it = *state == LISTENING && local.ends_with(&format!(":{port:04X}"));
        is_it.then(|| format!("socket:[{inode}]"))
    })?;
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let mut descriptors = std::fs::read_dir(process.path().join("fd")).ok()?.flatten();
        let holds =
            |link: std::fs::DirEntry| std::fs::read_link(link.path()).is_ok_and(|target| target == *inode);
        descriptors.any(holds).then_some(pid)
    })
}
