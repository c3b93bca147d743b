//! Faults of the proxies: one dies, one is replaced, everybody comes at once, and clients that mean harm.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, NoTls};
use tokio_util::sync::CancellationToken;

use super::{Needs, Row};
use crate::lab::Lab;
use crate::proxy::DRAIN_S;
use crate::scenario::{CHANGE, Clients, NOTHING, Play, Stage};

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        number: 47,
        fault: "proxy killed, another proxy up",
        needs: Needs { proxies: 2, ..Needs::HOSTS },
        write_gap_s: None,
        plays: &[Play {
            name: "one of two proxies is killed and comes back",
            clients: Clients::MayFail,
            script: |stage| Box::pin(kill_proxy(stage)),
        }],
    },
    Row {
        number: 48,
        fault: "proxy upgraded in place",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[Play {
            name: "another process takes the listeners over",
            // At the end of the drain those that stayed are sent away.
            clients: Clients::MayFail,
            script: |stage| Box::pin(upgrade(stage)),
        }],
    },
    Row {
        number: 49,
        fault: "10 000 clients reconnect at once after a proxy restart",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[Play {
            name: "the proxy of 10 000 clients is killed and started again",
            clients: Clients::MayFail,
            script: |stage| Box::pin(storm(stage)),
        }],
    },
    Row {
        number: 50,
        fault: "hostile or broken clients",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[Play {
            name: "floods, half messages, bad lengths, and results that nobody reads",
            clients: Clients::NoticeNothing,
            script: |stage| Box::pin(hostile(stage)),
        }],
    },
];

async fn socket(lab: &Lab, index: usize) -> Result<TcpStream> {
    Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, lab.proxies[index].port)).await?)
}

/// A query through proxy `at` is cancelled by a request to proxy `by`.
async fn cancelled(lab: &Lab, at: usize, by: usize) -> Result<()> {
    let (client, connection) = lab.client_config(at).connect_raw(socket(lab, at).await?, NoTls).await?;
    // Ends when the client is dropped.
    tokio::spawn(async move { drop(connection.await) });
    let sleeping = client.batch_execute("select pg_sleep(600)");
    tokio::pin!(sleeping);
    let deadline = Instant::now() + CHANGE;
    loop {
        // A request that comes before its query is for nothing: it is repeated.
        tokio::select! {
            answer = &mut sleeping => match answer {
                Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => return Ok(()),
                other => bail!("the query ended otherwise: {other:?}"),
            },
            () = tokio::time::sleep(Duration::from_millis(200)) => {
                client.cancel_token().cancel_query_raw(socket(lab, by).await?, NoTls).await?;
            }
        }
        ensure!(Instant::now() < deadline, "a cancel sent to proxy {by} does not reach a query at proxy {at}");
    }
}

async fn kill_proxy(stage: &mut Stage<'_>) -> Result<()> {
    // Clients stay where they have gone: in turn.
    let killed = stage.number as usize % 2;
    let other = 1 - killed;
    for (at, by) in [(killed, killed), (killed, other), (other, killed)] {
        cancelled(stage.lab, at, by).await?;
    }
    stage.begin_all("SIGKILL to a proxy");
    stage.lab.proxies[killed].kill();
    stage.served().await?;
    cancelled(stage.lab, other, other).await?;
    stage.lab.proxies[killed].start()?;
    stage.until("the proxy does not come back", async |lab| lab.connect(killed).await.map(drop)).await?;
    for (at, by) in [(killed, other), (other, killed)] {
        cancelled(stage.lab, at, by).await?;
    }
    stage.nothing_happens(Duration::from_secs(1)).await
}

/// Clients that come and go all the time.
struct Knocking {
    stop: CancellationToken,
    tasks: JoinSet<(u64, Vec<String>)>,
}

impl Knocking {
    fn start(config: &Config) -> Self {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for _ in 0..4 {
            let (config, stop) = (config.clone(), stop.clone());
            tasks.spawn(async move {
                let (mut served, mut refused) = (0, Vec::new());
                while !stop.is_cancelled() {
                    match once(&config).await {
                        Ok(()) => served += 1,
                        Err(error) => refused.push(format!("{error:#}")),
                    }
                }
                (served, refused)
            });
        }
        Self { stop, tasks }
    }

    /// Number of clients that were served, and the errors that the others were told.
    async fn stop(self) -> (u64, Vec<String>) {
        self.stop.cancel();
        let ended = self.tasks.join_all().await;
        ended.into_iter().fold((0, Vec::new()), |(served, mut all), (more, refused)| {
            all.extend(refused);
            (served + more, all)
        })
    }
}

async fn once(config: &Config) -> Result<()> {
    let attempt = async {
        let (client, connection) = config.connect(NoTls).await?;
        let ended = tokio::spawn(connection);
        client.batch_execute("select 1").await?;
        drop(client);
        ended.await??;
        anyhow::Ok(())
    };
    tokio::time::timeout(CHANGE, attempt).await.context("no answer")?
}

async fn upgrade(stage: &mut Stage<'_>) -> Result<()> {
    let program = stage.lab.binaries.proxy.clone();
    stage.begin_all("the proxy is replaced");
    let knocking = Knocking::start(&stage.lab.client_config(0));
    stage.lab.proxies[0].upgrade(&program).await?;
    // Shorter than the drain.
    stage.nothing_happens(NOTHING).await?;
    let figures = stage.oracle.figures();
    if figures.write_errors + figures.read_errors + figures.dropped > 0 {
        stage.fail(format!("sessions were cut before the drain limit: {:?}", figures.errors));
    }
    stage.lab.proxies[0].predecessor_ended(Duration::from_secs(DRAIN_S) + CHANGE).await?;
    stage.served().await?;
    let (served, refused) = knocking.stop().await;
    tracing::info!("{served} logins during the hand-over, {} refused", refused.len());
    if !refused.is_empty() {
        stage.fail(format!("{} of {} logins were refused: {}", refused.len(), served, refused[0]));
    }
    // Cancels of those that are new.
    cancelled(stage.lab, 0, 0).await
}

/// Clients, all of one role; each is one file here and one at the proxy.
const CROWD: usize = 10_000;
/// The password `crowd` with one round of hashing: what is measured is not the clients' work.
const CROWD_VERIFIER: &str = "SCRAM-SHA-256$1:Y3Jvd2Qgb2YgY2xpZW50cw==$LyAjC21PswSJBj73GVvbfXIFMvaZTjRNaarN5Jk2YdI=:\
                              e85t/hNwCY7fMPOQkCAN2PshflAgMbxZNfqNC0heBUg=";
/// Logins at once in the beginning.
const CROWD_PACE: usize = 200;
/// Longest time until everybody is in. On a machine that does nothing else it is seconds.
const CROWD_LIMIT: Duration = Duration::from_secs(120);
/// `pool.size`: server connections of one role to one node.
const POOL_SIZE: i64 = 40;

/// Number of clients in the crowd that are in.
type Crowd = Arc<AtomicUsize>;

/// One of them: comes back whenever its connection ends.
async fn come_back(config: Config, inside: Crowd, pace: Arc<tokio::sync::Semaphore>) {
    loop {
        let permit = pace.acquire().await;
        match config.connect(NoTls).await {
            Ok((client, connection)) => {
                drop(permit);
                inside.fetch_add(1, Ordering::Relaxed);
                // Ends with the proxy.
                let _ = connection.await;
                inside.fetch_sub(1, Ordering::Relaxed);
                drop(client);
            }
            Err(_) => {
                drop(permit);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn all_in(stage: &mut Stage<'_>, inside: &Crowd) -> Result<f64> {
    let begun = Instant::now();
    let host = stage.host_now(manatee_shared::cluster::Role::Primary)?;
    let mut most = 0;
    while inside.load(Ordering::Relaxed) < CROWD {
        ensure!(begun.elapsed() < CROWD_LIMIT, "{} of {CROWD} clients are in", inside.load(Ordering::Relaxed));
        let client = stage.lab.hosts[host].superuser("postgres").await.context("an operator")?;
        let sql = "select count(*) from pg_stat_activity where usename = 'crowd'";
        most = most.max(client.query_one(sql, &[]).await?.get::<_, i64>(0));
        stage.lab.check()?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    ensure!(most <= POOL_SIZE, "{most} server connections of {CROWD} clients");
    Ok(begun.elapsed().as_secs_f64())
}

async fn storm(stage: &mut Stage<'_>) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    ensure!(hard > CROWD as u64 + 1_000, "{CROWD} clients need as many files; there are {hard}: raise ulimit -n");
    let client = stage.lab.connect(0).await?;
    drop(client);
    let host = stage.host_now(manatee_shared::cluster::Role::Primary)?;
    let admin = stage.lab.hosts[host].superuser("postgres").await?;
    if admin.query_opt("select from pg_roles where rolname = 'crowd'", &[]).await?.is_none() {
        admin.batch_execute(&format!("create role crowd login password '{CROWD_VERIFIER}'")).await?;
    }
    let mut config = stage.lab.client_config(0);
    config.user("crowd").password("crowd").connect_timeout(CROWD_LIMIT);
    let (inside, pace) = (Crowd::default(), Arc::new(tokio::sync::Semaphore::new(CROWD_PACE)));
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        crowd.spawn(come_back(config.clone(), inside.clone(), pace.clone()));
    }
    let first_s = all_in(stage, &inside).await?;
    // From now on all at once.
    pace.add_permits(CROWD);
    stage.begin_all("the proxy is killed and started again");
    stage.lab.proxies[0].kill();
    stage
        .until("the clients do not notice", async |_| {
            ensure!(inside.load(Ordering::Relaxed) == 0, "some are in");
            Ok(())
        })
        .await?;
    stage.lab.proxies[0].start()?;
    let again_s = all_in(stage, &inside).await?;
    tracing::info!(
        "{CROWD} clients: in after {first_s:.1} s, {CROWD_PACE} at a time; all at once after {again_s:.1} s"
    );
    stage.served().await?;
    crowd.shutdown().await;
    Ok(())
}

/// Connections that say nothing, or half of something.
const SILENT: usize = 3_000;
/// Clients that read nothing of large results; more would take all server connections there are.
const SLOW: usize = 8;
/// Growth that a proxy may show: far less than what nobody reads, more than what it keeps for each client.
const GROWTH_KIB: u64 = 256 << 10;

async fn hostile(stage: &mut Stage<'_>) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let before = resident_kib(stage.lab)?;
    stage.begin_all("clients that mean harm");
    let mut open = Vec::new();
    for number in 0..SILENT {
        let mut stream = socket(stage.lab, 0).await?;
        let halves: [&[u8]; 4] = [b"", b"\0", b"\0\0\x01\0\0\x03\0\0user\0", b"\x16\x03\x01\x02\0\x01"];
        stream.write_all(halves[number % halves.len()]).await?;
        open.push(stream);
    }
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\xff\xff\xff\xff\0\x03\0\0", b"\0\0\0\x08\0\x63\0\0"] {
        ensure!(answer_to(socket(stage.lab, 0).await?, bytes).await?.first() == Some(&b'E'), "{bytes:?}: no error");
    }
    // Behind the login.
    for bytes in
        [&b"Q\xff\xff\xff\xff"[..], b"Q\0\0\0\x01", b"!\0\0\0\x04", b"B\0\0\0\x05x", b"Q\x3f\xff\xff\xffselect"]
    {
        let mut stream = logged_in(stage.lab).await?;
        if bytes.first() == Some(&b'Q') && bytes.get(1) == Some(&0x3f) {
            // The rest of a gigabyte never comes.
            stream.write_all(bytes).await?;
            open.push(stream);
        } else {
            let answer = answer_to(stream, bytes).await?;
            ensure!(answer.contains(&b'E') && find(&answer, b"08P01"), "{bytes:?}: {answer:?}");
        }
    }
    for _ in 0..SLOW {
        let mut stream = logged_in(stage.lab).await?;
        let sql = b"select repeat('x', 10000) from generate_series(1, 100000)\0";
        stream.write_all(&[&b"Q"[..], &u32::try_from(sql.len() + 4)?.to_be_bytes(), sql].concat()).await?;
        open.push(stream);
    }
    stage.nothing_happens(NOTHING).await?;
    let growth = resident_kib(stage.lab)?.saturating_sub(before);
    tracing::info!("the proxy has grown by {growth} KiB");
    if growth > GROWTH_KIB {
        stage.fail(format!("the proxy has grown by {growth} KiB"));
    }
    stage.served().await?;
    drop(open);
    stage.nothing_happens(Duration::from_secs(1)).await
}

fn find(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|part| part == wanted)
}

/// All that comes back, up to the end.
async fn answer_to(mut stream: TcpStream, bytes: &[u8]) -> Result<Vec<u8>> {
    stream.write_all(bytes).await?;
    let mut answer = Vec::new();
    // A reset behind the answer is as good as an end.
    let _ = tokio::time::timeout(CHANGE, stream.read_to_end(&mut answer)).await.context("it is not ended")?;
    Ok(answer)
}

/// The socket of a client that has logged in.
async fn logged_in(lab: &Lab) -> Result<TcpStream> {
    let socket = socket(lab, 0).await?.into_std()?;
    let kept = socket.try_clone()?;
    let (client, connection) = lab.client_config(0).connect_raw(TcpStream::from_std(socket)?, NoTls).await?;
    // Neither says good-bye, and nothing is read behind our back.
    std::mem::forget(client);
    std::mem::forget(connection);
    Ok(TcpStream::from_std(kept)?)
}

/// Memory of the first proxy.
fn resident_kib(lab: &mut Lab) -> Result<u64> {
    let pid = lab.proxies[0].pid().context("the proxy is not running")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}
