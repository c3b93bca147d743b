//! Settings of a session, carried from server to server.
//!
//! A [`Profile`] is an interned set of settings: what a session wants, or what a server has been
//! given. Two that are equal are the same `Rc`, so the usual case (the server already has what the
//! session wants) costs one pointer comparison.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use crate::route::SettingChange;
use crate::route::class::Scope;

/// Interned settings, by name in lower case.
#[derive(Debug, PartialEq, Eq)]
pub struct Profile {
    entries: BTreeMap<Box<str>, Box<str>>,
    /// Set of [`ANALYSIS`] settings that is in it.
    analysis: u32,
}

/// On these it depends what PostgreSQL makes of a text when it analyses it (client_encoding: which text it is; the
/// others: which operators, and the values of literals, which are taken then: `coerce_type` in parse_coerce.c). Of the
/// search path and the role PostgreSQL takes care itself (`RevalidateCachedQuery` in plancache.c).
const ANALYSIS: [&str; 10] = [
    "array_nulls",
    "backslash_quote",
    "client_encoding",
    "datestyle",
    "intervalstyle",
    "lc_monetary",
    "standard_conforming_strings",
    "timezone",
    "transform_null_equals",
    "xmloption",
];

impl Profile {
    /// The value of a setting, if it is set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.entries.get(name).map(AsRef::as_ref)
    }

    /// True if nothing is set.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Equal for two only if a text is the same statement under both.
    pub fn analysis(&self) -> u32 {
        self.analysis
    }

    /// Settings, by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(name, value)| (name.as_ref(), value.as_ref()))
    }

    /// The names of what is set.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(AsRef::as_ref)
    }

    /// SQL that makes a server which has `self` have `wanted`. One transaction: all or nothing.
    /// `role` is given up first and taken last, because it decides what else may be set.
    ///
    /// The server's settings are another session's until this has run, so it must not depend on them:
    /// - on no `statement_timeout`: that is put off first (`start_xact_command` in postgres.c ends the clock with
    ///   the second statement);
    /// - on no isolation level: SERIALIZABLE refuses the first snapshot on a standby, and may wait for one with
    ///   DEFERRABLE;
    /// - on no `client_encoding`, in which the server reads the text and answers: it is ASCII, and so is the answer;
    /// - on no `search_path`, `standard_conforming_strings` or `backslash_quote`.
    pub fn replay(&self, wanted: &Self, encoding: ServerEncoding) -> String {
        let mut sql = ["SET LOCAL statement_timeout=0;", READ_COMMITTED].concat();
        let mut calls = Calls { sql: &mut sql, encoding, count: 0 };
        let changes_role = self.get("role") != wanted.get("role");
        if changes_role && self.get("role").is_some() {
            calls.set("role", None);
        }
        for name in self.entries.keys().filter(|name| &***name != "role" && !wanted.entries.contains_key(*name)) {
            calls.set(name, None);
        }
        for (name, value) in wanted.entries.iter().filter(|(name, _)| &***name != "role") {
            if self.get(name) != Some(value) {
                calls.set(name, Some(value));
            }
        }
        if let (true, Some(role)) = (changes_role, wanted.get("role")) {
            calls.set("role", Some(role));
        }
        if calls.count == 0 { String::new() } else { sql }
    }
}

/// Encoding of a server beyond ASCII, as far as that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerEncoding {
    /// In an encoding that Unicode can be converted to.
    Known,
    /// `SQL_ASCII`: as the bytes that clients send.
    Bytes,
}

impl ServerEncoding {
    /// By the parameter `server_encoding`.
    pub fn named(name: Option<&str>) -> Self {
        if name == Some("SQL_ASCII") { Self::Bytes } else { Self::Known }
    }
}

/// Prefix of a text of the proxy's own that is a transaction of its own: whoever had or has the server may
/// have chosen an isolation level that a standby refuses, or that waits.
pub(super) const READ_COMMITTED: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;";

/// Calls of `set_config`, as many in one SELECT as its target list may have.
struct Calls<'a> {
    sql: &'a mut String,
    encoding: ServerEncoding,
    count: usize,
}

impl Calls<'_> {
    /// Below `MaxTupleAttributeNumber` (1664), above which a target list is refused.
    const PER_SELECT: usize = 1600;

    /// Without a value: back to the server's default, as by RESET (`set_config_by_name` in guc.c).
    fn set(&mut self, name: &str, value: Option<&str>) {
        let first = self.count.is_multiple_of(Self::PER_SELECT);
        self.sql.push_str(match (first, self.count) {
            (false, _) => ",",
            (true, 0) => "SELECT ",
            (true, _) => ";SELECT ",
        });
        self.sql.push_str("pg_catalog.set_config(");
        put_literal(self.sql, name, self.encoding);
        self.sql.push(',');
        match value {
            Some(value) => put_literal(self.sql, value, self.encoding),
            None => self.sql.push_str("NULL"),
        }
        // Not the value itself, which the session's client_encoding may not have.
        self.sql.push_str(",false) IS NULL");
        self.count += 1;
    }
}

/// A string as a literal of ASCII characters that means the same whatever the settings are (manual, 4.1.2.2).
pub(super) fn put_literal(sql: &mut String, text: &str, encoding: ServerEncoding) {
    use std::fmt::Write as _;
    let escapes = text.contains('\\') || !text.is_ascii();
    sql.push_str(if escapes { "E'" } else { "'" });
    for character in text.chars() {
        // Writing to a String does not fail.
        let _ = match character {
            '\'' => write!(sql, "''"),
            '\\' => write!(sql, "\\\\"),
            '\0'..='\x7f' => write!(sql, "{character}"),
            _ if encoding == ServerEncoding::Bytes => {
                character.encode_utf8(&mut [0; 4]).bytes().try_for_each(|byte| write!(sql, "\\x{byte:02x}"))
            }
            _ => write!(sql, "\\U{:08x}", u32::from(character)),
        };
    }
    sql.push('\'');
}

/// All profiles in use on one thread.
#[derive(Debug)]
pub struct Profiles {
    by_entries: HashMap<BTreeMap<Box<str>, Box<str>>, Rc<Profile>>,
    empty: Rc<Profile>,
    /// Numbers of sets of [`ANALYSIS`] settings. None is used twice.
    analyses: HashMap<BTreeMap<Box<str>, Box<str>>, u32>,
    next_analysis: u32,
}

/// Above this many, those that nobody has any more are forgotten.
const SWEEP_ABOVE: usize = 1024;

impl Default for Profiles {
    fn default() -> Self {
        Self {
            by_entries: HashMap::new(),
            empty: Rc::new(Profile { entries: BTreeMap::new(), analysis: 0 }),
            analyses: HashMap::from([(BTreeMap::new(), 0)]),
            next_analysis: 0,
        }
    }
}

impl Profiles {
    /// No settings: what a fresh server has.
    pub fn empty(&self) -> Rc<Profile> {
        self.empty.clone()
    }

    /// The profile with these entries.
    pub fn intern(&mut self, entries: BTreeMap<Box<str>, Box<str>>) -> Rc<Profile> {
        if entries.is_empty() {
            return self.empty();
        }
        if let Some(known) = self.by_entries.get(&entries) {
            return known.clone();
        }
        if self.by_entries.len() >= SWEEP_ABOVE {
            self.by_entries.retain(|_, profile| Rc::strong_count(profile) > 1);
        }
        let profile = Rc::new(Profile { entries: entries.clone(), analysis: self.analysis(&entries) });
        self.by_entries.insert(entries, profile.clone());
        profile
    }

    fn analysis(&mut self, entries: &BTreeMap<Box<str>, Box<str>>) -> u32 {
        let decides = |name: &str| ANALYSIS.contains(&name);
        let set = entries.iter().filter(|(name, _)| decides(name));
        let set: BTreeMap<_, _> = set.map(|(name, value)| (name.clone(), value.clone())).collect();
        if self.analyses.len() >= SWEEP_ABOVE {
            // Who comes after gets another number, and shares no statements with those that have the old one.
            self.analyses.retain(|set, _| set.is_empty());
        }
        *self.analyses.entry(set).or_insert_with(|| {
            self.next_analysis += 1;
            self.next_analysis
        })
    }

    /// `base` with one setting changed.
    pub fn with(&mut self, base: &Rc<Profile>, name: &str, value: &str) -> Rc<Profile> {
        if base.get(name) == Some(value) {
            return base.clone();
        }
        let mut entries = base.entries.clone();
        entries.insert(name.into(), value.into());
        self.intern(entries)
    }

    /// `base` without what `changes` are about: what has to be there before them, if need be.
    pub fn without(&mut self, base: &Rc<Profile>, changes: &[SettingChange]) -> Rc<Profile> {
        let mut entries = base.entries.clone();
        for change in changes {
            match change {
                SettingChange::Set { name, .. } | SettingChange::Reset { name, .. } => drop(entries.remove(name)),
                SettingChange::ResetAll => entries.retain(|name, _| **name == *"role"),
            }
        }
        self.intern(entries)
    }

    /// `base` after `changes`; what is reset falls back to `defaults`. Changes for the
    /// transaction at hand only are left out.
    pub fn apply(&mut self, base: &Rc<Profile>, changes: &[SettingChange], defaults: &Profile) -> Rc<Profile> {
        let mut entries = base.entries.clone();
        for change in changes {
            match change {
                // Not replayed (the session stays on its server), but it resets the role (guc.c,
                // `assign_session_authorization` by way of `SetSessionAuthorization`).
                SettingChange::Set { name, scope: Scope::Session, .. }
                | SettingChange::Reset { name, scope: Scope::Session }
                    if **name == *"session_authorization" =>
                {
                    entries.remove("role");
                }
                SettingChange::Set { name, value, scope: Scope::Session } => {
                    entries.insert(name.clone(), value.clone());
                }
                SettingChange::Reset { name, scope: Scope::Session } => {
                    match defaults.entries.get(name) {
                        Some(value) => entries.insert(name.clone(), value.clone()),
                        None => entries.remove(name),
                    };
                }
                SettingChange::ResetAll => {
                    // RESET ALL leaves the role alone (manual, RESET).
                    let role = entries.remove("role");
                    entries.clone_from(&defaults.entries);
                    entries.extend(role.map(|role| (Box::from("role"), role)));
                }
                SettingChange::Set { .. } | SettingChange::Reset { .. } => {}
            }
        }
        self.intern(entries)
    }
}

/// Settings out of a startup packet: names in lower case, `options` (`-c name=value`,
/// `--name=value`, backslash escapes; manual, section 55.7 StartupMessage) taken apart.
/// The error is the part that is not understood.
pub fn from_startup(parameters: &[(String, String)]) -> Result<BTreeMap<Box<str>, Box<str>>, String> {
    let mut entries = BTreeMap::new();
    for (name, value) in parameters {
        let name = name.to_ascii_lowercase();
        match name.as_str() {
            "user" | "database" | "replication" => {}
            "options" => options(value, &mut entries)?,
            _ => {
                entries.insert(name.into(), value.as_str().into());
            }
        }
    }
    Ok(entries)
}

fn options(text: &str, entries: &mut BTreeMap<Box<str>, Box<str>>) -> Result<(), String> {
    let mut words = split_options(text).into_iter();
    while let Some(word) = words.next() {
        let setting = match word.as_str() {
            "-c" => words.next().ok_or_else(|| word.clone())?,
            long => match long.strip_prefix("--").or_else(|| long.strip_prefix("-c")) {
                Some(setting) => setting.to_owned(),
                None => return Err(word),
            },
        };
        let (name, value) = setting.split_once('=').ok_or_else(|| setting.clone())?;
        entries.insert(name.to_ascii_lowercase().replace('-', "_").into(), value.into());
    }
    Ok(())
}

/// As `pg_split_opts` in `postinit.c`.
fn split_options(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut characters = text.chars().peekable();
    loop {
        while characters.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        if characters.peek().is_none() {
            return words;
        }
        let mut word = String::new();
        while let Some(character) = characters.next_if(|c| !c.is_ascii_whitespace()) {
            if character == '\\' {
                word.extend(characters.next());
            } else {
                word.push(character);
            }
        }
        words.push(word);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;

    fn entries(pairs: &[(&str, &str)]) -> BTreeMap<Box<str>, Box<str>> {
        pairs.iter().map(|(name, value)| (Box::from(*name), Box::from(*value))).collect()
    }

    #[test]
    fn equal_profiles_are_the_same() {
        let mut profiles = Profiles::default();
        let one = profiles.intern(entries(&[("a", "1")]));
        let empty = profiles.empty();
        let two = profiles.with(&empty, "a", "1");
        assert!(Rc::ptr_eq(&one, &two));
        assert!(Rc::ptr_eq(&profiles.intern(BTreeMap::new()), &profiles.empty()));
    }

    #[test]
    fn a_text_is_the_same_statement_under_settings_that_do_not_decide() {
        let mut profiles = Profiles::default();
        let empty = profiles.empty();
        let mut with = |name: &str, value: &str| profiles.with(&empty, name, value).analysis();
        assert_eq!(with("application_name", "x"), empty.analysis());
        assert_eq!(with("datestyle", "German"), with("datestyle", "German"));
        assert_ne!(with("datestyle", "German"), with("datestyle", "ISO"));
        assert_ne!(with("datestyle", "German"), empty.analysis());
    }

    #[test]
    fn replay_resets_sets_and_minds_the_role() {
        let mut profiles = Profiles::default();
        let has = profiles.intern(entries(&[("app.user", "x"), ("role", "a"), ("work_mem", "1MB"), ("same", "1")]));
        let wants = profiles.intern(entries(&[("role", "b"), ("work_mem", "it's"), ("same", "1")]));
        assert_eq!(
            has.replay(&wants, ServerEncoding::Known),
            "SET LOCAL statement_timeout=0;SET TRANSACTION ISOLATION LEVEL READ COMMITTED;\
             SELECT pg_catalog.set_config('role',NULL,false) IS NULL,\
             pg_catalog.set_config('app.user',NULL,false) IS NULL,\
             pg_catalog.set_config('work_mem','it''s',false) IS NULL,\
             pg_catalog.set_config('role','b',false) IS NULL"
        );
        assert_eq!(has.replay(&has, ServerEncoding::Known), "");
    }

    #[test]
    fn replay_is_ascii_and_minds_the_length_of_a_target_list() {
        let mut profiles = Profiles::default();
        let (nothing, wants) = (profiles.empty(), profiles.intern(entries(&[("app.user", "a\\'é€\u{1f600}")])));
        let known = nothing.replay(&wants, ServerEncoding::Known);
        assert!(known.contains(r"('app.user',E'a\\''\U000000e9\U000020ac\U0001f600',false)"), "{known}");
        let bytes = nothing.replay(&wants, ServerEncoding::Bytes);
        assert!(bytes.contains(r"E'a\\''\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80'"), "{bytes}");
        let many = (0..4000).map(|number| (format!("a.s{number}").into(), Box::from("x"))).collect();
        let many = profiles.intern(many);
        let sql = nothing.replay(&many, ServerEncoding::Known);
        let lengths: Vec<usize> =
            sql.split(";SELECT ").skip(1).map(|part| part.matches("set_config").count()).collect();
        assert_eq!(lengths, [1600, 1600, 800]);
    }

    #[test]
    fn resets_fall_back_to_the_startup_value() {
        let mut profiles = Profiles::default();
        let startup = profiles.intern(entries(&[("datestyle", "German")]));
        let now = profiles.with(&startup, "datestyle", "ISO");
        let reset = [SettingChange::Reset { name: "datestyle".into(), scope: Scope::Session }];
        assert!(Rc::ptr_eq(&profiles.apply(&now, &reset, &startup), &startup));
        let empty = profiles.empty();
        assert!(profiles.apply(&now, &reset, &empty).is_empty());
    }

    #[test]
    fn another_authorization_gives_up_the_role() {
        let mut profiles = Profiles::default();
        let nothing = profiles.empty();
        let now = profiles.with(&nothing, "role", "a");
        let reset = [SettingChange::Reset { name: "session_authorization".into(), scope: Scope::Session }];
        assert!(profiles.apply(&now, &reset, &nothing).is_empty());
    }

    #[test]
    fn startup_options_are_taken_apart() {
        let pairs = [
            ("Application_Name".to_owned(), "x".to_owned()),
            ("options".to_owned(), "-c statement_timeout=5s --search-path=a\\ b -cwork_mem=1MB".to_owned()),
        ];
        assert_eq!(
            from_startup(&pairs).unwrap(),
            entries(&[
                ("application_name", "x"),
                ("statement_timeout", "5s"),
                ("search_path", "a b"),
                ("work_mem", "1MB")
            ])
        );
        assert_eq!(from_startup(&[("options".to_owned(), "-x".to_owned())]), Err("-x".to_owned()));
    }
}
