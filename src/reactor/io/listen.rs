//! Listening sockets, with a backlog that a burst fits into.

use super::socket_access::SocketAccess;
use super::stream::Stream;
use super::unix_socket::{self, FileId};
use crate::config::Listen;
use crate::paths::shown;
use crate::process;
#[cfg(any(test, fuzzing))]
use crate::reactor::simulation::wire::UnixListener;
use mio::event::Source;
use mio::net::TcpListener;
#[cfg(not(any(test, fuzzing)))]
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
use std::path::{Path, PathBuf};

/// std and mio ask for 128 to 1,024; the kernel cuts this down to its own bound (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

#[derive(Debug)]
pub(crate) struct Listener {
    socket: Socket,
    holders: Holders,
    /// As the command line has it: by this the next server asks for it.
    place: String,
    /// Its peers are proxies, who say first who has connected to them.
    has_proxy_header: bool,
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

fn is_without_ipv6(error: &io::Error) -> bool {
    let codes = [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL];
    codes.iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

impl Listener {
    fn new(socket: Socket, holders: Holders) -> Self {
        Listener { socket, holders, place: String::new(), has_proxy_header: false }
    }

    /// # Errors
    /// The kernel's, for the message that names `at`.
    pub(crate) fn bind(at: &Listen, access: Option<SocketAccess>) -> io::Result<Self> {
        match at {
            Listen::Tcp { address: Some(address), port } => bind_tcp(SocketAddr::new(*address, *port)),
            Listen::Tcp { address: None, port } => {
                match bind_tcp(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), *port)) {
                    // Without IPv6, IPv4 alone.
                    Err(error) if is_without_ipv6(&error) => {
                        bind_tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), *port))
                    }
                    result => result,
                }
            }
            Listen::Localhost { port } => Self::bind_loopback(*port),
            Listen::Unix(path) => bind_unix(path, access),
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
        Ok(Listener::new(socket, holders))
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
            #[cfg(not(any(test, fuzzing)))]
            Socket::Unix { listener, .. } => {
                self.remove_file();
                // One that cannot be shut still ends with its close.
                let _ = nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Read);
                OnTheWay::Nobody
            }
            #[cfg(any(test, fuzzing))]
            Socket::Unix { listener, .. } => listener.refuse_newcomers(),
        }
    }

    pub(crate) fn remember_place(&mut self, place: String) {
        self.place = place;
    }

    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// Its peers are proxies, who say first who has connected to them.
    pub(crate) fn expect_proxy_header(&mut self, has_proxy_header: bool) {
        self.has_proxy_header = has_proxy_header;
    }

    pub(crate) fn has_proxy_header(&self) -> bool {
        self.has_proxy_header
    }

    /// On 127.0.0.1.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn bind_loopback(port: u16) -> io::Result<Self> {
        bind_tcp(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))
    }

    /// On ::1 at the same port; `None`: this machine has no IPv6.
    ///
    /// # Errors
    /// The kernel's: somebody else has that port there.
    pub(crate) fn bind_beside(&self) -> io::Result<Option<Self>> {
        let Some(port) = self.port() else { return Ok(None) };
        match bind_tcp(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)) {
            Ok(listener) => Ok(Some(listener)),
            Err(error) if is_without_ipv6(&error) => Ok(None),
            Err(error) => Err(error),
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
            *file = unix_socket::file_id(path);
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
            && unix_socket::file_id(path) == *file
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

#[cfg(any(test, fuzzing))]
impl Listener {
    /// Where scripted clients knock.
    pub(crate) fn scripted(listener: UnixListener, holders: Holders) -> Self {
        let socket = Socket::Unix { listener, path: "/nonexistent/http".into(), file: None };
        Listener::new(socket, holders)
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
    let socket = Socket::Tcp(TcpListener::from_std(fd.into()));
    Ok(Listener::new(socket, Holders::Own))
}

/// Listens at a path, where nobody else does.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] with words about what is there, or the kernel's.
pub(crate) fn bind_unix(path: &Path, access: Option<SocketAccess>) -> io::Result<Listener> {
    let listener = UnixListener::from_std(unix_socket::listen_at(path, access, BACKLOG)?.into());
    let file = unix_socket::file_id(path);
    Ok(Listener::new(Socket::Unix { listener, path: path.to_path_buf(), file }, Holders::Own))
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

#[cfg(test)]
mod tests;
