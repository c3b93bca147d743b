//! Messages of clients, as data: they can be counted, left out, encoded and shown.

use std::fmt;

use super::wire::{Kind, put_count, put_message, put_string, put_value};

/// A message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Text, in whatever encoding.
    Query(Vec<u8>),
    /// Name, text, types of parameters.
    Parse(&'static str, Vec<u8>, Vec<u32>),
    /// Portal, statement, values; whether results are wanted in binary.
    Bind(&'static str, &'static str, Vec<Option<Vec<u8>>>, bool),
    /// A statement or a portal.
    Describe(Kind, &'static str),
    /// Portal, rows at most (0: all).
    Execute(&'static str, u32),
    /// A statement or a portal.
    Close(Kind, &'static str),
    /// Flush.
    Flush,
    /// Sync.
    Sync,
    /// Data of a COPY.
    CopyData(Vec<u8>),
    /// The end of a COPY.
    CopyDone,
    /// The end of a COPY that failed.
    CopyFail(&'static str),
    /// OID of a function of integers, and its arguments.
    FunctionCall(u32, Vec<i32>),
    /// Terminate.
    Terminate,
}

impl Message {
    fn tag(&self) -> u8 {
        match self {
            Self::Query(_) => b'Q',
            Self::Parse(..) => b'P',
            Self::Bind(..) => b'B',
            Self::Describe(..) => b'D',
            Self::Execute(..) => b'E',
            Self::Close(..) => b'C',
            Self::Flush => b'H',
            Self::Sync => b'S',
            Self::CopyData(_) => b'd',
            Self::CopyDone => b'c',
            Self::CopyFail(_) => b'f',
            Self::FunctionCall(..) => b'F',
            Self::Terminate => b'X',
        }
    }

    /// Appends it as it is sent.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_message(out, Some(self.tag()), |out| match self {
            Self::Query(text) => put_string(out, text),
            Self::Parse(name, text, types) => {
                put_string(out, name.as_bytes());
                put_string(out, text);
                put_count(out, types.len());
                types.iter().for_each(|oid| out.extend_from_slice(&oid.to_be_bytes()));
            }
            Self::Bind(portal, statement, values, binary) => {
                put_string(out, portal.as_bytes());
                put_string(out, statement.as_bytes());
                put_count(out, 0);
                put_count(out, values.len());
                values.iter().for_each(|value| put_value(out, value.as_deref()));
                out.extend_from_slice(if *binary { &[0, 1, 0, 1] } else { &[0, 0] });
            }
            Self::Describe(kind, name) | Self::Close(kind, name) => {
                out.push(kind.tag());
                put_string(out, name.as_bytes());
            }
            Self::Execute(portal, rows) => {
                put_string(out, portal.as_bytes());
                out.extend_from_slice(&rows.to_be_bytes());
            }
            Self::CopyData(data) => out.extend_from_slice(data),
            Self::CopyFail(why) => put_string(out, why.as_bytes()),
            Self::FunctionCall(oid, arguments) => {
                out.extend_from_slice(&oid.to_be_bytes());
                put_count(out, 0);
                put_count(out, arguments.len());
                arguments.iter().for_each(|value| put_value(out, Some(value.to_string().as_bytes())));
                put_count(out, 0);
            }
            Self::Flush | Self::Sync | Self::CopyDone | Self::Terminate => {}
        });
    }
}

fn kind(kind: Kind) -> char {
    char::from(kind.tag())
}

impl fmt::Display for Message {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query(text) => write!(to, "Query \"{}\"", text.escape_ascii()),
            Self::Parse(name, text, types) => write!(to, "Parse {name:?} \"{}\" {types:?}", text.escape_ascii()),
            Self::Bind(portal, statement, values, binary) => {
                let shown = |value: &Option<Vec<u8>>| {
                    value.as_ref().map_or_else(|| "NULL".to_owned(), |value| value.escape_ascii().to_string())
                };
                let values: Vec<String> = values.iter().map(shown).collect();
                write!(to, "Bind {portal:?} {statement:?} {values:?}{}", if *binary { " binary" } else { "" })
            }
            Self::Describe(what, name) => write!(to, "Describe {} {name:?}", kind(*what)),
            Self::Execute(portal, rows) => write!(to, "Execute {portal:?} {rows}"),
            Self::Close(what, name) => write!(to, "Close {} {name:?}", kind(*what)),
            Self::CopyData(data) => write!(to, "CopyData \"{}\"", data.escape_ascii()),
            Self::FunctionCall(oid, arguments) => write!(to, "FunctionCall {oid} {arguments:?}"),
            Self::CopyFail(why) => write!(to, "CopyFail {why:?}"),
            Self::Flush | Self::Sync | Self::CopyDone | Self::Terminate => write!(to, "{self:?}"),
        }
    }
}

/// Action of a client in one go, before anybody else does anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Logs in, with these settings.
    Connect(Vec<(&'static str, Vec<u8>)>),
    /// Sends it and reads what has to come of it.
    Say(Vec<Message>),
    /// Sends what would take long, and a cancel.
    Cancel(Vec<Message>),
    /// Sends a cancel although nothing runs.
    CancelNothing,
    /// Sends this, and goes without reading the answer.
    Leave(Vec<Message>),
    /// Sends this, closes its sending half, and reads to the end.
    HalfClose(Vec<Message>),
}

impl Action {
    /// Messages that it sends.
    pub(super) fn messages(&self) -> &[Message] {
        match self {
            Self::Say(messages) | Self::Cancel(messages) | Self::Leave(messages) | Self::HalfClose(messages) => {
                messages
            }
            Self::Connect(_) | Self::CancelNothing => &[],
        }
    }

    /// The same with other messages.
    pub(super) fn with(&self, messages: Vec<Message>) -> Self {
        match self {
            Self::Say(_) => Self::Say(messages),
            Self::Cancel(_) => Self::Cancel(messages),
            Self::Leave(_) => Self::Leave(messages),
            Self::HalfClose(_) => Self::HalfClose(messages),
            Self::Connect(_) | Self::CancelNothing => self.clone(),
        }
    }
}

/// An action of one of the clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Number of the client, from 0.
    pub(super) session: usize,
    /// Action.
    pub(super) action: Action,
    /// It binds the session to its server for good.
    pub(super) binds: bool,
    /// It takes locks that others' statements wait for: nobody else may be in a transaction.
    pub(super) alone: bool,
}

impl fmt::Display for Step {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, rest) = match &self.action {
            Action::Connect(settings) => {
                let settings: Vec<String> =
                    settings.iter().map(|(name, value)| format!(" {name}={}", value.escape_ascii())).collect();
                ("connects", settings.concat())
            }
            Action::Say(_) => ("says", String::new()),
            Action::Cancel(_) => ("says, and cancels", String::new()),
            Action::CancelNothing => ("cancels while nothing runs", String::new()),
            Action::Leave(_) => ("says, and leaves", String::new()),
            Action::HalfClose(_) => ("says, and closes its sending half", String::new()),
        };
        write!(to, "{} {verb}{rest}", self.session)?;
        self.action.messages().iter().try_for_each(|message| write!(to, "\n    {message}"))
    }
}
