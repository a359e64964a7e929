//! What is said on the control socket: JSON, as an enum.

use serde_json::{Value, json};

/// One message to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A worker's app is loaded.
    Join { worker_id: u64, pid: i32, socket: String, version: u64 },
    /// A worker leaves by itself.
    Quit { worker_id: u64 },
    /// A worker has taken over its changed entry, for status.
    Reloaded { worker_id: u64 },
    /// A worker asks for a successor.
    Retire { worker_id: u64 },
    /// A rolling restart.
    Reload,
    /// The end.
    Stop,
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
        let worker_id = number("workerId");
        match value.get("op").and_then(Value::as_str) {
            Some("join") => Ok(Message::Join {
                worker_id: worker_id?,
                pid: i32::try_from(number("pid")?).map_err(|_| "'pid' is no process id".to_owned())?,
                socket: match value.get("socket").and_then(Value::as_str) {
                    Some(socket) => socket.to_owned(),
                    None => return Err("'socket' is missing, or not a string".into()),
                },
                version: number("version")?,
            }),
            Some("quit") => Ok(Message::Quit { worker_id: worker_id? }),
            Some("reloaded") => Ok(Message::Reloaded { worker_id: worker_id? }),
            Some("retire") => Ok(Message::Retire { worker_id: worker_id? }),
            Some("reload") => Ok(Message::Reload),
            Some("stop") => Ok(Message::Stop),
            Some(other) => {
                Err(format!("unknown op '{other}'; join, quit, retire, reloaded, reload and stop are known"))
            }
            None => Err("'op' is missing".into()),
        }
    }

    /// The message as it is sent.
    pub fn to_json(&self) -> String {
        let value = match self {
            Message::Join { worker_id, pid, socket, version } => {
                json!({"op": "join", "workerId": worker_id, "pid": pid, "socket": socket, "version": version})
            }
            Message::Quit { worker_id } => json!({"op": "quit", "workerId": worker_id}),
            Message::Reloaded { worker_id } => json!({"op": "reloaded", "workerId": worker_id}),
            Message::Retire { worker_id } => json!({"op": "retire", "workerId": worker_id}),
            Message::Reload => json!({"op": "reload"}),
            Message::Stop => json!({"op": "stop"}),
        };
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way_there() {
        let join = Message::Join { worker_id: 3, pid: 42, socket: "/s".into(), version: 7 };
        for message in [
            join,
            Message::Quit { worker_id: 1 },
            Message::Retire { worker_id: 1 },
            Message::Reload,
            Message::Stop,
        ] {
            assert_eq!(Message::parse(message.to_json().as_bytes()), Ok(message));
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
        ] {
            let error = Message::parse(text.as_bytes()).expect_err(text);
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }
}
