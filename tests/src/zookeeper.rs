//! A real ZooKeeper, one server or three, from Debian's jar.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::binaries::{ZOOKEEPER_JAR, in_path};
use crate::network::Network;
use crate::ports;
use crate::process::{Launch, Process};

/// The ensemble. Killed when dropped.
#[derive(Debug)]
pub struct ZooKeeper {
    servers: Vec<Server>,
}

#[derive(Debug)]
struct Server {
    launch: Launch,
    process: Option<Process>,
    address: SocketAddrV4,
}

impl ZooKeeper {
    /// Starts the servers of `network` with their data under `dir`. They are not ready yet.
    pub fn start(dir: &Path, logs: &Path, network: &Network) -> Result<Self> {
        let java = in_path("java")?;
        let mut taken = Vec::new();
        let mut place = |machine| {
            let address = network.address(machine);
            // A machine of its own has the usual ports to itself.
            if network.has_namespaces() {
                return Ok((machine, address, [2181, 2888, 3888]));
            }
            let mut port = || ports::free(address, &mut taken);
            Ok((machine, address, [port()?, port()?, port()?]))
        };
        let places = network.zookeepers().into_iter().map(&mut place).collect::<Result<Vec<_>>>()?;
        let ensemble: String = match places.len() {
            1 => String::new(),
            _ => (1..)
                .zip(&places)
                .map(|(id, (_, address, [_, peer, election]))| format!("server.{id}={address}:{peer}:{election}\n"))
                .collect(),
        };
        let mut servers = Vec::new();
        for (id, (machine, address, [client, ..])) in (1..).zip(&places) {
            let name = format!("zookeeper{id}");
            let dir = dir.join(&name);
            let data = dir.join("data");
            fs::create_dir_all(&data)?;
            fs::write(data.join("myid"), format!("{id}\n"))?;
            // Short ticks, because the shortest session is two of them.
            let config = format!(
                "tickTime=200\nminSessionTimeout=400\nmaxSessionTimeout=60000\ninitLimit=50\nsyncLimit=10\n\
                 clientPort={client}\nclientPortAddress={address}\ndataDir={}\n4lw.commands.whitelist=*\n\
                 maxClientCnxns=0\n{ensemble}",
                data.display()
            );
            let config_path = dir.join("zoo.cfg");
            fs::write(&config_path, config)?;
            let options = [
                "-Xmx64m",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-Dzookeeper.admin.enableServer=false",
                "-Dzookeeper.forceSync=no",
                "-Dzookeeper.snapshot.trust.empty=true",
                "-cp",
                ZOOKEEPER_JAR,
                "org.apache.zookeeper.server.quorum.QuorumPeerMain",
            ];
            let launch = Launch {
                name: name.clone(),
                program: java.clone(),
                args: options.iter().map(Into::into).chain([config_path.into()]).collect(),
                dir,
                log: logs.join(format!("{name}.log")),
                namespace: network.namespace(*machine),
                env: Vec::new(),
            };
            let process = Some(Process::start(&launch)?);
            servers.push(Server { launch, process, address: SocketAddrV4::new(*address, *client) });
        }
        Ok(Self { servers })
    }

    /// Waits until every server serves.
    pub async fn ready(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        for server in &mut self.servers {
            while !serves(server.address) {
                if let Some(process) = &mut server.process {
                    process.check()?;
                }
                if Instant::now() > deadline {
                    bail!("{} does not serve after {limit:?}", server.launch.name);
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
        }
        Ok(())
    }

    /// `ip:port` of each server.
    pub fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(|server| server.address.to_string()).collect()
    }

    /// Number of servers, running or not.
    pub fn count(&self) -> usize {
        self.servers.len()
    }

    /// Index of the server that leads the ensemble now.
    pub fn leader(&self) -> Option<usize> {
        let leads = |server: &Server| mode(server.address).is_some_and(|mode| mode == "leader" || mode == "standalone");
        self.servers.iter().position(leads)
    }

    /// SIGKILLs the server with this index.
    pub fn kill(&mut self, index: usize) {
        if let Some(server) = self.servers.get_mut(index) {
            server.process = None;
        }
    }

    /// SIGKILLs all servers.
    pub fn kill_all(&mut self) {
        (0..self.servers.len()).for_each(|index| self.kill(index));
    }

    /// SIGKILLs all servers, removes all they had, and starts them again.
    pub fn wipe(&mut self) -> Result<()> {
        self.kill_all();
        for server in &self.servers {
            let data = server.launch.dir.join("data").join("version-2");
            fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))?;
        }
        self.restart()
    }

    /// Starts those that are not running.
    pub fn restart(&mut self) -> Result<()> {
        for server in &mut self.servers {
            if server.process.as_mut().is_none_or(|process| process.ended().is_some()) {
                server.process = Some(Process::start(&server.launch).context("cannot restart ZooKeeper")?);
            }
        }
        Ok(())
    }
}

/// Whether a server answers `srvr` as a member that serves requests.
fn serves(address: SocketAddrV4) -> bool {
    mode(address).is_some()
}

/// Mode that a server reports: `leader`, `follower`, `standalone`.
fn mode(address: SocketAddrV4) -> Option<String> {
    let ask = || -> std::io::Result<String> {
        let limit = Duration::from_millis(500);
        let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(address), limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"srvr")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().ok()?.lines().find_map(|line| line.strip_prefix("Mode: ")).map(str::to_owned)
}
