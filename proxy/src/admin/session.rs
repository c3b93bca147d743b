//! A console's connection: simple and extended protocol over the commands. No parameters, no
//! transactions; every answer is complete.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::command::{self, Command, Subject};
use super::rights::Rights;
use super::table::{Column, put_description, put_rows};
use super::{Outcome, execute};
use crate::context::ProxyContext;
use crate::error::{SqlState, encode_response};
use crate::wire::backend::{self, TxStatus};
use crate::wire::{HEADER_BYTES, Header, complete, put_message, take_cstr};

/// Longest message of an administrator.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Statements and portals kept.
const MAX_KEPT: usize = 64;

/// Serves one until it leaves. [`super::welcome`] has been sent.
pub async fn serve<S>(mut stream: S, rights: Rights, shared: Arc<ProxyContext>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut session = Session { rights, shared, statements: HashMap::new(), portals: HashMap::new(), skipping: false };
    let mut input = BytesMut::with_capacity(1024);
    let mut out = BytesMut::new();
    loop {
        let goes_on = session.answer(&mut input, &mut out).await;
        // Whoever is gone gets no answer.
        if stream.write_all(&out).await.is_err() || stream.flush().await.is_err() || !goes_on {
            let _ = stream.shutdown().await;
            return;
        }
        out.clear();
        match stream.read_buf(&mut input).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

struct Portal {
    commands: Vec<Command>,
    binary: Vec<bool>,
}

struct Session {
    rights: Rights,
    shared: Arc<ProxyContext>,
    statements: HashMap<Vec<u8>, Vec<Command>>,
    portals: HashMap<Vec<u8>, Portal>,
    /// After an error in the extended protocol, up to Sync.
    skipping: bool,
}

/// SQLSTATE and text of an error.
type Problem = (SqlState, String);

fn malformed() -> Problem {
    (SqlState::PROTOCOL_VIOLATION, "malformed message".to_owned())
}

impl Session {
    /// Answers all complete messages in `input`; false if the connection is to end.
    async fn answer(&mut self, input: &mut BytesMut, out: &mut BytesMut) -> bool {
        loop {
            match Header::read(input) {
                Ok(Some(header)) if header.size <= MAX_MESSAGE_BYTES => {}
                Ok(None) => return true,
                _ => {
                    fatal(out, "invalid message length");
                    return false;
                }
            }
            let message = match complete(input) {
                Ok(Some((header, _))) => input.split_to(header.size),
                _ => return true,
            };
            let (tag, mut body) = (message[0], message);
            body.advance(HEADER_BYTES);
            match tag {
                b'X' => return false,
                b'Q' => self.simple(&body, out).await,
                b'S' => {
                    self.skipping = false;
                    backend::put_ready(out, TxStatus::Idle);
                }
                b'H' => {}
                b'P' | b'B' | b'D' | b'E' | b'C' if self.skipping => {}
                b'P' | b'B' | b'D' | b'E' | b'C' => {
                    if let Err((code, text)) = self.extended(tag, &body, out).await {
                        encode_response(out, b'E', "ERROR", code, &text, None);
                        self.skipping = true;
                    }
                }
                _ => {
                    fatal(out, "this message makes no sense to the console");
                    return false;
                }
            }
        }
    }

    async fn simple(&mut self, body: &[u8], out: &mut BytesMut) {
        let result = match parse(body) {
            Ok((commands, _)) => self.run(commands, None, out).await,
            Err(problem) => Err(problem),
        };
        if let Err((code, text)) = result {
            encode_response(out, b'E', "ERROR", code, &text, None);
        }
        backend::put_ready(out, TxStatus::Idle);
    }

    async fn extended(&mut self, tag: u8, body: &[u8], out: &mut BytesMut) -> Result<(), Problem> {
        match tag {
            b'P' => {
                let (name, rest) = take_cstr(body).ok_or_else(malformed)?;
                let (commands, _) = parse(rest)?;
                if commands.len() > 1 {
                    let text = "cannot insert multiple commands into a prepared statement";
                    return Err((SqlState::SYNTAX_ERROR, text.to_owned()));
                }
                keep(&mut self.statements, name, commands)?;
                backend::put_empty(out, backend::PARSE_COMPLETE);
            }
            b'B' => {
                let (name, portal) = bind(body, &self.statements)?;
                keep(&mut self.portals, name, portal)?;
                backend::put_empty(out, backend::BIND_COMPLETE);
            }
            b'D' => {
                let (&kind, rest) = body.split_first().ok_or_else(malformed)?;
                let (name, _) = take_cstr(rest).ok_or_else(malformed)?;
                let commands = if kind == b'S' {
                    put_message(out, backend::PARAMETER_DESCRIPTION, |out| out.put_u16(0));
                    self.statements.get(name)
                } else {
                    self.portals.get(name).map(|portal| &portal.commands)
                };
                let commands = commands.cloned().ok_or_else(no_such)?;
                self.describe(&commands, out).await;
            }
            b'E' => {
                let (name, _) = take_cstr(body).ok_or_else(malformed)?;
                let portal = self.portals.get(name).ok_or_else(no_such)?;
                let (commands, binary) = (portal.commands.clone(), portal.binary.clone());
                self.run(commands, Some(&binary), out).await?;
            }
            _ => {
                let (&kind, rest) = body.split_first().ok_or_else(malformed)?;
                let (name, _) = take_cstr(rest).ok_or_else(malformed)?;
                if kind == b'S' {
                    self.statements.remove(name);
                } else {
                    self.portals.remove(name);
                }
                backend::put_empty(out, backend::CLOSE_COMPLETE);
            }
        }
        Ok(())
    }

    async fn describe(&self, commands: &[Command], out: &mut BytesMut) {
        match commands {
            [Command::Show(subject)] => put_description(out, self.columns(*subject).await),
            _ => backend::put_empty(out, backend::NO_DATA),
        }
    }

    async fn columns(&self, subject: Subject) -> &'static [Column] {
        // They do not depend on what is in the table; making it is quick.
        match execute(Command::Show(subject), Rights::Look, &self.shared).await {
            Outcome::Table(table) => table.columns,
            Outcome::Done(_) | Outcome::Notice(_) | Outcome::Refused(..) => &[],
        }
    }

    /// Runs commands; in the extended protocol (`binary` given) rows come without a description.
    async fn run(&self, commands: Vec<Command>, binary: Option<&[bool]>, out: &mut BytesMut) -> Result<(), Problem> {
        for command in commands {
            if command == Command::Empty {
                backend::put_empty(out, backend::EMPTY_QUERY_RESPONSE);
                continue;
            }
            match execute(command, self.rights, &self.shared).await {
                Outcome::Table(table) => {
                    if binary.is_none() {
                        put_description(out, table.columns);
                    }
                    put_rows(out, &table, binary.unwrap_or_default());
                    backend::put_command_complete(out, "SHOW");
                }
                Outcome::Done(tag) => backend::put_command_complete(out, tag),
                Outcome::Notice(text) => {
                    let text = format!("Console usage{text}");
                    encode_response(out, b'N', "NOTICE", SqlState::SUCCESSFUL_COMPLETION, &text, None);
                    backend::put_command_complete(out, "SHOW");
                }
                Outcome::Refused(code, text) => return Err((code, text)),
            }
        }
        Ok(())
    }
}

fn fatal(out: &mut BytesMut, text: &str) {
    encode_response(out, b'E', "FATAL", SqlState::PROTOCOL_VIOLATION, text, None);
}

fn no_such() -> Problem {
    (SqlState::INVALID_SQL_STATEMENT_NAME, "no such statement or portal".to_owned())
}

/// Reads a text; also what follows it.
fn parse(body: &[u8]) -> Result<(Vec<Command>, &[u8]), Problem> {
    let (text, rest) = take_cstr(body).ok_or_else(malformed)?;
    let text = std::str::from_utf8(text)
        .map_err(|_| (SqlState::CHARACTER_NOT_IN_REPERTOIRE, "the command is not valid UTF-8".to_owned()))?;
    let commands = command::parse(text).map_err(|error| (SqlState::SYNTAX_ERROR, error.to_string()))?;
    Ok((commands, rest))
}

fn keep<T>(kept: &mut HashMap<Vec<u8>, T>, name: &[u8], value: T) -> Result<(), Problem> {
    if kept.len() >= MAX_KEPT && !kept.contains_key(name) {
        let text = format!("more than {MAX_KEPT} statements or portals");
        return Err((SqlState::CONFIGURATION_LIMIT_EXCEEDED, text));
    }
    kept.insert(name.to_vec(), value);
    Ok(())
}

/// Reads Bind: the portal's name and what it will run.
fn bind<'a>(body: &'a [u8], statements: &HashMap<Vec<u8>, Vec<Command>>) -> Result<(&'a [u8], Portal), Problem> {
    let (name, rest) = take_cstr(body).ok_or_else(malformed)?;
    let (statement, rest) = take_cstr(rest).ok_or_else(malformed)?;
    let commands = statements.get(statement).cloned().ok_or_else(no_such)?;
    let (_, rest) = codes(rest)?;
    let (parameters, rest) = rest.split_first_chunk::<2>().ok_or_else(malformed)?;
    if u16::from_be_bytes(*parameters) > 0 {
        return Err((SqlState::PROTOCOL_VIOLATION, "the console takes no parameters".to_owned()));
    }
    let (binary, _) = codes(rest)?;
    Ok((name, Portal { commands, binary }))
}

/// A counted list of format codes, and what follows it.
fn codes(bytes: &[u8]) -> Result<(Vec<bool>, &[u8]), Problem> {
    let (count, rest) = bytes.split_first_chunk::<2>().ok_or_else(malformed)?;
    let size = usize::from(u16::from_be_bytes(*count)) * 2;
    let (codes, rest) = rest.split_at_checked(size).ok_or_else(malformed)?;
    Ok((codes.chunks_exact(2).map(|code| code == [0, 1]).collect(), rest))
}
