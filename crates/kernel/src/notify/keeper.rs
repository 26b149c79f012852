//! The manager's side: descriptors kept for a service, and passed to its next life.
//!
//! Read [`Keeper`].
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::{MOST, SOCKET};
use crate::Error;
use crate::activation::{FIRST, UNNAMED};

/// How many are kept for a service; what comes beyond is closed.
const MOST_KEPT: usize = 64;

/// The longest message that is understood, in bytes.
const LONGEST: usize = 4096;

/// Keeps descriptors for one service. A thread has to [`serve`](Self::serve); before each start of the service its
/// command is [told](Self::pass).
#[derive(Debug)]
pub struct Keeper {
    socket: UnixDatagram,
    name: String,
    kept: Mutex<BTreeMap<String, Vec<OwnedFd>>>,
}

impl Keeper {
    /// Listens at an abstract address of this name, in the calling thread's network namespace: the service has to be in
    /// the same.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn open(name: &str) -> Result<Self, Error> {
        let bind = || {
            let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let failed = |source| Error::System { tried: "listen to a service", source };
        Ok(Self { socket: bind().map_err(failed)?, name: name.to_owned(), kept: Mutex::default() })
    }

    /// Does what the service says, until [`close`](Self::close).
    pub fn serve(&self) {
        loop {
            let mut watched = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut watched, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            self.hear(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner));
            let [socket] = watched;
            if socket.revents().contains(PollFlags::HUP) {
                return;
            }
        }
    }

    /// Ends [`serve`](Self::serve).
    pub fn close(&self) {
        // It is a socket, and open.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Has a command, which is to be started next, know of the keeper, and of what it keeps; with descriptors to be
    /// passed, the command's environment is this process's with the changes that were made to the command before.
    ///
    /// # Errors
    /// When there are no descriptors to be had, or a part of the command holds a zero byte.
    pub fn pass(&self, command: &mut Command) -> Result<(), Error> {
        let failed = |source| Error::System { tried: "pass descriptors to a service", source };
        command.env(SOCKET, format!("@{}", self.name));
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // What a service said last may not have been heard yet.
        self.hear(&mut kept);
        let (mut names, mut descriptors) = (Vec::new(), Vec::new());
        for (name, some) in &*kept {
            for descriptor in some {
                names.push(name.as_str());
                descriptors.push(descriptor.try_clone().map_err(failed)?);
            }
        }
        if descriptors.is_empty() {
            return Ok(());
        }
        let count = descriptors.len().to_string();
        command.env("LISTEN_FDS", count).env("LISTEN_FDNAMES", names.join(":")).env_remove("LISTEN_PID");
        let mut image = Image::of(command, descriptors).map_err(failed)?;
        // SAFETY: what runs between fork and exec allocates nothing and takes no lock.
        unsafe { command.pre_exec(move || Err(image.become_it())) };
        Ok(())
    }

    /// Hears all that the service has said by now.
    fn hear(&self, kept: &mut BTreeMap<String, Vec<OwnedFd>>) {
        let mut text = [0; LONGEST];
        loop {
            let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
            let mut control = RecvAncillaryBuffer::new(&mut room);
            let mut into = [IoSliceMut::new(&mut text)];
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let length = match recvmsg(&self.socket, &mut into, &mut control, flags) {
                Ok(message) if message.bytes > 0 => message.bytes,
                Err(Errno::INTR) => continue,
                // Nothing more, or closed.
                _ => return,
            };
            let came = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            });
            let came: Vec<OwnedFd> = came.flatten().collect();
            heed(kept, &String::from_utf8_lossy(text.get(..length).unwrap_or_default()), came);
        }
    }
}

/// Does what a message says. Descriptors that it does not give to be kept are closed, which is all that a barrier asks.
fn heed(kept: &mut BTreeMap<String, Vec<OwnedFd>>, text: &str, came: Vec<OwnedFd>) {
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let name = value("FDNAME").unwrap_or(UNNAMED);
    if value("FDSTOREREMOVE") == Some("1") {
        kept.remove(name);
    } else if value("FDSTORE") == Some("1") {
        let room = MOST_KEPT.saturating_sub(kept.values().map(Vec::len).sum());
        kept.entry(name.to_owned()).or_default().extend(came.into_iter().take(room));
    }
}

/// All that a process is to be, laid out before there is one: between fork and exec nothing can be allocated.
struct Image {
    descriptors: Vec<OwnedFd>,
    /// Where they are while their final numbers are being made free.
    aside: Vec<i32>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    /// `LISTEN_PID=`, and room for a number.
    own: Vec<u8>,
    argv: Pointers,
    envp: Pointers,
}

/// Room for what exec wants, filled in the new process.
struct Pointers(Vec<*const libc::c_char>);

// SAFETY: nothing is read or written through them but by exec, in the process that has filled them in.
unsafe impl Send for Pointers {}
// SAFETY: as above.
unsafe impl Sync for Pointers {}

const OWN: &[u8] = b"LISTEN_PID=";

impl Image {
    fn of(command: &Command, descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
        let words = [command.get_program()].into_iter().chain(command.get_args());
        let arguments: Vec<CString> = words.map(text).collect::<Result<_, _>>()?;
        let mut variables: BTreeMap<OsString, OsString> = env::vars_os().collect();
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => drop(variables.insert(name.to_owned(), value.to_owned())),
                None => drop(variables.remove(name)),
            }
        }
        let joined = |(name, value): (OsString, OsString)| {
            CString::new([name.as_bytes(), value.as_bytes()].join(&b'=')).map_err(io::Error::from)
        };
        let environment: Vec<CString> = variables.into_iter().map(joined).collect::<Result<_, _>>()?;
        Ok(Self {
            aside: vec![0; descriptors.len()],
            descriptors,
            // Behind the last one there is a null.
            argv: Pointers(vec![ptr::null(); arguments.len() + 1]),
            envp: Pointers(vec![ptr::null(); environment.len() + 2]),
            arguments,
            environment,
            // Ten digits, and the zero behind them.
            own: [OWN, &[0; 11]].concat(),
        })
    }

    /// Makes the calling process, which has just been forked, what it is to be; returns only when it cannot.
    fn become_it(&mut self) -> io::Error {
        if let Err(error) = self.place_descriptors() {
            return error;
        }
        self.write_own_number();
        let texts = [(&mut self.argv, &self.arguments), (&mut self.envp, &self.environment)];
        for (pointers, texts) in texts {
            pointers.0.iter_mut().zip(texts).for_each(|(pointer, text)| *pointer = text.as_ptr());
        }
        if let Some(pointer) = self.envp.0.get_mut(self.environment.len()) {
            *pointer = self.own.as_ptr().cast();
        }
        let (argv, envp) = (self.argv.0.as_ptr(), self.envp.0.as_ptr());
        // SAFETY: both arrays are of pointers to texts that end with a zero and live as long as `self`, and end with a
        // null; the first of the arguments is the program.
        unsafe { libc::execvpe(*argv, argv, envp) };
        io::Error::last_os_error()
    }

    /// Gives the descriptors their final numbers, from [`FIRST`] on, where exec leaves them open.
    fn place_descriptors(&mut self) -> io::Result<()> {
        let behind = self.descriptors.iter().fold(FIRST, |number, _| number + 1);
        for (aside, descriptor) in self.aside.iter_mut().zip(&self.descriptors) {
            // SAFETY: takes no pointers.
            *aside = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, behind) };
            if *aside < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        for (number, aside) in (FIRST..).zip(&self.aside) {
            // SAFETY: takes no pointers. What had the number before is closed in this process alone, which runs nothing
            // but exec any more.
            if unsafe { libc::dup2(*aside, number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    fn write_own_number(&mut self) {
        let mut number = std::process::id();
        let mut digits = [0; 10];
        let mut from = digits.len();
        while let Some(at) = from.checked_sub(1).filter(|_| number > 0) {
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            from = at;
        }
        let digits = &digits[from..];
        if let Some(room) = self.own.get_mut(OWN.len()..OWN.len() + digits.len()) {
            room.copy_from_slice(digits);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::notify::Notifier;

    /// A keeper of a name of its own, and the way to it.
    fn keeper(name: &str) -> (Arc<Keeper>, Notifier) {
        let keeper = Arc::new(Keeper::open(&format!("fairlead-test-{name}-{}", std::process::id())).unwrap());
        let serving = Arc::clone(&keeper);
        thread::spawn(move || serving.serve());
        let notifier = Notifier::to(format!("@{}", keeper.name).as_ref()).unwrap();
        (keeper, notifier)
    }

    fn file(text: &str) -> File {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), text).unwrap();
        File::open(path.path()).unwrap()
    }

    /// What a shell that is passed the descriptors says of them.
    fn shell(keeper: &Keeper, script: &str) -> String {
        #[allow(clippy::disallowed_methods)]
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        keeper.pass(&mut command).unwrap();
        let output = command.output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn what_is_kept_is_passed_to_the_next_life_by_name_until_it_is_given_up() {
        let (keeper, notifier) = keeper("passing");
        let [a, b, c] = ["a", "b", "c"].map(file);
        notifier.ready().unwrap();
        notifier.keep("one", &[a.as_fd(), b.as_fd()]).unwrap();
        notifier.keep("two", &[c.as_fd()]).unwrap();
        drop((a, b, c));
        let script =
            "test $LISTEN_PID = $$ && echo $LISTEN_FDS $LISTEN_FDNAMES $(cat <&3) $(cat <&4) $(cat <&5)";
        assert_eq!(shell(&keeper, script), "3 one:one:two a b c\n");
        notifier.give_up("one").unwrap();
        assert!(notifier.barrier(Duration::from_secs(60)).unwrap());
        assert_eq!(shell(&keeper, "echo $LISTEN_FDS $LISTEN_FDNAMES"), "1 two\n");
        notifier.give_up("two").unwrap();
        assert_eq!(shell(&keeper, "echo $LISTEN_FDS; echo $NOTIFY_SOCKET"), format!("\n@{}\n", keeper.name));
        keeper.close();
    }

    #[test]
    fn systemds_own_tool_is_understood() {
        let (keeper, _) = keeper("tool");
        let tool = |words: &str| {
            #[allow(clippy::disallowed_methods)]
            let mut command = Command::new("sh");
            command.args(["-c", &format!("exec 7</dev/null; exec systemd-notify {words}")]);
            command.env(SOCKET, format!("@{}", keeper.name)).status().is_ok_and(|status| status.success())
        };
        if !tool("--ready") {
            harness::not_run("systemd-notify is not there");
            return;
        }
        if !tool("--fd=7 --fdname=theirs --no-block") {
            harness::not_run("this systemd-notify passes no descriptors");
            return;
        }
        assert_eq!(shell(&keeper, "echo $LISTEN_FDS $LISTEN_FDNAMES"), "1 theirs\n");
        keeper.close();
    }

    #[test]
    fn a_service_that_gives_too_much_is_kept_no_more_than_the_limit() {
        let (keeper, notifier) = keeper("limit");
        let file = file("x");
        for _ in 0..MOST_KEPT + 3 {
            notifier.keep("many", &[file.as_fd()]).unwrap();
        }
        assert_eq!(shell(&keeper, "echo $LISTEN_FDS"), format!("{MOST_KEPT}\n"));
        keeper.close();
    }
}
