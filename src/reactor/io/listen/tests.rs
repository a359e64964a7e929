//! Listeners on ports and at paths of this machine.

use super::*;
use crate::reactor::simulation::wire::{Door, Kind, Wire};
use mio::{Events, Poll};
use std::cell::RefCell;
use std::fs::File;
use std::net::{TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::rc::Rc;
use std::time::{Duration, Instant};

fn bind(text: &str) -> Listener {
    let address: SocketAddr = text.parse().expect("an address");
    let at = Listen::Tcp { address: Some(address.ip()), port: address.port() };
    Listener::bind(&at, None).expect("a port")
}

fn connect(listener: &Listener) -> TcpStream {
    TcpStream::connect(("127.0.0.1", listener.port().expect("a port"))).expect("connected")
}

/// Who has connected; a handshake may take a moment.
fn accepted(listener: &Listener) -> Accepted {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match listener.accept() {
            Accepted::Nobody if Instant::now() < deadline => std::thread::yield_now(),
            accepted => return accepted,
        }
    }
}

fn error(errno: Errno) -> io::Error {
    errno.into()
}

#[test]
fn errors_are_of_the_machine_or_of_one_connection_or_for_want_of_ipv6() {
    for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM] {
        assert!(is_shortage(&error(errno)) && !is_of_one_connection(&error(errno)), "{errno}");
    }
    for errno in [Errno::ECONNABORTED, Errno::EPROTO, Errno::EHOSTUNREACH, Errno::ETIMEDOUT] {
        assert!(is_of_one_connection(&error(errno)) && !is_shortage(&error(errno)), "{errno}");
    }
    assert!(is_without_ipv6(&error(Errno::EAFNOSUPPORT)) && is_without_ipv6(&error(Errno::EADDRNOTAVAIL)));
    for errno in [Errno::EADDRINUSE, Errno::EACCES] {
        let error = error(errno);
        assert!(!is_shortage(&error) && !is_of_one_connection(&error) && !is_without_ipv6(&error));
    }
}

#[test]
fn a_port_of_one_address_is_listened_on_and_its_peers_are_told_by_theirs() {
    let listener = bind("127.0.0.1:0");
    let port = listener.port().expect("a port");
    assert!(port > 1);
    assert_eq!(listener.address(), format!("127.0.0.1:{port}"));
    assert!(listener.is_local() && !listener.has_file());
    assert!(matches!(listener.accept(), Accepted::Nobody));
    let _client = connect(&listener);
    let Accepted::Peer(stream, peer) = accepted(&listener) else { panic!("somebody has connected") };
    assert_eq!((peer.to_string(), Peer::Unix.to_string()), ("127.0.0.1".into(), "a Unix socket".into()));
    assert!(getsockopt(&stream, sockopt::TcpNoDelay).expect("an option"), "it inherits that");
    let flags = fcntl(listener.descriptor(), FcntlArg::F_GETFL).expect("its flags");
    assert!(OFlag::from_bits_truncate(flags).contains(OFlag::O_NONBLOCK));
    let flags = fcntl(listener.descriptor(), FcntlArg::F_GETFD).expect("its flags");
    assert_eq!(flags, nix::libc::FD_CLOEXEC);
    let again = Listen::Tcp { address: Some(Ipv4Addr::LOCALHOST.into()), port };
    let taken = Listener::bind(&again, None).map(drop).map_err(|error| error.kind());
    assert_eq!(taken, Err(io::ErrorKind::AddrInUse));
}

#[test]
fn a_port_of_all_addresses_takes_ipv4_as_well() {
    let listener = Listener::bind(&Listen::Tcp { address: None, port: 0 }, None).expect("a port");
    assert!(!listener.is_local());
    let _client = connect(&listener);
    let Accepted::Peer(_, Peer::Ip(ip)) = accepted(&listener) else { panic!("somebody has connected") };
    assert_eq!(ip, IpAddr::V4(Ipv4Addr::LOCALHOST), "in no IPv6 clothes");
}

#[test]
fn localhost_is_both_addresses_at_one_port_where_the_machine_has_both() {
    let listener = Listener::bind(&Listen::Localhost { port: 0 }, None).expect("a port");
    assert!(listener.address().starts_with("127.0.0.1:"));
    let has_ipv6 = std::net::TcpListener::bind("[::1]:0").is_ok();
    match listener.bind_beside() {
        Ok(Some(beside)) => {
            assert!(has_ipv6 && beside.is_local());
            assert_eq!(beside.port(), listener.port());
            assert!(beside.address().starts_with("[::1]:"));
            let twice = listener.bind_beside().map(drop).map_err(|error| error.kind());
            assert_eq!(twice, Err(io::ErrorKind::AddrInUse));
        }
        Ok(None) => assert!(!has_ipv6),
        // Somebody has that port on ::1.
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrInUse),
    }
}

#[test]
fn events_tell_of_connections_while_a_listener_is_watched() {
    let mut listener = bind("127.0.0.1:0");
    let mut poll = Poll::new().expect("epoll");
    let registry = poll.registry().try_clone().expect("another handle");
    let mut events = Events::with_capacity(4);
    let mut told = |within_ms| {
        poll.poll(&mut events, Some(Duration::from_millis(within_ms))).expect("polled");
        events.iter().map(mio::event::Event::token).collect::<Vec<_>>()
    };
    registry.register(&mut listener, Token(5), Interest::READABLE).expect("registered");
    let _one = connect(&listener);
    assert_eq!(told(10_000), [Token(5)]);
    registry.reregister(&mut listener, Token(6), Interest::READABLE).expect("registered");
    assert_eq!(told(10_000), [Token(6)], "somebody is there still");
    registry.deregister(&mut listener).expect("no more");
    let _other = connect(&listener);
    assert_eq!(told(0), []);
}

#[test]
fn what_is_no_listening_stream_socket_is_not_adopted() {
    let complaint = |fd: OwnedFd| match Listener::adopt(fd, Holders::Shared) {
        Ok(listener) => panic!("{}", listener.address()),
        Err(error) => error.to_string(),
    };
    assert_eq!(complaint(File::open("/dev/null").expect("a file").into()), "is no socket");
    let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a port");
    assert_eq!(complaint(datagrams.into()), "is no stream socket");
    let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    assert_eq!(complaint(one.into()), "is a socket, and does not listen");
}

#[test]
fn a_listening_socket_is_adopted_with_its_address() {
    let plain = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = plain.local_addr().expect("its address").to_string();
    let listener = Listener::adopt(plain.into(), Holders::Shared).expect("adopted");
    assert_eq!(listener.address(), address);
    assert!(matches!(listener.accept(), Accepted::Nobody), "it does not wait");
    let _client = connect(&listener);
    let Accepted::Peer(stream, _) = accepted(&listener) else { panic!("somebody has connected") };
    assert!(getsockopt(&stream, sockopt::TcpNoDelay).expect("an option"));

    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("socket");
    let plain = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let listener = Listener::adopt(plain.into(), Holders::Handed).expect("adopted");
    assert_eq!((listener.address(), listener.port()), (format!("unix:{}", path.display()), None));
    assert!(listener.is_local() && !listener.has_file());
    drop(listener);
    assert!(path.exists(), "whoever made the file removes it");

    let name = format!("rip-test-{}", std::process::id());
    let abstract_name = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a name");
    let plain = std::os::unix::net::UnixListener::bind_addr(&abstract_name).expect("a socket");
    let listener = Listener::adopt(plain.into(), Holders::Own).expect("adopted");
    assert_eq!(listener.address(), format!("unix:@{name}"));
}

#[test]
fn who_holds_a_socket_decides_what_may_be_done_to_it() {
    let mut listener = bind("127.0.0.1:0");
    assert_eq!((listener.is_shared(), listener.is_given()), (false, false));
    listener.is_released();
    assert!(!listener.is_shared());
    listener.holders = Holders::Handed;
    assert_eq!((listener.is_shared(), listener.is_given()), (true, false));
    listener.is_released();
    assert!(!listener.is_shared(), "this server's alone");
    listener.hand_over();
    listener.is_released();
    assert_eq!((listener.is_shared(), listener.is_given()), (true, true), "somebody else's for good");

    assert_eq!((listener.place(), listener.has_proxy_header()), ("", false));
    listener.remember_place("http:5000".into());
    listener.expect_proxy_header(true);
    assert_eq!((listener.place(), listener.has_proxy_header()), ("http:5000", true));
}

#[test]
fn a_unix_sockets_file_goes_with_its_listener_unless_it_is_anothers() {
    let dir = tempfile::tempdir().expect("a folder");
    let (path, other) = (dir.path().join("socket"), dir.path().join("other"));
    let bind_it = || Listener::bind(&Listen::Unix(path.clone()), None).expect("a socket");
    let listener = bind_it();
    assert!(listener.has_file() && listener.is_local() && path.exists());
    assert_eq!(listener.address(), format!("unix:{}", path.display()));
    drop(listener);
    assert!(!path.exists(), "it goes with the listener");

    let mut listener = bind_it();
    listener.move_to(&other).expect("moved");
    assert!(!path.exists() && other.exists());
    assert_eq!(listener.address(), format!("unix:{}", other.display()));
    drop(listener);
    assert!(!other.exists());

    let listener = bind_it();
    // Made beside it, so that it surely is another inode.
    File::create(&other).and_then(|_| std::fs::rename(&other, &path)).expect("another's");
    drop(listener);
    assert!(path.exists(), "another's stays");
    std::fs::remove_file(&path).expect("removed");

    let mut listener = bind_it();
    listener.hand_over();
    assert!(!listener.has_file());
    drop(listener);
    assert!(path.exists(), "the next server's");
    std::fs::remove_file(&path).expect("removed");

    let mut listener = bind_it();
    listener.hand_over();
    listener.own_file();
    assert!(listener.has_file());
    drop(listener);
    assert!(!path.exists(), "this server's again");
}

#[test]
fn clients_of_a_unix_socket_are_accepted_one_by_one() {
    let door = Rc::new(RefCell::new(Door::default()));
    let listener = Listener::scripted(UnixListener::at(&door), Holders::Own);
    assert!(matches!(listener.accept(), Accepted::Nobody));
    door.borrow_mut().waiting.push_back(Wire::new(Kind::Unix, 10));
    assert!(matches!(listener.accept(), Accepted::Peer(Stream::Unix(_), Peer::Unix)));
    assert!(matches!(listener.accept(), Accepted::Nobody));
}

#[test]
fn a_socket_that_cannot_accept_says_so() {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket_fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("a socket");
    let socket = Socket::Tcp(TcpListener::from_std(socket_fd.into()));
    // It does not listen: EINVAL, by which a Unix socket says that it was shut.
    let accepted = Listener::new(socket, Holders::Own).accept();
    assert!(matches!(accepted, Accepted::NotNow(_)), "{accepted:?}");
}

#[test]
fn the_owner_of_a_port_is_found() {
    let listener = bind("127.0.0.1:0");
    let port = listener.port().expect("a port");
    assert_eq!(owner_of_port(port), Some(std::process::id()));
    // A client of it is no owner.
    let client = connect(&listener);
    let own_port = client.local_addr().expect("its address").port();
    assert_eq!(owner_of_port(own_port), None);
}
