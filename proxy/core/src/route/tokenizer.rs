//! One pass over a text: a fingerprint in which literals that decide nothing are replaced.
//!
//! The rule that makes the cache sound: **two texts with the same key have the same class.** Where
//! that cannot be promised cheaply, the key is the text itself ([`Scan::Verbatim`]). So literals are
//! replaced only in the statements in which they decide nothing (SELECT, WITH, VALUES, TABLE, INSERT,
//! UPDATE, DELETE, MERGE), and not from `set_config` or `current_setting` on; everything odd (string
//! continuation, U& strings, uncommon escapes, junk after numbers) makes the text verbatim. And so that
//! the rule holds whatever mistake is left here, it is the fingerprint that is parsed ([`render`]).
//!
//! The lexical rules are those of PostgreSQL's `src/backend/parser/scan.l` and section 4.1 of the manual.

use super::class::{Hint, SqlContext, TextEncoding};

/// A key longer than this is not kept: the text is parsed each time.
pub const MAX_KEY_BYTES: usize = 64 * 1024;

/// Stands for a decimal integer that fits 32 bits: the grammar's `Iconst`.
const INTEGER: u8 = 0x01;
/// Stands for any other number.
const NUMBER: u8 = 0x02;
/// Stands for a string in any notation (a prefix letter stays).
const STRING: u8 = 0x03;
/// Followed by `P` or `S`: the hint at the text's start.
const HINT: u8 = 0x04;
/// Begins the key of a verbatim text; no other key has it.
const VERBATIM: u8 = 0x05;

/// Parentheses nested deeper than this are not searched for repetition.
const GROUPS: usize = 8;

/// Result of reading a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// The key is a fingerprint, shared by texts that differ in literals, comments and white space.
    Fingerprint,
    /// The key is the text.
    Verbatim,
    /// As the two before, but the key would be longer than [`MAX_KEY_BYTES`]: none was made.
    TooLong,
    /// The encoding does not allow the text to be read byte by byte.
    Unreadable,
}

/// Reads `text` and leaves its key in `key`; also says which hint it starts with.
pub fn scan(text: &[u8], context: SqlContext, key: &mut Vec<u8>) -> (Scan, Option<Hint>) {
    key.clear();
    // What the bytes beyond ASCII say depends on the encoding.
    let encoded = context.encoding != TextEncoding::Utf8 && !text.is_ascii();
    if encoded && context.encoding == TextEncoding::Unsafe {
        return (Scan::Unreadable, None);
    }
    let mut scanner = Scanner::new(text, context, key);
    let outcome = scanner.run();
    let hint = scanner.hint;
    if outcome.is_err() || encoded && !key.is_ascii() {
        key.clear();
        if text.len() + 3 > MAX_KEY_BYTES {
            return (Scan::TooLong, hint);
        }
        key.push(VERBATIM);
        key.push(u8::from(context.standard_conforming_strings));
        key.push(if encoded { context.encoding as u8 } else { 0 });
        key.extend_from_slice(text);
        return (Scan::Verbatim, hint);
    }
    if key.len() > MAX_KEY_BYTES {
        key.clear();
        return (Scan::TooLong, hint);
    }
    (Scan::Fingerprint, hint)
}

/// A text with this fingerprint, its literals made up.
pub fn render(key: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(key.len() * 2);
    let mut bytes = key.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            INTEGER => text.extend_from_slice(b" 0 "),
            NUMBER => text.extend_from_slice(b" 0.5 "),
            // A prefix letter stands right before it.
            STRING => text.extend_from_slice(b"'' "),
            HINT => {
                bytes.next();
            }
            _ => text.push(byte),
        }
    }
    text
}

/// Something that only the real parser should judge.
struct Odd;

/// Treatment of literals in the statement at hand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Literals {
    /// The statement's first word has not been seen.
    Undecided,
    Fold,
    Keep,
}

/// Whether the token before was a string: two in a row may be one continued string.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Previous {
    String,
    Other,
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    key: &'a mut Vec<u8>,
    standard_strings: bool,
    literals: Literals,
    previous: Previous,
    space: bool,
    hint: Option<Hint>,
    groups: Groups,
}

/// Finds `(…),(…),(…)`: of more than two equal groups in a row, two are kept.
struct Groups {
    depth: usize,
    start: [usize; GROUPS],
    /// Place in the key of the last group of this depth, and the number of equal ones it ended.
    last: [(usize, usize, u8); GROUPS],
}

impl Groups {
    fn open(&mut self, position: usize) {
        if let Some(start) = self.start.get_mut(self.depth) {
            *start = position;
        }
        self.depth += 1;
        if let Some(last) = self.last.get_mut(self.depth) {
            *last = (0, 0, 0);
        }
    }

    fn close(&mut self, key: &mut Vec<u8>) {
        let Some(depth) = self.depth.checked_sub(1) else { return };
        self.depth = depth;
        let (Some(&start), Some(last)) = (self.start.get(depth), self.last.get_mut(depth)) else { return };
        let (last_start, last_end, count) = *last;
        let separated = key.get(last_end..start).is_some_and(|between| between == b"," || between == b", ");
        if count > 0 && separated && key[last_start..last_end] == key[start..] {
            if count >= 2 {
                key.truncate(last_end);
            } else {
                *last = (start, key.len(), 2);
            }
        } else {
            *last = (start, key.len(), 1);
        }
    }
}

fn is_identifier_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

/// Bytes that continue an identifier: looked up for nearly every byte of every text.
const IDENTIFIER: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    loop {
        table[byte as usize] = byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80;
        if byte == u8::MAX {
            break table;
        }
        byte += 1;
    }
};

fn is_identifier(byte: u8) -> bool {
    IDENTIFIER[usize::from(byte)]
}

impl<'a> Scanner<'a> {
    fn new(text: &'a [u8], context: SqlContext, key: &'a mut Vec<u8>) -> Self {
        Self {
            text,
            at: 0,
            key,
            standard_strings: context.standard_conforming_strings,
            literals: Literals::Undecided,
            previous: Previous::Other,
            space: false,
            hint: None,
            groups: Groups { depth: 0, start: [0; GROUPS], last: [(0, 0, 0); GROUPS] },
        }
    }

    fn peek(&self, ahead: usize) -> u8 {
        // NUL cannot be in a text; as "nothing" it matches no rule.
        self.text.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn run(&mut self) -> Result<(), Odd> {
        while let Some(&byte) = self.text.get(self.at) {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => {
                    self.at += 1;
                    self.space = true;
                }
                b'-' if self.peek(1) == b'-' => self.line_comment(),
                b'/' if self.peek(1) == b'*' => self.block_comment()?,
                b'\'' => self.string(Quote::Plain)?,
                b'"' => self.quoted_identifier()?,
                b'$' => self.dollar()?,
                b'0'..=b'9' => self.number()?,
                b'.' if self.peek(1).is_ascii_digit() => self.number()?,
                b';' => {
                    self.copy(1);
                    self.literals = Literals::Undecided;
                }
                b'(' => {
                    self.token();
                    self.groups.open(self.key.len());
                    self.key.push(b'(');
                    self.at += 1;
                }
                b')' => {
                    self.copy(1);
                    self.groups.close(self.key);
                }
                _ if is_identifier_start(byte) => self.word()?,
                0..=0x1f | 0x7f => return Err(Odd),
                _ => self.copy(1),
            }
        }
        Ok(())
    }

    /// Begins a token: white space before it becomes one space.
    fn token(&mut self) {
        if self.space {
            if !self.key.is_empty() {
                self.key.push(b' ');
            }
            self.space = false;
        }
        self.previous = Previous::Other;
    }

    /// Copies a token of `length` bytes.
    fn copy(&mut self, length: usize) {
        self.token();
        self.key.extend_from_slice(&self.text[self.at..self.at + length]);
        self.at += length;
    }

    fn line_comment(&mut self) {
        let start = self.at + 2;
        let rest = &self.text[start..];
        let length = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len());
        self.at = start + length;
        self.comment(start, self.at);
    }

    fn block_comment(&mut self) -> Result<(), Odd> {
        let start = self.at + 2;
        let mut at = start;
        let mut depth = 1_usize;
        while depth > 0 {
            match (self.text.get(at), self.text.get(at + 1)) {
                (Some(b'*'), Some(b'/')) => {
                    depth -= 1;
                    at += 2;
                }
                (Some(b'/'), Some(b'*')) => {
                    depth += 1;
                    at += 2;
                }
                (Some(_), _) => at += 1,
                (None, _) => return Err(Odd),
            }
        }
        self.at = at;
        self.comment(start, at - 2);
        Ok(())
    }

    /// A comment is white space, unless it comes first and is a hint.
    fn comment(&mut self, start: usize, end: usize) {
        self.space = true;
        if !self.key.is_empty() || self.hint.is_some() {
            return;
        }
        let Ok(body) = std::str::from_utf8(&self.text[start..end]) else { return };
        let Some(wish) = body.trim().strip_prefix("manatee:") else { return };
        let (hint, mark) = match wish.trim() {
            wish if wish.eq_ignore_ascii_case("primary") => (Hint::Primary, b'P'),
            wish if wish.eq_ignore_ascii_case("standby") => (Hint::Standby, b'S'),
            _ => return,
        };
        self.hint = Some(hint);
        self.key.extend_from_slice(&[HINT, mark]);
    }

    fn word(&mut self) -> Result<(), Odd> {
        let start = self.at;
        let rest = &self.text[start + 1..];
        let length = rest.iter().position(|byte| !is_identifier(*byte)).unwrap_or(rest.len());
        let end = start + 1 + length;
        let word = &self.text[start..end];
        let next = self.text.get(end).copied().unwrap_or(0);
        if next == b'\'' {
            let quote = match word {
                b"e" | b"E" => Some(Quote::Escape),
                b"b" | b"B" | b"x" | b"X" => Some(Quote::Bits),
                b"n" | b"N" => Some(Quote::Plain),
                _ => None,
            };
            if let Some(quote) = quote {
                if self.previous == Previous::String {
                    return Err(Odd);
                }
                self.copy(1);
                return self.string(quote);
            }
        }
        // U&'…' and U&"…".
        if next == b'&' && matches!(word, b"u" | b"U") && matches!(self.text.get(end + 1), Some(b'\'' | b'"')) {
            return Err(Odd);
        }
        if self.literals == Literals::Undecided {
            self.literals = if decides_nothing(word) { Literals::Fold } else { Literals::Keep };
        } else {
            self.watch(word);
        }
        self.copy(end - start);
        Ok(())
    }

    /// From a function whose arguments matter on, literals are kept.
    fn watch(&mut self, name: &[u8]) {
        if self.literals == Literals::Fold
            && ((name.len() == 10 && name.eq_ignore_ascii_case(b"set_config"))
                || (name.len() == 15 && name.eq_ignore_ascii_case(b"current_setting")))
        {
            self.literals = Literals::Keep;
        }
    }

    fn quoted_identifier(&mut self) -> Result<(), Odd> {
        let start = self.at + 1;
        let mut end = start;
        loop {
            match (self.text.get(end), self.text.get(end + 1)) {
                (Some(b'"'), Some(b'"')) => end += 2,
                (Some(b'"'), _) => break,
                (Some(_), _) => end += 1,
                (None, _) => return Err(Odd),
            }
        }
        self.no_marks(end)?;
        self.watch(&self.text[start..end]);
        if self.literals == Literals::Undecided {
            self.literals = Literals::Keep;
        }
        self.copy(end + 1 - self.at);
        Ok(())
    }

    /// A string from its opening quote on.
    fn string(&mut self, quote: Quote) -> Result<(), Odd> {
        if self.previous == Previous::String {
            return Err(Odd);
        }
        let start = self.at;
        let mut end = start + 1;
        loop {
            match (self.text.get(end), self.text.get(end + 1)) {
                // Bit strings know no doubled quotes: a string follows at once.
                (Some(b'\''), Some(b'\'')) if quote != Quote::Bits => end += 2,
                (Some(b'\''), _) => break,
                (Some(b'\\'), Some(next)) if quote == Quote::Escape => {
                    // The other escapes may be invalid or need a look at the encoding.
                    if !matches!(next, b'\\' | b'n' | b't' | b'r' | b'b' | b'f') {
                        return Err(Odd);
                    }
                    end += 2;
                }
                (Some(b'\\'), _) if quote == Quote::Plain && !self.standard_strings => return Err(Odd),
                (Some(_), _) => end += 1,
                (None, _) => return Err(Odd),
            }
        }
        self.literal(end + 1 - start, STRING)?;
        self.previous = Previous::String;
        Ok(())
    }

    /// A parameter or a dollar-quoted string.
    fn dollar(&mut self) -> Result<(), Odd> {
        let rest = &self.text[self.at + 1..];
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits > 0 {
            if rest.get(digits).is_some_and(|byte| is_identifier(*byte)) {
                return Err(Odd);
            }
            self.copy(1 + digits);
            return Ok(());
        }
        let tag = rest.iter().take_while(|byte| is_identifier(**byte) && **byte != b'$').count();
        if rest.get(tag) != Some(&b'$') || rest.first().is_some_and(u8::is_ascii_digit) {
            return Err(Odd);
        }
        let delimiter = &self.text[self.at..self.at + tag + 2];
        let body = &self.text[self.at + delimiter.len()..];
        let Some(length) = memchr::memmem::find(body, delimiter) else { return Err(Odd) };
        self.literal(length + 2 * delimiter.len(), STRING)?;
        Ok(())
    }

    fn number(&mut self) -> Result<(), Odd> {
        let rest = &self.text[self.at..];
        let digits = |from: usize| rest[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let whole = digits(0);
        let mut length = whole;
        // `process_integer_literal` in scan.l. Nine digits always fit.
        let fits = || std::str::from_utf8(&rest[..whole]).is_ok_and(|digits| digits.parse::<i32>().is_ok());
        let mut kind = if whole <= 9 || fits() { INTEGER } else { NUMBER };
        if rest.get(length) == Some(&b'.') {
            if rest.get(length + 1) == Some(&b'.') {
                return Err(Odd);
            }
            kind = NUMBER;
            length += 1;
            length += digits(length);
        }
        if matches!(rest.get(length), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(rest.get(length + 1), Some(b'+' | b'-')));
            let exponent = digits((length + 1 + sign).min(rest.len()));
            if exponent == 0 {
                return Err(Odd);
            }
            kind = NUMBER;
            length += 1 + sign + exponent;
        }
        if rest.get(length).is_some_and(|byte| is_identifier(*byte) || *byte == b'.') {
            return Err(Odd);
        }
        self.literal(length, kind)
    }

    /// A literal of `length` bytes: replaced, or kept where it may decide something.
    fn literal(&mut self, length: usize, kind: u8) -> Result<(), Odd> {
        if self.literals != Literals::Fold {
            self.no_marks(self.at + length)?;
            self.copy(length);
            return Ok(());
        }
        self.token();
        self.at += length;
        self.key.push(kind);
        // Of more than two in a row (`IN (1, 2, 3 …)`) two are kept.
        let same = |tail: &[u8]| tail == [kind, b',', kind, b',', kind];
        let same_spaced = |tail: &[u8]| tail == [kind, b',', b' ', kind, b',', b' ', kind];
        let length = self.key.len();
        if length >= 5 && same(&self.key[length - 5..]) {
            self.key.truncate(length - 2);
        } else if length >= 7 && same_spaced(&self.key[length - 7..]) {
            self.key.truncate(length - 3);
        }
        Ok(())
    }

    /// Checks that the bytes copied from here to `end` cannot be taken for a mark.
    fn no_marks(&self, end: usize) -> Result<(), Odd> {
        let copied = self.text.get(self.at..end).unwrap_or_default();
        if copied.iter().any(|byte| (INTEGER..=VERBATIM).contains(byte)) { Err(Odd) } else { Ok(()) }
    }
}

/// Rule by which the end of a string is found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quote {
    Plain,
    Escape,
    Bits,
}

/// True for the first words of the statements in which literals decide nothing.
fn decides_nothing(word: &[u8]) -> bool {
    const WORDS: [&[u8]; 8] = [b"select", b"insert", b"update", b"delete", b"with", b"values", b"merge", b"table"];
    WORDS.iter().any(|candidate| word.eq_ignore_ascii_case(candidate))
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
