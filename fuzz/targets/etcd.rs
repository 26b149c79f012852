//! Lines of a watch by anybody who says he is etcd: never a panic, every refusal says why, and what is accepted reads back
//! the same as a manifest.
#![no_main]

#[path = "../reading.rs"]
mod reading;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    reading::check(store::etcd::read_watch(bytes));
});
