//! Ends of a unit other than by its server's answer: told an error, forgotten, or run again.

use bytes::{BufMut, BytesMut};

use super::{Session, buffers};
use crate::error::{ProxyError, Severity, SqlState, encode_response};
use crate::wire::backend::{self, TxStatus};

impl Session {
    /// The server asked for cannot be had.
    pub fn refuse(&mut self, error: &ProxyError, rx: &mut BytesMut) {
        match error.severity() {
            Severity::Fatal => self.end_with(error),
            Severity::Error => {
                let status = self.fail_moving();
                self.tell(error, status, rx);
            }
        }
    }

    /// The proxy is about to close the connection for this reason.
    pub fn end_with(&mut self, error: &ProxyError) {
        if !self.is_within_message() {
            self.news.error(error);
            error.encode(&mut self.to_client);
            if error.severity() == Severity::Error {
                // The connection ends all the same.
                encode_response(
                    &mut self.to_client,
                    b'E',
                    "FATAL",
                    SqlState::CONNECTION_FAILURE,
                    "closing the connection after an error",
                    None,
                );
            }
        }
        self.go_end();
    }

    /// Says `error` as the unit's answer. The client is in `status` afterwards.
    pub(super) fn tell(&mut self, error: &ProxyError, status: TxStatus, rx: &mut BytesMut) {
        self.news.error(error);
        error.encode(&mut self.to_client);
        self.end_told(status, rx);
    }

    /// As [`Session::tell`], in the words of a server: an ErrorResponse.
    pub(super) fn tell_words(&mut self, error: &[u8], status: TxStatus, rx: &mut BytesMut) {
        let code = error.get(crate::wire::HEADER_BYTES..).map(|body| backend::ErrorFields::read(body).code);
        self.news.servers_error(code.unwrap_or_default());
        self.to_client.put_slice(error);
        self.end_told(status, rx);
    }

    /// The unit's answer was an error of the proxy.
    pub(super) fn end_told(&mut self, status: TxStatus, rx: &mut BytesMut) {
        if self.unit.input.is_open() {
            self.consume(rx);
            self.status = status;
            return self.go_skip();
        }
        backend::put_ready(&mut self.to_client, status);
        self.forget_unit(status, rx);
    }

    /// The unit is over; the client is in `status`.
    pub(super) fn forget_unit(&mut self, status: TxStatus, rx: &mut BytesMut) {
        self.consume(rx);
        self.status = status;
        if status == TxStatus::Idle {
            self.staged.clear();
            self.portals.clear();
            self.sets = false;
        }
        self.unit.reset(status);
        self.go_gather();
    }

    /// The unit runs on another server. It began outside a transaction.
    pub(super) fn run_again(&mut self) {
        // Nothing was staged before it.
        self.staged.clear();
        self.news.rerun();
        self.unit.rewind();
        self.go_elsewhere();
    }

    /// Takes the unit's bytes from the client's buffer.
    pub(super) fn consume(&mut self, rx: &mut BytesMut) {
        if self.unit.is_here() {
            buffers::consume(rx, self.unit.end);
            self.unit.end = 0;
        }
    }
}
