//! Whether every crate we link suits Apache-2.0.
//!
//! The list is deny.toml's (`cargo deny check` reads the same file and checks more, where it is installed);
//! the answer comes from `cargo metadata`, so it needs no tool beyond cargo.

use anyhow::{Context, bail};

use crate::{process, workspace};

/// Fails with every crate whose licence expression the list does not satisfy.
pub(crate) fn run() -> anyhow::Result<()> {
    let deny = std::fs::read_to_string(workspace::root().join("deny.toml")).context("reading deny.toml")?;
    let allowed = allowed(&deny).context("deny.toml has no `allow = [...]` under [licenses]")?;
    let metadata = workspace::metadata()?;
    let mut faults = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let licence = package["license"].as_str().unwrap_or("none");
        if !satisfied(licence, &allowed) {
            faults.push(format!("{} {}: {licence}", package["name"], package["version"]));
        }
    }
    if !faults.is_empty() {
        bail!("licences that deny.toml does not allow:\n  {}", faults.join("\n  "));
    }
    if process::found("cargo-deny") {
        process::run(workspace::cargo().args(["deny", "check", "bans", "licenses", "sources"]))?;
    }
    Ok(())
}

fn allowed(deny: &str) -> Option<Vec<&str>> {
    let (_, rest) = deny.split_once("[licenses]")?;
    let (_, rest) = rest.split_once("allow = [")?;
    let (list, _) = rest.split_once(']')?;
    Some(list.split(',').map(|name| name.trim().trim_matches('"')).filter(|name| !name.is_empty()).collect())
}

/// An SPDX expression of `OR`, `AND` and parentheses; `/` is the old way to write `OR`.
fn satisfied(expression: &str, allowed: &[&str]) -> bool {
    let expression = expression.replace('/', " OR ");
    let mut depth = 0_i32;
    let mut parts: Vec<(String, &str)> = vec![(String::new(), "AND")];
    for word in expression.replace('(', " ( ").replace(')', " ) ").split_whitespace() {
        match word {
            "OR" | "AND" if depth == 0 => {
                parts.push((String::new(), if word == "OR" { "OR" } else { "AND" }))
            }
            _ => {
                depth += i32::from(word == "(") - i32::from(word == ")");
                if let Some((part, _)) = parts.last_mut() {
                    part.push_str(word);
                    part.push(' ');
                }
            }
        }
    }
    // AND binds closer than OR: any run of ANDs that is wholly allowed will do.
    let mut any = false;
    let mut run = true;
    for (index, (part, joined)) in parts.iter().enumerate() {
        if *joined == "OR" && index > 0 {
            any |= run;
            run = true;
        }
        run &= simple(part.trim(), allowed);
    }
    any | run
}

fn simple(part: &str, allowed: &[&str]) -> bool {
    match part.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => satisfied(inner, allowed),
        None => allowed.contains(&part),
    }
}

#[cfg(test)]
mod tests {
    use super::satisfied;

    #[test]
    fn one_branch_of_an_or_is_enough_and_every_part_of_an_and_is_needed() {
        let allowed = ["MIT", "Apache-2.0", "Unicode-3.0"];
        for good in ["MIT", "GPL-3.0 OR MIT", "MIT/Apache-2.0", "(MIT OR GPL-3.0) AND Unicode-3.0"] {
            assert!(satisfied(good, &allowed), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT AND GPL-3.0) OR ISC", "none", ""] {
            assert!(!satisfied(bad, &allowed), "{bad}");
        }
    }
}
