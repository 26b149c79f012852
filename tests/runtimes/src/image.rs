//! The one container image: busybox, as an archive that `ctr import` and `podman load` take.
//!
//! The form is Docker's archive: a manifest, a configuration and a layer, each a file of a tar archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::run_ok;
use serde_json::json;
use sha2::{Digest, Sha256};

/// The image's name; no registry is ever asked for it.
pub const NAME: &str = "fairlead.test/busybox:1";

/// What is linked to busybox in the image.
const APPLETS: [&str; 6] = ["sh", "sleep", "nc", "cat", "echo", "ip"];

/// Writes the archive below `directory` and returns its path.
///
/// # Panics
/// When a file cannot be written, or `tar` or busybox is missing.
#[must_use]
pub fn archive(directory: &Path) -> PathBuf {
    let image = directory.join("image");
    let root = image.join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    for folder in ["proc", "sys", "dev", "etc", "tmp", "run"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy(crate::program("busybox").expect("busybox is installed"), root.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let layer = image.join("layer.tar");
    run_ok(tar(&layer).arg("--directory").arg(&root).arg("."));
    let digest: String =
        Sha256::digest(fs::read(&layer).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    fs::write(image.join("config.json"), config.to_string()).unwrap();
    let manifest = json!([{ "Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"] }]);
    fs::write(image.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = directory.join("image.tar");
    run_ok(tar(&archive).arg("--directory").arg(&image).args(["config.json", "layer.tar", "manifest.json"]));
    archive
}

fn tar(file: &Path) -> Command {
    let mut command = Command::new("tar");
    command.args(["--create", "--owner=0", "--group=0", "--file"]).arg(file);
    command
}
