//! Memory of a client that has run something and says nothing now: everything between its socket and the
//! session, counted byte by byte.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::{Buf as _, BufMut as _, BytesMut};
use manatee_proxy::auth::{Access, Client, Identity, Opened, Secret};
use manatee_proxy::cancel::Registry;
use manatee_proxy::driver;
use manatee_proxy::pool::{Catalogs, Limits, Mode, Settings, Worker};
use manatee_proxy::route::Catalog;
use manatee_proxy::tls::ClientStream;
use manatee_proxy::topology::consistency::Consistency;
use manatee_proxy::topology::{self, Node, Primary, Reign, Snapshot};
use manatee_proxy::wire::backend::{self, TxStatus};
use manatee_proxy::wire::{complete, frontend, put_message};

use super::TAKEN_BYTES;
use super::steady::{TEXT, bind_and_execute, described, rows};

/// Clients before those that are counted: pools, tables and buffers are there then.
const BEFORE: usize = 64;
/// Clients that are counted.
const COUNTED: usize = 448;

/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(20);

struct NoCatalog;

impl Catalogs for NoCatalog {
    fn of(&self, _: &str) -> Arc<ArcSwapOption<Catalog>> {
        Arc::default()
    }
}

/// A server that lets everybody in and answers everything with one row.
fn serve(listener: &TcpListener) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        std::thread::spawn(move || answer(stream));
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    stream.read_exact(&mut vec![0; u32::from_be_bytes(length) as usize - 4])?;
    let mut out = BytesMut::new();
    put_message(&mut out, b'R', |out| out.put_slice(&[0; 4]));
    put_message(&mut out, b'K', |out| out.put_slice(&[0, 0, 0, 1, 0, 0, 0, 2]));
    backend::put_ready(&mut out, TxStatus::Idle);
    let mut input = BytesMut::new();
    loop {
        stream.write_all(&out)?;
        out.clear();
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            count => input.put_slice(&chunk[..count]),
        }
        while let Ok(Some((header, _))) = complete(&input) {
            match header.tag {
                frontend::QUERY => {
                    put_message(&mut out, backend::ROW_DESCRIPTION, |out| out.put_slice(&[0; 30]));
                    rows(&mut out);
                }
                frontend::PARSE => backend::put_empty(&mut out, backend::PARSE_COMPLETE),
                frontend::DESCRIBE => described(&mut out),
                frontend::BIND => backend::put_empty(&mut out, backend::BIND_COMPLETE),
                frontend::EXECUTE => backend::put_command_complete(&mut out, "SELECT 0"),
                frontend::SYNC => backend::put_ready(&mut out, TxStatus::Idle),
                _ => {}
            }
            input.advance(header.size);
        }
    }
}

fn worker(primary: Node) -> Rc<Worker> {
    let (publisher, topology, _) = topology::channel();
    publisher.publish(Snapshot {
        sequence: 1,
        generation: 1,
        reign: Some(Reign { primary: primary.id, since_generation: 1 }),
        primary: Some(Primary { node: primary, timeline: None }),
        ..Snapshot::unknown()
    });
    let settings = Settings {
        mode: Mode::Transaction,
        size: 2,
        unbound_percent: 25,
        limits: Limits::NONE,
        query_wait_timeout: LIMIT,
        server_idle_timeout: LIMIT,
        server_lifetime: LIMIT,
        connect_timeout: LIMIT,
        split: true,
        consistency: Consistency::Session,
        hold_timeout: LIMIT,
        hold_standby_timeout: LIMIT,
        hold_max_clients: 1,
        hold_max_bytes: 1 << 20,
    };
    Worker::new("test", settings, topology, Arc::default(), Arc::new(NoCatalog), 42)
}

/// A client that has logged in, and its end of the connection.
fn admit(
    listener: &TcpListener,
    registry: &Arc<Registry>,
    identity: &Arc<Identity>,
) -> (ClientStream, Client, TcpStream) {
    let other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    other.set_nonblocking(true).unwrap();
    let (stream, address) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    let text = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let reported = [("client_encoding", "UTF8"), ("server_version", "15.0"), ("TimeZone", "Etc/UTC")];
    let client = Client {
        address,
        local: Some(listener.local_addr().unwrap()),
        tls: None,
        access: Access::ReadWrite,
        identity: identity.clone(),
        startup: [("application_name", "pgbench"), ("client_encoding", "UTF8")].map(text).into(),
        reported: reported.map(text).into(),
        cancel: registry.register(false).unwrap(),
        opened: Opened::Nothing,
    };
    (ClientStream::Plain(tokio::net::TcpStream::from_std(stream).unwrap()), client, other)
}

/// Sends it and waits for so many ReadyForQuery.
async fn ask(mut client: &TcpStream, request: &[u8], syncs: usize) {
    client.write_all(request).unwrap();
    let end: Vec<u8> = b"Z\0\0\0\x05I".to_vec();
    let (mut seen, mut chunk) = (Vec::new(), [0; 4096]);
    while seen.windows(end.len()).filter(|window| **window == end).count() < syncs {
        match client.read(&mut chunk) {
            Ok(0) => panic!("the proxy closed the connection"),
            Ok(count) => seen.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => tokio::time::sleep(Duration::from_micros(50)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Bytes of each of [`COUNTED`] clients that have sent this and say nothing now.
async fn bytes_of_idle_client(request: &[u8], syncs: usize) -> usize {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (server, front) = (listen(), listen());
    let id = format!("127.0.0.1:{}:1", server.local_addr().unwrap().port()).parse().unwrap();
    std::thread::spawn(move || serve(&server));
    let (worker, registry) = (worker(Node::of(id)), Registry::new());
    let identity =
        Arc::new(Identity { user: "app".into(), database: "app".into(), role: None, secrets: Secret::None.into() });
    let (mut before, mut others) = (0, Vec::with_capacity(BEFORE + COUNTED));
    for number in 0..BEFORE + COUNTED {
        if number == BEFORE {
            before = TAKEN_BYTES.get();
        }
        let (stream, client, other) = admit(&front, &registry, &identity);
        tokio::task::spawn_local(driver::run(stream, client, worker.clone(), ()));
        ask(&other, request, syncs).await;
        others.push(other);
    }
    // The last one's session is idle once it is polled again.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let taken = TAKEN_BYTES.get() - before;
    assert_eq!(registry.len(), BEFORE + COUNTED);
    usize::try_from(taken).unwrap() / COUNTED
}

fn measure(request: &[u8], syncs: usize) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default()).unwrap();
    let bytes = runtime.block_on(bytes_of_idle_client(request, syncs));
    println!("{bytes} bytes");
    bytes
}

#[test]
fn an_idle_client_has_little() {
    let mut request = BytesMut::new();
    frontend::put_query(&mut request, b"select 1");
    let bytes = measure(&request, 1);
    // 1,201 now: the task has 640, what tokio knows of the socket 256, its entry in the list of clients 216.
    assert!(bytes <= 1260, "{bytes}");
}

#[test]
fn an_idle_client_with_a_prepared_statement_has_little_more() {
    let mut request = BytesMut::new();
    frontend::put_parse(&mut request, b"P0_1", TEXT, &[0, 0]);
    frontend::put_empty(&mut request, frontend::SYNC);
    bind_and_execute(&mut request, b"P0_1");
    let bytes = measure(&request, 2);
    assert!(bytes <= 1420, "{bytes}");
}
