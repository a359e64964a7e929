//! Faults that nobody may see: every answer is right.

use crate::can_inject;
use crate::workload::{Expect, run_under};

fn assert_unseen(test: &str, plan: &str) {
    if can_inject(test) {
        run_under(plan, Expect::Right);
    }
}

#[test]
fn interrupted_calls_are_made_again() {
    assert_unseen(
        "interrupted_calls_are_made_again",
        "client.read=EINTR%2 client.write=EINTR%2 worker.read=EINTR%2 worker.write=EINTR%2 control.read=EINTR%2 \
         control.write=EINTR%2 spool.write=EINTR%2 stdout.write=EINTR@1 client.accept=EINTR%2 \
         control.accept=EINTR%2 any.wait=EINTR%2",
    );
}

#[test]
fn bytes_that_come_later_are_waited_for() {
    assert_unseen(
        "bytes_that_come_later_are_waited_for",
        "client.read=EAGAIN~3 client.write=EAGAIN~3 worker.read=EAGAIN~3 worker.write=EAGAIN~3 \
         control.read=EAGAIN%2 control.write=EAGAIN%2 stdout.write=EAGAIN@1 client.accept=EAGAIN%2 \
         control.accept=EAGAIN%2",
    );
}

#[test]
fn short_counts_are_gone_on_from() {
    assert_unseen(
        "short_counts_are_gone_on_from",
        "client.read=short~2 client.write=short~2 worker.read=short~2 worker.write=short~2 control.read=short~2 \
         control.write=short~2 spool.write=short~2 stdout.write=short@1",
    );
}

#[test]
fn single_bytes_make_a_whole() {
    assert_unseen(
        "single_bytes_make_a_whole",
        "client.read=one%2 client.write=one%2 worker.read=one%2 worker.write=one%2 control.read=one%2 \
         control.write=one%2 spool.write=one%2 stdout.write=one@1",
    );
}

#[test]
fn all_of_that_at_once_is_no_more() {
    assert_unseen(
        "all_of_that_at_once_is_no_more",
        "client.read=EINTR~7 client.read=EAGAIN~7 client.read=short~7 client.read=one~7 \
         client.write=EINTR~7 client.write=EAGAIN~7 client.write=short~7 client.write=one~7 \
         worker.read=EINTR~7 worker.read=EAGAIN~7 worker.read=short~7 worker.read=one~7 \
         worker.write=EINTR~7 worker.write=EAGAIN~7 worker.write=short~7 worker.write=one~7 \
         spool.write=EINTR~7 spool.write=short~7 stdout.write=EAGAIN@1 stdout.write=short@1 any.wait=EINTR~3",
    );
}

#[test]
fn a_connection_that_was_gone_before_it_was_taken_is_no_matter() {
    assert_unseen(
        "a_connection_that_was_gone_before_it_was_taken_is_no_matter",
        "client.accept=ECONNABORTED%2 control.accept=ECONNABORTED%2",
    );
}
