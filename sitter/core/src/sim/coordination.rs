//! Sessions with ZooKeeper: expiry, late views, requests that arrive when nobody waits any more,
//! and what becomes of a state that was lost.

use std::sync::Arc;

use manatee_shared::zk::{Session, StateNode, ZkError};

use super::mutation::Mutation;
use super::world::{SESSION_MS, TICK, World};
use crate::machine::local::Data;

impl World {
    pub(super) fn expire_sessions(&mut self) {
        let now = self.now;
        self.deliver_late_writes();
        if !self.orphans.is_empty() && now >= self.network.zk_down_until {
            self.orphans.retain(|(at, session)| {
                if *at <= now {
                    session.expire();
                }
                *at > now
            });
        }
        for index in 0..self.hosts.len() {
            let reaches = self.reaches_zk(index);
            let Some(sitter) = &self.hosts[index].sitter else { continue };
            if reaches && sitter.paused_until <= now {
                self.zk_silent_since[index] = None;
            } else if now >= self.network.zk_down_until {
                let since = *self.zk_silent_since[index].get_or_insert(now);
                if now - since >= SESSION_MS && (now - since - SESSION_MS) < TICK {
                    sitter.session.expire();
                    self.log(|| format!("p{index} session expires"));
                }
            }
        }
    }

    /// Connection to ZooKeeper, and what is seen through it: late, but in order.
    pub(super) fn keep_session(&mut self, index: usize) {
        let now = self.now;
        let reaches = self.reaches_zk(index);
        let revision = self.zk.revision();
        let Some(sitter) = self.hosts[index].sitter.as_mut() else { return };
        let link = sitter.session.link();
        if reaches && link != Session::Connected && self.rng.u8(..) < 60 {
            sitter.straggler = None;
            sitter.session.connect();
        } else if !reaches && link == Session::Connected && self.rng.u8(..) < 15 {
            sitter.session.disconnect();
        }
        if now < sitter.blind_until {
            return;
        }
        let link = sitter.session.link();
        if link != Session::Connected {
            if sitter.view.zk.session != link {
                sitter.view.zk.session = link;
                sitter.decides = sitter.decides.min(now + self.rng.u64(0..30));
            }
            return;
        }
        let stale = sitter.seen_revision != revision || sitter.view.zk.session != Session::Connected;
        if reaches && (stale || sitter.uncertain || sitter.doubt.is_some()) && self.rng.u8(..) < 150 {
            self.find_out(index);
            let Some(sitter) = self.hosts[index].sitter.as_mut() else { return };
            sitter.seen_revision = revision;
            let seen = sitter.session.view_now();
            sitter.uncertain = false;
            if sitter.view.zk != seen {
                sitter.view.zk = seen;
                sitter.decides = sitter.decides.min(now + self.rng.u64(0..30));
            }
            self.follow(index);
        }
    }

    pub(super) fn deliver_straggler(&mut self, index: usize) {
        let id = self.hosts[index].peer.id;
        let now = self.now;
        let zk_is_up = now >= self.network.zk_down_until;
        let Some(sitter) = self.hosts[index].sitter.as_mut() else { return };
        let due = |straggler: &mut super::host::Straggler| straggler.arrives <= now && zk_is_up;
        let Some(straggler) = sitter.straggler.take_if(due) else { return };
        if self.zk.active().contains_key(&id) {
            let hand = self.zk.session();
            hand.connect();
            let result = hand.write_now(straggler.over, &straggler.state);
            self.note_write(straggler.id, &result);
            hand.close_now();
            self.log(|| format!("p{index} late write arrives: {result:?}"));
        }
    }

    /// Those of processes that died: in their sessions, so only while their election nodes exist.
    pub(super) fn deliver_late_writes(&mut self) {
        let now = self.now;
        if now < self.network.zk_down_until {
            return;
        }
        while let Some(place) = self.late_writes.iter().position(|(write, _)| write.arrives <= now) {
            let (write, session) = self.late_writes.remove(place);
            session.connect();
            let mut result = session.write_now(write.over, &write.state);
            if self.mutated(Mutation::LateWriteUnfenced) && matches!(result, Err(ZkError::NotRegistered)) {
                let hand = self.zk.session();
                hand.connect();
                result = hand.write_now(write.over, &write.state);
                hand.close_now();
            }
            self.note_write(write.id, &result);
            session.disconnect();
            self.log(|| format!("a late write of a dead process arrives: {result:?}"));
        }
    }

    /// A state written in this step is looked at before it is gone.
    fn check_before_loss(&mut self) {
        if let Err(problem) = self.check_history() {
            self.violation = Some(problem);
        }
    }

    /// The state is lost, or garbage. An operator restores it later.
    pub(super) fn lose_state(&mut self, until: u64, garbage: bool) {
        self.check_before_loss();
        let node = self.zk.state();
        let Some((version, state)) = node.valid().filter(|_| self.lost_state.is_none()) else { return };
        let state = Arc::clone(state);
        self.tampered += 1;
        self.log(|| format!("!!!! the state is lost until {until}, garbage: {garbage}"));
        self.lost_state = Some((until, version, state));
        if garbage {
            self.zk.tamper(StateNode::Corrupt { version: version + 1, problem: "not JSON".to_owned() });
        } else {
            // With no trace left, two peers without data that see nobody else might set it up anew.
            let history_too = self.empty_hosts() <= 1;
            self.zk.wipe(history_too);
            self.lost_history = history_too;
            if history_too {
                self.oracle.seen_history = 0;
            }
        }
    }

    /// Somebody restores ZooKeeper from an old copy, and the right state after a while. At most one peer
    /// does not know better: two that never heard of the generation, and hear nobody who did, cannot.
    pub(super) fn put_old_state(&mut self, generations: u64, until: u64) {
        let node = self.zk.state();
        let Some((version, state)) = node.valid().filter(|_| self.lost_state.is_none()) else { return };
        if self.unaware_of(state.generation) > 1 {
            return;
        }
        self.check_before_loss();
        let wanted = state.generation.saturating_sub(generations);
        let history = self.zk.history_now();
        let old = history.iter().rev().find(|entry| entry.state.generation == wanted);
        let Some(old) = old.map(|entry| Arc::new(entry.state.clone())) else { return };
        self.log(|| format!("!!!! somebody puts the state of generation {wanted} there until {until}"));
        self.lost_state = Some((until, version, Arc::clone(state)));
        self.tampered += 1;
        self.oracle.old_state = Some(wanted);
        self.zk.tamper(StateNode::Valid { version: version + 1, state: old });
    }

    /// Hosts whose sitters do not remember `generation`.
    fn unaware_of(&self, generation: u64) -> usize {
        self.hosts.iter().filter(|host| host.remembers < Some(generation)).count()
    }

    /// Hosts without data that was in use.
    pub(super) fn empty_hosts(&self) -> usize {
        let present = |host: &&super::host::Host| matches!(host.postgres.data, Data::Present(_));
        self.hosts.len() - self.hosts.iter().filter(present).count()
    }

    /// By an operator, from a copy. A version that was never used: writes under way do not hit it.
    pub(super) fn restore_state(&mut self) {
        let now = self.now;
        let Some((until, _, state)) = &self.lost_state else { return };
        let is_old = self.oracle.old_state.is_some();
        if *until > now && !(is_old && self.unaware_of(state.generation) > 1) {
            return;
        }
        let Some((_, version, state)) = self.lost_state.take() else { return };
        (self.lost_history, self.oracle.old_state) = (false, None);
        if !is_old && self.zk.state().valid().is_some() {
            // A write that was under way set the state up again.
            return;
        }
        self.tampered += 1;
        self.log(|| "!!!! operator: restores the state".to_owned());
        self.zk.tamper(StateNode::Valid { version: version + 100, state });
    }
}
