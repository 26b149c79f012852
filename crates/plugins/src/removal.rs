//! Taking the plugins off a node that Fairlead leaves: what they made for pods of the agent's network, and themselves.
//!
//! Read [`remove`]. First every pod of the network is detached as its runtime would have done it, so it loses its network;
//! then nothing is in use any more, and the tables, the addresses and the programs go. Programs that are not ours stay,
//! also under a plugin's name. Without a conflist there is no network to detach anybody from: what is left is removed all
//! the same. Doing it twice is doing it once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cni::{Cache, ConfList};
use kernel::nft::{Nft, Transaction};
use netstate::PLUGIN_TABLES;

use crate::PLUGINS;
use crate::install::BINARY;
use crate::ipam::host_local;
use crate::stale;

/// What is to be removed, and where it is.
#[derive(Debug, Clone, Copy)]
pub struct Removal<'a> {
    /// The agent's conflist.
    pub conflist: &'a Path,
    /// The container runtime's directory of plugins.
    pub bin_dir: &'a Path,
    /// The container runtime's cache of results.
    pub cache_dir: &'a Path,
}

/// Removes it, and says in `said` what was removed, a line each.
///
/// # Errors
/// What was tried and why it failed, as text. Where a pod cannot be detached, all that is needed to try again stays; of the
/// rest, what could be removed is.
pub fn remove(removal: Removal<'_>, said: &mut Vec<String>) -> Result<(), String> {
    if removal.conflist.exists() {
        detach(removal, said)?;
    }
    let mut errors = Vec::new();
    errors.extend(remove_tables(said).err().map(|error| error.to_string()));
    for plugin in PLUGINS {
        let link = removal.bin_dir.join(plugin.name());
        if fs::read_link(&link).is_ok_and(|target| target == Path::new(BINARY)) {
            errors.extend(remove_file(link, said).err());
        }
    }
    errors.extend(remove_file(removal.bin_dir.join(BINARY), said).err());
    if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
}

/// Detaches every pod of the network; only then are the records of who has which address of no use.
fn detach(removal: Removal<'_>, said: &mut Vec<String>) -> Result<(), String> {
    let list = ConfList::load(removal.conflist).map_err(|error| error.to_string())?;
    let detached = stale::detach_all(&list, &Cache::new(removal.cache_dir))?;
    said.extend(detached.iter().map(|attachment| format!("- attachment {attachment}")));
    let data_dir = stale::data_directory(&list);
    remove_directory(&data_dir.join(&list.name), said)?;
    // The index by container, which is of no use to other people's host-local.
    remove_directory(&data_dir.join(host_local::INDEX), said)
}

fn remove_tables(said: &mut Vec<String>) -> Result<(), kernel::Error> {
    let mut nft = Nft::open()?;
    let tables = nft.tables()?.into_iter().filter(|table| PLUGIN_TABLES.contains(&table.name.as_str()));
    for table in tables {
        let mut transaction = Transaction::new();
        transaction.delete_table(&table);
        nft.commit(transaction)?;
        said.push(format!("- nft table {}", table.name));
    }
    Ok(())
}

fn remove_file(path: PathBuf, said: &mut Vec<String>) -> Result<(), String> {
    match fs::remove_file(&path) {
        Ok(()) => said.push(format!("- file {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("could not remove {}: {error}", path.display())),
    }
    Ok(())
}

fn remove_directory(path: &Path, said: &mut Vec<String>) -> Result<(), String> {
    match fs::remove_dir_all(path) {
        Ok(()) => said.push(format!("- directory {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("could not remove {}: {error}", path.display())),
    }
    Ok(())
}
