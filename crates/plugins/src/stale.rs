//! Attachments that are gone and that nobody deleted: after a reboot, or a runtime that lost its memory.
//!
//! Read [`collect`]. Every attachment of the agent's network begins with an address that host-local writes down and ends
//! with giving it back, so who holds an address without a link on the host is gone, or is being attached right now. Of
//! the latter nobody knows but the runtime, so an address that was taken within [`YOUNG`], in this boot, is left alone. The
//! others are deleted as their runtime would have deleted them: the whole list, last plugin first, in this process. DEL
//! goes by the container's id, which is never given twice, so one that comes after all finds nothing and is content.
//!
//! That is not GC, which says whom to keep: an ADD between the looking and the removing would lose what it has made.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cni::{Attachment, Cache, ConfList, Json, Runner, RuntimeArguments};
use kernel::link;
use kernel::netlink::{Protocol, Socket};
use rustix::time::{ClockId, clock_gettime};

use crate::ipam::host_local::{self, DATA_DIR};
use crate::owner::Owner;

/// For how long after an address was taken its link may still be missing. A runtime gives up long before.
const YOUNG: Duration = Duration::from_secs(300);

/// An attachment that holds an address, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Holder {
    attachment: Attachment,
    since: SystemTime,
}

/// The clock, as far as it matters here.
#[derive(Debug, Clone, Copy)]
struct Clock {
    now: SystemTime,
    /// When this boot began.
    boot: SystemTime,
}

/// Deletes the attachments of a list that are gone, and returns them as `<containerID>/<ifname>`. To be called in the
/// host's network namespace.
///
/// # Errors
/// What was tried and why it failed, as text; what could be deleted is.
pub fn collect(conflist: &Path) -> Result<Vec<String>, String> {
    collect_in(conflist, Path::new(Cache::DEFAULT_DIRECTORY))
}

/// The same with the runtime's cache elsewhere.
///
/// # Errors
/// As above.
pub fn collect_in(conflist: &Path, cache: &Path) -> Result<Vec<String>, String> {
    let list = ConfList::load(conflist).map_err(|error| error.to_string())?;
    let holders = holders(&data_directory(&list), &list.name)?;
    let gone = gone(&list.name, holders, &aliases()?, Clock::read());
    delete(&list, &Cache::new(cache), gone)
}

/// Deletes every attachment of a list that holds an address, whether it is in use or not.
pub(crate) fn detach_all(list: &ConfList, cache: &Cache) -> Result<Vec<String>, String> {
    let holders = holders(&data_directory(list), &list.name)?;
    delete(list, cache, holders.into_iter().map(|holder| holder.attachment).collect())
}

fn delete(list: &ConfList, cache: &Cache, attachments: Vec<Attachment>) -> Result<Vec<String>, String> {
    // The directories of other programs are not looked into: those plugins are all inside.
    let runner = Runner { path: Vec::new(), cache: cache.clone(), resolver: Some(crate::find) };
    let mut deleted = Vec::new();
    let mut errors = Vec::new();
    for attachment in attachments {
        let named = format!("{}/{}", attachment.container_id, attachment.ifname);
        let Attachment { container_id, ifname } = attachment;
        let arguments = RuntimeArguments { container_id, ifname, ..RuntimeArguments::default() };
        match runner.del(list, &arguments) {
            Ok(()) => deleted.push(named),
            Err(error) => errors.push(format!("delete {named}: {error}")),
        }
    }
    if errors.is_empty() { Ok(deleted) } else { Err(errors.join("; ")) }
}

/// Where the network's host-local keeps its addresses.
pub(crate) fn data_directory(list: &ConfList) -> PathBuf {
    let told = list.plugins.iter().find_map(|plugin| match &plugin.document {
        Json::Object(members) => members.iter().find_map(|(key, value)| match value {
            Json::String(text) if key == "dataDir" => Some(text.as_str()),
            _ => None,
        }),
        _ => None,
    });
    told.unwrap_or(DATA_DIR).into()
}

/// Who holds an address of the network; of several addresses of one attachment the newest counts.
fn holders(data_dir: &Path, network: &str) -> Result<Vec<Holder>, String> {
    let mut holders: Vec<Holder> = Vec::new();
    for reserved in host_local::every_reserved(data_dir).map_err(|error| error.to_string())? {
        let Some(attachment) = reserved.holder.filter(|_| reserved.network == network) else { continue };
        let path = data_dir.join(network).join(reserved.address.to_string());
        // One that was given back in between is nobody's.
        let Ok(since) = std::fs::metadata(&path).and_then(|file| file.modified()) else { continue };
        match holders.iter_mut().find(|holder| holder.attachment == attachment) {
            Some(holder) => holder.since = holder.since.max(since),
            None => holders.push(Holder { attachment, since }),
        }
    }
    Ok(holders)
}

/// The aliases of the host's links.
fn aliases() -> Result<HashSet<String>, String> {
    let links =
        Socket::open(Protocol::Route).and_then(|mut socket| link::list(&mut socket, link::Filter::default()));
    let links = links.map_err(|error| error.to_string())?;
    Ok(links.into_iter().filter_map(|link| link.alias).collect())
}

/// Those that have no link and are not being attached right now.
fn gone(network: &str, holders: Vec<Holder>, aliases: &HashSet<String>, clock: Clock) -> Vec<Attachment> {
    let is_young = |since: SystemTime| {
        // A file of the future is one of now by a clock that was set back.
        since >= clock.boot && clock.now.duration_since(since).is_ok_and(|age| age < YOUNG)
            || since > clock.now
    };
    let is_there =
        |attachment: &Attachment| aliases.contains(&Owner::new(network, attachment.clone()).alias());
    let gone = holders.into_iter().filter(|holder| !is_young(holder.since) && !is_there(&holder.attachment));
    gone.map(|holder| holder.attachment).collect()
}

impl Clock {
    fn read() -> Self {
        let now = SystemTime::now();
        let up = clock_gettime(ClockId::Boottime);
        let up = Duration::from_secs(u64::try_from(up.tv_sec).unwrap_or_default());
        Self { now, boot: now.checked_sub(up).unwrap_or(SystemTime::UNIX_EPOCH) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container_id: &str) -> Attachment {
        Attachment { container_id: container_id.to_owned(), ifname: "eth0".to_owned() }
    }

    /// Booted 1,000 seconds ago.
    fn clock() -> Clock {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        Clock { now, boot: now - Duration::from_secs(1000) }
    }

    fn found(age: i64, aliases: &[String]) -> bool {
        let clock = clock();
        let span = Duration::from_secs(age.unsigned_abs());
        let since = if age < 0 { clock.now + span } else { clock.now - span };
        let holders = vec![Holder { attachment: attachment("pod"), since }];
        !gone("fairlead", holders, &aliases.iter().cloned().collect(), clock).is_empty()
    }

    #[test]
    fn who_has_a_link_is_there_however_long() {
        let alias = Owner::new("fairlead", attachment("pod")).alias();
        assert!(!found(900, std::slice::from_ref(&alias)) && !found(5000, &[alias]));
        assert!(found(900, &[Owner::new("other", attachment("pod")).alias()]));
    }

    #[test]
    fn who_is_being_attached_is_left_alone_and_who_was_so_before_the_boot_is_not() {
        assert!(!found(10, &[]), "its link may be a moment away");
        assert!(found(301, &[]));
        assert!(found(1001, &[]), "nothing of an older boot is there any more");
        let mut clock = clock();
        clock.boot = clock.now - Duration::from_secs(5);
        let since = clock.now - Duration::from_secs(10);
        let holders = vec![Holder { attachment: attachment("pod"), since }];
        assert_eq!(gone("fairlead", holders, &HashSet::new(), clock), [attachment("pod")]);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_nobody_old() {
        assert!(!found(-500, &[]));
    }
}
