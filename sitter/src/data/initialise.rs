//! The first setup of a cluster: `initdb`, Manatee's roles, and what they may do.
//!
//! All of it happens in the staging place and without a listening server: statements are fed to a
//! single-user server, as `initdb` itself does. Passwords are hashed here; PostgreSQL only ever
//! sees the verifiers, and those only through a pipe.

use std::time::Duration;

use crate::host::{Error, control, files};
use crate::machine::local::{Data, SystemIdentifier};
use crate::postgres::inner::Inner;
use crate::postgres::{DATABASES, roles};
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
    // Rights to functions are a database's own.
    let [first, second] = DATABASES;
    for (database, sql) in [(first, roles::first_setup(&inner.settings)), (second, roles::grants())] {
        inner
            .tool("postgres")
            // An error ends it, with a status that shows; statements, which hold verifiers, are not logged.
            .args(["--single", "-j", "-c", "exit_on_error=on", "-c", "log_min_error_statement=panic", "-D"])
            .arg(&staging)
            .arg(database)
            // Separated as `-j` wants it.
            .input(sql.iter().map(|statement| format!("{statement};\n\n")).collect::<String>())
            .timeout(INITDB)
            .run(&inner.user)
            .await?;
    }
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
