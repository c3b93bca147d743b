//! Alert rules and dashboard: valid, tested, and about metrics that exist.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("parent").to_owned()
}

fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool").args(arguments).current_dir(repository()).output().expect("promtool");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {text}");
}

#[test]
fn the_alert_rules_hold() {
    promtool(&["check", "rules", "config/prometheus/manatee.rules.yml"]);
    promtool(&["test", "rules", "config/prometheus/manatee.rules.test.yml"]);
}

/// All names that begin like ours.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    words.filter(|word| word.starts_with("manatee_")).map(str::to_owned).collect()
}

fn read(file: &str) -> String {
    std::fs::read_to_string(repository().join(file)).expect(file)
}

#[test]
fn rules_and_dashboard_name_metrics_that_exist() {
    let sources = ["proxy/src/metrics.rs", "proxy/src/http/exposition.rs", "sitter/src/metrics.rs"];
    let known: BTreeSet<String> = sources.iter().flat_map(|file| names(&read(file))).collect();
    let exists = |name: &str| {
        let plain = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        known.contains(name) || known.contains(plain)
    };
    for file in ["config/prometheus/manatee.rules.yml", "config/grafana/manatee.json"] {
        let unknown: Vec<String> = names(&read(file)).into_iter().filter(|name| !exists(name)).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("config/grafana/manatee.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<i64> = panels.iter().filter_map(|panel| panel["id"].as_i64()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has its own id");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        for target in panel["targets"].as_array().expect("targets") {
            let expression = target["expr"].as_str().expect("expression");
            let count = |letter| expression.matches(letter).count();
            assert_eq!((count('('), count('{')), (count(')'), count('}')), "{expression}");
        }
    }
}
