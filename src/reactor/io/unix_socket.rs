//! Unix sockets as files: what lies at a path, who may connect to it.

use super::socket_access::SocketAccess;
use crate::client;
use crate::paths::MAX_SOCKET_PATH_BYTES;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Which file a socket is: device and inode.
pub(crate) type FileId = (u64, u64);

/// Binds and listens at a path. A stale socket there (nobody listens on it) is removed; everything else is somebody's.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] with words about what is there, or the kernel's.
pub(super) fn listen_at(path: &Path, access: Option<SocketAccess>, backlog: i32) -> io::Result<OwnedFd> {
    match what_is_at(path) {
        Found::Nothing => {}
        Found::Stale => remove_stale(path)?,
        found => return Err(io::Error::new(io::ErrorKind::AddrInUse, found.to_string())),
    }
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let mut fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let address = UnixAddr::new(path).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    if access.is_some() {
        fd = SocketAccess::close(fd)?;
    }
    bind(fd.as_raw_fd(), &address)?;
    let opened = access.map_or(Ok(()), |access| access.open(path));
    if let Err(error) = opened.and_then(|()| Ok(listen(&fd, Backlog::new(backlog)?)?)) {
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    Ok(fd)
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
    if aside.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
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

pub(super) fn file_id(path: &Path) -> Option<FileId> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    fn complaint(path: &Path) -> String {
        let error = listen_at(path, None, 5).expect_err("somebody's");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        error.to_string()
    }

    #[test]
    fn what_is_no_stale_socket_stays_and_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "text").expect("a file");
        std::fs::create_dir(at("folder")).expect("a folder");
        std::os::unix::fs::symlink("/nowhere", at("link")).expect("a link");
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let _live = UnixListener::bind(at("live")).expect("a socket");
        let _datagrams = UnixDatagram::bind(at("datagrams")).expect("a socket");
        for (name, expected) in [
            ("file", "is a plain file, not a socket"),
            ("folder", "is a folder, not a socket"),
            ("link", "is a symlink, not a socket"),
            ("pipe", "is a device or a pipe, not a socket"),
            ("live", "is in use"),
            ("datagrams", "is in use"),
        ] {
            let before = file_id(&at(name));
            assert_eq!(complaint(&at(name)), expected);
            assert_eq!(file_id(&at(name)), before, "{name}");
        }
        assert_eq!(Found::Closed { owner: 7 }.to_string(), "is in use, a socket of user 7");
    }

    #[test]
    fn a_free_path_and_a_stale_socket_are_taken_and_listened_on() {
        let dir = tempfile::tempdir().expect("a folder");
        // In the longer one no other name of the server's own fits beside it.
        let mut long = dir.path().join("x".repeat(MAX_SOCKET_PATH_BYTES - 4 - dir.path().as_os_str().len()));
        std::fs::create_dir(&long).expect("a folder");
        long.push("ab");
        assert_eq!(long.as_os_str().as_bytes().len(), MAX_SOCKET_PATH_BYTES);
        for path in [dir.path().join("socket"), long] {
            assert_eq!(file_id(&path), None);
            let first = listen_at(&path, None, 5).expect("free");
            drop(UnixStream::connect(&path).expect("it listens"));
            let old = file_id(&path);
            assert_eq!(complaint(&path), "is in use");
            // Its inode is not used again while it has another name.
            let kept = dir.path().join("kept");
            let _ = std::fs::remove_file(&kept);
            std::fs::hard_link(&path, &kept).expect("another name");
            drop(first);
            let again = listen_at(&path, None, 5).expect("nobody listens on that one");
            assert_ne!(file_id(&path), old);
            drop(UnixStream::connect(&path).expect("it listens"));
            let flags = nix::fcntl::fcntl(&again, nix::fcntl::FcntlArg::F_GETFD).expect("its flags");
            assert_eq!(flags, nix::libc::FD_CLOEXEC);
            let flags = nix::fcntl::fcntl(&again, nix::fcntl::FcntlArg::F_GETFL).expect("its flags");
            assert!(nix::fcntl::OFlag::from_bits_truncate(flags).contains(nix::fcntl::OFlag::O_NONBLOCK));
        }
    }
}
