//! Any bytes of a client's, cut at any place.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rip_server_fuzz::{check_request_head, read_alike};

fuzz_target!(|input: (u16, bool, &[u8])| {
    let (at, is_trusted, bytes) = input;
    let (before, behind) = bytes.split_at(bytes.len().min(at.into()));
    read_alike(bytes, &[before, behind]);
    check_request_head(bytes, is_trusted);
});
