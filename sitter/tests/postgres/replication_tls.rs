//! TLS between the shard's servers.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use manatee_shared::ids::PeerId;
use manatee_shared::tls::{ServerTls, ServerTlsMode};
use manatee_sitter::postgres::{ReplicationTls, Settings};
use tokio_postgres::NoTls;

use crate::peer::TestPeer;
use crate::{shard_of, take_over_and_rejoin};

/// An authority and what it has signed.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Self {
        let authority = Self(tempfile::tempdir().unwrap());
        std::fs::set_permissions(authority.0.path(), PermissionsExt::from_mode(0o755)).unwrap();
        authority.openssl(&["-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt"]);
        authority
    }

    fn openssl(&self, arguments: &[&str]) {
        let new = ["req", "-x509", "-days", "2", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
        let made = Command::new("openssl").args(new).args(arguments).current_dir(self.0.path()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// TLS of a peer: its own certificate, for its address, and those of this authority for others.
    fn equip(&self, settings: &mut Settings, id: PeerId) {
        let (certificate, key) = (format!("{}.crt", id.pg_port), format!("{}.key", id.pg_port));
        let address = format!("subjectAltName=IP:{}", id.ip);
        let usage = "basicConstraints=critical,CA:FALSE";
        let sign = ["-CA", "ca.crt", "-CAkey", "ca.key", "-subj", "/CN=peer", "-addext", &address, "-addext", usage];
        self.openssl(&[&sign[..], &["-keyout", &key, "-out", &certificate]].concat());
        let path = |name: &str| self.0.path().join(name);
        self.give_away(&path(&key));
        for (name, value) in [
            ("ssl", "on".to_owned()),
            ("ssl_cert_file", path(&certificate).display().to_string()),
            ("ssl_key_file", path(&key).display().to_string()),
        ] {
            settings.parameters.insert(name.to_owned(), value);
        }
        settings.replication_tls = ReplicationTls::new(ServerTls {
            mode: ServerTlsMode::VerifyFull,
            ca_file: Some(path("ca.crt")),
            certificate_file: Some(path(&certificate)),
            key_file: Some(path(&key)),
        });
    }

    /// PostgreSQL wants a key to be its own.
    fn give_away(&self, key: &Path) {
        std::fs::set_permissions(key, PermissionsExt::from_mode(0o600)).unwrap();
        if nix::unistd::geteuid().is_root() {
            let user = nix::unistd::User::from_name("postgres").unwrap().expect("a user postgres");
            nix::unistd::chown(key, Some(user.uid), Some(user.gid)).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replication_is_by_tls_and_with_the_right_servers_only() {
    let authority = Authority::new();
    let (primary, [standby, third]) = shard_of(|| TestPeer::with(|(settings, id)| authority.equip(settings, id))).await;
    // The copy, the sitter's questions and the stream went by TLS: there is no other way in.
    let walsenders =
        "SELECT count(*) filter (where ssl), count(*) FROM pg_stat_ssl JOIN pg_stat_replication USING (pid)";
    let row = primary.client().await.unwrap().query_one(walsenders, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (2, 2));
    let plain = format!(
        "host={} port={} user=manatee_replication dbname=postgres password='repl:pass\\\\word' sslmode=disable",
        primary.id.ip, primary.id.pg_port
    );
    let refused = tokio_postgres::connect(&plain, NoTls).await.map(|_| ()).unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("no encryption"), "{refused}");

    // A peer that trusts another authority takes nothing from this one.
    let other = Authority::new();
    let stranger = TestPeer::with(|(settings, id)| other.equip(settings, id));
    stranger.data.adopt().await.unwrap();
    let error = stranger.data.bootstrap(primary.id, true).await.unwrap_err();
    assert!(error.to_string().contains(&format!("TLS with {}", primary.id)), "{error}");
    assert!(!stranger.data_dir().exists());

    // pg_rewind goes by it too.
    take_over_and_rejoin(primary, standby, third).await;
}
