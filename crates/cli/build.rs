//! Links `fairlead` with packed relative relocations (`DT_RELR`), a hundredth of the size of others: an agent reads all of them when
//! it starts, and keeps what it has read resident.
//!
//! The binary is linked statically and relocates itself, which glibc does with these from 2.36 on. With an older one,
//! or one for another machine whose age is not known, they stay as they are.
#![allow(clippy::disallowed_methods, reason = "a build script is no product code")]

use std::env;
use std::process::Command;

/// Major and minor version of the first glibc that can.
const FIRST: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let is_for_here = variable("HOST") == variable("TARGET") && variable("CARGO_CFG_TARGET_ENV") == "gnu";
    if is_for_here && glibc().is_some_and(|version| version >= FIRST) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// This machine's, by `getconf GNU_LIBC_VERSION`: `glibc 2.36`.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    let minor = minor.split('.').next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
