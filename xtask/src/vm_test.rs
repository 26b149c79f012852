//! `cargo xtask vm-test`: the tests whose kernel features this machine lacks, on a kernel that has them.
//!
//! Debian's cloud kernel boots in QEMU by plain emulation, with an initial file system of busybox, the
//! kernel's network modules, the tools the tests assert with, and our static binaries. Nothing is installed on the
//! machine beyond packages, and nothing of the guest outlives the run.
//!
//! Which tests: every test file in [`SUITES`]. They are ordinary integration tests, built as always; on a
//! machine with the features `cargo test` runs them too.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, bail};

use crate::{packages, process, suites, workspace};

/// Package and integration test that run in a machine. Each of [`MACHINES`] takes every so-manieth, so those that take
/// longest come first.
const SUITES: &[(&str, &str)] = &[
    ("agent", "kernel_tunnels"),
    ("conformance", "ipvlan"),
    ("agent", "kernel_policies"),
    ("agent", "kernel_clock"),
    ("conformance", "vrf"),
    ("conformance", "vlan"),
    ("plugins", "kinds"),
    ("kernel", "tunnels"),
    ("tunnel", "kernel"),
    ("plugins", "vlan"),
    ("kernel", "kinds"),
    ("conformance", "dummy"),
    ("plugins", "hardware"),
    ("plugins", "portmap_sctp"),
];

/// Machines at once: one keeps little more than one processor busy.
const MACHINES: usize = 2;

/// The reference plugins that the suites ask the same questions, where they are installed.
const REFERENCE: [&str; 6] = ["bridge", "dummy", "host-local", "ipvlan", "vlan", "vrf"];

/// Tools of the host that go along, with the libraries they need.
const TOOLS: [&str; 11] =
    ["ip", "tc", "bridge", "nft", "unshare", "nsenter", "ping", "wg", "sh", "cat", "ipvsadm"];

/// Folders of kernel modules that go along, below `kernel/`.
const MODULES: [&str; 6] = ["net", "drivers/net", "drivers/virtio", "lib", "arch/x86/crypto", "crypto"];

/// Emulation is some twenty times slower than the machine; past this something hangs.
const LIMIT: Duration = Duration::from_secs(1800);

/// Builds the machines, boots them, and fails when a suite in one fails or does not end. Of the suites, those run whose
/// names ("plugins-vlan") contain `part`.
pub(crate) fn run(part: &str) -> anyhow::Result<()> {
    let missing = packages::install(packages::MACHINE, true);
    if !missing.is_empty() {
        workspace::not_run("vm-test", &format!("{missing:?} are missing"));
        return Ok(());
    }
    let folder = workspace::root().join("target/vm");
    fs::create_dir_all(&folder)?;
    if let Err(error) = fetch_kernel(&folder) {
        workspace::not_run("vm-test", &format!("Debian's cloud kernel cannot be had: {error:#}"));
        return Ok(());
    }
    let kernel = kernel(&folder)?;
    let suites = programs(part)?;
    let consoles = std::thread::scope(|scope| {
        let machines: Vec<_> = (0..MACHINES.min(suites.len()))
            .map(|number| {
                let own: Vec<_> = suites.iter().skip(number).step_by(MACHINES).cloned().collect();
                let (kernel, tree) = (&kernel, folder.join(format!("tree{number}")));
                scope.spawn(move || {
                    let image = tree.with_extension("cpio");
                    initramfs(&tree, kernel, &own, &image)?;
                    boot(&kernel.image, &image)
                })
            })
            .collect();
        let ended = machines.into_iter().map(|machine| {
            machine.join().unwrap_or_else(|_| Err(anyhow::anyhow!("what ran a machine ended by a panic")))
        });
        ended.collect::<anyhow::Result<Vec<String>>>()
    })?;
    verdict(&consoles.join("\n"), suites.len())
}

struct Kernel {
    image: PathBuf,
    modules: PathBuf,
    release: String,
}

/// Debian's cloud kernel, unpacked from its package once.
fn fetch_kernel(folder: &Path) -> anyhow::Result<()> {
    let unpacked = folder.join("kernel");
    if unpacked.exists() {
        return Ok(());
    }
    let package = kernel_package().or_else(|_| {
        // A fresh machine may have every program and no list of packages.
        packages::apt(&["update", "-qq"])?;
        kernel_package()
    })?;
    // Into a folder of its own, so that what an interrupted run left is not taken for the kernel.
    let fresh = folder.join("fresh");
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh)?;
    process::run(Command::new("apt-get").args(["download", "-qq", &package]).current_dir(&fresh))?;
    let file = fs::read_dir(&fresh)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("finding the downloaded package")?;
    process::run(Command::new("dpkg").arg("-x").arg(&file).arg(fresh.join("kernel")))?;
    fs::rename(fresh.join("kernel"), unpacked)?;
    fs::remove_dir_all(fresh)?;
    Ok(())
}

/// The package that Debian's name for its newest cloud kernel stands for.
fn kernel_package() -> anyhow::Result<String> {
    let depends = process::output(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
    let package = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"));
    Ok(package.context("finding the package of Debian's cloud kernel")?.to_owned())
}

/// What was unpacked, found.
fn kernel(folder: &Path) -> anyhow::Result<Kernel> {
    let unpacked = folder.join("kernel");
    let image = fs::read_dir(unpacked.join("boot"))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
        .context("finding vmlinuz in the package")?;
    let name = image.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let release = name.trim_start_matches("vmlinuz-").to_owned();
    Ok(Kernel { modules: unpacked.join("lib/modules").join(&release), image, release })
}

/// The test programs, built, with the names they run under.
fn programs(part: &str) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let wanted: Vec<_> = SUITES
        .iter()
        .map(|(package, test)| (*test, format!("{package}-{test}")))
        .filter(|(_, name)| name.contains(part))
        .collect();
    // What `harness::binary` finds beside the tests of a package, and the tests.
    let mut words = vec!["build", "--bin", "fairlead-cni", "--example", "agent"];
    words.extend(wanted.iter().flat_map(|(test, _)| ["--test", test]));
    let built = suites::built(&words)?;
    wanted
        .into_iter()
        .map(|(_, name)| {
            let suite = built.iter().find(|suite| suite.name == name);
            let program =
                suite.with_context(|| format!("finding the program of test {name}"))?.program.clone();
            Ok((name, program))
        })
        .collect()
}

fn initramfs(tree: &Path, kernel: &Kernel, suites: &[(String, PathBuf)], image: &Path) -> anyhow::Result<()> {
    let _ = fs::remove_dir_all(tree);
    for name in ["bin", "tests", "proc", "sys", "dev", "tmp", "run"] {
        fs::create_dir_all(tree.join(name))?;
    }
    copy(&which("busybox")?, &tree.join("bin/busybox"))?;
    for tool in TOOLS.iter().filter(|tool| **tool != "sh") {
        with_libraries(&which(tool)?, "usr/bin", tree)?;
    }
    reference(tree)?;
    for (name, program) in suites {
        copy(program, &tree.join("tests").join(name))?;
        // `harness::binary` looks beside the test program.
        let built = program.parent().and_then(Path::parent).context("the build folder")?;
        copy(&built.join("fairlead-cni"), &tree.join("tests/fairlead-cni"))?;
        if name.starts_with("agent-") {
            copy(&built.join("examples/agent"), &tree.join("tests/examples/agent"))?;
        }
    }
    let modules = tree.join("lib/modules").join(&kernel.release);
    for name in MODULES {
        let from = kernel.modules.join("kernel").join(name);
        if from.exists() {
            let to = modules.join("kernel").join(name);
            fs::create_dir_all(to.parent().context("a parent")?)?;
            process::run(Command::new("cp").arg("-r").arg(from).arg(to))?;
        }
    }
    for name in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        copy(&kernel.modules.join(name), &modules.join(name))?;
    }
    process::run(Command::new("depmod").arg("-b").arg(tree).arg(&kernel.release))?;
    fs::write(tree.join("init"), init(suites))?;
    process::run(Command::new("chmod").arg("755").arg(tree.join("init")))?;
    let pack = format!("find . | cpio --quiet -o -H newc > {}", image.display());
    process::run(Command::new("sh").args(["-c", &pack]).current_dir(tree))
}

/// The reference plugins: Debian's, or those in the folder that `FAIRLEAD_REFERENCE` names.
fn reference(tree: &Path) -> anyhow::Result<()> {
    let named = std::env::var_os("FAIRLEAD_REFERENCE").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| PathBuf::from("/usr/lib/cni"));
    for plugin in REFERENCE.map(|plugin| folder.join(plugin)).iter().filter(|plugin| plugin.exists()) {
        with_libraries(plugin, "usr/lib/cni", tree)?;
    }
    Ok(())
}

/// The machine's first process: mounts, modules (those of IP in IP shall put no devices of their own into the tests'
/// namespaces), the suites one test at a time, then off.
fn init(suites: &[(String, PathBuf)]) -> String {
    let mut script = String::from(
        "#!/bin/busybox sh\n\
         /bin/busybox --install /bin 2>/dev/null\n\
         export PATH=/usr/sbin:/usr/bin:/sbin:/bin FAIRLEAD_PATIENCE=240\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp\n\
         echo 1 > /proc/sys/net/core/fb_tunnels_only_for_init_net\n\
         for module in bridge 8021q veth vxlan nf_tables nft_chain_nat nft_masq nft_ct nft_fib_inet nft_meta_bridge \
         nf_conntrack nf_conntrack_netlink nft_nat nft_limit nft_log nfnetlink_log nf_log_syslog ip_vs ip_vs_rr \
         sctp dummy macvlan ipvlan ifb vrf wireguard ipip sit tun sch_netem virtio_pci virtio_net; do \
         modprobe $module 2>/dev/null; done\n\
         ip link set lo up\n",
    );
    for (name, _) in suites {
        script.push_str(&format!(
            "echo \"suite {name}\"; /tests/{name} --test-threads=1 --nocapture; echo \"suite {name} ended with $?\"\n"
        ));
    }
    script.push_str("sync; poweroff -f\n");
    script
}

fn boot(kernel: &Path, image: &Path) -> anyhow::Result<String> {
    let output = Command::new("timeout")
        .arg(LIMIT.as_secs().to_string())
        .args(["qemu-system-x86_64", "-cpu", "max", "-smp", "2", "-m", "1536", "-nographic", "-no-reboot"])
        .args(["-nic", "none", "-accel", "tcg,thread=multi"])
        // One card, which leads nowhere, for the tests that move one.
        .args(["-netdev", "hubport,id=nowhere,hubid=0", "-device", "virtio-net-pci,netdev=nowhere,romfile="])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(image)
        .args(["-append", "console=ttyS0 quiet panic=-1 loglevel=3 fairlead-vm-test"])
        .stdin(std::process::Stdio::null())
        .output()
        .context("starting qemu-system-x86_64")?;
    Ok(String::from_utf8_lossy(&output.stdout).replace('\r', ""))
}

fn verdict(console: &str, suites: usize) -> anyhow::Result<()> {
    for line in console
        .lines()
        .filter(|line| line.contains("test ") || line.contains("not run") || line.contains("suite "))
    {
        println!("vm: {line}");
    }
    let good =
        console.lines().filter(|line| line.starts_with("suite ") && line.ends_with("ended with 0")).count();
    if good != suites || console.contains("not run, because") {
        bail!("in the virtual machine {good} of {suites} suites passed whole; its console:\n{console}");
    }
    Ok(())
}

fn which(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|path| path.exists())
        .with_context(|| format!("finding {program}"))
}

/// Copies a program into `folder`, and the shared libraries that `ldd` names, each to the same path below `tree`.
fn with_libraries(program: &Path, folder: &str, tree: &Path) -> anyhow::Result<()> {
    let name = program.file_name().context("a file name")?;
    copy(program, &tree.join(folder).join(name))?;
    // It fails for a program that is linked statically.
    let listed = process::output(Command::new("ldd").arg(program)).unwrap_or_default();
    for word in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        copy(Path::new(word), &tree.join(word.trim_start_matches('/')))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}
