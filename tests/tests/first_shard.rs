//! "First production shard" of docs/operations.md, carried out: every command of the guide, as it is written there, on
//! hosts of their own (network, process ids, and folders of the system). What the guide says in words is done by
//! hand here: the ensemble, the copies of programs and secrets, the values that differ from host to host.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use manatee_tests::binaries::Binaries;
use manatee_tests::network::{Machine, Namespaces, Network, Size};
use manatee_tests::runfile::RunFile;
use manatee_tests::zookeeper::ZooKeeper;

const HEADING: &str = "## First production shard";
/// The guide's hosts: three for data, then two for proxies.
const HOSTS: [&str; 5] = ["db1", "db2", "db3", "proxy1", "proxy2"];
/// Longest time for a state of the shard to come, on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(120);

/// Stand-in for systemd: starts a unit's program, as its user.
const SYSTEMCTL: &str = r#"#!/bin/sh
set -eu
[ "$1 $2" = "enable --now" ] || { echo "systemctl $*: not known here" >&2; exit 64; }
unit=/etc/systemd/system/$3.service
value() { sed -n "s/^$1=//p" "$unit"; }
user=$(value User)
state=$(value StateDirectory)
[ -z "$state" ] || install -d -m "$(value StateDirectoryMode)" -o "$user" "/var/lib/$state"
# Words of the command line are separated by spaces there.
setsid setpriv ${user:+--reuid=$user --regid=$user --init-groups} $(value ExecStart) </dev/null >>"/var/log/$3.log" 2>&1 &
"#;

/// A machine: its processes end with it.
struct Host {
    name: &'static str,
    /// Of `unshare`.
    keeper: Child,
    /// Its first process.
    init: u32,
    folder: PathBuf,
}

impl Host {
    /// Folders of the system are this host's own from here on; what is there already is shared.
    fn boot(name: &'static str, namespace: &str, dir: &Path) -> Result<Self> {
        let folder = dir.join(name);
        let mut mounts = String::new();
        for part in ["etc", "var", "usr"] {
            let (upper, work) = (folder.join(part), folder.join(format!("{part}.work")));
            fs::create_dir_all(&upper)?;
            fs::create_dir_all(&work)?;
            let (upper, work) = (upper.display(), work.display());
            writeln!(mounts, "mount -t overlay overlay -o lowerdir=/{part},upperdir={upper},workdir={work} /{part}")?;
        }
        let ready = folder.join("ready");
        let script = format!("set -e\n{mounts}echo up > {}\nexec sleep infinity", ready.display());
        let mut keeper = Command::new("ip")
            .args(["netns", "exec", namespace, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", &script])
            .current_dir(&folder)
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start a host")?;
        let deadline = Instant::now() + LIMIT;
        while !ready.exists() {
            ensure!(keeper.try_wait()?.is_none(), "{name} ended while it came up");
            ensure!(Instant::now() < deadline, "{name} does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", keeper.id()))?;
        let init = children.split_whitespace().next().context("no process")?.parse()?;
        Ok(Self { name, keeper, init, folder })
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init.to_string(), "--mount", "--pid", "--net", "--wd=/"])
            .args(["sh", "-euc", script])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        command
    }

    /// Runs it, with its output.
    fn try_run(&self, script: &str) -> Result<String> {
        let output = self.command(script).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("{} on {}: {}\n{text}{error}\nnoted:\n{}", script.trim(), self.name, output.status, self.logs());
        }
        Ok(text)
    }

    /// Last lines of its services.
    fn logs(&self) -> String {
        let output = self.command("tail -n 15 /var/log/manatee-*.log 2>/dev/null || true").output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    }

    /// Runs it until it succeeds.
    fn until(&self, script: &str) -> Result<String> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.try_run(script) {
                Ok(text) => return Ok(text),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    /// A program of ours, as if it had been copied.
    fn install(&self, program: &Path) -> Result<()> {
        let name = program.file_name().and_then(|name| name.to_str()).context("name")?;
        let script = format!("touch /usr/bin/{name}; mount --bind {} /usr/bin/{name}", program.display());
        self.try_run(&script).map(|_| ())
    }

    fn write(&self, path: &str, mode: &str, text: &str) -> Result<()> {
        let local = self.folder.join("file");
        fs::write(&local, text)?;
        self.try_run(&format!("install -D -m {mode} {} {path}", local.display())).map(|_| ())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// The commands of each step of the guide, by its number.
fn guide() -> BTreeMap<u32, String> {
    let text = fs::read_to_string(root().join("docs/operations.md")).expect("guide");
    let (_, text) = text.split_once(HEADING).expect("heading");
    let (text, _) = text.split_once("\n## ").expect("next heading");
    let mut steps = BTreeMap::new();
    let mut step = 0;
    for line in text.lines() {
        if let Some((number, _)) = line.split_once(". ")
            && let Ok(number) = number.parse()
        {
            step = number;
        } else if line.starts_with("       ") {
            let commands: &mut String = steps.entry(step).or_default();
            commands.push_str(line.trim_start());
            commands.push('\n');
        }
    }
    steps
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository").to_owned()
}

fn sample(path: &str) -> String {
    fs::read_to_string(root().join(path)).expect("sample")
}

/// Every step that has commands is known here, so that none is left out by a change of the guide.
#[test]
fn the_guide_has_the_steps_that_are_carried_out() {
    assert_eq!(guide().into_keys().collect::<Vec<_>>(), [3, 4, 5, 6, 7, 8, 10]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guide_to_the_first_shard_leads_to_one() {
    if !Namespaces::Auto.resolve().expect("namespaces") {
        eprintln!("left out: hosts of their own need root");
        return;
    }
    if let Err(error) = carry_out().await {
        panic!("{error:#}");
    }
}

async fn carry_out() -> Result<()> {
    let mut run_file = RunFile::claim()?;
    let size = Size { peers: HOSTS.len(), zookeepers: 3 };
    let folder = tempfile::Builder::new().prefix("manatee-first-shard-").tempdir()?;
    run_file.record(folder.path(), true, Some(size))?;
    // Roles of the system other than root go through here.
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let network = Network::create(run_file.number(), size, true)?;
    let mut zookeeper = ZooKeeper::start(folder.path(), folder.path(), &network)?;
    zookeeper.ready(LIMIT).await?;

    let mut names = String::from("127.0.0.1 localhost\n");
    for (number, name) in (1..).zip(HOSTS) {
        writeln!(names, "{} {name}", network.address(Machine::Host(number)))?;
    }
    for number in 1..=3 {
        writeln!(names, "{} zk{number}", network.address(Machine::ZooKeeper(number)))?;
    }
    let mut hosts = Vec::new();
    for (number, name) in (1..).zip(HOSTS) {
        let namespace = network.namespace(Machine::Host(number)).context("namespace")?;
        let host = Host::boot(name, &namespace, folder.path())?;
        host.write("/etc/hosts", "644", &names)?;
        host.write("/usr/local/bin/systemctl", "755", SYSTEMCTL)?;
        // Packages are there already; no host reaches an archive.
        host.write(
            "/etc/apt/apt.conf.d/99test",
            "644",
            "APT::Get::Assume-Yes \"true\";\nAPT::Get::Upgrade \"false\";\n",
        )?;
        hosts.push(host);
    }
    let (databases, proxies) = hosts.split_at(3);
    let steps = guide();
    prepare(databases, &steps)?;
    start_sitters(databases, &network, &steps)?;
    start_proxies(databases, proxies, &network, &steps).await?;
    use_it(databases, &proxies[0], &steps)
}

/// Steps 3 and 4: packages, programs, secrets.
fn prepare(databases: &[Host], steps: &BTreeMap<u32, String>) -> Result<()> {
    let programs = Binaries::find(None)?;
    for host in databases {
        host.try_run(&steps[&3])?;
        host.install(&programs.sitter)?;
        host.install(&programs.adm)?;
    }
    databases[0].try_run(&steps[&4])?;
    let secrets = databases[0].folder.join("etc/manatee");
    for host in &databases[1..] {
        host.try_run(&format!("cp -a {} /etc/manatee", secrets.display()))?;
    }
    Ok(())
}

/// Steps 5 and 6. One after another, so that it is known who becomes what.
fn start_sitters(databases: &[Host], network: &Network, steps: &BTreeMap<u32, String>) -> Result<()> {
    for (number, host) in (1..).zip(databases) {
        let address = network.address(Machine::Host(number)).to_string();
        let config = sample("config/sitter.minimal.toml")
            .replace("ip = \"10.0.0.1\"", &format!("ip = \"{address}\""))
            .replace("zone_id = \"db1\"", &format!("zone_id = \"{}\"", host.name));
        ensure!(config.contains(&address) && config.contains(host.name), "the sample has other values now");
        host.write("/etc/manatee/sitter.toml", "644", &config)?;
        host.write(
            "/etc/systemd/system/manatee-sitter.service",
            "644",
            &sample("config/systemd/manatee-sitter.service"),
        )?;
        host.try_run(&steps[&5])?;
        let (start, watch) = steps[&6].split_once('\n').context("step 6")?;
        host.try_run(start)?;
        host.until(&format!("manatee-adm zk-active -s demo | grep -q '{address}:'"))?;
        if number == 3 {
            // The last of them is `explain`, which fails until the shard is healthy.
            host.until(watch)?;
        }
    }
    Ok(())
}

/// Step 7.
async fn start_proxies(
    databases: &[Host],
    proxies: &[Host],
    network: &Network,
    steps: &BTreeMap<u32, String>,
) -> Result<()> {
    let programs = Binaries::find(None)?;
    let secrets = databases[0].folder.join("etc/manatee");
    for (number, host) in (databases.len() + 1..).zip(proxies) {
        host.install(&programs.proxy)?;
        host.write("/etc/manatee/proxy.toml", "644", &sample("config/proxy.minimal.toml"))?;
        host.write(
            "/etc/systemd/system/manatee-proxy.service",
            "644",
            &sample("config/systemd/manatee-proxy.service"),
        )?;
        for secret in ["proxy.password", "zookeeper.auth"] {
            host.write(&format!("/etc/manatee/{secret}"), "600", &fs::read_to_string(secrets.join(secret))?)?;
        }
        let (make_user, rest) = steps[&7].split_once('\n').context("step 7")?;
        host.try_run(make_user)?;
        host.try_run("chown manatee-proxy /etc/manatee/proxy.password /etc/manatee/zookeeper.auth")?;
        host.try_run(rest)?;
        ready(&format!("http://{}:6480/readyz/primary", network.address(Machine::Host(number)))).await?;
    }
    Ok(())
}

/// Waits for what balancers ask.
async fn ready(url: &str) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let answer = reqwest::get(url).await.and_then(reqwest::Response::error_for_status);
        match answer {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error).context(url.to_owned()),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// Steps 8 and 10, and what an application does then.
fn use_it(databases: &[Host], proxy: &Host, steps: &BTreeMap<u32, String>) -> Result<()> {
    let password = fs::read_to_string(databases[0].folder.join("etc/manatee/postgres.password"))?;
    proxy.try_run(&format!("export PGPASSWORD={}\n{}", password.trim(), steps[&8]))?;
    let application =
        |sql: &str| format!("export PGPASSWORD='choose one'\npsql -h proxy2 -p 6432 -U app app -qAtc \"{sql}\"");
    proxy.try_run(&application("CREATE TABLE kept (id int PRIMARY KEY); INSERT INTO kept VALUES (1)"))?;
    databases[0].try_run(&steps[&10])?;
    databases[0].until("manatee-adm explain -s demo")?;
    let state = databases[2].try_run("manatee-adm zk-state -s demo")?;
    let state: serde_json::Value = serde_json::from_str(&state)?;
    ensure!(state["primary"]["zoneId"] == "db2", "db2 was promoted: {state}");
    proxy.try_run(&application("INSERT INTO kept VALUES (2)"))?;
    let kept = proxy.try_run(&application("SELECT count(*) FROM kept"))?;
    ensure!(kept.trim() == "2", "rows kept: {kept}");
    Ok(())
}
