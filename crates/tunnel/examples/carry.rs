//! A tunnel in the namespace it is started in, until its standard input ends; then it prints what it has counted.
//!
//!     carry DEVICE MTU PORT UNDERLAY PEER=UNDERLAY=CIDR[,CIDR]...
//!
//! The device is addressed and routed to by whoever starts this. It is what the benchmark measures.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "an example talks to a person"
)]

use std::io::Read;
use std::net::IpAddr;

use tunnel::{Encapsulation, Peer, Settings, Tunnel};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [device, mtu, port, underlay, peers @ ..] = arguments.as_slice() else {
        return Err("carry DEVICE MTU PORT UNDERLAY PEER=UNDERLAY=CIDR[,CIDR]...".into());
    };
    let tunnel = Tunnel::start(Settings {
        device: device.clone(),
        queues: 1,
        port: port.parse()?,
        underlay: vec![underlay.parse::<IpAddr>()?],
        encapsulation: Encapsulation::Udp,
        mtu: mtu.parse()?,
    })?;
    let peers: Result<Vec<Peer>, Box<dyn std::error::Error>> = peers.iter().map(|text| peer(text)).collect();
    tunnel.set_peers(&peers?);
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
    Ok(Peer { pod_cidrs, ..Peer::new(name, underlay.parse()?) })
}
