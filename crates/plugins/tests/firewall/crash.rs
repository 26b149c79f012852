//! A kill or a failure at every step of ADD and DEL.

use harness::{Disturbance, every_step, not_run, strace_works};
use serde_json::{Value, json};

use crate::scene::{Pod, Scene};

/// Disturbs `command` at each of its steps; after each, `mend` has to leave nothing.
fn at_every_step(command: &str, how: Disturbance, mend: impl Fn(&Scene, &Pod, &Value)) {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let scene = Scene::new();
    scene.drop_forwarded();
    let mut number = 0;
    let steps = every_step(|step| {
        number += 1;
        let pod = scene.pod("net", 1, &format!("c{number}"));
        let config = pod.config(json!({}));
        let call = pod.call(&scene, "firewall");
        if command == "DEL" {
            call.add(&config);
            pod.lose_cable(&scene);
        }
        let outcome = call.disturbed(command, &config, how, step);
        let refused = outcome.reply.exit != Some(0) && matches!(how, Disturbance::Fail);
        // An answer that nobody reads: the list's DEL finds what there is, as after a kill.
        if command == "ADD" && refused && step.name != "write" {
            scene.expect_clean(&format!("{command} refused at {step:?}"));
        }
        mend(&scene, &pod, &config);
        scene.expect_clean(&format!("{command} disturbed at {step:?}"));
        pod.call(&scene, "bridge").del(&pod.bridge);
        assert!(outcome.reached || outcome.reply.exit == Some(0), "{outcome:?}");
        outcome.reached
    });
    assert!(steps > 15, "only {steps} steps: strace disturbed nothing");
}

fn del(scene: &Scene, pod: &Pod, _: &Value) {
    pod.call(scene, "bridge").del(&pod.bridge);
    pod.call(scene, "firewall").del(&pod.config(json!({ "prevResult": null })));
}

#[test]
fn an_add_killed_at_any_step_is_cleaned_by_the_lists_del() {
    at_every_step("ADD", Disturbance::Kill, del);
}

#[test]
fn an_add_killed_at_any_step_is_cleaned_by_gc() {
    at_every_step("ADD", Disturbance::Kill, |scene, pod, config| {
        let mut request = config.clone();
        request["cni.dev/valid-attachments"] = json!([]);
        pod.call(scene, "firewall").run("GC", &request).expect_success("GC");
    });
}

#[test]
fn an_add_that_fails_at_any_step_leaves_nothing() {
    at_every_step("ADD", Disturbance::Fail, del);
}

#[test]
fn a_del_killed_at_any_step_is_finished_by_the_next() {
    at_every_step("DEL", Disturbance::Kill, |scene, pod, config| pod.call(scene, "firewall").del(config));
}
