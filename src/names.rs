//! What a server is called on disk: how its verbs and its workers find it.

use crate::config::ServerId;
use crate::paths;
use std::path::PathBuf;

/// The server's names on disk.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub app: String,
    pub prefix: String,
    pub dir: PathBuf,
    pub control: PathBuf,
    /// The flags that a verb needs to find it, each behind a space.
    pub flags: String,
}

impl Names {
    pub(crate) fn new(place: &ServerId, app: &str) -> Self {
        let prefix = place.socket_prefix.clone().unwrap_or_else(|| format!("rip_{}_{app}", place.variant));
        let dir = paths::absolute(&place.socket_dir);
        Names {
            app: app.to_owned(),
            control: dir.join(format!("{prefix}.ctl.sock")),
            prefix,
            dir,
            flags: place.given.iter().map(|flag| format!(" {flag}")).collect(),
        }
    }

    /// Locked for the server's life.
    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join(format!("{}.lock", self.prefix))
    }

    /// Where the harnesses of one run of the server lie.
    pub(crate) fn harness_dir(&self, instance: &str) -> PathBuf {
        self.dir.join(format!("{}.{instance}.harness", self.prefix))
    }

    /// Whether a folder of that name has the harnesses of a run of this server, whichever.
    pub(crate) fn is_harness_dir(&self, file: &str) -> bool {
        let remaining =
            file.strip_prefix(&self.prefix).and_then(|remaining| remaining.strip_suffix(".harness"));
        let instance = remaining.and_then(|remaining| remaining.strip_prefix('.'));
        instance.is_some_and(|instance| instance.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }

    pub(crate) fn worker_socket(&self, instance: &str, slot: usize, version: u64) -> PathBuf {
        self.dir.join(format!("{}.{instance}.{slot}.{version}.sock", self.prefix))
    }

    /// The control socket of one run of the server, which its workers are told of. Verbs use the one that all runs share,
    /// which a next server takes over.
    pub(crate) fn own_control(&self, instance: &str) -> PathBuf {
        self.dir.join(format!("{}.{instance}.ctl", self.prefix))
    }

    /// Whether a file of that name is one run's.
    pub(crate) fn is_of_run(&self, file: &str, instance: &str) -> bool {
        let is_own = self.is_own_socket(file) || self.is_harness_dir(file);
        is_own && file.strip_prefix(&format!("{}.{instance}.", self.prefix)).is_some()
    }

    /// Whether a file of that name is the socket of a worker of this server, or one of its runs' own control sockets.
    pub(crate) fn is_own_socket(&self, file: &str) -> bool {
        let remaining = file.strip_prefix(&self.prefix).and_then(|remaining| remaining.strip_prefix('.'));
        let parts: Vec<&str> = remaining.unwrap_or_default().split('.').collect();
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let is_run = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match parts[..] {
            [run, "ctl"] => is_run(run),
            // Before there were runs in the names.
            [slot, version, "sock"] => is_number(slot) && is_number(version),
            [run, slot, version, "sock"] => is_run(run) && is_number(slot) && is_number(version),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_workers_are_told_from_all_else() {
        let place = ServerId {
            app: None,
            socket_dir: "/s".into(),
            variant: "blue".into(),
            socket_prefix: None,
            given: Vec::new(),
        };
        let names = Names::new(&place, "shop");
        for own in [
            names.worker_socket("5e55", 12, 3),
            names.own_control("5e55"),
            "/s/rip_blue_shop.1.2.sock".into(),
        ] {
            assert!(names.is_own_socket(own.file_name().and_then(|name| name.to_str()).expect("a name")));
        }
        for other in [
            "rip_blue_shop.ctl.sock",
            "rip_blue_shop.harness",
            "rip_blue_shop.1.sock",
            "rip_blue_shop.1.2",
            "rip_blue_shop.a.2.sock",
            "rip_blue_shop.x.2.3.sock",
            "rip_blue_shop2.1.2.sock",
            "rip_green_shop.1.2.sock",
        ] {
            assert!(!names.is_own_socket(other), "{other}");
        }
    }
}
