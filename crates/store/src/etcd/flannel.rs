//! flannel's own keys in etcd: what its nodes say there, and what they are told of ours.
//!
//! Read [`Subnets::item`], then [`Said::of`], and `hold.rs` for how ours are kept. One key is one node:
//! `<prefix>/subnets/10.244.5.0-24`, with `&fd00:5::-64` behind it where it has both families; its value says how the
//! node is reached. A node of flannel has no Node object, so it stands for one, called after its subnet
//! ([`cluster::flannel_name`]), and for a lease ([`Flannel::Member`]). A key that says no backend is a place that a person
//! keeps for the machine of that address: a Node without a lease, whose pod CIDRs nobody else takes.
//!
//! What we write bears the name of our node, which flannel passes over: its lease is among Fairlead's own keys already,
//! so here it stands for nothing.
//!
//! flannel 0.28: `MakeSubnetKey`, `ParseSubnetKey`, `LeaseAttrs` of its etcd subnet manager.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use cluster::{Backend, Flannel, Key, Lease, MacAddress, Node, Object, flannel_name};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::form::KeyValue;
use super::layout::Stray;
use crate::flannel;
use crate::manifest::field::Field;
use crate::manifest::{Fault, own, tree};
use crate::mirror::Item;

pub(super) mod hold;
pub(super) mod shown;

/// The name of our node in what flannel's nodes are told of it.
const OURS: &str = "Fairlead";

/// What a node of a backend that flannel does not know is told to have: it has the subnet, and there is no way to it.
const OTHER: &str = "fairlead";

/// The keys of all subnets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subnets(String);

/// What one key is about: a subnet of either family, or of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subnet {
    v4: Option<IpNet>,
    v6: Option<IpNet>,
}

impl Subnet {
    /// The current pod CIDRs of a lease; nothing if it has none.
    fn of(lease: &Lease) -> Option<Self> {
        let of_family = |is_v4| lease.current().find(|cidr| cidr.addr().is_ipv4() == is_v4);
        Some(Self { v4: of_family(true), v6: of_family(false) }).filter(|subnet| subnet.first().is_some())
    }

    fn cidrs(&self) -> impl Iterator<Item = IpNet> {
        self.v4.into_iter().chain(self.v6)
    }

    fn first(&self) -> Option<IpNet> {
        self.cidrs().next()
    }

    fn overlaps(&self, other: &Self) -> bool {
        let overlap = |one: IpNet, other: IpNet| one.contains(&other) || other.contains(&one);
        self.cidrs().any(|one| other.cidrs().any(|other| overlap(one, other)))
    }
}

impl Subnets {
    /// Those of the network whose keys begin with `prefix`.
    pub(crate) fn of(prefix: &str) -> Self {
        Self(format!("{prefix}/subnets/"))
    }

    /// What the keys of all subnets begin with.
    pub(crate) fn folder(&self) -> &str {
        &self.0
    }

    fn key(&self, subnet: &Subnet) -> String {
        let v4 = match subnet.v4 {
            Some(net) => format!("{}-{}", net.network(), net.prefix_len()),
            // Flannel's word for none.
            None => "0.0.0.0-0".to_owned(),
        };
        let v6 = subnet.v6.map(|net| format!("&{}-{}", net.network(), net.prefix_len()));
        format!("{}{v4}{}", self.0, v6.unwrap_or_default())
    }

    /// The key of our node with this lease: a key of both families has to say how its IPv6 is reached, or flannel's nodes
    /// pass over the whole.
    fn key_of(&self, lease: &Lease) -> Option<String> {
        let Subnet { v4, v6 } = Subnet::of(lease)?;
        let is_told = v4.is_none() || flannel::over_ipv6(lease).is_some();
        Some(self.key(&Subnet { v4, v6: v6.filter(|_| is_told) }))
    }

    /// The key of the node of that name, as far as the name tells it.
    pub(crate) fn place(&self, name: &str) -> String {
        format!("{}{}", self.0, name.strip_prefix("flannel-").unwrap_or(name))
    }

    fn subnet(&self, key: &str) -> Option<Subnet> {
        let name = key.strip_prefix(&self.0)?;
        let net = |text: &str| {
            let (address, length) = text.rsplit_once('-')?;
            format!("{address}/{length}").parse::<IpNet>().ok()
        };
        let (v4, v6) = name.split_once('&').map_or((name, None), |(v4, v6)| (v4, Some(v6)));
        let v4 = net(v4).filter(|net| net.addr().is_ipv4())?;
        let v6 = match v6 {
            Some(text) => Some(net(text).filter(|net| net.addr().is_ipv6())?.trunc()),
            None => None,
        };
        let v4 = Some(v4.trunc()).filter(|net| net.prefix_len() > 0);
        Some(Subnet { v4, v6 }).filter(|subnet| subnet.first().is_some())
    }

    /// The objects that a key may stand for, whatever it holds; none if it is no subnet's.
    pub(crate) fn keys(&self, key: &str) -> Option<Vec<Key>> {
        let name = flannel_name(self.subnet(key)?.first()?);
        Some(vec![Key::Node(name.clone()), Key::Lease(name)])
    }

    /// What a key holds; the place and the fault, if it is no subnet's.
    pub(crate) fn item(&self, kv: &KeyValue) -> Result<Item, Stray> {
        let text = String::from_utf8_lossy(&kv.key.0);
        let (Some(subnet), Some(keys)) = (self.subnet(&text), self.keys(&text)) else {
            let fault = Fault::new("is no key of a subnet, such as 10.244.5.0-24".to_owned());
            return Err(Box::new((text.as_ref().into(), fault.hint("flannel passes over it as well"))));
        };
        let version = kv.mod_revision.0.to_string();
        let (mut objects, mut faults) = (Vec::new(), Vec::new());
        if let [node, lease] = &keys[..]
            && let Key::Node(name) = node
        {
            match Said::of(&kv.value.0) {
                Ok(said) if said.ours.is_some() => {
                    return Ok(Item { keys: Vec::new(), objects, faults, uid: String::new(), version });
                }
                Ok(said) => {
                    objects.push(said.node(name, &subnet).into());
                    match said.lease(name, &subnet) {
                        Ok(lease) => objects.extend(lease.map(Object::from)),
                        Err(fault) => faults.push((lease.clone(), fault)),
                    }
                }
                // Whoever it is, nobody else has that subnet.
                Err(fault) => {
                    let pod_cidrs = subnet.cidrs().collect();
                    objects.push(Node { pod_cidrs, ..Node::named(name.clone()) }.into());
                    faults.push((lease.clone(), fault));
                }
            }
        }
        Ok(Item { keys, objects, faults, uid: String::new(), version })
    }
}

/// What a node says under its key.
#[derive(Debug, PartialEq)]
struct Said {
    /// Our node whose word it is.
    ours: Option<String>,
    /// Where it is, at most one of each family.
    addresses: Vec<IpAddr>,
    /// By what it is reached; nothing if that is still open.
    backend: Option<Result<Backend, Fault>>,
    /// The link address of its tunnel over IPv6, if it has one.
    mac_over_ipv6: Option<MacAddress>,
}

impl Said {
    fn of(value: &[u8]) -> Result<Self, Fault> {
        let wrong = |error: &dyn std::fmt::Display| Fault::new(format!("is no JSON: {error}"));
        let text = str::from_utf8(value).map_err(|error| wrong(&error))?;
        let tree = tree::read_json(text).map_err(|error| wrong(&error.to_string().escape_debug()))?;
        let root = Field::root(&tree);
        let mut addresses = Vec::new();
        for key in ["PublicIP", "PublicIPv6"] {
            let field = root.get(key)?;
            // A node of IPv6 alone says 0.0.0.0.
            if field.filled_text()?.is_some_and(|text| text != Ipv4Addr::UNSPECIFIED.to_string()) {
                addresses.push(own::underlay(&field)?);
            }
        }
        let kind = root.get("BackendType")?;
        let vxlan = || flannel::vxlan(&root.get("BackendData")?);
        let backend = kind.filled_text()?.map(|kind| flannel::backend(kind, vxlan));
        let data = root.get("BackendV6Data")?;
        let mac_over_ipv6 = match &backend {
            Some(Ok(backend @ Backend::Vxlan { .. })) if !data.is_absent() => {
                Some(flannel::mac_over_ipv6(backend, &data)?)
            }
            _ => None,
        };
        let ours = root.get(OURS)?.filled_text()?.map(str::to_owned);
        Ok(Self { ours, addresses, backend, mac_over_ipv6 })
    }

    fn node(&self, name: &Arc<str>, subnet: &Subnet) -> Node {
        let (addresses, pod_cidrs) = (self.addresses.as_slice().into(), subnet.cidrs().collect());
        Node { addresses, pod_cidrs, ..Node::named(name.clone()) }
    }

    /// By IPv6 beside IPv4 and never alone, as of flannel's nodes in the other stores.
    fn lease(self, name: &Arc<str>, subnet: &Subnet) -> Result<Option<Lease>, Fault> {
        let backend = match self.backend {
            Some(backend) => backend?,
            None => return Ok(None),
        };
        let by_ipv6 = match backend {
            Backend::Vxlan { .. } => self.mac_over_ipv6.is_some(),
            ref other => *other == Backend::HostGw,
        };
        let by_ipv6 = by_ipv6 && self.addresses.iter().any(IpAddr::is_ipv6) && subnet.v6.is_some();
        let underlay: Box<[IpAddr]> =
            self.addresses.into_iter().filter(|address| by_ipv6 || address.is_ipv4()).collect();
        let known = !matches!(backend, Backend::Other(_));
        if known && !underlay.iter().any(IpAddr::is_ipv4) {
            return Err(Fault::new("PublicIP is missing, to which packets are sent".to_owned()));
        }
        let v6 = subnet.v6.filter(|_| by_ipv6 && subnet.v4.is_some());
        let (node, pod_cidrs) = (name.clone(), subnet.v4.into_iter().chain(v6).collect());
        // One of IPv6 alone has the subnet, and there is no way to it.
        let backend = if subnet.v4.is_some() { backend } else { Backend::Other("flannel-v6".into()) };
        let flannel = Flannel::Member { mac_over_ipv6: self.mac_over_ipv6.filter(|_| by_ipv6) };
        Ok(Some(Lease { node, pod_cidrs, underlay, backend, mtu: flannel::ANY_MTU, flannel }))
    }
}

/// What flannel's nodes are told along with this lease.
fn told(lease: &Lease) -> Value {
    let address = lease.underlay.iter().find(|address| address.is_ipv4());
    let has_v4 = address.is_some() && lease.current().any(|cidr| cidr.addr().is_ipv4());
    let data = flannel::data(&lease.backend).filter(|_| has_v4);
    let kind = if data.is_some() { lease.backend.name() } else { OTHER };
    let address = address.copied().unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let mut value = json!({"PublicIP": address, "PublicIPv6": null, "BackendType": kind, OURS: *lease.node});
    // Flannel leaves out what there is none of.
    if let Some(data) = data.filter(|data| !data.is_null()) {
        value["BackendData"] = data;
    }
    if let Some((address, data)) = flannel::over_ipv6(lease).filter(|_| has_v4) {
        value["PublicIPv6"] = json!(address);
        if !data.is_null() {
            value["BackendV6Data"] = data;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use cluster::{Backend, Flannel, Key, Lease, Object};
    use serde_json::{Value, json};

    use super::super::form::{KeyValue, Raw};
    use super::{Said, Subnet, Subnets, told};

    fn subnets() -> Subnets {
        Subnets::of("/coreos.com/network")
    }

    fn kv(name: &str, value: &str) -> KeyValue {
        let key = Raw(format!("/coreos.com/network/subnets/{name}").into_bytes());
        KeyValue { key, value: Raw(value.into()), ..KeyValue::default() }
    }

    const VXLAN: &str = r#"{"PublicIP":"198.18.0.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"ba:1d:00:00:00:07"}}"#;

    fn lease(cidrs: &[&str]) -> Lease {
        Lease {
            node: "node1".into(),
            pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            underlay: Box::new(["198.18.0.1".parse().unwrap(), "fd00:198:18::1".parse().unwrap()]),
            backend: Backend::Vxlan { vni: 1, port: 8472, mac: "02:00:00:00:00:01".parse().unwrap() },
            mtu: 1450,
            flannel: Flannel::Told,
        }
    }

    #[test]
    fn a_key_names_a_subnet_of_one_family_or_both_and_leads_back() {
        for (name, cidrs) in [
            ("10.244.5.0-24", &["10.244.5.0/24"][..]),
            ("10.244.5.0-24&fd00:5::-64", &["10.244.5.0/24", "fd00:5::/64"]),
            ("0.0.0.0-0&fd00:5::-64", &["fd00:5::/64"]),
        ] {
            let key = format!("/coreos.com/network/subnets/{name}");
            let subnet = subnets().subnet(&key).unwrap();
            assert_eq!(subnet.cidrs().map(|cidr| cidr.to_string()).collect::<Vec<_>>(), cidrs);
            assert_eq!(subnets().key(&subnet), key);
            assert_eq!(Subnet::of(&lease(cidrs)), Some(subnet));
        }
        for bad in [
            "",
            "10.244.5.0",
            "10.244.5.0-33",
            "0.0.0.0-0",
            "fd00:5::-64",
            "10.244.5.0-24&",
            "10.244.5.0-24&10.1.0.0-24",
        ] {
            let key = format!("/coreos.com/network/subnets/{bad}");
            assert_eq!(subnets().subnet(&key), None, "{bad}");
            assert!(subnets().item(&kv(bad, VXLAN)).is_err());
        }
    }

    #[test]
    fn a_node_of_flannel_stands_for_a_node_and_a_lease() {
        let item = subnets().item(&kv("10.244.7.0-24&fd00:7::-64", VXLAN)).unwrap();
        let [Object::Node(node), Object::Lease(lease)] = &item.objects[..] else { panic!("{item:?}") };
        assert_eq!((&*node.name, node.pod_cidrs.len()), ("flannel-10.244.7.0-24", 2));
        let apart = Flannel::Member { mac_over_ipv6: None };
        assert_eq!((lease.flannel, lease.pod_cidrs.len(), lease.mtu), (apart, 1, 65_535));
        assert_eq!(lease.underlay[0].to_string(), "198.18.0.7");
        assert!(matches!(lease.backend, Backend::Vxlan { vni: 1, port: 8472, .. }));
        assert_eq!(item.keys, [Key::Node(node.name.clone()), Key::Lease(node.name.clone())]);
        let other = VXLAN.replace("vxlan", "wireguard");
        let item = subnets().item(&kv("10.244.7.0-24", &other)).unwrap();
        let Some(Object::Lease(lease)) = item.objects.get(1) else { panic!("{item:?}") };
        assert_eq!(lease.backend, Backend::Other("flannel-wireguard".into()));
    }

    #[test]
    fn a_node_of_flannel_is_reached_by_ipv6_as_well_where_it_says_how() {
        let both = VXLAN.replace(r#""PublicIPv6":null"#, r#""PublicIPv6":"fd00::7""#);
        let data = r#","BackendV6Data":{"VNI":1,"VtepMAC":"ba:1d:00:00:00:08"}}"#;
        let whole = both.strip_suffix('}').unwrap().to_owned() + data;
        let plain = r#"{"PublicIP":"198.18.0.7","PublicIPv6":"fd00::7","BackendType":"host-gw"}"#;
        let mac = "ba:1d:00:00:00:08".parse().ok();
        for (name, value, mac, count) in [
            ("10.244.7.0-24&fd00:7::-64", &*whole, mac, 2),
            ("10.244.7.0-24&fd00:7::-64", plain, None, 2),
            ("10.244.7.0-24", &whole, None, 1),
            ("10.244.7.0-24&fd00:7::-64", &both, None, 1),
            ("10.244.7.0-24&fd00:7::-64", &plain.replace("host-gw", "udp"), None, 1),
        ] {
            let item = subnets().item(&kv(name, value)).unwrap();
            let Some(Object::Lease(lease)) = item.objects.get(1) else { panic!("{item:?}") };
            assert_eq!((lease.pod_cidrs.len(), lease.underlay.len()), (count, count), "{value}");
            assert_eq!(lease.flannel, Flannel::Member { mac_over_ipv6: mac }, "{value}");
        }
    }

    #[test]
    fn what_is_kept_for_a_machine_or_cannot_be_read_is_nobody_elses() {
        for (value, faults) in [
            (r#"{"PublicIP":"198.18.0.9"}"#, 0),
            ("nonsense", 1),
            (r#"{"PublicIP":"127.0.0.1","BackendType":"host-gw"}"#, 1),
            (r#"{"BackendType":"host-gw"}"#, 1),
            (r#"{"PublicIP":"198.18.0.9","BackendType":"vxlan","BackendData":{"VNI":1}}"#, 1),
        ] {
            let item = subnets().item(&kv("10.244.7.0-24", value)).unwrap();
            let [Object::Node(node)] = &item.objects[..] else { panic!("{value}: {item:?}") };
            assert_eq!((node.pod_cidrs.len(), item.faults.len()), (1, faults), "{value}");
        }
    }

    #[test]
    fn what_is_told_of_our_node_reads_as_flannel_writes_it_and_stands_for_nothing_here() {
        let value = told(&lease(&["10.244.1.0/24"]));
        let want = json!({
            "PublicIP": "198.18.0.1", "PublicIPv6": null, "BackendType": "vxlan",
            "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:01"}, "Fairlead": "node1",
        });
        assert_eq!(value, want);
        let item = subnets().item(&kv("10.244.1.0-24", &value.to_string())).unwrap();
        assert!(item.objects.is_empty() && item.faults.is_empty() && item.keys.is_empty(), "{item:?}");
        assert_eq!(Said::of(value.to_string().as_bytes()).unwrap().ours.as_deref(), Some("node1"));
        let both = lease(&["10.244.1.0/24", "fd00:1::/64"]);
        let key = |lease: &Lease| subnets().key_of(lease).unwrap().split_off(subnets().folder().len());
        let mut whole = value.clone();
        whole["PublicIPv6"] = "fd00:198:18::1".into();
        whole["BackendV6Data"] = json!({"VNI": 1, "VtepMAC": "06:00:00:00:00:01"});
        assert_eq!((told(&both), &*key(&both)), (whole, "10.244.1.0-24&fd00:1::-64"));
        let without = Lease { underlay: Box::new([both.underlay[0]]), ..both };
        assert_eq!((told(&without), &*key(&without)), (value, "10.244.1.0-24"));
        let of_v6 = lease(&["fd00:1::/64"]);
        assert_eq!(
            (&told(&of_v6)["BackendType"], &*key(&of_v6)),
            (&json!("fairlead"), "0.0.0.0-0&fd00:1::-64")
        );
        let none = told(&Lease { backend: Backend::None, ..lease(&["10.244.1.0/24"]) });
        assert_eq!((&none["BackendType"], &none["BackendData"]), (&json!("fairlead"), &Value::Null));
    }
}
