//! How an entry becomes a worker's command line: which interpreter, which embedded harness, which environment.

use crate::app::{App, Runtime};
use crate::config::env_file::Variable;
use crate::config::{Config, Fork, HotReload, JavaScript, activation};
use crate::handover;
use crate::paths::shown;
use crate::process::Launch;
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Names and texts of files.
pub type HarnessFiles = &'static [(&'static str, &'static str)];

/// The harnesses, which lie beside each other in one folder while the server runs.
pub const HARNESS_FILES: HarnessFiles = &[
    ("app.mjs", include_str!("js/app.mjs")),
    ("body.mjs", include_str!("js/body.mjs")),
    ("bun.mjs", include_str!("js/bun.mjs")),
    ("failure.mjs", include_str!("js/failure.mjs")),
    ("light.mjs", include_str!("js/light.mjs")),
    ("listener.mjs", include_str!("js/listener.mjs")),
    ("node.mjs", include_str!("js/node.mjs")),
    ("request.mjs", include_str!("js/request.mjs")),
    ("worker.mjs", include_str!("js/worker.mjs")),
    ("main.py", include_str!("python/main.py")),
    ("rip_template.py", include_str!("python/rip_template.py")),
    ("rip_loading.py", include_str!("python/rip_loading.py")),
    ("rip_worker.py", include_str!("python/rip_worker.py")),
    ("rip_head.py", include_str!("python/rip_head.py")),
    ("rip_wsgi.py", include_str!("python/rip_wsgi.py")),
    ("rip_threads.py", include_str!("python/rip_threads.py")),
    ("rip_answer.py", include_str!("python/rip_answer.py")),
    ("rip_asgi.py", include_str!("python/rip_asgi.py")),
    ("rip_http.py", include_str!("python/rip_http.py")),
    ("rip_websocket.py", include_str!("python/rip_websocket.py")),
    ("main.rb", include_str!("ruby/main.rb")),
    ("rip_template.rb", include_str!("ruby/rip_template.rb")),
    ("rip_worker.rb", include_str!("ruby/rip_worker.rb")),
    ("rip_http.rb", include_str!("ruby/rip_http.rb")),
    ("rip_server.rb", include_str!("ruby/rip_server.rb")),
    ("rip_threads.rb", include_str!("ruby/rip_threads.rb")),
];

/// How systemd and a service talk, and the servers of an upgrade.
const SERVICE_VARIABLES: [&str; 4] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", handover::VARIABLE];

/// What one worker is told of itself.
#[derive(Debug)]
pub struct Identity<'a> {
    pub slot: usize,
    pub version: u64,
    pub socket: &'a Path,
    /// Where a command listens that takes `{port}`.
    pub port: Option<u16>,
    pub control_socket: &'a Path,
    pub prefix: &'a str,
    /// Names this server's run, so that no worker of another one joins it.
    pub instance: &'a str,
    /// Where the harnesses lie.
    pub harness_dir: &'a Path,
}

impl<'a> Identity<'a> {
    /// For a look, before anything is started, whether all that is needed is there.
    pub fn probe(prefix: &'a str, harness_dir: &'a Path) -> Self {
        let none = Path::new("/");
        Identity {
            slot: 0,
            version: 0,
            socket: none,
            port: None,
            control_socket: none,
            prefix,
            instance: "",
            harness_dir,
        }
    }
}

/// The harnesses of one run of the server, in a folder of their own that goes with it.
#[derive(Debug)]
pub struct Harnesses {
    dir: PathBuf,
    /// Their names and texts.
    files: HarnessFiles,
    is_written: bool,
}

impl Harnesses {
    /// Nothing is written yet.
    pub fn at(dir: PathBuf, files: HarnessFiles) -> Self {
        Harnesses { dir, files, is_written: false }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether workers of this runtime need any of them.
    pub fn are_for(&self, runtime: Runtime) -> bool {
        needs_harness(runtime) && !self.files.is_empty()
    }

    /// Puts those there that are not there, where workers of this runtime need them. Asked before each start: what
    /// cleans `/tmp` takes files that nobody has touched for days.
    ///
    /// # Errors
    /// The file system's.
    pub fn provide(&mut self, runtime: Runtime) -> std::io::Result<()> {
        if !self.are_for(runtime) {
            return Ok(());
        }
        // From here on there may be something to remove.
        let was_written = std::mem::replace(&mut self.is_written, true);
        let mut missing = self.files.iter().filter(|(name, _)| !self.dir.join(name).is_file()).peekable();
        if missing.peek().is_none() {
            return Ok(());
        }
        if was_written {
            log::warn!("files in {} are gone; they are written again", shown(&self.dir));
        }
        std::fs::create_dir_all(&self.dir)?;
        for (name, text) in missing {
            std::fs::write(self.dir.join(name), text)?;
        }
        Ok(())
    }
}

impl Drop for Harnesses {
    fn drop(&mut self) {
        if self.is_written {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// Whether workers of this runtime need a harness beside them.
fn needs_harness(runtime: Runtime) -> bool {
    match runtime {
        Runtime::JavaScript | Runtime::Python | Runtime::Ruby => true,
        Runtime::Cgi | Runtime::Executable | Runtime::Command => false,
    }
}

/// What runs the app, by its path. `variables`: of the `--env-file`.
///
/// # Errors
/// A line that says which interpreter is missing and how to get it.
pub fn launch(
    app: &App,
    config: &Config,
    identity: &Identity<'_>,
    variables: &[Variable],
) -> Result<Launch, String> {
    if !config.preload.is_empty() && app.runtime != Runtime::JavaScript {
        // What gunicorn and its like call so.
        let instead = match can_fork(app.runtime) {
            true => "; --fork=auto, the default in production, loads it once for all workers",
            false => "",
        };
        let entry = shown(&app.entry);
        return Err(format!("--preload is for Bun and Node, and '{entry}' runs under neither{instead}"));
    }
    if !can_fork(app.runtime) && (config.fork == Fork::Always || config.warm.is_some()) {
        let flag = if config.fork == Fork::Always { "--fork=always" } else { "--warm" };
        let entry = shown(&app.entry);
        return Err(format!(
            "{flag} is for Python and Ruby, which run no '{entry}'; without it, it would do"
        ));
    }
    if config.concurrency > 1 && app.runtime == Runtime::Cgi {
        return Err(format!(
            "'c:{}' is not for CGI scripts, which are one process a request; more workers (w:) would do",
            config.concurrency
        ));
    }
    let (program, arguments) = match app.runtime {
        Runtime::Executable => (app.entry.clone(), Vec::new()),
        Runtime::Command => command(config, identity, &app.dir)?,
        Runtime::JavaScript => javascript(app, config, identity)?,
        Runtime::Python => python(app, config, identity)?,
        Runtime::Ruby => ruby(identity)?,
        Runtime::Cgi => (crate::process::own_path(), vec![crate::config::CGI_WORKER.into()]),
    };
    let path = |path: &Path| path.as_os_str().to_os_string();
    let mut environment: Vec<(String, OsString)> = vec![
        ("WORKER_ID".into(), identity.slot.to_string().into()),
        ("SOCKET_PATH".into(), path(identity.socket)),
        ("RIP_CONTROL_SOCKET".into(), path(identity.control_socket)),
        ("RIP_INSTANCE".into(), identity.instance.into()),
        ("RIP_VERSION".into(), identity.version.to_string().into()),
        ("RIP_APP_NAME".into(), app.name.clone().into()),
        ("RIP_APP_ENTRY".into(), path(&app.entry)),
        ("RIP_SOCKET_PREFIX".into(), identity.prefix.into()),
        ("RIP_CONCURRENCY".into(), config.concurrency.to_string().into()),
        ("RIP_MAX_STREAMS".into(), config.max_streams.to_string().into()),
        ("RIP_HOT_RELOAD".into(), config.hot_reload.code().into()),
        ("RIP_MAX_RELOADS".into(), config.max_reloads.to_string().into()),
        ("RIP_LOG_JSON".into(), if config.json_logging { "1" } else { "0" }.into()),
    ];
    if app.runtime == Runtime::Cgi {
        let passes = if config.cgi_pass_auth { "1" } else { "0" };
        environment.push(("RIP_CGI_PASS_AUTH".into(), passes.into()));
    }
    if matches!(app.runtime, Runtime::Python | Runtime::Cgi) {
        // So that it can tell a client that has gone from a request whose time is up.
        let read_timeout = config.read_timeout.as_millis().to_string();
        environment.push(("RIP_READ_TIMEOUT_MS".into(), read_timeout.into()));
    }
    if app.runtime == Runtime::Executable {
        environment.extend([
            ("APP_NAME".into(), app.name.clone().into()),
            ("APP_ENTRY".into(), path(&app.entry)),
            ("SOCKET_PREFIX".into(), identity.prefix.into()),
            ("CONTROL_SOCKET".into(), path(identity.control_socket)),
        ]);
    }
    let is_free = |name: &String| {
        std::env::var_os(name).is_none()
            && !(name == "PORT" && app.runtime == Runtime::Command)
            && !environment.iter().any(|(known, _)| known == name)
    };
    let variables: Vec<&Variable> = variables.iter().filter(|(name, _)| is_free(name)).collect();
    environment.extend(variables.into_iter().map(|(name, value)| (name.clone(), value.into())));
    // The port is the server's: a command that took it for its own would not get it.
    let port = (app.runtime == Runtime::Command).then_some("PORT");
    // What systemd tells the server is for nobody else.
    let removed = activation::VARIABLES.into_iter().chain(SERVICE_VARIABLES).chain(port).collect();
    // A command has children of its own to tell; everything else dies at once with the server.
    let death_signal = if app.runtime == Runtime::Command { Signal::SIGTERM } else { Signal::SIGKILL };
    Ok(Launch { program, arguments, environment, removed, dir: app.dir.clone(), death_signal })
}

/// What differs between two workers of a release.
const OF_ONE_WORKER: [&str; 3] = ["WORKER_ID", "SOCKET_PATH", "RIP_VERSION"];

/// Whether workers of this runtime can be forked from a template.
pub fn can_fork(runtime: Runtime) -> bool {
    match runtime {
        Runtime::Python | Runtime::Ruby => true,
        Runtime::JavaScript | Runtime::Cgi | Runtime::Executable | Runtime::Command => false,
    }
}

/// What runs a template: the same, without what only a worker has. An app that needs its worker's number while it is
/// loaded fails there, and is not forked.
///
/// # Errors
/// As [`launch`].
pub fn launch_template(
    app: &App,
    config: &Config,
    identity: &Identity<'_>,
    variables: &[Variable],
) -> Result<Launch, String> {
    let mut launch = launch(app, config, identity, variables)?;
    launch.environment.retain(|(name, _)| !OF_ONE_WORKER.contains(&name.as_str()));
    launch.environment.push(("RIP_TEMPLATE".into(), config.fork.code().into()));
    if let Some(path) = &config.warm {
        launch.environment.push(("RIP_WARM".into(), path.into()));
    }
    launch.removed.extend(OF_ONE_WORKER);
    Ok(launch)
}

/// What a worker has beside its template's environment.
pub fn fork_environment(identity: &Identity<'_>) -> [(&'static str, OsString); 3] {
    let [id, socket, version] = OF_ONE_WORKER;
    [
        (id, identity.slot.to_string().into()),
        (socket, identity.socket.as_os_str().to_os_string()),
        (version, identity.version.to_string().into()),
    ]
}

fn command(config: &Config, identity: &Identity<'_>, dir: &Path) -> Result<(PathBuf, Vec<OsString>), String> {
    let socket = identity.socket.to_string_lossy();
    let port = identity.port.map(|port| port.to_string()).unwrap_or_default();
    let mut words = config.command.iter().flatten().map(|argument| match argument.to_str() {
        Some(text) => OsString::from(text.replace("{socket}", &socket).replace("{port}", &port)),
        None => argument.clone(),
    });
    let program = PathBuf::from(words.next().unwrap_or_default());
    let found = if program.components().count() > 1 {
        let program = dir.join(&program);
        is_executable(&program).then_some(program)
    } else {
        find_program(&program.to_string_lossy())
    };
    match found {
        Some(found) => Ok((found, words.collect())),
        None => Err(format!("the command '{}' is not there, or not executable", shown(&program))),
    }
}

fn javascript(
    app: &App,
    config: &Config,
    identity: &Identity<'_>,
) -> Result<(PathBuf, Vec<OsString>), String> {
    let is_for_bun_alone = app
        .entry
        .extension()
        .is_some_and(|ending| ["rip", "ts", "mts", "cts", "tsx", "jsx"].iter().any(|other| ending == *other));
    let wanted = config.javascript;
    let bun = find_program("bun").filter(|_| wanted != JavaScript::Node);
    if let Some(bun) = bun {
        let preloads = config.preload.iter().flat_map(|module| ["--preload".into(), module.into()]);
        let harness = identity.harness_dir.join("bun.mjs").into();
        // Bun's own bound is 16 KiB; the front end has its own.
        let head_bound = OsString::from("--max-http-header-size=262144");
        return Ok((bun, [head_bound].into_iter().chain(preloads).chain([harness]).collect()));
    }
    // Who names Node knows what it can run: it tells about what it can't.
    let is_fit = !is_for_bun_alone || !config.preload.is_empty() || wanted == JavaScript::Node;
    if let Some(node) = find_program("node").filter(|_| is_fit && wanted != JavaScript::Bun) {
        let imports = config.preload.iter().flat_map(|module| ["--import".into(), module.into()]);
        return Ok((node, imports.chain([identity.harness_dir.join("node.mjs").into()]).collect()));
    }
    let entry = shown(&app.entry);
    Err(match wanted {
        JavaScript::Node => {
            format!("--runtime=node, and Node is not in PATH; without --runtime, Bun would run '{entry}'")
        }
        JavaScript::Bun => "--runtime=bun, and Bun is not in PATH; npm install -g bun would do".to_owned(),
        JavaScript::Any => format!(
            "'{entry}' needs Bun, which is not in PATH{}; npm install -g bun, or bun.sh, would do",
            if is_for_bun_alone { "" } else { ", nor is Node" }
        ),
    })
}

/// `$VIRTUAL_ENV`, an environment beside the project or its entry, else `python3`.
fn python(app: &App, config: &Config, identity: &Identity<'_>) -> Result<(PathBuf, Vec<OsString>), String> {
    let environments = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from);
    // The project of a `src` folder is the one above it.
    let above = app.dir.parent().filter(|_| app.dir.file_name().is_some_and(|name| name == "src"));
    let folders = [Some(app.dir.as_path()), app.entry.parent(), above];
    let beside = folders.into_iter().flatten().flat_map(|dir| [dir.join(".venv"), dir.join("venv")]);
    let interpreter = environments
        .into_iter()
        .chain(beside)
        .map(|environment| environment.join("bin/python3"))
        .find(|python| is_executable(python))
        .or_else(|| find_program("python3"))
        .ok_or(
            "python3 is not in PATH, and there is no .venv beside the app; apt install python3 would do",
        )?;
    let harness = identity.harness_dir.join("main.py").into();
    let target = app.target.as_ref().map(|target| target.to_string().into());
    // Python tells a .pyc from its source by whole seconds and sizes, so a quick edit could go unseen.
    let no_cache = (config.hot_reload == HotReload::Module).then(|| "-B".into());
    Ok((interpreter, no_cache.into_iter().chain([harness]).chain(target).collect()))
}

fn ruby(identity: &Identity<'_>) -> Result<(PathBuf, Vec<OsString>), String> {
    let ruby = find_program("ruby").ok_or("ruby is not in PATH; apt install ruby ruby-rack would do")?;
    Ok((ruby, vec![identity.harness_dir.join("main.rb").into()]))
}

/// A program by its bare name, as the shell would find it.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| is_executable(file))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harness_files_that_a_cleaner_has_removed_are_written_again() {
        const FILES: HarnessFiles = &[("one.py", "1"), ("two.py", "2")];
        let temporary = tempfile::tempdir().expect("a folder");
        let dir = temporary.path().join("sockets/harness");
        let mut harnesses = Harnesses::at(dir.clone(), FILES);
        let provide = |harnesses: &mut Harnesses| {
            harnesses.provide(Runtime::Python).expect("they can be written");
            FILES
                .iter()
                .all(|(name, text)| std::fs::read_to_string(dir.join(name)).is_ok_and(|is| is == *text))
        };
        harnesses.provide(Runtime::Executable).expect("there is nothing to do");
        assert!(!dir.exists(), "it needs none");
        assert!(provide(&mut harnesses));
        std::fs::remove_file(dir.join("two.py")).expect("it is there");
        assert!(provide(&mut harnesses), "one was gone");
        std::fs::remove_dir_all(temporary.path().join("sockets")).expect("it is there");
        assert!(provide(&mut harnesses), "all was gone");
        drop(harnesses);
        assert!(!dir.exists());
    }
}
