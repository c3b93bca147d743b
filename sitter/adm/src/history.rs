//! `manatee-adm history`.

use clap::{Args, ValueEnum};
use manatee_shared::cluster::{ClusterState, Peer};
use manatee_shared::zk::HistoryEntry;

use super::connect::{Connection, LongConnection};
use super::table::{abbreviate, abbreviation_length, align};
use super::{Outcome, print};

/// Options.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: LongConnection,
    /// As JSON, one object a line
    #[arg(short, long)]
    json: bool,
    /// Column to sort by
    #[arg(short, long, value_name = "FIELD", default_value = "zkSeq")]
    sort: Sort,
    /// With a summary of each change
    #[arg(short, long)]
    verbose: bool,
}

/// Order of the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// As they were written
    #[value(name = "zkSeq")]
    ZkSeq,
    /// By ZooKeeper's clock
    #[value(name = "time")]
    Time,
}

/// Lists the history.
pub async fn run(arguments: Arguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let shard = Connection::from(arguments.connection).open(outer).await?;
    let mut entries = shard.history().await?;
    match arguments.sort {
        Sort::ZkSeq => entries.sort_by_key(|entry| entry.zk_sequence),
        Sort::Time => entries.sort_by_key(|entry| (entry.time, entry.zk_sequence)),
    }
    print(&if arguments.json { json(&entries) } else { text(&entries, arguments.verbose) })?;
    shard.close().await;
    Ok(Outcome::Fine)
}

fn json(entries: &[HistoryEntry]) -> String {
    let line = |entry: &HistoryEntry| {
        let HistoryEntry { zk_sequence, time, state } = entry;
        format!("{}\n", serde_json::json!({"time": time_text(*time), "state": state, "zkSeq": zk_sequence}))
    };
    entries.iter().map(line).collect()
}

/// Always with milliseconds, as JavaScript writes it.
fn time_text(time: jiff::Timestamp) -> String {
    format!("{time:.3}")
}

fn text(entries: &[HistoryEntry], verbose: bool) -> String {
    let everyone = entries.iter().flat_map(|entry| entry.state.everyone());
    let names: Vec<_> = everyone.map(|peer| peer.zone_id.as_str()).collect();
    let length = abbreviation_length(&names);
    let mut header = vec!["TIME", "G#", "MODE", "FRZ", "PRIMARY", "SYNC", "ASYNC", "DEPOSED"];
    let mut widths = vec![24, 3, 5, 3, length, length, length, length];
    if verbose {
        header.push("SUMMARY");
        widths.push(0);
    }
    let mut previous = None;
    let rows = entries.iter().map(|entry| {
        let mut cells = cells(entry, length);
        if verbose {
            cells.push(summary(previous, &entry.state));
        }
        previous = Some(&entry.state);
        cells
    });
    let rows = rows.collect();
    align(Some(header.into_iter().map(str::to_owned).collect()), rows, &widths)
}

fn cells(entry: &HistoryEntry, length: usize) -> Vec<String> {
    let list = |peers: &[Peer]| match peers {
        [] => "-".to_owned(),
        peers => peers.iter().map(|peer| abbreviate(&peer.zone_id, length)).collect::<Vec<_>>().join(","),
    };
    let state = &entry.state;
    vec![
        time_text(entry.time),
        format!("{:>3}", state.generation),
        if state.one_node_write_mode { "onwm" } else { "multi" }.to_owned(),
        if state.is_frozen() { "frz" } else { "-" }.to_owned(),
        list(std::slice::from_ref(&state.primary)),
        list(state.sync_peer.as_slice()),
        list(&state.async_peers),
        list(&state.deposed),
    ]
}

/// Change, in the words of whoever made it, else as it can be told from the two states.
pub(super) fn summary(old: Option<&ClusterState>, new: &ClusterState) -> String {
    if let Some(reason) = &new.reason
        && old.is_none_or(|old| old.reason.as_ref() != Some(reason) || old.generation != new.generation)
    {
        return reason.clone();
    }
    let Some(old) = old else { return "the shard was set up".to_owned() };
    let sync_id = |state: &ClusterState| state.sync_peer.as_ref().map(|peer| peer.id);
    let ids = |peers: &[Peer]| peers.iter().map(|peer| peer.id).collect::<Vec<_>>();
    let mut changes = Vec::new();
    if old.primary.id != new.primary.id {
        changes.push(format!("{} took over from {}", new.primary.id, old.primary.id));
    }
    match (sync_id(old), sync_id(new)) {
        (before, after) if before == after => {}
        (_, Some(after)) => changes.push(format!("{after} became sync")),
        (_, None) => changes.push("the sync was dropped".to_owned()),
    }
    let (before, after) = (ids(&old.async_peers), ids(&new.async_peers));
    let place = |id: &_| new.role_of(*id) == manatee_shared::cluster::Role::Unassigned;
    changes.extend(after.iter().filter(|id| !before.contains(id)).map(|id| format!("{id} became async")));
    changes.extend(before.iter().filter(|id| !after.contains(id) && place(id)).map(|id| format!("{id} left")));
    match (old.is_frozen(), new.is_frozen()) {
        (false, true) => changes.push("frozen".to_owned()),
        (true, false) => changes.push("unfrozen".to_owned()),
        _ => {}
    }
    match (&old.promote, &new.promote) {
        (None, Some(promote)) => changes.push(format!("promotion of {} asked for", promote.id)),
        (Some(_), None) => changes.push("the request to promote was removed".to_owned()),
        _ => {}
    }
    let deposed = ids(&old.deposed);
    let reaped = deposed.iter().filter(|id| !ids(&new.deposed).contains(id) && place(id));
    changes.extend(reaped.map(|id| format!("{id} was removed from the deposed")));
    if changes.is_empty() { "no role change".to_owned() } else { changes.join("; ") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::super::cluster::samples::*;
    use super::*;

    fn entries() -> Vec<HistoryEntry> {
        let first = with_state(|state| (state.generation, state.async_peers) = (1, vec![])).state;
        let joined = ClusterState { async_peers: vec![peer(3)], ..(*first).clone() };
        let takeover = ClusterState {
            generation: 2,
            primary: peer(2),
            sync_peer: Some(peer(3)),
            async_peers: vec![],
            deposed: vec![peer(1)],
            ..(*first).clone()
        };
        let states = [(*first).clone(), joined, takeover];
        let entry = |(index, state)| HistoryEntry {
            zk_sequence: index as u64,
            time: jiff::Timestamp::from_millisecond(1_420_000_000_000 + index as i64 * 1_500).unwrap(),
            state,
        };
        states.into_iter().enumerate().map(entry).collect()
    }

    #[test]
    fn one_line_for_each_change() {
        assert_eq!(
            text(&entries(), false),
            "\
TIME                     G#  MODE  FRZ PRIMARY  SYNC     ASYNC    DEPOSED
2014-12-31T04:26:40.000Z   1 multi -   bb348824 a376df2b -        -
2014-12-31T04:26:41.500Z   1 multi -   bb348824 a376df2b 09957297 -
2014-12-31T04:26:43.000Z   2 multi -   a376df2b 09957297 -        bb348824
"
        );
    }

    #[test]
    fn the_summary_tells_what_changed() {
        let text = text(&entries(), true);
        let column = text.find("SUMMARY").unwrap();
        let summaries: Vec<_> = text.lines().skip(1).map(|line| line.split_at(column).1).collect();
        assert_eq!(
            summaries,
            [
                "the shard was set up",
                "10.0.0.3:5432:12345 became async",
                "10.0.0.2:5432:12345 took over from 10.0.0.1:5432:12345; 10.0.0.3:5432:12345 became sync",
            ]
        );
        let mut told = entries();
        told[2].state.reason = Some("the primary's host is gone".to_owned());
        assert_eq!(summary(Some(&told[1].state), &told[2].state), "the primary's host is gone");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = json(&entries());
        let second: serde_json::Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
        assert_eq!(second["time"], "2014-12-31T04:26:41.500Z");
        assert_eq!((second["zkSeq"].as_u64(), second["state"]["generation"].as_u64()), (Some(1), Some(1)));
        assert_eq!(text.lines().count(), 3);
    }
}
