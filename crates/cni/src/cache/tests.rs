//! What is written is found again, in the reference's form, and nothing worse than a lost file comes of a broken one.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn attachment(id: &str) -> Attachment {
    Attachment { container_id: id.to_owned(), ifname: "eth0".to_owned() }
}

fn cached(network: &str, id: &str) -> CachedAttachment {
    CachedAttachment {
        network: network.to_owned(),
        container_id: id.to_owned(),
        ifname: "eth0".to_owned(),
        netns: "/proc/self/ns/net".into(),
        netns_identity: identity_of(Path::new("/proc/self/ns/net")),
        args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
        capability_args: vec![("mac".to_owned(), Json::from("aa:bb"))],
        config: br#"{"name":"net"}"#.to_vec(),
        result: Some(Json::object([("cniVersion", Json::from("1.0.0"))])),
    }
}

#[test]
fn what_is_written_is_read_back_until_it_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::new(directory.path().join("deep/er"));
    let kept = cached("net", "c1");
    assert_eq!(cache.read("net", &attachment("c1")).unwrap(), None);
    cache.remove("net", &attachment("c1")).unwrap();
    cache.write(&kept).unwrap();
    cache.write(&kept).unwrap();
    assert_eq!(cache.read("net", &attachment("c1")).unwrap(), Some(kept));
    cache.remove("net", &attachment("c1")).unwrap();
    assert_eq!(cache.read("net", &attachment("c1")).unwrap(), None);
}

#[test]
fn the_file_has_the_references_name_mode_and_members() {
    let directory = tempfile::tempdir().unwrap();
    Cache::new(directory.path())
        .write(&CachedAttachment { netns_identity: None, ..cached("net", "c1") })
        .unwrap();
    let results = directory.path().join("results");
    let file = results.join("net-c1-eth0");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&results), mode(&file)), (0o700, 0o600));
    assert_eq!(std::fs::read_dir(&results).unwrap().count(), 1);
    let want = concat!(
        r#"{"kind":"cniCacheV1","containerId":"c1","config":"eyJuYW1lIjoibmV0In0=","ifName":"eth0","networkName":"net","#,
        r#""netns":"/proc/self/ns/net","cniArgs":[["IgnoreUnknown","1"]],"capabilityArgs":{"mac":"aa:bb"},"result":{"cniVersion":"1.0.0"}}"#
    );
    assert_eq!(std::fs::read_to_string(file).unwrap(), want);
}

/// As the reference library writes it: indentation aside, with its null for what is not there.
const FOREIGN: &str = r#"{"kind":"cniCacheV1","containerId":"c1","config":"e30=","ifName":"eth0","networkName":"net",
    "netns":"/run/netns/x","cniArgs":[["A","b"]],"capabilityArgs":null,"result":{"cniVersion":"0.4.0",
    "ips":[{"version":"4","address":"10.0.0.2/24"}],"dns":{}}}"#;

#[test]
fn the_references_files_are_read_and_converted() {
    let directory = tempfile::tempdir().unwrap();
    let results = directory.path().join("results");
    std::fs::create_dir(&results).unwrap();
    std::fs::write(results.join("net-c1-eth0"), FOREIGN).unwrap();
    let kept = Cache::new(directory.path()).read("net", &attachment("c1")).unwrap().unwrap();
    assert_eq!((kept.netns.to_str(), kept.netns_identity), (Some("/run/netns/x"), None));
    assert_eq!(kept.args, [("A".to_owned(), "b".to_owned())]);
    assert_eq!(kept.config, b"{}");
    let result = kept.result(Version::V1_0_0).unwrap().unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.0.0.2/24");
}

#[test]
fn a_bare_result_from_before_the_format_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let results = directory.path().join("results");
    std::fs::create_dir(&results).unwrap();
    std::fs::write(results.join("net-c1-eth0"), r#"{"ip4":{"ip":"10.0.0.2/24"}}"#).unwrap();
    let cache = Cache::new(directory.path());
    let kept = cache.read("net", &attachment("c1")).unwrap().unwrap();
    assert_eq!(kept.result(Version::V0_2_0).unwrap().unwrap().ips.len(), 1);
    assert_eq!(cache.attachments("net").unwrap(), [], "it does not say whose it is");
}

#[test]
fn what_is_no_cached_result_is_an_error_with_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let results = directory.path().join("results");
    std::fs::create_dir(&results).unwrap();
    let cache = Cache::new(directory.path());
    for text in
        ["", "{", "[]", r#"{"kind":"cniCacheV1","config":"?"}"#, r#"{"ips":"x","cniVersion":"1.0.0"}"#]
    {
        std::fs::write(results.join("net-c1-eth0"), text).unwrap();
        let error = cache.read("net", &attachment("c1")).unwrap_err();
        assert!(matches!(error, RuntimeError::BadCache { .. }), "{text}: {error}");
        assert!(error.to_string().contains("net-c1-eth0"), "{error}");
    }
}

#[test]
fn the_attachments_of_a_network_are_told_from_those_of_a_network_with_a_longer_name() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::new(directory.path());
    assert_eq!(cache.attachments("net").unwrap(), []);
    for (network, id) in [("net", "c2"), ("net", "c1"), ("net-more", "c3"), ("other", "c4")] {
        cache.write(&cached(network, id)).unwrap();
    }
    std::fs::write(directory.path().join("results/net-broken-eth0"), "{").unwrap();
    std::fs::write(directory.path().join("results/.net-c9-eth0.new"), "{").unwrap();
    let ids: Vec<String> =
        cache.attachments("net").unwrap().into_iter().map(|kept| kept.container_id).collect();
    assert_eq!(ids, ["c1", "c2"]);
}

#[test]
fn a_write_that_fails_leaves_what_was_there() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::new(directory.path());
    cache.write(&cached("net", "c1")).unwrap();
    std::fs::create_dir(directory.path().join("results/.net-c1-eth0.new")).unwrap();
    let error = cache.write(&CachedAttachment { args: Vec::new(), ..cached("net", "c1") }).unwrap_err();
    assert!(error.to_string().starts_with("cannot write cached result "), "{error}");
    assert_eq!(cache.read("net", &attachment("c1")).unwrap(), Some(cached("net", "c1")));
}

#[test]
fn a_namespace_that_was_replaced_is_not_named_again() {
    let path = Some(Path::new("/proc/self/ns/net"));
    assert_eq!(cached("net", "c1").netns_if_unchanged(), path);
    let unknown = CachedAttachment { netns_identity: None, ..cached("net", "c1") };
    assert_eq!(unknown.netns_if_unchanged(), path);
    let other = CachedAttachment { netns_identity: Some((0, 0)), ..cached("net", "c1") };
    assert_eq!(other.netns_if_unchanged(), None);
    let gone = CachedAttachment { netns: "/gone".into(), ..cached("net", "c1") };
    assert_eq!(gone.netns_if_unchanged(), Some(Path::new("/gone")));
    assert_eq!(CachedAttachment::default().netns_if_unchanged(), None);
}

#[test]
fn all_networks_are_told_and_one_file_that_is_not_understood_hides_none_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::new(directory.path());
    assert_eq!(cache.all().unwrap(), []);
    for (network, id) in [("net", "c1"), ("net-two", "c2")] {
        cache.write(&cached(network, id)).unwrap();
    }
    let results = directory.path().join("results");
    std::fs::create_dir(results.join("directory")).unwrap();
    std::fs::write(results.join(".net-c3-eth0.new"), "{").unwrap();
    let bare = r#"{"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.2/24"}]}"#;
    std::fs::write(results.join("old-c4-eth0"), bare).unwrap();
    let found = cache.all().unwrap();
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["net-c1-eth0", "net-two-c2-eth0", "old-c4-eth0"]);
    assert_eq!((found[1].1.network.as_str(), found[1].1.container_id.as_str()), ("net-two", "c2"));
    assert_eq!((found[2].1.network.as_str(), found[2].1.container_id.as_str()), ("", ""));
    assert_eq!(found[2].1.result(Version::UNSAID).unwrap().unwrap().ips.len(), 1);
    for broken in ["", "{", "[]", r#"{"kind": "cniCacheV1", "config": "%"}"#] {
        std::fs::write(results.join("broken-c5-eth0"), broken).unwrap();
        let error = cache.all().unwrap_err().to_string();
        assert!(error.contains("broken-c5-eth0"), "{broken}: {error}");
    }
}
