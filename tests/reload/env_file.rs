//! `--env-file`: read once for each release, so that an edit counts from the next reload on, and a broken one at none.

use super::load::write_script;
use super::pids;
use crate::support::{Server, Signal, run, test_worker};
use nix::sys::signal::kill;
use nix::unistd::Pid;

const SCRIPT: &str = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s' \"$A $B\"\n";

#[test]
fn each_reload_reads_the_variables_and_a_broken_file_changes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("variables");
    let write = |text: &str| std::fs::write(&file, text).expect("written");
    let script = dir.path().join("index.sh");
    write_script(&script, SCRIPT);
    let flag = format!("--env-file={}", file.display());
    write("A=1\n");
    let mut server = Server::builder(script).args(["w:2", &flag]).start();
    server.wait_for_workers(2);
    assert_eq!(server.get("/").text(), "1 ");
    let before = pids(&server);
    write("A=2\n# more\nB\n");
    let verdict = server.verb(["reload"]);
    assert!(verdict.code == 1 && verdict.stderr.contains("line 3 of"), "{}", verdict.stderr);
    assert_eq!(pids(&server), before, "no worker was touched");
    // Whoever is started between two reloads has what its release had.
    let killed = *before.first().expect("a worker");
    kill(Pid::from_raw(killed), Signal::SIGKILL).expect("it lives");
    server.wait_until("another one serves", |server| {
        let now = pids(server);
        now.len() == 2 && !now.contains(&killed) && server.details()["workers"] == 2
    });
    for _ in 0..2 {
        assert_eq!(server.get("/").text(), "1 ");
    }
    write("A=2\nB=3\n");
    let verdict = server.verb(["reload"]);
    assert_eq!(verdict.code, 0, "{}", verdict.stderr);
    assert_eq!(server.get("/").text(), "2 3");
}

#[test]
fn a_file_that_cannot_be_read_again_is_refused_at_the_start() {
    let dir = tempfile::tempdir().expect("a folder");
    let pipe = dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let wrong = dir.path().join("wrong");
    std::fs::write(&wrong, "A=1\n=2\n").expect("written");
    for (path, what) in
        [(&pipe, "no plain file"), (&dir.path().join("none"), "No such file"), (&wrong, "line 2 of")]
    {
        let app = test_worker();
        let output = run([app.as_os_str(), format!("--env-file={}", path.display()).as_ref()]);
        assert_eq!(output.code, 2, "{}", output.stderr);
        assert!(output.stderr.contains(what), "{}", output.stderr);
    }
}
