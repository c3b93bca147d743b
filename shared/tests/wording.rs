//! The wording of comments: a doc comment begins with a noun or a verb, and says what the item is or does. One that
//! begins with a relative clause ("What was sent …") has no subject that a reader could look up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};

/// Words that begin a relative clause.
const RELATIVE: &[&str] =
    &["How", "What", "Whatever", "When", "Where", "Which", "Who", "Whoever", "Whom", "Whose", "Why"];

/// Prepositions that may stand before one.
const PREPOSITIONS: &[&str] = &["By", "For", "From", "In", "Of", "On", "To", "With"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The text of a line of a doc comment.
fn doc(line: &str) -> Option<&str> {
    let line = line.trim_start();
    line.strip_prefix("///").or_else(|| line.strip_prefix("//!")).map(str::trim)
}

/// Whether a sentence begins with a relative clause.
fn is_relative(text: &str) -> bool {
    let mut words = text.split_whitespace().map(|word| word.trim_end_matches([',', ':', ';', '.']));
    let Some(first) = words.next() else { return false };
    let second = words.next().unwrap_or_default();
    let is_one = |word: &str| RELATIVE.iter().any(|relative| relative.eq_ignore_ascii_case(word));
    RELATIVE.contains(&first) || (PREPOSITIONS.contains(&first) && is_one(second))
}

#[test]
fn no_doc_comment_begins_with_a_relative_clause() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("root");
    let mut files = Vec::new();
    for part in ["bench", "proxy", "shared", "sitter", "tests"] {
        sources(&root.join(part), &mut files);
    }
    let mut found = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).expect("source");
        let mut before = None;
        for (number, line) in (1..).zip(text.lines()) {
            let now = doc(line);
            // The first line of a paragraph.
            if let Some(text) = now.filter(|_| before.is_none_or(str::is_empty))
                && is_relative(text)
            {
                found.push(format!("{}:{number}: {text}", path.strip_prefix(root).expect("below").display()));
            }
            before = now;
        }
    }
    assert!(found.is_empty(), "begin with a noun or a verb:\n{}", found.join("\n"));
}

#[test]
fn relative_clauses_are_told_from_sentences() {
    for text in ["What was sent.", "How long it takes.", "By which it is found.", "Who: the peer."] {
        assert!(is_relative(text), "{text}");
    }
    for text in ["Whether it is there.", "Longest wait.", "By name.", "Whole numbers.", ""] {
        assert!(!is_relative(text), "{text}");
    }
}
