//! Cases of a corpus, schema 1, played in a lab: see its README.md for the format.
//!
//! Read [`play`]. The pods of a case keep their namespaces from case to case where they can: nearly all cases are about the
//! same nine. A verdict that depends on addresses is computed anew for those that the lab gave, by the corpus' own program.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{eventually, run_ok};
use journeys::TestLab;
use serde_json::{Value, json};

use crate::in_force::Mark;
use crate::oracle::{Filling, Oracle};
use crate::probes::{Answer, Asked, Probe, Protocol, SILENCE, ask};
use crate::sctp;
use crate::state::{Case, Family, id};
use crate::surroundings::{Surroundings, carry_services, have_answer};

/// How long it may take until all verdicts are as they should be, when agents say already that they are.
const DEADLINE: Duration = Duration::from_secs(10);

/// What came of a case.
pub(crate) enum Played {
    /// So many verdicts were asked, and were right.
    Asked(usize),
    /// It cannot be played here.
    LeftOut(&'static str),
    /// So many verdicts were asked, and were right; the case has others that cannot be asked here.
    InPart(usize, &'static str),
}

impl Played {
    /// How many verdicts were asked.
    pub(crate) fn asked(&self) -> usize {
        match self {
            Self::Asked(count) | Self::InPart(count, _) => *count,
            Self::LeftOut(_) => 0,
        }
    }
}

/// A lab that cases are played in, one after the other.
pub(crate) struct Game<'l> {
    lab: &'l TestLab,
    oracle: Oracle,
    nodes: usize,
    /// Whether SCTP can be asked about.
    sctp: bool,
    surroundings: Surroundings,
    mark: Mark,
    /// How long silence has to last: several times as long as it takes here to hear of all when nobody is silent.
    silence: Duration,
    /// What stands in the store, by file.
    written: BTreeMap<String, String>,
    /// Where the ends of the case are.
    ends: BTreeMap<String, End>,
}

/// A pod or node of the lab, or a host outside.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) netns: PathBuf,
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether others have the namespace, too, so that it has to say which address it sends with.
    pub(crate) binds: bool,
}

impl End {
    pub(crate) fn address(&self, v6: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv6() == v6)
    }
}

/// Plays a case with the addresses it can be played with. An error says which verdicts are wrong.
pub(crate) fn play(game: &mut Game<'_>, case: &Value) -> Result<Played, String> {
    let needs: BTreeSet<&str> = list(&case["needs"]).map(text).collect();
    if needs.contains("sctp") && !game.sctp {
        return Ok(Played::LeftOut("the machine's kernel speaks SCTP, and the test does not"));
    }
    if game.nodes == 1 && needs.contains("node") {
        return Ok(Played::LeftOut("nodes of which some are not the pod's"));
    }
    if needs.contains("dns") && case["dns"].as_object().is_some_and(|names| !names.is_empty()) {
        let mut before = case.clone();
        before["dns"] = json!({});
        let asked = play(game, &before)?.asked();
        return Ok(Played::InPart(
            asked,
            "names are looked up by nobody yet; asked without any that is known",
        ));
    }
    let tagged = |tag: &str| list(&case["tags"]).any(|given| text(given) == tag);
    let families: &[Family] = match case["families"].as_array().map_or(0, Vec::len) {
        2.. => &[Family::Named],
        _ if tagged("v4-literal") => &[Family::V4],
        _ if case["ip_dependent"] == true
            || list(&case["nodes"]).chain(list(&case["externals"])).next().is_some()
            || has_placeholders(case) =>
        {
            &[Family::V4, Family::V6]
        }
        _ => &[Family::Both],
    };
    let mut asked = 0;
    for family in families {
        asked += game.play(case, *family)?;
    }
    Ok(Played::Asked(asked))
}

impl<'l> Game<'l> {
    pub(crate) fn new(lab: &'l TestLab, folder: &Path) -> Self {
        let nodes = lab.list()["nodes"].as_array().map_or(0, Vec::len);
        let oracle = Oracle::of(folder);
        let (written, ends) = (BTreeMap::new(), BTreeMap::new());
        let (surroundings, mark) = (Surroundings::of(lab), Mark::default());
        let sctp = sctp::can_be_asked();
        Self { lab, oracle, nodes, sctp, surroundings, mark, silence: SILENCE, written, ends }
    }

    fn play(&mut self, case: &Value, family: Family) -> Result<usize, String> {
        let mut state = Case::new(case, family);
        self.surroundings.label_nodes(self.lab, case);
        let asked = self.rounds(&mut state);
        // The next case has other policies, and pods that have ended or are ending are no pods for it.
        self.write("policies.yaml", None);
        for pod in state.pods.iter().filter(|(_, pod)| pod["phase"].is_string() || pod["terminating"] == true)
        {
            self.remove_pod(pod.0);
        }
        asked
    }

    /// The case from its beginning to its end.
    fn rounds(&mut self, state: &mut Case<'_>) -> Result<usize, String> {
        let (case, family) = (state.case, state.family);
        self.stand(state)?;
        self.open(state).map_err(|wrong| format!("{family:?}, without policies: {wrong}"))?;
        let mut asked = 0;
        if let Some(expected) = self.filled(state, None) {
            asked +=
                self.judge(state, &expected).map_err(|wrong| format!("{family:?}, at first: {wrong}"))?;
        }
        if list(&case["services"]).next().is_some() {
            asked +=
                self.judge_services(case).map_err(|wrong| format!("{family:?}, by Services: {wrong}"))?;
        }
        for (number, step) in list(&case["steps"]).enumerate() {
            for action in list(&step["apply"]) {
                self.act(state, action);
            }
            self.stand(state)?;
            if let Some(expected) = self.filled(state, Some(number)) {
                asked += self
                    .judge(state, &expected)
                    .map_err(|wrong| format!("{family:?}, after step {number}: {wrong}"))?;
            }
        }
        if list(&case["needs"]).any(|need| need == "ip-reuse") && !state.has_heirs {
            return Err("no pod got the address of another".to_owned());
        }
        Ok(asked)
    }

    /// Brings the store to what the case has, and waits for the pods.
    fn stand(&mut self, state: &mut Case<'_>) -> Result<(), String> {
        let gone: Vec<String> =
            self.ends.keys().filter(|pod| !state.pods.contains_key(*pod)).cloned().collect();
        gone.iter()
            .filter(|id| !id.starts_with("node/") && !id.starts_with("ext/"))
            .for_each(|pod| self.remove_pod(pod));
        let namespaces: Vec<Value> =
            state.namespaces.iter().map(|(name, labels)| namespace(name, labels)).collect();
        self.write("namespaces.yaml", Some(listed(namespaces)));
        let mut heirs = Vec::new();
        for (id, pod) in &state.pods {
            let hint = if self.nodes == 1 { "node1".to_owned() } else { node_of(pod) };
            let inherited = state.past.inheritance(state.case, id, |other| self.ends.contains_key(other));
            let node = match inherited {
                None => state.past.node_of(id).map_or(hint, str::to_owned),
                Some(had) => {
                    had.is_next(self.lab);
                    heirs.push((id.clone(), had.addresses.clone()));
                    had.node.clone()
                }
            };
            self.write(&file_of(id), Some(pod_manifest(pod, &node, state.past.addresses_of(id)).to_string()));
        }
        let lab = eventually("the case's pods run", || self.running(state));
        self.ends = running_pods(&lab);
        self.ends.values().for_each(|pod| have_answer(&pod.netns));
        for pod in list(&lab["pods"]) {
            let id = listed_id(pod);
            if let Some(end) = self.ends.get(&id) {
                state.past.remember(&id, text(&pod["node"]), &end.addresses);
            }
        }
        for node in list(&lab["nodes"]) {
            let name = text(&node["name"]).replace("node", "node/n");
            self.ends.insert(name, end(node));
        }
        self.ends.extend(self.surroundings.hosts(self.lab, state.case));
        state.has_heirs |= !heirs.is_empty();
        let wrong = heirs.iter().find(|(id, addresses)| self.ends[id].addresses != *addresses);
        wrong.map_or(Ok(()), |(id, addresses)| Err(format!("{id} has not got the addresses {addresses:?}")))
    }

    /// What the lab has, once every pod runs that should.
    fn running(&self, state: &Case<'_>) -> Option<Value> {
        let lab = self.lab.list();
        let running = running_pods(&lab);
        let is_right = |(id, pod): (&String, &Value)| running.contains_key(id) != pod["phase"].is_string();
        state.pods.iter().all(is_right).then_some(lab)
    }

    fn remove_pod(&mut self, id: &str) {
        self.write(&file_of(id), None);
        self.ends.remove(id);
        eventually("the pod goes", || {
            let lab = self.lab.list();
            let is_gone = !list(&lab["pods"]).any(|pod| listed_id(pod) == id);
            is_gone.then_some(())
        });
    }

    /// Writes a file of the store, or removes it, if it is not so already.
    fn write(&mut self, file: &str, text: Option<String>) {
        if self.written.get(file) == text.as_ref() {
            return;
        }
        match text {
            Some(text) => {
                self.lab.put(file, &text);
                self.written.insert(file.to_owned(), text);
            }
            None => {
                std::fs::remove_file(self.lab.store().join(file)).unwrap();
                self.written.remove(file);
            }
        }
    }

    /// Writes the policies with addresses in place of placeholders, and says what is expected then: at first, or after a step.
    fn filled(&mut self, state: &mut Case<'_>, step: Option<usize>) -> Option<Value> {
        let case = self.computed(state);
        let stated = match step {
            None => case.get("expected").filter(|_| case["probe_initial"] != false).cloned(),
            Some(number) => case["steps"][number].get("expected").cloned(),
        };
        // The steps' policies have been filled as well.
        state.policies.clear();
        list(&case["policies"])
            .chain(list(&case["cluster_policies"]))
            .for_each(|policy| state.put_policy(policy));
        for step in list(&case["steps"]).take(step.map_or(0, |number| number + 1)) {
            list(&step["apply"]).for_each(|action| state.act_on_policies(action));
        }
        let policies: Vec<Value> = state.policies.values().cloned().collect();
        self.write("policies.yaml", Some(listed(policies)));
        stated
    }

    /// The case with the lab's addresses.
    fn computed(&mut self, state: &Case<'_>) -> Value {
        let filling = match state.family {
            Family::Both => return state.case.clone(),
            Family::V4 => Filling::V4,
            Family::V6 => Filling::V6,
            Family::Named => Filling::Named,
        };
        let mut addresses = state.case["ips"].clone();
        for (id, end) in &self.ends {
            let own = |v6| end.address(v6).map(|address| address.to_string());
            addresses[id] = match state.family {
                Family::Named => json!([own(false), own(true)]),
                family => json!([own(family == Family::V6)]),
            };
            let count = state.case["ips"][id].as_array().map_or(2, Vec::len);
            if state.family == Family::Named && count == 1 {
                // A pod of one family: its other address is not part of the case.
                let v6 = text(&state.case["ips"][id][0]).contains(':');
                addresses[id] = json!([own(v6)]);
            }
        }
        self.oracle.fill(state.case, &addresses, filling)
    }

    fn act(&mut self, state: &mut Case<'_>, action: &Value) {
        for (what, value) in action.as_object().into_iter().flatten() {
            match what.as_str() {
                "restart_agent" => self.restart_agents(),
                "delete_pod" => {
                    let id = id(value);
                    state.pods.remove(&id);
                    self.remove_pod(&id);
                }
                _ => state.act(what, value),
            }
        }
    }

    fn restart_agents(&self) {
        let agents = |list: &Value| -> Vec<u64> {
            let nodes = list["nodes"].as_array().into_iter().flatten();
            nodes.filter_map(|node| node["agentPid"].as_u64()).collect()
        };
        let before = agents(&self.lab.list());
        for agent in &before {
            run_ok(Command::new("kill").args(["-9", &agent.to_string()]));
        }
        eventually("the agents are back", || {
            let now = agents(&self.lab.list());
            (now.len() == before.len() && now.iter().all(|agent| !before.contains(agent))).then_some(())
        });
    }

    /// Asks whether every flow that the case will ask about passes before there are policies: what is silent later is so by them.
    fn open(&mut self, state: &Case<'_>) -> Result<(), String> {
        self.mark.await_all(self.lab, self.nodes, 0)?;
        let stated = [state.case].into_iter().chain(list(&state.case["steps"]));
        let Some(expected) = stated.map(|part| &part["expected"]).find(|expected| expected.is_object())
        else {
            return Ok(());
        };
        let (mut names, mut probes) = self.probes(state, expected);
        let (services, more) = self.service_probes(state.case);
        names.extend(services);
        probes.extend(more);
        probes.iter_mut().for_each(|probe| probe.passes = true);
        self.silence = SILENCE.max(await_verdicts(&names, &probes, SILENCE)? * 4);
        Ok(())
    }

    /// Asks every verdict by a packet until all are as expected.
    fn judge(&mut self, state: &Case<'_>, expected: &Value) -> Result<usize, String> {
        let policies = state.policies.keys().filter(|key| key.starts_with("NetworkPolicy/")).count();
        self.mark.await_all(self.lab, self.nodes, policies)?;
        let (names, probes) = self.probes(state, expected);
        await_verdicts(&names, &probes, self.silence)?;
        Ok(probes.len())
    }

    fn probes(&self, state: &Case<'_>, expected: &Value) -> (Vec<String>, Vec<Probe>) {
        let mut names = Vec::new();
        let mut probes = Vec::new();
        for (target, rows) in expected.as_object().into_iter().flatten() {
            self.add_probes(state, target, rows, &mut |name, probe| {
                names.push(name);
                probes.push(probe);
            });
        }
        (names, probes)
    }

    /// The same for what goes to Services.
    fn judge_services(&self, case: &Value) -> Result<usize, String> {
        let (names, probes) = self.service_probes(case);
        await_verdicts(&names, &probes, self.silence)?;
        Ok(probes.len())
    }

    fn service_probes(&self, case: &Value) -> (Vec<String>, Vec<Probe>) {
        let (mut names, mut probes) = (Vec::new(), Vec::new());
        if list(&case["services"]).next().is_none() {
            return (names, probes);
        }
        let services = carry_services(self.lab, case, &self.ends);
        for flow in list(&case["service_expected"]) {
            let (from, service) = (text(&flow["from"]), text(&flow["service"]));
            let protocol = if flow["protocol"] == "UDP" { Protocol::Udp } else { Protocol::Tcp };
            let port = flow["port"].as_u64().and_then(|port| port.try_into().ok()).expect("a port");
            for address in services[service] {
                let to = SocketAddr::new(address, port);
                let (passes, from_netns) = (flow["expected"] == ".", self.ends[from].netns.clone());
                names.push(format!("{from} -> {service}"));
                probes.push(Probe { from: from_netns, source: None, to, protocol, passes });
            }
        }
        (names, probes)
    }

    fn add_probes(&self, state: &Case<'_>, target: &str, rows: &Value, add: &mut impl FnMut(String, Probe)) {
        let words: Vec<&str> = target.split('/').collect();
        let protocol = match words[0] {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            "SCTP" if self.sctp => Protocol::Sctp,
            _ => return,
        };
        let port: u16 = words[1].parse().unwrap();
        let families: &[bool] = match (words.get(2), state.family) {
            (Some(family), _) => &[*family == "v6"],
            (None, Family::Both) => &[false, true],
            (None, Family::V6) => &[true],
            (None, _) => &[false],
        };
        let order: Vec<&str> = list(&state.case["order"]).map(text).collect();
        for (from, to, verdict) in order.iter().flat_map(|from| {
            let row = rows[*from].as_str().unwrap_or_default();
            order.iter().zip(row.chars()).map(move |(to, verdict)| (from, to, verdict))
        }) {
            let passes = match verdict {
                '.' => true,
                'X' => false,
                _ => continue,
            };
            let (Some(source), Some(destination)) = (self.ends.get(*from), self.ends.get(*to)) else {
                continue;
            };
            // A pod's own address never leaves it.
            if from == to {
                continue;
            }
            for v6 in families {
                let (Some(from_address), Some(address)) = (&source.address(*v6), destination.address(*v6))
                else {
                    continue;
                };
                let to_socket = SocketAddr::new(address, port);
                let bound = Some(*from_address).filter(|_| source.binds || protocol == Protocol::Sctp);
                let netns = source.netns.clone();
                let probe = Probe { from: netns, source: bound, to: to_socket, protocol, passes };
                add(format!("{from} -> {to} {target}"), probe);
            }
        }
    }
}

/// Asks until all is as it should be; says how long the last answer took.
fn await_verdicts(names: &[String], probes: &[Probe], silence: Duration) -> Result<Duration, String> {
    let begun = Instant::now();
    loop {
        let Asked { answers, longest } = ask(probes, silence);
        let is_wrong = |(probe, answer): (&Probe, &Answer)| match answer {
            Answer::Passed => !probe.passes,
            Answer::Silence => probe.passes,
            Answer::Other(_) => true,
        };
        let wrong: Vec<usize> =
            (0..probes.len()).filter(|number| is_wrong((&probes[*number], &answers[*number]))).collect();
        if wrong.is_empty() {
            return Ok(longest);
        }
        if begun.elapsed() > DEADLINE {
            let told: Vec<String> = wrong
                .iter()
                .take(8)
                .map(|number| format!("{}: {:?} to {}", names[*number], answers[*number], probes[*number].to))
                .collect();
            return Err(format!("{} of {}: {}", wrong.len(), probes.len(), told.join("; ")));
        }
    }
}

pub(crate) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

/// Whether addresses have to be put into it.
fn has_placeholders(case: &Value) -> bool {
    case.to_string().contains("{{")
}

/// The pod that the lab's list speaks of.
fn listed_id(pod: &Value) -> String {
    format!("{}/{}", text(&pod["namespace"]), text(&pod["name"]))
}

fn file_of(id: &str) -> String {
    format!("pod-{}.yaml", id.replace('/', "-"))
}

fn end(listed: &Value) -> End {
    let addresses = list(&listed["addresses"]).map(|address| text(address).parse().unwrap()).collect();
    End { netns: PathBuf::from(text(&listed["netns"])), addresses, binds: false }
}

/// The pods that run.
fn running_pods(lab: &Value) -> BTreeMap<String, End> {
    let running = list(&lab["pods"]).filter(|pod| pod["phase"] == "Running");
    running.map(|pod| (listed_id(pod), end(pod))).collect()
}

fn node_of(pod: &Value) -> String {
    pod["node"].as_str().unwrap_or("n1").replacen('n', "node", 1)
}

fn listed(items: Vec<Value>) -> String {
    json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()
}

fn namespace(name: &str, labels: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

/// With the addresses of one that has ended, which the API keeps.
fn pod_manifest(pod: &Value, node: &str, addresses: &[IpAddr]) -> Value {
    let port = |port: &Value| json!({ "name": port["name"], "containerPort": port["port"], "protocol": port["protocol"] });
    let ports: Vec<Value> = list(&pod["ports"]).map(port).collect();
    let mut metadata = json!({ "namespace": pod["ns"], "name": pod["name"], "labels": pod["labels"] });
    if pod["terminating"] == true {
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    }
    let mut manifest = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": { "nodeName": node, "hostNetwork": pod["hostNetwork"].as_bool().unwrap_or(false),
                  "containers": [{ "name": "main", "image": "none", "ports": ports }] },
    });
    if let Some(phase) = pod["phase"].as_str() {
        let had: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address })).collect();
        manifest["status"] = json!({ "phase": phase, "podIPs": had });
    }
    manifest
}
