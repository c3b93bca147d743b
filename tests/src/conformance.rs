//! `manatee-lab conformance`: PostgreSQL's own regression suite, and its tests of pipelines, straight to a
//! primary and through the proxy, and where the results of the two runs differ.
//!
//! Each run has a shard of its own, fresh, with the same settings: what one leaves behind (roles,
//! tablespaces) must not be seen by the other. The suite is run as a superuser, as it has to be; the
//! proxy pools by transaction and splits reads off.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use manatee_shared::cluster::Role;
use serde::Serialize;
use tokio::process::Command;

use crate::lab::{self, Lab};

/// The suite runs as the superuser that owns the system catalogs: a few tests rely on that.
const USER: &str = "postgres";
/// Name by which the tests of pipelines are asked for.
const PIPELINES: &str = "libpq_pipeline";
/// Rows that they insert.
const PIPELINE_ROWS: &str = "700";
/// Those whose messages come in an order that depends on the kernel's buffers.
const PIPELINES_UNORDERED: [&str; 2] = ["pipelined_insert", "uniqviol"];
/// A test of pipelines; each takes a second.
const PIPELINE_LIMIT: Duration = Duration::from_secs(60);
/// A whole run; direct ones take a minute or two.
const RUN_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Options of a run.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "conformance")]
pub struct Options {
    /// Folder made by tests/conformance/fetch.sh; results and differences are kept there too
    #[arg(long, default_value = "target/conformance")]
    pub folder: PathBuf,
    /// Compare with the direct run of the last time
    #[arg(long)]
    pub reuse_direct: bool,
    /// Only these tests, behind test_setup (`libpq_pipeline`: those of pipelines); default: all
    pub tests: Vec<String>,
    /// The shards.
    #[command(flatten)]
    pub lab: lab::Options,
}

/// Results of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Tests in both runs.
    pub tests: usize,
    /// Tests that gave other results through the proxy, and how many lines of the results differ.
    pub differing: BTreeMap<String, usize>,
    /// Differing tests that `tests/conformance/README.md` does not explain.
    pub unexplained: Vec<String>,
    /// Durations of the runs; nothing for one that was not run.
    pub direct_s: Option<f64>,
    /// Through the proxy.
    pub proxied_s: f64,
}

/// Way of clients to the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// At its own address.
    Direct,
    /// Through the first proxy.
    Proxied,
}

impl Way {
    /// For files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Proxied => "proxied",
        }
    }
}

/// Runs the suite both ways and compares.
pub async fn run(options: &Options) -> Result<Report> {
    let suite = options.folder.join("suite");
    ensure!(
        suite.is_dir(),
        "{} is missing: run tests/conformance/fetch.sh {}",
        suite.display(),
        options.folder.display()
    );
    let direct_s = match options.reuse_direct {
        true => None,
        false => Some(one_way(options, Way::Direct).await?),
    };
    let proxied_s = one_way(options, Way::Proxied).await?;
    let (tests, differing) = compare(&options.folder)?;
    let explained = explained();
    let unexplained = differing.keys().filter(|test| !explained.contains(&test.as_str())).cloned().collect();
    Ok(Report { tests, differing, unexplained, direct_s, proxied_s })
}

/// The tests whose differences are explained: the headings of the document beside the suite's script.
fn explained() -> Vec<&'static str> {
    include_str!("../conformance/README.md").lines().filter_map(|line| line.strip_prefix("### ")).collect()
}

/// One run on a shard of its own; its results are left in the folder. Returns how long it took.
async fn one_way(options: &Options, way: Way) -> Result<f64> {
    let mut lab_options = options.lab.clone();
    // The suite has prepared transactions. Which plans it gets depends on what VACUUM could do just
    // before, which standbys that tell of their snapshots would leave to chance.
    let parameters = [("max_prepared_transactions", "10"), ("hot_standby_feedback", "off")];
    lab_options.parameters.extend(parameters.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let (mut lab, _) = Lab::up(&lab_options).await?;
    let result = in_lab(options, way, &mut lab).await;
    result.map_err(|error| lab.explain(error))
}

/// Address and account of a suite's connections.
#[derive(Clone, Debug)]
pub struct Door {
    host: String,
    port: u16,
    password: String,
}

impl Door {
    /// As libpq's programs, and most drivers, are told of it.
    pub fn environment(&self) -> [(&'static str, String); 6] {
        [
            ("PGHOST", self.host.clone()),
            ("PGPORT", self.port.to_string()),
            ("PGUSER", USER.to_owned()),
            ("PGPASSWORD", self.password.clone()),
            ("PGDATABASE", "postgres".to_owned()),
            ("PGSSLMODE", "disable".to_owned()),
        ]
    }
}

/// Waits until the shard is whole, and lets its superuser in.
pub async fn door(lab: &mut Lab, way: Way) -> Result<Door> {
    let state = lab.whole(Duration::from_secs(60)).await?;
    let primary = lab.host_in(&state, Role::Primary)?;
    let client = primary.superuser("postgres").await?;
    client.batch_execute(&format!("alter role {USER} password '{}'", lab.password)).await?;
    let (host, port) = match way {
        Way::Direct => (primary.id.ip.to_string(), primary.id.pg_port),
        Way::Proxied => ("127.0.0.1".to_owned(), lab.proxies.first().context("a proxy is needed")?.port),
    };
    Ok(Door { host, port, password: lab.password.clone() })
}

async fn in_lab(options: &Options, way: Way, lab: &mut Lab) -> Result<f64> {
    let door = door(lab, way).await?;
    let work = lab.dir().join("suite");
    copy(&options.folder.join("suite"), &work).await?;
    // COPY TO writes here as PostgreSQL's OS user.
    for dir in ["results", "testtablespace"] {
        let dir = work.join(dir);
        fs::create_dir_all(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777))?;
    }
    let begun = Instant::now();
    let mut status = pg_regress(options, &work, &door, way).await;
    if status.is_ok() && (options.tests.is_empty() || options.tests.iter().any(|test| test == PIPELINES)) {
        status = pipelines(&work, &door).await;
    }
    let took = begun.elapsed().as_secs_f64();
    let kept = options.folder.join(way.name());
    if kept.exists() {
        fs::remove_dir_all(&kept)?;
    }
    copy(&work.join("results"), &kept).await?;
    status?;
    lab.check()?;
    Ok(took)
}

/// Runs the driver. That tests fail is no error here.
async fn pg_regress(options: &Options, work: &Path, door: &Door, way: Way) -> Result<()> {
    let driver = fs::read_to_string(options.folder.join("pg_regress")).context("run tests/conformance/fetch.sh")?;
    let log = fs::File::create(options.folder.join(format!("{}.log", way.name())))?;
    let mut command = Command::new(driver.trim());
    command
        .args(["--inputdir", ".", "--outputdir", ".", "--dlpath"])
        .arg(work)
        .args(["--bindir", "", "--encoding", "UTF8", "--dbname", "regression"])
        .args(["--host", &door.host, "--port", &door.port.to_string(), "--user", USER])
        .env("PGPASSWORD", &door.password)
        .env("PGSSLMODE", "disable")
        .current_dir(work)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true);
    if options.tests.is_empty() {
        command.args(["--schedule", "parallel_schedule"]);
    } else {
        command.arg("test_setup").args(options.tests.iter().filter(|test| *test != PIPELINES));
    }
    // Dropped with the lab when the limit is reached: the run is void then.
    let status = tokio::time::timeout(RUN_LIMIT, command.status()).await.context("the suite hangs")??;
    // 1: some tests failed; 2 and more: they could not be run.
    ensure!(
        matches!(status.code(), Some(0 | 1)),
        "pg_regress: {status}; see {}",
        options.folder.join(format!("{}.log", way.name())).display()
    );
    Ok(())
}

/// Runs PostgreSQL's tests of pipelines. The result of each is what it says, and every message both ways.
async fn pipelines(work: &Path, door: &Door) -> Result<()> {
    let program = || {
        let mut command = Command::new(work.join("libpq_pipeline"));
        command.env("PGPASSWORD", &door.password).env("PGSSLMODE", "disable").current_dir(work);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    };
    let names = program().arg("tests").output().await.context("libpq_pipeline: run tests/conformance/fetch.sh")?;
    let server = format!("host={} port={} user={USER} dbname=postgres", door.host, door.port);
    for name in String::from_utf8_lossy(&names.stdout).split_whitespace() {
        let trace = work.join("results").join(format!("libpq_pipeline_{name}.trace"));
        let mut test = program();
        test.args(["-r", PIPELINE_ROWS]);
        if !PIPELINES_UNORDERED.contains(&name) {
            test.arg("-t").arg(&trace);
        }
        test.args([name, &server]);
        // Dropped when it hangs, which is a result, too.
        let result = match tokio::time::timeout(PIPELINE_LIMIT, test.output()).await {
            Ok(output) => {
                let output = output?;
                let words = String::from_utf8_lossy(&output.stderr).into_owned();
                format!("{}\n{}", output.status, if output.status.success() { "" } else { &words })
            }
            Err(_) => "it hangs\n".to_owned(),
        };
        let said = fs::read(&trace).unwrap_or_default();
        fs::write(trace.with_extension("out"), [result.as_bytes(), &said].concat())?;
    }
    Ok(())
}

/// Copies a folder to a path where nothing is yet.
pub(crate) async fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-r").arg(from).arg(to).status().await?;
    ensure!(status.success(), "cannot copy {} to {}", from.display(), to.display());
    Ok(())
}

/// Number of tests, and those whose results differ with the number of lines that do.
fn compare(folder: &Path) -> Result<(usize, BTreeMap<String, usize>)> {
    let (direct, proxied) = (folder.join("direct"), folder.join("proxied"));
    let diffs = folder.join("diffs");
    if diffs.exists() {
        fs::remove_dir_all(&diffs)?;
    }
    fs::create_dir_all(&diffs)?;
    let mut tests = 0;
    let mut differing = BTreeMap::new();
    for entry in fs::read_dir(&proxied)? {
        let path = entry?.path();
        let (Some(name), Some(test)) = (path.file_name(), path.file_stem().and_then(|stem| stem.to_str())) else {
            continue;
        };
        if path.extension().is_none_or(|extension| extension != "out") || !direct.join(name).exists() {
            continue;
        }
        tests += 1;
        let output = std::process::Command::new("diff").arg("-U5").arg(direct.join(name)).arg(&path).output()?;
        ensure!(matches!(output.status.code(), Some(0 | 1)), "diff: {}", String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            continue;
        }
        fs::write(diffs.join(format!("{test}.diff")), &output.stdout)?;
        let text = String::from_utf8_lossy(&output.stdout);
        // Behind the two lines of the head.
        let changed = text.lines().skip(2).filter(|line| line.starts_with(['+', '-'])).count();
        differing.insert(test.to_owned(), changed);
    }
    ensure!(tests > 0, "there are no results to compare in {}", folder.display());
    Ok((tests, differing))
}
