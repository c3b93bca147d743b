//! Bad input to each program: one clear line that says what, where and what to do, and a
//! non-zero exit; nothing is overwritten.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use manatee_tests::binaries::{Binaries, postgres_folder};
use manatee_tests::ports;
use tokio::process::Command;

/// Longest that a program may take to say what is wrong.
const LIMIT: Duration = Duration::from_secs(20);

struct Ended {
    success: bool,
    text: String,
}

impl Ended {
    /// A failure whose message names all of `words`, without a panic or a backtrace.
    #[track_caller]
    fn says(&self, words: &[&str]) {
        assert!(!self.success, "it succeeded: {}", self.text);
        for word in words {
            assert!(self.text.contains(word), "`{word}` is missing in: {}", self.text);
        }
        assert!(!self.text.contains("panicked"), "it panicked: {}", self.text);
    }
}

async fn run(program: &Path, args: &[&str]) -> Ended {
    run_with(program, args, &[]).await
}

async fn run_with(program: &Path, args: &[&str], environment: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(environment.iter().copied());
    let child = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(LIMIT, child).await.expect("it did not end").expect("it can be started");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ended { success: output.status.success(), text }
}

fn binaries() -> Binaries {
    Binaries::find(None).expect("programs")
}

/// A folder with the secrets, and configuration files that are right but for what a test changes.
struct Place {
    folder: tempfile::TempDir,
}

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        for name in ["replication.password", "proxy.password", "api.token"] {
            let path = folder.path().join(name);
            fs::write(&path, "secret\n").expect("secret");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
        }
        Self { folder }
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, text).expect("configuration");
        path.to_str().expect("text").to_owned()
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("peer")
    }

    fn sitter(&self, ports: [u16; 3], extra: &str) -> String {
        let folder = self.folder.path().display();
        let bin_dir = postgres_folder().expect("PostgreSQL");
        let [pg, backup, status] = ports;
        self.write(
            "sitter.toml",
            &format!(
                "shard = \"bad\"\n[peer]\nip = \"127.0.0.1\"\npg_port = {pg}\nbackup_port = {backup}\n\
                 status_port = {status}\ndir = \"{folder}/peer\"\n\
                 [zookeeper]\nservers = [\"127.0.0.1:1\"]\n[postgres]\nbin_dir = \"{}\"\n\
                 replication_password_file = \"{folder}/replication.password\"\n\
                 proxy_password_file = \"{folder}/proxy.password\"\n{extra}",
                bin_dir.display()
            ),
        )
    }

    fn proxy(&self, port: u16, http: u16, extra: &str) -> String {
        self.write(
            "proxy.toml",
            &format!(
                "[listen]\naddress = \"127.0.0.1:{port}\"\nhttp = \"127.0.0.1:{http}\"\n\
                 [zookeeper]\nservers = [\"127.0.0.1:1\"]\n[shard]\nname = \"bad\"\n\
                 [auth]\npassword_file = \"{}/proxy.password\"\n{extra}",
                self.folder.path().display()
            ),
        )
    }
}

fn free_ports() -> [u16; 3] {
    let mut taken = Vec::new();
    [(); 3].map(|()| ports::free(LOOPBACK, &mut taken).expect("port"))
}

#[tokio::test]
async fn an_unknown_key_is_named_with_its_line() {
    let place = Place::new();
    let [port, http, other] = free_ports();
    let config = place.sitter([port, http, other], "no_such_key = 1\n");
    run(&binaries().sitter, &["--config", &config, "--check-config"]).await.says(&["no_such_key", "sitter.toml:"]);
    let config = place.proxy(port, http, "no_such_key = 1\n");
    run(&binaries().proxy, &["--config", &config, "--check-config"]).await.says(&["no_such_key", "proxy.toml:"]);
}

#[tokio::test]
async fn a_wrong_value_is_named() {
    let place = Place::new();
    let [port, http, other] = free_ports();
    let config = place.sitter([port, http, other], "[detection]\nsuspicion_timeout = \"soon\"\n");
    run(&binaries().sitter, &["--config", &config, "--check-config"]).await.says(&["suspicion_timeout"]);
    let config = place.proxy(port, http, "[pool]\nmode = \"statement\"\n");
    run(&binaries().proxy, &["--config", &config, "--check-config"]).await.says(&["mode"]);
}

/// Mistakes that a sitter would only find out when it is too late, or put up with: each with the words that name it.
#[tokio::test]
async fn a_configuration_that_would_fail_later_is_not_called_good() {
    let place = Place::new();
    for (extra, words) in [
        ("hba = [\"hots all all all trust\"]\n", &["postgres.hba", "hots"][..]),
        ("[postgres.parameters]\nwork_memm = \"8MB\"\n", &["postgres.parameters.work_memm", "unrecognized"]),
        ("[postgres.parameters]\nwork_mem = \"eight\"\n", &["postgres.parameters.work_mem", "eight"]),
        ("[postgres.parameters]\nmax_connections = 5\n", &["postgres.parameters.max_connections", "at least"]),
        ("[postgres.parameters]\nmax_wal_senders = 0\n", &["postgres.parameters.max_wal_senders", "at least"]),
        ("stop_timeout = \"0s\"\n", &["postgres.stop_timeout", "at least"]),
        ("max_slot_wal_keep_size = 8\n", &["postgres.max_slot_wal_keep_size", "unit"]),
    ] {
        let config = place.sitter(free_ports(), extra);
        run(&binaries().sitter, &["--config", &config, "--check-config"]).await.says(words);
    }
    let config = place.sitter(free_ports(), "");
    let text = fs::read_to_string(&config).expect("configuration");
    for (from, to, words) in [
        ("ip = \"127.0.0.1\"", "ip = \"203.0.113.1\"", &["peer.ip", "203.0.113.1"]),
        ("/peer\"", "/replication.password/peer\"", &["peer.dir", "is not a folder"]),
    ] {
        fs::write(&config, text.replacen(from, to, 1)).expect("configuration");
        run(&binaries().sitter, &["--config", &config, "--check-config"]).await.says(words);
    }
    fs::write(&config, &text).expect("configuration");
    let secret = place.folder.path().join("replication.password");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o777)).expect("mode");
    let ended = run(&binaries().sitter, &["--config", &config, "--check-config"]).await;
    ended.says(&["postgres.replication_password_file", "mode 0777", "chmod 600"]);
}

#[tokio::test]
async fn a_missing_configuration_file_is_named() {
    for program in [binaries().sitter, binaries().proxy] {
        run(&program, &["--config", "/nonexistent/manatee.toml"]).await.says(&["/nonexistent/manatee.toml"]);
    }
}

#[tokio::test]
async fn a_right_configuration_passes_the_check() {
    let place = Place::new();
    let [port, http, other] = free_ports();
    let config = place.sitter([port, http, other], "");
    let ended = run(&binaries().sitter, &["--config", &config, "--check-config"]).await;
    assert!(ended.success, "{}", ended.text);
    let config = place.proxy(port, http, "");
    let ended = run(&binaries().proxy, &["--config", &config, "--check-config"]).await;
    assert!(ended.success, "{}", ended.text);
}

#[tokio::test]
async fn missing_programs_of_postgresql_are_named() {
    let place = Place::new();
    let config = place.sitter(free_ports(), "");
    let text = fs::read_to_string(&config).expect("configuration");
    let bin_dir = postgres_folder().expect("PostgreSQL");
    let text = text.replace(bin_dir.to_str().expect("text"), "/nonexistent/bin");
    let config = place.write("sitter.toml", &text);
    run(&binaries().sitter, &["--config", &config]).await.says(&["/nonexistent/bin"]);
}

#[tokio::test]
async fn a_busy_port_is_named() {
    let place = Place::new();
    let busy = TcpListener::bind((LOOPBACK, 0)).expect("port");
    let port = busy.local_addr().expect("address").port();
    let [first, second, _] = free_ports();
    let config = place.proxy(port, first, "");
    run(&binaries().proxy, &["--config", &config]).await.says(&[&port.to_string()]);
    let config = place.sitter([first, port, second], "");
    run(&binaries().sitter, &["--config", &config]).await.says(&[&port.to_string()]);
}

#[tokio::test]
async fn somebody_elses_folder_is_not_touched() {
    let place = Place::new();
    let data = place.dir().join("data");
    fs::create_dir_all(&data).expect("folder");
    fs::write(data.join("thesis.txt"), "precious").expect("file");
    let config = place.sitter(free_ports(), "");
    // It may also go on and report itself unfit; what counts is that it says so and touches nothing.
    let child = Command::new(binaries().sitter)
        .args(["--config", &config])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it can be started");
    let text = first_output_with(child, "data").await;
    assert!(text.contains("data"), "{text}");
    assert_eq!(fs::read_to_string(data.join("thesis.txt")).expect("file"), "precious");
    assert_eq!(fs::read_dir(&data).expect("folder").count(), 1);
}

/// Output of `child` until a line has `word`, or the end.
async fn first_output_with(mut child: tokio::process::Child, word: &str) -> String {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let mut out = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut err = BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut text = String::new();
    let read = async {
        let (mut out_open, mut err_open) = (true, true);
        while out_open || err_open {
            let line = tokio::select! {
                line = out.next_line(), if out_open => { out_open = matches!(line, Ok(Some(_))); line }
                line = err.next_line(), if err_open => { err_open = matches!(line, Ok(Some(_))); line }
            };
            if let Ok(Some(line)) = line {
                text.push_str(&line);
                text.push('\n');
                if line.contains(word) && line.contains("WARN") || line.contains("ERROR") {
                    return;
                }
            }
        }
    };
    let _ = tokio::time::timeout(LIMIT, read).await;
    child.kill().await.expect("kill");
    text
}

#[tokio::test]
async fn a_new_sitter_says_that_zookeeper_is_unreachable() {
    let place = Place::new();
    let config = place.sitter(free_ports(), "");
    let config =
        fs::read_to_string(&config).expect("file").replace("[zookeeper]", "[zookeeper]\nsession_timeout = \"400ms\"");
    let config = place.write("sitter.toml", &config);
    // Told to its service manager meanwhile: that it serves, and that its loop turns.
    let manager = UnixDatagram::bind(place.folder.path().join("notify")).expect("socket");
    let socket = place.folder.path().join("notify").display().to_string();
    let environment = [("NOTIFY_SOCKET", socket.as_str()), ("WATCHDOG_USEC", "200000")];
    let ended = run_with(&binaries().sitter, &["--config", &config], &environment).await;
    ended.says(&["ZooKeeper", "127.0.0.1:1", "zookeeper.servers"]);
    assert!(!place.dir().join("data").exists(), "nothing was made");
    manager.set_nonblocking(true).expect("socket");
    let mut told = Vec::new();
    let mut buffer = [0; 256];
    while let Ok(length) = manager.recv(&mut buffer) {
        told.push(String::from_utf8_lossy(&buffer[..length]).trim().to_owned());
    }
    assert_eq!(told.first().map(String::as_str), Some("READY=1"));
    assert!(told.iter().filter(|message| *message == "WATCHDOG=1").count() > 1, "{told:?}");
}

#[tokio::test]
async fn a_proxy_that_knows_no_shard_tells_its_clients() {
    let place = Place::new();
    let [port, http, _] = free_ports();
    let config = place.proxy(port, http, "login_timeout = \"1s\"\n[hold]\ntimeout = \"1s\"\n");
    let mut proxy = Command::new(&binaries().proxy);
    let mut proxy =
        proxy.args(["--config", &config]).stdout(Stdio::null()).kill_on_drop(true).spawn().expect("started");
    let mut client = tokio_postgres::Config::new();
    client.host("127.0.0.1").port(port).user("app").password("x").dbname("app");
    let deadline = Instant::now() + LIMIT;
    let error = loop {
        match client.connect(tokio_postgres::NoTls).await {
            Ok(_) => panic!("a login without a shard"),
            Err(error) if error.as_db_error().is_some() => break error,
            // It does not listen yet.
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(error.code().map(|code| code.code()), Some("57P03"), "{error:?}");
    proxy.kill().await.expect("killed");
}

#[tokio::test]
async fn the_operators_tool_says_that_zookeeper_is_unreachable() {
    run(&binaries().adm, &["-z", "127.0.0.1:1", "-s", "bad", "show"]).await.says(&["ZooKeeper", "127.0.0.1:1"]);
}
