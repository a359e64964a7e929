//! The control socket and the server's name: both are one server's alone.

use crate::names::Names;
use crate::paths::{quoted, shown};
use crate::reactor::io::listen::{Listener, bind_unix};
use crate::reactor::io::token::Target;
use crate::reactor::socket_dir::{Locked, NameLock};
use crate::reactor::source::{Source, StartError};
use mio::{Interest, Registry};
use serde_json::Value;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A run's own control socket, and the one that verbs use, by their places among the listeners.
const OWN: Target = Target::ControlListener(0);
const SHARED: Target = Target::ControlListener(1);

/// A stale socket is removed; a live one is another server, of this app or of one with the same name.
pub(in crate::reactor) fn bind(
    names: &Names,
    source: &Source,
    registry: &Registry,
) -> Result<Listener, StartError> {
    /// A child of a server that was killed holds its sockets for as long as it takes to become a worker: what
    /// listens and breaks off without an answer is looked at again.
    const MAX_LOOKS: usize = 3;
    let mut looks = 0;
    let mut listener = loop {
        match bind_unix(&names.control, None) {
            Ok(listener) => break listener,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                looks += 1;
                let answer = crate::client::ask(&names.control, "GET", "/status", "");
                let breaks_off = answer.as_ref().is_err_and(|error| !crate::client::is_silence(error));
                if !breaks_off || looks == MAX_LOOKS {
                    return Err(StartError::Trouble(already_running(names, source, answer.ok(), None)));
                }
            }
            Err(error) => {
                let path = shown(&names.control);
                return Err(StartError::Trouble(format!(
                    "the control socket '{path}' cannot be made: {error}"
                )));
            }
        }
    };
    let _ = std::fs::set_permissions(&names.control, std::fs::Permissions::from_mode(0o600));
    registry
        .register(&mut listener, SHARED.token(), Interest::READABLE)
        .map_err(|error| StartError::Trouble(format!("the control socket: {error}")))?;
    Ok(listener)
}

/// This run's own control socket, which its workers are told of.
pub(in crate::reactor) fn bind_own(
    names: &Names,
    instance: &str,
    registry: &Registry,
) -> Result<Listener, StartError> {
    let path = names.own_control(instance);
    listen_at(&path, OWN, registry).map_err(StartError::Trouble)
}

/// The socket that verbs use, in the place of that of the server before this one: at no moment is there none.
pub(in crate::reactor) fn take_over(names: &Names, registry: &Registry) -> Result<Listener, String> {
    let aside = names.dir.join(format!(".{}", std::process::id()));
    let mut listener = listen_at(&aside, SHARED, registry)?;
    listener.move_to(&names.control).map_err(|error| {
        format!("the control socket '{}' cannot be taken over: {error}", shown(&names.control))
    })?;
    Ok(listener)
}

fn listen_at(path: &Path, target: Target, registry: &Registry) -> Result<Listener, String> {
    let trouble = |error: io::Error| format!("the control socket '{}' cannot be made: {error}", shown(path));
    let mut listener = bind_unix(path, None).map_err(trouble)?;
    let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600));
    registry.register(&mut listener, target.token(), Interest::READABLE).map_err(trouble)?;
    Ok(listener)
}

/// The app's name, for as long as the server lives.
pub(in crate::reactor) fn take_name(names: &Names, source: &Source) -> Result<NameLock, StartError> {
    NameLock::take(names).map_err(|locked| match locked {
        Locked::Held { pid, status } => StartError::Trouble(already_running(names, source, status, pid)),
        Locked::Trouble(error) => {
            StartError::Trouble(format!("'{}' cannot be locked: {error}", shown(&names.lock())))
        }
    })
}

/// Who holds the name already, by its answer to a question for its status.
fn already_running(
    names: &Names,
    source: &Source,
    answer: Option<crate::client::Answer>,
    holder: Option<i32>,
) -> String {
    let app = &names.app;
    let status: Option<Value> = answer.and_then(|answer| serde_json::from_str(&answer.body).ok());
    let Some(status) = status else {
        let socket = shown(&names.control);
        let pid = holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        return format!(
            "'{app}' is served already, by a server{pid} that does not answer on '{socket}'; --variant=<name> would start another one beside it"
        );
    };
    let pid = status["pid"].as_u64().map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    let path = Path::new(status["path"].as_str().unwrap_or("?"));
    if path != source.path() {
        return format!(
            "another app '{app}' is served already, from '{}'{pid}; --variant=<name> tells the two apart",
            shown(path)
        );
    }
    let place = &names.flags;
    let stop = match source {
        Source::Path { .. } => format!("rip-server stop {}{place}", quoted(path)),
        Source::Embedded { .. } => format!("{} stop{place}", quoted(path)),
    };
    format!("'{app}' is served already{pid}; {stop} would end that")
}
