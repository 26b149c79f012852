//! What policies make of connections through a Service, whoever translates its address: the story that every way of carrying
//! Services has to pass.
//!
//! Read [`tell`]. The Service is carried at [`SERVICE`] and, for who comes from outside, at [`NODE_PORTS`] of the node; behind it is
//! one pod, at another port than the Service's own.

use harness::talk::{Client, ask, is_deaf, serve};
use harness::{Namespace, eventually, run_ok};
use serde_json::{Value, json};

use crate::scene::{Pod, Scene, only_from};

/// The Service's addresses.
pub(crate) const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:10:96::10"];
/// Its port.
pub(crate) const PORT: u16 = 80;
/// The pod's.
pub(crate) const TARGET: u16 = 8080;
/// The node's addresses.
pub(crate) const NODE: [&str; 2] = ["198.18.0.1", "fd00:198:18::1"];
/// The node's ports, with external traffic policy `Cluster` and `Local`.
pub(crate) const NODE_PORTS: [u16; 2] = [30080, 30081];
/// The addresses of who is outside.
const OUTSIDE: [&str; 2] = ["198.18.0.254", "fd00:198:18::fe"];

/// A node with its pods, and somebody outside.
pub(crate) struct Play {
    pub(crate) scene: Scene,
    pub(crate) web: Pod,
    friend: Pod,
    client: Pod,
}

/// Who asks, and where.
#[derive(Clone, Copy)]
struct Asker<'a> {
    from: &'a Namespace,
    addresses: [&'a str; 2],
    port: u16,
}

impl Asker<'_> {
    fn is_answered(self) -> bool {
        let said = |address: &&str| ask(self.from, address, self.port);
        self.addresses.iter().all(|address| said(address).is_some_and(|word| word.starts_with("web ")))
    }

    fn hears_nothing(self) -> bool {
        self.addresses.iter().all(|address| is_deaf(self.from, address, self.port))
    }
}

impl Play {
    /// The pods run, and nobody carries a Service yet.
    pub(crate) fn new() -> Self {
        let scene = Scene::enforcing();
        let (web, friend, client) =
            (scene.pod("web", "web"), scene.pod("friend", "friend"), scene.pod("client", "client"));
        serve(&web.netns, TARGET, "web");
        let outside = &scene.rig.underlay;
        outside.ip(&format!("address add {}/24 dev br0", OUTSIDE[0]));
        outside.ip(&format!("address add {}/64 dev br0 nodad", OUTSIDE[1]));
        Self { scene, web, friend, client }
    }

    fn of_pod<'a>(&'a self, pod: &'a Pod) -> Asker<'a> {
        Asker { from: &pod.netns, addresses: SERVICE, port: PORT }
    }

    fn outside(&self) -> [Asker<'_>; 2] {
        NODE_PORTS.map(|port| Asker { from: &self.scene.rig.underlay, addresses: NODE, port })
    }

    fn node(&self) -> Asker<'_> {
        Asker { from: &self.scene.node().netns, addresses: SERVICE, port: PORT }
    }

    /// How many packets policies have dropped.
    fn denied(&self) -> u64 {
        let list = ["list", "table", "inet", "fairlead_policy"];
        let table = run_ok(self.scene.node().netns.command("nft").args(list));
        let drops = table.lines().filter(|line| line.contains("isolated, and nothing allows it"));
        let count =
            |line: &str| line.split("counter packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok();
        drops.filter_map(count).sum()
    }

    fn await_answer(&self, asker: Asker<'_>, what: &str) {
        eventually(what, || asker.is_answered().then_some(()));
    }

    /// It gets no answer, because policies drop what it sends.
    fn await_denied(&self, asker: Asker<'_>, what: &str) {
        eventually(what, || {
            let before = self.denied();
            (asker.hears_nothing() && self.denied() > before).then_some(())
        });
    }

    fn put_policy(&self, name: &str, app: &str, spec: Value) {
        self.scene.put_policy(name, app, spec);
        let in_force = |status: &agent::Status| {
            status.policies.enforced && status.policies.generation == status.policies.programmed
        };
        self.scene.node().await_status("it is in force", |status| in_force(status));
    }
}

/// The story, once somebody carries the Service.
pub(crate) fn tell(play: &Play) {
    let Play { scene, web, friend, client } = play;
    let [cluster, local] = play.outside();
    let everybody = [
        ("a pod", play.of_pod(client)),
        ("itself", play.of_pod(web)),
        ("the node", play.node()),
        ("who is outside, by policy Cluster", cluster),
        ("who is outside, by policy Local", local),
    ];
    for (who, asker) in everybody {
        play.await_answer(asker, &format!("nobody is isolated, and {who} reaches the Service"));
    }

    // Ingress: of the pod behind it, at the pod's port.
    let open: Vec<Client> = SERVICE.iter().map(|service| Client::new(&client.netns, service, PORT)).collect();
    open.iter().for_each(|client| drop(client.ask()));
    let mut door = only_from("friend");
    door["ingress"][0]["ports"] = json!([{"port": TARGET}, {"port": TARGET, "protocol": "UDP"}]);
    play.put_policy("door", "web", door);
    play.await_denied(play.of_pod(client), "a pod that is not let in");
    for asker in [cluster, local] {
        play.await_denied(asker, "nor is anybody outside");
    }
    for client in &open {
        eventually("what was open is cut", || client.try_ask().is_none().then_some(()));
    }
    for (who, asker) in
        [("a friend", play.of_pod(friend)), ("the node", play.node()), ("itself", play.of_pod(web))]
    {
        play.await_answer(asker, &format!("{who} is let in"));
    }
    let block = |cidr: &str| json!({"ipBlock": {"cidr": cidr}});
    let from_outside =
        OUTSIDE.map(|address| block(&format!("{address}/{}", if address.contains(':') { 128 } else { 32 })));
    play.put_policy("door", "web", json!({"ingress": [{"from": from_outside}]}));
    for asker in [cluster, local] {
        play.await_answer(asker, "it is the one outside who is let in");
    }
    play.await_denied(play.of_pod(friend), "and a friend is not any more");
    scene.remove("door");
    play.await_answer(play.of_pod(friend), "everybody is let in");

    // Egress: to the pod behind it, and not to the Service's address.
    let way = |to: Value, port: u16| json!({"policyTypes": ["Egress"], "egress": [{"to": to, "ports": [{"port": port}]}]});
    let to = |app: &str| json!([{"podSelector": {"matchLabels": {"app": app}}}]);
    play.put_policy("way", "client", way(to("web"), TARGET));
    play.await_answer(play.of_pod(client), "it may go to the pod, so to the Service");
    play.put_policy("way", "client", way(to("web"), PORT));
    play.await_denied(play.of_pod(client), "the port is the pod's, not the Service's");
    play.put_policy("way", "client", way(to("friend"), TARGET));
    play.await_denied(play.of_pod(client), "it may go to another one");
    play.put_policy("way", "client", way(json!([block("10.96.0.0/12"), block("fd00:10:96::/112")]), PORT));
    play.await_denied(play.of_pod(client), "nobody goes to a Service's address");
    play.await_answer(play.of_pod(friend), "others go where they like");
}
