//! Manifests on their way into a lab's store.

use std::collections::BTreeMap;
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

/// Reads manifests: each path is a file, or a directory of `.yaml`, `.yml` and `.json` files at any depth. All of
/// them are good: what is wrong with one is told by the path it was read from.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    let mut origins: BTreeMap<String, PathBuf> = BTreeMap::new();
    for path in paths {
        let found = fs::metadata(path).map_err(Error::file("read", path))?;
        let files = if found.is_dir() { files_below(path)? } else { vec![path.clone()] };
        if files.is_empty() {
            return Err(Error::NoManifests { path: path.clone() });
        }
        let root = if found.is_dir() { path.as_path() } else { path.parent().unwrap_or(path) };
        for file in files {
            let text = fs::read(&file).map_err(Error::file("read", &file))?;
            store::read_manifest(&file, &text)
                .map_err(|problems| Error::Manifest(store::Error::Manifest { problems }))?;
            let name = flat_name(root, &file);
            if let Some(first) = origins.insert(name.clone(), file.clone()) {
                return Err(Error::SameName { name, first, second: file });
            }
            manifests.push(Manifest { name, text });
        }
    }
    Ok(manifests)
}

/// Puts manifests into the store, each whole; none of them when one is wrong.
pub(crate) fn install(store: &Path, manifests: &[Manifest]) -> Result<()> {
    for manifest in manifests {
        Directory::examine(&manifest.name, &manifest.text).map_err(Error::Manifest)?;
    }
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

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: NAME\n";

    /// A directory with these files, each of a pod that is called like the second of each pair.
    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (file, pod) in files {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, POD.replace("NAME", pod)).unwrap();
        }
        root
    }

    #[test]
    fn a_directory_gives_its_manifests_in_order_and_nothing_else() {
        let root =
            directory(&[("b.yaml", "b"), ("a.json", "a"), ("notes.txt", "Note"), ("web/front.yml", "f")]);
        let manifests = read(&[root.path().to_owned()]).unwrap();
        let names: Vec<&str> = manifests.iter().map(|manifest| manifest.name.as_str()).collect();
        assert_eq!(names, ["a.json", "b.yaml", "web-front.yml"]);
    }

    #[test]
    fn a_path_that_is_not_there_is_named() {
        let error = read(&[PathBuf::from("/nowhere/at/all.yaml")]).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere/at/all.yaml");
    }

    #[test]
    fn a_manifest_that_is_wrong_is_named_by_the_path_it_was_read_from() {
        let root = directory(&[("a.yaml", "a"), ("web/b.yaml", "Bad_Name")]);
        let error = read(&[root.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains(&format!("{}/web/b.yaml:4:", root.path().display())), "{error}");
    }

    #[test]
    fn of_two_manifests_with_one_name_none_is_lost_unnoticed() {
        let root = directory(&[("a/pod.yaml", "a"), ("b/pod.yaml", "b")]);
        let error = read(&[root.path().join("a"), root.path().join("b")]).unwrap_err().to_string();
        assert!(error.contains("a/pod.yaml and ") && error.contains("would both be pod.yaml"), "{error}");
        assert_eq!(read(&[root.path().to_owned()]).unwrap().len(), 2);
    }

    #[test]
    fn a_directory_without_manifests_is_told() {
        let root = directory(&[("notes.txt", "a")]);
        let error = read(&[root.path().to_owned()]).unwrap_err().to_string();
        assert!(error.starts_with("no manifests in "), "{error}");
    }

    #[test]
    fn when_one_manifest_is_wrong_none_is_put_into_the_store() {
        let store = tempfile::tempdir().unwrap();
        let manifest = |name: &str, pod: &str| Manifest {
            name: name.to_owned(),
            text: POD.replace("NAME", pod).into_bytes(),
        };
        let error = install(store.path(), &[manifest("a.yaml", "a"), manifest("b.yaml", "Bad_Name")]);
        assert!(matches!(error, Err(Error::Manifest(_))), "{error:?}");
        assert_eq!(fs::read_dir(store.path()).unwrap().count(), 0);
    }
}
