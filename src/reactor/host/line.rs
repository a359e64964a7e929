//! The line between the two servers of an upgrade: a socket pair with whole messages, and descriptors beside them.

use crate::handover::Message;
use crate::process;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The largest message: a server's counters. A socket takes somewhat more at once.
const MAX_MESSAGE_BYTES: usize = 192 * 1024;

#[derive(Debug)]
pub(crate) struct Line {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// What the other end has said.
#[derive(Debug)]
pub(crate) enum Heard {
    /// `None`: nothing that this version knows.
    Message(Option<Message>, Option<OwnedFd>),
    Nothing,
    /// It has closed its end.
    End,
}

impl Line {
    /// Both ends.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn pair() -> io::Result<(Line, Line)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Line::of(one), Line::of(other)))
    }

    pub(crate) fn of(socket: OwnedFd) -> Line {
        Line { socket, buffer: vec![0; MAX_MESSAGE_BYTES] }
    }

    /// Another handle of the same end.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn try_clone(&self) -> io::Result<Line> {
        self.socket.try_clone().map(Line::of)
    }

    /// Says something now, or not at all.
    ///
    /// # Errors
    /// There is no room, or nobody is there.
    pub(crate) fn say(&self, message: &Message, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let text = message.to_json();
        if text.len() > MAX_MESSAGE_BYTES {
            return Err(Errno::EMSGSIZE.into());
        }
        let fds = descriptor.map(|fd| [fd.as_raw_fd()]);
        let rights = fds.as_ref().map(|fds| ControlMessage::ScmRights(fds));
        let rights = rights.as_slice();
        loop {
            let words = [IoSlice::new(text.as_bytes())];
            match sendmsg::<()>(self.socket.as_raw_fd(), &words, rights, MsgFlags::MSG_NOSIGNAL, None) {
                Err(Errno::EINTR) => {}
                result => return result.map(drop).map_err(io::Error::from),
            }
        }
    }

    /// The next message that has come.
    pub(crate) fn hear(&mut self) -> Heard {
        loop {
            return match process::receive(self.socket.as_fd(), &mut self.buffer) {
                // A reset is told once, and before what was said: the other end closed without having read all.
                Err(Errno::EINTR | Errno::ECONNRESET) => continue,
                Err(Errno::EAGAIN) => Heard::Nothing,
                Ok((0, _)) | Err(_) => Heard::End,
                Ok((bytes, fd)) => Heard::Message(Message::parse(&self.buffer[..bytes]), fd),
            };
        }
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn messages_come_whole_and_in_order_until_the_other_end_closes() {
        let (one, mut other) = Line::pair().expect("a pair");
        assert!(matches!(other.hear(), Heard::Nothing), "it does not wait");
        one.say(&Message::Ready, None).expect("said");
        one.try_clone().expect("another handle").say(&Message::Go, None).expect("said");
        assert!(matches!(other.hear(), Heard::Message(Some(Message::Ready), None)));
        assert!(matches!(other.hear(), Heard::Message(Some(Message::Go), None)));
        nix::unistd::write(&one, b"what is that?").expect("written");
        assert!(matches!(other.hear(), Heard::Message(None, None)));
        let flags = nix::fcntl::fcntl(&one, nix::fcntl::FcntlArg::F_GETFD).expect("its flags");
        assert_eq!(flags, nix::libc::FD_CLOEXEC);
        drop(one);
        assert!(matches!(other.hear(), Heard::End));
        assert!(other.say(&Message::Go, None).is_err(), "nobody is there");
    }

    #[test]
    fn a_descriptor_goes_beside_its_message() {
        let (one, mut other) = Line::pair().expect("a pair");
        let (near, mut far) = UnixStream::pair().expect("a pair");
        one.say(&Message::Lock, Some(near.as_fd())).expect("said");
        drop(near);
        let Heard::Message(Some(Message::Lock), Some(fd)) = other.hear() else { panic!("it has one") };
        std::io::Write::write_all(&mut File::from(fd), b"the same").expect("written");
        let mut text = String::new();
        far.read_to_string(&mut text).expect("read");
        assert_eq!(text, "the same");
    }

    #[test]
    fn a_message_may_have_192_kib() {
        let (one, mut other) = Line::pair().expect("a pair");
        let of = |reason: String| Message::Failed { reason };
        let most = 192 * 1024 - of(String::new()).to_json().len();
        let too_long = one.say(&of("x".repeat(most + 1)), None).map_err(|error| error.raw_os_error());
        assert_eq!(too_long, Err(Some(Errno::EMSGSIZE as i32)));
        let longest = of("x".repeat(most));
        // Where the kernel takes so much at once, as it does by default.
        if one.say(&longest, None).is_ok() {
            let Heard::Message(heard, None) = other.hear() else { panic!("it was said") };
            assert!(heard == Some(longest), "the whole of it");
        }
    }
}
