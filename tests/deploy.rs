//! `examples/deploy`, checked as far as a machine without Docker, systemd and Kubernetes can.

#[path = "support/load.rs"]
mod load;
mod support;

#[path = "deploy/dockerfiles.rs"]
mod dockerfiles;
#[path = "deploy/haproxy.rs"]
mod haproxy;
#[path = "deploy/kubernetes.rs"]
mod kubernetes;
#[path = "deploy/nginx.rs"]
mod nginx;
#[path = "deploy/notify.rs"]
mod notify;
#[path = "deploy/prometheus.rs"]
mod prometheus;
#[path = "deploy/proxy_protocol.rs"]
mod proxy_protocol;
#[path = "deploy/sockets.rs"]
mod sockets;
#[path = "deploy/static_binary.rs"]
mod static_binary;
#[path = "deploy/unit.rs"]
mod unit;

use std::path::{Path, PathBuf};
use std::time::Duration;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn example_path(name: &str) -> PathBuf {
    root().join("examples/deploy").join(name)
}

fn example(name: &str) -> String {
    let path = example_path(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A program as the shell would find it; the system's own ones even where PATH lacks them.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// What the server takes for its longest drain, and for its workers' last moment, if nobody says otherwise.
fn default_drain() -> Duration {
    const LAST_MOMENT: Duration = Duration::from_secs(1);
    let help = support::run(["--help"]).stdout;
    let line = help.lines().find(|line| line.contains("--drain-timeout-ms")).expect("it is in the help");
    let default = line.rsplit_once('[').and_then(|(_, remaining)| remaining.split([']', ',', ' ']).next());
    let default = default.and_then(|ms| ms.parse().ok()).unwrap_or_else(|| panic!("no default in {line}"));
    Duration::from_millis(default) + LAST_MOMENT
}
