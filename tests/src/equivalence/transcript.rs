//! Transcript of a client, in words that are the same whenever the answer means the same.
//!
//! Parts that are left out or named anew, and the reason:
//! - OIDs of 16384 and above get numbers in the order in which they appear: objects are made anew for each run, and
//!   OIDs are a counter of the cluster. Built-in ones stay.
//! - `F`, `L` and `R` of errors, the place in PostgreSQL's source: no part of what is said. The proxy answers some
//!   messages itself, with the same words.
//! - ParameterStatus is compared as the table that clients keep of it, at each ReadyForQuery: a second message with the
//!   same value says nothing, and where in an answer a value is told is PostgreSQL's own choice by version.
//! - BackendKeyData is a process id and a secret.
//! - Notifications are a list of their own: PostgreSQL sends them whenever a session is idle. Their process ids are
//!   `own` and `other`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::wire::{take_string, u16_at, u32_at};

/// The first OID that is not built in (`FirstNormalObjectId`, access/transam.h).
const FIRST_OF_USERS: u32 = 16384;

/// OIDs by the order in which they were seen; one for all clients of a conversation.
#[derive(Debug, Default)]
pub(super) struct Oids(Vec<u32>);

impl Oids {
    fn name(&mut self, oid: u32) -> String {
        if oid < FIRST_OF_USERS {
            return oid.to_string();
        }
        let place = self.0.iter().position(|known| *known == oid).unwrap_or_else(|| {
            self.0.push(oid);
            self.0.len() - 1
        });
        format!("own{place}")
    }

    /// A message with the OIDs in it named: `cache lookup failed for type 16423`.
    fn name_in(&mut self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
            let digits = rest[start..].find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len() - start);
            let (before, number) = (&rest[..start], &rest[start..start + digits]);
            out.push_str(before);
            match number.parse() {
                Ok(oid) if oid >= FIRST_OF_USERS => out.push_str(&self.name(oid)),
                _ => out.push_str(number),
            }
            rest = &rest[start + digits..];
        }
        out.push_str(rest);
        out
    }
}

/// Transcript of one client.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    /// Message by message.
    pub(super) words: Vec<String>,
    /// Notifications: channel, payload, from whom.
    pub(super) notifications: Vec<String>,
    parameters: BTreeMap<String, String>,
    told: BTreeMap<String, String>,
    /// Process id it was told.
    pub(super) pid: u32,
}

impl Transcript {
    /// Enters a message.
    pub(super) fn enter(&mut self, tag: u8, body: &[u8], oids: &mut Oids) {
        let word = match tag {
            b'S' => {
                let both = take_string(body).and_then(|(name, rest)| Some((name, take_string(rest)?.0)));
                if let Some((name, value)) = both {
                    self.parameters.insert(name.escape_ascii().to_string(), value.escape_ascii().to_string());
                }
                return;
            }
            b'A' => {
                let from = if u32_at(body, 0) == self.pid { "own" } else { "other" };
                self.notifications.push(format!("{} {from}", body.get(4..).unwrap_or_default().escape_ascii()));
                return;
            }
            b'K' => return,
            b'Z' => {
                self.tell_parameters();
                format!("Z{}", body.escape_ascii())
            }
            b'E' | b'N' => fields(tag, body, oids),
            b'T' => columns(body, oids),
            b't' => {
                let types: Vec<String> =
                    body.get(2..).unwrap_or_default().chunks(4).map(|oid| oids.name(u32_at(oid, 0))).collect();
                format!("t {}", types.join(" "))
            }
            _ => format!("{} {}", char::from(tag), body.escape_ascii()),
        };
        self.words.push(word);
    }

    /// The parameters that are not as they were when it was last ready.
    fn tell_parameters(&mut self) {
        let mut word = "S".to_owned();
        for (name, value) in &self.parameters {
            if self.told.get(name) != Some(value) {
                let _ = write!(word, " {name}={value}");
            }
        }
        if word.len() > 1 {
            self.words.push(word);
            self.told.clone_from(&self.parameters);
        }
    }
}

fn fields(tag: u8, body: &[u8], oids: &mut Oids) -> String {
    let mut word = char::from(tag).to_string();
    let mut rest = body;
    while let Some((&kind, after)) = rest.split_first() {
        if kind == 0 {
            break;
        }
        let Some((value, after)) = take_string(after) else { break };
        let value = value.escape_ascii().to_string();
        // Writing to a String does not fail.
        let _ = match kind {
            b'F' | b'L' | b'R' => Ok(()),
            b'M' | b'D' | b'H' | b'W' => write!(word, " {}={}", char::from(kind), oids.name_in(&value)),
            _ => write!(word, " {}={value}", char::from(kind)),
        };
        rest = after;
    }
    word
}

fn columns(body: &[u8], oids: &mut Oids) -> String {
    let mut word = "T".to_owned();
    let mut rest = body.get(2..).unwrap_or_default();
    while let Some((name, after)) = take_string(rest) {
        let (table, kind) = (oids.name(u32_at(after, 0)), oids.name(u32_at(after, 6)));
        let _ = write!(
            word,
            " {}({table}.{} {kind} {} {} {})",
            name.escape_ascii(),
            u16_at(after, 4),
            u16_at(after, 10).cast_signed(),
            u32_at(after, 12).cast_signed(),
            u16_at(after, 16)
        );
        rest = after.get(18..).unwrap_or_default();
    }
    word
}
