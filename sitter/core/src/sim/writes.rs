//! Writes of the state whose answers are lost, in every form that ZooKeeper's client and networks have, and how it is found
//! out what became of them. As the real client does it (`shared/src/zk/client/write.rs`), with its judgement.
//!
//! Truth about writes: a caller that is told for certain that a write happened, or that it did not, is told the truth,
//! and no write comes after it was denied: the oracle holds each to that.

use std::sync::Arc;

use manatee_shared::cluster::ClusterState;
use manatee_shared::zk::outcome::Verdict;
use manatee_shared::zk::{Over, Session, StateNode, ZkError};

use super::host::{Doubt, Flight, Sent, Straggler};
use super::mutation::Mutation;
use super::plan::{Fault, Loss, Writing};
use super::world::{SESSION_MS, World};
use crate::machine::action::{Action, ShardAction};

/// A silent connection is given up after two fifths of the session's timeout.
const SILENCE_MS: u64 = SESSION_MS * 2 / 5;

/// Losses that are not planned: silence would take longer than a scenario allows for.
const UNLUCKY: [Loss; 4] = [Loss::Reset, Loss::Error, Loss::Request, Loss::Late];

/// Result of asking ZooKeeper for a write.
pub(super) enum Asked {
    /// The answer comes after this many ms.
    Answered(u64),
    /// None comes; the client finds out.
    Wait,
    /// The outcome of the action.
    Ended(Result<(), String>),
}

impl World {
    /// One step of [`ShardAction::WriteState`].
    pub(super) fn write(&mut self, index: usize, flight: &mut Flight) -> Asked {
        let Action::Shard(ShardAction::WriteState { over, state }) = &flight.action else {
            return Asked::Ended(Ok(()));
        };
        match flight.sent.take() {
            Some(Sent::Answered(result)) => return Asked::Ended(result),
            Some(Sent::Lost { since }) if self.now - since < SESSION_MS => {
                flight.sent = Some(Sent::Lost { since });
                return Asked::Wait;
            }
            Some(Sent::Lost { .. }) => return Asked::Ended(self.unknown(index)),
            None => {}
        }
        let mut over = *over;
        if self.mutated(Mutation::WriteAnyVersion)
            && let StateNode::Valid { version, .. } = self.zk.state()
        {
            over = Over::Version(version);
        }
        let state = Arc::clone(state);
        let id = self.oracle.new_write(self.tampered);
        let Some(sitter) = self.hosts[index].sitter.as_ref() else { return Asked::Ended(Ok(())) };
        if sitter.doubt.is_some() {
            return Asked::Ended(self.unknown(index));
        }
        if sitter.session.link() != Session::Connected {
            // It is not even sent.
            self.told(id, false);
            return Asked::Ended(Err("it was not written: not connected".to_owned()));
        }
        let loss = match self.reaches_zk(index) {
            true => self.loss_of(writing(over, &state, sitter.view.zk.state.valid().map(|(_, state)| &**state))),
            false if self.rng.u8(..) < 100 => Some(Loss::Late),
            false => Some(Loss::Request),
        };
        let Some(loss) = loss else {
            let result = self.carry_out_write(index, id, over, &state);
            self.told(id, result.is_ok());
            flight.sent = Some(Sent::Answered(result));
            return Asked::Answered(self.rng.u64(0..60));
        };
        self.log(|| format!("p{index} the answer to its write is lost: {loss:?}"));
        match loss {
            Loss::Silence | Loss::Reset | Loss::Error => drop(self.carry_out_write(index, id, over, &state)),
            Loss::Request => {}
            Loss::Late => {
                let arrives = self.now + self.rng.u64(0..3_000);
                let state = ClusterState::clone(&state);
                if let Some(sitter) = self.hosts[index].sitter.as_mut() {
                    sitter.straggler = Some(Straggler { id, by: Some(sitter.view.me.id), arrives, over, state });
                }
            }
        }
        if self.mutated(Mutation::LossTakenForRefusal) && matches!(loss, Loss::Silence | Loss::Error) {
            self.told(id, false);
            return Asked::Ended(Err("ZooKeeper refused".to_owned()));
        }
        let doubt = Doubt { id, over, state };
        if self.mutated(Mutation::JudgedTooEarly) {
            let written = self.judge(&doubt);
            self.told_of(&doubt, written);
            return Asked::Ended(if written { Ok(()) } else { Err("it was not written".to_owned()) });
        }
        flight.sent = Some(Sent::Lost { since: self.now });
        self.lose_connection(index, loss, doubt);
        Asked::Wait
    }

    /// The form in which the answer to this write is lost: planned, or by bad luck.
    pub(super) fn loss_of(&mut self, writing: Writing) -> Option<Loss> {
        let planned = |fault: &Fault| matches!(fault, Fault::LoseAnswer { write, .. } if *write == writing);
        if let Some(place) = self.armed.iter().position(planned)
            && let Fault::LoseAnswer { loss, .. } = self.armed.remove(place)
        {
            return Some(loss);
        }
        // What an operator does once in a scenario is done.
        let unlucky = writing != Writing::Operator && self.rng.u8(..) < 12;
        (unlucky && !self.is_setting_up() && !self.healing).then(|| UNLUCKY[self.rng.usize(0..UNLUCKY.len())])
    }

    fn carry_out_write(&mut self, index: usize, id: u64, over: Over, state: &ClusterState) -> Result<(), String> {
        let Some(sitter) = self.hosts[index].sitter.as_ref() else { return Ok(()) };
        let result = sitter.session.write_now(over, state);
        self.note_write(id, &result);
        result.map(drop).map_err(|error| error.to_string())
    }

    /// The client knows at once that the connection is gone, but for silence.
    fn lose_connection(&mut self, index: usize, loss: Loss, doubt: Doubt) {
        let silent_until = self.now + self.rng.u64(SILENCE_MS / 4..SILENCE_MS);
        let Some(sitter) = self.hosts[index].sitter.as_mut() else { return };
        sitter.doubt = Some(doubt);
        sitter.session.disconnect();
        match loss {
            Loss::Silence => sitter.blind_until = sitter.blind_until.max(silent_until),
            _ => sitter.view.zk.session = Session::Disconnected,
        }
    }

    /// The caller of the client waits no longer.
    fn unknown(&mut self, index: usize) -> Result<(), String> {
        if let Some(sitter) = self.hosts[index].sitter.as_mut() {
            sitter.uncertain = true;
            sitter.view.zk.session = Session::Disconnected;
        }
        Err("no answer to the state write".to_owned())
    }

    /// Connected again: nothing of the write can come any more, so what is there tells what became of it.
    pub(super) fn find_out(&mut self, index: usize) {
        let Some(doubt) = self.hosts[index].sitter.as_mut().and_then(|sitter| sitter.doubt.take()) else { return };
        let written = self.judge(&doubt);
        self.log(|| format!("p{index} finds out about its write: {written}"));
        let now = self.now;
        let flight = self.hosts[index].sitter.as_mut().and_then(|sitter| sitter.flight.as_mut());
        if let Some(flight) = flight.filter(|flight| matches!(flight.sent, Some(Sent::Lost { .. }))) {
            let result = if written { Ok(()) } else { Err("it was not written".to_owned()) };
            (flight.sent, flight.next) = (Some(Sent::Answered(result)), now);
            self.told_of(&doubt, written);
        }
    }

    fn judge(&self, doubt: &Doubt) -> bool {
        let found = match self.zk.state() {
            StateNode::Valid { version, state } => Some((version, state == doubt.state)),
            StateNode::Corrupt { version, .. } => Some((version, false)),
            StateNode::Unread | StateNode::Absent => None,
        };
        match Verdict::of(doubt.over, found) {
            Verdict::Written(_) => true,
            Verdict::NotWritten | Verdict::Conflict => false,
            Verdict::History(_) if self.mutated(Mutation::ReplacedTakenForRefused) => false,
            Verdict::History(since) => {
                let history = self.zk.history_now();
                let place = history.len().checked_sub(since);
                place.and_then(|place| history.get(place)).is_some_and(|entry| entry.state == *doubt.state)
            }
        }
    }

    /// Somebody is told what was found out. Of a write that is sent twice the first may be what is found: the same state.
    fn told_of(&mut self, doubt: &Doubt, written: bool) {
        let is_there = || self.zk.history_now().iter().any(|entry| entry.state == *doubt.state);
        if !written || !is_there() {
            self.told(doubt.id, written);
        }
    }

    /// Somebody is told for certain.
    fn told(&mut self, id: u64, written: bool) {
        if let Err(problem) = self.oracle.told(id, written, self.tampered) {
            self.violation = Some(problem);
        }
    }

    /// Denies late writes: the process that comes after one relies on it that nothing of that one's comes any more.
    pub(super) fn deny_late_writes(&mut self, index: usize) {
        let id = self.hosts[index].peer.id;
        let late: Vec<_> =
            self.late_writes.iter().filter(|(write, _)| write.by == Some(id)).map(|(write, _)| write.id).collect();
        late.into_iter().for_each(|id| self.told(id, false));
    }

    /// Notes the server's answer to a write.
    pub(super) fn note_write(&mut self, id: u64, result: &Result<i32, ZkError>) {
        if result.is_ok()
            && let Err(problem) = self.oracle.carried_out(id)
        {
            self.violation = Some(problem);
        }
    }

    /// An operator's hand: `manatee-adm` tells for certain, or says that it may have been written.
    pub(super) fn write_by_hand(&mut self, over: Over, state: ClusterState) -> String {
        let id = self.oracle.new_write(self.tampered);
        let hand = self.zk.session();
        hand.connect();
        let loss = self.loss_of(Writing::Operator);
        let result = match loss {
            Some(Loss::Request) => Err(ZkError::NotWritten(String::new())),
            Some(Loss::Late) => {
                // It was ended while it waited.
                let arrives = self.now + self.rng.u64(0..3_000);
                hand.disconnect();
                self.late_writes.push((Straggler { id, by: None, arrives, over, state }, hand));
                return "may have been written".to_owned();
            }
            _ => hand.write_now(over, &state),
        };
        self.note_write(id, &result);
        let written = match loss {
            None => {
                self.told(id, result.is_ok());
                result.is_ok()
            }
            Some(_) => {
                let doubt = Doubt { id, over, state: Arc::new(state) };
                let written = self.judge(&doubt);
                self.told_of(&doubt, written);
                written
            }
        };
        hand.close_now();
        format!("{result:?}, answer lost: {loss:?}, told: {written}")
    }
}

/// Kind of this write.
fn writing(over: Over, state: &ClusterState, before: Option<&ClusterState>) -> Writing {
    match before {
        _ if over == Over::Nothing => Writing::FirstSetup,
        Some(before) if before.primary.id != state.primary.id => Writing::Takeover,
        Some(before) if before.generation != state.generation => Writing::Replacement,
        _ => Writing::Listing,
    }
}
