//! A host, the plugins and a configuration: what every test here starts from.

use std::{net::IpAddr, path::Path};

use harness::{Call, Namespace};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A host with the plugins installed and an empty address store.
pub(crate) struct Scene {
    pub(crate) host: Namespace,
    pub(crate) bin: TempDir,
    pub(crate) data: TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self {
            host: Namespace::with_loopback(),
            bin: harness::plugin_directory(&["bridge", "host-local"]),
            data: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    /// Network `test` on bridge `cni0` with one range for each subnet; `more` is laid over it.
    pub(crate) fn config(&self, subnets: &[&str], more: Value) -> Value {
        let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "test",
            "type": "bridge",
            "bridge": "cni0",
            "ipam": { "type": "host-local", "ranges": ranges, "dataDir": self.data.path() },
        });
        overlay(&mut config, more);
        config
    }

    /// The same without addresses.
    pub(crate) fn layer2(&self, more: Value) -> Value {
        let mut config = self.config(&[], more);
        config.as_object_mut().unwrap().remove("ipam");
        config
    }

    pub(crate) fn call<'a>(&'a self, container_id: &'a str, pod: &Namespace) -> Call<'a> {
        Call::new(&self.host, self.bin.path(), "bridge", container_id, pod)
    }

    /// The addresses that the store holds as given away.
    pub(crate) fn reserved(&self) -> Vec<String> {
        reserved(self.data.path(), "test")
    }

    /// Nothing that ADD makes for a pod is left: no host link, no address, no element.
    pub(crate) fn expect_clean(&self, what: &str) {
        let links = self.host.link_names();
        let left: Vec<&String> = links.iter().filter(|name| name.starts_with("veth")).collect();
        assert!(left.is_empty(), "{what}: links are left: {left:?}");
        assert_eq!(self.reserved(), Vec::<String>::new(), "{what}: addresses are left");
        assert_eq!(self.elements(), Vec::<String>::new(), "{what}: nf_tables elements are left");
    }

    /// Every element of every set in the host's nf_tables.
    pub(crate) fn elements(&self) -> Vec<String> {
        let ruleset = self.host.nft_ruleset();
        let sets = ruleset.iter().filter_map(|object| object.get("set").or_else(|| object.get("map")));
        sets.filter_map(|set| set["elem"].as_array()).flatten().map(Value::to_string).collect()
    }
}

/// The files of host-local that stand for addresses.
pub(crate) fn reserved(data: &Path, network: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(data.join(network)) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut addresses: Vec<String> = names.filter(|name| name.parse::<IpAddr>().is_ok()).collect();
    addresses.sort();
    addresses
}

/// Lays `more` over `base`, key by key; `null` removes.
pub(crate) fn overlay(base: &mut Value, more: Value) {
    match (base, more) {
        (Value::Object(base), Value::Object(more)) => {
            for (key, value) in more {
                if value.is_null() {
                    base.remove(&key);
                } else {
                    overlay(base.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (base, more) => *base = more,
    }
}

/// `addr` objects of one link as "address/length".
pub(crate) fn addresses(namespace: &Namespace, link: &str) -> Vec<String> {
    let links = namespace.ip_json(&format!("addr show dev {link}"));
    let all = links[0]["addr_info"].as_array().cloned().unwrap_or_default();
    all.iter()
        .filter(|address| address["scope"] == "global")
        .map(|address| format!("{}/{}", address["local"].as_str().unwrap(), address["prefixlen"]))
        .collect()
}

/// The one host link that some pod is behind.
pub(crate) fn only_host_link(host: &Namespace) -> String {
    let names = host.link_names();
    let mut links = names.into_iter().filter(|name| name.starts_with("veth"));
    let link = links.next().expect("a host link");
    assert_eq!(links.next(), None, "exactly one host link");
    link
}

/// A result as the next call's `prevResult`.
pub(crate) fn with_previous(config: &Value, result: &Value) -> Value {
    let mut config = config.clone();
    config["prevResult"] = result.clone();
    config
}
