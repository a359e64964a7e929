//! What operators see: the status table, drawn once or again and again, metrics, and complaints that help.

#[path = "support/load.rs"]
mod load;
mod support;

#[path = "operators/complaints.rs"]
mod complaints;
#[path = "operators/exposition.rs"]
mod exposition;
#[path = "operators/failures.rs"]
mod failures;
#[path = "operators/log_file.rs"]
mod log_file;
#[path = "operators/metrics.rs"]
mod metrics;
#[path = "operators/status.rs"]
mod status;
#[path = "operators/verbs.rs"]
mod verbs;
#[path = "operators/watch.rs"]
mod watch;

use support::{Client, Server};

/// A client whose request a worker is busy with, until the worker has slept: longer than any test needs.
fn busy(server: &mut Server) -> Client {
    busy_with(server, "/sleep?ms=600000")
}

fn busy_with(server: &mut Server, target: &str) -> Client {
    let mut client = server.client();
    client.send_request("GET", target, "", b"");
    server.wait_until("the worker is busy", |server| {
        load::workers(server).iter().any(|worker| worker.state == "busy")
    });
    client
}
