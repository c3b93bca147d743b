//! The documents agree with the programs: links lead somewhere, commands and their options exist, every fault row and
//! every alert is described, the minimal samples pass `--check-config`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use manatee_tests::binaries::Binaries;
use manatee_tests::{fault, ports};

/// Longest README, in words: it is read in five minutes.
const README_WORDS: usize = 900;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The documents for users and maintainers, by their path from the root.
fn documents() -> Vec<(String, String)> {
    let mut paths: Vec<String> = ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(str::to_owned).into();
    for entry in fs::read_dir(root().join("docs")).expect("docs/") {
        let name = entry.expect("entry").file_name().into_string().expect("UTF-8");
        paths.push(format!("docs/{name}"));
    }
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

/// The anchor that a heading gets: lower case, hyphens for spaces, punctuation dropped.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().trim().to_lowercase().replace(' ', "-")
}

fn anchors(text: &str) -> BTreeSet<String> {
    text.lines().filter(|line| line.starts_with('#')).map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    for (path, text) in documents() {
        let folder = Path::new(&path).parent().expect("parent").to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, wanted) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { root().join(&path) } else { root().join(&folder).join(file) };
            assert!(target.exists(), "{path}: the link {link} leads to no file");
            if !wanted.is_empty() {
                let there = fs::read_to_string(&target).expect("document");
                assert!(anchors(&there).contains(wanted), "{path}: {link} leads to no heading");
            }
        }
    }
}

#[test]
fn the_readme_is_read_in_five_minutes() {
    let words = read("README.md").split_whitespace().count();
    assert!(words <= README_WORDS, "README.md has {words} words; {README_WORDS} are the limit");
}

/// The commands that a document shows: lines indented by four, and what stands in backticks.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(line) = line.trim_start().strip_prefix("- ").map_or(line, |_| line).strip_prefix("    ") {
            found.push(line.trim().to_owned());
        }
        found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    found.iter().map(|command| command.split(" # ").next().unwrap_or_default().trim().to_owned()).collect()
}

/// Words of `command` behind the program `name`, wherever the program lies; None for other commands.
fn arguments<'a>(command: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let mut words = command.split_whitespace();
    let program = words.next()?;
    (Path::new(program).file_name()? == name).then(|| words.collect())
}

fn help(program: &Path, subcommand: Option<&str>) -> Option<String> {
    let output = Command::new(program).args(subcommand).arg("--help").env_clear().output().expect("it can be started");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn check_program(path: &str, command: &str, words: &[&str], program: &Path) {
    // Options of the program itself, with their values, may precede the subcommand.
    let mut rest = words;
    while let [option, _value, tail @ ..] = rest
        && matches!(*option, "-z" | "-s" | "-c" | "--zk" | "--shard" | "--config")
    {
        rest = tail;
    }
    let subcommand = rest.first().copied().filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
    let text =
        help(program, subcommand).unwrap_or_else(|| panic!("{path}: `{command}` names a subcommand that is not there"));
    for option in rest.iter().filter(|word| word.starts_with('-') && word.len() > 1) {
        let option = option.split('=').next().expect("a part");
        let known = text.split(|c: char| c.is_whitespace() || matches!(c, ',' | '=' | '[')).any(|word| word == option);
        assert!(known, "{path}: `{command}` has the option {option}, which is not there");
    }
}

#[test]
fn every_command_and_its_options_exist() {
    let binaries = Binaries::find(None).expect("programs");
    let lab = binaries.adm.with_file_name("manatee-lab");
    let makefile = read("Makefile");
    let mut seen = 0;
    for (path, text) in documents() {
        for command in commands(&text) {
            let programs = [
                ("manatee-adm", &binaries.adm),
                ("manatee-sitter", &binaries.sitter),
                ("manatee-proxy", &binaries.proxy),
                ("manatee-lab", &lab),
            ];
            for (name, program) in programs {
                // "manatee-lab" alone is a name, not a command.
                if let Some(words) = arguments(&command, name).filter(|words| !words.is_empty()) {
                    check_program(&path, &command, &words, program);
                    seen += 1;
                }
            }
            if let Some(words) = arguments(&command, "make") {
                let target = words.first().copied().unwrap_or("help");
                assert!(makefile.contains(&format!("\n{target}:")), "{path}: `{command}` is no target of the Makefile");
                seen += 1;
            }
        }
    }
    assert!(seen > 50, "only {seen} commands were found: this test no longer reads the documents");
}

#[test]
fn every_fault_row_is_described_with_its_command() {
    let text = read("docs/faults.md");
    let described: BTreeSet<u32> = text
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            let number = cells.next()?.parse().ok()?;
            assert!(line.contains(&format!("`manatee-lab fault {number}`")), "row {number} does not name its command");
            Some(number)
        })
        .collect();
    let built: BTreeSet<u32> = fault::rows().map(|row| row.number).collect();
    assert_eq!(described, built, "docs/faults.md describes other rows than the lab has");
}

#[test]
fn every_alert_has_an_action() {
    let rules = read("config/prometheus/manatee.rules.yml");
    let alerts: BTreeSet<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::trim).collect();
    let operations = read("docs/operations.md");
    let described: BTreeSet<&str> =
        operations.lines().filter_map(|line| line.strip_prefix("| Manatee")?.split(" | ").next()).collect();
    let described: BTreeSet<String> = described.into_iter().map(|name| format!("Manatee{name}")).collect();
    let alerts: BTreeSet<String> = alerts.into_iter().map(str::to_owned).collect();
    assert_eq!(described, alerts, "docs/operations.md has other alerts than config/prometheus");
}

/// A minimal sample with its secrets in `folder` and this host's address.
fn localized(sample: &str, folder: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    for (name, content) in [
        ("zookeeper.auth", "manatee:secret"),
        ("postgres.password", "secret-postgres"),
        ("replication.password", "secret-replication"),
        ("proxy.password", "secret-proxy"),
        ("api.token", "0123456789abcdef0123456789abcdef"),
    ] {
        let path = folder.join(name);
        fs::write(&path, content).expect("secret");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
    }
    let mut taken = Vec::new();
    let mut free = || ports::free(Ipv4Addr::LOCALHOST, &mut taken).expect("port");
    // PostgreSQL's port, with the one behind it for the sitter's API.
    let mut pg_port = free();
    while !ports::is_free(Ipv4Addr::LOCALHOST, pg_port + 1) {
        pg_port = free();
    }
    let here = folder.display().to_string();
    let text = read(sample)
        .replace("/etc/manatee", &here)
        .replace("/var/lib/manatee", &format!("{here}/peer"))
        .replace("10.0.0.1", "127.0.0.1")
        .replace("5432", &pg_port.to_string())
        .replace("12345", &free().to_string())
        .replace("6432", &free().to_string())
        .replace("6480", &free().to_string());
    let path = folder.join(Path::new(sample).file_name().expect("name"));
    fs::write(&path, text).expect("configuration");
    path
}

#[test]
fn the_minimal_samples_pass_check_config() {
    let binaries = Binaries::find(None).expect("programs");
    let folder = tempfile::Builder::new().prefix("manatee-documents").tempdir().expect("folder");
    for (sample, program) in
        [("config/sitter.minimal.toml", &binaries.sitter), ("config/proxy.minimal.toml", &binaries.proxy)]
    {
        let config = localized(sample, folder.path());
        let output = Command::new(program)
            .arg("--config")
            .arg(&config)
            .arg("--check-config")
            .output()
            .expect("it can be started");
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{sample}: {said}");
    }
}
