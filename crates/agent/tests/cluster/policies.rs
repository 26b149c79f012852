//! Network policies in force, with packets: pods that the real plugin wires, policies put into the store, the agent killed, its
//! table meddled with.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::talk::{Client, serve};
use harness::{Call, Namespace, eventually, run_ok};
use serde_json::{Value, json};

use crate::scene::{Pod, Scene, only_from};

#[test]
fn a_policy_a_label_and_the_policy_s_end_hold_at_once_and_open_connections_end_with_what_allowed_them() {
    let scene = Scene::enforcing();
    let (web, client) = (scene.pod("web", "web"), scene.pod("client", "client"));
    serve(&web.netns, 80, "web");
    assert!(client.asks(&web), "nobody is isolated");
    scene.put_policy("door", "web", only_from("client"));
    scene.node().await_status("one pod is isolated", |status| status.policies.isolated_pods == 1);
    assert!(client.asks(&web), "the policy lets it in");
    let open: Vec<Client> =
        web.addresses.iter().map(|address| Client::new(&client.netns, address, 80)).collect();
    open.iter().for_each(|client| drop(client.ask()));
    scene.put_pod(&client, "other");
    eventually("it is not let in by another label", || client.is_deaf_to(&web).then_some(()));
    for client in &open {
        eventually("the connection is cut", || client.try_ask().is_none().then_some(()));
    }
    scene.put_pod(&client, "client");
    eventually("it is let in again", || client.asks(&web).then_some(()));
    scene.put_policy("door", "web", json!({"policyTypes": ["Ingress"]}));
    eventually("nobody is let in", || client.is_deaf_to(&web).then_some(()));
    assert!(scene.node().netns.pings(&web.addresses[0]), "the node may always");
    scene.remove("door");
    eventually("everybody is let in", || client.asks(&web).then_some(()));
    let status = scene.node().status().unwrap().policies;
    assert!(status.cut > 0 && status.failures == 0 && status.heals == 0, "{status:?}");
    assert_eq!(status.generation, status.programmed);
}

/// Connections to a pod's port 81, one of each family, on which it sends all the time and the other end says nothing.
fn download(from: &Pod, by: &Namespace) -> Vec<TcpStream> {
    let connect = |address: &String| {
        let to = SocketAddr::new(address.parse().unwrap(), 81);
        by.inside(|| TcpStream::connect(to).unwrap())
    };
    from.addresses.iter().map(connect).collect()
}

/// The server of that.
fn serve_downloads(pod: &Pod) {
    let listener = pod.netns.inside(|| TcpListener::bind(SocketAddr::from(([0; 8], 81))).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                while stream.write_all(b"more").is_ok() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
    });
}

/// Whether something comes still.
fn flows(mut stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    matches!(stream.read(&mut [0; 65536]), Ok(1..))
}

#[test]
fn a_download_ends_with_what_allowed_it_and_does_not_come_back_and_others_go_on() {
    let mut scene = Scene::enforcing();
    scene.put_policy("door", "web", only_from("client"));
    let (web, client, friend) =
        (scene.pod("web", "web"), scene.pod("client", "client"), scene.pod("friend", "client"));
    scene.node().await_status("one pod is isolated", |status| status.policies.isolated_pods == 1);
    serve_downloads(&web);
    let (cut, stays) = (download(&web, &client.netns), download(&web, &friend.netns));
    assert!(cut.iter().chain(&stays).all(flows));
    scene.put_pod(&client, "other");
    for stream in &cut {
        eventually("the download is cut", || (!flows(stream)).then_some(()));
    }
    // The server, who may begin what it likes, tries again and again.
    assert!(!cut.iter().any(flows) && stays.iter().all(flows));
    scene.rig.nodes[0].kill();
    assert!(stays.iter().all(flows));
    scene.start();
    assert!(!cut.iter().any(flows) && stays.iter().all(flows));
    serve(&client.netns, 80, "client");
    assert!(web.asks(&client), "the server may begin a connection");
}

#[test]
fn what_the_node_began_from_whichever_address_goes_on_when_others_are_cut() {
    let scene = Scene::enforcing();
    let (web, client) = (scene.pod("web", "web"), scene.pod("client", "client"));
    serve_downloads(&web);
    // The Node object has no addresses at all.
    let (node, cut) = (download(&web, &scene.node().netns), download(&web, &client.netns));
    assert!(node.iter().chain(&cut).all(flows));
    scene.put_policy("door", "web", json!({"policyTypes": ["Ingress", "Egress"]}));
    for stream in &cut {
        eventually("the pod's is cut", || (!flows(stream)).then_some(()));
    }
    eventually("as many were cut", || (scene.node().status()?.policies.cut == 2).then_some(()));
    for stream in &node {
        // What was on its way before says nothing.
        (0..3).for_each(|_| assert!(flows(stream)));
    }
}

/// A number of the agent's metrics.
fn metric(scene: &Scene, name: &str) -> Option<u64> {
    let text = scene.node().health("/metrics");
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Lines of JSON among others.
fn records(text: &str) -> Vec<Value> {
    let json = |line: &str| serde_json::from_str(&line[line.find("{\"time\"")?..]).ok();
    text.lines().filter_map(json).collect()
}

#[test]
fn what_policies_decide_is_counted() {
    let scene = Scene::enforcing();
    scene.put_policy("door", "web", only_from("client"));
    let (web, client, other) =
        (scene.pod("web", "web"), scene.pod("client", "client"), scene.pod("other", "other"));
    serve(&web.netns, 80, "web");
    scene.node().await_status("one pod is isolated", |status| status.policies.isolated_pods == 1);
    assert!(client.asks(&web) && other.is_deaf_to(&web));
    let rule = "fairlead_policy_rule_packets_total{kind=\"NetworkPolicy\",policy=\"shop/door\",direction=\"ingress\",rule=\"1\"}";
    let denied = "fairlead_policy_denied_packets_total{direction=\"ingress\",policies=\"shop/door\"}";
    let found = eventually("what passed is counted", || metric(&scene, rule).filter(|count| *count > 0));
    assert_eq!(found, 2, "a packet for each connection");
    eventually("what was dropped is counted", || metric(&scene, denied).filter(|count| *count >= 2));
}

const AUDITED: &str = "fairlead_policy_would_deny_packets_total{direction=\"egress\",policies=\"shop/lock\"}";

#[test]
fn what_policies_decide_is_told_as_the_configuration_says_and_what_an_audit_would_deny_always() {
    let mut scene = Scene::enforcing();
    scene.put_policy("door", "web", only_from("client"));
    let (web, client, other) =
        (scene.pod("web", "web"), scene.pod("client", "client"), scene.pod("other", "other"));
    serve(&web.netns, 80, "web");
    scene.node().await_status("one pod is isolated", |status| status.policies.isolated_pods == 1);
    if let Some(reason) = scene.node().status().unwrap().policies.unlogged {
        return harness::not_run(&format!("this kernel does not log: {reason}"));
    }
    let file = scene.ipam.path().join("flows.json");
    let log = || records(&std::fs::read_to_string(&file).unwrap_or_default());
    assert!(log().is_empty(), "nobody asked for it");
    scene.rig.nodes[0].configure(&format!(
        "policy: {{attachmentPatienceSeconds: 10, flowLog: {{verdicts: all, file: {}}}}}\n",
        file.display()
    ));
    eventually("all verdicts are told", || {
        other.is_deaf_to(&web);
        client.asks(&web);
        let log = log();
        let of = |verdict: &str| log.iter().find(|record| record["verdict"] == verdict).cloned();
        let (allowed, denied) = (of("allowed")?, of("denied")?);
        assert_eq!((&allowed["networkPolicy"], &allowed["rule"]), (&json!("shop/door"), &json!(1)));
        assert_eq!(allowed["source"]["pod"], "client");
        assert_eq!(
            (&denied["source"]["pod"], &denied["destination"]["pod"]),
            (&json!("other"), &json!("web"))
        );
        assert_eq!(denied["isolatedBy"], json!(["shop/door"]));
        Some(())
    });
    // What only an audit would deny is told whatever the log tells, and passes.
    scene.rig.nodes[0].configure("policy: {attachmentPatienceSeconds: 10}\n");
    scene.put(
        "lock",
        &json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "shop", "name": "lock", "annotations": {"fairlead.io/audit": "true"}},
            "spec": {"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"]},
        }),
    );
    let audited = eventually("the audit is told", || {
        assert!(client.asks(&web));
        let log = records(&scene.node().log());
        log.into_iter().find(|record| record["verdict"] == "would-deny")
    });
    assert_eq!(
        (&audited["source"]["pod"], &audited["isolatedBy"]),
        (&json!("client"), &json!(["shop/lock"]))
    );
    eventually("and counted", || metric(&scene, AUDITED).filter(|count| *count > 0));
    assert_told_by_the_rule_of_a_cluster_policy(&scene, &client, &web);
    eventually("nothing else is told any more", || {
        let before = log().len();
        other.is_deaf_to(&web);
        client.asks(&web);
        (log().len() == before).then_some(())
    });
    let status = scene.node().status().unwrap().policies;
    assert!(status.failures == 0 && status.heals == 0, "{status:?}");
}

/// What a policy of the cluster in audit would deny is told as well, by the rule that would.
fn assert_told_by_the_rule_of_a_cluster_policy(scene: &Scene, client: &Pod, web: &Pod) {
    scene.put(
        "bolt",
        &json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "bolt", "annotations": {"fairlead.io/audit": "true"}},
            "spec": {
                "tier": "Admin", "priority": 1,
                "subject": {"pods": {"podSelector": {"matchLabels": {"app": "web"}}}},
                "ingress": [{"name": "nobody", "action": "Deny", "from": [{"namespaces": {}}]}],
            },
        }),
    );
    let audited = eventually("the audit of the cluster's is told", || {
        assert!(client.asks(web));
        let log = records(&scene.node().log());
        log.into_iter().find(|record| record["clusterNetworkPolicy"] == "bolt")
    });
    assert_eq!((&audited["verdict"], &audited["rule"]), (&json!("would-deny"), &json!(1)));
    assert_eq!(audited["destination"]["pod"], "web");
}

#[test]
fn enforcement_is_switched_on_and_off_while_the_agent_runs() {
    let mut scene = Scene::enforcing();
    scene.rig.nodes[0].kill();
    scene.rig.nodes[0].configure("policy: {enforcement: false}\n");
    scene.rig.nodes[0].start();
    scene.put_policy("door", "web", only_from("client"));
    scene.node().await_status("ready", |status| status.ready && !status.policies.enforced);
    let pods_wait = |scene: &Scene| scene.node().network_file().map(|file| !file["enforcement"].is_null());
    eventually("pods wait for nobody", || pods_wait(&scene).filter(|wait| !wait));
    let (web, other) = (scene.pod("web", "web"), scene.pod("other", "other"));
    serve(&web.netns, 80, "web");
    assert!(other.asks(&web), "nobody is isolated");
    // Pods that were attached without leave no word of their addresses; the kubelet has said them to the API.
    for (pod, app) in [(&web, "web"), (&other, "other")] {
        let ips: Vec<Value> = pod.addresses.iter().map(|ip| json!({"ip": ip})).collect();
        scene.put(
            pod.name,
            &json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": "shop", "name": pod.name, "uid": pod.uid, "labels": {"app": app}},
                "spec": {"nodeName": "node1"}, "status": {"phase": "Running", "podIPs": ips},
            }),
        );
    }
    scene.rig.nodes[0].configure("policy: {enforcement: true}\n");
    scene.await_enforced();
    eventually("the pod is isolated", || other.is_deaf_to(&web).then_some(()));
    eventually("pods wait for their policies", || pods_wait(&scene).filter(|wait| *wait));
    assert!(scene.node().status().unwrap().problems.is_empty());
    scene.rig.nodes[0].configure("policy: {enforcement: false}\n");
    eventually("nobody is isolated", || other.asks(&web).then_some(()));
}

/// Sends datagrams from inside a namespace as fast as it can to one address of each family.
struct Flood {
    ends: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Flood {
    fn start(from: &Namespace, to: &Pod) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let sends = |address: &String| {
            let to = SocketAddr::new(address.parse().unwrap(), 9);
            let socket =
                from.inside(|| UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap());
            let ends = Arc::clone(&ends);
            std::thread::spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    // Before there is a network there is nowhere to send to.
                    let _ = socket.send_to(b"x", to);
                    std::thread::sleep(Duration::from_micros(100));
                }
            })
        };
        let threads = to.addresses.iter().map(sends).collect();
        Self { ends, threads }
    }

    fn stop(self) {
        self.ends.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

/// The datagrams that reach a pod, counted by their senders.
#[derive(Clone, Default)]
struct Arrivals(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

impl Arrivals {
    fn at(pod: &Pod) -> Self {
        let arrivals = Self::default();
        let socket = pod.netns.inside(|| UdpSocket::bind("[::]:9").unwrap());
        let counted = arrivals.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 8];
            while let Ok((_, from)) = socket.recv_from(&mut bytes) {
                *counted.0.lock().unwrap().entry(from.ip().to_canonical()).or_default() += 1;
            }
        });
        arrivals
    }

    fn all(&self) -> usize {
        self.0.lock().unwrap().values().sum()
    }

    /// Of each address of a pod.
    fn of(&self, pod: &Pod) -> Vec<usize> {
        let counted = self.0.lock().unwrap();
        let address = |address: &String| address.parse::<IpAddr>().unwrap();
        pod.addresses.iter().map(|from| counted.get(&address(from)).copied().unwrap_or(0)).collect()
    }

    /// Waits until more comes from each address of a pod: what is open is seen.
    fn await_more(&self, what: &str, pod: &Pod) {
        let before = self.of(pod);
        let more = || self.of(pod).iter().zip(&before).all(|(now, before)| now > before);
        eventually(what, || more().then_some(()));
    }
}

#[test]
fn what_is_forbidden_stays_so_while_agents_are_killed_and_policies_change() {
    let mut scene = Scene::enforcing();
    scene.put_policy("door", "web", only_from("friend"));
    let (web, client, friend) =
        (scene.pod("web", "web"), scene.pod("client", "friend"), scene.pod("friend", "friend"));
    let arrived = Arrivals::at(&web);
    let floods = [Flood::start(&client.netns, &web), Flood::start(&friend.netns, &web)];
    // The witness sees this very flood where it is not forbidden.
    arrived.await_more("a friend is let in", &client);
    scene.put_pod(&client, "client");
    eventually("it is forbidden", || {
        let before = arrived.of(&client);
        arrived.await_more("the other friend", &friend);
        (arrived.of(&client) == before).then_some(())
    });
    let before = arrived.of(&client);
    for round in 0..4 {
        for change in 0..20 {
            scene.put_policy(&format!("more-{change}"), "web", only_from(&format!("friend-{round}")));
        }
        scene.rig.nodes[0].kill();
        let table = scene.table();
        for change in 0..10 {
            scene.remove(&format!("more-{change}"));
        }
        arrived.await_more("what is allowed goes on without an agent", &friend);
        assert_eq!(scene.table(), table, "rules stay without an agent");
        scene.start();
        arrived.await_more("what is allowed goes on", &friend);
    }
    assert_eq!(arrived.of(&client), before, "packets that no policy allows");
    scene.put_pod(&client, "friend");
    arrived.await_more("the witness still sees it where it is allowed", &client);
    floods.into_iter().for_each(Flood::stop);
}

#[test]
fn what_another_hand_does_to_the_table_is_undone() {
    let scene = Scene::enforcing();
    scene.put_policy("door", "web", only_from("friend"));
    let (web, client) = (scene.pod("web", "web"), scene.pod("client", "client"));
    serve(&web.netns, 80, "web");
    assert!(client.is_deaf_to(&web));
    let was = scene.table();
    let lines = |text: &str| crate::rig::lines(text);
    let ingress = format!("delete element inet fairlead_policy ingress4 {{ {} }}", web.addresses[0]);
    for (number, meddling) in [
        "flush ruleset".to_owned(),
        "delete table inet fairlead_policy".to_owned(),
        "flush chain inet fairlead_policy prerouting-ingress".to_owned(),
        ingress,
        "add chain inet fairlead_policy more".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        run_ok(scene.node().netns.command("nft").arg(&meddling));
        let what = format!("undone: {meddling}");
        eventually(&what, || {
            let heals = scene.node().status()?.policies.heals;
            (heals > number as u64 && lines(&scene.table()) == lines(&was)).then_some(())
        });
    }
    assert!(client.is_deaf_to(&web));
    // With a table that is not as it was thought to be, a change is no less in force.
    run_ok(scene.node().netns.command("nft").arg("delete table inet fairlead_policy"));
    scene.put_policy("door", "web", only_from("client"));
    eventually("the change is in force", || client.asks(&web).then_some(()));
}

#[test]
fn a_policy_that_the_kernel_refuses_is_closed_alone_and_told_and_tried_again() {
    let mut scene = Scene::enforcing();
    scene.put_policy("door", "web", only_from("client"));
    let (web, client) = (scene.pod("web", "web"), scene.pod("client", "client"));
    serve(&web.netns, 80, "web");
    scene.node().await_status("one pod is isolated", |status| status.policies.isolated_pods == 1);
    assert!(client.asks(&web));
    // The set of the clients' addresses takes no more than it has.
    scene.rig.nodes[0].kill();
    let table = scene.table();
    let set = table.split_whitespace().find(|word| word.starts_with("pods4-")).unwrap().to_owned();
    let full = format!(
        "delete table inet fairlead_policy; add table inet fairlead_policy; \
         add set inet fairlead_policy {set} {{ type ipv4_addr; size 1; }}"
    );
    run_ok(scene.node().netns.command("nft").arg(&full));
    scene.start();
    assert!(client.asks(&web));
    // A pod that is wired knows its policies in force, though that one is not.
    let second = scene.pod("second", "client");
    let log = scene.node().log();
    let closed = "network policy shop/door is closed, for the kernel refuses it: add element inet fairlead_policy pods4-";
    assert!(log.contains(closed), "{log}");
    scene.put_policy("other", "client", only_from("web"));
    scene.node().await_status("others are enforced", |status| status.policies.isolated_pods == 3);
    assert!(second.is_deaf_to(&client));
    eventually("it is tried again, and is enforced", || second.asks(&web).then_some(()));
    scene.node().await_status("all is well", |status| {
        status.policies.enforced && status.policies.refused.is_empty() && status.policies.failures > 0
    });
}

#[test]
fn a_pod_is_attached_only_where_its_policies_are_known_to_be_in_force() {
    let mut scene = Scene::enforcing();
    let mut pod = Pod::new("late", "uid-1");
    scene.rig.nodes[0].configure("policy: {attachmentPatienceSeconds: 1}\n");
    eventually("the patience is told", || {
        let file = scene.node().network_file()?;
        (file["enforcement"]["patienceMilliseconds"] == 1000).then_some(())
    });
    let refused = |scene: &Scene, pod: &Pod, part: &str| {
        let reply = scene.call("ADD", pod);
        assert_eq!(reply.error_code(), 11, "{}", reply.stdout);
        assert!(reply.stdout.contains(part), "{part}: {}", reply.stdout);
        assert!(scene.attachments().is_empty(), "no word stays");
        let links = scene.node().netns.link_names();
        assert!(!links.iter().any(|name| name.starts_with("veth")), "{links:?}");
    };
    // As long as the store keeps neither policies nor pods, no pod has to be known.
    scene.attach(&mut pod);
    scene.call("DEL", &pod).expect_success("DEL");
    scene.put_policy("some", "somebody", only_from("friend"));
    refused(&scene, &pod, "the store has no pod shop/late with UID uid-1 yet");
    // One of that name is not that pod.
    scene.put_pod(&Pod::new("late", "uid-0"), "web");
    refused(&scene, &pod, "the store has no pod shop/late with UID uid-1 yet");
    scene.put_pod(&pod, "web");
    scene.rig.nodes[0].kill();
    refused(&scene, &pod, "ask the agent at");
    scene.start();
    scene.attach(&mut pod);
    assert_eq!(scene.attachments().len(), 1);
    // Who is no pod waits for nobody, and nobody waits with a DEL.
    scene.rig.nodes[0].kill();
    let other = Namespace::with_loopback();
    let by_hand = Call::new(&scene.node().netns, scene.bin.path(), "fairlead", "by-hand", &other);
    by_hand.add(&scene.config());
    by_hand.del(&scene.config());
    scene.call("DEL", &pod).expect_success("DEL");
    assert!(scene.attachments().is_empty());
}

#[test]
fn an_address_is_the_pods_that_was_attached_with_it_and_not_of_whom_it_was_before() {
    let scene = Scene::enforcing();
    scene.put_policy("closed", "closed", json!({"policyTypes": ["Ingress"]}));
    let (web, client) = (scene.pod("web", "open"), scene.pod("client", "client"));
    serve(&web.netns, 80, "web");
    // As the API has it of a pod that ended, before its kubelet has said so; and of one of the same name.
    let stale = |name: &str, uid: &str, app: &str| {
        scene.put(name, &json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": name, "uid": uid, "labels": {"app": app}},
            "spec": {"nodeName": "node1"},
            "status": {"phase": "Running", "podIPs": web.addresses.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()},
        }));
    };
    stale("a-before", "uid-9", "closed");
    eventually("both are known", || (scene.node().status()?.policies.generation >= 4).then_some(()));
    assert!(client.asks(&web), "it is the one that is attached");
    stale("web", "uid-of-web", "closed");
    eventually("its own policy counts", || client.is_deaf_to(&web).then_some(()));
    stale("a-before", "uid-9", "open");
    stale("web", "another", "open");
    eventually("the attachment is of no pod that is there", || scene.is_closed(&web).then_some(()));
    assert!(client.is_deaf_to(&web), "another one of its name is another one");
    stale("web", "uid-of-web", "open");
    eventually("its own policy counts again", || client.asks(&web).then_some(()));
}

#[test]
fn a_pod_whose_object_goes_while_it_runs_neither_sends_nor_receives_until_its_del() {
    let mut scene = Scene::enforcing();
    scene.put_policy("door", "web", only_from("friend"));
    scene.put_policy("lock", "web", json!({"policyTypes": ["Egress"]}));
    let (web, friend, client) =
        (scene.pod("web", "web"), scene.pod("friend", "friend"), scene.pod("client", "x"));
    serve(&web.netns, 80, "web");
    assert!(friend.asks(&web));
    let open: Vec<Client> =
        web.addresses.iter().map(|address| Client::new(&friend.netns, address, 80)).collect();
    open.iter().for_each(|client| drop(client.ask()));
    let arrived = [Arrivals::at(&web), Arrivals::at(&client)];
    let floods = [Flood::start(&client.netns, &web), Flood::start(&web.netns, &client)];
    scene.remove("web");
    eventually("it is closed", || scene.is_closed(&web).then_some(()));
    for client in &open {
        eventually("what was open is cut", || client.try_ask().is_none().then_some(()));
    }
    assert!(friend.is_deaf_to(&web), "nobody knows any more whom it may talk to");
    assert!(scene.node().netns.pings(&web.addresses[0]), "the node may always");
    scene.put_pod(&Pod::new("web", "another"), "open");
    scene.rig.nodes[0].kill();
    scene.start();
    assert!(scene.is_closed(&web), "a new agent knows no better");
    floods.into_iter().for_each(Flood::stop);
    let arrived = arrived.map(|arrivals| arrivals.all());
    assert_eq!(arrived, [0, 0], "packets that no policy ever allowed");
    scene.put_pod(&web, "web");
    eventually("it is there again", || (!scene.is_closed(&web) && friend.asks(&web)).then_some(()));
    scene.remove("web");
    eventually("it is closed again", || scene.is_closed(&web).then_some(()));
    scene.call("DEL", &web).expect_success("DEL");
    eventually("nothing of it is left", || {
        let table = scene.table();
        let left = table.contains("jump ingress-closed")
            || web.addresses.iter().any(|address| table.contains(address));
        (!left).then_some(())
    });
}

/// Lets others end, whatever happened.
struct AtTheEnd<'e>(&'e AtomicBool);

impl Drop for AtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How many pods are started while one looks whether they send what they must not: `FAIRLEAD_POLICY_STARTS`, or as many as
/// take a few seconds.
fn starts() -> usize {
    std::env::var("FAIRLEAD_POLICY_STARTS").map_or(60, |number| number.parse().unwrap())
}

#[test]
fn no_pod_sends_a_forbidden_packet_however_early_it_begins() {
    let scene = Scene::enforcing();
    let witness = scene.pod("witness", "witness");
    let arrived = Arrivals::at(&witness);
    scene.put_policy("closed", "closed", json!({"policyTypes": ["Egress"]}));
    scene.put_policy("more-0", "closed", json!({"policyTypes": ["Egress"]}));
    // It sends before it has an address, and goes on until something was heard, or it is attached.
    let begin = |uid: &str, app: &str, heard: bool| {
        let mut pod = Pod::new("early", uid);
        let flood = Flood::start(&pod.netns, &witness);
        scene.put_pod(&pod, app);
        scene.attach(&mut pod);
        if heard {
            arrived.await_more("who may is heard from its first packet on", &pod);
        }
        flood.stop();
        scene.call("DEL", &pod).expect_success("DEL");
        pod
    };
    begin("uid-open", "open", true);
    let before = arrived.all();
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in (0..7).cycle().take_while(|_| !ends.load(Ordering::Relaxed)) {
                scene.put_policy(&format!("more-{round}"), "witness", only_from(&format!("friend-{round}")));
                scene.put_policy(&format!("more-{}", (round + 3) % 7), "witness", json!({"ingress": [{}]}));
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        let _end = AtTheEnd(&ends);
        for round in 0..starts() {
            begin(&format!("uid-{round}"), "closed", false);
            assert_eq!(arrived.all(), before, "packets that no policy allows, at start {round}");
        }
    });
    (0..7).for_each(|round| scene.put_policy(&format!("more-{round}"), "witness", json!({"ingress": [{}]})));
    begin("uid-open-again", "open", true);
}
