//! `manatee.conf`, pure: the settings given to PostgreSQL, in three parts where the later wins:
//! defaults, the operator's `[postgres.parameters]`, and what Manatee owns.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use manatee_shared::ids::PeerId;

use super::error::Error;
use super::settings::Settings;
use super::{REPLICATION_ROLE, slot_name};
use crate::machine::local::{Recovery, ServerConfig, Synchronous};

/// Settings that decide who acknowledges, who is followed, where everything is, and whether what
/// was acknowledged is durable. Nobody else may set them.
const OWNED: &[&str] = &[
    "archive_cleanup_command",
    "data_directory",
    "event_source",
    "external_pid_file",
    "fsync",
    "full_page_writes",
    "hba_file",
    "hot_standby",
    "ident_file",
    "lc_messages",
    "listen_addresses",
    "log_destination",
    "log_line_prefix",
    "log_min_messages",
    "logging_collector",
    "max_slot_wal_keep_size",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restart_after_crash",
    "restore_command",
    "standby_mode",
    "synchronous_standby_names",
    "unix_socket_directories",
    "wal_level",
    "wal_log_hints",
    "zero_damaged_pages",
];

/// Defaults that differ from PostgreSQL's own: for quick detection and enough room for a shard.
const DEFAULTS: &[(&str, &str)] = &[
    ("max_connections", "200"),
    // The sitter, an operator, and the proxies get in when clients have taken everything.
    ("superuser_reserved_connections", "8"),
    ("max_wal_senders", "16"),
    ("max_replication_slots", "16"),
    ("password_encryption", "scram-sha-256"),
    ("hot_standby_feedback", "on"),
    // pg_rewind reads a former primary's own WAL back to the checkpoint before the divergence;
    // without it a rejoin would be a full copy.
    ("wal_keep_size", "512MB"),
    ("wal_receiver_status_interval", "1s"),
    ("wal_receiver_timeout", "5s"),
    ("wal_sender_timeout", "5s"),
    // 5 s by default: how long a standby would wait before it looks for its new upstream.
    ("wal_retrieve_retry_interval", "100ms"),
    ("synchronous_commit", "on"),
];

/// Owned settings that never change while a server runs. They are given on its command line as well, which wins over
/// every file, also over what ALTER SYSTEM writes (`guc.h`, `GucSource`). What changes by reload cannot be
/// given there.
pub(super) const FIXED: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("hot_standby", "on"),
    // After a crash of one backend everybody would be let in at once, unacknowledged commits
    // visible (rule 7): the postmaster ends instead, and is started with the gate closed.
    ("restart_after_crash", "off"),
    ("wal_log_hints", "on"),
];

/// Owned settings that take effect by reload and that acknowledged writes, or a takeover, depend on: looked at in every
/// observation, in this order. The first three follow from the configuration ([`expected`]), and so must be known to be in
/// force before it counts as confirmed.
pub(super) const WATCHED: [&str; 8] = [
    "synchronous_standby_names",
    "primary_conninfo",
    "primary_slot_name",
    "fsync",
    "full_page_writes",
    "restart_after_crash",
    "recovery_min_apply_delay",
    "recovery_target_timeline",
];

/// Number of settings in [`WATCHED`] that the configuration decides.
pub(super) const DECIDED: usize = 3;

/// Values that the rest of [`WATCHED`] must have, as `current_setting` shows them.
const WATCHED_VALUES: [&str; WATCHED.len() - DECIDED] = ["on", "on", "off", "0", "latest"];

/// ALTER SYSTEM is refused where PostgreSQL can do that: what it would set is not the same on all peers, and what Manatee
/// owns is removed again anyway. An operator may allow it.
const REFUSES_ALTER_SYSTEM: (u32, &str, &str) = (17, "allow_alter_system", "off");

/// The parameter by which a session recognises what it runs with.
pub(super) const CONFIG_ID: &str = "manatee.config_id";

/// A name that no peer has: commits wait for ever.
pub(super) const IMPOSSIBLE: &str = "manatee_nobody";

/// Whether Manatee owns this setting.
pub(super) fn is_owned(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    OWNED.contains(&name.as_str()) || name.starts_with("manatee.")
}

/// Whether commits under this value of `synchronous_commit` wait until the sync has them on disk.
pub(super) fn is_safe_commit(value: &str) -> bool {
    // `config.sgml`; the aliases of `on` are in guc_tables.c.
    ["on", "true", "yes", "1", "remote_apply"].iter().any(|safe| safe.eq_ignore_ascii_case(value))
}

/// Refuses settings that Manatee owns, or that would give up acknowledged writes.
pub(super) fn check_parameters(parameters: &BTreeMap<String, String>) -> Result<(), Error> {
    for (name, value) in parameters {
        let refuse = |problem: String| Err(Error::Setting { key: format!("postgres.parameters.{name}"), problem });
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if name.is_empty() || !name.chars().all(valid) || name.starts_with(|c: char| c.is_ascii_digit()) {
            return refuse("not the name of a PostgreSQL setting".to_owned());
        }
        if is_owned(name) {
            return refuse("Manatee sets this itself; remove it".to_owned());
        }
        let lower = name.to_ascii_lowercase();
        if lower.starts_with("include") {
            return refuse("files cannot be included here; use postgresql.conf in the data directory".to_owned());
        }
        if lower == "synchronous_commit" && !["on", "remote_apply"].contains(&value.as_str()) {
            return refuse("must be `on` or `remote_apply`: less would lose acknowledged writes".to_owned());
        }
    }
    Ok(())
}

/// Numbers below which a shard cannot work, and why.
const LEAST: &[(&str, u32, &str)] = &[
    ("max_wal_senders", 4, "two followers, a copy and a peer that comes back each take one"),
    ("max_replication_slots", 4, "each follower has one, and so has a peer that comes back"),
];

/// Clients that must find room beside the connections kept for superusers.
const LEAST_CLIENTS: u32 = 5;

/// Refuses numbers with which PostgreSQL does not start, or a shard does not work. What is no number is PostgreSQL's to judge.
pub(super) fn check_numbers(parameters: &BTreeMap<String, String>, template: &str) -> Result<(), Error> {
    let given = |name: &str| -> Option<u32> {
        let default = || DEFAULTS.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        setting(name, parameters, template).or_else(default)?.parse().ok()
    };
    let refuse = |name: &str, problem: String| {
        let in_template = !parameters.keys().any(|key| key.eq_ignore_ascii_case(name));
        let key = if in_template { "postgres.conf_file, " } else { "postgres.parameters." };
        Err(Error::Setting { key: format!("{key}{name}"), problem })
    };
    for (name, least, why) in LEAST {
        if let Some(found) = given(name).filter(|found| found < least) {
            return refuse(name, format!("{found} is too few: choose at least {least} ({why})"));
        }
    }
    let (connections, reserved) = (given("max_connections"), given("superuser_reserved_connections"));
    if let (Some(connections), Some(reserved)) = (connections, reserved)
        && connections < reserved.saturating_add(LEAST_CLIENTS)
    {
        let least = reserved.saturating_add(LEAST_CLIENTS);
        let problem = format!(
            "{connections} is too few: {reserved} are kept for superusers (superuser_reserved_connections); choose at least {least}"
        );
        return refuse("max_connections", problem);
    }
    Ok(())
}

/// Names and values of a text in the manner of `postgresql.conf`: `name = value`, `name value`; the rest is
/// PostgreSQL's to judge.
pub(super) fn template_settings(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let (name, value) = line.split_once(|c: char| c == '=' || c.is_whitespace()).unwrap_or((line, ""));
        let value = value.trim_start_matches(|c: char| c == '=' || c.is_whitespace());
        (name, value.split(['#', ' ', '\t']).next().unwrap_or_default().trim_matches('\''))
    })
}

/// The operator's value of a setting, the last one given.
pub(super) fn setting(name: &str, parameters: &BTreeMap<String, String>, template: &str) -> Option<String> {
    let given = parameters.iter().rfind(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone());
    given.or_else(|| {
        let of_template = template_settings(template).filter(|(key, _)| key.eq_ignore_ascii_case(name)).last();
        of_template.map(|(_, value)| value.to_owned())
    })
}

/// The same for a whole file in the manner of `postgresql.conf`.
pub(super) fn check_template(text: &str) -> Result<(), Error> {
    for (name, value) in template_settings(text) {
        check_parameters(&BTreeMap::from([(name.to_owned(), value.to_owned())])).map_err(|error| match error {
            Error::Setting { problem, .. } => Error::Setting { key: format!("postgres.conf_file, {name}"), problem },
            other => other,
        })?;
    }
    Ok(())
}

/// Value of a setting, quoted (manual, section 20.1.2; `guc-file.l` also knows backslash escapes).
pub(super) fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n"))
}

/// Value in a connection string (manual, section 34.1.1.1).
pub(super) fn quote_conninfo(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// `synchronous_standby_names`.
pub(super) fn synchronous_standby_names(synchronous: &Synchronous) -> String {
    match synchronous {
        Synchronous::Impossible => format!("FIRST 1 ({IMPOSSIBLE})"),
        Synchronous::Peer(peer) => format!("FIRST 1 (\"{peer}\")"),
        Synchronous::Both { new, old } => format!("FIRST 2 (\"{new}\", \"{old}\")"),
        Synchronous::Nobody => String::new(),
    }
}

/// `sync_priority` that the walsender of `peer` shows once it has taken over the above.
pub(super) fn sync_priority(synchronous: &Synchronous, peer: PeerId) -> u32 {
    match synchronous {
        Synchronous::Peer(sync) if *sync == peer => 1,
        Synchronous::Both { new, .. } if *new == peer => 1,
        Synchronous::Both { old, .. } if *old == peer => 2,
        _ => 0,
    }
}

/// Under which name a standby follows: only its own counts as an acknowledgement (see
/// [`super::guard`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// The peer's id.
    Own,
    /// One that is nobody's.
    Guest,
}

/// `primary_conninfo`: empty unless following somebody. The password is in a file.
pub(super) fn primary_conninfo(settings: &Settings, recovery: &Recovery, me: PeerId, name: Name) -> String {
    let Recovery::Follow(upstream) = recovery else { return String::new() };
    let name = match name {
        Name::Own => me.to_string(),
        Name::Guest => format!("guest {me}"),
    };
    // A silent upstream is given up after about 3 s; the 5 s of wal_receiver_timeout cover one
    // that still acknowledges on TCP.
    format!(
        "host={} port={} user={REPLICATION_ROLE} dbname=postgres application_name={} passfile={} connect_timeout=2 \
         keepalives=1 keepalives_idle=1 keepalives_interval=1 keepalives_count=3 tcp_user_timeout=3000 {}",
        upstream.ip,
        upstream.pg_port,
        quote_conninfo(&name),
        quote_conninfo(&settings.layout().passfile().to_string_lossy()),
        settings.replication_tls.conninfo(),
    )
}

/// The values that [`super::Postgres::configure`] finds again in a session before it believes.
pub(super) fn expected(
    settings: &Settings,
    me: PeerId,
    config: &ServerConfig,
    name: Name,
) -> [(&'static str, String); 3] {
    let following = matches!(config.recovery, Recovery::Follow(_));
    [
        ("synchronous_standby_names", synchronous_standby_names(&config.synchronous)),
        ("primary_conninfo", primary_conninfo(settings, &config.recovery, me, name)),
        ("primary_slot_name", if following { slot_name(me) } else { String::new() }),
    ]
}

/// Places in [`WATCHED`] of the settings that are not as they should be, given the `values` seen. A standby may follow
/// under either name: the guard changes it under way.
pub(super) fn loosened(settings: &Settings, me: PeerId, config: &ServerConfig, values: &[String]) -> Vec<usize> {
    let [own, guest] = [Name::Own, Name::Guest].map(|name| expected(settings, me, config, name));
    let decided = own.iter().zip(&guest).map(|((_, own), (_, guest))| [own.as_str(), guest.as_str()]);
    let wanted = decided.chain(WATCHED_VALUES.iter().map(|value| [*value, *value]));
    let wrong = values.iter().zip(wanted).enumerate().filter(|(_, (found, wanted))| !wanted.contains(&found.as_str()));
    wrong.map(|(place, _)| place).collect()
}

/// The file, without its identity. Primary and Detached render alike, so that a promotion changes
/// nothing here but who acknowledges.
pub(super) fn render(settings: &Settings, major: u32, me: PeerId, config: &ServerConfig, name: Name) -> String {
    let layout = settings.layout();
    let mut text = String::from("# Written by manatee-sitter; changes here are lost.\n");
    let mut line = |name: &str, value: &str| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name} = {}", quote(value));
    };
    for (name, value) in DEFAULTS {
        line(name, value);
    }
    let (since, name_of, value) = REFUSES_ALTER_SYSTEM;
    if major >= since {
        line(name_of, value);
    }
    if let Some(template) = &settings.conf_template {
        text.push_str(template);
        text.push('\n');
    }
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name} = {}", quote(value));
    };
    for (name, value) in &settings.parameters {
        line(name, value);
    }
    line("listen_addresses", &me.ip.to_string());
    line("port", &me.pg_port.to_string());
    line("unix_socket_directories", &layout.run().to_string_lossy());
    line("hba_file", &layout.hba().to_string_lossy());
    line("ident_file", &layout.ident().to_string_lossy());
    line("wal_level", "replica");
    for (name, value) in FIXED {
        line(name, value);
    }
    line("recovery_min_apply_delay", "0");
    line("max_slot_wal_keep_size", &format!("{}MB", (settings.max_slot_wal_keep_bytes >> 20).max(1)));
    line("recovery_target_timeline", "latest");
    line("logging_collector", "off");
    line("log_destination", "stderr");
    line("log_line_prefix", "%m [%p] %b ");
    // Why a receiver or a whole server failed is said in the log and nowhere else: the sitter reads it there. `warning` is
    // PostgreSQL's own default; `fatal` and `panic` would leave out some of it (`serverlog`).
    line("log_min_messages", "warning");
    line("lc_messages", "C");
    for (name, value) in expected(settings, me, config, name) {
        line(name, &value);
    }
    text
}

/// Identity of what was rendered: equal texts need no reload. FNV-1a, 64 bits.
pub(super) fn identity<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in texts.into_iter().flat_map(|text| text.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}

/// The line by which `postgresql.conf` includes our file. Relative, so that a copy of the data
/// directory uses the files of its own peer.
pub(super) const INCLUDE: &str = "include '../run/manatee.conf'  # by manatee-sitter; must stay the last line";

/// `postgresql.conf` with our include as its last line; None if it is already so.
pub(super) fn with_include(text: &str) -> Option<String> {
    if text.lines().rfind(|line| !line.trim().is_empty()) == Some(INCLUDE) {
        return None;
    }
    let mut kept: String =
        text.lines().filter(|line| *line != INCLUDE).flat_map(|line| [line, "\n"]).collect::<String>();
    kept.push_str(INCLUDE);
    kept.push('\n');
    Some(kept)
}

/// `postgresql.auto.conf` (which wins over every other file) without settings that Manatee owns, or
/// that would give up acknowledged writes, and the names removed; None if there are none.
pub(super) fn without_owned(text: &str) -> Option<(String, Vec<String>)> {
    let mut removed = Vec::new();
    let mut kept = String::new();
    for line in text.lines() {
        let name: String =
            line.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_' || *c == '.').collect();
        let gives_up = name.eq_ignore_ascii_case("synchronous_commit")
            && template_settings(line).any(|(_, value)| !is_safe_commit(value));
        if is_owned(&name) || gives_up {
            removed.push(name);
        } else {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    (!removed.is_empty()).then_some((kept, removed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::local::Gate;
    use crate::postgres::settings::Secret;

    fn peer(n: u8) -> PeerId {
        format!("10.0.0.{n}:5432:12345").parse().unwrap()
    }

    fn config(recovery: Recovery) -> ServerConfig {
        ServerConfig {
            recovery,
            synchronous: Synchronous::Both { new: peer(3), old: peer(2) },
            gate: Gate::Closed,
            slots: [peer(2)].into(),
        }
    }

    fn settings() -> Settings {
        Settings::new("/var/lib/manatee".into(), "/bin".into(), Secret::new("s3cret"), Secret::new("pr0xy"))
    }

    #[test]
    fn alter_system_is_refused_where_it_can_be_unless_an_operator_allows_it() {
        let text = |major, settings: &Settings| render(settings, major, peer(1), &config(Recovery::Primary), Name::Own);
        assert!(!text(16, &settings()).contains("allow_alter_system"), "an unknown name would block every reload");
        assert!(text(17, &settings()).contains("allow_alter_system = 'off'"));
        let mut allowing = settings();
        allowing.parameters.insert("allow_alter_system".into(), "on".into());
        let text = text(18, &allowing);
        assert!(
            text.find("allow_alter_system = 'off'") < text.find("allow_alter_system = 'on'"),
            "the later wins: {text}"
        );
    }

    #[test]
    fn primary_and_detached_render_alike_and_follow_does_not() {
        let primary = render(&settings(), 15, peer(1), &config(Recovery::Primary), Name::Own);
        assert_eq!(primary, render(&settings(), 15, peer(1), &config(Recovery::Detached), Name::Own));
        let follow = render(&settings(), 15, peer(1), &config(Recovery::Follow(peer(2))), Name::Guest);
        assert!(follow.contains("guest 10.0.0.1:5432:12345"));
        assert!(follow.contains("host=10.0.0.2 port=5432"));
        assert!(follow.contains("primary_slot_name = 'manatee_10_0_0_1_5432_12345'"));
        assert!(follow.contains("FIRST 2 (\"10.0.0.3:5432:12345\", \"10.0.0.2:5432:12345\")"));
        assert!(!follow.contains("s3cret"), "the password is only in the passfile");
    }

    #[test]
    fn operators_settings_come_before_ours_and_after_the_defaults() {
        let mut settings = settings();
        settings.parameters.insert("max_connections".into(), "7".into());
        settings.parameters.insert("application_name".into(), "it's \\ ok".into());
        let text = render(&settings, 15, peer(1), &config(Recovery::Primary), Name::Own);
        let at = |needle: &str| text.find(needle).unwrap_or_else(|| panic!("{needle} in {text}"));
        assert!(at("max_connections = '200'") < at("max_connections = '7'"));
        assert!(at("max_connections = '7'") < at("listen_addresses"));
        assert!(text.contains(r"application_name = 'it''s \\ ok'"));
    }

    #[test]
    fn a_template_comes_between_and_is_checked_like_the_parameters() {
        let mut settings = settings();
        settings.conf_template = Some("max_connections = 6 # few\nwork_mem '8MB'".into());
        settings.parameters.insert("max_connections".into(), "7".into());
        let text = render(&settings, 15, peer(1), &config(Recovery::Primary), Name::Own);
        let at = |needle: &str| text.find(needle).unwrap_or_else(|| panic!("{needle} in {text}"));
        assert!(at("max_connections = '200'") < at("max_connections = 6"));
        assert!(at("work_mem '8MB'\n") < at("max_connections = '7'"));
        assert!(check_template("# port = 1\n\n  work_mem = '1MB' # much\nsynchronous_commit = on # safe\n").is_ok());
        for (text, name) in [
            ("port = 1", "port"),
            ("work_mem = '1MB'\nfsync off", "fsync"),
            ("synchronous_commit = 'local' # quick", "synchronous_commit"),
            ("include 'more.conf'", "include"),
        ] {
            let error = check_template(text).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("postgres.conf_file"), "{error}");
        }
    }

    #[test]
    fn owned_settings_are_refused_by_name() {
        for (name, value) in [
            ("port", "1"),
            ("Synchronous_Standby_Names", "*"),
            ("synchronous_commit", "off"),
            ("include_dir", "x"),
            ("log_min_messages", "panic"),
            ("manatee.config_id", "1"),
            ("a b", "1"),
            ("fsync", "off"),
        ] {
            let error = check_parameters(&BTreeMap::from([(name.to_owned(), value.to_owned())])).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        let fine = BTreeMap::from([("synchronous_commit".to_owned(), "remote_apply".to_owned())]);
        assert!(check_parameters(&fine).is_ok());
    }

    #[test]
    fn numbers_with_which_a_shard_cannot_work_are_refused_by_name() {
        let check = |name: &str, value: &str| {
            let parameters = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            check_numbers(&parameters, "").map_err(|error| error.to_string())
        };
        for (name, value) in [("max_connections", "5"), ("max_wal_senders", "0"), ("max_replication_slots", "3")] {
            let problem = check(name, value).unwrap_err();
            assert!(
                problem.contains(&format!("postgres.parameters.{name}")) && problem.contains("at least"),
                "{problem}"
            );
        }
        for (name, value) in [("max_connections", "13"), ("max_wal_senders", "4"), ("max_wal_senders", "many")] {
            assert_eq!(check(name, value), Ok(()), "{name} {value}");
        }
        let problem = check_numbers(&BTreeMap::new(), "max_connections = 8 # few").unwrap_err().to_string();
        assert!(problem.contains("postgres.conf_file, max_connections"), "{problem}");
    }

    #[test]
    fn include_is_added_once_and_kept_last() {
        let first = with_include("port = 1").unwrap();
        assert_eq!(with_include(&first), None);
        let edited = format!("{first}port = 2\n");
        let again = with_include(&edited).unwrap();
        assert_eq!(again.matches("include '").count(), 1);
        assert!(again.trim_end().ends_with(INCLUDE));
    }

    #[test]
    fn altered_system_loses_only_what_is_ours() {
        let text = "# comment\nwork_mem = '1MB'\nsynchronous_standby_names = ''\n";
        let (kept, removed) = without_owned(text).unwrap();
        assert_eq!(removed, ["synchronous_standby_names"]);
        assert_eq!(kept, "# comment\nwork_mem = '1MB'\n");
        assert!(without_owned(&kept).is_none());
    }

    #[test]
    fn altered_system_may_not_give_up_acknowledged_writes() {
        for (value, stays) in
            [("off", false), ("'local'", false), ("remote_write", false), ("'on'", true), ("remote_apply", true)]
        {
            let text = format!("synchronous_commit = {value}\n");
            assert_eq!(without_owned(&text).is_none(), stays, "{value}");
        }
    }

    #[test]
    fn what_is_not_in_force_is_found_under_either_name() {
        let following = config(Recovery::Follow(peer(2)));
        let values = |name| {
            let decided = expected(&settings(), peer(1), &following, name).map(|(_, value)| value);
            decided.into_iter().chain(WATCHED_VALUES.map(str::to_owned)).collect::<Vec<_>>()
        };
        let found = |values: &[String]| {
            let places = loosened(&settings(), peer(1), &following, values);
            places.into_iter().map(|place| WATCHED[place]).collect::<Vec<_>>()
        };
        for name in [Name::Own, Name::Guest] {
            assert!(found(&values(name)).is_empty());
        }
        let mut changed = values(Name::Own);
        (changed[0], changed[3]) = (String::new(), "off".to_owned());
        assert_eq!(found(&changed), ["synchronous_standby_names", "fsync"]);
        changed[1].push_str("host=elsewhere");
        assert_eq!(found(&changed)[1], "primary_conninfo");
    }

    #[test]
    fn priorities_follow_the_list() {
        let both = Synchronous::Both { new: peer(3), old: peer(2) };
        assert_eq!([2, 3, 4].map(|n| sync_priority(&both, peer(n))), [2, 1, 0]);
        assert_eq!(sync_priority(&Synchronous::Impossible, peer(2)), 0);
    }
}
