//! Sockets without a kernel. The reactor holds one end of a [`Wire`], a scripted peer the other; what the kernel
//! would tell, and when (edge-triggered, with all that holds at that moment), is told here.

use mio::event::Source;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::Instant;

use crate::reactor::io::listen::OnTheWay;
use crate::reactor::io::token::Readiness;

/// Whose rules the end of a connection follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Over TCP a peer that has closed is known to be gone only after another write.
    Tcp,
    Unix,
}

/// One connection, as both of its ends see it.
#[derive(Debug)]
pub(crate) struct Wire {
    pub kind: Kind,
    pub to_server: VecDeque<u8>,
    pub from_server: VecDeque<u8>,
    /// All that the server ever wrote.
    pub written: Vec<u8>,
    /// So much fits between the server and its peer.
    pub room_bytes: usize,
    /// The peer sends no more.
    pub peer_has_ended: bool,
    /// The peer takes no more either.
    pub is_peer_gone: bool,
    pub is_reset: bool,
    pub server_has_ended: bool,
    pub is_server_gone: bool,
    pub server_resets: bool,
    pub token: Option<Token>,
    watches_room: bool,
    lacked_room: bool,
    /// When something happened that is still to be told.
    edge: Option<u64>,
}

pub(crate) type Shared = Rc<RefCell<Wire>>;

thread_local! {
    static EDGES: Cell<u64> = const { Cell::new(0) };
    /// Calls of [`sendfile`] in this history.
    static SENDFILES: Cell<u64> = const { Cell::new(0) };
    /// A connection to a worker was refused, or had no place in its backlog.
    static HAS_FAILED: Cell<bool> = const { Cell::new(false) };
    static PLACES: RefCell<BTreeMap<PathBuf, ServerId>> = const { RefCell::new(BTreeMap::new()) };
}

/// A socket's path, and who listens there.
#[derive(Debug)]
struct ServerId {
    is_backlog_full: bool,
    /// Of connections that are made from now on.
    room_bytes: usize,
    waiting: Vec<Shared>,
}

/// Somebody listens at `path` from now on.
pub(crate) fn listen_at(path: &Path) {
    let place = ServerId { is_backlog_full: false, room_bytes: usize::MAX, waiting: Vec::new() };
    PLACES.with_borrow_mut(|places| places.insert(path.to_path_buf(), place));
}

/// Nobody listens at `path` any more.
pub(crate) fn leave(path: &Path) {
    PLACES.with_borrow_mut(|places| places.remove(path));
}

/// Connections that nobody has taken up at `path`.
pub(crate) fn accept_at(path: &Path) -> Vec<Shared> {
    PLACES
        .with_borrow_mut(|places| places.get_mut(path).map(|place| std::mem::take(&mut place.waiting)))
        .unwrap_or_default()
}

pub(crate) fn set_backlog(path: &Path, is_full: bool) {
    PLACES.with_borrow_mut(|places| {
        if let Some(place) = places.get_mut(path) {
            place.is_backlog_full = is_full;
        }
    });
}

/// How much connections to `path` hold that are made from now on.
pub(crate) fn set_capacity(path: &Path, room_bytes: usize) {
    PLACES.with_borrow_mut(|places| {
        if let Some(place) = places.get_mut(path) {
            place.room_bytes = room_bytes;
        }
    });
}

pub(crate) fn forget_all() {
    PLACES.with_borrow_mut(BTreeMap::clear);
    EDGES.set(0);
    SENDFILES.set(0);
    HAS_FAILED.set(false);
}

/// Whether any connection to a worker could not be made.
pub(crate) fn has_failed_to_connect() -> bool {
    HAS_FAILED.get()
}

impl Wire {
    pub(crate) fn new(kind: Kind, room_bytes: usize) -> Shared {
        Rc::new(RefCell::new(Wire {
            kind,
            to_server: VecDeque::new(),
            from_server: VecDeque::new(),
            written: Vec::new(),
            room_bytes,
            peer_has_ended: false,
            is_peer_gone: false,
            is_reset: false,
            server_has_ended: false,
            is_server_gone: false,
            server_resets: false,
            token: None,
            watches_room: false,
            lacked_room: false,
            edge: None,
        }))
    }

    fn mark(&mut self) {
        let next = EDGES.get();
        EDGES.set(next + 1);
        self.edge.get_or_insert(next);
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        if self.is_server_gone {
            return;
        }
        self.to_server.extend(bytes);
        self.mark();
    }

    /// The peer sends no more, and still reads.
    pub(crate) fn end(&mut self) {
        if !self.peer_has_ended {
            self.peer_has_ended = true;
            self.mark();
        }
    }

    /// The peer closes.
    pub(crate) fn close(&mut self) {
        // Closed with bytes unread: the other side learns of a reset instead of an end.
        let is_unread = !self.from_server.is_empty();
        // Behind a FIN over TCP, nothing tells of it.
        let is_told = is_unread || !self.peer_has_ended || self.kind == Kind::Unix;
        self.peer_has_ended = true;
        self.is_peer_gone = true;
        self.from_server.clear();
        if is_unread {
            self.is_reset = true;
        }
        if is_told {
            self.mark();
        }
    }

    pub(crate) fn reset(&mut self) {
        self.is_peer_gone = true;
        self.peer_has_ended = true;
        self.from_server.clear();
        self.is_reset = true;
        self.mark();
    }

    /// The peer reads.
    pub(crate) fn take(&mut self, most_bytes: usize) -> Vec<u8> {
        let bytes = most_bytes.min(self.from_server.len());
        let taken = self.from_server.drain(..bytes).collect();
        self.tell_room(bytes > 0);
        taken
    }

    pub(crate) fn set_capacity(&mut self, room_bytes: usize) {
        let has_grown = room_bytes > self.room_bytes;
        self.room_bytes = room_bytes;
        self.tell_room(has_grown);
    }

    fn tell_room(&mut self, has_grown: bool) {
        let is_told = self.watches_room && (self.lacked_room || self.kind == Kind::Unix);
        if has_grown && is_told && self.capacity() > 0 {
            self.lacked_room = false;
            self.mark();
        }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.room_bytes.saturating_sub(self.from_server.len())
    }

    /// What is to be told now, with the moment of its happening; told once.
    pub(crate) fn tell(&mut self) -> Option<(u64, Token, Readiness)> {
        let token = self.token.filter(|_| !self.is_server_gone)?;
        let edge = self.edge.take()?;
        let is_hung_up = (self.server_has_ended && self.peer_has_ended)
            || (self.kind == Kind::Unix && self.is_peer_gone)
            || self.is_reset;
        let is_read_closed = self.peer_has_ended || self.is_reset;
        let readiness = Readiness {
            is_readable: !self.to_server.is_empty() || is_read_closed,
            is_writable: self.watches_room && (self.capacity() > 0 || self.is_peer_gone),
            is_read_closed,
            is_write_closed: is_hung_up,
            is_error: self.is_reset,
        };
        Some((edge, token, readiness))
    }

    pub(crate) fn has_edge(&self) -> bool {
        self.edge.is_some() && self.token.is_some() && !self.is_server_gone
    }
}

/// The server's end. Under this name, since it stands where the reactor has mio's.
#[derive(Debug)]
pub(crate) struct UnixStream {
    wire: Shared,
}

impl UnixStream {
    pub(crate) fn of(wire: Shared) -> Self {
        UnixStream { wire }
    }

    pub(crate) fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        let made = PLACES.with_borrow_mut(|places| match places.get_mut(path.as_ref()) {
            None => Err(io::ErrorKind::ConnectionRefused.into()),
            Some(place) if place.is_backlog_full => Err(io::ErrorKind::WouldBlock.into()),
            Some(place) => {
                let wire = Wire::new(Kind::Unix, place.room_bytes);
                place.waiting.push(wire.clone());
                Ok(UnixStream { wire })
            }
        });
        HAS_FAILED.set(HAS_FAILED.get() || made.is_err());
        made
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        assert_eq!(how, Shutdown::Write);
        let mut wire = self.wire.borrow_mut();
        wire.server_has_ended = true;
        if wire.peer_has_ended {
            wire.mark();
        }
        Ok(())
    }

    pub(crate) fn tells_hang_up(&self) -> bool {
        self.wire.borrow().kind == Kind::Unix
    }

    pub(crate) fn reset_on_close(&self) {
        self.wire.borrow_mut().server_resets = true;
    }
}

impl Drop for UnixStream {
    fn drop(&mut self) {
        self.wire.borrow_mut().is_server_gone = true;
    }
}

impl Read for UnixStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut wire = self.wire.borrow_mut();
        if wire.is_reset && (wire.kind == Kind::Tcp || wire.to_server.is_empty()) {
            return Err(Errno::ECONNRESET.into());
        }
        let count = bytes.len().min(wire.to_server.len());
        for (place, byte) in bytes.iter_mut().zip(wire.to_server.drain(..count)) {
            *place = byte;
        }
        match count {
            0 if wire.peer_has_ended => Ok(0),
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}

impl Write for UnixStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut wire = self.wire.borrow_mut();
        let all: usize = parts.iter().map(|part| part.len()).sum();
        if wire.server_has_ended || wire.is_reset || (wire.is_peer_gone && wire.kind == Kind::Unix) {
            return Err(Errno::EPIPE.into());
        }
        if wire.is_peer_gone {
            // The kernel takes it, and hears in return that nobody is there.
            wire.is_reset = true;
            wire.mark();
            return Ok(all);
        }
        let count = all.min(wire.capacity());
        wire.lacked_room |= count < all;
        if count == 0 && all > 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let Wire { from_server, written, .. } = &mut *wire;
        let mut left = count;
        for part in parts {
            let fits = &part[..left.min(part.len())];
            left -= fits.len();
            from_server.extend(fits);
            written.extend_from_slice(fits);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What scripted streams have instead of a descriptor.
static NO_DESCRIPTOR: LazyLock<File> = LazyLock::new(|| File::open("/dev/null").expect("a file"));

impl AsFd for UnixStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        NO_DESCRIPTOR.as_fd()
    }
}

/// Whether a stream's descriptor stands for a wire.
pub(crate) fn is_scripted(descriptor: BorrowedFd<'_>) -> bool {
    descriptor.as_raw_fd() == NO_DESCRIPTOR.as_raw_fd()
}

/// As the kernel's: as many bytes of `file` as the stream takes. Now and then it has no such call, and the bytes go
/// through `write`.
pub(crate) fn sendfile(stream: &mut impl Write, file: &File, offset: u64, bytes: u64) -> io::Result<u64> {
    const ONE_IN: u64 = 4;
    let calls = SENDFILES.get();
    SENDFILES.set(calls + 1);
    if calls % ONE_IN == ONE_IN - 1 {
        return Err(Errno::EINVAL.into());
    }
    let mut piece = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
    let read = file.read_at(&mut piece, offset)?;
    // An empty write would be an end; so is a file that ends too early.
    if read == 0 { Ok(0) } else { stream.write(&piece[..read]).map(|sent| sent as u64) }
}

impl Source for UnixStream {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.reregister(registry, token, interests)
    }

    fn reregister(&mut self, _: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        let mut wire = self.wire.borrow_mut();
        wire.token = Some(token);
        wire.watches_room = interests.is_writable();
        let is_ready =
            !wire.to_server.is_empty() || wire.peer_has_ended || wire.watches_room && wire.capacity() > 0;
        if is_ready {
            wire.mark();
        }
        Ok(())
    }

    fn deregister(&mut self, _: &Registry) -> io::Result<()> {
        Ok(())
    }
}

/// A listening socket, with those who have connected and those who are about to.
#[derive(Debug, Default)]
pub(crate) struct Door {
    /// Whose handshake is done, and whom nobody has accepted.
    pub waiting: VecDeque<Shared>,
    /// Whose handshake has begun, and when it completes.
    pub on_the_way: Vec<(Instant, Shared)>,
    pub is_deaf: bool,
    /// Another process has the socket, and serves those who wait.
    pub is_shared: bool,
    /// The server has closed it.
    pub is_closed: bool,
    /// Accepted by this server.
    pub accepted: usize,
}

impl Door {
    /// Handshakes complete. Whether somebody waits who did not before.
    pub(crate) fn complete_handshakes(&mut self, now: Instant) -> bool {
        let (due, later) = std::mem::take(&mut self.on_the_way).into_iter().partition(|(at, _)| *at <= now);
        self.on_the_way = later;
        let due: Vec<(Instant, Shared)> = due;
        let is_any = !due.is_empty();
        self.waiting.extend(due.into_iter().map(|(_, wire)| wire));
        is_any
    }
}

/// Where scripted clients knock.
#[derive(Debug, Default)]
pub(crate) struct UnixListener {
    door: Rc<RefCell<Door>>,
}

impl UnixListener {
    pub(crate) fn at(door: &Rc<RefCell<Door>>) -> Self {
        UnixListener { door: door.clone() }
    }

    pub(crate) fn from_std(_: std::os::unix::net::UnixListener) -> Self {
        UnixListener::default()
    }

    pub(crate) fn accept(&self) -> io::Result<(UnixStream, ())> {
        let mut door = self.door.borrow_mut();
        let wire = door.waiting.pop_front();
        door.accepted += usize::from(wire.is_some());
        wire.map(|wire| (UnixStream { wire }, ())).ok_or(io::ErrorKind::WouldBlock.into())
    }

    /// As a TCP socket that is bound to no interface.
    pub(crate) fn refuse_newcomers(&self) -> OnTheWay {
        let mut door = self.door.borrow_mut();
        assert!(!door.is_shared, "the other holder of the socket went deaf");
        door.is_deaf = true;
        OnTheWay::Somebody
    }
}

impl AsFd for UnixListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        NO_DESCRIPTOR.as_fd()
    }
}

impl Drop for UnixListener {
    fn drop(&mut self) {
        self.door.borrow_mut().is_closed = true;
    }
}

impl Source for UnixListener {
    fn register(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        Ok(())
    }

    fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        Ok(())
    }

    fn deregister(&mut self, _: &Registry) -> io::Result<()> {
        Ok(())
    }
}
