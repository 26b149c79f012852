//! `cargo xtask lint`: all that can be said of the code without running it.

use crate::{budgets, floors, licences, manifests, process, workspace};

/// Format, clippy, floors, budgets, licences, manifests, documentation; the cheap ones first.
pub(crate) fn run() -> anyhow::Result<()> {
    process::run(workspace::cargo().args(["fmt", "--all", "--check"]))?;
    floors::run()?;
    budgets::run()?;
    licences::run()?;
    manifests::check()?;
    process::run(workspace::cargo().args(["clippy", "--locked", "--workspace", "--all-targets", "--quiet"]))?;
    // Readers build the private items too, so a public page may link to a private one.
    process::run(
        workspace::cargo()
            .args(["doc", "--locked", "--workspace", "--no-deps", "--document-private-items", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"),
    )?;
    Ok(())
}
