//! Tunnels after a 101, and what the server tells workers about the client.

mod support;
mod tools;

#[path = "upgrades/forwarded.rs"]
mod forwarded;
#[path = "upgrades/proxy_header.rs"]
mod proxy_header;
#[path = "upgrades/tunnels.rs"]
mod tunnels;
