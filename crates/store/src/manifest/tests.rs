//! Manifests are read with the place of every fault, and what is not ours is passed over.

use cluster::{Backend, Key, NamespacedName, Object, Protocol, ServiceType, TargetPort};

use super::{encode, parse};

fn objects(text: &str) -> Vec<Object> {
    match parse(text.as_bytes()) {
        Ok(placed) => placed.into_iter().map(|placed| placed.object).collect(),
        Err(faults) => panic!("{faults:#?}"),
    }
}

/// The first complaint as `line:column object field reason (hint)`.
fn complaint(text: impl AsRef<[u8]>) -> String {
    let faults = parse(text.as_ref()).unwrap_err();
    let fault = &faults[0];
    let part = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let place = format!("{}:{}", fault.place.line, fault.place.column);
    let hint = fault.hint.as_ref().map_or(String::new(), |hint| format!(" ({hint})"));
    format!("{place} {} {} {}{hint}", part(&fault.object), part(&fault.field), fault.reason)
}

mod policy;

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web, 'example.org/tier': front}}
spec:
  nodeName: node2
  containers:
  - name: server
    ports:
    - {name: http, containerPort: 80}
    - {containerPort: 53, protocol: UDP, hostPort: 5353}
  - name: sidecar
status: {phase: Running, podIPs: [{ip: 10.244.1.5}, {ip: 'fd00::5'}]}
";

#[test]
fn a_pod_is_read_with_all_that_networking_needs() {
    let [Object::Pod(pod)] = &objects(POD)[..] else { panic!() };
    assert_eq!(pod.name, NamespacedName::new("shop", "web-0"));
    assert_eq!(pod.labels.get("example.org/tier"), Some("front"));
    assert_eq!(pod.node.as_deref(), Some("node2"));
    let ports: Vec<_> = pod.ports.iter().map(|port| (port.port, port.protocol, port.host_port)).collect();
    assert_eq!(ports, [(80, Protocol::Tcp, None), (53, Protocol::Udp, Some(5353))]);
    assert_eq!(pod.addresses.len(), 2);
}

#[test]
fn a_pod_has_the_uid_by_which_its_kubelet_calls_it() {
    let uid = |metadata: &str| {
        let text = POD.replace("{name: web-0, ", &format!("{{name: web-0, {metadata}"));
        let [Object::Pod(pod)] = &objects(&text)[..] else { panic!() };
        assert_eq!(objects(&String::from_utf8(encode(&Object::Pod(pod.clone()))).unwrap()).len(), 1);
        pod.uid.clone()
    };
    assert_eq!(uid(""), None);
    assert_eq!(uid("uid: u-1, ").as_deref(), Some("u-1"));
    let mirror = "uid: u-1, annotations: {kubernetes.io/config.mirror: of-the-file}, ";
    assert_eq!(uid(mirror).as_deref(), Some("of-the-file"), "the API's own is nothing to the runtime");
}

#[test]
fn services_and_slices_are_read() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, clusterIP: 10.96.0.7, ports: [{port: 80, targetPort: http, nodePort: 30080}, {name: b, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, ports: [{port: 6379}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- {addresses: [10.244.0.9], conditions: {ready: false, terminating: true}, nodeName: node1, targetRef: {kind: Pod, name: web-0}}
ports: [{name: '', port: 8080}]
";
    let [Object::Service(web), Object::Service(db), Object::EndpointSlice(slice)] = &objects(text)[..] else {
        panic!()
    };
    assert_eq!(web.service_type, ServiceType::NodePort);
    assert_eq!(web.ports[0].target, TargetPort::Name("http".into()));
    assert_eq!(web.ports[1].target, TargetPort::Number(81));
    assert!(db.headless && db.cluster_addresses.is_empty());
    assert_eq!(slice.service.as_deref(), Some("web"));
    assert!(!slice.endpoints[0].ready && !slice.endpoints[0].serving && slice.endpoints[0].terminating);
    assert_eq!(slice.endpoints[0].pod.as_deref(), Some("web-0"));
}

#[test]
fn lists_of_any_kind_are_read_in_yaml_and_json() {
    let list = r#"{"apiVersion":"v1","kind":"List","items":[
        {"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"}},
        {"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"x"},"spec":{"replicas":"many"}},
        {"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"a","managedFields":[1]}},{"metadata":{"name":"b"}}]}]}"#;
    let keys: Vec<String> = objects(list).iter().map(|object| object.key().to_string()).collect();
    assert_eq!(keys, ["namespace shop", "pod default/a", "pod default/b"]);
    let yaml = "kind: NodeList\napiVersion: v1\nitems:\n- metadata: {name: node1}\n  spec: {podCIDR: 10.244.3.0/24}\n---\n---\n# nothing\n";
    let [Object::Node(node)] = &objects(yaml)[..] else { panic!() };
    assert_eq!(node.pod_cidrs[0].to_string(), "10.244.3.0/24");
}

#[test]
fn anchors_and_merge_keys_work_and_unknown_kinds_are_passed_over() {
    let text = "
apiVersion: v1
kind: Pod
metadata: {name: a, labels: &common {app: x, tier: front}}
---
apiVersion: example.org/v1
kind: Gadget
spec: [1, 2]
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: &base {namespace: ns, name: b}}
- {apiVersion: v1, kind: Pod, metadata: {<<: *base, name: c}}
";
    let keys: Vec<Key> = objects(text).iter().map(Object::key).collect();
    let pod = |namespace, name| Key::Pod(NamespacedName::new(namespace, name));
    assert_eq!(keys, [pod("default", "a"), pod("ns", "b"), pod("ns", "c")]);
}

#[test]
fn what_is_written_reads_back_the_same() {
    let own = r#"
{"apiVersion":"v1","kind":"List","items":[
 {"apiVersion":"fairlead/v1","kind":"NodeLease","metadata":{"name":"node1"},"spec":{"podCIDRs":["10.244.1.0/24","fd00:10:244:1::/64"],
  "retainedPodCIDRs":["10.244.9.0/24"],"underlay":["198.18.0.1"],"backend":{"type":"vxlan","vni":1,"port":8472,"mac":"02:00:00:00:00:01"},"mtu":1450}},
 {"apiVersion":"fairlead/v1","kind":"NodeLease","metadata":{"name":"node2"},"spec":{"backend":{"type":"carrier-pigeon"},"mtu":1280}},
 {"apiVersion":"fairlead/v1","kind":"NodeLease","metadata":{"name":"node3"},"spec":{"backend":{"type":"host-gw"},"mtu":1500}},
 {"apiVersion":"fairlead/v1","kind":"NodeLease","metadata":{"name":"node4"},"spec":{"backend":{"type":"none"},"mtu":1500}},
 {"apiVersion":"fairlead/v1","kind":"NodeLease","metadata":{"name":"node5"},"spec":{"backend":{"type":"udp","port":8285},"mtu":1472}},
 {"apiVersion":"fairlead/v1","kind":"NodeLease","metadata":{"name":"node6"},"spec":{"backend":{"type":"ipip"},"mtu":1480}},
 {"apiVersion":"fairlead/v1","kind":"NodeLease","metadata":{"name":"node7"},"spec":{"mtu":1420,
  "backend":{"type":"wireguard","port":51820,"publicKey":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="}}},
 {"apiVersion":"fairlead/v1","kind":"NodeLease","metadata":{"name":"node8"},"spec":{"mtu":1420,
  "backend":{"type":"wireguard","port":51820,"publicKey":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=","generation":2,
   "next":{"port":51821,"publicKey":"CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=","generation":3},"strict":false}}},
 {"apiVersion":"fairlead/v1","kind":"PodCIDRClaim","spec":{"cidr":"fd00:10:244:1::/64","node":"node1"}},
 {"apiVersion":"fairlead/v1","kind":"PodStatus","metadata":{"namespace":"shop","name":"web-0"},
  "status":{"nodeName":"node1","phase":"Running","addresses":["10.244.1.2"]}},
 {"apiVersion":"v1","kind":"Node","metadata":{"name":"node1","labels":{"zone":"a"}},
  "spec":{"podCIDRs":["10.244.1.0/24"]},"status":{"addresses":[{"type":"Hostname","address":"x"},{"type":"InternalIP","address":"198.18.0.1"}]}},
 {"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"type":"ExternalName","externalName":"db.example.org"}},
 {"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"e","labels":{"kubernetes.io/service-name":"s"}},
  "addressType":"IPv6","endpoints":[{"addresses":["fd00::9"]}],"ports":[{"port":80},{"protocol":"SCTP"}]}
]}"#;
    let mut all = objects(own);
    all.extend(objects(POD));
    assert!(
        matches!(&all[1], Object::Lease(lease) if lease.backend == Backend::Other("carrier-pigeon".into()))
    );
    let keys = |object: &Object| match object {
        Object::Lease(lease) => lease.backend.keys().map(|key| (key.port, key.generation)).collect(),
        _ => Vec::new(),
    };
    assert_eq!((keys(&all[6]), keys(&all[7])), (vec![(51820, 0)], vec![(51820, 2), (51821, 3)]));
    let strict = |object: &Object| match object {
        Object::Lease(lease) => matches!(lease.backend, Backend::WireGuard { strict: true, .. }),
        _ => false,
    };
    assert_eq!((strict(&all[6]), strict(&all[7])), (true, false), "one that does not say so is strict");
    for object in all {
        let text = encode(&object);
        let again = parse(&text).unwrap();
        assert_eq!(again[0].object, object, "{}", String::from_utf8_lossy(&text));
        assert_eq!(encode(&again[0].object), text);
    }
}

#[test]
fn a_lease_that_would_lead_tunnels_astray_is_refused() {
    let lease = |underlay: &str, mac: &str| {
        let text = format!(
            "apiVersion: fairlead/v1\nkind: NodeLease\nmetadata: {{name: node1}}\n\
             spec: {{mtu: 1450, underlay: [{underlay:?}], backend: {{type: vxlan, vni: 1, port: 8472, mac: {mac:?}}}}}\n"
        );
        parse(text.as_bytes())
            .map_err(|faults| format!("{} {}", faults[0].field.as_deref().unwrap(), faults[0].reason))
    };
    let good = ("198.18.0.1", "02:00:00:00:00:01");
    assert!(lease(good.0, good.1).is_ok());
    for bad in ["0.0.0.0", "::", "127.0.0.1", "::1", "224.0.0.1", "ff02::1"] {
        let complaint = format!("spec.underlay[0] is {bad}, not the address of a machine in the network");
        assert_eq!(lease(bad, good.1).unwrap_err(), complaint);
    }
    for bad in ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"] {
        let complaint = format!("spec.backend.mac is {bad}, not the link-layer address of one machine");
        assert_eq!(lease(good.0, bad).unwrap_err(), complaint);
    }
}

#[test]
fn a_lease_has_no_two_keys_for_one_device() {
    let key = |generation: u32| {
        format!(
            "port: 51820, publicKey: BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=, generation: {generation}"
        )
    };
    let text = format!(
        "apiVersion: fairlead/v1\nkind: NodeLease\nmetadata: {{name: node1}}\n\
         spec: {{mtu: 1440, backend: {{type: wireguard, {}, next: {{{}}}}}}}\n",
        key(1),
        key(3)
    );
    let faults = parse(text.as_bytes()).unwrap_err();
    assert_eq!(faults[0].field.as_deref(), Some("spec.backend.next"));
    assert!(faults[0].reason.contains("whose device the key in force has"), "{}", faults[0].reason);
}

#[test]
fn complaints_about_a_pod_name_line_object_and_field() {
    let cases = [
        (
            "containerPort: 80",
            "containerPort: 70000",
            "9: shop/web-0 spec.containers[0].ports[0].containerPort is 70000, not between 1 and 65535",
        ),
        (
            "containerPort: 80",
            "containerPort: '80'",
            "9: shop/web-0 spec.containers[0].ports[0].containerPort is the text \"80\", not a number (take the quotes away)",
        ),
        (
            "UDP",
            "udp",
            "10: shop/web-0 spec.containers[0].ports[1].protocol is \"udp\", none of TCP, UDP and SCTP",
        ),
        (
            "app: web",
            "app: yes",
            "3: shop/web-0 metadata.labels.app is the truth value true, not text (put it in quotes)",
        ),
        (
            "web-0",
            "Web",
            "3: shop/Web metadata.name \"Web\" has 'W' at character 1; allowed are a-z, 0-9 and, not at either end, '-' or '.'",
        ),
        ("name: web-0, ", "", "3: metadata.name is missing"),
        (
            "name: web-0, ",
            "generateName: web-, ",
            "3: metadata.name is missing; generateName needs an API server (give the object a name of its own)",
        ),
        (
            "10.244.1.5",
            "10.244.1.256",
            "12: shop/web-0 status.podIPs[0].ip is \"10.244.1.256\", not an IP address",
        ),
        (
            "Running",
            "Jogging",
            "12: shop/web-0 status.phase is \"Jogging\", none of Pending, Running, Succeeded, Failed, Unknown",
        ),
        ("apiVersion: v1", "", "2: shop/web-0 apiVersion is missing"),
    ];
    for (from, to, want) in cases {
        let got = complaint(POD.replace(from, to));
        let (line, rest) = got.split_once(':').unwrap();
        let rest = rest.split_once(' ').unwrap().1.replacen("Pod ", "", 1);
        assert_eq!(format!("{line}: {rest}"), want);
    }
}

#[test]
fn complaints_about_other_objects_name_line_object_and_field() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: node7}\nspec: {podCIDRs: [CIDR]}";
    let cases = [
        (POD.replace("kind: Pod", "kind: [Pod]"), "2:7 - kind is a list, not text"),
        ("- 1\n- 2".into(), "1:1 - - is a list, not a mapping of fields"),
        (
            node.replace("CIDR]", "10.244.1.7/24]"),
            "4:19 Node node7 spec.podCIDRs[0] is 10.244.1.7/24, with host bits set (write 10.244.1.0/24)",
        ),
        (
            node.replace("CIDR]", "10.0.0.0/24, 10.0.1.0/24]"),
            "4:18 Node node7 spec.podCIDRs has two CIDRs of one family",
        ),
        (
            "{\"apiVersion\": \"v1\",\n\"kind\": \"Pod\",\n\"metadata\": {\"name\": 7}}".into(),
            "3:22 Pod metadata.name is the number 7, not text (put it in quotes)",
        ),
    ];
    for (text, want) in cases {
        assert_eq!(complaint(&text), want);
    }
}

#[test]
fn text_that_is_no_yaml_is_refused_with_its_place() {
    assert!(complaint("a: 1\nb: [1, 2\nc: 3\n").starts_with("3:"), "{}", complaint("a: 1\nb: [1, 2\nc: 3\n"));
    assert!(complaint("a: 1\na: 2\n").contains("2:"), "{}", complaint("a: 1\na: 2\n"));
    assert!(complaint(b"a: 1\nb: \xff\n").starts_with("2:0 - - is not UTF-8 text"));
    assert!(complaint("{\"a\": 1, \"a\": 2}").contains("duplicate"), "{}", complaint("{\"a\": 1, \"a\": 2}"));
    assert!(complaint("a: \"\x1b[2J\"\n?").chars().all(|c| !c.is_control()));
}

#[test]
fn floods_are_refused_instead_of_filling_memory_and_stack() {
    let deep_flow = "[".repeat(100_000);
    let deep_json = format!("{}{}", "{\"a\":".repeat(100_000), "1");
    let deep_block: String = (0..5_000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    let mut bomb = String::from("a: &a [x, x, x, x, x, x, x, x, x]\n");
    for (name, before) in ('b'..='z').zip('a'..) {
        bomb += &format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 9].join(", "));
    }
    for text in [deep_flow, deep_json, deep_block, bomb] {
        let text = complaint(text);
        assert!(text.contains("YAML"), "{text}");
    }
}

#[test]
fn thousands_of_documents_in_one_file_are_read() {
    let text: String = (0..3_000).map(|n| POD.replace("web-0", &format!("web-{n}")) + "---\n").collect();
    assert_eq!(objects(&text).len(), 3_000);
}

#[test]
fn a_node_awaits_its_network_by_our_taint_or_the_condition_whatever_else_it_has() {
    let awaits = |rest: &str| {
        let node = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: node1}}\n{rest}");
        match &objects(&node)[..] {
            [Object::Node(node)] => node.awaits_network,
            other => panic!("{other:?}"),
        }
    };
    assert!(awaits(
        "spec: {taints: [{key: a, effect: NoExecute}, {key: fairlead.io/not-ready, effect: NoSchedule}]}"
    ));
    assert!(awaits(
        "status: {conditions: [{type: Ready, status: 'True'}, {type: NetworkUnavailable, status: 'True'}]}"
    ));
    assert!(!awaits("spec: {taints: [{key: node.kubernetes.io/not-ready, effect: NoSchedule}]}"));
    assert!(!awaits(
        "status: {conditions: [{type: NetworkUnavailable, status: 'False'}, {type: Ready, status: 'True'}]}"
    ));
    assert!(!awaits("spec: {}"));
}
