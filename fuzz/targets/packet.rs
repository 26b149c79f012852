//! Packets of any pod's and of anybody on the underlay: never a panic, what is cut carries what was whole, and what is put
//! together loses nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    assert!(tunnel::examine(bytes), "packets changed on their way through");
});
