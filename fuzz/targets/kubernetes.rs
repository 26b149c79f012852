//! Answers of anybody who says he is an API server: never a panic, every refusal says why, and what is accepted reads
//! back the same as a manifest.
#![no_main]

use cluster::Kind;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for kind in Kind::ALL {
        match store::read_list(kind, bytes) {
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
    }
});
