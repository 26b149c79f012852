//! One agent of a large Kubernetes: a thousand nodes and ten thousand pods, as objects of a real API server.
//!
//! Read [`run`]. There are no kubelets and no controllers ([`harness::ApiServer`]): [`objects`] are what those would write,
//! Node objects with the leases of their agents among them. One agent runs, as the service account of deploy/ and in a
//! network namespace of its own, so that all but one of the nodes are peers that it programs.
//!
//! Measured are the time from its start until every peer is programmed, as `fairlead status` tells; its memory then,
//! after a time of rest, which begins when the path to each peer was tried, after a heartbeat of every node and after as many changes of pods; and what it asks the API
//! server, by the audit log. Policies look at every pod of the cluster, so an agent is told of each change of each.

mod objects;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use harness::{ApiServer, Credential, Namespace, Service, eventually};
use serde_json::{Value, json};

use super::{
    agent,
    cluster::{memory, ticks},
    median, release,
};
use crate::workspace;

const NODES: usize = 1000;
const PODS: usize = 10_000;
const STARTS: usize = 5;
const REST: Duration = Duration::from_secs(30);
/// How many requests are given to one process that sends them.
const BATCH: usize = 1000;
/// Our own node; the others are peers.
const OURS: usize = 0;
/// Whom the audit log calls the agent.
const ACCOUNT: &str = "system:serviceaccount:kube-system:fairlead";

/// Prints what the agent takes, the goals beside.
pub(crate) fn run() -> anyhow::Result<()> {
    let underlay = Namespace::with_loopback();
    underlay.ip("link add br0 up type bridge");
    underlay.ip(&format!("address add {}/16 dev br0", objects::SERVER));
    answer_for_peers(&underlay);
    // It says itself why it cannot be.
    let Some(server) = ApiServer::start_in(&underlay, objects::SERVER.into()) else { return Ok(()) };
    let rules = fs::read_to_string(workspace::root().join("deploy/kubernetes/rbac.yaml"))?;
    server.apply(&rules);
    send(&server, (0..NODES).map(|number| ("POST", "/api/v1/nodes".to_owned(), objects::node(number))));
    let pods = "/api/v1/namespaces/default/pods";
    send(&server, (0..PODS).map(|number| ("POST", pods.to_owned(), objects::pod(number, number % NODES))));
    let size = |path: String| server.get(&path).to_string().len();
    println!(
        "\none agent of {NODES} nodes ({} bytes each) and {PODS} pods ({} bytes)   goal",
        size(format!("/api/v1/nodes/{}", objects::node_name(1))),
        size(format!("{pods}/{}", objects::pod_name(1))),
    );
    let kubeconfig =
        server.kubeconfig_for("fairlead", Credential::Token(&server.token_of("kube-system", "fairlead")));
    let mut starts = Vec::new();
    for _ in 1..STARTS {
        starts.push(Agent::start(&underlay, &kubeconfig)?.1);
    }
    let before = asked(&server);
    let (agent, took) = Agent::start(&underlay, &kubeconfig)?;
    starts.push(took);
    let row = format!("start to {} peers programmed, median of {STARTS}", NODES - 1);
    println!("{row:<58}{:>8.2} s    <= 3 s", median(starts) / 1000.0);
    agent.print_memory("then")?;
    agent.await_announced(&server);
    println!("{:<58}     {}", "  asked until then", summary(&server, &before));
    at_rest(&server, &agent)?;
    changes(&server, &agent)
}

/// Has somebody answer the echoes that are sent to peers, which are no machines: who is silent is asked for minutes.
fn answer_for_peers(underlay: &Namespace) {
    underlay.ip(&format!("route add local {} dev lo", objects::MACHINES));
    underlay.ip(&format!("route add unicast {} dev br0 table local", objects::underlay_of(OURS)));
}

/// Prints what the agent does while nothing happens.
fn at_rest(server: &ApiServer, agent: &Agent) -> anyhow::Result<()> {
    agent.await_status("the path to every peer was tried", |status| {
        let mut peers = status["peers"].as_array()?.iter();
        peers.all(|peer| peer["probedMTU"].is_u64()).then_some(())
    });
    let (before, worked) = (asked(server), ticks(agent.process())?);
    // Time passing is what is measured here.
    std::thread::sleep(REST);
    let worked = (ticks(agent.process())? - worked) * 10;
    println!("{:<58}{worked:>8} ms", format!("processor time in {} s of rest", REST.as_secs()));
    println!("{:<58}{:>8}      only watches", "  requests begun meanwhile", summary(server, &before));
    println!("{:<58}     {}", "  watches open", open_watches(server));
    agent.print_memory("after the rest")
}

/// Prints what the cluster's everyday life costs the agent.
fn changes(server: &ApiServer, agent: &Agent) -> anyhow::Result<()> {
    let status = |kind: &str, name: String| format!("/api/v1/{kind}/{name}/status");
    // `told` is how much of it concerns policies.
    let step = |what: &str, mark: u8, told: u64, requests: Vec<objects::Request>| -> anyhow::Result<()> {
        let (before, worked) = (asked(server), ticks(agent.process())?);
        let generation = agent.policies_told() + told;
        send(server, requests.into_iter());
        agent.await_mark(server, mark);
        agent.await_status("what policies decide by is in the kernel", |status| {
            let policies = &status["policies"];
            (policies["generation"].as_u64()? >= generation
                && policies["programmed"] == policies["generation"])
                .then_some(())
        });
        let worked = (ticks(agent.process())? - worked) * 10;
        println!("{:<58}{worked:>8} ms", format!("processor time of {what}"));
        println!("{:<58}{:>8}", "  requests begun meanwhile", summary(server, &before));
        agent.print_memory("after them")
    };
    let heartbeat =
        |number| ("PATCH", status("nodes", objects::node_name(number)), objects::heartbeat(1 + number));
    step(&format!("{NODES} heartbeats of nodes"), 1, 0, (0..NODES).map(heartbeat).collect())?;
    let change = |number| {
        let pod = status("namespaces/default/pods", objects::pod_name(number));
        ("PATCH", pod, objects::pod_running(number))
    };
    step(&format!("{NODES} changes of pods"), 2, NODES as u64, (0..NODES).map(change).collect())
}

fn send(server: &ApiServer, requests: impl Iterator<Item = objects::Request>) {
    let requests: Vec<_> = requests.collect();
    requests.chunks(BATCH).for_each(|chunk| server.batch(chunk));
}

/// What the agents asked so far, by the identity of the request.
fn asked(server: &ApiServer) -> BTreeSet<String> {
    of_agent(server).filter_map(|event| event["auditID"].as_str().map(str::to_owned)).collect()
}

fn of_agent(server: &ApiServer) -> impl Iterator<Item = Value> {
    server.audit().into_iter().filter(|event| event["user"]["username"] == ACCOUNT)
}

/// What the agent asked beside `before`, each kind with its number.
fn summary(server: &ApiServer, before: &BTreeSet<String>) -> String {
    let mut kinds: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for event in of_agent(server) {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let request = word(&event["auditID"]);
        if !before.contains(&request) {
            let about = &event["objectRef"];
            let kind = [&event["verb"], &about["resource"], &about["subresource"]].map(word).join(" ");
            kinds.entry(kind.trim_end().to_owned()).or_default().insert(request);
        }
    }
    let words: Vec<String> = kinds.iter().map(|(kind, which)| format!("{} {kind}", which.len())).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

/// What is watched now: the watches that began and have not ended.
fn open_watches(server: &ApiServer) -> String {
    let mut open = BTreeMap::new();
    for event in of_agent(server).filter(|event| event["verb"] == "watch") {
        let request = event["auditID"].to_string();
        if event["stage"] == "ResponseStarted" {
            open.insert(request, event["objectRef"]["resource"].as_str().unwrap_or_default().to_owned());
        } else {
            open.remove(&request);
        }
    }
    open.into_values().collect::<Vec<_>>().join(", ")
}

/// A running agent, and the machine that it runs on: a network namespace and a directory.
struct Agent {
    // Ends first.
    service: Service,
    netns: Namespace,
    directory: tempfile::TempDir,
    program: PathBuf,
}

impl Agent {
    /// Starts an agent on a machine that has seen none, and waits until every peer is programmed.
    fn start(underlay: &Namespace, kubeconfig: &Path) -> anyhow::Result<(Self, Duration)> {
        let netns = Namespace::with_loopback();
        // The one of the agent before may be there still: a namespace goes a little after its last process.
        eventually("the port of the node before is gone", || {
            (!underlay.link_names().contains(&"port".to_owned())).then_some(())
        });
        underlay.ip(&format!("link add port type veth peer name eth0 netns {}", netns.path().display()));
        underlay.ip("link set port master br0 up");
        netns.ip("link set eth0 up");
        netns.ip(&format!("address add {}/16 dev eth0", objects::underlay_of(OURS)));
        netns.ip(&format!("route add default via {}", objects::SERVER));
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        fs::write(at("config.yaml"), format!("cluster: {{podCIDRs: [{}]}}\n", objects::POD_NETWORK))?;
        let program = release("fairlead")?;
        let store = format!("kubernetes:{}", kubeconfig.display());
        let mut command = agent(&netns, &objects::node_name(OURS), &store, directory.path())?;
        command.args(["--health", "127.0.0.1:7670"]);
        let start = Instant::now();
        let mut service = Service::start(&mut command, at("agent.log"));
        // Until then it is not asked, which would keep it from work.
        service.await_said("the node can carry pods", 1);
        let agent = Self { service, netns, directory, program };
        agent.await_status("every peer is programmed", |status| {
            let peers = status["peers"].as_array()?;
            let programmed = peers.iter().filter(|peer| peer["state"] == "programmed").count();
            (status["ready"] == true && status["store"]["inSync"] == true && programmed == NODES - 1)
                .then_some(())
        });
        let took = start.elapsed();
        // The kernel's own word for it.
        let routes = agent.netns.ip("route show proto 70");
        let routes = routes.lines().filter(|route| route.contains(" via ")).count();
        ensure!(
            routes == NODES - 1,
            "the agent says that it is done, and there are {routes} routes to peers"
        );
        Ok((agent, took))
    }

    fn process(&self) -> u64 {
        self.service.id().into()
    }

    fn await_status<T>(&self, what: &str, probe: impl Fn(&Value) -> Option<T>) -> T {
        eventually(what, || {
            let mut command = Command::new(&self.program);
            command.args(["status", "-o", "json", "--state-dir"]).arg(self.directory.path().join("run"));
            let answer = command.output().ok()?;
            probe(&serde_json::from_slice(&answer.stdout).ok()?)
        })
    }

    /// How many changes of what policies decide by it was told of.
    fn policies_told(&self) -> u64 {
        self.await_status("the agent says how far policies are", |status| {
            status["policies"]["generation"].as_u64()
        })
    }

    /// Waits until the cluster has been told of the node: its lease, and that it has a network.
    fn await_announced(&self, server: &ApiServer) {
        eventually("the node is announced", || {
            let node = server.get(&format!("/api/v1/nodes/{}", objects::node_name(OURS)));
            let conditions = node["status"]["conditions"].as_array()?;
            let network = conditions.iter().find(|one| one["type"] == "NetworkUnavailable")?;
            (network["status"] == "False" && node["metadata"]["annotations"][objects::LEASE].is_string())
                .then_some(())
        });
    }

    /// Changes a peer, and waits until the agent has seen it and with it all that came before.
    fn await_mark(&self, server: &ApiServer, mark: u8) {
        let name = objects::node_name(NODES - 1);
        let address = objects::mark(mark);
        let lease = objects::lease(NODES - 1, address).to_string();
        server.patch(
            &format!("/api/v1/nodes/{name}"),
            &json!({"metadata": {"annotations": {objects::LEASE: lease}}}),
        );
        self.await_status("the change behind all others is seen", |status| {
            let peers = status["peers"].as_array()?;
            let peer = peers.iter().find(|peer| peer["node"] == *name)?;
            (peer["underlay"][0] == address.to_string() && peer["state"] == "programmed").then_some(())
        });
    }

    fn print_memory(&self, when: &str) -> anyhow::Result<()> {
        let of = |name| memory(self.process(), name).context("the agent runs");
        println!(
            "{:<58}{:>8.1} MB   <= 25 MB   {:.1} MB its own, {:.1} MB at most",
            format!("  resident {when}"),
            of("VmRSS")?,
            of("RssAnon")?,
            of("VmHWM")?
        );
        Ok(())
    }
}
