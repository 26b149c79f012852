//! Whether peers answer through the tunnel: one ICMP echo each, to the base address of their pod CIDR.
//!
//! Read [`silent`]. That address is on the peer's tunnel device, so an answer means that the packet went all the way
//! that a pod's would go, and back; and nobody needs to run there for it but the kernel. RFC 792, RFC 4443.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use kernel::Family;
use kernel::echo::{Answer, Echo};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::status::Probed;

/// How long answers may take.
const PATIENCE: Duration = Duration::from_millis(500);

/// Those of the peers that do not answer. None does where this process may not ask.
pub(crate) fn silent(peers: &[Probed]) -> Vec<&Probed> {
    let mut waiting: Vec<&Probed> = peers.iter().collect();
    for family in Family::BOTH {
        if waiting.iter().all(|peer| Family::of(peer.address) != family) {
            continue;
        }
        match Echo::open(family) {
            Ok(echo) => ask(echo, family, &mut waiting),
            Err(error) => tracing::warn!(%error, "peers cannot be asked; hint: the agent needs CAP_NET_RAW"),
        }
    }
    waiting
}

/// Asks those of this family, and takes out of `waiting` who answers.
fn ask(mut echo: Echo, family: Family, waiting: &mut Vec<&Probed>) {
    let asked: Vec<IpAddr> =
        waiting.iter().map(|peer| peer.address).filter(|address| Family::of(*address) == family).collect();
    for (sequence, address) in (0..).zip(asked) {
        // As small as can be. A refusal (no route, say) is an answer that does not come.
        let _ = echo.send(address, sequence, 0);
    }
    let deadline = Instant::now() + PATIENCE;
    while waiting.iter().any(|peer| Family::of(peer.address) == family) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !wait(&echo, left) {
            return;
        }
        while let Some(answer) = echo.receive() {
            if let Answer::Reply { from, .. } = answer {
                waiting.retain(|peer| peer.address != from);
            }
        }
    }
}

fn wait(echo: &Echo, left: Duration) -> bool {
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
    let mut polled = [PollFd::from_borrowed_fd(echo.as_fd(), PollFlags::IN)];
    matches!(poll(&mut polled, Some(&timeout)), Ok(1..) | Err(rustix::io::Errno::INTR))
}
