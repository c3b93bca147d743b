//! A new binary takes over every listener of a running one: nobody is refused meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(60);
/// SSLRequest; it is answered by whoever serves, with or without a database.
const QUESTION: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];

/// A proxy process; killed when dropped.
struct Process(Child);

impl Process {
    fn start(config: &Path, socket: &Path, more: &[&str], log: &Path) -> Self {
        let log = std::fs::File::create(log).expect("log");
        let child = Command::new(env!("CARGO_BIN_EXE_manatee-proxy"))
            .arg("--config")
            .arg(config)
            .arg("--upgrade-socket")
            .arg(socket)
            .args(more)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("proxy");
        Self(child)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).expect("pid")), signal).expect("signal");
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("wait").is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Where clients connect.
#[derive(Clone, Debug)]
enum Door {
    Tcp(SocketAddr),
    Unix(PathBuf),
    Http(SocketAddr),
}

/// Connects and waits for an answer.
fn knock(door: &Door) -> std::io::Result<u8> {
    fn ask(mut stream: impl Read + Write, question: &[u8]) -> std::io::Result<u8> {
        stream.write_all(question)?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        Ok(byte[0])
    }
    let tcp = |address: &SocketAddr| {
        let stream = TcpStream::connect_timeout(address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok::<_, std::io::Error>(stream)
    };
    match door {
        Door::Tcp(address) => ask(tcp(address)?, &QUESTION),
        Door::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            ask(stream, &QUESTION)
        }
        Door::Http(address) => ask(tcp(address)?, b"GET /healthz HTTP/1.0\r\n\r\n"),
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("free").port()
}

#[test]
fn a_successor_takes_over_every_listener() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name);
    let ports: [u16; 5] = std::array::from_fn(|_| free_port());
    let address = |index: usize| SocketAddr::from(([127, 0, 0, 1], ports[index]));
    std::fs::write(path("password"), "x\n").expect("write");
    // Secrets are not everybody's.
    std::fs::set_permissions(path("password"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
    let text = format!(
        "workers = 2\n[listen]\naddress = \"{}\"\nread_only = \"{}\"\nprimary_only = \"{}\"\nhttp = \"{}\"\n\
         unix_directory = {:?}\nupgrade_drain = \"1s\"\n[[listen.shards]]\naddress = \"{}\"\nshard = \"other\"\n\
         [zookeeper]\nservers = [\"127.0.0.1:1\"]\n[shard]\nname = \"test\"\n[auth]\npassword_file = {:?}\n",
        address(0),
        address(1),
        address(2),
        address(3),
        folder.path(),
        address(4),
        path("password"),
    );
    std::fs::write(path("proxy.toml"), text).expect("write");
    let doors = [
        Door::Tcp(address(0)),
        Door::Tcp(address(1)),
        Door::Tcp(address(2)),
        Door::Http(address(3)),
        Door::Tcp(address(4)),
        Door::Unix(path(&format!(".s.PGSQL.{}", ports[0]))),
    ];
    let (config, socket) = (path("proxy.toml"), path("upgrade"));
    let mut first = Process::start(&config, &socket, &[], &path("first.log"));
    for door in &doors {
        until(&format!("{door:?} answers"), || knock(door).is_ok());
    }

    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let knocking: Vec<_> = doors
        .iter()
        .cloned()
        .map(|door| {
            let (stop, served) = (stop.clone(), served.clone());
            std::thread::spawn(move || {
                let mut refused = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match knock(&door) {
                        Ok(_) => served.fetch_add(1, Ordering::Relaxed),
                        Err(error) => {
                            refused.push(format!("{door:?}: {error}"));
                            0
                        }
                    };
                    std::thread::sleep(Duration::from_millis(2));
                }
                refused
            })
        })
        .collect();
    let second = Process::start(&config, &socket, &["--upgrade"], &path("second.log"));
    until("the successor waits for the listeners", || socket.exists());
    first.signal(Signal::SIGQUIT);
    until("the first process ends", || first.has_ended());
    let before = served.load(Ordering::Relaxed);
    until("the successor serves", || served.load(Ordering::Relaxed) > before + 100);
    stop.store(true, Ordering::Relaxed);
    let refused: Vec<String> = knocking.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
    let served = served.load(Ordering::Relaxed);
    println!("{served} connects over {} listeners during the hand-over, {} refused", doors.len(), refused.len());
    let log = |name: &str| std::fs::read_to_string(path(name)).unwrap_or_default();
    assert!(refused.is_empty(), "{refused:?}\n{}\n{}", log("first.log"), log("second.log"));
    // And it stops when told to.
    let mut second = second;
    second.signal(Signal::SIGTERM);
    until("the successor ends", || second.has_ended());
    assert!(knock(&doors[0]).is_err());
}
