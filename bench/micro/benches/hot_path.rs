//! The proxy's work for one query, piece by piece and without sockets: `make micro`.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a benchmark may stop at the first surprise")]

#[path = "../../../proxy/tests/steady/mod.rs"]
mod steady;

use std::hint::black_box;
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, BytesMut};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use manatee_proxy::route::class::SqlContext;
use manatee_proxy::route::{Classifier, classify_uncached, tokenizer};
use manatee_proxy::wire::{backend, complete, put_message};

use steady::{LITERAL, TEXT, Table, prepared, simple};

/// Texts short and long, by what they are called.
fn texts() -> Vec<(&'static str, Vec<u8>)> {
    const CTE: &str = "WITH regional AS (SELECT region, SUM(amount) AS total FROM orders WHERE placed > '2024-01-01' GROUP BY region), \
        best AS (SELECT region FROM regional WHERE total > (SELECT SUM(total) / 10 FROM regional)) \
        SELECT region, product, SUM(quantity) AS units, SUM(amount) AS sales FROM orders o JOIN products p USING (product) \
        WHERE region IN (SELECT region FROM best) AND p.kind IN ('a', 'b', 'c', 'd') GROUP BY region, product ORDER BY 4 LIMIT 20";
    let rows: String = (0..1000).map(|n| format!("({n}, 'name {n}', now()), ")).collect();
    vec![
        ("pgbench -S", LITERAL.into()),
        ("pgbench -S prepared", TEXT.into()),
        ("pgbench update", b"UPDATE pgbench_accounts SET abalance = abalance + -4711 WHERE aid = 54321;".into()),
        ("BEGIN", b"BEGIN".into()),
        ("CTE", CTE.into()),
        ("INSERT of 1000 rows", format!("INSERT INTO t VALUES {rows}(0, '', now())").into()),
    ]
}

/// Classification of a text: by the tokenizer alone, from the cache, by the parser.
fn text(c: &mut Criterion) {
    let context = SqlContext::default();
    let mut group = c.benchmark_group("text");
    let mut key = Vec::with_capacity(1024);
    let mut classifier = Classifier::new(7, 100, Arc::default());
    for (name, text) in texts() {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(BenchmarkId::new("tokenizer", name), |b| {
            b.iter(|| tokenizer::scan(black_box(&text), context, &mut key));
        });
        group.bench_function(BenchmarkId::new("cache", name), |b| {
            b.iter(|| classifier.classify(black_box(&text), context));
        });
        group.bench_function(BenchmarkId::new("parser", name), |b| {
            b.iter(|| classify_uncached(black_box(&text), context, None));
        });
    }
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
    prepared(&mut table, b"P0_1", &mut request, &mut answer);
    group.bench_function("prepared", |b| b.iter(|| table.unit(&request, &answer)));
    group.finish();
}

criterion_group!(hot_path, text, messages, session);
criterion_main!(hot_path);
