//! Any bytes as a trace to import.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmtape_traces::fuzz::trace_text(bytes));
