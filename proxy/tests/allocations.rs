//! The steady path of a session asks for no memory: what a unit needs is there from the one before,
//! although the session gives its buffers back whenever it is idle. And an idle client has little.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "allocations/idle.rs"]
mod idle;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use manatee_proxy::auth::Access;
use manatee_proxy::pool::Mode;
use manatee_proxy::route::Classifier;
use manatee_proxy::session::{Config, Kept, ServedBy, ServerState, Session, Shared, Step};
use manatee_proxy::topology::consistency::Consistency;
use manatee_proxy::wire::backend::{self, TxStatus};
use manatee_proxy::wire::{frontend, put_message};

/// The system's allocator, which counts for each thread how often it is asked, and how many bytes more it
/// has given than it was given back.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
    static TAKEN_BYTES: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    // Not there any more while a thread ends.
    let _ = ASKED.try_with(|asked| asked.set(asked.get() + 1));
    take(bytes.cast_signed());
}

fn take(bytes: isize) {
    let _ = TAKEN_BYTES.try_with(|taken| taken.set(taken.get() + bytes));
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps to the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        take(-layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        take(-layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A session and the server it is given for each unit.
struct Table {
    session: Session,
    shared: Shared,
    state: Option<Box<ServerState>>,
    rx: BytesMut,
    server_rx: BytesMut,
}

impl Table {
    fn new() -> Self {
        let mut shared = Shared::new(Classifier::new(7, 100, Arc::default()));
        let (access, mode, consistency) = (Access::ReadWrite, Mode::Transaction, Consistency::Session);
        let config = Config { access, mode, split: true, consistency };
        let session = Session::of(Kept::new(config, &[], Vec::new(), &mut shared).unwrap());
        let state = Some(ServerState::new(Vec::new(), &shared));
        Self { session, shared, state, rx: BytesMut::new(), server_rx: BytesMut::new() }
    }

    /// A unit from its first byte to the client's idleness; how many bytes each side was sent.
    fn unit(&mut self, request: &[u8], answer: &[u8]) -> (usize, usize) {
        let (mut to_server, mut to_client) = (0, 0);
        self.shared.buffers.lend(&mut self.rx);
        self.rx.put_slice(request);
        let mut answered = false;
        loop {
            let step = self.session.advance(&mut self.rx, &mut self.shared);
            match step {
                Step::Acquire(_) => self.session.attach(self.state.take().unwrap(), ServedBy::Primary),
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
                Step::End => panic!("the session ended"),
            }
        }
    }

    /// How often memory is asked for by a thousand of these, after a few to begin with.
    fn allocations(&mut self, request: &[u8], answer: &[u8], sent: (usize, usize)) -> u64 {
        for _ in 0..10 {
            self.unit(request, answer);
        }
        let before = ASKED.get();
        for _ in 0..1000 {
            assert_eq!(self.unit(request, answer), sent);
        }
        ASKED.get() - before
    }
}

fn rows(out: &mut BytesMut) {
    put_message(out, backend::DATA_ROW, |out| out.put_slice(&[0, 1, 0, 0, 0, 1, b'7']));
    backend::put_command_complete(out, "SELECT 1");
    backend::put_ready(out, TxStatus::Idle);
}

fn bind_and_execute(out: &mut BytesMut, statement: &[u8]) {
    frontend::put_bind(out, b"", statement, &[0, 0, 0, 1, 0, 0, 0, 1, b'1', 0, 0]);
    put_message(out, frontend::EXECUTE, |out| out.put_slice(&[0; 5]));
    frontend::put_empty(out, frontend::SYNC);
}

const TEXT: &[u8] = b"SELECT abalance FROM pgbench_accounts WHERE aid = $1;";

#[test]
fn a_query_asks_for_no_memory() {
    let (mut request, mut answer) = (BytesMut::new(), BytesMut::new());
    frontend::put_query(&mut request, b"SELECT abalance FROM pgbench_accounts WHERE aid = 4711;");
    put_message(&mut answer, backend::ROW_DESCRIPTION, |out| out.put_slice(&[0; 30]));
    rows(&mut answer);
    let mut table = Table::new();
    assert_eq!(table.allocations(&request, &answer, (request.len(), answer.len())), 0);
}

#[test]
fn the_unnamed_statement_asks_for_no_memory() {
    let (mut request, mut answer) = (BytesMut::new(), BytesMut::new());
    frontend::put_parse(&mut request, b"", TEXT, &[0, 0]);
    bind_and_execute(&mut request, b"");
    backend::put_empty(&mut answer, backend::PARSE_COMPLETE);
    backend::put_empty(&mut answer, backend::BIND_COMPLETE);
    rows(&mut answer);
    let mut table = Table::new();
    assert_eq!(table.allocations(&request, &answer, (request.len(), answer.len())), 0);
}

#[test]
fn a_prepared_statement_asks_for_no_memory() {
    let (mut request, mut answer) = (BytesMut::new(), BytesMut::new());
    frontend::put_parse(&mut request, b"P0_1", TEXT, &[0, 0]);
    frontend::put_empty(&mut request, frontend::SYNC);
    backend::put_empty(&mut answer, backend::PARSE_COMPLETE);
    backend::put_ready(&mut answer, TxStatus::Idle);
    let mut table = Table::new();
    table.unit(&request, &answer);
    request.clear();
    answer.clear();
    bind_and_execute(&mut request, b"P0_1");
    backend::put_empty(&mut answer, backend::BIND_COMPLETE);
    rows(&mut answer);
    // On servers it has another name.
    let renamed = request.len() + "manatee_1".len() - "P0_1".len();
    assert_eq!(table.allocations(&request, &answer, (renamed, answer.len())), 0);
}
