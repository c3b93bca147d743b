//! Meaning of statements: a table, and the property that makes the cache sound.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

#[path = "routing/property.rs"]
mod property;
#[path = "routing/render.rs"]
mod render;
#[path = "routing/table.rs"]
mod table;

use std::{fmt::Write as _, rc::Rc, sync::Arc};

use arc_swap::ArcSwapOption;
use manatee_proxy::route::{
    Access, Catalog, Classifier, SettingChange, SqlContext,
    class::{Reason, TextEncoding},
};
use render::{all_rows, render};

fn catalog() -> Arc<Catalog> {
    let rows = include_str!("data/catalog.tsv").lines().map(|line| {
        let mut fields = line.split('\t');
        std::array::from_fn(|_| fields.next().unwrap_or(""))
    });
    Arc::new(Catalog::from_rows(rows))
}

fn classifier() -> Classifier {
    Classifier::new(7, 4096, Arc::new(ArcSwapOption::new(Some(catalog()))))
}

#[test]
fn every_row_of_the_table() {
    let mut classifier = classifier();
    let mut wrong = String::new();
    // Twice: parsed, then from the cache.
    for round in ["parsed", "cached"] {
        for (text, expected) in all_rows() {
            let found = render(&classifier.classify(text.as_bytes(), SqlContext::default()));
            if found != *expected {
                writeln!(wrong, "{round}: {text}\n  expected {expected}\n  found    {found}").unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    assert!(all_rows().count() >= 300, "the table has {} rows", all_rows().count());
}

#[test]
fn without_a_catalog_only_what_names_nothing_is_read_only() {
    let mut classifier = Classifier::new(7, 16, Arc::default());
    let mut access = |text: &str| classifier.classify(text.as_bytes(), SqlContext::default()).access;
    assert_eq!(access("SELECT 1 + 2"), Access::ReadOnly);
    assert_eq!(access("BEGIN READ ONLY"), Access::ReadOnly);
    assert_eq!(access("SELECT now()"), Access::Primary(Reason::NoCatalog));
    assert_eq!(access("SELECT * FROM t"), Access::Primary(Reason::NoCatalog));
}

#[test]
fn a_new_catalog_replaces_every_class() {
    let source: Arc<ArcSwapOption<Catalog>> = Arc::default();
    let mut classifier = Classifier::new(7, 16, Arc::clone(&source));
    let mut access = || classifier.classify(b"SELECT * FROM volatile_view", SqlContext::default()).access;
    assert_eq!(access(), Access::Primary(Reason::NoCatalog));
    source.store(Some(catalog()));
    assert_eq!(access(), Access::Primary(Reason::Relation));
    source.store(Some(Arc::new(Catalog::from_rows([]))));
    assert_eq!(access(), Access::ReadOnly);
}

#[test]
fn a_refused_write_is_remembered_for_all_texts_like_it() {
    let mut classifier = classifier();
    let context = SqlContext::default();
    let access = |classifier: &mut Classifier, text: &str| classifier.classify(text.as_bytes(), context).access;
    for (text, like_it) in [
        ("SELECT public.stable_fn(1)", "SELECT public.stable_fn(2)"),
        // Verbatim.
        ("SELECT 'a'\n'b', public.stable_fn(1)", "SELECT 'a'\n'b', public.stable_fn(1)"),
    ] {
        assert_eq!(access(&mut classifier, like_it), Access::ReadOnly);
        classifier.learn_writes(text.as_bytes(), context);
        assert_eq!(access(&mut classifier, like_it), Access::Primary(Reason::Learned));
    }
    assert_eq!(access(&mut classifier, "SELECT immutable_fn(1)"), Access::ReadOnly);
    // It stays what it was if it never was for a standby; and an unseen text can be learned.
    classifier.learn_writes(b"DELETE FROM t", context);
    assert_eq!(access(&mut classifier, "DELETE FROM t"), Access::Primary(Reason::Write));
    classifier.learn_writes(b"SELECT app.reader()", context);
    assert_eq!(access(&mut classifier, "SELECT app.reader()"), Access::Primary(Reason::Learned));
}

#[test]
fn the_cache_is_bounded_and_keeps_what_is_used() {
    let mut classifier = Classifier::new(7, 8, Arc::new(ArcSwapOption::new(Some(catalog()))));
    let context = SqlContext::default();
    for number in 0..1000 {
        classifier.classify(format!("SELECT c{number} FROM t").as_bytes(), context);
        classifier.classify(b"SELECT hot FROM t", context);
    }
    assert_eq!(classifier.len(), 8);
    assert_eq!(classifier.counters().misses, 1001, "the hot text was parsed again");
}

#[test]
fn contexts_do_not_mix() {
    let mut classifier = classifier();
    let standard = SqlContext::default();
    let old = SqlContext { standard_conforming_strings: false, encoding: TextEncoding::Utf8 };
    // With standard strings the first literal ends after the backslash, without them it goes on.
    let text = br"SELECT '\', nextval('seq'), ''";
    assert_eq!(classifier.classify(text, standard).access, Access::Primary(Reason::Write));
    assert_eq!(classifier.classify(text, old).access, Access::Primary(Reason::Unparsable));
    let text = br"SELECT '\'; DELETE FROM t; --'";
    assert_eq!(classifier.classify(text, standard).access, Access::Primary(Reason::Write));
    assert_eq!(classifier.classify(text, old).access, Access::ReadOnly);
    let sjis = SqlContext { standard_conforming_strings: true, encoding: TextEncoding::Unsafe };
    assert_eq!(classifier.classify(b"SELECT '\x95\x5c'", sjis).access, Access::Primary(Reason::Unreadable));
    assert_eq!(classifier.classify(b"", standard).access, Access::ReadOnly);
    assert_eq!(classifier.classify(b"SELECT '\x95\x5c'", sjis).access, Access::Primary(Reason::Unreadable));
    let reads = |classifier: &mut Classifier, encoding| {
        let context = SqlContext { standard_conforming_strings: true, encoding };
        classifier.classify(b"SET app.x = '\xc3\xa9'", context).settings.first().cloned()
    };
    let set = |value: &str| {
        let scope = manatee_proxy::route::class::Scope::Session;
        Some(SettingChange::Set { name: "app.x".into(), value: value.into(), scope })
    };
    for _ in 0..2 {
        assert_eq!(reads(&mut classifier, TextEncoding::Utf8), set("\u{e9}"));
        assert_eq!(reads(&mut classifier, TextEncoding::Latin1), set("\u{c3}\u{a9}"));
        assert_eq!(reads(&mut classifier, TextEncoding::AsciiSafe), None, "the server is asked");
    }
    // LATIN1, say.
    assert_eq!(classifier.classify(b"SELECT '\xe9' FROM t", standard).access, Access::ReadOnly);
    assert_eq!(classifier.classify(b"SELECT f\xe9() FROM t", standard).access, Access::Primary(Reason::Function));
}

#[test]
fn hostile_texts_are_survived() {
    let mut classifier = classifier();
    let context = SqlContext::default();
    for text in [
        format!("SELECT {}1{}", "(".repeat(5_000), ")".repeat(5_000)),
        format!("SELECT {}1", "NOT ".repeat(20_000)),
        format!("SELECT {}1", "- ".repeat(20_000)),
        format!("SELECT 1{}", " + 1".repeat(20_000)),
        format!("SELECT {}", "ARRAY[".repeat(3_000)),
        format!("SELECT 1{}", " UNION SELECT 1".repeat(3_000)),
        format!("{}1", "SELECT (".repeat(3_000)),
        "/*".repeat(50_000),
        format!("{}{} SELECT U&'a'", "/*".repeat(25_000), "*/".repeat(25_000)),
        "'".repeat(99_999),
        "$".repeat(50_000),
        "a".repeat(1_000_000),
        "SELECT 1;".repeat(20_000),
        format!("INSERT INTO t VALUES {}(1, 'x')", "(1, 'x'), ".repeat(25_000)),
        "\u{0}".repeat(10),
    ] {
        let begun = std::time::Instant::now();
        let class = classifier.classify(text.as_bytes(), context);
        // It runs on a session thread. Far above what any takes, for slow machines.
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{}…", &text[..text.len().min(30)]);
        assert!(Rc::strong_count(&class) >= 1);
    }
    // And bytes of no kind at all.
    let mut state = 1_u64;
    for _ in 0..2_000 {
        let bytes: Vec<u8> = (0..40)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                b"SELECT'\"$/*-;()\\1.eEuU&xX \n\xff\x00"[(state >> 33) as usize % 29]
            })
            .collect();
        classifier.classify(&bytes, context);
    }
}
