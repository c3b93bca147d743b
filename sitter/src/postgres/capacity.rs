//! Values that a server has, and that its data needs, of the settings that a standby must have as high as its primary
//! ([`crate::machine::capacity`]).
//!
//! A primary is not started with more than its standbys have: they would receive and acknowledge, but show nothing new
//! until they are restarted. A standby that does not start with what it is configured with is given what its data needs on its command line, which
//! wins over every file. So it is decided by each start anew: once the primary was lowered and that has been replayed, the
//! next start takes what is configured.

use std::time::Duration;

use tokio_postgres::Client;

use super::conf;
use super::error::Error;
use super::inner::Inner;
use crate::machine::capacity::{Capacities, Capacity, Override};

/// Longest time for a program that only reads files.
const LIMIT: Duration = Duration::from_secs(10);

/// Values with which a running server was started.
pub(super) async fn of_server(session: &Client) -> Result<Capacities, Error> {
    const WHAT: &str = "ask for the server's capacities";
    let names = Capacity::ALL.map(|capacity| format!("current_setting('{}')", capacity.name())).join(", ");
    let row = session.query_one(&format!("SELECT ARRAY[{names}]"), &[]).await.map_err(Error::query(WHAT))?;
    let values: Vec<String> = row.try_get(0).map_err(Error::query(WHAT))?;
    let of = |capacity: Capacity| {
        let place = Capacity::ALL.into_iter().position(|one| one == capacity)?;
        values.get(place)?.parse().ok()
    };
    Capacities::of(of).ok_or_else(|| Error::NotApplied(format!("no numbers: {}", values.join(", "))))
}

/// Values that the data needs of a standby: its primary's, as far as its WAL was replayed.
pub(super) async fn of_data(inner: &Inner) -> Result<Capacities, Error> {
    let tool = inner.tool("pg_controldata").arg(inner.layout.data()).timeout(LIMIT);
    let output = tool.run(&inner.user).await?;
    parse(&output.stdout).ok_or_else(|| Error::DataNotFit("pg_controldata says nothing of max_connections".to_owned()))
}

/// Names as `pg_controldata` has them, with `LC_ALL=C`. What it says of a file that was being written is not used.
fn parse(text: &str) -> Option<Capacities> {
    if text.contains("WARNING") {
        return None;
    }
    Capacities::of(|capacity| {
        let name = match capacity {
            Capacity::MaxPreparedTransactions => "max_prepared_xacts",
            Capacity::MaxLocksPerTransaction => "max_locks_per_xact",
            other => other.name(),
        };
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(" setting:")?.trim().parse().ok();
        text.lines().find_map(value)
    })
}

/// PostgreSQL's own values (`boot_val`), the same in 13 to 18.
fn default_of(capacity: Capacity) -> u32 {
    match capacity {
        Capacity::MaxConnections => 100,
        Capacity::MaxWorkerProcesses => 8,
        Capacity::MaxWalSenders => 10,
        Capacity::MaxPreparedTransactions => 0,
        Capacity::MaxLocksPerTransaction => 64,
    }
}

/// Values in `postgresql.conf`, our own file and `postgresql.auto.conf`, in the order in which PostgreSQL reads them.
/// None: there is more than their plain numbers.
fn by_files(texts: &[String; 3]) -> Option<Capacities> {
    let includes = |line: &str| line.trim_start().to_ascii_lowercase().starts_with("include") && line != conf::INCLUDE;
    if texts.iter().flat_map(|text| text.lines()).any(includes) {
        return None;
    }
    Capacities::of(|capacity| {
        let settings = texts.iter().flat_map(|text| conf::template_settings(text));
        match settings.filter(|(name, _)| name.eq_ignore_ascii_case(capacity.name())).last() {
            Some((_, value)) => value.parse().ok(),
            None => Some(default_of(capacity)),
        }
    })
}

/// Values with which a server would start by its files. Five programs where the files alone do not tell: a primary that
/// is restarted is waited for.
async fn configured(inner: &Inner) -> Result<Capacities, Error> {
    let layout = &inner.layout;
    let texts = [layout.main_conf(), layout.manatee_conf(), layout.altered()]
        .map(|path| std::fs::read_to_string(path).unwrap_or_default());
    if let Some(found) = by_files(&texts) {
        return Ok(found);
    }
    let mut values = Vec::new();
    for capacity in Capacity::ALL {
        let tool = inner.tool("postgres").args(["-C", capacity.name(), "-D"]).arg(inner.layout.data());
        let output = tool.timeout(LIMIT).run(&inner.user).await?;
        values.push((capacity, output.stdout.trim().parse::<u32>().ok()));
    }
    let of = |capacity| values.iter().find(|(one, _)| *one == capacity).and_then(|(_, value)| *value);
    Capacities::of(of).ok_or_else(|| Error::NotApplied("`postgres -C` does not answer with numbers".to_owned()))
}

/// Settings for a server's command line, which win over its files.
pub(super) type Given = Vec<(Capacity, u32)>;

/// Values for a standby whose start failed with `given`, instead of these; None: that was not why, or is not known.
pub(super) async fn needed(inner: &Inner, given: &Given) -> Option<Given> {
    let both = async { Ok::<_, Error>((configured(inner).await?, of_data(inner).await?)) };
    let (configured, needs) = known(both.await)?;
    let more: Given = configured.shortfalls(&needs).map(|short| (short.setting, short.needs)).collect();
    if more.is_empty() || more == *given {
        return None;
    }
    for short in configured.shortfalls(&needs) {
        tracing::warn!(%short, "PostgreSQL does not start as a standby with what it is configured with; it is given more");
    }
    Some(more)
}

/// The start does not depend on it.
fn known<T>(looked: Result<T, Error>) -> Option<T> {
    looked
        .inspect_err(|error| {
            let error: &dyn std::error::Error = error;
            tracing::warn!(error, "what PostgreSQL is configured with, or what its data needs, is not known");
        })
        .ok()
}

/// Values for a primary that are lower than those of its files, because its standbys have less: never less than it had.
pub(super) async fn held_back(inner: &Inner) -> Given {
    let standbys = *inner.standbys.borrow();
    let Some(standbys) = standbys else { return Vec::new() };
    let Some(configured) = known(configured(inner).await) else { return Vec::new() };
    if standbys.shortfalls(&configured).next().is_none() {
        return Vec::new();
    }
    let Some(before) = known(of_data(inner).await) else { return Vec::new() };
    let held: Vec<_> = standbys
        .shortfalls(&configured)
        .map(|short| (short.setting, short.has.max(before.get(short.setting)), short.needs))
        .filter(|(_, value, configured)| value < configured)
        .collect();
    for (setting, value, configured) in &held {
        let setting = setting.name();
        tracing::warn!(setting, value, configured, "a standby has less: PostgreSQL is not started with more yet");
    }
    held.into_iter().map(|(setting, value, _)| (setting, value)).collect()
}

/// Values that the running server was given otherwise than its files say.
pub(super) async fn overridden(session: &Client) -> Result<Vec<Override>, Error> {
    const WHAT: &str = "compare settings with the files";
    const SQL: &str = "SELECT name, setting, coalesce((SELECT f.setting FROM pg_file_settings f \
             WHERE lower(f.name) = s.name ORDER BY seqno DESC LIMIT 1), boot_val) \
         FROM pg_settings s WHERE source = 'command line' AND name = ANY ($1)";
    let names = Capacity::ALL.map(Capacity::name);
    let rows = session.query(SQL, &[&names.as_slice()]).await.map_err(Error::query(WHAT))?;
    let of = |row: &tokio_postgres::Row| -> Option<Override> {
        let text = |column: usize| row.try_get::<_, &str>(column).ok();
        let (runs, configured) = (text(1)?.parse().ok()?, text(2)?.parse().ok()?);
        let setting = Capacity::parse(text(0)?)?;
        (runs != configured).then_some(Override { setting, runs, configured })
    };
    Ok(rows.iter().filter_map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controldata_is_read_and_not_believed_while_it_was_being_written() {
        let text = "wal_log_hints setting:                on\n\
            max_connections setting:              80\n\
            max_worker_processes setting:         8\n\
            max_wal_senders setting:              10\n\
            max_prepared_xacts setting:           0\n\
            max_locks_per_xact setting:           64\n";
        let found = parse(text).unwrap();
        assert_eq!(Capacity::ALL.map(|capacity| found.get(capacity)), [80, 8, 10, 0, 64]);
        assert_eq!(parse(&format!("WARNING: Calculated CRC checksum does not match\n{text}")), None);
        assert_eq!(parse("max_connections setting: 80\n"), None);
    }

    #[test]
    fn the_file_that_is_read_last_counts_and_what_is_included_is_postgresqls_to_tell() {
        let of =
            |texts: [&str; 3]| by_files(&texts.map(str::to_owned)).map(|found| found.get(Capacity::MaxConnections));
        let main = format!("max_connections = 100\t\t# (change requires restart)\n{}\n", conf::INCLUDE);
        assert_eq!(of(["", "", ""]), Some(100));
        assert_eq!(of([&main, "Max_Connections = '200'", "# edited by hand\n"]), Some(200));
        assert_eq!(of([&main, "max_connections = '200'", "max_connections = '300'\n"]), Some(300));
        assert_eq!(of([&main, "max_connections = '1e3'", ""]), None);
        assert_eq!(of([&format!("include_dir 'conf.d'\n{main}"), "", ""]), None);
    }
}
