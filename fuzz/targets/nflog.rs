//! What the kernel says of a packet that a rule told of, with a packet in it that anybody wrote: never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(logged) = kernel::nflog::parse(bytes) {
        assert!(logged.prefix.len() <= bytes.len() * 3, "a prefix out of nothing");
    }
});
