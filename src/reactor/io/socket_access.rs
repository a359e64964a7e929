//! Who may connect to a Unix listener: `--socket-mode` and `--socket-group`.

use crate::config::Config;
use crate::paths::shown;
use nix::errno::Errno;
use nix::unistd::{Gid, Group, chown};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The owner and the group may connect: what a group is named for.
const MODE_OF_A_GROUP: u32 = 0o660;

/// Where names of groups are looked up.
const GROUPS: &str = "/etc/group";

/// What is set on the file of a socket before anybody can connect to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SocketAccess {
    mode: u32,
    group: Option<Gid>,
}

impl SocketAccess {
    /// `None`: as the umask says.
    ///
    /// # Errors
    /// There is no such group.
    pub(crate) fn find(config: &Config) -> Result<Option<Self>, String> {
        let group = config.socket_group.as_deref().map(find_group).transpose()?;
        let mode = config.socket_mode.or(group.map(|_| MODE_OF_A_GROUP));
        Ok(mode.map(|mode| SocketAccess { mode, group }))
    }

    /// For a socket that is not bound yet: only this user may connect to it until [`SocketAccess::open`].
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn close(fd: OwnedFd) -> io::Result<OwnedFd> {
        // Linux takes the mode of the file from that of the unbound socket.
        let socket = File::from(fd);
        socket.set_permissions(Permissions::from_mode(0o600))?;
        Ok(socket.into())
    }

    /// Lets those in who may connect.
    ///
    /// # Errors
    /// The kernel's; in words where this user may not give a file to that group.
    pub(super) fn open(self, path: &Path) -> io::Result<()> {
        if let Some(group) = self.group {
            chown(path, None, Some(group)).map_err(|error| match error {
                Errno::EPERM => io::Error::other(format!(
                    "user {} is not in group {group}, and may not give it that; root, or a member of it, may",
                    nix::unistd::geteuid()
                )),
                error => error.into(),
            })?;
        }
        std::fs::set_permissions(path, Permissions::from_mode(self.mode))
    }
}

/// By number, which needs no file of groups, or by name.
fn find_group(group: &str) -> Result<Gid, String> {
    if let Ok(number) = group.parse() {
        return Ok(Gid::from_raw(number));
    }
    let number = "a number, as in --socket-group=33, would do";
    let found = Group::from_name(group);
    let group = shown(group);
    match found {
        Ok(Some(found)) => Ok(found.gid),
        Ok(None) | Err(_) if !Path::new(GROUPS).exists() => Err(format!(
            "--socket-group: there is no {GROUPS} that could tell the number of '{group}'; {number}"
        )),
        Ok(None) | Err(_) => Err(format!("--socket-group: there is no group '{group}'; {number}")),
    }
}
