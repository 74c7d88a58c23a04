//! Any bytes as a guest image: a loaded guest or an error, never a panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmtape_machine::fuzz::image(bytes));
