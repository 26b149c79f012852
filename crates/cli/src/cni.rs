//! `fairlead cni`: the plugins laid into place, and a network tried by hand.
//!
//! `install` lays them, `doctor` says what a kubelet would trip over. `add`, `del`, `check`, `gc` and `status` do what the reference's `cnitool` does and listen to the same
//! environment variables, in one process: plugins that this program has inside need no file.

pub(crate) mod doctor;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use ::cni::{AddResult, Cache, ConfList, Json, Runner, RuntimeArguments};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::output::{OutputOption, print};
use crate::table::Table;

/// Install the CNI plugins, or take a network namespace through a network by hand
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fairlead cni install --bin-dir /opt/cni/bin\n  \
    fairlead cni doctor\n  fairlead cni add mynet /var/run/netns/pod1\n\n\
    add, del, check, gc and status read CNI_PATH (plugins; those inside this program need none), \
    NETCONFPATH (/etc/cni/net.d), CNI_IFNAME (eth0), CNI_ARGS, CAP_ARGS, CNI_CONTAINERID.")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Install(Install),
    Doctor(doctor::Arguments),
    /// Attach a namespace to a network and print the result
    #[command(after_help = "Example:\n  fairlead cni add mynet /var/run/netns/pod1")]
    Add(Attachment),
    /// Detach a namespace from a network
    #[command(after_help = "Example:\n  fairlead cni del mynet /var/run/netns/pod1")]
    Del(Attachment),
    /// Verify that an attachment is as it was made
    #[command(after_help = "Example:\n  fairlead cni check mynet /var/run/netns/pod1")]
    Check(Attachment),
    /// Remove everything of a network but this attachment
    #[command(after_help = "Example:\n  fairlead cni gc mynet /var/run/netns/pod1")]
    Gc(Attachment),
    /// Ask whether an attachment could be made now
    #[command(after_help = "Example:\n  fairlead cni status mynet /var/run/netns/pod1")]
    Status(Attachment),
}

/// Lay fairlead-cni and a link for each plugin into a container runtime's directory
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fairlead cni install --bin-dir /opt/cni/bin")]
struct Install {
    /// Where the runtime looks for plugins
    #[arg(long, value_name = "DIR")]
    bin_dir: PathBuf,
    /// Where the runtime looks for network configurations: made if it is not there
    #[arg(long, value_name = "DIR")]
    conf_dir: Option<PathBuf>,
    #[command(flatten)]
    output: OutputOption,
}

#[derive(Debug, Args)]
struct Attachment {
    /// The network's name
    network: String,
    /// The path of the network namespace
    netns: PathBuf,
    /// Where results are kept between calls
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni")]
    cache_dir: PathBuf,
}

/// Runs the verb.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.verb {
        Verb::Install(install) => lay(&install)?,
        Verb::Doctor(arguments) => return doctor::run(&arguments),
        Verb::Add(attachment) => {
            let call = Call::of(&attachment)?;
            print(&text(&call.runner.add(&call.list, &call.arguments)?, &call.list)?)?;
        }
        Verb::Del(attachment) => {
            let call = Call::of(&attachment)?;
            call.runner.del(&call.list, &call.arguments)?;
        }
        Verb::Check(attachment) => {
            let call = Call::of(&attachment)?;
            call.runner.check(&call.list, &call.arguments)?;
        }
        Verb::Gc(attachment) => {
            let call = Call::of(&attachment)?;
            call.runner.gc(&call.list, &[call.arguments.attachment()])?;
        }
        Verb::Status(attachment) => {
            let call = Call::of(&attachment)?;
            call.runner.status(&call.list)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One call of the chain.
struct Call {
    runner: Runner,
    list: ConfList,
    arguments: RuntimeArguments,
}

impl Call {
    fn of(attachment: &Attachment) -> Result<Self> {
        let directory = env::var_os("NETCONFPATH").map_or_else(|| "/etc/cni/net.d".into(), PathBuf::from);
        let list = ConfList::find(&directory, &attachment.network).with_context(|| {
            let network = &attachment.network;
            format!("cannot use network {network}; hint: NETCONFPATH names the directory to look for it in")
        })?;
        let path = env::var_os("CNI_PATH").unwrap_or_default();
        let runner = Runner {
            path: env::split_paths(&path).filter(|path| !path.as_os_str().is_empty()).collect(),
            cache: Cache::new(&attachment.cache_dir),
            resolver: Some(plugins::find),
        };
        let container_id = match variable("CNI_CONTAINERID") {
            Some(id) => id,
            // As `cnitool` derives it, so that the two can take turns.
            None => RuntimeArguments::container_id_for(&attachment.netns)?,
        };
        let arguments = RuntimeArguments {
            container_id,
            netns: Some(attachment.netns.clone()),
            ifname: variable("CNI_IFNAME").unwrap_or_else(|| "eth0".to_owned()),
            args: pairs(&variable("CNI_ARGS").unwrap_or_default())?,
            capability_args: capabilities(&variable("CAP_ARGS").unwrap_or_default())?,
        };
        Ok(Self { runner, list, arguments })
    }
}

/// A variable that is there and not empty.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// `K=V;K2=V2`.
fn pairs(text: &str) -> Result<Vec<(String, String)>> {
    let items = text.split(';').filter(|item| !item.is_empty());
    items
        .map(|item| match item.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => bail!("CNI_ARGS: {item:?} is not KEY=VALUE"),
        })
        .collect()
}

/// A JSON object, capability by capability.
fn capabilities(text: &str) -> Result<Vec<(String, Json)>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    match Json::parse(text.as_bytes()).context("CAP_ARGS is not JSON")? {
        Json::Object(members) => Ok(members),
        _ => bail!("CAP_ARGS is not a JSON object"),
    }
}

fn text(result: &AddResult, list: &ConfList) -> Result<String> {
    let json = result.to_json(list.version)?;
    Ok(String::from_utf8_lossy(&json.to_bytes()).into_owned() + "\n")
}

/// The program that is laid into a runtime's directory of plugins.
pub(crate) fn plugins_binary() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot find this program's own file")?;
    let beside = own.with_file_name(plugins::install::BINARY);
    // This program has every plugin inside; the small one starts faster.
    Ok(if beside.is_file() { beside } else { own })
}

fn lay(install: &Install) -> Result<()> {
    let laid = plugins::install::install(&plugins_binary()?, &install.bin_dir)?;
    if let Some(directory) = &install.conf_dir {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let rows: Vec<serde_json::Value> = laid
        .iter()
        .map(|one| {
            let change = format!("{:?}", one.change).to_lowercase();
            serde_json::json!({"path": one.path, "change": change})
        })
        .collect();
    install.output.output.print(&rows, |rows, _| {
        let mut table = Table::new(["PATH", "CHANGE"]);
        for row in rows {
            table.row([row["path"].as_str().unwrap_or_default(), row["change"].as_str().unwrap_or_default()]);
        }
        vec![table]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_pairs() {
        assert_eq!(pairs("A=1;B=2=3").unwrap(), [("A".into(), "1".into()), ("B".into(), "2=3".into())]);
        assert!(pairs("A").is_err());
    }

    #[test]
    fn capability_arguments_are_an_object() {
        assert_eq!(capabilities(r#"{"mac":"x"}"#).unwrap().len(), 1);
        assert!(capabilities("[]").is_err());
        assert!(capabilities("{").is_err());
    }
}
