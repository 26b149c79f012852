//! Netlink itself: the language in which everything else in this crate speaks to the kernel.
//!
//! Four small parts, each usable for any netlink protocol (routing and netfilter here):
//! [`Message`] writes one request with its attributes, [`Attributes`] reads an answer, [`Batch`] holds
//! requests that travel in one send, [`Socket`] carries them and brings back answers and errors.
//!
//! What stays true: a request is answered or an error says which one was not; an answer to an earlier,
//! abandoned request is never taken for the present one (sequence numbers); a listing that changed while it
//! was read is read again. Layouts follow the kernel's `include/uapi/linux/netlink.h` and the documentation
//! "Introduction to Netlink" (docs.kernel.org/userspace-api/netlink/intro.html).

mod attribute;
mod batch;
mod message;
pub(crate) mod option;
mod socket;

pub use attribute::{Attribute, Attributes, Malformed};
pub use batch::{Batch, Purpose, Request};
pub use message::{Message, Reply};
pub use socket::{Failure, Protocol, Socket};
