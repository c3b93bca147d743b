//! The first setup of a cluster: `initdb`, Manatee's roles, and what they may do.
//!
//! All of it happens in the staging place and without a listening server: statements are fed to a
//! single-user server, as `initdb` itself does. Passwords are hashed here; PostgreSQL only ever
//! sees the verifiers, and those only through a pipe.

use std::time::Duration;

use postgres_protocol::password::scram_sha_256;

use super::error::Error;
use super::inner::Inner;
use super::settings::Secret;
use super::{PROXY_ROLE, REPLICATION_ROLE, control, files};
use crate::machine::local::{Data, SystemIdentifier};
use crate::storage::Storage;

/// `initdb` takes about a second; a slow disk ten times that.
const INITDB: Duration = Duration::from_secs(120);

/// Makes a new cluster, left stopped and marked fresh.
pub(super) async fn initialise(inner: &Inner, storage: &dyn Storage) -> Result<SystemIdentifier, Error> {
    match control::classify(&inner.layout, &inner.version) {
        Data::Absent => {}
        Data::Incomplete => {
            storage.set_aside("incomplete").await?;
        }
        // Done before, and the answer was lost.
        Data::Fresh(system) => return Ok(system),
        Data::Present(_) | Data::Unusable(_) => return Err(Error::DataPresent),
    }
    inner.make_folders()?;
    let staging = storage.stage().await?;
    inner
        .tool("initdb")
        .args(["--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums", "--auth-local=peer", "--auth-host=reject"])
        .arg("--username")
        .arg(&inner.settings.superuser)
        .arg("--pgdata")
        .arg(&staging)
        .timeout(INITDB)
        .run(&inner.user)
        .await?;
    inner
        .tool("postgres")
        // An error ends it, with a status that shows; statements, which hold verifiers, are not logged.
        .args(["--single", "-j", "-c", "exit_on_error=on", "-c", "log_min_error_statement=panic", "-D"])
        .arg(&staging)
        .arg("postgres")
        .input(statements(inner))
        .timeout(INITDB)
        .run(&inner.user)
        .await?;
    let control = control::read_control(&staging)?;
    if control.mode != control::ClusterMode::ShutDown {
        return Err(Error::DataNotFit("the first setup did not end cleanly".to_owned()));
    }
    files::remove(&inner.layout.incomplete())?;
    // First the marker: without it the new data would look like somebody's.
    files::replace(&inner.layout.fresh(), &control.system.0, &inner.user)?;
    storage.publish().await?;
    inner.known().crashed = false;
    inner.known().unfit = None;
    inner.known().last_position = None;
    tracing::info!(system = control.system.0, "made a new cluster");
    inner.refresh().await;
    Ok(control.system)
}

/// What the single-user server is told: statements separated as `-j` wants it.
fn statements(inner: &Inner) -> String {
    let verifier = |secret: &Secret| scram_sha_256(secret.expose().as_bytes());
    let settings = &inner.settings;
    let mut sql = vec![
        format!(
            "CREATE ROLE {REPLICATION_ROLE} LOGIN REPLICATION PASSWORD '{}'",
            verifier(&settings.replication_password)
        ),
        format!("CREATE ROLE {PROXY_ROLE} LOGIN PASSWORD '{}'", verifier(&settings.proxy_password)),
    ];
    if let Some(password) = &settings.superuser_password {
        let name = settings.superuser.replace('"', "\"\"");
        sql.push(format!("ALTER ROLE \"{name}\" PASSWORD '{}'", verifier(password)));
    }
    // What pg_rewind needs (manual, pg_rewind, Notes), and, for judging whether the WAL is still
    // there, the listing of pg_wal.
    for function in [
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
        "pg_ls_waldir()",
    ] {
        sql.push(format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {REPLICATION_ROLE}"));
    }
    // Which timeline a standby receives on, for those that follow it (see `guard`).
    sql.push(format!("GRANT pg_read_all_stats TO {REPLICATION_ROLE}"));
    // What the sync has acknowledged, and whether commits wait for it.
    sql.push(format!("GRANT pg_read_all_stats TO {PROXY_ROLE}"));
    sql.extend(
        [
            "CREATE SCHEMA manatee",
            "REVOKE ALL ON SCHEMA manatee FROM PUBLIC",
            // Types and operators are fixed by the search_path; nobody can put theirs in between.
            "CREATE FUNCTION manatee.role_verifier(rolname text) \
             RETURNS TABLE (verifier text, can_login boolean, valid_until timestamptz, connection_limit integer) \
             LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp \
             AS 'SELECT a.rolpassword, a.rolcanlogin, a.rolvaliduntil, a.rolconnlimit \
                 FROM pg_catalog.pg_authid a WHERE a.rolname::text = $1'",
            "REVOKE ALL ON FUNCTION manatee.role_verifier(text) FROM PUBLIC",
        ]
        .map(str::to_owned),
    );
    sql.push(format!("GRANT USAGE ON SCHEMA manatee TO {PROXY_ROLE}"));
    sql.push(format!("GRANT EXECUTE ON FUNCTION manatee.role_verifier(text) TO {PROXY_ROLE}"));
    sql.iter().map(|statement| format!("{statement};\n\n")).collect()
}
