//! Watching, against a folder that changes.

use super::*;

fn watch(runtime: Runtime, dir: &Path, entry: &str) -> Watch {
    let poll = mio::Poll::new().expect("epoll");
    let app =
        App { name: "app".into(), dir: dir.to_path_buf(), entry: dir.join(entry), runtime, target: None };
    Watch::start(app, poll.registry()).expect("inotify").expect("is watched")
}

/// What has changed since the last look, when all has settled.
fn changed(watch: &mut Watch) -> Vec<PathBuf> {
    let now = Instant::now();
    watch.read(now);
    let paths = watch.changes.take(now + std::time::Duration::from_secs(1));
    watch.settle(paths.unwrap_or_default())
}

const NOTHING: [PathBuf; 0] = [];

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("written");
}

#[test]
fn only_sources_of_the_apps_own_count() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(dir.path().join("node_modules/x")).expect("made");
    let mut watch = watch(Runtime::JavaScript, dir.path(), "index.js");
    for name in ["app.log", ".index.js.swp", "node_modules/x/a.js", "data.db", "state.json"] {
        write(&dir.path().join(name), "x");
        assert_eq!(changed(&mut watch), NOTHING, "{name}");
    }
    std::fs::create_dir_all(dir.path().join("outside/lib")).expect("made");
    assert_eq!(changed(&mut watch), NOTHING);
    std::fs::rename(dir.path().join("outside/lib"), dir.path().join("lib")).expect("renamed");
    assert_eq!(changed(&mut watch), NOTHING, "an empty folder is no source");
    let file = dir.path().join("lib/part.mjs");
    write(&file, "x");
    assert_eq!(changed(&mut watch), [file]);
}

#[test]
fn only_other_content_is_a_change() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("part.py");
    write(&file, "one");
    let mut watch = watch(Runtime::Python, dir.path(), "app.py");
    write(&file, "one");
    assert_eq!(changed(&mut watch), NOTHING);
    write(&file, "two");
    assert_eq!(changed(&mut watch).first(), Some(&file));
    // Away and back, as some editors save.
    std::fs::rename(&file, dir.path().join("part.py~")).expect("renamed");
    write(&file, "two");
    assert_eq!(changed(&mut watch), NOTHING);
    std::fs::remove_file(&file).expect("removed");
    assert_eq!(changed(&mut watch), [file]);
}

#[test]
fn json_counts_where_a_source_imports_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let part = dir.path().join("part.js");
    write(&part, "import a from './a.json'\nwriteFileSync('./b.json', '')\n");
    let mut watch = watch(Runtime::JavaScript, dir.path(), "index.js");
    for (name, counts) in [("a.json", true), ("b.json", false), ("package.json", true), ("c.json", false)] {
        write(&dir.path().join(name), "{}");
        assert_eq!(changed(&mut watch).len(), usize::from(counts), "{name}");
    }
    write(&part, "import c from './c.json'\n");
    assert_eq!(changed(&mut watch), [part]);
    write(&dir.path().join("c.json"), "[]");
    assert_eq!(changed(&mut watch).len(), 1, "an import that came later");
}

#[test]
fn templates_of_python_apps_count() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(dir.path().join("templates")).expect("made");
    let mut watch = watch(Runtime::Python, dir.path(), "app.py");
    for (name, counts) in [("notes.txt", false), ("index.html", true), ("mail.jinja2", true)] {
        write(&dir.path().join("templates").join(name), "x");
        assert_eq!(changed(&mut watch).len(), usize::from(counts), "{name}");
    }
}

#[test]
fn renames_and_links_count_for_an_executable() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut watch = watch(Runtime::Executable, dir.path(), "index");
    write(&dir.path().join("new"), "x");
    assert_eq!(changed(&mut watch), NOTHING);
    std::fs::rename(dir.path().join("new"), dir.path().join("index")).expect("renamed");
    assert_eq!(changed(&mut watch).len(), 1);
    write(&dir.path().join("deps"), "y");
    std::fs::remove_file(dir.path().join("index")).expect("removed");
    std::fs::hard_link(dir.path().join("deps"), dir.path().join("index")).expect("linked");
    assert_eq!(changed(&mut watch).len(), 1);
}

#[test]
fn folders_that_go_make_room_for_others() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut watch = watch(Runtime::Python, dir.path(), "app.py");
    let before = watch.folders.len();
    for round in 0..20 {
        let folder = dir.path().join(format!("a{round}/b/c"));
        std::fs::create_dir_all(&folder).expect("made");
        watch.read(Instant::now());
        assert_eq!(watch.folders.len(), before + 3);
        if round % 2 == 0 {
            std::fs::remove_dir_all(dir.path().join(format!("a{round}"))).expect("removed");
        } else {
            let away = tempfile::tempdir().expect("a folder");
            std::fs::rename(dir.path().join(format!("a{round}")), away.path().join("a")).expect("moved");
        }
        watch.read(Instant::now());
        assert_eq!(watch.folders.len(), before, "round {round}");
    }
}

#[test]
fn a_folder_that_is_replaced_is_watched_anew() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path().canonicalize().expect("a path");
    let app = dir.join("above/app");
    std::fs::create_dir_all(app.join("lib")).expect("made");
    write(&app.join("lib/part.py"), "one");
    let mut watch = watch(Runtime::Python, &app, "app.py");
    let poll = mio::Poll::new().expect("epoll");
    for which in ["above/app", "above"] {
        let now = Instant::now();
        std::fs::rename(dir.join(which), dir.join("old")).expect("renamed");
        assert!(watch.read(now).is_lost, "{which}");
        watch = watch.wait_for_return(poll.registry()).expect("inotify");
        std::fs::create_dir_all(app.join("lib")).expect("made");
        assert!(watch.read(now).is_lost, "something has come");
        write(&app.join("lib/part.py"), which);
        let found = watch.app.clone();
        watch = watch.start_anew(found, poll.registry(), now).expect("inotify").expect("is watched");
        assert_eq!(changed(&mut watch), [app.clone(), app.join("lib/part.py")], "{which}");
        write(&app.join("lib/part.py"), "later");
        assert_eq!(changed(&mut watch), [app.join("lib/part.py")], "{which}");
        std::fs::remove_dir_all(dir.join("old")).expect("removed");
    }
}
