//! Socket folders: who may have them, who has a name in them, and what is left there.

use super::*;
use crate::config::{self, Command, Config};
use std::os::unix::net::UnixListener;

fn config(dir: &Path, flags: &[&str]) -> Config {
    let dir = format!("--socket-dir={}", dir.display());
    let line = ["w:1", "http:0", &dir].iter().chain(flags).map(Into::into).collect();
    match config::read(line, &|_| None, true) {
        Ok(Command::Serve(config)) => *config,
        other => panic!("{other:?}"),
    }
}

fn names(dir: &Path) -> Names {
    Names::new(&config(dir, &[]).place, "app")
}

fn text_of(error: Result<(), StartError>) -> String {
    match error {
        Ok(()) => String::new(),
        Err(StartError::Usage(text) | StartError::Trouble(text)) => text,
    }
}

#[test]
fn a_name_is_one_servers_until_its_end() {
    let dir = tempfile::tempdir().expect("a folder");
    let names = names(dir.path());
    let lock = NameLock::take(&names).expect("it is free");
    let text = || std::fs::read_to_string(names.lock()).expect("it is there");
    assert_eq!(text(), format!("{}\n", std::process::id()));
    assert!(lock.descriptor().is_some());
    assert!(matches!(NameLock::try_take(&names.lock()), Ok(None)), "another has it");
    drop(lock);
    assert!(!names.lock().exists());
    NameLock::take(&names).expect("it is free again");
}

#[test]
fn a_file_that_lost_its_place_is_no_lock() {
    let dir = tempfile::tempdir().expect("a folder");
    let names = names(dir.path());
    // The old file is locked, and another one lies at the path.
    let first = NameLock::take(&names).expect("it is free");
    let aside = dir.path().join("aside");
    std::fs::rename(names.lock(), &aside).expect("moved");
    let second = NameLock::take(&names).expect("another file");
    assert!(matches!(NameLock::try_take(&aside), Ok(None)));
    drop(first);
    assert!(!names.lock().exists(), "by its name");
    drop(second);
}

#[test]
fn whoever_has_a_name_and_is_silent_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let names = names(dir.path());
    let _lock = NameLock::take(&names).expect("it is free");
    let control = UnixListener::bind(&names.control).expect("a socket");
    // Answers once, so that nobody waits for its end.
    let server = std::thread::spawn(move || {
        let (mut stream, _) = control.accept().expect("a question");
        let mut head = [0; 1000];
        let _ = io::Read::read(&mut stream, &mut head);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            .expect("said");
    });
    let since = Instant::now();
    let Err(Locked::Held { pid, status }) = NameLock::take(&names) else { panic!("it is held") };
    assert!(since.elapsed() < LOCK_WITHIN, "whoever answers is waited for no longer");
    server.join().expect("it has answered");
    assert_eq!((pid, status.map(|answer| answer.body)), (Some(std::process::id() as i32), Some("{}".into())));
}

#[test]
fn a_name_is_handed_over_with_its_lock() {
    let dir = tempfile::tempdir().expect("a folder");
    let names = names(dir.path());
    let mut old = NameLock::take(&names).expect("it is free");
    let fd = old.descriptor().map(|fd| fd.try_clone_to_owned().expect("another handle"));
    let mut new = NameLock::handed_over(&names, fd).expect("the same lock");
    assert!(new.descriptor().is_some());
    std::fs::write(names.lock(), "1\n").expect("written");
    old.hand_over();
    new.take_over();
    let text = std::fs::read_to_string(names.lock()).expect("it is there");
    assert_eq!(text, format!("{}\n", std::process::id()));
    drop(old);
    assert!(names.lock().exists(), "it is the next server's");
    drop(new);
    assert!(!names.lock().exists());

    std::fs::write(names.lock(), "1\n").expect("another's");
    let without = NameLock::handed_over(&names, None).expect("a file system without locks");
    assert!(without.descriptor().is_none());
    drop(without);
    assert!(names.lock().exists());
    let waiting = NameLock::handed_over(&names, None).expect("not yet its own");
    drop(waiting);
    assert!(names.lock().exists());
}

#[test]
fn a_server_that_has_not_taken_over_leaves_the_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let names = names(dir.path());
    let old = NameLock::take(&names).expect("it is free");
    let fd = old.descriptor().map(|fd| fd.try_clone_to_owned().expect("another handle"));
    drop(NameLock::handed_over(&names, fd).expect("the same lock"));
    assert!(names.lock().exists());
}

#[test]
fn a_folder_is_made_for_this_user_alone_and_another_one_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let made = dir.path().join("a/b");
    assert_eq!(text_of(prepare(&made)), "");
    let mode = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&made), 0o700);
    assert_eq!(text_of(prepare(&made)), "", "it is there already");
    for (mode, shown) in [(0o750, "750"), (0o701, "701"), (0o777, "777")] {
        std::fs::set_permissions(&made, std::fs::Permissions::from_mode(mode)).expect("set");
        let expected = format!(
            "the socket folder '{}' is open to others (mode {shown}, not 700); --socket-dir names another",
            made.display()
        );
        assert_eq!(text_of(prepare(&made)), expected);
    }
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("written");
    assert!(text_of(prepare(&file)).contains("is not a folder"));
    assert!(text_of(prepare(&file.join("below"))).contains("cannot be made"));
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path(), &link).expect("a link");
    assert!(text_of(prepare(&link)).contains("is not a folder"));
    if nix::unistd::geteuid().is_root() {
        nix::unistd::chown(&made, Some(1.into()), None).expect("given away");
        assert!(text_of(prepare(&made)).contains("belongs to user 1;"));
    } else {
        assert!(text_of(prepare(Path::new("/"))).contains("belongs to user 0;"));
    }
}

#[test]
fn stale_sockets_and_harnesses_are_swept_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a folder");
    let names = names(dir.path());
    let (stale, live) = (names.worker_socket("00000001", 0, 1), names.worker_socket("00000001", 1, 1));
    drop(UnixListener::bind(&stale).expect("a socket"));
    let _live = UnixListener::bind(&live).expect("a socket");
    let harness = names.harness_dir("00000001");
    std::fs::create_dir(&harness).expect("a folder");
    std::fs::write(harness.join("main.py"), "").expect("written");
    let other = dir.path().join("other.sock");
    drop(UnixListener::bind(&other).expect("a socket"));
    sweep(&names);
    assert_eq!([stale.exists(), live.exists(), harness.exists(), other.exists()], [false, true, false, true]);
}

#[test]
fn files_of_one_run_are_removed_and_those_of_others_stay() {
    let dir = tempfile::tempdir().expect("a folder");
    let names = names(dir.path());
    let ours = [names.worker_socket("00000001", 0, 1), names.own_control("00000001")];
    let others = [names.worker_socket("00000002", 0, 1), names.lock(), dir.path().join("other")];
    for file in ours.iter().chain(&others) {
        std::fs::write(file, "").expect("written");
    }
    let harness = names.harness_dir("00000001");
    std::fs::create_dir(&harness).expect("a folder");
    std::fs::write(harness.join("main.py"), "").expect("written");
    sweep_run(&names, "00000001");
    assert!(ours.iter().all(|file| !file.exists()) && !harness.exists());
    assert!(others.iter().all(|file| file.exists()));
}

#[test]
fn a_path_that_is_too_long_is_told_with_the_part_that_is_long() {
    let length = |dir: &str, prefix: &str| {
        let names = Names::new(&config(Path::new(dir), &[&format!("--socket-prefix={prefix}")]).place, "app");
        let path = names.worker_socket("00000000", config::MAX_WORKERS, 1_000_000_000);
        (path.as_os_str().len(), text_of(check_lengths(&names)))
    };
    let (short_bytes, complaint) = length("/run", "p");
    assert_eq!(complaint, "");
    let spare = MAX_SOCKET_PATH_BYTES - short_bytes;
    let dir = format!("/run/{}", "d".repeat(spare - 1));
    assert_eq!(length(&dir, "p"), (MAX_SOCKET_PATH_BYTES, String::new()), "exactly what fits");
    let user = nix::unistd::geteuid();
    let dir = format!("/run/{}", "d".repeat(spare));
    let (bytes, complaint) = length(&dir, "p");
    let path = format!("{dir}/p.00000000.");
    assert!(complaint.starts_with(&format!("'{path}")), "{complaint}");
    let expected = format!(
        "is too long for a Unix socket ({bytes} bytes, {MAX_SOCKET_PATH_BYTES} fit); the folder is what is long: --socket-dir=/tmp/rip-{user} would do"
    );
    assert!(complaint.ends_with(&expected), "{complaint}");
    // A name for which the short folder just suffices, and one for which it does not.
    let short_dir = format!("/tmp/rip-{user}");
    let fits = 1 + MAX_SOCKET_PATH_BYTES - (short_bytes - "/run".len() + short_dir.len());
    let long_dir = format!("/run/{}", "d".repeat(short_dir.len()));
    assert!(length(&long_dir, &"p".repeat(fits)).1.contains("the folder is what is long"));
    assert!(
        length(&long_dir, &"p".repeat(fits + 1))
            .1
            .ends_with("the name is what is long: --socket-prefix=app would do")
    );
}
