//! The operators' page: who gets it, what it costs, and what it shows.

mod support;

#[path = "page/browser.rs"]
mod browser;
#[path = "page/chromium.rs"]
mod chromium;
#[path = "page/listener.rs"]
mod listener;

use std::net::SocketAddr;
use support::Server;

/// Where the page is, as the line at the start says.
fn page_address(server: &Server) -> SocketAddr {
    let lines = server.stdout_lines();
    let first = lines.first().expect("the line at the start");
    let at = first.split(' ').find_map(|phrase| phrase.strip_prefix("page=http://")?.strip_suffix('/'));
    at.and_then(|at| at.parse().ok()).unwrap_or_else(|| panic!("no page= in: {first}"))
}
