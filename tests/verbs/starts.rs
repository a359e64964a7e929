//! Starts that hurt nobody: beside a server, at once, where another's socket lies.

use super::*;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

fn python_app(dir: &Path) -> Option<PathBuf> {
    let has_python = Command::new("python3").arg("--version").output().is_ok();
    if !has_python {
        skip::skip("a Python app", "there is no python3");
        return None;
    }
    let app = dir.join("shop");
    fs::create_dir(&app).expect("a folder");
    let text = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'hi']\n";
    fs::write(app.join("app.py"), text).expect("an app");
    Some(app)
}

#[test]
fn a_mistaken_second_start_touches_nothing_of_the_first() {
    let dir = folder();
    let Some(app) = python_app(dir.path()) else { return };
    let first = ByHand::start(serve(&app, dir.path(), &["--variant=blue"]));
    let sockets = dir.path().join("s");
    let harness =
        || files(&sockets).into_iter().filter(|name| name.ends_with(".harness")).collect::<Vec<_>>();
    assert_eq!(harness().len(), 1, "{:?}", files(&sockets));
    let worker = sockets.join(&harness()[0]).join("main.py");
    let before = fs::metadata(&worker).expect("a harness").modified().expect("a time");
    let second = output(serve(&app, dir.path(), &["--variant=blue"]));
    says(&second, 1, &["is served already", &format!("pid {}", first.pid())]);
    assert_eq!(harness().len(), 1);
    assert_eq!(fs::metadata(&worker).expect("still there").modified().expect("a time"), before);
    // What it advises does what it says.
    let stop = output(advice(&second.stderr));
    assert_eq!((stop.code, stop.stdout.as_str()), (0, "shop: stopped\n"), "{stop:?}");
    assert_eq!(files(&sockets), [""; 0]);
}

#[test]
fn a_refused_start_leaves_nothing_behind() {
    let dir = folder();
    let Some(app) = python_app(dir.path()) else { return };
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = format!("http:{}", holder.local_addr().expect("an address"));
    says(&output(serve(&app, dir.path(), &[&port])), 1, &["in use"]);
    assert_eq!(files(&dir.path().join("s")), [""; 0]);
}

#[test]
fn what_a_killed_server_has_left_is_swept_at_the_next_start() {
    let dir = folder();
    let Some(app) = python_app(dir.path()) else { return };
    let sockets = dir.path().join("s");
    drop(ByHand::start(serve(&app, dir.path(), &[])));
    let left = files(&sockets);
    assert!(left.iter().any(|name| name.ends_with(".harness")), "SIGKILL leaves it: {left:?}");
    let next = ByHand::start(serve(&app, dir.path(), &[]));
    let harnesses: Vec<String> =
        files(&sockets).into_iter().filter(|name| name.ends_with(".harness")).collect();
    assert_eq!(harnesses.len(), 1);
    assert!(!left.contains(&harnesses[0]), "its own, of another run");
    assert_eq!(output(verb("stop", &app, dir.path())).code, 0);
    drop(next);
    assert_eq!(files(&sockets), [""; 0]);
}

#[test]
fn of_many_starts_at_once_one_serves() {
    let dir = folder();
    let app = test_worker();
    let mut starts: Vec<Child> = (0..6)
        .map(|_| {
            let mut command = serve(&app, dir.path(), &[]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().expect("the server can be started")
        })
        .collect();
    let mut is_running = |child: &mut Child| child.try_wait().expect("a child").is_none();
    wait_until("five are refused", || {
        starts.iter_mut().filter_map(|child| is_running(child).then_some(())).count() == 1
    });
    wait_until("it serves", || output(verb("status", &app, dir.path())).code == 0);
    assert_eq!(output(verb("stop", &app, dir.path())).code, 0);
    wait_until("the last has ended", || !starts.iter_mut().any(&mut is_running));
    assert_eq!(files(&dir.path().join("s")), [""; 0]);
}

#[test]
fn a_start_waits_for_one_that_is_about_to_end() {
    let dir = folder();
    fs::create_dir(dir.path().join("s")).expect("a folder");
    fs::set_permissions(dir.path().join("s"), fs::Permissions::from_mode(0o700)).expect("it is ours");
    let path = dir.path().join("s/rip_server2_test-worker.lock");
    let file = fs::File::create(&path).expect("a lock file");
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).expect("nobody has it");
    let looks = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify");
    looks.add_watch(&path, AddWatchFlags::IN_OPEN).expect("the file is there");
    let ends = std::thread::spawn(move || {
        let mut count = 0;
        wait_until("the start has found it locked, and looks again", || {
            count += looks.read_events().map_or(0, |events| events.len());
            count > 1
        });
        drop(lock);
    });
    let server = ByHand::start(serve(&test_worker(), dir.path(), &[]));
    assert!(server.first_line.contains("app=test-worker"));
    ends.join().expect("no panic");
}

#[test]
fn a_unix_socket_of_another_user_is_not_taken_over() {
    if !is_root() {
        return skip::note("another user", "only root can be one");
    }
    let dir = folder();
    let own = dir.path().join("own");
    fs::create_dir(&own).expect("a folder");
    chown(&own, Some(STRANGER), Some(STRANGER)).expect("root may");
    let at = own.join("http.sock");
    let _live = UnixListener::bind(&at).expect("a socket");
    fs::set_permissions(&at, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let app = dir.path().join("app");
    write_script(&app, "#!/bin/sh\nexec sleep 100\n");
    let mut command = program();
    command.arg(&app).arg("w:1").arg(format!("http:unix:{}", at.display())).arg(sockets(&own));
    command.uid(STRANGER).gid(STRANGER).current_dir("/");
    says(&output(command), 1, &["in use", "user 0"]);
    assert!(at.exists());
}

#[test]
fn what_lies_at_a_sockets_path_is_called_what_it_is() {
    let dir = folder();
    let path = dir.path().join("there");
    let refuse = || {
        let mut command = program();
        command.arg(test_worker()).arg(format!("http:unix:{}", path.display())).arg(sockets(dir.path()));
        output(command)
    };
    fs::write(&path, "text").expect("a file");
    says(&refuse(), 1, &["is a plain file", "another path would do"]);
    assert_eq!(fs::read_to_string(&path).expect("still there"), "text");
    fs::remove_file(&path).expect("it is ours");
    fs::create_dir(&path).expect("a folder");
    says(&refuse(), 1, &["is a folder"]);
    fs::remove_dir(&path).expect("it is ours");
    symlink("/nowhere", &path).expect("a symlink");
    says(&refuse(), 1, &["is a symlink"]);
    fs::remove_file(&path).expect("it is ours");
    let datagrams = UnixDatagram::bind(&path).expect("a socket");
    says(&refuse(), 1, &["in use"]);
    drop(datagrams);
}

#[test]
fn a_server_removes_no_socket_that_has_taken_the_place_of_its_own() {
    let dir = folder();
    let at = dir.path().join("http.sock");
    let mut server =
        Server::builder(test_worker()).arg("w:1").http(&format!("unix:{}", at.display())).start();
    fs::remove_file(&at).expect("somebody removes it");
    let _other = UnixListener::bind(&at).expect("and listens there");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    assert!(at.exists(), "it is the other one's");
}
