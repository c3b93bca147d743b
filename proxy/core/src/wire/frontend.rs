//! Messages of clients (manual, section 55.7, messages marked F): views of the few that are looked
//! into, builders of those the proxy sends itself.

use bytes::{BufMut, BytesMut};

use super::{WireError, put_cstr, put_message, take_cstr};

/// Bind
pub const BIND: u8 = b'B';
/// Close
pub const CLOSE: u8 = b'C';
/// CopyData (both directions)
pub const COPY_DATA: u8 = b'd';
/// CopyDone (both directions)
pub const COPY_DONE: u8 = b'c';
/// CopyFail
pub const COPY_FAIL: u8 = b'f';
/// Describe
pub const DESCRIBE: u8 = b'D';
/// Execute
pub const EXECUTE: u8 = b'E';
/// Flush
pub const FLUSH: u8 = b'H';
/// FunctionCall
pub const FUNCTION_CALL: u8 = b'F';
/// Parse
pub const PARSE: u8 = b'P';
/// Query
pub const QUERY: u8 = b'Q';
/// Sync
pub const SYNC: u8 = b'S';
/// Terminate
pub const TERMINATE: u8 = b'X';

/// Object that a Describe or Close names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `S`: a prepared statement.
    Statement,
    /// `P`: a portal.
    Portal,
}

/// Body of a Parse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parse<'a> {
    /// Name of the statement; empty: the unnamed one.
    pub name: &'a [u8],
    /// SQL.
    pub text: &'a [u8],
    /// The rest as sent: count and type OIDs of the parameters.
    pub types: &'a [u8],
}

impl<'a> Parse<'a> {
    /// Reads the body of a Parse.
    pub fn read(body: &'a [u8]) -> Result<Self, WireError> {
        let split = || {
            let (name, rest) = take_cstr(body)?;
            let (text, types) = take_cstr(rest)?;
            let count = usize::from(u16::from_be_bytes(*types.first_chunk()?));
            (types.len() == 2 + 4 * count).then_some(Self { name, text, types })
        };
        split().ok_or(WireError::Body('P'))
    }
}

/// Body of a Bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind<'a> {
    /// Portal to make; empty: the unnamed one.
    pub portal: &'a [u8],
    /// Statement to make it from.
    pub statement: &'a [u8],
    /// The rest as sent: formats and values.
    pub rest: &'a [u8],
}

impl<'a> Bind<'a> {
    /// Reads the names of a Bind; values are left to the server.
    pub fn read(body: &'a [u8]) -> Result<Self, WireError> {
        let split = || {
            let (portal, rest) = take_cstr(body)?;
            let (statement, rest) = take_cstr(rest)?;
            Some(Self { portal, statement, rest })
        };
        split().ok_or(WireError::Body('B'))
    }
}

/// Body of a Describe or Close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Statement or portal.
    pub kind: Kind,
    /// Its name.
    pub name: &'a [u8],
}

impl<'a> Target<'a> {
    /// Reads the body of the Describe or Close with this `tag`.
    pub fn read(tag: u8, body: &'a [u8]) -> Result<Self, WireError> {
        let kind = match body.first() {
            Some(b'S') => Kind::Statement,
            Some(b'P') => Kind::Portal,
            _ => return Err(WireError::Body(char::from(tag))),
        };
        match take_cstr(&body[1..]) {
            Some((name, [])) => Ok(Self { kind, name }),
            _ => Err(WireError::Body(char::from(tag))),
        }
    }
}

/// The SQL of a Query.
pub fn query_text(body: &[u8]) -> Result<&[u8], WireError> {
    match take_cstr(body) {
        Some((text, [])) => Ok(text),
        _ => Err(WireError::Body('Q')),
    }
}

/// Appends a Query.
pub fn put_query(out: &mut BytesMut, text: &[u8]) {
    put_message(out, QUERY, |out| put_cstr(out, text));
}

/// Appends a Parse; `types` as in [`Parse::types`].
pub fn put_parse(out: &mut BytesMut, name: &[u8], text: &[u8], types: &[u8]) {
    put_message(out, PARSE, |out| {
        put_cstr(out, name);
        put_cstr(out, text);
        out.put_slice(types);
    });
}

/// Appends a Bind; `rest` as in [`Bind::rest`].
pub fn put_bind(out: &mut BytesMut, portal: &[u8], statement: &[u8], rest: &[u8]) {
    put_message(out, BIND, |out| {
        put_cstr(out, portal);
        put_cstr(out, statement);
        out.put_slice(rest);
    });
}

/// Appends a Describe or Close (`tag`).
pub fn put_target(out: &mut BytesMut, tag: u8, kind: Kind, name: &[u8]) {
    put_message(out, tag, |out| {
        out.put_u8(match kind {
            Kind::Statement => b'S',
            Kind::Portal => b'P',
        });
        put_cstr(out, name);
    });
}

/// Appends a message without a body: Sync, Flush, Terminate…
pub fn put_empty(out: &mut BytesMut, tag: u8) {
    out.put_slice(&[tag, 0, 0, 0, 4]);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;

    #[test]
    fn what_is_built_reads_back() {
        let mut out = BytesMut::new();
        put_parse(&mut out, b"s", b"select $1", &[0, 1, 0, 0, 0, 23]);
        let parse = Parse::read(&out[5..]).unwrap();
        assert_eq!((parse.name, parse.text, parse.types), (&b"s"[..], &b"select $1"[..], &[0, 1, 0, 0, 0, 23][..]));
        out.clear();
        put_bind(&mut out, b"p", b"s", b"\0\0rest");
        let bind = Bind::read(&out[5..]).unwrap();
        assert_eq!((bind.portal, bind.statement, bind.rest), (&b"p"[..], &b"s"[..], &b"\0\0rest"[..]));
        out.clear();
        put_target(&mut out, CLOSE, Kind::Statement, b"s");
        assert_eq!(Target::read(CLOSE, &out[5..]).unwrap(), Target { kind: Kind::Statement, name: b"s" });
    }

    #[test]
    fn malformed_bodies_are_refused() {
        assert!(Parse::read(b"s\0select").is_err());
        assert!(Parse::read(b"s\0select 1\0\0\x01").is_err());
        assert!(Bind::read(b"p\0s").is_err());
        assert!(Target::read(DESCRIBE, b"").is_err());
        assert!(Target::read(DESCRIBE, b"Xs\0").is_err());
        assert!(Target::read(DESCRIBE, b"Ss\0more").is_err());
        assert!(query_text(b"no end").is_err());
        assert!(query_text(b"a\0b\0").is_err());
    }
}
