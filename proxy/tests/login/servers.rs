//! TLS towards PostgreSQL: what is asked for is what there is, or no connection.

use std::path::Path;
use std::time::Duration;

use tokio_postgres::NoTls;

use crate::Bench;
use crate::console::connect;
use crate::rules::{configure, sign};

/// Whether the connection of the client is encrypted, as the server sees it.
async fn is_encrypted(bench: &Bench) -> bool {
    let alice = connect(bench, "alice", "secret", "postgres").await;
    let question = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    alice.query_one(question, &[]).await.expect("answer").get(0)
}

/// Has PostgreSQL use a certificate.
async fn certify(bench: &Bench, certificate: &Path, key: &Path) {
    let data = bench.postgres.folder().join("data");
    for (from, to) in [(certificate, "server.crt"), (key, "server.key")] {
        // The server's own file, as it insists on.
        std::fs::copy(from, data.join(to)).expect("copy");
        std::fs::set_permissions(data.join(to), std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
        if nix::unistd::geteuid().is_root() {
            let user = nix::unistd::User::from_name("postgres").expect("users").expect("user postgres");
            nix::unistd::chown(&data.join(to), Some(user.uid), Some(user.gid)).expect("chown");
        }
    }
    let admin = bench.postgres.admin().await.expect("admin");
    admin.batch_execute("ALTER SYSTEM SET ssl = on").await.expect("ssl");
    admin.batch_execute("SELECT pg_reload_conf()").await.expect("reload");
    let begun = std::time::Instant::now();
    while admin.query_one("SHOW ssl", &[]).await.expect("ssl").get::<_, &str>(0) != "on" {
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// New connections from now on: those from before keep what they have.
async fn ask_for(bench: &Bench, keys: &str) {
    configure(bench, &[("server_tls", keys.to_owned())]).await;
    let boss = connect(bench, "boss", "boss's", "manatee").await;
    boss.batch_execute("RECONNECT").await.expect("reconnect");
}

async fn refused(bench: &Bench) -> bool {
    let login = bench.client("alice", "secret").connect(NoTls).await;
    let Ok((client, connection)) = login else { return true };
    tokio::spawn(connection);
    client.batch_execute("SELECT 1").await.is_err()
}

pub(crate) async fn servers(bench: &Bench) {
    ask_for(bench, "mode = \"prefer\"").await;
    assert!(!is_encrypted(bench).await, "it has none");
    ask_for(bench, "mode = \"require\"").await;
    assert!(refused(bench).await, "what is required is not there");

    let folder = bench.postgres.folder();
    // By name: not the address that is connected to.
    let (certificate, key) = sign(folder, "elsewhere");
    certify(bench, &certificate, &key).await;
    for mode in ["prefer", "require"] {
        ask_for(bench, &format!("mode = \"{mode}\"")).await;
        assert!(is_encrypted(bench).await, "{mode}");
    }
    let ca = folder.join("ca.crt");
    ask_for(bench, &format!("mode = \"verify-ca\"\nca_file = {ca:?}")).await;
    assert!(is_encrypted(bench).await, "of our authority");
    ask_for(bench, &format!("mode = \"verify-full\"\nca_file = {ca:?}")).await;
    assert!(refused(bench).await, "of our authority, but for another name");
    // The proxy's own certificate for clients is of another authority.
    ask_for(bench, &format!("mode = \"verify-ca\"\nca_file = {:?}", bench.certificate)).await;
    assert!(refused(bench).await, "of another authority");

    let (certificate, key) = sign(folder, "127.0.0.1");
    certify(bench, &certificate, &key).await;
    ask_for(bench, &format!("mode = \"verify-full\"\nca_file = {ca:?}")).await;
    assert!(is_encrypted(bench).await, "of our authority, for this address");
    ask_for(bench, "mode = \"disable\"").await;
    assert!(!is_encrypted(bench).await);
    configure(bench, &[]).await;
}
