//! The flow log: what policies decided on new connections, a line of JSON each.
//!
//! Read [`start`]. The kernel tells of packets by a group of nfnetlink_log; a thread of its own takes them, has the keeper,
//! who alone knows the policies, make lines of them, and writes these: to a file, or to the agent's own log. What comes
//! while nobody can take it is lost, and no verdict waits for any of this.
//!
//! What stays true: a kernel that cannot log is asked to log nothing, and enforces all the same.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use kernel::nflog::{LogSocket, Logged};
use policy::{Logging, Verdicts};

use super::keeper::News;
use super::programmed::Programmed;
use crate::config::{FlowVerdicts, PolicyConfig};
use crate::report::told;
use crate::run::{Error, spawn};

/// The group of nfnetlink_log in the node's network namespace.
const GROUP: u16 = 7600;

/// Bytes of a packet that say who talks to whom.
const HEADERS: u32 = 128;

/// All rules together tell so much a second at most.
const MOST_A_SECOND: usize = 1000;

/// So long nothing may be told before it is looked whether the keeper is still there.
const PATIENCE: Duration = Duration::from_secs(600);

/// Lines for the log.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) lines: Vec<String>,
    /// The file that they belong into; none for the agent's own log.
    pub(super) file: Option<PathBuf>,
}

/// Listens to the kernel, and starts the thread that writes the log.
///
/// The inner error says why this kernel cannot log.
pub(super) fn start(programmed: &mut Programmed, news: Sender<News>) -> Result<Result<(), String>, Error> {
    let opened = programmed.can_log().and_then(|()| LogSocket::open(GROUP, HEADERS));
    match opened {
        Ok(socket) => spawn("flow log", move || serve(socket, &news)).map(Ok),
        Err(error) => {
            let reason = told(&error);
            tracing::warn!(%reason, "this kernel tells of no verdicts: there is neither a flow log nor an audit");
            Ok(Err(reason))
        }
    }
}

/// What the table is to tell by this configuration; nothing where the kernel cannot.
pub(super) fn logging(config: &PolicyConfig, possible: bool) -> Logging {
    let flow_log = &config.flow_log;
    let verdicts = match flow_log.verdicts {
        FlowVerdicts::None => Verdicts::None,
        FlowVerdicts::Denied => Verdicts::Denied,
        FlowVerdicts::All => Verdicts::All,
    };
    Logging { group: possible.then_some(GROUP), verdicts, per_second: flow_log.per_second }
}

fn serve(mut socket: LogSocket, news: &Sender<News>) {
    let mut room = Room::default();
    let mut writes = true;
    loop {
        let logged = match socket.receive(PATIENCE) {
            Ok(logged) => logged,
            Err(kernel::Error::Overrun) => continue,
            Err(error) => {
                let _ = news.send(News::LogLost(told(&error)));
                return;
            }
        };
        let logged = room.take(logged);
        let (answer, answered) = mpsc::channel();
        if news.send(News::Logged(logged, answer)).is_err() {
            return;
        }
        let Ok(Lines { lines, file }) = answered.recv() else { return };
        let written = file.as_deref().map_or(Ok(()), |file| append(file, &lines));
        if let (Err(error), Some(file), true) = (&written, &file, writes) {
            let file = file.display();
            tracing::warn!(%error, %file, "the flow log cannot be written; hint: see policy.flowLog.file");
        }
        writes = written.is_ok();
        if file.is_none() {
            lines.iter().for_each(|line| tracing::info!(target: "flow", "{line}"));
        }
    }
}

/// Opened anew each time, so that somebody may rotate it.
fn append(file: &Path, lines: &[String]) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut text = lines.join("\n");
    text.push('\n');
    OpenOptions::new().create(true).append(true).mode(0o640).open(file)?.write_all(text.as_bytes())
}

/// How much may be told in the second that runs.
#[derive(Debug, Default)]
struct Room {
    since: Option<Instant>,
    taken: usize,
}

impl Room {
    fn take(&mut self, mut logged: Vec<Logged>) -> Vec<Logged> {
        if self.since.is_none_or(|since| since.elapsed() >= Duration::from_secs(1)) {
            *self = Self { since: Some(Instant::now()), taken: 0 };
        }
        logged.truncate(MOST_A_SECOND.saturating_sub(self.taken));
        self.taken += logged.len();
        logged
    }
}
