//! Entry points for fuzzers: arbitrary bytes into everything that reads what strangers send. No
//! sockets, no clock; each call is a world of its own, so that what fails once fails again.
//!
//! A target returns; it must not panic, loop, or hold more than a small multiple of what it was given.
//! `tests/fuzz.rs` runs them on mutated conversations; the signatures are those of cargo-fuzz.

use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use bytes::BytesMut;

use manatee_proxy::auth;
use manatee_proxy::pool::Mode;
use manatee_proxy::route::class::{Access, Reason, SqlContext, TextEncoding};
use manatee_proxy::route::{Catalog, Classifier, classify_uncached};
use manatee_proxy::session::buffers::consume;
use manatee_proxy::session::lost::How;
use manatee_proxy::session::{Config, Kept, Need, ServedBy, ServerState, Session, Shared, Step};
use manatee_proxy::topology::consistency::Consistency;
use manatee_proxy::wire::scram::Verifier;
use manatee_proxy::wire::startup::{HEADER_BYTES, Header, Startup, parse_cancel, parse_sasl_initial};

/// Steps a session may take over one chunk before it is said to loop. A unit is tried ten times at
/// most, and a chunk of 255 bytes holds 51 units at most.
const MAX_STEPS: usize = 10_000;

/// Bytes a session may hold for its client beyond what it was given: errors, ReadyForQuery, answers
/// of the proxy itself for each message of five bytes.
const MAX_SWELL: usize = 200;

/// Messages of a client before it is authenticated.
pub(crate) fn startup(data: &[u8]) {
    let mut rest = data;
    while let Some((head, body)) = rest.split_first_chunk::<HEADER_BYTES>() {
        rest = body;
        match Header::parse(*head) {
            Ok(Header::Startup { minor, rest: length }) => {
                let _ = Startup::parse(minor, &body[..length.min(body.len())]);
                return;
            }
            Ok(Header::Cancel { rest: length } | Header::ForwardedCancel { rest: length }) => {
                let _ = parse_cancel(&body[..length.min(body.len())]);
                return;
            }
            Ok(Header::Ssl | Header::GssEnc) => {}
            Err(_) => return,
        }
    }
}

/// SASL messages and verifiers.
pub(crate) fn scram(data: &[u8]) {
    let (first, last) = data.split_at(data.len() / 2);
    let _ = parse_sasl_initial(first);
    let _ = Verifier::parse(&String::from_utf8_lossy(last));
}

/// A text of SQL: what is said from the cache is what the parser says.
pub(crate) fn classify(data: &[u8], catalog: &Arc<ArcSwapOption<Catalog>>) {
    let (flags, text) = data.split_first().unwrap_or((&0, data));
    // A text of the protocol ends at the first NUL (manual, section 55.6).
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let encoding = match flags >> 1 & 3 {
        0 => TextEncoding::Utf8,
        1 => TextEncoding::Unsafe,
        2 => TextEncoding::Latin1,
        _ => TextEncoding::AsciiSafe,
    };
    let context = SqlContext { standard_conforming_strings: flags & 1 == 0, encoding };
    let mut classifier = Classifier::new(1, 16, catalog.clone());
    let first = classifier.classify(text, context);
    let again = classifier.classify(text, context);
    assert_eq!(first, again, "from the cache");
    let uncached = classify_uncached(text, context, catalog.load().as_deref());
    // Too many comments to be read; its fingerprint has none.
    let unread = uncached.access == Access::Primary(Reason::Unreadable);
    assert!(
        unread || uncached.access.is_read_only() || !first.access.is_read_only(),
        "{first:?} is less strict than {uncached:?}"
    );
}

/// Both sides of a session at once. A byte says whose the next chunk is and how long it is; some of
/// its values are events: the server is lost, the pool refuses.
pub(crate) fn session(data: &[u8]) {
    let mut world = World::new(data.first().copied().unwrap_or_default());
    let mut rest = data.get(1..).unwrap_or_default();
    while let Some((&control, after)) = rest.split_first() {
        rest = after;
        match control {
            0xFF => world.lose(How::Gone),
            0xFE => world.lose(How::Refused),
            0xFD => world.refuse_next = true,
            _ => {
                let length = usize::from(control & 0x7F).min(rest.len());
                let (chunk, after) = rest.split_at(length);
                rest = after;
                world.chunk(control & 0x80 != 0, chunk);
            }
        }
        if world.ended {
            return;
        }
    }
}

struct World {
    session: Session,
    shared: Shared,
    client: BytesMut,
    server: BytesMut,
    attached: bool,
    refuse_next: bool,
    ended: bool,
    given: usize,
}

impl World {
    fn new(flags: u8) -> Self {
        let mut shared = Shared::new(Classifier::new(1, 64, Arc::default()));
        shared.sequences_are_read = flags & 4 != 0;
        let access = if flags & 1 == 0 { auth::Access::ReadWrite } else { auth::Access::ReadOnly };
        let mode = if flags & 2 == 0 { Mode::Transaction } else { Mode::Session };
        let config = Config { access, mode, split: flags & 8 == 0, consistency: Consistency::Session };
        // Without startup options it cannot fail; if it does, that is what was to be found.
        #[allow(clippy::expect_used, reason = "a test may stop at the first surprise")]
        let session = Session::of(Kept::new(config, &[], Vec::new(), &mut shared).expect("a session"));
        Self {
            session,
            shared,
            client: BytesMut::new(),
            server: BytesMut::new(),
            attached: false,
            refuse_next: false,
            ended: false,
            given: 0,
        }
    }

    fn chunk(&mut self, of_server: bool, chunk: &[u8]) {
        self.given += chunk.len();
        if !of_server {
            self.client.extend_from_slice(chunk);
        } else if self.attached {
            self.server.extend_from_slice(chunk);
            if let Err(fault) = self.session.server_bytes(&mut self.server, &mut self.shared) {
                self.lose(fault.how());
            }
        }
        self.go_on();
    }

    fn go_on(&mut self) {
        for _ in 0..MAX_STEPS {
            let step = self.session.advance(&mut self.client, &mut self.shared);
            while self.session.poll_news().is_some() {}
            let held = self.session.to_client().len();
            assert!(held <= (self.given + 1) * MAX_SWELL, "{held} bytes for the client of {} given", self.given);
            // The client and the server read everything.
            let said = self.session.to_client().len();
            consume(self.session.to_client(), said);
            let asked = self.session.to_server().len();
            assert!(self.attached || asked == 0, "bytes for a server that is not there");
            consume(self.session.to_server(), asked);
            match step {
                Step::Wait => return,
                Step::End => {
                    self.ended = true;
                    return;
                }
                Step::Acquire(_) if std::mem::take(&mut self.refuse_next) => {
                    self.session.refuse(&manatee_proxy::error::ProxyError::TooManyClients, &mut self.client);
                }
                Step::Acquire(need) => {
                    assert!(!self.attached, "a second server");
                    let served_by = if need == Need::Primary { ServedBy::Primary } else { ServedBy::Standby };
                    let state = ServerState::new(Vec::new(), &self.shared);
                    self.session.attach(state, served_by);
                    self.attached = true;
                }
                Step::Cancel(_) => self.session.canceled_client(false, &mut self.client),
                Step::Release => {
                    assert!(self.attached, "no server to release");
                    assert!(!self.session.is_outstanding(), "released with requests outstanding");
                    self.attached = false;
                    self.server.clear();
                    assert!(self.session.detach().is_some(), "the server's state is lost");
                }
            }
        }
        panic_for_loop();
    }

    fn lose(&mut self, how: How) {
        if std::mem::take(&mut self.attached) {
            self.server.clear();
            self.session.server_lost(how, &mut self.client);
            self.go_on();
        }
    }
}

#[allow(clippy::panic, reason = "a test may stop at the first surprise")]
fn panic_for_loop() {
    panic!("the session loops");
}

/// The targets by name: for one program that runs them all.
pub(crate) fn targets() -> [(&'static str, Target); 4] {
    [
        ("startup", Rc::new(startup)),
        ("scram", Rc::new(scram)),
        ("classify", Rc::new(|data: &[u8]| classify(data, &Arc::default()))),
        ("session", Rc::new(session)),
    ]
}

/// Takes whatever it is given.
pub(crate) type Target = Rc<dyn Fn(&[u8])>;
