//! The messages on the control socket: JSON as an enum.

use crate::paths::{MAX_SOCKET_PATH_BYTES, shown};
use serde_json::{Value, json};
use std::time::Duration;

/// A longer trial is a mistake.
pub const MAX_TRIAL_SECONDS: u64 = 3600;
/// So many percent of failures more than on the old release are taken for chance.
pub const DEFAULT_CANARY_ERRORS: u64 = 5;

/// One message to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A worker's app is loaded.
    Join(Join),
    /// A worker wants to leave, and gets no more requests.
    Quit(Sender),
    /// A worker has swapped in its changed entry. Only status shows it.
    Reloaded(Sender),
    /// A worker wants to be replaced.
    Retire(Sender),
    /// Replaces all workers, perhaps with the first one on trial.
    Reload(Option<CanaryPlan>),
    /// Replaces the server by a new one on the same sockets.
    Upgrade,
    /// Stops the server.
    Stop,
}

/// How long a first worker is on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialLength {
    /// Answers of its own.
    Requests(u64),
    Time(Duration),
}

/// What `reload --canary` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CanaryPlan {
    pub length: TrialLength,
    /// So many percent of failures may be more than on the old release.
    pub max_errors_percent: u64,
}

/// The worker that sends the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// Names the server's run that started it. Version 1 of the protocol does not have it.
    pub instance: Option<String>,
    pub worker_id: u64,
}

/// What a worker sends when its app is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    pub sender: Sender,
    pub pid: i32,
    pub socket: String,
    pub version: u64,
    pub abilities: Abilities,
}

/// What a worker can do beyond version 1 of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// On SIGTERM it finishes its running requests.
    pub drains: bool,
    /// It serves event streams and tunnels beside requests.
    pub streams: bool,
    /// How many requests it takes at once; at least 1.
    pub concurrency: u64,
}

impl Join {
    /// Such a worker keeps a half-closed connection until its handler has ended, or answers when asked whether it is
    /// idle.
    pub fn speaks_second_version(&self) -> bool {
        self.sender.instance.is_some() || self.abilities != Abilities::default()
    }
}

impl Default for Abilities {
    fn default() -> Self {
        Abilities { drains: false, streams: false, concurrency: 1 }
    }
}

impl Message {
    /// # Errors
    /// What is wrong with the message, for the sender.
    pub fn parse(text: &[u8]) -> Result<Message, String> {
        let value: Value = serde_json::from_slice(text).map_err(|error| format!("not JSON: {error}"))?;
        let number = |name: &str| {
            value
                .get(name)
                .and_then(Value::as_u64)
                .ok_or_else(|| format!("'{name}' is missing, or not a number"))
        };
        let flag = |name: &str| match value.get(name) {
            None => Ok(false),
            Some(flag) => flag.as_bool().ok_or_else(|| format!("'{name}' is neither true nor false")),
        };
        let instance = match value.get("instance") {
            None => Ok(None),
            Some(Value::String(instance)) => Ok(Some(instance.clone())),
            Some(_) => Err("'instance' is not a string".to_owned()),
        };
        let sender = number("workerId").and_then(|worker_id| Ok(Sender { instance: instance?, worker_id }));
        match value.get("op").and_then(Value::as_str) {
            Some("join") => Ok(Message::Join(Join {
                sender: sender?,
                pid: i32::try_from(number("pid")?).map_err(|_| "'pid' is no process id".to_owned())?,
                socket: match value.get("socket").and_then(Value::as_str) {
                    Some(socket) => socket_path(socket)?,
                    None => return Err("'socket' is missing, or not a string".into()),
                },
                version: number("version")?,
                abilities: Abilities {
                    drains: flag("drains")?,
                    streams: flag("streams")?,
                    concurrency: match value.get("concurrency") {
                        None => 1,
                        Some(_) => match number("concurrency")? {
                            0 => return Err("'concurrency' is 0; at least 1 would do".into()),
                            concurrency => concurrency,
                        },
                    },
                },
            })),
            Some("quit") => Ok(Message::Quit(sender?)),
            Some("reloaded") => Ok(Message::Reloaded(sender?)),
            Some("retire") => Ok(Message::Retire(sender?)),
            Some("reload") => Ok(Message::Reload(canary(&value)?)),
            Some("upgrade") => Ok(Message::Upgrade),
            Some("stop") => Ok(Message::Stop),
            Some(other) => Err(format!(
                "unknown op '{other}'; join, quit, retire, reloaded, reload, upgrade and stop are known"
            )),
            None => Err("'op' is missing".into()),
        }
    }

    /// Whether only a worker may send it.
    pub fn is_of_worker(&self) -> bool {
        match self {
            Message::Join(_) | Message::Quit(_) | Message::Reloaded(_) | Message::Retire(_) => true,
            Message::Reload(_) | Message::Upgrade | Message::Stop => false,
        }
    }

    /// The message as it is sent.
    pub fn to_json(&self) -> String {
        let from = |op: &str, sender: &Sender| {
            let mut value = json!({"op": op, "workerId": sender.worker_id});
            if let Some(instance) = &sender.instance {
                value["instance"] = json!(instance);
            }
            value
        };
        let value = match self {
            Message::Join(join) => {
                let mut value = from("join", &join.sender);
                value["pid"] = json!(join.pid);
                value["socket"] = json!(join.socket);
                value["version"] = json!(join.version);
                value["drains"] = json!(join.abilities.drains);
                value["streams"] = json!(join.abilities.streams);
                value["concurrency"] = json!(join.abilities.concurrency);
                value
            }
            Message::Quit(sender) => from("quit", sender),
            Message::Reloaded(sender) => from("reloaded", sender),
            Message::Retire(sender) => from("retire", sender),
            Message::Reload(None) => json!({"op": "reload"}),
            Message::Upgrade => json!({"op": "upgrade"}),
            Message::Reload(Some(plan)) => {
                let mut value = json!({"op": "reload", "canaryErrors": plan.max_errors_percent});
                match plan.length {
                    TrialLength::Requests(count) => value["canaryRequests"] = json!(count),
                    TrialLength::Time(time) => value["canarySeconds"] = json!(time.as_secs()),
                }
                value
            }
            Message::Stop => json!({"op": "stop"}),
        };
        value.to_string()
    }
}

/// A path that the server can connect to: a worker that nobody can reach would get requests, and answer none.
fn socket_path(socket: &str) -> Result<String, String> {
    let given = shown(socket);
    if !socket.starts_with('/') {
        return Err(format!(
            "'socket' is '{given}', which is not an absolute path; one that begins with / would do"
        ));
    }
    if socket.contains('\0') {
        return Err(format!("'socket' is '{given}', and no path has a NUL; one without it would do"));
    }
    if socket.len() > MAX_SOCKET_PATH_BYTES {
        return Err(format!(
            "'socket' is '{given}', which is too long for a Unix socket ({MAX_SOCKET_PATH_BYTES} bytes fit); a shorter \
             path would do"
        ));
    }
    Ok(socket.to_owned())
}

/// What a reload says of a trial.
fn canary(value: &Value) -> Result<Option<CanaryPlan>, String> {
    let number = |name: &str| match value.get(name) {
        None => Ok(None),
        Some(number) => number.as_u64().map(Some).ok_or_else(|| format!("'{name}' is not a number")),
    };
    let length = match (number("canaryRequests")?, number("canarySeconds")?) {
        (None, None) => return Ok(None),
        (Some(count), None) => TrialLength::Requests(count),
        (None, Some(seconds)) => TrialLength::Time(Duration::from_secs(seconds.min(MAX_TRIAL_SECONDS))),
        (Some(_), Some(_)) => {
            return Err("'canaryRequests' and 'canarySeconds' are both there; one of them would do".into());
        }
    };
    let max_errors_percent = number("canaryErrors")?.unwrap_or(DEFAULT_CANARY_ERRORS).min(100);
    Ok(Some(CanaryPlan { length, max_errors_percent }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way_there() {
        let sender = |instance: Option<&str>| Sender { instance: instance.map(str::to_owned), worker_id: 3 };
        let join = Join {
            sender: sender(Some("5e55")),
            pid: 42,
            socket: "/s".into(),
            version: 7,
            abilities: Abilities { drains: true, streams: true, concurrency: 16 },
        };
        for message in [
            Message::Join(join),
            Message::Quit(sender(None)),
            Message::Retire(sender(Some("5e55"))),
            Message::Reload(None),
            Message::Upgrade,
            Message::Reload(Some(CanaryPlan { length: TrialLength::Requests(500), max_errors_percent: 5 })),
            Message::Reload(Some(CanaryPlan {
                length: TrialLength::Time(Duration::from_secs(30)),
                max_errors_percent: 0,
            })),
            Message::Stop,
        ] {
            assert_eq!(Message::parse(message.to_json().as_bytes()), Ok(message));
        }
    }

    #[test]
    fn a_join_of_the_first_version_promises_nothing() {
        let join = Message::parse(br#"{"op":"join","workerId":1,"pid":2,"socket":"/s","version":3}"#);
        assert!(matches!(join, Ok(Message::Join(join))
            if join.sender.instance.is_none() && join.abilities == Abilities::default()));
    }

    #[test]
    fn a_join_names_a_socket_that_can_be_connected_to() {
        let join = |socket: &str| {
            let text =
                json!({"op": "join", "workerId": 1, "pid": 1, "socket": socket, "version": 1}).to_string();
            Message::parse(text.as_bytes())
        };
        let of_length = |length: usize| format!("/{}", "y".repeat(length - 1));
        assert!(join(&of_length(MAX_SOCKET_PATH_BYTES)).is_ok());
        for (socket, complaint) in [
            (of_length(MAX_SOCKET_PATH_BYTES + 1), "too long for a Unix socket (107 bytes fit)"),
            (String::new(), "not an absolute path"),
            ("worker.sock".to_owned(), "'worker.sock', which is not an absolute path"),
            ("/run/a\0b".to_owned(), "'/run/a\\u{0}b', and no path has a NUL"),
        ] {
            let error = join(&socket).expect_err(&socket);
            assert!(error.contains(complaint), "{socket}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, complaint) in [
            ("{", "not JSON"),
            ("{}", "'op' is missing"),
            (r#"{"op":"dance"}"#, "unknown op 'dance'"),
            (r#"{"op":"join","workerId":-1}"#, "'workerId'"),
            (r#"{"op":"join","workerId":1,"pid":1}"#, "'socket'"),
            (r#"{"op":"quit","workerId":1,"instance":7}"#, "'instance'"),
            (r#"{"op":"join","workerId":1,"pid":1,"socket":"/s","version":1,"drains":1}"#, "'drains'"),
            (
                r#"{"op":"join","workerId":1,"pid":1,"socket":"/s","version":1,"concurrency":0}"#,
                "'concurrency'",
            ),
        ] {
            let error = Message::parse(text.as_bytes()).expect_err(text);
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }
}
