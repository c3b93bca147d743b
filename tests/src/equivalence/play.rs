//! A conversation with a server, or with a proxy.
//!
//! One step at a time: a client sends, and hears all that must come of it, before another one goes on. So it is decided
//! by the steps what waits for what. Which steps there are is decided in the direct run, for only there it is known
//! what a statement did: a step is put off while it would have to wait for others of the same conversation, for their
//! locks or, with as few servers as the proxy has, for theirs.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::client::{Client, Control};
use super::generate::Conversation;
use super::message::{Action, Message, Step};
use super::transcript::{Oids, Transcript};
use super::vocabulary::{FIXTURE, STATE};

/// Pause between two looks.
const POLL: Duration = Duration::from_millis(5);
/// Longest time for the end of what a client left behind.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
/// Longest time for the standby to be behind.
const REPLAY_LIMIT: Duration = Duration::from_secs(20);
/// Longest time for the end of a cancelled statement.
const CANCEL_LIMIT: Duration = Duration::from_secs(15);
/// A statement that does not run by then waits for a server.
const WAITS: Duration = Duration::from_millis(300);

/// World of the conversations: the servers and proxies.
#[derive(Debug)]
pub(super) struct World {
    /// Address of the database of the conversations, on the primary.
    pub(super) direct: SocketAddr,
    /// Proxies by the number of servers that they have, less one.
    pub(super) proxies: Vec<SocketAddr>,
    pub(super) database: String,
    pub(super) primary: Control,
    pub(super) standby: Control,
}

/// Servers and proxies.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way<'a> {
    /// PostgreSQL, as if it had so many servers.
    Direct { servers: usize },
    /// A proxy; with the states that were seen in the direct run.
    Through { proxy: SocketAddr, states: &'a [Vec<String>] },
}

/// Script of the steps.
#[derive(Clone, Debug)]
pub(super) enum Script {
    /// As they can be done, in an order of chance.
    Chance(Conversation),
    /// These, in this order; those that cannot be done are left out.
    Steps(Vec<Step>),
}

/// Results of a run.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Steps that were done.
    pub(super) steps: Vec<Step>,
    /// Transcript of each client.
    pub(super) heard: Vec<Transcript>,
    /// State of the database after a client had left, and at the end.
    pub(super) states: Vec<Vec<String>>,
}

/// One client's place.
#[derive(Debug, Default)]
struct Seat {
    client: Option<Client>,
    /// It has a server to itself.
    bound: bool,
    /// It has locks that others' statements wait for.
    heavy: bool,
}

impl Seat {
    fn holds(&self) -> bool {
        self.client.as_ref().is_some_and(|client| !client.ended && (self.bound || client.holds()))
    }

    fn in_transaction(&self) -> bool {
        self.client.as_ref().is_some_and(Client::holds)
    }

    fn is_there(&self) -> bool {
        self.client.as_ref().is_some_and(|client| !client.ended)
    }
}

struct Player<'a> {
    world: &'a mut World,
    way: Way<'a>,
    seats: Vec<Seat>,
    outcome: Outcome,
    oids: Oids,
    last: usize,
}

/// Plays it in a fresh schema.
pub(super) fn play(world: &mut World, script: Script, way: Way<'_>) -> Result<Outcome> {
    world.primary.ask(FIXTURE).context("the fixture")?;
    let sessions = match &script {
        Script::Chance(conversation) => conversation.queues.len(),
        Script::Steps(steps) => steps.iter().map(|step| step.session + 1).max().unwrap_or(0),
    };
    let mut player = Player {
        world,
        way,
        seats: std::iter::repeat_with(Seat::default).take(sessions).collect(),
        outcome: Outcome {
            steps: Vec::new(),
            heard: std::iter::repeat_with(Transcript::default).take(sessions).collect(),
            states: Vec::new(),
        },
        oids: Oids::default(),
        last: usize::MAX,
    };
    match script {
        Script::Chance(conversation) => player.by_chance(conversation)?,
        Script::Steps(steps) => {
            for step in steps {
                if player.can(&step) {
                    player.perform(step)?;
                }
            }
        }
    }
    player.finish()
}

impl Player<'_> {
    fn by_chance(&mut self, mut conversation: Conversation) -> Result<()> {
        let Conversation { queues, order } = &mut conversation;
        loop {
            let can = |session: &usize| queues[*session].last().is_some_and(|step| self.can(step));
            let ready: Vec<usize> = (0..queues.len()).filter(can).collect();
            let waiting: Vec<usize> = (0..queues.len()).filter(|session| !queues[*session].is_empty()).collect();
            match (ready.as_slice(), waiting.as_slice()) {
                (_, []) => return Ok(()),
                // Nobody can go on: one of them leaves a step out.
                ([], waiting) => drop(queues[waiting[order.usize(..waiting.len())]].pop()),
                (ready, _) => {
                    let session = ready[order.usize(..ready.len())];
                    if let Some(step) = queues[session].pop() {
                        self.perform(step)?;
                    }
                }
            }
        }
    }

    /// Whether it can be done without waiting for others. Through the proxy: what was done can be done.
    fn can(&self, step: &Step) -> bool {
        let Way::Direct { servers } = self.way else { return true };
        let connects = matches!(step.action, Action::Connect(_));
        let seat = &self.seats[step.session];
        if !connects && !seat.is_there() {
            return false;
        }
        let others = || self.seats.iter().enumerate().filter(|(other, _)| *other != step.session).map(|(_, seat)| seat);
        if others().any(|other| other.heavy) || step.alone && others().any(Seat::in_transaction) {
            return false;
        }
        // A statement that is cancelled may wait.
        matches!(step.action, Action::Cancel(_)) || others().filter(|other| other.holds()).count() < servers
    }

    fn address(&self) -> SocketAddr {
        match self.way {
            Way::Direct { .. } => self.world.direct,
            Way::Through { proxy, .. } => proxy,
        }
    }

    fn perform(&mut self, step: Step) -> Result<()> {
        let session = step.session;
        if self.last != session {
            self.catch_up()?;
        }
        self.last = session;
        match &step.action {
            Action::Connect(settings) => self.connect(session, settings)?,
            Action::Say(messages) => {
                if let Some(client) = &mut self.seats[session].client {
                    client.say(messages);
                    client.listen(&mut self.outcome.heard[session], &mut self.oids);
                }
            }
            Action::Cancel(messages) => self.cancel(session, messages)?,
            Action::CancelNothing => {
                if let Some(client) = &self.seats[session].client {
                    client.cancel(self.outcome.heard[session].pid)?;
                }
            }
            Action::Leave(messages) => {
                if let Some(mut client) = self.seats[session].client.take() {
                    client.say(messages);
                    drop(client);
                    self.settle(session)?;
                }
            }
            Action::HalfClose(messages) => {
                if let Some(mut client) = self.seats[session].client.take() {
                    client.say(messages);
                    client.half_close();
                    client.listen_to_the_end(&mut self.outcome.heard[session], &mut self.oids);
                    self.settle(session)?;
                }
            }
        }
        let seat = &mut self.seats[session];
        seat.bound = seat.is_there() && (seat.bound || step.binds) && !matches!(step.action, Action::Connect(_));
        seat.heavy = seat.in_transaction() && (seat.heavy || step.alone);
        self.outcome.steps.push(step);
        Ok(())
    }

    fn connect(&mut self, session: usize, settings: &[(&str, Vec<u8>)]) -> Result<()> {
        if let Some(mut client) = self.seats[session].client.take() {
            client.say(&[Message::Terminate]);
            drop(client);
            self.settle(session)?;
        }
        let own: [(&str, &[u8]); 2] = [("user", b"eq"), ("database", self.world.database.as_bytes())];
        let settings = settings.iter().map(|(name, value)| (*name, value.as_slice()));
        let settings: Vec<(&str, &[u8])> = own.into_iter().chain(settings).collect();
        let client = Client::connect(self.address(), &settings, &mut self.outcome.heard[session], &mut self.oids)?;
        self.seats[session].client = Some(client);
        Ok(())
    }

    /// Waits until changes by others are seen wherever the next one reads: a standby that is behind is no fault.
    fn catch_up(&mut self) -> Result<()> {
        if matches!(self.way, Way::Direct { .. }) {
            return Ok(());
        }
        let written = self.world.primary.value("select pg_current_wal_flush_lsn()")?;
        let replayed = format!("select pg_last_wal_replay_lsn() >= '{written}'");
        let deadline = Instant::now() + REPLAY_LIMIT;
        while self.world.standby.value(&replayed)? != "t" {
            if Instant::now() > deadline {
                bail!("the standby does not replay {written}");
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn cancel(&mut self, session: usize, messages: &[Message]) -> Result<()> {
        let patience = if matches!(self.way, Way::Direct { .. }) { SETTLE_LIMIT } else { WAITS };
        let (begun, mark) = (Instant::now(), mark(messages));
        let running = format!(
            "select count(*) > 0 from pg_stat_activity where state = 'active' and pid <> pg_backend_pid() \
             and query like '%{mark}%' and wait_event = 'PgSleep'"
        );
        let Some(mut client) = self.seats[session].client.take() else { return Ok(()) };
        client.say(messages);
        while !client.listen_for(POLL, &mut self.outcome.heard[session], &mut self.oids) {
            let world = &mut self.world;
            let runs = world.primary.value(&running)? == "t" || world.standby.value(&running)? == "t";
            if runs || begun.elapsed() > patience {
                client.cancel(self.outcome.heard[session].pid)?;
                let _ = client.listen_for(WAITS, &mut self.outcome.heard[session], &mut self.oids);
            }
            if begun.elapsed() > CANCEL_LIMIT {
                self.outcome.heard[session].words.push("it was not cancelled".to_owned());
                client.ended = true;
            }
        }
        self.seats[session].client = Some(client);
        Ok(())
    }

    /// Waits until what a client left behind is done, and looks at what came of it.
    fn settle(&mut self, session: usize) -> Result<()> {
        let deadline = Instant::now() + SETTLE_LIMIT;
        let state = match self.way {
            Way::Direct { .. } => {
                let pid = self.outcome.heard[session].pid;
                let there = format!("select count(*) from pg_stat_activity where pid = {pid}");
                while self.world.primary.value(&there)? != "0" {
                    if Instant::now() > deadline {
                        bail!("a backend does not end");
                    }
                    std::thread::sleep(POLL);
                }
                self.world.state()?
            }
            Way::Through { states, .. } => {
                let expected = states.get(self.outcome.states.len());
                let busy = self.seats.iter().filter(|seat| seat.in_transaction()).count();
                loop {
                    let state = self.world.state()?;
                    let done = expected == Some(&state) && self.world.busy()? <= busy;
                    if done || Instant::now() > deadline {
                        break state;
                    }
                    std::thread::sleep(POLL);
                }
            }
        };
        self.outcome.states.push(state);
        Ok(())
    }

    fn finish(mut self) -> Result<Outcome> {
        self.catch_up()?;
        for (seat, heard) in self.seats.iter_mut().zip(&mut self.outcome.heard) {
            if let Some(client) = seat.client.as_mut().filter(|client| !client.ended) {
                // Whatever is still to come, notifications of others too.
                client.say(&[Message::Sync]);
                client.listen(heard, &mut self.oids);
                client.say(&[Message::Terminate]);
            }
        }
        let last = self.seats.iter().rposition(|seat| seat.client.is_some());
        self.seats.iter_mut().for_each(|seat| seat.client = None);
        match last {
            Some(session) => self.settle(session)?,
            None => {
                let state = self.world.state()?;
                self.outcome.states.push(state);
            }
        }
        Ok(self.outcome)
    }
}

/// Mark by which a statement that is cancelled is known.
fn mark(messages: &[Message]) -> String {
    let text = messages.iter().find_map(|message| match message {
        Message::Query(text) | Message::Parse(_, text, _) => Some(String::from_utf8_lossy(text).into_owned()),
        _ => None,
    });
    let text = text.unwrap_or_default();
    let end = text.split("/* ").last().unwrap_or_default();
    end.trim_end_matches(" */").to_owned()
}

impl World {
    fn state(&mut self) -> Result<Vec<String>> {
        let mut rows = Vec::new();
        for query in STATE {
            rows.extend(self.primary.rows(query)?);
        }
        Ok(rows)
    }

    /// Servers that do something for a client.
    fn busy(&mut self) -> Result<usize> {
        const BUSY: &str = "select count(*) from pg_stat_activity where usename = 'eq' and state <> 'idle' \
                            and datname = current_database()";
        let on = |control: &mut Control| Ok::<usize, anyhow::Error>(control.value(BUSY)?.parse()?);
        Ok(on(&mut self.primary)? + on(&mut self.standby)?)
    }
}
