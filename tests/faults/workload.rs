//! A mixed load whose every answer is known: what clients do all day, on a few connections at once.

use crate::load::{children, descriptors};
use crate::support::{
    Client, Faults, Response, Server, ServerBuilder, Signal, TEST_TIMEOUT, Trouble, test_worker, wait_until,
};
use crate::tools::asking;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Connections at once; more than there are workers, so that some wait.
const CLIENTS: usize = 4;
pub const WORKERS: usize = 2;
/// Past what is held in memory.
const LARGE: usize = 200_000;

/// A server whose access lines tell the ids that the load gives its requests.
pub fn server() -> ServerBuilder {
    Server::builder(test_worker()).args(["--json", "--trust-proxy=loopback"]).arg(format!("w:{WORKERS}"))
}

/// What the server holds while nothing goes on.
#[derive(Debug, PartialEq, Eq)]
pub struct Holdings {
    descriptors: usize,
    children: usize,
}

impl Holdings {
    fn of(server: &Server) -> Holdings {
        Holdings { descriptors: descriptors(server.pid()).len(), children: children(server.pid()).len() }
    }

    /// Nothing is left over. A connection may have been seen in what was held before that was about to end.
    pub fn is_within(&self, before: &Holdings) -> bool {
        self.descriptors <= before.descriptors && self.children <= before.children
    }

    /// Without the connection that has just asked how it stands: the least, when it has been that for a while.
    pub fn at_rest(server: &Server) -> Holdings {
        const SETTLED: Duration = Duration::from_millis(40);
        let (mut least, mut since) = (Holdings::of(server), Instant::now());
        wait_until("nothing more is let go", || {
            let now = Holdings::of(server);
            if now.descriptors < least.descriptors {
                (least, since) = (now, Instant::now());
            }
            since.elapsed() >= SETTLED
        });
        least
    }
}

/// How an exchange may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// With its right answer.
    Right,
    /// With its right answer, or one of the server's refusals, or a cut connection: never with a wrong answer.
    RightOrRefused,
}

/// One request, and the body of its right answer.
struct RequestContext {
    id: String,
    bytes: Vec<u8>,
    answer: Vec<u8>,
}

impl RequestContext {
    fn new(
        id: String,
        method: &str,
        target: &str,
        fields: &str,
        body: &[u8],
        answer: Vec<u8>,
    ) -> RequestContext {
        let head = format!("{method} {target} HTTP/1.1\r\nHost: a\r\nX-Request-Id: {id}\r\n{fields}\r\n");
        RequestContext { id, bytes: [head.as_bytes(), body].concat(), answer }
    }
}

/// A body that shows when bytes are lost, doubled or changed over.
pub fn body(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8 ^ (at / 251) as u8).collect()
}

fn chunked(body: &[u8], most: usize) -> Vec<u8> {
    let mut coded = Vec::new();
    for chunk in body.chunks(most) {
        coded.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        coded.extend_from_slice(chunk);
        coded.extend_from_slice(b"\r\n");
    }
    coded.extend_from_slice(b"0\r\n\r\n");
    coded
}

/// What one connection asks, in order; the rows are pipelined.
fn scene(client: usize, round: usize) -> Vec<Vec<RequestContext>> {
    let mut count = 0;
    let mut ask = |method: &str, target: &str, fields: &str, body: &[u8], answer: Vec<u8>| {
        count += 1;
        RequestContext::new(format!("c{client}r{round}n{count}"), method, target, fields, body, answer)
    };
    let (large, small) = (body(LARGE), body(3000));
    let length = |body: &[u8]| format!("Content-Length: {}\r\n", body.len());
    vec![
        vec![ask("GET", "/ping", "", b"", b"pong".to_vec())],
        vec![
            ask("GET", "/bytes?n=10", "", b"", vec![b'x'; 10]),
            ask("POST", "/echo", &length(&small), &small, small.clone()),
            ask("GET", "/ping", "", b"", b"pong".to_vec()),
        ],
        vec![ask("POST", "/echo", &length(&large), &large, large.clone())],
        vec![ask("POST", "/echo", "Transfer-Encoding: chunked\r\n", &chunked(&large, 7000), large.clone())],
        vec![ask("GET", "/bytes?n=300000", "", b"", vec![b'x'; 300_000])],
        vec![ask("PUT", "/echo", "Transfer-Encoding: chunked\r\n", &chunked(&small, 100), small.clone())],
        vec![ask("GET", "/stream?n=200000", "", b"", vec![b'x'; LARGE])],
        vec![ask(
            "GET",
            "/chunks?n=3",
            "Connection: close\r\n",
            b"",
            b"chunk 0\nchunk 1\nchunk 2\n".to_vec(),
        )],
    ]
}

/// What came of a load.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Right answers, by the ids of their requests.
    pub right: Vec<String>,
    /// Refusals, with their statuses.
    pub refused: Vec<(String, u16)>,
    /// Without a whole answer. It may be that the server has never seen the request.
    pub lost: Vec<String>,
    wrong: Vec<String>,
}

/// Runs the load on a server whose workers are there; then every request has its line.
pub fn run(server: &mut Server, expect: Expect, round: usize) -> Outcome {
    let outcome = load(server, round);
    assert!(outcome.wrong.is_empty(), "{:#?}\n{}", outcome.wrong, server.stderr_text());
    if expect == Expect::Right {
        let is_right = outcome.refused.is_empty() && outcome.lost.is_empty();
        assert!(is_right, "{outcome:?}\n{}", server.stderr_text());
    }
    assert_lines(server, &outcome);
    outcome
}

/// All workers idle, no client left, so nothing is held for anybody.
fn wait_for_rest(server: &mut Server) {
    server.wait_until("rest", |server| {
        let details = server.details();
        let workers = details["workerList"].as_array().expect("a list of workers");
        details["clients"] == 0 && workers.len() == WORKERS && workers.iter().all(|it| it["state"] == "idle")
    });
}

fn load(server: &Server, round: usize) -> Outcome {
    let address = server.address();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn(move || {
                    let mut outcome = Outcome::default();
                    play(address, scene(client, round), &mut outcome);
                    outcome
                })
            })
            .collect();
        let mut all = Outcome::default();
        for thread in threads {
            let outcome = thread.join().expect("load does not panic");
            all.right.extend(outcome.right);
            all.refused.extend(outcome.refused);
            all.lost.extend(outcome.lost);
            all.wrong.extend(outcome.wrong);
        }
        all
    })
}

fn play(address: std::net::SocketAddr, rows: Vec<Vec<RequestContext>>, outcome: &mut Outcome) {
    let mut kept: Option<Client> = None;
    for info in rows {
        let mut client = kept.take().unwrap_or_else(|| Client::connect(address));
        let bytes = info.iter().map(|context| &context.bytes[..]).collect::<Vec<_>>().concat();
        // A refusal may come before all is sent, and stand there to be read.
        let _ = client.try_send(bytes);
        let mut is_open = true;
        for context in info {
            if !is_open {
                outcome.lost.push(context.id);
                continue;
            }
            match client.read_response_within(TEST_TIMEOUT) {
                Ok(response) => {
                    is_open = response.header("connection") != Some("close");
                    outcome.judge(context, &response);
                }
                Err(broken) => {
                    is_open = false;
                    match broken.trouble {
                        Trouble::Closed | Trouble::Reset => outcome.lost.push(context.id),
                        // What hangs once would hang for long in each of what follows.
                        trouble => return outcome.wrong.push(format!("{}: {trouble:?}", context.id)),
                    }
                }
            }
        }
        kept = is_open.then_some(client);
    }
}

impl Outcome {
    fn judge(&mut self, context: RequestContext, response: &Response) {
        match response.status {
            200 if response.body == context.answer => self.right.push(context.id),
            502..=504 => self.refused.push((context.id, response.status)),
            status => self.wrong.push(format!(
                "{}: {status} with {} bytes for {}",
                context.id,
                response.body.len(),
                context.answer.len()
            )),
        }
    }
}

/// Each request that had an answer has exactly one line, with its status; of the others none has two.
fn assert_lines(server: &mut Server, outcome: &Outcome) {
    let answered = outcome.right.iter().map(|id| (id, 200));
    let answered: Vec<(&String, u16)> =
        answered.chain(outcome.refused.iter().map(|(id, status)| (id, *status))).collect();
    server.wait_until("all access lines", |server| {
        let lines = lines_by_id(server);
        answered.iter().all(|(id, _)| lines.contains_key(*id))
    });
    let lines = lines_by_id(server);
    for (id, status) in &answered {
        let statuses: Vec<&Value> = lines[*id].iter().map(|line| &line["status"]).collect();
        assert_eq!(statuses, [*status], "{id}");
    }
    for (id, lines) in lines {
        assert_eq!(lines.len(), 1, "{id}: {lines:?}");
    }
}

/// Access lines with an id of the load's.
fn lines_by_id(server: &Server) -> BTreeMap<String, Vec<Value>> {
    let mut by_id: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in crate::tools::access_lines(server) {
        if let Some(id) = line["id"].as_str().filter(|id| id.starts_with('c') && id.contains('n')) {
            by_id.entry(id.to_owned()).or_default().push(line);
        }
    }
    by_id
}

/// The load under a plan, each of whose rules has to strike.
pub fn run_under(plan: &str, expect: Expect) -> (Outcome, Faults) {
    let (outcome, faults) = run_and_look(plan, expect);
    faults.assert_all_struck();
    (outcome, faults)
}

/// The load under a plan of which some rule strikes; how often they did.
pub fn struck_by(plan: &str, expect: Expect) -> (Outcome, u64) {
    let (outcome, faults) = run_and_look(plan, expect);
    let hits = faults.all_hits().iter().map(|(_, hits)| hits).sum();
    assert!(hits > 0, "{plan}");
    (outcome, hits)
}

/// The load under a plan, then once more without: all as ever, nothing left over. What nobody may see holds from the
/// start.
fn run_and_look(plan: &str, expect: Expect) -> (Outcome, Faults) {
    let faults = if expect == Expect::Right { Faults::new(plan) } else { Faults::for_later(plan) };
    let mut server = server().start_under(&faults);
    server.wait_for_workers(WORKERS as u64);
    wait_for_rest(&mut server);
    let before = Holdings::at_rest(&server);
    faults.turn_on();
    let outcome = run(&mut server, expect, 0);
    faults.turn_off();
    wait_for_rest(&mut server);
    run(&mut server, Expect::Right, 1);
    server.wait_until(&format!("{before:?} as before"), |server| {
        have_all_connected(server);
        Holdings::at_rest(server).is_within(&before)
    });
    assert_sound(&mut server);
    (outcome, faults)
}

/// Each worker at work at once (if the machine is not too slow for that), so that each has a connection.
fn have_all_connected(server: &mut Server) {
    let sleepers: Vec<Client> = (0..WORKERS).map(|_| asking(server, "/sleep?ms=20")).collect();
    for mut sleeper in sleepers {
        assert_eq!(sleeper.read_response().text(), "slept");
    }
}

/// Nothing panicked, and it ends as it should.
pub fn assert_sound(server: &mut Server) {
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0, "{}", server.stderr_text());
    assert!(!server.stderr_text().contains("panicked"), "{}", server.stderr_text());
}
