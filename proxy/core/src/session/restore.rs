//! RESET goes back to what the session began with. A server has other defaults than a session that brought
//! settings along in its startup message: right after a RESET it is given those again, in the same transaction,
//! and only then is the client told that it is done. So the rest of the transaction has them, and the client
//! learns what is reported of them at once.

use std::fmt::Write as _;
use std::rc::Rc;

use super::Session;
use super::answer::Answer;
use super::inject::Injected;
use super::ledger::Expect;
use super::profile::{Profile, ServerEncoding, put_literal};
use crate::route::class::Scope;
use crate::route::{Class, Control, SettingChange};
use crate::wire::backend::TxStatus;

/// Settings that `changes` take back to the server's default although the session began with another value.
fn fallen(changes: &[SettingChange], startup: &Profile) -> Vec<SettingChange> {
    let mut fallen: Vec<(&str, Scope)> = Vec::new();
    for change in changes {
        match change {
            SettingChange::Set { name, .. } => fallen.retain(|(known, _)| **known != **name),
            SettingChange::Reset { name, scope } => {
                fallen.retain(|(known, _)| **known != **name);
                fallen.push((name, *scope));
            }
            SettingChange::ResetAll => fallen = startup.names().map(|name| (name, Scope::Session)).collect(),
        }
    }
    let set = |(name, scope): (&str, Scope)| {
        let value = startup.get(name)?;
        Some(SettingChange::Set { name: name.into(), value: value.into(), scope })
    };
    fallen.into_iter().filter_map(set).collect()
}

/// As SET commands, which take no snapshot: the client's transaction may still choose its isolation level.
/// Without what cannot be said so: SET quotes each part of some lists anew.
fn commands(changes: &[SettingChange], encoding: ServerEncoding) -> String {
    let mut sql = String::new();
    for change in changes {
        let SettingChange::Set { name, value, scope } = change else { continue };
        let plain = |text: &str, others: &[u8]| {
            text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || others.contains(&byte))
        };
        let is_list = matches!(
            &**name,
            "search_path" | "temp_tablespaces" | "local_preload_libraries" | "session_preload_libraries"
        );
        if name.is_empty() || !plain(name, b".$") || is_list && (value.is_empty() || !plain(value, b"$, ")) {
            continue;
        }
        let local = if *scope == Scope::Transaction { "LOCAL " } else { "" };
        let quoted = name.split('.').map(|part| format!("\"{part}\"")).collect::<Vec<_>>().join(".");
        // Writing to a String does not fail.
        let _ = write!(sql, "{}SET {local}{quoted} TO ", if sql.is_empty() { "" } else { ";" });
        if is_list {
            let parts: Vec<_> = value.split(',').map(|part| format!("\"{}\"", part.trim().to_lowercase())).collect();
            sql.push_str(&parts.join(","));
        } else {
            put_literal(&mut sql, value, encoding);
        }
    }
    sql
}

impl Session {
    /// The unit was answered; the client has not been told that it is over. True if it has to wait for that.
    pub(super) fn restore_startup(&mut self, status: TxStatus) -> bool {
        let errored = self.state.run().is_none_or(|run| run.errored);
        let alone = matches!(self.unit.control, None | Some(Control::None));
        if self.unit.changes.is_empty() || errored || !alone || status == TxStatus::Failed {
            return false;
        }
        let changes = fallen(&self.unit.changes, &self.kept.startup);
        let Some(server) = self.state.server() else { return false };
        let sql = commands(&changes, ServerEncoding::named(server.parameter("server_encoding")));
        if sql.is_empty() {
            return false;
        }
        self.inject_now(&Injected::Settings(&sql), Expect::Restored);
        let session: Vec<SettingChange> = changes
            .into_iter()
            .filter(|change| matches!(change, SettingChange::Set { scope: Scope::Session, .. }))
            .collect();
        if !session.is_empty() {
            self.staged.push(Rc::new(Class { settings: session.into(), ..Class::read_only() }));
        }
        self.set_answer(Answer::Streaming);
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::super::profile::Profiles;
    use super::*;

    #[test]
    fn what_was_reset_falls_back_to_what_the_session_began_with() {
        let entries = [("timezone", "Asia/Tokyo"), ("search_path", "a, $user"), ("app.x", "it's")];
        let startup = Profiles::default().intern(entries.map(|(name, value)| (name.into(), value.into())).into());
        let reset = |name: &str, scope| SettingChange::Reset { name: name.into(), scope };
        let sql = |changes: &[SettingChange]| commands(&fallen(changes, &startup), ServerEncoding::Known);
        assert_eq!(sql(&[reset("timezone", Scope::Session)]), "SET \"timezone\" TO 'Asia/Tokyo'");
        assert_eq!(sql(&[reset("timezone", Scope::Transaction)]), "SET LOCAL \"timezone\" TO 'Asia/Tokyo'");
        assert_eq!(sql(&[reset("work_mem", Scope::Session)]), "");
        let set = SettingChange::Set { name: "timezone".into(), value: "UTC".into(), scope: Scope::Session };
        assert_eq!(sql(&[reset("timezone", Scope::Session), set.clone()]), "");
        assert_eq!(
            sql(&[set, SettingChange::ResetAll]),
            "SET \"app\".\"x\" TO 'it''s';SET \"search_path\" TO \"a\",\"$user\";SET \"timezone\" TO 'Asia/Tokyo'"
        );
    }
}
