//! Results of anybody's: never a panic, and a result once decoded is the same after every round trip.
#![no_main]

use cni::{AddResult, Error, Version};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(error) = Error::decode(bytes) {
        let printed = error.to_json(Version::LATEST).to_bytes();
        assert_eq!(Error::decode(&printed), Some(error));
    }
    for otherwise in [Version::V0_2_0, Version::LATEST] {
        let Ok(result) = AddResult::decode(bytes, otherwise) else { continue };
        let newest = result.encode(Version::LATEST).map(|bytes| AddResult::decode(&bytes, Version::LATEST));
        assert_eq!(newest, Ok(Ok(result.clone())));
        for version in Version::ALL {
            let Ok(encoded) = result.encode(version) else { continue };
            let stable = AddResult::decode(&encoded, version).and_then(|again| again.encode(version));
            assert_eq!(stable.as_ref(), Ok(&encoded), "{version}");
        }
    }
});
