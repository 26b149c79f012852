//! Table 1: golden texts of every version. Then properties over arbitrary results.

use ipnet::{Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use super::*;
use crate::error::{Code, Error};
use crate::version::Version;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn encode(result: &AddResult, version: Version) -> String {
    String::from_utf8(result.encode(version).unwrap()).unwrap()
}

fn decode(text: &str) -> Result<AddResult, Error> {
    AddResult::decode(text.as_bytes(), Version::V1_0_0)
}

/// Everything that 1.1.0 can say.
fn full() -> AddResult {
    let host =
        Interface { name: "veth1".to_owned(), mac: "aa:00:00:00:00:01".to_owned(), ..Interface::default() };
    let pod = Interface {
        name: "eth0".to_owned(),
        mac: "aa:00:00:00:00:02".to_owned(),
        mtu: 1450,
        sandbox: "/run/netns/x".to_owned(),
        socket_path: "/run/s".to_owned(),
        pci_id: "0000:00:1f.6".to_owned(),
    };
    let ip = |address, gateway: &str| IpConfig {
        address: net(address),
        gateway: gateway.parse().ok(),
        interface: Some(1),
    };
    let default = Route {
        mtu: 1400,
        advmss: 1360,
        priority: 10,
        table: Some(0),
        scope: Some(0),
        ..Route::new(net("0.0.0.0/0"), "10.1.2.1".parse().ok())
    };
    AddResult {
        interfaces: vec![host, pod],
        ips: vec![ip("10.1.2.5/24", "10.1.2.1"), ip("fd00::5/64", "fd00::1")],
        routes: vec![default, Route::new(net("::/0"), None)],
        dns: Dns { nameservers: vec!["10.1.0.1".to_owned()], ..Dns::default() },
    }
}

#[test]
fn the_newest_version_says_everything() {
    let want = concat!(
        r#"{"cniVersion":"1.1.0","interfaces":[{"name":"veth1","mac":"aa:00:00:00:00:01"},"#,
        r#"{"name":"eth0","mac":"aa:00:00:00:00:02","sandbox":"/run/netns/x","mtu":1450,"socketPath":"/run/s","pciID":"0000:00:1f.6"}],"#,
        r#""ips":[{"address":"10.1.2.5/24","gateway":"10.1.2.1","interface":1},{"address":"fd00::5/64","gateway":"fd00::1","interface":1}],"#,
        r#""routes":[{"dst":"0.0.0.0/0","gw":"10.1.2.1","mtu":1400,"advmss":1360,"priority":10,"table":0,"scope":0},{"dst":"::/0"}],"#,
        r#""dns":{"nameservers":["10.1.0.1"]}}"#
    );
    assert_eq!(encode(&full(), Version::V1_1_0), want);
    assert_eq!(encode(&full(), Version::V1_0_0), want.replace("1.1.0", "1.0.0"));
    assert_eq!(decode(want), Ok(full()));
}

#[test]
fn versions_before_1_0_0_name_the_family_and_know_less_of_interfaces() {
    let text = encode(&full(), Version::V0_3_1);
    assert!(text.contains(r#"{"version":"4","address":"10.1.2.5/24""#), "{text}");
    assert!(text.contains(r#"{"version":"6","address":"fd00::5/64""#), "{text}");
    for dropped in ["socketPath", "pciID", "1450"] {
        assert!(!text.contains(dropped), "{dropped} in {text}");
    }
    assert!(text.contains(r#""table":0,"scope":0"#), "{text}");
}

#[test]
fn versions_before_0_3_0_keep_the_first_address_of_each_family_with_its_routes() {
    let mut result = full();
    result.ips.push(IpConfig::new(net("10.9.9.9/24")));
    let want = concat!(
        r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.1.2.5/24","gateway":"10.1.2.1","routes":[{"dst":"0.0.0.0/0","gw":"10.1.2.1"}]},"#,
        r#""ip6":{"ip":"fd00::5/64","gateway":"fd00::1","routes":[{"dst":"::/0"}]},"dns":{"nameservers":["10.1.0.1"]}}"#
    );
    assert_eq!(encode(&result, Version::V0_2_0), want);
    result.ips.remove(1);
    let text = encode(&result, Version::V0_1_0);
    assert!(
        !text.contains("ip6") && !text.contains("::/0"),
        "routes without an address of their family go: {text}"
    );
}

#[test]
fn a_result_without_address_has_no_words_before_0_3_0() {
    let result = AddResult { interfaces: full().interfaces, ..AddResult::default() };
    for version in [Version::V0_1_0, Version::V0_2_0] {
        assert_eq!(result.encode(version).unwrap_err().message, "cannot convert: no valid IP addresses");
    }
}

#[test]
fn an_empty_dns_is_written_only_before_1_0_0() {
    let empty = AddResult { ips: vec![IpConfig::new(net("10.0.0.1/32"))], ..AddResult::default() };
    for version in Version::ALL {
        let text = encode(&empty, version);
        assert_eq!(text.contains(r#""dns":{}"#), version < Version::V1_0_0, "{text}");
        assert!(!text.contains("interfaces") && !text.contains("routes"), "empty lists are left out: {text}");
    }
}

#[test]
fn the_interface_with_index_zero_is_written() {
    let ip = IpConfig { interface: Some(0), ..IpConfig::new(net("10.0.0.1/32")) };
    let result = AddResult { ips: vec![ip], ..AddResult::default() };
    assert!(encode(&result, Version::V1_0_0).contains(r#""interface":0"#));
}

#[test]
fn old_results_become_lists_ip4_first() {
    let text = r#"{"cniVersion":"0.2.0","ip6":{"ip":"fd00::5/64","routes":[{"dst":"::/0","gw":"fd00::1"}]},
        "ip4":{"ip":"10.1.2.5/24","gateway":"10.1.2.1","routes":[{"dst":"0.0.0.0/0"}]},"dns":{"domain":"local"}}"#;
    let want = concat!(
        r#"{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.1.2.5/24","gateway":"10.1.2.1"},{"version":"6","address":"fd00::5/64"}],"#,
        r#""routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0","gw":"fd00::1"}],"dns":{"domain":"local"}}"#
    );
    assert_eq!(encode(&decode(text).unwrap(), Version::V0_4_0), want);
}

#[test]
fn results_of_others_are_read_generously() {
    for nothing in ["", " \n", "null", "{}", r#"{"ips":null,"interfaces":null,"routes":null,"dns":null}"#] {
        assert_eq!(decode(nothing), Ok(AddResult::default()), "{nothing:?}");
    }
    let odd = r#"{"cniVersion":"0.4.0","Interfaces":[{"name":"a","unknown":1}],
        "ips":[{"version":"6","address":"10.0.0.1/8","gateway":"","interface":7},{"address":"10.0.0.2/8","interface":-1}]}"#;
    let result = decode(odd).unwrap();
    assert_eq!(result.ips[0].interface, Some(7));
    assert_eq!(result.interface_of(&result.ips[0]), None);
    assert_eq!(result.ips[1].interface, None);
    assert!(encode(&result, Version::V0_4_0).contains(r#""version":"4""#), "the family is derived");
}

#[test]
fn what_a_version_does_not_know_is_not_read_in_it() {
    let of = |version: &str| {
        decode(&format!(
            r#"{{"cniVersion":"{version}","interfaces":[{{"name":"a","mtu":"1500","socketPath":5,"pciID":{{}}}}]}}"#
        ))
    };
    let bare = Interface { name: "a".to_owned(), ..Interface::default() };
    for version in ["0.3.0", "0.3.1", "0.4.0"] {
        assert_eq!(of(version).unwrap().interfaces, std::slice::from_ref(&bare), "{version}");
    }
    assert_eq!(of("1.0.0").unwrap_err().code, Code::UNDECODABLE);
}

#[test]
fn what_makes_no_sense_is_refused_with_its_path() {
    let cases = [
        (r#"{"ips":[{"address":"10.0.0.1"}]}"#, Code::INVALID_CONFIG, "result: ips[0].address: "),
        (r#"{"ips":[{}]}"#, Code::INVALID_CONFIG, "result: ips[0].address: missing"),
        (r#"{"routes":[{"gw":"10.0.0.1"}]}"#, Code::INVALID_CONFIG, "result: routes[0].dst: missing"),
        (r#"{"ips":[{"address":5}]}"#, Code::UNDECODABLE, "result: ips[0].address: expected a string"),
        (r#"{"cniVersion":"0.2.0","ip4":{"ip":"x"}}"#, Code::INVALID_CONFIG, "result: ip4.ip: "),
        (r#"{"cniVersion":"7"}"#, Code::UNDECODABLE, "result: cniVersion: "),
        (r#"{"routes":[{"dst":"::/0","scope":256}]}"#, Code::INVALID_CONFIG, "result: routes[0].scope: 256"),
        ("[1]", Code::UNDECODABLE, "result: document: expected an object"),
        ("hello", Code::UNDECODABLE, "result: not JSON"),
    ];
    for (text, code, message) in cases {
        let error = decode(text).unwrap_err();
        assert_eq!(error.code, code, "{text}");
        assert!(error.message.starts_with(message), "{text}: {error}");
    }
}

fn any_net() -> impl Strategy<Value = IpNet> {
    let v4 = (any::<[u8; 4]>(), 0..=32u8).prop_map(|(ip, len)| Ipv4Net::new(ip.into(), len).unwrap().into());
    let v6 =
        (any::<[u8; 16]>(), 0..=128u8).prop_map(|(ip, len)| Ipv6Net::new(ip.into(), len).unwrap().into());
    prop_oneof![v4, v6]
}

fn any_address() -> impl Strategy<Value = Option<IpAddr>> {
    proptest::option::of(any::<IpAddr>())
}

fn any_interface() -> impl Strategy<Value = Interface> {
    (".*", ".*", any::<u32>(), ".*", ".*", ".*").prop_map(|(name, mac, mtu, sandbox, socket_path, pci_id)| {
        Interface { name, mac, mtu, sandbox, socket_path, pci_id }
    })
}

fn any_ip() -> impl Strategy<Value = IpConfig> {
    (any_net(), any_address(), proptest::option::of(0..9usize))
        .prop_map(|(address, gateway, interface)| IpConfig { address, gateway, interface })
}

fn any_route() -> impl Strategy<Value = Route> {
    let numbers = (any::<u32>(), any::<u32>(), any::<u32>(), any::<Option<u32>>(), any::<Option<u8>>());
    (any_net(), any_address(), numbers).prop_map(|(dst, gw, (mtu, advmss, priority, table, scope))| Route {
        dst,
        gw,
        mtu,
        advmss,
        priority,
        table,
        scope,
    })
}

fn any_dns() -> impl Strategy<Value = Dns> {
    let list = || proptest::collection::vec(".*", 0..3);
    (list(), ".*", list(), list()).prop_map(|(nameservers, domain, search, options)| Dns {
        nameservers,
        domain,
        search,
        options,
    })
}

fn any_result() -> impl Strategy<Value = AddResult> {
    let vec = proptest::collection::vec(any_interface(), 0..3);
    (vec, proptest::collection::vec(any_ip(), 0..5), proptest::collection::vec(any_route(), 0..5), any_dns())
        .prop_map(|(interfaces, ips, routes, dns)| AddResult { interfaces, ips, routes, dns })
}

fn any_version() -> impl Strategy<Value = Version> {
    proptest::sample::select(Version::ALL.to_vec())
}

/// What passing through `version` leaves of a result, written from the specification's tables.
fn left_by(version: Version, mut result: AddResult) -> AddResult {
    if version < Version::V1_0_0 {
        for interface in &mut result.interfaces {
            *interface =
                Interface { mtu: 0, socket_path: String::new(), pci_id: String::new(), ..interface.clone() };
        }
    }
    if version < Version::V0_3_0 {
        let (v4, v6): (Vec<_>, Vec<_>) = result.ips.into_iter().partition(|ip| ip.address.addr().is_ipv4());
        let first = |ips: Vec<IpConfig>| ips.into_iter().next().map(|ip| IpConfig { interface: None, ..ip });
        result.ips = first(v4).into_iter().chain(first(v6)).collect();
        let has = |is_v4| result.ips.iter().any(|ip| ip.address.addr().is_ipv4() == is_v4);
        let of = |is_v4: bool| {
            let routes = result.routes.iter().filter(move |route| route.dst.addr().is_ipv4() == is_v4);
            routes.map(|route| Route::new(route.dst, route.gw)).collect::<Vec<_>>()
        };
        let (v4, v6) =
            (if has(true) { of(true) } else { vec![] }, if has(false) { of(false) } else { vec![] });
        result.routes = [v4, v6].concat();
        result.interfaces.clear();
    }
    result
}

proptest! {
    #[test]
    fn encoding_and_decoding_leaves_what_the_version_can_say(result in any_result(), version in any_version()) {
        match result.encode(version) {
            Ok(bytes) => prop_assert_eq!(AddResult::decode(&bytes, Version::LATEST), Ok(left_by(version, result))),
            Err(_) => prop_assert!(result.ips.is_empty() && version < Version::V0_3_0),
        }
    }

    #[test]
    fn converting_twice_equals_converting_over_the_poorer_version(
        result in any_result(),
        first in any_version(),
        second in any_version(),
    ) {
        let convert = |result: &AddResult, version: Version| {
            result.encode(version).map(|bytes| AddResult::decode(&bytes, Version::LATEST).unwrap())
        };
        let over_both = convert(&result, first).and_then(|between| convert(&between, second));
        prop_assert_eq!(over_both, convert(&result, first.min(second)));
    }

    #[test]
    fn a_decoded_result_is_stable_when_written_in_its_own_version(result in any_result(), version in any_version()) {
        if let Ok(bytes) = result.encode(version) {
            let again = AddResult::decode(&bytes, version).unwrap().encode(version).unwrap();
            prop_assert_eq!(again, bytes);
        }
    }

    #[test]
    fn no_bytes_make_the_decoders_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), version in any_version()) {
        let _ = AddResult::decode(&bytes, version);
        let _ = crate::config::Config::parse(&bytes);
    }
}
