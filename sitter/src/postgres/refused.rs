//! The operator's settings, judged by the server's own parser before they are used.
//!
//! One name that PostgreSQL does not know makes it ignore a whole reload (`ProcessConfigFileInternal` in guc.c), also the
//! one by which a sync takes over. So what it refuses is left out and told, and the rest is used.
//! `postgres -C` reads a configuration file as a start would, and ends before it looks for data.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::error::Error;
use super::settings::Settings;

/// A setting that PostgreSQL refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its key in the sitter's configuration.
    pub key: String,
    /// Message of PostgreSQL.
    pub problem: String,
}

/// Each round names at least one setting more: unknown names hide wrong values.
const ROUNDS: u32 = 16;

/// Takes what PostgreSQL refuses out of `settings`, and returns it.
pub fn leave_out(settings: &mut Settings) -> Result<Vec<Refused>, Error> {
    let mut refused = Vec::new();
    for _ in 0..ROUNDS {
        let said = said_of(settings)?;
        let before = refused.len();
        for line in said.lines() {
            if let Some((number, problem)) = unreadable(line) {
                if let Some(key) = remove_line(settings, number) {
                    refused.push(Refused { key, problem: problem.to_owned() });
                }
                // The others' numbers are of another text now.
                break;
            }
            let Some((name, problem)) = named(line) else { continue };
            if let Some(key) = remove(settings, name) {
                refused.push(Refused { key, problem: problem.to_owned() });
            }
        }
        if refused.len() == before {
            if !said.is_empty() {
                tracing::warn!(
                    said = said.trim(),
                    "PostgreSQL could not be asked whether it takes the operator's settings"
                );
            }
            break;
        }
    }
    Ok(refused)
}

/// The setting that a line of PostgreSQL's is about, and the line without time, process and level:
/// `… LOG:  unrecognized configuration parameter "work_memm" in file "/…/postgresql.conf" line 3`.
fn named(line: &str) -> Option<(&str, &str)> {
    let (_, text) = ["LOG:  ", "FATAL:  ", "ERROR:  "].iter().find_map(|level| line.split_once(level))?;
    let (_, rest) = text.split_once("parameter \"")?;
    let (name, _) = rest.split_once('"')?;
    Some((name, text.split(" in file \"").next().unwrap_or(text)))
}

/// The line that PostgreSQL cannot read, and what it says of it: `… LOG:  syntax error in file "/…" line 3, near token "="`.
fn unreadable(line: &str) -> Option<(usize, &str)> {
    let (_, text) = line.split_once("syntax error in file ")?;
    let (_, rest) = text.split_once("\" line ")?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((rest.get(..end)?.parse().ok()?, rest.get(end..)?.trim_start_matches(", ")))
}

/// Removes a line of the template, which comes first in what PostgreSQL is asked about.
fn remove_line(settings: &mut Settings, number: usize) -> Option<String> {
    let template = settings.conf_template.as_mut()?;
    let lines = template.lines().count();
    if !(1..=lines).contains(&number) {
        return None;
    }
    let kept = template.lines().enumerate().filter(|(at, _)| at + 1 != number);
    *template = kept.flat_map(|(_, line)| [line, "\n"]).collect();
    Some(format!("postgres.conf_file, line {number}"))
}

/// Removes a setting, wherever it is given. Its key, if it was there.
fn remove(settings: &mut Settings, name: &str) -> Option<String> {
    let given = settings.parameters.keys().find(|key| key.eq_ignore_ascii_case(name)).cloned();
    if let Some(key) = given {
        settings.parameters.remove(&key);
        return Some(format!("postgres.parameters.{key}"));
    }
    let template = settings.conf_template.as_mut()?;
    let about = |line: &&str| {
        let line = line.trim_start();
        let end = line.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(line.len());
        line.get(..end).is_some_and(|found| found.eq_ignore_ascii_case(name))
    };
    let kept: String = template.lines().filter(|line| !about(line)).flat_map(|line| [line, "\n"]).collect();
    if kept.lines().count() == template.lines().count() {
        return None;
    }
    *template = kept;
    Some(format!("postgres.conf_file, {name}"))
}

/// A folder of its own for one question, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("manatee-check-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        // Fails if somebody else made it before.
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(Error::io("make", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Complaints of PostgreSQL about the operator's settings; empty if it takes them all.
fn said_of(settings: &Settings) -> Result<String, Error> {
    let scratch = Scratch::new()?;
    let file = scratch.0.join("postgresql.conf");
    let text = text(settings.conf_template.as_deref(), &settings.parameters);
    std::fs::write(&file, text).map_err(Error::io("write", &file))?;
    ask(&settings.bin_dir, &scratch.0)
}

fn text(template: Option<&str>, parameters: &BTreeMap<String, String>) -> String {
    let lines = parameters.iter().map(|(name, value)| format!("{name} = {}\n", super::conf::quote(value)));
    let template = template.map(|template| format!("{template}\n")).unwrap_or_default();
    template + &lines.collect::<String>()
}

fn ask(bin_dir: &Path, folder: &Path) -> Result<String, Error> {
    let program = bin_dir.join("postgres");
    // Root may (main.c): it reads only.
    let output = std::process::Command::new(&program)
        // In this order, or root may not.
        .args(["-C", "data_directory", "-D"])
        .arg(folder)
        .current_dir("/")
        .env_clear()
        .env("LC_ALL", "C")
        .output()
        .map_err(Error::io("run", &program))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(if output.status.success() { String::new() } else { said })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Secret;

    #[test]
    fn the_setting_that_a_line_is_about_is_found() {
        let line = "2026-01-01 00:00:00.000 GMT [7] LOG:  unrecognized configuration parameter \"work_memm\" in file \"/x\" line 1";
        assert_eq!(named(line), Some(("work_memm", "unrecognized configuration parameter \"work_memm\"")));
        let line =
            "2026-01-01 [7] LOG:  5 kB is outside the valid range for parameter \"work_mem\" (64 kB .. 2147483647 kB)";
        assert_eq!(named(line).map(|(name, _)| name), Some("work_mem"));
        assert_eq!(named("FATAL:  configuration file \"/x\" contains errors"), None);
    }

    #[test]
    fn what_postgresql_refuses_is_left_out_and_the_rest_stays() {
        let Some(bin_dir) = manatee_tests::binaries::postgres_folder().ok() else { return };
        let secret = || Secret::new("x");
        let mut settings = Settings::new("/nowhere".into(), bin_dir, secret(), secret());
        settings.conf_template =
            Some("shared_bufers = 1MB\nwork_mem = '8MB' # fine\nsynt ax = =\ncustom.thing = 1".to_owned());
        for (name, value) in [("maintenance_work_memm", "1MB"), ("random_page_cost", "cheap"), ("jit", "off")] {
            settings.parameters.insert(name.to_owned(), value.to_owned());
        }
        let mut keys: Vec<String> = leave_out(&mut settings).unwrap().into_iter().map(|refused| refused.key).collect();
        keys.sort();
        assert_eq!(
            keys,
            [
                "postgres.conf_file, line 3",
                "postgres.conf_file, shared_bufers",
                "postgres.parameters.maintenance_work_memm",
                "postgres.parameters.random_page_cost"
            ]
        );
        assert_eq!(settings.parameters.keys().collect::<Vec<_>>(), ["jit"]);
        assert_eq!(settings.conf_template.as_deref(), Some("work_mem = '8MB' # fine\ncustom.thing = 1\n"));
        assert!(leave_out(&mut settings).unwrap().is_empty());
    }
}
