//! `host-device` with a device that the kernel takes for hardware, found on a real PCI bus: such a one comes home by
//! itself when its pod's namespace goes. Home is the machine's first namespace, which no test may touch; so these
//! run in the virtual machine alone (`cargo xtask vm-test`), which says what it is on the kernel's command line.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use harness::{Namespace, Reply, eventually, not_run, run_ok};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The virtual machine's network card.
struct Card {
    /// Its PCI address.
    address: String,
    /// The directory of the link's device.
    path: PathBuf,
    /// The link's name.
    name: String,
    mac: String,
    bin: TempDir,
}

impl Card {
    fn new() -> Option<Self> {
        let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        if !line.split_whitespace().any(|word| word == "fairlead-vm-test") {
            not_run("a network card is only moved in the virtual machine");
            return None;
        }
        let found = entries(Path::new("/sys/bus/pci/devices")).into_iter().find_map(|device| {
            let path = entries(&device).into_iter().find(|path| file_name(path).starts_with("virtio"))?;
            let link = entries(&path.join("net")).into_iter().next()?;
            Some((file_name(&device), fs::canonicalize(path).unwrap(), file_name(&link)))
        });
        let (address, path, name) = found.expect("the virtual machine has a network card, and it is at home");
        let mac = link(&name).unwrap()["address"].as_str().unwrap().to_owned();
        Some(Self { address, path, name, mac, bin: harness::plugin_directory(&["host-device"]) })
    }

    fn call(&self, command: &str, netns: &Path, config: &Value) -> Reply {
        let mut process = Command::new(self.bin.path().join("host-device"));
        process.env("CNI_COMMAND", command).env("CNI_CONTAINERID", "c").env("CNI_NETNS", netns);
        process.env("CNI_IFNAME", "net1").env("CNI_PATH", self.bin.path());
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = process.spawn().unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        Reply::from(child.wait_with_output().unwrap())
    }

    /// Lends the card to a pod whose namespace goes at once; returns the name under which the kernel brings it home.
    fn lose(&self, config: &Value) -> String {
        let pod = Namespace::new();
        self.call("ADD", &pod.path(), config).expect_success("ADD");
        assert_eq!(link(&self.name), None);
        drop(pod);
        eventually("the kernel brings the card home", || {
            let mut all = links().into_iter();
            let home = all.find(|link| link["address"] == self.mac.as_str())?;
            Some(home["ifname"].as_str().unwrap().to_owned())
        })
    }

    fn expect_home(&self) {
        let home = link(&self.name).expect("the card has its name");
        assert_eq!(home["address"], self.mac.as_str());
        assert_eq!(home.get("ifalias"), None);
    }
}

fn config(selector: Value) -> Value {
    let mut config = json!({ "cniVersion": "1.1.0", "name": "test", "type": "host-device" });
    for (key, value) in selector.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn links() -> Vec<Value> {
    let printed = run_ok(Command::new("ip").args(["-j", "link", "show"]));
    serde_json::from_str(&printed).unwrap()
}

fn link(name: &str) -> Option<Value> {
    links().into_iter().find(|link| link["ifname"] == name)
}

// 43
#[test]
fn a_card_is_found_on_its_bus_and_comes_home() {
    let Some(card) = Card::new() else { return };
    for selector in [
        json!({ "pciBusID": card.address }),
        json!({ "runtimeConfig": { "deviceID": card.address } }),
        json!({ "kernelpath": card.path }),
        json!({ "hwaddr": card.mac }),
        json!({ "device": card.name }),
    ] {
        let pod = Namespace::new();
        let config = config(selector.clone());
        let result = card.call("ADD", &pod.path(), &config).expect_success("ADD");
        assert_eq!(result["interfaces"][0]["mac"], card.mac.as_str(), "{selector}");
        let by_bus = selector.get("pciBusID").or(selector.get("runtimeConfig")).is_some();
        assert_eq!(result["interfaces"][0].get("pciID").is_some(), by_bus, "{selector}: {result}");
        assert_eq!(pod.ip_json("link show net1")[0]["ifalias"], card.name.as_str(), "{selector}");
        card.call("DEL", &pod.path(), &config).expect_success("DEL");
        card.expect_home();
    }
}

// 43: the namespace goes first
#[test]
fn a_card_that_the_kernel_brought_home_gets_its_name_back_by_del() {
    let Some(card) = Card::new() else { return };
    for selector in
        [json!({ "device": card.name }), json!({ "hwaddr": card.mac }), json!({ "pciBusID": card.address })]
    {
        let config = config(selector);
        assert_eq!(card.lose(&config), "net1");
        card.call("DEL", Path::new("/proc/1/there/is/none"), &config).expect_success("DEL");
        card.expect_home();
    }
    // Not even the configuration names it: the result does.
    let pod = Namespace::new();
    let selected = config(json!({ "device": card.name }));
    let result = card.call("ADD", &pod.path(), &selected).expect_success("ADD");
    drop(pod);
    eventually("the kernel brings the card home", || link("net1"));
    card.call("DEL", Path::new(""), &config(json!({ "prevResult": result }))).expect_success("DEL");
    card.expect_home();
}

#[test]
fn a_card_that_the_kernel_had_to_call_something_else_gets_its_name_back_by_gc() {
    let Some(card) = Card::new() else { return };
    run_ok(Command::new("ip").args(["link", "add", "net1", "type", "veth", "peer", "name", "x1"]));
    let mut config = config(json!({ "pciBusID": card.address }));
    let name = card.lose(&config);
    assert!(name.starts_with("dev"), "{name}");
    config["cni.dev/valid-attachments"] = json!([]);
    card.call("GC", Path::new(""), &config).expect_success("GC");
    run_ok(Command::new("ip").args(["link", "del", "net1"]));
    card.expect_home();
}
