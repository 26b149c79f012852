//! Where a lab keeps its files, and the lock that says whether it is up.
//!
//! Read [`Home`] first. A lab's files live under `$XDG_RUNTIME_DIR/fairlead-lab`, or for root under
//! `/run/fairlead-lab`, or else under `/tmp/fairlead-lab-<uid>`:
//!
//! ```text
//! <home>/lock              held by the supervisor while it lives: the truth about "up"; its text is the pid
//! <home>/control.sock      where the supervisor answers
//! <home>/supervisor.log    what it has to say
//! <home>/agent.yaml        the configuration that all agents follow
//! <home>/store/            the cluster: manifests, node leases, pod status
//! <home>/node1/            bin, conf, cache, networks, state, agent.log
//! ```
//!
//! What stays true: a home whose lock is free belongs to nobody, whatever else is in it; the supervisor's
//! namespaces and agents cannot outlive it, so removing the directory is all the cleaning there is.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The directory of one lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    name: String,
    path: PathBuf,
}

impl Home {
    /// Makes the directory of a new lab, clearing what a killed one of the same name left. The second value is
    /// the turn of whoever starts a lab: kept until the supervisor holds its own lock, so that two who start
    /// labs at once do not clear each other's directories.
    ///
    /// # Errors
    /// [`Error::AlreadyUp`] when its supervisor lives; [`Error::NoHome`] when nothing can be written.
    pub(crate) fn create(name: &str) -> Result<(Self, Turn)> {
        check_name(name)?;
        if let Some(home) = Self::candidates(name).into_iter().find(Self::is_up) {
            return Err(Error::AlreadyUp { name: home.name });
        }
        let mut tried = Vec::new();
        for home in Self::candidates(name) {
            if !home.has_room_for_sockets() {
                tried.push(format!("{} (too long for the path of a socket)", home.path.display()));
                continue;
            }
            let made = home.make().or_else(|error| match error.kind() {
                // Somebody took the last lab down, and its root with it, in the middle of this.
                io::ErrorKind::NotFound => home.make(),
                _ => Err(error),
            });
            match made {
                Ok(Some(turn)) => return Ok((home, turn)),
                Ok(None) => return Err(Error::AlreadyUp { name: home.name }),
                Err(error) => tried.push(format!("{} ({error})", home.path.display())),
            }
        }
        Err(Error::NoHome { tried: tried.join(", ") })
    }

    /// The home of a running lab.
    ///
    /// # Errors
    /// [`Error::NotUp`] when there is none.
    pub fn find(name: &str) -> Result<Self> {
        check_name(name)?;
        let up = Self::candidates(name).into_iter().find(Self::is_up);
        up.ok_or_else(|| Error::NotUp { name: name.to_owned(), others: Self::all_up() })
    }

    /// Removes what is left of labs of this name that were killed: directories without a supervisor. True if there
    /// was something.
    ///
    /// # Errors
    /// [`Error::Name`]; [`Error::File`].
    pub fn clear_leftovers(name: &str) -> Result<bool> {
        check_name(name)?;
        let mut found = false;
        for home in Self::candidates(name).into_iter().filter(|home| home.path.exists()) {
            let root = home.path.parent().unwrap_or(Path::new("/"));
            // A lab that somebody is starting this moment has no supervisor yet either.
            let turn = File::open(root).and_then(|root| root.lock().map(|()| root));
            let _turn = turn.map_err(Error::file("lock", root))?;
            if home.path.exists() && !home.is_up() {
                home.remove()?;
                found = true;
            }
        }
        Ok(found)
    }

    /// The home the supervisor was told to live in.
    pub fn at(name: &str, path: PathBuf) -> Self {
        Self { name: name.to_owned(), path }
    }

    /// The names of the labs that are up and this user's.
    fn all_up() -> Vec<String> {
        let is_up = |name: &String| Self::candidates(name).iter().any(Self::is_up);
        let mut names: Vec<String> = roots()
            .iter()
            .filter_map(|root| fs::read_dir(root).ok())
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(is_up)
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of manifests.
    pub fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// Where the supervisor answers.
    pub fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// The configuration that all agents follow.
    pub fn agent_config(&self) -> PathBuf {
        self.path.join("agent.yaml")
    }

    /// What the supervisor has to say.
    pub fn log(&self) -> PathBuf {
        self.path.join("supervisor.log")
    }

    /// The files of one node.
    pub fn node(&self, node: &str) -> NodeHome {
        NodeHome { path: self.path.join(node) }
    }

    /// The supervisor's process, when the lab is up.
    pub fn supervisor(&self) -> Option<u32> {
        let mut text = String::new();
        File::open(self.lock_path()).ok()?.read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }

    /// Takes the lab's lock for the life of the returned file. The supervisor does this first.
    ///
    /// # Errors
    /// [`Error::AlreadyUp`] when another supervisor was faster; [`Error::File`].
    pub(crate) fn lock(&self) -> Result<File> {
        let path = self.lock_path();
        let options = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = options.map_err(Error::file("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::AlreadyUp { name: self.name.clone() }),
            Err(TryLockError::Error(source)) => return Err(Error::file("lock", &path)(source)),
        }
        file.set_len(0).map_err(Error::file("write", &path))?;
        writeln!(file, "{}", std::process::id()).map_err(Error::file("write", &path))?;
        Ok(file)
    }

    /// Removes everything. Not finding it is as good.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("remove", &self.path)(error)),
        }
        // The directory that holds the labs goes with the last of them; a refusal means there are others.
        if let Some(root) = self.path.parent() {
            let _ = fs::remove_dir(root);
        }
        Ok(())
    }

    fn candidates(name: &str) -> Vec<Self> {
        roots().into_iter().map(|root| Self { name: name.to_owned(), path: root.join(name) }).collect()
    }

    /// The kernel takes 107 bytes for the path of a socket; the agent of the last node has the longest.
    fn has_room_for_sockets(&self) -> bool {
        self.node("node250").state().join("agent.sock").as_os_str().len() < 108
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }

    fn is_up(&self) -> bool {
        let Ok(file) = File::open(self.lock_path()) else { return false };
        if !matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            return false;
        }
        // A process that was killed gives its memory back before its locks: this one is on its way out.
        let words = self.supervisor().map(|pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default());
        let is_dying = words.is_some_and(|words| words.is_empty());
        !(is_dying && file.lock_shared().is_ok())
    }

    /// `None` when somebody else has just started a lab of this name.
    fn make(&self) -> io::Result<Option<Turn>> {
        let root = self.path.parent().unwrap_or(Path::new("/"));
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        match builder.create(root) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        // /tmp is everybody's: a directory that somebody else laid there is not ours to use.
        let held = fs::symlink_metadata(root)?;
        if !held.is_dir() || held.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "belongs to somebody else"));
        }
        let turn = File::open(root)?;
        turn.lock()?;
        if self.is_up() {
            return Ok(None);
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        builder.create(&self.path)?;
        builder.create(self.store())?;
        Ok(Some(Turn { _root: turn }))
    }
}

/// The right to start a lab, among all who share a place for labs.
#[derive(Debug)]
pub(crate) struct Turn {
    _root: File,
}

/// The files of one node: its own CNI directories, so that nodes share nothing but the underlay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeHome {
    path: PathBuf,
}

impl NodeHome {
    /// The plugins, by name.
    pub fn bin(&self) -> PathBuf {
        self.path.join("bin")
    }

    /// The conflists; the agent writes here.
    pub fn conf(&self) -> PathBuf {
        self.path.join("conf")
    }

    /// The chain runner's results.
    pub fn cache(&self) -> PathBuf {
        self.path.join("cache")
    }

    /// The address allocations.
    pub fn networks(&self) -> PathBuf {
        self.path.join("networks")
    }

    /// What the agent leaves for the plugin, and its socket.
    pub fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    /// What the agent has to say.
    pub fn agent_log(&self) -> PathBuf {
        self.path.join("agent.log")
    }

    /// Makes the directories and lays a link to `program` in `bin` under the name of each plugin.
    pub(crate) fn make(&self, program: &Path, plugins: &[String]) -> Result<()> {
        for directory in [self.bin(), self.conf(), self.cache(), self.networks(), self.state()] {
            fs::create_dir_all(&directory).map_err(Error::file("make", &directory))?;
        }
        for plugin in plugins {
            let link = self.bin().join(plugin);
            std::os::unix::fs::symlink(program, &link).map_err(Error::file("link", &link))?;
        }
        Ok(())
    }
}

/// Whether a lab can be called so.
///
/// # Errors
/// [`Error::Name`].
pub fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 40 || name.starts_with('-') || !name.chars().all(allowed) {
        return Err(Error::Name { name: name.to_owned() });
    }
    Ok(())
}

/// Where labs may live, the best first.
fn roots() -> Vec<PathBuf> {
    let uid = rustix::process::geteuid();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let mut roots: Vec<PathBuf> = runtime.map(|path| path.join("fairlead-lab")).into_iter().collect();
    if uid.is_root() {
        roots.push(PathBuf::from("/run/fairlead-lab"));
    }
    roots.push(PathBuf::from(format!("/tmp/fairlead-lab-{}", uid.as_raw())));
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_leave_the_directory_is_refused() {
        for name in ["", "..", "a/b", "-x", "Lab", &"a".repeat(41)] {
            assert!(matches!(Home::find(name), Err(Error::Name { .. })), "{name:?} was taken");
        }
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_passed_over() {
        let home = |length: usize| Home::at("one", PathBuf::from(format!("/{}", "x".repeat(length - 1))));
        let most = 107 - "/node250/state/agent.sock".len();
        assert!(home(most).has_room_for_sockets());
        assert!(!home(most + 1).has_room_for_sockets());
    }

    #[test]
    fn the_directory_of_a_lab_that_is_being_started_is_no_leftover() {
        let name = format!("starting-{}", std::process::id());
        let (home, turn) = Home::create(&name).unwrap();
        let clearing = std::thread::spawn({
            let name = name.clone();
            move || Home::clear_leftovers(&name).unwrap()
        });
        let lock = home.lock().unwrap();
        drop(turn);
        assert!(!clearing.join().unwrap());
        drop(lock);
        assert!(Home::clear_leftovers(&name).unwrap());
        assert!(!home.path().exists());
    }

    #[test]
    fn a_home_is_up_exactly_while_its_lock_is_held() {
        let root = std::env::temp_dir().join(format!("fairlead-home-{}", std::process::id()));
        let home = Home::at("one", root.join("one"));
        drop(home.make().unwrap());
        assert!(!home.is_up());
        let lock = home.lock().unwrap();
        assert!(home.is_up());
        assert_eq!(home.supervisor(), Some(std::process::id()));
        drop(lock);
        assert!(!home.is_up());
        home.remove().unwrap();
        assert!(!root.exists());
    }
}
