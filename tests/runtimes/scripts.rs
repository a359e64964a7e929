//! CGI, and executables that speak the worker protocol.

use super::checks::{App, Exceptions, app};
use super::fixture::{Needs, node};

const NOTHING: Needs = Needs { programs: &[], npm: &[], python: &[], gems: &[] };

#[test]
fn a_cgi_script_serves() {
    App { exceptions: Exceptions::Script, breaks: false, ..app("cgi", NOTHING) }.check();
}

#[test]
fn an_executable_that_speaks_the_protocol_serves() {
    App { entry: Some("index"), exceptions: Exceptions::Passed, ..app("node-http", node(&[])) }.check();
}
