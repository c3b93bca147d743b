//! A relay to a ZooKeeper that loses the answer to a transaction, in one of the forms that networks have.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use manatee_shared::config::ZkSettings;

use super::Server;

/// `multi` among ZooKeeper's operations (ZooDefs.OpCode).
const MULTI: [u8; 4] = [0, 0, 0, 14];

/// Loss of a transaction's request or answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// It is carried out, and nothing comes back on its connection any more.
    Silence,
    /// It is carried out, and nothing comes back any more, on later connections either.
    SilenceForGood,
    /// It is carried out, and the connection is reset instead of an answer.
    Reset,
    /// The connection is reset before the server has it.
    Request,
}

/// Passes everything else. Its threads end with their connections, or with the test.
pub(crate) struct Relay {
    settings: ZkSettings,
    lost: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Line {
    silent: AtomicBool,
    resets: AtomicBool,
}

impl Relay {
    /// Loses the first `times` transactions.
    pub(crate) fn start(server: &Server, loss: Loss, times: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let servers = vec![listener.local_addr().unwrap().to_string()];
        let target = server.settings().servers.remove(0);
        let lost = Arc::new(AtomicUsize::new(0));
        let counter = lost.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(upstream) = TcpStream::connect(&target) else { continue };
                let line = Arc::new(Line::default());
                let for_good = loss == Loss::SilenceForGood && counter.load(Ordering::SeqCst) >= times;
                line.silent.store(for_good, Ordering::SeqCst);
                let (to, from) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
                let (answers, requests, counter) = (line.clone(), line, counter.clone());
                thread::spawn(move || pass_answers(from, to, &answers));
                thread::spawn(move || pass_requests(client, upstream, &requests, loss, times, &counter));
            }
        });
        Self { settings: ZkSettings { servers, ..server.settings() }, lost }
    }

    /// Settings for reaching ZooKeeper through it.
    pub(crate) fn settings(&self) -> ZkSettings {
        self.settings.clone()
    }

    /// Number of transactions that lost their answers.
    pub(crate) fn lost(&self) -> usize {
        self.lost.load(Ordering::SeqCst)
    }
}

fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Frame by frame: a length, and behind the connection's first request a number and an operation.
fn pass_requests(
    mut client: TcpStream,
    mut server: TcpStream,
    line: &Line,
    loss: Loss,
    times: usize,
    lost: &AtomicUsize,
) {
    let mut frame = Vec::new();
    loop {
        let mut length = [0; 4];
        if client.read_exact(&mut length).is_err() {
            break;
        }
        frame.resize(4 + usize::try_from(u32::from_be_bytes(length)).unwrap(), 0);
        frame[..4].copy_from_slice(&length);
        if client.read_exact(&mut frame[4..]).is_err() {
            break;
        }
        let writes = frame.get(8..12) == Some(&MULTI[..]) && !is_rehearsal(&frame);
        let loses = writes && lost.load(Ordering::SeqCst) < times;
        if loses {
            lost.fetch_add(1, Ordering::SeqCst);
            match loss {
                Loss::Silence | Loss::SilenceForGood => line.silent.store(true, Ordering::SeqCst),
                Loss::Reset => line.resets.store(true, Ordering::SeqCst),
                Loss::Request => {
                    reset(&client);
                    let _ = client.shutdown(std::net::Shutdown::Read);
                    let _ = server.shutdown(std::net::Shutdown::Both);
                    break;
                }
            }
        }
        if server.write_all(&frame).is_err() {
            break;
        }
    }
    let _ = server.shutdown(std::net::Shutdown::Write);
}

/// A transaction that cannot succeed, made to see whether another one would: it names the election nodes twice.
fn is_rehearsal(frame: &[u8]) -> bool {
    const ELECTION: &[u8] = b"/election/";
    frame.windows(ELECTION.len()).filter(|window| *window == ELECTION).count() > 1
}

fn pass_answers(mut server: TcpStream, mut client: TcpStream, line: &Line) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = server.read(&mut buffer) {
        if line.resets.load(Ordering::SeqCst) {
            reset(&client);
            break;
        }
        if !line.silent.load(Ordering::SeqCst) && client.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // A silent network does not say that the other side went away.
    if !line.silent.load(Ordering::SeqCst) {
        // The other thread's reading ends, and with both descriptors closed the connection.
        let _ = client.shutdown(std::net::Shutdown::Read);
    }
}
