//! Packets of anybody on a pod's network: never a panic, and a message that is read is one that can be written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plugins::ipam::dhcp::v4::examine;

fuzz_target!(|bytes: &[u8]| {
    assert_ne!(examine(bytes), Some(false), "reading, writing and reading again changed the message");
});
