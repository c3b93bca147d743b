//! Units of a session on its steady path, without sockets: what is said and answered by `pgbench -S`.
//! Used by `allocations.rs` here and by the micro-benchmarks of `bench/`.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use manatee_proxy::auth::Access;
use manatee_proxy::pool::Mode;
use manatee_proxy::route::{Catalog, Classifier};
use manatee_proxy::session::{Config, Kept, Need, ServedBy, ServerState, Session, Shared, Step};
use manatee_proxy::topology::consistency::Consistency;
use manatee_proxy::wire::backend::{self, TxStatus};
use manatee_proxy::wire::{frontend, put_message};

/// A session that reads, and the standby's server it is given for each unit.
pub(crate) struct Table {
    session: Session,
    shared: Shared,
    state: Option<Box<ServerState>>,
    rx: BytesMut,
    server_rx: BytesMut,
}

impl Table {
    pub(crate) fn new() -> Self {
        let catalog = Arc::default();
        let mut shared = Shared::new(Classifier::new(7, 100, Arc::clone(&catalog)));
        // Nothing in it writes.
        catalog.store(Some(Arc::new(Catalog::default())));
        let (access, mode, consistency) = (Access::ReadWrite, Mode::Transaction, Consistency::Session);
        let config = Config { access, mode, split: true, consistency };
        let session = Session::of(Kept::new(config, &[], Vec::new(), &mut shared).unwrap());
        let state = Some(ServerState::new(Vec::new(), &shared));
        Self { session, shared, state, rx: BytesMut::new(), server_rx: BytesMut::new() }
    }

    /// A unit from its first byte to the client's idleness; how many bytes each side was sent.
    pub(crate) fn unit(&mut self, request: &[u8], answer: &[u8]) -> (usize, usize) {
        let (mut to_server, mut to_client) = (0, 0);
        self.shared.buffers.lend(&mut self.rx);
        self.rx.put_slice(request);
        let mut answered = false;
        loop {
            let step = self.session.advance(&mut self.rx, &mut self.shared);
            while self.session.poll_news().is_some() {}
            match step {
                Step::Acquire(need) => {
                    assert_eq!(need, Need::Standby);
                    self.session.attach(self.state.take().unwrap(), ServedBy::Standby);
                }
                Step::Wait if !answered => {
                    answered = true;
                    to_server = self.session.to_server().len();
                    self.session.to_server().clear();
                    self.shared.buffers.lend(&mut self.server_rx);
                    self.server_rx.put_slice(answer);
                    self.session.server_bytes(&mut self.server_rx, &mut self.shared).unwrap();
                }
                Step::Release => self.state = self.session.detach(),
                Step::Wait => {
                    to_client += self.session.to_client().len();
                    self.session.to_client().clear();
                    assert!(self.session.is_idle() && self.rx.is_empty() && self.server_rx.is_empty());
                    self.session.trim(&mut self.shared.buffers);
                    self.shared.buffers.give_back(&mut self.rx);
                    self.shared.buffers.give_back(&mut self.server_rx);
                    return (to_server, to_client);
                }
                Step::Cancel(_) | Step::End => panic!("the session ended"),
            }
        }
    }
}

/// The statement with a parameter.
pub(crate) const TEXT: &[u8] = b"SELECT abalance FROM pgbench_accounts WHERE aid = $1;";

/// The statement with a literal.
pub(crate) const LITERAL: &[u8] = b"SELECT abalance FROM pgbench_accounts WHERE aid = 4711;";

/// The statement as a simple query, and its answer.
pub(crate) fn simple(request: &mut BytesMut, answer: &mut BytesMut) {
    frontend::put_query(request, LITERAL);
    put_message(answer, backend::ROW_DESCRIPTION, |out| out.put_slice(&[0; 30]));
    rows(answer);
}

/// Running the statement that the client of `table` has prepared as `name`, which it does here, and the answer.
pub(crate) fn prepared(table: &mut Table, name: &[u8], request: &mut BytesMut, answer: &mut BytesMut) {
    let (mut parse, mut parsed) = (BytesMut::new(), BytesMut::new());
    frontend::put_parse(&mut parse, name, TEXT, &[0, 0]);
    frontend::put_empty(&mut parse, frontend::SYNC);
    backend::put_empty(&mut parsed, backend::PARSE_COMPLETE);
    described(&mut parsed);
    backend::put_ready(&mut parsed, TxStatus::Idle);
    table.unit(&parse, &parsed);
    bind_and_execute(request, name);
    backend::put_empty(answer, backend::BIND_COMPLETE);
    rows(answer);
}

/// Appends the server's description of the statement, as it comes behind each Parse under a name.
pub(crate) fn described(out: &mut BytesMut) {
    put_message(out, backend::PARAMETER_DESCRIPTION, |out| out.put_slice(&[0, 1, 0, 0, 0, 23]));
    put_message(out, backend::ROW_DESCRIPTION, |out| {
        out.put_slice(b"\0\x01abalance\0");
        out.put_slice(&[0; 18]);
    });
}

/// The end of an answer: a row, and that is all.
pub(crate) fn rows(out: &mut BytesMut) {
    put_message(out, backend::DATA_ROW, |out| out.put_slice(&[0, 1, 0, 0, 0, 1, b'7']));
    backend::put_command_complete(out, "SELECT 1");
    backend::put_ready(out, TxStatus::Idle);
}

/// Runs the statement that was prepared as `statement`.
pub(crate) fn bind_and_execute(out: &mut BytesMut, statement: &[u8]) {
    frontend::put_bind(out, b"", statement, &[0, 0, 0, 1, 0, 0, 0, 1, b'1', 0, 0]);
    put_message(out, frontend::EXECUTE, |out| out.put_slice(&[0; 5]));
    frontend::put_empty(out, frontend::SYNC);
}
