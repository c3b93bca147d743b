//! A client that says what it is told to, message by message, and reads every word of the answer.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use manatee_proxy::wire::backend::{self, ErrorFields};
use manatee_proxy::wire::frontend::{self, Kind};
use manatee_proxy::wire::{complete, put_cstr, put_message, take_cstr};

/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Raw {
    stream: TcpStream,
    rx: BytesMut,
    /// The errors it was told, in words.
    pub(crate) errors: Vec<String>,
}

impl Raw {
    /// Logs in, with these startup parameters besides user and database.
    pub(crate) fn connect(port: u16, parameters: &[(&str, &str)]) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = Self { stream, rx: BytesMut::new(), errors: Vec::new() };
        let mut body = BytesMut::from(&[0, 3, 0, 0][..]);
        for (name, value) in [("user", "postgres"), ("database", "postgres")].iter().chain(parameters) {
            put_cstr(&mut body, name.as_bytes());
            put_cstr(&mut body, value.as_bytes());
        }
        body.extend_from_slice(&[0]);
        let size = u32::try_from(body.len() + 4).unwrap();
        client.send(&[&size.to_be_bytes(), &body[..]].concat());
        client.read_to(b'Z');
        client
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Messages up to the first one with this tag.
    pub(crate) fn read_to(&mut self, last: u8) -> String {
        self.read_to_any(&[last])
    }

    /// Messages up to the first one with one of these tags.
    pub(crate) fn read_to_any(&mut self, last: &[u8]) -> String {
        let mut words = Vec::new();
        loop {
            while let Ok(Some((header, _))) = complete(&self.rx) {
                let message = self.rx.split_to(header.size);
                words.extend(word(header.tag, &message[5..]));
                if header.tag == backend::ERROR_RESPONSE {
                    let words = String::from_utf8_lossy(ErrorFields::read(&message[5..]).message).into_owned();
                    self.errors.push(words);
                }
                if last.contains(&header.tag) {
                    return words.join(" ");
                }
            }
            let mut chunk = [0; 8192];
            match self.stream.read(&mut chunk) {
                Ok(0) => panic!("the connection was closed after {words:?}"),
                Ok(count) => self.rx.extend_from_slice(&chunk[..count]),
                // The end of another test's child process: a read with a time-out is not begun again by itself (signal(7)).
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Says this and reads on to ReadyForQuery.
    pub(crate) fn ask(&mut self, bytes: &[u8]) -> String {
        self.send(bytes);
        self.read_to(backend::READY_FOR_QUERY)
    }

    /// Runs a text as a simple Query.
    pub(crate) fn query(&mut self, text: &str) -> String {
        self.ask(&query(text))
    }
}

/// A message as a word: types of parameters and columns, values of a row, code of an error. Nothing for
/// what says nothing of the request.
fn word(tag: u8, body: &[u8]) -> Option<String> {
    // What was made by the test has another number each time.
    const FIRST_OF_USERS: u32 = 16384;
    let oid = |bytes: &[u8]| match bytes.iter().fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte)) {
        FIRST_OF_USERS.. => "own".to_owned(),
        built_in => built_in.to_string(),
    };
    Some(match tag {
        b'S' | b'N' | b'K' | b'R' => return None,
        b'Z' => format!("Z{}", char::from(body[0])),
        b'C' => String::from_utf8_lossy(&body[..body.len() - 1]).replace(' ', "_"),
        b'E' => format!("E{}", String::from_utf8_lossy(ErrorFields::read(body).code)),
        b't' => {
            let types: Vec<String> = body[2..].chunks(4).map(oid).collect();
            format!("t({})", types.join(","))
        }
        b'T' => {
            let (mut rest, mut columns) = (&body[2..], Vec::new());
            while let Some((name, after)) = take_cstr(rest) {
                columns.push(format!("{}:{}", String::from_utf8_lossy(name), oid(&after[6..10])));
                rest = &after[18..];
            }
            format!("T({})", columns.join(","))
        }
        b'D' => {
            let row = backend::data_row(body).unwrap();
            let values = row.into_iter().map(|value| value.map_or("null".into(), String::from_utf8_lossy).into_owned());
            format!("D({})", values.collect::<Vec<String>>().join(","))
        }
        _ => char::from(tag).to_string(),
    })
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

/// Bind of the unnamed portal, everything as text.
pub(crate) fn bind(statement: &str, values: &[&str]) -> Vec<u8> {
    build(|out| {
        let mut rest = BytesMut::from(&[0, 0][..]);
        rest.extend_from_slice(&u16::try_from(values.len()).unwrap().to_be_bytes());
        for value in values {
            rest.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
            rest.extend_from_slice(value.as_bytes());
        }
        rest.extend_from_slice(&[0, 0]);
        frontend::put_bind(out, b"", statement.as_bytes(), &rest);
    })
}

pub(crate) fn describe(statement: &str) -> Vec<u8> {
    build(|out| frontend::put_target(out, frontend::DESCRIBE, Kind::Statement, statement.as_bytes()))
}

pub(crate) fn describe_portal() -> Vec<u8> {
    build(|out| frontend::put_target(out, frontend::DESCRIBE, Kind::Portal, b""))
}

pub(crate) fn execute() -> Vec<u8> {
    build(|out| put_message(out, frontend::EXECUTE, |out| out.extend_from_slice(&[0; 5])))
}

pub(crate) fn sync() -> Vec<u8> {
    build(|out| frontend::put_empty(out, frontend::SYNC))
}

pub(crate) fn flush() -> Vec<u8> {
    build(|out| frontend::put_empty(out, frontend::FLUSH))
}
