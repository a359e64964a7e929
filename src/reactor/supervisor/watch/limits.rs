//! The bounds that watching meets, in words that help.

use nix::errno::Errno;
use std::fmt;

/// The most folders that are watched: each takes kernel memory, and sources seldom lie in more.
pub(super) const MAX_FOLDERS: usize = if cfg!(test) { 100 } else { 4096 };

/// Why changes go unseen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Ours: [`MAX_FOLDERS`].
    Folders,
    /// The kernel's for each user: watches, and as it stands.
    Watches {
        now: Option<u64>,
    },
    /// The kernel's for each user: instances of inotify, and as it stands.
    Instances {
        now: Option<u64>,
    },
    Kernel(Errno),
}

impl Limit {
    /// What an error of `inotify_init` means.
    pub(crate) fn of_init(error: Errno) -> Limit {
        match error {
            Errno::EMFILE => Limit::Instances { now: setting("max_user_instances") },
            error => Limit::Kernel(error),
        }
    }

    /// What an error of `inotify_add_watch` means.
    pub(crate) fn of_add(error: Errno) -> Limit {
        match error {
            Errno::ENOSPC => Limit::Watches { now: setting("max_user_watches") },
            error => Limit::Kernel(error),
        }
    }
}

/// As it stands, where `/proc` tells.
fn setting(name: &str) -> Option<u64> {
    std::fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok()?.trim().parse().ok()
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kernels = |name: &str, now: &Option<u64>, least: u64| {
            let is = now.map(|now| format!(" is {now}")).unwrap_or_default();
            let more = now.unwrap_or(0).saturating_mul(4).max(least);
            write!(
                f,
                "the kernel's bound for this user is reached (fs.inotify.{name}{is}); sudo sysctl fs.inotify.{name}={more} would do"
            )
        };
        match self {
            Limit::Folders => write!(f, "more than {MAX_FOLDERS} folders are not watched"),
            Limit::Watches { now } => kernels("max_user_watches", now, 65_536),
            Limit::Instances { now } => kernels("max_user_instances", now, 1024),
            Limit::Kernel(error) => write!(f, "{error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_limits_are_named_with_what_to_type() {
        for (limit, words) in [
            (
                Limit::Watches { now: Some(8192) },
                "(fs.inotify.max_user_watches is 8192); sudo sysctl fs.inotify.max_user_watches=65536 would do",
            ),
            (
                Limit::Instances { now: Some(512) },
                "(fs.inotify.max_user_instances is 512); sudo sysctl fs.inotify.max_user_instances=2048 would do",
            ),
            (Limit::Watches { now: None }, "(fs.inotify.max_user_watches); sudo sysctl"),
        ] {
            assert!(limit.to_string().contains(words), "{limit}");
        }
        let told = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").ok();
        assert_eq!(setting("max_user_watches"), told.and_then(|text| text.trim().parse().ok()));
        assert_eq!(setting("no_such_setting"), None);
        assert_eq!(Limit::of_init(Errno::ENOMEM), Limit::Kernel(Errno::ENOMEM));
        assert_eq!(Limit::of_add(Errno::EMFILE), Limit::Kernel(Errno::EMFILE));
        assert!(matches!(Limit::of_init(Errno::EMFILE), Limit::Instances { .. }));
        assert!(matches!(Limit::of_add(Errno::ENOSPC), Limit::Watches { .. }));
    }
}
