//! A new binary takes over every listener of a running one: nobody is refused meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
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

/// Address for clients.
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

/// A place for proxies: configuration, sockets, logs, and every door that clients use.
struct Site {
    folder: tempfile::TempDir,
    doors: Vec<Door>,
}

impl Site {
    fn new() -> Self {
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
        let doors = vec![
            Door::Tcp(address(0)),
            Door::Tcp(address(1)),
            Door::Tcp(address(2)),
            Door::Http(address(3)),
            Door::Tcp(address(4)),
            Door::Unix(path(&format!(".s.PGSQL.{}", ports[0]))),
        ];
        Self { folder, doors }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Starts a proxy with these further arguments and environment, and a log of this name.
    fn start(&self, log: &str, more: &[&str], environment: &[(&str, &Path)]) -> Process {
        let file = std::fs::File::create(self.path(log)).expect("log");
        let child = Command::new(env!("CARGO_BIN_EXE_manatee-proxy"))
            .arg("--config")
            .arg(self.path("proxy.toml"))
            .arg("--upgrade-socket")
            .arg(self.path("upgrade"))
            .args(more)
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("proxy");
        Process(child)
    }

    fn wait_until_open(&self) {
        for door in &self.doors {
            until(&format!("{door:?} answers"), || knock(door).is_ok());
        }
    }
}

/// Clients that connect at every door, over and over.
struct Visitors {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Visitors {
    fn at(doors: &[Door]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicUsize::new(0));
        let visit = |door: Door| {
            let (stop, served) = (stop.clone(), served.clone());
            std::thread::spawn(move || {
                let mut refused = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match knock(&door) {
                        Ok(_) => {
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => refused.push(format!("{door:?}: {error}")),
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                refused
            })
        };
        let threads = doors.iter().cloned().map(visit).collect();
        Self { stop, served, threads }
    }

    /// Waits until a hundred more were served.
    fn wait_for_more(&self) {
        let before = self.served.load(Ordering::Relaxed);
        until("a hundred more are served", || self.served.load(Ordering::Relaxed) > before + 100);
    }

    /// Ends the visits; all that were refused.
    fn refused(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    }
}

#[test]
fn a_successor_takes_over_every_listener() {
    let site = Site::new();
    let mut first = site.start("first.log", &[], &[]);
    site.wait_until_open();
    let visitors = Visitors::at(&site.doors);
    let mut second = site.start("second.log", &["--upgrade"], &[]);
    until("the successor waits for the listeners", || site.path("upgrade").exists());
    first.signal(Signal::SIGQUIT);
    until("the first process ends", || first.has_ended());
    visitors.wait_for_more();
    let refused = visitors.refused();
    assert!(refused.is_empty(), "{refused:?}\n{}\n{}", site.log("first.log"), site.log("second.log"));
    // And it stops when told to.
    second.signal(Signal::SIGTERM);
    until("the successor ends", || second.has_ended());
    assert!(knock(&site.doors[0]).is_err());
}

/// A process that is no child of this test; killed when dropped.
struct Stranger(Pid);

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

/// Notifications that a service manager gets.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Self {
        let ear = UnixDatagram::bind(path).expect("socket");
        ear.set_read_timeout(Some(PATIENCE)).expect("timeout");
        Self(ear)
    }

    /// The next message.
    fn hear(&self) -> String {
        let mut buffer = [0; 256];
        let length = self.0.recv(&mut buffer).expect("a message in time");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }
}

#[test]
fn sigusr2_starts_a_successor_that_becomes_the_main_process() {
    let site = Site::new();
    let notify = site.path("notify");
    let manager = Manager::at(&notify);
    let mut first = site.start("first.log", &[], &[("NOTIFY_SOCKET", &notify)]);
    assert_eq!(manager.hear(), "READY=1");
    site.wait_until_open();
    let visitors = Visitors::at(&site.doors);
    first.signal(Signal::SIGUSR2);
    let message = manager.hear();
    let pid = message.strip_prefix("MAINPID=").and_then(|rest| rest.strip_suffix("\nREADY=1"));
    let pid = pid.and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("heard {message:?}"));
    let successor = Stranger(Pid::from_raw(pid));
    until("the first process ends", || first.has_ended());
    visitors.wait_for_more();
    let refused = visitors.refused();
    assert!(refused.is_empty(), "{refused:?}\n{}", site.log("first.log"));
    // It can be replaced in turn, though it was itself started to take over.
    kill(successor.0, Signal::SIGUSR2).expect("signal");
    let message = manager.hear();
    let next = message.strip_prefix("MAINPID=").and_then(|rest| rest.strip_suffix("\nREADY=1"));
    let next = next.and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("heard {message:?}"));
    let _next = Stranger(Pid::from_raw(next));
    assert_ne!(next, pid);
    site.wait_until_open();
}

#[test]
fn a_successor_that_cannot_start_costs_nothing() {
    let site = Site::new();
    let first = site.start("first.log", &[], &[]);
    site.wait_until_open();
    let config = std::fs::read_to_string(site.path("proxy.toml")).expect("configuration");
    std::fs::write(site.path("proxy.toml"), config.replace("workers = 2", "wokers = 2")).expect("write");
    let visitors = Visitors::at(&site.doors);
    first.signal(Signal::SIGUSR2);
    until("the mistake is in the log", || site.log("first.log").contains("wokers"));
    visitors.wait_for_more();
    assert!(visitors.refused().is_empty(), "{}", site.log("first.log"));
}
