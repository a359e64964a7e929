//! From an app's path to what is run: its name, its folder, its entry and the runtime that the entry needs.

mod python;

pub use python::Target;

use crate::paths::{quoted, shown};
use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// An app as it was found on disk. Each reload looks again, and so follows a `current` symlink that was moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    /// The name in sockets, logs and status, made from the path as typed.
    pub name: String,
    /// Where workers are started, and what is watched, with symlinks resolved. For a Python package it is the folder
    /// above the package.
    pub dir: PathBuf,
    /// The file that is run or loaded, as an absolute path. For a command it is the folder.
    pub entry: PathBuf,
    pub runtime: Runtime,
    /// What Python imports.
    pub target: Option<Target>,
}

/// What is looked for at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A folder's entry, or a file that is one.
    Entry,
    /// A Python target that was named.
    Target(Target),
    /// A folder to run a command in.
    Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// Bun; without Bun, Node for what Node can run.
    JavaScript,
    Python,
    /// Rack.
    Ruby,
    /// One process a request, by the built-in worker.
    Cgi,
    /// The file is run, and speaks the worker protocol.
    Executable,
    /// A command that can listen on a Unix socket.
    Command,
}

/// What a folder is probed for, in this order; the first match wins.
const ENTRIES: &[(&str, Runtime)] = &[
    ("index.rip", Runtime::JavaScript),
    ("index.ts", Runtime::JavaScript),
    ("index.tsx", Runtime::JavaScript),
    ("index.js", Runtime::JavaScript),
    ("index.mjs", Runtime::JavaScript),
    ("index.mts", Runtime::JavaScript),
    ("index.cjs", Runtime::JavaScript),
    ("index.jsx", Runtime::JavaScript),
    ("app.py", Runtime::Python),
    ("wsgi.py", Runtime::Python),
    ("asgi.py", Runtime::Python),
    ("index.py", Runtime::Python),
    ("manage.py", Runtime::Python),
    ("main.py", Runtime::Python),
    ("app/main.py", Runtime::Python),
    ("config.ru", Runtime::Ruby),
    ("index.cgi", Runtime::Cgi),
    ("index.sh", Runtime::Cgi),
    (PACKAGE, Runtime::JavaScript),
    ("index", Runtime::Executable),
];

/// Names an entry elsewhere, as its `module` (the word that `bun init` writes) or its `main`.
const PACKAGE: &str = "package.json";
/// A package.json beyond this is not read.
const MAX_PACKAGE_BYTES: u64 = 1 << 20;

/// Why there is no app at a path.
#[derive(Debug, PartialEq, Eq)]
pub enum NoApp {
    Missing(PathBuf),
    NoEntry(PathBuf),
    NotExecutable(PathBuf),
    Unreadable(PathBuf, String),
    /// A Python module that is not in that folder; a target that was perhaps meant.
    NoModule {
        dir: PathBuf,
        module: String,
        meant: Option<String>,
    },
    /// A target was named, and this is a file of the project in `root`.
    NoFolder {
        path: PathBuf,
        root: PathBuf,
        target: Target,
    },
    /// There is a `manage.py`, but not the module that it names.
    NoDjango(PathBuf),
}

impl fmt::Display for NoApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoApp::Missing(path) if target_behind(path).is_some() => {
                let (dir, target) = target_behind(path).unwrap_or_default();
                write!(f, "no app at '{}'; rip-server {dir} {target} would do", shown(path))
            }
            NoApp::Missing(path) => {
                write!(
                    f,
                    "no app at '{}': there is no such file or folder; the path of one would do",
                    shown(&path)
                )
            }
            NoApp::NoEntry(path) => {
                let names = ENTRIES.iter().map(|(name, _)| match *name {
                    PACKAGE => "a package.json with a main",
                    name => name,
                });
                let names: Vec<&str> = names.collect();
                write!(
                    f,
                    "no entry found in '{}'; one of {} would do, or the path of a file, or <module>:<app> of a Python project behind the folder, or -- command {{socket}}",
                    shown(&path),
                    names.join(", ")
                )
            }
            NoApp::NotExecutable(path) => {
                write!(
                    f,
                    "'{}' is neither a known kind of entry nor executable; chmod +x would do",
                    shown(&path)
                )
            }
            NoApp::Unreadable(path, error) => write!(f, "'{}' cannot be read: {error}", shown(path)),
            NoApp::NoModule { dir, module, meant } => {
                write!(f, "there is no module '{module}' in '{}'", shown(dir))?;
                match meant {
                    Some(meant) => write!(f, "; rip-server {} {} would do", quoted(dir), quoted(meant)),
                    None => write!(f, "; a file or package of that name in it would do"),
                }
            }
            NoApp::NoFolder { path, root, target } => {
                let dir = quoted(root);
                let target = quoted(&target.to_string());
                write!(
                    f,
                    "'{}' is a file, and {target} is looked for in a folder; rip-server {dir} {target} would do",
                    shown(path)
                )
            }
            NoApp::NoDjango(dir) => {
                write!(
                    f,
                    "no WSGI_APPLICATION in the settings of '{}/manage.py', and no wsgi.py or asgi.py beside them; rip-server {} mysite.wsgi:application would do",
                    shown(dir),
                    quoted(dir)
                )
            }
        }
    }
}

impl App {
    /// Looks at `path`, absolute and as typed.
    ///
    /// # Errors
    /// [`NoApp`], which says what would do.
    pub fn find(path: &Path, wanted: &Wanted) -> Result<App, NoApp> {
        let real = path.canonicalize().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => NoApp::Missing(path.to_path_buf()),
            _ => NoApp::Unreadable(path.to_path_buf(), error.to_string()),
        })?;
        let name = name(path);
        if real.is_dir() {
            match wanted {
                Wanted::Entry => {}
                Wanted::Target(target) => return Ok(App::python(name, python::find_target(&real, target)?)),
                Wanted::Command => return Ok(App::plain(name, real.clone(), real, Runtime::Command)),
            }
            let found = ENTRIES.iter().filter_map(|&(file, runtime)| match file {
                PACKAGE => Some((package_entry(&real)?, runtime)),
                _ => Some((real.join(file), runtime)),
            });
            let is_fit = |(file, runtime): &(PathBuf, Runtime)| {
                file.is_file() && (*runtime != Runtime::Executable || is_executable(file))
            };
            let (entry, runtime) =
                found.into_iter().find(is_fit).ok_or(NoApp::NoEntry(path.to_path_buf()))?;
            if runtime == Runtime::Cgi && !is_executable(&entry) {
                return Err(NoApp::NotExecutable(entry));
            }
            return match runtime {
                Runtime::Python => Ok(App::python(name, python::find_entry(&real, &entry)?)),
                _ => Ok(App::plain(name, real, entry, runtime)),
            };
        }
        let dir = real.parent().unwrap_or(Path::new("/")).to_path_buf();
        if let Wanted::Target(target) = wanted {
            let root = python::find_entry(&dir, &real)?.root;
            return Err(NoApp::NoFolder { path: path.to_path_buf(), root, target: target.clone() });
        }
        let runtime = match real.extension().and_then(OsStr::to_str) {
            _ if *wanted == Wanted::Command => Runtime::Command,
            Some(ending) if is_javascript(ending) => Runtime::JavaScript,
            Some("py") => return Ok(App::python(name, python::find_entry(&dir, &real)?)),
            Some("ru") => Runtime::Ruby,
            Some("cgi" | "sh") if is_executable(&real) => Runtime::Cgi,
            _ if is_executable(&real) => Runtime::Executable,
            _ => return Err(NoApp::NotExecutable(path.to_path_buf())),
        };
        Ok(App::plain(name, dir, real, runtime))
    }

    fn plain(name: String, dir: PathBuf, entry: PathBuf, runtime: Runtime) -> App {
        App { name, dir, entry, runtime, target: None }
    }

    fn python(name: String, found: python::Found) -> App {
        let python::Found { root, entry, target } = found;
        App { name, dir: root, entry, runtime: Runtime::Python, target: Some(target) }
    }
}

/// The folder and the target that were meant by a path such as `./shop/pkg.mod:attr`.
fn target_behind(path: &Path) -> Option<(String, String)> {
    let target = Target::parse(path.file_name()?.to_str()?)?;
    Some((quoted(path.parent()?), quoted(&target.to_string())))
}

/// The file that a folder's package.json names. As with `require`, its extension may be left out.
fn package_entry(dir: &Path) -> Option<PathBuf> {
    let mut text = String::new();
    let file = std::fs::File::open(dir.join(PACKAGE)).ok()?;
    file.take(MAX_PACKAGE_BYTES).read_to_string(&mut text).ok()?;
    let package: serde_json::Value = serde_json::from_str(&text).ok()?;
    let named = ["module", "main"].iter().filter_map(|name| package.get(name)?.as_str());
    let candidates = named.flat_map(|name| {
        const ENDINGS: [&str; 7] = ["", ".js", ".mjs", ".cjs", ".ts", "/index.js", "/index.ts"];
        ENDINGS.iter().map(|ending| dir.join(format!("{}{ending}", name.trim_end_matches('/'))))
    });
    let entry = candidates.into_iter().find(|file| file.is_file())?;
    is_javascript(entry.extension()?.to_str()?).then_some(entry)
}

fn is_javascript(ending: &str) -> bool {
    ["rip", "ts", "js", "mjs", "cjs", "mts", "cts", "tsx", "jsx"].contains(&ending)
}

/// Whether a character is harmless in a socket's name and in a log line.
pub fn is_plain(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "._-".contains(letter)
}

/// The last part of the absolute path; for `…/shop/current` it is `shop`. Characters that would be trouble in a
/// socket's name or a log line become underscores.
pub fn name(path: &Path) -> String {
    let last = match path.file_name() {
        Some(last) if last == "current" => path.parent().and_then(Path::file_name).unwrap_or(last),
        Some(last) => last,
        None => OsStr::new("app"),
    };
    last.to_string_lossy().chars().map(|letter| if is_plain(letter) { letter } else { '_' }).collect()
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_last_part_as_typed() {
        for (path, expected) in [("/srv/shop/current", "shop"), ("/srv/my app", "my_app"), ("/", "app")] {
            assert_eq!(name(Path::new(path)), expected);
        }
    }

    #[test]
    fn a_package_may_name_its_entry() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
        std::fs::create_dir(dir.path().join("src")).expect("a folder");
        write("src/server.js", "");
        for text in ["{", "[]", r#"{"main":7}"#, r#"{"main":"src/other.js"}"#, r#"{"main":"src"}"#] {
            write("package.json", text);
            assert!(matches!(App::find(dir.path(), &Wanted::Entry), Err(NoApp::NoEntry(_))), "{text}");
        }
        for text in
            [r#"{"main":"./src/server.js"}"#, r#"{"main":"src/server"}"#, r#"{"module":"src/server.js"}"#]
        {
            write("package.json", text);
            let app = App::find(dir.path(), &Wanted::Entry).expect(text);
            assert!(app.entry.ends_with("src/server.js") && app.runtime == Runtime::JavaScript, "{text}");
            assert_eq!(app.dir, dir.path().canonicalize().expect("a path"), "{text}");
        }
        write("app.py", "");
        assert_eq!(App::find(dir.path(), &Wanted::Entry).expect("an app").runtime, Runtime::Python);
    }

    #[test]
    fn entries_are_probed_in_order() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str| std::fs::write(dir.path().join(name), "").expect("written");
        assert!(matches!(App::find(dir.path(), &Wanted::Entry), Err(NoApp::NoEntry(_))));
        write("index");
        assert!(matches!(App::find(dir.path(), &Wanted::Entry), Err(NoApp::NoEntry(_))), "not executable");
        write("index.mjs");
        write("index.ts");
        let app = App::find(dir.path(), &Wanted::Entry).expect("an app");
        assert!(app.entry.ends_with("index.ts"));
        assert_eq!(App::find(dir.path(), &Wanted::Command).expect("a command").runtime, Runtime::Command);
    }
}
