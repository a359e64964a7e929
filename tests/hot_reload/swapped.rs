//! A change of the entry: the handler is swapped in place, between two requests.

use super::language::{ASGI, Answer, EditedApp, Language, NODE, RUBY, WSGI, ask, with, with_all};
use super::support::{Server, comes_true, wait_until};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant, SystemTime};

/// A request that comes so long after an edit shows it.
const SHOWN_AFTER: Duration = Duration::from_millis(200);

/// Asks until `word` is answered; whatever was asked [`SHOWN_AFTER`] the edit must be.
fn shows(server: &Server, phrase: &str, language: &Language) -> Answer {
    let edited = Instant::now();
    loop {
        let is_due = edited.elapsed() >= SHOWN_AFTER;
        let answer = ask(server);
        if answer.phrase == phrase {
            return answer;
        }
        assert!(!is_due, "{}: {answer:?}, not {phrase}\n{}", language.name, server.stderr_text());
    }
}

fn is_replaced(server: &Server) -> bool {
    server.stderr_text().contains("the workers are replaced")
}

/// Nothing of what is checked may end in a replacement.
fn in_place(check: impl Fn(&Language, &EditedApp, &mut Server) + Sync) {
    with_all(|language, app| {
        let mut server = app.serve(&[]);
        check(language, app, &mut server);
        assert!(!is_replaced(&server), "{}\n{}", language.name, server.stderr_text());
    });
}

#[test]
fn a_change_shows_on_a_request_200_ms_later() {
    in_place(|language, app, server| {
        let before = ask(server);
        assert_eq!(before.phrase, "one", "{}", language.name);
        for phrase in ["two", "three", "four"] {
            app.edit(&language.source(phrase));
            let after = shows(server, phrase, language);
            assert_eq!(after.pid, before.pid, "{}: swapped in place", language.name);
        }
    });
}

#[test]
fn a_new_file_that_is_renamed_over_the_entry_counts() {
    in_place(|language, app, server| {
        let before = ask(server);
        for phrase in ["two", "three"] {
            app.replace(&language.source(phrase));
            assert_eq!(shows(server, phrase, language).pid, before.pid, "{}", language.name);
        }
    });
}

#[test]
fn edits_of_one_size_within_one_second_count() {
    in_place(|language, app, server| {
        ask(server);
        let second = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        for (milliseconds, phrase) in [(100, "aaa"), (200, "bbb"), (300, "ccc")] {
            let file = app.fixture.file("entry.new");
            fs::write(&file, language.source(phrase)).expect("a new file");
            let time = second + Duration::from_millis(milliseconds);
            File::options()
                .append(true)
                .open(&file)
                .and_then(|file| file.set_modified(time))
                .expect("a time");
            fs::rename(&file, app.entry()).expect("renamed over the entry");
            shows(server, phrase, language);
        }
    });
}

#[test]
fn an_entry_that_is_a_symlink_is_followed() {
    with_all(|language, app| {
        let releases = app.fixture.dir().join("releases");
        fs::create_dir(&releases).expect("a folder beside the app");
        let release = |phrase: &str| {
            let file = releases.join(format!("{phrase}-{}", language.entry));
            fs::write(&file, language.source(phrase)).expect("a release");
            file
        };
        let point_at = |phrase: &str| {
            let link = app.fixture.file("link");
            symlink(release(phrase), &link).expect("a link");
            fs::rename(&link, app.entry()).expect("renamed over the entry");
        };
        point_at("first");
        let mut server = app.serve(&[]);
        assert_eq!(ask(&server).phrase, "first", "{}", language.name);
        fs::write(releases.join(format!("first-{}", language.entry)), language.source("edited"))
            .expect("an edit");
        shows(&server, "edited", language);
        point_at("second");
        shows(&server, "second", language);
        server.wait_for_workers(1);
    });
}

#[test]
fn a_broken_edit_keeps_the_last_good_handler_and_says_why() {
    in_place(|language, app, server| {
        let before = ask(server);
        let name = language.name;
        says_of_an_edit(language, app, server, language.broken, language.entry);
        // It is said once, not at every look: behind its last line comes none.
        server.wait_until("looks at which nothing is said", |server| {
            let lines = server.stderr_lines().len();
            !comes_true(SHOWN_AFTER, || ask(server) != before || server.stderr_lines().len() > lines)
        });
        app.edit(&language.source("mended"));
        assert_eq!(shows(server, "mended", language).pid, before.pid, "{name}");
    });
}

#[test]
fn the_last_good_handler_goes_on_where_neither_the_worker_nor_a_new_one_can_load_an_edit() {
    with_all(|language, app| {
        let mut server = app.serve(&[]);
        let before = ask(&server);
        says_of_an_edit(language, app, &mut server, language.failing, "on purpose");
        assert_eq!(ask(&server), before, "{}", language.name);
        app.edit(&language.source("mended"));
        shows(&server, "mended", language);
    });
}

fn says_of_an_edit(language: &Language, app: &EditedApp, server: &mut Server, text: &str, reason: &str) {
    let before = ask(server);
    let name = language.name;
    let lines = server.stderr_lines().len();
    app.edit(text);
    server.wait_until(&format!("{name}: {reason} on stderr"), |server| {
        assert_eq!(ask(server), before, "{name}");
        let said = server.stderr_lines()[lines..].join("\n");
        said.contains("the last good one goes on") && said.contains(reason)
    });
}

/// As a registry of metrics or models does.
const REGISTERS: &str = "
import sys
if hasattr(sys, 'registered'):
    raise ValueError('Duplicated')
sys.registered = True
";

const RUBY_REGISTERS: &str = "raise 'Duplicated' if $registered
$registered = true
";

#[test]
fn an_edit_that_one_process_cannot_load_twice_is_served_by_a_new_one() {
    with(&[&WSGI, &ASGI, &RUBY], |language, app| {
        let registers = if language.name == RUBY.name { RUBY_REGISTERS } else { REGISTERS };
        app.edit(&format!("{registers}{}", language.source("one")));
        let server = app.serve(&[]);
        let before = ask(&server);
        app.edit(&format!("{registers}{}", language.source("two")));
        wait_until("the edit", || ask(&server).phrase == "two");
        assert_ne!(ask(&server).pid, before.pid, "{}", language.name);
        wait_until("the reason", || server.stderr_text().contains("Duplicated"));
    });
}

#[test]
fn an_entry_that_is_away_for_a_moment_is_waited_for() {
    in_place(|language, app, server| {
        let before = ask(server);
        fs::remove_file(app.entry()).expect("the entry can be removed");
        comes_true(SHOWN_AFTER, || ask(server) != before);
        assert_eq!(ask(server), before, "{}", language.name);
        app.edit(&language.source("back"));
        assert_eq!(shows(server, "back", language).pid, before.pid, "{}", language.name);
    });
}

#[test]
fn a_worker_is_replaced_after_its_last_reload() {
    with_all(|language, app| {
        let server = app.serve(&["--max-reloads=3"]);
        let first = ask(&server);
        for phrase in ["two", "three"] {
            app.edit(&language.source(phrase));
            assert_eq!(shows(&server, phrase, language).pid, first.pid, "{}", language.name);
        }
        app.edit(&language.source("four"));
        shows(&server, "four", language);
        wait_until("another process", || ask(&server).pid != first.pid);
        assert_eq!(ask(&server).phrase, "four", "{}", language.name);
    });
}

#[test]
fn process_and_none_watch_nothing() {
    with_all(|language, app| {
        fs::create_dir(app.fixture.file("lib")).expect("a folder for what is imported");
        for mode in ["--hot-reload=process", "--hot-reload=none"] {
            app.edit(&language.source("one"));
            app.fixture.write(language.part, &language.part_source("one"));
            let mut server = app.builder(&[mode, "w:1"]).start();
            server.wait_for_workers(1);
            let before = ask(&server);
            app.edit(&language.source("two"));
            app.fixture.write(language.part, &language.part_source("two"));
            assert!(!comes_true(SHOWN_AFTER, || ask(&server) != before), "{} with {mode}", language.name);
            // By hand it still goes.
            assert_eq!(server.verb(["reload"]).code, 0, "{}", server.stderr_text());
            assert_eq!(ask(&server).phrase, "two", "{} with {mode}", language.name);
        }
    });
}

#[test]
fn module_is_the_default_in_development_alone() {
    with(&[&NODE, &WSGI], |language, app| {
        for (environment, phrase) in
            [(None, "two"), (Some(""), "two"), (Some("dev"), "two"), (Some("production"), "one")]
        {
            app.edit(&language.source("one"));
            let server = app.builder(&["w:1"]);
            let server = match environment {
                Some(value) => server.env("NODE_ENV", value),
                None => server.without_env("NODE_ENV"),
            };
            let mut server = server.start();
            server.wait_for_workers(1);
            ask(&server);
            app.edit(&language.source("two"));
            comes_true(SHOWN_AFTER, || ask(&server).phrase == "two");
            assert_eq!(ask(&server).phrase, phrase, "{} with NODE_ENV {environment:?}", language.name);
        }
    });
}
