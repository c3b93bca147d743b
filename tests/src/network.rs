//! Addresses for the lab's hosts: a network namespace each behind a bridge, or plain loopback.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Whether peers get network namespaces of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Namespaces {
    /// If this process may create them.
    Auto,
    /// They must be there: an error otherwise.
    Yes,
    /// Loopback addresses only; faults of the network are then not available.
    No,
}

/// The lab's network. Links and namespaces are deleted when it is dropped.
#[derive(Debug)]
pub struct Network {
    /// Number of the lab on this machine; part of every name and address.
    number: u8,
    /// None: loopback.
    bridge: Option<Bridge>,
}

#[derive(Debug)]
struct Bridge {
    name: String,
    peers: usize,
}

/// What a dead lab's network consists of, to be written down before it is created.
pub fn names(number: u8, peers: usize) -> (String, Vec<String>) {
    (format!("mtlab{number}"), (1..=peers).map(|peer| format!("mtlab{number}p{peer}")).collect())
}

impl Namespaces {
    /// Whether to use them, here.
    pub fn resolve(self) -> Result<bool> {
        match self {
            Self::No => Ok(false),
            Self::Yes => permitted().map(|()| true),
            Self::Auto => Ok(permitted().is_ok()),
        }
    }
}

/// Whether this process may create network namespaces and links.
fn permitted() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root");
    }
    let probe = format!("mtprobe{}", std::process::id());
    ip(&["netns", "add", &probe]).context("network namespaces cannot be created here")?;
    ip(&["netns", "del", &probe])
}

impl Network {
    /// Builds the network of lab `number` for `peers` hosts, counted from 1.
    pub fn create(number: u8, peers: usize, with_namespaces: bool) -> Result<Self> {
        if !with_namespaces {
            return Ok(Self { number, bridge: None });
        }
        let name = names(number, peers).0;
        ip(&["link", "add", &name, "type", "bridge"])?;
        // From here on, dropping cleans up.
        let network = Self { number, bridge: Some(Bridge { name: name.clone(), peers }) };
        ip(&["addr", "add", &format!("{}/24", network.address()), "dev", &name])?;
        ip(&["link", "set", &name, "up"])?;
        for peer in 1..=peers {
            network.add_host(&name, peer)?;
        }
        Ok(network)
    }

    fn add_host(&self, bridge: &str, peer: usize) -> Result<()> {
        let name = self.host_name(peer);
        let address = format!("{}/24", self.peer_address(peer));
        ip(&["netns", "add", &name])?;
        ip(&["link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        ip(&["-n", &name, "addr", "add", &address, "dev", "eth0"])?;
        ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        ip(&["link", "set", &name, "master", bridge])?;
        ip(&["link", "set", &name, "up"])
    }

    fn host_name(&self, peer: usize) -> String {
        format!("mtlab{}p{peer}", self.number)
    }

    /// Whether hosts can be cut off.
    pub fn has_namespaces(&self) -> bool {
        self.bridge.is_some()
    }

    /// Address of this machine in the lab's network: ZooKeeper listens here.
    pub fn address(&self) -> Ipv4Addr {
        if self.has_namespaces() { Ipv4Addr::new(10, 77, self.number, 254) } else { Ipv4Addr::LOCALHOST }
    }

    /// Address of host `peer`.
    pub fn peer_address(&self, peer: usize) -> Ipv4Addr {
        let last = u8::try_from(peer).unwrap_or(u8::MAX);
        let first = if self.has_namespaces() { 10 } else { 127 };
        Ipv4Addr::new(first, 77, self.number, last)
    }

    /// Network namespace of host `peer`.
    pub fn namespace(&self, peer: usize) -> Option<String> {
        self.bridge.as_ref().map(|_| self.host_name(peer))
    }

    /// Takes the host's link down. Nothing on the host is told.
    pub fn cut(&self, peer: usize) -> Result<()> {
        self.need_namespaces()?;
        ip(&["link", "set", &self.host_name(peer), "down"])
    }

    /// Brings the host's link up again.
    pub fn heal(&self, peer: usize) -> Result<()> {
        self.need_namespaces()?;
        ip(&["link", "set", &self.host_name(peer), "up"])
    }

    /// A fresh namespace for a host that lost power: a rebooted machine knows nothing of the
    /// connections it had, whereas the old namespace would go on to retransmit for them.
    pub fn reboot(&self, peer: usize) -> Result<()> {
        let Some(bridge) = &self.bridge else { return self.need_namespaces() };
        let name = self.host_name(peer);
        // Deleting the link here is synchronous; with the namespace alone it would vanish later.
        ip(&["link", "del", &name])?;
        ip(&["netns", "del", &name])?;
        self.add_host(&bridge.name, peer)
    }

    fn need_namespaces(&self) -> Result<()> {
        if self.has_namespaces() {
            return Ok(());
        }
        bail!("this lab runs without network namespaces, so hosts cannot be cut off: start it as root")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(bridge) = &self.bridge {
            remove(self.number, bridge.peers);
        }
    }
}

/// Deletes the links and namespaces of lab `number`; those that are not there are no matter.
pub fn remove(number: u8, peers: usize) {
    let (bridge, hosts) = names(number, peers);
    for host in hosts {
        let _ = ip(&["link", "del", &host]);
        let _ = ip(&["netns", "del", &host]);
    }
    let _ = ip(&["link", "del", &bridge]);
}

/// Runs `ip`.
fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("cannot run `ip` (Debian package iproute2)")?;
    if !output.status.success() {
        bail!("`ip {}`: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
