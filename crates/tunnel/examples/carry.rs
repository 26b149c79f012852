//! A tunnel in the namespace it is started in, until its standard input ends; then it prints what it has counted.
//!
//!     carry udp|ipip|wireguard DEVICE MTU PORT UNDERLAY PEER=UNDERLAY=CIDR[,CIDR]...
//!
//! Over WireGuard each node's key is its underlay address: this is no way to keep a secret.
//! The device is addressed and routed to by whoever starts this. It is what the benchmark measures.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "an example talks to a person"
)]

use std::io::Read;
use std::net::IpAddr;

use tunnel::{Encapsulation, Peer, Secret, Settings, Tunnel};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [encapsulation, device, mtu, port, underlay, peers @ ..] = arguments.as_slice() else {
        return Err("carry udp|ipip|wireguard DEVICE MTU PORT UNDERLAY PEER=UNDERLAY=CIDR[,CIDR]...".into());
    };
    let underlay: IpAddr = underlay.parse()?;
    let encapsulation = match encapsulation.as_str() {
        "udp" => Encapsulation::Udp,
        "ipip" => Encapsulation::Ipip,
        "wireguard" => Encapsulation::WireGuard { private_key: secret(underlay) },
        other => return Err(format!("{other}: expected udp, ipip or wireguard").into()),
    };
    let settings = Settings {
        device: device.clone(),
        queues: 1,
        port: port.parse()?,
        underlay: vec![underlay],
        encapsulation,
        mtu: mtu.parse()?,
    };
    let peers: Result<Vec<Peer>, Box<dyn std::error::Error>> = peers.iter().map(|text| peer(text)).collect();
    let tunnel = Tunnel::start(settings, &peers?)?;
    println!("carrying");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    println!("{:#?}", tunnel.counters());
    Ok(())
}

fn peer(text: &str) -> Result<Peer, Box<dyn std::error::Error>> {
    let mut words = text.split('=');
    let (Some(name), Some(underlay), Some(nets)) = (words.next(), words.next(), words.next()) else {
        return Err(format!("{text}: expected NAME=UNDERLAY=CIDR").into());
    };
    let pod_cidrs = nets.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let underlay = underlay.parse()?;
    Ok(Peer { pod_cidrs, public_key: Some(secret(underlay).public_key()), ..Peer::new(name, underlay) })
}

fn secret(underlay: IpAddr) -> Secret {
    let mut bytes = [7; 32];
    for (byte, number) in bytes.iter_mut().zip(underlay.to_string().bytes()) {
        *byte = number;
    }
    Secret(bytes)
}
