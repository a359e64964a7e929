//! Heads and responses as values, and the rules that every head on either side keeps.

use super::wire::Trouble;

/// A request's or a response's head. Characters are bytes (Latin-1).
#[derive(Debug, Clone, Default)]
pub struct Head {
    pub raw: Vec<u8>,
    /// The request line or status line.
    pub start_line: String,
    /// Names as they were sent.
    pub headers: Vec<(String, String)>,
}

/// A final response with its body decoded, and the interim ones before it.
#[derive(Debug, Clone, Default)]
pub struct Response {
    pub status: u16,
    pub head: Head,
    pub body: Vec<u8>,
    pub interim: Vec<Head>,
}

impl Head {
    pub fn parse(raw: Vec<u8>) -> Result<Head, Trouble> {
        let text = super::latin1(&raw);
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let start_line = lines.next().unwrap_or_default().to_owned();
        let mut headers = Vec::new();
        for line in lines {
            let Some((name, value)) = line.split_once(':') else {
                return Err(Trouble::Malformed(format!("the field line {line:?}")));
            };
            headers.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
        }
        Ok(Head { raw, start_line, headers })
    }

    pub fn status(&self) -> Result<u16, Trouble> {
        let phrase = self.start_line.strip_prefix("HTTP/1.1 ").and_then(|remaining| remaining.get(..3));
        let status = phrase.and_then(|phrase| phrase.parse().ok()).filter(|status| *status >= 100);
        status.ok_or_else(|| Trouble::Malformed(format!("the status line {:?}", self.start_line)))
    }

    /// The first value of a field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.values(name).next()
    }

    pub fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        let is_it = move |(other, _): &&(String, String)| other.eq_ignore_ascii_case(name);
        self.headers.iter().filter(is_it).map(|(_, value)| value.as_str())
    }

    /// How many lines a field has.
    pub fn count(&self, name: &str) -> usize {
        self.values(name).count()
    }

    pub fn has(&self, name: &str) -> bool {
        self.count(name) > 0
    }
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.text()))
    }

    pub fn interim_statuses(&self) -> Vec<u16> {
        self.interim.iter().filter_map(|head| head.status().ok()).collect()
    }
}

/// What is wrong with the line ends of a head, or with the bytes between them.
fn byte_faults(raw: &[u8]) -> Vec<String> {
    let mut faults = Vec::new();
    for (at, &byte) in raw.iter().enumerate() {
        match byte {
            b'\n' if at == 0 || raw[at - 1] != b'\r' => faults.push(format!("a bare LF at byte {at}")),
            b'\r' if raw.get(at + 1) != Some(&b'\n') => faults.push(format!("a bare CR at byte {at}")),
            0 => faults.push(format!("a NUL at byte {at}")),
            _ => {}
        }
    }
    faults
}

/// What is wrong with a head that a worker got.
pub fn request_head_faults(head: &Head) -> Vec<String> {
    let mut faults = byte_faults(&head.raw);
    let words: Vec<&str> = head.start_line.split(' ').collect();
    if !matches!(words[..], [method, target, "HTTP/1.1"] if !method.is_empty() && !target.is_empty()) {
        faults.push(format!("the request line {:?}", head.start_line));
    }
    if head.count("host") != 1 {
        faults.push(format!("{} Host fields", head.count("host")));
    }
    if head.count("content-length") > 1 {
        faults.push(format!("{} Content-Length fields", head.count("content-length")));
    }
    if head.has("transfer-encoding") {
        faults.push("a Transfer-Encoding field".into());
    }
    faults
}

/// What is wrong with the heads that a client got.
pub fn response_head_faults(response: &Response) -> Vec<String> {
    let mut faults = byte_faults(&response.head.raw);
    for interim in &response.interim {
        faults.extend(byte_faults(&interim.raw));
    }
    // A 101 ends the HTTP of a connection: no final response, though nothing follows it.
    if response.status >= 200 && response.head.count("date") != 1 {
        faults.push(format!("{} Date fields", response.head.count("date")));
    }
    faults
}
