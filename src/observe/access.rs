//! The access log: one line for each request, also for refused and abandoned ones. Pure: the time comes in, and a line
//! is appended to a buffer.

use crate::http::Reason;
use crate::http::digits::push_decimal;
use std::time::Duration;

/// What one line contains.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    pub method: &'a [u8],
    pub path: &'a [u8],
    pub status: u16,
    pub total: Duration,
    pub worker_time: Duration,
    pub queue_time: Duration,
    /// `text/plain`, without parameters.
    pub media_type: &'a [u8],
    pub body_bytes: u64,
    /// The slot and process that served or failed.
    pub worker: Option<(usize, i32)>,
    pub id: &'a [u8],
    /// The client's address, as this server has written it.
    pub client: &'a [u8],
    /// The address of the peer: the client, or the last proxy before this server.
    pub peer: &'a [u8],
    /// Why the server answered in place of the app, if it did.
    pub reason: Option<Reason>,
}

/// Formats lines; keeps the parts that change once a second.
#[derive(Debug)]
pub(crate) struct AccessLog {
    json: bool,
    app: String,
    zone: jiff::tz::TimeZone,
    second: Option<i64>,
    /// `2026-03-01 12:00:00`, or with a `T` in JSON.
    date: String,
    /// ` +0000`, or `Z`.
    offset: String,
}

impl AccessLog {
    pub(crate) fn new(json: bool, app: &str) -> Self {
        // No zone data means UTC.
        let zone = if json { jiff::tz::TimeZone::UTC } else { jiff::tz::TimeZone::system() };
        AccessLog {
            json,
            app: app.to_owned(),
            zone,
            second: None,
            date: String::new(),
            offset: String::new(),
        }
    }

    /// Adds one line to `out`. `unix`: the time of the answer's end, since 1970.
    pub(crate) fn append(&mut self, out: &mut Vec<u8>, record: &Record<'_>, unix: Duration) {
        self.set_second(unix.as_secs() as i64);
        if self.json { self.append_json(out, record, unix) } else { self.append_human(out, record, unix) }
    }

    fn set_second(&mut self, second: i64) {
        if self.second == Some(second) {
            return;
        }
        self.second = Some(second);
        let stamp = jiff::Timestamp::from_second(second).unwrap_or_default();
        let local = stamp.to_zoned_datetime(self.zone.clone());
        let format = if self.json { "%Y-%m-%dT%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
        self.date = local.strftime(format).to_string();
        self.offset = if self.json { "Z".into() } else { local.strftime(" %z").to_string() };
    }

    /// `[2026-03-01 12:00:00.123 +0000  1.2ms  0.9ms] GET /ping → 200 plain 4B`
    fn append_human(&self, out: &mut Vec<u8>, record: &Record<'_>, unix: Duration) {
        out.push(b'[');
        self.push_time(out, unix);
        push_milliseconds(out, record.total);
        push_milliseconds(out, record.worker_time);
        out.extend_from_slice(b"] ");
        push_visible(out, or_dash(record.method));
        out.push(b' ');
        push_visible(out, or_dash(record.path));
        out.extend_from_slice(" → ".as_bytes());
        push_decimal(out, u64::from(record.status));
        out.push(b' ');
        let subtype = record.media_type.iter().position(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        push_visible(out, or_dash(&record.media_type[subtype..]));
        out.push(b' ');
        push_size(out, record.body_bytes);
        if let Some(reason) = record.reason {
            out.extend_from_slice(format!(" {reason}").as_bytes());
        }
        // A failure is looked into by its worker and id.
        if record.reason.is_some() || record.status >= 500 {
            if let Some((worker, pid)) = record.worker {
                out.extend_from_slice(format!(" worker {worker} pid {pid}").as_bytes());
            }
            if !record.id.is_empty() {
                out.extend_from_slice(b" id ");
                push_visible(out, record.id);
            }
        }
        out.push(b'\n');
    }

    fn append_json(&self, out: &mut Vec<u8>, record: &Record<'_>, unix: Duration) {
        out.extend_from_slice(b"{\"t\":\"");
        self.push_time(out, unix);
        out.extend_from_slice(b"\",\"app\":\"");
        push_json(out, self.app.as_bytes());
        out.extend_from_slice(b"\",\"method\":\"");
        push_json(out, record.method);
        out.extend_from_slice(b"\",\"path\":\"");
        push_json(out, record.path);
        out.extend_from_slice(b"\",\"status\":");
        push_decimal(out, u64::from(record.status));
        out.extend_from_slice(b",\"totalSeconds\":");
        push_seconds(out, record.total);
        out.extend_from_slice(b",\"workerSeconds\":");
        push_seconds(out, record.worker_time);
        out.extend_from_slice(b",\"type\":\"");
        push_json(out, record.media_type);
        out.extend_from_slice(b"\",\"length\":");
        push_decimal(out, record.body_bytes);
        out.extend_from_slice(b",\"queueSeconds\":");
        push_seconds(out, record.queue_time);
        if let Some((worker, pid)) = record.worker {
            out.extend_from_slice(b",\"worker\":");
            push_decimal(out, worker as u64);
            out.extend_from_slice(b",\"pid\":");
            push_decimal(out, pid.unsigned_abs().into());
        }
        out.extend_from_slice(b",\"id\":\"");
        push_json(out, record.id);
        out.extend_from_slice(b"\",\"client\":\"");
        out.extend_from_slice(record.client);
        out.extend_from_slice(b"\",\"peer\":\"");
        out.extend_from_slice(record.peer);
        out.push(b'"');
        if let Some(reason) = record.reason {
            out.extend_from_slice(format!(",\"reason\":\"{reason}\"").as_bytes());
        }
        out.extend_from_slice(b"}\n");
    }

    fn push_time(&self, out: &mut Vec<u8>, unix: Duration) {
        out.extend_from_slice(self.date.as_bytes());
        out.push(b'.');
        push_padded(out, unix.subsec_millis(), 3);
        out.extend_from_slice(self.offset.as_bytes());
    }
}

fn or_dash(bytes: &[u8]) -> &[u8] {
    if bytes.is_empty() { b"-" } else { bytes }
}

/// `  1.2ms`: right-aligned, so that columns stand below each other.
fn push_milliseconds(out: &mut Vec<u8>, time: Duration) {
    const COLUMN: usize = 7;
    let from = out.len();
    out.extend_from_slice(&[b' '; COLUMN]);
    let tenths = time.as_micros() as u64 / 100;
    let digits = out.len();
    push_decimal(out, tenths / 10);
    out.push(b'.');
    push_decimal(out, tenths % 10);
    out.extend_from_slice(b"ms");
    // As many blanks in front as the digits leave of the column, and at least one.
    let width = out.len() - digits;
    let surplus = width.min(COLUMN - 1);
    out.drain(from..from + surplus);
}

fn push_seconds(out: &mut Vec<u8>, time: Duration) {
    push_decimal(out, time.as_secs());
    out.push(b'.');
    push_padded(out, time.subsec_micros(), 6);
}

fn push_padded(out: &mut Vec<u8>, number: u32, digits: u32) {
    for place in (0..digits).rev() {
        out.push(b'0' + (number / 10u32.pow(place) % 10) as u8);
    }
}

/// `4B`, `1.2kB`, `3.4MB`.
fn push_size(out: &mut Vec<u8>, bytes: u64) {
    const UNITS: [(&str, u64); 3] = [("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)];
    match UNITS.iter().find(|(_, size)| bytes >= *size) {
        Some((unit, size)) => {
            push_decimal(out, bytes / size);
            out.push(b'.');
            push_decimal(out, bytes % size * 10 / size);
            out.extend_from_slice(unit.as_bytes());
        }
        None => {
            push_decimal(out, bytes);
            out.push(b'B');
        }
    }
}

/// Control bytes and invalid UTF-8 become `\xNN`, so that nothing can control a terminal or begin a new line.
fn push_visible(out: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.iter().all(u8::is_ascii_graphic) {
        return out.extend_from_slice(bytes);
    }
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            if letter.is_control() || is_invisible(letter) {
                for byte in letter.to_string().bytes() {
                    out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
                }
            } else {
                out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        for byte in chunk.invalid() {
            out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
        }
    }
}

/// Line and paragraph separators, and what changes the direction of writing.
fn is_invisible(letter: char) -> bool {
    matches!(letter, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The inside of a JSON string; bytes that are not UTF-8 become U+FFFD.
fn push_json(out: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.iter().all(|byte| (byte.is_ascii_graphic() || *byte == b' ') && !matches!(byte, b'"' | b'\\')) {
        return out.extend_from_slice(bytes);
    }
    for letter in String::from_utf8_lossy(bytes).chars() {
        match letter {
            '"' | '\\' => out.extend_from_slice(&[b'\\', letter as u8]),
            _ if letter.is_control() || is_invisible(letter) => {
                out.extend_from_slice(format!("\\u{:04x}", letter as u32).as_bytes());
            }
            _ => out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: Record<'_> = Record {
        method: b"GET",
        path: b"/ping",
        status: 200,
        total: Duration::from_micros(1234),
        worker_time: Duration::from_micros(900),
        queue_time: Duration::ZERO,
        media_type: b"text/plain",
        body_bytes: 4,
        worker: Some((3, 42)),
        id: b"abc",
        client: b"192.0.2.7",
        peer: b"10.0.0.1",
        reason: None,
    };
    /// 2026-03-01 12:00:00.123 UTC
    const AT: Duration = Duration::from_millis(1_772_366_400_123);

    fn line(json: bool, record: &Record<'_>) -> String {
        let mut log = AccessLog::new(json, "shop");
        log.zone = jiff::tz::TimeZone::UTC;
        let mut out = Vec::new();
        log.append(&mut out, record, AT);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn human_lines_are_as_documented() {
        assert_eq!(
            line(false, &RECORD),
            "[2026-03-01 12:00:00.123 +0000  1.2ms  0.9ms] GET /ping → 200 plain 4B\n"
        );
    }

    #[test]
    fn human_lines_of_failures_name_the_worker_and_the_request() {
        let line = |status, reason| line(false, &Record { status, reason, ..RECORD });
        assert!(line(500, None).ends_with("→ 500 plain 4B worker 3 pid 42 id abc\n"));
        assert!(line(504, Some(Reason::ReadTimeout)).ends_with("4B read_timeout worker 3 pid 42 id abc\n"));
        assert!(line(404, None).ends_with("→ 404 plain 4B\n"));
    }

    #[test]
    fn json_lines_are_as_documented() {
        assert_eq!(
            line(true, &Record { reason: Some(Reason::QueueFull), ..RECORD }),
            "{\"t\":\"2026-03-01T12:00:00.123Z\",\"app\":\"shop\",\"method\":\"GET\",\"path\":\"/ping\",\
             \"status\":200,\"totalSeconds\":0.001234,\"workerSeconds\":0.000900,\"type\":\"text/plain\",\
             \"length\":4,\"queueSeconds\":0.000000,\"worker\":3,\"pid\":42,\"id\":\"abc\",\
             \"client\":\"192.0.2.7\",\"peer\":\"10.0.0.1\",\"reason\":\"queue_full\"}\n"
        );
    }

    #[test]
    fn every_json_line_parses_whatever_the_client_sends() {
        for path in [&b"/\"quote\"\\"[..], b"/\x1b[31m", b"/caf\xc3\xa9", b"/\xff\xfe", b"/\0\n\r\x7f"] {
            let text = line(true, &Record { path, ..RECORD });
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            let value: serde_json::Value = serde_json::from_str(&text).expect(&text);
            assert!(value["path"].as_str().is_some_and(|path| path.starts_with('/')), "{text}");
        }
    }

    #[test]
    fn human_lines_carry_no_control_bytes() {
        let text = line(false, &Record { path: b"/\x1b[31m\n\xff\xe2\x80\xa8\xc2\x9b", ..RECORD });
        assert!(text.contains("/\\x1b[31m\\x0a\\xff\\xe2\\x80\\xa8\\xc2\\x9b →"), "{text}");
    }

    #[test]
    fn sizes_have_a_unit() {
        for (bytes, expected) in [(0, "0B"), (1023, "1023B"), (1536, "1.5kB"), (3 << 20, "3.0MB")] {
            let mut out = Vec::new();
            push_size(&mut out, bytes);
            assert_eq!(String::from_utf8_lossy(&out), expected);
        }
    }
}
