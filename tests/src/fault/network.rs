//! Hosts that are cut off, from everybody or from some.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use manatee_shared::cluster::Role;

use super::{Needs, Row};
use crate::network::Machine;
use crate::relay::Quality;
use crate::scenario::{CHANGE, Change, Clients, NOTHING, Play, Stage};

/// A network that is partitioned for longer than any session and any retry.
const PARTITIONED: Duration = Duration::from_secs(12);

/// A bad line across the world.
const BAD_LINK: Quality = Quality { delay: Duration::from_millis(200), loss_percent: 5 };
/// Duration of bad links in a round.
const BAD_LINKS: Duration = Duration::from_secs(600);

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        number: 8,
        fault: "primary cut from ZooKeeper only",
        needs: Needs::NETWORK,
        write_gap_s: None,
        plays: &[Play {
            name: "the primary's host is cut off from ZooKeeper",
            clients: Clients::MayFail,
            script: |stage| Box::pin(without_zookeeper(stage)),
        }],
    },
    Row {
        number: 9,
        fault: "primary cut from sync only",
        needs: Needs::NETWORK,
        write_gap_s: None,
        plays: &[Play {
            name: "primary and sync are cut off from each other",
            clients: Clients::MayFail,
            script: |stage| Box::pin(without_sync(stage)),
        }],
    },
    Row {
        number: 10,
        fault: "primary isolated from all",
        needs: Needs::NETWORK,
        write_gap_s: None,
        plays: &[ISOLATE_PRIMARY],
    },
    Row {
        number: 11,
        fault: "sync isolated",
        needs: Needs::NETWORK,
        write_gap_s: None,
        plays: &[Play {
            name: "the sync's host is cut off from everybody",
            clients: Clients::MayFail,
            script: |stage| Box::pin(isolate(stage, Role::Sync, Change::NewSync)),
        }],
    },
    Row {
        number: 12,
        fault: "one-way packet loss, each direction",
        needs: Needs::NETWORK,
        write_gap_s: None,
        plays: &[
            ONE_WAY,
            Play {
                name: "nothing reaches the primary's host",
                script: |stage| Box::pin(deaf(stage, Role::Primary)),
                ..ONE_WAY
            },
            Play {
                name: "nothing leaves the sync's host",
                script: |stage| Box::pin(mute(stage, Role::Sync)),
                ..ONE_WAY
            },
            Play {
                name: "nothing reaches the sync's host",
                script: |stage| Box::pin(deaf(stage, Role::Sync)),
                ..ONE_WAY
            },
            Play {
                name: "the primary does not hear the sync",
                script: |stage| Box::pin(one_way(stage, Role::Sync, Role::Primary)),
                ..ONE_WAY
            },
            Play {
                name: "the sync does not hear the primary",
                script: |stage| Box::pin(one_way(stage, Role::Primary, Role::Sync)),
                ..ONE_WAY
            },
        ],
    },
    Row {
        number: 13,
        fault: "flapping link",
        needs: Needs::NETWORK,
        write_gap_s: None,
        plays: &[
            Play {
                name: "the primary's link goes up and down",
                clients: Clients::MayFail,
                script: |stage| Box::pin(flap(stage, Role::Primary)),
            },
            Play {
                name: "the sync's link goes up and down",
                clients: Clients::MayFail,
                script: |stage| Box::pin(flap(stage, Role::Sync)),
            },
        ],
    },
    Row {
        number: 14,
        fault: "5 % loss and 200 ms delay",
        needs: Needs::NETWORK,
        write_gap_s: None,
        plays: &[Play {
            name: "what each host sends comes 200 ms late, 5 % of it not at all",
            clients: Clients::WritesMayFail,
            script: |stage| Box::pin(bad_links(stage)),
        }],
    },
    Row {
        number: 15,
        fault: "partition ring of all nodes",
        needs: Needs { zookeepers: 3, ..Needs::NETWORK },
        write_gap_s: None,
        plays: &[Play {
            name: "each machine hears its two neighbours only",
            clients: Clients::MayFail,
            script: |stage| Box::pin(ring(stage)),
        }],
    },
];

/// Row 10.
pub const ISOLATE_PRIMARY: Play = Play {
    name: "the primary's host is cut off from everybody",
    clients: Clients::MayFail,
    script: |stage| Box::pin(isolate(stage, Role::Primary, Change::Takeover)),
};

async fn isolate(stage: &mut Stage<'_>, role: Role, change: Change) -> Result<()> {
    let host = stage.host(role)?;
    stage.begin("cut off", host);
    stage.lab.cut(host)?;
    stage.expect(change).await?;
    stage.served().await
}

/// The first of the one-way losses.
const ONE_WAY: Play = Play {
    name: "nothing leaves the primary's host",
    clients: Clients::MayFail,
    script: |stage| Box::pin(mute(stage, Role::Primary)),
};

/// It may stay or hand over; either way writes go on, and once healed nothing more changes.
async fn without_zookeeper(stage: &mut Stage<'_>) -> Result<()> {
    let host = stage.host(Role::Primary)?;
    let zookeepers = stage.lab.network.zookeepers();
    stage.begin("cut off from ZooKeeper", host);
    stage.lab.separate(host, &zookeepers)?;
    settle(stage, &[Change::None, Change::Takeover]).await?;
    stage.served().await
}

/// The primary may choose a new sync, or the sync take over: one of them, once.
async fn without_sync(stage: &mut Stage<'_>) -> Result<()> {
    let (primary, sync) = (stage.host(Role::Primary)?, stage.host(Role::Sync)?);
    let sync = Machine::Host(stage.lab.hosts[sync].number);
    stage.begin("cut off from its sync", primary);
    stage.lab.separate(primary, &[sync])?;
    stage.expect(Change::NewSync).await?;
    stage.served().await?;
    stage.nothing_happens(NOTHING).await
}

/// Waits until roles have had the time to change, and takes what came of it if it is allowed.
async fn settle(stage: &mut Stage<'_>, allowed: &[Change]) -> Result<()> {
    tokio::time::sleep(PARTITIONED).await;
    stage.accept(allowed).await
}

/// Nothing leaves the host of `role`.
async fn mute(stage: &mut Stage<'_>, role: Role) -> Result<()> {
    lose(stage, role, |me, other| (me, other)).await
}

/// Nothing reaches the host of `role`.
async fn deaf(stage: &mut Stage<'_>, role: Role) -> Result<()> {
    lose(stage, role, |me, other| (other, me)).await
}

async fn lose(
    stage: &mut Stage<'_>,
    role: Role,
    direction: impl Fn(Machine, Machine) -> (Machine, Machine),
) -> Result<()> {
    let host = stage.host(role)?;
    let me = Machine::Host(stage.lab.hosts[host].number);
    stage.begin("one-way loss", host);
    for other in stage.lab.network.machines() {
        let (from, to) = direction(me, other);
        if other != me {
            stage.lab.network.drop_packets(from, to)?;
        }
    }
    stage.expect(if role == Role::Primary { Change::Takeover } else { Change::NewSync }).await?;
    stage.served().await?;
    stage.nothing_happens(NOTHING).await
}

/// Packets of one peer do not reach another: that is as bad as no connection at all.
async fn one_way(stage: &mut Stage<'_>, from: Role, to: Role) -> Result<()> {
    let (from, to) = (stage.host(from)?, stage.host(to)?);
    let machine = |stage: &Stage<'_>, host: usize| Machine::Host(stage.lab.hosts[host].number);
    let (from_machine, to_machine) = (machine(stage, from), machine(stage, to));
    stage.begin("not heard by one peer", from);
    stage.lab.network.drop_packets(from_machine, to_machine)?;
    stage.expect(Change::NewSync).await?;
    stage.served().await?;
    stage.nothing_happens(NOTHING).await
}

/// Down long enough to be suspected, up long enough to be trusted again, over and over. At most
/// the first outage changes roles; the peer that flaps is not made sync or primary again meanwhile.
async fn flap(stage: &mut Stage<'_>, role: Role) -> Result<()> {
    let host = stage.host(role)?;
    stage.begin("the link flaps", host);
    for _ in 0..5 {
        stage.lab.cut(host)?;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        stage.lab.heal(host)?;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
    }
    let changes: &[Change] =
        if role == Role::Primary { &[Change::Takeover, Change::None] } else { &[Change::NewSync, Change::None] };
    stage.accept(changes).await?;
    stage.served().await
}

async fn bad_links(stage: &mut Stage<'_>) -> Result<()> {
    stage.begin_all("bad links");
    for host in 0..stage.lab.hosts.len() {
        let machine = Machine::Host(stage.lab.hosts[host].number);
        stage.lab.network.spoil(machine, BAD_LINK)?;
    }
    let end = Instant::now() + BAD_LINKS;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(200)).await;
        // Nobody takes over. A sync that is late again and again may be replaced by an async that is not.
        if let Ok(state) = stage.lab.current().await
            && state.generation != stage.state().generation
        {
            stage.accept(&[Change::NewSync]).await?;
        }
        stage.lab.check()?;
    }
    Ok(())
}

/// Peers and ZooKeeper's servers in a ring, in an order that changes from round to round. What can
/// be kept up depends on the order; afterwards all must be well.
async fn ring(stage: &mut Stage<'_>) -> Result<()> {
    let mut machines = stage.lab.network.machines();
    machines.retain(|machine| *machine != Machine::Clients);
    let count = machines.len();
    // Every other step through the list, or every one: two rings that differ.
    let step = if stage.number.is_multiple_of(2) { 1 } else { count / 2 };
    let order: Vec<Machine> = (0..count)
        .map(|place| (place * step + place * step / count * usize::from(step > 1)) % count)
        .filter_map(|place| machines.get(place).copied())
        .collect();
    stage.begin_all(&format!("ring: {order:?}"));
    for (place, &machine) in order.iter().enumerate() {
        let neighbours = [(place + 1) % count, (place + count - 1) % count];
        let strangers: Vec<Machine> = (0..count)
            .filter(|other| *other != place && !neighbours.contains(other))
            .map(|other| order[other])
            .collect();
        stage.lab.network.separate(machine, &strangers)?;
    }
    tokio::time::sleep(PARTITIONED).await;
    stage.heal().await?;
    let generation = stage.state().generation;
    let state = stage.lab.whole(CHANGE * 3).await.context("after the ring was mended")?;
    stage.allow_more_changes(state.generation - generation);
    stage.served().await
}
