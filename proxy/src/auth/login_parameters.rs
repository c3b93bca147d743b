//! Greeting of a client before it has a server: ParameterStatus values, learned from a
//! real connection in its name to its database. So whatever PostgreSQL would refuse at login (no
//! such database, no CONNECT privilege, a bad setting) is refused at login here too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use manatee_shared::ids::PeerId;

use super::{Access, Identity, Opened};
use crate::error::{ProxyError, Result, SqlState};
use crate::room::{Scarce, Threads};
use crate::tls::servers::Servers;
use crate::topology::{Node, Snapshot, Topology};
use crate::upstream::{Upstream, connect};
use crate::wire::startup::Replication;

/// ParameterCache remembered at most.
const MAX_ENTRIES: usize = 10_000;
/// Age up to which the parameters of a login are believed.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(30);
/// Longest wait for one server to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Between attempts while servers are there but not ready.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Values that were learned.
pub struct LoginParameters {
    /// ParameterStatus values for the client.
    pub parameters: Vec<(String, String)>,
    /// The connection it was learned from, if it is of use.
    pub opened: Opened,
}

/// User, database, and the settings a server has to judge.
type Key = (Arc<str>, Arc<str>, Vec<(String, String)>);

/// Remembers login parameters. Shared by all threads; not on the hot path.
pub struct ParameterCache {
    topology: Topology,
    threads: OnceLock<Arc<dyn Threads>>,
    servers: Arc<Servers>,
    #[allow(clippy::type_complexity, reason = "named nowhere else")]
    remembered: Mutex<HashMap<Key, (Instant, Arc<Vec<(String, String)>>)>>,
}

impl ParameterCache {
    /// Empty. Entries are believed for [`MAX_AGE`], and for longer while no server is reachable.
    pub fn new(topology: Topology, servers: Arc<Servers>) -> Self {
        Self { topology, servers, threads: OnceLock::new(), remembered: Mutex::default() }
    }

    /// Says who can make room at a node that is full. Once.
    pub fn join(&self, threads: Arc<dyn Threads>) {
        let _ = self.threads.set(threads);
    }

    /// Greeting for a client that asks for `settings` in its startup message.
    ///
    /// # Errors
    /// The server's own, if one refuses; [`ProxyError::HoldTimeout`] if none is ready until `deadline`.
    pub async fn parameters_for(
        &self,
        identity: &Identity,
        settings: &[(String, String)],
        access: Access,
        deadline: Instant,
    ) -> Result<LoginParameters> {
        let (known, judged): (Vec<_>, Vec<_>) = settings.iter().cloned().partition(is_known);
        let key = (identity.user.clone(), identity.database.clone(), judged);
        let remembered = self.lock().get(&key).cloned();
        if let Some((learned, parameters)) = &remembered
            && learned.elapsed() <= MAX_AGE
        {
            return Ok(LoginParameters {
                parameters: with_client_settings(parameters, &known, access),
                opened: Opened::Nothing,
            });
        }
        let nodes = |snapshot: &Snapshot| candidate_nodes(snapshot, access);
        let waits = if remembered.is_some() { Waits::Never } else { Waits::ForReady };
        let upstream = match self.open(identity, &key.2, &nodes, |_| true, deadline, waits).await {
            Ok(upstream) => upstream,
            Err(error) => match remembered {
                Some((_, parameters)) if error.is_server_unready() || matches!(error, ProxyError::HoldTimeout(_)) => {
                    return Ok(LoginParameters {
                        parameters: with_client_settings(&parameters, &known, access),
                        opened: Opened::Nothing,
                    });
                }
                _ => return Err(error),
            },
        };
        let parameters = Arc::new(upstream.parameters.clone());
        let opened = if key.2.is_empty() { Opened::ForAll(upstream) } else { Opened::Nothing };
        self.remember(key, parameters.clone());
        Ok(LoginParameters { parameters: with_client_settings(&parameters, &known, access), opened })
    }

    /// Opens a connection that replicates, for its client alone: to the primary, or to a standby for who came
    /// to a read-only address.
    ///
    /// # Errors
    /// As [`ParameterCache::parameters_for`].
    pub async fn relay(
        &self,
        identity: &Identity,
        settings: &[(String, String)],
        replication: Replication,
        access: Access,
        deadline: Instant,
    ) -> Result<LoginParameters> {
        let kind = replication.value().map(|value| ("replication".to_owned(), value.to_owned()));
        let settings: Vec<_> = settings.iter().cloned().chain(kind).collect();
        let from_standby = access == Access::ReadOnly;
        let nodes = |snapshot: &Snapshot| match from_standby {
            true => snapshot.fit_standbys().map(|standby| standby.node).collect(),
            false => snapshot.primary().into_iter().collect(),
        };
        // A node that was taken for the primary has the last word.
        let fits = |upstream: &Upstream| from_standby || upstream.in_hot_standby() != Some(true);
        let upstream = self.open(identity, &settings, &nodes, fits, deadline, Waits::UnlessRefused).await?;
        // However the name was come by: asked for, or the role's default.
        check_name(upstream.parameter("application_name").unwrap_or_default())?;
        Ok(LoginParameters { parameters: upstream.parameters.clone(), opened: Opened::Relay(upstream) })
    }

    /// Opens a connection to the first of the `nodes` that takes one and `fits`.
    async fn open(
        &self,
        identity: &Identity,
        judged: &[(String, String)],
        nodes: &(dyn Fn(&Snapshot) -> Vec<Node> + Sync),
        fits: impl Fn(&Upstream) -> bool,
        deadline: Instant,
        waits: Waits,
    ) -> Result<Upstream> {
        let begun = Instant::now();
        loop {
            for node in nodes(&self.topology.snapshot()) {
                let left = deadline.saturating_duration_since(Instant::now()).min(CONNECT_LIMIT);
                match connect(&self.servers, node, identity, judged, left).await {
                    Ok(upstream) if fits(&upstream) => return Ok(upstream),
                    Ok(_) => self.topology.suspect(node.id),
                    Err(error)
                        if error.is_server_unready() && !(waits == Waits::UnlessRefused && is_refusal(&error)) =>
                    {
                        tracing::debug!(node = %node.id, %error, "server not ready for a login");
                        self.topology.suspect(node.id);
                        if let (Some(full), Some(threads)) = (error.server_full(), self.threads.get()) {
                            threads.make_room(Scarce::new(node, Arc::new(identity.clone()), full)).await;
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            if waits == Waits::Never || Instant::now() + RETRY_INTERVAL >= deadline {
                return Err(ProxyError::HoldTimeout(begun.elapsed()));
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    fn remember(&self, key: Key, parameters: Arc<Vec<(String, String)>>) {
        let mut remembered = self.lock();
        if remembered.len() >= MAX_ENTRIES && !remembered.contains_key(&key) {
            let oldest = remembered.iter().min_by_key(|(_, (learned, _))| *learned).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| remembered.remove(&oldest));
        }
        remembered.insert(key, (Instant::now(), parameters));
    }

    #[allow(clippy::type_complexity, reason = "named nowhere else")]
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, (Instant, Arc<Vec<(String, String)>>)>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Condition that is waited for while no node takes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    /// Nothing: another answer is known.
    Never,
    /// One that is ready. Its rules may keep everybody out until its role is confirmed.
    ForReady,
    /// The same, but the rules' word is final: a client that replicates is mostly kept out by a rule that is missing,
    /// and tries again by itself.
    UnlessRefused,
}

/// Whether the server will not have this client, in its own words.
fn is_refusal(error: &ProxyError) -> bool {
    matches!(error, ProxyError::Server { error, .. } if error.code == SqlState::INVALID_AUTHORIZATION)
}

/// Wherever a connection can be had, the candidate_nodes to be used first.
fn candidate_nodes(snapshot: &Snapshot, access: Access) -> Vec<Node> {
    let standbys = snapshot.standbys.iter().map(|standby| standby.node);
    let mut nodes: Vec<Node> = snapshot.primary().into_iter().chain(standbys).collect();
    if access == Access::ReadOnly {
        nodes.reverse();
    }
    nodes
}

/// Settings whose reported value we know without asking.
fn is_known((name, value): &(String, String)) -> bool {
    name.eq_ignore_ascii_case("application_name") || (name.eq_ignore_ascii_case("client_encoding") && is_utf8(value))
}

fn is_utf8(encoding: &str) -> bool {
    let letters: String = encoding.chars().filter(char::is_ascii_alphanumeric).collect();
    letters.eq_ignore_ascii_case("utf8") || letters.eq_ignore_ascii_case("unicode")
}

/// The parameters as this client must see them.
fn with_client_settings(
    parameters: &[(String, String)],
    known: &[(String, String)],
    access: Access,
) -> Vec<(String, String)> {
    let mut parameters = parameters.to_vec();
    let version = parameters.iter().find(|(name, _)| name == "server_version");
    let major = version.and_then(|(_, version)| version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
    let escapes_names = major.is_none_or(|major: u32| major >= ESCAPES_SINCE);
    let mut set = |wanted: &str, value: String| {
        if let Some((_, old)) = parameters.iter_mut().find(|(name, _)| name == wanted) {
            *old = value;
        }
    };
    // Whichever node the connection was opened to: the client sees what its address promises.
    set("in_hot_standby", if access == Access::ReadOnly { "on" } else { "off" }.to_owned());
    set("application_name", String::new());
    for (name, value) in known {
        if name.eq_ignore_ascii_case("application_name") {
            set("application_name", clean_name(value, escapes_names));
        } else {
            set("client_encoding", "UTF8".to_owned());
        }
    }
    parameters
}

/// Peers attach to each other under their ids, and `synchronous_standby_names` names the sync by its own: nobody
/// else may replicate under such a name, of whichever peer.
///
/// # Errors
/// [`ProxyError::NotAllowed`]
pub fn check_name(application_name: &str) -> Result<()> {
    match application_name.parse::<PeerId>() {
        Ok(_) => Err(ProxyError::NotAllowed(format!(
            "application_name \"{application_name}\" is reserved for a peer of the shard; replicate under another one"
        ))),
        Err(_) => Ok(()),
    }
}

/// The PostgreSQL whose `pg_clean_ascii` (string.c) writes a byte that is not ASCII as `\xe9`; before it was `?`.
const ESCAPES_SINCE: u32 = 16;

/// As `pg_clean_ascii` and NAMEDATALEN would leave it.
fn clean_name(name: &str, escapes: bool) -> String {
    let escape = |byte: u8| match byte {
        32..=126 => char::from(byte).to_string(),
        _ if !escapes => "?".to_owned(),
        _ => format!("\\x{byte:02x}"),
    };
    let mut clean: String = name.bytes().map(escape).collect();
    clean.truncate(63);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_names_are_reserved() {
        for name in ["10.0.0.1:5432:12345", "[FD00::a]:5432:12345", "192.0.2.1:1:1"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        for name in ["", "pg_receivewal", "10.0.0.1", "10.0.0.1:5432", "x10.0.0.1:5432:12345"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn clients_see_what_their_address_promises() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let server =
            [pair("in_hot_standby", "on"), pair("application_name", "x"), pair("client_encoding", "SQL_ASCII")];
        let known = [pair("application_name", "psql\n"), pair("client_encoding", "utf-8")];
        let seen = with_client_settings(&server, &known, Access::ReadWrite);
        assert_eq!(
            seen,
            [pair("in_hot_standby", "off"), pair("application_name", "psql\\x0a"), pair("client_encoding", "UTF8")]
        );
        assert_eq!(with_client_settings(&server, &[], Access::ReadOnly)[0].1, "on");
        let named = |version: &str| {
            let server = [pair("server_version", version), pair("application_name", "x")];
            with_client_settings(&server, &[pair("application_name", "caf\u{e9}")], Access::ReadWrite)[1].1.clone()
        };
        assert_eq!(named("15.14 (Debian 15.14-0+deb12u1)"), "caf??");
        assert_eq!(named("16beta1"), "caf\\xc3\\xa9");
    }
}
