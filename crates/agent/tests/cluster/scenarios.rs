//! The list of scenarios (docs/scenarios.md), held against the tests that there are.

use std::path::Path;

#[test]
fn every_scenario_is_in_the_list_and_every_test_in_the_list_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let list = std::fs::read_to_string(root.join("docs/scenarios.md")).unwrap();
    let mut sources = String::new();
    for folder in ["crates", "tests"] {
        read(&root.join(folder), &mut sources);
    }
    for number in 1..=60 {
        assert!(list.contains(&format!("\n| {number} | ")), "scenario {number} is missing");
    }
    // Names of tests are sentences; a command, a key or a type is none.
    let names = list.split('`').skip(1).step_by(2).filter(|name| name.matches('_').count() > 2);
    let missing: Vec<&str> = names.filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    let tests =
        sources.lines().filter_map(|line| line.strip_prefix("fn ")?.split_once('(').map(|(name, _)| name));
    let unlisted: Vec<&str> =
        tests.filter(|name| name.starts_with("scenario") && !list.contains(&format!("`{name}`"))).collect();
    assert!(unlisted.is_empty(), "not in the list: {unlisted:#?}");
}

fn read(folder: &Path, into: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "target" {
            read(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}
