//! A configuration is read as leniently as the reference reads it, and refused with the place of the fault.

use super::*;
use crate::error::Code;
use crate::result::IpConfig;

fn parse(text: &str) -> Result<Config, Error> {
    Config::parse(text.as_bytes())
}

#[test]
fn the_protocols_keys_are_read_and_the_document_is_kept() {
    let text = r#"{"cniVersion":"1.0.0","name":"net","type":"bridge","bridge":"cni0","IPAM":{"type":"host-local"},
        "dns":{"nameservers":["10.1.0.1"],"domain":"local"},"runtimeConfig":{"mac":"aa:bb"},
        "args":{"cni":{"ips":["10.1.2.3"]}},"big":9007199254740993}"#;
    let config = parse(text).unwrap();
    assert_eq!(
        (config.version, config.name.as_str(), config.kind.as_str()),
        (Version::V1_0_0, "net", "bridge")
    );
    assert_eq!(config.ipam_kind, "host-local");
    assert_eq!(config.dns.nameservers, ["10.1.0.1"]);
    assert_eq!(config.fields().string("bridge"), Ok("cni0"));
    assert_eq!(config.runtime_config().unwrap().string("mac"), Ok("aa:bb"));
    assert_eq!(config.args().unwrap().strings("ips"), Ok(vec!["10.1.2.3"]));
    assert_eq!(config.prev_result(), Ok(None));
    assert_eq!(config.valid_attachments, None);
    assert!(config.document().to_string().ends_with(r#""big":9007199254740993}"#));
}

#[test]
fn optional_objects_may_be_null() {
    let text = r#"{"cniVersion":null,"name":"net","type":null,"ipam":null,"dns":null,"args":null,
        "runtimeConfig":null,"prevResult":null,"cni.dev/valid-attachments":null}"#;
    let config = parse(text).unwrap();
    assert_eq!((config.version, config.ipam_kind.as_str()), (Version::V0_1_0, ""));
    assert!(config.args().is_ok() && config.runtime_config().is_ok() && config.ipam().is_ok());
    assert_eq!((config.prev_result(), config.valid_attachments), (Ok(None), None));
}

#[test]
fn names_are_checked() {
    for good in ["n", "0net", "my-net_1.2"] {
        assert_eq!(validate_network_name(good), Ok(()), "{good}");
    }
    for bad in ["", "_n", "-n", ".n", "a b", "a/b", "ä"] {
        assert_eq!(validate_network_name(bad).unwrap_err().code, Code::INVALID_CONFIG, "{bad}");
    }
}

#[test]
fn a_plugin_refuses_versions_that_it_does_not_speak() {
    let only = [Version::V0_4_0, Version::V1_0_0];
    let said = |version: &str| {
        let text = format!(r#"{{"cniVersion":"{version}","name":"net"}}"#);
        Config::parse_for(text.as_bytes(), &only).map(|config| config.version)
    };
    assert_eq!(said("1.0.0"), Ok(Version::V1_0_0));
    for version in ["", "0.3.1", "1.1.0", "1.0", "9.9.9"] {
        assert_eq!(said(version).unwrap_err().code, Code::INCOMPATIBLE_VERSION, "{version}");
    }
}

#[test]
fn the_previous_result_is_decoded_in_the_configurations_version_and_only_on_demand() {
    let config = parse(
        r#"{"cniVersion":"0.2.0","name":"net","prevResult":{"ip4":{"ip":"10.1.2.3/24","gateway":"10.1.2.1"}}}"#,
    );
    let ip = IpConfig { gateway: "10.1.2.1".parse().ok(), ..IpConfig::new("10.1.2.3/24".parse().unwrap()) };
    assert_eq!(config.unwrap().prev_result().unwrap().unwrap().ips, [ip]);
    let broken =
        parse(r#"{"cniVersion":"1.0.0","name":"net","prevResult":{"ips":[{"address":"10.1.2.3"}]}}"#);
    let error = broken.unwrap().prev_result().unwrap_err();
    assert_eq!(error.code, Code::INVALID_CONFIG);
    assert!(error.message.starts_with("prevResult: result: ips[0].address: "), "{error}");
}

#[test]
fn the_list_of_attachments_tells_missing_from_empty_and_prefers_the_newer_key() {
    let list = |members: &str| parse(&format!(r#"{{"name":"net"{members}}}"#)).unwrap().valid_attachments;
    let attachment = |id: &str| Attachment { container_id: id.to_owned(), ifname: "eth0".to_owned() };
    assert_eq!(list(""), None);
    assert_eq!(list(r#","cni.dev/valid-attachments":[]"#), Some(vec![]));
    let one = |key: &str, id: &str| format!(r#","cni.dev/{key}":[{}]"#, attachment(id).to_json());
    assert_eq!(list(&one("attachments", "a")), Some(vec![attachment("a")]));
    let both = one("attachments", "a") + &one("valid-attachments", "b");
    assert_eq!(list(&both), Some(vec![attachment("b")]));
}

#[test]
fn a_list_of_attachments_with_nobody_in_an_entry_keeps_nobody_by_mistake_and_is_refused() {
    for entry in ["{}", r#"{"containerID":"","ifname":"eth0"}"#, r#"{"containerID":"c"}"#, r#"{"id":"c"}"#] {
        let error = parse(&format!(r#"{{"name":"n","cni.dev/valid-attachments":[{entry}]}}"#)).unwrap_err();
        assert!(error.message.starts_with("cni.dev/valid-attachments[0]."), "{entry}: {error}");
    }
}

#[test]
fn wrong_types_name_their_path() {
    for (text, want) in [
        (r#"{"name":"n","dns":{"search":"x"}}"#, "dns.search: expected an array, found a string"),
        (r#"{"name":"n","ipam":{"type":1}}"#, "ipam.type: expected a string, found a number"),
        (
            r#"{"name":"n","cni.dev/valid-attachments":[{"containerID":1}]}"#,
            "cni.dev/valid-attachments[0].containerID: expected a string, found a number",
        ),
    ] {
        assert_eq!(parse(text), Err(Error::undecodable(want)), "{text}");
    }
}
