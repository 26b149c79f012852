//! This node's private keys of WireGuard on its disk, a file for each generation.
//!
//! Read [`private_key`]. `wireguard.key` is the first, `wireguard-3.key` the one of generation 3. Only root reads them. Of the
//! directories where they may be the first is where they shall be, which a reboot leaves.
//!
//! What stays true: a file is there whole or not at all; no error and no log says what is in it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cluster::PublicKey;

use crate::files::{FileError, failed, remove, replace_private, whole_of};

/// The name of the file with the key of that generation.
fn name(generation: u32) -> String {
    if generation == 0 { "wireguard.key".to_owned() } else { format!("wireguard-{generation}.key") }
}

/// The generation whose key a file of that name has.
fn generation(file: &str) -> Option<u32> {
    let generation = match file.strip_prefix("wireguard")?.strip_suffix(".key")? {
        "" => 0,
        number => number.strip_prefix('-')?.parse().ok()?,
    };
    (name(generation) == file).then_some(generation)
}

/// The generations of the keys that are there, in order.
pub(crate) fn key_generations(directories: &[PathBuf]) -> Vec<u32> {
    let entries = directories.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| generation(&name)).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The key of that generation: the one that is there, or, if it `makes` one, a new one. One that is found elsewhere than in
/// the first directory is moved there. Where that cannot be written, the next one is taken.
pub(crate) fn private_key(
    directories: &[PathBuf],
    generation: u32,
    makes: bool,
) -> Result<Option<[u8; 32]>, FileError> {
    let file = name(generation);
    for (number, directory) in directories.iter().enumerate() {
        if let Some(key) = read_key(&directory.join(&file))? {
            if number > 0 {
                move_key(&key, &directory.join(&file), directories.get(..number).unwrap_or_default());
            }
            return Ok(Some(key));
        }
    }
    if !makes {
        return Ok(None);
    }
    let random = Path::new("/dev/urandom");
    let mut bytes = [0; 32];
    fs::File::open(random)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(failed("read", random))?;
    let mut refused = None;
    for directory in directories {
        match write_key(&bytes, directory.join(&file)) {
            Ok(path) => {
                tracing::info!(path = %path.display(), "a new WireGuard key was made");
                return Ok(Some(bytes));
            }
            Err(error) => refused = Some(error),
        }
    }
    refused.map_or(Ok(None), Err)
}

fn read_key(path: &Path) -> Result<Option<[u8; 32]>, FileError> {
    match fs::read_to_string(path) {
        // Both kinds of key look the same in base64.
        Ok(text) => {
            let key = text.trim().parse::<PublicKey>();
            // What stands there is nobody's to see, not even where it is wrong.
            let wrong = |_| io::Error::new(io::ErrorKind::InvalidData, "it is not 32 bytes in base64");
            key.map(|key| Some(key.0)).map_err(wrong).map_err(failed("use the key in", path))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn write_key(key: &[u8; 32], path: PathBuf) -> Result<PathBuf, FileError> {
    replace_private(&path, format!("{}\n", PublicKey(*key)).as_bytes())?;
    Ok(path)
}

/// Moves a key that is used already to where it shall be; one that cannot be moved stays.
fn move_key(key: &[u8; 32], from: &Path, to: &[PathBuf]) {
    let Some(file) = from.file_name() else { return };
    for directory in to {
        match write_key(key, directory.join(file)).and_then(|path| remove(from).map(|_| path)) {
            Ok(path) => return tracing::info!(path = %path.display(), "the WireGuard key has moved"),
            Err(error) => tracing::debug!(%error, "the WireGuard key stays where it is"),
        }
    }
}

/// Removes all keys but those of these generations, from wherever they are; returns where they were.
pub(crate) fn forget_keys_but(directories: &[PathBuf], kept: &[u32]) -> Result<Vec<PathBuf>, FileError> {
    let mut gone = Vec::new();
    for generation in key_generations(directories).into_iter().filter(|one| !kept.contains(one)) {
        for path in directories.iter().map(|directory| directory.join(name(generation))) {
            if remove(&path)? {
                gone.push(path);
            }
        }
    }
    for directory in directories {
        remove_halves(directory)?;
    }
    Ok(gone)
}

/// What an agent left that was killed while it wrote one.
fn remove_halves(directory: &Path) -> Result<(), FileError> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    for file in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let whole = whole_of(&file);
        if whole.is_some_and(|whole| generation(whole).is_some()) {
            remove(&directory.join(file))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{forget_keys_but, key_generations, private_key};

    #[test]
    fn a_key_is_made_once_moves_to_where_a_reboot_leaves_it_and_is_forgotten_everywhere() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let [lasting, run] = ["lasting", "run"].map(|name| directory.path().join(name));
        std::fs::create_dir(&run).unwrap();
        let places = [lasting.clone(), run.clone()];
        assert_eq!(private_key(&places, 0, false).unwrap(), None);
        let key = private_key(&places, 0, true).unwrap().unwrap();
        assert!(run.join("wireguard.key").exists(), "there is no better place");
        std::fs::create_dir(&lasting).unwrap();
        for _ in 0..2 {
            assert_eq!(private_key(&places, 0, true).unwrap(), Some(key));
            assert!(lasting.join("wireguard.key").exists() && !run.join("wireguard.key").exists());
        }
        let mode = std::fs::metadata(lasting.join("wireguard.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(run.join("wireguard.key"), "of before").unwrap();
        assert_eq!(forget_keys_but(&places, &[]).unwrap().len(), 2);
        assert_eq!(private_key(&places, 0, false).unwrap(), None);
        let third = private_key(&places, 3, true).unwrap();
        assert!(third.is_some() && lasting.join("wireguard-3.key").exists());
        std::fs::write(lasting.join(".wireguard-2.key.half"), "half").unwrap();
        std::fs::write(lasting.join("wireguard-03.key"), "somebody's").unwrap();
        private_key(&places, 4, true).unwrap();
        assert_eq!(key_generations(&places), [3, 4]);
        assert_eq!(forget_keys_but(&places, &[3]).unwrap(), [lasting.join("wireguard-4.key")]);
        assert_eq!((key_generations(&places), private_key(&places, 3, true).unwrap()), (vec![3], third));
        assert_eq!(std::fs::read_dir(&lasting).unwrap().count(), 2, "half of a key is nobody's");
        std::fs::write(run.join("wireguard.key"), "MySecretIsNotYours").unwrap();
        let error = private_key(&places, 0, true).unwrap_err();
        assert!(!crate::report::told(&error).contains("MySecret"), "{error}");
    }
}
