//! Whether what binds a session to its server is still there. Once a unit may have removed it (an
//! unlock, UNLISTEN, DROP, the end of a transaction …) the server itself is asked, between two units;
//! if nothing is left the server is given back.

use std::collections::BTreeMap;
use std::mem;

use super::inject::Injected;
use super::ledger::Expect;
use super::profile::{READ_COMMITTED, ServerEncoding, put_literal};
use super::state::{Stage, Then};
use super::{Session, Shared};
use crate::route::{Effects, TransactionControl};
use crate::wire::backend;

/// Pins that the server can be asked about, the letter of the answer, and how to ask. Operators are
/// qualified: the session's search path may have others.
const QUESTIONS: [(Effects, &str, &str); 5] = [
    (
        Effects::ADVISORY_LOCK,
        "a",
        "FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory' \
         AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()",
    ),
    (Effects::LISTEN, "l", "FROM pg_catalog.pg_listening_channels()"),
    (Effects::HOLD_CURSOR, "h", "FROM pg_catalog.pg_cursors WHERE is_holdable"),
    (Effects::PREPARE_SQL, "p", "FROM pg_catalog.pg_prepared_statements WHERE from_sql"),
    // Whatever is in a schema depends on it.
    (
        Effects::TEMP_OBJECT,
        "t",
        "FROM pg_catalog.pg_depend WHERE refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass \
         AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()",
    ),
];

/// All of these pins.
pub(super) const ASKED: Effects = Effects::ADVISORY_LOCK
    .union(Effects::LISTEN)
    .union(Effects::HOLD_CURSOR)
    .union(Effects::PREPARE_SQL)
    .union(Effects::TEMP_OBJECT);

/// The settings of the session, its role, and those of its custom settings that are known by name: no view lists
/// them (`GUC_NO_SHOW_ALL`, `add_placeholder_variable` in guc.c). Values come as hexadecimal digits: the session's
/// client_encoding may not have their characters. `$N` and `$E` stand for the names and for the encoding.
const SETTINGS: &str = "SELECT 's', name, pg_catalog.encode(pg_catalog.convert_to(setting, $E), 'hex') FROM \
     (SELECT name, setting FROM pg_catalog.pg_settings WHERE source OPERATOR(pg_catalog.=) 'session' \
     UNION ALL SELECT name, pg_catalog.current_setting(name, true) \
     FROM pg_catalog.unnest(ARRAY['role'$N]::pg_catalog.text[]) name) settings";

/// Custom settings asked for at most: a name costs about a microsecond.
const MOST_NAMES: usize = 500;

/// Changes that are possible, since its server was last asked, in what binds the session.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// Pins that may be gone.
    pub(super) pins: Effects,
    /// Settings with dots that a doubtful transaction changed: no view shows them.
    names: Vec<Box<str>>,
}

/// Question to a server, and its answers so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    asked: Doubts,
    found: Effects,
    settings: BTreeMap<Box<str>, Box<str>>,
    /// It could not say.
    failed: bool,
}

fn from_hex(digits: &str) -> Option<String> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    String::from_utf8(pairs.collect::<Option<Vec<u8>>>()?).ok()
}

impl Doubts {
    /// Custom settings are in doubt as well.
    pub(super) fn add_names(&mut self, names: impl Iterator<Item = Box<str>>) {
        self.names.extend(names);
        if self.names.len() > MOST_NAMES {
            self.names.sort_unstable();
            self.names.dedup();
            self.names.truncate(MOST_NAMES);
        }
    }

    /// No setting is in doubt any more.
    pub(super) fn forget_names(&mut self) {
        self.names.clear();
    }

    /// Whether there is nothing to ask.
    pub(super) fn is_empty(&self) -> bool {
        self.pins.is_empty() && self.names.is_empty()
    }
}

impl Findings {
    /// The pins that are asked about.
    pub(super) fn asked(&self) -> Effects {
        self.asked.pins
    }

    /// The server could not say: everything stays as it is.
    pub(super) fn fail(&mut self) {
        self.failed = true;
    }

    /// One row of the answer.
    pub(super) fn row(&mut self, body: &[u8]) {
        let Ok(columns) = backend::data_row(body) else { return self.failed = true };
        let column = |index: usize| columns.get(index).copied().flatten().map(String::from_utf8_lossy);
        let (kind, name, value) = (column(0), column(1), column(2));
        match (kind.as_deref(), name, value) {
            (Some("s"), Some(name), Some(value)) => {
                let Some(value) = from_hex(&value) else { return self.failed = true };
                let unset = value.is_empty() && name.contains('.') || name == "role" && value == "none";
                if !unset {
                    self.settings.insert(name.to_ascii_lowercase().into(), value.into());
                }
            }
            // A setting that is not there.
            (Some("s"), ..) => {}
            (Some(letter), ..) => match QUESTIONS.iter().find(|(_, known, _)| *known == letter) {
                Some((pin, ..)) => self.found.insert(*pin),
                None => self.failed = true,
            },
            (None, ..) => self.failed = true,
        }
    }
}

impl Session {
    /// After a unit: which pins it may have removed, or never made.
    pub(super) fn doubt_pins(&mut self, effects: Effects, errored: bool) {
        // A lock that was tried for may not have been got, nor one for which a query found no row; a search path that
        // begins with the temporary schema creates nothing yet.
        const BY: [(Effects, Effects); 6] = [
            (Effects::ADVISORY_LOCK, Effects::ADVISORY_LOCK),
            (Effects::TEMP_OBJECT, Effects::TEMP_OBJECT),
            (Effects::ADVISORY_UNLOCK, Effects::ADVISORY_LOCK),
            (Effects::UNLISTEN, Effects::LISTEN),
            (Effects::CLOSE_CURSOR, Effects::HOLD_CURSOR),
            (Effects::DDL, Effects::TEMP_OBJECT),
        ];
        for (removed_by, pin) in BY {
            if effects.intersects(removed_by) {
                self.doubts.pins.insert(pin);
            }
        }
        // In a transaction: it may roll back, and temporary tables may go with its end.
        let in_transaction = self.unit.control.is_some_and(|control| control != crate::route::Control::None)
            || self.unit.started != backend::TxStatus::Idle;
        if in_transaction || errored {
            let ends = matches!(self.unit.alone(), Some(TransactionControl::Rollback { .. }));
            let all = Effects::TEMP_OBJECT.union(Effects::LISTEN).union(Effects::HOLD_CURSOR);
            let made = if ends { all } else { effects };
            self.doubts.pins.insert(made.both(all));
        }
        if errored {
            self.doubts.pins.insert(effects.both(ASKED));
        }
    }

    /// After something that could not be read: it may have done anything.
    pub(super) fn doubt_everything(&mut self) {
        let all = ASKED.union(Effects::SETTINGS_DOUBT);
        self.pins.insert(all);
        self.doubts.pins.insert(all);
    }

    /// Outside a transaction, with a server: asks it if there is something to ask. True if so.
    pub(super) fn start_probe(&mut self) -> bool {
        let doubts = self.doubts.pins.union(Effects::SETTINGS_DOUBT);
        let asked = self.pins.both(doubts);
        self.doubts.pins = asked;
        if asked.is_empty() {
            return false;
        }
        let mut parts: Vec<String> = QUESTIONS
            .iter()
            .filter(|(pin, ..)| asked.intersects(*pin))
            .map(|(_, letter, from)| format!("SELECT '{letter}', '', '' WHERE EXISTS (SELECT {from})"))
            .collect();
        if asked.intersects(Effects::SETTINGS_DOUBT) {
            let known = self.kept.profile.names().filter(|name| name.contains('.')).map(Box::from);
            let mut names: Vec<Box<str>> = known.chain(self.doubts.names.iter().cloned()).collect();
            names.sort_unstable();
            names.dedup();
            let encoding = ServerEncoding::named(self.state.server().and_then(|it| it.parameter("server_encoding")));
            let mut list = String::new();
            for name in &names {
                list.push(',');
                put_literal(&mut list, name, encoding);
            }
            // As it is where there is nothing to convert.
            let to = if encoding == ServerEncoding::Bytes { "'SQL_ASCII'" } else { "'UTF8'" };
            parts.push(SETTINGS.replace("$N", &list).replace("$E", to));
        }
        let text = [READ_COMMITTED, &parts.join(" UNION ALL ")].concat();
        self.inject_now(&Injected::Question(&text), Expect::Probe);
        let asked = mem::take(&mut self.doubts);
        self.go_attached(Stage::Probing(Box::new(Findings { asked, ..Findings::default() })));
        true
    }

    /// All is answered.
    pub(super) fn end_probe(&mut self, shared: &mut Shared) {
        let Some(Stage::Probing(findings)) = self.state.stage_mut() else { return };
        let Findings { asked, found, settings, failed } = mem::take(&mut **findings);
        self.go_gather();
        if failed {
            // It is asked again after the next unit.
            self.doubts = asked;
            return;
        }
        self.pins = self.pins.minus(asked.pins).union(found);
        if asked.pins.intersects(Effects::SETTINGS_DOUBT) {
            self.kept.profile = shared.profiles.intern(settings);
            if let Some(server) = self.state.server_mut() {
                server.profile = self.kept.profile.clone();
            }
            self.kept.read_sql_context();
        }
        if self.pins.is_empty() {
            self.go_attached(Stage::Releasing(Then::Gather));
        }
    }
}
