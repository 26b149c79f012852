//! Connections that a pod could inherit with its address, where nobody heard the pod go that had it before.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use cluster::{Attachment, Enforced, EnforcedAnswer};
use harness::run_ok;
use harness::talk::serve;
use serde_json::json;

use crate::scene::{Pod, Scene};

/// Leaves the word of an attachment, as the plugin does, and asks whether its pod's policies are in force.
fn attach_by_hand(scene: &Scene, pod: &Pod) -> EnforcedAnswer {
    let attachment = Attachment {
        network: "fairlead".to_owned(),
        namespace: "shop".to_owned(),
        name: pod.name.to_owned(),
        uid: Some(pod.uid.clone()),
        container: pod.uid.clone(),
        interface: "eth0".to_owned(),
        addresses: pod.addresses.iter().map(|address| address.parse().unwrap()).collect(),
    };
    let name = Attachment::file_name(&attachment.container, &attachment.interface);
    let directory = scene.node().state_dir().join("attachments");
    std::fs::write(directory.join(".half"), attachment.to_json()).unwrap();
    std::fs::rename(directory.join(".half"), directory.join(&name)).unwrap();
    let mut stream = UnixStream::connect(scene.node().state_dir().join("gate.sock")).unwrap();
    let question = Enforced { attachment: name, within_milliseconds: 10_000 };
    stream.write_all(question.to_line().as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    EnforcedAnswer::from_line(&line).unwrap()
}

/// Whether connections of all these addresses are tracked, and whether of any.
fn tracked(scene: &Scene, addresses: &[String]) -> [bool; 2] {
    let list = |family| run_ok(scene.node().netns.command("conntrack").args(["-L", "-f", family]));
    let listed = list("ipv4") + &list("ipv6");
    let has = |address: &String| listed.split_whitespace().any(|word| word == format!("dst={address}"));
    [addresses.iter().all(has), addresses.iter().any(has)]
}

#[test]
fn a_pod_inherits_nothing_of_one_that_was_attached_before_the_agent_and_whose_end_was_not_heard() {
    if Command::new("conntrack").arg("--version").output().is_err() {
        return harness::not_run("conntrack (Debian's package conntrack) is not installed");
    }
    let mut scene = Scene::enforcing();
    scene.put_policy("door", "web", json!({"ingress": [{}]}));
    let (web, client) = (scene.pod("web", "web"), scene.pod("client", "client"));
    serve(&web.netns, 80, "web");
    scene.rig.nodes[0].kill();
    run_ok(scene.node().netns.command("conntrack").arg("-F"));
    scene.start();
    // One that is let in shows that by now it is known what was tracked at the start.
    scene.pod("third", "third");
    assert!(client.asks(&web));
    assert_eq!(tracked(&scene, &web.addresses), [true, true]);
    let next = Pod { addresses: web.addresses.clone(), ..Pod::new("next", "uid-of-next") };
    scene.put_pod(&next, "web");
    assert_eq!(attach_by_hand(&scene, &next), EnforcedAnswer::Enforced);
    assert_eq!(tracked(&scene, &next.addresses), [false, false]);
}
