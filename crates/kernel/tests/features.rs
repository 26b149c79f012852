//! What a kernel can do, tried in namespaces of the test's own; the system's tools say whether it was really tried.
#![allow(clippy::unwrap_used, reason = "a failure here is a failure of the test")]

use harness::{Namespace, run};
use kernel::features::{self, Absent, Feature};

/// Whether `ip` can make a link of a kind in a namespace of its own.
fn has_kind(kind: &str) -> bool {
    let namespace = Namespace::new();
    let words = match kind {
        "vxlan" => "link add one type vxlan id 7 dstport 4789".to_owned(),
        "veth" => "link add one type veth peer name other".to_owned(),
        _ => format!("link add one type {kind}"),
    };
    run(namespace.command("ip").args(words.split_whitespace())).status.success()
}

#[test]
fn a_feature_is_absent_exactly_when_the_systems_tools_cannot_use_it_either() {
    let scratch = Namespace::new();
    let absent = scratch.inside(|| features::absent().unwrap());
    let lacks = |feature| absent.iter().any(|absent: &Absent| absent.feature == feature);
    for (feature, kind) in [
        (Feature::Veth, "veth"),
        (Feature::Bridge, "bridge"),
        (Feature::Vxlan, "vxlan"),
        (Feature::Ifb, "ifb"),
    ] {
        assert_eq!(lacks(feature), !has_kind(kind), "{kind}: {absent:?}");
    }
    let nft = run(Namespace::new().command("nft").args(["add", "table", "inet", "one"])).status.success();
    assert_eq!(lacks(Feature::Tables), !nft, "{absent:?}");
    if nft {
        let tables = scratch.nft_ruleset();
        assert!(
            tables.iter().any(|entry| entry["table"]["name"] == "probe"),
            "it was really made: {tables:?}"
        );
    }
}

#[test]
fn one_feature_that_cannot_be_had_hides_no_other() {
    let scratch = Namespace::new();
    // The far end's name is taken: there can be no cable, and nothing to shape on it.
    scratch.ip("link add probe1 type bridge");
    let absent = scratch.inside(|| features::absent().unwrap());
    assert_eq!(absent.first().map(|absent| absent.feature), Some(Feature::Veth), "{absent:?}");
    let tried = scratch.link_names();
    assert_eq!(
        tried.contains(&"probe3".to_owned()),
        has_kind("vxlan"),
        "the tunnel was tried all the same: {tried:?}"
    );
}
