//! Clients that leave at any moment, and that say what nobody should.

use super::{CLOSE, Player};
use crate::ask::{ANSWER_WITHIN, Deed, Outcome};
use crate::noise::Noise;
use crate::support::Trouble;
use crate::support::wire::Wire;
use std::time::Instant;

/// More than the server takes.
const TOO_MANY_BYTES: usize = 30_000_000;

impl Player {
    pub(super) fn be_rude(&mut self) {
        let Some(wire) = self.connect() else { return };
        match self.random.between(0, 9) {
            0 | 1 => self.leave_in_the_request(wire),
            2..=4 => self.leave_while_waiting(wire),
            5 | 6 => self.leave_in_the_answer(wire),
            7 => self.half_close(wire),
            8 => self.say_nonsense(wire),
            _ => self.send_too_much(wire),
        }
        self.pause(0, 20);
    }

    /// Ends the connection in one way or another. Whether what was sent before will be read.
    fn leave(&mut self, wire: Wire) -> bool {
        if self.random.chance(50) {
            wire.reset();
            return false;
        }
        drop(wire);
        true
    }

    fn leave_in_the_request(&mut self, mut wire: Wire) {
        let upload_bytes = self.random.pick(&[0, 100, 300_000]);
        let mut ask = self.ask("POST", Deed::Plain, upload_bytes);
        let bytes = ask.bytes("");
        let head_bytes = bytes.len() - upload_bytes;
        let longest = if self.random.chance(50) { head_bytes } else { bytes.len() };
        let count = self.random.between(0, longest - 1);
        let _ = wire.write(&bytes[..count]);
        self.pause(0, 5);
        self.leave(wire);
        ask.outcome = Outcome::Left { status: None, must_arrive: false };
        self.done(ask);
    }

    fn leave_while_waiting(&mut self, mut wire: Wire) {
        let method = self.random.pick(&["GET", "POST", "PUT"]);
        let deed = Deed::Slow { ms: self.random.between(0, 60) };
        let mut ask = self.ask(method, deed, if method == "GET" { 0 } else { 10 });
        let is_sent = wire.write(&ask.bytes("")).is_ok();
        self.pause(0, 40);
        let is_read = self.leave(wire);
        ask.outcome = Outcome::Left { status: None, must_arrive: is_sent && is_read };
        self.done(ask);
    }

    fn leave_in_the_answer(&mut self, mut wire: Wire) {
        let bytes = self.random.between(1, 6_000_000);
        let deed = self.random.pick(&[Deed::Body { bytes }, Deed::Stream { bytes }]);
        let mut ask = self.ask("GET", deed, 0);
        let is_sent = wire.write(&ask.bytes("")).is_ok();
        let head = wire.read_head(Instant::now() + ANSWER_WITHIN);
        let status = head.and_then(|head| head.status()).ok();
        let wanted_bytes = self.random.between(0, bytes / 2);
        if status == Some(200) {
            let _ = wire.read_exactly(wanted_bytes, Instant::now() + ANSWER_WITHIN);
        }
        self.leave(wire);
        ask.outcome = Outcome::Left { status, must_arrive: is_sent && status.is_some() };
        self.done(ask);
    }

    /// Says that nothing more will come, and wants its answer all the same.
    fn half_close(&mut self, mut wire: Wire) {
        let mut ask = self.ask("PUT", Deed::Slow { ms: 5 }, 20);
        if wire.write(&ask.bytes(CLOSE)).is_ok() && wire.half_close().is_ok() {
            ask.read_answer(&mut wire);
        }
        self.done(ask);
    }

    fn say_nonsense(&mut self, mut wire: Wire) {
        let mut ask = self.ask("GET", Deed::Plain, 0);
        let bytes = match self.random.between(0, 2) {
            0 => ask.bytes("Host: b\r\n"),
            1 => [&Noise::of(&ask.id).bytes(0, 300), &b"\r\n\r\n"[..]].concat(),
            _ => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        };
        let is_sent = wire.write(&bytes).is_ok();
        match wire.read_response(Instant::now() + ANSWER_WITHIN, |_| false) {
            Ok(response) => ask.outcome = Outcome::Refused { status: response.status },
            // Closed with bytes unread, the refusal may be lost in the reset.
            Err(broken) if broken.trouble == Trouble::Reset || !is_sent => {
                ask.outcome = Outcome::Left { status: None, must_arrive: false };
            }
            Err(broken) => ask.outcome = Outcome::Nothing(broken.trouble),
        }
        self.done(ask);
    }

    fn send_too_much(&mut self, mut wire: Wire) {
        let mut ask = self.ask("POST", Deed::Plain, 0);
        if wire.write(ask.head(&format!("Content-Length: {TOO_MANY_BYTES}\r\n")).as_bytes()).is_ok() {
            ask.read_answer(&mut wire);
            if let Outcome::Answered { status, .. } = ask.outcome {
                ask.outcome = Outcome::Refused { status };
            }
        }
        self.done(ask);
    }
}
