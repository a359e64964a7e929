//! An app in a folder of its own, with the programs and packages that it needs. What is not installed is looked for
//! in vain: its tests are skipped, unless RIP_TEST_ALL=1 says that all is installed.

#![allow(dead_code)]

use crate::support::skip::skip;
use crate::support::{Server, ServerBuilder};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

/// What an app needs, by name.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    pub programs: &'static [&'static str],
    /// Packages of npm, of PyPI by the name that is imported, and gems.
    pub npm: &'static [&'static str],
    pub python: &'static [&'static str],
    pub gems: &'static [&'static str],
}

impl Needs {
    /// Nothing but these.
    pub const fn programs(programs: &'static [&'static str]) -> Needs {
        Needs { programs, npm: &[], python: &[], gems: &[] }
    }
}

/// Bun with these packages.
pub const fn bun(npm: &'static [&'static str]) -> Needs {
    Needs { npm, ..Needs::programs(&["bun"]) }
}

/// Node with these packages, and no Bun, which would be preferred.
pub const fn node(npm: &'static [&'static str]) -> Needs {
    Needs { npm, ..Needs::programs(&["node"]) }
}

/// Python with these packages.
pub const fn python(packages: &'static [&'static str]) -> Needs {
    Needs { python: packages, ..Needs::programs(&[]) }
}

/// Ruby with these gems.
pub const fn ruby(gems: &'static [&'static str]) -> Needs {
    Needs { gems, ..Needs::programs(&["ruby"]) }
}

/// A folder with a copy of an app in it, and a `bin` with what runs it.
#[derive(Debug)]
pub struct Fixture {
    dir: TempDir,
    app: PathBuf,
    environment: Vec<(&'static str, OsString)>,
}

impl Fixture {
    /// A copy of that folder of the repository. `None`: something that it needs is not installed.
    pub fn copy_of(needs: &Needs, folder: &str) -> Option<Fixture> {
        let source = repository().join(folder);
        let name = source.file_name().expect("a folder's name").to_string_lossy().into_owned();
        let fixture = Fixture::empty(needs, &name)?;
        copy(&source, &fixture.app);
        Some(fixture)
    }

    /// An app that the test writes itself.
    pub fn empty(needs: &Needs, name: &str) -> Option<Fixture> {
        let dir = tempfile::Builder::new().prefix("app").tempdir().expect("a temporary folder");
        let (app, bin) = (dir.path().join(name), dir.path().join("bin"));
        fs::create_dir(&app).expect("the app's folder");
        fs::create_dir(&bin).expect("a folder for programs");
        for name in needs.programs {
            let program =
                find_program(name).filter(|_| *name != "bun" || bun_runs()).or_else(|| skipped(name))?;
            symlink(program, bin.join(name)).expect("a link to a program");
        }
        for package in needs.npm {
            if !repository().join("target/runtimes/node_modules").join(package).is_dir() {
                return skipped(package);
            }
        }
        // Where `import` looks: above the folder of the file that asks.
        let _ = symlink(repository().join("target/runtimes/node_modules"), dir.path().join("node_modules"));
        let mut environment = vec![("PATH", path_with(&bin))];
        if let Some(venv) = virtual_env() {
            environment.push(("VIRTUAL_ENV", venv.into()));
        }
        if !(needs.python.is_empty() || python_finds(needs.python)) {
            return skipped(&format!("Python with {}", needs.python.join(", ")));
        }
        if !(needs.gems.is_empty() || ruby_finds(needs.gems)) {
            return skipped(&format!("Ruby with {}", needs.gems.join(", ")));
        }
        Some(Fixture { dir, app, environment })
    }

    /// Beside the app, for what must not lie in it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The app's folder.
    pub fn app_dir(&self) -> &Path {
        &self.app
    }

    /// A file of the app.
    pub fn file(&self, name: &str) -> PathBuf {
        self.app.join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).expect("a file can be written");
    }

    /// A server for it, or for one file of it, whose PATH has what the app needs and no other runtime that counts.
    pub fn server(&self, entry: Option<&str>) -> ServerBuilder {
        let path = entry.map_or_else(|| self.app.clone(), |entry| self.app.join(entry));
        let server = Server::builder(path).without_env("VIRTUAL_ENV");
        self.environment.iter().fold(server, |server, (name, value)| server.env(name, value))
    }
}

/// Says that a test does not run, and why.
fn skipped<T>(what: &str) -> Option<T> {
    skip(what, "it is not installed");
    None
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a folder to copy").flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a file type").is_dir() {
            fs::create_dir(&target).expect("a folder can be made");
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).expect("a file can be copied");
        }
    }
}

fn virtual_env() -> Option<PathBuf> {
    let venv = repository().join("target/venv");
    venv.join("bin/python3").is_file().then_some(venv)
}

/// The interpreter that the apps' workers get.
pub fn python_program() -> Option<PathBuf> {
    virtual_env().map(|venv| venv.join("bin/python3")).or_else(|| find_program("python3"))
}

/// What .ci/run has installed comes first.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let installed = ["target/runtimes/node_modules/.bin", "target/venv/bin"];
    let installed = installed.into_iter().map(|folder| repository().join(folder));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut files = installed.chain(std::env::split_paths(&path)).map(|folder| folder.join(name));
    files.find(|file| file.is_file())
}

/// Bun's package has a placeholder until its installation has fetched the program.
fn bun_runs() -> bool {
    static RUNS: OnceLock<bool> = OnceLock::new();
    *RUNS.get_or_init(|| {
        let bun = find_program("bun");
        bun.is_some_and(|bun| succeeds(Command::new(bun).arg("--version").stdout(Stdio::null())))
    })
}

/// `bin`, then the folders of PATH that have no Bun.
fn path_with(bin: &Path) -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let others = std::env::split_paths(&path).filter(|folder| !folder.join("bun").exists());
    std::env::join_paths([bin.to_path_buf()].into_iter().chain(others)).expect("folders without a colon")
}

fn python_finds(packages: &[&str]) -> bool {
    let code = "import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))";
    python_program().is_some_and(|python| succeeds(Command::new(python).args(["-c", code]).args(packages)))
}

fn ruby_finds(gems: &[&str]) -> bool {
    let code = "ARGV.each { |gem| Gem::Specification.find_by_name(gem) }";
    find_program("ruby").is_some_and(|ruby| succeeds(Command::new(ruby).args(["-e", code]).args(gems)))
}

fn succeeds(command: &mut Command) -> bool {
    command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
