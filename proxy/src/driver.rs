//! The one place where a logged-in client's session meets sockets.
//!
//! One task per client. It owns the client's stream and, while the session has one, a server's.
//! Backpressure: neither side is read while more than [`BACKLOG_BYTES`] wait to be written to the
//! other; a slow reader holds up its own server only.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::auth::{Client, Opened};
use crate::error::ProxyError;
use crate::pool::census::{Activity, Seat, add, micros};
use crate::pool::{Server, Wanted, Worker, give_back};
use crate::session::buffers::{BUFFER_BYTES, Buffers};
use crate::session::lost::How;
use crate::session::{Cleanup, Config, Fault, Need, ServedBy, Session, Shared, Step};
use crate::topology::consistency::Requirement;

/// Waiting to be written, above which the other side is not read.
const BACKLOG_BYTES: usize = 256 << 10;
/// Read from a client whose last unit is still running.
const READ_AHEAD_BYTES: usize = 64 << 10;
/// How long the last words to a client may take.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long an idle client keeps its server because it may ask for its own sequence values, as it does right
/// after it has made some.
const LINGER: Duration = Duration::from_millis(200);
/// A node that was taken for the primary and is a standby: the topology will say so soon.
const MISTAKEN_PAUSE: Duration = Duration::from_millis(50);

/// Serves one logged-in client until it leaves. Everything up to and including AuthenticationOk,
/// ParameterStatus, BackendKeyData and the first ReadyForQuery has been sent. Errors are told to
/// the client and counted here; nothing is left to do for the caller.
///
/// An idle client is little more than this future: what is needed only now and then is boxed.
pub fn run<S>(stream: S, client: Client, worker: Rc<Worker>) -> impl Future<Output = ()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let address = client.address;
    let mut opened = Driver::open(stream, client, worker);
    async move {
        match &mut opened {
            Ok(driver) => {
                if let Err(error) = driver.serve().await {
                    tracing::debug!(%address, %error, "client connection ended");
                }
                Box::pin(driver.leave()).await;
            }
            Err((stream, error)) => {
                tracing::info!(%address, %error, "client refused");
                let mut words = BytesMut::new();
                error.encode(&mut words);
                let _ = Box::pin(tokio::time::timeout(FAREWELL, stream.write_all(&words))).await;
            }
        }
    }
}

struct Driver<S> {
    stream: S,
    rx: BytesMut,
    session: Session,
    /// With its number among those in use.
    server: Option<(Box<Server>, usize)>,
    worker: Rc<Worker>,
    shared: Rc<RefCell<Shared>>,
    identity: std::sync::Arc<crate::auth::Identity>,
    cancel: crate::cancel::Registration,
    requirement: Requirement,
    seed: usize,
    /// Its place in the list of clients, and its counters.
    seat: Seat,
    /// When the event at hand came, once somebody has asked: the clock is read as seldom as will do.
    moment: Option<Instant>,
    /// When the server was attached.
    attached: Instant,
    /// When what is outstanding at the server was sent.
    asked: Option<Instant>,
    /// Runs while the client keeps its server for a moment only.
    linger: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Bytes were written to the client's stream and not flushed (TLS keeps them otherwise).
    flush: bool,
}

/// What has happened.
enum Event {
    /// Bytes of the client came.
    Client,
    /// The client is gone.
    ClientGone(Option<io::Error>),
    /// Bytes of the server came.
    Server,
    /// The server is gone.
    ServerGone(Option<io::Error>),
    /// The proxy stops and the client is idle.
    Stop,
    /// An administrator ended the connection.
    Killed,
    /// The client has kept its server for long enough.
    Lingered,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// The error is what a client has to be told whose wishes are not understood.
    fn open(stream: S, client: Client, worker: Rc<Worker>) -> Result<Self, (S, ProxyError)> {
        let seat = worker.seat(&client);
        let Client { access, identity, startup, reported, cancel, opened, .. } = client;
        let shared = worker.shared(&identity.database);
        if let Opened::ForAll(upstream) = opened {
            worker.adopt(&identity, upstream, &shared);
        }
        let settings = worker.settings();
        let config = Config { access, mode: settings.mode, split: settings.split, consistency: settings.consistency };
        let session = Session::new(config, &startup, reported, &mut shared.borrow_mut());
        let session = match session {
            Ok(session) => session,
            Err(error) => return Err((stream, error)),
        };
        let seed = worker.session_seed();
        Ok(Self {
            stream,
            rx: BytesMut::new(),
            session,
            server: None,
            worker,
            shared,
            identity,
            cancel,
            requirement: Requirement::new(),
            seed,
            seat,
            moment: None,
            attached: Instant::now(),
            asked: None,
            linger: None,
            flush: false,
        })
    }

    /// Until the client leaves. The error is why it did so without saying.
    async fn serve(&mut self) -> io::Result<()> {
        loop {
            let step = self.session.advance(&mut self.rx, &mut self.shared.borrow_mut());
            self.note_use();
            if let Some((code, origin)) = self.session.take_told() {
                crate::metrics::count_sqlstate(code.as_str(), origin.as_str());
            }
            match step {
                Step::Wait => match self.next().await {
                    Event::Client => {}
                    Event::Server => self.hear_server().await,
                    Event::ServerGone(error) => {
                        tracing::debug!(?error, "server connection lost");
                        self.lose_server(How::Gone);
                    }
                    Event::Lingered => self.session.end_linger(),
                    Event::Stop | Event::Killed => self.session.end_with(&ProxyError::ShuttingDown),
                    Event::ClientGone(error) => return error.map_or(Ok(()), Err),
                },
                Step::Acquire(need) => self.acquire(need).await?,
                Step::Release => {
                    self.release(Cleanup::None);
                    let reruns = self.session.take_reruns();
                    if reruns > 0 {
                        self.worker.metrics.replays.increment(reruns);
                    }
                }
                Step::End => return Ok(()),
            }
        }
    }

    /// A moment after the event at hand came.
    fn now(&mut self) -> Instant {
        *self.moment.get_or_insert_with(Instant::now)
    }

    /// What happens next. Notes when requests go out to a server.
    async fn next(&mut self) -> Event {
        if self.asked.is_none() && self.session.is_outstanding() {
            self.asked = Some(self.now());
        }
        match self.session.is_lingering() {
            false => self.linger = None,
            true if self.linger.is_none() => self.linger = Some(Box::pin(tokio::time::sleep(LINGER))),
            true => {}
        }
        let event = poll_fn(|cx| self.poll(cx)).await;
        self.moment = None;
        event
    }

    /// Counts what was outstanding and is answered now.
    fn note_answered(&mut self) {
        if self.session.is_outstanding() {
            return;
        }
        let Some(asked) = self.asked.take() else { return };
        let took = self.now().duration_since(asked);
        if let Some((server, _)) = &self.server {
            self.worker.note_query(&self.seat.present, server.served_by.get(), took);
        }
    }

    /// The client has seen something: what it reads from now on must not be older.
    fn note_use(&mut self) {
        let Some(used) = self.session.take_used() else { return };
        let now = self.now();
        let Some((server, _)) = &self.server else { return };
        let mut newest = self.worker.newest();
        let snapshot = newest.load();
        match used {
            ServedBy::Primary => {
                self.worker.note_primary_use(snapshot, now);
                self.requirement.used_primary(now, snapshot);
            }
            ServedBy::Standby => {
                self.worker.metrics.on_standby.increment(1);
                self.requirement.read_from(server.node.id, now, snapshot);
            }
        }
    }

    async fn hear_server(&mut self) {
        let Some((server, _)) = &mut self.server else { return };
        let result = self.session.server_bytes(&mut server.rx, &mut self.shared.borrow_mut());
        let Err(fault) = result else { return self.note_answered() };
        tracing::debug!(%fault, node = %server.node.id, "server given up");
        self.lose_server(fault.how());
        if fault == Fault::ReadOnlyPrimary {
            Box::pin(tokio::time::sleep(MISTAKEN_PAUSE)).await;
            self.moment = None;
        }
    }

    fn lose_server(&mut self, how: How) {
        self.cancel.detach();
        self.asked = None;
        if let Some((server, number)) = self.server.take() {
            self.worker.forget_use(number);
            self.worker.suspect(server.node);
        }
        self.session.server_lost(how, &mut self.rx);
        self.worker.metrics.replays.increment(self.session.take_reruns());
    }

    fn release(&mut self, at_least: Cleanup) {
        self.cancel.detach();
        let (Some((server, number)), Some(mut state)) = (self.server.take(), self.session.detach()) else {
            return;
        };
        self.worker.forget_use(number);
        state.cleanup = state.cleanup.max(at_least);
        let now = self.now();
        add(&self.seat.present.tally.transactions, 1);
        add(&self.seat.present.tally.transaction_us, micros(now.duration_since(self.attached)));
        give_back(server, state, &self.shared, now);
    }

    fn attach(&mut self, mut server: Box<Server>, now: Instant) {
        let Some(state) = server.state.take() else { return };
        self.cancel.attach(&server.cancel);
        let number = self.worker.note_use(&server, &self.seat.present);
        self.attached = now;
        self.session.attach(state, server.served_by.get());
        self.server = Some((server, number));
    }

    async fn acquire(&mut self, need: Need) -> io::Result<()> {
        let began = self.now();
        let mark = self.session.mark().clone();
        let mut wanted = Wanted {
            identity: &self.identity,
            shared: &self.shared,
            need,
            requirement: &mut self.requirement,
            consistency: self.session.consistency(),
            seed: self.seed,
            mark: &mark,
            bytes: self.rx.len(),
        };
        if let Some(server) = self.worker.try_acquire(&mut wanted, began) {
            self.attach(server, began);
            return Ok(());
        }
        let worker = self.worker.clone();
        let client = self.seat.present.clone();
        client.is_now(Activity::Waiting(began));
        let acquired = {
            let (stream, rx, session, flush) = (&mut self.stream, &mut self.rx, &mut self.session, &mut self.flush);
            let shared = &self.shared;
            let mut acquiring = Box::pin(worker.acquire(wanted));
            // While it waits the client gets what is its due, and its leaving is noticed. Cancel-safe:
            // what is read stays in `rx`, a dropped acquisition gives its place back.
            poll_fn(|cx| {
                if client.end.poll(cx) {
                    return Poll::Ready(Ok(Err(ProxyError::ShuttingDown)));
                }
                if let Poll::Ready(acquired) = acquiring.as_mut().poll(cx) {
                    return Poll::Ready(Ok(acquired));
                }
                poll_waiting(stream, rx, session.to_client(), flush, &mut shared.borrow_mut().buffers, cx).map(Err)
            })
            .await?
        };
        self.moment = None;
        let now = self.now();
        client.is_now(Activity::Idle);
        add(&client.tally.wait_us, micros(now.duration_since(began)));
        match acquired {
            Ok(server) => self.attach(server, now),
            Err(error) => {
                self.note(&error);
                self.session.refuse(&error, &mut self.rx);
            }
        }
        Ok(())
    }

    fn note(&self, error: &ProxyError) {
        tracing::info!(%error, sqlstate = %error.sqlstate(), "told to a client");
    }

    /// Writes what can be written, then reads one side.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let mut shared = self.shared.borrow_mut();
        let buffers = &mut shared.buffers;
        if let Poll::Ready(Err(error)) = poll_write(&mut self.stream, self.session.to_client(), &mut self.flush, cx) {
            return Poll::Ready(Event::ClientGone(Some(error)));
        }
        if self.seat.present.end.poll(cx) {
            return Poll::Ready(Event::Killed);
        }
        if let Some((server, _)) = &mut self.server {
            if server.recall.poll(cx) {
                return Poll::Ready(Event::ServerGone(None));
            }
            if let Poll::Ready(Err(error)) =
                poll_write(&mut server.stream, self.session.to_server(), &mut server.flush, cx)
            {
                // It may have said why before it went.
                return match poll_fill(&mut server.stream, &mut server.rx, buffers, cx) {
                    Poll::Ready(Ok(1..)) => Poll::Ready(Event::Server),
                    _ => Poll::Ready(Event::ServerGone(Some(error))),
                };
            }
            if self.session.to_client().len() < BACKLOG_BYTES {
                match poll_fill(&mut server.stream, &mut server.rx, buffers, cx) {
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
        let limit = if self.session.wants_client() { usize::MAX } else { READ_AHEAD_BYTES };
        if self.rx.len() < limit
            && self.session.to_server().len() < BACKLOG_BYTES
            && self.session.to_client().len() < BACKLOG_BYTES
        {
            match poll_fill(&mut self.stream, &mut self.rx, buffers, cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Event::ClientGone(None)),
                Poll::Ready(Ok(count)) => {
                    add(&self.seat.present.tally.received, count as u64);
                    return Poll::Ready(Event::Client);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Event::ClientGone(Some(error))),
                Poll::Pending => {}
            }
        }
        if self.session.is_idle() {
            self.session.trim(buffers);
        }
        if self.linger.as_mut().is_some_and(|linger| linger.as_mut().poll(cx).is_ready()) {
            self.linger = None;
            return Poll::Ready(Event::Lingered);
        }
        if self.session.is_idle() && self.worker.is_stopping() {
            return Poll::Ready(Event::Stop);
        }
        Poll::Pending
    }

    /// The client is gone or going: the server is given back or closed, last words are said.
    async fn leave(&mut self) {
        let cleanup = self.session.disown();
        self.worker.clean_after(&self.identity, &self.shared);
        if self.session.is_outstanding() || self.session.is_in_transaction() {
            // Closing the connection rolls back, once the server notices; what runs is cancelled.
            self.cancel.detach();
            if let Some((server, number)) = self.server.take() {
                self.worker.forget_use(number);
                if self.session.is_outstanding() && !server.recall.is_recalled() {
                    tokio::task::spawn_local(cancel_abandoned(server));
                }
            }
        } else {
            self.release(cleanup);
        }
        let farewell = async {
            self.stream.write_all(self.session.to_client()).await?;
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

/// While a session waits for a server: ready only when the client is gone.
fn poll_waiting<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    rx: &mut BytesMut,
    out: &mut BytesMut,
    flush: &mut bool,
    buffers: &mut Buffers,
    cx: &mut Context<'_>,
) -> Poll<io::Error> {
    if let Poll::Ready(Err(error)) = poll_write(stream, out, flush, cx) {
        return Poll::Ready(error);
    }
    while rx.len() < READ_AHEAD_BYTES {
        match poll_fill(stream, rx, buffers, cx) {
            Poll::Ready(Ok(0)) => return Poll::Ready(io::ErrorKind::UnexpectedEof.into()),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(error),
            Poll::Pending => break,
        }
    }
    Poll::Pending
}

/// Writes as much as goes.
fn poll_write<W: AsyncWrite + Unpin>(
    stream: &mut W,
    out: &mut BytesMut,
    flush: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while !out.is_empty() {
        match Pin::new(&mut *stream).poll_write(cx, out) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(written)) => {
                out.advance(written);
                *flush = true;
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        }
    }
    if *flush {
        match Pin::new(stream).poll_flush(cx) {
            Poll::Ready(Ok(())) => *flush = false,
            other => return other,
        }
    }
    Poll::Ready(Ok(()))
}

/// Reads once, at the end of the buffer, which it has only while there is something in it.
fn poll_fill<R: AsyncRead + Unpin>(
    stream: &mut R,
    rx: &mut BytesMut,
    buffers: &mut Buffers,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    buffers.lend(rx);
    if rx.capacity() - rx.len() < BUFFER_BYTES / 4 {
        rx.reserve(BUFFER_BYTES);
    }
    // Holds no state between polls.
    let filled = pin!(stream.read_buf(rx)).poll(cx);
    if filled.is_pending() {
        buffers.give_back(rx);
    }
    filled
}
