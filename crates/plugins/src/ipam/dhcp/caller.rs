//! The plugin's side: a call to the daemon, or, when there is none, what can be done without it.
//!
//! Read [`call`] and [`without_daemon`]. A pod must not stay because a daemon is away, and its address must not
//! stay leased: so DEL and GC give leases back by themselves then. They take the leases' lock first, which
//! shows that there is no daemon, and read the files that it left. What the files do not know of, nobody has.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use cni::{AddResult, Error};

use super::daemon;
use super::lease::{Lease, Terms};
use super::machine::Timing;
use super::protocol::{Answer, Call, LONGEST_LINE, Verb, name_of, parse_answer};
use super::store::Store;
use crate::fault::Failures;

/// How long an ADD waits at most: longer than the daemon tries.
const ALLOCATION: Duration = Duration::from_secs(600);
/// How long any other call waits.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long STATUS waits.
const STATUS: Duration = Duration::from_secs(1);

/// What became of a call.
#[derive(Debug)]
pub(crate) enum Called {
    /// The daemon has answered.
    Answered(Answer),
    /// There is no daemon, because of this.
    Nobody(Error),
}

/// Asks the daemon at `socket`.
pub(crate) fn call(socket: &Path, call: &Call) -> Called {
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(cause) => return Called::Nobody(unreachable(socket, &cause)),
    };
    let patience = match call.verb {
        // A CHECK may have to ask the server.
        Verb::Allocate | Verb::Check => ALLOCATION,
        Verb::Release | Verb::Collect => PATIENCE,
        Verb::Status => STATUS,
    };
    Called::Answered(converse(&mut stream, call, patience).unwrap_or_else(|cause| {
        let text = format!("the DHCP daemon at {} does not answer: {cause}", socket.display());
        Err(Error::try_again(text).with_details("hint: see its log"))
    }))
}

fn converse(stream: &mut UnixStream, call: &Call, patience: Duration) -> io::Result<Answer> {
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(&call.to_line())?;
    let mut line = Vec::new();
    BufReader::new(stream.take(LONGEST_LINE as u64)).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up"));
    }
    Ok(parse_answer(&line))
}

fn unreachable(socket: &Path, cause: &io::Error) -> Error {
    let text = format!("error dialing DHCP daemon: {}: {cause}", socket.display());
    Error::try_again(text).with_details("hint: start `fairlead-cni dhcp daemon`, or the unit cni-dhcp.socket")
}

/// Does the work of a Release or Collect with what the daemon left in `state`.
///
/// # Errors
/// When another process has the leases (`absent` tells why it could not be asked), or a file cannot be read.
pub(crate) fn without_daemon(state: &Path, call: &Call, absent: Error) -> Result<(), Error> {
    if !state.exists() {
        return Ok(());
    }
    let Some(store) = Store::open(state)? else { return Err(absent) };
    let (documents, failures) = store.load()?;
    let mut found = Failures::default();
    for failure in failures {
        found.note::<()>(Err(failure));
    }
    let boot = daemon::boot_id()?;
    let terms = Terms {
        host_prefix: String::new(),
        broadcast: false,
        timing: Timing { exchange: PATIENCE, longest_pause: PATIENCE },
    };
    for document in documents {
        let Some((network, name)) = daemon::name_in(&document) else { continue };
        if !is_concerned(call, &network, &name) {
            continue;
        }
        // One that cannot be taken up belongs to what is no more.
        if let Ok(mut lease) = Lease::restore(&document, &boot, &terms) {
            lease.release();
        }
        found.note(store.remove(&name));
    }
    found.into_result()
}

/// Whether a call gives the lease of this name back.
fn is_concerned(call: &Call, network: &str, name: &str) -> bool {
    let valid = call.config.valid_attachments.as_deref().unwrap_or_default();
    match call.verb {
        Verb::Release => name == call.name(),
        Verb::Collect => {
            network == call.config.name
                && !valid.iter().any(|attachment| name_of(network, attachment) == name)
        }
        Verb::Allocate | Verb::Check | Verb::Status => false,
    }
}

/// The answer, where nothing can be done without a daemon.
///
/// # Errors
/// The daemon's, or that there is none.
pub(crate) fn expect(called: Called) -> Result<AddResult, Error> {
    match called {
        Called::Answered(answer) => answer,
        Called::Nobody(absent) => Err(absent),
    }
}
