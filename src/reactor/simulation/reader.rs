//! Simple HTTP parsers for the bytes on the wires: whole messages, read from the start each time.

/// A request as a worker finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub tag: usize,
    /// Head and body together, once the head is there.
    pub bytes: Option<usize>,
    pub body_bytes: usize,
}

/// Each answer begins with it.
const START: &[u8] = b"HTTP/1.1 ";

/// The number in a path, if all of it is there.
pub(crate) fn tag(path: &str) -> Option<usize> {
    path.strip_prefix("/t")?.strip_suffix('/')?.parse().ok()
}

/// The request that `bytes` begin with, as soon as its target can be read.
pub(crate) fn request(bytes: &[u8]) -> Option<Found> {
    let target = bytes.split(|&byte| byte == b' ').nth(1)?;
    // Whole only with the space behind it.
    bytes.split(|&byte| byte == b' ').nth(2)?;
    let tag = tag(std::str::from_utf8(target).ok()?)?;
    let Some((head, _)) = split(bytes) else {
        return Some(Found { tag, bytes: None, body_bytes: 0 });
    };
    let body_bytes = field(head, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    Some(Found { tag, bytes: Some(head.len() + 4 + body_bytes), body_bytes })
}

/// The id of a request whose head is there in full.
pub(crate) fn id(bytes: &[u8]) -> Option<Vec<u8>> {
    let (head, _) = split(bytes)?;
    field(head, "x-request-id").map(|id| id.as_bytes().to_vec())
}

/// Whether a request offers a WebSocket; a body behind it, or a length, says that it does not.
pub(crate) fn offers_websocket(bytes: &[u8]) -> bool {
    let Some((head, _)) = split(bytes) else { return false };
    let is_offered = field(head, "upgrade").is_some_and(|value| value == "websocket");
    is_offered && field(head, "connection") == Some("Upgrade") && field(head, "content-length").is_none()
}

/// An answer as a client finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    pub status: u16,
    pub tag: Option<usize>,
    pub number: Option<usize>,
    pub body: Vec<u8>,
    /// Nothing is missing, by its own framing.
    pub is_whole: bool,
    /// Only the end of the connection ends it.
    pub ends_with_connection: bool,
    pub closes: bool,
    /// It names a protocol to change to.
    pub has_upgrade: bool,
}

/// All final answers in `bytes`; `is_head` tells which are to `HEAD`. `is_closed`: in an orderly way.
pub(crate) fn answers(bytes: &[u8], is_head: impl Fn(usize) -> bool, is_closed: bool) -> Vec<Heard> {
    read(bytes, is_head, is_closed).0
}

/// What is behind all of them, and is not the beginning of another one.
pub(crate) fn surplus(bytes: &[u8], is_head: impl Fn(usize) -> bool) -> &[u8] {
    let remaining = read(bytes, is_head, false).1;
    if remaining.starts_with(START) || START.starts_with(remaining) { b"" } else { remaining }
}

fn read(bytes: &[u8], is_head: impl Fn(usize) -> bool, is_closed: bool) -> (Vec<Heard>, &[u8]) {
    let mut all = Vec::new();
    let mut remaining = bytes;
    while let Some((head, behind)) = split(remaining) {
        let status = std::str::from_utf8(&head[9..12]).ok().and_then(|text| text.parse().ok());
        let status: u16 =
            status.unwrap_or_else(|| panic!("no status: {:?}", head.escape_ascii().to_string()));
        remaining = behind;
        if (100..200).contains(&status) && status != 101 {
            continue;
        }
        let number = |name| field(head, name).and_then(|value| value.parse().ok());
        let mut heard = Heard {
            status,
            tag: number("x-tag"),
            number: number("x-number"),
            body: Vec::new(),
            is_whole: true,
            ends_with_connection: false,
            closes: fields(head, "connection").any(|value| value.eq_ignore_ascii_case("close")),
            has_upgrade: field(head, "upgrade").is_some(),
        };
        if is_head(all.len()) || matches!(status, 204 | 304) {
            // No body, whatever the head says.
        } else if field(head, "transfer-encoding").is_some() {
            (heard.body, heard.is_whole, remaining) = chunks(remaining);
        } else if let Some(length) = number("content-length") {
            let there = length.min(remaining.len());
            heard.body = remaining[..there].to_vec();
            heard.is_whole = there == length;
            remaining = &remaining[there..];
        } else {
            heard.body = remaining.to_vec();
            heard.ends_with_connection = true;
            heard.is_whole = is_closed;
            remaining = b"";
        }
        all.push(heard);
    }
    (all, remaining)
}

fn chunks(mut remaining: &[u8]) -> (Vec<u8>, bool, &[u8]) {
    let mut body = Vec::new();
    loop {
        let Some(line_end) = remaining.windows(2).position(|pair| pair == b"\r\n") else {
            return (body, false, b"");
        };
        let size = std::str::from_utf8(&remaining[..line_end]).ok();
        let size = size.and_then(|text| usize::from_str_radix(text, 16).ok()).expect("a chunk's size");
        let data = &remaining[line_end + 2..];
        if data.len() < size + 2 {
            body.extend_from_slice(&data[..size.min(data.len())]);
            return (body, false, b"");
        }
        assert_eq!(&data[size..size + 2], b"\r\n", "a chunk ends with its size");
        body.extend_from_slice(&data[..size]);
        remaining = &data[size + 2..];
        if size == 0 {
            return (body, true, remaining);
        }
    }
}

/// Head and what is behind it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")?;
    Some((&bytes[..end], &bytes[end + 4..]))
}

fn field<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    fields(head, name).next()
}

/// The values of all lines of that name.
fn fields<'a>(head: &'a [u8], name: &str) -> impl Iterator<Item = &'a str> {
    let text = std::str::from_utf8(head).unwrap_or_default();
    text.split("\r\n").skip(1).filter_map(move |line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
