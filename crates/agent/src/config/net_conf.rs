//! flannel's configuration document, net-conf.json, as a source of Fairlead's.
//!
//! Read [`read`] and [`NetConf::parse`], then [`NetConf::lay_under`]. What the document says becomes keys of the configuration, as if they
//! stood in its file. A key that stands there too and says something else is refused: one of the two is out of date, and
//! nobody can tell which. What flannel takes for granted where the document is silent gives way to the file.
//!
//! Decoded as flannel does it: names of keys in any case, keys that nobody knows passed over, the backend's type in small
//! letters, `null` for nothing. What Fairlead has no counterpart for is an error where packets would go another way than
//! the document says, and otherwise told ([`NetConf::without_effect`]).
//!
//! flannel 0.28: `Network`, `SubnetLen`, `Backend` and their like.

use std::fs;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::{Config, ConfigError};

/// The largest document that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// The document, as keys of the configuration.
#[derive(Debug)]
pub(super) struct NetConf {
    path: PathBuf,
    says: Vec<Says>,
    /// What it says that has no effect, for people.
    pub(super) without_effect: Vec<String>,
}

/// One key of the configuration.
#[derive(Debug)]
struct Says {
    section: Option<&'static str>,
    key: &'static str,
    value: Value,
    /// The document's own key that says so; none where that is what flannel takes for granted.
    by: Option<&'static str>,
}

/// An object of the document, the names of its keys in small letters.
struct Part<'p> {
    path: &'p Path,
    members: Map<String, Value>,
}

/// What `flannel.netConf` says where the document is the key `PREFIX/config` of flannel's in etcd.
pub(super) const IN_ETCD: &str = "etcd";

/// Where the document is.
#[derive(Debug, Clone)]
pub(crate) enum Document {
    /// In this file.
    File(PathBuf),
    /// In etcd, behind this prefix.
    Etcd(String),
}

/// The document's text.
///
/// # Errors
/// When there is no such file, or one that can be none.
pub(crate) fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let refused = || failed(io::Error::other("it is no file of at most 1 MiB"));
    // What is no file may never end, or wait for somebody who writes.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(refused());
    }
    let mut text = String::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(LARGEST + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LARGEST { Err(refused()) } else { Ok(text) }
}

/// What reads like a number in YAML is one in the tree of the file, though it was written where a text belongs: it gets the
/// text back that `config`, read from the file alone, has there.
pub(super) fn restore_texts(config: &Config, tree: &mut Value) {
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let pattern = config.underlay.interface_pattern.as_ref();
    for (section, key, text) in [
        ("underlay", "interface", config.underlay.interface.clone()),
        ("underlay", "interfacePattern", pattern.map(|pattern| pattern.regex().as_str().to_owned())),
        ("flannel", "etcdPrefix", config.flannel.etcd_prefix.clone()),
        ("flannel", "subnetFile", path(&config.flannel.subnet_file)),
    ] {
        let there = tree.get_mut(section).and_then(|section| section.get_mut(key));
        if let Some((there, text)) = there.zip(text) {
            *there = Value::String(text);
        }
    }
}

impl NetConf {
    /// Takes the document apart; `path` is where it stands, for people.
    ///
    /// # Errors
    /// When it is no JSON, or it says what Fairlead cannot do.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let document: Value =
            serde_json::from_str(text).map_err(|error| wrong(path, "the document", error.to_string()))?;
        let mut read = Self { path: path.to_owned(), says: Vec::new(), without_effect: Vec::new() };
        let part = Part::of(path, "the document", document)?;
        read.networks(&part)?;
        let backend = part.value("Backend").cloned().unwrap_or_else(|| json!({}));
        read.backend(&Part::of(path, "Backend", backend)?)?;
        Ok(read)
    }

    fn say(&mut self, by: &'static str, section: &'static str, key: &'static str, value: Value) {
        self.says.push(Says { section: Some(section), key, value, by: Some(by) });
    }

    /// The networks, and the pieces of them that nodes take.
    fn networks(&mut self, part: &Part<'_>) -> Result<(), ConfigError> {
        let families = [
            (part.truth("EnableIPv4")?.unwrap_or(true), "Network", "SubnetLen", "nodePrefixIPv4", 24),
            (
                part.truth("EnableIPv6")?.unwrap_or(false),
                "IPv6Network",
                "IPv6SubnetLen",
                "nodePrefixIPv6",
                64,
            ),
        ];
        let mut networks = Vec::new();
        for (_, network, length, key, usual) in families.into_iter().filter(|family| family.0) {
            let Some(net) = part.network(network)? else {
                return Err(wrong(self.path.as_path(), network, "is missing".to_owned()));
            };
            if net.addr().is_ipv4() != (network == "Network") {
                return Err(wrong(self.path.as_path(), network, format!("is {net}, of the other family")));
            }
            networks.push(net.to_string());
            let told = part.number(length)?;
            if told == Some(0) {
                let reason =
                    "is 0: say how long the prefix of a node's piece is, or leave the key out".to_owned();
                return Err(wrong(self.path.as_path(), length, reason));
            }
            let piece = told.unwrap_or_else(|| u64::from(net.prefix_len()).saturating_add(2).max(usual));
            let by = told.map(|_| length);
            self.says.push(Says { section: Some("cluster"), key, value: json!(piece), by });
            self.bounds(part, net.addr().is_ipv4())?;
        }
        if networks.is_empty() {
            let reason = "and EnableIPv6 are both false: pods have no address".to_owned();
            return Err(wrong(self.path.as_path(), "EnableIPv4", reason));
        }
        self.say("Network", "cluster", "podCIDRs", json!(networks));
        Ok(())
    }

    /// The first and the last piece that are given out.
    fn bounds(&mut self, part: &Part<'_>, is_ipv4: bool) -> Result<(), ConfigError> {
        let keys = match is_ipv4 {
            true => [("SubnetMin", "subnetMinIPv4"), ("SubnetMax", "subnetMaxIPv4")],
            false => [("IPv6SubnetMin", "subnetMinIPv6"), ("IPv6SubnetMax", "subnetMaxIPv6")],
        };
        for (by, key) in keys {
            let family = if is_ipv4 { "an IPv4 address" } else { "an IPv6 address" };
            let of_family = |address: &IpAddr| address.is_ipv4() == is_ipv4;
            let address = part.typed(by, family, |value| value.as_str()?.parse().ok().filter(of_family))?;
            if let Some(address) = address {
                self.say(by, "cluster", key, json!(address.to_string()));
            }
        }
        Ok(())
    }

    fn backend(&mut self, part: &Part<'_>) -> Result<(), ConfigError> {
        let told = part.text("Type")?.map(str::to_ascii_lowercase);
        // What flannel's code has; its documents say vxlan.
        let backend = match told.as_deref().unwrap_or("udp") {
            "vxlan" => self.vxlan(part)?,
            "host-gw" => "host-gw",
            "udp" => {
                self.port(part, "udp")?;
                "udp"
            }
            "ipip" => {
                self.no_effect_if(part, "DirectRouting", "ipip always goes through the tunnel")?;
                "ipip"
            }
            "wireguard" => self.wireguard(part)?,
            "alloc" => "none",
            other => {
                let reason = format!(
                    "is {other:?}; Fairlead has vxlan, host-gw, udp, ipip, wireguard and alloc (none)"
                );
                return Err(wrong(self.path.as_path(), "Backend.Type", reason));
            }
        };
        let by = told.is_some().then_some("Backend.Type");
        self.says.push(Says { section: None, key: "backend", value: json!(backend), by });
        Ok(())
    }

    fn vxlan(&mut self, part: &Part<'_>) -> Result<&'static str, ConfigError> {
        if part.truth("GBP")? == Some(true) {
            let reason = "is true: Fairlead's tunnels carry no group policy, and theirs would drop what does";
            return Err(wrong(self.path.as_path(), "Backend.GBP", reason.to_owned()));
        }
        self.no_effect_if(part, "Learning", "every entry is told, none is learned")?;
        if let Some(vni) = part.number("VNI")? {
            if vni == 0 {
                let reason = "is 0, which is no network identifier: 1 to 16777215".to_owned();
                return Err(wrong(self.path.as_path(), "Backend.VNI", reason));
            }
            self.say("Backend.VNI", "vxlan", "vni", json!(vni));
        }
        self.port(part, "vxlan")?;
        if let Some(direct) = part.truth("DirectRouting")? {
            self.say("Backend.DirectRouting", "vxlan", "directRouting", json!(direct));
        }
        self.mtu(part)?;
        Ok("vxlan")
    }

    fn wireguard(&mut self, part: &Part<'_>) -> Result<&'static str, ConfigError> {
        if part.text("PSK")?.is_some_and(|key| !key.is_empty()) {
            let reason =
                "is set: Fairlead's tunnels have no pre-shared key, and would be less than was asked for";
            return Err(wrong(self.path.as_path(), "Backend.PSK", reason.to_owned()));
        }
        if let Some(port) = part.number("ListenPort")?.filter(|port| *port != 0) {
            self.say("Backend.ListenPort", "wireguard", "port", json!(port));
        }
        for (key, why) in [
            ("ListenPortV6", "both families are in one tunnel"),
            ("Mode", "both families are in one tunnel"),
            ("PersistentKeepaliveInterval", "nothing is sent to keep a way open"),
        ] {
            if part.value(key).is_some_and(|value| *value != json!(0)) {
                self.without_effect.push(format!("Backend.{key}: {why}"));
            }
        }
        self.mtu(part)?;
        Ok("wireguard")
    }

    /// 0 stands for the kernel's own, which is what Fairlead has.
    fn port(&mut self, part: &Part<'_>, section: &'static str) -> Result<(), ConfigError> {
        if let Some(port) = part.number("Port")?.filter(|port| *port != 0) {
            self.say("Backend.Port", section, "port", json!(port));
        }
        Ok(())
    }

    /// The underlay's, as in Fairlead: what the tunnel adds is taken off by both.
    fn mtu(&mut self, part: &Part<'_>) -> Result<(), ConfigError> {
        if let Some(mtu) = part.number("MTU")?.filter(|mtu| *mtu != 0) {
            self.say("Backend.MTU", "underlay", "mtu", json!(mtu));
        }
        Ok(())
    }

    fn no_effect_if(&mut self, part: &Part<'_>, key: &str, why: &str) -> Result<(), ConfigError> {
        if part.truth(key)? == Some(true) {
            self.without_effect.push(format!("Backend.{key}: {why}"));
        }
        Ok(())
    }

    /// The configuration's tree with what the document says where the file said nothing.
    ///
    /// # Errors
    /// [`ConfigError::Twice`] for a key that both say, and differently.
    pub(super) fn lay_under(&self, mut file: Value) -> Result<Value, ConfigError> {
        for Says { section, key, value, by } in &self.says {
            let place = match section {
                Some(section) => &mut file[section],
                None => &mut file,
            };
            if !place.is_object() {
                *place = json!({});
            }
            let there = &mut place[*key];
            if there.is_null() {
                *there = value.clone();
            } else if let Some(by) = by.filter(|_| normal(there) != normal(value)) {
                return Err(ConfigError::Twice {
                    key: section.map_or_else(|| (*key).to_owned(), |section| format!("{section}.{key}")),
                    value: there.to_string(),
                    path: self.path.clone(),
                    by,
                    theirs: value.to_string(),
                });
            }
        }
        Ok(file)
    }
}

/// A value as it can be compared: networks in one spelling, and lists in one order.
fn normal(value: &Value) -> Value {
    match value {
        Value::String(text) => match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
            (Ok(net), _) => json!(net.to_string()),
            (_, Ok(address)) => json!(address.to_string()),
            _ => value.clone(),
        },
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(normal).collect();
            items.sort_by_key(ToString::to_string);
            Value::Array(items)
        }
        _ => value.clone(),
    }
}

impl<'p> Part<'p> {
    fn of(path: &'p Path, name: &str, value: Value) -> Result<Self, ConfigError> {
        let Value::Object(members) = value else {
            return Err(wrong(path, name, "is no object".to_owned()));
        };
        let members = members.into_iter().map(|(key, value)| (key.to_lowercase(), value)).collect();
        Ok(Self { path, members })
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.members.get(&key.to_lowercase()).filter(|value| !value.is_null())
    }

    /// The value as `take` has it, which says nothing to one of another kind.
    fn typed<'v, T>(
        &'v self,
        key: &str,
        kind: &str,
        take: impl FnOnce(&'v Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        take(value).map(Some).ok_or_else(|| wrong(self.path, key, format!("is {value}, not {kind}")))
    }

    fn truth(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    fn number(&self, key: &str) -> Result<Option<u64>, ConfigError> {
        self.typed(key, "a number", Value::as_u64)
    }

    fn text(&self, key: &str) -> Result<Option<&str>, ConfigError> {
        self.typed(key, "a text", Value::as_str)
    }

    fn network(&self, key: &str) -> Result<Option<IpNet>, ConfigError> {
        let net = self
            .typed(key, "a network such as 10.244.0.0/16", |value| value.as_str()?.parse::<IpNet>().ok())?;
        Ok(net.map(|net| net.trunc()))
    }
}

fn wrong(path: &Path, key: &str, reason: String) -> ConfigError {
    ConfigError::NetConf { path: path.to_owned(), key: key.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::{Document, NetConf};
    use crate::config::{BackendKind, Config};

    fn document(text: &str) -> Result<NetConf, String> {
        NetConf::parse(Path::new("net-conf.json"), text).map_err(|error| error.to_string())
    }

    /// The configuration that a document makes of an empty file.
    fn alone(text: &str) -> Config {
        let tree = document(text).unwrap().lay_under(Value::Null).unwrap();
        serde_json::from_value(tree).unwrap()
    }

    #[test]
    fn the_document_of_the_stock_manifest_is_vxlan_in_one_network() {
        let config =
            alone(r#"{"Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": {"Type": "vxlan"}}"#);
        let mut want = Config::default();
        want.cluster.pod_cidrs.truncate(1);
        assert_eq!(config, want);
    }

    #[test]
    fn every_key_that_has_a_counterpart_is_taken_in_whatever_case_it_is_written() {
        let config = alone(
            r#"{"network": "10.20.9.0/16", "ENABLEIPV6": true, "IPv6Network": "fd20::/48", "SubnetLen": 26, "ipv6subnetlen": 72,
                "Other": [1], "backend": {"type": "VXLAN", "vni": 7, "port": 4789, "DirectRouting": true, "MTU": 1400,
                "MacPrefix": "0E-2A"}}"#,
        );
        assert_eq!(json!(config.cluster.pod_cidrs), json!(["10.20.0.0/16", "fd20::/48"]));
        assert_eq!((config.cluster.node_prefix_ipv4, config.cluster.node_prefix_ipv6), (26, 72));
        assert_eq!((config.vxlan.vni, config.vxlan.port, config.vxlan.direct_routing), (7, 4789, true));
        assert_eq!((config.backend, config.underlay.mtu), (BackendKind::Vxlan, Some(1400)));
        let config = alone(
            r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd20::/48", "Backend": {"Type": "host-gw"}}"#,
        );
        assert_eq!(
            (json!(config.cluster.pod_cidrs), config.backend),
            (json!(["fd20::/48"]), BackendKind::HostGw)
        );
        let config = alone(
            r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "wireguard", "ListenPort": 7, "PSK": "", "MTU": 0}}"#,
        );
        assert_eq!(
            (config.backend, config.wireguard.port, config.underlay.mtu),
            (BackendKind::WireGuard, 7, None)
        );
    }

    #[test]
    fn the_pieces_that_are_given_out_are_those_between_the_bounds_of_each_family() {
        let config = alone(
            r#"{"Network": "10.20.0.0/16", "SubnetLen": 26, "subnetmin": "10.20.16.0", "SubnetMax": "10.20.16.192",
                "EnableIPv6": true, "IPv6Network": "fd20::/56", "IPv6SubnetMin": "fd20:0:0:00ff::"}"#,
        );
        let given: Vec<u64> = config.pools().unwrap().iter().map(netstate::pool::Pool::given).collect();
        assert_eq!(given, [4, 1]);
        // Of a family that is off flannel reads nothing.
        let config = alone(r#"{"Network": "10.20.0.0/16", "IPv6SubnetMin": "fd20::"}"#);
        assert_eq!(config.cluster.subnet_min_ipv6, None);
        let document = document(
            r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd20::/56", "IPv6SubnetMin": "fd20:0:0:00ff::"}"#,
        );
        let same = json!({"cluster": {"subnetMinIPv6": "fd20:0:0:ff:0::"}});
        assert!(document.unwrap().lay_under(same).is_ok(), "another spelling of the same");
    }

    #[test]
    fn what_flannel_takes_for_granted_holds_where_nobody_says_anything() {
        let config = alone(r#"{"Network": "10.20.0.0/23"}"#);
        assert_eq!((config.cluster.node_prefix_ipv4, config.backend), (25, BackendKind::Udp));
        let config = alone(r#"{"Network": "10.20.0.0/22", "Backend": {"Port": 0}}"#);
        assert_eq!((config.cluster.node_prefix_ipv4, config.udp.port), (24, 8285));
        let net_conf = document(r#"{"Network": "10.20.0.0/16", "Backend": {"Type": "alloc"}}"#).unwrap();
        let tree = net_conf.lay_under(json!({"cluster": {"nodePrefixIPv4": 20}})).unwrap();
        assert_eq!((&tree["cluster"]["nodePrefixIPv4"], &tree["backend"]), (&json!(20), &json!("none")));
    }

    #[test]
    fn what_has_no_counterpart_is_refused_or_told_by_its_key() {
        for (backend, want) in [
            (r#"{"Type": "ipsec", "PSK": "x"}"#, r#"Backend.Type is "ipsec""#),
            (r#"{"Type": "extension"}"#, "Backend.Type"),
            (r#"{"Type": "vxlan", "GBP": true}"#, "Backend.GBP is true"),
            (r#"{"Type": "wireguard", "PSK": "c2VjcmV0"}"#, "Backend.PSK is set"),
            (r#"{"Type": "vxlan", "VNI": "7"}"#, r#"VNI is "7", not a number"#),
            (r#"{"Type": "vxlan", "VNI": 0}"#, "Backend.VNI is 0"),
            (r#""vxlan""#, "Backend is no object"),
        ] {
            let error =
                document(&format!(r#"{{"Network": "10.20.0.0/16", "Backend": {backend}}}"#)).unwrap_err();
            assert!(error.contains(want) && error.contains("net-conf.json"), "{backend}: {error}");
        }
        for (text, want) in [
            ("{}", "Network is missing"),
            (r#"{"Network": "10.20.0.0/16", "EnableIPv6": true}"#, "IPv6Network is missing"),
            (r#"{"Network": "fd20::/48"}"#, "the other family"),
            (r#"{"Network": "10.20.0.0"}"#, "Network is"),
            (r#"{"Network": "10.20.0.0/16", "SubnetLen": 0}"#, "SubnetLen is 0"),
            (r#"{"EnableIPv4": false}"#, "pods have no address"),
            (
                r#"{"Network": "10.20.0.0/16", "SubnetMin": "fd00::"}"#,
                r#"SubnetMin is "fd00::", not an IPv4 address"#,
            ),
            ("Network: 10.20.0.0/16", "the document"),
        ] {
            let error = document(text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
        let told = document(
            r#"{"Network": "10.20.0.0/16", "Backend": {"Type": "vxlan", "Learning": true, "GBP": false}}"#,
        );
        let told = told.unwrap().without_effect;
        assert!(told.len() == 1 && told[0].starts_with("Backend.Learning"), "{told:?}");
    }

    #[test]
    fn a_text_of_the_file_that_reads_like_a_number_is_a_text_beside_the_document_as_without_it() {
        let read =
            |_: &Document| Ok(r#"{"Network": "10.20.0.0/16", "Backend": {"Type": "vxlan"}}"#.to_owned());
        let text = "flannel: {netConf: /net-conf.json}\nunderlay: {interface: 0}\n";
        let loaded = Config::load_with(text, read).unwrap();
        assert_eq!(loaded.config.underlay.interface.as_deref(), Some("0"));
        assert_eq!(Config::parse(&loaded.whole).unwrap().underlay, loaded.config.underlay);
    }

    #[test]
    fn a_document_is_a_file_and_not_a_large_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("net-conf.json");
        let error = |path: &Path| format!("{:?}", super::read(path).unwrap_err());
        assert!(error(directory.path()).contains("no file of at most 1 MiB"));
        std::fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
        assert!(error(&path).contains("no file of at most 1 MiB"));
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(super::read(&path).unwrap(), "{}");
    }

    #[test]
    fn a_key_that_both_say_differently_is_refused_with_both_names() {
        let net_conf =
            document(r#"{"Network": "10.20.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7}}"#).unwrap();
        let same = json!({"cluster": {"podCIDRs": ["10.20.0.0/16"]}, "vxlan": {"vni": 7, "port": 1}, "backend": "vxlan"});
        assert_eq!(net_conf.lay_under(same.clone()).unwrap()["vxlan"], same["vxlan"]);
        for (file, want) in [
            (json!({"vxlan": {"vni": 8}}), ["vxlan.vni says 8", "Backend.VNI of net-conf.json says 7"]),
            (json!({"backend": "udp"}), [r#"backend says "udp""#, "Backend.Type of net-conf.json"]),
            (
                json!({"cluster": {"podCIDRs": ["10.21.0.0/16"]}}),
                ["cluster.podCIDRs says", "Network of net-conf.json"],
            ),
        ] {
            let error = net_conf.lay_under(file).unwrap_err().to_string();
            assert!(want.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
