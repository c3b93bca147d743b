//! The steady path of a session asks for no memory: what a unit needs is there from the one before,
//! although the session gives its buffers back whenever it is idle. And an idle client has little.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

#[path = "allocations/idle.rs"]
mod idle;
mod steady;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::BytesMut;
use manatee_proxy::wire::{backend, frontend};

use steady::{TEXT, Table, bind_and_execute, prepared, rows, simple};

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

/// Number of allocations by a thousand of these, after a few to begin with.
fn allocations(table: &mut Table, request: &[u8], answer: &[u8], sent: (usize, usize)) -> u64 {
    for _ in 0..10 {
        table.unit(request, answer);
    }
    let before = ASKED.get();
    for _ in 0..1000 {
        assert_eq!(table.unit(request, answer), sent);
    }
    ASKED.get() - before
}

#[test]
fn a_query_asks_for_no_memory() {
    let (mut request, mut answer) = (BytesMut::new(), BytesMut::new());
    simple(&mut request, &mut answer);
    let mut table = Table::new();
    assert_eq!(allocations(&mut table, &request, &answer, (request.len(), answer.len())), 0);
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
    assert_eq!(allocations(&mut table, &request, &answer, (request.len(), answer.len())), 0);
}

#[test]
fn a_prepared_statement_asks_for_no_memory() {
    let (mut request, mut answer) = (BytesMut::new(), BytesMut::new());
    let mut table = Table::new();
    prepared(&mut table, b"P0_1", &mut request, &mut answer);
    // On servers it has another name.
    let renamed = request.len() + "manatee_1".len() - "P0_1".len();
    assert_eq!(allocations(&mut table, &request, &answer, (renamed, answer.len())), 0);
}
