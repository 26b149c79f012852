//! Manifests on their way into a lab's store.

use std::fs;
use std::path::{Path, PathBuf};

use store::Directory;

use crate::error::{Error, Result};

/// A manifest as it will stand in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its file name.
    pub name: String,
    /// Its text.
    pub text: Vec<u8>,
}

/// Reads manifests: each path is a file, or a directory of `.yaml`, `.yml` and `.json` files at any depth.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for path in paths {
        let found = fs::metadata(path).map_err(Error::file("read", path))?;
        let files = if found.is_dir() { files_below(path)? } else { vec![path.clone()] };
        let root = if found.is_dir() { path.as_path() } else { path.parent().unwrap_or(path) };
        for file in files {
            let text = fs::read(&file).map_err(Error::file("read", &file))?;
            manifests.push(Manifest { name: flat_name(root, &file), text });
        }
    }
    Ok(manifests)
}

/// Puts manifests into the store, each whole or not at all; none when the first of them does not parse.
pub(crate) fn install(store: &Path, manifests: &[Manifest]) -> Result<()> {
    let directory = Directory::at(store);
    for manifest in manifests {
        directory.install(&manifest.name, &manifest.text).map_err(|source| Error::Store { source })?;
    }
    Ok(())
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut entries: Vec<PathBuf> = fs::read_dir(directory)
        .map_err(Error::file("read", directory))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else if matches!(path.extension().and_then(|text| text.to_str()), Some("yaml" | "yml" | "json")) {
            files.push(path);
        }
    }
    Ok(files)
}

/// `web/front.yaml` becomes `web-front.yaml`: the store's top level is for people to look at.
fn flat_name(root: &Path, file: &Path) -> String {
    let relative = file.strip_prefix(root).unwrap_or(file);
    let parts: Vec<String> =
        relative.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_gives_its_manifests_in_order_and_nothing_else() {
        let root = std::env::temp_dir().join(format!("fairlead-manifests-{}", std::process::id()));
        fs::create_dir_all(root.join("web")).unwrap();
        for name in ["b.yaml", "a.json", "notes.txt", "web/front.yml"] {
            fs::write(root.join(name), name).unwrap();
        }
        let manifests = read(std::slice::from_ref(&root)).unwrap();
        let names: Vec<&str> = manifests.iter().map(|manifest| manifest.name.as_str()).collect();
        assert_eq!(names, ["a.json", "b.yaml", "web-front.yml"]);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_path_that_is_not_there_is_named() {
        let error = read(&[PathBuf::from("/nowhere/at/all.yaml")]).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere/at/all.yaml");
    }
}
