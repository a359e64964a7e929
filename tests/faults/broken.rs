//! Connections that break on either side: the request that is hit is answered, refused or cut, and no other.

use crate::support::Faults;
use crate::workload::{Expect, Outcome, WORKERS, assert_sound, run, run_under, server};
use crate::{can_inject, metric};

fn play(test: &str, plan: &str) -> Option<(Outcome, Faults)> {
    can_inject(test).then(|| run_under(plan, Expect::RightOrRefused))
}

#[test]
fn a_client_whose_connection_breaks_is_cut_and_no_other() {
    let test = "a_client_whose_connection_breaks_is_cut_and_no_other";
    let Some((outcome, _)) = play(test, "client.read=ECONNRESET%15 client.write=EPIPE%20") else { return };
    assert!(!outcome.lost.is_empty() && !outcome.right.is_empty(), "{outcome:?}");
    assert_eq!(outcome.refused, [], "a client's trouble is not the app's");
}

#[test]
fn a_worker_whose_connection_breaks_at_a_read_costs_its_request_at_most() {
    let test = "a_worker_whose_connection_breaks_at_a_read_costs_its_request_at_most";
    let Some((outcome, _)) = play(test, "worker.read=ECONNRESET%12") else { return };
    assert!(!outcome.right.is_empty(), "{outcome:?}");
}

#[test]
fn a_worker_whose_connection_breaks_at_a_write_costs_its_request_at_most() {
    let test = "a_worker_whose_connection_breaks_at_a_write_costs_its_request_at_most";
    let Some((outcome, _)) = play(test, "worker.write=EPIPE%8") else { return };
    assert!(!outcome.right.is_empty(), "{outcome:?}");
}

#[test]
fn breaks_on_both_sides_among_short_counts_and_signals_mix_nothing_up() {
    play(
        "breaks_on_both_sides_among_short_counts_and_signals_mix_nothing_up",
        "client.read=ECONNRESET%40 client.write=EPIPE%50 worker.read=ECONNRESET%40 worker.write=EPIPE%20 \
         client.read=short~3 client.write=short~3 worker.read=short~3 worker.write=short~3 client.read=EINTR~5 \
         worker.write=EINTR~5 worker.read=EAGAIN~5 client.write=EAGAIN~5",
    );
}

#[test]
fn a_worker_whose_join_is_lost_is_started_again() {
    if !can_inject("a_worker_whose_join_is_lost_is_started_again") {
        return;
    }
    let faults = Faults::new("control.read=ECONNRESET@1 control.write=EPIPE@1");
    let mut server = server().start_under(&faults);
    server.wait_for_workers(WORKERS as u64);
    faults.assert_all_struck();
    run(&mut server, Expect::Right, 0);
    let ended = |reason: &str| metric(&server, &format!("rip_worker_restarts_total{{reason=\"{reason}\"}}"));
    // One was never heard, the other had joined and never heard of it.
    assert_eq!((ended("boot_failure"), ended("crash")), (1.0, 1.0));
    assert_sound(&mut server);
}
