//! What is installed in a cluster, in its three forms: files for Kustomize, the same in one file, and a Helm chart.
//!
//! Read [`derived`]. The files of deploy/kubernetes are the source. deploy/fairlead.yaml is them one after the other, and
//! the chart's templates are them with the places of `chart.rs` exchanged for values; `cargo xtask manifests` writes both,
//! `cargo xtask lint` says when they are stale. That the chart's default values are what stood in those places, and that
//! every version is the workspace's, is looked at too.
//!
//! What stays true: nobody edits the one file or a template by hand.

mod chart;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{process, workspace};

/// Where the source is.
const SOURCE: &str = "deploy/kubernetes";

/// All of it in one file.
const ONE_FILE: &str = "deploy/fairlead.yaml";

/// What an image of ours is called, wherever it is kept, up to its version.
const IMAGE: &str = "fairlead/fairlead:";

/// Writes what is derived.
pub(crate) fn write() -> anyhow::Result<()> {
    for (path, text) in derived()? {
        fs::write(workspace::root().join(&path), text).with_context(|| format!("writing {path}"))?;
        println!("{path}");
    }
    Ok(())
}

/// Fails with what is stale, and with every version that is another one.
pub(crate) fn check() -> anyhow::Result<()> {
    let mut faults = Vec::new();
    for (path, text) in derived()? {
        if fs::read_to_string(workspace::root().join(&path)).unwrap_or_default() != text {
            faults.push(format!("{path} is stale; `cargo xtask manifests` writes it"));
        }
    }
    let version = workspace_version()?;
    faults.extend(chart::faults(&version)?);
    for (path, text) in texts()? {
        faults.extend(
            foreign_versions(&text, &version).map(|found| format!("{path}: image {found}, not {version}")),
        );
    }
    if !faults.is_empty() {
        bail!("the manifests do not agree:\n  {}", faults.join("\n  "));
    }
    Ok(())
}

/// Every file that is made from others, with what it has to say.
fn derived() -> anyhow::Result<Vec<(String, String)>> {
    let resources = resources()?;
    let texts: Vec<&str> = resources.iter().map(|(_, text)| text.as_str()).collect();
    let mut files = vec![(ONE_FILE.to_owned(), texts.join("---\n"))];
    files.extend(chart::templates(&resources)?);
    Ok(files)
}

/// The resources of the kustomization with their texts, in its order.
fn resources() -> anyhow::Result<Vec<(String, String)>> {
    let kustomization = yaml(&format!("{SOURCE}/kustomization.yaml"))?;
    let names = kustomization["resources"].as_array().context("the kustomization has no resources")?;
    let mut resources = Vec::new();
    for name in names {
        let name = name.as_str().context("a resource of the kustomization is no name")?;
        resources.push((name.to_owned(), read(&format!("{SOURCE}/{name}"))?));
    }
    Ok(resources)
}

fn read(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(workspace::root().join(path)).with_context(|| format!("reading {path}"))
}

fn yaml(path: &str) -> anyhow::Result<Value> {
    parse(&read(path)?).with_context(|| format!("reading {path}"))
}

fn parse(text: &str) -> anyhow::Result<Value> {
    Ok(serde_saphyr::from_str(text)?)
}

fn workspace_version() -> anyhow::Result<String> {
    let metadata = workspace::metadata()?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let ours = packages.into_iter().find(|package| package["name"] == "xtask" && package["source"].is_null());
    let version =
        ours.and_then(|package| package["version"].as_str()).context("the workspace has no version")?;
    Ok(version.to_owned())
}

/// What an operator may copy an image's name from.
fn texts() -> anyhow::Result<Vec<(String, String)>> {
    let mut command = Command::new("git");
    command.args(["ls-files", "--cached", "--others", "--exclude-standard", "--"]);
    command.args(["deploy", "docs", "examples", "README.md", "Dockerfile"]).current_dir(workspace::root());
    let mut texts = Vec::new();
    for name in process::output(&mut command)?.lines() {
        // A file deleted but not yet committed is still listed.
        if let Ok(text) = fs::read_to_string(workspace::root().join(Path::new(name))) {
            texts.push((name.to_owned(), text));
        }
    }
    Ok(texts)
}

/// The versions of our images in a text that are not this one.
fn foreign_versions<'a>(text: &'a str, version: &'a str) -> impl Iterator<Item = &'a str> {
    let found = text.split(IMAGE).skip(1).map(|rest| {
        let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && !"._-".contains(letter));
        rest[..end.unwrap_or(rest.len())].trim_end_matches('.')
    });
    found.filter(move |found| found.starts_with(|first: char| first.is_ascii_digit()) && *found != version)
}

#[cfg(test)]
mod tests {
    use super::foreign_versions;

    #[test]
    fn an_image_of_another_version_is_found_and_one_of_this_version_or_of_others_is_not() {
        let text = "image: a.io/fairlead/fairlead:0.1.0\n`b/fairlead/fairlead:0.2.0-rc.1` c/fairlead/fairlead:$VERSION \
                    d/other:3 (fairlead/fairlead:0.1.0.)";
        assert_eq!(foreign_versions(text, "0.1.0").collect::<Vec<_>>(), ["0.2.0-rc.1"]);
    }
}
