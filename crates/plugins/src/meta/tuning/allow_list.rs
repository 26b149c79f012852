//! The administrator's list of sysctls that networks may set: `/etc/cni/tuning/allowlist.conf`, one regular
//! expression a line, of which any has to match some part of the key as it is written in the configuration. Where
//! there is no such file, everything is allowed.

use std::path::Path;

use cni::Error;

use super::file_error;
use super::pattern::Pattern;

const FILE: &str = "/etc/cni/tuning/allowlist.conf";

/// Checks all keys.
///
/// # Errors
/// Code 7 for a key that is not allowed, and for a list that cannot be understood; 5 for one that cannot be read.
pub(super) fn check<'a>(keys: impl Iterator<Item = &'a str>) -> Result<(), Error> {
    let text = match std::fs::read(FILE) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(file_error("read", Path::new(FILE), &cause)),
    };
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut patterns = Vec::with_capacity(lines.len());
    for line in &lines {
        let pattern = Pattern::new(line)
            .map_err(|error| Error::invalid_config(format!("{FILE}: {line:?} is not a pattern: {error}")));
        patterns.push(pattern?);
    }
    for key in keys {
        if !patterns.iter().any(|pattern| pattern.matches(key)) {
            let allowed = lines.join(" ");
            return Err(Error::invalid_config(format!(
                "Sysctl {key} is not allowed. Only the following sysctls are allowed: [{allowed}]"
            ))
            .with_details(format!("hint: the node's administrator keeps the list in {FILE}")));
        }
    }
    Ok(())
}
