//! The daemon as a program: its absence, its command line, its socket, its lock.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use harness::{Namespace, Service, eventually, run, strace_works};
use kernel::netns::Netns;
use kernel::packet::PacketSocket;
use serde_json::json;

use crate::scene::Scene;

// 55
#[test]
fn without_a_daemon_add_says_so_and_status_is_50() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let pod = scene.pod("p0");
    let config = scene.config("dhcp", json!({}));
    let call = scene.call("dhcp", "c", &pod);
    let reply = call.run("ADD", &config);
    assert_eq!(reply.error_code(), 11, "{reply:?}");
    assert!(reply.error_text().contains("daemon"), "{reply:?}");
    assert_eq!(call.run("STATUS", &config).error_code(), 50);
    // The whole chain says the same.
    assert_eq!(scene.call("bridge", "c", &pod).run("STATUS", &scene.bridged()).error_code(), 50);
    let _daemon = scene.daemon(&[]);
    call.run("STATUS", &config).expect_success("STATUS with a daemon");
    scene.call("bridge", "c", &pod).run("STATUS", &scene.bridged()).expect_success("STATUS of the chain");
}

#[test]
fn a_daemon_may_ask_servers_to_broadcast_their_answers() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let server = scene.dnsmasq(&[]);
    let _daemon = scene.daemon(&["-broadcast"]);
    let pod = scene.pod("p0");
    scene.call("dhcp", "c", &pod).add(&scene.config("dhcp", json!({})));
    assert!(server.said("broadcast response") > 0, "{}", server.log());
}

// 55
#[test]
fn del_without_a_daemon_tells_the_server_by_itself() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let mut server = scene.dnsmasq(&[]);
    let pod = scene.pod("p0");
    let config = scene.config("dhcp", json!({}));
    let call = scene.call("dhcp", "c", &pod);
    call.del(&config);
    let daemon = scene.daemon(&[]);
    call.add(&config);
    daemon.kill();
    call.del(&config);
    server.await_said("DHCPRELEASE", 1);
    assert_eq!(scene.kept(), Vec::<String>::new());
    let daemon = scene.daemon(&[]);
    assert_eq!(daemon.said("taken up again"), 0, "{}", daemon.log());
}

#[test]
fn gc_gives_back_what_is_not_listed_with_and_without_a_daemon() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let mut server = scene.dnsmasq(&[]);
    let config = scene.config("dhcp", json!({}));
    let pods: Vec<Namespace> = (0..4).map(|number| scene.pod(&format!("p{number}"))).collect();
    let mut daemon = Some(scene.daemon(&[]));
    for (pod, container) in pods.iter().zip(["a", "b", "c"]) {
        scene.call("dhcp", container, pod).add(&config);
    }
    let mut other = config.clone();
    other["name"] = json!("other");
    scene.call("dhcp", "a", &pods[3]).add(&other);
    assert_eq!(scene.call("dhcp", "", &pods[0]).run("GC", &config).error_code(), 7, "a list is missing");
    assert_eq!(scene.kept().len(), 4);
    for (round, valid) in [&["a", "b"][..], &["b"]].into_iter().enumerate() {
        let listed = valid.iter().map(|container| json!({ "containerID": container, "ifname": "eth0" }));
        let mut collect = config.clone();
        collect["cni.dev/valid-attachments"] = listed.collect();
        scene.call("dhcp", "", &pods[0]).run("GC", &collect).expect_success("GC");
        server.await_said("DHCPRELEASE", round + 1);
        assert_eq!(scene.kept().len(), 3 - round, "those in the list and those of other networks stay");
        if let Some(daemon) = daemon.take() {
            daemon.kill();
        }
    }
    eventually("dnsmasq holds two leases", || (scene.leased().len() == 2).then_some(()));
}

#[test]
fn a_network_without_a_server_is_an_error_in_bounded_time_and_nothing_stays() {
    let Some(scene) = Scene::with(&[]) else { return };
    let _daemon = scene.daemon(&["-resendtimeout", "1s", "--timeout=500ms"]);
    let pod = Namespace::new();
    let reply = scene.call("bridge", "c", &pod).run("ADD", &scene.bridged());
    assert_eq!(reply.error_code(), 11, "{reply:?}");
    assert!(reply.error_text().contains("no DHCP server"), "{reply:?}");
    assert!(pod.link_names().is_empty() && scene.kept().is_empty());
}

#[test]
fn a_link_that_is_not_there_is_an_error_at_once() {
    let Some(scene) = Scene::with(&[]) else { return };
    let _daemon = scene.daemon(&[]);
    let pod = Namespace::new();
    let config = scene.config("dhcp", json!({}));
    let reply = scene.call("dhcp", "c", &pod).run("ADD", &config);
    assert!(reply.error_text().contains("eth0 is not in the namespace"), "{reply:?}");
    let mut call = scene.call("dhcp", "c", &pod);
    call.netns = "/var/run/netns/there-is-no-such-name".into();
    assert_eq!(call.run("ADD", &config).error_code(), 8);
}

#[test]
fn a_plugin_that_was_killed_while_it_waited_leaves_no_lease() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let mut daemon = scene.daemon(&[]);
    let (waiting, other) = (scene.pod("p0"), scene.pod("p1"));
    let config = scene.config("dhcp", json!({}));
    let mut plugin = scene.call("dhcp", "waiting", &waiting).command("ADD");
    let mut plugin = plugin.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    serde_json::to_writer(plugin.stdin.take().unwrap(), &config).unwrap();
    eventually("the daemon has set the link up to ask over it", || {
        let flags = waiting.ip_json("link show eth0")[0]["flags"].clone();
        flags.as_array().unwrap().contains(&json!("UP")).then_some(())
    });
    plugin.kill().unwrap();
    plugin.wait().unwrap();
    daemon.await_said("waiting/test/eth0: given back", 1);
    let server = scene.dnsmasq(&[]);
    scene.call("dhcp", "other", &other).add(&config);
    assert_eq!(scene.leased().len(), 1, "{}", server.log());
}

#[test]
fn there_is_one_daemon_and_the_next_one_takes_the_socket_of_a_killed_one() {
    let Some(scene) = Scene::with(&[]) else { return };
    let pid = scene.file("pid");
    let daemon = scene.daemon(&["-pidfile", pid.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(&pid).unwrap(), daemon.id().to_string());
    let mut second = scene.host.command(scene.bin.path().join("fairlead-cni"));
    second.args(["dhcp", "daemon", "-socketpath"]).arg(scene.file("other"));
    let refused = run(second.arg("-statepath").arg(scene.file("state")));
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("another process keeps the leases"),
        "{refused:?}"
    );
    daemon.kill();
    assert!(scene.file("socket").exists());
    let daemon = scene.daemon(&["-pidfile", pid.to_str().unwrap()]);
    assert_eq!(daemon.terminate(), Some(0));
    assert!(!scene.file("socket").exists() && !pid.exists(), "an end that was asked for is clean");
}

#[test]
fn a_wrong_command_line_ends_with_2_and_help_with_0() {
    let Some(scene) = Scene::with(&[]) else { return };
    let daemon = |arguments: &[&str]| {
        let mut command = scene.host.command(scene.bin.path().join("dhcp"));
        let output = run(command.arg("daemon").args(arguments));
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = daemon(&["-help"]);
    assert!(code == Some(0) && text.contains("-resendmax"), "{code:?} {text}");
    for arguments in [&["-timeout", "ten"][..], &["-pidfile", "relative"], &["--colour"]] {
        let (code, text) = daemon(arguments);
        assert!(code == Some(2) && text.contains(arguments[0].trim_start_matches('-')), "{code:?} {text}");
    }
}

#[test]
fn the_paths_of_the_host_may_stand_behind_a_prefix() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let mut server = scene.dnsmasq(&[]);
    let pod = scene.pod("p0");
    // The daemon sees the host's files below `host`, as in a container.
    let prefix = scene.file("host");
    std::fs::create_dir(&prefix).unwrap();
    std::os::unix::fs::symlink("/proc", prefix.join("proc")).unwrap();
    let mut command = scene.host.command(scene.bin.path().join("dhcp"));
    command
        .args(["daemon", "-socketpath", "/run/dhcp.sock", "-statepath", "/state", "-hostprefix"])
        .arg(&prefix);
    let mut daemon = Service::start(&mut command, scene.file("daemon.log"));
    daemon.await_said("dhcp: ready", 1);
    let places =
        json!({ "daemonSocketPath": prefix.join("run/dhcp.sock"), "daemonStatePath": prefix.join("state") });
    let config = scene.config("dhcp", places);
    let call = scene.call("dhcp", "c", &pod);
    call.add(&config);
    // Without the daemon the plugin finds the namespace by the path that it has on the host.
    daemon.kill();
    std::fs::remove_file(prefix.join("proc")).unwrap();
    call.del(&config);
    server.await_said("DHCPRELEASE", 1);
}

#[test]
fn a_socket_that_systemd_opened_is_used_and_not_removed() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let _server = scene.dnsmasq(&[]);
    let pod = scene.pod("p0");
    let listener = UnixListener::bind(scene.file("socket")).unwrap();
    let mut command = scene.host.command("sh");
    let start = "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
    command.args(["-c", start, "sh"]).arg(scene.bin.path().join("dhcp"));
    command.args(["daemon", "-statepath"]).arg(scene.file("state"));
    let mut daemon = command.stdin(OwnedFd::from(listener)).spawn().unwrap();
    let config = scene.config("dhcp", json!({}));
    let call = scene.call("dhcp", "c", &pod);
    // The socket was there before the daemon: who calls early waits.
    call.add(&config);
    call.del(&config);
    harness::run_ok(std::process::Command::new("kill").arg(daemon.id().to_string()));
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
    assert!(scene.file("socket").exists(), "it is systemd's");
}

#[test]
fn several_passed_sockets_are_refused() {
    let Some(scene) = Scene::with(&[]) else { return };
    let mut command = scene.host.command("sh");
    let start = "exec 3</dev/null 4</dev/null; LISTEN_PID=$$ LISTEN_FDS=2 exec \"$@\"";
    command.args(["-c", start, "sh"]).arg(scene.bin.path().join("dhcp")).arg("daemon");
    let output = run(&mut command);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("exactly one"), "{output:?}");
}

#[test]
fn what_calls_and_says_nonsense_or_nothing_does_no_harm() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let _server = scene.dnsmasq(&[]);
    let _daemon = scene.daemon(&["-timeout", "300ms"]);
    let connect = || UnixStream::connect(scene.file("socket")).unwrap();
    let mut silent = connect();
    for nonsense in [&b"CONNECT /_goRPC_ HTTP/1.0\n\n"[..], b"{}\n", b"{\"call\":\"fly\"}\n", &[0xff, b'\n']]
    {
        let mut stream = connect();
        stream.write_all(nonsense).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("error"), "{answer}");
    }
    let mut flood = connect();
    while flood.write_all(&[b'x'; 65536]).is_ok() {}
    assert_eq!(silent.read(&mut [0; 1]).unwrap_or(0), 0, "who says nothing in time is hung up on");
    let pod = scene.pod("p0");
    scene.call("dhcp", "c", &pod).add(&scene.config("dhcp", json!({})));
}

/// An IPv4 packet to a client's port whose header, checksum included, says that it is `total` bytes long.
fn packet_claiming(total: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 5, 0, 66, 255, 255, 255, 255];
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    let words = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let checksum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend([0, 67, 0, 68, 0, 12, 0, 0, 1, 2, 3, 4]);
    packet
}

// Whoever shares the network with a pod that asks can send what it likes; the daemon has everybody's leases. No
// bridge here: with br_netfilter, it would trim such packets.
#[test]
fn packets_that_no_server_would_send_do_no_harm() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let daemon = scene.daemon(&[]);
    let pod = Namespace::new();
    scene.lan.ip(&format!("link add lan1 type veth peer name eth0 netns {}", pod.path().display()));
    scene.lan.ip("link set lan1 up");
    let config = scene.config("dhcp", json!({}));
    let mut plugin = scene.call("dhcp", "asks", &pod).command("ADD");
    let mut plugin = plugin.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    serde_json::to_writer(plugin.stdin.take().unwrap(), &config).unwrap();
    eventually("the daemon listens in the pod", || {
        let sockets = run(pod.command("cat").arg("/proc/net/packet")).stdout;
        (String::from_utf8_lossy(&sockets).lines().count() > 1).then_some(())
    });
    let socket = |namespace: &Namespace, link: &str| {
        let index = namespace.ip_json(&format!("link show {link}"))[0]["ifindex"].as_u64().unwrap();
        let namespace = Netns::open(namespace.path()).unwrap();
        PacketSocket::open(&namespace, u32::try_from(index).unwrap(), 68).unwrap()
    };
    let (hostile, witness) = (socket(&scene.lan, "lan1"), socket(&pod, "eth0"));
    for total in 0..64 {
        hostile.send(None, &packet_claiming(total)).unwrap();
        eventually("the pod hears it", || {
            let mut buffer = [0; 64];
            witness.receive(&mut buffer).unwrap().filter(|_| buffer[2..4] == total.to_be_bytes())
        });
    }
    let _server = scene.dnsmasq(&[]);
    let other = scene.pod("p0");
    scene.call("dhcp", "other", &other).add(&config);
    assert_eq!(daemon.said("given back"), 0, "{}", daemon.log());
    plugin.kill().unwrap();
    plugin.wait().unwrap();
}

// Killed at any system call, the daemon has either kept the lease or never told anybody of it.
#[test]
fn a_daemon_killed_anywhere_in_an_add_loses_no_lease() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    if !strace_works() {
        return harness::not_run("strace cannot trace here");
    }
    let _server = scene.dnsmasq(&[]);
    let config = scene.config("dhcp", json!({}));
    let pod = scene.pod("p0");
    for name in ["sendto", "recvfrom", "openat", "write", "rename", "fdatasync", "setns"] {
        for number in 1..40 {
            let mut command = scene.host.command("strace");
            // With -D it is the daemon that is our child, and not the tracer.
            command.args(["-D", "-qq", "-o", "/dev/null", "-e", &format!("trace={name}")]);
            command.args(["-e", &format!("inject={name}:signal=SIGKILL:when={number}")]);
            command
                .arg(scene.bin.path().join("dhcp"))
                .args(["daemon", "-socketpath"])
                .arg(scene.file("socket"));
            let log = scene.file("strace.log");
            let daemon = Service::start(command.arg("-statepath").arg(scene.file("state")), &log);
            eventually("the daemon is ready or dead", || {
                let answers = scene.call("dhcp", "c", &pod).run("STATUS", &config).exit == Some(0);
                (answers || !std::path::Path::new(&format!("/proc/{}/fd/0", daemon.id())).exists())
                    .then_some(())
            });
            let reply = scene.call("dhcp", "c", &pod).run("ADD", &config);
            daemon.kill();
            if reply.exit == Some(0) {
                assert_eq!(scene.kept().len(), 1, "{name} {number}: given to a pod and not kept");
            }
            scene.call("dhcp", "c", &pod).del(&config);
            assert_eq!(scene.kept(), Vec::<String>::new(), "{name} {number}");
            if reply.exit == Some(0) {
                break;
            }
        }
    }
}
