//! `dhcp`: addresses leased from the network's own DHCP server, kept by a daemon.
//!
//! [`Dhcp`] is the plugin: it calls the daemon (`fairlead-cni dhcp daemon`) over a socket and waits for its
//! answer. Read [`machine`] first, the shape of the clients, which know neither sockets nor clocks; then
//! `lease`, what one attachment has; then `daemon`, which keeps all of them in one loop.
//!
//! It takes the reference plugin's keys, its daemon's flags and its client identifiers, so a server goes on
//! giving the same addresses. Beyond the reference: leases outlive the daemon and are renewed by the next one;
//! a lease that changes or ends is changed or taken away in the pod; DEL and GC work without the daemon, and
//! still tell the server; name service and MTU are passed on; CHECK, GC and STATUS are real; no thread for
//! each lease.
//!
//! The codecs are our own: the crate at hand (`dhcproto`) brings a whole DNS library along, which this
//! binary has no room for.

mod caller;
mod client;
mod config;
mod daemon;
mod lease;
mod machine;
mod place;
mod protocol;
mod store;
pub mod v4;
pub mod v6;
mod wire;

use std::ffi::OsString;

use cni::{AddResult, Code, Error, Plugin, Request};

use self::caller::{Called, call, expect, without_daemon};
use self::config::Settings;
use self::protocol::{Call, Verb};

/// The plugin.
#[derive(Debug)]
pub struct Dhcp;

impl Plugin for Dhcp {
    fn name(&self) -> &'static str {
        "dhcp"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let settings = Settings::of(&request.config, &request.args)?;
        expect(call(&settings.socket, &Call::of(Verb::Allocate, request)))
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        give_back(request, Verb::Release)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::of(&request.config, &request.args)?;
        expect(call(&settings.socket, &Call::of(Verb::Check, request))).map(drop)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        if request.config.valid_attachments.is_none() {
            return Err(Error::invalid_config("cni.dev/valid-attachments: missing, so nothing is removed"));
        }
        give_back(request, Verb::Collect)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let ready = || -> Result<(), Error> {
            let settings = Settings::of(&request.config, &request.args)?;
            expect(call(&settings.socket, &Call::of(Verb::Status, request))).map(drop)
        };
        ready().map_err(|error| Error { code: Code::NOT_READY, ..error })
    }
}

/// Gives leases back, by the daemon or without it.
fn give_back(request: &Request, verb: Verb) -> Result<(), Error> {
    // What to send and to ask for plays no part, so a mistake in that does not keep the address.
    let (socket, state) = config::places(&request.config);
    let asked = Call::of(verb, request);
    match call(&socket, &asked) {
        Called::Answered(answer) => answer.map(drop),
        Called::Nobody(absent) => without_daemon(&state, &asked, absent),
    }
}

/// Runs the daemon with the arguments that follow the word `daemon`; gives the exit code: 0 when a signal ended
/// it, 1 when it could not start, 2 for a command line that makes no sense.
pub fn run_daemon(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    daemon::run(arguments)
}
