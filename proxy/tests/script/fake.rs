//! A PostgreSQL of a few statements: enough of the protocol's rules to tell whether a session behind
//! the proxy sees what it would see without it.

use std::collections::HashMap;

use bytes::{Buf, BufMut, BytesMut};
use manatee_proxy::error::{SqlState, encode_response};
use manatee_proxy::wire::backend::{self, TxStatus};
use manatee_proxy::wire::frontend::{self, Bind, Kind, Parse, Target};
use manatee_proxy::wire::{complete, put_cstr, put_message, take_cstr};

#[derive(Default)]
pub(crate) struct Fake {
    status: TxStatus,
    /// Text, and columns of the table when it was prepared.
    statements: HashMap<Vec<u8>, (Vec<u8>, u16)>,
    portals: HashMap<Vec<u8>, Vec<u8>>,
    skipping: bool,
    copying: bool,
    input: BytesMut,
    /// Texts run, for tests that look at where they went.
    pub(crate) ran: Vec<String>,
    /// Answers 25006 to what writes.
    pub(crate) read_only: bool,
    /// Parse messages seen.
    pub(crate) parsed: usize,
    /// Its only table was dropped.
    pub(crate) gone: bool,
    /// Columns of its only table.
    pub(crate) columns: u16,
    /// First columns of the answer to what the proxy asks about pins.
    pub(crate) pins: Vec<&'static str>,
}

const ABORTED: &str = "current transaction is aborted, commands ignored until end of transaction block";

type Failure = (&'static [u8; 5], String);

impl Fake {
    /// DISCARD ALL.
    pub(crate) fn discard(&mut self) {
        self.statements.clear();
        self.portals.clear();
    }

    /// Names of its prepared statements.
    pub(crate) fn statement_names(&self) -> Vec<&[u8]> {
        self.statements.keys().map(AsRef::as_ref).collect()
    }

    /// Takes bytes of the client, appends what the server says.
    pub(crate) fn feed(&mut self, bytes: &[u8], out: &mut BytesMut) {
        self.input.extend_from_slice(bytes);
        while let Ok(Some((header, _))) = complete(&self.input) {
            let message = self.input.split_to(header.size);
            self.message(header.tag, &message[5..], out);
        }
    }

    fn message(&mut self, tag: u8, body: &[u8], out: &mut BytesMut) {
        if self.copying {
            match tag {
                frontend::COPY_DONE => {
                    self.copying = false;
                    backend::put_command_complete(out, "COPY 1");
                    self.ready(out);
                }
                frontend::COPY_FAIL => {
                    self.copying = false;
                    self.fail((b"57014", "COPY failed".to_owned()), out);
                    self.ready(out);
                }
                _ => {}
            }
            return;
        }
        if self.skipping && tag != frontend::SYNC {
            return;
        }
        let result = match tag {
            frontend::QUERY => {
                self.statements.remove(&b""[..]);
                let text = frontend::query_text(body).unwrap_or_default().to_vec();
                if text == b"copy t from stdin" && self.status != TxStatus::Failed {
                    put_message(out, backend::COPY_IN_RESPONSE, |out| out.put_slice(&[0, 0, 0]));
                    self.copying = true;
                    return;
                }
                if let Err(failure) = self.run(&text, true, out) {
                    self.fail(failure, out);
                }
                self.ready(out);
                return;
            }
            frontend::SYNC => {
                self.skipping = false;
                self.ready(out);
                return;
            }
            frontend::PARSE => self.parse(body, out),
            frontend::BIND => self.bind(body, out),
            frontend::DESCRIBE => self.describe(body, out),
            frontend::EXECUTE => {
                let portal = take_cstr(body).map(|(name, _)| name.to_vec()).unwrap_or_default();
                match self.portals.get(&portal).cloned() {
                    Some(text) => self.run(&text, false, out),
                    None => Err((b"34000", "no portal".to_owned())),
                }
            }
            frontend::CLOSE => {
                if let Ok(Target { kind, name }) = Target::read(tag, body) {
                    match kind {
                        Kind::Statement => drop(self.statements.remove(name)),
                        Kind::Portal => drop(self.portals.remove(name)),
                    }
                }
                backend::put_empty(out, backend::CLOSE_COMPLETE);
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(failure) = result {
            self.fail(failure, out);
            self.skipping = true;
        }
    }

    fn ready(&mut self, out: &mut BytesMut) {
        if self.status == TxStatus::Idle {
            self.portals.clear();
        }
        backend::put_ready(out, self.status);
    }

    fn fail(&mut self, (code, message): Failure, out: &mut BytesMut) {
        encode_response(out, b'E', "ERROR", SqlState(*code), &message, None);
        if self.status == TxStatus::InTransaction {
            self.status = TxStatus::Failed;
        }
    }

    fn allowed(&self, text: &[u8]) -> Result<(), Failure> {
        let ends = matches!(text, b"commit" | b"rollback");
        if self.status == TxStatus::Failed && !ends { Err((b"25P02", ABORTED.to_owned())) } else { Ok(()) }
    }

    fn parse(&mut self, body: &[u8], out: &mut BytesMut) -> Result<(), Failure> {
        let parse = Parse::read(body).expect("parse");
        self.parsed += 1;
        if parse.name.is_empty() {
            self.statements.remove(&b""[..]);
        }
        // PostgreSQL looks at the name last; the proxy refuses a name before the server sees the text.
        if self.statements.contains_key(parse.name) {
            self.allowed(parse.text)?;
            let name = String::from_utf8_lossy(parse.name);
            return Err((b"42P05", format!("prepared statement \"{name}\" already exists")));
        }
        if parse.text == b"fail parse" {
            return Err((b"42601", "syntax".to_owned()));
        }
        self.allowed(parse.text)?;
        self.is_there(parse.text)?;
        self.statements.insert(parse.name.to_vec(), (parse.text.to_vec(), self.columns));
        backend::put_empty(out, backend::PARSE_COMPLETE);
        Ok(())
    }

    fn is_there(&self, text: &[u8]) -> Result<(), Failure> {
        let missing = self.gone && text.starts_with(b"select");
        if missing { Err((b"42P01", "no table".to_owned())) } else { Ok(()) }
    }

    /// A statement as it is, or as it would be analysed now.
    fn current(&self, name: &[u8]) -> Result<Vec<u8>, Failure> {
        let (text, columns) = self.statements.get(name).ok_or_else(|| missing(name))?;
        self.allowed(text)?;
        self.is_there(text)?;
        if *columns != self.columns && text.starts_with(b"select") {
            return Err((b"0A000", "cached plan must not change result type".to_owned()));
        }
        Ok(text.clone())
    }

    fn bind(&mut self, body: &[u8], out: &mut BytesMut) -> Result<(), Failure> {
        let bind = Bind::read(body).expect("bind");
        let text = self.current(bind.statement)?;
        self.portals.insert(bind.portal.to_vec(), text);
        backend::put_empty(out, backend::BIND_COMPLETE);
        Ok(())
    }

    fn describe(&mut self, body: &[u8], out: &mut BytesMut) -> Result<(), Failure> {
        let target = Target::read(frontend::DESCRIBE, body).expect("describe");
        let text = match target.kind {
            Kind::Statement => self.current(target.name),
            Kind::Portal => self.portals.get(target.name).cloned().ok_or((b"34000", "no portal".to_owned())),
        }?;
        self.allowed(&text)?;
        if target.kind == Kind::Statement {
            put_message(out, backend::PARAMETER_DESCRIPTION, |out| out.put_u16(0));
        }
        if text.starts_with(b"select") {
            self.row_description(out);
        } else {
            backend::put_empty(out, backend::NO_DATA);
        }
        Ok(())
    }

    fn row_description(&self, out: &mut BytesMut) {
        put_message(out, backend::ROW_DESCRIPTION, |out| {
            out.put_u16(self.columns);
            for _ in 0..self.columns {
                put_cstr(out, b"column");
                out.put_slice(&[0; 18]);
            }
        });
    }

    fn run(&mut self, text: &[u8], describe: bool, out: &mut BytesMut) -> Result<(), Failure> {
        self.allowed(text)?;
        self.ran.push(String::from_utf8_lossy(text).into_owned());
        match text {
            b"" => {
                put_message(out, backend::EMPTY_QUERY_RESPONSE, |_| {});
                return Ok(());
            }
            b"begin" => {
                self.status = TxStatus::InTransaction;
                backend::put_command_complete(out, "BEGIN");
            }
            b"commit" => {
                let tag = if self.status == TxStatus::Failed { "ROLLBACK" } else { "COMMIT" };
                self.status = TxStatus::Idle;
                backend::put_command_complete(out, tag);
            }
            b"rollback" => {
                self.status = TxStatus::Idle;
                backend::put_command_complete(out, "ROLLBACK");
            }
            _ if text.starts_with(b"SET TRANSACTION ISOLATION LEVEL READ COMMITTED;SELECT '") => {
                for pin in &self.pins {
                    put_message(out, backend::DATA_ROW, |out| {
                        out.put_slice(&[0, 3, 0, 0, 0, 1]);
                        out.put_slice(pin.as_bytes());
                        out.put_slice(&[0; 8]);
                    });
                }
                backend::put_command_complete(out, "SELECT 1");
            }
            _ if text.starts_with(b"deallocate ") => {
                let name = &text[b"deallocate ".len()..];
                self.statements.remove(name).ok_or_else(|| missing(name))?;
                backend::put_command_complete(out, "DEALLOCATE");
            }
            b"fail" => return Err((b"22012", "division by zero".to_owned())),
            b"select writes" if self.read_only => return Err((b"25006", "read-only".to_owned())),
            _ if text.starts_with(b"select") => {
                if describe {
                    put_message(out, backend::ROW_DESCRIPTION, |out| out.put_u16(0));
                }
                put_message(out, backend::DATA_ROW, |out| put_cstr(out, text));
                backend::put_command_complete(out, "SELECT 1");
            }
            _ if self.read_only => return Err((b"25006", "read-only".to_owned())),
            _ => backend::put_command_complete(out, "INSERT 0 1"),
        }
        Ok(())
    }
}

fn missing(name: &[u8]) -> Failure {
    (b"26000", format!("prepared statement \"{}\" does not exist", String::from_utf8_lossy(name)))
}

/// Splits off at most `count` bytes.
pub(crate) fn take(bytes: &mut BytesMut, count: usize) -> BytesMut {
    bytes.split_to(count.min(bytes.remaining()))
}
