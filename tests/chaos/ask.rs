//! One request of a client: what its worker is to do, and what the client saw of it.

use crate::noise::Noise;
use crate::support::wire::Wire;
use crate::support::{Response, Trouble, length_and_checksum};
use std::time::{Duration, Instant};

/// No answer may take longer, whatever waits for what.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(40);

/// What the worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    Plain,
    Slow {
        ms: usize,
    },
    /// Of a known length.
    Body {
        bytes: usize,
    },
    /// Chunked.
    Stream {
        bytes: usize,
    },
    /// 101, and the end after so many bytes (0: not by the worker).
    Tunnel {
        bytes: usize,
    },
    /// Answers, and grows by so much.
    Leak {
        bytes: usize,
    },
    /// Answers, and asks for a successor.
    Retire,
    /// Answers, and leaves by the protocol.
    Quit,
    /// Answers, and ends without a word.
    Exit,
    /// Busy, whoever is asked.
    Busy,
    BusyOnce,
    Die,
    /// Dies in the middle of the body.
    DieMid {
        bytes: usize,
    },
    /// Closes in the middle of the body, and lives.
    Cut {
        bytes: usize,
    },
    /// Answers what is no HTTP.
    Garbage,
    /// Answers long after the read timeout.
    Hang {
        ms: usize,
    },
}

/// What became of it, as the client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A whole answer. `fault`: what is wrong with its bytes.
    Answered { status: u16, fault: Option<String> },
    /// A head came, and then not all of the body.
    Cut { status: u16, fault: Option<String> },
    /// No head came.
    Nothing(Trouble),
    /// The client left. `status`: of the head, if it had come. `must_arrive`: the server has read the whole request.
    Left { status: Option<u16>, must_arrive: bool },
    /// The connection ended with an earlier answer, which said so.
    Unanswered,
    /// No worker may get it: it is not HTTP, or too much.
    Refused { status: u16 },
}

#[derive(Debug, Clone)]
pub struct Ask {
    pub id: String,
    pub method: &'static str,
    pub deed: Deed,
    pub upload_bytes: usize,
    pub outcome: Outcome,
    /// For whoever reads a failure: which client, which connection.
    pub note: String,
}

impl Deed {
    pub fn query(self) -> String {
        match self {
            Deed::Plain => "do=plain".into(),
            Deed::Slow { ms } => format!("do=slow&ms={ms}"),
            Deed::Body { bytes } => format!("do=body&n={bytes}"),
            Deed::Stream { bytes } => format!("do=stream&n={bytes}"),
            Deed::Tunnel { bytes } => format!("do=tunnel&n={bytes}"),
            Deed::Leak { bytes } => format!("do=leak&n={bytes}"),
            Deed::Retire => "do=retire".into(),
            Deed::Quit => "do=quit".into(),
            Deed::Exit => "do=exit".into(),
            Deed::Busy => "do=busy".into(),
            Deed::BusyOnce => "do=busy-once".into(),
            Deed::Die => "do=die".into(),
            Deed::DieMid { bytes } => format!("do=die-mid&n={bytes}"),
            Deed::Cut { bytes } => format!("do=cut&n={bytes}"),
            Deed::Garbage => "do=garbage".into(),
            Deed::Hang { ms } => format!("do=hang&ms={ms}"),
        }
    }

    /// The deed's name alone, to count by.
    pub fn name(self) -> String {
        let query = self.query();
        query[3..].split('&').next().unwrap_or_default().to_owned()
    }
}

impl Ask {
    pub fn path(&self) -> String {
        format!("/c/{}", self.id)
    }

    /// `fields`: whole lines, each with its CRLF.
    pub fn head(&self, fields: &str) -> String {
        format!("{} {}?{} HTTP/1.1\r\nHost: a\r\n{fields}\r\n", self.method, self.path(), self.deed.query())
    }

    pub fn upload(&self) -> Vec<u8> {
        Noise::of(&self.id).bytes(0, self.upload_bytes)
    }

    /// Head and body in one, with a length where it has a body.
    pub fn bytes(&self, fields: &str) -> Vec<u8> {
        let length = match self.upload_bytes {
            0 => String::new(),
            bytes => format!("Content-Length: {bytes}\r\n"),
        };
        let mut bytes = self.head(&format!("{fields}{length}")).into_bytes();
        bytes.extend(self.upload());
        bytes
    }

    pub fn is_idempotent(&self) -> bool {
        self.method != "POST"
    }

    /// Waits for the answer. Whether the connection goes on.
    pub fn read_answer(&mut self, wire: &mut Wire) -> bool {
        let result = wire.read_response(Instant::now() + ANSWER_WITHIN, |_| self.method == "HEAD");
        match result {
            Ok(response) => {
                let fault = self.fault(&response, true);
                let goes_on = response.header("connection") != Some("close");
                self.outcome = Outcome::Answered { status: response.status, fault };
                goes_on
            }
            Err(broken) => {
                let response = &broken.response;
                self.outcome = match response.status {
                    0 => Outcome::Nothing(broken.trouble),
                    status if broken.trouble == Trouble::TimedOut => {
                        let fault = Some(format!("its end did not come: {} bytes", response.body.len()));
                        Outcome::Cut { status, fault }
                    }
                    status => Outcome::Cut { status, fault: self.fault(response, false) },
                };
                false
            }
        }
    }

    /// What is wrong with an app's answer, as far as it came.
    fn fault(&self, response: &Response, is_whole: bool) -> Option<String> {
        let is_ours = response.status != 200;
        match response.header("x-id") {
            None if is_ours => return None,
            Some(id) if id == self.id && !is_ours => {}
            other => return Some(format!("the answer of another request: X-Id {other:?}")),
        }
        let right = match self.deed {
            _ if self.method == "HEAD" => Vec::new(),
            Deed::Body { bytes } | Deed::Stream { bytes } | Deed::Cut { bytes } | Deed::DieMid { bytes } => {
                Noise::of(&self.id).bytes(0, bytes)
            }
            _ => format!("{} {}", self.id, length_and_checksum(&self.upload())).into_bytes(),
        };
        let is_right = if is_whole { response.body == right } else { right.starts_with(&response.body) };
        (!is_right).then(|| {
            let (got, wanted) = (response.body.len(), right.len());
            let same = response.body.iter().zip(&right).take_while(|(one, other)| one == other).count();
            format!("wrong bytes: {got} of {wanted}, the first {same} are right")
        })
    }
}
