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

#[test]
fn each_runtime_has_sources_of_its_own() {
    let dir = Path::new("/app");
    let names =
        ["a.py", "a.rb", "a.ru", "a.erb", "a.ts", "a.mjs", "a.json", "a.html", "a.php", "index", "Makefile"];
    for (runtime, counting) in [
        (Runtime::Python, &["a.py", "a.html", "index"][..]),
        (Runtime::Ruby, &["a.rb", "a.ru", "a.erb", "index"]),
        (Runtime::JavaScript, &["a.ts", "a.mjs", "a.json", "index"]),
        (Runtime::Command, &["a.py", "a.rb", "a.ru", "a.ts", "a.mjs", "a.php", "index"]),
        (Runtime::Executable, &["index"]),
    ] {
        let other = tempfile::tempdir().expect("a folder");
        let mut watch = watch(runtime, other.path(), "index");
        watch.app.entry = dir.join("index");
        let found: Vec<&str> = names.into_iter().filter(|name| watch.has_ending(&dir.join(name))).collect();
        assert_eq!(found, counting, "{runtime:?}");
        assert!(!watch.has_ending(&dir.join(".a.py")) && !watch.has_ending(&dir.join(".hidden.ts")));
        let swaps = matches!(runtime, Runtime::Python | Runtime::Ruby | Runtime::JavaScript);
        assert_eq!(watch.swaps(&dir.join("index")), swaps);
        assert!(!watch.swaps(&dir.join("a.py")));
    }
    for name in ["node_modules", "__pycache__", "target", "venv", "site-packages", ".git"] {
        assert!(is_passed_over(OsStr::new(name)), "{name}");
    }
    assert!(!is_passed_over(OsStr::new("src")));
}

#[test]
fn an_app_that_is_started_anew_for_each_request_is_not_watched() {
    let poll = mio::Poll::new().expect("epoll");
    let dir = tempfile::tempdir().expect("a folder");
    let app = App {
        name: "app".into(),
        dir: dir.path().to_path_buf(),
        entry: dir.path().join("index.cgi"),
        runtime: Runtime::Cgi,
        target: None,
    };
    assert!(Watch::start(app.clone(), poll.registry()).is_ok_and(|watch| watch.is_none()));
    let gone = App { dir: "/nonexistent/app".into(), runtime: Runtime::Python, ..app };
    assert!(Watch::start(gone, poll.registry()).is_err());
}

#[test]
fn right_below_the_root_of_the_file_system_the_entrys_folder_is_watched() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut watch = watch(Runtime::Python, dir.path(), "app.py");
    assert_eq!(watch.root(), dir.path());
    watch.app.dir = "/".into();
    watch.app.entry = "/package/app.py".into();
    assert_eq!(watch.root(), Path::new("/package"));
    watch.app.dir = "/app".into();
    assert_eq!(watch.root(), Path::new("/app"));
    watch.app.runtime = Runtime::Executable;
    assert_eq!(watch.root(), Path::new("/package"));
}

#[test]
fn news_say_whether_workers_take_a_change_over_by_themselves() {
    let dir = tempfile::tempdir().expect("a folder");
    let entry = dir.path().join("app.py");
    write(&entry, "one");
    let mut watch = watch(Runtime::Python, dir.path(), "app.py");
    let now = Instant::now();
    let news = |needs_new_workers, is_lost| News { needs_new_workers, is_lost };
    assert_eq!(watch.read(now), News::default());
    write(&entry, "two");
    assert_eq!(watch.read(now), news(false, false), "the entry");
    assert_eq!(watch.changes.count(), 1);
    write(&dir.path().join("part.py"), "one");
    assert_eq!(watch.read(now), news(true, false));
    write(&dir.path().join("part.py"), "two");
    assert_eq!(watch.read(now), news(false, false), "it is known to have changed");
    assert_eq!(watch.changes.count(), 2);
    write(&dir.path().join("notes.txt"), "x");
    assert_eq!(watch.read(now), news(false, false));
    std::fs::create_dir(dir.path().join("lib")).expect("made");
    assert_eq!(watch.read(now), news(false, false));
    std::fs::rename(dir.path().join("lib"), dir.path().join("library")).expect("moved");
    assert_eq!(watch.read(now), news(false, false), "not the app's own folder");
    std::fs::remove_dir(dir.path().join("library")).expect("removed");
    assert_eq!(watch.read(now), news(false, false));
}

#[test]
fn what_moves_beside_the_apps_folder_is_nothing_to_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let app = dir.path().join("app");
    std::fs::create_dir(&app).expect("made");
    std::fs::create_dir(dir.path().join("other")).expect("made");
    let mut watch = watch(Runtime::Python, &app, "app.py");
    let now = Instant::now();
    std::fs::rename(dir.path().join("other"), dir.path().join("another")).expect("moved");
    std::fs::remove_dir(dir.path().join("another")).expect("removed");
    assert!(!watch.read(now).is_lost);
    assert!(watch.sees(&watch.app.clone()));
    let elsewhere = App { entry: app.join("main.py"), ..watch.app.clone() };
    assert!(!watch.sees(&elsewhere), "another app");
    std::fs::rename(&app, dir.path().join("old")).expect("moved");
    assert!(watch.read(now).is_lost);
    assert!(!watch.sees(&watch.app.clone()));
    std::fs::create_dir(&app).expect("made");
    assert!(!watch.sees(&watch.app.clone()), "another folder");
    let poll = mio::Poll::new().expect("epoll");
    let watch = watch.wait_for_return(poll.registry()).expect("inotify");
    assert!(!watch.sees(&watch.app.clone()), "it only waits");
}

#[test]
fn a_file_counts_when_it_is_written_to_its_end() {
    use std::io::Write;
    let dir = tempfile::tempdir().expect("a folder");
    let mut watch = watch(Runtime::Python, dir.path(), "app.py");
    let path = dir.path().join("part.py");
    let mut file = std::fs::File::create(&path).expect("a file");
    file.write_all(b"one").expect("written");
    assert_eq!(changed(&mut watch), NOTHING, "it has just begun");
    drop(file);
    assert_eq!(changed(&mut watch), std::slice::from_ref(&path));
    let (link, symlink) = (dir.path().join("link.py"), dir.path().join("symlink.py"));
    std::fs::hard_link(&path, &link).expect("linked");
    assert_eq!(changed(&mut watch), std::slice::from_ref(&link), "a link is whole at once");
    std::fs::remove_file(&link).expect("removed");
    changed(&mut watch);
    std::os::unix::fs::symlink(&path, &symlink).expect("linked");
    assert_eq!(changed(&mut watch), [symlink]);
}

#[test]
fn folders_are_followed_so_deep_and_no_deeper() {
    let dir = tempfile::tempdir().expect("a folder");
    let deep = |levels: usize| dir.path().join("d/".repeat(levels));
    std::fs::create_dir_all(deep(MAX_DEPTH + 1)).expect("made");
    let mut watch = watch(Runtime::Python, dir.path(), "app.py");
    assert_eq!(watch.folders.len(), 1 + MAX_DEPTH);
    for (levels, is_seen) in [(MAX_DEPTH, true), (MAX_DEPTH + 1, false)] {
        let file = deep(levels).join("part.py");
        write(&file, "x");
        assert_eq!(changed(&mut watch).len(), usize::from(is_seen), "{levels}");
    }
    // The same of folders that come later, all at once.
    std::fs::rename(deep(1), dir.path().join("e")).expect("moved");
    watch.read(Instant::now());
    assert_eq!(watch.folders.len(), 1 + MAX_DEPTH);
}

#[test]
fn what_is_watched_at_the_start_is_known() {
    let dir = tempfile::tempdir().expect("a folder");
    let nested = dir.path().join("lib/part.py");
    std::fs::create_dir(dir.path().join("lib")).expect("made");
    std::fs::create_dir(dir.path().join("venv")).expect("made");
    for file in
        [&nested, &dir.path().join("app.py"), &dir.path().join("venv/x.py"), &dir.path().join("a.txt")]
    {
        write(file, "one");
    }
    let watch = watch(Runtime::Python, dir.path(), "app.py");
    let mut known: Vec<_> = watch.contents.paths().cloned().collect();
    known.sort();
    assert_eq!(known, [dir.path().join("app.py"), nested]);
    let watched: BTreeSet<_> = watch.folders.values().cloned().collect();
    assert_eq!(watched, BTreeSet::from([dir.path().to_path_buf(), dir.path().join("lib")]));
    assert!(watch.unseen.is_none());
}

#[test]
fn a_folder_that_goes_takes_its_sources_with_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let (lib, other) = (dir.path().join("lib"), dir.path().join("library"));
    for folder in [&lib, &other] {
        std::fs::create_dir(folder).expect("made");
        write(&folder.join("part.py"), "one");
    }
    let mut watch = watch(Runtime::Python, dir.path(), "app.py");
    let away = tempfile::tempdir().expect("a folder");
    std::fs::rename(&lib, away.path().join("lib")).expect("moved");
    assert_eq!(changed(&mut watch), [lib.join("part.py")]);
    write(&away.path().join("lib/part.py"), "two");
    assert_eq!(changed(&mut watch), NOTHING, "it is not watched any more");
    write(&other.join("part.py"), "two");
    assert_eq!(changed(&mut watch), [other.join("part.py")], "the other one is");
}

#[test]
fn of_very_many_folders_so_many_are_watched_and_the_bound_is_told_once() {
    let dir = tempfile::tempdir().expect("a folder");
    for number in 0..MAX_FOLDERS {
        std::fs::create_dir(dir.path().join(number.to_string())).expect("made");
    }
    let mut watch = watch(Runtime::Python, dir.path(), "app.py");
    let (limit, path) = watch.take_unseen().expect("one is not watched");
    // The kernel's own bound may be lower here.
    let is_ours = limit == Limit::Folders && watch.folders.len() == MAX_FOLDERS;
    assert!(is_ours || matches!(limit, Limit::Watches { .. }), "{limit}");
    assert_eq!(path.parent(), Some(dir.path()));
    assert!(watch.take_unseen().is_none(), "once");
}

#[test]
fn folders_that_come_later_are_followed_where_sources_may_lie() {
    let dir = tempfile::tempdir().expect("a folder");
    let elsewhere = tempfile::tempdir().expect("a folder");
    for name in ["venv", ".git", "lib"] {
        std::fs::create_dir(elsewhere.path().join(name)).expect("made");
        write(&elsewhere.path().join(name).join("part.py"), "one");
    }
    let mut python = watch(Runtime::Python, dir.path(), "app.py");
    for name in ["venv", ".git", "lib"] {
        let folder = dir.path().join(name);
        std::fs::rename(elsewhere.path().join(name), &folder).expect("moved");
        let sources = changed(&mut python);
        assert_eq!(sources.len(), usize::from(name == "lib"), "{name}");
    }
    assert_eq!(python.folders.len(), 2);
    let mut executable = watch(Runtime::Executable, dir.path(), "index");
    std::fs::create_dir(dir.path().join("new")).expect("made");
    assert_eq!(changed(&mut executable), NOTHING);
    assert_eq!(executable.folders.len(), 1, "its own folder alone");
}
