//! Calling a plugin in this process: the protocol's rules about versions, then the method.
//!
//! Every in-process call comes through [`call`]: from `serve`, from a delegating plugin and from the chain runner.
//! Source: CNI specification section 2; the version rules are those of the reference's plugin library.

use crate::error::{Code, Error};
use crate::plugin::{Command, Plugin, Request};
use crate::result::AddResult;
use crate::serve::is_own_netns;
use crate::version::Version;

/// Calls the method that the request names; only ADD has a result.
pub(crate) fn call(plugin: &dyn Plugin, request: &Request) -> Result<Option<AddResult>, Error> {
    allow(plugin, request)?;
    match request.command {
        Command::Add => plugin.add(request).map(Some),
        Command::Del => plugin.del(request).map(|()| None),
        Command::Check => plugin.check(request).map(|()| None),
        Command::Gc => plugin.gc(request).map(|()| None),
        Command::Status => plugin.status(request).map(|()| None),
    }
}

/// The oldest version of the protocol that has the command.
pub(crate) const fn since(command: Command) -> Version {
    match command {
        Command::Add | Command::Del => Version::V0_1_0,
        Command::Check => Version::V0_4_0,
        Command::Gc | Command::Status => Version::V1_1_0,
    }
}

/// Refuses a namespace that is this thread's own: a path by process id may meanwhile name another process, and a
/// plugin that believed it would take the host's network apart. Asked before acting, where the reference asks after.
pub(crate) fn guard_netns(request: &Request) -> Result<(), Error> {
    let (Command::Add | Command::Del, Some(netns)) = (request.command, &request.netns) else { return Ok(()) };
    if is_own_netns(netns) {
        let reason = "plugin's netns and netns from CNI_NETNS should not be the same";
        return Err(Error::netns(reason).with_details(format!(
            "CNI_NETNS is {}; hint: CNI_NETNS_OVERRIDE=1 allows it",
            netns.display()
        )));
    }
    Ok(())
}

fn allow(plugin: &dyn Plugin, request: &Request) -> Result<(), Error> {
    let (version, command) = (request.config.version, request.command);
    if !plugin.versions().contains(&version) {
        return Err(Error::incompatible(version.as_str(), plugin.versions()));
    }
    let first = since(command);
    if version < first {
        return Err(Error::new(
            Code::INCOMPATIBLE_VERSION,
            format!("config version does not allow {command}"),
        )
        .with_details(format!("config is {version}, {command} needs {first}")));
    }
    if command == Command::Gc && request.config.valid_attachments.is_none() {
        return Err(Error::invalid_config("cni.dev/valid-attachments: missing; nothing was removed")
            .with_details("hint: an empty list means that no attachment is valid"));
    }
    Ok(())
}
