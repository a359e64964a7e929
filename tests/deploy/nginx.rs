//! `nginx.conf` for real: a server on a Unix socket that nginx's group may connect to, and nobody else.

use super::{example, find_program};
use crate::support::skip::{note, skip};
use crate::support::{Client, Server, TEST_TIMEOUT, comes_true, test_worker, wait_until};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Ended when it is dropped.
struct Nginx {
    child: Child,
    address: SocketAddr,
}

impl Nginx {
    /// Started from the example, for that socket. Its workers are `www-data` where root may say so.
    fn start(program: &Path, dir: &Path, socket: &Path) -> Nginx {
        let free = TcpListener::bind("127.0.0.5:0").expect("a loopback address");
        let address = free.local_addr().expect("it is bound");
        drop(free);
        let mut text = example("nginx.conf");
        let mut replace = |from: &str, to: &str| {
            assert_eq!(text.matches(from).count(), 1, "'{from}' stands once in nginx.conf");
            text = text.replace(from, to);
        };
        replace("        listen 80;\n", &format!("        listen {address};\n"));
        replace("server unix:/run/shop/http.sock;", &format!("server unix:{};", socket.display()));
        replace("pid /run/nginx.pid;", &format!("pid {}/nginx.pid;", dir.display()));
        replace("worker_processes auto;", "worker_processes 1;");
        if !nix::unistd::geteuid().is_root() {
            replace("user www-data;\n", "");
        }
        let path = dir.join("nginx.conf");
        std::fs::write(&path, text).expect("a file can be written");
        let mut command = Command::new(program);
        command.args(["-g", "daemon off;", "-p"]).arg(dir).arg("-c").arg(&path);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("nginx can be started");
        let nginx = Nginx { child, address };
        let listens = || std::net::TcpStream::connect(address).is_ok();
        assert!(comes_true(TEST_TIMEOUT, listens), "nginx does not listen");
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Not SIGKILL, so that its worker ends too.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// A folder that everybody may enter, and a path in it.
fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let socket = dir.path().join("http.sock");
    (dir, socket)
}

fn group_of_www_data() -> Option<u32> {
    nix::unistd::Group::from_name("www-data").ok().flatten().map(|group| group.gid.as_raw())
}

fn start(socket: &Path, arguments: &[&str]) -> Server {
    let server = Server::builder(test_worker()).http(&format!("unix:{}", socket.display()));
    let mut server =
        server.args(["w:2", "--trust-proxy=loopback", "--no-access-log"]).args(arguments).start();
    server.wait_until("two workers", |server| server.details()["workers"] == 2);
    server
}

#[test]
fn nginx_of_the_sockets_group_connects_and_what_it_says_of_clients_is_believed() {
    let Some(program) = find_program("nginx") else {
        return skip("nginx.conf", "there is no nginx");
    };
    let (dir, socket) = place();
    let group = match (nix::unistd::geteuid().is_root(), group_of_www_data()) {
        (true, Some(_)) => &["--socket-group=www-data"][..],
        (true, None) => return note("nginx.conf", "there is no group www-data"),
        (false, _) => &["--socket-mode=600"],
    };
    let server = start(&socket, group);
    let nginx = Nginx::start(&program, dir.path(), &socket);
    let mut client = Client::connect(nginx.address);
    let own = client.local_address().ip().to_string();
    for number in 0..5 {
        client.send_request("GET", "/told", "X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n", b"");
        let answer = client.read_response();
        assert!(answer.text().starts_with(&format!("{own} ")), "{number}: {}", answer.text());
    }
    assert_eq!(client.post("/echo", b"a body").text(), "a body");
    // Another mode, and nginx is outside: the file's rights are what lets it in.
    if nix::unistd::geteuid().is_root() {
        drop(server);
        let _server = start(&socket, &["--socket-mode=600"]);
        wait_until("nginx is refused", || Client::connect(nginx.address).get("/ping").status == 502);
    }
}

#[test]
fn a_socket_has_its_mode_and_group_from_its_first_moment() {
    let (_dir, socket) = place();
    let own_group = nix::unistd::getegid();
    let group = format!("--socket-group={own_group}");
    for (arguments, mode) in [
        (&[group.as_str()][..], 0o660),
        (&[group.as_str(), "--socket-mode=666"], 0o666),
        (&["--socket-mode=640"], 0o640),
        (&["--socket-mode", "0600"], 0o600),
    ] {
        let server = start(&socket, arguments);
        let metadata = std::fs::metadata(&socket).expect("the socket");
        assert_eq!((metadata.mode() & 0o777, metadata.gid()), (mode, own_group.as_raw()), "{arguments:?}");
        assert_eq!(Client::connect_unix(&socket).get("/ping").text(), "pong");
        let control = std::fs::metadata(server.control_socket()).expect("the control socket");
        assert_eq!(control.mode() & 0o777, 0o600, "the control socket stays closed");
    }
}

#[test]
fn a_group_that_there_is_not_is_refused_and_nothing_is_left() {
    let (dir, socket) = place();
    let place = format!("http:unix:{}", socket.display());
    let app = test_worker();
    let run = |group: &str, user: Option<u32>| {
        let mut command = Command::new(crate::support::server_program());
        command.arg(&app).args(["w:1", &place, group]).env("RIP_SOCKET_DIR", dir.path().join("s"));
        if let Some(user) = user {
            std::os::unix::process::CommandExt::uid(&mut command, user);
            std::os::unix::process::CommandExt::gid(&mut command, user);
        }
        crate::support::server::output(command)
    };
    let output = run("--socket-group=no-such-group", None);
    assert_eq!(output.code, 2, "{}", output.stderr);
    assert!(
        output.stderr.contains("no group 'no-such-group'; a number, as in --socket-group=33"),
        "{}",
        output.stderr
    );
    if !nix::unistd::geteuid().is_root() {
        return note("a group that this user may not give", "root is needed to be another user");
    }
    assert!(!dir.path().join("s").exists(), "it is refused before anything is made");
    // Somebody else's folder, and a group that is not his.
    nix::unistd::chown(dir.path(), Some(12345.into()), Some(12345.into())).expect("root may");
    let output = run("--socket-group=33", Some(12345));
    assert_eq!(output.code, 1, "{}", output.stderr);
    assert!(output.stderr.contains("user 12345 is not in group 33"), "{}", output.stderr);
    assert!(!socket.exists(), "nothing is left behind");
}
