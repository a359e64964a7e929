//! Any chunked body, cut at any place.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rip_server_fuzz::decode_alike;

fuzz_target!(|input: (u16, &[u8])| {
    let (at, bytes) = input;
    let (before, behind) = bytes.split_at(bytes.len().min(at.into()));
    decode_alike(bytes, &[before, behind]);
});
