//! Requests that stay in the test worker until the test lets them go, so that no step is a race with another's length.

use super::client::Client;
use super::server::Server;
use tempfile::TempDir;

/// One gate for any number of requests (`/hold` of `tests/worker/app.rs`).
#[derive(Debug)]
pub struct Hold(TempDir);

impl Hold {
    pub fn new() -> Hold {
        Hold(tempfile::Builder::new().prefix("rip").tempdir().expect("a temporary folder"))
    }

    /// What is answered with `held` from [`Hold::let_go`] on; its path is `/hold`.
    pub fn target(&self) -> String {
        format!("/hold?until={}/go", self.0.path().display())
    }

    /// A stream of events that ends then.
    pub fn events(&self) -> String {
        format!("/events?until={}/go", self.0.path().display())
    }

    /// A client that has asked for it.
    pub fn ask(&self, server: &Server) -> Client {
        let mut client = server.client();
        client.send_request("GET", &self.target(), "", b"");
        client
    }

    pub fn let_go(&self) {
        std::fs::write(self.0.path().join("go"), "").expect("a file can be written");
    }
}
