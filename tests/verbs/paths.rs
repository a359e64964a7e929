//! Which app a path means, and paths that are long or odd.

use super::*;

/// A release whose workers say its name.
fn write_release(dir: &Path, name: &str) {
    fs::create_dir_all(dir.join(name)).expect("a folder");
    let index = dir.join(name).join("index");
    let text = format!("#!/bin/sh\nTEST_RELEASE={name} exec {}\n", test_worker().display());
    write_script(&index, &text);
}

#[test]
fn stop_and_reload_are_for_the_typed_path_and_not_for_another_of_its_name() {
    let dir = folder();
    write_release(&dir.path().join("one"), "shop");
    write_release(&dir.path().join("two"), "shop");
    symlink("one", dir.path().join("link")).expect("a symlink");
    let server = ByHand::start(serve(&dir.path().join("one/shop"), dir.path(), &[]));
    for word in ["stop", "reload"] {
        let other = output(verb(word, &dir.path().join("two/shop"), dir.path()));
        says(&other, 1, &["one/shop', not '", "two/shop'", "--variant", "--socket-dir"]);
    }
    let by_link = output(verb("reload", &dir.path().join("link/shop"), dir.path()));
    assert_eq!(by_link.code, 0, "{by_link:?}");
    // Nothing is there: then it is the name that counts.
    let by_name = output(verb("stop", &dir.path().join("nothing/shop"), dir.path()));
    assert_eq!(by_name.code, 0, "{by_name:?}");
    drop(server);
}

#[test]
fn a_start_inside_a_link_is_of_the_link() {
    let dir = folder();
    let shop = dir.path().join("shop");
    for name in ["one", "two"] {
        write_release(&shop, name);
    }
    symlink("one", shop.join("current")).expect("a symlink");
    let mut command = program();
    // As a shell does it.
    command.current_dir(shop.join("current")).env("PWD", shop.join("current"));
    command.arg(".").args(["w:1", "http:127.0.0.1:0"]).arg(sockets(dir.path()));
    let server = ByHand::start(command);
    assert!(server.first_line.contains("app=shop "), "{}", server.first_line);
    let at = server.first_line.split("http=").nth(1).and_then(|remaining| remaining.split(' ').next());
    let at = at.expect("an address").parse().expect("an address");
    let release = || {
        let text = Client::connect(at).get("/env").text();
        text.lines().find_map(|line| line.strip_prefix("TEST_RELEASE=").map(str::to_owned))
    };
    wait_until("it serves", || release().as_deref() == Some("one"));
    symlink("two", shop.join("next")).expect("a symlink");
    fs::rename(shop.join("next"), shop.join("current")).expect("it replaces the old one");
    let reload = output(verb("reload", &shop.join("current"), dir.path()));
    assert_eq!(reload.code, 0, "{reload:?}");
    assert_eq!(release().as_deref(), Some("two"));
    // A PWD that lies is not believed.
    let mut command = program();
    command.current_dir(shop.join("two")).env("PWD", shop.join("one"));
    command.args(["status", "."]).arg(sockets(dir.path()));
    says(&output(command), 1, &["no server for 'two'"]);
}

#[test]
fn advice_about_length_says_what_is_long_and_helps() {
    let dir = folder();
    let long = dir.path().join("a".repeat(110));
    write_script(&long, &format!("#!/bin/sh\nexec {}\n", test_worker().display()));
    let refused = output(serve(&long, dir.path(), &[]));
    says(&refused, 2, &["the name is what is long", "--socket-prefix=app"]);
    let _server = ByHand::start(serve(&long, dir.path(), &["--socket-prefix=app"]));
    let deep = dir.path().join("b".repeat(80));
    let mut command = program();
    command.arg(test_worker()).arg(format!("--socket-dir={}", deep.display()));
    says(&output(command), 2, &["the folder is what is long", "--socket-dir=/tmp/rip-"]);
}

#[test]
fn a_line_break_in_a_path_breaks_no_line() {
    let dir = folder();
    let app = dir.path().join("two\nlines");
    let lines = |output: &Output| output.stderr.lines().count();
    let missing = output(serve(&app, dir.path(), &[]));
    assert_eq!((missing.code, lines(&missing)), (2, 1), "{missing:?}");
    fs::create_dir(&app).expect("a folder");
    let empty = output(serve(&app, dir.path(), &[]));
    assert_eq!((empty.code, lines(&empty)), (2, 1), "{empty:?}");
    write_release(dir.path(), "two\nlines");
    let first = ByHand::start(serve(&app, dir.path(), &[]));
    let second = output(serve(&app, dir.path(), &[]));
    assert_eq!((second.code, lines(&second)), (1, 1), "{second:?}");
    assert_eq!(output(advice(&second.stderr)).code, 0, "{second:?}");
    drop(first);
    let wrong = output({
        let mut command = program();
        command.args(["--no\nflag", "a"]);
        command
    });
    assert_eq!((wrong.code, lines(&wrong)), (2, 1), "{wrong:?}");
}
