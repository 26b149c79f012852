//! What the agent's listening sockets have in common.
//!
//! Read [`next`]. It is said once because of what happens where no more files can be opened: a client then cannot be taken, and
//! stays in the queue, so whoever asks for the next one again at once does nothing else any more.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use crate::files::remove_file;

/// How soon it is tried again to take a client.
const AGAIN: Duration = Duration::from_millis(200);

/// The longest line that a client says, in bytes.
const LONGEST: u64 = 4096;

/// Listens at a path that is this agent's alone, in place of an agent that died there.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    remove_file(path)?;
    UnixListener::bind(path)
}

/// The next client, as `accept` gives it; `socket` is for the log.
pub(crate) fn next<S, A>(socket: &str, mut accept: impl FnMut() -> io::Result<(S, A)>) -> S {
    loop {
        match accept() {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "who asks at {socket} has to wait; hint: see the limit of open files");
                std::thread::sleep(AGAIN);
            }
        }
    }
}

/// The line that a client says, who has so long for it, and for taking the answer.
pub(crate) fn read_line(stream: &UnixStream, patience: Duration) -> io::Result<String> {
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST)).read_line(&mut line)?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_cannot_be_taken_yet_is_taken_later() {
        let mut answers = [Err(io::Error::from_raw_os_error(24)), Ok((7, ()))].into_iter();
        assert_eq!(next("the test's socket", || answers.next().unwrap()), 7);
        assert!(answers.next().is_none());
    }
}
