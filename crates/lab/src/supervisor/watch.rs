//! The threads that wait for something outside: each sends what it hears to the loop and does nothing else.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use ipnet::IpNet;
use kernel::monitor::{self, Monitor, Topic};
use kernel::netlink::Protocol;
use kernel::netns::Netns;
use kernel::route;
use kernel::signals::Termination;
use rustix::fs::inotify;
use store::Directory;

use super::nodes::Node;
use super::{Event, log, thread};
use crate::error::{Error, Result};

/// Tells of every change of the store.
pub(super) fn store(directory: Directory, events: Sender<Event>) -> Result<()> {
    let watch = directory.watch().map_err(|source| Error::Store { source })?;
    thread("store", move || {
        for event in watch {
            if events.send(Event::Store(event)).is_err() {
                return;
            }
        }
    })
}

/// Tells when some node may have become able to take pods, or unable: a conflist came, or its agent left another word for
/// the plugin.
pub(super) fn readiness(nodes: &[Node], events: Sender<Event>) -> Result<()> {
    let failed = |errno: rustix::io::Errno| Error::Thread { source: errno.into() };
    let descriptor = inotify::init(inotify::CreateFlags::CLOEXEC).map_err(failed)?;
    let changes = inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::MOVED_FROM
        | inotify::WatchFlags::CLOSE_WRITE
        | inotify::WatchFlags::DELETE;
    for node in nodes {
        for directory in [node.home.conf(), node.home.state()] {
            inotify::add_watch(&descriptor, directory, changes).map_err(failed)?;
        }
    }
    thread("readiness", move || {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(descriptor, &mut buffer);
        loop {
            match reader.next() {
                // Which one does not matter: the loop looks at all, there are few.
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return log(&format!("cannot see whether nodes take pods: {error}")),
            }
            if events.send(Event::Readiness).is_err() {
                return;
            }
        }
    })
}

/// Tells when an agent makes or removes a route to another node's pods.
pub(super) fn routes(nodes: &[Node], events: &Sender<Event>) -> Result<()> {
    for (index, node) in nodes.iter().enumerate() {
        let topics = [Topic::Routes];
        let mut monitor =
            Monitor::open_in(&node.netns, &topics).map_err(Error::kernel("watch a node's routes"))?;
        let (events, netns) = (events.clone(), Arc::clone(&node.netns));
        thread("routes", move || {
            loop {
                let changes = match monitor.receive() {
                    Ok(notifications) => notifications.into_iter().map(|one| one.event).collect(),
                    Err(error) => return log(&format!("cannot watch a node's routes: {error}")),
                };
                for (destination, present) in pod_routes(changes, &netns) {
                    if events.send(Event::Route { node: index, destination, present }).is_err() {
                        return;
                    }
                }
            }
        })?;
    }
    Ok(())
}

/// The agent's routes among the changes; all there are when some were lost.
fn pod_routes(changes: Vec<monitor::Event>, netns: &Netns) -> Vec<(IpNet, bool)> {
    let mut found = Vec::new();
    for change in changes {
        let (route, present) = match change {
            monitor::Event::Route(route) => (route, true),
            monitor::Event::RouteGone(route) => (route, false),
            monitor::Event::Overrun => {
                let filter =
                    route::Filter { protocol: Some(netstate::ROUTE_PROTOCOL), ..route::Filter::default() };
                let listed =
                    netns.socket(Protocol::Route).and_then(|mut socket| route::list(&mut socket, filter));
                found.extend(listed.unwrap_or_default().into_iter().map(|route| (route.destination, true)));
                continue;
            }
            _ => continue,
        };
        if route.protocol == netstate::ROUTE_PROTOCOL {
            found.push((route.destination, present));
        }
    }
    found
}

/// Tells when a signal asks for the end.
pub(super) fn termination(termination: Termination, events: Sender<Event>) -> Result<()> {
    thread("signals", move || {
        let _ = termination.wait();
        let _ = events.send(Event::End);
    })
}

/// Tells when standard input ends, which is when the process that started us has.
pub(super) fn standard_input(events: Sender<Event>) -> Result<()> {
    thread("input", move || {
        let _ = io::copy(&mut io::stdin().lock().by_ref(), &mut io::sink());
        let _ = events.send(Event::End);
    })
}
