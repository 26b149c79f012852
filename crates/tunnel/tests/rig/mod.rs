//! Two nodes on one underlay, a pod behind each, and a tunnel between them.
//!
//! Read [`Rig`]: everything of it is number 1 or 2. Pods are 10.N.0.2 and fd00:N::2, nodes 192.0.2.N and 2001:db8::N.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod wire;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use harness::Namespace;
use tunnel::{Encapsulation, Peer, Settings, Tunnel};

/// The TUN device in each node.
pub(crate) const DEVICE: &str = "tun0";
/// The port that the nodes listen to.
pub(crate) const PORT: u16 = 8285;

/// Two nodes and their pods. The tunnels are not started.
pub(crate) struct Rig {
    pub(crate) nodes: [Namespace; 2],
    pub(crate) pods: [Namespace; 2],
    pub(crate) mtu: u16,
    pub(crate) encapsulation: Encapsulation,
    /// Whether the underlay is IPv6.
    pub(crate) six: bool,
}

impl Rig {
    /// `None`, with the reason said, where there are no TUN devices to be had.
    pub(crate) fn new(encapsulation: Encapsulation, mtu: u16) -> Option<Self> {
        let probe = Namespace::new();
        if let Err(error) = probe.inside(|| kernel::tun::create(DEVICE)) {
            harness::not_run(&format!("there are no TUN devices to be had: {error}"));
            return None;
        }
        let nodes = [Namespace::with_loopback(), Namespace::with_loopback()];
        let pods = [Namespace::with_loopback(), Namespace::with_loopback()];
        nodes[0].ip(&format!("link add u type veth peer name u netns {}", nodes[1].path().display()));
        let rig = Self { nodes, pods, mtu, encapsulation, six: false };
        rig.lay(1);
        rig.lay(2);
        for (node, pod) in rig.nodes.iter().zip(&rig.pods) {
            for (namespace, link) in [(node, "u"), (node, "pod"), (pod, "eth0")] {
                carries(namespace, link);
            }
        }
        // Neighbours of IPv6 are found once no link-local address is in doubt any more.
        for (pod, gateway) in rig.pods.iter().zip(["fd00:1::1", "fd00:2::1"]) {
            harness::eventually("the pod reaches its node", || pod.pings(gateway).then_some(()));
        }
        Some(rig)
    }

    fn lay(&self, number: usize) {
        let (node, pod) = (&self.nodes[number - 1], &self.pods[number - 1]);
        let (other, mtu) = (3 - number, self.mtu);
        node.inside(|| kernel::tun::create(DEVICE)).unwrap();
        for words in [
            format!("address add 192.0.2.{number}/24 dev u"),
            format!("address add 2001:db8::{number}/64 dev u nodad"),
            "link set u up".to_owned(),
            format!("link add pod type veth peer name eth0 netns {}", pod.path().display()),
            format!("link set pod mtu {mtu} up"),
            format!("address add 10.{number}.0.1/24 dev pod"),
            format!("address add fd00:{number}::1/64 dev pod nodad"),
            format!("link set {DEVICE} mtu {mtu} txqueuelen 1000 up"),
            format!("address add 10.{number}.0.0/32 dev {DEVICE}"),
            format!("route add 10.{other}.0.0/24 dev {DEVICE}"),
            format!("route add fd00:{other}::/64 dev {DEVICE}"),
            // Of nobody.
            format!("route add 10.9.0.0/24 dev {DEVICE}"),
            format!("route add fd00:9::/64 dev {DEVICE}"),
        ] {
            node.ip(&words);
        }
        for words in [
            format!("link set eth0 mtu {mtu} up"),
            format!("address add 10.{number}.0.2/24 dev eth0"),
            format!("address add fd00:{number}::2/64 dev eth0 nodad"),
            format!("route add default via 10.{number}.0.1"),
            format!("route add default via fd00:{number}::1"),
        ] {
            pod.ip(&words);
        }
        for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
            harness::run_ok(node.command("sysctl").args(["-q", "-w", setting]));
        }
    }

    /// A node's underlay address.
    pub(crate) fn underlay(&self, number: usize) -> IpAddr {
        let text = if self.six { format!("2001:db8::{number}") } else { format!("192.0.2.{number}") };
        text.parse().unwrap()
    }

    /// What a node's tunnel is told.
    pub(crate) fn settings(&self, number: usize, queues: usize) -> Settings {
        Settings {
            device: DEVICE.to_owned(),
            queues,
            port: PORT,
            underlay: vec![self.underlay(number)],
            encapsulation: self.encapsulation,
            mtu: self.mtu,
        }
    }

    /// The node with this number, as the other knows it.
    pub(crate) fn peer(&self, number: usize) -> Peer {
        let nets = [format!("10.{number}.0.0/24"), format!("fd00:{number}::/64")];
        let pod_cidrs = nets.iter().map(|net| net.parse().unwrap()).collect();
        Peer { pod_cidrs, ..Peer::new(&format!("node{number}"), self.underlay(number)) }
    }

    /// A node's tunnel, without peers.
    pub(crate) fn start(&self, number: usize, queues: usize) -> Tunnel {
        self.nodes[number - 1].inside(|| Tunnel::start(self.settings(number, queues), &[])).unwrap()
    }

    /// Both tunnels, which know each other.
    pub(crate) fn join(&self, queues: usize) -> [Tunnel; 2] {
        let tunnels = [self.start(1, queues), self.start(2, queues)];
        self.wait_for_devices();
        tunnels[0].set_peers(&[self.peer(2)]);
        tunnels[1].set_peers(&[self.peer(1)]);
        tunnels
    }

    /// Waits until a node's device takes packets.
    pub(crate) fn wait_for_device(&self, number: usize) {
        carries(&self.nodes[number - 1], DEVICE);
    }

    /// Waits until both do.
    pub(crate) fn wait_for_devices(&self) {
        self.wait_for_device(1);
        self.wait_for_device(2);
    }

    /// What `ping` from the first pod prints.
    pub(crate) fn ping(&self, arguments: &str) -> String {
        let output = harness::run(self.pods[0].command("ping").args(arguments.split_whitespace()));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A `ping` from the first pod to the second that goes on meanwhile.
    pub(crate) fn pinging(&self, arguments: &str) -> Child {
        let mut command: Command = self.pods[0].command("ping");
        command.args(arguments.split_whitespace()).stdout(Stdio::piped()).spawn().unwrap()
    }
}

/// Waits until a link takes packets, which is some time after its other end is there.
fn carries(namespace: &Namespace, link: &str) {
    harness::eventually("the link carries", || {
        let shown = namespace.ip_json(&format!("link show {link}"));
        (shown[0]["operstate"] == "UP").then_some(())
    });
}

/// What a `ping` that went on meanwhile says in the end.
pub(crate) fn verdict(ping: Child) -> String {
    let output = ping.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Sends bytes over one TCP connection and has them sent back; true when they are the same.
pub(crate) fn echoes(from: &Namespace, to: &Namespace, address: &str, length: usize) -> bool {
    let listener = to.inside(|| TcpListener::bind(SocketAddr::from(([0_u16; 8], 0))).unwrap());
    let address = SocketAddr::new(address.parse().unwrap(), listener.local_addr().unwrap().port());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    let sent: Vec<u8> = (0..length).map(|index| (index / 3 + index / 1000) as u8).collect();
    let mut stream = from.inside(|| TcpStream::connect(address)).unwrap();
    stream.write_all(&sent).unwrap();
    let mut received = vec![0; length];
    stream.read_exact(&mut received).unwrap();
    server.join().unwrap();
    sent == received
}
