//! The server's line to a template: a socket that the template inherits as its standard input. The server asks for
//! workers, each with its environment and its two outputs; the template says what it can do, and names each worker
//! before that one can join.

use super::Begun;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair,
};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

/// What a template says at once, at most: a reason for people.
const MAX_MESSAGE_BYTES: usize = 2048;
/// Messages taken in one look, so that a template that talks without an end keeps nobody waiting.
const MAX_MESSAGES: usize = 256;

/// What a template says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// Its app is loaded, and may be forked.
    Ready,
    /// Its app is not to be forked, or cannot be: why, for people. It ends by itself.
    Refused(String),
    /// A worker is there.
    Forked { id: u64, pid: Pid },
    /// It could not make one.
    NotForked { id: u64, why: String },
}

impl Said {
    /// `ready`, `refused <why>`, `forked <id> <pid>` or `failed <id> <why>`.
    fn parse(bytes: &[u8]) -> Option<Said> {
        let text = String::from_utf8_lossy(bytes);
        let (kind, rest) = text.split_once(' ').unwrap_or((&text, ""));
        let id_and = || {
            let (id, more) = rest.split_once(' ')?;
            Some((id.parse().ok()?, more))
        };
        match kind {
            "ready" => Some(Said::Ready),
            "refused" => Some(Said::Refused(rest.to_owned())),
            "forked" => {
                let (id, pid) = id_and()?;
                // 1 and below are nobody's worker, and -1 is everybody.
                let pid = pid.parse().ok().filter(|&pid| pid > 1)?;
                Some(Said::Forked { id, pid: Pid::from_raw(pid) })
            }
            "failed" => id_and().map(|(id, why)| Said::NotForked { id, why: why.to_owned() }),
            _ => None,
        }
    }
}

/// The server's end.
#[derive(Debug)]
pub(crate) struct Line {
    socket: OwnedFd,
    /// What the socket has no room for: one for each slot at most.
    waiting: VecDeque<(Vec<u8>, [OwnedFd; 2])>,
    last_id: u64,
}

impl Line {
    /// A line, and the template's end of it.
    ///
    /// # Errors
    /// A lack of descriptors.
    pub(crate) fn new() -> io::Result<(Line, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Line { socket: near, waiting: VecDeque::new(), last_id: 0 }, far))
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Asks for a worker with these variables beside the template's own.
    ///
    /// # Errors
    /// A lack of descriptors.
    pub(crate) fn fork(&mut self, environment: &[(&str, OsString)]) -> io::Result<Begun> {
        self.last_id += 1;
        let id = self.last_id;
        let mut message = id.to_string().into_bytes();
        for (name, value) in environment {
            message.push(0);
            message.extend_from_slice(name.as_bytes());
            message.push(b'=');
            message.extend_from_slice(value.as_bytes());
        }
        let (stdout, child_stdout) = io::pipe()?;
        let (stderr, child_stderr) = io::pipe()?;
        self.waiting.push_back((message, [child_stdout.into(), child_stderr.into()]));
        self.send_waiting();
        Ok(Begun { id, stdout: stdout.into(), stderr: stderr.into() })
    }

    fn send_waiting(&mut self) {
        while let Some((message, pipes)) = self.waiting.front() {
            let fds = [pipes[0].as_raw_fd(), pipes[1].as_raw_fd()];
            let words = [IoSlice::new(message)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(
                self.socket.as_raw_fd(),
                &words,
                &[ControlMessage::ScmRights(&fds)],
                flags,
                None,
            ) {
                Err(Errno::EINTR) => {}
                // There is room when those before it are answered; of the template's death its end tells.
                Err(Errno::EAGAIN | Errno::EPIPE | Errno::ECONNRESET) => return,
                Ok(_) | Err(_) => drop(self.waiting.pop_front()),
            }
        }
    }

    /// What has come since the last look.
    pub(crate) fn said(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        let mut bytes = [0; MAX_MESSAGE_BYTES];
        for _ in 0..MAX_MESSAGES {
            match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                // A reset is told once, and before what was said.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Ok(length @ 1..) => said.extend(Said::parse(&bytes[..length])),
                // Its end is told by the kernel.
                Ok(0) | Err(_) => break,
            }
        }
        self.send_waiting();
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_template_says_is_understood_and_nonsense_is_not() {
        let pid = Pid::from_raw(42);
        for (text, said) in [
            ("ready", Some(Said::Ready)),
            ("refused a thread runs", Some(Said::Refused("a thread runs".into()))),
            ("forked 7 42", Some(Said::Forked { id: 7, pid })),
            ("failed 7 no memory", Some(Said::NotForked { id: 7, why: "no memory".into() })),
            ("forked 7 -1", None),
            ("forked 7 1", None),
            ("forked 7", None),
            ("forked x 42", None),
            ("", None),
        ] {
            assert_eq!(Said::parse(text.as_bytes()), said, "{text}");
        }
    }

    #[test]
    fn a_worker_is_asked_for_with_its_environment_and_its_outputs() {
        let (mut line, far) = Line::new().expect("a line");
        let begun = line.fork(&[("WORKER_ID", "3".into()), ("A", "x=y".into())]).expect("asked");
        let mut bytes = [0; 100];
        let length = nix::unistd::read(&far, &mut bytes).expect("a message");
        assert_eq!((begun.id, &bytes[..length]), (1, &b"1\0WORKER_ID=3\0A=x=y"[..]));
        nix::unistd::write(&far, b"forked 1 42").expect("an answer");
        assert_eq!(line.said(), [Said::Forked { id: 1, pid: Pid::from_raw(42) }]);
        assert_eq!(line.said(), []);
    }
}
