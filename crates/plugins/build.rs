//! Leaves the unwind tables out of a released fairlead-cni, a fourteenth of it.
//!
//! There they serve nobody: a panic ends the process (`panic = "abort"`), and a backtrace of a program that is
//! stripped of its symbols has no names to print. Other builds keep them: their tests unwind.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=link.ld");
    let variable = |name: &str| env::var(name).unwrap_or_default();
    if variable("PROFILE") == "release" && variable("CARGO_CFG_TARGET_OS") == "linux" {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}/link.ld", variable("CARGO_MANIFEST_DIR"));
        println!("cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr");
    }
}
