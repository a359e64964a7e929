//! `rip-server status --watch`: once on a pipe, again and again on a terminal, which is then as it was.

use crate::load::write_script;
use crate::support::skip::skip;
use crate::support::{Hold, Server, server_program, test_worker, wait_until};
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

const OTHER_SCREEN: &str = "\x1b[?1049h";
const FIRST_SCREEN: &str = "\x1b[?1049l";
const HIDE_CURSOR: &str = "\x1b[?25l";
const SHOW_CURSOR: &str = "\x1b[?25h";
const HOME: &str = "\x1b[H";
const CTRL_C: &[u8] = b"\x03";

/// A command on a terminal of its own, which `script` makes.
struct OnTerminal {
    child: Child,
    keys: ChildStdin,
    seen: Arc<Mutex<Vec<u8>>>,
    _dir: TempDir,
}

impl OnTerminal {
    fn watch(server: &Server) -> Option<OnTerminal> {
        OnTerminal::run(server, "status", "--watch")
    }

    /// A verb; `None` (and said so) where there is no `script`.
    fn run(server: &Server, verb: &str, flags: &str) -> Option<OnTerminal> {
        let has_script = Command::new("script").arg("--version").output().is_ok();
        if !has_script {
            skip("a verb on a terminal", "there is no `script` to make one");
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("watch");
        // The shell is there before and after it, and says how the terminal is set.
        let text = format!(
            "#!/bin/sh\ntrap : INT\necho \"before $(stty -g)\"\n{} {verb} {} {flags} --socket-dir {}\n\
             echo \"exit $?\"\necho \"after $(stty -g)\"\n",
            server_program().display(),
            test_worker().display(),
            server.socket_dir().display()
        );
        write_script(&file, &text);
        let mut script = Command::new("script");
        script.arg("-qfc").arg(&file).arg("/dev/null");
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = script.spawn().expect("script can be started");
        let keys = child.stdin.take().expect("stdin is piped");
        let mut screen = child.stdout.take().expect("stdout is piped");
        let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
        let collected = seen.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                collected.lock().expect("no panic holds the lock").extend_from_slice(&bytes[..count]);
            }
        });
        Some(OnTerminal { child, keys, seen, _dir: dir })
    }

    fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().expect("no panic holds the lock")).into_owned()
    }

    fn wait_for(&self, what: &str, condition: impl Fn(&str) -> bool) {
        wait_until(what, || condition(&self.seen()));
    }

    /// All that was on the screen, after its end.
    fn end(mut self) -> String {
        self.wait_for("the last line", |seen| seen.contains("after "));
        wait_until("the end of script", || self.child.try_wait().is_ok_and(|exit| exit.is_some()));
        self.seen()
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn watched() -> Server {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    server
}

/// What stands behind a word up to the line's end.
fn line_behind<'a>(seen: &'a str, phrase: &str) -> &'a str {
    let at = seen.rfind(phrase).unwrap_or_else(|| panic!("no '{phrase}' in {seen:?}"));
    seen[at + phrase.len()..].lines().next().unwrap_or_default().trim()
}

#[track_caller]
fn assert_terminal_as_before(seen: &str) {
    for (there, back) in [(OTHER_SCREEN, FIRST_SCREEN), (HIDE_CURSOR, SHOW_CURSOR)] {
        assert_eq!((seen.matches(there).count(), seen.matches(back).count()), (1, 1), "{seen:?}");
        assert!(seen.find(there) < seen.find(back), "{seen:?}");
    }
    assert_eq!(line_behind(seen, "before "), line_behind(seen, "after "), "the terminal's settings");
}

#[test]
fn on_a_pipe_it_prints_once() {
    let server = watched();
    let watch = server.verb(["status", "--watch"]);
    assert_eq!((watch.code, watch.stderr.as_str()), (0, ""));
    assert!(!watch.stdout.contains('\x1b'), "{:?}", watch.stdout);
    assert_eq!(watch.stdout.matches("test-worker  healthy").count(), 1, "{}", watch.stdout);
    assert_eq!(watch.stdout.matches("last exit").count(), 1, "{}", watch.stdout);
}

#[test]
fn on_a_terminal_it_draws_anew_until_ctrl_c() {
    let server = watched();
    let Some(mut terminal) = OnTerminal::watch(&server) else { return };
    terminal.wait_for("the table", |seen| seen.contains("last exit"));
    // Each drawing shows what is now.
    let mut client = server.client();
    for _ in 0..41 {
        assert_eq!(client.get("/ping").status, 200);
    }
    terminal.wait_for("the requests", |seen| seen.contains(" 41 "));
    let drawings = terminal.seen().matches(HOME).count();
    terminal.wait_for("two more drawings", |seen| seen.matches(HOME).count() >= drawings + 2);
    terminal.keys.write_all(CTRL_C).expect("script takes keys");
    let seen = terminal.end();
    assert_terminal_as_before(&seen);
    assert_eq!(line_behind(&seen, "exit "), "0");
}

#[test]
fn on_a_terminal_it_ends_with_the_server_and_says_so() {
    let server = watched();
    let Some(terminal) = OnTerminal::watch(&server) else { return };
    terminal.wait_for("the table", |seen| seen.contains("last exit"));
    assert_eq!(server.verb(["stop"]).code, 0);
    let seen = terminal.end();
    assert_terminal_as_before(&seen);
    let after = &seen[seen.find(FIRST_SCREEN).expect("it was asserted")..];
    assert!(after.contains("no server for 'test-worker'"), "{after:?}");
    assert_eq!(line_behind(&seen, "exit "), "1");
}

#[test]
fn without_a_server_nothing_is_drawn() {
    let mut server = watched();
    assert_eq!(server.verb(["stop"]).code, 0);
    server.wait_exit();
    for words in [&["status"][..], &["status", "--json"], &["status", "--watch"]] {
        let output = server.verb(words);
        assert_eq!((output.code, output.stdout.as_str()), (1, ""), "{words:?}");
        assert_eq!(output.stderr.matches('\n').count(), 1, "{words:?}: {}", output.stderr);
        assert!(output.stderr.contains("no server for 'test-worker'"), "{words:?}: {}", output.stderr);
    }
    let Some(terminal) = OnTerminal::watch(&server) else { return };
    let seen = terminal.end();
    assert!(!seen.contains('\x1b') && seen.contains("no server for 'test-worker'"), "{seen:?}");
    assert_eq!(line_behind(&seen, "exit "), "1");
}

#[test]
fn a_stop_that_takes_longer_than_a_second_says_so_on_a_line_that_goes() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    let hold = Hold::new();
    let mut client = hold.ask(&server);
    server.wait_until("it is at work", |server| server.details()["workerList"][0]["state"] == "busy");
    let Some(stop) = OnTerminal::run(&server, "stop", "") else { return };
    stop.wait_for("a second", |seen| seen.contains("\r\x1b[Kstop: what is under way is finished (1 s)"));
    hold.let_go();
    let seen = stop.end();
    assert!(seen.contains("\r\x1b[Ktest-worker: stopped\r\n"), "{seen:?}");
    assert_eq!(client.read_response().text(), "held");
    assert_eq!(server.wait_exit(), 0);
}
