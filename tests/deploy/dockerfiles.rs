//! The Dockerfiles: a small parser, and whether all that they name is there. What they start is started.

use super::{example, root};
use crate::support::server::output;
use crate::support::{Server, ServerBuilder, test_worker};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

const ALL: [&str; 3] = ["Dockerfile.rust", "Dockerfile.bun", "Dockerfile.python"];

/// What an image brings that a RUN may start.
const PROGRAMS: [(&str, &[&str]); 4] = [
    ("rust:", &["cargo", "mkdir", "chmod", "cp"]),
    ("oven/bun:", &["bun"]),
    ("python:", &["pip", "python3"]),
    ("scratch", &[]),
];

#[derive(Debug)]
pub struct Dockerfile {
    file: String,
    pub stages: Vec<Stage>,
}

#[derive(Debug)]
pub struct Stage {
    base: String,
    name: Option<String>,
    /// Word and rest, in order.
    instructions: Vec<(String, String)>,
}

/// `COPY [--from=<stage>] <source>… <target>`
#[derive(Debug)]
pub struct Copy {
    from: Option<String>,
    pub sources: Vec<String>,
    pub target: String,
}

impl Dockerfile {
    pub fn read(file: &str) -> Dockerfile {
        let mut stages: Vec<Stage> = Vec::new();
        let text = example(file);
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            assert!(!line.ends_with('\\'), "{file}: this parser knows no continued lines: {line}");
            let (phrase, remaining) = line.split_once(' ').unwrap_or_else(|| panic!("{file}: {line}"));
            if phrase == "FROM" {
                let (base, name) = match remaining.split_once(" AS ") {
                    Some((base, name)) => (base, Some(name.to_owned())),
                    None => (remaining, None),
                };
                stages.push(Stage { base: base.to_owned(), name, instructions: Vec::new() });
            } else {
                let stage = stages.last_mut().unwrap_or_else(|| panic!("{file}: {phrase} before FROM"));
                stage.instructions.push((phrase.to_owned(), remaining.to_owned()));
            }
        }
        Dockerfile { file: file.to_owned(), stages }
    }

    pub fn last(&self) -> &Stage {
        self.stages.last().expect("a stage")
    }

    fn stage(&self, name: &str) -> &Stage {
        let is_it = |stage: &&Stage| stage.name.as_deref() == Some(name);
        self.stages.iter().find(is_it).unwrap_or_else(|| panic!("{}: no stage {name}", self.file))
    }
}

impl Stage {
    fn all(&self, phrase: &str) -> impl Iterator<Item = &str> {
        self.instructions
            .iter()
            .filter(move |(other, _)| other == phrase)
            .map(|(_, remaining)| remaining.as_str())
    }

    fn one(&self, phrase: &str) -> &str {
        let all: Vec<&str> = self.all(phrase).collect();
        assert_eq!(all.len(), 1, "{phrase} of the stage from {}: {all:?}", self.base);
        all[0]
    }

    pub fn copies(&self) -> Vec<Copy> {
        self.all("COPY").map(copy).collect()
    }

    /// The command lines of all RUNs: environment and words, one for each part between `&&`.
    pub fn runs(&self) -> Vec<&str> {
        self.all("RUN").flat_map(|run| run.split(" && ")).collect()
    }

    /// The words of an instruction in its JSON form, the only one that needs no shell in the image.
    pub fn words(&self, phrase: &str) -> Vec<String> {
        let remaining = self.one(phrase);
        let list =
            &remaining[remaining.find('[').unwrap_or_else(|| panic!("{phrase} {remaining}: not in JSON"))..];
        serde_json::from_str(list).unwrap_or_else(|error| panic!("{phrase} {remaining}: {error}"))
    }

    /// Lays out what the stage's COPYs take from the context, as far as that is this repository.
    pub fn lay_out(&self, context: &Path) {
        for copy in self.copies().iter().filter(|copy| copy.from.is_none()) {
            for source in &copy.sources {
                let target = target_of(copy, source, context);
                // Gone before, so that nothing is left of what the repository no longer has.
                let _ = std::fs::remove_file(&target).or_else(|_| std::fs::remove_dir_all(&target));
                let parent = target.parent().expect("it is inside the context");
                std::fs::create_dir_all(parent).expect("a folder");
                // With its times, so that cargo builds only what has changed.
                let mut command = Command::new("cp");
                command.arg("-a").arg(root().join(source)).arg(&target);
                assert_eq!(output(command).code, 0, "COPY {source}");
            }
        }
    }
}

fn copy(remaining: &str) -> Copy {
    let mut words: Vec<String> = remaining.split_whitespace().map(str::to_owned).collect();
    let from = words[0].strip_prefix("--from=").map(str::to_owned);
    words.drain(..usize::from(from.is_some()));
    let target = words.pop().expect("a target");
    assert!(!words.is_empty(), "COPY {remaining}: no source");
    Copy { from, sources: words, target }
}

/// A file goes into a target that ends with a slash under its own name.
fn target_of(copy: &Copy, source: &str, context: &Path) -> PathBuf {
    let target = context.join(copy.target.trim_start_matches("./"));
    match copy.target.ends_with('/') {
        true if root().join(source).is_file() => {
            target.join(Path::new(source).file_name().expect("a file's name"))
        }
        _ => target,
    }
}

/// The words of a command line, without the variables that stand before `cargo`.
pub fn words(line: &str) -> Vec<&str> {
    let start = line.find("cargo build").unwrap_or(0);
    line[start..].split_whitespace().collect()
}

/// What stands behind a flag.
fn value<'a>(words: &[&'a str], flag: &str) -> Option<&'a str> {
    words.iter().position(|phrase| *phrase == flag).map(|at| words[at + 1])
}

#[test]
fn dockerfiles_copy_only_what_is_there() {
    for file in ALL {
        let docker = Dockerfile::read(file);
        for copy in docker.stages.iter().flat_map(Stage::copies) {
            for source in &copy.sources {
                match &copy.from {
                    None => assert!(root().join(source).exists(), "{file}: COPY {source}"),
                    Some(stage) => {
                        assert!(makes(docker.stage(stage), source), "{file}: {source} is not made")
                    }
                }
            }
        }
    }
}

/// Whether a RUN of the stage makes that path.
fn makes(stage: &Stage, path: &str) -> bool {
    stage.runs().into_iter().map(words).any(|words| match words[0] {
        "cargo" => Path::new(stage.one("WORKDIR")).join(built_by(&words)) == Path::new(path),
        "mkdir" | "cp" => words.last().is_some_and(|last| Path::new(last).starts_with(path)),
        _ => false,
    })
}

/// Where `cargo build` puts its one program.
pub fn built_by(words: &[&str]) -> String {
    assert!(words.starts_with(&["cargo", "build", "--release"]), "{words:?}");
    let target = value(words, "--target").expect("a static build names its target");
    match (value(words, "--bin"), value(words, "--example")) {
        (Some(name), None) => format!("target/{target}/release/{name}"),
        (None, Some(name)) => format!("target/{target}/release/examples/{name}"),
        _ => panic!("one program: {words:?}"),
    }
}

#[test]
fn dockerfiles_run_only_what_their_base_has() {
    for file in ALL {
        for stage in Dockerfile::read(file).stages {
            let (_, programs) = PROGRAMS
                .iter()
                .find(|(base, _)| stage.base.starts_with(base))
                .unwrap_or_else(|| panic!("{file}: what does {} have?", stage.base));
            for line in stage.runs() {
                assert!(programs.contains(&words(line)[0]), "{file}: {line}");
            }
        }
    }
}

/// From the files that are copied alone, which is what cargo will have.
#[test]
fn cargo_finds_its_targets_in_what_the_dockerfiles_copy() {
    for file in ALL {
        let docker = Dockerfile::read(file);
        let stage = &docker.stages[0];
        let context = tempfile::tempdir().expect("a temporary folder");
        stage.lay_out(context.path());
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["metadata", "--no-deps", "--offline", "--locked", "--format-version=1"]);
        cargo.current_dir(context.path());
        let metadata = output(cargo);
        assert_eq!(metadata.code, 0, "{file}: {}", metadata.stderr);
        let metadata: Value = serde_json::from_str(&metadata.stdout).expect("JSON");
        let targets = metadata["packages"][0]["targets"].as_array().expect("targets");
        let builds: Vec<_> =
            stage.runs().into_iter().map(words).filter(|words| words[0] == "cargo").collect();
        assert_eq!(builds.len(), 1, "{file}");
        for (flag, kind) in [("--bin", "bin"), ("--example", "example")] {
            let Some(name) = value(&builds[0], flag) else { continue };
            let is_it = |target: &&Value| target["name"] == name && target["kind"][0] == kind;
            assert!(targets.iter().any(|target| is_it(&target)), "{file}: {flag} {name} is no target");
        }
    }
}

#[test]
fn images_run_as_nobody_in_production_and_say_their_port() {
    for file in ALL {
        let docker = Dockerfile::read(file);
        let image = docker.last();
        assert_ne!(image.one("USER"), "root", "{file}");
        assert!(image.all("ENV").any(|line| line == "NODE_ENV=production"), "{file}");
        let listens = format!("http:{}", image.one("EXPOSE"));
        assert!(image.words("CMD").contains(&listens), "{file}: {listens}");
        if let Some(app) = image.words("ENTRYPOINT").get(1) {
            assert_eq!(app, image.one("WORKDIR"), "{file}: the app is where its files are");
        }
        // An app's own folder has an entry that the server finds.
        let into_app = image.copies().into_iter().filter(|copy| copy.target == "./" && copy.from.is_none());
        for source in into_app.flat_map(|copy| copy.sources) {
            let source = root().join(source);
            let entries = ["index.ts", "app.py", "requirements.txt"];
            let has_entry = entries.iter().any(|entry| source.join(entry).is_file());
            assert!(source.is_file() || has_entry, "{file}: no entry in {}", source.display());
        }
    }
}

/// As the container would, but for the port and the app's place.
#[test]
fn what_containers_start_serves_and_is_found_healthy() {
    for file in ALL {
        let docker = Dockerfile::read(file);
        let image = docker.last();
        let entry = image.words("ENTRYPOINT");
        let server = match entry.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["rip-server", _app] => Server::builder(test_worker()),
            ["/hello"] => Server::carried_by(hello()),
            _ => panic!("{file}: {entry:?}"),
        };
        let mut server = with_words(server, image.words("CMD")).start();
        server.wait_until("the first worker", |server| server.get("/status").status == 200);
        assert_eq!(server.get("/ping").text(), "pong", "{file}");
        let mut health = entry.clone();
        health.insert(1, "status".to_owned());
        assert_eq!(image.words("HEALTHCHECK"), health, "{file}");
        assert_eq!(server.verb(["status"]).code, 0, "{file}");
        assert_eq!(server.verb(["stop"]).code, 0, "{file}");
    }
}

fn hello() -> PathBuf {
    let path = test_worker().with_file_name("hello");
    assert!(path.is_file(), "{} is missing: `cargo build --example hello` builds it", path.display());
    path
}

/// All words of a command but for where to listen.
pub fn with_words(mut server: ServerBuilder, words: impl IntoIterator<Item = String>) -> ServerBuilder {
    for phrase in words {
        server = match phrase.split_once(':') {
            Some(("http", _)) => server,
            Some(("metrics", _)) => server.arg("metrics:127.0.0.1:0"),
            _ => server.arg(phrase),
        };
    }
    server
}
