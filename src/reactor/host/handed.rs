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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Abilities, Sender};
    use std::fs::File;

    fn offer(at: &str) -> SocketOffer {
        SocketOffer { service: "http".into(), at: at.into(), is_given: false, has_file: false }
    }

    #[test]
    fn everything_up_to_the_beginning_is_taken_in() {
        let (old, new) = Line::pair().expect("a pair");
        let file = File::open("/dev/null").expect("a file");
        let abilities = Abilities { drains: true, streams: false, concurrency: 2 };
        let sender = Sender { instance: None, worker_id: 3 };
        let join = Join { sender, pid: 42, socket: "/s".into(), version: 7, abilities };
        let worker = Message::Worker { join: join.clone(), process: Some(42) };
        let said = std::thread::spawn(move || {
            for (message, has_descriptor) in [
                (Message::Socket(offer("one")), true),
                (Message::Socket(offer("without its socket")), false),
                (Message::Socket(offer("two")), true),
                (Message::Lock, true),
                (worker, false),
                (Message::Go, false),
                (Message::Begin { serving: 3, size: 4, generation: 9 }, false),
                (Message::Go, false),
            ] {
                old.say(&message, has_descriptor.then(|| file.as_fd())).expect("said");
            }
            old
        });
        let mut handed = Handed::receive(new).expect("all of it");
        let _old = said.join().expect("it has said all");
        let offers: Vec<&str> = handed.sockets.iter().map(|(offer, _)| offer.at.as_str()).collect();
        assert_eq!(offers, ["one", "two"]);
        assert!(handed.lock.is_some());
        assert_eq!(handed.workers, [(join, Some(42))]);
        assert_eq!((handed.begin.serving, handed.begin.size, handed.begin.generation), (3, 4, 9));
        assert!(
            matches!(handed.line.hear(), Heard::Message(Some(Message::Go), None)),
            "what is behind it waits"
        );
    }

    #[test]
    fn a_server_that_goes_before_it_has_said_all_hands_nothing_over() {
        let (old, new) = Line::pair().expect("a pair");
        old.say(&Message::Lock, None).expect("said");
        drop(old);
        assert_eq!(Handed::receive(new).map(drop), Err("the server before this one has gone".into()));
    }
}
