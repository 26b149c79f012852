//! Chaos: what happens to nodes happens to these three, in no order and several things at once; after each time every node has
//! to be exactly what its plan says, and every pod to reach every other.
//!
//! Read [`Chaos::happen`]. `FAIRLEAD_CHAOS_SECONDS` says for how long it goes on, 15 if nothing is said; every run prints its
//! seed, which `FAIRLEAD_CHAOS_SEED` takes to have the same things happen again. Five minutes:
//!
//!     FAIRLEAD_CHAOS_SECONDS=300 cargo test -p agent --test cluster chaos -- --nocapture

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use harness::{eventually, run, run_ok};

use crate::rig::{Node, Rig};

const BACKENDS: [&str; 5] = ["vxlan", "host-gw", "udp", "ipip", "wireguard"];
/// The tunnels' devices of all of them.
const DEVICES: [&str; 5] = ["fairlead0", "fairlead-udp", "fairlead-ipip", "fairlead-wg", "fairlead-wg1"];

/// Each event once, for those who write it and for chance, which takes one of them.
macro_rules! events {
    ($($event:ident),+ $(,)?) => {
        /// What can happen to a node; `BackendChanged` to the whole cluster.
        #[derive(Debug, Clone, Copy)]
        enum Event {
            $($event),+
        }

        const EVENTS: &[Event] = &[$(Event::$event),+];
    };
}

events! {
    AgentKilled,
    AgentStopped,
    LinkFlapped,
    DeviceDeleted,
    RoutesFlushed,
    NeighboursFlushed,
    ForwardingEntriesDeleted,
    AddressesFlushed,
    RulesetFlushed,
    ElementsEdited,
    FiltersMadeStrict,
    ForwardingOff,
    DeviceShrunk,
    ForeignThings,
    NodeMoved,
    LinkNarrowed,
    KeyLost,
    NodeObjectReplaced,
    LeaseDeleted,
    BackendChanged,
}

/// Numbers in no order, the same ones for the same seed (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

struct Chaos {
    rig: Rig,
    random: Random,
    backend: usize,
    /// The last number of each node's underlay address.
    addresses: Vec<usize>,
    /// Which nodes' underlay carries less than that of the others.
    narrow: BTreeSet<usize>,
    /// Which nodes have somebody else's things.
    foreign: BTreeSet<usize>,
}

#[test]
fn chaos_leaves_every_node_as_its_plan_says_after_each_step() {
    let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seconds = setting("FAIRLEAD_CHAOS_SECONDS").unwrap_or(15);
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    // A seed of zero would stay zero.
    let seed = setting("FAIRLEAD_CHAOS_SEED").unwrap_or(u64::from(clock.subsec_nanos())) | 1;
    eprintln!("FAIRLEAD_CHAOS_SEED={seed}");
    let mut chaos = Chaos::new(Random(seed));
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut steps = 0;
    while Instant::now() < end {
        let count = 1 + chaos.random.below(3);
        for _ in 0..count {
            let event = EVENTS[chaos.random.below(EVENTS.len())];
            let node = chaos.random.below(chaos.rig.nodes.len());
            eprintln!("step {steps}: {event:?} on node{}", node + 1);
            chaos.happen(event, node);
        }
        chaos.check();
        steps += 1;
    }
    eprintln!("{steps} steps in {seconds} s");
    chaos.clean();
}

impl Chaos {
    fn new(random: Random) -> Self {
        let mut rig = Rig::new(3);
        for node in &mut rig.nodes {
            node.configure("backend: vxlan\n");
            node.start();
        }
        rig.await_joined();
        rig.add_pods();
        Self {
            rig,
            random,
            backend: 0,
            addresses: vec![1, 2, 3],
            narrow: BTreeSet::new(),
            foreign: BTreeSet::new(),
        }
    }

    fn happen(&mut self, event: Event, index: usize) {
        match event {
            Event::AgentKilled | Event::AgentStopped | Event::KeyLost => self.restart(event, index),
            Event::LinkFlapped => {
                let netns = &self.rig.nodes[index].netns;
                netns.ip("link set eth0 down");
                netns.ip("link set eth0 up");
                self.settle_underlay(index);
            }
            Event::ForeignThings => self.add_foreign(index),
            Event::NodeMoved => self.move_node(index),
            Event::LinkNarrowed => {
                let mtu = if self.narrow.remove(&index) { 1500 } else { 1400 };
                if mtu == 1400 {
                    self.narrow.insert(index);
                }
                self.rig.nodes[index].netns.ip(&format!("link set eth0 mtu {mtu}"));
            }
            Event::NodeObjectReplaced => {
                let name = self.rig.nodes[index].name.clone();
                self.rig.remove_node(&name);
                self.rig.put_node(&name, "");
            }
            Event::LeaseDeleted => {
                let name = self.rig.nodes[index].name.clone();
                self.rig.forget(&name);
            }
            Event::BackendChanged => {
                self.backend = (self.backend + 1) % BACKENDS.len();
                let strict = self.random.below(2) == 0;
                let text = format!("backend: {}\nwireguard: {{strict: {strict}}}\n", BACKENDS[self.backend]);
                self.rig.nodes.iter_mut().for_each(|node| node.configure(&text));
            }
            of_the_kernel => edit(&self.rig.nodes[index], of_the_kernel),
        }
    }

    fn restart(&mut self, event: Event, index: usize) {
        let node = &mut self.rig.nodes[index];
        if let Event::AgentStopped = event {
            // One that was started a moment ago may not have taken the signal over yet, and dies of it.
            let code = node.stop();
            assert!(matches!(code, Some(0) | None), "{code:?}");
        } else {
            node.kill();
        }
        if let Event::KeyLost = event {
            for entry in std::fs::read_dir(node.state_dir()).unwrap().map(Result::unwrap) {
                if entry.file_name().to_string_lossy().starts_with("wireguard") {
                    std::fs::remove_file(entry.path()).unwrap();
                }
            }
        }
        node.start();
    }

    /// What the kernel takes with a link that goes down, and its owner gives back.
    fn settle_underlay(&self, index: usize) {
        let (netns, number) = (&self.rig.nodes[index].netns, index + 1);
        netns.ip(&format!("address replace fd00:198:18::{number}/64 dev eth0 nodad"));
        netns.ip("route replace default via 198.18.0.254");
        netns.ip("route replace default via fd00:198:18::fe dev eth0");
    }

    fn move_node(&mut self, index: usize) {
        let before = self.addresses[index];
        // 1 to 3, then 11 to 13, and so on: no two nodes meet.
        let after = (before + 10) % 200;
        let netns = &self.rig.nodes[index].netns;
        netns.ip(&format!("address del 198.18.0.{before}/24 dev eth0"));
        netns.ip(&format!("address add 198.18.0.{after}/24 dev eth0"));
        self.addresses[index] = after;
        self.settle_underlay(index);
    }

    fn add_foreign(&mut self, index: usize) {
        if !self.foreign.insert(index) {
            return;
        }
        let netns = &self.rig.nodes[index].netns;
        netns.ip("link add others0 type bridge");
        netns.ip("link set others0 up");
        netns.ip("route add 203.0.113.0/24 dev others0 proto 99");
        run_ok(netns.command("nft").args(["add table ip others; add chain ip others kept"]));
    }

    /// The cluster comes to rest, whole.
    fn check(&self) {
        self.rig.await_joined();
        for node in &self.rig.nodes {
            let wanted = self.wanted_routes(node);
            let mut last = String::new();
            eventually(&format!("{} has exactly the routes it should have", node.name), || {
                let plan = agent::ask_plan(&node.state_dir()).ok()?;
                let found = routes(node);
                if plan.steps.is_empty() && found == wanted {
                    return Some(());
                }
                let now = format!("{}: {found:?}\nwanted: {wanted:?}\nplan: {:?}", node.name, plan.steps);
                if now != last {
                    eprintln!("{now}");
                    last = now;
                }
                None
            });
        }
        self.rig.nodes.iter().for_each(|node| self.look_independently(node));
        for index in &self.foreign {
            let netns = &self.rig.nodes[*index].netns;
            assert!(netns.ip("route show proto 99").contains("203.0.113.0/24"), "somebody's route is kept");
            assert!(netns.link_names().contains(&"others0".to_owned()), "somebody's link is kept");
            run_ok(netns.command("nft").args(["list", "chain", "ip", "others", "kept"]));
        }
        self.await_reachable();
    }

    /// What the agent's own plan does not have to be believed for.
    fn look_independently(&self, node: &Node) {
        for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            assert_eq!(node.netns.sysctl(path), "1", "{}: {path}", node.name);
        }
        for device in node.netns.link_names().iter().filter(|link| DEVICES.contains(&link.as_str())) {
            let filter = node.netns.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"));
            assert_ne!(filter, "1", "{}: {device} filters strictly", node.name);
        }
        let table = run_ok(node.netns.command("nft").args(["list", "table", "inet", "fairlead"]));
        assert!(table.contains("elements = { 10.244.0.0/16 }"), "{}: {table}", node.name);
        assert!(table.contains("ip saddr @cluster4 ip daddr @cluster4 return"), "{}: {table}", node.name);
        if BACKENDS[self.backend] == "vxlan" {
            let number = |peer: &Node| format!("198.18.0.{}", self.addresses[peer.number - 1]);
            let mut wanted: Vec<String> =
                self.rig.nodes.iter().filter(|peer| peer.name != node.name).map(number).collect();
            wanted.sort();
            // A peer that moved a moment ago may not have been heard of yet.
            let what = format!("{}: the tunnel leads to {wanted:?}", node.name);
            eventually(&what, || (node.fdb() == wanted).then_some(()));
        }
    }

    /// Every pod reaches every other. At once, but where an agent was restarted and its device deleted while the backend
    /// changed: peers send to that device for up to two seconds more.
    fn await_reachable(&self) {
        for from in &self.rig.nodes {
            for to in &self.rig.nodes {
                for (source, target) in from.pod_addresses().iter().zip(to.pod_addresses()) {
                    let what = format!("{} {source} reaches {} {target}", from.name, to.name);
                    eventually(&what, || from.pings(source, &target).then_some(()));
                }
            }
        }
    }

    /// A node's own pod CIDRs, which lead nowhere but to pods, and those of its peers; where packets are encrypted, all else of the
    /// cluster's networks leads into the tunnel, which refuses it, and nowhere should that be away.
    fn wanted_routes(&self, node: &Node) -> BTreeSet<String> {
        let nowhere = |cidr: String| format!("unreachable {cidr}");
        let peers = self.rig.nodes.iter().filter(|peer| peer.name != node.name);
        let encrypted = BACKENDS[self.backend] == "wireguard";
        let networks = ["10.244.0.0/16", "fd00:10:244::/56"].into_iter().filter(|_| encrypted);
        let networks: Vec<String> = networks.map(str::to_owned).collect();
        let own = node.pod_cidrs().into_iter().chain(networks.clone()).map(nowhere);
        peers.flat_map(Node::pod_cidrs).chain(own).chain(networks).collect()
    }

    fn clean(mut self) {
        for node in &mut self.rig.nodes {
            node.kill();
            run_ok(&mut node.command(&["clean"]));
            assert_eq!(routes(node), BTreeSet::new(), "{}", node.name);
            let links = node.netns.ip("-d link show");
            assert!(!links.lines().any(|line| line.trim() == "alias fairlead"), "{links}");
            let rules = run_ok(node.netns.command("nft").args(["list", "tables"]));
            assert!(!rules.contains("fairlead"), "{rules}");
        }
    }
}

/// Something of the agent's in the node's kernel is taken away or altered by hand.
fn edit(node: &Node, event: Event) {
    match event {
        Event::DeviceDeleted => {
            DEVICES.iter().for_each(|device| if_there(node, "ip", &format!("link del {device}")));
        }
        Event::RoutesFlushed => {
            if_there(node, "ip", "-4 route flush proto 70");
            if_there(node, "ip", "-6 route flush proto 70");
        }
        Event::NeighboursFlushed => if_there(node, "ip", "neigh flush nud permanent dev fairlead0"),
        Event::ForwardingEntriesDeleted => {
            let entries = node.netns.bridge_json("fdb show");
            let ours =
                entries.as_array().into_iter().flatten().filter(|entry| entry["ifname"] == "fairlead0");
            for entry in ours.filter(|entry| entry["dst"].is_string()) {
                let [mac, to] = ["mac", "dst"].map(|key| entry[key].as_str().unwrap_or_default());
                if_there(node, "bridge", &format!("fdb del {mac} dev fairlead0 dst {to}"));
            }
        }
        Event::AddressesFlushed => {
            DEVICES.iter().for_each(|device| if_there(node, "ip", &format!("address flush dev {device}")));
        }
        Event::RulesetFlushed => if_there(node, "nft", "delete table inet fairlead"),
        Event::ElementsEdited => {
            if_there(node, "nft", "add element inet fairlead cluster4 { 192.0.2.0/24 }");
            if_there(node, "nft", "delete element inet fairlead cluster4 { 10.244.0.0/16 }");
        }
        Event::FiltersMadeStrict => {
            // A link that is deleted meanwhile has none.
            for device in DEVICES {
                run(node.netns.command("sysctl").args([
                    "-q",
                    "-w",
                    &format!("net/ipv4/conf/{device}/rp_filter=1"),
                ]));
            }
        }
        Event::ForwardingOff => {
            tool(node, "sysctl", "-q -w net/ipv4/ip_forward=0");
            tool(node, "sysctl", "-q -w net/ipv6/conf/all/forwarding=0");
        }
        Event::DeviceShrunk => if_there(node, "ip", "link set fairlead0 mtu 1301 down"),
        event => unreachable!("{event:?} is none of the kernel's"),
    }
}

fn tool(node: &Node, program: &str, words: &str) {
    run_ok(node.netns.command(program).args(words.split(' ')));
}

/// The same with what the node may not have (any more) at this moment: its backend is another one, or its agent has not mended it yet.
fn if_there(node: &Node, program: &str, words: &str) {
    let done = run(node.netns.command(program).args(words.split(' ')));
    let why = String::from_utf8_lossy(&done.stderr).into_owned();
    let is_missing = ["Cannot find device", "does not exist", "No such"];
    assert!(
        done.status.success() || is_missing.iter().any(|words| why.contains(words)),
        "{program} {words}: {why}"
    );
}

/// The destinations of the agent's routes, both families.
fn routes(node: &Node) -> BTreeSet<String> {
    let list = |family: &str| {
        let routes = node.netns.ip_json(&format!("{family} route show proto 70"));
        routes.as_array().cloned().unwrap_or_default()
    };
    let named = |route: serde_json::Value| {
        let text = |key: &str| route[key].as_str().unwrap_or_default().to_owned();
        format!("{} {}", text("type"), text("dst")).trim_start_matches("unicast ").to_owned()
    };
    ["-4", "-6"].into_iter().flat_map(list).map(named).collect()
}
