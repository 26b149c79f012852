//! Stories through the whole stack.
//!
//! Read [`TestLab`] first: a lab of its own for one test, driven only through the program `fairlead` and looked
//! at with the system's own tools. It ends with the value, also when the test panics.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "test support: a failure here is a failure of the test, and programs are what it drives"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use harness::{binary, run, run_ok};
use serde_json::Value;
use tempfile::TempDir;

/// A lab that is up for the length of a test.
#[derive(Debug)]
pub struct TestLab {
    name: String,
    runtime: TempDir,
    /// The directory of manifests, once it was asked for.
    store: OnceLock<PathBuf>,
}

impl TestLab {
    /// Starts a lab with these further arguments of `lab up`.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn up(arguments: &[&str]) -> Self {
        let lab = Self::prepared();
        run_ok(lab.fairlead(&["lab", "up", "--name", lab.name()]).args(arguments));
        lab
    }

    /// A name and a directory for a lab that is not up yet.
    pub fn prepared() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}", std::process::id());
        Self { name, runtime: tempfile::tempdir().unwrap(), store: OnceLock::new() }
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `fairlead ARGUMENTS`, with the test's own place for labs.
    pub fn fairlead(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("fairlead"));
        command.env("XDG_RUNTIME_DIR", self.runtime.path()).env_remove("CNI_COMMAND").args(arguments);
        command
    }

    /// `fairlead lab VERB --name NAME ARGUMENTS`.
    pub fn lab(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = self.fairlead(&["lab", verb, "--name", &self.name]);
        command.args(arguments);
        command
    }

    /// What `lab list -o json` prints.
    pub fn list(&self) -> Value {
        decode(&run_ok(&mut self.lab("list", &["-o", "json"])))
    }

    /// A node as the list has it.
    pub fn node(&self, name: &str) -> Value {
        find(&self.list()["nodes"], name).unwrap_or_else(|| panic!("no node {name}"))
    }

    /// A pod as the list has it, if it is there.
    pub fn pod(&self, name: &str) -> Option<Value> {
        find(&self.list()["pods"], name)
    }

    /// The pod's address of a family, once it runs.
    pub fn address(&self, pod: &str, is_ipv6: bool) -> Option<String> {
        let pod = self.pod(pod).filter(|pod| pod["phase"] == "Running")?;
        let addresses = pod["addresses"].as_array()?.iter().filter_map(Value::as_str);
        addresses.filter(|address| address.contains(':') == is_ipv6).map(str::to_owned).next()
    }

    /// Runs a tool in a pod's namespace, entered from outside by the path that the list gives.
    pub fn in_pod(&self, pod: &str, program: &str, arguments: &[&str]) -> Output {
        let pod = self.pod(pod).unwrap_or_else(|| panic!("no pod {pod}"));
        run(entering(&pod).arg(program).args(arguments))
    }

    /// Runs a tool in a node's namespace and returns what it says.
    pub fn in_node(&self, node: &str, program: &str, arguments: &[&str]) -> String {
        run_ok(entering(&self.node(node)).arg(program).args(arguments))
    }

    /// Whether one pod reaches an address with one echo request.
    pub fn pings(&self, pod: &str, address: &str) -> bool {
        self.in_pod(pod, "ping", &["-n", "-q", "-c", "1", "-W", "2", address]).status.success()
    }

    /// The directory of manifests.
    pub fn store(&self) -> PathBuf {
        self.store.get_or_init(|| PathBuf::from(self.list()["store"].as_str().expect("a path"))).clone()
    }

    /// Puts a manifest into the store as any program may: written beside, then renamed into place.
    pub fn put(&self, file: &str, text: &str) {
        let store = self.store();
        let fresh = self.runtime.path().join("fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, store.join(file)).unwrap();
    }

    /// Where labs of this test keep their files.
    pub fn runtime(&self) -> &Path {
        self.runtime.path()
    }

    /// What is left of the lab: processes that name its directory, and files. Empty is clean.
    pub fn leftovers(&self) -> Vec<String> {
        leftovers(self.runtime.path())
    }
}

impl Drop for TestLab {
    fn drop(&mut self) {
        let _ = run(&mut self.lab("down", &[]));
    }
}

/// Processes with `directory` on their command line, and whatever is in it.
pub fn leftovers(directory: &Path) -> Vec<String> {
    let marker = directory.display().to_string();
    let mut left = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(words) = fs::read(entry.path().join("cmdline")) else { continue };
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        if words.contains(&marker) && words.contains("fairlead") {
            left.push(format!("process {}: {words}", entry.file_name().display()));
        }
    }
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    left.extend(files.map(|entry| format!("file {}", entry.path().display())));
    left
}

/// Enters the namespace of a node or pod of the list.
fn entering(listed: &Value) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", listed["netns"].as_str().expect("it has a namespace"))).arg("--");
    command
}

/// Waits until a child says a line on its standard error that begins like this, and reads on from there, so that the
/// child never waits for us.
///
/// # Panics
/// When the child ends before.
pub fn wait_for_line(child: &mut Child, start: &str) {
    let mut lines = BufReader::new(child.stderr.take().expect("standard error is a pipe"));
    let mut line = String::new();
    while !line.starts_with(start) {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended before it said {start:?}");
    }
    std::thread::spawn(move || lines.read_to_end(&mut Vec::new()));
}

/// A pod's manifest.
pub fn pod_manifest(name: &str, node: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}}}\nspec:\n  nodeName: {node}\n  \
         containers:\n    - name: main\n      image: none\n      ports:\n        - containerPort: {port}\n        \
         - containerPort: {port}\n          protocol: UDP\n"
    )
}

/// A Service's manifest, selecting the pods labelled `app: NAME`.
pub fn service_manifest(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  selector: {{app: {name}}}\n  \
         ports:\n    - port: {port}\n"
    )
}

/// JSON as a tool printed it.
pub fn decode(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
}

fn find(items: &Value, name: &str) -> Option<Value> {
    items.as_array()?.iter().find(|item| item["name"] == name).cloned()
}
