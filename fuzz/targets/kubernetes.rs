//! Answers of anybody who says he is an API server: never a panic, every refusal says why, and what is accepted reads
//! back the same as a manifest.
#![no_main]

#[path = "../reading.rs"]
mod reading;

use cluster::Kind;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for kind in Kind::ALL {
        reading::check(store::read_list(kind, bytes));
    }
});
