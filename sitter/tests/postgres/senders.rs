//! WAL senders that others have used up.

use manatee_sitter::machine::action::StopMode;
use manatee_sitter::machine::local::{Recovery, Synchronous};

use super::peer::TestPeer;
use super::{config, follow, shard_of};

/// As many as the server has.
const SENDERS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sync_finds_a_place_although_others_have_taken_all() {
    let few = || {
        TestPeer::with(|(settings, _)| {
            settings.parameters.insert("max_wal_senders".into(), SENDERS.to_string());
        })
    };
    let (primary, [sync]) = shard_of(few).await;
    let waits = config(Recovery::Primary, Synchronous::Peer(sync.id), &[sync.id]);
    primary.postgres.configure(&waits).await.unwrap();
    sync.postgres.stop(StopMode::Fast).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let receivers: Vec<_> = (0..SENDERS)
        .map(|number| {
            let into = folder.path().join(number.to_string());
            std::fs::create_dir(&into).unwrap();
            std::process::Command::new(primary.settings.bin_dir.join("pg_receivewal"))
                .args(["--no-password", "--username=manatee_replication", "--directory"])
                .arg(into)
                .arg(format!("--host={}", primary.id.ip))
                .arg(format!("--port={}", primary.id.pg_port))
                .env("PGPASSWORD", "repl:pass\\word")
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let client = primary.client().await.unwrap();
    super::until_some("all senders in use", async || {
        let count = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pg_receivewal'";
        let count: i64 = client.query_one(count, &[]).await.unwrap().get(0);
        (count == i64::try_from(SENDERS).unwrap()).then_some(())
    })
    .await;
    sync.postgres.start(&follow(&primary, &[])).await.unwrap();
    sync.streaming().await;
    primary.followed_by(sync.id).await;
    for mut receiver in receivers {
        receiver.kill().unwrap();
        receiver.wait().unwrap();
    }
}

/// PostgreSQL counts WAL senders, not names (P-6).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_streams_under_a_peers_name_for_long() {
    let (primary, [sync]) = super::shard().await;
    let waits = config(Recovery::Primary, Synchronous::Peer(sync.id), &[sync.id]);
    primary.postgres.configure(&waits).await.unwrap();
    let client = primary.client().await.unwrap();
    for sync_is_there in [true, false] {
        if !sync_is_there {
            sync.postgres.stop(StopMode::Fast).await.unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let mut namesake = std::process::Command::new(primary.settings.bin_dir.join("pg_receivewal"))
            .args(["--no-password", "--no-loop", "--username=manatee_replication", "--directory"])
            .arg(folder.path())
            .arg(format!("--host={}", primary.id.ip))
            .arg(format!("--port={}", primary.id.pg_port))
            .env("PGPASSWORD", "repl:pass\\word")
            .env("PGAPPNAME", sync.id.to_string())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        super::until_some("the end of the namesake", async || namesake.try_wait().unwrap()).await;
        let names = "SELECT count(*) FROM pg_stat_replication WHERE application_name = $1";
        let count: i64 = client.query_one(names, &[&sync.id.to_string()]).await.unwrap().get(0);
        assert_eq!(count, i64::from(sync_is_there), "the sync itself streams on");
    }
}
