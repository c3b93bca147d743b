//! The tables of `peers`, `pg-status` and `show`: columns of Manatee 2, in its widths.

use std::collections::BTreeSet;
use std::str::FromStr;

use clap::ValueEnum;
use manatee_shared::cluster::Role;
use manatee_shared::ids::PeerId;

use super::cluster::Cluster;
use crate::machine::local::{Downstream, Server, StandbyStatus};

/// A column, by Manatee 2's name for `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// The peer's name.
    PeerName,
    /// Its beginning.
    PeerAbbr,
    /// Its role.
    Role,
    /// Its address.
    Ip,
    /// Whether its PostgreSQL answers.
    PgOnline,
    /// Way in which the next peer replicates from it: `sync` or `async`.
    PgRepl,
    /// Sent to the next peer.
    PgSent,
    /// Written by the next peer.
    PgWrite,
    /// On the next peer's disk.
    PgFlush,
    /// Visible on the next peer.
    PgReplay,
    /// Lag of an async.
    PgLag,
}

use Column::{Ip, PeerAbbr, PeerName, PgFlush, PgLag, PgOnline, PgRepl, PgReplay, PgSent, PgWrite};

/// Name for `-o`, header, and least width.
const COLUMNS: [(Column, &str, &str, usize); 11] = [
    (PeerName, "peername", "PEERNAME", 36),
    (PeerAbbr, "peerabbr", "PEER", 8),
    (Column::Role, "role", "ROLE", 8),
    (Ip, "ip", "IP", 15),
    (PgOnline, "pg-online", "PG", 4),
    (PgRepl, "pg-repl", "REPL", 5),
    (PgSent, "pg-sent", "SENT", 10),
    (PgWrite, "pg-write", "WRITE", 10),
    (PgFlush, "pg-flush", "FLUSH", 10),
    (PgReplay, "pg-replay", "REPLAY", 10),
    (PgLag, "pg-lag", "LAG", 6),
];

/// Columns of `peers` unless told.
pub const PEERS: [Column; 3] = [Column::Role, PeerName, Ip];
/// Columns of `pg-status` unless told.
pub const PG_STATUS: [Column; 9] =
    [Column::Role, PeerAbbr, PgOnline, PgRepl, PgSent, PgWrite, PgFlush, PgReplay, PgLag];
/// Columns of `pg-status -w`.
pub const PG_STATUS_WIDE: [Column; 10] =
    [Column::Role, PeerName, Ip, PgOnline, PgRepl, PgSent, PgWrite, PgFlush, PgReplay, PgLag];

impl Column {
    fn entry(self) -> (&'static str, &'static str, usize) {
        let found = COLUMNS.iter().find(|(column, ..)| *column == self);
        found.map_or(("", "", 0), |(_, name, header, width)| (name, header, *width))
    }

    /// Name for `-o` and in JSON.
    pub fn name(self) -> &'static str {
        self.entry().0
    }

    /// Whether the sitters must be asked for it.
    pub fn is_postgres(self) -> bool {
        self.name().starts_with("pg-")
    }
}

impl FromStr for Column {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        COLUMNS
            .iter()
            .find(|(_, known, ..)| *known == name)
            .map(|(column, ..)| *column)
            .ok_or_else(|| format!("no such column; there are {}", COLUMNS.map(|(_, name, ..)| name).join(", ")))
    }
}

/// A role to list only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleFilter {
    /// The primary.
    Primary,
    /// The sync.
    Sync,
    /// The asyncs.
    Async,
    /// The deposed.
    Deposed,
}

impl RoleFilter {
    /// Whether `role` is meant.
    pub fn admits(self, role: Role) -> bool {
        matches!(
            (self, role),
            (Self::Primary, Role::Primary)
                | (Self::Sync, Role::Sync)
                | (Self::Async, Role::Async(_))
                | (Self::Deposed, Role::Deposed)
        )
    }
}

/// One peer's cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The peer.
    pub id: PeerId,
    /// Its place.
    pub role: Role,
    name: String,
    abbreviation: String,
    postgres: Option<Postgres>,
}

/// Columns that concern a PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Postgres {
    online: bool,
    downstream: Option<Downstream>,
    lag_seconds: Option<u64>,
}

impl Row {
    /// The cell's text; none where there is nothing to say.
    fn cell(&self, column: Column) -> Option<String> {
        let postgres = self.postgres.as_ref();
        let downstream = postgres.and_then(|postgres| postgres.downstream.as_ref());
        match column {
            PeerName => Some(self.name.clone()),
            PeerAbbr => Some(self.abbreviation.clone()),
            Column::Role => Some(self.role.to_string()),
            Ip => Some(self.id.ip.to_string()),
            PgOnline => postgres.map(|postgres| if postgres.online { "ok" } else { "fail" }.to_owned()),
            PgRepl => downstream.map(|peer| if peer.sync_priority > 0 { "sync" } else { "async" }.to_owned()),
            PgSent => downstream.map(|peer| peer.sent.to_string()),
            PgWrite => downstream.map(|peer| peer.write.to_string()),
            PgFlush => downstream.map(|peer| peer.flush.to_string()),
            PgReplay => downstream.map(|peer| peer.replay.to_string()),
            PgLag => postgres?.lag_seconds.map(|seconds| format!("{}m{:02}s", seconds / 60, seconds % 60)),
        }
    }

    /// As JSON: the id, and each of `columns` by its name.
    pub fn json(&self, columns: &[Column]) -> serde_json::Value {
        let cells = columns.iter().map(|column| (column.name().to_owned(), self.cell(*column).into()));
        let id = ("id".to_owned(), self.id.to_string().into());
        serde_json::Value::Object(std::iter::once(id).chain(cells).collect())
    }
}

/// A row for each peer listed in the state.
pub fn rows(cluster: &Cluster, only: Option<RoleFilter>) -> Vec<Row> {
    let names: Vec<_> = cluster.state.everyone().map(|peer| peer.zone_id.as_str()).collect();
    let length = abbreviation_length(&names);
    let listed = cluster.listed().filter(|(role, _)| only.is_none_or(|only| only.admits(*role)));
    listed
        .map(|(role, peer)| Row {
            id: peer.id,
            role,
            name: peer.zone_id.clone(),
            abbreviation: abbreviate(&peer.zone_id, length),
            postgres: cluster.answers.get(&peer.id).map(|_| postgres(cluster, role, peer.id)),
        })
        .collect()
}

fn postgres(cluster: &Cluster, role: Role, id: PeerId) -> Postgres {
    let server = cluster.server(id);
    let downstreams = match server {
        Some(Server::Primary(primary)) => primary.downstreams.as_slice(),
        Some(Server::Standby(standby)) => standby.downstreams.as_slice(),
        _ => &[],
    };
    let next = cluster.downstream_of(id).map(|peer| peer.id);
    let lag_seconds = match (role, server) {
        (Role::Async(_), Some(Server::Standby(standby))) => lag_seconds(standby),
        _ => None,
    };
    Postgres {
        online: matches!(server, Some(Server::Primary(_) | Server::Standby(_))),
        downstream: downstreams.iter().find(|downstream| Some(downstream.peer) == next).cloned(),
        lag_seconds,
    }
}

/// Lag of a standby, where that is known: one that has replayed all it was sent has none;
/// one that is cut off is behind for at least as long. In between, its sitter does not say.
pub fn lag_seconds(standby: &StandbyStatus) -> Option<u64> {
    let caught_up = standby.received.is_some_and(|received| standby.replayed >= received.lsn);
    match standby.streaming {
        false => Some(standby.not_streaming_ms / 1000),
        true => caught_up.then_some(0),
    }
}

/// Manatee 2's eight characters, or as many as it takes to tell these names apart.
pub fn abbreviation_length(names: &[&str]) -> usize {
    let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let wanted = names.iter().collect::<BTreeSet<_>>().len();
    let distinct =
        |length: usize| names.iter().map(|name| abbreviate(name, length)).collect::<BTreeSet<_>>().len() == wanted;
    (8..longest).find(|length| distinct(*length)).unwrap_or(longest.max(8))
}

/// The first `length` characters.
pub fn abbreviate(name: &str, length: usize) -> String {
    name.chars().take(length).collect()
}

/// The table, one line each, without blanks at the ends.
pub fn render(rows: &[Row], columns: &[Column], header: bool) -> String {
    let texts: Vec<Vec<String>> = rows
        .iter()
        .map(|row| columns.iter().map(|column| row.cell(*column).unwrap_or_else(|| "-".to_owned())).collect())
        .collect();
    let (headers, least): (Vec<String>, Vec<usize>) =
        columns.iter().map(|column| (column.entry().1.to_owned(), column.entry().2)).unzip();
    align(header.then_some(headers), texts, &least)
}

/// Lines of cells in columns of at least these widths.
pub fn align(header: Option<Vec<String>>, rows: Vec<Vec<String>>, least: &[usize]) -> String {
    let lines: Vec<_> = header.into_iter().chain(rows).collect();
    let width = |index: usize, least: usize| {
        let longest = lines.iter().filter_map(|cells| cells.get(index)).map(|cell| cell.chars().count()).max();
        least.max(longest.unwrap_or(0))
    };
    let widths: Vec<_> = least.iter().enumerate().map(|(index, least)| width(index, *least)).collect();
    let mut text = String::new();
    for cells in &lines {
        let padded: Vec<_> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(padded.join(" ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::super::cluster::samples::*;
    use super::*;

    #[test]
    fn pg_status_looks_as_in_the_manual() {
        let table = render(&rows(&healthy(), None), &PG_STATUS, true);
        assert_eq!(
            table,
            "\
ROLE     PEER     PG   REPL  SENT       WRITE      FLUSH      REPLAY     LAG
primary  bb348824 ok   sync  0/671FEDF8 0/671FEDF8 0/671FEDF8 0/671FE9F0 -
sync     a376df2b ok   async 0/671FEDF8 0/671FEDF8 0/671FEDF8 0/671FE9F0 -
async    09957297 ok   -     -          -          -          -          0m00s
"
        );
    }

    #[test]
    fn peers_looks_as_in_the_manual() {
        let table = render(&rows(&healthy(), Some(RoleFilter::Sync)), &PEERS, true);
        assert_eq!(
            table,
            "\
ROLE     PEERNAME                             IP
sync     a376df2b-97cd-4c37-9f47-e07bc3e7af53 10.0.0.2
"
        );
        assert_eq!(render(&rows(&healthy(), Some(RoleFilter::Async)), &[PeerAbbr, Ip], false), "09957297 10.0.0.3\n");
    }

    #[test]
    fn peers_that_are_away_or_cut_off_show_it() {
        let mut cluster = with_state(|state| state.deposed = vec![peer(4)]);
        cluster.answers.insert(peer(2).id, Err("connection refused".to_owned()));
        cluster.answers.insert(peer(4).id, answer(Server::Down { crashed: true, standby: false }));
        let Server::Standby(mut cut_off) = standby(vec![]) else { panic!("made so") };
        (cut_off.streaming, cut_off.not_streaming_ms) = (false, 83_500);
        cluster.answers.insert(peer(3).id, answer(Server::Standby(cut_off)));
        let columns = [Column::Role, PeerAbbr, PgOnline, PgRepl, PgLag];
        assert_eq!(
            render(&rows(&cluster, None), &columns, true),
            "\
ROLE     PEER     PG   REPL  LAG
primary  bb348824 ok   sync  -
sync     a376df2b fail -     -
async    09957297 ok   -     1m23s
deposed  peer4    fail -     -
"
        );
    }

    #[test]
    fn abbreviations_tell_peers_apart() {
        assert_eq!(abbreviation_length(&["bb348824-97cd", "a376df2b-97cd"]), 8);
        assert_eq!(abbreviation_length(&["10.77.0.1:5432:12345", "10.77.0.2:5432:12345"]), 9);
        assert_eq!(abbreviation_length(&["same", "same"]), 8);
        assert_eq!(abbreviation_length(&[]), 8);
    }

    #[test]
    fn columns_have_names() {
        for (column, name, ..) in COLUMNS {
            assert_eq!(name.parse(), Ok(column));
        }
        assert!("lag".parse::<Column>().unwrap_err().contains("peername, peerabbr"));
    }
}
