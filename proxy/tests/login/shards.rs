//! Two shards behind one proxy: each client reaches the one it means, and an outage of one is not felt in
//! the other.

use std::time::Duration;

use manatee_proxy::auth::{Access, ListenerRole};
use manatee_proxy::server::accept;
use manatee_proxy::server::listen::{Address, Listener};
use manatee_proxy::shards;
use tokio::sync::watch;
use tokio_postgres::{Client, NoTls};

use crate::console::connect;
use crate::postgres::Postgres;
use crate::rules::configure;
use crate::{Bench, ROLES, one_node, own};

const PATIENCE: Duration = Duration::from_secs(30);

async fn port(client: &Client) -> u16 {
    let row = client.query_one("SHOW port", &[]).await.expect("port");
    row.get::<_, &str>(0).parse().expect("number")
}

async fn open(config: &tokio_postgres::Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.expect("connection");
    tokio::spawn(connection);
    client
}

pub(crate) async fn two_shards(bench: &Bench) {
    let other = Postgres::start().await;
    other.run(ROLES).await;
    let name: manatee_shared::ids::ShardName = "other".parse().expect("name");
    let settings =
        manatee_proxy::topology::monitor::Settings { shard: name.clone(), ..own(&bench.shared.config.load()) };
    let (shard, background) = shards::prepare(settings, Duration::from_secs(60));
    let (_state, receiver) = watch::channel(Some(one_node(other.port)));
    assert!(bench.shared.shards.add(shard));
    tokio::spawn(background.run(receiver, bench.stop.clone()));
    let mapping = "elsewhere = { shard = \"other\", database = \"postgres\" }";
    configure(bench, &[("databases", mapping.to_owned())]).await;

    // By database, by what the client says, by where it connects to.
    let here = connect(bench, "alice", "secret", "postgres").await;
    assert_eq!(port(&here).await, bench.postgres.port);
    let there = connect(bench, "alice", "secret", "elsewhere").await;
    assert_eq!(port(&there).await, other.port);
    let said = open(bench.client("alice", "secret").options("-c manatee.shard=other -c work_mem=1MB")).await;
    assert_eq!(port(&said).await, other.port);
    let (code, _) = bench.refused(bench.client("alice", "secret").options("-c manatee.shard=nowhere")).await;
    assert_eq!(code, "3D000");
    let any = Address::Tcp("127.0.0.1:0".parse().expect("address"));
    let listener = Listener::bind("listen.shards", any).expect("bind").open(None).expect("open");
    let address = listener.local_addr().expect("address");
    let entrance = ListenerRole { access: Access::ReadWrite, shard: Some(name) };
    tokio::spawn(accept(listener, entrance, bench.shared.clone(), bench.workers.clone()));
    let mut config = bench.client("alice", "secret");
    let mut by_address = tokio_postgres::Config::new();
    by_address.host("127.0.0.1").port(address.port()).user("alice").password("secret").dbname("postgres");
    assert_eq!(port(&open(&by_address).await).await, other.port);

    // The console tells them apart.
    let boss = connect(bench, "boss", "boss's", "manatee").await;
    let databases = boss.query("SHOW DATABASES", &[]).await.expect("databases");
    let shown: Vec<(&str, &str)> = databases.iter().map(|row| (row.get("name"), row.get("shard"))).collect();
    assert!(shown.contains(&("postgres", "test")) && shown.contains(&("elsewhere", "other")), "{shown:?}");
    boss.batch_execute("PAUSE elsewhere").await.expect("paused");
    here.batch_execute("SELECT 1").await.expect("not paused");
    {
        let waiting = there.batch_execute("SELECT 1");
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.is_err());
        boss.batch_execute("RESUME elsewhere").await.expect("resumed");
        tokio::time::timeout(PATIENCE, waiting).await.expect("in time").expect("resumed");
    }

    // Whoever may make roles in another shard is not thereby let into the console.
    other.run("ALTER ROLE watcher PASSWORD 'guessed'").await;
    let mut config_there = bench.client("watcher", "guessed");
    assert_eq!(bench.refused(config_there.dbname("manatee").options("-c manatee.shard=other")).await.0, "28P01");
    assert_eq!(port(&open(config_there.dbname("elsewhere").options("")).await).await, other.port);
    by_address.user("watcher").password("guessed").dbname("manatee");
    assert_eq!(bench.refused(&by_address).await.0, "28P01");
    connect(bench, "watcher", "secret", "manatee").await;

    // An outage of one.
    drop(other);
    let gone = async {
        loop {
            let rows = boss.query("SHOW TOPOLOGY", &[]).await.expect("topology");
            let states: Vec<(&str, &str)> = rows.iter().map(|row| (row.get("shard"), row.get("state"))).collect();
            if states.contains(&("other", "unavailable")) {
                assert!(states.contains(&("test", "serving")), "{states:?}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the loss must be noticed");
    let held = there.batch_execute("SELECT 1");
    tokio::pin!(held);
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut held).await.is_err(), "held");
    for _ in 0..20 {
        here.batch_execute("SELECT 1").await.expect("the other shard");
        open(config.dbname("postgres")).await;
    }
    configure(bench, &[]).await;
}
