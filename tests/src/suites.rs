//! `manatee-lab suites`: test suites of others, straight to a primary and through the proxy, and which outcomes differ.
//!
//! A suite is a script in `tests/suites` (its contract is in `main.sh` there) and a document in `tests/conformance` with
//! the differences that stay and their reasons. Each run has a shard of its own, fresh, with the same settings.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Serialize;
use tokio::process::{Child, Command};

use crate::conformance::{Way, copy, door};
use crate::lab::{self, Lab};

/// A whole run one way. The longest direct one takes about ten minutes on two cores.
const RUN_LIMIT: Duration = Duration::from_secs(60 * 60);
/// Fetching a suite, and building what it needs.
const FETCH_LIMIT: Duration = Duration::from_secs(20 * 60);
/// Name by which a suite's script is asked for tests chosen by the script itself.
const SELECTION: &str = "selection";

/// Somebody else's tests.
#[derive(Clone, Copy, Debug)]
pub struct Suite {
    /// Of its script and of its document.
    pub name: &'static str,
    /// The document: its headings name the tests whose differences it explains.
    document: &'static str,
}

/// In the order in which they are run.
pub const SUITES: &[Suite] = &[
    Suite { name: "isolation", document: include_str!("../conformance/isolation.md") },
    Suite { name: "contrib", document: include_str!("../conformance/contrib.md") },
    Suite { name: "asyncpg", document: include_str!("../conformance/asyncpg.md") },
];

/// Options of a run.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(id = "suites-options")]
pub struct Options {
    /// Folder for the suites, their results and differences
    #[arg(long, default_value = "target/suites")]
    pub folder: PathBuf,
    /// Compare with the direct runs of the last time
    #[arg(long)]
    pub reuse_direct: bool,
    /// Of each suite only a selection, which takes a minute or two
    #[arg(long)]
    pub selection: bool,
    /// Only these tests of the one suite that is named
    #[arg(long, num_args = 1..)]
    pub only: Vec<String>,
    /// Names of suites; none: all
    pub suites: Vec<String>,
    /// The shards.
    #[command(flatten)]
    pub lab: lab::Options,
}

/// Result of a suite.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The suite's name.
    pub suite: &'static str,
    /// Name and version.
    pub version: String,
    /// Tests of the direct run by outcome.
    pub direct: BTreeMap<String, usize>,
    /// Tests of the run through the proxy by outcome.
    pub proxied: BTreeMap<String, usize>,
    /// Tests with other results through the proxy.
    pub differing: Vec<Difference>,
    /// Durations of the runs; nothing for one that was not run.
    pub direct_s: Option<f64>,
    /// Through the proxy.
    pub proxied_s: f64,
}

impl Report {
    /// Differing tests that the suite's document does not explain.
    pub fn unexplained(&self) -> impl Iterator<Item = &Difference> {
        self.differing.iter().filter(|difference| !difference.explained)
    }
}

/// A test whose result depends on the way.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Its name.
    pub test: String,
    /// Outcome of the direct run; nothing if it was not run.
    pub direct: Option<String>,
    /// Outcome through the proxy.
    pub proxied: Option<String>,
    /// The suite's document names the test.
    pub explained: bool,
}

/// The suites that `names` are, or all.
pub fn named(names: &[String]) -> Result<Vec<Suite>> {
    let find = |name: &String| {
        SUITES.iter().find(|suite| suite.name == name).copied().with_context(|| {
            let known: Vec<_> = SUITES.iter().map(|suite| suite.name).collect();
            format!("there is no suite {name}: {}", known.join(", "))
        })
    };
    match names {
        [] => Ok(SUITES.to_vec()),
        names => names.iter().map(find).collect(),
    }
}

/// Runs one suite both ways and compares.
pub async fn run(options: &Options, suite: Suite) -> Result<Report> {
    fs::create_dir_all(&options.folder)?;
    let folder = options.folder.canonicalize()?;
    let mut fetch = script(suite);
    fetch.arg("fetch").arg(&folder).stdin(Stdio::null());
    finish(fetch, FETCH_LIMIT).await.with_context(|| format!("{} cannot be fetched", suite.name))?;
    let direct_s = match options.reuse_direct {
        true => None,
        false => Some(one_way(options, &folder, suite, Way::Direct).await?),
    };
    let proxied_s = one_way(options, &folder, suite, Way::Proxied).await?;
    let kept = folder.join("results").join(suite.name);
    let direct = Outcomes::read(&kept.join(Way::Direct.name()))?;
    let proxied = Outcomes::read(&kept.join(Way::Proxied.name()))?;
    let version = fs::read_to_string(folder.join(format!("{}.version", suite.name)))?.trim().to_owned();
    let differing = direct.compare(&proxied, suite)?;
    Ok(Report {
        suite: suite.name,
        version,
        direct: direct.counts(),
        proxied: proxied.counts(),
        differing,
        direct_s,
        proxied_s,
    })
}

fn script(suite: Suite) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("suites").join(format!("{}.sh", suite.name)))
}

/// A script and all that it started: ended when this is dropped.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // Gone already when the script has been waited for and left nothing behind: no error then.
        if let Some(group) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

/// Waits for a script to succeed.
async fn finish(mut command: Command, limit: Duration) -> Result<()> {
    let mut group = Group(command.process_group(0).kill_on_drop(true).spawn()?);
    let status = tokio::time::timeout(limit, group.0.wait()).await.context("it hangs")??;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// One run on a shard of its own; its results are left in the folder. Returns how long it took.
async fn one_way(options: &Options, folder: &Path, suite: Suite, way: Way) -> Result<f64> {
    let mut lab_options = options.lab.clone();
    // As PostgreSQL's own suites need them; the others do not care.
    let parameters = [("max_prepared_transactions", "10"), ("hot_standby_feedback", "off")];
    lab_options.parameters.extend(parameters.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let (mut lab, _) = Lab::up(&lab_options).await?;
    let result = in_lab(options, folder, suite, way, &mut lab).await;
    result.map_err(|error| lab.explain(error).context(format!("{}, {}", suite.name, way.name())))
}

async fn in_lab(options: &Options, folder: &Path, suite: Suite, way: Way, lab: &mut Lab) -> Result<f64> {
    let door = door(lab, way).await?;
    // In the lab's folder: servers write there as PostgreSQL's OS user.
    let results = lab.dir().join("results");
    fs::create_dir(&results)?;
    fs::set_permissions(&results, fs::Permissions::from_mode(0o777))?;
    let mut command = script(suite);
    command.arg("run").arg(folder).arg(&results);
    match (options.only.as_slice(), options.selection) {
        ([], false) => command.arg("all"),
        ([], true) => command.arg(SELECTION),
        (only, _) => command.args(only),
    };
    let log = fs::File::create(folder.join(format!("{}.{}.log", suite.name, way.name())))?;
    command.envs(door.environment()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let begun = Instant::now();
    let ran = finish(command, RUN_LIMIT).await;
    let took = begun.elapsed().as_secs_f64();
    let kept = folder.join("results").join(suite.name).join(way.name());
    if kept.exists() {
        fs::remove_dir_all(&kept)?;
    }
    fs::create_dir_all(kept.parent().context("a folder")?)?;
    copy(&results, &kept).await?;
    ran.with_context(|| format!("the tests could not be run; see {}.{}.log", suite.name, way.name()))?;
    lab.check()?;
    Ok(took)
}

/// Outcomes of a run.
#[derive(Debug)]
struct Outcomes {
    folder: PathBuf,
    /// By test.
    outcomes: BTreeMap<String, String>,
}

impl Outcomes {
    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("outcomes");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let outcomes = text.lines().map(|line| {
            let (name, outcome) = line.split_once('\t').with_context(|| format!("{}: {line}", path.display()))?;
            Ok((name.to_owned(), outcome.to_owned()))
        });
        let outcomes: BTreeMap<_, _> = outcomes.collect::<Result<_>>()?;
        if outcomes.is_empty() {
            bail!("no test was run: {}", path.display());
        }
        Ok(Self { folder: folder.to_owned(), outcomes })
    }

    fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for outcome in self.outcomes.values() {
            *counts.entry(outcome.clone()).or_default() += 1;
        }
        counts
    }

    /// Output of a test, if it was kept.
    fn printed(&self, test: &str) -> Option<Vec<u8>> {
        fs::read(self.folder.join(format!("{test}.out"))).ok()
    }

    fn compare(&self, proxied: &Self, suite: Suite) -> Result<Vec<Difference>> {
        let tests: std::collections::BTreeSet<_> = self.outcomes.keys().chain(proxied.outcomes.keys()).collect();
        let explained = explained(suite.document)?;
        let mut differing = Vec::new();
        for test in tests {
            let (direct, through) = (self.outcomes.get(test), proxied.outcomes.get(test));
            // Two failures are the same if they printed the same; a success may print one of several expected texts.
            let is_same = direct == through
                && (direct.is_some_and(|outcome| outcome == "ok") || self.printed(test) == proxied.printed(test));
            if !is_same {
                differing.push(Difference {
                    explained: explained.iter().any(|pattern| matches(pattern, test)),
                    test: test.clone(),
                    direct: direct.cloned(),
                    proxied: through.cloned(),
                });
            }
        }
        Ok(differing)
    }
}

/// The tests that a document explains: names in its headings of the third level, separated by commas, with `*` for
/// anything. Behind each heading stands the reason.
fn explained(document: &'static str) -> Result<Vec<&'static str>> {
    let mut patterns = Vec::new();
    let mut reason_missing_for = None;
    for line in document.lines() {
        if let Some(names) = line.strip_prefix("### ") {
            if let Some(names) = reason_missing_for.replace(names) {
                bail!("the difference of {names} has no reason");
            }
            patterns.extend(names.split(", "));
        } else if !line.trim().is_empty() {
            reason_missing_for = None;
        }
    }
    match reason_missing_for {
        Some(names) => bail!("the difference of {names} has no reason"),
        None => Ok(patterns),
    }
}

/// Whether `name` is `pattern`, in which `*` is anything.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(before) else { return false };
    (0..=rest.len()).any(|at| rest.is_char_boundary(at) && matches(after, &rest[at..]))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_heading_names_tests_and_the_text_below_it_is_the_reason() {
        let document = "# A suite\n\n### one, two/*\n\nBecause.\n\n### three\nBecause.\n";
        assert_eq!(explained(document).unwrap(), ["one", "two/*", "three"]);
        for without_reason in ["### one\n", "### one\n\n### two\n\nBecause.\n"] {
            assert!(explained(without_reason).is_err(), "{without_reason}");
        }
    }

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name, is_match) in [
            ("one", "one", true),
            ("one", "one/two", false),
            ("one/*", "one/two", true),
            ("one/*", "two/one/two", false),
            ("*two*", "one/two/three", true),
            ("*a*b", "a, then b, then c", false),
        ] {
            assert_eq!(matches(pattern, name), is_match, "{pattern} {name}");
        }
    }

    #[test]
    fn every_document_can_be_read() {
        for suite in SUITES {
            explained(suite.document).unwrap();
        }
    }

    #[test]
    fn failures_are_the_same_if_they_printed_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let side = |name: &str, outcomes: &str, printed: &str| {
            let side = folder.path().join(name);
            fs::create_dir(&side).unwrap();
            fs::write(side.join("outcomes"), outcomes).unwrap();
            fs::write(side.join("a.out"), printed).unwrap();
            Outcomes::read(&side).unwrap()
        };
        let suite = Suite { name: "test", document: "### b\nBecause." };
        let direct = side("direct", "a\tfailed\nb\tok\nc\tok\n", "x");
        let same = side("same", "a\tfailed\nb\tok\nc\tok\n", "x");
        assert_eq!(direct.compare(&same, suite).unwrap(), []);
        let other = side("other", "a\tfailed\nb\tfailed\n", "y");
        let found = direct.compare(&other, suite).unwrap();
        let found: Vec<_> = found.iter().map(|difference| (difference.test.as_str(), difference.explained)).collect();
        assert_eq!(found, [("a", false), ("b", true), ("c", false)]);
    }
}
