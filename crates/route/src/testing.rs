//! Short ways to write hosts and networks in this crate's tests.

use ipnet::IpNet;

use crate::host::{Host, HostAddress, HostLink, HostRoute};

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| net(text)).collect()
}

pub(crate) fn link(name: &str) -> HostLink {
    HostLink {
        name: name.to_owned(),
        mtu: 1500,
        up: true,
        loopback: name == "lo",
        ours: false,
        accept_ra: Some(0),
    }
}

pub(crate) fn address(link: &str, address: &str) -> HostAddress {
    HostAddress { link: link.to_owned(), address: net(address), global: true, avoid: false, permanent: true }
}

pub(crate) fn route(destination: &str, link: &str, gateway: Option<&str>) -> HostRoute {
    HostRoute {
        destination: net(destination),
        link: Some(link.to_owned()),
        gateway: gateway.map(|text| text.parse().unwrap()),
        source: None,
        metric: 0,
        ours: false,
    }
}

/// A machine with `lo` and `eth0`, both families, and a default route for each.
pub(crate) fn host() -> Host {
    let mut local = address("eth0", "fe80::5/64");
    local.global = false;
    Host {
        links: vec![link("lo"), link("eth0")],
        addresses: vec![address("eth0", "198.18.0.5/24"), local, address("eth0", "fd00:198:18::5/64")],
        routes: vec![
            route("0.0.0.0/0", "eth0", Some("198.18.0.1")),
            route("198.18.0.0/24", "eth0", None),
            route("::/0", "eth0", Some("fd00:198:18::1")),
        ],
        strict_reverse_path: false,
    }
}
