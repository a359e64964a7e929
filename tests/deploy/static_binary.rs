//! The static binary that `Dockerfile.rust` builds: built by that file's own lines, from the files that it copies,
//! and run in a root that holds nothing else.

use super::dockerfiles::{Dockerfile, built_by, words};
use super::{find_program, root};
use crate::load::{children, files_in};
use crate::support::skip::{note, skip};
use crate::support::{Client, Signal, is_alive, wait_until};
use nix::sys::signal::kill;
use nix::unistd::{Pid, geteuid};
use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

const MAX_BYTES: u64 = 3_600_000;
/// The Dockerfile's user.
const NOBODY: &str = "65532:65532";

/// The binary; `None` (and said so) where it is not built yet and nobody wants everything tested.
fn binary() -> Option<&'static Path> {
    static BINARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    BINARY.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    let context = root().join("target/static");
    if std::env::var("RIP_TEST_ALL").as_deref() != Ok("1") && !context.exists() {
        note(
            "the static binary",
            "target/static is not there, and its build takes minutes; RIP_TEST_ALL=1 does it",
        );
        return None;
    }
    let docker = Dockerfile::read("Dockerfile.rust");
    docker.stages[0].lay_out(&context);
    let lines = docker.stages[0].runs();
    let line = lines.iter().find(|line| line.contains("cargo build")).expect("it builds");
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).current_dir(&context).env_remove("CARGO_TARGET_DIR").stdin(Stdio::null());
    let build = shell.output().expect("a shell can be started");
    assert!(build.status.success(), "{line}: {}", String::from_utf8_lossy(&build.stderr));
    let path = context.join(built_by(&words(line)));
    assert!(path.is_file(), "{} is missing", path.display());
    Some(path)
}

/// The server in an empty root. Killed when it is dropped.
struct Jailed {
    child: Child,
    dir: TempDir,
    address: SocketAddr,
}

/// `chroot` as root, or as the root of a user namespace; `None` (and said so) where neither may be.
fn chroot(dir: &Path) -> Option<Command> {
    let program = find_program("chroot")?;
    if geteuid().is_root() {
        let mut command = Command::new(program);
        command.arg(dir);
        return Some(command);
    }
    let unshare = find_program("unshare")?;
    let works =
        Command::new(&unshare).args(["-r", "true"]).output().is_ok_and(|output| output.status.success());
    works.then(|| {
        let mut command = Command::new(unshare);
        command.arg("-r").arg(program).arg(dir);
        command
    })
}

impl Jailed {
    fn root(dir: &TempDir) -> PathBuf {
        dir.path().join("root")
    }

    /// A folder that holds the binary alone.
    fn empty_root(binary: &Path) -> TempDir {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let root = Jailed::root(&dir);
        std::fs::create_dir(&root).expect("a folder");
        // By a process of its own, since a descriptor open for writing that another test's child inherits would make
        // its start fail.
        let copied = Command::new("cp").arg(binary).arg(root.join("hello")).status();
        assert!(copied.expect("cp can be started").success());
        for path in [dir.path(), &root] {
            std::fs::set_permissions(path, Permissions::from_mode(0o755)).expect("a mode");
        }
        dir
    }

    fn start(dir: TempDir, mut command: Command) -> Jailed {
        let log = dir.path().join("stdout");
        command.args(["/hello", "w:2", "http:127.0.0.1:0"]).env_clear().env("NODE_ENV", "production");
        let stdout = File::create(&log).expect("a file");
        let stderr = File::create(dir.path().join("stderr")).expect("a file");
        let child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn();
        let mut child = child.expect("chroot can be started");
        let mut address = None;
        wait_until("the line at the start", || {
            let stderr = || std::fs::read_to_string(dir.path().join("stderr")).unwrap_or_default();
            let exit = child.try_wait().expect("a child can be waited for");
            assert_eq!(exit, None, "the server ended: {}", stderr());
            let text = std::fs::read_to_string(&log).expect("the file");
            let phrase = text.split_whitespace().find_map(|phrase| phrase.strip_prefix("http="));
            address = phrase.filter(|_| text.contains('\n')).and_then(|phrase| phrase.parse().ok());
            address.is_some()
        });
        let jailed = Jailed { child, dir, address: address.expect("an address") };
        jailed.wait_for_workers();
        jailed
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    fn wait_for_workers(&self) {
        wait_until("two workers", || self.client().get("/status").json()["workers"] == 2);
    }

    fn workers(&self) -> BTreeSet<i32> {
        children(self.pid()).into_iter().filter(|pid| is_alive(*pid)).collect()
    }

    fn client(&self) -> Client {
        Client::connect(self.address)
    }

    fn stop(&mut self) {
        let workers = self.workers();
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).expect("a signal can be sent");
        let mut code = None;
        wait_until("the server's end", || {
            code = self.child.try_wait().expect("a child can be waited for");
            code.is_some()
        });
        assert_eq!(code.and_then(|code| code.code()), Some(0));
        assert!(!workers.into_iter().any(is_alive), "a worker is left behind");
    }

    fn sockets(&self, user: &str) -> Vec<String> {
        let folder = Jailed::root(&self.dir).join(format!("tmp/rip-{user}"));
        files_in(&folder).into_iter().filter(|file| file.ends_with(".sock")).collect()
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_static_binary_is_small() {
    let Some(binary) = binary() else { return };
    let bytes = binary.metadata().expect("it is there").len();
    eprintln!("the static binary has {bytes} bytes");
    assert!(bytes <= MAX_BYTES, "{bytes} bytes");
}

#[test]
fn the_static_binary_serves_in_a_root_that_holds_nothing_else() {
    let Some(binary) = binary() else { return };
    let dir = Jailed::empty_root(binary);
    let Some(command) = chroot(&Jailed::root(&dir)) else {
        return skip("an empty root", "neither root nor a user namespace, or no chroot");
    };
    let mut jailed = Jailed::start(dir, command);
    assert_eq!(jailed.client().get("/ping").text(), "pong");
    let mut client = jailed.client();
    let answer = client.post("/upload", &vec![b'x'; 1 << 20]);
    assert_eq!((answer.status, answer.text().as_str()), (200, "Hello from /upload\n"));
    assert_eq!(client.get("/ping").text(), "pong", "the connection goes on behind the body");

    let before = jailed.workers();
    assert_eq!(before.len(), 2);
    let victim = *before.first().expect("a worker");
    kill(Pid::from_raw(victim), Signal::SIGKILL).expect("a signal can be sent");
    wait_until("another in its place", || {
        let after = jailed.workers();
        after.len() == 2 && !after.contains(&victim)
    });
    jailed.wait_for_workers();
    for _ in 0..10 {
        assert_eq!(jailed.client().get("/ping").text(), "pong");
    }

    // What it needed it made by itself.
    let mut there = files_in(&Jailed::root(&jailed.dir));
    there.sort();
    assert_eq!(there, ["hello", "tmp"]);
    assert_eq!(jailed.sockets("0").len(), 3, "its own one and one for each worker");
    jailed.stop();
    assert_eq!(jailed.sockets("0"), Vec::<String>::new());
}

/// The image's root, as its lines make it.
#[test]
fn the_static_binary_serves_as_the_images_user() {
    let Some(binary) = binary() else { return };
    if !geteuid().is_root() {
        return note("the image's user", "only root can become another one");
    }
    let dir = Jailed::empty_root(binary);
    let root = Jailed::root(&dir);
    std::fs::create_dir(root.join("tmp")).expect("a folder");
    std::fs::set_permissions(root.join("tmp"), Permissions::from_mode(0o1777)).expect("a mode");
    let jail = || {
        let mut command = Command::new(find_program("chroot").expect("chroot"));
        command.arg(format!("--userspec={NOBODY}")).arg(&root).env_clear();
        command
    };
    let mut jailed = Jailed::start(dir, jail());
    assert_eq!(jailed.client().get("/ping").text(), "pong");
    // As the image's health check does.
    let mut command = jail();
    command.args(["/hello", "status"]);
    let status = crate::support::server::output(command);
    assert_eq!(status.code, 0, "{}", status.stderr);
    assert!(status.stdout.contains("healthy"), "{}", status.stdout);
    jailed.stop();
    assert_eq!(jailed.sockets("65532"), Vec::<String>::new());
}
