//! Servers that know of no Rip Server, started as commands.

use super::checks::{App, Exceptions, Leavers, app};
use super::fixture::{Fixture, Needs, node, python, ruby};

#[test]
fn uvicorn_serves_as_a_command() {
    App {
        needs: Needs { programs: &["uvicorn"], ..python(&["uvicorn"]) },
        command: &["uvicorn", "--no-access-log", "--uds", "{socket}", "asgi:app"],
        exceptions: Exceptions::Framework,
        raw_paths: false,
        ..app("asgi", python(&[]))
    }
    .check();
}

#[test]
fn gunicorn_serves_as_a_command() {
    App {
        needs: Needs { programs: &["gunicorn"], ..python(&["gunicorn"]) },
        command: &["gunicorn", "-b", "unix:{socket}", "wsgi:application"],
        exceptions: Exceptions::Framework,
        raw_paths: false,
        leavers: Leavers::Replaced,
        ..app("wsgi", python(&[]))
    }
    .check();
}

#[test]
fn puma_serves_as_a_command() {
    App {
        needs: Needs { programs: &["ruby", "puma"], ..ruby(&["rack", "puma"]) },
        command: &["puma", "-q", "-e", "production", "-b", "unix://{socket}"],
        exceptions: Exceptions::ForwardedFields,
        leavers: Leavers::Replaced,
        ..app("rack", ruby(&[]))
    }
    .check();
}

#[test]
fn a_node_server_serves_as_a_command() {
    App {
        command: &["node", "server.mjs"],
        exceptions: Exceptions::Framework,
        raw_paths: false,
        ..app("node-http", node(&[]))
    }
    .check();
}

#[test]
fn a_command_may_listen_on_a_port_of_the_servers_choice() {
    App {
        command: &["node", "server.mjs", "{port}"],
        exceptions: Exceptions::Framework,
        raw_paths: false,
        ..app("node-http", node(&[]))
    }
    .check();
}

#[test]
fn a_command_may_listen_on_the_ports_ipv6_loopback_alone() {
    let Some(fixture) = Fixture::copy_of(&node(&[]), "tests/apps/node-http") else { return };
    let server = fixture.server(None).args(["w:2", "--", "node", "server.mjs", "{port}", "::1"]).start();
    assert_eq!(server.client().get("/pid").status, 200);
}
