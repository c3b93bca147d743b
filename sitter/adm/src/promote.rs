//! `manatee-adm promote` and `clear-promote`.
//!
//! The request is written into the state; the sync acts on one for itself, the primary on one for
//! an async. The command then waits to see what comes of it.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use manatee_shared::cluster::{ClusterState, Peer, Promote, PromoteRole, Role};
use manatee_shared::ids::PeerId;
use manatee_shared::lsn::Lsn;
use manatee_shared::zk::{Coordination, View};

use super::cluster::{Cluster, ask_all};
use super::connect::{Connection, Shard};
use super::{Outcome, freeze, issues, print};
use crate::machine::local::Server;

/// Time for which a request stands (Manatee 2's).
const VALID: SignedDuration = SignedDuration::from_secs(30);
/// Longest time for the primary to remove it after that.
const REMOVAL: Duration = Duration::from_secs(5);
/// Between two looks at how far a peer has come.
const POLL: Duration = Duration::from_millis(50);

/// Options of `promote`.
#[derive(Debug, Args)]
pub struct PromoteArguments {
    #[command(flatten)]
    connection: Connection,
    /// Name of the peer, or its beginning
    #[arg(short, long)]
    name: String,
    /// The role it must have now, lest another be meant
    #[arg(short, long)]
    role: Option<Promotable>,
    /// The place it must have among the asyncs, from 0
    #[arg(short, long, value_name = "PLACE")]
    index: Option<usize>,
    /// Delay up to which it may be behind, in seconds
    #[arg(short, long, value_name = "SECONDS", default_value_t = 5)]
    lag: u64,
    /// Even if there is something to warn of
    #[arg(short, long)]
    yes: bool,
    /// Do not wait to see what comes of it
    #[arg(long)]
    no_wait: bool,
}

/// Roles that can be promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Promotable {
    /// It becomes primary; the primary is deposed, and rejoins
    Sync,
    /// It moves one place up; the first of them swaps with the sync
    Async,
}

/// Options of `clear-promote`.
#[derive(Debug, Args)]
pub struct ClearArguments {
    #[command(flatten)]
    connection: Connection,
}

/// Asks for a promotion, and says what came of it.
pub async fn promote(arguments: PromoteArguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let shard = arguments.connection.open(outer).await?;
    let cluster = Cluster::gather(&shard).await?;
    let (role, peer) = cluster.find(&arguments.name)?;
    let role = promotable(&cluster.state, role, peer, arguments.role, arguments.index)?;
    let issues = issues::find(&cluster);
    if !issues.is_empty() && !arguments.yes {
        bail!(
            "not promoted: the shard has problems (below). Use --yes to promote anyway\n{}",
            issues::lines(&issues).trim_end()
        );
    }
    near(&cluster, peer, arguments.lag).await?;
    let began = Instant::now();
    let asked = shard.change(|state| requested(state, role, peer, Timestamp::now())).await?;
    if arguments.no_wait {
        print(&format!("asked for: {}\n", aim(role, peer)))?;
    } else {
        print(&format!("{}\n", outcome(&shard, &asked, began).await?))?;
    }
    shard.close().await;
    Ok(Outcome::Fine)
}

/// Takes a request back.
pub async fn clear(arguments: ClearArguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let shard = arguments.connection.open(outer).await?;
    shard.change(cleared).await?;
    print("the request to promote was taken back\n")?;
    shard.close().await;
    Ok(Outcome::Fine)
}

/// Role that `peer` is to be promoted from, if that can be.
fn promotable(
    state: &ClusterState,
    role: Role,
    peer: &Peer,
    wanted: Option<Promotable>,
    index: Option<usize>,
) -> anyhow::Result<(PromoteRole, Option<usize>)> {
    let name = &peer.zone_id;
    let found = match role {
        Role::Sync => (PromoteRole::Sync, None),
        Role::Async(place) => (PromoteRole::Async, Some(place)),
        Role::Primary => bail!("{name} is the primary already"),
        Role::Deposed | Role::Unassigned => {
            bail!("{name} is {role}: it has to be brought back in line first; see `manatee-adm explain`")
        }
    };
    let as_wanted = match wanted {
        None => true,
        Some(Promotable::Sync) => role == Role::Sync,
        Some(Promotable::Async) => matches!(role, Role::Async(_)),
    };
    if !as_wanted {
        bail!("{name} is {role} now; look with `manatee-adm peers` and say --role {role}, or leave that out");
    }
    if let Some(index) = index.filter(|index| found.1 != Some(*index)) {
        let place = found.1.map_or("no async".to_owned(), |place| format!("at place {place} of the asyncs"));
        bail!("{name} is {place}, not at {index}");
    }
    if role == Role::Sync && state.async_peers.is_empty() {
        bail!("{name} cannot take over without an async, which is to become its sync");
    }
    Ok(found)
}

/// The state with the request.
fn requested(
    state: &ClusterState,
    (role, async_index): (PromoteRole, Option<usize>),
    peer: &Peer,
    now: Timestamp,
) -> anyhow::Result<ClusterState> {
    if state.one_node_write_mode {
        bail!("in one-node-write mode nobody else can be promoted; leave it with `manatee-adm set-onwm -m off`");
    }
    if let Some(told) = freeze::told(state) {
        bail!("the shard is frozen, {told}; nothing would happen before `manatee-adm unfreeze`");
    }
    if let Some(pending) = state.promote.as_ref().filter(|pending| pending.expire_time > now) {
        let until = pending.expire_time;
        bail!(
            "a promotion of {} is pending until {until:.0}; take it back with `manatee-adm clear-promote`",
            pending.id
        );
    }
    let found = match state.role_of(peer.id) {
        Role::Sync => Some((PromoteRole::Sync, None)),
        Role::Async(place) => Some((PromoteRole::Async, Some(place))),
        _ => None,
    };
    if found != Some((role, async_index)) {
        bail!("roles have changed meanwhile: {} is {} now", peer.zone_id, state.role_of(peer.id));
    }
    let expire_time = now.checked_add(VALID)?;
    let request = Promote { id: peer.id, role, async_index, generation: state.generation, expire_time };
    let mut new = state.clone();
    new.end_request();
    new.promote = Some(request);
    new.reason = Some(format!("an operator asked for a promotion of {}", peer.id));
    Ok(new)
}

fn cleared(state: &ClusterState) -> anyhow::Result<ClusterState> {
    if state.promote.is_none() {
        bail!("no promotion is pending");
    }
    let mut new = state.clone();
    new.end_request();
    new.reason = Some("an operator took the request to promote back".to_owned());
    Ok(new)
}

/// Aim of a request.
fn aim((role, index): (PromoteRole, Option<usize>), peer: &Peer) -> String {
    let name = &peer.zone_id;
    match (role, index) {
        (PromoteRole::Sync, _) => format!("{name} to become primary"),
        (PromoteRole::Async, None | Some(0)) => format!("{name} to become sync"),
        (PromoteRole::Async, Some(place)) => format!("{name} to move up from place {place} of the asyncs"),
    }
}

/// Whether `peer` shows, within `seconds`, everything that the primary has now: that is how far it
/// is behind, without trusting anybody's clock.
async fn near(cluster: &Cluster, peer: &Peer, seconds: u64) -> anyhow::Result<()> {
    let Some(Server::Primary(primary)) = cluster.server(cluster.state.primary.id) else {
        // That is among the issues; whoever goes on does so because of it.
        return Ok(());
    };
    let target = primary.flushed.lsn;
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut seen = shown(cluster.server(peer.id));
    while seen.is_none_or(|lsn| lsn < target) {
        if Instant::now() >= end {
            let seen = seen.map_or("an unknown position".to_owned(), |lsn| lsn.to_string());
            bail!(
                "{} is more than {seconds} s behind: it shows {seen}, the primary was at {target} {seconds} s ago; \
                 allow for more with --lag",
                peer.zone_id
            );
        }
        tokio::time::sleep(POLL).await;
        let answers = ask_all([peer.id].into_iter()).await?;
        let answer = answers.get(&peer.id).and_then(|answer| answer.as_ref().ok());
        seen = shown(answer.map(|status| &status.local.server)).or(seen);
    }
    Ok(())
}

fn shown(server: Option<&Server>) -> Option<Lsn> {
    match server {
        Some(Server::Standby(standby)) => Some(standby.replayed),
        _ => None,
    }
}

/// Waits until the request is gone from the state, and says why it is.
async fn outcome(shard: &Shard, asked: &ClusterState, began: Instant) -> anyhow::Result<String> {
    let Some(request) = &asked.promote else { bail!("no promotion was asked for") };
    let mut view = shard.coordination.view();
    // Our own write is shown already when it has succeeded.
    let ended =
        view.wait_for(|view| view.state.valid().is_some_and(|(_, state)| state.promote.as_ref() != Some(request)));
    let left = request.expire_time.duration_since(Timestamp::now()).unsigned_abs();
    let view = match tokio::time::timeout(left + REMOVAL, ended).await {
        Ok(Ok(view)) => View::clone(&view),
        _ => bail!("the promotion did not happen; run `manatee-adm explain`"),
    };
    let Some((_, state)) = view.state.valid() else { bail!("the state is gone; see `manatee-adm explain`") };
    told(request, state, began.elapsed())
}

/// Result of `request`, by the state that it is gone from.
fn told(request: &Promote, state: &ClusterState, took: Duration) -> anyhow::Result<String> {
    let seconds = took.as_secs_f64();
    let sync: Option<PeerId> = state.sync_peer.as_ref().map(|peer| peer.id);
    let place = state.async_peers.iter().position(|peer| peer.id == request.id);
    let done = match (request.role, request.async_index) {
        (PromoteRole::Sync, _) => (state.primary.id == request.id).then(|| "primary".to_owned()),
        (PromoteRole::Async, None | Some(0)) => (sync == Some(request.id)).then(|| "sync".to_owned()),
        (PromoteRole::Async, Some(from)) => {
            place.filter(|place| *place < from).map(|place| format!("at place {place} of the asyncs"))
        }
    };
    match done {
        Some(role) => Ok(format!(
            "{} is {role} since {seconds:.2} s after the request, in generation {}",
            request.id, state.generation
        )),
        None => {
            let why = state.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
            bail!("{} was not promoted{why}", request.id)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::super::cluster::samples::*;
    use super::*;
    use manatee_shared::cluster::Freeze;
    use manatee_shared::invariants::check_transition;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn the_request_is_manatee_2s() {
        let state = healthy().state;
        let new = requested(&state, (PromoteRole::Async, Some(0)), &peer(3), NOW).unwrap();
        assert_eq!(check_transition(Some(&state), &new), []);
        let json: serde_json::Value = serde_json::from_slice(&new.to_json()).unwrap();
        assert_eq!(
            json["promote"],
            serde_json::json!({"id": "10.0.0.3:5432:12345", "role": "async", "asyncIndex": 0, "generation": 3,
                "expireTime": "1970-01-01T00:00:30Z"})
        );
        let again = requested(&new, (PromoteRole::Sync, None), &peer(2), NOW).unwrap_err().to_string();
        assert!(again.contains("pending until 1970-01-01T00:00:30Z; take it back with"), "{again}");
        let later = Timestamp::from_second(31).unwrap();
        assert!(requested(&new, (PromoteRole::Sync, None), &peer(2), later).is_ok(), "an expired one is replaced");
        assert_eq!(cleared(&new).unwrap().promote, None);
        assert!(cleared(&state).unwrap_err().to_string().contains("no promotion is pending"));
    }

    #[test]
    fn what_can_not_be_is_refused_with_the_remedy() {
        let cluster = with_state(|state| state.deposed = vec![peer(4)]);
        let check = |number: u8, wanted, index| {
            let peer = peer(number);
            let role = cluster.state.role_of(peer.id);
            promotable(&cluster.state, role, &peer, wanted, index).map_err(|error| error.to_string())
        };
        assert_eq!(check(2, Some(Promotable::Sync), None), Ok((PromoteRole::Sync, None)));
        assert_eq!(check(3, None, Some(0)), Ok((PromoteRole::Async, Some(0))));
        assert!(check(1, None, None).unwrap_err().contains("is the primary already"));
        assert!(check(4, None, None).unwrap_err().contains("brought back in line first"));
        assert!(check(3, Some(Promotable::Sync), None).unwrap_err().contains("say --role async"));
        assert!(check(3, None, Some(1)).unwrap_err().ends_with("is at place 0 of the asyncs, not at 1"));
        let alone = with_state(|state| state.async_peers.clear());
        let error = promotable(&alone.state, Role::Sync, &peer(2), None, None).unwrap_err().to_string();
        assert!(error.contains("without an async"), "{error}");
        let frozen = with_state(|state| state.freeze = Some(Freeze::Flag(true)));
        let error = requested(&frozen.state, (PromoteRole::Sync, None), &peer(2), NOW).unwrap_err().to_string();
        assert!(error.contains("before `manatee-adm unfreeze`"), "{error}");
        let moved = requested(&cluster.state, (PromoteRole::Sync, None), &peer(3), NOW).unwrap_err().to_string();
        assert!(moved.contains("roles have changed meanwhile"), "{moved}");
    }

    #[test]
    fn what_came_of_it_is_told() {
        let request = |number: u8, role, async_index| Promote {
            id: peer(number).id,
            role,
            async_index,
            generation: 3,
            expire_time: NOW,
        };
        let told = |request: &Promote, state: &ClusterState| {
            told(request, state, Duration::from_millis(180)).map_err(|error| error.to_string())
        };
        let sync = request(2, PromoteRole::Sync, None);
        let taken_over = with_state(|state| {
            (state.primary, state.sync_peer, state.async_peers) = (peer(2), Some(peer(3)), vec![]);
            (state.deposed, state.generation) = (vec![peer(1)], 4);
        });
        assert_eq!(
            told(&sync, &taken_over.state),
            Ok("10.0.0.2:5432:12345 is primary since 0.18 s after the request, in generation 4".to_owned())
        );
        let removed = with_state(|state| state.reason = Some("removed a request".to_owned()));
        assert_eq!(
            told(&sync, &removed.state),
            Err("10.0.0.2:5432:12345 was not promoted: removed a request".to_owned())
        );
        let up = with_state(|state| state.async_peers = vec![peer(4), peer(3)]);
        assert!(told(&request(4, PromoteRole::Async, Some(1)), &up.state).unwrap().contains("at place 0"));
        assert!(told(&request(3, PromoteRole::Async, Some(0)), &up.state).is_err());
    }
}
