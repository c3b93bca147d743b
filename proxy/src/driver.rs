//! The one place where a logged-in client's session meets sockets.
//!
//! One task per client. It owns the client's stream and, while the session has one, a server's.
//! A client that sends nothing more gets what PostgreSQL gives it, which looks at its socket between two
//! statements only: what it sent is done, in order, and answered. Only what would do nothing but answer is cut
//! short, once it is known that nobody reads the answer: [`Parting`].
//!
//! Backpressure: neither side is read while more than [`BACKLOG_BYTES`] wait to be written to the
//! other; a slow reader holds up its own server only.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::Sleep;

use crate::auth::{Client, Opened};
use crate::error::ProxyError;
use crate::pool::census::{Activity, Seat, add, micros};
use crate::pool::{Lease, Server, Wanted, Worker, give_back};
use crate::route::Effects;
use crate::session::lost::How;
use crate::session::{
    Awake, CancelAim, Cleanup, Config, Fault, Ids, Kept, Need, News, ServedBy, Session, Shared, Step,
};
use crate::topology::consistency::Requirement;

mod parting;
mod sockets;

use parting::{ABANDONED_RUN, ABANDONED_WAIT, Parting, is_end, poll_waiting};
use sockets::{poll_fill, poll_write};

/// Waiting to be written, above which the other side is not read.
const BACKLOG_BYTES: usize = 256 << 10;
/// Read from a client whose last unit is still running.
const READ_AHEAD_BYTES: usize = 64 << 10;
/// Longest time for the last words to a client.
const FAREWELL: Duration = Duration::from_secs(5);
/// Time for which an idle client keeps its server because it may ask for its own sequence values, as it does right
/// after it has made some.
const LINGER: Duration = Duration::from_millis(200);
/// A node that was taken for the primary and is a standby: the topology will say so soon.
const MISTAKEN_PAUSE: Duration = Duration::from_millis(50);
/// Time for which a client may keep back the end of a unit before what there is of it is sent, to the primary and for
/// good: clients that want to wait for its end write it in one piece or soon after. Longer than a lost packet
/// takes to be sent again in one place.
const STALL: Duration = Duration::from_millis(50);

/// Serves one logged-in client until it leaves. Everything up to and including AuthenticationOk,
/// ParameterStatus, BackendKeyData and the first ReadyForQuery has been sent. Errors are told to
/// the client and counted here; nothing is left to do for the caller, whose `place` is held until then.
///
/// An idle client is little more than this future. To be spawned as it is: a future that awaits it has room for
/// it twice. What is needed only now and then is boxed.
pub fn run<S, P>(stream: S, client: Client, worker: Rc<Worker>, place: P) -> impl Future<Output = ()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut opened = Driver::open(stream, client, worker);
    async move {
        match &mut opened {
            Ok(driver) => {
                if let Err(error) = driver.serve().await {
                    let address = &driver.seat.present.facts.address;
                    tracing::debug!(%address, %error, "client connection ended");
                }
            }
            Err((stream, error)) => {
                let mut words = BytesMut::new();
                error.encode(&mut words);
                let _ = Box::pin(tokio::time::timeout(FAREWELL, stream.write_all(&words))).await;
            }
        }
        drop((opened, place));
    }
}

struct Driver<S> {
    stream: S,
    /// State of its session while it is idle; nobody's while it is awake.
    kept: Kept,
    server: Option<Box<Server>>,
    shared: Rc<RefCell<Shared>>,
    cancel: crate::cancel::Registration,
    requirement: Requirement,
    seed: usize,
    /// The last wait for a server ended without one, because there was no node for it.
    waited_in_vain: bool,
    /// Its place in the list of clients, and its counters.
    seat: Seat,
    /// Arrival of the event at hand, once somebody has asked: the clock is read as seldom as will do.
    moment: Option<Instant>,
    /// Bytes were written to the client's stream and not flushed (TLS keeps them otherwise).
    flush: bool,
    /// The last read from the client brought a buffer full.
    long: bool,
    /// Aim of a cancel request, as the registry was told last.
    aim: CancelAim,
    /// Runs while the client has begun a unit and does not end it.
    stall: Option<Pin<Box<Sleep>>>,
    /// The client sends nothing more.
    parting: Option<Box<Parting>>,
}

/// Event that has happened.
enum Event {
    /// Bytes of the client came.
    Client,
    /// Bytes of the server came.
    Server,
    /// The server is gone.
    ServerGone(Option<io::Error>),
    /// The client has kept its server for long enough.
    Lingered,
    /// There is nothing to do until the client says something.
    Idle,
    /// The client sends nothing more.
    ClientEnded,
    /// The client's connection is broken.
    ClientGone(io::Error),
    /// The time of a client that sends nothing more is over.
    Parting,
    /// No more of a unit came for a while.
    Stalled,
    /// The connection ends.
    Ending(Ending),
}

/// Reason why a connection ends.
enum Ending {
    /// The client is gone.
    Gone(Option<io::Error>),
    /// The proxy stops and the client is idle, or an administrator ended the connection.
    Stop,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// The error is what a client has to be told whose wishes are not understood.
    fn open(stream: S, client: Client, worker: Rc<Worker>) -> Result<Self, (S, ProxyError)> {
        let seat = worker.seat(&client);
        let Client { access, identity, startup, reported, cancel, opened, .. } = client;
        cancel.belongs_to(&identity);
        let shared = worker.shared(&identity.database);
        if let Opened::ForAll(upstream) = opened {
            worker.adopt(&identity, upstream, &shared);
        }
        let settings = worker.settings();
        let config = Config { access, mode: settings.mode, split: settings.split, consistency: settings.consistency };
        let kept = Kept::new(config, &startup, reported, &mut shared.borrow_mut());
        let kept = match kept {
            Ok(kept) => kept,
            Err(error) => {
                tracing::info!(address = %seat.present.facts.address, %error, "client refused");
                return Err((stream, error));
            }
        };
        let seed = worker.session_seed();
        Ok(Self {
            stream,
            kept,
            server: None,
            shared,
            cancel,
            requirement: Requirement::new(),
            seed,
            waited_in_vain: false,
            seat,
            moment: None,
            flush: false,
            long: false,
            aim: CancelAim::Nothing,
            stall: None,
            parting: None,
        })
    }

    /// Until the client leaves. The error is why it did so without saying.
    async fn serve(&mut self) -> io::Result<()> {
        loop {
            let (rx, ending) = poll_fn(|cx| self.poll_resting(cx)).await;
            self.moment = None;
            let mut awake = Awake::new(&mut self.kept, rx, &mut self.shared.borrow_mut());
            let over = match ending {
                None => self.work(&mut awake).await,
                Some(Ending::Gone(error)) => Some(error.map_or(Ok(()), Err)),
                Some(Ending::Stop) => {
                    awake.session.end_with(&ProxyError::ShuttingDown);
                    self.work(&mut awake).await
                }
            };
            match over {
                None => awake.rest(&mut self.kept, &mut self.shared.borrow_mut()),
                Some(over) => {
                    Box::pin(self.leave(awake)).await;
                    return over;
                }
            }
        }
    }

    /// Until there is nothing to do, or the client leaves.
    async fn work(&mut self, awake: &mut Awake) -> Option<io::Result<()>> {
        loop {
            let Awake { session, rx } = awake;
            if let Some(server) = &self.server {
                session.set_crowd(server.crowd());
            }
            let step = session.advance(rx, &mut self.shared.borrow_mut());
            while let Some(news) = session.poll_news() {
                self.hear_news(news);
            }
            match step {
                Step::Wait => {
                    self.note_asked(session);
                    self.note_bound(session);
                    self.aim_cancels(session);
                    if session.asks_for_itself() && self.is_being_cancelled() {
                        // It is for the client's statement before, not for what the proxy asks now.
                        Box::pin(self.cancels_land()).await;
                    }
                    let event = poll_fn(|cx| self.poll(awake, cx)).await;
                    self.moment = None;
                    let Awake { session, rx } = awake;
                    match event {
                        Event::Client => self.stall = None,
                        Event::Stalled => {
                            self.stall = None;
                            session.end_stall();
                        }
                        Event::Server => {
                            if self.hear_server(session, rx) == Err(Fault::ReadOnlyPrimary) {
                                Box::pin(tokio::time::sleep(MISTAKEN_PAUSE)).await;
                                self.moment = None;
                            }
                        }
                        Event::ServerGone(error) => {
                            tracing::debug!(?error, "server connection lost");
                            self.lose_server(session, How::Gone, rx);
                        }
                        Event::Lingered => session.end_linger(),
                        Event::ClientEnded => {
                            session.client_ended();
                            self.parting = Some(Parting::of(false, ABANDONED_RUN));
                        }
                        Event::ClientGone(error) => {
                            self.lose_client(session, ABANDONED_RUN);
                            if session.only_reads(rx) {
                                return Some(Err(error));
                            }
                        }
                        Event::Parting => match &mut self.parting {
                            Some(parting) if !parting.gone => {
                                parting.go_on();
                                if session.only_reads(rx) && !session.prod_client() {
                                    return Some(Ok(()));
                                }
                            }
                            _ => return Some(Ok(())),
                        },
                        Event::Ending(Ending::Stop) => session.end_with(&ProxyError::ShuttingDown),
                        Event::Ending(Ending::Gone(error)) => return Some(error.map_or(Ok(()), Err)),
                        Event::Idle => return None,
                    }
                }
                Step::Acquire(need) => {
                    if self.aim != CancelAim::Nothing && self.was_cancelled(session, rx) {
                        continue;
                    }
                    if !self.try_attach(session, rx.len(), need)
                        && let Err(error) = Box::pin(self.wait_for_server(awake, need)).await
                    {
                        return Some(Err(error));
                    }
                }
                Step::Release => self.release(session, Cleanup::None),
                Step::Cancel(client) => session.canceled_client(self.cancel.cancel_other(client), rx),
                Step::End => return Some(Ok(())),
            }
        }
    }

    /// Says what a cancel request of the client is for now.
    fn aim_cancels(&mut self, session: &Session) {
        let aim = session.cancel_aim();
        if aim == self.aim {
            return;
        }
        self.aim = aim;
        match (aim, &self.server) {
            (CancelAim::Server, Some(server)) => self.cancel.attach(&server.cancel),
            (CancelAim::Held, _) => self.cancel.hold(),
            _ => self.cancel.detach(),
        }
    }

    /// A unit is to run again: not if the client has asked for it to be cancelled meanwhile.
    fn was_cancelled(&mut self, session: &mut Session, rx: &mut BytesMut) -> bool {
        self.aim_cancels(session);
        let asked = self.cancel.is_asked();
        if asked {
            session.refuse(&ProxyError::Canceled, rx);
        }
        asked
    }

    fn is_being_cancelled(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.cancel.is_cancel_in_flight())
    }

    async fn cancels_land(&self) {
        if let Some(server) = &self.server {
            server.cancel.all_landed().await;
        }
    }

    /// Nobody reads any more what is written to the client.
    fn lose_client(&mut self, session: &mut Session, limit: Duration) {
        session.client_ended();
        session.to_client().clear();
        self.flush = false;
        self.parting = Some(Parting::of(true, limit));
    }

    /// A moment after the event at hand came.
    fn now(&mut self) -> Instant {
        *self.moment.get_or_insert_with(Instant::now)
    }

    /// Notes when requests go out to a server, or how long it is kept without.
    fn note_asked(&mut self, session: &Session) {
        let Some(server) = &mut self.server else { return };
        let lease = &mut server.lease;
        if lease.asked.is_none() && session.is_outstanding() {
            lease.asked = Some(*self.moment.get_or_insert_with(Instant::now));
        }
        match session.is_lingering() {
            false => lease.linger = None,
            true if lease.linger.is_none() => lease.linger = Some(Box::pin(tokio::time::sleep(LINGER))),
            true => {}
        }
    }

    /// Notes by what the session is bound to its server.
    fn note_bound(&self, session: &Session) {
        let causes = session.bound_by(self.seat.present.bound_by());
        if self.seat.present.is_bound_by(causes)
            && let Some(server) = &self.server
        {
            server.set_bound(!causes.is_empty());
        }
    }

    /// Counts what was outstanding and is answered now.
    fn note_answered(&mut self, session: &Session) {
        if session.is_outstanding() {
            return;
        }
        let Some(server) = &mut self.server else { return };
        let Some(asked) = server.lease.asked.take() else { return };
        let took = self.moment.get_or_insert_with(Instant::now).duration_since(asked);
        self.seat.worker.note_query(&self.seat.present, server.served_by.get(), took);
    }

    fn hear_news(&mut self, news: News) {
        match news {
            News::Used(by) => self.note_use(by),
            News::ErrorSent(code, origin) => crate::metrics::count_sqlstate(code.as_str(), origin.as_str()),
            News::Rerun => self.seat.worker.metrics.replays.increment(1),
            News::Vacate(databases) => self.seat.worker.vacate(databases),
        }
    }

    /// The client has seen something: what it reads from now on must not be older.
    fn note_use(&mut self, used: ServedBy) {
        let now = self.now();
        let Some(server) = &self.server else { return };
        let mut newest = self.seat.worker.newest();
        let snapshot = newest.load();
        match used {
            ServedBy::Primary => {
                self.seat.worker.note_primary_use(snapshot, now);
                self.requirement.used_primary(now, snapshot);
            }
            ServedBy::Standby => {
                self.seat.worker.metrics.on_standby.increment(1);
                self.requirement.read_from(server.node.id, now, snapshot);
            }
        }
    }

    /// Takes what came from the server. One with a fault is given up.
    fn hear_server(&mut self, session: &mut Session, rx: &mut BytesMut) -> Result<(), Fault> {
        let Some(server) = &mut self.server else { return Ok(()) };
        let heard = session.server_bytes(&mut server.rx, &mut self.shared.borrow_mut());
        if let Err(fault) = heard {
            tracing::debug!(%fault, node = %server.node.id, "server given up");
            self.lose_server(session, fault.how(), rx);
            return Err(fault);
        }
        self.note_answered(session);
        Ok(())
    }

    fn lose_server(&mut self, session: &mut Session, how: How, rx: &mut BytesMut) {
        if self.aim == CancelAim::Server {
            // The statement may run again: whether it is to be cancelled is kept.
            self.aim = CancelAim::Held;
            self.cancel.hold();
        }
        if let Some(server) = self.server.take() {
            self.seat.present.is_bound_by(Effects::NONE);
            self.seat.worker.forget_use(server.lease.number);
            self.seat.worker.suspect(server.node);
        }
        session.server_lost(how, rx);
    }

    fn release(&mut self, session: &mut Session, at_least: Cleanup) {
        self.aim_cancels(session);
        let (Some(mut server), Some(mut state)) = (self.server.take(), session.detach()) else {
            return;
        };
        server.lease.linger = None;
        self.seat.present.is_bound_by(Effects::NONE);
        self.seat.worker.forget_use(server.lease.number);
        state.cleanup = state.cleanup.max(at_least);
        let now = self.now();
        add(&self.seat.present.tally.transactions, 1);
        add(&self.seat.present.tally.transaction_us, micros(now.duration_since(server.lease.since)));
        give_back(server, state, &self.shared, now);
    }

    fn attach(&mut self, session: &mut Session, mut server: Box<Server>, now: Instant) {
        let Some(state) = server.state.take() else { return };
        self.waited_in_vain = false;
        server.lease = Lease::new(self.seat.worker.note_use(&server, &self.seat.present), now);
        session.attach(state, server.served_by.get());
        session.set_ids(Ids { client: self.cancel.pid, server: server.cancel.pid });
        self.server = Some(server);
    }

    /// A server at once, if there is one: the usual case. `bytes` of the client wait for it.
    fn try_attach(&mut self, session: &mut Session, bytes: usize, need: Need) -> bool {
        let began = self.now();
        let Self { shared, requirement, seat, seed, waited_in_vain, .. } = self;
        let mut wanted = Wanted {
            identity: &seat.present.facts.identity,
            shared,
            need,
            requirement,
            consistency: session.consistency(),
            seed: *seed,
            mark: session.mark(),
            bytes,
            waited_in_vain: *waited_in_vain,
        };
        let server = seat.worker.try_acquire(&mut wanted, began);
        let found = server.is_some();
        if let Some(server) = server {
            self.attach(session, server, began);
        }
        found
    }

    /// The error ends the connection: the client is gone, and nothing is lost with what it sent.
    async fn wait_for_server(&mut self, awake: &mut Awake, need: Need) -> io::Result<()> {
        let Awake { session, rx } = awake;
        let began = self.now();
        let (worker, client) = (self.seat.worker.clone(), self.seat.present.clone());
        client.is_now(Activity::Waiting(began));
        self.aim_cancels(session);
        if self.parting.as_ref().is_some_and(|parting| parting.gone) {
            self.parting = Some(Parting::of(true, ABANDONED_WAIT));
        }
        let acquired = {
            let (mark, consistency) = (session.mark().clone(), session.consistency());
            let Self { stream, flush, shared, requirement, seed, cancel, parting, waited_in_vain, .. } = self;
            let (seed, bytes, waited_in_vain) = (*seed, rx.len(), *waited_in_vain);
            let identity = &client.facts.identity;
            let wanted =
                Wanted { identity, shared, need, requirement, consistency, seed, mark: &mark, bytes, waited_in_vain };
            let mut acquiring = pin!(worker.acquire(wanted));
            // While it waits the client gets what is its due, a cancel is heard, and its leaving is noticed.
            // Cancel-safe: what is read stays in `rx`, a dropped acquisition gives its place back.
            poll_fn(|cx| {
                if client.end.poll(cx) {
                    return Poll::Ready(Ok(Err(ProxyError::ShuttingDown)));
                }
                if cancel.poll_asked(cx) {
                    return Poll::Ready(Ok(Err(ProxyError::Canceled)));
                }
                if let Poll::Ready(acquired) = acquiring.as_mut().poll(cx) {
                    return Poll::Ready(Ok(acquired));
                }
                poll_waiting(stream, rx, session, flush, parting, &mut shared.borrow_mut().buffers, cx).map(Err)
            })
            .await
        };
        self.moment = None;
        let now = self.now();
        client.is_now(Activity::Idle);
        add(&client.tally.wait_us, micros(now.duration_since(began)));
        if let Some(parting) = &mut self.parting
            && parting.gone
        {
            *parting = Parting::of(true, ABANDONED_RUN);
        }
        match acquired? {
            Ok(server) => self.attach(session, server, now),
            Err(error) => {
                self.waited_in_vain =
                    matches!(error, ProxyError::HoldTimeout(_) | ProxyError::NoStandby(_)) || error.is_server_unready();
                self.note(&error);
                session.refuse(&error, rx);
            }
        }
        Ok(())
    }

    fn note(&self, error: &ProxyError) {
        tracing::info!(%error, sqlstate = %error.sqlstate(), "error sent to client");
    }

    /// While there is nothing to do: what the client says, or why it is over.
    fn poll_resting(&mut self, cx: &mut Context<'_>) -> Poll<(BytesMut, Option<Ending>)> {
        let Seat { worker, present, .. } = &self.seat;
        let mut rx = BytesMut::new();
        if present.end.poll(cx) {
            return Poll::Ready((rx, Some(Ending::Stop)));
        }
        let ending =
            match poll_fill(&mut self.stream, &mut rx, &mut self.shared.borrow_mut().buffers, &mut self.long, cx) {
                Poll::Ready(Ok(0)) => Some(Ending::Gone(None)),
                Poll::Ready(Ok(count)) => {
                    add(&present.tally.received, count as u64);
                    None
                }
                Poll::Ready(Err(error)) => Some(Ending::Gone(Some(error))),
                Poll::Pending if worker.is_stopping() => Some(Ending::Stop),
                Poll::Pending => return Poll::Pending,
            };
        Poll::Ready((rx, ending))
    }

    /// Writes what can be written, then reads one side.
    fn poll(&mut self, awake: &mut Awake, cx: &mut Context<'_>) -> Poll<Event> {
        let mut shared = self.shared.borrow_mut();
        let buffers = &mut shared.buffers;
        if let Some(parting) = &mut self.parting {
            if parting.gone {
                awake.session.to_client().clear();
            }
            if parting.timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Parting);
            }
        }
        if let Poll::Ready(Err(error)) = poll_write(&mut self.stream, awake.session.to_client(), &mut self.flush, cx) {
            return Poll::Ready(Event::ClientGone(error));
        }
        if !self.flush && awake.may_rest() {
            return Poll::Ready(Event::Idle);
        }
        let Awake { session, rx } = awake;
        if self.seat.present.end.poll(cx) {
            return Poll::Ready(Event::Ending(Ending::Stop));
        }
        if let Some(server) = &mut self.server {
            if server.recall.poll(cx) {
                return Poll::Ready(Event::ServerGone(None));
            }
            if let Poll::Ready(Err(error)) = poll_write(&mut server.stream, session.to_server(), &mut server.flush, cx)
            {
                // It may have said why before it went.
                return match poll_fill(&mut server.stream, &mut server.rx, buffers, &mut server.lease.long, cx) {
                    Poll::Ready(Ok(1..)) => Poll::Ready(Event::Server),
                    _ => Poll::Ready(Event::ServerGone(Some(error))),
                };
            }
            if session.to_client().len() < BACKLOG_BYTES {
                match poll_fill(&mut server.stream, &mut server.rx, buffers, &mut server.lease.long, cx) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Event::ServerGone(None)),
                    Poll::Ready(Ok(count)) => {
                        add(&self.seat.present.tally.sent, count as u64);
                        return Poll::Ready(Event::Server);
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Event::ServerGone(Some(error))),
                    Poll::Pending => {}
                }
            }
        }
        if self.parting.is_some() {
            // Nothing can follow: what is left is not enough to go on.
            let is_stuck = session.is_stuck() && session.to_server().is_empty() && session.to_client().is_empty();
            return if is_stuck && !self.flush {
                Poll::Ready(Event::Ending(Ending::Gone(None)))
            } else {
                Poll::Pending
            };
        }
        let limit = if session.wants_client() { usize::MAX } else { READ_AHEAD_BYTES };
        if rx.len() < limit && session.to_server().len() < BACKLOG_BYTES && session.to_client().len() < BACKLOG_BYTES {
            match poll_fill(&mut self.stream, rx, buffers, &mut self.long, cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Event::ClientEnded),
                Poll::Ready(Ok(count)) => {
                    add(&self.seat.present.tally.received, count as u64);
                    return Poll::Ready(Event::Client);
                }
                Poll::Ready(Err(error)) if is_end(&error) => return Poll::Ready(Event::ClientEnded),
                Poll::Ready(Err(error)) => return Poll::Ready(Event::ClientGone(error)),
                Poll::Pending => {}
            }
        }
        if session.is_idle() {
            session.trim(buffers);
        }
        if session.is_stalled(rx.len()) {
            let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL)));
            if stall.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Stalled);
            }
        }
        if let Some(Lease { linger, .. }) = self.server.as_mut().map(|server| &mut server.lease)
            && linger.as_mut().is_some_and(|linger| linger.as_mut().poll(cx).is_ready())
        {
            *linger = None;
            return Poll::Ready(Event::Lingered);
        }
        if session.is_idle() && self.seat.worker.is_stopping() {
            return Poll::Ready(Event::Ending(Ending::Stop));
        }
        Poll::Pending
    }

    /// The client is gone or going: the server is given back or closed, last words are said.
    async fn leave(&mut self, mut awake: Box<Awake>) {
        let Awake { session, rx } = &mut *awake;
        // What it sent to be done is done by the server, even if nobody waits for that any more.
        let finishes = self.parting.as_ref().is_some_and(|parting| parting.gone) && !session.only_reads(rx);
        let cleanup = session.disown();
        self.seat.worker.clean_after(&self.seat.present.facts.identity, &self.shared);
        if session.is_outstanding() || session.is_in_transaction() {
            // Closing the connection rolls back, once the server notices; what runs is cancelled.
            self.aim = CancelAim::Nothing;
            self.cancel.detach();
            if let Some(server) = self.server.take() {
                self.seat.worker.forget_use(server.lease.number);
                if session.is_outstanding() && !finishes && !server.recall.is_recalled() {
                    tokio::task::spawn_local(cancel_abandoned(server));
                }
            }
        } else {
            self.release(session, cleanup);
        }
        let farewell = async {
            self.stream.write_all(session.to_client()).await?;
            self.stream.shutdown().await
        };
        // The client may have stopped reading.
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }
}

/// Cancels what a client that is gone left running; the server keeps its place in the pool until
/// the cancel is delivered. A server reads its socket only between requests.
async fn cancel_abandoned(server: Box<Server>) {
    // The connection is not used again, whatever became of it.
    let _ = server.cancel.deliver().await;
}
