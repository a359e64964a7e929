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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Command};
    use crate::reactor::io::unix_socket::listen_at;

    fn config(flags: &[&str]) -> Config {
        let line = ["w:1", "http:unix:/nonexistent/socket"].iter().chain(flags).map(Into::into).collect();
        match config::read(line, &|_| None, true) {
            Ok(Command::Serve(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777
    }

    #[test]
    fn access_is_what_the_flags_say_and_a_group_may_connect_unless_they_say_otherwise() {
        let find = |flags: &[&str]| SocketAccess::find(&config(flags));
        let access =
            |mode, group: Option<u32>| Ok(Some(SocketAccess { mode, group: group.map(Gid::from_raw) }));
        assert_eq!(find(&[]), Ok(None));
        assert_eq!(find(&["--socket-mode=600"]), access(0o600, None));
        assert_eq!(find(&["--socket-group=33"]), access(0o660, Some(33)));
        assert_eq!(find(&["--socket-mode=666", "--socket-group=33"]), access(0o666, Some(33)));
        if let Ok(Some(root)) = Group::from_name("root") {
            assert_eq!(find(&["--socket-group=root"]), access(0o660, Some(root.gid.as_raw())));
        }
        let error = find(&["--socket-group=no-such-group"]).expect_err("there is none");
        assert_eq!(
            error,
            "--socket-group: there is no group 'no-such-group'; a number, as in --socket-group=33, would do"
        );
    }

    #[test]
    fn a_socket_is_closed_to_others_until_it_is_opened() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("socket");
        let own_group = nix::unistd::getegid();
        let access = SocketAccess { mode: 0o642, group: Some(own_group) };
        let _listener = listen_at(&path, Some(access), 5).expect("a socket");
        assert_eq!(mode(&path), 0o642);

        use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
        use std::os::fd::AsRawFd;
        let path = dir.path().join("closed");
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).expect("a socket");
        let fd = SocketAccess::close(fd).expect("closed");
        bind(fd.as_raw_fd(), &UnixAddr::new(&path).expect("an address")).expect("bound");
        assert_eq!(mode(&path) & !0o600, 0);
    }
}
