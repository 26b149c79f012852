//! What a program must see to that starts without the standard library's own start-up.
//!
//! Before `main` the standard library looks through `/proc/self/maps` for the end of its stack and installs handlers
//! that would name an overflow of it. A program that lives for a millisecond spends a third of it on that.
//! A program with a C `main` of its own has the rest to do itself, which is [`prepare`].
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, IntoRawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::stdio::{stderr, stdin, stdout};

/// Makes the process one that the standard library can work in:
///
/// - Writing to a pipe whose reader has gone is an error to be handled, not the end (`SIGPIPE`).
/// - Standard input, output and error are open, to `/dev/null` where the caller closed them. Otherwise the next file
///   that is opened would be mistaken for one of them, and a result be written into it.
///
/// Call it first of all, before any other thread is started.
pub fn prepare() {
    // SAFETY: the disposition "ignore" runs no code of ours, and no other thread exists yet.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
    if !standard_streams_are_open() {
        // The lowest free number is given each time, so that only the missing ones are filled.
        while let Ok(descriptor) = openat(CWD, "/dev/null", OFlags::RDWR, Mode::empty()) {
            if descriptor.as_raw_fd() > libc::STDERR_FILENO {
                break;
            }
            let _stays_open = descriptor.into_raw_fd();
        }
    }
}

/// One question for all three; a process that cannot be told is taken for a good one.
fn standard_streams_are_open() -> bool {
    let streams = [stdin(), stdout(), stderr()];
    let mut asked = streams.map(|stream| PollFd::from_borrowed_fd(stream, PollFlags::empty()));
    loop {
        match poll(&mut asked, Some(&Timespec::default())) {
            Err(Errno::INTR) => {}
            Err(_) => return true,
            Ok(_) => return !asked.iter().any(|stream| stream.revents().contains(PollFlags::NVAL)),
        }
    }
}
