//! A worker inside the test's own process, for servers with `w:0`: it records whole requests as they came, and
//! answers with the bytes that it is told.

use super::client::Client;
use super::message::Head;
use super::server::Server;
use super::wire::{Stream, Trouble, Wire};
use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Between two writes of an answer.
pub const GAP: Duration = Duration::from_millis(30);
/// A worker waits for its next request until the test is over.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// A request as a worker got it.
#[derive(Debug, Clone)]
pub struct WorkerRequest {
    pub worker: u64,
    /// Counted from 0 for each worker.
    pub connection: usize,
    pub head: Head,
    pub method: String,
    pub target: String,
    /// Empty for a worker that reads only heads.
    pub body: Vec<u8>,
}

/// How much of a request a worker reads before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    All,
    /// Its body is never read. Closing such a connection resets it.
    Head,
}

/// What a worker does behind its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Ready for the next request.
    Keep,
    Close,
    /// Open and silent, until [`RawWorker::let_go`] or its end.
    Hang,
}

/// What a worker answers: writes [`GAP`] apart (an empty one is only a pause), and what it does then.
#[derive(Debug, Clone)]
pub struct Answer {
    pub writes: Vec<Vec<u8>>,
    pub then: Then,
}

/// A worker that has joined. At its drop its connections and its socket are closed; the server is not told.
pub struct RawWorker {
    pub id: u64,
    socket: PathBuf,
    control: PathBuf,
    shared: Arc<Shared>,
}

type Handler = dyn Fn(&WorkerRequest) -> Answer + Send + Sync;

struct Shared {
    id: u64,
    reads: Reads,
    handler: Box<Handler>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    requests: Vec<WorkerRequest>,
    /// Answers that are out.
    answers: usize,
    faults: Vec<String>,
    connections: usize,
    /// Other handles to the open connections, to end them from outside.
    handles: HashMap<usize, Stream>,
    is_let_go: bool,
    is_over: bool,
}

impl WorkerRequest {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }
}

impl Answer {
    /// One write, and ready for the next request.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Answer {
        Answer { writes: vec![bytes.into()], then: Then::Keep }
    }

    /// 200 with this body.
    pub fn ok(body: &str) -> Answer {
        Answer::bytes(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    }

    /// 200 with the request's target in `X-Echo-Target`, its method in `X-Echo-Method`, and a body, but for HEAD.
    pub fn echo(request: &WorkerRequest) -> Answer {
        let (method, target) = (&request.method, &request.target);
        let body = if method == "HEAD" { "" } else { "echo" };
        let text = format!(
            "HTTP/1.1 200 OK\r\nX-Echo-Target: {target}\r\nX-Echo-Method: {method}\r\nContent-Length: 4\r\n\r\n{body}"
        );
        Answer::bytes(super::latin1_bytes(&text))
    }

    pub fn then(self, then: Then) -> Answer {
        Answer { then, ..self }
    }
}

impl RawWorker {
    /// Joins a server that was started with `w:0`. The last one to join is asked first.
    pub fn join(
        server: &Server,
        id: u64,
        handler: impl Fn(&WorkerRequest) -> Answer + Send + Sync + 'static,
    ) -> RawWorker {
        RawWorker::join_reading(Reads::All, server, id, handler)
    }

    pub fn join_reading(
        reads: Reads,
        server: &Server,
        id: u64,
        handler: impl Fn(&WorkerRequest) -> Answer + Send + Sync + 'static,
    ) -> RawWorker {
        let socket = server.dir().join(format!("raw{id}.sock"));
        let listener = UnixListener::bind(&socket).expect("a Unix socket");
        let shared = Arc::new(Shared {
            id,
            reads,
            handler: Box::new(handler),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || accept(&listener, &accepting));
        let worker = RawWorker { id, socket, control: server.control_socket(), shared };
        // The server never signals a worker from outside, so this process's own pid can do no harm.
        let (pid, path) = (std::process::id(), worker.socket.display());
        worker.tell(&format!(r#"{{"op":"join","workerId":{id},"pid":{pid},"socket":"{path}","version":1}}"#));
        worker
    }

    /// Leaves as a worker does that quits by itself.
    pub fn quit(&self) {
        self.tell(&format!(r#"{{"op":"quit","workerId":{}}}"#, self.id));
    }

    fn tell(&self, message: &str) {
        let mut control = Client::connect_unix(&self.control);
        let response = control.post("/worker", message.as_bytes());
        assert_eq!(response.status, 200, "{message} was refused: {}", response.text());
    }

    /// All requests so far, in order.
    pub fn requests(&self) -> Vec<WorkerRequest> {
        self.shared.lock().requests.clone()
    }

    pub fn request_count(&self) -> usize {
        self.shared.lock().requests.len()
    }

    /// How many answers it has written, or as much of them as the server took.
    pub fn answer_count(&self) -> usize {
        self.shared.lock().answers
    }

    /// Bytes from the server that are no whole request.
    pub fn faults(&self) -> Vec<String> {
        self.shared.lock().faults.clone()
    }

    /// How many connections the server has opened.
    pub fn connection_count(&self) -> usize {
        self.shared.lock().connections
    }

    /// Connections that hang are closed, now and from now on.
    pub fn let_go(&self) {
        self.shared.lock().is_let_go = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for RawWorker {
    fn drop(&mut self) {
        let handles = {
            let mut state = self.shared.lock();
            state.is_over = true;
            std::mem::take(&mut state.handles)
        };
        self.shared.changed.notify_all();
        for handle in handles.into_values() {
            // It may have ended already.
            let _ = handle.shutdown(Shutdown::Both);
        }
        // Wakes the thread that accepts, so that it ends.
        let _ = UnixStream::connect(&self.socket);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic holds the lock")
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        let Ok(mut wire) = stream.and_then(Wire::accepted) else {
            return;
        };
        let mut state = shared.lock();
        if state.is_over {
            return;
        }
        let connection = state.connections;
        state.connections += 1;
        state.handles.extend(wire.handle().ok().map(|handle| (connection, handle)));
        if shared.reads == Reads::Head {
            wire.read_byte_by_byte();
        }
        drop(state);
        let shared = shared.clone();
        std::thread::spawn(move || {
            converse(&shared, &mut wire, connection);
            // No second handle may keep it open: only a true close resets a connection with unread input.
            shared.lock().handles.remove(&connection);
        });
    }
}

/// One connection, until its end.
fn converse(shared: &Shared, wire: &mut Wire, connection: usize) {
    loop {
        let request = match read_request(shared, wire, connection) {
            Ok(request) => request,
            Err(trouble) => {
                let left = wire.pending_bytes();
                if !left.is_empty() || !matches!(trouble, Trouble::Closed | Trouble::Reset) {
                    let fault =
                        format!("connection {connection}: {trouble:?} behind {:?}", super::latin1(left));
                    shared.lock().faults.push(fault);
                }
                return;
            }
        };
        shared.lock().requests.push(request.clone());
        let answer = (shared.handler)(&request);
        let is_taken = write_with_gaps(wire, &answer.writes);
        shared.lock().answers += 1;
        if !is_taken {
            return;
        }
        match answer.then {
            Then::Keep => {}
            Then::Close => return,
            Then::Hang => {
                let holds_on = |state: &mut State| !state.is_let_go && !state.is_over;
                drop(shared.changed.wait_while(shared.lock(), holds_on));
                return;
            }
        }
    }
}

/// Whether the server took everything.
fn write_with_gaps(wire: &mut Wire, writes: &[Vec<u8>]) -> bool {
    writes.iter().enumerate().all(|(index, bytes)| {
        let is_broken = index > 0 && wire.breaks_within(GAP);
        !is_broken && wire.write(bytes).is_ok()
    })
}

fn read_request(shared: &Shared, wire: &mut Wire, connection: usize) -> Result<WorkerRequest, Trouble> {
    let deadline = Instant::now() + FOR_EVER;
    let head = wire.read_head(deadline)?;
    let length = head.header("content-length").unwrap_or("0");
    let length = length.parse().map_err(|_| Trouble::Malformed(format!("Content-Length: {length}")))?;
    let body = match shared.reads {
        Reads::All => wire.read_exactly(length, deadline)?,
        Reads::Head => Vec::new(),
    };
    let mut words = head.start_line.split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    Ok(WorkerRequest { worker: shared.id, connection, head, method, target, body })
}
