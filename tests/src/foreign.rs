//! Data of another cluster, for what must not be touched.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

/// Makes a new cluster at `data`, which must not exist.
pub async fn initdb(data: &Path) -> Result<()> {
    let program = crate::binaries::postgres_folder()?.join("initdb");
    let mut command = if nix::unistd::geteuid().is_root() {
        std::fs::create_dir(data)?;
        let user = nix::unistd::User::from_name("postgres")?.context("no OS user postgres")?;
        std::os::unix::fs::chown(data, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    let output = command.args(["-U", "postgres", "-A", "peer", "-D"]).arg(data).current_dir("/").output().await?;
    ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// System identifier of the cluster at `data`.
pub async fn system_identifier(data: &Path) -> Result<String> {
    let program = crate::binaries::postgres_folder()?.join("pg_controldata");
    let output = Command::new(program).arg(data).output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.contains("system identifier")).context("pg_controldata")?;
    Ok(line.rsplit_once(' ').context("pg_controldata")?.1.to_owned())
}
