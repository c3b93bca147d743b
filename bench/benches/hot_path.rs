//! What the proxy does for one query, piece by piece and without sockets: `make micro`.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "../../proxy/tests/steady/mod.rs"]
mod steady;

use std::hint::black_box;
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use manatee_proxy::route::class::SqlContext;
use manatee_proxy::route::{Classifier, classify_uncached, tokenizer};
use manatee_proxy::wire::{backend, complete, put_message};

use steady::{LITERAL, Table, bind_and_execute, prepare, rows, simple};

/// How a text becomes a class: by the tokenizer alone, from the cache, by the parser.
fn text(c: &mut Criterion) {
    let context = SqlContext::default();
    let mut group = c.benchmark_group("text");
    group.throughput(Throughput::Bytes(LITERAL.len() as u64));
    let mut key = Vec::with_capacity(1024);
    group.bench_function("tokenizer", |b| b.iter(|| tokenizer::scan(black_box(LITERAL), context, &mut key)));
    let mut classifier = Classifier::new(7, 100, Arc::default());
    group.bench_function("cache", |b| b.iter(|| classifier.classify(black_box(LITERAL), context)));
    group.bench_function("parser", |b| b.iter(|| classify_uncached(black_box(LITERAL), context, None)));
    group.finish();
}

/// The scanner of messages, over an answer of a thousand rows.
fn messages(c: &mut Criterion) {
    const ROWS: u64 = 1000;
    let mut answer = BytesMut::new();
    for _ in 0..ROWS {
        put_message(&mut answer, backend::DATA_ROW, |out| out.put_slice(&[7; 60]));
    }
    let mut group = c.benchmark_group("messages");
    group.throughput(Throughput::Elements(ROWS));
    group.bench_function("scanner", |b| {
        b.iter(|| {
            let (mut rest, mut found) = (&answer[..], 0);
            while let Some((header, _)) = complete(black_box(rest)).unwrap() {
                rest.advance(header.size);
                found += 1;
            }
            assert_eq!(found, ROWS);
        });
    });
    group.finish();
}

/// A unit from the client's first byte to its idleness, with the server's answer.
fn session(c: &mut Criterion) {
    let mut group = c.benchmark_group("session");
    let (mut request, mut answer) = (BytesMut::new(), BytesMut::new());
    simple(&mut request, &mut answer);
    let mut table = Table::new();
    group.bench_function("simple", |b| b.iter(|| table.unit(&request, &answer)));

    let (mut request, mut answer) = (BytesMut::new(), BytesMut::new());
    let mut table = Table::new();
    prepare(&mut table, b"P0_1");
    bind_and_execute(&mut request, b"P0_1");
    backend::put_empty(&mut answer, backend::BIND_COMPLETE);
    rows(&mut answer);
    group.bench_function("prepared", |b| b.iter(|| table.unit(&request, &answer)));
    group.finish();
}

criterion_group!(hot_path, text, messages, session);
criterion_main!(hot_path);
