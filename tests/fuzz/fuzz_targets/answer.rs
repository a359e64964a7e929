//! Any bytes of a worker's, cut at any place, for any kind of request.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rip_server::internals::http::Version;
use rip_server::internals::http::response::RequestContext;
use rip_server_fuzz::{check_answer_head, pass_alike};

fuzz_target!(|input: (u16, [bool; 4], &[u8])| {
    let (at, [is_head, wants_websocket, is_old, keep_alive], bytes) = input;
    let version = if is_old { Version::Http10 } else { Version::Http11 };
    let wants_websocket = wants_websocket && !is_head && !is_old;
    let context = RequestContext { is_head, wants_websocket, version, keep_alive };
    let (before, behind) = bytes.split_at(bytes.len().min(at.into()));
    pass_alike(bytes, &[before, behind], context);
    check_answer_head(bytes, context);
});
