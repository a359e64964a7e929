//! Workers of Python and Ruby are forked from a template, where that is safe; and nothing is lost, whoever dies.

#[path = "runtimes/fixture.rs"]
mod fixture;
#[path = "support/load.rs"]
mod load;
#[path = "templates/obstacles.rs"]
mod obstacles;
mod support;

use fixture::{Fixture, Needs, python, ruby};
use load::{Load, PATIENT};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use support::{Server, Signal, is_alive};

const PYTHON: Needs = python(&["ctypes", "ssl"]);
const RACK: Needs = ruby(&["rack"]);

/// What a worker knows of itself.
const APP: &str = r#"
import json, os, random, secrets, ssl, uuid
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
def client_random():
    sent = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    except ssl.SSLWantReadError:
        return sent.read()[11:43].hex()
# What is random has been used before the fork.
client_random(), ssl.RAND_bytes(8), random.random(), uuid.uuid4()
loaded_by = os.getpid()
hooks = []
os.register_at_fork(after_in_child=lambda: hooks.append(os.getpid()))
def application(environ, start_response):
    if environ["PATH_INFO"] == "/crash":
        os.kill(os.getpid(), 9)
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    answer = {
        "version": 1, "pid": os.getpid(), "ppid": os.getppid(), "pgrp": os.getpgrp(), "loaded_by": loaded_by,
        "worker": os.environ["WORKER_ID"], "hooks": hooks, "blocked": status["SigBlk"].strip(),
        "random": random.random(), "uuid": str(uuid.uuid4()), "secret": secrets.token_hex(8),
        "openssl": ssl.RAND_bytes(8).hex(), "nonce": client_random(),
        "sockets": sum("socket:" in os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
        "template": sorted(name for name in os.environ if name.startswith("RIP_TEMPLATE")),
    }
    print("said by", os.environ["WORKER_ID"])
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
"#;

fn start(fixture: &Fixture, arguments: &[&str]) -> Server {
    fixture.server(None).args(arguments).args(PATIENT).start()
}

fn template_pids(server: &Server) -> Vec<i32> {
    let details = server.details();
    let templates = details["templates"].as_array().expect("a list of templates");
    templates.iter().filter_map(|template| i32::try_from(template["pid"].as_i64()?).ok()).collect()
}

/// Whether each worker is there, and was forked.
fn are_all_forked(server: &Server, count: usize) -> bool {
    let details = server.details();
    let workers = details["workerList"].as_array().expect("a list");
    workers.len() == count && workers.iter().all(|worker| worker["forked"] == true)
}

/// Asks each of the workers on its own socket.
fn ask_all(server: &Server, count: usize) -> Vec<Value> {
    let files = fs::read_dir(server.socket_dir()).expect("the socket folder").flatten();
    let names = files.map(|file| file.path().to_string_lossy().into_owned());
    let sockets = names.filter(|name| name.ends_with(".sock") && !name.ends_with(".ctl.sock"));
    let ask = |name: String| support::Client::connect_unix(name.as_ref()).get("/").json();
    let answers: Vec<Value> = sockets.map(ask).collect();
    assert_eq!(answers.len(), count);
    answers
}

fn different(answers: &[Value], field: &str) -> usize {
    answers.iter().map(|answer| answer[field].to_string()).collect::<BTreeSet<_>>().len()
}

#[test]
fn workers_are_the_servers_own_children_and_differ_in_what_is_to_differ() {
    let Some(fixture) = Fixture::empty(&PYTHON, "app") else { return };
    fixture.write("app.py", APP);
    let mut server = start(&fixture, &["w:3"]);
    server.wait_for_workers(3);
    assert!(are_all_forked(&server, 3), "{}", server.details());
    let answers = ask_all(&server, 3);
    let [template] = template_pids(&server)[..] else { panic!("one template: {}", server.details()) };
    for answer in &answers {
        assert_eq!((&answer["ppid"], &answer["pgrp"]), (&server.pid().into(), &answer["pid"]), "{answer}");
        assert_eq!(answer["loaded_by"], template, "{answer}");
        assert_eq!(
            answer["hooks"],
            serde_json::json!([answer["pid"]]),
            "hooks run in the worker, once: {answer}"
        );
        assert_eq!(answer["blocked"], "0000000000000000", "{answer}");
        assert_eq!(answer["template"], serde_json::json!([]), "{answer}");
        // Its listener, the server's connection, and this test's.
        assert!(answer["sockets"].as_u64() <= Some(3), "{answer}");
    }
    assert_eq!(answers[0]["nonce"].as_str().map(str::len), Some(64), "{}", answers[0]);
    for field in ["random", "uuid", "secret", "openssl", "nonce", "worker", "pid"] {
        assert_eq!(different(&answers, field), 3, "{field}: {answers:?}");
    }
    server.wait_until("each worker's own output", |server| {
        let lines = [server.stdout_lines(), server.stderr_lines()].concat();
        (0..3).all(|id| lines.iter().any(|line| line.ends_with(&format!("[worker {id}] said by {id}"))))
    });
    let pids = server.worker_pids();
    assert_eq!(server.verb(["stop"]).code, 0);
    assert!(pids.iter().chain(&[template]).all(|&pid| !is_alive(pid)), "nothing is left");
}

#[test]
fn an_upgrade_has_a_template_of_its_own_and_leaves_nothing_of_the_old_one() {
    let Some(fixture) = Fixture::empty(&PYTHON, "app") else { return };
    fixture.write("app.py", APP);
    let mut server = start(&fixture, &["w:2", "--fork=always"]);
    server.wait_for_workers(2);
    let old: Vec<i32> = server.worker_pids().into_iter().chain(template_pids(&server)).collect();
    assert_eq!(old.len(), 3);
    let load = Load::start(&server, "/");
    load.wait_for_answers(20);
    let verdict = server.verb(["upgrade"]);
    assert_eq!(verdict.code, 0, "{}\n{}", verdict.stderr, server.stderr_text());
    assert_eq!(server.wait_exit(), 0);
    load.wait_for_answers(20);
    load.end();
    assert!(old.iter().all(|&pid| !is_alive(pid)), "nothing is left of the old server");
    assert!(are_all_forked(&server, 2), "{}", server.details());
    let [template] = template_pids(&server)[..] else { panic!("one template: {}", server.details()) };
    for answer in ask_all(&server, 2) {
        assert_eq!(answer["loaded_by"], template, "{answer}");
    }
    let pids = server.worker_pids();
    assert_eq!(server.verb(["stop"]).code, 0);
    assert!(pids.iter().chain(&[template]).all(|&pid| !is_alive(pid)), "nothing is left");
    assert_eq!(load::files_in(&server.socket_dir()), Vec::<String>::new());
}

#[test]
fn new_code_is_loaded_once_and_broken_code_touches_no_worker() {
    let Some(fixture) = Fixture::empty(&PYTHON, "app") else { return };
    fixture.write("app.py", APP);
    let mut server = start(&fixture, &["w:2"]);
    server.wait_for_workers(2);
    let load = Load::start(&server, "/");
    let (old, template) = (server.worker_pids(), template_pids(&server));

    fixture.write("app.py", &APP.replace("import json", "import json, nothing_of_that_name"));
    let output = server.verb(["reload"]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    assert!(output.stderr.contains("nothing_of_that_name"), "{}", output.stderr);
    assert!(output.stderr.contains("template of the new code"), "{}", output.stderr);
    assert_eq!((server.worker_pids(), template_pids(&server)), (old.clone(), template.clone()), "untouched");

    fixture.write("app.py", &APP.replace("\"version\": 1", "\"version\": 2"));
    let output = server.verb(["reload"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert_eq!(server.get("/").json()["version"], 2);
    assert!(are_all_forked(&server, 2), "{}", server.details());
    assert!(old.iter().chain(&template).all(|&pid| !is_alive(pid)), "the old ones are gone");
    assert_eq!(template_pids(&server).len(), 1);
    load.end();
}

#[test]
fn a_moved_link_is_followed_by_the_next_template() {
    let Some(fixture) = Fixture::empty(&PYTHON, "app") else { return };
    for version in 1..=2 {
        let release = fixture.dir().join(format!("r{version}"));
        fs::create_dir(&release).expect("a release");
        let text = APP.replace("\"version\": 1", &format!("\"version\": {version}"));
        fs::write(release.join("app.py"), text).expect("written");
    }
    let link = fixture.file("current");
    std::os::unix::fs::symlink(fixture.dir().join("r1"), &link).expect("a link");
    let mut server = fixture.server(Some("current")).args(["w:2"]).args(PATIENT).start();
    server.wait_for_workers(2);
    fs::remove_file(&link).expect("removed");
    std::os::unix::fs::symlink(fixture.dir().join("r2"), &link).expect("a link");
    let before = server.worker_pids();
    // Tried once more, so both die.
    server.get("/crash");
    server.wait_for_successors(&before, 2);
    assert_eq!(server.get("/").json()["version"], 1, "a crash follows no link");
    assert_eq!(server.verb(["reload"]).code, 0);
    assert_eq!(server.get("/").json()["version"], 2);
    assert!(are_all_forked(&server, 2));
}

#[test]
fn a_killed_template_is_started_again_and_its_workers_live_on() {
    let Some(fixture) = Fixture::empty(&PYTHON, "app") else { return };
    fixture.write("app.py", APP);
    let mut server = start(&fixture, &["w:2"]);
    server.wait_for_workers(2);
    let load = Load::start(&server, "/");
    let (workers, template) = (server.worker_pids(), template_pids(&server));
    kill(template[0]);
    server.wait_until("another template", |server| {
        let pids = template_pids(server);
        pids.len() == 1 && pids != template
    });
    assert_eq!(server.worker_pids(), workers);
    load.end();
    // A worker that dies is there again, by a fork.
    kill(workers[0]);
    server.wait_for_successors(&workers, 1);
    assert!(are_all_forked(&server, 2), "{}", server.details());
    // The server dies, and everybody with it.
    let all: Vec<i32> = server.worker_pids().into_iter().chain(template_pids(&server)).collect();
    server.signal(Signal::SIGKILL);
    server.wait_exit();
    support::wait_until("the end of all", || all.iter().all(|&pid| !is_alive(pid)));
}

fn kill(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, Signal::SIGKILL).expect("it is there");
}

#[test]
fn a_worker_that_dies_between_its_fork_and_its_join_is_started_again() {
    let Some(fixture) = Fixture::empty(&PYTHON, "app") else { return };
    let dies_once = r#"
def die_once():
    try:
        os.unlink("die")
    except FileNotFoundError:
        return
    os.kill(os.getpid(), 9)
os.register_at_fork(after_in_child=die_once)
"#;
    fixture.write("app.py", &[APP, dies_once].concat());
    let mut server = start(&fixture, &["w:2"]);
    server.wait_for_workers(2);
    fixture.write("die", "");
    let before = server.worker_pids();
    server.get("/crash");
    server.wait_until("it has died", |_| !fixture.file("die").exists());
    server.wait_for_successors(&before, 2);
    assert!(are_all_forked(&server, 2), "{}", server.details());
    assert_eq!(server.verb(["stop"]).code, 0);
}

#[test]
fn cycles_and_growth_are_forks() {
    let Some(fixture) = Fixture::empty(&PYTHON, "app") else { return };
    fixture.write("app.py", &APP.replace("    print(", "    import time; time.sleep(0.01)\n    print("));
    let mut server = start(&fixture, &["w:1..4", "r:20"]);
    server.wait_for_workers(1);
    let load = Load::of(&server, "/", 4, 0);
    server.wait_until("four workers", |server| server.get("/status").json()["workers"] == 4);
    load.wait_for_answers(200);
    load.end();
    let starts = server.stderr_lines();
    assert!(starts.iter().any(|line| line.contains("forked") && line.contains("successor after requests")));
    assert!(!starts.iter().any(|line| line.contains(": started, generation")), "{}", server.stderr_text());
}

#[test]
fn an_asgi_apps_lifespan_begins_in_each_worker() {
    let Some(fixture) = Fixture::empty(&PYTHON, "app") else { return };
    let app = r#"
import asyncio, os
lifespans = []
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        lifespans.append((os.getpid(), id(asyncio.get_running_loop())))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        return await send({"type": "lifespan.shutdown.complete"})
    good = lifespans == [(os.getpid(), id(asyncio.get_running_loop()))]
    await send({"type": "http.response.start", "status": 200 if good else 500, "headers": []})
    await send({"type": "http.response.body", "body": b"well"})
"#;
    fixture.write("app.py", app);
    let mut server = start(&fixture, &["w:2"]);
    server.wait_for_workers(2);
    assert!(are_all_forked(&server, 2), "{}", server.stderr_text());
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_forked_worker_ends_as_python_does_and_loses_nothing_that_was_written() {
    let Some(fixture) = Fixture::empty(&PYTHON, "app") else { return };
    let app = r#"
import atexit, gzip, os, threading, time
loaded = open("loaded.txt", "w")
kept = []
def later(main):
    main.join()
    deadline = time.monotonic() + 60
    while not os.path.exists("go") and time.monotonic() < deadline:
        time.sleep(0.005)
    kept[0].write("thread ")
def application(environ, start_response):
    loaded.write("loaded")
    kept.append(open("opened.txt", "w"))
    kept.append(gzip.open("packed.gz", "wt"))
    kept[1].write("packed")
    threading.Thread(target=later, args=[threading.main_thread()]).start()
    atexit.register(lambda: kept[0].write("atexit"))
    start_response("200 OK", [("Content-Type", "text/plain")])
    print("said", end="")
    return [b"well"]
"#;
    fixture.write("app.py", app);
    // With one that is open for writing at import, it would not be forked by itself.
    let mut server = start(&fixture, &["w:1", "--fork=always"]);
    server.wait_for_workers(1);
    assert!(are_all_forked(&server, 1), "{}", server.stderr_text());
    assert_eq!(server.get("/").text(), "well");
    // The other thread goes on for as long as this takes.
    server.signal(Signal::SIGTERM);
    server.wait_until("it stops", |server| server.stderr_text().contains("stopping"));
    fixture.write("go", "");
    assert_eq!(server.wait_exit(), 0);
    let read = |name: &str| fs::read(fixture.file(name)).expect("a file");
    assert_eq!(String::from_utf8_lossy(&read("loaded.txt")), "loaded");
    assert_eq!(String::from_utf8_lossy(&read("opened.txt")), "thread atexit");
    let packed = read("packed.gz");
    assert_eq!(packed[packed.len() - 4..], 6_u32.to_le_bytes(), "its trailer has the length");
    assert!(server.stdout_lines().iter().any(|line| line.contains("said")));
}

#[test]
fn a_template_is_warmed_by_a_page() {
    let Some(fixture) = Fixture::empty(&PYTHON, "app") else { return };
    let app = r#"
import os
seen = []
def application(environ, start_response):
    seen.append((os.getpid(), environ["PATH_INFO"], environ["QUERY_STRING"]))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [repr(seen).encode()]
"#;
    fixture.write("app.py", app);
    let mut server = start(&fixture, &["w:1", "--warm=/warm?x=1"]);
    server.wait_for_workers(1);
    let text = server.get("/now").text();
    assert_eq!(text.matches("'/warm', 'x=1'").count(), 3, "{text}");
    assert!(are_all_forked(&server, 1), "{}", server.stderr_text());
}

const RACKUP: &str = r#"
require "json"
require "openssl"
require "securerandom"
def client_random
  near, far = UNIXSocket.pair
  OpenSSL::SSL::SSLSocket.new(near, OpenSSL::SSL::SSLContext.new).connect_nonblock(exception: false)
  far.readpartial(1000)[11, 32].unpack1("H*")
ensure
  [near, far].each(&:close)
end
# What is random has been used before the fork.
client_random; OpenSSL::Random.random_bytes(8); rand; SecureRandom.uuid
LOADED_BY = Process.pid
HOOKS = []
if Process.respond_to?(:_fork)
  hook = Module.new { def _fork = super.tap { |pid| HOOKS << Process.pid if pid.zero? } }
  Process.singleton_class.prepend(hook)
end
run ->(env) {
  Process.kill(:KILL, Process.pid) if env["PATH_INFO"] == "/crash"
  puts "said by #{ENV["WORKER_ID"]}"
  answer = { pid: Process.pid, ppid: Process.ppid, pgrp: Process.getpgrp, loaded_by: LOADED_BY, hooks: HOOKS,
    worker: ENV["WORKER_ID"], random: rand, secret: SecureRandom.hex(8), uuid: SecureRandom.uuid,
    openssl: OpenSSL::Random.random_bytes(8).unpack1("H*"), nonce: client_random,
    blocked: File.read("/proc/self/status")[/^SigBlk:\s*(\w+)/, 1] }
  [200, { "content-type" => "application/json" }, [JSON.generate(answer)]]
}
"#;

#[test]
fn a_rack_apps_workers_are_forked_too() {
    let Some(fixture) = Fixture::empty(&RACK, "app") else { return };
    fixture.write("config.ru", RACKUP);
    let mut server = start(&fixture, &["w:3", "--warm=/warm"]);
    server.wait_for_workers(3);
    assert!(are_all_forked(&server, 3), "{}", server.stderr_text());
    let answers = ask_all(&server, 3);
    let [template] = template_pids(&server)[..] else { panic!("one template: {}", server.details()) };
    for answer in &answers {
        assert_eq!((&answer["ppid"], &answer["pgrp"]), (&server.pid().into(), &answer["pid"]), "{answer}");
        assert_eq!(answer["loaded_by"], template, "{answer}");
        assert_eq!(answer["blocked"], "0000000000000000", "{answer}");
        assert_eq!(answer["hooks"], serde_json::json!([answer["pid"]]), "{answer}");
    }
    assert_eq!(answers[0]["nonce"].as_str().map(str::len), Some(64), "{}", answers[0]);
    for field in ["random", "uuid", "secret", "openssl", "nonce", "worker", "pid"] {
        assert_eq!(different(&answers, field), 3, "{field}: {answers:?}");
    }
    server.wait_until("each worker's own output", |server| {
        let lines = [server.stdout_lines(), server.stderr_lines()].concat();
        (0..3).all(|id| lines.iter().any(|line| line.ends_with(&format!("[worker {id}] said by {id}"))))
    });
    let before = server.worker_pids();
    // Tried once more, so two die.
    server.get("/crash");
    server.wait_for_successors(&before, 2);
    fixture.write("config.ru", "raise 'broken'");
    let old = server.worker_pids();
    let output = server.verb(["reload"]);
    assert!(output.code == 1 && output.stderr.contains("broken"), "{}", output.stderr);
    assert_eq!(server.worker_pids(), old);
    assert_eq!(server.verb(["stop"]).code, 0);
    assert!(old.iter().chain(&[template]).all(|&pid| !is_alive(pid)), "nothing is left");
}

/// An app that answers when three requests are in it at once.
const MEETS: [(&str, &str, &Needs); 2] = [
    (
        "app.py",
        r#"
import threading
meeting = threading.Barrier(3)
def application(environ, start_response):
    meeting.wait(30)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"met"]
"#,
        &PYTHON,
    ),
    (
        "config.ru",
        r#"
ARRIVED = Queue.new
run ->(_) {
  ARRIVED << 1
  sleep 0.001 until ARRIVED.size >= 3
  [200, { "content-type" => "text/plain" }, ["met"]]
}
"#,
        &RACK,
    ),
];

#[test]
fn forked_workers_have_their_threads_for_several_requests_at_once() {
    for (file, app, needs) in MEETS {
        let Some(fixture) = Fixture::empty(needs, "app") else { continue };
        fixture.write(file, app);
        let mut server = start(&fixture, &["w:2", "c:3"]);
        server.wait_for_workers(2);
        assert!(are_all_forked(&server, 2), "{}", server.stderr_text());
        let mut clients: Vec<_> = (0..6).map(|_| server.client()).collect();
        clients.iter_mut().for_each(|client| client.send_request("GET", "/", "", b""));
        for client in &mut clients {
            assert_eq!(client.read_response().text(), "met", "{file}");
        }
    }
}
