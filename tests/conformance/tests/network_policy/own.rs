//! Cases of our own: one YAML file each, manifests as a user writes them.
//!
//! Comments say what is to come of them: `# allowed: x/a -> y/b TCP 80` and `# denied: ...`, one flow a line. An end is a
//! pod, a node or an address; `via Service` after the port says how the flow came there. `v6` at the end asks for the pods'
//! second addresses. Unless a case has pods of its own, there are pods a, b and c in the namespaces x, w and z, labelled
//! `pod` and (their namespaces) `ns` by their names, with the ports `http` 80/TCP, `alt` 81/TCP and `dns` 53/UDP.

use std::net::IpAddr;
use std::path::Path;

use cluster::{ContainerPort, Namespace, NamespacedName, Object, Phase, Pod, Protocol};
use policy::{Flow, Traffic};

use crate::world::World;

/// Plays a case; an error names the file, and tells why the verdict is what it is.
pub(crate) fn play(file: &Path) -> Result<(), String> {
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(file).unwrap();
    let objects =
        store::read_manifest(&name, text.as_bytes()).map_err(|faults| format!("{name}: {faults:?}"))?;
    let mut world = World::new();
    if !objects.iter().any(|object| matches!(object, Object::Pod(_))) {
        usual(&mut world);
    }
    objects.into_iter().for_each(|object| world.set(object));
    let nodes = world.stand();
    let mut asked = 0;
    for line in text.lines() {
        let wanted = match line.split_once(": ") {
            Some(("# allowed", flow)) => (true, flow),
            Some(("# denied", flow)) => (false, flow),
            _ => continue,
        };
        let flow = read(&world, wanted.1);
        asked += 1;
        if world.passes(&nodes, &flow) != wanted.0 {
            return Err(format!("{name}: {line}: {}", world.policies().explain(&flow)));
        }
    }
    if asked == 0 { Err(format!("{name} asks nothing")) } else { Ok(()) }
}

fn usual(world: &mut World) {
    let ports = [("http", 80, Protocol::Tcp), ("alt", 81, Protocol::Tcp), ("dns", 53, Protocol::Udp)];
    for (row, namespace) in (1..).zip(["x", "w", "z"]) {
        world.set(Namespace { name: namespace.into(), labels: [("ns", namespace)].into_iter().collect() });
        for (column, name) in (1..).zip(["a", "b", "c"]) {
            let port = |(name, port, protocol): (&str, u16, Protocol)| {
                let name = Some(name.into());
                ContainerPort { name, port, protocol, host_port: None, host_address: None }
            };
            let node = world.next_node();
            world.set(Pod {
                labels: [("pod", name)].into_iter().collect(),
                node: Some(node.into()),
                ports: ports.map(port).into(),
                phase: Phase::Running,
                addresses: Box::from([
                    IpAddr::from([10, 244, row, column]),
                    IpAddr::from([0xfd00, 0x10, 0x244, u16::from(row), 0, 0, 0, u16::from(column)]),
                ]),
                ..Pod::named(NamespacedName::new(namespace, name))
            });
        }
    }
}

/// A flow as `x/a -> y/b TCP 80`, perhaps `via Service`, perhaps `v6`.
fn read(world: &World, line: &str) -> Flow {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [source, "->", destination, protocol, port, rest @ ..] = &words[..] else { panic!("{line}") };
    let protocol = match *protocol {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        other => panic!("{line}: {other}"),
    };
    let v6 = rest.last() == Some(&"v6");
    let end = |text: &str| -> IpAddr {
        let snapshot = world.snapshot();
        let own = match text.split_once('/') {
            Some((namespace, name)) => snapshot.pod_addresses(&NamespacedName::new(namespace, name)),
            None => snapshot.nodes.get(text).map_or(&[][..], |node| &node.addresses),
        };
        let of_family = own.iter().copied().find(|address| address.is_ipv6() == v6);
        of_family.or_else(|| text.parse().ok()).unwrap_or_else(|| panic!("{line}: nobody is {text}"))
    };
    Flow {
        source: end(source),
        destination: end(destination),
        traffic: Traffic::Port(protocol, port.parse().unwrap()),
        through_service: rest.starts_with(&["via", "Service"]),
    }
}
