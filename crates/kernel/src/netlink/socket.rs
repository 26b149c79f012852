//! The socket: sends batches, matches answers to requests, turns refusals into errors.
//!
//! Read [`Socket`] first. The kernel works a request off inside our `send`, so every answer is there when it
//! returns; a listing is produced piece by piece inside our `recv`. Only the last request of a send asks for
//! an acknowledgement: a refusal of an earlier one arrives unasked, and a success needs no words. So a batch
//! that goes well costs two system calls, whatever its length.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use super::attribute::{Attributes, Malformed, align};
use super::batch::{Batch, Purpose, Request};
use super::message::{Message, Reply};
use super::option;
use crate::Error;

/// Largest message the kernel builds for a listing is 32 KB; a single answer may be larger. It is never filled
/// with zeros, so it costs no memory until it is used.
const INCOMING: usize = 64 * 1024;
/// Receive buffer of a socket that listens to notifications.
const LISTENING_BUFFER: usize = 16 * 1024 * 1024;
/// Most requests in one send: their refusals (about 1 KB each in the kernel's accounting) must fit into the
/// default receive buffer of 208 KB.
const REQUESTS_PER_SEND: usize = 128;
/// Default room for one send (`net.core.wmem_default`), less what the kernel keeps.
const SEND_ROOM: usize = 200 * 1024;
/// How often a listing that changed under us is read again.
const LISTING_ATTEMPTS: usize = 20;
/// After this, a missing answer is an error; only a kernel bug gets there.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

const MULTIPART_END: u16 = libc::NLMSG_DONE as u16;
const ERROR: u16 = libc::NLMSG_ERROR as u16;
const NO_OPERATION: u16 = libc::NLMSG_NOOP as u16;
const INTERRUPTED: u16 = libc::NLM_F_DUMP_INTR as u16;
/// Header flags of an acknowledgement: original request left out; attributes follow.
const CAPPED: u16 = 0x100;
const EXPLAINED: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`: the explanation as text.
const EXPLANATION: u16 = 1;

/// Which part of the kernel the socket talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, neighbours, rules, qdiscs.
    Route,
    /// nf_tables and connection tracking.
    Netfilter,
    /// Parts of the kernel that have their numbers given to them, WireGuard among them.
    Generic,
}

/// A netlink socket of the network namespace in which it was opened; it stays there wherever its thread goes.
#[derive(Debug)]
pub struct Socket {
    descriptor: OwnedFd,
    sequence: u32,
    incoming: Vec<u8>,
    send_room: usize,
}

/// A request of a batch that was refused.
#[derive(Debug)]
pub struct Failure {
    /// Its position in the batch.
    pub position: usize,
    /// Why.
    pub error: Error,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel lacks the protocol or descriptors have run out.
    pub fn open(protocol: Protocol) -> Result<Self, Error> {
        let protocol = match protocol {
            Protocol::Route => None,
            Protocol::Netfilter => Some(netlink::NETFILTER),
            Protocol::Generic => Some(netlink::GENERIC),
        };
        let tried = "open a netlink socket";
        let descriptor =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
                .map_err(|errno| system(tried, errno))?;
        // Old kernels lack some of these; everything works without them, only with poorer errors.
        let _ = option::enable(descriptor.as_fd(), option::EXTENDED_ACKNOWLEDGEMENT);
        let _ = option::enable(descriptor.as_fd(), option::CAP_ACKNOWLEDGEMENT);
        let _ = option::enable(descriptor.as_fd(), option::STRICT_CHECKING);
        Ok(Self { descriptor, sequence: 0, incoming: Vec::with_capacity(INCOMING), send_room: SEND_ROOM })
    }

    /// Sends all requests and waits until they are done; later requests are tried even if one is refused.
    ///
    /// # Errors
    /// The first refusal.
    pub fn execute(&mut self, batch: impl Into<Batch>) -> Result<(), Error> {
        let failures = self.run(&batch.into(), |_, _| Ok(()))?;
        failures.into_iter().next().map_or(Ok(()), |failure| Err(failure.error))
    }

    /// Sends all requests and waits until they are done. `on_reply` gets what requests bring back (a
    /// `RTM_GETLINK` among them, or a creation with `NLM_F_ECHO`) with the request's position.
    ///
    /// Returns the refused ones in order; the others have been carried out.
    ///
    /// # Errors
    /// Only when the conversation itself broke: then it is unknown what was carried out.
    pub fn run(
        &mut self,
        batch: &Batch,
        mut on_reply: impl FnMut(usize, Reply<'_>) -> Result<(), Malformed>,
    ) -> Result<Vec<Failure>, Error> {
        let mut failures = Vec::new();
        let mut start = 0;
        while start < batch.len() {
            let count = self.fitting(&batch.requests()[start..]);
            let requests = &batch.requests()[start..start + count];
            let first = self.write(requests)?;
            let last = first.wrapping_add(count as u32 - 1);
            self.collect(first, last, requests, |index, reply| match reply {
                Answer::Data(reply) => match on_reply(start + index, reply) {
                    Ok(()) => None,
                    Err(malformed) => {
                        let purpose = requests[index].purpose.clone();
                        failures.push(Failure {
                            position: start + index,
                            error: Error::Answer { purpose, malformed },
                        });
                        None
                    }
                },
                Answer::Refused(error) => {
                    failures.push(Failure { position: start + index, error });
                    (index + 1 == count).then_some(())
                }
                Answer::Done { .. } => (index + 1 == count).then_some(()),
            })?;
            start += count;
        }
        Ok(failures)
    }

    /// Sends an nf_tables-style transaction: `batch` between a begin and an end message, in one send; the kernel
    /// carries out all of it or nothing. `subsystem` is `NFNL_SUBSYS_*`. With `generation`, the kernel refuses
    /// with `ERESTART` if the rule set has changed since that generation (see `NFT_MSG_GETGEN`).
    /// An empty batch sends nothing.
    ///
    /// # Errors
    /// The first refusal; nothing was carried out then.
    pub fn transact(&mut self, batch: Batch, subsystem: u16, generation: Option<u32>) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let framed = frame(batch, subsystem, generation);
        // The last change is acknowledged, not the end message: only newer kernels answer that one.
        let final_change = framed.len() - 2;
        let first = self.send(&framed, |index| index == final_change)?;
        let last = first.wrapping_add(framed.len() as u32 - 1);
        let mut refusal = None;
        self.collect(first, last, &framed, |index, answer| {
            if let Answer::Refused(error) = answer {
                refusal.get_or_insert(error);
                return (index == 0 || index >= final_change).then_some(());
            }
            (matches!(answer, Answer::Done { .. }) && index >= final_change).then_some(())
        })?;
        refusal.map_or(Ok(()), Err)
    }

    /// Asks for one object and reads the one message that answers.
    ///
    /// # Errors
    /// The refusal (see [`Error::is_missing`]), or an answer that `parse` rejects.
    pub fn ask<T>(
        &mut self,
        request: &Request,
        mut parse: impl FnMut(Reply<'_>) -> Result<T, Malformed>,
    ) -> Result<T, Error> {
        let requests = std::slice::from_ref(request);
        let sequence = self.send(requests, |_| false)?;
        let mut answer = None;
        self.collect(sequence, sequence, requests, |_, reply| {
            answer = Some(match reply {
                Answer::Data(reply) => parse(reply)
                    .map_err(|malformed| Error::Answer { purpose: request.purpose.clone(), malformed }),
                Answer::Refused(error) => Err(error),
                Answer::Done { .. } => Err(Error::Silence { purpose: request.purpose.clone() }),
            });
            Some(())
        })?;
        answer.unwrap_or_else(|| Err(Error::Silence { purpose: request.purpose.clone() }))
    }

    /// Lists: sends the request with `NLM_F_DUMP` and gathers what `parse` makes of each message (`None` leaves
    /// it out). A listing that changed while it was read is read again, so the result is consistent.
    ///
    /// # Errors
    /// The refusal, [`Error::Interrupted`] when it never held still, or an answer that `parse` rejects.
    pub fn dump<T>(
        &mut self,
        request: &Request,
        mut parse: impl FnMut(Reply<'_>) -> Result<Option<T>, Malformed>,
    ) -> Result<Vec<T>, Error> {
        let mut listing = request.clone();
        listing.message.add_flags(libc::NLM_F_DUMP as u16);
        for _ in 0..LISTING_ATTEMPTS {
            if let Some(found) = self.dump_once(&listing, &mut parse)? {
                return Ok(found);
            }
        }
        Err(Error::Interrupted { purpose: request.purpose.clone(), attempts: LISTING_ATTEMPTS })
    }

    /// The port by which the kernel names this socket in notifications about its changes; 0 before the first send.
    ///
    /// # Errors
    /// Only when the descriptor was closed behind our back.
    pub fn port(&self) -> Result<u32, Error> {
        let address = rustix::net::getsockname(&self.descriptor)
            .map_err(|errno| system("ask for the port of a netlink socket", errno))?;
        Ok(SocketAddrNetlink::try_from(address).map_or(0, |address| address.pid()))
    }

    /// Joins multicast groups (numbers, not masks) and enlarges the receive buffer. Use a socket of its own
    /// for this, and [`Self::receive`].
    ///
    /// # Errors
    /// When a group does not exist in this kernel or may not be joined.
    pub fn subscribe(&mut self, groups: &[u32]) -> Result<(), Error> {
        if sockopt::set_socket_recv_buffer_size_force(&self.descriptor, LISTENING_BUFFER).is_err() {
            // Without CAP_NET_ADMIN over the initial user namespace: as much as net.core.rmem_max allows.
            let _ = sockopt::set_socket_recv_buffer_size(&self.descriptor, LISTENING_BUFFER);
        }
        let tried = "subscribe to netlink notifications";
        rustix::net::bind(&self.descriptor, &SocketAddrNetlink::new(0, 0))
            .map_err(|errno| system(tried, errno))?;
        for group in groups {
            option::join(self.descriptor.as_fd(), *group).map_err(|errno| system(tried, errno))?;
        }
        Ok(())
    }

    /// Waits for notifications and hands each to `on_message`; returns after one datagram (often one message).
    ///
    /// # Errors
    /// [`Error::Overrun`] when the kernel had to drop some: list everything again. What was still queued has been
    /// thrown away by then, because the kernel drops on until the queue is empty; so the socket is listening again.
    pub fn receive(
        &mut self,
        mut on_message: impl FnMut(Reply<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Error> {
        let purpose = Purpose::new("receive", "netlink notifications");
        match self.read(&purpose, RecvFlags::empty()) {
            Err(Error::Overrun) => {
                self.drain();
                return Err(Error::Overrun);
            }
            other => other?,
        }
        let mut rest = self.incoming.as_slice();
        while !rest.is_empty() {
            Reply::take(&mut rest)
                .and_then(&mut on_message)
                .map_err(|malformed| Error::Answer { purpose: purpose.clone(), malformed })?;
        }
        Ok(())
    }

    /// One attempt at a listing; `None` when it was interrupted.
    fn dump_once<T>(
        &mut self,
        request: &Request,
        parse: &mut impl FnMut(Reply<'_>) -> Result<Option<T>, Malformed>,
    ) -> Result<Option<Vec<T>>, Error> {
        let requests = std::slice::from_ref(request);
        let sequence = self.send(requests, |_| false)?;
        let mut found = Vec::new();
        let mut interrupted = false;
        let mut failure = None;
        self.collect(sequence, sequence, requests, |_, answer| {
            match answer {
                Answer::Data(reply) => {
                    interrupted |= reply.flags & INTERRUPTED != 0;
                    // After a bad message the rest is still read: an unfinished listing blocks the next one.
                    match parse(reply) {
                        Ok(item) => found.extend(item),
                        Err(malformed) => {
                            let purpose = request.purpose.clone();
                            failure.get_or_insert(Error::Answer { purpose, malformed });
                        }
                    }
                    if reply.flags & libc::NLM_F_MULTI as u16 != 0 {
                        return None;
                    }
                }
                Answer::Refused(error) => {
                    failure.get_or_insert(error);
                }
                Answer::Done { changed } => interrupted |= changed,
            }
            Some(())
        })?;
        match failure {
            Some(error) => Err(error),
            None if interrupted => Ok(None),
            None => Ok(Some(found)),
        }
    }

    /// How many requests go into the next send: limited by count and by the send buffer, at least one.
    fn fitting(&self, requests: &[Request]) -> usize {
        let mut bytes = 0;
        let mut count = 0;
        for request in requests.iter().take(REQUESTS_PER_SEND) {
            bytes += request.message.length();
            if bytes > SEND_ROOM {
                break;
            }
            count += 1;
        }
        count.max(1)
    }

    /// Sends with an acknowledgement asked for the last request only.
    fn write(&mut self, requests: &[Request]) -> Result<u32, Error> {
        let last = requests.len() - 1;
        self.send(requests, |index| index == last)
    }

    /// Sends requests in one system call and returns the first one's sequence number.
    fn send(&mut self, requests: &[Request], acknowledged: impl Fn(usize) -> bool) -> Result<u32, Error> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(requests.iter().map(|request| request.message.length()).sum());
        for (index, request) in requests.iter().enumerate() {
            if request.message.is_oversized() {
                let purpose = request.purpose.clone();
                return Err(Error::Oversized { purpose, bytes: request.message.length() });
            }
            self.sequence = self.sequence.wrapping_add(1);
            request.message.finish(&mut bytes, self.sequence, acknowledged(index));
        }
        let Some(purpose) = requests.first().map(|request| &request.purpose) else { return Ok(first) };
        self.make_room(bytes.len());
        loop {
            match rustix::net::send(&self.descriptor, &bytes, SendFlags::empty()) {
                Ok(_) => return Ok(first),
                Err(Errno::INTR) => {}
                Err(Errno::MSGSIZE) => {
                    return Err(Error::Oversized { purpose: purpose.clone(), bytes: bytes.len() });
                }
                Err(errno) => return Err(refused(purpose, errno, None)),
            }
        }
    }

    /// Enlarges the send buffer for a large transaction; if that is not allowed the send will say so.
    fn make_room(&mut self, bytes: usize) {
        if bytes <= self.send_room {
            return;
        }
        let wanted = bytes + bytes / 4;
        if sockopt::set_socket_send_buffer_size_force(&self.descriptor, wanted).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(&self.descriptor, wanted);
        }
        self.send_room = wanted;
    }

    /// Reads answers to the requests numbered `first..=last` until `on_answer` says it has enough. Answers to
    /// other requests are left-overs of an abandoned conversation and skipped.
    fn collect(
        &mut self,
        first: u32,
        last: u32,
        requests: &[Request],
        mut on_answer: impl FnMut(usize, Answer<'_>) -> Option<()>,
    ) -> Result<(), Error> {
        let span = last.wrapping_sub(first);
        let purpose = &requests[0].purpose;
        loop {
            self.read(purpose, RecvFlags::DONTWAIT)?;
            let mut rest = self.incoming.as_slice();
            while !rest.is_empty() {
                let reply = Reply::take(&mut rest)
                    .map_err(|malformed| Error::Answer { purpose: purpose.clone(), malformed })?;
                let index = reply.sequence.wrapping_sub(first);
                if index > span || reply.kind == NO_OPERATION {
                    continue;
                }
                let index = index as usize;
                if on_answer(index, Answer::read(reply, &requests[index].purpose)).is_some() {
                    return Ok(());
                }
            }
        }
    }

    /// Reads one datagram of the kernel into `incoming`.
    fn read(&mut self, purpose: &Purpose, flags: RecvFlags) -> Result<(), Error> {
        let flags = flags | RecvFlags::TRUNC;
        loop {
            self.incoming.clear();
            match rustix::net::recvfrom(&self.descriptor, spare_capacity(&mut self.incoming), flags) {
                Ok((_, length, sender)) => {
                    let kernel = sender
                        .and_then(|sender| SocketAddrNetlink::try_from(sender).ok())
                        .is_some_and(|sender| sender.pid() == 0);
                    if !kernel {
                        continue;
                    }
                    if length > self.incoming.len() {
                        let malformed =
                            Malformed::Truncated { what: "answer", length, available: self.incoming.len() };
                        return Err(Error::Answer { purpose: purpose.clone(), malformed });
                    }
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(purpose)?,
                Err(Errno::NOBUFS) => return Err(Error::Overrun),
                Err(errno) => return Err(system("receive from the kernel", errno)),
            }
        }
    }

    /// Throws away everything that is queued.
    fn drain(&mut self) {
        loop {
            self.incoming.clear();
            match rustix::net::recv(&self.descriptor, spare_capacity(&mut self.incoming), RecvFlags::DONTWAIT)
            {
                Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => {}
                Err(_) => return,
            }
        }
    }

    /// Waits for an answer that is not there yet.
    fn wait(&self, purpose: &Purpose) -> Result<(), Error> {
        if self.readable_within(ANSWER_PATIENCE)? {
            return Ok(());
        }
        Err(Error::Silence { purpose: purpose.clone() })
    }

    /// Waits until there is something to read, at most this long; says whether there is.
    pub(crate) fn readable_within(&self, patience: Duration) -> Result<bool, Error> {
        let timeout = Timespec::try_from(patience).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        loop {
            let mut descriptors = [PollFd::new(&self.descriptor, PollFlags::IN)];
            match poll(&mut descriptors, Some(&timeout)) {
                // A signal: wait again, all of it; signals are rare here.
                Err(Errno::INTR) => {}
                Ok(ready) => return Ok(ready > 0),
                Err(errno) => return Err(system("wait for the kernel's answer", errno)),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// What came back for one request.
enum Answer<'a> {
    /// A message with content.
    Data(Reply<'a>),
    /// Acknowledged, or the end of a listing, which may say that the listing changed under us.
    Done { changed: bool },
    /// The kernel said no.
    Refused(Error),
}

impl<'a> Answer<'a> {
    fn read(reply: Reply<'a>, purpose: &Purpose) -> Self {
        if reply.kind != ERROR && reply.kind != MULTIPART_END {
            return Self::Data(reply);
        }
        // A listing's end may carry no error code at all (old kernels), which means success.
        let changed = reply.flags & INTERRUPTED != 0;
        let Some((code, rest)) = reply.payload.split_first_chunk::<4>() else {
            return Self::Done { changed };
        };
        let code = i32::from_ne_bytes(*code);
        if code == 0 {
            return Self::Done { changed };
        }
        let errno = Errno::from_raw_os_error(-code);
        Self::Refused(refused(purpose, errno, explanation(&reply, rest)))
    }
}

/// The kernel's words in an acknowledgement. `rest` is what follows the error code.
fn explanation(reply: &Reply<'_>, rest: &[u8]) -> Option<String> {
    if reply.flags & EXPLAINED == 0 {
        return None;
    }
    let attributes = if reply.kind == MULTIPART_END {
        rest
    } else {
        // The header of our own request, and all of it unless the kernel capped it.
        let length = u32::from_ne_bytes(*rest.first_chunk::<4>()?) as usize;
        let skipped = if reply.flags & CAPPED == 0 { align(length) } else { 16 };
        rest.get(skipped..)?
    };
    let text = Attributes::new(attributes).find(EXPLANATION).ok()??;
    text.text().ok().map(str::to_owned)
}

/// Puts the begin and end messages of a transaction around its requests.
fn frame(batch: Batch, subsystem: u16, generation: Option<u32>) -> Vec<Request> {
    // struct nfgenmsg: family, version, resource id in network order.
    let [high, low] = subsystem.to_be_bytes();
    let header = [0, 0, high, low];
    let mut begin = Message::new(libc::NFNL_MSG_BATCH_BEGIN as u16, 0, &header);
    if let Some(generation) = generation {
        begin.be32(libc::NFNL_BATCH_GENID as u16, generation);
    }
    let end = Message::new(libc::NFNL_MSG_BATCH_END as u16, 0, &header);
    let mut framed = Vec::with_capacity(batch.len() + 2);
    framed.push(Request::new(begin, Purpose::new("commit", "netfilter transaction")));
    framed.extend(batch.into_requests());
    framed.push(Request::new(end, Purpose::new("commit", "netfilter transaction")));
    framed
}

fn refused(purpose: &Purpose, errno: Errno, detail: Option<String>) -> Error {
    Error::Refused { purpose: purpose.clone(), errno, detail }
}

fn system(tried: &'static str, errno: Errno) -> Error {
    Error::System { tried, source: io::Error::from(errno) }
}
