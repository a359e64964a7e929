//! Bun and Node.

use super::checks::{App, Exceptions, app};
use super::fixture::{bun, node};

#[test]
fn bun_serves_a_function() {
    app("fetch", bun(&[])).check();
}

#[test]
fn bun_serves_hono() {
    App { exceptions: Exceptions::Framework, breaks: false, ..app("hono", bun(&["hono"])) }.check();
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

#[test]
fn node_serves_a_function_of_req_and_res() {
    App { entry: Some("handler.mjs"), ..app("node-http", node(&[])) }.check();
}

#[test]
fn node_serves_express() {
    app("express", node(&["express"])).check();
}

#[test]
fn node_serves_koa() {
    App { exceptions: Exceptions::Framework, ..app("koa", node(&["koa"])) }.check();
}
