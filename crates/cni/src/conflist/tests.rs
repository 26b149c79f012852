//! Lists are found, gathered and given a version as libcni does it.

use std::path::Path;

use super::*;

/// A directory with these files, sub-directories made as needed.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    directory
}

fn parse(text: &str) -> Result<ConfList, String> {
    ConfList::parse(text.as_bytes(), Path::new("x.conflist")).map_err(|error| error.to_string())
}

fn kinds(list: &ConfList) -> Vec<&str> {
    list.plugins.iter().map(|plugin| plugin.kind.as_str()).collect()
}

const A: &str = r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"}]}"#;
const B: &str = r#"{"cniVersion":"1.0.0","name":"b","plugins":[{"type":"loopback"}]}"#;

#[test]
fn a_list_is_read_with_its_plugins_and_their_capabilities() {
    let text = r#"{"cniVersion":"1.0.0","name":"net","disableCheck":true,"unknown":1,"plugins":[
        {"type":"bridge","capabilities":{"ips":true,"mac":false},"mtu":9007199254740993},{"Type":"portmap"}]}"#;
    let list = parse(text).unwrap();
    assert_eq!((list.name.as_str(), list.version), ("net", Version::V1_0_0));
    assert_eq!((list.disable_check, list.disable_gc), (true, false));
    assert_eq!(kinds(&list), ["bridge", "portmap"]);
    assert_eq!(list.plugins[0].capabilities, ["ips"]);
    assert!(list.plugins[0].document.to_string().contains("9007199254740993"));
    assert_eq!(list.text, text.as_bytes());
}

#[test]
fn switches_may_be_written_as_strings() {
    let with = |value: &str| {
        parse(&format!(r#"{{"name":"n","disableGC":{value},"plugins":[{{"type":"t"}}]}}"#))
            .map(|list| list.disable_gc)
    };
    for (value, want) in
        [("true", true), (r#""true""#, true), ("false", false), (r#""false""#, false), ("null", false)]
    {
        assert_eq!(with(value), Ok(want), "{value}");
    }
    assert_eq!(
        with(r#""yes""#),
        Err(r#"x.conflist: disableGC: expected true or false, found "yes""#.to_owned())
    );
    assert_eq!(with("1"), Err("x.conflist: disableGC: expected a boolean, found a number".to_owned()));
}

#[test]
fn the_newest_version_that_both_know_is_selected() {
    let select = |members: &str| {
        parse(&format!(r#"{{{members}"name":"n","plugins":[{{"type":"t"}}]}}"#)).map(|list| list.version)
    };
    let cases = [
        ("", Version::V0_1_0),
        (r#""cniVersion":"","#, Version::V0_1_0),
        (r#""cniVersion":"0.4.0","#, Version::V0_4_0),
        (r#""cniVersion":"0.4.0","cniVersions":["0.3.1","1.0.0"],"#, Version::V1_0_0),
        (r#""cniVersion":"1.0.0","cniVersions":["0.3.1"],"#, Version::V1_0_0),
        (r#""cniVersions":["1.1.0","1.2.0","99.0.0"],"#, Version::V1_1_0),
        (r#""cniVersion":"2.0.0","cniVersions":["1.0.0"],"#, Version::V1_0_0),
    ];
    for (members, want) in cases {
        assert_eq!(select(members), Ok(want), "{members}");
    }
    let error = select(r#""cniVersion":"9.9.9","#).unwrap_err();
    assert!(error.contains("9.9.9") && error.contains("1.1.0"), "{error}");
    assert!(select(r#""cniVersions":["newest"],"#).unwrap_err().contains("newest"));
    assert!(select(r#""cniVersions":"1.0.0","#).unwrap_err().contains("cniVersions: expected an array"));
}

#[test]
fn bad_lists_are_refused_with_the_file_and_the_reason() {
    let cases = [
        ("{", "x.conflist: not JSON: "),
        ("[]", "x.conflist: document: expected an object"),
        ("{}", "x.conflist: missing network name"),
        (r#"{"name":"a/b"}"#, "x.conflist: invalid characters found in network name; a/b"),
        (r#"{"name":"n"}"#, "x.conflist: no plugin configs found"),
        (r#"{"name":"n","plugins":[]}"#, "x.conflist: invalid 'plugins': empty list"),
        (r#"{"name":"n","plugins":{}}"#, "x.conflist: plugins: expected an array"),
        (r#"{"name":"n","plugins":[{"type":"t"},{}]}"#, "x.conflist: plugins[1]: missing 'type'"),
        (r#"{"name":"n","plugins":["t"]}"#, "x.conflist: plugins[0]: document: expected an object"),
        (r#"{"name":"n","loadOnlyInlinedPlugins":true}"#, "x.conflist: loadOnlyInlinedPlugins is true"),
    ];
    for (text, want) in cases {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(want), "{text}: {error}");
    }
}

#[test]
fn a_list_is_found_by_name_in_the_order_of_file_names() {
    let older = A.replace("bridge", "older");
    let directory = directory(&[("20-a.conflist", &older), ("10-b.conflist", B), ("30-a.conflist", A)]);
    assert_eq!(kinds(&ConfList::find(directory.path(), "a").unwrap()), ["older"]);
    assert_eq!(kinds(&ConfList::find(directory.path(), "b").unwrap()), ["loopback"]);
    let error = ConfList::find(directory.path(), "c").unwrap_err();
    assert!(matches!(error, RuntimeError::NoSuchNetwork { .. }), "{error}");
}

#[test]
fn a_malformed_file_is_an_error_before_the_match_and_no_matter_after() {
    let directory = directory(&[("10-x.conflist", "{"), ("20-a.conflist", A)]);
    let error = ConfList::find(directory.path(), "a").unwrap_err().to_string();
    assert!(error.contains("10-x.conflist") && error.contains("not JSON"), "{error}");
    std::fs::rename(directory.path().join("10-x.conflist"), directory.path().join("30-x.conflist")).unwrap();
    assert!(ConfList::find(directory.path(), "a").is_ok());
}

#[test]
fn single_plugin_files_are_found_after_lists_and_become_lists_of_one() {
    let text = r#"{"cniVersion":"0.4.0","name":"old","type":"bridge","capabilities":{"ips":true}}"#;
    let directory = directory(&[
        ("10-old.conf", text),
        ("20-a.conflist", A),
        ("05-other.json", r#"{"name":"j","type":"t"}"#),
    ]);
    let list = ConfList::find(directory.path(), "old").unwrap();
    assert_eq!((kinds(&list), list.version), (vec!["bridge"], Version::V0_4_0));
    assert_eq!(list.plugins[0].capabilities, ["ips"]);
    let again = ConfList::parse(&list.text, Path::new("text")).unwrap();
    assert_eq!(again.plugins, list.plugins);
    assert_eq!(ConfList::find(directory.path(), "j").unwrap().version, Version::V0_1_0);
    assert_eq!(ConfList::first(directory.path()).unwrap().name, "j");
}

#[test]
fn a_list_in_a_file_for_single_plugins_is_told_its_place() {
    let directory = directory(&[("10-a.conf", A)]);
    let error = ConfList::first(directory.path()).unwrap_err().to_string();
    assert!(error.contains("10-a.conf: missing 'type'") && error.contains(".conflist"), "{error}");
}

#[test]
fn nothing_found_says_where_was_looked() {
    let directory = directory(&[("readme.txt", "")]);
    let here = directory.path().display().to_string();
    for place in [directory.path().to_owned(), directory.path().join("missing")] {
        for result in [ConfList::find(&place, "a"), ConfList::first(&place)] {
            let error = result.unwrap_err().to_string();
            assert!(error.starts_with("no net configurations found in ") && error.contains(&here), "{error}");
        }
    }
}

#[test]
fn plugins_in_the_networks_directory_are_appended_in_order() {
    let files = [
        ("10-a.conflist", A),
        ("a/20-tuning.conf", r#"{"type":"tuning"}"#),
        ("a/10-portmap.conf", r#"{"type":"portmap"}"#),
        ("a/ignored.json", "{"),
        ("b/10-x.conf", r#"{"type":"x"}"#),
    ];
    let directory = directory(&files);
    assert_eq!(kinds(&ConfList::find(directory.path(), "a").unwrap()), ["bridge", "portmap", "tuning"]);
    let file = directory.path().join("10-a.conflist");
    assert_eq!(kinds(&ConfList::load(&file).unwrap()), ["bridge", "portmap", "tuning"]);
    std::fs::write(directory.path().join("a/30-bad.conf"), "{}").unwrap();
    let error = ConfList::load(&file).unwrap_err().to_string();
    assert!(error.contains("30-bad.conf: missing 'type'"), "{error}");
    std::fs::write(&file, A.replacen('{', r#"{"loadOnlyInlinedPlugins":"true","#, 1)).unwrap();
    assert_eq!(kinds(&ConfList::load(&file).unwrap()), ["bridge"]);
}

#[test]
fn a_list_may_live_from_its_directory_alone() {
    let directory = directory(&[("a.conflist", r#"{"name":"a"}"#), ("a/x.conf", r#"{"type":"x"}"#)]);
    assert_eq!(kinds(&ConfList::find(directory.path(), "a").unwrap()), ["x"]);
    std::fs::write(directory.path().join("a.conflist"), r#"{"name":"a","plugins":[]}"#).unwrap();
    assert!(ConfList::find(directory.path(), "a").unwrap_err().to_string().contains("empty list"));
}
