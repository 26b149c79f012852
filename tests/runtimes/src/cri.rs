//! As much of the Container Runtime Interface as a kubelet needs to start a pod: gRPC over HTTP/2 on a Unix socket.
//!
//! Read [`Client::call`]: one method with one message each way. Messages are written and read by hand
//! ([`Message`]), because the few fields that matter here are not worth a compiler of interface definitions.
//! Field numbers follow `runtime.v1` of Kubernetes' CRI definition.

use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use http::Request;
use tokio::net::UnixStream;

/// A protocol buffer being written.
#[derive(Debug, Clone, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With this text in this field.
    #[must_use]
    pub fn text(self, field: u64, text: &str) -> Self {
        self.bytes(field, text.as_bytes())
    }

    /// With this number in this field.
    #[must_use]
    pub fn number(mut self, field: u64, number: u64) -> Self {
        self.variable(field << 3);
        self.variable(number);
        self
    }

    /// With this message in this field.
    #[must_use]
    pub fn message(self, field: u64, message: &Self) -> Self {
        self.bytes(field, &message.0)
    }

    /// With this pair in a field that is a map of text to text.
    #[must_use]
    pub fn pair(self, field: u64, key: &str, value: &str) -> Self {
        self.message(field, &Self::new().text(1, key).text(2, value))
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.variable(field << 3 | 2);
        self.variable(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    fn variable(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}

/// A protocol buffer that was received.
#[derive(Debug, Clone, Default)]
pub struct Answer(Vec<(u64, u64, Vec<u8>)>);

impl Answer {
    /// Its fields: number, value when it is a number, bytes otherwise.
    fn read(mut bytes: &[u8]) -> Self {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = variable(&mut bytes);
            match key & 7 {
                0 => fields.push((key >> 3, variable(&mut bytes), Vec::new())),
                2 => {
                    let length = usize::try_from(variable(&mut bytes)).expect("a length");
                    let (value, rest) = bytes.split_at(length);
                    fields.push((key >> 3, 0, value.to_vec()));
                    bytes = rest;
                }
                other => panic!("wire type {other} in an answer of the CRI"),
            }
        }
        Self(fields)
    }

    /// A field as text; empty when it is not there.
    #[must_use]
    pub fn text(&self, field: u64) -> String {
        let found = self.0.iter().find(|(number, _, _)| *number == field);
        found.map(|(_, _, bytes)| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
    }

    /// A field as a number; 0 when it is not there.
    #[must_use]
    pub fn number(&self, field: u64) -> u64 {
        self.0.iter().find(|(number, _, _)| *number == field).map_or(0, |(_, value, _)| *value)
    }

    /// Every message in a repeated field.
    #[must_use]
    pub fn messages(&self, field: u64) -> Vec<Self> {
        let found = self.0.iter().filter(|(number, _, _)| *number == field);
        found.map(|(_, _, bytes)| Self::read(bytes)).collect()
    }

    /// The message in a field; empty when it is not there.
    #[must_use]
    pub fn message(&self, field: u64) -> Self {
        self.messages(field).into_iter().next().unwrap_or_default()
    }

    /// A map of text to text.
    #[must_use]
    pub fn pairs(&self, field: u64) -> Vec<(String, String)> {
        self.messages(field).iter().map(|pair| (pair.text(1), pair.text(2))).collect()
    }
}

fn variable(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.get_u8();
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

/// Where a runtime listens.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the runtime behind this socket. Nothing is connected yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Calls a method of `RuntimeService` (or of another service, with its name before a slash).
    ///
    /// # Errors
    /// What the runtime says, or why it could not be asked.
    pub fn call(&self, method: &str, message: &Message) -> Result<Answer, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        runtime.map_err(|error| error.to_string())?.block_on(self.exchange(method, message))
    }

    async fn exchange(&self, method: &str, message: &Message) -> Result<Answer, String> {
        let tell = |error: &dyn std::fmt::Display| format!("{method} at {}: {error}", self.socket.display());
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| tell(&error))?;
        let (client, connection) = h2::client::handshake(stream).await.map_err(|error| tell(&error))?;
        tokio::spawn(connection);
        let mut client = client.ready().await.map_err(|error| tell(&error))?;
        let request = Request::post(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(|error| tell(&error))?;
        let (response, mut body) = client.send_request(request, false).map_err(|error| tell(&error))?;
        // One byte says that it is not compressed, four its length.
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.0.len()).expect("a short message").to_be_bytes());
        frame.extend(&message.0);
        body.send_data(Bytes::from(frame), true).map_err(|error| tell(&error))?;
        let (head, mut stream) = response.await.map_err(|error| tell(&error))?.into_parts();
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.data().await {
            let chunk = chunk.map_err(|error| tell(&error))?;
            let _ = stream.flow_control().release_capacity(chunk.len());
            bytes.extend(chunk);
        }
        let trailers = stream.trailers().await.map_err(|error| tell(&error))?;
        let headers = trailers.as_ref().unwrap_or(&head.headers);
        match headers.get("grpc-status").map(|status| status.as_bytes()) {
            Some(b"0") => Ok(Answer::read(bytes.get(5..).unwrap_or_default())),
            status => {
                let said = headers.get("grpc-message").map(|text| String::from_utf8_lossy(text.as_bytes()));
                Err(format!("{method}: status {status:?}: {}", said.unwrap_or_default()))
            }
        }
    }
}
