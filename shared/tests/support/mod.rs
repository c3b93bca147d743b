//! A real ZooKeeper for tests: Debian's package `zookeeper`, no daemon needed.

pub(crate) mod relay;

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use manatee_shared::config::ZkSettings;
use manatee_shared::zk::client::ZkCoordination;

/// Generous: the machine may be busy. Nothing waits this long when it works.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Session timeout of the tests' clients.
const SESSION_TIMEOUT: Duration = Duration::from_secs(1);

/// A ZooKeeper of its own on a free port, in a folder of its own; gone when dropped, and also when
/// the test dies (`setpriv --pdeathsig`).
pub(crate) struct Server {
    folder: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
}

/// File of those who may log in by SASL; without the file, nobody.
const JAAS: &str = "jaas.conf";

impl Server {
    /// Starts one and waits until it accepts connections.
    pub(crate) fn start() -> Self {
        Self::start_with(|_, port| format!("clientPort={port}\nclientPortAddress=127.0.0.1\n"))
    }

    /// One that speaks TLS only, and knows clients by a certificate of the same authority if they show one.
    pub(crate) fn start_secure() -> Self {
        Self::start_with(|folder, port| {
            let issue = |arguments: &[&str]| {
                let made = Command::new("openssl")
                    .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
                    .args(arguments)
                    .current_dir(folder)
                    .output()
                    .expect("openssl is installed");
                assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            };
            issue(&["-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem"]);
            issue(&[
                "-CA",
                "ca.pem",
                "-CAkey",
                "ca.key",
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-keyout",
                "key.pem",
                "-out",
                "certificate.pem",
            ]);
            let pem = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
            std::fs::write(folder.join("both.pem"), pem("key.pem") + &pem("certificate.pem")).unwrap();
            format!(
                "secureClientPort={port}\nsecureClientPortAddress=127.0.0.1\n\
                 serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n\
                 ssl.keyStore.location={folder}/both.pem\nssl.trustStore.location={folder}/ca.pem\nssl.clientAuth=want\n",
                folder = folder.display()
            )
        })
    }

    /// One that lets nobody in but `user`, by SASL.
    pub(crate) fn start_sasl(user: &str, password: &str) -> Self {
        Self::start_with(|folder, port| {
            let module = "org.apache.zookeeper.server.auth.DigestLoginModule";
            let jaas = format!("Server {{ {module} required user_{user}=\"{password}\"; }};\n");
            std::fs::write(folder.join(JAAS), jaas).unwrap();
            format!(
                "clientPort={port}\nclientPortAddress=127.0.0.1\nsessionRequireClientSASLAuth=true\n\
                 authProvider.1=org.apache.zookeeper.server.auth.SASLAuthenticationProvider\n"
            )
        })
    }

    fn start_with(listening: impl FnOnce(&Path, u16) -> String) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Self { folder: tempfile::tempdir().unwrap(), port, process: None };
        let data = server.folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let settings = format!(
            "tickTime=100\nminSessionTimeout=200\nmaxSessionTimeout=60000\ndataDir={}\n{}",
            data.display(),
            listening(server.folder.path(), port)
        );
        std::fs::write(server.folder.path().join("zoo.cfg"), settings).unwrap();
        server.resume();
        server
    }

    /// Starts the process (again), on the same port and data.
    pub(crate) fn resume(&mut self) {
        let log = |name: &str| std::fs::File::create(self.folder.path().join(name)).unwrap();
        let jaas = self.folder.path().join(JAAS);
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "java", "-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .args(["-Dzookeeper.admin.enableServer=false", "-Dzookeeper.forceSync=no"])
            .args(jaas.exists().then(|| format!("-Djava.security.auth.login.config={}", jaas.display())))
            .args(["-Dzookeeper.snapshot.trust.empty=true", "-cp"])
            // TLS needs one more of netty than the manifest of ZooKeeper's jar names.
            .arg("/usr/share/java/zookeeper.jar:/usr/share/java/netty-codec.jar")
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(self.folder.path().join("zoo.cfg"))
            .stdin(Stdio::null())
            .stdout(log("stdout"))
            .stderr(log("stderr"))
            .spawn()
            .expect("java and setpriv are installed");
        self.process = Some(process);
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(started.elapsed() < DEADLINE, "ZooKeeper did not start: {}", read(self.folder.path()));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// kill -9.
    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Settings for reaching it.
    pub(crate) fn settings(&self) -> ZkSettings {
        let settings = ZkSettings::new(vec![format!("127.0.0.1:{}", self.port)]);
        ZkSettings { session_timeout: SESSION_TIMEOUT, ..settings }
    }

    /// A file in its folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A client of shard `1.test`.
    pub(crate) fn client(&self) -> ZkCoordination {
        ZkCoordination::connect(&self.settings(), &"1.test".parse().unwrap()).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn read(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("stderr")).unwrap_or_default()
}
