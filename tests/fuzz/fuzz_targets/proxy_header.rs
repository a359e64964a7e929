//! Any bytes on a connection where a proxy says first who has connected to it, cut at any place.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rip_server_fuzz::read_behind_header_alike;

fuzz_target!(|input: (u16, &[u8])| {
    let (at, bytes) = input;
    let (before, behind) = bytes.split_at(bytes.len().min(at.into()));
    read_behind_header_alike(bytes, &[before, behind]);
});
