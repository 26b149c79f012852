//! A Kubernetes cluster on this machine, from start to end.
//!
//! [`Cluster::up`] runs the script that starts etcd, the control plane, and a containerd and a kubelet per node, each node
//! with network and files of its own; then it does what a cluster for people has and the script leaves out: the API
//! server's certificate as the authority of service accounts, and a kube-proxy on every node. Everything ends with the value.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{process, workspace};

/// How long anything may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(180);

/// Where Kubernetes' binaries are by the convention of envtest.
const ASSETS: &str = "/usr/local/kubebuilder/bin";

/// Programs that the suite calls in its pods, with the files they are here.
const TOOLS: [(&str, &str); 6] = [
    ("/usr/bin/getent", "/usr/bin/getent"),
    ("/bin/sh", "/bin/dash"),
    ("/usr/bin/curl", "/usr/bin/curl"),
    ("/usr/bin/dig", "/usr/bin/dig"),
    ("/usr/bin/nslookup", "/usr/bin/nslookup"),
    ("/usr/bin/nc", "/usr/bin/nc.openbsd"),
];

/// Where the suite's images come from.
const IMAGES: &str = "registry.k8s.io/e2e-test-images";

/// Programs of Kubernetes that a cluster needs.
const PROGRAMS: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"];

/// A running cluster.
pub(crate) struct Cluster {
    directory: PathBuf,
    control_plane: String,
    /// What runs beside the script's processes.
    children: Vec<Child>,
}

/// Why no cluster can be started here.
pub(super) fn missing() -> Option<String> {
    if !script().exists() {
        return Some(format!("{} is not there", script().display()));
    }
    let missing: Vec<&str> =
        PROGRAMS.into_iter().filter(|program| !assets().join(program).exists()).collect();
    if !missing.is_empty() {
        return Some(format!("{} has no {}", assets().display(), missing.join(", ")));
    }
    let root = process::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    (!root).then(|| "a kubelet needs root".to_owned())
}

/// The script: `FAIRLEAD_CLUSTER`, else the one beside the checkout.
fn script() -> PathBuf {
    let beside = || workspace::root().join("../shared/cluster/cluster");
    std::env::var_os("FAIRLEAD_CLUSTER").map_or_else(beside, PathBuf::from)
}

/// Where Kubernetes' binaries are.
pub(super) fn assets() -> PathBuf {
    std::env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| ASSETS.into(), PathBuf::from)
}

impl Cluster {
    /// Starts one whose nodes are given a pod CIDR each. `plugins` is a directory of CNI plugins that every node gets.
    pub(super) fn up(nodes: usize, plugins: Option<&Path>) -> anyhow::Result<Self> {
        let plugins = plugins.map(|plugins| plugins.display().to_string());
        let words = plugins.iter().flat_map(|plugins| ["--cni-bin", plugins]).collect::<Vec<_>>();
        let cluster = Self::start_up(nodes, &words)?;
        cluster.route_to_pods(nodes)?;
        Ok(cluster)
    }

    /// Starts one whose nodes are given no pod CIDRs.
    pub(super) fn up_without_cidrs(nodes: usize) -> anyhow::Result<Self> {
        Self::start_up(nodes, &["--no-cidrs"])
    }

    fn start_up(nodes: usize, more: &[&str]) -> anyhow::Result<Self> {
        // Not below /var or /run, of which every node has its own.
        let directory = PathBuf::from(format!("/tmp/fairlead-e2e-{}", std::process::id()));
        let mut cluster = Self { directory, control_plane: String::new(), children: Vec::new() };
        let count = nodes.to_string();
        let told = cluster.script(&[&["up", "--nodes", &count], more].concat())?;
        let network =
            told.lines().find_map(|line| line.split_once("nsenter --net=").map(|(_, path)| path.to_owned()));
        cluster.control_plane = network.context("the script names no network of the control plane")?;
        cluster.restart_controller_manager()?;
        for node in 1..=nodes {
            cluster.start_kube_proxy(node)?;
        }
        let pause = format!("/pause={}", cluster.path("pause").display());
        // What the suite of Kubernetes asks for by itself.
        cluster.image("registry.k8s.io/pause:3.10.2", "[\"/pause\"]", &[pause])?;
        Ok(cluster)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Runs the script and returns what it says.
    fn script(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(script());
        command.args(words).arg("--dir").arg(&self.directory).env("PATH", path());
        process::output(&mut command)
    }

    /// Makes an image of files and imports it on every node.
    pub(super) fn image(&self, name: &str, entrypoint: &str, files: &[String]) -> anyhow::Result<()> {
        let mut words = vec!["image", name, "--entrypoint", entrypoint];
        words.extend(files.iter().map(String::as_str));
        self.script(&words).map(drop)
    }

    /// The images that Kubernetes' suite works with. The script's agnhost lacks what the real one does without arguments and
    /// the certificate by which it serves, so it is made anew. Of the image for names the suite wants a shell and `dig`,
    /// which agnhost's has.
    pub(super) fn agnhost(&self, nodes: usize) -> anyhow::Result<()> {
        let binary = assets().join("agnhost").display().to_string();
        self.script(&["agnhost", &binary])?;
        let name = format!("{IMAGES}/agnhost:2.63.0");
        self.image(&name, "[\"/start\"]", &self.agnhost_files(&binary)?)?;
        for node in 1..=nodes {
            let socket = self.path(&format!("node{node}/containerd.sock"));
            let mut tag = Command::new("ctr");
            tag.arg("-a").arg(socket).args(["-n", "k8s.io", "image", "tag"]);
            tag.args(["agnhost:2.63.0", "glibc-dns-testing:2.0.0"].map(|name| format!("{IMAGES}/{name}")));
            process::output(&mut tag)?;
        }
        Ok(())
    }

    /// What is in the image of agnhost, as `PATH=FILE`.
    fn agnhost_files(&self, binary: &str) -> anyhow::Result<Vec<String>> {
        let start = self.path("start");
        fs::write(&start, "#!/bin/sh\n[ $# -gt 0 ] || set -- pause\ncd /\nexec /agnhost \"$@\"\n")?;
        let (key, certificate) = (self.path("localhost.key"), self.path("localhost.crt"));
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "30",
            "-subj",
            "/CN=localhost",
        ]);
        process::output(openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate))?;
        let file = |path: &str, file: &Path| format!("{path}={}", file.display());
        let mut files = vec![
            format!("/agnhost={binary}"),
            file("/start", &start),
            file("/localhost.key", &key),
            file("/localhost.crt", &certificate),
            "/bin/busybox=/bin/busybox".to_owned(),
        ];
        files.extend(TOOLS.map(|(path, file)| format!("{path}={file}")));
        let linked = process::output(Command::new("ldd").args(TOOLS.map(|(_, file)| file)))?;
        let libraries =
            linked.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
        let libraries: BTreeSet<&str> = libraries.collect();
        files.extend(libraries.into_iter().map(|library| format!("{library}={library}")));
        Ok(files)
    }

    /// A program that is started where the API server is.
    pub(super) fn beside_the_api_server(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.control_plane)).arg("--").arg(program.as_ref());
        command.env("PATH", path()).env("KUBECONFIG", self.path("kubeconfig"));
        command
    }

    /// A program that is started on a node: in its network, with its files.
    pub(super) fn on_node(&self, node: usize, program: &str) -> anyhow::Result<Command> {
        let holder = fs::read_to_string(self.path(&format!("node{node}/holder")))?;
        let mut command = Command::new("nsenter");
        command.args(["-t", &holder, "-m", "-n", "--", program]).env("PATH", path());
        Ok(command)
    }

    /// What a shell says on a node.
    pub(super) fn sh(&self, node: usize, script: &str) -> anyhow::Result<String> {
        process::output(self.on_node(node, "sh")?.args(["-c", script]))
    }

    /// kubectl, which must succeed.
    pub(super) fn kubectl(&self, words: &[&str]) -> anyhow::Result<String> {
        process::output(self.beside_the_api_server(assets().join("kubectl")).args(words))
    }

    /// What kubectl gets, decoded.
    pub(super) fn get(&self, words: &[&str]) -> anyhow::Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], words].concat())?;
        serde_json::from_str(&text).context("decoding what kubectl gets")
    }

    /// Applies a manifest. Whether it is valid is asked by [`validate`](Self::validate).
    pub(super) fn apply(&self, manifest: &Path) -> anyhow::Result<()> {
        let file = manifest.display().to_string();
        self.kubectl(&["apply", "--validate=false", "-f", &file]).map(drop)
    }

    /// Applies the text of a manifest.
    pub(super) fn apply_text(&self, manifest: &str) -> anyhow::Result<()> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(manifest.as_bytes())?;
        self.apply(file.path())
    }

    /// Has the API server judge every object of a manifest strictly, without keeping it.
    pub(super) fn validate(&self, manifest: &Path) -> anyhow::Result<()> {
        let file = manifest.display().to_string();
        let objects =
            self.kubectl(&["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", &file])?;
        let mut count = 0;
        for object in serde_json::Deserializer::from_str(&objects).into_iter::<Value>() {
            self.validate_object(&object?)?;
            count += 1;
        }
        println!("manifest: the API server finds nothing wrong in the {count} objects of {file}");
        Ok(())
    }

    fn validate_object(&self, object: &Value) -> anyhow::Result<()> {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (version, kind) = (word(&object["apiVersion"]), word(&object["kind"]));
        let group =
            if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
        let resource = match kind.to_lowercase() {
            kind if kind.ends_with('y') => format!("{}ies", &kind[..kind.len() - 1]),
            kind => format!("{kind}s"),
        };
        let namespace = object["metadata"]["namespace"].as_str();
        let within = namespace.map(|namespace| format!("/namespaces/{namespace}")).unwrap_or_default();
        let path = format!("{group}{within}/{resource}?dryRun=All&fieldValidation=Strict");
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(object.to_string().as_bytes())?;
        let file = file.path().display().to_string();
        match self.kubectl(&["create", "--raw", &path, "-f", &file]) {
            Err(error) if !format!("{error:#}").contains("already exists") => {
                bail!("{kind} {}: {error:#}", object["metadata"]["name"])
            }
            _ => {}
        }
        Ok(())
    }

    /// Waits until so many nodes are Ready.
    pub(super) fn await_nodes(&self, count: usize) -> anyhow::Result<()> {
        eventually("every node is Ready", || {
            let nodes = self.kubectl(&["get", "nodes", "--no-headers"])?;
            let ready = nodes.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready"));
            Ok((ready.count() == count).then_some(()))
        })
    }

    /// Waits until a pod is Ready. A kubelet that found the API server away asks it again only after up to a minute, and
    /// once more if it asked one that was starting.
    pub(super) fn await_pod(&self, name: &str) -> anyhow::Result<()> {
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        self.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), &timeout]).map(drop)
    }

    /// The process that the script started under this name.
    pub(super) fn process(&self, name: &str) -> anyhow::Result<u32> {
        let pids = fs::read_to_string(self.path("pids"))?;
        let found = pids.lines().rev().find_map(|line| {
            let (pid, of) = line.split_once(' ')?;
            (of == name).then(|| pid.parse().ok())?
        });
        found.with_context(|| format!("no process {name} in the list of the cluster's"))
    }

    /// Kills a process of the cluster and returns what it takes to start it again.
    pub(super) fn kill(&self, name: &str) -> anyhow::Result<Killed> {
        let pid = self.process(name)?;
        let line = fs::read(format!("/proc/{pid}/cmdline"))?;
        let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        let words: Vec<String> = words.map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        process::output(Command::new("kill").args(["-9", &pid.to_string()]))?;
        eventually("the process has ended", || {
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            Ok((state.is_empty() || state.contains(") Z ")).then_some(()))
        })?;
        Ok(Killed { name: name.to_owned(), words })
    }

    /// Starts it again, on its node or beside the API server.
    pub(super) fn start(&mut self, killed: &Killed, more: &[&str]) -> anyhow::Result<()> {
        let (program, words) = killed.words.split_first().context("a process without a name")?;
        let node = killed.name.strip_prefix("node").and_then(|rest| rest.split('-').next()?.parse().ok());
        let mut command = match node {
            Some(node) => self.on_node(node, program)?,
            None => self.beside_the_api_server(program),
        };
        command.args(words).args(more);
        self.spawn(&killed.name, &mut command)
    }

    /// The same for a process that gives up when what it needs is not there yet, and that systemd would start again.
    pub(super) fn start_until_it_stays(&mut self, killed: &Killed) -> anyhow::Result<()> {
        /// One that lived this long has found what it needs.
        const SETTLED: Duration = Duration::from_secs(3);
        eventually("a process that was started stays", || {
            self.start(killed, &[])?;
            let started = Instant::now();
            let Some(child) = self.children.last_mut() else { return Ok(None) };
            while started.elapsed() < SETTLED {
                if child.try_wait()?.is_some() {
                    return Ok(None);
                }
                thread::sleep(Duration::from_millis(100));
            }
            Ok(Some(()))
        })
    }

    fn spawn(&mut self, name: &str, command: &mut Command) -> anyhow::Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path(&format!("{name}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        let mut pids = fs::OpenOptions::new().append(true).open(self.path("pids"))?;
        writeln!(pids, "{} {name}", child.id())?;
        self.children.push(child);
        Ok(())
    }

    /// Pods are to trust the API server: its certificate becomes the authority that every namespace is told.
    fn restart_controller_manager(&mut self) -> anyhow::Result<()> {
        let killed = self.kill("kube-controller-manager")?;
        let authority = self.path("certs/apiserver.crt").display().to_string();
        self.start(&killed, &["--root-ca-file", &authority])
    }

    /// The API server proxies to pods, and its machine is no node here: it is told the way by hand.
    pub(super) fn route_to_pods(&self, nodes: usize) -> anyhow::Result<()> {
        let given = eventually("every node has a pod CIDR", || {
            let list = self.get(&["nodes"])?;
            let given: Vec<(String, String)> = items(&list).filter_map(cidr_and_address).collect();
            Ok((given.len() == nodes).then_some(given))
        })?;
        for (cidr, address) in given {
            process::output(
                self.beside_the_api_server("ip").args(["route", "replace", &cidr, "via", &address]),
            )?;
        }
        Ok(())
    }

    /// kube-proxy as kubeadm runs it, but that it leaves the machine's own conntrack limits alone.
    fn start_kube_proxy(&mut self, node: usize) -> anyhow::Result<()> {
        let program = assets().join("kube-proxy").display().to_string();
        let mut command = self.on_node(node, &program)?;
        command.arg("--kubeconfig").arg(self.path("kubeconfig"));
        command.args(["--proxy-mode", "nftables", "--cluster-cidr", "10.244.0.0/16"]);
        command.args(["--hostname-override", &format!("node{node}")]);
        for limit in ["max-per-core", "min", "tcp-timeout-established", "tcp-timeout-close-wait"] {
            command.args([&format!("--conntrack-{limit}"), "0"]);
        }
        self.spawn(&format!("node{node}-kube-proxy"), &mut command)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::env::var_os("FAIRLEAD_E2E_KEEP").is_some() {
            println!("the cluster stays up in {}", self.directory.display());
            return;
        }
        let mut down = Command::new(script());
        down.arg("down").arg("--dir").arg(&self.directory).env("PATH", path());
        // A child that has ended and was not waited for would look alive to the script.
        let reaper = down.spawn();
        for child in &mut self.children {
            let _ = child.wait();
        }
        let ended = reaper.and_then(|mut down| down.wait());
        if !ended.is_ok_and(|status| status.success()) {
            eprintln!("warning: the cluster in {} was not taken down whole", self.directory.display());
        }
    }
}

/// The objects of a list.
pub(super) fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

/// A node's pod CIDR, and its own address.
pub(super) fn cidr_and_address(node: &Value) -> Option<(String, String)> {
    let addresses = node["status"]["addresses"].as_array()?;
    let internal = addresses.iter().find(|address| address["type"] == "InternalIP")?;
    Some((node["spec"]["podCIDR"].as_str()?.to_owned(), internal["address"].as_str()?.to_owned()))
}

/// A process of the cluster that was killed.
pub(super) struct Killed {
    name: String,
    words: Vec<String>,
}

/// PATH with Kubernetes' own kubectl before any other.
fn path() -> std::ffi::OsString {
    let mut path = assets().into_os_string();
    path.push(":");
    path.push(process::path_with_system_directories());
    path
}

/// Asks again and again until there is an answer.
pub(super) fn eventually<T>(
    what: &str,
    mut ask: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    let mut last = None;
    while start.elapsed() < PATIENCE {
        match ask() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
        thread::sleep(Duration::from_millis(100));
    }
    match last {
        Some(error) => Err(error.context(format!("waiting until {what}"))),
        None => bail!("waiting until {what}: it did not come to that in {PATIENCE:?}"),
    }
}
