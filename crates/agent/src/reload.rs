//! The configuration file, followed while the agent runs.
//!
//! Read [`ConfigFile::open`] and [`ConfigFile::follow`]. The last good text is kept in the state directory, so that an
//! agent that starts while the file is broken goes on with what it had. The directory of the file is listened to, not the
//! file: an editor replaces it by a rename, and a kubelet that updates a ConfigMap's volume replaces a link beside it. flannel's
//! net-conf.json that the file names is followed with it; one in etcd is asked for now and then (`flannel_network.rs`).
//!
//! What stays true: a file that cannot be used changes nothing and is told once for each of its texts.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

use crate::config::net_conf::{self, Document};
use crate::config::{Config, ConfigError};
use crate::event::Event;
use crate::files;
use crate::flannel_network::{NetworkKeys, again};
use crate::report::told;

/// The configuration file and what it said last.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    path: PathBuf,
    kept: PathBuf,
    text: String,
    /// The same in a text that names no other file.
    whole: String,
    /// Where the net-conf.json is that the file names, and what that said, or why it could not be read.
    beside: Option<(Document, Result<String, String>)>,
    keys: NetworkKeys,
}

/// What was found at the start.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: ConfigFile,
    pub(crate) config: Config,
    /// Why the file itself is not used, if it is not.
    pub(crate) refused: Option<String>,
}

impl ConfigFile {
    /// The name under which the last good text is kept in the state directory.
    pub(crate) const KEPT: &'static str = "config.yaml";

    /// Reads the file; if it cannot be used, what an earlier run of this boot found good.
    ///
    /// # Errors
    /// When neither can be used: why the file cannot.
    pub(crate) fn open(path: &Path, state_dir: &Path, keys: NetworkKeys) -> Result<Opened, ConfigError> {
        let kept = state_dir.join(Self::KEPT);
        let path = path.to_owned();
        let mut file = Self { path, kept, text: String::new(), whole: String::new(), beside: None, keys };
        match file.read() {
            Ok(config) => Ok(Opened { file, config, refused: None }),
            Err(error) => {
                let Ok(config) = Config::read(&file.kept) else { return Err(error) };
                Ok(Opened { file, config, refused: Some(told(&error)) })
            }
        }
    }

    /// Removes what was kept; true if something was.
    pub(crate) fn forget(state_dir: &Path) -> Result<bool, files::FileError> {
        files::remove(&state_dir.join(Self::KEPT))
    }

    /// Keeps the text for an agent that starts with a worse one.
    pub(crate) fn keep(&self) {
        if let Err(error) = files::replace(&self.kept, self.whole.as_bytes()) {
            tracing::warn!(error = %told(&error), "the configuration was not kept for the next start");
        }
    }

    /// Sends every new version of the file, good or bad, until nobody listens or it can no longer be watched.
    pub(crate) fn follow(mut self, events: &Sender<Event>) {
        if let Err(error) = self.listen(events) {
            let path = self.path.display();
            tracing::warn!(%error, "changes of {path} are not seen any more; hint: restart the agent after a change");
        }
    }

    fn listen(&mut self, events: &Sender<Event>) -> Result<(), rustix::io::Errno> {
        let notifier = inotify::init(CreateFlags::CLOEXEC)?;
        let wanted = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE
            | WatchFlags::ONLYDIR;
        let directory =
            |path: &Path| path.parent().filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned);
        let own = directory(&self.path).unwrap_or_else(|| PathBuf::from("."));
        let own = inotify::add_watch(&notifier, &own, wanted)?;
        // It may have changed between the first reading and now.
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&notifier, &mut buffer);
        loop {
            // Once more is no harm. One that is not there yet is heard of with the next change of the file itself.
            if let Some((Document::File(path), _)) = &self.beside
                && let Some(directory) = directory(path)
            {
                let _ = inotify::add_watch(&notifier, &directory, wanted);
            }
            // Once for all that is heard of at a time.
            if reader.is_buffer_empty()
                && let Some(news) = self.news()
                && events.send(Event::Configuration(Box::new(news))).is_err()
            {
                return Ok(());
            }
            if reader.is_buffer_empty() && self.is_to_be_asked_for() && !is_readable_soon(&notifier)? {
                continue;
            }
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::IGNORED) && event.wd() == own => {
                    return Err(rustix::io::Errno::NOENT);
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads the file and what it says.
    fn read(&mut self) -> Result<Config, ConfigError> {
        // A text that cannot be read is none that the next one could be the same as.
        self.text.clear();
        let read = fs::read_to_string(&self.path);
        self.text = read.map_err(|source| ConfigError::Read { path: self.path.clone(), source })?;
        let mut beside = None;
        let loaded = Config::load_with(&self.text, |document| {
            let read = read_document(&mut self.keys, document);
            beside = Some((
                document.clone(),
                read.as_ref().map_or_else(|error| Err(told(error)), |text| Ok(text.clone())),
            ));
            read
        });
        self.beside = beside;
        let loaded =
            loaded.map_err(|fault| ConfigError::File { path: self.path.clone(), fault: Box::new(fault) })?;
        self.whole = loaded.whole;
        Ok(loaded.config)
    }

    /// Whether the net-conf.json says something else than before. A file that is away or empty is about to be written.
    fn has_news_beside(&mut self) -> bool {
        let Some((document, before)) = &self.beside else { return false };
        let now = read_document(&mut self.keys, document).map_err(|error| told(&error));
        let is_half = matches!(document, Document::File(_)) && now.as_ref().map_or(true, String::is_empty);
        !is_half && now != *before
    }

    /// Whether the net-conf.json is where nothing tells of its changes.
    fn is_to_be_asked_for(&self) -> bool {
        matches!(self.beside, Some((Document::Etcd(_), _)))
    }

    /// The configuration, or what is wrong with it, if the file says something else than before.
    fn news(&mut self) -> Option<Result<Config, String>> {
        match fs::read(&self.path) {
            Ok(text) if text == self.text.as_bytes() && !self.has_news_beside() => return None,
            // One that is about to be written: an empty one would be a good one, and undo everything for a moment.
            Ok(text) if text.is_empty() => return None,
            // One that is away for a moment is about to be replaced.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            _ => {}
        }
        let read = self.read();
        if read.is_ok() {
            self.keep();
        }
        Some(read.map_err(|error| told(&error)))
    }
}

fn read_document(keys: &mut NetworkKeys, document: &Document) -> Result<String, ConfigError> {
    match document {
        Document::File(path) => net_conf::read(path),
        Document::Etcd(prefix) => keys.text(prefix),
    }
}

/// Waits for an event, and not longer than until etcd is to be asked again; false if there was none.
fn is_readable_soon(notifier: &impl AsFd) -> Result<bool, rustix::io::Errno> {
    let mut polled = [PollFd::new(notifier, PollFlags::IN)];
    let pause = again();
    let pause = Timespec { tv_sec: pause.as_secs().cast_signed(), tv_nsec: pause.subsec_nanos().into() };
    match poll(&mut polled, Some(&pause)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::mpsc::{self, Receiver};
    use std::time::Duration;

    use store::Location;

    use super::{ConfigFile, Opened};
    use crate::config::{Config, ConfigError};
    use crate::event::Event;
    use crate::flannel_network::NetworkKeys;

    fn open(path: &Path, state_dir: &Path) -> Result<Opened, ConfigError> {
        ConfigFile::open(path, state_dir, NetworkKeys::of(&Location::Directory(state_dir.to_owned())))
    }

    fn next(events: &Receiver<Event>) -> Result<Config, String> {
        match events.recv_timeout(Duration::from_secs(30)) {
            Ok(Event::Configuration(news)) => *news,
            other => panic!("{other:?}"),
        }
    }

    fn following(file: ConfigFile) -> Receiver<Event> {
        let (sender, events) = mpsc::channel();
        std::thread::spawn(move || file.follow(&sender));
        events
    }

    #[test]
    fn a_broken_file_is_told_and_a_mended_one_is_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.yaml");
        fs::write(&path, "vxlan: {vni: 7}\n").unwrap();
        let opened = open(&path, directory.path()).unwrap();
        assert_eq!((opened.config.vxlan.vni, &opened.refused), (7, &None));
        let events = following(opened.file);
        fs::write(&path, "vxlan: {vin: 8}\n").unwrap();
        // A file that is written in place may be seen empty in between, and an empty one is a good one.
        let error = loop {
            if let Err(error) = next(&events) {
                break error;
            }
        };
        assert!(error.contains("agent.yaml") && error.contains("did you mean vni?"), "{error}");
        fs::write(directory.path().join("new"), "vxlan: {vni: 8}\n").unwrap();
        fs::rename(directory.path().join("new"), &path).unwrap();
        assert_eq!(next(&events).unwrap().vxlan.vni, 8);
    }

    #[test]
    fn a_volume_of_a_config_map_is_followed_as_a_kubelet_replaces_it() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let lay = |version: &str, text: &str| {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("config.yaml"), text).unwrap();
            std::os::unix::fs::symlink(version, at("..data_tmp")).unwrap();
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
        };
        lay("..1", "vxlan: {vni: 7}\n");
        std::os::unix::fs::symlink("..data/config.yaml", at("config.yaml")).unwrap();
        let state = tempfile::tempdir().unwrap();
        let opened = open(&at("config.yaml"), state.path()).unwrap();
        let events = following(opened.file);
        lay("..2", "vxlan: {vni: 8}\n");
        assert_eq!(next(&events).unwrap().vxlan.vni, 8);
    }

    #[test]
    fn the_net_conf_that_the_file_names_is_followed_too_and_not_needed_for_the_next_start() {
        let (directory, flannels) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (path, net_conf) = (directory.path().join("agent.yaml"), flannels.path().join("net-conf.json"));
        let say = |vni: u32| {
            let half = flannels.path().join("half");
            fs::write(
                &half,
                format!(r#"{{"Network": "10.20.0.0/16", "Backend": {{"Type": "vxlan", "VNI": {vni}}}}}"#),
            )
            .unwrap();
            fs::rename(half, &net_conf).unwrap();
        };
        say(7);
        fs::write(&path, format!("flannel: {{netConf: {}}}\nudp: {{port: 9}}\n", net_conf.display()))
            .unwrap();
        let opened = open(&path, directory.path()).unwrap();
        assert_eq!((opened.config.vxlan.vni, opened.config.udp.port), (7, 9));
        opened.file.keep();
        let events = following(opened.file);
        say(8);
        assert_eq!(next(&events).unwrap().vxlan.vni, 8);
        say(0);
        let error = next(&events).unwrap_err();
        assert!(error.contains("Backend.VNI is 0"), "{error}");
        fs::remove_file(&net_conf).unwrap();
        let Opened { config, refused, .. } = open(&path, directory.path()).unwrap();
        assert_eq!((config.vxlan.vni, config.udp.port), (8, 9));
        assert!(refused.unwrap().contains("net-conf.json"));
    }

    #[test]
    fn an_agent_that_starts_with_a_broken_file_goes_on_with_the_last_good_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.yaml");
        fs::write(&path, "vxlan: {vni: 7}\n").unwrap();
        open(&path, directory.path()).unwrap().file.keep();
        fs::write(&path, "vxlan: [\n").unwrap();
        let Opened { config, refused, .. } = open(&path, directory.path()).unwrap();
        assert_eq!(config.vxlan.vni, 7);
        assert!(refused.unwrap().contains("agent.yaml"));
        // What has a net-conf.json that nobody can read is no better.
        fs::write(&path, "flannel: {etcdPrefix: /coreos.com/network, netConf: etcd}\n").unwrap();
        let Opened { config, refused, .. } = open(&path, directory.path()).unwrap();
        assert_eq!(config.vxlan.vni, 7);
        assert!(refused.unwrap().contains("flannel.netConf is etcd, and the store, dir:"));
        let nothing_kept = tempfile::tempdir().unwrap();
        assert!(open(&path, nothing_kept.path()).is_err());
    }
}
