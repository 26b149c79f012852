//! Things going wrong in the middle: a failing address plugin, many calls at once, a kill at every step.

use std::{os::unix::fs::PermissionsExt, process::Stdio};

use harness::{Disturbance, Namespace, every_step, not_run, strace_works};
use serde_json::{Value, json};

use crate::scene::{Scene, overlay};

/// Installs a shell script as an address plugin that answers ADD with `add` and notes every call.
fn stub(scene: &Scene, add: &str) -> Value {
    let path = scene.bin.path().join("stub-ipam");
    let log = scene.data.path().join("calls");
    let script = format!(
        "#!/bin/sh\necho $CNI_COMMAND >> {}\ncat > /dev/null\n[ $CNI_COMMAND != ADD ] || {{ {add}; }}\n",
        log.display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut config = scene.config(&[], json!({ "isGateway": true, "ipMasq": true, "macspoofchk": true }));
    config["ipam"] = json!({ "type": "stub-ipam" });
    config
}

fn calls(scene: &Scene) -> Vec<String> {
    let text = std::fs::read_to_string(scene.data.path().join("calls")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

// 11
#[test]
fn an_address_plugin_that_fails_leaves_no_link() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let error = r#"echo '{"code": 11, "msg": "the pool rests"}'; exit 1"#;
    let reply = scene.call("c", &pod).run("ADD", &stub(&scene, error));
    assert!(reply.error_text().contains("the pool rests"), "{reply:?}");
    assert_eq!(reply.error_code(), 11);
    scene.expect_clean("a failing address plugin");
    assert!(pod.link_names().is_empty());
    assert_eq!(calls(&scene), ["ADD", "DEL"]);
}

// 11
#[test]
fn an_address_plugin_that_gives_nothing_is_refused_and_told() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let reply =
        scene.call("c", &pod).run("ADD", &stub(&scene, r#"echo '{"cniVersion": "1.1.0", "ips": []}'"#));
    assert!(reply.error_text().contains("IPAM plugin returned missing IP config"), "{reply:?}");
    scene.expect_clean("an address plugin with nothing");
    assert!(pod.link_names().is_empty());
    assert_eq!(calls(&scene), ["ADD", "DEL"]);
}

// 11
#[test]
fn a_bridge_that_names_itself_for_addresses_is_refused_instead_of_going_round_for_ever() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let call = scene.call("c", &pod);
    let config = scene
        .config(&[], json!({ "type": null, "ipam": { "type": "bridge" }, "cni.dev/valid-attachments": [] }));
    assert_eq!(call.run("ADD", &config).error_code(), 7);
    assert_eq!(call.run("STATUS", &config).error_code(), 50);
    assert!(scene.host.link_names().is_empty() && pod.link_names().is_empty());
    call.del(&config);
    call.run("GC", &config).expect_success("GC");
}

// 28
#[test]
fn a_failure_after_the_address_was_given_gives_it_back() {
    let scene = Scene::new();
    let pod = Namespace::new();
    // A route through a gateway that is nowhere: the kernel refuses it, late.
    let config = scene.config(
        &["10.1.2.0/24"],
        json!({ "isGateway": true, "ipMasq": true, "macspoofchk": true,
                "ipam": { "routes": [{ "dst": "192.0.2.0/24", "gw": "172.16.0.1" }] } }),
    );
    let reply = scene.call("c", &pod).run("ADD", &config);
    assert_ne!(reply.exit, Some(0));
    assert!(reply.error_text().contains("192.0.2.0/24"), "{reply:?}");
    scene.expect_clean("a refused route");
    assert!(pod.link_names().is_empty());
}

// 30
#[test]
fn a_hundred_adds_at_once_make_one_bridge_and_a_hundred_addresses() {
    let scene = Scene::new();
    let pods: Vec<Namespace> = (0..100).map(|_| Namespace::new()).collect();
    let names: Vec<String> = (0..100).map(|number| format!("c{number}")).collect();
    let config = scene.config(
        &["10.1.2.0/24", "2001:db8:42::/64"],
        json!({ "isDefaultGateway": true, "ipMasq": true, "macspoofchk": true }),
    );
    let adding: Vec<std::process::Child> =
        std::iter::zip(&pods, &names).map(|(pod, name)| start(&scene, name, pod, "ADD", &config)).collect();
    let mut given: Vec<String> = Vec::new();
    for child in adding {
        let output = child.wait_with_output().unwrap();
        let result: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        assert!(output.status.success(), "{result}");
        for index in 0..2 {
            given.push(result["ips"][index]["address"].as_str().unwrap().to_owned());
        }
    }
    given.sort();
    given.dedup();
    assert_eq!(given.len(), 200, "every address is given once");
    assert_eq!(scene.host.ip_json("link show master cni0").as_array().unwrap().len(), 100);
    assert_eq!(scene.elements().len(), 400);
    let removing: Vec<std::process::Child> =
        std::iter::zip(&pods, &names).map(|(pod, name)| start(&scene, name, pod, "DEL", &config)).collect();
    for child in removing {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    scene.expect_clean("a hundred DELs");
}

fn start(scene: &Scene, name: &str, pod: &Namespace, command: &str, config: &Value) -> std::process::Child {
    let mut process = scene.call(name, pod).command(command);
    process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), config.to_string().as_bytes()).unwrap();
    child
}

fn everything(scene: &Scene) -> Value {
    scene.config(
        &["10.1.2.0/24", "2001:db8:42::/64"],
        json!({ "isDefaultGateway": true, "ipMasq": true, "macspoofchk": true, "hairpinMode": true }),
    )
}

/// Kills `command` at each of its steps in turn; after each, `mend` has to leave nothing.
fn kill_at_every_step(command: &str, mend: impl Fn(&Scene, &Namespace, &Value)) {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let scene = Scene::new();
    let config = everything(&scene);
    let steps = every_step(|step| {
        let pod = Namespace::new();
        let call = scene.call("c", &pod);
        if command == "DEL" {
            call.add(&config);
        }
        let outcome = call.disturbed(command, &config, Disturbance::Kill, step);
        mend(&scene, &pod, &config);
        scene.expect_clean(&format!("{command} killed at {step:?}"));
        assert!(pod.link_names().is_empty(), "{command} killed at {step:?}");
        assert!(outcome.reached || outcome.reply.exit == Some(0), "{outcome:?}");
        outcome.reached
    });
    assert!(steps > 40, "only {steps} steps: strace killed nothing");
    // The next pod is served as if nothing had been.
    let next = Namespace::new();
    scene.call("next", &next).add(&config);
}

#[test]
fn an_add_killed_at_any_step_is_cleaned_by_del() {
    kill_at_every_step("ADD", |scene, pod, config| scene.call("c", pod).del(config));
}

#[test]
fn an_add_killed_at_any_step_is_cleaned_by_gc() {
    kill_at_every_step("ADD", |scene, pod, config| {
        let mut config = config.clone();
        overlay(&mut config, json!({ "cni.dev/valid-attachments": [] }));
        scene.call("", pod).run("GC", &config).expect_success("GC");
    });
}

#[test]
fn a_del_killed_at_any_step_is_finished_by_the_next() {
    kill_at_every_step("DEL", |scene, pod, config| scene.call("c", pod).del(config));
}

// 28, at every place where something can fail
#[test]
fn an_add_that_fails_at_any_step_leaves_nothing() {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let scene = Scene::new();
    let config = everything(&scene);
    let mut failed = 0;
    every_step(|step| {
        let pod = Namespace::new();
        let call = scene.call("c", &pod);
        let outcome = call.disturbed("ADD", &config, Disturbance::Fail, step);
        if outcome.reply.exit == Some(0) || (step.name == "setns" && outcome.reply.stdout.is_empty()) {
            // A step that is allowed to fail, or none was disturbed; or the way home from the pod's namespace
            // was barred, where a process must not go on, not even to undo.
            call.del(&config);
        } else {
            failed += 1;
        }
        let what = format!("ADD failed at {step:?}: {outcome:?}");
        scene.expect_clean(&what);
        assert!(pod.link_names().is_empty(), "{what}");
        outcome.reached
    });
    assert!(failed > 30, "only {failed} steps can fail: strace disturbed nothing");
}
