//! Findings about a peer, by its role and by its sitter's own word.

use manatee_shared::cluster::{Peer, Role};
use manatee_shared::zk::Session;

use super::lost::{said, server_label};
use super::{Finding, Impact};
use crate::cluster::Cluster;
use crate::machine::action::ActionKind;
use crate::machine::failure::FailureKind;
use crate::machine::local::{Data, Gate, HorizonHolder, Obstacle, PrimaryStatus, Replay, Server, StandbyStatus};
use crate::machine::readiness::{Need, Unready};
use crate::machine::situation::contains_init_wal;
use crate::reason::{BlockerCode, ReasonCode};
use crate::report::SitterStatus;

/// Readers that replay waits for any less are nothing to tell anybody.
const REPLAY_WAITS_MS: u64 = 5_000;

/// One peer in its shard.
struct Subject<'a> {
    cluster: &'a Cluster,
    role: Role,
    peer: &'a Peer,
}

/// Everything about one listed peer. Usually one finding: what comes first explains the rest.
pub(super) fn findings(cluster: &Cluster, role: Role, peer: &Peer) -> Vec<Finding> {
    let subject = Subject { cluster, role, peer };
    if cluster.state.one_node_write_mode && role != Role::Primary && !cluster.state.leaves_one_node_write_mode() {
        return Vec::new();
    }
    let found = match cluster.answers.get(&peer.id) {
        None => Vec::new(),
        Some(Err(problem)) => vec![subject.silent(problem)],
        Some(Ok(status)) => {
            let of_settings = subject
                .loosened(status)
                .into_iter()
                .chain(subject.weak(status))
                .chain(subject.breach(status))
                .chain(subject.unready(status))
                .chain(subject.overridden(status));
            subject.of_status(status).into_iter().chain(of_settings).collect()
        }
    };
    found
        .into_iter()
        .chain(subject.lost_primary())
        .chain(subject.old_horizon())
        .chain(subject.cannot_be_copied())
        .collect()
}

/// Registered peers that the state does not list.
pub(super) fn unlisted(cluster: &Cluster) -> Vec<Finding> {
    let active = cluster.view.active.values().map(|active| &active.peer);
    let unlisted = active.filter(|peer| cluster.state.role_of(peer.id) == Role::Unassigned);
    let of = |peer| Subject { cluster, role: Role::Unassigned, peer }.waits_outside();
    unlisted.map(of).collect()
}

impl Subject<'_> {
    fn title(&self) -> String {
        let role = self.role;
        if role == Role::Unassigned { self.peer.zone_id.clone() } else { format!("the {role} {}", self.peer.zone_id) }
    }

    /// Gravity of a loss of this peer's part.
    fn impact(&self) -> Impact {
        match self.role {
            Role::Primary | Role::Sync => Impact::StopsWrites,
            // The first async is what lets the sync take over.
            Role::Async(0) => Impact::StopsFailover,
            Role::Async(_) | Role::Deposed | Role::Unassigned => Impact::Degrades,
        }
    }

    fn finding(&self, what: impl std::fmt::Display) -> Finding {
        Finding::new(self.impact(), format!("{} {what}", self.title())).risk(self.risk())
    }

    fn risk(&self) -> &'static str {
        match self.role {
            Role::Primary | Role::Sync => "nothing that was acknowledged; writes wait",
            Role::Async(_) | Role::Deposed | Role::Unassigned => super::NOTHING_LOST,
        }
    }

    fn registered(&self) -> bool {
        self.cluster.view.active.contains_key(&self.peer.id)
    }

    fn is_frozen(&self) -> bool {
        self.cluster.state.is_frozen()
    }

    fn silent(&self, problem: &str) -> Finding {
        let ip = &self.peer.ip;
        if self.registered() && self.streams_on() {
            return Finding::new(
                Impact::StopsFailover,
                format!("the sitter of {} does not answer; its PostgreSQL goes on", self.title()),
            )
            .why(format!("{problem}; WAL still streams between primary and sync"))
            .next(format!(
                "if it is being replaced or restarted, wait; else see `systemctl status manatee-sitter` on {ip}, and the \
                 network from here to {}",
                self.peer.backup_url
            ));
        }
        if self.registered() {
            return self.finding("is registered, but its sitter does not answer").why(problem).next(format!(
                "check the network from here to {}, and `systemctl status manatee-sitter` on {ip}",
                self.peer.backup_url
            ));
        }
        let others = match self.role {
            Role::Primary => {
                "; the sync takes over automatically; if it does not, see the blocking reason under the sync"
            }
            Role::Sync => "; the primary replaces it if an async is fit",
            Role::Deposed => "; if it is gone for good, `manatee-adm reap` takes it off the list",
            Role::Async(_) | Role::Unassigned => "",
        };
        self.finding("is gone: neither registered nor answering")
            .why(problem)
            .next(format!("bring back the host {ip}, or start its sitter (systemctl start manatee-sitter){others}"))
    }

    /// Primary or sync, and the other one's sitter says that WAL streams between the two.
    fn streams_on(&self) -> bool {
        let state = &self.cluster.state;
        let Some(sync) = &state.sync_peer else { return false };
        match (self.role, self.cluster.server(state.primary.id), self.cluster.server(sync.id)) {
            (Role::Primary, _, Some(Server::Standby(standby))) => standby.streaming,
            (Role::Sync, Some(Server::Primary(primary)), _) => {
                primary.downstreams.iter().any(|down| down.peer == sync.id && down.streaming && down.sync_priority > 0)
            }
            _ => false,
        }
    }

    fn of_status(&self, status: &SitterStatus) -> Vec<Finding> {
        if let Some(foreign) = self.foreign(status) {
            return vec![foreign];
        }
        if let Some(problem) = self.data(status) {
            return vec![problem];
        }
        if !self.registered() {
            return vec![self.unregistered(status)];
        }
        if self.role == Role::Deposed {
            return vec![self.deposed(status)];
        }
        match &status.local.server {
            Server::Primary(primary) if self.role == Role::Primary => {
                self.primary(status, primary).into_iter().collect()
            }
            Server::Standby(standby) if self.role != Role::Primary => self.standby(status, standby),
            Server::Primary(_) => vec![
                self.finding("has a PostgreSQL that was promoted by hand")
                    .why(said(status))
                    .next("wait: its sitter stops it and brings its data back in line"),
            ],
            Server::Standby(_) => {
                vec![self.finding("is still a standby").why(said(status)).next("wait: it is being promoted")]
            }
            server => vec![self.down(status, server)],
        }
    }

    /// Finding about settings of PostgreSQL that Manatee owns and that are not in force.
    fn loosened(&self, status: &SitterStatus) -> Option<Finding> {
        let loosened = &status.local.loosened;
        if loosened.is_empty() {
            return None;
        }
        let unsafe_now = self.role == Role::Primary
            && ["synchronous_standby_names", "fsync", "full_page_writes"].iter().any(|name| status.local.loosens(name));
        let risk = if unsafe_now {
            "what is acknowledged until they are in force again: it may be on this host alone, or not on its disk"
        } else {
            super::NOTHING_LOST
        };
        let impact = if unsafe_now { Impact::LosesWrites } else { Impact::StopsFailover };
        Some(
            Finding::new(impact, format!("{} runs with settings that only Manatee may change", self.title()))
                .why(format!("{}: somebody used ALTER SYSTEM, or changed a file or an option", loosened.join("; ")))
                .risk(risk)
                .next(format!(
                    "wait: its sitter puts them right within a second. If this stays, see where they come from on {}: \
                     `SELECT name, setting, source, sourcefile, sourceline FROM pg_settings`",
                    self.peer.ip
                )),
        )
    }

    /// Sessions of some roles or databases do not wait for the sync.
    fn weak(&self, status: &SitterStatus) -> Option<Finding> {
        let first = status.weak_commits.first().filter(|_| self.role == Role::Primary)?;
        let reset = first.rsplit_once(" SET ").map_or(first.as_str(), |(statement, _)| statement);
        Some(
            Finding::new(Impact::LosesWrites, "commits of some roles or databases do not wait for the sync")
                .why(format!("somebody chose that: {}", status.weak_commits.join("; ")))
                .risk("what these sessions commit, if the primary's host is lost; nothing else")
                .next(format!("if that is not wanted: `{reset} RESET synchronous_commit`")),
        )
    }

    /// Finding for each need of a takeover that fails now (rule 11). A standby that does not stream has a finding of
    /// its own.
    fn unready(&self, status: &SitterStatus) -> Vec<Finding> {
        let registered = self.cluster.view.active.contains_key(&self.peer.id);
        let told = status.unready.iter().filter(|unready| match unready.need {
            Need::Upstream | Need::Replay | Need::Capacities => false,
            // Told by `unregistered`.
            Need::ZooKeeper => registered,
            _ => true,
        });
        told.map(|unready| {
            if unready.need == Need::Parameters {
                let what = format!("{} leaves out settings that PostgreSQL refuses", self.title());
                return Finding::new(Impact::Degrades, what).why(unready.detail.clone()).next(self.make_ready(unready));
            }
            let finding = Finding::new(
                Impact::StopsFailover,
                format!("{} is not ready for a takeover: {} failed", self.title(), unready.need),
            );
            finding
                .why(unready.detail.clone())
                .risk("nothing that was acknowledged; but the next failover may stand still, and writes with it")
                .next(self.make_ready(unready))
        })
        .collect()
    }

    /// It was started with other values than it is configured with, so that a change goes through the shard in order.
    fn overridden(&self, status: &SitterStatus) -> Option<Finding> {
        let first = status.overridden.first()?;
        let told: Vec<String> = status.overridden.iter().map(ToString::to_string).collect();
        let (ip, name) = (&self.peer.ip, first.setting.name());
        let (what, why, next) = if first.is_raised() {
            (
                "is configured with less than its primary has",
                "a standby needs at least as much, and was started with it",
                format!(
                    "on {ip}: set {name} in `[postgres.parameters]` to what the primary has, then `systemctl reload \
                     manatee-sitter`. To lower it: lower it on the primary first and restart its PostgreSQL, then here"
                ),
            )
        } else {
            (
                "does not take a higher setting yet",
                "a standby has less, and its replay would stand still",
                format!("set {name} on the standbys and restart their PostgreSQL, then that on {ip}"),
            )
        };
        let why = format!("it runs with {}: {why}", told.join("; "));
        Some(Finding::new(Impact::Degrades, format!("{} {what}", self.title())).why(why).next(next))
    }

    fn make_ready(&self, unready: &Unready) -> String {
        let ip = &self.peer.ip;
        match unready.need {
            Need::Configuration => format!(
                "on {ip}: correct the setting named, in `[postgres.parameters]` or `postgres.conf_file` of the sitter's \
                 configuration or in the file named; until then PostgreSQL takes over no other change either"
            ),
            Need::Parameters => format!(
                "on {ip}: correct them in the sitter's configuration (`manatee-sitter --check-config` says what is wrong), \
                 then `systemctl reload manatee-sitter`"
            ),
            Need::AccessRules => format!(
                "on {ip}: correct the line in `postgres.hba` or `postgres.hba_file` of the sitter's configuration; until \
                 then PostgreSQL keeps the rules it had, and would not start"
            ),
            Need::LocalSession => format!(
                "on {ip}: let the superuser into the database postgres or template1 again \
                 (`ALTER DATABASE postgres ALLOW_CONNECTIONS true`, from any database that can be reached)"
            ),
            Need::ReplicationLogin | Need::ProxyLogin => {
                let file = if unready.need == Need::ProxyLogin { "proxy" } else { "replication" };
                format!(
                    "wait some seconds: the primary gives the role the password of its own sitter's configuration. If this \
                     stays, `postgres.{file}_password_file` on {ip} is not the primary's: give it the same, and restart the sitter"
                )
            }
            Need::Grants => "wait some seconds: the primary gives the roles their rights again; if this stays, see \
                             the log of its sitter"
                .to_owned(),
            Need::Upstream | Need::Replay | Need::Capacities => "see above".to_owned(),
            Need::ZooKeeper => {
                let shard = &self.cluster.shard;
                format!(
                    "compare who the sitter on {ip} is to ZooKeeper (`zookeeper.auth_file`, `zookeeper.auth_scheme`; a change \
                     takes a restart of the sitter) with `getAcl -s` of the nodes of `{shard}`, and give it the rights cdrwa \
                     there (`setAcl -R`)"
                )
            }
        }
    }

    /// Settings were not in force for a while, and are again.
    fn breach(&self, status: &SitterStatus) -> Option<Finding> {
        let breach = status.breach.as_ref().filter(|_| status.local.loosened.is_empty())?;
        Some(
            Finding::new(
                Impact::Note,
                format!(
                    "{} ran for {} ms, until {} s ago, with settings that only Manatee may change",
                    self.title(),
                    breach.breach.lasted_ms,
                    breach.ago_ms / 1_000
                ),
            )
            .why(format!("{}; its sitter put them right", breach.breach.settings.join("; ")))
            .risk("nothing now: the sync has what was acknowledged since; before it had, it was on one host")
            .next("find out who used ALTER SYSTEM or changed a file: its log says when and what"),
        )
    }

    fn foreign(&self, status: &SitterStatus) -> Option<Finding> {
        let (Data::Present(found) | Data::Fresh(found)) = &status.local.data else { return None };
        let wanted = self.cluster.state.system_identifier.as_ref().filter(|wanted| **wanted != found.0)?;
        Some(
            self.finding("has the data of another cluster, and is kept out")
                .why(format!("its system identifier is {}, the shard's is {wanted}", found.0))
                .next(format!(
                    "correct `shard` or `peer.dir` in the sitter's configuration on {}; or move its data directory away \
                     and restart the sitter: it then copies the shard's data",
                    self.peer.ip
                )),
        )
    }

    /// There is no complete data directory.
    fn data(&self, status: &SitterStatus) -> Option<Finding> {
        let finding = match &status.local.data {
            Data::Present(_) | Data::Fresh(_) => return None,
            Data::Unusable(problem) => {
                self.finding("has a data directory that cannot be used").why(problem.clone()).next(format!(
                    "look at `peer.dir` on {}, repair it or move it away, and restart the sitter",
                    self.peer.ip
                ))
            }
            Data::Absent | Data::Incomplete if self.role == Role::Primary => {
                Finding::new(Impact::StopsWrites, format!("{} has lost its data", self.title()))
                    .why(said(status))
                    .risk("nothing, while the sync has its own")
                    .next("wait: the sync takes over; if it does not, see the blocking reason under the sync")
            }
            Data::Absent | Data::Incomplete => {
                let busy = status.changes_data();
                let what = if busy { "is copying its data" } else { "has no data yet" };
                let next = if busy {
                    "wait until the copy is done"
                } else {
                    "wait for the copy to start; if it does not, act on the reason shown under 'why'"
                };
                self.finding(what).why(with_failure(status)).next(next)
            }
        };
        Some(finding)
    }

    fn unregistered(&self, status: &SitterStatus) -> Finding {
        if status.stopping {
            return self
                .finding("is being stopped, as asked")
                .why(said(status))
                .next("start it again when it is to take part");
        }
        let finding = self.finding("runs, but is not registered with ZooKeeper");
        if let Some(refused) = status.unready.iter().find(|unready| unready.need == Need::ZooKeeper) {
            return finding.why(refused.detail.clone()).next(self.make_ready(refused));
        }
        let session = &status.zk.session;
        if *session == Session::Connected {
            return finding.why(with_failure(status)).next("see why above; the log of its sitter says more");
        }
        finding
            .why(format!("its session with ZooKeeper is {session}"))
            .next(format!("check the network from {} to ZooKeeper; it registers by itself", self.peer.ip))
    }

    fn deposed(&self, status: &SitterStatus) -> Finding {
        let finding = self.finding("is deposed: it was primary, and its data is to be brought back in line");
        let rebuild = format!(
            "on {}: `manatee-adm rebuild`, which copies everything anew and keeps the old data aside",
            self.peer.ip
        );
        if status.in_flight() == Some(ActionKind::Rejoin) {
            return finding.why(said(status)).next("wait: that is under way");
        }
        if status.settings.manual_rejoin {
            return finding.why(with_failure(status)).next(rebuild);
        }
        if self.is_frozen() {
            return finding.why(with_failure(status)).next("it returns as async once the freeze ends");
        }
        match &status.last_failure {
            Some(failure) => finding
                .why(with_failure(status))
                .next(failure.kind.and_then(|kind| remedy(kind, self.peer)).unwrap_or(rebuild)),
            None => finding.why(said(status)).next("wait: it returns as async by itself"),
        }
    }

    fn down(&self, status: &SitterStatus, server: &Server) -> Finding {
        let told = server_label(server);
        let finding = self.finding(format_args!("has a PostgreSQL that is {told}")).why(with_failure(status));
        let kind = status.last_failure.as_ref().and_then(|failure| failure.kind);
        match kind.and_then(|kind| remedy(kind, self.peer)) {
            Some(next) => finding.next(next),
            None if status.last_failure.is_some() => {
                finding.next(format!("see {} on {}; its sitter tries again by itself", self.log(), self.peer.ip))
            }
            None => finding.next("wait: its sitter starts it"),
        }
    }

    fn primary(&self, status: &SitterStatus, primary: &PrimaryStatus) -> Option<Finding> {
        let closed = status.local.config.as_ref().is_some_and(|config| config.gate == Gate::Closed);
        let Some(sync) = &self.cluster.state.sync_peer else {
            return closed.then(|| self.finding("lets no clients in").why(said(status)).next("see above"));
        };
        let attached = primary.downstreams.iter().find(|downstream| downstream.peer == sync.id);
        if status.local.loosens("synchronous_standby_names") {
            // Told by `loosened`: it waits for nobody.
            return None;
        }
        if !attached.is_some_and(|downstream| downstream.streaming && downstream.sync_priority > 0) {
            let next = if self.is_frozen() {
                "bring back the sync; or end the freeze, and an async replaces it"
            } else if self.cluster.state.async_peers.is_empty() {
                "bring back the sync, or start another peer; one that copies the data can replace it"
            } else {
                "wait: an async replaces it; if none does, see what is wrong with them below"
            };
            let what = format!("waits for its sync {}, which does not follow", sync.zone_id);
            return Some(self.finding(what).why(with_failure(status)).next(next));
        }
        if closed {
            return Some(
                self.finding("lets no clients in until its sync has everything that it found at its start")
                    .why(said(status))
                    .next("wait: the gate opens by itself once the sync has caught up"),
            );
        }
        self.failure(status)
    }

    fn standby(&self, status: &SitterStatus, standby: &StandbyStatus) -> Vec<Finding> {
        let mut findings = Vec::new();
        let upstream = self.cluster.upstream_of(self.peer.id).unwrap_or(&self.cluster.state.primary);
        if let Some(problem) = &standby.cannot_follow {
            let next = if status.settings.manual_rejoin {
                format!("on {}: `manatee-adm rebuild`", self.peer.ip)
            } else {
                "wait: its sitter brings the data back in line".to_owned()
            };
            findings
                .push(self.finding(format_args!("cannot follow {}", upstream.zone_id)).why(problem.clone()).next(next));
        } else if !standby.streaming {
            findings.push(self.not_streaming(status, upstream));
        } else if status.local.config.as_ref().is_some_and(|config| config.gate == Gate::Closed) {
            findings.push(
                Finding::new(Impact::Degrades, format!("{} lets no readers in yet", self.title()))
                    .why("it does not yet show everything that was acknowledged before this generation")
                    .next("wait: the gate opens by itself"),
            );
        }
        findings.extend(self.replay(standby));
        if self.role == Role::Sync && !contains_init_wal(&self.cluster.state, standby) {
            findings.push(self.behind(standby));
        }
        findings.extend(self.failure(status).filter(|_| findings.is_empty()));
        findings
    }

    fn not_streaming(&self, status: &SitterStatus, upstream: &Peer) -> Finding {
        let tried = status.unready.iter().find(|unready| unready.need == Need::Upstream);
        let ended_with = match &status.local.server {
            Server::Standby(standby) => standby.receiver_error.as_deref().map(|text| (text, standby.receiver_failure)),
            _ => None,
        };
        let known = tried.map(|unready| (unready.detail.as_str(), unready.kind)).or(ended_with);
        let (detail, kind) = known.unwrap_or_default();
        let why = if detail.is_empty() { with_failure(status) } else { format!("{detail}; {}", with_failure(status)) };
        let next = if let Some(remedy) = kind.and_then(|kind| remedy(kind, self.peer)) {
            remedy
        } else if kind == Some(FailureKind::Network) {
            format!("check the network from {} to {}; it tries all the time", self.peer.ip, upstream.pg_url)
        } else if detail.is_empty() {
            "wait some seconds: its sitter tries to find out why, and this then says so".to_owned()
        } else {
            format!("act on the reason; {} on {} says more. It tries all the time", self.log(), self.peer.ip)
        };
        self.finding(format_args!("does not stream from {}", upstream.zone_id)).why(why).next(next)
    }

    /// Path of PostgreSQL's log.
    fn log(&self) -> &'static str {
        "PostgreSQL's log, `peer.dir`/run/postgresql.log,"
    }

    /// Finding about WAL that was received and is not replayed: readers do not see it, and it has to be replayed before
    /// it may serve as primary.
    fn replay(&self, standby: &StandbyStatus) -> Option<Finding> {
        let Replay { paused, short_of, waits_for, waits_ms } = standby.replay;
        let behind = standby.received.map_or(0, |received| received.lsn.bytes_since(standby.replayed));
        let (ip, takeover) = (&self.peer.ip, "a takeover replays it first, and writes wait for that");
        if let Some(short) = short_of {
            let what = format!("the replay of {} stands still: it has less than its primary", self.title());
            let why = format!("{short}; {behind} bytes of WAL wait; it could not take over as it is");
            let next = format!(
                "wait: its sitter restarts PostgreSQL with what it needs. Then set {} in `[postgres.parameters]` on {ip} as \
                 on the primary",
                short.setting.name()
            );
            return Some(Finding::new(Impact::StopsFailover, what).why(why).next(next));
        }
        if paused {
            return Some(
                Finding::new(Impact::Degrades, format!("{} has its replay paused", self.title()))
                    .why(format!("pg_wal_replay_pause() was called there; {behind} bytes of WAL wait; {takeover}"))
                    .next(format!("on {ip}: SELECT pg_wal_replay_resume()")),
            );
        }
        let holder = match waits_for.filter(|_| waits_ms >= REPLAY_WAITS_MS)? {
            Obstacle::Lock => "a lock on a table that was changed on the primary",
            Obstacle::Snapshot => "a snapshot older than rows that the primary has removed",
            Obstacle::Page => "a page that it looks at",
            Obstacle::Tablespace => "a file in a tablespace that the primary has dropped",
        };
        let seconds = waits_ms / 1000;
        Some(
            Finding::new(Impact::Degrades, format!("the replay of {} waits for a reader", self.title()))
                .why(format!("a session has had {holder} for {seconds} s; {behind} bytes of WAL wait; {takeover}"))
                .next(format!(
                    "wait: it ends with that session, or after max_standby_streaming_delay; on {ip}, see pg_stat_activity"
                )),
        )
    }

    fn behind(&self, standby: &StandbyStatus) -> Finding {
        let primary = &self.cluster.state.primary;
        let has = standby
            .received
            .map_or("an unknown position".to_owned(), |at| format!("{} on timeline {}", at.lsn, at.timeline));
        let finding = Finding::new(Impact::StopsFailover, format!("{} may not take over", self.title())).why(format!(
            "it has {has}; the generation began at {}, and before that were acknowledged writes that it lacks",
            self.cluster.state.init_wal
        ));
        if standby.streaming {
            return finding.risk("nothing, while the primary lives").next("wait until it has caught up");
        }
        finding.risk(format!("acknowledged writes, if the data of {} is lost for good", primary.zone_id)).next(format!(
            "bring back {} (host {}): only there is everything; do not remove its data",
            primary.zone_id, primary.ip
        ))
    }

    /// A step that fails again and again, where nothing else is wrong.
    fn failure(&self, status: &SitterStatus) -> Option<Finding> {
        let failure = status.last_failure.as_ref()?;
        let next = failure
            .kind
            .and_then(|kind| remedy(kind, self.peer))
            .unwrap_or_else(|| "its sitter tries again; its log says more".to_owned());
        Some(
            Finding::new(
                Impact::Degrades,
                format!("{} fails to {}", self.title(), failure.action.to_string().replace('-', " ")),
            )
            .why(with_failure(status))
            .next(next),
        )
    }

    /// The primary does not serve, and its sync says why it does not take over.
    fn lost_primary(&self) -> Option<Finding> {
        if self.role != Role::Sync {
            return None;
        }
        let status = self.cluster.answers.get(&self.peer.id)?.as_ref().ok()?;
        let decision = &status.decision;
        if decision.code != Some(ReasonCode::TakeoverBlocked) {
            return None;
        }
        let next = match decision.blocker {
            Some(BlockerCode::Frozen) => "`manatee-adm unfreeze`; or bring back the primary",
            Some(BlockerCode::NoAsync) => {
                "bring back the primary or any other peer with this shard's data; both the takeover and the old primary \
                 need one more peer"
            }
            Some(BlockerCode::PeerAhead | BlockerCode::PrimaryAhead) => {
                "bring back the primary: what was acknowledged last may be there and not here"
            }
            _ => "bring back the primary",
        };
        Some(
            Finding::new(Impact::StopsWrites, format!("{} does not take over", self.title()))
                .why(decision.reason.clone())
                .risk("nothing that was acknowledged; writes wait")
                .next(next),
        )
    }

    /// Data that ZFS cannot send: no lost peer comes back from it.
    fn cannot_be_copied(&self) -> Option<Finding> {
        let status = self.cluster.answers.get(&self.peer.id)?.as_ref().ok()?;
        let outside = status.outside_of_dataset.as_ref()?;
        Some(
            Finding::new(Impact::Degrades, format!("no peer can be copied from {}", self.title()))
                .why(format!("{outside} lies outside of the ZFS dataset, and a snapshot does not hold it"))
                .next(
                    "move what is in the tablespace back (ALTER TABLE … SET TABLESPACE pg_default) and DROP TABLESPACE; \
                     make pg_wal a folder of the data directory",
                ),
        )
    }

    /// VACUUM removes nothing, and tables grow.
    fn old_horizon(&self) -> Option<Finding> {
        let status = self.cluster.answers.get(&self.peer.id)?.as_ref().ok()?;
        // Those of standbys come to the primary by their feedback; a standby's own tells who it is there.
        let horizon = status.horizon.as_ref().filter(|horizon| horizon.is_old())?;
        let name = &horizon.name;
        let (holder, next) = match horizon.holder {
            HorizonHolder::Slot => (
                format!("the replication slot {name}"),
                "see the same finding of the standby that uses it; drop a slot that nobody needs any more: \
                 SELECT pg_drop_replication_slot(…)",
            ),
            HorizonHolder::PreparedTransaction => (
                format!("the prepared transaction {name}"),
                "COMMIT PREPARED or ROLLBACK PREPARED in that database, as its application would",
            ),
            HorizonHolder::Transaction => (
                format!("an open transaction of {name}"),
                "end it in its application, or SELECT pg_terminate_backend(…) with that process id",
            ),
            HorizonHolder::StandbyFeedback => {
                (format!("readers of the standby {name}"), "see the same finding of that standby")
            }
        };
        let (minutes, age) = (horizon.held_ms / 60_000, horizon.age_transactions);
        Some(
            Finding::new(Impact::Degrades, format!("VACUUM removes nothing recent on {}: tables grow", self.title()))
                .why(format!("{holder} has kept old row versions for {minutes} minutes, {age} transactions ago"))
                .next(next),
        )
    }

    fn waits_outside(&self) -> Finding {
        let state = &self.cluster.state;
        let status = match self.cluster.answers.get(&self.peer.id) {
            Some(Ok(status)) => status,
            Some(Err(problem)) => return self.silent(problem),
            None => return self.finding("waits to be taken in").next("wait"),
        };
        if let Some(foreign) = self.foreign(status) {
            return foreign;
        }
        let next = if state.one_node_write_mode && !state.leaves_one_node_write_mode() {
            "it comes in after `manatee-adm set-onwm -m off`"
        } else if state.is_frozen() && !state.leaves_one_node_write_mode() {
            "it is taken in once the freeze ends"
        } else {
            "wait: the primary takes it in"
        };
        let impact = if state.one_node_write_mode { Impact::Note } else { Impact::Degrades };
        Finding::new(impact, format!("{} is registered, but not in the chain", self.title()))
            .why(with_failure(status))
            .next(next)
    }
}

/// Activity of the sitter, and its last failure.
fn with_failure(status: &SitterStatus) -> String {
    let said = said(status);
    match &status.last_failure {
        // Which tells of it itself.
        Some(failure) if status.decision.code != Some(ReasonCode::BackingOff) => {
            let times = if failure.times == 1 { String::new() } else { format!(" {} times", failure.times) };
            format!("{said}; {} failed{times}: {}", failure.action, failure.problem)
        }
        _ => said,
    }
}

/// Remedy for failures that an operator can do something about; the network between two hosts apart.
fn remedy(kind: FailureKind, peer: &Peer) -> Option<String> {
    let ip = &peer.ip;
    Some(match kind {
        FailureKind::DiskFull => format!("free disk space on {ip}; nothing else is needed, it goes on by itself"),
        FailureKind::DiskBroken => {
            format!("check the disk of {ip}; once it is replaced, the peer copies its data anew")
        }
        FailureKind::SourceFiles => {
            "correct that on the source, the host named here; meanwhile its sitter tries the others".to_owned()
        }
        FailureKind::PermissionDenied => {
            format!("check the owner of `peer.dir` on {ip}: it must be the configured `os_user`")
        }
        FailureKind::Password => format!(
            "give {ip} the shard's replication password (`replication_password_file`) and restart its sitter. If the \
             password was changed in SQL, wait: the primary gives the role that of its sitter's configuration again"
        ),
        FailureKind::WalSenders => {
            "end other replication clients (pg_receivewal, backups: see pg_stat_replication) of its upstream, or raise \
             `max_wal_senders` in `[postgres.parameters]` of every peer and restart PostgreSQL"
                .to_owned()
        }
        FailureKind::Setting => {
            format!("correct that setting in `[postgres.parameters]` of the sitter on {ip} and restart the sitter")
        }
        FailureKind::Library => format!(
            "install the library named on {ip}, or take it out of `shared_preload_libraries` in `[postgres.parameters]`; \
             the data is not at fault, so a rebuild does not help"
        ),
        FailureKind::StandbySettings => format!(
            "raise the parameters named in the reason in `[postgres.parameters]` on {ip} to at least the primary's values"
        ),
        FailureKind::PidFile => format!(
            "on {ip}: see whether the process named is a postmaster of this data; if it is another program, \
             remove `peer.dir`/data/postmaster.pid"
        ),
        FailureKind::Network => return None,
    })
}
