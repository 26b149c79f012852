//! `cargo xtask fuzz`: each fuzz target for a bounded time, on the stable compiler.
//!
//! libFuzzer needs the compiler to count edges; the flags below ask for that as `cargo fuzz` with no
//! sanitizer does. Seeds are in fuzz/seeds/TARGET; what a run finds new goes to the build folder, and an input
//! that crashes stops the run and is kept in fuzz/artifacts.

use std::process::Command;

use anyhow::Context;

use crate::{process, workspace};

const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cdebug-assertions";

/// Builds and runs every target in fuzz/ for `seconds` each.
pub(crate) fn run(seconds: u32) -> anyhow::Result<()> {
    if !["g++", "c++", "clang++"].iter().any(|compiler| process::found(compiler)) {
        workspace::not_run("fuzz", "libFuzzer needs a C++ compiler (g++)");
        return Ok(());
    }
    let folder = workspace::root().join("fuzz");
    process::run(
        workspace::cargo()
            .current_dir(&folder)
            .args(["build", "--locked", "--release", "--quiet", "--bins"])
            .env("RUSTFLAGS", FLAGS),
    )?;
    for target in targets()? {
        let found = folder.join("target/corpus").join(&target);
        let artifacts = folder.join("artifacts");
        std::fs::create_dir_all(&found).context("making the corpus folder")?;
        std::fs::create_dir_all(&artifacts).context("making the artifacts folder")?;
        let triple = process::output(Command::new("rustc").args(["--print", "host-tuple"]))?;
        let program = folder.join("target").join(triple.trim()).join("release").join(&target);
        process::run(
            Command::new(program)
                .arg(format!("-max_total_time={seconds}"))
                .arg(format!("-artifact_prefix={}/", artifacts.display()))
                .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=0", "-verbosity=0"])
                .arg(&found)
                .arg(folder.join("seeds").join(&target)),
        )?;
        println!("fuzz {target}: {seconds} s without a crash");
    }
    Ok(())
}

fn targets() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    let folder = workspace::root().join("fuzz/targets");
    for entry in std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}
