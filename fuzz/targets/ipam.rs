//! The `ipam` section of anybody's: never a panic, and an accepted pool gives out only what it may.
#![no_main]

use cni::Config;
use libfuzzer_sys::fuzz_target;
use plugins::ipam::host_local::{Settings, parse_resolv_conf};

fuzz_target!(|bytes: &[u8]| {
    let _ = parse_resolv_conf(&String::from_utf8_lossy(bytes));
    let Ok(config) = Config::parse(bytes) else { return };
    let Ok(settings) = Settings::of(&config) else { return };
    let pool = &settings.pool;
    for (index, set) in pool.sets().iter().enumerate() {
        let first = pool.candidates(index, None).next();
        for ip in first.into_iter().chain(pool.candidates(index, first).take(300)) {
            assert!(set.range_of(ip).is_some(), "{ip} is not in {set}");
            assert!(!pool.is_gateway(ip), "{ip} is a gateway");
            assert_eq!(ip.is_ipv4(), set.is_ipv4());
        }
    }
});
