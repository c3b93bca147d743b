//! Messages of servers (manual, section 55.7, messages marked B): views of the few that are looked
//! into, builders of those the proxy answers itself.

use bytes::{BufMut, BytesMut};

use super::{WireError, put_cstr, put_message, take_cstr};

/// BindComplete
pub const BIND_COMPLETE: u8 = b'2';
/// CloseComplete
pub const CLOSE_COMPLETE: u8 = b'3';
/// CommandComplete
pub const COMMAND_COMPLETE: u8 = b'C';
/// CopyInResponse
pub const COPY_IN_RESPONSE: u8 = b'G';
/// CopyOutResponse
pub const COPY_OUT_RESPONSE: u8 = b'H';
/// DataRow
pub const DATA_ROW: u8 = b'D';
/// EmptyQueryResponse
pub const EMPTY_QUERY_RESPONSE: u8 = b'I';
/// ErrorResponse
pub const ERROR_RESPONSE: u8 = b'E';
/// FunctionCallResponse
pub const FUNCTION_CALL_RESPONSE: u8 = b'V';
/// NoData
pub const NO_DATA: u8 = b'n';
/// NoticeResponse
pub const NOTICE_RESPONSE: u8 = b'N';
/// NotificationResponse
pub const NOTIFICATION_RESPONSE: u8 = b'A';
/// ParameterDescription
pub const PARAMETER_DESCRIPTION: u8 = b't';
/// ParameterStatus
pub const PARAMETER_STATUS: u8 = b'S';
/// ParseComplete
pub const PARSE_COMPLETE: u8 = b'1';
/// PortalSuspended
pub const PORTAL_SUSPENDED: u8 = b's';
/// ReadyForQuery
pub const READY_FOR_QUERY: u8 = b'Z';
/// RowDescription
pub const ROW_DESCRIPTION: u8 = b'T';

/// Transaction status that ReadyForQuery reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TxStatus {
    /// `I`: not in a transaction block.
    #[default]
    Idle,
    /// `T`: in a transaction block.
    InTransaction,
    /// `E`: in a failed transaction block.
    Failed,
}

impl TxStatus {
    /// Reads the body of a ReadyForQuery.
    pub fn read(body: &[u8]) -> Result<Self, WireError> {
        match body {
            b"I" => Ok(Self::Idle),
            b"T" => Ok(Self::InTransaction),
            b"E" => Ok(Self::Failed),
            _ => Err(WireError::Body('Z')),
        }
    }

    /// As on the wire.
    pub fn as_byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::InTransaction => b'T',
            Self::Failed => b'E',
        }
    }
}

/// The fields of an ErrorResponse or NoticeResponse that decide something. Missing ones are empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorFields<'a> {
    /// `V`, not localised; `S` where the server does not send it.
    pub severity: &'a [u8],
    /// SQLSTATE.
    pub code: &'a [u8],
    /// Primary message, in the server's language.
    pub message: &'a [u8],
    /// Name of the C function that reports it: never localised.
    pub routine: &'a [u8],
}

impl<'a> ErrorFields<'a> {
    /// Reads the body. Never fails: this comes from a server that may be dying.
    pub fn read(mut body: &'a [u8]) -> Self {
        let mut fields = Self::default();
        while let Some((&kind, rest)) = body.split_first() {
            let Some((value, rest)) = (if kind == 0 { None } else { take_cstr(rest) }) else {
                break;
            };
            match kind {
                b'S' if fields.severity.is_empty() => fields.severity = value,
                b'V' => fields.severity = value,
                b'C' => fields.code = value,
                b'M' => fields.message = value,
                b'R' => fields.routine = value,
                _ => {}
            }
            body = rest;
        }
        fields
    }

    /// After this the server closes the connection.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity, b"FATAL" | b"PANIC")
    }
}

/// Name and value of a ParameterStatus.
pub fn parameter_status(body: &[u8]) -> Result<(&[u8], &[u8]), WireError> {
    let split = || {
        let (name, rest) = take_cstr(body)?;
        let (value, _) = take_cstr(rest)?;
        Some((name, value))
    };
    split().ok_or(WireError::Body('S'))
}

/// Columns of a DataRow; `None` is NULL.
pub fn data_row(body: &[u8]) -> Result<Vec<Option<&[u8]>>, WireError> {
    let read = || {
        let (count, mut rest) = body.split_first_chunk::<2>()?;
        let mut columns = Vec::new();
        for _ in 0..u16::from_be_bytes(*count) {
            let (length, after) = rest.split_first_chunk::<4>()?;
            let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
                columns.push(None);
                rest = after;
                continue;
            };
            let (value, after) = after.split_at_checked(length)?;
            columns.push(Some(value));
            rest = after;
        }
        rest.is_empty().then_some(columns)
    };
    read().ok_or(WireError::Body('D'))
}

/// Appends a CommandComplete.
pub fn put_command_complete(out: &mut BytesMut, tag: &str) {
    put_message(out, COMMAND_COMPLETE, |out| put_cstr(out, tag.as_bytes()));
}

/// Appends a ReadyForQuery.
pub fn put_ready(out: &mut BytesMut, status: TxStatus) {
    out.put_slice(&[READY_FOR_QUERY, 0, 0, 0, 5, status.as_byte()]);
}

/// Appends a ParameterStatus.
pub fn put_parameter_status(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    put_message(out, PARAMETER_STATUS, |out| {
        put_cstr(out, name);
        put_cstr(out, value);
    });
}

/// Appends a message without a body: ParseComplete, NoData…
pub fn put_empty(out: &mut BytesMut, tag: u8) {
    out.put_slice(&[tag, 0, 0, 0, 4]);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;

    #[test]
    fn error_fields_are_found_and_garbage_is_survived() {
        let fields = ErrorFields::read(b"SFEHLER\0VERROR\0C25006\0Mnein\0Rprevent\0\0");
        assert_eq!((fields.severity, fields.code, fields.routine), (&b"ERROR"[..], &b"25006"[..], &b"prevent"[..]));
        for body in [&b""[..], b"\0", b"S", b"Sx", b"SFATAL\0C"] {
            let _ = ErrorFields::read(body);
        }
    }

    #[test]
    fn rows_are_read() {
        assert_eq!(data_row(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff").unwrap(), vec![Some(&b"a"[..]), None]);
        assert!(data_row(b"\0\x01\0\0\0\x09a").is_err());
        assert!(data_row(b"\0").is_err());
    }
}
