//! What a new server is given by the one before it, before it starts.

use super::line::{Heard, Line};
use crate::control::Join;
use crate::handover::{Message, SocketOffer, VARIABLE};
use crate::process;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, OwnedFd};

/// All of it has been said before the new server was started.
const WITHIN_MS: u16 = 5000;

#[derive(Debug)]
pub(crate) struct Handed {
    pub line: Line,
    pub sockets: Vec<(SocketOffer, OwnedFd)>,
    pub lock: Option<OwnedFd>,
    /// Workers that have joined by themselves, and their processes.
    pub workers: Vec<(Join, Option<i32>)>,
    pub begin: Begin,
}

/// How the old server stands.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Begin {
    pub serving: usize,
    pub size: usize,
    pub generation: u64,
}

/// The line to the server that this one is to follow, if there is one. To be called once, and before anything is opened.
pub(crate) fn line() -> Option<Line> {
    let fd = std::env::var(VARIABLE).ok()?.parse().ok()?;
    process::inherited_descriptor(fd).ok().map(Line::of)
}

/// Tells the server before this one, if there is one, why this one does not start.
pub(crate) fn tell_failure(reason: &str) {
    if let Some(line) = line() {
        // If that fails, it sees this one's end.
        let _ = line.say(&Message::Failed { reason: reason.to_owned() }, None);
    }
}

impl Handed {
    /// Takes in what the old server has said.
    ///
    /// # Errors
    /// It does not say all of it.
    pub(crate) fn receive(mut line: Line) -> Result<Handed, String> {
        let (mut sockets, mut lock, mut workers) = (Vec::new(), None, Vec::new());
        loop {
            match line.hear() {
                Heard::Message(Some(Message::Socket(offer)), Some(fd)) => sockets.push((offer, fd)),
                Heard::Message(Some(Message::Lock), fd) => lock = fd,
                Heard::Message(Some(Message::Worker { join, process }), _) => workers.push((join, process)),
                Heard::Message(Some(Message::Begin { serving, size, generation }), _) => {
                    let begin = Begin { serving, size, generation };
                    return Ok(Handed { line, sockets, lock, workers, begin });
                }
                Heard::Message(_, _) => {}
                Heard::Nothing => {
                    let mut context = [PollFd::new(line.as_fd(), PollFlags::POLLIN)];
                    if !matches!(poll(&mut context, PollTimeout::from(WITHIN_MS)), Ok(1..)) {
                        return Err("the server before this one does not say what it hands over".into());
                    }
                }
                Heard::End => return Err("the server before this one has gone".into()),
            }
        }
    }
}
