//! PostgreSQL at work: clients, WAL that flows, and who is told that a commit is durable.

use std::collections::VecDeque;

use super::mutation::Mutation;
use super::postgres::{Postgres, Process, Receiver, Sender, number};
use super::wal::{Record, lsn};
use super::world::World;
use crate::machine::local::{Recovery, Synchronous};

/// `wal_sender_timeout` and `wal_receiver_timeout`, ms.
const WAL_TIMEOUT_MS: u64 = 5_000;
/// Between two commit probes, ms.
const PROBE_MS: u64 = 250;
/// A walsender with nothing to say says so after half of `wal_sender_timeout`, ms.
const KEEPALIVE_MS: u64 = WAL_TIMEOUT_MS / 2;
/// A failure to stream that is normal for a moment is held against the data when it lasts so long, ms
/// (`postgres/serverlog.rs`).
const LASTS_MS: u64 = 5_000;
/// Between two messages of one stream, ms: what gathers meanwhile goes together.
const MESSAGE_MS: u64 = 20;

impl World {
    /// Clients write to whoever lets them, also to one that only they can reach.
    pub(super) fn clients(&mut self, index: usize) {
        let postgres = &mut self.hosts[index].postgres;
        if postgres.is_primary() && postgres.serves() && self.rng.u8(..) < 70 {
            self.next_id += 1;
            let timeline = postgres.wal.timeline();
            postgres.wal.push(Record { timeline, id: self.next_id });
            postgres.waiting.push_back(postgres.wal.len() - 1);
        }
    }

    pub(super) fn run_postgres(&mut self, index: usize) -> Result<(), String> {
        let now = self.now;
        let postgres = &mut self.hosts[index].postgres;
        match postgres.process {
            Process::Running => {}
            Process::Starting { until } if until <= now => {
                postgres.process = Process::Running;
                (postgres.not_streaming_since, postgres.retry_at) = (now, now);
                if !postgres.standby {
                    // The end of recovery: a record of its own.
                    self.next_id += 1;
                    let timeline = postgres.wal.timeline();
                    postgres.wal.push(Record { timeline, id: self.next_id });
                    if postgres.serves() {
                        postgres.shown = postgres.found;
                        if let Some(Synchronous::Peer(sync)) = postgres.config.as_ref().map(|c| c.synchronous) {
                            self.check_opening(index, number(sync));
                        }
                    }
                }
            }
            Process::Hung { .. } if postgres.hangs_until.is_some_and(|until| until <= now) => {
                postgres.process = Process::Running;
            }
            _ => return Ok(()),
        }
        let postgres = &mut self.hosts[index].postgres;
        if now < postgres.full_until && postgres.flushed < postgres.wal.len() {
            postgres.end(true);
            self.log(|| format!("p{index} PostgreSQL panics: no space left on device"));
            return Ok(());
        }
        if postgres.promotes.is_some_and(|(at, _)| at <= now) {
            self.leave_recovery(index)?;
        }
        let postgres = &mut self.hosts[index].postgres;
        for sender in postgres.senders.iter_mut().flatten() {
            if let Some((_, synchronous)) = sender.applies.filter(|(at, _)| *at <= now) {
                (sender.applied, sender.applies) = (synchronous, None);
            }
        }
        let flushes = now >= postgres.slow_until && (!postgres.standby || self.rng.u8(..) < 200);
        let before = postgres.flushed;
        postgres.flush(now, flushes);
        // Servers promoted by hand may share a number; what follows them has to rejoin.
        let is_ours = !self.by_hand.contains_key(&postgres.wal.timeline());
        if !postgres.standby && postgres.flushed > before && is_ours {
            self.oracle.wrote(index, &self.hosts[index].postgres, before)?;
        }
        let postgres = &mut self.hosts[index].postgres;
        if postgres.standby {
            let behind = postgres.flushed.saturating_sub(postgres.replayed);
            let stalls = now < postgres.replay_stalls_until || self.rng.u8(..) < 40;
            postgres.replayed += if stalls { 0 } else { behind.min(self.rng.usize(0..12)) };
            self.stream(index)?;
        } else {
            postgres.replayed = postgres.wal.len();
            if now >= postgres.probes {
                postgres.probes = now + PROBE_MS;
                self.next_id += 1;
                let timeline = postgres.wal.timeline();
                postgres.wal.push(Record { timeline, id: self.next_id });
            }
            if postgres.waits_for_nobody() {
                self.release_unsafely(index);
            } else if postgres.config.as_ref().is_some_and(|config| config.synchronous == Synchronous::Nobody) {
                self.release(index, self.hosts[index].postgres.flushed)?;
            }
        }
        self.take_replies(index)?;
        let postgres = &mut self.hosts[index].postgres;
        if postgres.shown > postgres.told {
            postgres.told = postgres.shown;
            self.oracle.show(index, &self.hosts[index].postgres, self.hosts[index].postgres.shown)?;
        }
        Ok(())
    }

    /// A promotion that was asked for: first the WAL receiver ends, if one is left.
    fn leave_recovery(&mut self, index: usize) -> Result<(), String> {
        let id = self.new_id();
        let same_timeline = self.mutated(Mutation::NoNewTimeline);
        let postgres = &mut self.hosts[index].postgres;
        postgres.receiver = None;
        if !postgres.receiver_stopped() {
            return Ok(());
        }
        let Some((_, wanted)) = postgres.promotes.take() else { return Ok(()) };
        if !postgres.standby {
            return Ok(());
        }
        let newest = postgres.wal.timeline();
        let timeline = if same_timeline { newest } else { wanted.max(newest + 1) };
        let fork = postgres.wal.len();
        postgres.leave_recovery(Record { timeline, id });
        self.oracle.check_fork(index, timeline, lsn(fork))
    }

    fn take_replies(&mut self, index: usize) -> Result<(), String> {
        let now = self.now;
        for peer in 0..self.hosts.len() {
            if self.hosts[index].postgres.senders[peer].is_none() {
                continue;
            }
            let (reaches, linked) = (self.reaches(peer, index), self.linked(peer, index));
            let follower = &self.hosts[peer].postgres;
            let still_follows = follower.receiver.as_ref().is_some_and(|receiver| receiver.upstream == index);
            let Some(sender) = &mut self.hosts[index].postgres.senders[peer] else { continue };
            let mut came = false;
            while reaches && sender.replies.front().is_some_and(|(at, _)| *at <= now) {
                if let Some((_, flush)) = sender.replies.pop_front() {
                    sender.flush = sender.flush.max(flush);
                    (sender.heard, came) = (now, true);
                }
            }
            let gone = (linked && !still_follows && sender.replies.is_empty()) || now - sender.heard > WAL_TIMEOUT_MS;
            if came {
                let end = self.hosts[index].postgres.released_by(peer);
                self.check_durable(index, peer, end)?;
                self.release(index, end)?;
            }
            if gone {
                self.hosts[index].postgres.senders[peer] = None;
            }
        }
        Ok(())
    }

    /// Rule 2: whoever's word releases a commit has it on disk.
    fn check_durable(&self, index: usize, peer: usize, end: usize) -> Result<(), String> {
        let (postgres, follower) = (&self.hosts[index].postgres, &self.hosts[peer].postgres);
        let Some(last) = postgres.waiting.iter().rev().find(|record| **record < end) else { return Ok(()) };
        let has = |postgres: &Postgres| postgres.wal.records.get(*last).copied();
        if follower.is_running()
            && has(follower).is_some()
            && has(follower) == has(postgres)
            && follower.flushed <= *last
        {
            return Err(format!("p{index} acknowledges the record at {last}, which p{peer} has not flushed (rule 2)"));
        }
        Ok(())
    }

    /// Under loosened settings clients are told so of what only this primary has: nobody calls that safe, so the oracle
    /// does not hold the shard to it, nor to what readers see of it.
    fn release_unsafely(&mut self, index: usize) {
        let postgres = &mut self.hosts[index].postgres;
        while postgres.waiting.front().is_some_and(|record| *record < postgres.flushed) {
            postgres.waiting.pop_front();
            self.counts.loosened += 1;
        }
    }

    /// Tells the clients of `index` that their commits before `end` are durable.
    fn release(&mut self, index: usize, end: usize) -> Result<(), String> {
        let now = self.now;
        while let Some(&record) = self.hosts[index].postgres.waiting.front()
            && record < end
        {
            self.hosts[index].postgres.waiting.pop_front();
            let hosts = &self.hosts;
            let at = |host: usize| hosts[host].postgres.wal.records.get(record).copied();
            let Some(content) = at(index) else { continue };
            let postgres = &mut self.hosts[index].postgres;
            postgres.shown = postgres.shown.max(record + 1);
            let (hosts, older) = (&self.hosts, self.older);
            let at = |host: usize| hosts[host].postgres.wal.records.get(record).copied();
            // It was there, and is on others: that host must not go on without them.
            let elsewhere = || (0..hosts.len()).filter_map(at).find(|found| *found == content);
            let at = |host: usize| if older == Some(host) { elsewhere() } else { at(host) };
            self.oracle.acknowledge(now, index, record, content, &at)?;
        }
        Ok(())
    }

    /// The WAL receiver of a standby.
    fn stream(&mut self, index: usize) -> Result<(), String> {
        let now = self.now;
        let Some(config) = &self.hosts[index].postgres.config else { return Ok(()) };
        let Recovery::Follow(upstream) = config.recovery else { return Ok(()) };
        let source = number(upstream);
        if source >= self.hosts.len() || source == index {
            return Ok(());
        }
        let linked = self.linked(index, source);
        let reaches = self.reaches(source, index);
        let written = self.mutated(Mutation::RemoteWrite);
        let Some((follower, upstream)) = two(&mut self.hosts, index, source) else { return Ok(()) };
        if follower.receiver.is_none() {
            if now >= follower.retry_at && follower.receiver_stopped() {
                follower.retry_at = now + self.rng.u64(100..300);
                // It asks to stream once all that it found is replayed, and knows then how far that was
                // (`RequestXLogStreaming`), whether or not anybody answers.
                follower.has_streamed |= follower.replayed == follower.flushed;
                if linked && upstream.is_running() {
                    attach(follower, upstream, index, source, now);
                }
            }
            return Ok(());
        }
        let alive = upstream.is_running() && upstream.senders[index].is_some();
        let hung = matches!(upstream.process, Process::Hung { .. });
        let heard = follower.receiver.as_ref().map_or(now, |receiver| receiver.heard);
        if (linked && !alive && !hung) || now - heard > WAL_TIMEOUT_MS {
            follower.receiver = None;
            (follower.not_streaming_since, follower.retry_at) = (now, now + self.rng.u64(100..300));
            follower.partial = 0;
            return Ok(());
        }
        // What was sent while the link worked arrives; the rest is sent again once it works again.
        let mut arrived = None;
        let Some(receiver) = &mut follower.receiver else { return Ok(()) };
        while reaches && receiver.coming.front().is_some_and(|(at, _)| *at <= now) {
            arrived = receiver.coming.pop_front().map(|(_, end)| end);
        }
        let keepalive = receiver.coming.is_empty() && now > receiver.heard + KEEPALIVE_MS;
        if linked && alive && (upstream.flushed > receiver.sent || keepalive) {
            let last = receiver.coming.back().map_or(0, |(at, _)| *at);
            if receiver.coming.len() < 32 && now + MESSAGE_MS > last {
                receiver
                    .coming
                    .push_back((last.max(now + self.network.latency(now, true, &mut self.rng)), upstream.flushed));
                receiver.sent = upstream.flushed;
            }
        }
        if let Some(end) = arrived {
            receiver.heard = now;
            let lags = now < follower.lags_until;
            let end = if lags { end.min(follower.wal.len() + usize::from(self.rng.u8(..) < 60)) } else { end };
            if lags && let Some(receiver) = &mut follower.receiver {
                // The rest comes with what follows.
                receiver.sent = end;
            }
            transfer(follower, upstream, end)?;
            let more = upstream.flushed > end && upstream.wal.timeline_at(end + 1) == follower.wal.timeline();
            follower.partial = if more && self.rng.u8(..) < 60 { 7 } else { 0 };
        }
        let says = if written { follower.wal.len() } else { follower.flushed };
        if let Some(sender) = &mut upstream.senders[index] {
            let last = sender.replies.back().copied();
            let fresh = last.is_none_or(|(at, said)| said < says || now > at + 500);
            if fresh && (sender.flush < says || now > sender.heard + 500) && reaches {
                let at = now + self.network.latency(now, true, &mut self.rng);
                sender.replies.push_back((at.max(last.map_or(0, |(at, _)| at)), says));
            }
        }
        Ok(())
    }
}

/// Two hosts' servers at once.
fn two(hosts: &mut [super::host::Host], one: usize, other: usize) -> Option<(&mut Postgres, &mut Postgres)> {
    let [one, other] = hosts.get_disjoint_mut([one, other]).ok()?;
    Some((&mut one.postgres, &mut other.postgres))
}

/// The records up to `end` get from one to the other.
fn transfer(follower: &mut Postgres, source: &Postgres, end: usize) -> Result<(), String> {
    let have = follower.wal.len();
    if have > 0 && source.wal.records.get(have - 1) != follower.wal.records.get(have - 1) {
        return Err(format!("a standby streams on top of other WAL at {have}"));
    }
    for record in source.wal.records.get(have..end.min(source.flushed)).unwrap_or_default() {
        follower.wal.push(*record);
    }
    Ok(())
}

fn attach(follower: &mut Postgres, source: &mut Postgres, me: usize, upstream: usize, now: u64) {
    match source.accepts(follower.wal.timeline(), follower.wal.len()) {
        Ok(()) => {
            let coming = VecDeque::new();
            follower.receiver = Some(Receiver { upstream, heard: now, coming, sent: follower.wal.len() });
            (follower.has_streamed, follower.cannot_follow) = (true, None);
            let applied = source.config.as_ref().map_or(Synchronous::Impossible, |config| config.synchronous);
            let replies = VecDeque::from([(now, follower.flushed)]);
            source.senders[me] = Some(Sender { applied, applies: None, flush: 0, heard: now, replies });
        }
        Err(Some(problem)) => follower.cannot_follow = Some(problem),
        Err(None)
            if follower.wal.timeline() > source.wal.timeline() && now > follower.not_streaming_since + LASTS_MS =>
        {
            follower.cannot_follow = Some("the highest timeline of the primary is behind recovery timeline");
        }
        Err(None) => {}
    }
}
