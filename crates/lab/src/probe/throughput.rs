//! How much goes through: one TCP connection between two pods for a while, counted where it arrives.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// One write or read: large enough that system calls do not bound the figure.
const CHUNK: usize = 256 * 1024;
/// A connection that cannot be made in this time has failed.
const CONNECT: Duration = Duration::from_secs(2);

/// A socket that waits for the sender; made inside the receiving pod's namespace.
pub(crate) fn listen(address: IpAddr) -> io::Result<TcpListener> {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    TcpListener::bind(SocketAddr::from((any, 0)))
}

/// A connection to it; made inside the sending pod's namespace.
pub(crate) fn connect(address: IpAddr, listener: &TcpListener) -> io::Result<TcpStream> {
    let to = SocketAddr::from((address, listener.local_addr()?.port()));
    TcpStream::connect_timeout(&to, CONNECT)
}

/// Sends for `time` and returns the bits per second that arrived.
pub(crate) fn measure(sender: TcpStream, listener: &TcpListener, time: Duration) -> io::Result<u64> {
    // The connection is complete before this is called, so accepting does not wait.
    let (mut receiver, _) = listener.accept()?;
    receiver.set_read_timeout(Some(time + CONNECT))?;
    sender.set_write_timeout(Some(time + CONNECT))?;
    let started = Instant::now();
    let sending = std::thread::Builder::new().name("sender".into()).spawn(move || send_for(sender, time))?;
    let mut buffer = vec![0; CHUNK];
    let mut bytes: u64 = 0;
    loop {
        match receiver.read(&mut buffer)? {
            0 => break,
            count => bytes += count as u64,
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    sending.join().map_err(|_| io::Error::other("the sending thread panicked"))??;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let bits_per_second = (bytes as f64 * 8.0 / seconds) as u64;
    Ok(bits_per_second)
}

fn send_for(mut sender: TcpStream, time: Duration) -> io::Result<()> {
    let buffer = vec![0; CHUNK];
    let started = Instant::now();
    while started.elapsed() < time {
        sender.write_all(&buffer)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_counted() {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let listener = listen(address).unwrap();
        let sender = connect(address, &listener).unwrap();
        assert!(measure(sender, &listener, Duration::from_millis(20)).unwrap() > 0);
    }
}
