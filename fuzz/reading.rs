//! What holds of every reading of objects, whoever wrote them: refusals say why, and what is accepted reads back the same.

use cluster::Object;
use store::Problem;

/// Panics when it does not hold.
pub fn check(read: Result<Vec<Object>, Vec<Problem>>) {
    match read {
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
