//! Manatee's own roles and what they may do. Made by the first setup, and put right by the primary whenever a login shows
//! that they are not as they should be: roles and grants are the shard's, and anybody's who may change them in SQL (a
//! restored `pg_dumpall`, `REVOKE CONNECT … FROM PUBLIC`).

use postgres_protocol::password::scram_sha_256;
use tokio_postgres::Client;

use super::error::Error;
use super::settings::{Secret, Settings};
use super::{DATABASES, PROXY_ROLE, REPLICATION_ROLE};

/// Role of ours that logs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnRole {
    /// [`REPLICATION_ROLE`].
    Replication,
    /// [`PROXY_ROLE`].
    Proxy,
}

impl OwnRole {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Replication => REPLICATION_ROLE,
            Self::Proxy => PROXY_ROLE,
        }
    }

    fn options(self) -> &'static str {
        match self {
            Self::Replication => "LOGIN REPLICATION",
            Self::Proxy => "LOGIN",
        }
    }

    fn password(self, settings: &Settings) -> &Secret {
        match self {
            Self::Replication => &settings.replication_password,
            Self::Proxy => &settings.proxy_password,
        }
    }
}

fn verifier(secret: &Secret) -> String {
    scram_sha_256(secret.expose().as_bytes())
}

/// Statements that make the roles of a new cluster.
pub(crate) fn first_setup(settings: &Settings) -> Vec<String> {
    let mut sql: Vec<String> = [OwnRole::Replication, OwnRole::Proxy]
        .map(|role| {
            format!("CREATE ROLE {} {} PASSWORD '{}'", role.name(), role.options(), verifier(role.password(settings)))
        })
        .into();
    if let Some(password) = &settings.superuser_password {
        let name = settings.superuser.replace('"', "\"\"");
        sql.push(format!("ALTER ROLE \"{name}\" PASSWORD '{}'", verifier(password)));
    }
    sql.extend(DATABASES.iter().map(|database| connect(database)));
    sql.extend(grants());
    sql.extend(for_proxies());
    sql
}

fn connect(database: &str) -> String {
    format!("GRANT CONNECT ON DATABASE {database} TO {REPLICATION_ROLE}, {PROXY_ROLE}")
}

/// Statements that give the roles their rights in each of [`DATABASES`]: rights to functions are a database's own. May
/// be repeated.
pub(crate) fn grants() -> Vec<String> {
    // What pg_rewind needs (manual, pg_rewind, Notes), and, for judging whether the WAL is still
    // there, the listing of pg_wal.
    let functions = [
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
        "pg_ls_waldir()",
    ];
    let execute =
        functions.map(|function| format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {REPLICATION_ROLE}"));
    // Which timeline a standby receives on, for those that follow it (see `guard`); what the sync has acknowledged,
    // and whether commits wait for it.
    let reads = [REPLICATION_ROLE, PROXY_ROLE].map(|role| format!("GRANT pg_read_all_stats TO {role}"));
    execute.into_iter().chain(reads).collect()
}

/// Statements that make what proxies look verifiers up with, in the database that they connect to: the first of
/// [`DATABASES`] that lets them in. May be repeated.
fn for_proxies() -> [String; 6] {
    [
        "CREATE SCHEMA IF NOT EXISTS manatee".to_owned(),
        "REVOKE ALL ON SCHEMA manatee FROM PUBLIC".to_owned(),
        // Types and operators are fixed by the search_path; nobody can put theirs in between.
        "CREATE OR REPLACE FUNCTION manatee.role_verifier(rolname text) \
         RETURNS TABLE (verifier text, can_login boolean, valid_until timestamptz, connection_limit integer) \
         LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp \
         AS 'SELECT a.rolpassword, a.rolcanlogin, a.rolvaliduntil, a.rolconnlimit \
             FROM pg_catalog.pg_authid a WHERE a.rolname::text = $1'"
            .to_owned(),
        "REVOKE ALL ON FUNCTION manatee.role_verifier(text) FROM PUBLIC".to_owned(),
        format!("GRANT USAGE ON SCHEMA manatee TO {PROXY_ROLE}"),
        format!("GRANT EXECUTE ON FUNCTION manatee.role_verifier(text) TO {PROXY_ROLE}"),
    ]
}

/// Whether the roles may do what they must; a login shows whether they can log in. Text, true or null.
fn allowed() -> String {
    let functions = [
        (REPLICATION_ROLE, "pg_catalog.pg_ls_waldir()"),
        (REPLICATION_ROLE, "pg_catalog.pg_read_binary_file(text)"),
        (REPLICATION_ROLE, "pg_catalog.pg_read_binary_file(text,bigint,bigint,boolean)"),
        (REPLICATION_ROLE, "pg_catalog.pg_stat_file(text,boolean)"),
        (REPLICATION_ROLE, "pg_catalog.pg_ls_dir(text,boolean,boolean)"),
    ];
    let of_functions = functions
        .map(|(role, function)| format!("has_function_privilege('{role}', '{function}'::regprocedure, 'EXECUTE')"))
        .join(" AND ");
    format!(
        "SELECT CASE WHEN (SELECT count(*) FROM pg_roles WHERE rolname IN ('{REPLICATION_ROLE}', '{PROXY_ROLE}')) < 2 \
           THEN false \
         ELSE {of_functions} \
           AND pg_has_role('{REPLICATION_ROLE}', 'pg_read_all_stats', 'USAGE') \
           AND pg_has_role('{PROXY_ROLE}', 'pg_read_all_stats', 'USAGE') \
           AND (SELECT bool_and(has_database_privilege(role, oid, 'CONNECT')) FROM pg_database, \
                unnest(ARRAY['{REPLICATION_ROLE}', '{PROXY_ROLE}']) role WHERE datname = ANY ('{{{databases}}}')) \
           AND (NOT $1 OR ( \
                coalesce(has_schema_privilege('{PROXY_ROLE}', to_regnamespace('manatee'), 'USAGE'), false) \
                AND coalesce(has_function_privilege('{PROXY_ROLE}', to_regprocedure('manatee.role_verifier(text)'), \
                    'EXECUTE'), false))) \
         END",
        databases = DATABASES.join(",")
    )
}

/// Whether the roles are there and may do what they must in the database of `session`, which proxies connect to or not.
pub(super) async fn are_allowed(session: &Client, for_proxies: bool) -> Result<bool, Error> {
    let row = session.query_one(&allowed(), &[&for_proxies]).await.map_err(Error::query("look at Manatee's roles"))?;
    Ok(row.try_get::<_, Option<bool>>(0).map_err(Error::query("look at Manatee's roles"))?.unwrap_or(false))
}

/// Whether a role is not there at all: nobody can follow, so that a gate that waits for a follower would stay closed.
pub(super) async fn is_one_missing(session: &Client) -> Result<bool, Error> {
    const SQL: &str = "SELECT count(*) < 2 FROM pg_roles WHERE rolname IN ($1, $2)";
    let names = [REPLICATION_ROLE, PROXY_ROLE];
    let row = session.query_one(SQL, &[&names[0], &names[1]]).await.map_err(Error::query("look at Manatee's roles"))?;
    row.try_get(0).map_err(Error::query("look at Manatee's roles"))
}

/// Makes the roles of a primary as they should be, and what they may do in the database of `session`: those that cannot
/// log in (`locked_out`) get the password of the sitter's configuration.
pub(super) async fn put_right(
    session: &Client,
    settings: &Settings,
    locked_out: &[OwnRole],
    for_proxies: bool,
) -> Result<(), Error> {
    let failed = |error| Error::query("put Manatee's roles right")(error);
    // Verifiers are not for logs, whatever these log.
    let quiet = "SET log_min_error_statement = panic; SET log_min_duration_statement = -1; SET log_statement = none";
    session.batch_execute(quiet).await.map_err(failed)?;
    for role in [OwnRole::Replication, OwnRole::Proxy] {
        let name = role.name();
        let row = session.query_opt("SELECT FROM pg_roles WHERE rolname = $1", &[&name]).await.map_err(failed)?;
        let verb = if row.is_some() { "ALTER" } else { "CREATE" };
        if row.is_some() && !locked_out.contains(&role) {
            continue;
        }
        let (options, verifier) = (role.options(), verifier(role.password(settings)));
        let statement =
            format!("{verb} ROLE {name} {options} PASSWORD '{verifier}' VALID UNTIL 'infinity' CONNECTION LIMIT -1");
        session.batch_execute(&statement).await.map_err(failed)?;
        tracing::error!(
            role = name,
            "the role was gone, or could not log in with the password of this sitter's configuration; it has that password now"
        );
    }
    for database in DATABASES {
        let row =
            session.query_opt("SELECT FROM pg_database WHERE datname = $1", &[&database]).await.map_err(failed)?;
        if row.is_some() {
            session.batch_execute(&connect(database)).await.map_err(failed)?;
        }
    }
    for statement in grants() {
        session.batch_execute(&statement).await.map_err(failed)?;
    }
    for statement in self::for_proxies().iter().filter(|_| for_proxies) {
        session.batch_execute(statement).await.map_err(failed)?;
    }
    Ok(())
}
