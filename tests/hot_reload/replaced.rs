//! A change in what the entry imports, and any change under a runtime that cannot swap: new workers.

use super::fixture::{Fixture, Needs, bun, node};
use super::language::{ask, with_all};
use super::support::{Server, comes_true, wait_until, write_script};
use std::fs;
use std::time::Duration;

const LOOKS_FOR: Duration = Duration::from_millis(200);

fn says_changed(server: &mut Server, path: &str) {
    let line = format!("hot reload: {path} has changed");
    server.wait_until(&line, |server| server.stderr_text().contains(&line));
}

#[test]
fn a_change_in_an_imported_file_replaces_the_workers() {
    with_all(|language, app| {
        fs::create_dir(app.fixture.file("lib")).expect("a folder for what is imported");
        app.fixture.write(language.part, &language.part_source("one"));
        app.edit(&language.importing_source());
        let mut server = app.serve(&[]);
        let before = ask(&server);
        assert_eq!(before.phrase, "one", "{}", language.name);
        app.fixture.write(language.part, &language.part_source("two"));
        wait_until(&format!("{}: the new word", language.name), || ask(&server).phrase == "two");
        says_changed(&mut server, language.part);
        let between = ask(&server);
        assert_ne!(between.pid, before.pid, "{}", language.name);
        // As careful editors save.
        app.fixture.write("part.new", &language.part_source("three"));
        fs::rename(app.fixture.file("part.new"), app.fixture.file(language.part)).expect("renamed");
        wait_until(&format!("{}: the last word", language.name), || ask(&server).phrase == "three");
    });
}

#[test]
fn files_and_folders_that_appear_later_count() {
    with_all(|language, app| {
        let mut server = app.serve(&[]);
        ask(&server);
        fs::create_dir(app.fixture.file("lib")).expect("a folder for what is imported");
        app.fixture.write(language.part, &language.part_source("two"));
        app.edit(&language.importing_source());
        wait_until(&format!("{}: the new word", language.name), || ask(&server).phrase == "two");
        // Its folder was not there when the server began to watch.
        app.fixture.write(language.part, &language.part_source("three"));
        wait_until(&format!("{}: the last word", language.name), || ask(&server).phrase == "three");
        says_changed(&mut server, language.part);
    });
}

#[test]
fn a_folder_that_is_renamed_into_place_counts() {
    with_all(|language, app| {
        let name = language.part.strip_prefix("lib/").expect("a file in lib");
        let lib = app.fixture.file("lib");
        fs::create_dir(&lib).expect("a folder for what is imported");
        app.fixture.write(language.part, &language.part_source("one"));
        app.edit(&language.importing_source());
        let server = app.serve(&[]);
        ask(&server);
        let new = app.fixture.dir().join("new");
        fs::create_dir(&new).expect("a folder beside the app");
        fs::write(new.join(name), language.part_source("two")).expect("a new part");
        fs::rename(&lib, app.fixture.dir().join("old")).expect("the old folder goes");
        fs::rename(&new, &lib).expect("the new one comes");
        wait_until(&format!("{}: the new word", language.name), || ask(&server).phrase == "two");
    });
}

#[test]
fn what_is_no_source_of_the_app_is_no_change() {
    with_all(|language, app| {
        let file = |folder: &str| {
            fs::create_dir_all(app.fixture.file(folder)).expect("a folder");
            let ending = language.part.rsplit_once('.').expect("an ending").1;
            format!("{folder}/part.{ending}")
        };
        let mut files: Vec<String> = ["node_modules/x", "__pycache__", "target", ".git"].map(file).to_vec();
        files.extend(["data.db", "part.txt", "access.log", "lib.d"].map(str::to_owned));
        let server = app.serve(&[]);
        let before = ask(&server);
        for round in 0..3 {
            for name in &files {
                app.fixture.write(name, &format!("{round}"));
                // Its log is written by the app itself, too.
                assert_eq!(ask(&server), before, "{}: {name}", language.name);
            }
        }
        assert!(!comes_true(LOOKS_FOR, || ask(&server) != before), "{}", language.name);
        assert!(!server.stderr_text().contains("hot reload"), "{}", server.stderr_text());
    });
}

fn answer(server: &Server) -> String {
    let response = server.get("/");
    assert_eq!(response.status, 200, "{}\n{}", response.text(), server.stderr_text());
    response.text()
}

#[test]
fn a_change_in_a_commands_sources_replaces_its_workers() {
    let Some(fixture) = Fixture::empty(&node(&[]), "app") else { return };
    let source = |phrase: &str| {
        format!(
            "require('node:http').createServer((req, res) => res.end('{phrase}')).listen(process.argv[2])\n"
        )
    };
    fixture.write("server.js", &source("one"));
    let server = fixture.server(None).args(["w:1", "--hot-reload=module", "--"]);
    let mut server = server.args(["node", "server.js", "{socket}"]).start();
    server.wait_for_workers(1);
    assert_eq!(answer(&server), "one");
    fixture.write("server.js", &source("two"));
    wait_until("the new word", || answer(&server) == "two");
    says_changed(&mut server, "server.js");
}

#[test]
fn a_cgi_script_is_new_at_each_request() {
    let fixture = Fixture::empty(&Needs::programs(&[]), "app").expect("a shell is everywhere");
    let script = |phrase: &str| format!("#!/bin/sh\necho Content-Type: text/plain\necho\nprintf {phrase}\n");
    let replace = |phrase: &str| {
        write_script(&fixture.file("index.sh"), &script(phrase));
    };
    replace("one");
    let mut server = fixture.server(None).args(["w:1", "--hot-reload=module"]).start();
    server.wait_for_workers(1);
    assert_eq!(answer(&server), "one");
    replace("two");
    assert_eq!(answer(&server), "two");
}

#[test]
fn an_entry_that_is_compiled_by_a_preloaded_module_is_swapped_as_well() {
    let Some(fixture) = Fixture::empty(&bun(&[]), "app") else { return };
    let compiler = "
import { plugin } from 'bun'
plugin({
  name: 'rip',
  setup(build) {
    build.onLoad({ filter: /\\.rip/ }, async ({ path }) => (
      { contents: (await Bun.file(path.replace(/\\?.*/, '')).text()).replaceAll('->', '=>'), loader: 'js' }
    ))
  },
})
";
    let source = |phrase: &str| format!("export default () -> new Response('{phrase}')\n");
    fixture.write("compiler.ts", compiler);
    fixture.write("bunfig.toml", "preload = ['./compiler.ts']\n");
    fixture.write("index.rip", &source("one"));
    let mut server = fixture.server(None).args(["w:1", "--hot-reload=module"]).start();
    server.wait_for_workers(1);
    assert_eq!(answer(&server), "one");
    fixture.write("index.rip", &source("two"));
    server.wait_until("the new word", |server| answer(server) == "two");
}

#[test]
fn an_edit_of_what_registers_itself_in_the_process_is_served_by_a_new_one() {
    let source = |phrase: &str, answer: &str| {
        let once = "if (globalThis.isRegistered) throw new Error('registered already')\nglobalThis.isRegistered = true\n";
        format!("{once}export default {}\n", answer.replace("WORD", phrase))
    };
    let fetch = "() => new Response('WORD')";
    let listener = "(req, res) => { res.end('WORD') }";
    for (needs, answer) in [(bun(&[]), fetch), (node(&[]), fetch), (node(&[]), listener)] {
        let Some(fixture) = Fixture::empty(&needs, "app") else { return };
        fixture.write("index.mjs", &source("one", answer));
        let mut server = fixture.server(None).args(["w:1", "--hot-reload=module"]).start();
        server.wait_for_workers(1);
        assert_eq!(self::answer(&server), "one");
        fixture.write("index.mjs", &source("two", answer));
        // The request that finds the change waits for the process that has the new code.
        server.wait_until("the new word", |server| self::answer(server) == "two");
    }
}
