//! Any bytes as a file of trace-cmd or perf.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmtape_traces::fuzz::trace_file(bytes));
