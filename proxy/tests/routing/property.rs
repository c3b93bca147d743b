//! Texts that share a key share a class: the cache never changes an answer.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use manatee_proxy::route::class::TextEncoding;
use manatee_proxy::route::{Catalog, Class, Classifier, SqlContext, classify_uncached, tokenizer};
use proptest::prelude::*;

use crate::{catalog, render::all_rows};

/// Literals in all notations, harmless ones and hostile ones.
fn literal() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<u32>().prop_map(|n| n.to_string()),
        any::<u64>().prop_map(|n| n.to_string()),
        (0..1000, 0..1000).prop_map(|(a, b)| format!("{a}.{b}")),
        (0..10, -300..300).prop_map(|(a, b)| format!("{a}e{b}")),
        "[a-zA-Z0-9;()\"$*/ -]{0,12}".prop_map(|s| format!("'{s}'")),
        "[a-z'\\\\;-]{0,8}".prop_map(|s| format!("'{}'", s.replace('\'', "''"))),
        "[a-z;' -]{0,8}".prop_map(|s| format!("$${s}$$")),
        "[a-z;'$ -]{0,8}".prop_map(|s| format!("$tag${s}$tag$")),
        "[a-zntrbf'\\\\]{0,8}".prop_map(|s| format!("E'{}'", s.replace('\'', "''"))),
        "[01]{0,6}".prop_map(|s| format!("B'{s}'")),
        "[0-9a-f]{0,6}".prop_map(|s| format!("x'{s}'")),
        Just("'a'\n'b'".to_owned()),
        Just("U&'d\\0061t'".to_owned()),
        Just("0x1F".to_owned()),
        Just("1_000".to_owned()),
        Just("'port'".to_owned()),
        Just("'search_path'".to_owned()),
        Just("true".to_owned()),
    ]
}

/// White space and comments, which may be anything between tokens.
fn blank() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just(" ".to_owned()),
        1 => Just("\n\t".to_owned()),
        1 => "[a-z';$ ]{0,8}".prop_map(|s| format!(" /*{s}*/ ")),
        1 => "[a-z';$ ]{0,8}".prop_map(|s| format!(" --{s}\n")),
        1 => Just(" /* manatee: primary */ ".to_owned()),
    ]
}

/// `?` is a literal, `_` a blank.
const SHAPES: &[&str] = &[
    "SELECT_?",
    "_SELECT_abalance_FROM_accounts_WHERE_aid_=_?_",
    "SELECT_?,_?,?_FROM_t_LIMIT_?",
    "SELECT_?_FROM_t_WHERE_id_IN_(?,_?,_?,_?)",
    "SELECT varchar(?)_?",
    "SELECT_set_config(?,_?,_?)",
    "SELECT_?,_set_config(?,_?,_true)",
    "SELECT_current_setting(?)",
    "SELECT_current_setting(?)_||_?",
    "SELECT_nextval(?),_?",
    "SELECT_public.stable_fn(?)",
    "SELECT_volatile_fn(?)",
    "INSERT_INTO_t_VALUES_(?,?),(?,?),(?,?)",
    "INSERT_INTO_t_VALUES_(?),_(volatile_fn(?)),_(?)",
    "UPDATE_t_SET_name_=_?_WHERE_id_=_?",
    "DELETE_FROM_t_WHERE_name_=_?",
    "WITH_x_AS_(SELECT_?)_SELECT_*_FROM_x_WHERE_?_=_?",
    "VALUES_(?),_(?),_(?),_(?)",
    "SET_work_mem_=_?",
    "SET_app.x_TO_?,_?",
    "SELECT_?;_SET_app.x_=_?",
    "SET_app.x_=_?;_SELECT_?",
    "EXPLAIN_(ANALYZE_?)_DELETE_FROM_t_WHERE_id_=_?",
    "COPY_(SELECT_?)_TO_STDOUT",
    "COPY_t_TO_?",
    "DO_?",
    "SELECT_?;_SELECT_?",
    "SELECT_date_?,_interval_?_day",
    "SELECT_?::text_COLLATE_\"C\"",
    "SELECT_-?_+_-?",
    "SELECT_a?",
    "SELECT_??",
    "SELECT_a.?",
    "SELECT_?.?",
    "SELECT_$1?",
    "SELECT_(?),(?),(?)",
    "(SELECT_?)_UNION_(SELECT_?)",
    "SELECT_*_FROM_t_FETCH_FIRST_?_ROWS_ONLY",
    "MERGE_INTO_t_USING_accounts_a_ON_a.aid_=_?_WHEN_MATCHED_THEN_DELETE",
    "CREATE_TABLE_n_AS_SELECT_?",
    "DECLARE_c_CURSOR_WITH_HOLD_FOR_SELECT_?",
    "BEGIN;_SELECT_?;_COMMIT",
    "PREPARE_TRANSACTION_?",
    "NOTIFY_a,_?",
];

fn text() -> impl Strategy<Value = String> {
    let fill = (prop::collection::vec(literal(), 12), prop::collection::vec(blank(), 24));
    (prop::sample::select(SHAPES), fill).prop_map(|(shape, (literals, blanks))| {
        let (mut literals, mut blanks) = (literals.into_iter(), blanks.into_iter());
        let mut text = String::new();
        for (at, part) in shape.char_indices() {
            // An underscore within a name is one.
            let within =
                |at: Option<usize>| at.and_then(|at| shape.as_bytes().get(at)).is_some_and(u8::is_ascii_lowercase);
            match part {
                '?' => text.push_str(&literals.next().unwrap_or_default()),
                '_' if within(at.checked_sub(1)) && within(Some(at + 1)) => text.push('_'),
                '_' => text.push_str(&blanks.next().unwrap_or_else(|| " ".into())),
                other => text.push(other),
            }
        }
        text
    })
}

fn fresh() -> Classifier {
    Classifier::new(7, 4096, Arc::new(ArcSwapOption::new(Some(catalog()))))
}

/// By the parser alone.
fn class_of(text: &str, context: SqlContext) -> Class {
    thread_local! {
        static CATALOG: Arc<Catalog> = catalog();
    }
    CATALOG.with(|catalog| classify_uncached(text.as_bytes(), context, Some(catalog)))
}

fn key(text: &str, context: SqlContext) -> Vec<u8> {
    let mut key = Vec::new();
    tokenizer::scan(text.as_bytes(), context, &mut key);
    key
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// The same shape filled twice: if the keys agree, so must the classes.
    #[test]
    fn the_same_key_means_the_same_class(left in text(), right in text(), standard in any::<bool>()) {
        let context = SqlContext { standard_conforming_strings: standard, encoding: TextEncoding::Utf8 };
        if key(&left, context) == key(&right, context) {
            prop_assert_eq!(class_of(&left, context), class_of(&right, context), "{} / {}", left, right);
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    /// A long life of one cache gives the answers of fresh ones.
    #[test]
    fn a_cache_never_changes_an_answer(texts in prop::collection::vec(text(), 1..40)) {
        let context = SqlContext::default();
        let mut cached = fresh();
        for text in &texts {
            prop_assert_eq!(&*cached.classify(text.as_bytes(), context), &class_of(text, context), "{}", text);
        }
    }
}

/// Found by the above: the grammar takes whatever fits 32 bits for an integer.
#[test]
fn large_integers_are_integers() {
    let context = SqlContext::default();
    for text in
        ["SELECT varchar(1000000000) ''", "SELECT varchar(2147483647) ''", "SELECT 2147483648", "SELECT 0000000001"]
    {
        assert_eq!(*fresh().classify(text.as_bytes(), context), class_of(text, context), "{text}");
    }
}

/// The table's rows among each other.
#[test]
fn rows_with_the_same_key_have_the_same_class() {
    let context = SqlContext::default();
    let mut seen = std::collections::HashMap::new();
    for (text, expected) in all_rows() {
        if let Some((other, class)) = seen.insert(key(text, context), (text, expected)) {
            assert_eq!(class, expected, "{text} / {other}");
        }
    }
}
