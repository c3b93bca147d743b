//! A client that sends the bytes it is told to, and shows what it reads.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use manatee_proxy::wire::backend::ErrorFields;
use manatee_proxy::wire::frontend;
use manatee_proxy::wire::{complete, put_cstr, put_message};

/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(20);

/// One connection.
pub(crate) struct Raw {
    stream: TcpStream,
    port: u16,
    read: BytesMut,
    pub(crate) pid: u32,
    secret: Vec<u8>,
}

impl Raw {
    /// Logs in, without a password.
    pub(crate) fn connect(port: u16) -> Self {
        Self::connect_with(port, &[])
    }

    /// With these settings.
    pub(crate) fn connect_with(port: u16, settings: &[(&str, &str)]) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut raw = Self { stream, port, read: BytesMut::new(), pid: 0, secret: Vec::new() };
        let mut body = vec![0, 3, 0, 0];
        for (name, value) in [("user", "postgres"), ("database", "postgres")].iter().chain(settings) {
            body.extend_from_slice(name.as_bytes());
            body.push(0);
            body.extend_from_slice(value.as_bytes());
            body.push(0);
        }
        body.push(0);
        raw.send(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        raw.send(&body);
        loop {
            match raw.message() {
                Some((b'K', key)) => {
                    raw.pid = u32::from_be_bytes(key[..4].try_into().unwrap());
                    raw.secret = key[4..].to_vec();
                }
                Some((b'Z', _)) => return raw,
                Some((b'E', body)) => panic!("{}", String::from_utf8_lossy(&body)),
                Some(_) => {}
                None => panic!("closed"),
            }
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next message; none at the end of the connection.
    pub(crate) fn message(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((header, body)) = complete(&self.read).unwrap() {
                let (tag, body, size) = (header.tag, body.to_vec(), header.size);
                let _ = self.read.split_to(size);
                return Some((tag, body));
            }
            let mut chunk = [0; 8192];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(count) => self.read.extend_from_slice(&chunk[..count]),
                // The end of another test's child process: a read with a time-out is not begun again by itself (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The next message of this kind; those before it are passed over.
    pub(crate) fn next(&mut self, wanted: u8) -> Vec<u8> {
        loop {
            match self.message() {
                Some((tag, body)) if tag == wanted => return body,
                Some(_) => {}
                None => panic!("the connection ended before a message `{}` came", char::from(wanted)),
            }
        }
    }

    /// All up to ReadyForQuery, or to the end, in words.
    pub(crate) fn answer(&mut self) -> String {
        let mut words = Vec::new();
        loop {
            let Some((tag, body)) = self.message() else {
                words.push("end".to_owned());
                break;
            };
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            words.push(match tag {
                b'E' | b'N' => {
                    let fields = ErrorFields::read(&body);
                    format!("{}{}({})", char::from(tag), text(fields.code), text(fields.message))
                }
                b'D' => format!("D({})", body[2..].escape_ascii()),
                b'C' => text(&body[..body.len() - 1]).replace(' ', "_"),
                b'S' => continue,
                b'Z' => {
                    words.push(format!("Z{}", char::from(body[0])));
                    break;
                }
                tag => char::from(tag).to_string(),
            });
        }
        words.join(" ")
    }

    /// Sends a Query and reads its answer.
    pub(crate) fn ask(&mut self, text: &str) -> String {
        self.send(&query(text));
        self.answer()
    }

    /// Whether anything comes within a moment.
    pub(crate) fn hears_something(&mut self) -> bool {
        self.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let heard = !self.read.is_empty() || self.stream.peek(&mut [0; 1]).is_ok();
        self.stream.set_read_timeout(Some(LIMIT)).unwrap();
        heard
    }

    /// Nothing more is sent, but answers are read.
    pub(crate) fn half_close(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Handle by which the running statement is cancelled, over another connection.
    pub(crate) fn canceller(&self) -> Canceller {
        Canceller { port: self.port, pid: self.pid, secret: self.secret.clone() }
    }
}

/// The key to one connection.
pub(crate) struct Canceller {
    port: u16,
    pid: u32,
    secret: Vec<u8>,
}

impl Canceller {
    /// Asks for a cancel, and waits until that is taken.
    pub(crate) fn cancel(&self) {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        let mut request = Vec::new();
        request.extend_from_slice(&u32::try_from(12 + self.secret.len()).unwrap().to_be_bytes());
        request.extend_from_slice(&80_877_102_u32.to_be_bytes());
        request.extend_from_slice(&self.pid.to_be_bytes());
        request.extend_from_slice(&self.secret);
        stream.write_all(&request).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let _ = stream.read(&mut [0; 1]);
    }
}

fn build(fill: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    fill(&mut out);
    out.to_vec()
}

pub(crate) fn query(text: &str) -> Vec<u8> {
    build(|out| frontend::put_query(out, text.as_bytes()))
}

pub(crate) fn parse(name: &str, text: &str) -> Vec<u8> {
    build(|out| frontend::put_parse(out, name.as_bytes(), text.as_bytes(), &[0, 0]))
}

pub(crate) fn bind(portal: &str, statement: &str) -> Vec<u8> {
    build(|out| frontend::put_bind(out, portal.as_bytes(), statement.as_bytes(), &[0; 6]))
}

pub(crate) fn execute(portal: &str) -> Vec<u8> {
    build(|out| {
        put_message(out, frontend::EXECUTE, |out| {
            put_cstr(out, portal.as_bytes());
            out.extend_from_slice(&[0; 4]);
        });
    })
}

/// Data of a COPY.
pub(crate) fn data(text: &str) -> Vec<u8> {
    build(|out| put_message(out, frontend::COPY_DATA, |out| out.extend_from_slice(text.as_bytes())))
}

/// A message without a body.
pub(crate) fn empty(tag: u8) -> Vec<u8> {
    build(|out| frontend::put_empty(out, tag))
}
