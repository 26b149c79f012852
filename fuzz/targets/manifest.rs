//! Manifests of anybody's: never a panic, every refusal says why, and what is accepted reads back the same.
#![no_main]

#[path = "../reading.rs"]
mod reading;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| reading::check(store::read_manifest("fuzz.yaml", bytes)));
