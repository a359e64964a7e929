//! Listening sockets that are given to the server: by systemd, as sd_listen_fds(3) has it.

use super::{Listen, Usage};
use crate::handover;
use std::os::fd::RawFd;

/// Where the descriptors begin.
const FIRST: RawFd = 3;
/// More sockets than that are no unit's, but a mistake.
const MAX_SOCKETS: RawFd = 1024;

/// What the environment says of them.
pub const VARIABLES: [&str; 4] = ["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// The sockets by what is served on them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    pub http: Vec<Listen>,
    pub metrics: Vec<Listen>,
    pub page: Vec<Listen>,
}

/// The sockets that are given to this process. `FileDescriptorName=metrics` is the metrics', `page` the operators'
/// page; those of any other name are listened on for requests.
///
/// # Errors
/// A number that is none.
pub(super) fn sockets(environment: &dyn Fn(&str) -> Option<String>, pid: u32) -> Result<Given, Usage> {
    let mut given = Given::default();
    if !are_for(environment, pid) {
        return Ok(given);
    }
    let text = environment("LISTEN_FDS").unwrap_or_default();
    let count = text.parse().ok().filter(|count| (0..=MAX_SOCKETS).contains(count));
    let count = count.ok_or_else(|| {
        Usage(format!("LISTEN_FDS takes a number from 0 to {MAX_SOCKETS}, as systemd sets it, not '{text}'"))
    })?;
    let names = environment("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    for fd in FIRST..FIRST + count {
        let at = Listen::Descriptor(fd);
        match names.next() {
            Some("metrics") => given.metrics.push(at),
            Some("page") => given.page.push(at),
            Some(_) | None => given.http.push(at),
        }
    }
    Ok(given)
}

/// What was meant for another process may have been inherited; a server that follows one is given that one's.
fn are_for(environment: &dyn Fn(&str) -> Option<String>, pid: u32) -> bool {
    let meant = environment("LISTEN_PID").unwrap_or_default();
    meant == pid.to_string() || (meant == HANDED_OVER && environment(handover::VARIABLE).is_some())
}

/// In the place of a pid: the server before this one hands over what it was given.
const HANDED_OVER: &str = "handed-over";

/// What a server that is to follow this one is told of given sockets.
pub(crate) fn for_successor(
    environment: &dyn Fn(&str) -> Option<String>,
    pid: u32,
) -> Vec<(&'static str, Option<&'static str>)> {
    match are_for(environment, pid) {
        true => vec![("LISTEN_PID", Some(HANDED_OVER))],
        false => VARIABLES.map(|name| (name, None)).to_vec(),
    }
}

/// Whether sockets for requests are given to this process.
pub(super) fn has_http(environment: &dyn Fn(&str) -> Option<String>, pid: u32) -> bool {
    sockets(environment, pid).is_ok_and(|given| !given.http.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(variables: &[(&str, &str)]) -> Result<Given, Usage> {
        sockets(&environment(variables), 42)
    }

    #[test]
    fn sockets_are_told_apart_by_their_names() {
        let named = given(&[
            ("LISTEN_PID", "42"),
            ("LISTEN_FDS", "5"),
            ("LISTEN_FDNAMES", "http:metrics:shop.socket:page"),
        ]);
        let http = [3, 5, 7].map(Listen::Descriptor).to_vec();
        let [metrics, page] = [4, 6].map(|fd| vec![Listen::Descriptor(fd)]);
        assert_eq!(named, Ok(Given { http, metrics, page }));
    }

    #[test]
    fn what_is_meant_for_another_process_is_left_alone() {
        for other in [&[("LISTEN_FDS", "1")][..], &[("LISTEN_PID", "41"), ("LISTEN_FDS", "x")]] {
            assert_eq!(given(other), Ok(Given::default()));
        }
    }

    #[test]
    fn what_cannot_be_meant_is_a_complaint() {
        for count in ["", "-1", "1e9", "1025"] {
            let bad = given(&[("LISTEN_PID", "42"), ("LISTEN_FDS", count)]);
            assert!(matches!(bad, Err(Usage(text)) if text.contains("LISTEN_FDS")), "{count}");
        }
    }

    fn environment<'a>(variables: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn a_successor_is_given_what_this_server_was_given_and_nothing_else() {
        let own = [("LISTEN_PID", "42"), ("LISTEN_FDS", "1")];
        let successors = for_successor(&environment(&own), 42);
        assert_eq!(successors, [("LISTEN_PID", Some("handed-over"))]);
        let handed_over = [("LISTEN_PID", "handed-over"), ("LISTEN_FDS", "1"), (handover::VARIABLE, "7")];
        assert!(has_http(&environment(&handed_over), 43));
        assert_eq!(for_successor(&environment(&handed_over), 43), successors);
        // Without a server before it those words are another process's.
        for others in
            [&handed_over[..2], &[("LISTEN_PID", "41"), ("LISTEN_FDS", "1"), (handover::VARIABLE, "7")]]
        {
            assert!(!has_http(&environment(others), 43));
            let taken_away: Vec<_> = VARIABLES.map(|name| (name, None)).to_vec();
            assert_eq!(for_successor(&environment(others), 43), taken_away);
        }
    }

    #[test]
    fn a_unit_has_as_many_sockets_as_it_says() {
        for (count, sockets) in [("0", 0), ("1", 1), ("1024", 1024)] {
            let given = given(&[("LISTEN_PID", "42"), ("LISTEN_FDS", count)]).map(|given| given.http.len());
            assert_eq!(given, Ok(sockets));
        }
        assert!(!has_http(&environment(&[("LISTEN_PID", "42"), ("LISTEN_FDS", "0")]), 42));
        let metrics = [("LISTEN_PID", "42"), ("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "metrics")];
        assert!(!has_http(&environment(&metrics), 42));
    }
}
