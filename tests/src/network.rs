//! Addresses for the lab's machines: a network namespace each behind a bridge, or plain loopback.
//!
//! With namespaces, links can be taken down, and packets from one machine to another dropped (by
//! nftables, at the receiver): nobody is told anything. Clients and proxies are on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::relay::{Quality, Relay};

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
    /// Name of the bridge; None: loopback.
    bridge: Option<String>,
    /// Database hosts, ZooKeeper servers.
    size: Size,
    /// Namespaces in which packets are dropped.
    filtered: BTreeSet<String>,
    /// Links of bad quality.
    relays: BTreeMap<Machine, Relay>,
}

/// Number of machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Size {
    /// Database hosts.
    pub peers: usize,
    /// ZooKeeper servers.
    pub zookeepers: usize,
}

/// A machine of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Machine {
    /// Database host, from 1.
    Host(usize),
    /// ZooKeeper server, from 1.
    ZooKeeper(usize),
    /// Place of the proxies and of the lab itself.
    Clients,
}

/// Names in a dead lab's network, to be written down before it is created: the bridge, and
/// the namespaces, whose links have the same names.
pub fn names(number: u8, size: Size) -> (String, Vec<String>) {
    let hosts = (1..=size.peers).map(|peer| format!("mtlab{number}p{peer}"));
    let zookeepers = (1..=size.zookeepers).map(|server| format!("mtlab{number}z{server}"));
    (format!("mtlab{number}"), hosts.chain(zookeepers).collect())
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
    /// Builds the network of lab `number`.
    pub fn create(number: u8, size: Size, with_namespaces: bool) -> Result<Self> {
        let (filtered, relays) = (BTreeSet::new(), BTreeMap::new());
        if !with_namespaces {
            return Ok(Self { number, bridge: None, size, filtered, relays });
        }
        let bridge = names(number, size).0;
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        // From here on, dropping cleans up.
        let network = Self { number, bridge: Some(bridge.clone()), size, filtered, relays };
        ip(&["addr", "add", &format!("{}/24", network.address(Machine::Clients)), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        let hosts = (1..=size.peers).map(Machine::Host);
        for machine in hosts.chain((1..=size.zookeepers).map(Machine::ZooKeeper)) {
            network.add(&bridge, machine)?;
        }
        Ok(network)
    }

    fn add(&self, bridge: &str, machine: Machine) -> Result<()> {
        let Some(name) = self.namespace(machine) else { return Ok(()) };
        let address = format!("{}/24", self.address(machine));
        ip(&["netns", "add", &name])?;
        ip(&["link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        ip(&["-n", &name, "addr", "add", &address, "dev", "eth0"])?;
        ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        ip(&["link", "set", &name, "master", bridge])?;
        ip(&["link", "set", &name, "up"])
    }

    /// Whether machines can be cut off.
    pub fn has_namespaces(&self) -> bool {
        self.bridge.is_some()
    }

    /// Address of `machine`.
    pub fn address(&self, machine: Machine) -> Ipv4Addr {
        let number = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
        let first = if self.has_namespaces() { 10 } else { 127 };
        match machine {
            Machine::Host(peer) => Ipv4Addr::new(first, 77, self.number, number(peer)),
            Machine::ZooKeeper(server) if self.has_namespaces() => {
                Ipv4Addr::new(first, 77, self.number, 200 + number(server))
            }
            Machine::Clients if self.has_namespaces() => Ipv4Addr::new(first, 77, self.number, 254),
            Machine::ZooKeeper(_) | Machine::Clients => Ipv4Addr::LOCALHOST,
        }
    }

    /// Network namespace of `machine`, if it has one of its own.
    pub fn namespace(&self, machine: Machine) -> Option<String> {
        self.bridge.as_ref()?;
        match machine {
            Machine::Host(peer) => Some(format!("mtlab{}p{peer}", self.number)),
            Machine::ZooKeeper(server) => Some(format!("mtlab{}z{server}", self.number)),
            Machine::Clients => None,
        }
    }

    /// All machines.
    pub fn machines(&self) -> Vec<Machine> {
        let hosts = (1..=self.size.peers).map(Machine::Host);
        hosts.chain((1..=self.size.zookeepers).map(Machine::ZooKeeper)).chain([Machine::Clients]).collect()
    }

    /// ZooKeeper's servers.
    pub fn zookeepers(&self) -> Vec<Machine> {
        (1..=self.size.zookeepers).map(Machine::ZooKeeper).collect()
    }

    /// Takes the host's link down. Nothing on the host is told.
    pub fn cut(&self, peer: usize) -> Result<()> {
        ip(&["link", "set", &self.need_namespace(Machine::Host(peer))?, "down"])
    }

    /// Brings the host's link up again.
    pub fn heal(&self, peer: usize) -> Result<()> {
        ip(&["link", "set", &self.need_namespace(Machine::Host(peer))?, "up"])
    }

    /// A fresh namespace for a host that lost power: a rebooted machine knows nothing of the
    /// connections it had, whereas the old namespace would go on to retransmit for them.
    pub fn reboot(&self, peer: usize) -> Result<()> {
        let name = self.need_namespace(Machine::Host(peer))?;
        let Some(bridge) = &self.bridge else { return Ok(()) };
        // Deleting the link here is synchronous; with the namespace alone it would vanish later.
        ip(&["link", "del", &name])?;
        ip(&["netns", "del", &name])?;
        self.add(bridge, Machine::Host(peer))
    }

    /// Drops every packet that goes `from` one machine `to` another; not those the other way.
    pub fn drop_packets(&mut self, from: Machine, to: Machine) -> Result<()> {
        match to {
            Machine::Clients => self.filter(from, &format!("add rule ip lab out ip daddr {} drop", self.address(to))),
            to => self.filter(to, &format!("add rule ip lab in ip saddr {} drop", self.address(from))),
        }
    }

    /// Drops everything between `machine` and each of `others`.
    pub fn separate(&mut self, machine: Machine, others: &[Machine]) -> Result<()> {
        for &other in others {
            self.drop_packets(machine, other)?;
            self.drop_packets(other, machine)?;
        }
        Ok(())
    }

    /// Makes the link of `machine` bad: what it sends comes late, or not at all.
    pub fn spoil(&mut self, machine: Machine, quality: Quality) -> Result<()> {
        let link = self.need_namespace(machine)?;
        let Some(bridge) = &self.bridge else { return Ok(()) };
        let tap = format!("{link}t");
        ip(&["link", "set", &link, "nomaster"])?;
        let relay = Relay::start(&link, &tap, quality)?;
        ip(&["link", "set", &tap, "master", bridge])?;
        ip(&["link", "set", &tap, "up"])?;
        self.relays.insert(machine, relay);
        Ok(())
    }

    /// Lets all packets through again, at once.
    pub fn mend(&mut self) -> Result<()> {
        while let Some((machine, relay)) = self.relays.pop_first() {
            drop(relay);
            if let (Some(link), Some(bridge)) = (self.namespace(machine), &self.bridge) {
                ip(&["link", "set", &link, "master", bridge])?;
            }
        }
        while let Some(namespace) = self.filtered.pop_first() {
            nft(&namespace, "flush ruleset")?;
        }
        Ok(())
    }

    fn filter(&mut self, machine: Machine, rule: &str) -> Result<()> {
        let namespace = self.need_namespace(machine)?;
        let script = format!(
            "add table ip lab; add chain ip lab in {{ type filter hook input priority 0; }}; \
             add chain ip lab out {{ type filter hook output priority 0; }}; {rule}"
        );
        nft(&namespace, &script)?;
        self.filtered.insert(namespace);
        Ok(())
    }

    fn need_namespace(&self, machine: Machine) -> Result<String> {
        self.namespace(machine)
            .context("this lab runs without network namespaces, so machines cannot be cut off: start it as root")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if self.bridge.is_some() {
            remove(self.number, self.size);
        }
    }
}

/// Deletes the links and namespaces of lab `number`; those that are not there are no matter.
pub fn remove(number: u8, size: Size) {
    let (bridge, machines) = names(number, size);
    for machine in machines {
        let _ = ip(&["link", "del", &machine]);
        let _ = ip(&["netns", "del", &machine]);
    }
    let _ = ip(&["link", "del", &bridge]);
}

/// Runs `ip`.
fn ip(args: &[&str]) -> Result<()> {
    run(Command::new("ip").args(args), "iproute2")
}

/// Runs `nft` in a namespace.
fn nft(namespace: &str, script: &str) -> Result<()> {
    run(Command::new("ip").args(["netns", "exec", namespace, "nft", script]), "nftables")
}

fn run(command: &mut Command, package: &str) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?} cannot be run (Debian package {package})"))?;
    if !output.status.success() {
        let problem = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("{command:?}: {problem} (Debian package {package})");
    }
    Ok(())
}
