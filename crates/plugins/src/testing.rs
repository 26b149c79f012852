//! A short way to write requests in this crate's tests.

use cni::{Command, Config, Request};

/// An ADD of `container`'s `eth0` with this configuration and nothing else.
pub(crate) fn request(config: &str) -> Request {
    Request {
        command: Command::Add,
        container_id: "container".into(),
        netns: None,
        ifname: "eth0".into(),
        args: String::new(),
        path: Vec::new(),
        config: Config::parse(config.as_bytes()).unwrap(),
        resolver: None,
    }
}
