//! Things going wrong in the middle: a kill at every step, and many at once.

use std::process::Stdio;

use harness::{Call, Disturbance, every_step, not_run, strace_works};
use serde_json::{Value, json};

use crate::scene::{Pod, Scene, tcp};

fn mappings() -> Value {
    json!([
        { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 8053, "containerPort": 53, "protocol": "udp" },
        { "hostPort": 8443, "containerPort": 443, "protocol": "tcp", "hostIP": "192.0.2.1" },
    ])
}

/// Disturbs portmap at each of its steps in turn; after each, `mend` has to leave no element. `fresh` starts every
/// round without the shared chains and maps.
fn at_every_step(command: &str, fresh: bool, mend: impl Fn(&Scene, &Pod, &Value)) {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let scene = Scene::new();
    let pod = scene.pod("c");
    // Not our cable any more: DEL of portmap has to take everything itself.
    scene
        .host
        .ip(&format!("link set {} alias foreign", pod.result["interfaces"][1]["name"].as_str().unwrap()));
    let config = scene.config(&pod, mappings(), json!({}));
    let steps = every_step(|step| {
        if fresh {
            let _ = scene.host.command("nft").args(["delete", "table", "inet", "fairlead_cni"]).output();
        }
        let call = scene.call(&pod);
        if command == "DEL" {
            call.add(&config);
        }
        let outcome = call.disturbed(command, &config, Disturbance::Kill, step);
        mend(&scene, &pod, &config);
        assert_eq!(scene.elements(), [""; 0], "{command} killed at {step:?}");
        assert!(outcome.reached || outcome.reply.exit == Some(0), "{outcome:?}");
        outcome.reached
    });
    assert!(steps > 8, "only {steps} steps: strace killed nothing");
    scene.call(&pod).add(&config);
    scene.call(&pod).run("CHECK", &config).expect_success("CHECK");
}

#[test]
fn an_add_killed_at_any_step_is_cleaned_by_del() {
    at_every_step("ADD", false, |scene, pod, config| scene.call(pod).del(config));
}

#[test]
fn a_first_add_killed_at_any_step_is_finished_by_the_next() {
    at_every_step("ADD", true, |scene, pod, config| {
        scene.call(pod).add(config);
        scene.call(pod).run("CHECK", config).expect_success("CHECK");
        scene.call(pod).del(config);
    });
}

#[test]
fn an_add_killed_at_any_step_is_cleaned_by_gc() {
    at_every_step("ADD", false, |scene, _, _| drop(scene.collect("test", &[]).expect_success("GC")));
}

#[test]
fn a_del_killed_at_any_step_is_finished_by_the_next() {
    at_every_step("DEL", false, |scene, pod, config| scene.call(pod).del(config));
}

#[test]
fn an_add_that_fails_at_any_step_leaves_nothing() {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let scene = Scene::new();
    let pod = scene.pod("c");
    scene
        .host
        .ip(&format!("link set {} alias foreign", pod.result["interfaces"][1]["name"].as_str().unwrap()));
    let config = scene.config(&pod, tcp(8080, 80), json!({}));
    let mut failed = 0;
    every_step(|step| {
        let call = scene.call(&pod);
        let outcome = call.disturbed("ADD", &config, Disturbance::Fail, step);
        if outcome.reply.exit == Some(0) {
            call.del(&config);
        } else if outcome.reply.stdout.is_empty() || step.name == "recvfrom" {
            // The answer was not heard, so nobody knows what was done: the runtime's DEL takes it away.
            call.del(&config);
        } else {
            failed += 1;
        }
        assert_eq!(scene.elements(), [""; 0], "ADD failed at {step:?}: {outcome:?}");
        outcome.reached
    });
    assert!(failed > 3, "only {failed} steps can fail: strace disturbed nothing");
}

#[test]
fn fifty_first_adds_at_once_make_one_set_of_rules() {
    let scene = Scene::new();
    let pods: Vec<Pod> = (0..50).map(|number| scene.pod(&format!("c{number}"))).collect();
    let start = |command: &str| -> Vec<_> {
        let ports = (0..50).map(|number| tcp(8000 + number, 80));
        pods.iter()
            .zip(ports)
            .map(|(pod, port)| start(&scene, &scene.call(pod), pod, command, port))
            .collect()
    };
    for child in start("ADD") {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    assert_eq!(scene.elements().len(), 200);
    let listing = scene.listing();
    for once in
        ["map @hostports4 ", "map @hostports6 ", "ct status dnat masquerade", "iifname != \"lo\" drop"]
    {
        assert_eq!(listing.matches(once).count(), 1, "{once}: {listing}");
    }
    for pod in &pods {
        scene.delete(pod, json!([]));
    }
    assert_eq!(scene.elements(), [""; 0]);
}

fn start(scene: &Scene, call: &Call<'_>, pod: &Pod, command: &str, mappings: Value) -> std::process::Child {
    let mut process = call.command(command);
    process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process.spawn().unwrap();
    let config = scene.config(pod, mappings, json!({})).to_string();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), config.as_bytes()).unwrap();
    child
}
