//! Any bytes as a tape: an error or events, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmtape_traces::fuzz::tape(bytes));
