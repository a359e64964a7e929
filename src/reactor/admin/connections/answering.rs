//! What operators are answered.

use super::{Ask, Connection, ControlDeadline, MAX_PROGRESS_BYTES, Phase, Then};
use crate::conn::Request;
use crate::http::Reason;
use crate::http::downstream::LocalResponse;
use crate::reactor::admin::Admin;
use crate::reactor::io::Io;
use serde_json::{Value, json};

impl Admin {
    pub(crate) fn respond(&mut self, key: usize, request: &Request, status: u16, value: &Value, io: &Io) {
        let text = format!("{value}\n");
        self.respond_with(key, request, status, "application/json", text.as_bytes(), io);
    }

    /// What is behind a refused request is none.
    pub(super) fn refuse(&mut self, key: usize, request: &Request, reason: Reason, io: &Io) {
        let error = json!({"ok": false, "error": reason.message()});
        self.respond(key, request, reason.status(), &error, io);
        self.flush(key, io);
    }

    pub(crate) fn respond_with(
        &mut self,
        key: usize,
        request: &Request,
        status: u16,
        content_type: &'static str,
        body: &[u8],
        io: &Io,
    ) {
        self.respond_with_fields(key, request, (status, content_type, ""), body, io);
    }

    /// The same with further fields, each a whole line.
    pub(crate) fn respond_with_fields(
        &mut self,
        key: usize,
        request: &Request,
        (status, content_type, fields): (u16, &'static str, &str),
        body: &[u8],
        io: &Io,
    ) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        debug_assert_eq!(connection.phase, Phase::Reading, "one answer at a time");
        let keep_alive = request.context.keep_alive && !connection.conn.is_lingering();
        connection.phase = Phase::Answering(if keep_alive { Then::Keep } else { Then::Close });
        let local_response = LocalResponse {
            status,
            content_type,
            fields: fields.as_bytes(),
            body,
            retry_soon: false,
            is_head: request.context.is_head,
            version: request.context.version,
            keep_alive,
            date: io.date_line(),
        };
        local_response.write(&mut connection.out);
    }

    /// A request's answer has to be found out first: it is asked for once more in the next tick.
    pub(crate) fn postpone(&mut self, ask: Ask) {
        if let Some(connection) = self.connections.get_mut(ask.key) {
            connection.phase = Phase::AwaitsAnswer;
            let number = connection.number;
            self.connections.postponed.push((ask, number));
        }
    }

    /// Those requests whose connections are still there: one for each of them at most.
    pub(crate) fn take_postponed(&mut self) -> Vec<Ask> {
        let postponed = std::mem::take(&mut self.connections.postponed);
        let mut asks = Vec::with_capacity(postponed.len());
        for (ask, number) in postponed {
            let connection = self.connections.get_mut(ask.key);
            if let Some(connection) = connection.filter(|other| other.number == number) {
                connection.phase = Phase::Reading;
                asks.push(ask);
            }
        }
        asks
    }

    /// The peer has all of its answer.
    pub(super) fn answer_taken(&mut self, key: usize, then: Then, io: &Io) {
        let now = io.now();
        let Some(connection) = self.connections.get_mut(key) else { return };
        let may_still_send = !connection.conn.read_buffer.is_empty()
            || connection.is_readable
            || connection.conn.is_lingering();
        match then {
            Then::Keep => {
                connection.phase = Phase::Reading;
                connection.conn.answered();
                let has_more = may_still_send || connection.conn.has_ended;
                self.deadlines.arm(key, ControlDeadline::Idle, now);
                if has_more {
                    self.connections.mark_ready(key);
                }
            }
            // Closing with unread input would make the kernel throw the answer away.
            Then::Close if may_still_send && !connection.conn.has_ended => {
                connection.stream.shutdown_write();
                connection.conn.linger();
                connection.phase = Phase::Lingering;
                self.deadlines.arm(key, ControlDeadline::Linger, now);
                self.connections.mark_ready(key);
            }
            Then::Close => self.close(key),
        }
    }

    /// Answers with a line for each step of the rolling restart, and one for its end.
    pub(crate) fn follow_roll(&mut self, key: usize) {
        self.follow(key, Phase::FollowsRoll);
    }

    /// The same for an upgrade.
    pub(crate) fn follow_upgrade(&mut self, key: usize) {
        self.follow(key, Phase::FollowsUpgrade);
    }

    fn follow(&mut self, key: usize, what: Phase) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.phase = what;
            connection.out.extend_from_slice(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n",
            );
        }
    }

    /// Keeps an answered connection open until the server ends.
    pub(crate) fn await_end(&mut self, key: usize) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.phase = Phase::AwaitsEnd;
        }
    }

    pub(crate) fn tell_roll_progress(&mut self, replaced: usize, of: usize, io: &Io) {
        self.tell_followers(Phase::FollowsRoll, &json!({"replaced": replaced, "of": of}), false, io);
    }

    pub(crate) fn tell_upgrade_progress(&mut self, serving: usize, of: usize, io: &Io) {
        self.tell_followers(Phase::FollowsUpgrade, &json!({"serving": serving, "of": of}), false, io);
    }

    /// `result`: the new server's pid, or why there is none.
    pub(crate) fn answer_upgrade_followers(&mut self, result: &Result<i32, String>, io: &Io) {
        let last = match result {
            Ok(pid) => json!({"ok": true, "pid": pid}),
            Err(error) => json!({"ok": false, "error": error}),
        };
        self.tell_followers(Phase::FollowsUpgrade, &last, true, io);
    }

    /// A first worker is on trial: its slot and process, and that it gets one request in so many.
    pub(crate) fn tell_trial(&mut self, worker: Option<(usize, i32)>, every: usize, io: &Io) {
        let (slot, pid) = worker.unzip();
        self.tell_followers(
            Phase::FollowsRoll,
            &json!({"worker": slot, "pid": pid, "every": every}),
            false,
            io,
        );
    }

    pub(crate) fn answer_roll_followers(&mut self, result: &Result<usize, String>, io: &Io) {
        let last = match result {
            Ok(replaced) => json!({"ok": true, "replaced": replaced}),
            Err(error) => json!({"ok": false, "error": error}),
        };
        self.tell_followers(Phase::FollowsRoll, &last, true, io);
    }

    fn tell_followers(&mut self, phase: Phase, value: &Value, is_last: bool, io: &Io) {
        let follows = |connection: &Connection| connection.phase == phase;
        let followers = self.connections.slab.iter().filter(|(_, other)| follows(other));
        let followers: Vec<usize> = followers.map(|(key, _)| key).collect();
        for key in followers {
            if let Some(connection) = self.connections.get_mut(key)
                && (is_last || connection.out.len() < MAX_PROGRESS_BYTES)
            {
                connection.out.extend_from_slice(format!("{value}\n").as_bytes());
                if is_last {
                    connection.phase = Phase::Answering(Then::Close);
                }
            }
            self.flush(key, io);
        }
    }
}
