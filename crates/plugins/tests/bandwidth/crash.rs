//! A kill at every step of the chain, and a failure at every step of the plugin's own ADD.

use harness::{Disturbance, Outcome, every_step, not_run, strace_works};
use serde_json::Value;

use crate::scene::{Pod, Scene};

/// Disturbs one call of a fresh pod at each of its steps in turn; `mend` has to leave nothing.
fn at_every_step(what: &str, disturb: impl Fn(&Pod<'_>, harness::Step) -> Outcome, mend: impl Fn(&Pod<'_>)) {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let scene = Scene::new();
    let steps = every_step(|step| {
        let pod = scene.pod_with_port();
        let outcome = disturb(&pod, step);
        mend(&pod);
        scene.expect_clean(&format!("{what} at {step:?}"));
        assert_eq!(pod.namespace.link_names(), [""; 0], "{what} at {step:?}");
        outcome.reached
    });
    // A chained plugin's DEL that finds the cable standing asks once: five steps.
    assert!(steps > 4, "{what}: only {steps} steps: strace disturbed nothing");
}

fn killed(pod: &Pod<'_>, plugin: usize, command: &str, previous: &Value, step: harness::Step) -> Outcome {
    pod.call(plugin).disturbed(command, &pod.config(plugin, previous), Disturbance::Kill, step)
}

#[test]
fn an_add_killed_at_any_step_is_cleaned_by_del_of_the_chain() {
    at_every_step(
        "ADD killed",
        |pod, step| killed(pod, pod.last(), "ADD", &pod.plug_in(), step),
        |pod| pod.del(&Value::Null),
    );
}

#[test]
fn an_add_killed_at_any_step_is_cleaned_by_gc() {
    at_every_step(
        "ADD killed",
        |pod, step| killed(pod, pod.last(), "ADD", &pod.plug_in(), step),
        |pod| pod.gc(false),
    );
}

#[test]
fn a_del_of_the_chain_killed_at_any_step_is_finished_by_the_next() {
    for plugin in [0, 1, 2] {
        at_every_step(
            "DEL killed",
            |pod, step| {
                let result = pod.add();
                for before in (plugin + 1..=pod.last()).rev() {
                    pod.call(before).del(&pod.config(before, &result));
                }
                killed(pod, plugin, "DEL", &result, step)
            },
            |pod| pod.del(&Value::Null),
        );
    }
}

#[test]
fn a_del_of_the_cable_killed_at_any_step_is_finished_by_gc() {
    at_every_step("DEL killed", |pod, step| killed(pod, 0, "DEL", &pod.add(), step), |pod| pod.gc(false));
}

#[test]
fn an_add_that_fails_at_any_step_leaves_the_cable_as_it_was() {
    at_every_step(
        "ADD failed",
        |pod, step| {
            let config = pod.config(pod.last(), &pod.plug_in());
            let outcome = pod.call(pod.last()).disturbed("ADD", &config, Disturbance::Fail, step);
            let (scene, said) = (pod.scene, &outcome.reply.stdout);
            // A result that could not be told is the business of the runtime's DEL; so is all that is done once
            // the way home from the pod's namespace was barred.
            let untold = said.contains("error writing") || step.name == "setns" && said.is_empty();
            if outcome.reply.exit != Some(0) && !untold {
                assert_eq!(scene.ifbs(), [""; 0], "{step:?}: {outcome:?}");
                let cable = &scene.links()[0];
                let kinds: Vec<Value> = scene
                    .tc(&format!("qdisc show dev {cable}"))
                    .into_iter()
                    .map(|qdisc| qdisc["kind"].clone())
                    .collect();
                assert_eq!(kinds, ["noqueue"], "{step:?}: {outcome:?}");
            }
            outcome
        },
        |pod| pod.del(&Value::Null),
    );
}
