//! `SELECT pg_cancel_backend(n)` with the number that the proxy told one of its clients: no server knows it. Tools
//! whose Stop button asks another connection to cancel send just that text.

use bytes::{BufMut, BytesMut};

use super::Session;
use super::state::Stage;
use super::unit::Shape;
use crate::route::class::{Access, Reason};
use crate::wire::backend::{self, TxStatus};
use crate::wire::{self, frontend, put_cstr, put_message};

/// Process ids of real processes are below this (`PID_MAX_LIMIT`, Linux); those of the proxy's clients are not.
pub const LOWEST_CLIENT_PID: u32 = 1 << 22;

/// Longest text that is looked at.
const MAX_TEXT_BYTES: usize = 128;

const FUNCTION: &str = "pg_cancel_backend";

impl Session {
    /// Whether the unit at hand is such a text, and whom it is about.
    pub(super) fn cancels_client(&self, rx: &BytesMut) -> Option<u32> {
        let class = self.unit.class.as_ref()?;
        // What the classifier says of such a function, with the catalog and without.
        let may_be = matches!(class.access, Access::Primary(Reason::Node | Reason::NoCatalog | Reason::Function))
            && self.unit.shape == Shape::Simple
            && !self.unit.input.is_open()
            && self.unit.mentions == 1
            && self.unit.end <= MAX_TEXT_BYTES
            && self.status != TxStatus::Failed;
        if !may_be {
            return None;
        }
        let (header, body) = wire::complete(rx).ok()??;
        (header.tag == frontend::QUERY).then(|| argument(frontend::query_text(body).ok()?))?
    }

    /// Notes the result of [`super::Step::Cancel`]. If there is no such client, or it is another role's, the server is
    /// asked as ever: it says that it knows no such process.
    pub fn canceled_client(&mut self, is_done: bool, rx: &mut BytesMut) {
        if !is_done {
            return self.go_attached(Stage::Preparing);
        }
        const BOOL_OID: u32 = 16;
        let out = &mut self.to_client;
        put_message(out, backend::ROW_DESCRIPTION, |out| {
            out.put_u16(1);
            put_cstr(out, FUNCTION.as_bytes());
            out.put_u32(0);
            out.put_u16(0);
            out.put_u32(BOOL_OID);
            out.put_i16(1);
            out.put_i32(-1);
            out.put_u16(0);
        });
        put_message(out, backend::DATA_ROW, |out| out.put_slice(&[0, 1, 0, 0, 0, 1, b't']));
        backend::put_command_complete(out, "SELECT 1");
        backend::put_ready(out, self.status);
        self.forget_unit(self.status, rx);
    }
}

/// The number, if the text is nothing else.
fn argument(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok()?.trim().to_ascii_lowercase();
    let call = text.trim_end_matches(';').trim_end().strip_prefix("select")?;
    let call = call.strip_prefix(char::is_whitespace)?.trim_start();
    let call = call.strip_prefix("pg_catalog.").unwrap_or(call).strip_prefix(FUNCTION)?.trim_start();
    let number = call.strip_prefix('(')?.strip_suffix(')')?.trim();
    let pid = number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok())??;
    (pid >= LOWEST_CLIENT_PID).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::argument;

    #[test]
    fn only_a_call_with_a_number_that_no_process_has() {
        for text in ["SELECT pg_cancel_backend(5000000)", " select\n pg_catalog.pg_cancel_backend ( 5000000 ) ; "] {
            assert_eq!(argument(text.as_bytes()), Some(5_000_000), "{text}");
        }
        for text in [
            "select pg_cancel_backend(4194303)",
            "select pg_cancel_backend(-5000000)",
            "select pg_cancel_backend(99999999999)",
            "select pg_cancel_backend(5000000), 1",
            "select pg_cancel_backend(5000000) from t",
            "select pg_terminate_backend(5000000)",
            "selectpg_cancel_backend(5000000)",
            "select pg_cancel_backend()",
            "select",
        ] {
            assert_eq!(argument(text.as_bytes()), None, "{text}");
        }
    }
}
