//! Volatility of a database's functions and relations.
//!
//! The facts come from the database itself ([`CATALOG_SQL`]), so that every version and extension is
//! right; what volatility does not say about PostgreSQL's own functions is in the tables below.
//! Names are judged without knowing the search path: a name is safe only if *every* function of that
//! name is. A name that is missing (created since the last reload, in `pg_temp` …) is not safe.
//!
//! A function wrongly marked STABLE that writes after all is caught by the standby's 25006.

use std::collections::{HashMap, HashSet};

/// Five text columns: kind, schema, name, a, b. Kinds:
/// `f` function (a: `t` if volatile, or an aggregate over a volatile one; b: `k` if all of that name keep the
/// session's settings) · `d` what a role (schema; none: every role) is given at its login (a) · `c` custom setting that a function or a row-security policy names ·
/// `o` operator with a volatile function · `t` type with a volatile input or cast function ·
/// `r` relation a standby cannot read, or not alike (foreign, unlogged, sequence) ·
/// `u` a view, or a table with row security, uses the function a.b · `w` it uses the relation a.b.
///
/// Rules' trees are searched as text because dependencies on built-in objects are not recorded in `pg_depend`.
pub const CATALOG_SQL: &str = r#"
WITH volatile AS MATERIALIZED (SELECT oid FROM pg_catalog.pg_proc WHERE provolatile = 'v'),
-- Functions of users in whose text something could be that changes settings: a command, a text made at run
-- time, or a call of another volatile one. Of other languages nothing is known.
setters AS MATERIALIZED (
    SELECT p.oid FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
     WHERE p.provolatile = 'v' AND p.pronamespace <> 'pg_catalog'::pg_catalog.regnamespace
       AND (l.lanname NOT IN ('sql', 'plpgsql') OR p.prosrc = ''
         OR p.prosrc ~* '\m(set_config|pg_settings|execute|call|discard|load)\M'
         OR p.prosrc ~* '(^|;|\*/|--[^\n]*\n|\m(begin|then|else|loop))\s*(set|reset)\M'
         OR EXISTS (SELECT FROM pg_catalog.regexp_matches(p.prosrc, '([[:alpha:]_][[:alnum:]_$]*)"?\s*\(', 'g') m
                     WHERE pg_catalog.lower(m[1]) IN (
                         SELECT pg_catalog.lower(u.proname) FROM pg_catalog.pg_proc u
                          WHERE u.provolatile = 'v' AND u.pronamespace <> 'pg_catalog'::pg_catalog.regnamespace)))
),
tree AS MATERIALIZED (
    SELECT r.ev_class AS relation, m[1] = 'relid' AS is_relation, m[2]::pg_catalog.oid AS used
      FROM pg_catalog.pg_rewrite r
      JOIN pg_catalog.pg_class c ON c.oid = r.ev_class AND c.relkind = 'v',
           LATERAL pg_catalog.regexp_matches(r.ev_action::text, ':(funcid|opfuncid|aggfnoid|winfnoid|relid) (\d+)', 'g') m
    UNION
    SELECT p.polrelid, m[1] = 'relid', m[2]::pg_catalog.oid
      FROM pg_catalog.pg_policy p,
           LATERAL pg_catalog.regexp_matches(p.polqual::text, ':(funcid|opfuncid|aggfnoid|winfnoid|relid) (\d+)', 'g') m
)
SELECT 'f' AS kind, n.nspname::text AS schema, p.proname::text AS name,
       CASE WHEN pg_catalog.bool_or(p.provolatile = 'v' OR EXISTS (
           SELECT FROM pg_catalog.pg_aggregate a
            WHERE a.aggfnoid = p.oid
              AND (a.aggtransfn IN (SELECT oid FROM volatile) OR a.aggfinalfn IN (SELECT oid FROM volatile)
                OR a.aggmtransfn IN (SELECT oid FROM volatile) OR a.aggmfinalfn IN (SELECT oid FROM volatile))))
           THEN 't' ELSE 'f' END AS a,
       CASE WHEN pg_catalog.bool_or(p.provolatile = 'v') AND NOT pg_catalog.bool_or(p.oid IN (SELECT oid FROM setters))
            THEN 'k' ELSE '' END AS b
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
 GROUP BY n.nspname, p.proname
UNION ALL
SELECT 'd', COALESCE(r.rolname::text, ''), '', s.setdatabase::text || s.setconfig::text, ''
  FROM pg_catalog.pg_db_role_setting s LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
 WHERE s.setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))
UNION ALL
(SELECT DISTINCT 'c', '', pg_catalog.lower(m[1]), '', ''
  FROM (SELECT prosrc AS text FROM pg_catalog.pg_proc WHERE pronamespace <> 'pg_catalog'::pg_catalog.regnamespace
        UNION ALL
        SELECT pg_catalog.pg_get_expr(polqual, polrelid) FROM pg_catalog.pg_policy
        UNION ALL
        SELECT pg_catalog.pg_get_expr(polwithcheck, polrelid) FROM pg_catalog.pg_policy) texts,
       LATERAL pg_catalog.regexp_matches(texts.text,
           '(?:(?:set_config|current_setting)\s*\(\s*''|\mset\s+(?:session\s+)?)([[:alpha:]_][[:alnum:]_$]*(?:\.[[:alpha:]_][[:alnum:]_$]*)+)',
           'gi') m
 LIMIT 200)
UNION ALL
SELECT 'o', '', o.oprname::text, '', '' FROM pg_catalog.pg_operator o WHERE o.oprcode IN (SELECT oid FROM volatile)
UNION ALL
SELECT 't', '', t.typname::text, '', '' FROM pg_catalog.pg_type t
 WHERE t.typinput IN (SELECT oid FROM volatile)
    OR t.oid IN (SELECT casttarget FROM pg_catalog.pg_cast WHERE castfunc IN (SELECT oid FROM volatile))
UNION ALL
SELECT 'r', n.nspname::text, c.relname::text, '', ''
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('f', 'S') OR (c.relpersistence = 'u' AND c.relkind IN ('r', 'm', 'p'))
UNION ALL
SELECT 'u', n.nspname::text, c.relname::text, fn.nspname::text, f.proname::text
  FROM tree t
  JOIN pg_catalog.pg_class c ON c.oid = t.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_proc f ON f.oid = t.used JOIN pg_catalog.pg_namespace fn ON fn.oid = f.pronamespace
 WHERE NOT t.is_relation
UNION ALL
SELECT 'w', n.nspname::text, c.relname::text, un.nspname::text, u.relname::text
  FROM tree t
  JOIN pg_catalog.pg_class c ON c.oid = t.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_class u ON u.oid = t.used JOIN pg_catalog.pg_namespace un ON un.oid = u.relnamespace
 WHERE t.is_relation AND u.oid <> c.oid"#;

/// One text: changes whenever the answer to [`CATALOG_SQL`] may have (a few milliseconds instead of tens).
pub const CATALOG_SIGNATURE_SQL: &str = r"
SELECT pg_catalog.concat_ws('/',
    (SELECT pg_catalog.count(*) || ',' || pg_catalog.sum(oid::int8 # xmin::text::int8) FROM pg_catalog.pg_proc),
    (SELECT pg_catalog.count(*) || ',' || pg_catalog.sum(oid::int8 # xmin::text::int8) FROM pg_catalog.pg_rewrite),
    (SELECT pg_catalog.count(*) || ',' || pg_catalog.sum(oid::int8 # xmin::text::int8) FROM pg_catalog.pg_operator),
    (SELECT pg_catalog.count(*) || ',' || pg_catalog.sum(oid::int8 # xmin::text::int8) FROM pg_catalog.pg_cast),
    (SELECT pg_catalog.count(*) || ',' || pg_catalog.sum(oid::int8 # xmin::text::int8) FROM pg_catalog.pg_policy),
    (SELECT pg_catalog.count(*) || ',' || pg_catalog.sum(oid::int8 # pg_catalog.hashtext(relname::text || relnamespace::text || relpersistence::text)::int8)
       FROM pg_catalog.pg_class WHERE relkind IN ('f', 'S', 'v') OR relpersistence = 'u'),
    (SELECT pg_catalog.count(*) || ',' || pg_catalog.sum(oid::int8 # xmin::text::int8) FROM pg_catalog.pg_namespace),
    (SELECT pg_catalog.count(*) || ',' || pg_catalog.sum(setrole::int8 # xmin::text::int8) FROM pg_catalog.pg_db_role_setting))";

/// Consequence of a call to a function of this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Reads only, and the same on every node.
    Safe,
    /// PostgreSQL's own: differs between the nodes, or writes.
    BuiltIn,
    /// PostgreSQL's own: does what no rollback undoes (`pg_terminate_backend`, `pg_switch_wal` …).
    Acts,
    /// A volatile function of a user or an extension: may do anything, but for changing the session's settings,
    /// which its text would show.
    Keeps,
    /// A volatile function of a user or an extension: may do anything.
    User,
    /// No function of that name is known.
    Unknown,
}

impl Verdict {
    /// Of two functions that a name may mean, the worse.
    fn worse(self, other: Self) -> Self {
        let rank = |verdict| match verdict {
            Self::Safe => 0,
            Self::BuiltIn => 1,
            Self::Acts => 2,
            Self::Keeps => 3,
            Self::User | Self::Unknown => 4,
        };
        if rank(other) > rank(self) { other } else { self }
    }
}

/// Facts about one database's functions and relations. Built at once, never changed.
#[derive(Debug, Default)]
pub struct Catalog {
    /// By plain name, the worst of that name; and by schema, NUL, name.
    functions: HashMap<Box<str>, Verdict>,
    operators: HashSet<Box<str>>,
    types: HashSet<Box<str>>,
    /// As for functions: plain names and qualified ones.
    relations: HashSet<Box<str>>,
    /// Custom settings that functions and policies name.
    custom: Vec<Box<str>>,
    /// Settings that roles get at their login (ALTER ROLE … SET, ALTER DATABASE … SET); the empty name: every role.
    defaults: HashMap<Box<str>, Vec<Box<str>>>,
}

fn qualified(schema: &str, name: &str) -> Box<str> {
    format!("{schema}\0{name}").into_boxed_str()
}

impl Catalog {
    /// From the rows of [`CATALOG_SQL`]. Rows of an unknown kind are passed over.
    pub fn from_rows<'a>(rows: impl IntoIterator<Item = [&'a str; 5]>) -> Self {
        let mut catalog = Self::default();
        let mut unsafe_views: HashSet<(&str, &str)> = HashSet::new();
        let mut uses_function = Vec::new();
        let mut uses_relation = Vec::new();
        for [kind, schema, name, a, b] in rows {
            match kind {
                "f" => catalog.add_function(schema, name, a == "t", b == "k"),
                "c" => catalog.custom.push(name.into()),
                "d" => catalog.defaults.entry(schema.into()).or_default().push(a.into()),
                "o" => {
                    catalog.operators.insert(name.into());
                }
                "t" => {
                    catalog.types.insert(name.into());
                }
                "r" => {
                    unsafe_views.insert((schema, name));
                }
                "u" => uses_function.push((schema, name, a, b)),
                "w" => uses_relation.push((schema, name, a, b)),
                _ => {}
            }
        }
        for (schema, name, function_schema, function) in uses_function {
            if catalog.function(Some(function_schema), function) != Verdict::Safe {
                unsafe_views.insert((schema, name));
            }
        }
        // Views over unsafe views, however deep: each round adds at least one or is the last.
        loop {
            let before = unsafe_views.len();
            for (schema, name, used_schema, used) in &uses_relation {
                if unsafe_views.contains(&(*used_schema, *used)) {
                    unsafe_views.insert((schema, name));
                }
            }
            if unsafe_views.len() == before {
                break;
            }
        }
        for (schema, name) in unsafe_views {
            catalog.relations.insert(name.into());
            catalog.relations.insert(qualified(schema, name));
        }
        catalog
    }

    /// Custom settings that functions and row-security policies name: those that a function may have set.
    #[must_use]
    pub fn custom_settings(&self) -> &[Box<str>] {
        &self.custom
    }

    /// Fingerprint of the settings a role gets at its login, to tell them from those it got before.
    #[must_use]
    pub fn defaults_of(&self, role: &str) -> Vec<Box<str>> {
        let of = |role: &str| self.defaults.get(role).into_iter().flatten().cloned();
        let mut defaults: Vec<_> = of("").chain(of(role)).collect();
        defaults.sort_unstable();
        defaults
    }

    /// Number of function names that are known, plain and qualified.
    #[must_use]
    pub fn functions(&self) -> usize {
        self.functions.len()
    }

    fn add_function(&mut self, schema: &str, name: &str, volatile: bool, keeps_settings: bool) {
        let verdict = match schema {
            "pg_catalog" if is_harmless(name) => Verdict::Safe,
            "pg_catalog" if volatile && !is_undone(name) => Verdict::Acts,
            "pg_catalog" if volatile || differs_between_nodes(name) => Verdict::BuiltIn,
            _ if volatile && keeps_settings => Verdict::Keeps,
            _ if volatile => Verdict::User,
            _ => Verdict::Safe,
        };
        self.functions.insert(qualified(schema, name), verdict);
        let entry = self.functions.entry(name.into()).or_insert(verdict);
        *entry = entry.worse(verdict);
    }

    /// Verdict on a call of this function, as written in a text.
    #[must_use]
    pub fn function(&self, schema: Option<&str>, name: &str) -> Verdict {
        let found = match schema {
            None => self.functions.get(name),
            Some(schema) => self.functions.get(&*qualified(schema, name)),
        };
        found.copied().unwrap_or(Verdict::Unknown)
    }

    /// True if a read of this relation may go to a standby as far as is known.
    #[must_use]
    pub fn relation_is_safe(&self, schema: Option<&str>, name: &str) -> bool {
        match schema {
            None => !self.relations.contains(name),
            Some(schema) => !self.relations.contains(&*qualified(schema, name)),
        }
    }

    /// True unless an operator of this name runs a volatile function.
    #[must_use]
    pub fn operator_is_safe(&self, name: &str) -> bool {
        !self.operators.contains(name)
    }

    /// True unless reading or casting to a type of this name runs a volatile function.
    #[must_use]
    pub fn type_is_safe(&self, name: &str) -> bool {
        !self.types.contains(name)
    }
}

/// PostgreSQL's volatile functions that any node may run: they leave nothing behind, and their
/// result is not expected to be the primary's.
fn is_harmless(name: &str) -> bool {
    matches!(
        name,
        "random"
            | "random_normal"
            | "gen_random_uuid"
            | "uuidv4"
            | "uuidv7"
            | "clock_timestamp"
            | "timeofday"
            | "current_query"
            | "pg_sleep"
            | "pg_sleep_for"
            | "pg_sleep_until"
            | "pg_partition_tree"
            | "pg_partition_ancestors"
            | "pg_relation_size"
            | "pg_table_size"
            | "pg_indexes_size"
            | "pg_total_relation_size"
            | "pg_database_size"
            | "pg_tablespace_size"
    )
}

/// PostgreSQL's volatile functions of which nothing is left once their transaction is rolled back: those that
/// only look, and those that write to tables. The others may have acted when the server goes (on another
/// backend, a slot, a file, the server's state).
fn is_undone(name: &str) -> bool {
    const PREFIXES: [&str; 19] = [
        "RI_FKey_",
        "brin_",
        "lo_",
        "pg_blocking_",
        "pg_control_",
        "pg_current_",
        "pg_get_",
        "pg_is_",
        "pg_isolation_",
        "pg_last_",
        "pg_logical_slot_peek_",
        "pg_ls_",
        "pg_read_",
        "pg_safe_snapshot_",
        "pg_show_",
        "pg_stat_get_",
        "pg_xact_",
        "txid_",
        "tsvector_update_",
    ];
    const NAMES: [&str; 28] = [
        "bernoulli",
        "currtid2",
        "currval",
        "gin_clean_pending_list",
        "lastval",
        "loread",
        "lowrite",
        // Taken anew where it runs again.
        "nextval",
        "pg_collation_actual_version",
        "pg_database_collation_actual_version",
        "pg_export_snapshot",
        "pg_hba_file_rules",
        "pg_ident_file_mappings",
        "pg_import_system_collations",
        "pg_jit_available",
        "pg_lock_status",
        "pg_notification_queue_usage",
        // Sent at the commit.
        "pg_notify",
        "pg_prepared_xact",
        "pg_replication_origin_progress",
        "pg_replication_origin_session_is_setup",
        "pg_replication_origin_session_progress",
        "pg_sequence_last_value",
        "pg_stat_clear_snapshot",
        "pg_stat_file",
        "pg_stat_have_stats",
        "suppress_redundant_updates_trigger",
        "system",
    ];
    // A file on the server's host.
    name != "lo_export" && (NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}

/// PostgreSQL's own functions that are not volatile, but whose result depends on the node or on the
/// server process, or that cannot run during recovery (`txid_current` is STABLE and assigns).
fn differs_between_nodes(name: &str) -> bool {
    const PREFIXES: [&str; 16] = [
        "pg_stat_get_",
        "pg_show_",
        "pg_current_",
        "pg_last_",
        "pg_is_in_",
        "pg_is_wal_",
        "pg_ls_",
        "pg_read_",
        "pg_control_",
        "pg_wal_",
        "pg_walfile_",
        "pg_replication_",
        "pg_logical_",
        "pg_get_replication_",
        "pg_get_wal_",
        "txid_current",
    ];
    matches!(
        name,
        "pg_backend_pid"
            | "inet_client_addr"
            | "inet_client_port"
            | "inet_server_addr"
            | "inet_server_port"
            | "pg_postmaster_start_time"
            | "pg_conf_load_time"
            | "pg_config"
            | "pg_jit_available"
            | "pg_listening_channels"
            | "pg_notification_queue_usage"
            | "pg_prepared_statement"
            | "pg_prepared_xact"
            | "pg_cursor"
            | "pg_lock_status"
            | "pg_hba_file_rules"
            | "pg_ident_file_mappings"
            | "pg_snapshot_timestamp"
            | "pg_get_aios"
            | "pg_dsm_registry_allocations"
    ) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Effect of one of PostgreSQL's own functions on the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BuiltInEffect {
    AdvisoryLock,
    AdvisoryLockTransaction,
    AdvisoryUnlock,
    SequenceRead,
    SequenceWrite,
    Seed,
    /// Runs a text of SQL it is given, or acts on the session by other means.
    Unknown,
}

/// The effect of a function of this name, if it is one of PostgreSQL's that have one.
pub(super) fn built_in_effect(name: &str) -> Option<BuiltInEffect> {
    Some(match name {
        "pg_advisory_lock" | "pg_advisory_lock_shared" | "pg_try_advisory_lock" | "pg_try_advisory_lock_shared" => {
            BuiltInEffect::AdvisoryLock
        }
        "pg_advisory_unlock" | "pg_advisory_unlock_shared" | "pg_advisory_unlock_all" => BuiltInEffect::AdvisoryUnlock,
        "lastval" | "currval" => BuiltInEffect::SequenceRead,
        "nextval" | "setval" => BuiltInEffect::SequenceWrite,
        "setseed" => BuiltInEffect::Seed,
        "query_to_xml"
        | "query_to_xmlschema"
        | "query_to_xml_and_xmlschema"
        | "cursor_to_xml"
        | "ts_stat"
        | "ts_rewrite"
        | "pg_replication_origin_session_setup"
        | "pg_replication_origin_xact_setup" => BuiltInEffect::Unknown,
        _ if name.starts_with("pg_advisory_xact_") || name.starts_with("pg_try_advisory_xact_") => {
            BuiltInEffect::AdvisoryLockTransaction
        }
        _ => return None,
    })
}

/// True if a setting is the session's own: replayed on every server it uses, so that `SHOW` and
/// `current_setting` answer alike everywhere. The rest belongs to a node or is not known.
#[must_use]
pub fn is_session_setting(name: &str) -> bool {
    const SETTINGS: [&str; 59] = [
        "application_name",
        "array_nulls",
        "backslash_quote",
        "bytea_output",
        "check_function_bodies",
        "client_encoding",
        "client_min_messages",
        "constraint_exclusion",
        "cpu_index_tuple_cost",
        "cpu_operator_cost",
        "cpu_tuple_cost",
        "cursor_tuple_fraction",
        "datestyle",
        "default_statistics_target",
        "default_table_access_method",
        "default_tablespace",
        "default_text_search_config",
        "default_toast_compression",
        "default_transaction_deferrable",
        "default_transaction_isolation",
        "default_transaction_read_only",
        "escape_string_warning",
        "extra_float_digits",
        "from_collapse_limit",
        "gin_fuzzy_search_limit",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
        "integer_datetimes",
        "intervalstyle",
        "join_collapse_limit",
        "lc_messages",
        "lc_monetary",
        "lc_numeric",
        "lc_time",
        "lock_timeout",
        "max_identifier_length",
        "plan_cache_mode",
        "quote_all_identifiers",
        "row_security",
        "search_path",
        "server_encoding",
        "server_version",
        "server_version_num",
        "standard_conforming_strings",
        "statement_timeout",
        "synchronize_seqscans",
        "temp_buffers",
        "temp_tablespaces",
        "timezone",
        "timezone_abbreviations",
        "transaction_deferrable",
        "transaction_isolation",
        "transaction_timeout",
        "transform_null_equals",
        "xmlbinary",
        "xmloption",
        "role",
        "session_authorization",
        "block_size",
    ];
    let name = name.to_ascii_lowercase();
    name.contains('.') || name.starts_with("enable_") || SETTINGS.contains(&name.as_str())
}
