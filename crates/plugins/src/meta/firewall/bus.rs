//! As much of D-Bus as it takes to call a method whose arguments are strings.
//!
//! Read [`Bus`]. A connection is a Unix socket: a short exchange of lines that says who we are, then messages. A
//! message is a fixed header, fields of (number, signature, value) and a body, every value aligned to its size.
//! Of an answer only its first value is looked at, and only if it is a truth value; signals are passed over.
//! Source: D-Bus Specification 0.43 (dbus.freedesktop.org/doc/dbus-specification.html), sections "Message
//! Protocol", "Marshaling" and "Authentication Protocol".

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SOCKETS: [&str; 2] = ["/run/dbus/system_bus_socket", "/var/run/dbus/system_bus_socket"];
/// What programs usually give a call.
const PATIENCE: Duration = Duration::from_secs(25);
/// A message over this size is none that we asked for.
const LARGEST: usize = 1 << 20;

const LITTLE_ENDIAN: u8 = b'l';
const PROTOCOL: u8 = 1;
const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

const DAEMON: Target<'static> = Target {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

/// A connection to a message bus.
#[derive(Debug)]
pub(super) struct Bus {
    stream: BufReader<UnixStream>,
    serial: u32,
}

/// Whom a call goes to.
#[derive(Debug)]
pub(super) struct Target<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
}

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum BusError {
    /// The other side answered with an error.
    #[error("{name}: {message}")]
    Refused {
        /// The error's name.
        name: String,
        /// Its words.
        message: String,
    },
    /// The connection broke, or no answer came in time.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What came is no D-Bus.
    #[error("the answer could not be understood")]
    Malformed,
}

impl Bus {
    /// The system bus; `None` when there is none.
    pub(super) fn system() -> Result<Option<Self>, BusError> {
        let named = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").ok();
        let named = named.as_deref().and_then(|address| address.strip_prefix("unix:path="));
        let named = named.and_then(|path| path.split([',', ';']).next()).map(PathBuf::from);
        let paths = named.map_or_else(|| SOCKETS.map(PathBuf::from).to_vec(), |path| vec![path]);
        for path in paths {
            match UnixStream::connect(&path) {
                Ok(stream) => return Self::greet(stream).map(Some),
                Err(error) if is_absent(&error, &path) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    fn greet(stream: UnixStream) -> Result<Self, BusError> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut bus = Self { stream: BufReader::new(stream), serial: 0 };
        let user = rustix::process::geteuid().as_raw().to_string();
        let identity = crate::owner::hexadecimal(user.as_bytes());
        bus.write(format!("\0AUTH EXTERNAL {identity}\r\n").as_bytes())?;
        let mut line = String::new();
        (&mut bus.stream).take(1024).read_line(&mut line)?;
        if !line.starts_with("OK ") {
            return Err(BusError::Refused { name: "authentication".into(), message: line.trim().into() });
        }
        bus.write(b"BEGIN\r\n")?;
        bus.call(&DAEMON, "Hello", &[])?;
        Ok(bus)
    }

    /// Whether somebody on the bus has this name.
    pub(super) fn has_owner(&mut self, name: &str) -> Result<bool, BusError> {
        self.call(&DAEMON, "NameHasOwner", &[name])
    }

    /// Calls a method and waits for its answer: its first value, if that is a truth value, else false.
    pub(super) fn call(
        &mut self,
        target: &Target<'_>,
        method: &str,
        arguments: &[&str],
    ) -> Result<bool, BusError> {
        self.serial += 1;
        let message = encode(self.serial, target, method, arguments);
        self.write(&message)?;
        loop {
            let answer = self.read()?;
            if answer.in_reply_to != Some(self.serial) {
                continue;
            }
            match answer.kind {
                RETURN => return Ok(answer.truth()),
                ERROR => {
                    let message = answer.text().unwrap_or_default();
                    return Err(BusError::Refused { name: answer.error.unwrap_or_default(), message });
                }
                _ => {}
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    fn read(&mut self) -> Result<Answer, BusError> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        if head[0] != LITTLE_ENDIAN {
            return Err(BusError::Malformed);
        }
        let number = |at: usize| Reader { bytes: &head, at }.number().map(|number| number as usize);
        let (body, fields) = (number(4).ok_or(BusError::Malformed)?, number(12).ok_or(BusError::Malformed)?);
        if body > LARGEST || fields > LARGEST {
            return Err(BusError::Malformed);
        }
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        self.stream.read_exact(&mut rest)?;
        let body = rest.split_off(fields.next_multiple_of(8));
        let mut answer = Answer { kind: head[1], in_reply_to: None, error: None, types: String::new(), body };
        let mut reader = Reader { bytes: &rest[..fields], at: 0 };
        while reader.at < fields {
            answer.take_field(&mut reader).ok_or(BusError::Malformed)?;
        }
        Ok(answer)
    }
}

fn is_absent(error: &io::Error, path: &Path) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused || !path.exists()
}

/// A message that came.
struct Answer {
    kind: u8,
    in_reply_to: Option<u32>,
    error: Option<String>,
    types: String,
    body: Vec<u8>,
}

impl Answer {
    fn take_field(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        reader.align(8);
        let number = reader.byte()?;
        let kind = reader.short_text()?;
        match (number, kind.as_str()) {
            (REPLY_SERIAL, "u") => self.in_reply_to = Some(reader.number()?),
            (ERROR_NAME, "s") => self.error = Some(reader.text()?),
            (SIGNATURE, "g") => self.types = reader.short_text()?,
            (_, "s" | "o") => drop(reader.text()?),
            (_, "g") => drop(reader.short_text()?),
            (_, "u") => drop(reader.number()?),
            _ => return None,
        }
        Some(())
    }

    fn truth(&self) -> bool {
        self.types.starts_with('b') && Reader { bytes: &self.body, at: 0 }.number() == Some(1)
    }

    fn text(&self) -> Option<String> {
        if self.types.starts_with('s') { Reader { bytes: &self.body, at: 0 }.text() } else { None }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, size: usize) {
        self.at = self.at.next_multiple_of(size);
    }

    fn byte(&mut self) -> Option<u8> {
        self.at += 1;
        self.bytes.get(self.at - 1).copied()
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4);
        let bytes = self.bytes.get(self.at..self.at + 4)?;
        self.at += 4;
        bytes.try_into().ok().map(u32::from_le_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let length = self.number()? as usize;
        self.characters(length)
    }

    fn short_text(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        self.characters(length)
    }

    /// With the NUL behind them.
    fn characters(&mut self, length: usize) -> Option<String> {
        let text = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length + 1;
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

fn encode(serial: u32, target: &Target<'_>, method: &str, arguments: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    arguments.iter().for_each(|argument| put_text(&mut body, argument));
    let mut bytes = vec![LITTLE_ENDIAN, CALL, 0, PROTOCOL];
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(serial.to_le_bytes());
    bytes.extend([0; 4]);
    let start = bytes.len();
    for (number, kind, value) in [
        (PATH, b'o', target.path),
        (INTERFACE, b's', target.interface),
        (MEMBER, b's', method),
        (DESTINATION, b's', target.destination),
    ] {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend([number, 1, kind, 0]);
        put_text(&mut bytes, value);
    }
    if !arguments.is_empty() {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend([SIGNATURE, 1, b'g', 0, arguments.len() as u8]);
        bytes.extend(arguments.iter().map(|_| b's'));
        bytes.push(0);
    }
    let fields = (bytes.len() - start) as u32;
    bytes[start - 4..start].copy_from_slice(&fields.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend(body);
    bytes
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_laid_out_as_the_specification_says() {
        let bytes = encode(7, &DAEMON, "NameHasOwner", &["a.b"]);
        assert_eq!(bytes[..4], [b'l', 1, 0, 1]);
        // One string: its length, three letters and a NUL.
        assert_eq!(bytes[4..8], 8_u32.to_le_bytes());
        assert_eq!(bytes[8..12], 7_u32.to_le_bytes());
        assert_eq!(bytes[bytes.len() - 8..], [3, 0, 0, 0, b'a', b'.', b'b', 0]);
        let fields = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
        assert_eq!((16 + fields).next_multiple_of(8) + 8, bytes.len());
    }

    #[test]
    fn no_bytes_whatever_break_the_reader() {
        for length in 0..64 {
            for fill in [0, 1, 0x7f, 0xff] {
                let bytes = vec![fill; length];
                let mut reader = Reader { bytes: &bytes, at: 0 };
                let mut answer = Answer {
                    kind: 2,
                    in_reply_to: None,
                    error: None,
                    types: "b".into(),
                    body: bytes.clone(),
                };
                while reader.at < bytes.len() && answer.take_field(&mut reader).is_some() {}
                let _ = (answer.truth(), answer.text());
            }
        }
    }
}
