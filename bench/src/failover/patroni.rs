//! Three hosts with Patroni on them, and HAProxy in front, both as their documentation sets them up
//! and otherwise with their defaults (ttl 30 s, loop_wait 10 s; checks every 3 s).

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use manatee_tests::lab::Options;
use manatee_tests::network::{Machine, Network, Size};
use manatee_tests::oracle::ledger::Figures;
use manatee_tests::process::{self, Launch, Process};
use manatee_tests::reaper::Reaper;
use manatee_tests::runfile::RunFile;
use manatee_tests::zookeeper::ZooKeeper;
use manatee_tests::{binaries, ports};
use serde_json::Value;
use tokio_postgres::NoTls;

use super::Fault;
use super::clients::Clients;

const MEMBERS: usize = 3;
const PASSWORD: &str = "bench";
/// Longest time until the cluster is whole.
const WHOLE: Duration = Duration::from_secs(180);
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(200);
/// Writes that show that it works again.
const SERVED: u64 = 20;

/// The cluster with its clients. Dropped in this order.
#[derive(Debug)]
pub(super) struct Shard {
    clients: Option<Clients>,
    _haproxy: Option<Process>,
    members: Vec<Member>,
    _zookeeper: ZooKeeper,
    network: Network,
    http: reqwest::Client,
    folder: Folder,
    _run_file: RunFile,
    _reaper: Reaper,
}

#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        process::kill_everything(&self.0, None);
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Debug)]
struct Member {
    name: String,
    ip: Ipv4Addr,
    launch: Launch,
    process: Option<Process>,
}

impl Shard {
    /// Brings everything up and lets the clients begin.
    pub(super) async fn up(options: &Options) -> Result<Self> {
        ensure!(options.netns.resolve()?, "hosts that lose power need network namespaces: run it as root");
        let reaper = Reaper::start()?;
        let mut run_file = RunFile::claim()?;
        let folder = Folder(std::env::temp_dir().join(format!("manatee-bench-{}", std::process::id())));
        fs::create_dir(&folder.0)?;
        let logs = folder.0.join("logs");
        fs::create_dir(&logs)?;
        let size = Size { peers: MEMBERS, zookeepers: 1 };
        run_file.record(&folder.0, true, Some(size))?;
        let network = Network::create(run_file.number(), size, true)?;
        let mut zookeeper = ZooKeeper::start(&folder.0, &logs, &network)?;
        zookeeper.ready(Duration::from_secs(20)).await?;
        let mut members = Vec::new();
        for number in 1..=MEMBERS {
            members.push(Member::new(number, &folder.0, &network, &zookeeper.addresses())?);
        }
        let http = reqwest::Client::builder().timeout(Duration::from_secs(2)).build()?;
        let mut shard = Self {
            clients: None,
            _haproxy: None,
            members,
            _zookeeper: zookeeper,
            network,
            http,
            folder,
            _run_file: run_file,
            _reaper: reaper,
        };
        // The first one initialises; together they would race for it.
        shard.members[0].start()?;
        shard.until("no leader", async |shard| shard.leader().await.map(drop)).await?;
        shard.members.iter_mut().try_for_each(Member::start)?;
        shard.whole().await?;
        shard.serve().await?;
        Ok(shard)
    }

    /// HAProxy and the clients.
    async fn serve(&mut self) -> Result<()> {
        let mut taken = Vec::new();
        let mut port = || ports::free(Ipv4Addr::LOCALHOST, &mut taken);
        let (writes, reads) = (port()?, port()?);
        let servers = |check: &str| -> String {
            let line =
                |member: &Member| format!("  server {} {}:5432 maxconn 100 check port 8008\n", member.name, member.ip);
            let members: String = self.members.iter().map(line).collect();
            format!(
                "  option httpchk OPTIONS {check}\n  http-check expect status 200\n  \
                 default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions\n{members}"
            )
        };
        let config = self.folder.0.join("haproxy.cfg");
        fs::write(
            &config,
            format!(
                "global\n  maxconn 100\ndefaults\n  mode tcp\n  retries 2\n  timeout client 30m\n  \
                 timeout connect 4s\n  timeout server 30m\n  timeout check 5s\n\
                 listen primary\n  bind 127.0.0.1:{writes}\n{}listen replicas\n  bind 127.0.0.1:{reads}\n{}",
                servers("/primary"),
                servers("/replica")
            ),
        )?;
        self._haproxy = Some(Process::start(&Launch {
            name: "haproxy".to_owned(),
            program: "/usr/sbin/haproxy".into(),
            args: vec!["-db".into(), "-f".into(), config.into()],
            dir: self.folder.0.clone(),
            log: self.folder.0.join("logs/haproxy.log"),
            namespace: None,
            env: Vec::new(),
        })?);
        let login = |port| {
            let mut config = tokio_postgres::Config::new();
            config.host("127.0.0.1").port(port).user("postgres").password(PASSWORD).dbname("postgres");
            config.connect_timeout(Duration::from_secs(10));
            config
        };
        let (writes, reads) = (login(writes), login(reads));
        self.until("no table could be made through HAProxy", async |_| {
            let (client, connection) = writes.connect(NoTls).await?;
            tokio::spawn(async move { drop(connection.await) });
            client.batch_execute("create table if not exists bench_failover (writer int, sequence bigint)").await?;
            Ok(())
        })
        .await?;
        self.clients = Some(Clients::start(&writes, &reads));
        self.served().await
    }

    /// One round of `fault`: what the clients saw until everything was whole again.
    pub(super) async fn round(&mut self, fault: Fault) -> Result<Figures> {
        self.whole().await?;
        self.served().await?;
        let old = self.leader().await?;
        let victim = self.members.iter().position(|member| member.name == old).context("the leader is nobody")?;
        self.ledger()?.begin_round(Instant::now());
        match fault {
            Fault::Planned => self.switch_over(&old).await?,
            Fault::Postmaster => self.members[victim].kill_postmaster()?,
            Fault::Host => self.members[victim].kill(),
            Fault::PowerOff => {
                self.network.cut(victim + 1)?;
                self.members[victim].kill();
            }
        }
        if fault != Fault::Postmaster {
            self.until("nobody else became leader", async |shard| {
                let now = shard.leader().await?;
                ensure!(now != old, "{now} is still leader");
                Ok(())
            })
            .await?;
        }
        self.served().await?;
        if fault == Fault::PowerOff {
            self.network.reboot(victim + 1)?;
        }
        self.members[victim].start()?;
        self.whole().await?;
        self.served().await?;
        Ok(self.ledger()?.figures(Instant::now()))
    }

    fn ledger(&self) -> Result<&manatee_tests::oracle::ledger::Ledger> {
        Ok(&self.clients.as_ref().context("there are no clients")?.ledger)
    }

    /// Waits for writes and reads.
    async fn served(&mut self) -> Result<()> {
        let before = self.ledger()?.figures(Instant::now());
        self.until("clients are not served", async |shard| {
            let now = shard.ledger()?.figures(Instant::now());
            let served = now.writes >= before.writes + SERVED && now.reads >= before.reads + SERVED;
            ensure!(served, "{} writes, {} reads, {:?}", now.writes, now.reads, now.errors);
            Ok(())
        })
        .await
    }

    async fn switch_over(&self, old: &str) -> Result<()> {
        let leader = self.members.iter().find(|member| member.name == old).context("no leader")?;
        let next = self.members.iter().find(|member| member.name != old).context("no other member")?;
        let body = serde_json::json!({ "leader": old, "candidate": next.name }).to_string();
        let url = format!("http://{}:8008/switchover", leader.ip);
        let answer = self.http.post(url).timeout(Duration::from_secs(60)).body(body).send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "switchover: {status} {}", answer.text().await.unwrap_or_default());
        Ok(())
    }

    /// Answer of the first member that says how the cluster is.
    async fn cluster(&self) -> Result<Vec<Value>> {
        for member in &self.members {
            let url = format!("http://{}:8008/cluster", member.ip);
            let Ok(answer) = self.http.get(url).send().await else { continue };
            let cluster: Value = serde_json::from_str(&answer.text().await?)?;
            return Ok(cluster["members"].as_array().cloned().unwrap_or_default());
        }
        bail!("no member answers")
    }

    async fn leader(&self) -> Result<String> {
        let members = self.cluster().await?;
        let leader = members.iter().find(|member| member["role"] == "leader" && member["state"] == "running");
        Ok(leader.and_then(|leader| leader["name"].as_str()).context("no leader is running")?.to_owned())
    }

    /// Waits until there is a leader and all others stream from it.
    async fn whole(&mut self) -> Result<()> {
        self.until("the cluster is not whole", async |shard| {
            let members = shard.cluster().await?;
            let fit = |member: &&Value| member["state"] == "running" || member["state"] == "streaming";
            let running = members.iter().filter(fit).count();
            ensure!(running == MEMBERS && shard.leader().await.is_ok(), "{members:?}");
            Ok(())
        })
        .await
    }

    async fn until(&mut self, what: &str, mut attempt: impl AsyncFnMut(&mut Self) -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + WHOLE;
        loop {
            let Err(error) = attempt(self).await else { return Ok(()) };
            if Instant::now() > deadline {
                let logs = self.members.iter().map(|member| process::tail(&member.launch.log, 15));
                bail!("{what}: {error:#}\n{}", logs.collect::<Vec<_>>().join("\n"));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Member {
    fn new(number: usize, folder: &Path, network: &Network, zookeeper: &[String]) -> Result<Self> {
        let name = format!("member{number}");
        let ip = network.address(Machine::Host(number));
        let dir = folder.join(&name);
        fs::create_dir(&dir)?;
        let owned = Command::new("chown").arg("postgres:").arg(&dir).status()?;
        ensure!(owned.success(), "{} cannot be given to postgres", dir.display());
        let config = folder.join(format!("{name}.yml"));
        let text = format!(
            "scope: bench\nname: {name}\nrestapi:\n  listen: {ip}:8008\n  connect_address: {ip}:8008\n\
             zookeeper:\n  hosts: {zookeeper:?}\n\
             bootstrap:\n  dcs:\n    postgresql:\n      use_pg_rewind: true\n  initdb:\n  - encoding: UTF8\n  \
             - data-checksums\n  pg_hba:\n  - host replication replicator 0.0.0.0/0 scram-sha-256\n  \
             - host all all 0.0.0.0/0 scram-sha-256\n\
             postgresql:\n  listen: {ip}:5432\n  connect_address: {ip}:5432\n  data_dir: {dir}/data\n  \
             bin_dir: {programs}\n  pgpass: {dir}/pgpass\n  authentication:\n    \
             replication: {{username: replicator, password: {PASSWORD}}}\n    \
             superuser: {{username: postgres, password: {PASSWORD}}}\n  \
             parameters: {{unix_socket_directories: '{dir}'}}\n",
            dir = dir.display(),
            programs = binaries::postgres_folder()?.display(),
        );
        fs::write(&config, text)?;
        let words = ["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--pdeathsig", "KILL", "--"];
        let mut args: Vec<std::ffi::OsString> = words.iter().map(Into::into).collect();
        args.extend(["/usr/bin/patroni".into(), config.into()]);
        let launch = Launch {
            name: name.clone(),
            program: "/usr/bin/setpriv".into(),
            args,
            dir,
            log: folder.join("logs").join(format!("{name}.log")),
            namespace: network.namespace(Machine::Host(number)),
            env: Vec::new(),
        };
        Ok(Self { name, ip, launch, process: None })
    }

    fn start(&mut self) -> Result<()> {
        if self.process.as_mut().is_none_or(|process| process.ended().is_some()) {
            self.process = Some(Process::start(&self.launch)?);
        }
        Ok(())
    }

    fn kill(&mut self) {
        process::kill_everything(&self.launch.dir, self.launch.namespace.as_deref());
        self.process = None;
    }

    fn kill_postmaster(&self) -> Result<()> {
        let file = self.launch.dir.join("data/postmaster.pid");
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let pid: i32 = text.lines().next().unwrap_or_default().trim().parse().context("postmaster.pid")?;
        let pid = rustix::process::Pid::from_raw(pid).context("postmaster.pid")?;
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}
