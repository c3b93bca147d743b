//! What breaks when.

use jiff::Timestamp;
use manatee_shared::cluster::{ClusterState, Freeze, Promote, PromoteRole, Role};

use super::postgres::Process;
use super::world::{SESSION_MS, World};

pub(super) struct Faults {
    next: u64,
}

impl Faults {
    /// The first fault comes when the shard may just have been set up, or not.
    pub(super) fn new() -> Self {
        Self { next: 2_000 }
    }

    pub(super) fn step(&mut self, world: &mut World) {
        if let Some((_, peer)) = world.doomed.take_if(|(at, _)| *at <= world.now)
            && let Some(host) = world.index(peer)
        {
            power_off(world, host);
        }
        if world.now < self.next {
            return;
        }
        // Bursts of faults, and quiet times between them.
        self.next = world.now + if world.rng.bool() { world.rng.u64(20..600) } else { world.rng.u64(500..6_000) };
        let primary = world.zk.state().valid().and_then(|(_, state)| world.index(state.primary.id));
        let any = world.rng.usize(0..world.hosts.len());
        let host = if world.rng.bool() { primary.unwrap_or(any) } else { any };
        let other = world.rng.usize(0..world.hosts.len());
        let long = world.rng.u64(200..8_000);
        let until = world.now + long;
        match world.rng.u8(0..24) {
            0 => kill_sitter(world, host),
            1 => kill_postgres(world, host),
            2 => {
                kill_postgres(world, host);
                kill_sitter(world, host);
            }
            3 | 4 => power_off(world, host),
            5 => cut(world, host, other, until, true),
            6 => cut(world, host, other, until, false),
            7 | 8 => {
                let zk_too = world.rng.bool();
                world.log(format!("!!!! p{host} isolated for {long} ms, from ZooKeeper too: {zk_too}"));
                (0..world.hosts.len()).for_each(|peer| {
                    world.cuts.insert((host, peer), until);
                    world.cuts.insert((peer, host), until);
                });
                if zk_too {
                    world.zk_cuts.insert(host, until);
                }
            }
            9 => {
                world.log(format!("!!!! p{host} cut from ZooKeeper for {long} ms"));
                world.zk_cuts.insert(host, until);
            }
            10 => {
                world.log(format!("!!!! ZooKeeper down for {long} ms"));
                world.zk_down_until = until;
            }
            11 => pause_sitter(world, host, until),
            12 => hang(world, host, u64::MAX),
            13 => {
                pause_sitter(world, host, until);
                hang(world, host, until);
            }
            14 => {
                if let Some(sitter) = &world.hosts[host].sitter {
                    sitter.session.expire();
                    world.log(format!("!!!! p{host} session ended"));
                }
            }
            15 => {
                let now = world.now;
                if let Some(sitter) = world.hosts[host].sitter.as_mut() {
                    sitter.stopping_since.get_or_insert(now);
                    world.log(format!("!!!! p{host} asked to stop"));
                }
            }
            16 => freeze(world, true),
            17 => freeze(world, false),
            18 => ask_to_promote(world, other),
            19 | 20 => {
                world.log(format!("!!!! p{host} replay stalls for {long} ms"));
                world.hosts[host].postgres.replay_stalls_until = until;
            }
            21 | 22 => {
                world.log(format!("!!!! p{other} lags for {long} ms"));
                world.hosts[other].postgres.lags_until = until;
            }
            _ => {
                world.log(format!("!!!! p{host} slow disk for {long} ms"));
                world.hosts[host].postgres.slow_until = until;
            }
        }
    }

    /// Everything that was broken works again.
    pub(super) fn heal(&self, world: &mut World) {
        world.cuts.clear();
        world.zk_cuts.clear();
        world.zk_down_until = 0;
        freeze(world, false);
        for host in &mut world.hosts {
            if let Some(at) = &mut host.returns {
                *at = world.now;
            }
            if let Some(sitter) = &mut host.sitter {
                sitter.paused_until = sitter.paused_until.min(world.now);
            }
            host.postgres.hangs_until = host.postgres.hangs_until.map(|until| until.min(world.now));
            host.postgres.slow_until = 0;
        }
    }
}

/// An operator's hand: a change of the state by compare-and-set.
fn operate(world: &mut World, what: &str, change: impl FnOnce(&mut ClusterState)) {
    let node = world.zk.state();
    let Some((version, state)) = node.valid() else { return };
    if world.now < world.zk_down_until {
        return;
    }
    let mut state = ClusterState::clone(state);
    change(&mut state);
    let hand = world.zk.session();
    hand.connect();
    let result = hand.write_now(Some(version), &state);
    hand.close_now();
    world.log(format!("!!!! operator: {what}: {result:?}"));
}

fn freeze(world: &mut World, frozen: bool) {
    operate(world, if frozen { "freeze" } else { "unfreeze" }, |state| {
        state.freeze = frozen.then_some(Freeze::Flag(true));
    });
}

fn ask_to_promote(world: &mut World, host: usize) {
    let id = world.hosts[host].id();
    let expire_time = Timestamp::from_millisecond(i64::try_from(world.now).unwrap_or(0) + 30_000).unwrap_or_default();
    operate(world, &format!("promote p{host}"), |state| {
        let (role, async_index) = match state.role_of(id) {
            Role::Sync => (PromoteRole::Sync, None),
            Role::Async(index) => (PromoteRole::Async, Some(index)),
            _ => return,
        };
        state.promote = Some(Promote { id, role, async_index, generation: state.generation, expire_time });
    });
}

fn kill_sitter(world: &mut World, host: usize) {
    let expires = world.now + SESSION_MS - world.rng.u64(0..600);
    let returns = world.now + world.rng.u64(100..6_000);
    if let Some(sitter) = world.hosts[host].sitter.take() {
        sitter.session.disconnect();
        world.orphans.push((expires, sitter.session));
        world.hosts[host].returns = Some(returns);
        world.log(format!("!!!! p{host} sitter killed"));
    }
}

fn kill_postgres(world: &mut World, host: usize) {
    if !matches!(world.hosts[host].postgres.process, Process::Down { .. }) {
        world.hosts[host].postgres.end(true);
        world.log(format!("!!!! p{host} PostgreSQL killed"));
    }
}

fn power_off(world: &mut World, host: usize) {
    kill_postgres(world, host);
    kill_sitter(world, host);
    world.hosts[host].up = false;
    let returns = world.now + world.rng.u64(1_000..12_000);
    world.hosts[host].returns = Some(returns);
    world.log(format!("!!!! p{host} power off"));
}

fn cut(world: &mut World, one: usize, other: usize, until: u64, both: bool) {
    world.log(format!("!!!! p{one} to p{other} cut until {until}, both ways: {both}"));
    world.cuts.insert((one, other), until);
    if both {
        world.cuts.insert((other, one), until);
    }
}

fn pause_sitter(world: &mut World, host: usize, until: u64) {
    if let Some(sitter) = world.hosts[host].sitter.as_mut() {
        sitter.paused_until = until;
        world.log(format!("!!!! p{host} sitter paused until {until}"));
    }
}

fn hang(world: &mut World, host: usize, until: u64) {
    let now = world.now;
    let postgres = &mut world.hosts[host].postgres;
    if postgres.is_running() {
        postgres.process = Process::Hung { since: now };
        postgres.hangs_until = Some(until);
        world.log(format!("!!!! p{host} PostgreSQL hangs until {until}"));
    }
}
