//! What the two servers of an upgrade say to each other: JSON, as an enum. A message of a later version that is not
//! known is passed over.

use crate::control::Join;
use crate::control::Message as ControlMessage;
use serde_json::{Value, json};

/// One message, either way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// From the old server, with the socket's descriptor.
    Socket(SocketOffer),
    /// From the old server, with the descriptor of the name's lock.
    Lock,
    /// From the old server: a worker that has come by itself, and which process it is.
    Worker { join: Join, process: Option<i32> },
    /// From the old server: everything has been offered. So many of its workers serve, its fleet is that large, and
    /// its newest generation is that one.
    Begin { serving: usize, size: usize, generation: u64 },
    /// From the new server: what this run of it is called, which is in the names of its files.
    Named { instance: String },
    /// From the new server: so many of its workers serve.
    Serving { now: usize, of: usize },
    /// From the new server: it could serve.
    Ready,
    /// From the new server: it ends, and why.
    Failed { reason: String },
    /// From the old server: serve.
    Go,
    /// From the new server: it has the name, and accepts.
    Taken,
    /// From the old server: it holds none of the sockets any more.
    Released,
    /// From the old server, while it drains and at its end.
    Report { clients: usize, workers: usize, metrics: String },
    /// From the new server, which stops: to the old one's end as well.
    Stop,
    /// From the new server, which ends at once.
    End,
}

/// A listening socket that is handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SocketOffer {
    /// `http`, `metrics`
    pub service: String,
    /// Where it was asked for, as messages name it: both servers have the same command line.
    pub at: String,
    /// Somebody else holds it too, systemd say.
    pub is_given: bool,
    /// Its file is the server's to remove.
    pub has_file: bool,
}

impl Message {
    pub(crate) fn to_json(&self) -> String {
        let value = match self {
            Message::Socket(offer) => json!({
                "op": "socket", "service": offer.service, "at": offer.at, "given": offer.is_given,
                "file": offer.has_file
            }),
            Message::Lock => json!({"op": "lock"}),
            Message::Worker { join, process } => json!({
                "op": "worker", "join": ControlMessage::Join(join.clone()).to_json(), "process": process
            }),
            Message::Begin { serving, size, generation } => {
                json!({"op": "begin", "serving": serving, "size": size, "generation": generation})
            }
            Message::Named { instance } => json!({"op": "named", "instance": instance}),
            Message::Serving { now, of } => json!({"op": "serving", "now": now, "of": of}),
            Message::Ready => json!({"op": "ready"}),
            Message::Failed { reason } => json!({"op": "failed", "reason": reason}),
            Message::Go => json!({"op": "go"}),
            Message::Taken => json!({"op": "taken"}),
            Message::Released => json!({"op": "released"}),
            Message::Report { clients, workers, metrics } => {
                json!({"op": "report", "clients": clients, "workers": workers, "metrics": metrics})
            }
            Message::Stop => json!({"op": "stop"}),
            Message::End => json!({"op": "end"}),
        };
        value.to_string()
    }

    /// `None`: nothing that this version knows.
    pub(crate) fn parse(text: &[u8]) -> Option<Message> {
        let value: Value = serde_json::from_slice(text).ok()?;
        let number = |name: &str| usize::try_from(value.get(name)?.as_u64()?).ok();
        let text = |name: &str| value.get(name)?.as_str().map(str::to_owned);
        let flag = |name: &str| value.get(name)?.as_bool();
        Some(match value.get("op")?.as_str()? {
            "socket" => Message::Socket(SocketOffer {
                service: text("service")?,
                at: text("at")?,
                is_given: flag("given")?,
                has_file: flag("file")?,
            }),
            "lock" => Message::Lock,
            "worker" => match ControlMessage::parse(text("join")?.as_bytes()) {
                Ok(ControlMessage::Join(join)) => {
                    let process = value.get("process").and_then(Value::as_i64);
                    Message::Worker { join, process: process.and_then(|pid| i32::try_from(pid).ok()) }
                }
                Ok(_) | Err(_) => return None,
            },
            "begin" => Message::Begin {
                serving: number("serving")?,
                size: number("size")?,
                generation: value.get("generation")?.as_u64()?,
            },
            "named" => Message::Named { instance: text("instance")? },
            "serving" => Message::Serving { now: number("now")?, of: number("of")? },
            "ready" => Message::Ready,
            "failed" => Message::Failed { reason: text("reason")? },
            "go" => Message::Go,
            "taken" => Message::Taken,
            "released" => Message::Released,
            "report" => Message::Report {
                clients: number("clients")?,
                workers: number("workers")?,
                metrics: text("metrics")?,
            },
            "stop" => Message::Stop,
            "end" => Message::End,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Abilities, Sender};

    #[test]
    fn messages_survive_the_way() {
        let sender = Sender { instance: None, worker_id: 3 };
        let abilities = Abilities { drains: true, streams: false, concurrency: 2 };
        let join = Join { sender, pid: 42, socket: "/s".into(), version: 7, abilities };
        let offer =
            SocketOffer { service: "http".into(), at: "'/a b'".into(), is_given: true, has_file: false };
        for message in [
            Message::Socket(offer),
            Message::Lock,
            Message::Worker { join: join.clone(), process: Some(42) },
            Message::Worker { join, process: None },
            Message::Begin { serving: 3, size: 4, generation: 9 },
            Message::Named { instance: "5e55".into() },
            Message::Serving { now: 1, of: 2 },
            Message::Ready,
            Message::Failed { reason: "no\nreason".into() },
            Message::Go,
            Message::Taken,
            Message::Released,
            Message::Report { clients: 1, workers: 2, metrics: "a 1\n".into() },
            Message::Stop,
            Message::End,
        ] {
            assert_eq!(Message::parse(message.to_json().as_bytes()), Some(message));
        }
        for other in ["", "{}", "{\"op\":\"dance\"}", "{\"op\":\"serving\",\"now\":-1,\"of\":1}", "[1]"] {
            assert_eq!(Message::parse(other.as_bytes()), None, "{other}");
        }
    }
}
