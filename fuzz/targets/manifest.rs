//! Manifests of anybody's: never a panic, every refusal says why, and what is accepted reads back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match store::read_manifest("fuzz.yaml", bytes) {
        Ok(objects) => {
            for object in objects {
                let text = store::write_manifest(&object);
                let again = store::read_manifest("again.json", &text);
                assert_eq!(again, Ok(vec![object]), "{}", String::from_utf8_lossy(&text));
            }
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            for problem in problems {
                let told = problem.to_string();
                assert!(!told.chars().any(char::is_control), "{told:?}");
            }
        }
    }
});
