//! Any bytes as a head.
#![no_main]

#[path = "../../core/tests/http_entry/mod.rs"]
mod http_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| http_entry::head(data));
