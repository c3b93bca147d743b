//! The shard everything is measured in front of: one primary and two standbys of the lab, without
//! network namespaces, so that it runs anywhere, and with a role whose SCRAM keys we know.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, Mac as _};
use manatee_proxy::auth::Secret;
use manatee_shared::cluster::Role;
use manatee_tests::binaries;
use manatee_tests::lab::{APP, Lab, Options};
use manatee_tests::network::Namespaces;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::pgbench::Pgbench;

/// All who are measured keep connections to the primary at the same time: those with pools 30 each, the others one for
/// each of up to 70 clients; and for the growth over shards one per shard watches it.
const MAX_CONNECTIONS: u32 = 500;

/// Iterations of the role's verifier: PostgreSQL's default.
const ITERATIONS: u32 = 4096;
/// Its salt. Known, so that the bench's own clients can keep their keys instead of hashing for
/// milliseconds at each login; it protects nothing here.
const SALT: &[u8; 16] = b"manatee's bench.";

/// A running shard, ready to be measured.
#[derive(Debug)]
pub struct Shard {
    /// The lab.
    pub lab: Lab,
    /// Addresses of PostgreSQL: primary, sync, async.
    pub nodes: Vec<SocketAddr>,
    /// Ready to run pgbench as [`APP`].
    pub pgbench: Pgbench,
    /// Verifier of [`APP`] in pg_authid.
    pub verifier: String,
    /// Secret it logs in with.
    pub secret: Secret,
}

impl Shard {
    /// Brings it up and fills pgbench's tables. `bin_dir`: where sitter and adm are.
    pub async fn up(bin_dir: Option<PathBuf>) -> Result<Self> {
        let parameters = vec![("max_connections".to_owned(), MAX_CONNECTIONS.to_string())];
        let options = Options { proxies: 0, netns: Namespaces::No, bin_dir, parameters, ..Options::default() };
        let (mut lab, _) = Lab::up(&options).await?;
        let state = lab.whole(Duration::from_secs(60)).await?;
        let roles = [Role::Primary, Role::Sync, Role::Async(0)];
        let address = |role| {
            let id = lab.host_in(&state, role)?.id;
            Ok(SocketAddr::new(id.ip, id.pg_port))
        };
        let nodes = roles.into_iter().map(address).collect::<Result<Vec<_>>>()?;
        let (verifier, secret) = credentials(&lab.password)?;
        let primary = lab.host_in(&state, Role::Primary)?.superuser("postgres").await?;
        primary.batch_execute(&format!("alter role {APP} password '{verifier}'")).await?;
        let pgbench = Pgbench {
            programs: binaries::postgres_folder()?,
            user: APP.to_owned(),
            password: lab.password.clone(),
            scratch: lab.dir().to_owned(),
        };
        let shard = Self { lab, nodes, pgbench, verifier, secret };
        shard.fill().await?;
        Ok(shard)
    }

    async fn fill(&self) -> Result<()> {
        let mut command = self.pgbench.command("pgbench", self.nodes[0]);
        command.args(["-i", "-q", "-s", "1", APP]);
        let output = command.output().await.context("running pgbench -i")?;
        anyhow::ensure!(output.status.success(), "pgbench -i: {}", String::from_utf8_lossy(&output.stderr));
        // As a database is that has been up for a while: without this each read on a standby looks up
        // again who committed the rows.
        for host in &self.lab.hosts {
            let primary = host.superuser("postgres").await?.query_one("select not pg_is_in_recovery()", &[]).await?;
            if primary.get(0) {
                host.superuser(APP).await?.batch_execute("vacuum (freeze, analyze)").await?;
                let end = host.superuser(APP).await?.query_one("select pg_current_wal_insert_lsn()::text", &[]).await?;
                self.replayed(end.get(0)).await?;
            }
        }
        for host in &self.lab.hosts {
            host.superuser("postgres").await?.batch_execute("checkpoint").await?;
        }
        Ok(())
    }

    /// Waits until all standbys have replayed up to `position`.
    async fn replayed(&self, position: &str) -> Result<()> {
        let sql = format!("select not pg_is_in_recovery() or pg_last_wal_replay_lsn() >= '{position}'::pg_lsn");
        let deadline = Instant::now() + Duration::from_secs(30);
        for host in &self.lab.hosts {
            let client = host.superuser("postgres").await?;
            while !client.query_one(&sql, &[]).await?.get::<_, bool>(0) {
                anyhow::ensure!(Instant::now() < deadline, "{} does not replay", host.name());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Folder of the lab's secrets, for proxies that the bench configures.
    pub fn secrets(&self) -> PathBuf {
        self.lab.dir().join("secrets")
    }
}

/// Verifier and keys of a password (RFC 5802, section 3).
fn credentials(password: &str) -> Result<(String, Secret)> {
    let mut block = hmac(password.as_bytes(), &[&SALT[..], &1_u32.to_be_bytes()])?;
    let mut salted = block;
    for _ in 1..ITERATIONS {
        block = hmac(password.as_bytes(), &[&block])?;
        salted.iter_mut().zip(block).for_each(|(byte, other)| *byte ^= other);
    }
    let (client_key, server_key) = (hmac(&salted, &[b"Client Key"])?, hmac(&salted, &[b"Server Key"])?);
    let encode = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
    let stored_key = encode(&Sha256::digest(client_key));
    let verifier = format!("SCRAM-SHA-256${ITERATIONS}:{}${stored_key}:{}", encode(SALT), encode(&server_key));
    let secret = Secret::Scram { client_key: Zeroizing::new(client_key), server_key: Zeroizing::new(server_key) };
    Ok((verifier, secret))
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Result<[u8; 32]> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key)?;
    for part in parts {
        mac.update(part);
    }
    Ok(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_verifier_is_one_that_postgresql_would_make() {
        let (verifier, _) = super::credentials("pencil").unwrap();
        assert!(manatee_proxy::wire::scram::Verifier::parse(&verifier).is_some());
    }
}
