//! A client that sends what it is told to and knows what has to come of it.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::message::Message;
use super::transcript::{Oids, Transcript};
use super::wire::{Kind, complete, put_message, put_string};
use anyhow::{Context, Result, ensure};

/// Longest wait for an answer. What a statement waits for is bounded far below.
const PATIENCE: Duration = Duration::from_secs(8);
/// Longest time for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// 3.0
const VERSION: [u8; 4] = [0, 3, 0, 0];
/// First word of a CancelRequest.
const CANCEL: u32 = 80_877_102;

/// Answer that is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// ReadyForQuery, of a Query or a FunctionCall.
    Ready,
    /// ReadyForQuery of a Sync.
    Sync,
    /// An answer of one message with this tag.
    One(u8),
    /// RowDescription or NoData.
    Rows,
    /// The end of an Execute.
    End,
}

impl Due {
    fn is_extended(self) -> bool {
        !matches!(self, Self::Ready)
    }

    fn ends_with(self, tag: u8) -> bool {
        match self {
            Self::Ready | Self::Sync => tag == b'Z',
            Self::One(wanted) => tag == wanted,
            Self::Rows => matches!(tag, b'T' | b'n'),
            Self::End => matches!(tag, b'C' | b's' | b'I'),
        }
    }
}

/// Whether a session is in a transaction, by its last ReadyForQuery.
const IDLE: u8 = b'I';

/// One connection.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
    address: SocketAddr,
    read: Vec<u8>,
    secret: Vec<u8>,
    /// Answers that have to come, in order. What is not flushed yet may come later.
    due: VecDeque<Due>,
    /// Of `due`, the last ones that need not come before the next Flush or Sync.
    unflushed: usize,
    /// After an error nothing is answered up to the next Sync.
    skipping: bool,
    /// Extended messages without a Sync: their transaction goes on.
    open: bool,
    status: u8,
    /// The connection was ended by the other side, or nothing came in time.
    pub(super) ended: bool,
}

impl Client {
    /// Logs in. Roles are let in without a password.
    pub(super) fn connect(
        address: SocketAddr,
        settings: &[(&str, &[u8])],
        heard: &mut Transcript,
        oids: &mut Oids,
    ) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, CONNECT_LIMIT).context("cannot connect")?;
        stream.set_nodelay(true)?;
        let mut client = Self {
            stream,
            address,
            read: Vec::new(),
            secret: Vec::new(),
            due: [Due::Ready].into(),
            unflushed: 0,
            skipping: false,
            open: false,
            status: IDLE,
            ended: false,
        };
        let mut startup = Vec::new();
        put_message(&mut startup, None, |out| {
            out.extend_from_slice(&VERSION);
            for (name, value) in settings {
                put_string(out, name.as_bytes());
                put_string(out, value);
            }
            out.push(0);
        });
        client.write(&startup);
        client.listen(heard, oids);
        Ok(client)
    }

    /// Whether a server is needed for it right now, wherever it is.
    pub(super) fn holds(&self) -> bool {
        !self.ended && (self.status != IDLE || self.open || !self.due.is_empty())
    }

    fn write(&mut self, bytes: &[u8]) {
        // Whoever is gone is noticed when it is read.
        let _ = self.stream.write_all(bytes);
    }

    /// Sends these.
    pub(super) fn say(&mut self, messages: &[Message]) {
        let mut out = Vec::new();
        for message in messages {
            message.put(&mut out);
            self.expect(message);
        }
        self.write(&out);
    }

    fn expect(&mut self, message: &Message) {
        // A Query ends it too, unless it is skipped.
        self.open = match message {
            Message::Sync => false,
            Message::Query(_) | Message::FunctionCall(..) => self.skipping,
            Message::CopyData(_) | Message::CopyDone | Message::CopyFail(_) | Message::Terminate => self.open,
            _ => true,
        };
        let due: &[Due] = match message {
            Message::Sync => {
                self.skipping = false;
                &[Due::Sync]
            }
            _ if self.skipping => return,
            Message::Query(_) | Message::FunctionCall(..) => &[Due::Ready],
            Message::Parse(..) => &[Due::One(b'1')],
            Message::Bind(..) => &[Due::One(b'2')],
            Message::Describe(Kind::Statement, _) => &[Due::One(b't'), Due::Rows],
            Message::Describe(Kind::Portal, _) => &[Due::Rows],
            Message::Execute(..) => &[Due::End],
            Message::Close(..) => &[Due::One(b'3')],
            Message::Flush => {
                self.unflushed = 0;
                return;
            }
            Message::CopyData(_) | Message::CopyDone | Message::CopyFail(_) | Message::Terminate => return,
        };
        self.due.extend(due);
        self.unflushed += due.len();
        if matches!(due, [Due::Sync | Due::Ready]) {
            self.unflushed = 0;
        }
    }

    /// Reads what has to come.
    pub(super) fn listen(&mut self, heard: &mut Transcript, oids: &mut Oids) {
        let deadline = Instant::now() + PATIENCE;
        while !self.ended && self.due.len() > self.unflushed {
            self.hear(heard, oids, deadline);
        }
    }

    /// Reads to the end of the connection.
    pub(super) fn listen_to_the_end(&mut self, heard: &mut Transcript, oids: &mut Oids) {
        let deadline = Instant::now() + PATIENCE;
        while !self.ended {
            self.hear(heard, oids, deadline);
        }
    }

    /// Reads until everything has come, or for so long. Whether it has.
    pub(super) fn listen_for(&mut self, limit: Duration, heard: &mut Transcript, oids: &mut Oids) -> bool {
        let deadline = Instant::now() + limit;
        while !self.ended && self.due.len() > self.unflushed {
            if !self.read_some(deadline) {
                return false;
            }
            self.take(heard, oids);
        }
        true
    }

    fn hear(&mut self, heard: &mut Transcript, oids: &mut Oids, deadline: Instant) {
        if self.take(heard, oids) {
            return;
        }
        if !self.read_some(deadline) {
            heard.words.push("silence".to_owned());
            self.ended = true;
        }
        if self.ended {
            heard.words.push("end".to_owned());
        }
    }

    /// Reads bytes; false if none came in time.
    fn read_some(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let _ = self.stream.set_read_timeout(Some(left));
        let mut chunk = [0; 16384];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(count) => self.read.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => self.ended = true,
        }
        true
    }

    /// Enters the messages that are there. Whether there was any.
    fn take(&mut self, heard: &mut Transcript, oids: &mut Oids) -> bool {
        let mut any = false;
        while let Some((tag, body, size)) = complete(&self.read) {
            any = true;
            let body = body.to_vec();
            self.read.drain(..size);
            self.note(tag, &body, heard);
            heard.enter(tag, &body, oids);
        }
        any
    }

    fn note(&mut self, tag: u8, body: &[u8], heard: &mut Transcript) {
        match tag {
            b'K' => {
                if let Some((pid, secret)) = body.split_first_chunk::<4>() {
                    heard.pid = u32::from_be_bytes(*pid);
                    self.secret = secret.to_vec();
                }
            }
            b'Z' => self.status = body.first().copied().unwrap_or(IDLE),
            b'E' if self.due.front().is_some_and(|due| due.is_extended()) => {
                // What stands before the next Sync is not answered (PostgresMain, ignore_till_sync).
                while self.due.front().is_some_and(|due| *due != Due::Sync) {
                    self.due.pop_front();
                }
                self.unflushed = self.unflushed.min(self.due.len());
                self.skipping = self.due.is_empty();
                return;
            }
            _ => {}
        }
        if self.due.front().is_some_and(|due| due.ends_with(tag)) {
            self.due.pop_front();
            self.unflushed = self.unflushed.min(self.due.len());
        }
    }

    /// Asks for a cancel over another connection, and waits until that is taken.
    pub(super) fn cancel(&self, pid: u32) -> Result<()> {
        let mut stream =
            TcpStream::connect_timeout(&self.address, CONNECT_LIMIT).context("cannot connect to cancel")?;
        let mut request = Vec::new();
        put_message(&mut request, None, |out| {
            out.extend_from_slice(&CANCEL.to_be_bytes());
            out.extend_from_slice(&pid.to_be_bytes());
            out.extend_from_slice(&self.secret);
        });
        stream.write_all(&request)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // The end, or a reset: it was taken.
        let _ = stream.read(&mut [0; 1]);
        Ok(())
    }

    /// Nothing more is sent.
    pub(super) fn half_close(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

/// A session of the machine itself: superuser, straight to a server, rows as text.
#[derive(Debug)]
pub(super) struct Control {
    client: Client,
    heard: Transcript,
    oids: Oids,
}

impl Control {
    /// Logs in.
    pub(super) fn connect(address: SocketAddr, database: &str) -> Result<Self> {
        let (mut heard, mut oids) = (Transcript::default(), Oids::default());
        let settings: [(&str, &[u8]); 3] =
            [("user", b"postgres"), ("database", database.as_bytes()), ("application_name", b"equivalence")];
        let client = Client::connect(address, &settings, &mut heard, &mut oids)?;
        ensure!(!client.ended, "{address}: {}", heard.words.join(" "));
        Ok(Self { client, heard, oids })
    }

    /// Runs it; what was heard, as words.
    pub(super) fn ask(&mut self, text: &str) -> Result<Vec<String>> {
        self.heard.words.clear();
        self.client.say(&[Message::Query(text.as_bytes().to_vec())]);
        self.client.listen(&mut self.heard, &mut self.oids);
        if let Some(error) = self.heard.words.iter().find(|word| word.starts_with('E') || *word == "end") {
            anyhow::bail!("{text}: {error}");
        }
        Ok(std::mem::take(&mut self.heard.words))
    }

    /// The rows, each as it was sent, escaped.
    pub(super) fn rows(&mut self, text: &str) -> Result<Vec<String>> {
        Ok(self.ask(text)?.into_iter().filter(|word| word.starts_with("D ")).collect())
    }

    /// The single value of the single row of a query that gives one.
    pub(super) fn value(&mut self, text: &str) -> Result<String> {
        let rows = self.rows(text)?;
        // Two bytes count the columns, four the length.
        let value = rows.first().and_then(|row| row.strip_prefix("D \\x00\\x01\\x00\\x00\\x00"));
        let value = value.with_context(|| format!("{text}: no value in {rows:?}"))?;
        // The length is one character, escaped or not: `\x05`, `\t`, `!`.
        let rest = match value.as_bytes() {
            [b'\\', b'x', ..] => value.get(4..),
            [b'\\', ..] => value.get(2..),
            _ => value.get(1..),
        };
        Ok(rest.unwrap_or_default().to_owned())
    }
}
