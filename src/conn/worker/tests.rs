//! Answers as they come from a worker, and what the client gets of them.

use super::*;

const DATE: &[u8] = b"Date: today\r\n";
const GET: RequestContext =
    RequestContext { is_head: false, wants_websocket: false, version: Version::Http11, keep_alive: true };
const OLD: RequestContext = RequestContext { version: Version::Http10, ..GET };

fn asked(context: RequestContext) -> Worker {
    let mut worker = Worker::default();
    worker.ask(context);
    worker
}

/// What the client gets of these bytes, how many of them are consumed, and how it goes on.
fn pass(worker: &mut Worker, bytes: &str) -> (String, usize, Outcome) {
    let (mut bytes, mut client) = (bytes.as_bytes().to_vec(), Vec::new());
    let step = worker.receive(&mut bytes, DATE, &mut client);
    client.extend_from_slice(&bytes[step.data]);
    client.extend_from_slice(step.suffix);
    (String::from_utf8(client).expect("text"), step.consumed, step.outcome)
}

fn going(text: &str, consumed: usize) -> (String, usize, Outcome) {
    (text.to_owned(), consumed, Outcome::Going)
}

fn ended(text: &str, consumed: usize, reusable: bool) -> (String, usize, Outcome) {
    (text.to_owned(), consumed, Outcome::Ended { reusable })
}

/// The answer's head, as the log and the timeouts see it.
fn answer(worker: &mut Worker, bytes: &str) -> Option<Answer> {
    worker.receive(&mut bytes.as_bytes().to_vec(), DATE, &mut Vec::new()).answer
}

const FIVE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
const PASSED_FIVE: &str = "HTTP/1.1 200 OK\r\nDate: today\r\nContent-Length: 5\r\n\r\n";

#[test]
fn an_answer_ends_with_its_length_and_its_connection_is_used_again() {
    let whole = format!("{FIVE}hello");
    let mut worker = asked(GET);
    assert_eq!(pass(&mut worker, &whole), ended(&format!("{PASSED_FIVE}hello"), whole.len(), true));
    worker.ask(GET);
    assert_eq!(pass(&mut worker, FIVE), going(PASSED_FIVE, FIVE.len()));
    assert_eq!(pass(&mut worker, "hel"), going("hel", 3));
    assert_eq!(pass(&mut worker, ""), going("", 0));
    assert_eq!(pass(&mut worker, "lo"), ended("lo", 2, true));
    // Whatever stands behind it makes the connection useless, as does a wish to close it.
    let surplus = format!("{whole}HTTP");
    assert_eq!(pass(&mut asked(GET), &surplus), ended(&format!("{PASSED_FIVE}hello"), whole.len(), false));
    let last = whole.replace("Content", "Connection: close\r\nContent");
    assert_eq!(pass(&mut asked(GET), &last), ended(&format!("{PASSED_FIVE}hello"), last.len(), false));
    let empty = "HTTP/1.1 204 No Content\r\n\r\n";
    let passed = "HTTP/1.1 204 No Content\r\nDate: today\r\n\r\n";
    assert_eq!(pass(&mut asked(GET), empty), ended(passed, empty.len(), true));
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const PASSED_CHUNKED: &str = "HTTP/1.1 200 OK\r\nDate: today\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn chunks_are_made_anew_of_what_comes_at_once() {
    let whole = format!("{CHUNKED}5\r\nhello\r\n0\r\n\r\n");
    let passed = format!("{PASSED_CHUNKED}5\r\nhello\r\n0\r\n\r\n");
    assert_eq!(pass(&mut asked(GET), &whole), ended(&passed, whole.len(), true));
    let mut worker = asked(GET);
    for (piece, passed) in [
        (CHUNKED, PASSED_CHUNKED),
        ("5", ""),
        ("\r\nhel", "3\r\nhel\r\n"),
        ("lo\r\n1\r\n!\r\n", "3\r\nlo!\r\n"),
        ("0\r\n", ""),
    ] {
        assert_eq!(pass(&mut worker, piece), going(passed, piece.len()));
    }
    assert_eq!(pass(&mut worker, "\r\n"), ended("0\r\n\r\n", 2, true));
    // HTTP/1.0 has no chunks: what ends the body there is the connection's end.
    let old = "HTTP/1.1 200 OK\r\nDate: today\r\n\r\nhello";
    assert_eq!(pass(&mut asked(OLD), &whole), ended(old, whole.len(), true));
}

#[test]
fn an_answer_without_a_length_ends_with_its_connection() {
    let endless = "HTTP/1.1 200 OK\r\n\r\nhello";
    for (context, passed, end) in [
        (GET, format!("{PASSED_CHUNKED}5\r\nhello\r\n"), &b"0\r\n\r\n"[..]),
        (OLD, "HTTP/1.1 200 OK\r\nDate: today\r\n\r\nhello".to_owned(), b""),
    ] {
        let mut worker = asked(context);
        assert_eq!(pass(&mut worker, endless), going(&passed, endless.len()));
        assert_eq!(worker.end(false), End::Whole(end));
        let mut worker = asked(context);
        pass(&mut worker, endless);
        assert_eq!(worker.end(true), End::InBody);
    }
}

#[test]
fn the_end_of_a_connection_says_how_far_the_answer_came() {
    for (pieces, is_reset, end) in [
        (&[][..], false, End::NoResponse),
        (&[""], false, End::NoResponse),
        (&["H"], false, End::InHead),
        (&["HTTP/1.1 103 Early Hints\r\n\r\n", ""], true, End::InHead),
        (&[FIVE, "hell"], false, End::InBody),
        (&[CHUNKED, "5\r\nhello\r\n"], false, End::InBody),
        (&[FIVE, "hello"], false, End::Idle),
        (&["nonsense"], false, End::Idle),
    ] {
        let mut worker = asked(GET);
        pieces.iter().for_each(|piece| drop(pass(&mut worker, piece)));
        assert_eq!(worker.end(is_reset), end, "{pieces:?}");
        assert_eq!(worker.end(is_reset), End::Idle, "once");
    }
    assert_eq!(Worker::default().end(false), End::Idle);
}

#[test]
fn interim_answers_go_to_clients_that_know_them_but_a_100_the_server_has_sent_itself() {
    let continues = "HTTP/1.1 100 Continue\r\n\r\n";
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let all = format!("{continues}{hints}{FIVE}hello");
    assert_eq!(pass(&mut asked(GET), &all), ended(&format!("{hints}{PASSED_FIVE}hello"), all.len(), true));
    let old = "HTTP/1.1 200 OK\r\nDate: today\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello";
    assert_eq!(pass(&mut asked(OLD), &all), ended(old, all.len(), true));
    // What is not whole yet comes once more with the next bytes.
    let mut worker = asked(GET);
    assert_eq!(pass(&mut worker, &format!("{hints}HTT")), going(hints, hints.len()));
    assert_eq!(pass(&mut worker, FIVE), going(PASSED_FIVE, FIVE.len()));
}

#[test]
fn interim_answers_are_not_endless() {
    let many = |interims: usize| format!("{}{FIVE}", "HTTP/1.1 100 Continue\r\n\r\n".repeat(interims));
    let bytes = many(32);
    assert_eq!(pass(&mut asked(GET), &bytes), going(PASSED_FIVE, bytes.len()));
    let (_, _, outcome) = pass(&mut asked(GET), &many(33));
    assert_eq!(outcome, Outcome::Invalid(Invalid("more than 32 interim answers")));
}

#[test]
fn a_switch_makes_both_connections_a_tunnel() {
    let context = RequestContext { wants_websocket: true, ..GET };
    let switch = "HTTP/1.1 101 Switching Protocols\r\n\r\nabc";
    let passed = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nabc";
    let mut worker = asked(context);
    assert_eq!(pass(&mut worker, switch), (passed.to_owned(), switch.len(), Outcome::Upgraded));
    assert_eq!(pass(&mut worker, "HTTP"), going("HTTP", 4));
    assert_eq!(worker.end(false), End::Tunnel);
    let switched = answer(&mut asked(context), switch).expect("an answer");
    assert_eq!((switched.status, switched.may_idle, switched.keep_alive), (101, true, false));
}

#[test]
fn bytes_that_begin_no_answer_are_told_from_those_of_a_wrong_one() {
    let stray = |behind_an_answer| Outcome::Stray { behind_an_answer };
    for (pieces, outcome) in [
        (&["nonsense"][..], stray(false)),
        (&["HTTX/1.1 200 OK\r\n\r\n"], stray(false)),
        (&["HTTP/2 200 OK\r\n\r\n"], stray(false)),
        (&["HTTP/1."], Outcome::Going),
        (&["HTTP/1.1 2xx OK\r\n\r\n"], Outcome::Invalid(Invalid("no status line"))),
        (&["HTTP/1.1 200 OK\n\n"], Outcome::Invalid(Invalid("a line that does not end with CR LF"))),
        (
            &["HTTP/1.1 103 Early Hints\r\n\r\n", "nonsense\r\n\r\n"],
            Outcome::Invalid(Invalid("no status line")),
        ),
        (&[CHUNKED, "no size"], Outcome::Invalid(Invalid("a chunk that is not valid"))),
    ] {
        let mut worker = asked(GET);
        let outcomes = pieces.iter().map(|piece| pass(&mut worker, piece).2);
        assert_eq!(outcomes.last(), Some(outcome), "{pieces:?}");
    }
    let long = format!("HTTP/1.1 200 {}\r\n\r\n", "O".repeat(70_000));
    let too_long = Outcome::Invalid(Invalid("a head or a first line beyond its bound"));
    assert_eq!(pass(&mut asked(GET), &long), (String::new(), 0, too_long));
    let mut worker = asked(GET);
    pass(&mut worker, &format!("{FIVE}hello"));
    worker.ask(GET);
    assert_eq!(pass(&mut worker, "nonsense"), (String::new(), 8, stray(true)));
}

#[test]
fn nothing_is_expected_without_a_request() {
    let mut worker = Worker::default();
    assert_eq!(pass(&mut worker, ""), going("", 0));
    assert_eq!(pass(&mut worker, "abc"), (String::new(), 3, Outcome::UnexpectedBytes));
    assert_eq!(pass(&mut worker, "abc").2, Outcome::UnexpectedBytes);
}

#[test]
fn a_busy_answer_is_not_for_the_client() {
    let busy = |fields: &str, body: &str| {
        let bytes = format!("HTTP/1.1 503 Busy\r\nRip-Worker-Busy: 1\r\n{fields}\r\n{body}");
        let (client, _, outcome) = pass(&mut asked(GET), &bytes);
        assert!(!client.contains("HTTP/1.1"), "{client}");
        outcome
    };
    assert_eq!(busy("Content-Length: 0\r\n", ""), Outcome::Busy { reusable: true });
    assert_eq!(busy("Content-Length: 5\r\n", "hello"), Outcome::Busy { reusable: true });
    assert_eq!(busy("Content-Length: 0\r\nConnection: close\r\n", ""), Outcome::Busy { reusable: false });
    assert_eq!(busy("Content-Length: 5\r\n", "hell"), Outcome::Busy { reusable: false });
    assert_eq!(busy("Transfer-Encoding: chunked\r\n", "no size"), Outcome::Busy { reusable: false });
    // Of any other 503 the client gets what there is.
    let bytes = "HTTP/1.1 503 Busy\r\nContent-Length: 5\r\n\r\nhell";
    let passed = "HTTP/1.1 503 Busy\r\nDate: today\r\nContent-Length: 5\r\n\r\nhell";
    assert_eq!(pass(&mut asked(GET), bytes), going(passed, bytes.len()));
    let bytes = format!("{CHUNKED}no size");
    assert_eq!(pass(&mut asked(GET), &bytes).2, Outcome::Invalid(Invalid("a chunk that is not valid")));
    let mut worker = asked(GET);
    pass(&mut worker, "HTTP/1.1 503 Busy\r\nRip-Worker-Busy: 1\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(pass(&mut worker, "hello").2, Outcome::UnexpectedBytes);
}

#[test]
fn a_client_can_be_parted_from_until_its_answer_has_begun() {
    let mut worker = asked(GET);
    worker.close_client();
    let passed = "HTTP/1.1 200 OK\r\nDate: today\r\nContent-Length: 5\r\nConnection: close\r\n\r\n";
    assert_eq!(pass(&mut worker, FIVE), going(passed, FIVE.len()));
    worker.close_client();
    assert_eq!(pass(&mut worker, "hello"), ended("hello", 5, true));
    worker.ask(GET);
    assert_eq!(pass(&mut worker, FIVE), going(PASSED_FIVE, FIVE.len()));
}

#[test]
fn the_log_knows_an_answer_from_its_head_on() {
    let mut worker = asked(GET);
    assert!(answer(&mut worker, "HTTP/1.1 200 OK\r\n").is_none());
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n";
    let stream = answer(&mut worker, head).expect("an answer");
    assert_eq!((stream.status, stream.may_idle, stream.keep_alive), (200, true, true));
    assert_eq!((stream.downstream, stream.media_type()), (Framing::Chunked, &b"text/event-stream"[..]));
    assert!(answer(&mut worker, "hello").is_none());
    let plain = answer(&mut asked(OLD), "HTTP/1.1 404 Not Found\r\n\r\n").expect("an answer");
    assert_eq!((plain.status, plain.may_idle, plain.keep_alive), (404, false, false));
    assert_eq!((plain.downstream, plain.media_type()), (Framing::UntilClose, &b""[..]));
    let local = Answer::local(503, "text/plain", true);
    assert_eq!((local.status, local.may_idle, local.keep_alive), (503, false, true));
    assert_eq!((local.downstream, local.media_type()), (Framing::Empty, &b"text/plain"[..]));
    let long = Answer::local(200, &"t".repeat(MAX_MEDIA_TYPE_BYTES + 1), true);
    assert_eq!(long.media_type(), "t".repeat(MAX_MEDIA_TYPE_BYTES).as_bytes());
}

#[test]
#[should_panic(expected = "no way from Head")]
fn a_second_request_before_the_answer_is_a_bug() {
    asked(GET).ask(GET);
}
