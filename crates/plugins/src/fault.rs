//! The kernel's refusals as CNI errors.
//!
//! [`fault`] keeps the kernel's words and chooses the code that runtimes act on: 8 for a namespace that will
//! not do, 11 for what a second attempt may well get, 101 for everything else.

use std::error::Error as _;

use cni::{Code, Error};

/// The CNI error for a refusal of the kernel, with every cause in its message.
pub(crate) fn fault(error: kernel::Error) -> Error {
    let code = match &error {
        kernel::Error::NamespaceMissing { .. } | kernel::Error::NotANamespace { .. } => Code::INVALID_NETNS,
        kernel::Error::Interrupted { .. } | kernel::Error::Overrun => Code::TRY_AGAIN,
        outdated if outdated.is_outdated() => Code::TRY_AGAIN,
        _ => Code::KERNEL,
    };
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(": ");
        message.push_str(&error.to_string());
        cause = error.source();
    }
    Error::new(code, message)
}

/// Failures gathered while going on.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    errors: Vec<Error>,
}

impl Failures {
    /// Keeps the error, if it is one, and returns the value otherwise.
    pub(crate) fn note<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }

    /// The same for what the kernel says.
    pub(crate) fn note_kernel<T>(&mut self, result: Result<T, kernel::Error>) -> Option<T> {
        self.note(result.map_err(fault))
    }

    /// All of them as one error; a success if there is none.
    pub(crate) fn into_result(self) -> Result<(), Error> {
        Error::join(self.errors).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_in_the_message() {
        let source = std::io::Error::other("the disk is on fire");
        let error = fault(kernel::Error::System { tried: "open a netlink socket", source });
        assert_eq!(error.code, Code::KERNEL);
        assert_eq!(error.message, "open a netlink socket: the disk is on fire");
        let missing = fault(kernel::Error::NamespaceMissing { path: "/there/is/none".into() });
        assert_eq!(missing.code, Code::INVALID_NETNS);
    }
}
