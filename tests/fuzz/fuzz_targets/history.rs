//! Any bytes, read as a history of the whole server between scripted clients, workers and operators.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rip_server::internals::simulation::play_chosen;

fuzz_target!(|bytes: &[u8]| play_chosen(bytes));
