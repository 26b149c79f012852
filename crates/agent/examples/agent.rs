//! The smallest program around an agent: what the agent's own tests start in namespaces.
//!
//! `agent NODE STORE STATE_DIR CONF_DIR [CONFIG]`, and `agent clean ...` with the same arguments, to take everything
//! down again; STORE is what `--store` takes, AGENT_HEALTH in the environment what `--health` does, AGENT_IPAM what `--ipam-dir` does, and AGENT_BRIDGE is `--bridge`. The
//! command line for people is `fairlead agent`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that says what it does")]

use std::process::ExitCode;

use agent::Options;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let clean = arguments.first().is_some_and(|first| first == "clean");
    if clean {
        arguments.remove(0);
    }
    match start(&arguments, clean) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  cause: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &[String], clean: bool) -> Result<(), Box<dyn std::error::Error>> {
    let [node, store, state_dir, conf_dir, rest @ ..] = arguments else {
        return Err("arguments: NODE STORE STATE_DIR CONF_DIR [CONFIG]".into());
    };
    let mut options = Options::new(node, store.parse()?);
    options.state_dir = state_dir.into();
    options.conf_dir = conf_dir.into();
    // The tests want a deleted node to be gone at once, unless they say otherwise.
    options.config.cluster.deleted_node_grace_seconds = 0;
    options.health = std::env::var("AGENT_HEALTH").ok().map(|address| address.parse()).transpose()?;
    options.ipam_dir = std::env::var_os("AGENT_IPAM").map(Into::into);
    options.bridge = std::env::var_os("AGENT_BRIDGE").is_some();
    options.config_file = rest.first().map(Into::into);
    if clean {
        let mut said = Vec::new();
        let done = agent::clean(&options, &mut said, |_| Ok(()));
        said.iter().for_each(|step| println!("{step}"));
        return Ok(done?);
    }
    Ok(agent::run(&options)?)
}
