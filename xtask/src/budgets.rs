//! Size and story: files fit a sitting and open with what they are.
//!
//! Functions are measured by clippy (`too_many_lines`); files are measured here. A file marked `// table` on
//! its second part of the story may be long: it is read by looking up, not from top to bottom.

use anyhow::bail;

use crate::workspace;

const LINES: usize = 600;
const STUBS: [&str; 3] = ["todo!(", "unimplemented!(", "#[ignore"];

/// Fails with every file that is too long or opens without a story.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut faults = Vec::new();
    for (file, text) in workspace::rust_files()? {
        if !text.starts_with("//!") {
            faults.push(format!("{file}: opens without its story (`//!`)"));
        }
        let stub = STUBS.iter().any(|word| text.contains(word)) && !file.starts_with("xtask/");
        if stub {
            faults.push(format!("{file}: holds a stub or an ignored test"));
        }
        let is_test = file.contains("/tests/") || file.ends_with("tests.rs") || file.starts_with("tests/");
        let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count();
        if lines > LINES && !is_test && !text.contains("\n// table\n") {
            faults.push(format!("{file}: {lines} lines without its tests, more than {LINES}"));
        }
    }
    if !faults.is_empty() {
        bail!("over budget:\n  {}", faults.join("\n  "));
    }
    Ok(())
}
