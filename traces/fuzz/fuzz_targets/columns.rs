//! Any bytes as the streams of an event chunk, past the checksums that protect them in a file.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmtape_traces::fuzz::columns(bytes));
