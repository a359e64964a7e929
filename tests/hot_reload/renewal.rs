//! New code in development: the first request after an edit meets it, only content counts, folders may be replaced,
//! and an app that does not start is waited for.

use super::fixture::{Fixture, bun, python};
use super::language::{EditedApp, Language, WSGI, ask, with, with_all};
use super::support::server::output;
use super::support::{Server, comes_true, server_program, wait_until, write_script};
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// An app whose word is in another file.
fn importing(language: &Language, app: &EditedApp, arguments: &[&str]) -> Server {
    fs::create_dir(app.fixture.file("lib")).expect("a folder for what is imported");
    app.fixture.write(language.part, &language.part_source("one"));
    app.edit(&language.importing_source());
    let mut server = app.builder(&["--hot-reload=module"]).args(arguments.iter().copied()).start();
    server.wait_for_workers(server.announced_workers() as u64);
    server
}

fn replacements(server: &Server) -> usize {
    server.stderr_text().matches("the workers are replaced").count()
}

#[test]
fn the_first_request_after_an_edit_of_an_import_gets_the_new_code() {
    with_all(|language, app| {
        let server = importing(language, app, &["w:3"]);
        assert_eq!(ask(&server).phrase, "one", "{}", language.name);
        for phrase in ["two", "three"] {
            app.fixture.write(language.part, &language.part_source(phrase));
            for _ in 0..6 {
                assert_eq!(ask(&server).phrase, phrase, "{}: never the old one again", language.name);
            }
        }
    });
}

#[test]
fn a_request_waits_for_the_new_code_longer_than_for_a_worker() {
    with(&[&WSGI], |language, app| {
        let server = importing(language, app, &["w:1", "--queue-timeout-ms=50"]);
        let slow = format!("import time; time.sleep(0.7)\n{}", language.part_source("two"));
        app.fixture.write(language.part, &slow);
        assert_eq!(ask(&server).phrase, "two");
    });
}

#[test]
fn a_broken_import_leaves_the_old_code_at_work_until_it_is_mended() {
    with(&[&WSGI], |language, app| {
        let mut server = importing(language, app, &["w:1"]);
        assert_eq!(ask(&server).phrase, "one");
        app.fixture.write(language.part, "word = (\n");
        assert_eq!(ask(&server).phrase, "one", "the last good one goes on");
        server.wait_until("the reason is told", |server| server.stderr_text().contains("reload stopped"));
        app.fixture.write(language.part, &language.part_source("two"));
        assert_eq!(ask(&server).phrase, "two");
    });
}

#[test]
fn code_that_was_replaced_does_not_come_back_when_the_next_is_broken() {
    with(&[&WSGI], |language, app| {
        let server = importing(language, app, &["w:4"]);
        for phrase in ["two", "three"] {
            app.fixture.write(language.part, &language.part_source(phrase));
            // Answered by the first of the new ones; the others are still to be replaced.
            assert_eq!(ask(&server).phrase, phrase);
            app.fixture.write(language.part, "word = (\n");
            for _ in 0..5 {
                assert_eq!(ask(&server).phrase, phrase);
            }
        }
    });
}

#[test]
fn the_boot_timeout_bounds_the_wait_for_new_code() {
    with(&[&WSGI], |language, app| {
        let server = importing(language, app, &["w:1", "--boot-timeout-ms=5000"]);
        app.fixture.write(language.part, "import time\ntime.sleep(60)\n");
        let since = Instant::now();
        assert_eq!(ask(&server).phrase, "one", "the old one goes on");
        assert!(since.elapsed() >= Duration::from_millis(2000), "{:?}", since.elapsed());
    });
}

#[test]
fn the_same_bytes_are_no_change() {
    with_all(|language, app| {
        let server = importing(language, app, &["w:1"]);
        let before = ask(&server);
        for _ in 0..3 {
            app.fixture.write(language.part, &language.part_source("one"));
            app.edit(&language.importing_source());
            assert_eq!(ask(&server), before, "{}", language.name);
        }
        let looks_for = Duration::from_millis(200);
        assert!(!comes_true(looks_for, || ask(&server) != before), "{}", language.name);
        assert_eq!(replacements(&server), 0, "{}", server.stderr_text());
    });
}

#[test]
fn json_counts_only_where_it_is_imported() {
    let Some(fixture) = Fixture::empty(&bun(&[]), "app") else { return };
    fixture.write("settings.json", r#"{"word": "one"}"#);
    fixture.write("package.json", "{}");
    fixture.write(
        "index.ts",
        "import settings from './settings.json'\nimport { writeFileSync } from 'node:fs'\nlet count = 0\nexport default () => {\n  writeFileSync('./state.json', `${count++}`)\n  return new Response(settings.word)\n}\n",
    );
    let mut server = fixture.server(None).args(["w:1", "--hot-reload=module"]).start();
    server.wait_for_workers(1);
    for _ in 0..5 {
        assert_eq!(server.get("/").text(), "one");
    }
    assert!(
        !comes_true(Duration::from_millis(200), || replacements(&server) > 0),
        "{}",
        server.stderr_text()
    );
    fixture.write("settings.json", r#"{"word": "two"}"#);
    assert_eq!(server.get("/").text(), "two");
    fixture.write("package.json", r#"{"name": "shop"}"#);
    server.wait_until("the runtime's own settings count", |server| replacements(server) == 2);
}

#[test]
fn a_loop_is_named_once_and_slowed_down() {
    let Some(fixture) = Fixture::empty(&python(&["sys"]), "app") else { return };
    fixture.write("state.py", "");
    fixture.write(
        "app.py",
        "import os, time\ndef app(environ, start_response):\n    with open('state.py', 'w') as state:\n        state.write('at = %r' % time.time())\n    start_response('200 OK', [])\n    return [b'hi']\n",
    );
    let mut server = fixture.server(None).args(["w:1", "--hot-reload=module"]).start();
    server.wait_for_workers(1);
    let is_told = |server: &Server| server.stderr_text().matches("again and again").count();
    server.wait_until("the loop is named", |server| {
        assert_eq!(server.get("/").status, 200);
        is_told(server) == 1
    });
    assert!(server.stderr_text().contains("state.py changes again and again"), "{}", server.stderr_text());
    let before = replacements(&server);
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        assert_eq!(server.get("/").status, 200);
    }
    assert!(replacements(&server) <= before + 2, "{}", server.stderr_text());
    assert_eq!(is_told(&server), 1);
}

#[test]
fn an_app_whose_folder_is_replaced_is_watched_on() {
    with(&[&WSGI], |language, app| {
        let mut server = importing(language, app, &["w:1"]);
        assert_eq!(ask(&server).phrase, "one");
        let (own, beside) = (app.fixture.file("."), app.fixture.dir().join("beside"));
        let own = own.canonicalize().expect("a path");
        let fill = |folder: &std::path::Path, phrase: &str| {
            fs::create_dir_all(folder.join("lib")).expect("folders");
            fs::write(folder.join(language.part), language.part_source(phrase)).expect("a part");
            fs::write(folder.join(language.entry), language.importing_source()).expect("an entry");
        };
        // As a deploy does it.
        fill(&beside, "two");
        fs::rename(&own, app.fixture.dir().join("old")).expect("renamed");
        fs::rename(&beside, &own).expect("renamed");
        wait_until("the new folder's word", || ask(&server).phrase == "two");
        // As a checkout does it: the workers still live in the one that is removed.
        fs::remove_dir_all(&own).expect("removed");
        fill(&own, "three");
        server.wait_until("the next one's", |server| server.get("/").text().starts_with("three"));
        // It is still watched.
        app.fixture.write(language.part, &language.part_source("four"));
        assert_eq!(ask(&server).phrase, "four");
    });
}

#[test]
fn an_app_that_does_not_start_is_waited_for_and_says_why() {
    with_all(|language, app| {
        app.edit(language.broken);
        let mut server = app.builder(&["--hot-reload=module", "w:1"]).start();
        let name = language.name;
        server.wait_until("it waits", |server| {
            server.stderr_text().contains("waiting for the next edit") || server.has_exited()
        });
        let plain = server.get("/");
        assert_eq!(
            (plain.status, plain.header("content-type")),
            (503, Some("text/plain; charset=utf-8")),
            "{name}"
        );
        for words in ["does not start", "before it had joined", language.entry] {
            assert!(plain.text().contains(words), "{name}: {words} is missing: {}", plain.text());
        }
        let mut browser = server.client();
        browser.send_request("GET", "/", "Accept: text/html,*/*\r\n", b"");
        let page = browser.read_response();
        assert_eq!(
            (page.status, page.header("content-type")),
            (503, Some("text/html; charset=utf-8")),
            "{name}"
        );
        assert!(page.text().contains("<pre") && page.text().contains(language.entry), "{}", page.text());
        app.edit(&language.source("mended"));
        assert_eq!(ask(&server).phrase, "mended", "{name}: at once");
    });
}

#[test]
fn a_mended_app_is_noticed_at_once_and_not_after_the_wait() {
    with(&[&WSGI], |language, app| {
        let mut server = importing(language, app, &["w:1"]);
        assert_eq!(ask(&server).phrase, "one");
        app.edit(language.failing);
        // The worker that serves goes on; its successors do not start.
        let pid = ask(&server).pid.parse().expect("a pid");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
            .expect("it lives");
        server.wait_until("it says why", |server| {
            let response = server.get("/");
            response.status == 503 && response.text().contains("on purpose")
        });
        server.wait_until("it has failed often", |server| {
            server.stderr_text().matches("before it had joined").count() >= 4
        });
        app.edit(&language.source("mended"));
        assert_eq!(ask(&server).phrase, "mended");
    });
}

#[test]
fn an_app_that_does_not_start_ends_the_server_in_production() {
    with(&[&WSGI], |language, app| {
        app.edit(language.broken);
        let mut server = app.builder(&["w:1"]).env("NODE_ENV", "production").start();
        assert_eq!(server.wait_exit(), 1);
    });
}

#[test]
fn what_a_worker_said_stays_in_the_log_in_production() {
    with(&[&WSGI], |language, app| {
        app.edit(language.failing);
        let server = app.builder(&["--hot-reload=module", "w:1"]).env("NODE_ENV", "production");
        let mut server = server.start();
        server.wait_until("it is told", |server| server.get("/").status == 503);
        let text = server.get("/").text();
        assert!(text.contains("does not start") && !text.contains("on purpose"), "{text}");
    });
}

#[test]
fn the_kernels_bounds_of_watching_are_told_once() {
    let Some(fixture) = Fixture::empty(&python(&["sys"]), "app") else { return };
    fixture.write(
        "app.py",
        "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'hi']\n",
    );
    for name in 0..12 {
        fs::create_dir(fixture.file(&format!("part{name}"))).expect("a folder");
    }
    let wrapper = |setting: &str| {
        let path = fixture.dir().join(setting);
        let text = format!(
            "#!/bin/sh\nexec unshare -Ur sh -c 'echo 4 > /proc/sys/user/{setting} && exec \"$0\" \"$@\"' {} \"$@\"\n",
            server_program().display()
        );
        write_script(&path, &text);
        path
    };
    let mut probe = Command::new(wrapper("max_inotify_watches"));
    probe.arg("--version");
    if output(probe).code != 0 {
        return crate::support::skip::note("inotify's limits", "there are no user namespaces here");
    }
    let server = Server::carried_by(wrapper("max_inotify_watches")).arg(fixture.file("."));
    let mut server = server.env("NODE_ENV", "development").arg("w:1").start();
    server.wait_for_workers(1);
    server.wait_until("it is told", |server| server.stderr_text().contains("go unseen"));
    let text = server.stderr_text();
    assert_eq!(text.matches("go unseen").count(), 1, "{text}");
    assert!(text.contains("fs.inotify.max_user_watches") && text.contains("sudo sysctl"), "{text}");
    assert_eq!(server.get("/").status, 200);
}
