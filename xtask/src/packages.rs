//! The Debian packages that tests and benchmarks stand on, installed when they are missing.
//!
//! Only these are needed on a machine with Debian and Rust. Without a network, or on another distribution,
//! what is missing is named, and the tests that need it say so.

use std::process::Command;

use crate::process;

/// A program and the package that brings it.
type Need = (&'static str, &'static str);

/// For `cargo xtask test` and `bench`.
pub(crate) const TESTS: &[Need] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("strace", "strace"),
    ("g++", "g++"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("kill", "procps"),
    ("sysctl", "procps"),
    ("busybox", "busybox-static"),
    ("iperf3", "iperf3"),
    ("dnsmasq", "dnsmasq-base"),
    ("dhcpd", "isc-dhcp-server"),
    ("kea-dhcp6", "kea-dhcp6-server"),
    ("firewalld", "firewalld"),
    ("dbus-daemon", "dbus-daemon"),
    ("dbus-send", "dbus-bin"),
    ("socat", "socat"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("podman", "podman"),
    ("conmon", "conmon"),
    ("curl", "curl"),
    ("etcd", "etcd-server"),
    ("ethtool", "ethtool"),
    ("openssl", "openssl"),
];

/// For the virtual machine.
pub(crate) const MACHINE: &[Need] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("wg", "wireguard-tools"),
    ("ipvsadm", "ipvsadm"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("depmod", "kmod"),
];

/// Installs what is missing of `needs`; returns the programs that are missing still.
pub(crate) fn install(needs: &[Need], reference_plugins: bool) -> Vec<&'static str> {
    let mut packages: Vec<&str> =
        needs.iter().filter(|(program, _)| !process::found(program)).map(|(_, package)| *package).collect();
    if reference_plugins && !std::path::Path::new("/usr/lib/cni/bridge").exists() {
        packages.push("containernetworking-plugins");
    }
    if !packages.is_empty() && process::found("apt-get") {
        let installed = apt(&["update", "-qq"]).and_then(|()| {
            let mut words = vec!["install", "-y", "-qq", "--no-install-recommends"];
            words.extend(&packages);
            apt(&words)
        });
        if let Err(error) = installed {
            eprintln!("warning: {error:#}; tests that need {packages:?} will say \"not run\"");
        }
    }
    needs.iter().map(|(program, _)| *program).filter(|program| !process::found(program)).collect()
}

/// Runs apt-get as root.
pub(crate) fn apt(words: &[&str]) -> anyhow::Result<()> {
    let root = process::output(Command::new("id").arg("-u"))?.trim() == "0";
    let mut command = if root { Command::new("apt-get") } else { Command::new("sudo") };
    if !root {
        command.arg("apt-get");
    }
    // In single-user mode Debian's packages start no service: a DHCP server must not serve this machine's networks.
    process::run(command.args(words).envs([("DEBIAN_FRONTEND", "noninteractive"), ("RUNLEVEL", "1")]))
}
