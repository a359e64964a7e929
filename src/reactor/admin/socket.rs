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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Command};
    use crate::reactor::source::StartError;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    fn names(dir: &Path) -> Names {
        let dir = format!("--socket-dir={}", dir.display());
        let line = ["w:1", "http:0", &dir].map(Into::into);
        match config::read(line.into(), &|_| None, true) {
            Ok(Command::Serve(config)) => Names::new(&config.place, "shop"),
            other => panic!("{other:?}"),
        }
    }

    fn source(path: &str) -> Source {
        Source::Path { path: path.into(), wanted: crate::app::Wanted::Entry }
    }

    fn text_of<T>(result: Result<T, StartError>) -> String {
        match result {
            Ok(_) => panic!("it was made"),
            Err(StartError::Trouble(text) | StartError::Usage(text)) => text,
        }
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777
    }

    /// Answers so many questions with that body, or breaks off.
    fn server(path: PathBuf, questions: usize, body: Option<&'static str>) -> std::thread::JoinHandle<()> {
        let listener = UnixListener::bind(path).expect("a socket");
        std::thread::spawn(move || {
            let mut left = questions;
            while left > 0 {
                let (mut stream, _) = listener.accept().expect("somebody");
                let read = stream.read(&mut [0; 1000]);
                // Whoever looks whether it is alive says nothing.
                if !matches!(read, Ok(1..)) {
                    continue;
                }
                left -= 1;
                if let Some(body) = body {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    stream.write_all(format!("{head}{body}").as_bytes()).expect("said");
                }
            }
        })
    }

    #[test]
    fn a_control_socket_is_for_this_user_alone_and_goes_with_its_server() {
        let dir = tempfile::tempdir().expect("a folder");
        let names = names(dir.path());
        let poll = mio::Poll::new().expect("epoll");
        let shared = bind(&names, &source("/srv/shop"), poll.registry()).expect("free");
        assert_eq!(mode(&names.control), 0o600);
        let own = bind_own(&names, "5e55", poll.registry()).expect("free");
        assert_eq!(mode(&names.own_control("5e55")), 0o600);
        drop((shared, own));
        assert!(!names.control.exists() && !names.own_control("5e55").exists());
    }

    #[test]
    fn the_next_server_s_socket_takes_the_place_of_the_one_before() {
        let dir = tempfile::tempdir().expect("a folder");
        let names = names(dir.path());
        let poll = mio::Poll::new().expect("epoll");
        std::fs::write(&names.control, "").expect("the old one");
        let taken = take_over(&names, poll.registry()).expect("taken over");
        assert_eq!(mode(&names.control), 0o600);
        assert_eq!(taken.address(), format!("unix:{}", names.control.display()));
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 1, "nothing beside it");
        let nowhere = self::names(Path::new("/nonexistent"));
        let complaint = take_over(&nowhere, poll.registry()).map(drop).expect_err("no folder");
        assert!(complaint.starts_with("the control socket '/nonexistent/."), "{complaint}");
        let complaint = text_of(bind(&nowhere, &source("/srv/shop"), poll.registry()));
        assert!(complaint.contains("cannot be made: No such file"), "{complaint}");
        assert!(text_of(bind_own(&nowhere, "5e55", poll.registry())).contains("cannot be made"));
    }

    #[test]
    fn a_live_server_of_that_name_is_named_with_what_would_end_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let names = names(dir.path());
        let poll = mio::Poll::new().expect("epoll");
        let complaint = |path: &str, body: Option<&'static str>, questions: usize| {
            let server = server(names.control.clone(), questions, body);
            let complaint = text_of(bind(&names, &source(path), poll.registry()));
            server.join().expect("it has answered");
            std::fs::remove_file(&names.control).expect("removed");
            complaint
        };
        let flags = &names.flags;
        let status = r#"{"pid":42,"path":"/srv/shop"}"#;
        assert_eq!(
            complaint("/srv/shop", Some(status), 1),
            format!("'shop' is served already (pid 42); rip-server stop /srv/shop{flags} would end that")
        );
        assert_eq!(
            complaint("/srv/other", Some(status), 1),
            "another app 'shop' is served already, from '/srv/shop' (pid 42); --variant=<name> tells the two apart"
        );
        let socket = names.control.display();
        let silent = format!(
            "'shop' is served already, by a server that does not answer on '{socket}'; --variant=<name> would start another one beside it"
        );
        assert_eq!(complaint("/srv/shop", Some("no JSON"), 1), silent);
        assert_eq!(complaint("/srv/shop", None, 3), silent, "what breaks off is looked at again");
    }

    #[test]
    fn a_program_with_the_server_inside_is_stopped_by_its_own_verb() {
        let names = names(Path::new("/run/shop"));
        let source = Source::Embedded { program: "/srv/shop".into(), dir: "/srv".into() };
        let body = r#"{"path":"/srv/shop"}"#.to_owned();
        let answer = crate::client::Answer { status: 200, body };
        let flags = &names.flags;
        assert_eq!(
            already_running(&names, &source, Some(answer), None),
            format!("'shop' is served already; /srv/shop stop{flags} would end that")
        );
        let complaint = already_running(&names, &source, None, Some(7));
        assert!(complaint.starts_with("'shop' is served already, by a server (pid 7) that does not answer"));
    }

    #[test]
    fn a_name_that_is_held_is_complained_of() {
        let dir = tempfile::tempdir().expect("a folder");
        let names = names(dir.path());
        let lock = take_name(&names, &source("/srv/shop")).expect("free");
        assert!(lock.descriptor().is_some());
        let server = server(names.control.clone(), 1, Some(r#"{"pid":42,"path":"/srv/shop"}"#));
        let complaint = text_of(take_name(&names, &source("/srv/shop")));
        assert!(complaint.starts_with("'shop' is served already (pid 42)"), "{complaint}");
        server.join().expect("it has answered");
        let complaint = text_of(take_name(&self::names(Path::new("/nonexistent")), &source("/srv/shop")));
        assert!(complaint.contains("cannot be locked: No such file"), "{complaint}");
    }
}
