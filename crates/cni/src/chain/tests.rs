//! Lists are run by plugins that note what they were asked: order, arguments, undo, and what a failure leaves.

use std::path::Path;

use super::*;
use crate::error::Code;
use crate::json::Fields;
use crate::tests::Plugins;

/// Plugins, a cache beside them, and a list that goes through all of them.
struct Stage {
    plugins: Plugins,
    runner: Runner,
}

const RESULT: &str =
    r#"{"cniVersion":"1.1.0","interfaces":[{"name":"eth0"}],"ips":[{"address":"10.0.0.2/24"}]}"#;

impl Stage {
    fn new(kinds: &[&str]) -> Self {
        let plugins = Plugins::new(kinds);
        plugins.put(&format!("{}.result", kinds[0]), RESULT);
        let cache = Cache::new(plugins.directory().join("cache"));
        let runner = Runner { path: plugins.path(), cache, resolver: None };
        Self { plugins, runner }
    }

    fn kept(&self) -> Option<CachedAttachment> {
        self.runner.cache.read("net", &arguments("c1").attachment()).unwrap()
    }
}

fn list(text: &str) -> ConfList {
    ConfList::parse(text.as_bytes(), Path::new("test")).unwrap()
}

fn list_of(version: &str, kinds: &[&str]) -> ConfList {
    let plugins: Vec<String> = kinds.iter().map(|kind| format!(r#"{{"type":"{kind}"}}"#)).collect();
    list(&format!(r#"{{"cniVersion":"{version}","name":"net","plugins":[{}]}}"#, plugins.join(",")))
}

fn arguments(id: &str) -> RuntimeArguments {
    RuntimeArguments {
        container_id: id.to_owned(),
        netns: Some("/nowhere/netns".into()),
        ifname: "eth0".to_owned(),
        ..RuntimeArguments::default()
    }
}

fn address_in(document: &Json) -> Option<String> {
    let result = Fields::of(document).unwrap().raw("prevResult")?;
    Some(AddResult::from_json(result, Version::V1_1_0).unwrap().ips[0].address.to_string())
}

#[test]
fn add_hands_each_result_on_and_keeps_the_last() {
    let stage = Stage::new(&["one", "two", "three"]);
    stage.plugins.put("two.result", &RESULT.replace("10.0.0.2", "10.0.0.3"));
    let result = stage.runner.add(&list_of("1.1.0", &["one", "two", "three"]), &arguments("c1")).unwrap();
    assert_eq!(
        result.ips[0].address.to_string(),
        "10.0.0.3/24",
        "a plugin that prints nothing changes nothing"
    );
    assert_eq!(stage.plugins.calls(), ["ADD one", "ADD two", "ADD three"]);
    assert_eq!(address_in(&stage.plugins.stdin("one", "ADD")), None);
    assert_eq!(address_in(&stage.plugins.stdin("two", "ADD")).as_deref(), Some("10.0.0.2/24"));
    assert_eq!(address_in(&stage.plugins.stdin("three", "ADD")).as_deref(), Some("10.0.0.3/24"));
    let kept = stage.kept().unwrap();
    assert_eq!(kept.result(Version::V1_1_0).unwrap(), Some(result));
    assert_eq!(kept.config, list_of("1.1.0", &["one", "two", "three"]).text);
}

#[test]
fn every_plugin_gets_the_variables_the_name_and_the_version() {
    let stage = Stage::new(&["one"]);
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let args = vec![pair("IgnoreUnknown", "1"), pair("K8S_POD_NAME", "web")];
    stage.runner.add(&list_of("0.4.0", &["one"]), &RuntimeArguments { args, ..arguments("c1") }).unwrap();
    let want = "ADD one id=c1 netns=/nowhere/netns if=eth0 args=IgnoreUnknown=1;K8S_POD_NAME=web";
    assert_eq!(stage.plugins.log(), [want]);
    assert_eq!(
        stage.plugins.stdin("one", "ADD").to_string(),
        r#"{"type":"one","name":"net","cniVersion":"0.4.0"}"#
    );
}

#[test]
fn capability_arguments_reach_only_the_plugins_that_declare_them() {
    let stage = Stage::new(&["one", "two"]);
    let list = list(
        r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"one","capabilities":{"mac":true,"ips":false}},{"type":"two"}]}"#,
    );
    let capability_args =
        vec![("mac".to_owned(), Json::from("aa:bb")), ("ips".to_owned(), Json::strings(["10.0.0.9"]))];
    stage.runner.add(&list, &RuntimeArguments { capability_args, ..arguments("c1") }).unwrap();
    let one = stage.plugins.stdin("one", "ADD").to_string();
    assert!(one.ends_with(r#""runtimeConfig":{"mac":"aa:bb"}}"#), "{one}");
    assert!(!stage.plugins.stdin("two", "ADD").to_string().contains("runtimeConfig"));
}

#[test]
fn add_stops_at_the_first_failure_and_passes_the_plugins_code_on() {
    let stage = Stage::new(&["one", "two", "three"]);
    stage
        .plugins
        .put("two.fail", r#"{"cniVersion":"1.0.0","code":11,"msg":"pool is locked","details":"by c2"}"#);
    let error = stage.runner.add(&list_of("1.0.0", &["one", "two", "three"]), &arguments("c1")).unwrap_err();
    assert_eq!(error.to_string(), "plugin two failed (ADD): pool is locked; by c2");
    assert_eq!(error.code(), Code::TRY_AGAIN);
    assert_eq!(stage.plugins.calls(), ["ADD one", "ADD two"]);
    assert_eq!(stage.kept(), None);
}

#[test]
fn del_goes_backwards_with_the_final_result_and_forgets_it() {
    let stage = Stage::new(&["one", "two"]);
    let list = list_of("0.4.0", &["one", "two"]);
    stage.runner.add(&list, &arguments("c1")).unwrap();
    stage.plugins.forget_calls();
    stage.runner.del(&list, &arguments("c1")).unwrap();
    assert_eq!(stage.plugins.calls(), ["DEL two", "DEL one"]);
    for kind in ["one", "two"] {
        assert_eq!(address_in(&stage.plugins.stdin(kind, "DEL")).as_deref(), Some("10.0.0.2/24"));
    }
    assert_eq!(stage.kept(), None);
    stage.runner.del(&list, &arguments("c1")).unwrap();
    assert_eq!(address_in(&stage.plugins.stdin("one", "DEL")), None);
}

#[test]
fn del_gets_no_result_before_0_4_0_and_does_without_a_broken_one() {
    let stage = Stage::new(&["one"]);
    let old = list_of("0.3.1", &["one"]);
    stage.runner.add(&old, &arguments("c1")).unwrap();
    stage.runner.del(&old, &arguments("c1")).unwrap();
    assert_eq!(address_in(&stage.plugins.stdin("one", "DEL")), None);
    let new = list_of("1.0.0", &["one"]);
    stage.runner.add(&new, &arguments("c1")).unwrap();
    stage.plugins.put("cache/results/net-c1-eth0", "{");
    stage.runner.del(&new, &arguments("c1")).unwrap();
    assert_eq!(stage.kept(), None);
}

#[test]
fn behaviour_69_del_goes_on_past_missing_and_failing_plugins_and_reports_them() {
    let stage = Stage::new(&["one", "two", "three"]);
    let list = list_of("1.0.0", &["one", "two", "three"]);
    stage.runner.add(&list, &arguments("c1")).unwrap();
    stage.plugins.forget_calls();
    stage.plugins.remove("three");
    stage.plugins.put("two.fail", "no JSON at all");
    let error = stage.runner.del(&list, &arguments("c1")).unwrap_err().to_string();
    assert_eq!(stage.plugins.calls(), ["DEL two", "DEL one"]);
    assert!(error.contains(r#"failed to find plugin "three" in path"#), "{error}");
    assert!(error.contains("plugin two failed (DEL): exit status: 1: no JSON at all"), "{error}");
    assert!(stage.kept().is_some(), "kept for another try");
}

#[test]
fn check_needs_a_version_and_a_result_and_can_be_switched_off() {
    let stage = Stage::new(&["one", "two"]);
    let (old, list) = (list_of("0.3.1", &["one"]), list_of("1.0.0", &["one", "two"]));
    let error = stage.runner.check(&old, &arguments("c1")).unwrap_err();
    assert_eq!(error.code(), Code::INCOMPATIBLE_VERSION);
    let error = stage.runner.check(&list, &arguments("c1")).unwrap_err();
    assert!(matches!(error, RuntimeError::NeverAdded { .. }), "{error}");
    stage.runner.add(&list, &arguments("c1")).unwrap();
    stage.plugins.forget_calls();
    stage.runner.check(&list, &arguments("c1")).unwrap();
    assert_eq!(stage.plugins.calls(), ["CHECK one", "CHECK two"]);
    assert_eq!(address_in(&stage.plugins.stdin("two", "CHECK")).as_deref(), Some("10.0.0.2/24"));
    stage.plugins.put("one.fail", "");
    assert!(stage.runner.check(&list, &arguments("c1")).is_err());
    assert_eq!(
        stage.plugins.calls().last().map(String::as_str),
        Some("CHECK one"),
        "stops at the first failure"
    );
    stage.runner.check(&ConfList { disable_check: true, ..list }, &arguments("c1")).unwrap();
}

#[test]
fn behaviour_70_gc_detaches_what_is_not_listed_and_then_asks_the_plugins() {
    let stage = Stage::new(&["one", "two"]);
    let list = list_of("1.1.0", &["one", "two"]);
    for id in ["c1", "c2"] {
        stage.runner.add(&list, &arguments(id)).unwrap();
    }
    stage.runner.add(&ConfList { name: "other".to_owned(), ..list.clone() }, &arguments("c3")).unwrap();
    stage.plugins.forget_calls();
    let valid = [arguments("c2").attachment()];
    stage.runner.gc(&list, &valid).unwrap();
    assert_eq!(stage.plugins.calls(), ["DEL two", "DEL one", "GC one", "GC two"]);
    assert!(stage.plugins.log()[0].contains("id=c1 netns=/nowhere/netns if=eth0"));
    let stdin = stage.plugins.stdin("one", "GC").to_string();
    for key in ["cni.dev/attachments", "cni.dev/valid-attachments"] {
        assert!(stdin.contains(&format!(r#""{key}":[{{"containerID":"c2","ifname":"eth0"}}]"#)), "{stdin}");
    }
    let kept = |network| stage.runner.cache.attachments(network).unwrap().len();
    assert_eq!((kept("net"), kept("other")), (1, 1));
}

#[test]
fn gc_goes_on_after_failures_and_respects_version_and_switch() {
    let stage = Stage::new(&["one", "two"]);
    let list = list_of("1.1.0", &["one", "two"]);
    stage.runner.add(&list, &arguments("c1")).unwrap();
    stage.plugins.put("one.fail", "");
    stage.plugins.forget_calls();
    let error = stage.runner.gc(&list, &[]).unwrap_err();
    assert_eq!(stage.plugins.calls(), ["DEL two", "DEL one", "GC one", "GC two"]);
    assert!(matches!(&error, RuntimeError::Several(errors) if errors.len() == 2), "{error}");
    stage.plugins.remove("one.fail");
    stage.plugins.forget_calls();
    stage.runner.gc(&ConfList { disable_gc: true, ..list.clone() }, &[]).unwrap();
    assert_eq!(stage.plugins.calls(), [""; 0]);
    stage.runner.gc(&list_of("1.0.0", &["one", "two"]), &[]).unwrap();
    assert_eq!(stage.plugins.calls(), ["DEL two", "DEL one"], "stale attachments go, plugins are not asked");
}

#[test]
fn a_stale_attachment_whose_namespace_was_replaced_is_detached_without_it() {
    let stage = Stage::new(&["one"]);
    let list = list_of("1.1.0", &["one"]);
    let netns = stage.plugins.directory().join("netns");
    std::fs::write(&netns, "").unwrap();
    stage.runner.add(&list, &RuntimeArguments { netns: Some(netns.clone()), ..arguments("c1") }).unwrap();
    let another = stage.plugins.directory().join("another");
    std::fs::write(&another, "").unwrap();
    std::fs::rename(&another, &netns).unwrap();
    stage.plugins.forget_calls();
    stage.runner.gc(&list, &[]).unwrap();
    assert_eq!(stage.plugins.log()[0], "DEL one id=c1 netns= if=eth0 args=");
}

#[test]
fn status_asks_in_order_until_one_is_not_ready() {
    let stage = Stage::new(&["one", "two"]);
    stage.runner.status(&list_of("1.0.0", &["one", "two"])).unwrap();
    assert_eq!(stage.plugins.calls(), [""; 0], "not asked before 1.1.0");
    let list = list_of("1.1.0", &["one", "two"]);
    stage.runner.status(&list).unwrap();
    assert_eq!(stage.plugins.calls(), ["STATUS one", "STATUS two"]);
    stage.plugins.put("one.fail", r#"{"code":50,"msg":"agent is away"}"#);
    assert_eq!(stage.runner.status(&list).unwrap_err().code(), Code::NOT_READY);
    assert_eq!(stage.plugins.calls().len(), 3);
}

#[test]
fn malformed_arguments_reach_no_plugin() {
    let stage = Stage::new(&["one"]);
    let list = list_of("1.1.0", &["one"]);
    let long = RuntimeArguments { ifname: "sixteen-bytes-xx".to_owned(), ..arguments("c1") };
    for (bad, code) in [
        (arguments(""), Code::UNKNOWN_CONTAINER),
        (arguments("../x"), Code::INVALID_ENVIRONMENT),
        (long, Code::INVALID_ENVIRONMENT),
    ] {
        for result in [
            stage.runner.add(&list, &bad).map(drop),
            stage.runner.del(&list, &bad),
            stage.runner.check(&list, &bad),
        ] {
            assert_eq!(result.unwrap_err().code(), code);
        }
    }
    assert_eq!(stage.plugins.calls(), [""; 0]);
}

#[test]
fn a_list_is_validated_against_what_its_plugins_speak() {
    let stage = Stage::new(&["one", "two"]);
    stage.plugins.put("one.versions", r#"{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0"]}"#);
    stage.plugins.put("two.versions", r#"{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}"#);
    stage.runner.validate(&list_of("1.0.0", &["one", "two"])).unwrap();
    let error = stage.runner.validate(&list_of("0.4.0", &["one", "two", "three"])).unwrap_err().to_string();
    assert!(
        error.contains("plugin two") && error.contains(r#""three""#) && !error.contains("plugin one"),
        "{error}"
    );
}

#[test]
fn a_namespace_without_container_gets_cnitools_id() {
    let id = RuntimeArguments::container_id_for(Path::new("/var/run/netns/x")).unwrap();
    // printf /var/run/netns/x | sha512sum | cut -c1-20
    assert_eq!(id, "cnitool-4acf487154af9777be71");
    let here = std::env::current_dir().unwrap().join("x");
    let relative = RuntimeArguments::container_id_for(Path::new("x")).unwrap();
    assert_eq!(relative, RuntimeArguments::container_id_for(&here).unwrap());
    assert!(validate_container_id(&id).is_ok());
}
