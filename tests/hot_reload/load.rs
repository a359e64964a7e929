//! Edits under load cost no request.

use super::language::{ASGI, BUN, COMMONJS, EditedApp, Language, NODE, RUBY, WSGI, ask, with};
use super::support::{Client, Server, comes_true, wait_until};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

const EDITS: u32 = 20;
const BETWEEN_EDITS: Duration = Duration::from_millis(150);
const CLIENTS: usize = 4;

/// Asks on one connection until all is over; anything but a 200 is told.
fn ask_on(address: SocketAddr, is_over: &AtomicBool, context: &AtomicU32) -> Option<String> {
    let mut client = Client::connect(address);
    while !is_over.load(Relaxed) {
        let response = client.get("/");
        if response.status != 200 {
            return Some(format!("{} {}", response.status, response.text()));
        }
        context.fetch_add(1, Relaxed);
    }
    None
}

/// In place and by renaming, in turn.
fn edit_often(app: &EditedApp, language: &Language, has_failed: &AtomicBool) {
    for number in 0..EDITS {
        let source = language.source(&format!("edit{number}"));
        if number % 2 == 0 {
            app.edit(&source)
        } else {
            app.replace(&source)
        }
        comes_true(BETWEEN_EDITS, || has_failed.load(Relaxed));
    }
}

fn loses_nothing(language: &Language, app: &EditedApp) {
    let mut server: Server = app.builder(&["--hot-reload=module", "w:2"]).start();
    server.wait_for_workers(2);
    let (is_over, has_failed, context) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU32::new(0));
    let address = server.address();
    let failures: Vec<String> = thread::scope(|scope| {
        let ask = || {
            let failure = ask_on(address, &is_over, &context);
            has_failed.fetch_or(failure.is_some(), Relaxed);
            failure
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
        edit_often(app, language, &has_failed);
        is_over.store(true, Relaxed);
        clients
            .into_iter()
            .filter_map(|client| client.join().expect("a client that does not panic"))
            .collect()
    });
    assert!(failures.is_empty(), "{failures:?}\n{}", server.stderr_text());
    assert!(context.load(Relaxed) > 0);
    let last = format!("edit{}", EDITS - 1);
    wait_until("the last edit", || ask(&server).phrase == last);
}

#[test]
fn edits_under_load_cost_no_request_under_bun() {
    with(&[&BUN], loses_nothing);
}

#[test]
fn edits_under_load_cost_no_request_under_node() {
    with(&[&NODE, &COMMONJS], loses_nothing);
}

#[test]
fn edits_under_load_cost_no_request_under_python() {
    with(&[&WSGI, &ASGI], loses_nothing);
}

#[test]
fn edits_under_load_cost_no_request_under_ruby() {
    with(&[&RUBY], loses_nothing);
}
