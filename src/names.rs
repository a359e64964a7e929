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

    pub(crate) fn worker_socket(&self, slot: usize, version: u64) -> PathBuf {
        self.dir.join(format!("{}.{slot}.{version}.sock", self.prefix))
    }

    /// Whether a file of that name is the socket of a worker of ours.
    pub(crate) fn is_worker_socket(&self, file: &str) -> bool {
        let remaining = file.strip_prefix(&self.prefix).and_then(|remaining| remaining.strip_prefix('.'));
        let numbers = remaining
            .and_then(|remaining| remaining.strip_suffix(".sock"))
            .and_then(|remaining| remaining.split_once('.'));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        numbers.is_some_and(|(slot, version)| is_number(slot) && is_number(version))
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
        let own = names.worker_socket(12, 3);
        assert!(names.is_worker_socket(own.file_name().and_then(|name| name.to_str()).expect("a name")));
        for other in [
            "rip_blue_shop.ctl.sock",
            "rip_blue_shop.harness",
            "rip_blue_shop.1.sock",
            "rip_blue_shop.1.2",
            "rip_blue_shop.a.2.sock",
            "rip_blue_shop.1.2.3.sock",
            "rip_blue_shop2.1.2.sock",
            "rip_green_shop.1.2.sock",
        ] {
            assert!(!names.is_worker_socket(other), "{other}");
        }
    }
}
