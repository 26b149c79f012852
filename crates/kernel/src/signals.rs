//! Requests to end, as something to wait for instead of something that interrupts.
//!
//! Read [`Termination`]. It is made before any other thread, for threads inherit what is blocked; children
//! started through the standard library begin with nothing blocked. signalfd(2).

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use crate::Error;

/// SIGINT, SIGTERM and SIGHUP of this process, from now on delivered here only.
#[derive(Debug)]
pub struct Termination {
    descriptor: OwnedFd,
}

impl Termination {
    /// Takes the signals over, for the calling thread and those it starts later.
    ///
    /// # Errors
    /// [`Error::System`] when the process may open no more descriptors.
    pub fn take_over() -> Result<Self, Error> {
        // SAFETY: the set is plain memory that sigemptyset fills in before anything reads it, and every
        // pointer is to a live local.
        #[allow(unsafe_code)]
        let descriptor = unsafe {
            let mut set: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                libc::sigaddset(&raw mut set, signal);
            }
            let refused = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
            if refused != 0 {
                return Err(failed("block signals", io::Error::from_raw_os_error(refused)));
            }
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC)
        };
        if descriptor < 0 {
            return Err(failed("open a signal descriptor", io::Error::last_os_error()));
        }
        // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
        #[allow(unsafe_code)]
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Self { descriptor })
    }

    /// Waits for one of the signals and returns its number.
    ///
    /// # Errors
    /// [`Error::System`], which only a broken kernel gives.
    pub fn wait(&self) -> Result<i32, Error> {
        let size = size_of::<libc::signalfd_siginfo>();
        loop {
            // SAFETY: plain old data for which all bits zero is valid; the kernel writes at most `size` bytes.
            #[allow(unsafe_code)]
            let (count, info) = unsafe {
                let mut info: libc::signalfd_siginfo = mem::zeroed();
                let count = libc::read(self.descriptor.as_raw_fd(), (&raw mut info).cast(), size);
                (count, info)
            };
            if usize::try_from(count) == Ok(size) {
                return Ok(i32::try_from(info.ssi_signo).unwrap_or(libc::SIGTERM));
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(failed("read a signal", error));
            }
        }
    }
}

impl AsFd for Termination {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn failed(tried: &'static str, source: io::Error) -> Error {
    Error::System { tried, source }
}
