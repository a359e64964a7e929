//! Bun and Node.

use super::checks::{App, Exceptions, app};
use super::fixture::{bun, node};

#[test]
fn bun_serves_a_function() {
    app("fetch", bun(&[])).check();
}

#[test]
fn bun_serves_hono() {
    App { exceptions: Exceptions::Framework, ..app("hono", bun(&["hono"])) }.check();
}

#[test]
fn bun_serves_elysia() {
    App { exceptions: Exceptions::Framework, breaks: false, ..app("elysia", bun(&["elysia"])) }.check();
}

#[test]
fn node_serves_a_function() {
    app("fetch", node(&[])).check();
}

#[test]
fn node_serves_itty_router() {
    app("itty", node(&["itty-router"])).check();
}

// Node's own parser, which these run over, refuses raw paths.

#[test]
fn node_serves_a_function_of_req_and_res() {
    App { entry: Some("handler.mjs"), raw_paths: false, ..app("node-http", node(&[])) }.check();
}

#[test]
fn node_serves_express() {
    App { raw_paths: false, ..app("express", node(&["express"])) }.check();
}

#[test]
fn node_serves_koa() {
    App { exceptions: Exceptions::Framework, raw_paths: false, ..app("koa", node(&["koa"])) }.check();
}
