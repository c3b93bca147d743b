//! `manatee-adm status`: Manatee 2's deprecated listing, for scripts that still read it.

use clap::Args;
use manatee_shared::cluster::{Peer, Role};
use manatee_shared::config::ZkSettings;
use manatee_shared::ids::{PeerId, ShardName};
use manatee_shared::zk::Coordination;
use manatee_shared::zk::client::ZkCoordination;
use serde_json::{Map, Value, json};

use super::cluster::{Answer, ask_all};
use super::connect::Connection;
use super::{Outcome, print_json};
use crate::machine::local::{Downstream, Server, StandbyStatus};

/// Options.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Roles by election order, as Manatee 1 had them, instead of by the state
    #[arg(short, long)]
    legacy_order: bool,
    /// It is JSON anyway
    #[arg(long)]
    json: bool,
}

/// Prints the named shard, or all.
pub async fn run(arguments: Arguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let _ = arguments.json;
    let (zookeeper, anywhere, named) = arguments.connection.reach(outer).await?;
    let shards = match named {
        Some(name) => vec![name],
        None => anywhere.shards().await?.iter().filter_map(|name| name.parse().ok()).collect(),
    };
    anywhere.close().await;
    let mut all = Map::new();
    for shard in shards {
        all.insert(shard.to_string(), one(&zookeeper, &shard, arguments.legacy_order).await?);
    }
    print_json(&all)?;
    Ok(Outcome::Fine)
}

async fn one(zookeeper: &ZkSettings, shard: &ShardName, legacy: bool) -> anyhow::Result<Value> {
    let coordination = ZkCoordination::connect(zookeeper, shard)?;
    let view = coordination.ready(super::connect::CONNECT_TIMEOUT).await?;
    let state = view.state.valid().map(|(_, state)| state.clone()).filter(|_| !legacy);
    let listed: Vec<(String, Peer)> = match state {
        Some(state) => keys(state.everyone().map(|peer| (state.role_of(peer.id), peer.clone()))),
        None => keys(view.in_election_order().into_iter().enumerate().map(|(place, active)| {
            let role = [Role::Primary, Role::Sync].get(place).copied().unwrap_or(Role::Async(place.saturating_sub(2)));
            (role, active.peer.clone())
        })),
    };
    let answers = ask_all(listed.iter().map(|(_, peer)| peer.id)).await?;
    coordination.close().await;
    let chain: Vec<PeerId> = listed.iter().map(|(_, peer)| peer.id).collect();
    let entries = listed.iter().enumerate().map(|(place, (key, peer))| {
        let next = chain.get(place + 1).copied();
        (key.clone(), entry(peer, answers.get(&peer.id), next, key.starts_with("async")))
    });
    Ok(Value::Object(entries.collect()))
}

/// `primary`, `sync`, `async`, `async1` …, `deposed`, `deposed1` ….
fn keys(listed: impl Iterator<Item = (Role, Peer)>) -> Vec<(String, Peer)> {
    let mut deposed = 0;
    let numbered = |name: &str, number: usize| if number == 0 { name.to_owned() } else { format!("{name}{number}") };
    listed
        .map(|(role, peer)| {
            let key = match role {
                Role::Async(place) => numbered("async", place),
                Role::Deposed => {
                    deposed += 1;
                    numbered("deposed", deposed - 1)
                }
                role => role.to_string(),
            };
            (key, peer)
        })
        .collect()
}

fn entry(peer: &Peer, answer: Option<&Answer>, next: Option<PeerId>, with_lag: bool) -> Value {
    let mut entry = Map::new();
    for (key, value) in [
        ("id", peer.id.to_string()),
        ("zoneId", peer.zone_id.clone()),
        ("ip", peer.ip.clone()),
        ("pgUrl", peer.pg_url.clone()),
        ("backupUrl", peer.backup_url.clone()),
    ] {
        entry.insert(key.to_owned(), value.into());
    }
    let server = answer.and_then(|answer| answer.as_ref().ok()).map(|status| &status.local.server);
    let downstreams = match server {
        Some(Server::Primary(primary)) => primary.downstreams.as_slice(),
        Some(Server::Standby(standby)) => standby.downstreams.as_slice(),
        _ => &[],
    };
    let online = matches!(server, Some(Server::Primary(_) | Server::Standby(_)));
    entry.insert("online".to_owned(), online.into());
    let attached = downstreams.iter().find(|downstream| Some(downstream.peer) == next);
    entry.insert("repl".to_owned(), attached.map_or_else(|| json!({}), replication));
    if let (true, Some(Server::Standby(standby))) = (with_lag, server) {
        entry.insert("lag".to_owned(), lag(standby));
    }
    match answer {
        Some(Err(problem)) => entry.insert("error".to_owned(), problem.clone().into()),
        _ => None,
    };
    Value::Object(entry)
}

/// Under the names that `pg_stat_replication` had in Manatee 2's PostgreSQL.
fn replication(downstream: &Downstream) -> Value {
    json!({
        "application_name": downstream.peer,
        "client_addr": downstream.peer.ip,
        "state": if downstream.streaming { "streaming" } else { "catchup" },
        "sent_location": downstream.sent,
        "write_location": downstream.write,
        "flush_location": downstream.flush,
        "replay_location": downstream.replay,
        "sync_priority": downstream.sync_priority,
        "sync_state": if downstream.sync_priority > 0 { "sync" } else { "async" },
    })
}

/// An interval as node-postgres shows it: what is zero is left out.
fn lag(standby: &StandbyStatus) -> Value {
    let seconds = super::table::lag_seconds(standby);
    let mut interval = Map::new();
    let parts = [("minutes", seconds.map(|seconds| seconds / 60)), ("seconds", seconds.map(|seconds| seconds % 60))];
    for (name, value) in parts {
        interval.extend(value.filter(|value| *value > 0).map(|value| (name.to_owned(), value.into())));
    }
    json!({ "time_lag": seconds.map(|_| interval) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::super::cluster::samples::*;
    use super::*;

    #[test]
    fn roles_are_keys_as_in_manatee_2() {
        let cluster = with_state(|state| {
            state.async_peers.push(peer(4));
            state.deposed = vec![peer(5), Peer::new("10.0.0.6:5432:12345".parse().unwrap(), "peer6")];
        });
        let listed = cluster.listed().map(|(role, peer)| (role, peer.clone()));
        let keys: Vec<_> = keys(listed).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["primary", "sync", "async", "async1", "deposed", "deposed1"]);
    }

    #[test]
    fn each_peer_says_online_repl_and_lag() {
        let cluster = healthy();
        let of = |number: u8, next: Option<u8>, lag| {
            entry(&peer(number), cluster.answers.get(&peer(number).id), next.map(|next| peer(next).id), lag)
        };
        let primary = of(1, Some(2), false);
        assert_eq!((&primary["online"], &primary["repl"]["sync_state"]), (&true.into(), &"sync".into()));
        assert_eq!(primary["repl"]["sent_location"], "0/671FEDF8");
        assert_eq!(primary["zoneId"], "bb348824-97cd-4c37-9f47-e07bc3e7af53");
        let last = of(3, None, true);
        assert_eq!((&last["repl"], &last["lag"]), (&json!({}), &json!({"time_lag": {}})));
        let Server::Standby(mut late) = standby(vec![]) else { panic!("made so") };
        (late.streaming, late.not_streaming_ms) = (false, 65_000);
        assert_eq!(lag(&late), json!({"time_lag": {"minutes": 1, "seconds": 5}}));
        let silent = entry(&peer(1), Some(&Err("connection refused".to_owned())), None, false);
        assert_eq!((&silent["online"], &silent["error"]), (&false.into(), &"connection refused".into()));
    }
}
