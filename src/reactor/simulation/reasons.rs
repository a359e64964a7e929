//! Whether what the log says of a request is true.

use super::oracle::Try;
use super::wire::Kind;
use super::world::World;
use super::{disk, process, wire};
use crate::reactor::limits::LINGER;
use crate::reactor::stage::Stage;

impl World {
    /// A reason may stand in the log only where it is true.
    pub(super) fn check_reason(&self, number: usize, reason: &str) {
        let tag = &self.oracle.tags[number];
        let config = &self.reactor.config;
        let client = &self.clients[tag.client];
        let is_running = self.reactor.stage == Stage::Running;
        let knows_little = process::table(|table| table.tells_little);
        let is_true = match reason {
            // A worker with a full buffer may have got too little of it to tell which request it is.
            "read_timeout" => tag.tries.is_empty() || tag.pause(self.now) >= config.read_timeout,
            "client_timeout" => tag.first_sent.is_some_and(|first| self.now >= first + config.client_timeout),
            "stopping" => !is_running || (tag.was_parted && self.had_its_drain(tag.first_tried)),
            "worker_died" => {
                // Once the workers are told to end, nobody is left for one that was given to a dead one.
                let has_nobody = !is_running && tag.tries.is_empty();
                let has_died = tag.was_died_on && !self.oracle.is_whole(number);
                has_died || has_nobody || self.oracle.has_little_room || knows_little
            }
            "answer_cut" => {
                let is_unheard = self.oracle.has_closed_idle && tag.tries.last() != Some(&Try::Heard);
                // Of what no runtime takes, a close without a word says so.
                let is_not_taken = tag.planned.method == "BREW" && tag.tries.last() == Some(&Try::NoResponse);
                let was_closed_on = tag.was_closed_on && !self.oracle.is_whole(number);
                (was_closed_on || self.oracle.has_little_room || is_unheard) && !is_not_taken
            }
            "client_gone" => {
                let wire = client.wire.borrow();
                let is_unresponsive = self.now >= client.took_at + config.idle_timeout;
                // A FIN alone is a departure from nothing but a stream.
                let has_left = wire.peer_has_ended && self.oracle.is_stream(number);
                let has_hung_up = wire.is_peer_gone && wire.kind == Kind::Unix;
                wire.is_reset || has_left || has_hung_up || is_unresponsive || !is_running
            }
            "method_not_taken" => tag.planned.method == "BREW" && tag.was_closed_on,
            "worker_busy" => tag.tries.last() == Some(&Try::Busy),
            // Only a body that finds no room; an answer is never cut for want of it.
            "spool_full" => tag.tries.is_empty() && disk::was_full(),
            // The deepest queue so far is all that is left to see of a moment when it was full.
            "queue_full" => tag.tries.is_empty() && self.reactor.balancer.longest_queue() >= config.max_queue,
            "queue_timeout" => {
                tag.first_sent.is_some_and(|first| self.now >= first + config.queue_timeout)
                    && tag.tries.last() != Some(&Try::Heard)
            }
            "connect_failed" => tag.tries.last() != Some(&Try::Heard),
            "bad_response" => {
                // Or the answer before it had a byte too much, which was read only behind this request.
                self.oracle.answers.iter().any(|said| {
                    (said.tag == number && !said.answer.is_sound)
                        || (said.is_all && said.answer.surplus_bytes > 0)
                })
            }
            // Its worker's streams may have ended since.
            "streams_full" => tag.tries.is_empty() && tag.planned.asks_for_stream,
            "start_failed" => tag.tries.is_empty(),
            // Each request is of its own kind, so only its own second try can be refused.
            // Its worker may have closed the connection first, and ended before the server looked.
            "quarantined" => {
                config.quarantine == 1 && (tag.was_died_on || tag.was_closed_on) && tag.tries.len() == 1
            }
            _ if tag.planned.flaw.is_some_and(|flaw| flaw.reason == reason) => true,
            // Its client has ended before it was whole.
            "bad_request: incomplete" => {
                client.sent < tag.planned.at.end && client.wire.borrow().peer_has_ended
            }
            "" => tag.planned.is_local || !tag.tries.is_empty(),
            // Nothing in these histories is a cause of any other.
            _ => false,
        };
        assert!(is_true, "request {number}: '{reason}' is not true of it");
        if let Some(flaw) = tag.planned.flaw {
            let is_earlier = matches!(reason, "client_timeout" | "client_gone" | "stopping");
            let is_right = is_earlier || reason == "bad_request: incomplete" || reason == flaw.reason;
            assert!(is_right, "request {number}: '{reason}' is not what is wrong with it");
        }
    }

    /// Whoever a trusted proxy names is the client; nobody else is believed.
    pub(super) fn check_address(&self, number: usize, reason: &str, logged: Option<&str>) {
        let tag = &self.oracle.tags[number];
        let peer = self.clients[tag.client].address();
        // Its head may not have been read.
        let is_unread = tag.tries.is_empty()
            && matches!(reason, "client_timeout" | "client_gone" | "stopping" | "bad_request: incomplete");
        let is_trusted = !self.reactor.config.trust_proxy.is_empty() && peer == Some("127.0.0.1");
        let named = tag.planned.forwarded_for.as_deref().filter(|_| is_trusted);
        let is_right = logged == named.or(peer) || is_unread && logged == peer;
        assert!(
            is_right,
            "request {number}: its client is {:?}, and the log says {logged:?}",
            named.or(peer)
        );
    }

    /// Who may be asked once more is, unless that is known to be in vain.
    pub(super) fn check_second_try(&self, number: usize, reason: &str) {
        let tag = &self.oracle.tags[number];
        let may_have_another = tag.planned.is_idempotent() && tag.is_over_used_connection;
        let [Try::NoResponse | Try::Stray] = tag.tries[..] else { return };
        let is_final = matches!(reason, "worker_died" | "answer_cut" | "bad_response" | "connect_failed");
        let had_none = may_have_another && is_final && self.reactor.stage == Stage::Running;
        let is_excused = self.oracle.has_little_room || wire::has_failed_to_connect();
        assert!(!had_none || is_excused, "request {number}: '{reason}', and it was to be tried once more");
    }

    /// Whoever is refused while it sends is read for a while: else a reset would take its answer away.
    pub(super) fn check_linger(&self, at: usize) {
        let client = &self.clients[at];
        let wire = client.wire.borrow();
        let has_more = client.can_send_more() || !wire.to_server.is_empty();
        let has_more = has_more && !wire.peer_has_ended && !wire.is_reset;
        let was_refused = client.requests.iter().any(|request| {
            let line = self.oracle.tags[request.tag].line.as_ref();
            line.is_some_and(|line| request.flaw.is_some_and(|flaw| flaw.reason == line.reason))
        });
        let is_running = self.reactor.stage == Stage::Running;
        let is_over = client.parted_at.is_some_and(|parted_at| self.now >= parted_at + LINGER);
        let is_early = wire.is_server_gone && was_refused && has_more && is_running && !is_over;
        assert!(!is_early, "client {at}: refused, and closed while it sends");
    }
}
