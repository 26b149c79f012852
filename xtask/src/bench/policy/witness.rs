//! Who hears that the kernel's rules are others now: see [`Witness`].

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::Context;
use harness::Namespace;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{self, AddressFamily, RecvFlags, SocketFlags, SocketType, netlink},
};

/// The group of notifications about nf_tables.
const GROUP: u32 = 1 << (7 - 1);

/// A minute is as good as never.
const PATIENCE: Duration = Duration::from_secs(60);

/// A socket that hears what becomes of the rules of a namespace. It only tells that something did, and when.
pub(super) struct Witness(OwnedFd);

impl Witness {
    /// Hears from now on.
    pub(super) fn listen(netns: &Namespace) -> anyhow::Result<Self> {
        let socket = netns.inside(|| -> rustix::io::Result<OwnedFd> {
            let socket = net::socket_with(
                AddressFamily::NETLINK,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                Some(netlink::NETFILTER),
            )?;
            net::bind(&socket, &netlink::SocketAddrNetlink::new(0, GROUP))?;
            Ok(socket)
        });
        Ok(Self(socket.context("listening to nf_tables")?))
    }

    /// When the first thing happened.
    pub(super) fn heard(&self) -> anyhow::Result<Instant> {
        let mut waited = [PollFd::new(&self.0, PollFlags::IN)];
        let count =
            poll(&mut waited, Some(&Timespec::try_from(PATIENCE)?)).context("waiting for the kernel")?;
        anyhow::ensure!(count > 0, "the kernel's rules have not changed within {PATIENCE:?}");
        let now = Instant::now();
        net::recv(&self.0, &mut [0_u8; 64][..], RecvFlags::TRUNC).context("hearing of nf_tables")?;
        Ok(now)
    }
}
