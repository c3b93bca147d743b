#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

use super::*;

fn key(text: &str) -> (Scan, Vec<u8>) {
    let mut key = Vec::new();
    let (scan, _) = scan(text.as_bytes(), SqlContext::default(), &mut key);
    (scan, key)
}

fn same(left: &str, right: &str) {
    assert_eq!(key(left).0, Scan::Fingerprint, "{left}");
    assert_eq!(key(left), key(right), "{left} / {right}");
}

fn different(left: &str, right: &str) {
    assert_ne!(key(left), key(right), "{left} / {right}");
}

fn verbatim(text: &str) {
    assert_eq!(key(text).0, Scan::Verbatim, "{text}");
}

#[test]
fn literals_comments_and_white_space_are_folded() {
    same("SELECT 1", "SELECT 42");
    same("SELECT  'a' -- note\n FROM t", "SELECT 'b''c' FROM t");
    same("SELECT 1.5, 2", "SELECT 1e10,/* why */ 3");
    same("SELECT $$a$$", "SELECT $x$ it's $y$ $x$");
    same(r"SELECT E'a\\', 1", "SELECT E'b', 2");
    same("SELECT * FROM t WHERE a IN (1, 2, 3, 4)", "SELECT * FROM t WHERE a IN (1, 2)");
    same("INSERT INTO t VALUES (1,'a'),(2,'b'),(3,'c'),(4,'d')", "INSERT INTO t VALUES (1,'a'),(2,'b')");
    same("SELECT /* a /* nested */ b */ 1", "SELECT 2");
    same("SELECT 1 /* trailing */", "SELECT 1");
    same("SELECT .5", "SELECT 12345678901");
    same("SELECT 'x'; SELECT 'y'", "SELECT 'a'; SELECT 'b'");
}

#[test]
fn what_decides_stays() {
    different("SET work_mem = '1MB'", "SET work_mem = '2MB'");
    different("SELECT set_config('a.b', 'x', false)", "SELECT set_config('a.b', 'y', false)");
    different("SELECT \"set_config\"('a.b', 'x', false)", "SELECT \"set_config\"('a.b', 'y', false)");
    different("SELECT current_setting('port')", "SELECT current_setting('work_mem')");
    different("SELECT 1; LISTEN a", "SELECT 1; LISTEN b");
    different("DO $$ a $$", "DO $$ b $$");
    different("SELECT a", "SELECT \"A\"");
    different("SELECT 'a'", "SELECT 1");
    different("SELECT varchar(10) 'a'", "SELECT varchar(1.5) 'a'");
    different("SELECT f($1)", "SELECT f($2)");
    different("/* manatee: primary */ SELECT 1", "SELECT 1");
    different("/* manatee: primary */ SELECT 1", "/* manatee: standby */ SELECT 1");
    different("SELECT 1; SET a.b = 'x'", "SELECT 1; SET a.b = 'y'");
    different("INSERT INTO t VALUES (1),(f()),(1)", "INSERT INTO t VALUES (1),(1),(1)");
}

#[test]
fn odd_texts_are_verbatim() {
    for text in [
        "SELECT 'a'\n'b'",
        "SELECT E'\\'' ",
        "SELECT E'\\x41'",
        "SELECT U&'d\\0061t'",
        "SELECT U&\"d\" FROM t",
        "SELECT 1a",
        "SELECT 0x1F",
        "SELECT 1_000",
        "SELECT 1..2",
        "SELECT 1e",
        "SELECT 1.2.3",
        "SELECT 'open",
        "SELECT \"open",
        "SELECT /* open",
        "SELECT $a$ open",
        "SELECT $1a",
        "SELECT \u{1} 2",
    ] {
        verbatim(text);
    }
}

#[test]
fn backslashes_without_standard_strings_are_the_parsers_business() {
    let context = SqlContext { standard_conforming_strings: false, encoding: TextEncoding::Utf8 };
    let mut key = Vec::new();
    assert_eq!(scan(br"SELECT 'a\', now()", context, &mut key).0, Scan::Verbatim);
    assert_eq!(scan(b"SELECT 'a', now()", context, &mut key).0, Scan::Fingerprint);
}

#[test]
fn an_unsafe_encoding_is_read_only_while_it_is_ascii() {
    let context = SqlContext { standard_conforming_strings: true, encoding: TextEncoding::Unsafe };
    let mut key = Vec::new();
    assert_eq!(scan(b"SELECT '\x95\x5c'", context, &mut key).0, Scan::Unreadable);
    assert_eq!(scan(b"SELECT 'a'", context, &mut key).0, Scan::Fingerprint);
}

#[test]
fn hints_are_seen_at_the_start_only() {
    let hint = |text: &str| scan(text.as_bytes(), SqlContext::default(), &mut Vec::new()).1;
    assert_eq!(hint("/* manatee: primary */ SELECT 1"), Some(Hint::Primary));
    assert_eq!(hint("  /*manatee:STANDBY*/SELECT 1"), Some(Hint::Standby));
    assert_eq!(hint("/* app */ -- manatee: standby\nSELECT 1"), Some(Hint::Standby));
    assert_eq!(hint("SELECT 1 /* manatee: primary */"), None);
    assert_eq!(hint("/* manatee: sideways */ SELECT 1"), None);
    assert_eq!(hint("/* manatee: primary */ SELECT 'a' 'b'"), Some(Hint::Primary));
}

#[test]
fn long_texts_have_no_key() {
    let many: String = (0..20_000).map(|n| format!("a{n},")).collect();
    assert_eq!(key(&format!("SELECT {many} b")).0, Scan::TooLong);
    let numbers: String = (0..20_000).map(|n| format!("{n},")).collect();
    assert_eq!(key(&format!("SELECT {numbers} 1")).0, Scan::Fingerprint);
}
