//! The layers hold: which crate may know which, what the cores may use, and what may lie below what in the sitter and
//! the proxy. A new dependency that breaks none of this gets a line here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Each crate with the others of the workspace that it may know, and those that its tests may know besides.
const CRATES: &[(&str, &[&str], &[&str])] = &[
    ("manatee-shared", &[], &[]),
    ("manatee-fake-zookeeper", &["manatee-shared"], &[]),
    // The fake is optional: the simulation's.
    ("manatee-sitter-core", &["manatee-shared", "manatee-fake-zookeeper"], &[]),
    ("manatee-proxy-core", &["manatee-shared"], &[]),
    ("manatee-sitter", &["manatee-shared", "manatee-sitter-core"], &["manatee-fake-zookeeper", "manatee-tests"]),
    ("manatee-adm", &["manatee-shared", "manatee-sitter-core"], &[]),
    ("manatee-proxy", &["manatee-shared", "manatee-proxy-core"], &[]),
    ("manatee-tests", &["manatee-shared"], &[]),
    ("manatee-micro", &["manatee-proxy"], &[]),
    ("manatee-bench", &["manatee-shared", "manatee-proxy", "manatee-tests"], &[]),
];

/// Crates of others that a core may use: none does I/O, reads a clock or makes random numbers of its own.
const PURE: &[(&str, &[&str])] = &[
    (
        "manatee-proxy-core",
        &[
            "arc-swap",
            "base64",
            "bytes",
            "foldhash",
            "hmac",
            "memchr",
            "pg_query",
            "postgres-protocol",
            "serde",
            "sha2",
            "stringprep",
            "subtle",
            "thiserror",
            "zeroize",
        ],
    ),
    // jiff for dates; anyhow, clap and fastrand (with seeds) are the simulation's.
    (
        "manatee-sitter-core",
        &["anyhow", "clap", "fastrand", "jiff", "serde", "serde_json", "strum_macros", "thiserror"],
    ),
];

/// Modules of manatee-shared that a core may use: data and rules.
const DATA: &[&str] = &["cluster", "ids", "invariants", "lsn", "topology", "zk"];

/// Names of those modules that are no data.
const NO_DATA: &[&str] = &["zk::client", "TopologyWatcher", "Coordination"];

/// Layers that a folder must not use: those above it.
const ABOVE: &[(&str, &[&str])] = &[
    ("sitter/core/src/machine", &["sim", "fence", "heartbeat", "status"]),
    ("sitter/core/src/reason", &["fence", "heartbeat", "sim", "status"]),
    ("sitter/core/src/status", &["fence", "heartbeat", "sim"]),
    ("sitter/core/src/heartbeat", &["sim", "fence"]),
    (
        "sitter/src/host",
        &["api", "data", "driver", "execute", "heartbeat", "postgres", "snapshotter", "storage", "supervise"],
    ),
    ("sitter/src/storage", &["api", "data", "driver", "execute", "heartbeat", "postgres", "snapshotter", "supervise"]),
    ("sitter/src/postgres", &["api", "data", "driver", "execute", "heartbeat", "snapshotter", "storage", "supervise"]),
    ("sitter/src/data", &["api", "driver", "execute", "heartbeat", "snapshotter", "supervise"]),
    ("sitter/src/heartbeat", &["api", "data", "driver", "execute", "postgres", "snapshotter", "storage", "supervise"]),
    ("sitter/src/execute", &["api", "driver", "heartbeat", "snapshotter", "supervise"]),
    ("sitter/src/driver", &["api", "data", "snapshotter", "storage", "supervise"]),
    ("sitter/src/api", &["execute", "heartbeat", "postgres", "snapshotter", "supervise"]),
    ("proxy/core/src/wire", &["route", "rules", "session", "topology"]),
    ("proxy/core/src/route", &["error", "rules", "session", "topology", "wire"]),
    ("proxy/core/src/rules", &["error", "route", "session", "topology", "wire"]),
    ("proxy/core/src/topology", &["error", "route", "rules", "session", "wire"]),
    ("proxy/core/src/session", &["rules"]),
    ("proxy/src/pool", &["admin", "driver", "http", "server"]),
    ("proxy/src/topology", &["admin", "auth", "cancel", "driver", "http", "pool", "relay", "server"]),
    ("proxy/src/tls", &["admin", "cancel", "driver", "http", "pool", "relay", "server"]),
];

/// Files that know each other in a circle, with the reason. No other may; whoever opens one takes it from here.
const CIRCLES: &[(&str, &[&str])] = &[
    // Settings are checked by those who render them.
    ("sitter/src", &["postgres/conf", "postgres/hba", "postgres/replication_tls", "postgres/settings"]),
    // To be opened: plain data below what is judged by it.
    (
        "sitter/core/src",
        &["machine/action", "machine/capacity", "machine/local", "machine/suspicion", "machine/view", "reason"],
    ),
    // A planted bug is part of a plan, and a plan brings a bug about.
    ("sitter/core/src", &["sim/mutation", "sim/plan"]),
    // The world passes itself to its parts.
    ("sitter/core/src", &["sim/heartbeats", "sim/host", "sim/world"]),
    // A shard is connected to, and its state read, by two halves of one step.
    ("sitter/adm/src", &["cluster", "connect"]),
    // Both halves of one queue.
    ("proxy/src", &["pool/quota", "pool/server"]),
    // Dispatch by statement, and what each kind of statement does.
    ("proxy/core/src", &["route/parse", "route/settings", "route/transactions"]),
    // A unit's states, each of which may become another.
    ("proxy/core/src", &["session/answer", "session/run"]),
    ("proxy/core/src", &["session/bound", "session/inject", "session/probe", "session/reply", "session/state"]),
    // Parsing is validating.
    ("shared/src", &["cluster", "invariants"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("shared/ is in the repository").to_owned()
}

fn manifest(folder: &Path) -> Table {
    let path = folder.join("Cargo.toml");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).parse().expect("TOML")
}

/// The workspace's crates: name, folder, manifest.
fn crates() -> Vec<(String, PathBuf, Table)> {
    let members = manifest(&root())["workspace"]["members"].as_array().expect("an array").clone();
    let read = |member: Value| {
        let folder = root().join(member.as_str().expect("a folder"));
        let manifest = manifest(&folder);
        (manifest["package"]["name"].as_str().expect("a name").to_owned(), folder, manifest)
    };
    members.into_iter().map(read).collect()
}

fn names(manifest: &Table, section: &str) -> BTreeSet<String> {
    manifest.get(section).and_then(Value::as_table).into_iter().flat_map(Table::keys).cloned().collect()
}

/// Whether a dependency is one of ours.
fn is_own(name: &str) -> bool {
    name.starts_with("manatee-")
}

/// The sources below `folder`, without comments and the code of tests.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| !name.to_string_lossy().ends_with("tests") && name != "bin") {
                found.extend(sources(&path));
            }
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !path.file_stem().is_some_and(|name| name.to_string_lossy().ends_with("tests"))
        {
            let text = fs::read_to_string(&path).expect("UTF-8");
            // Tests are a module at the end; `mod tests;` alone is a line like others.
            let tests = text
                .match_indices("\n#[cfg(test)]\n")
                .find(|(at, _)| text[*at..].lines().nth(2).is_some_and(|line| line.trim_end().ends_with('{')));
            let product = tests.map_or(text.as_str(), |(at, _)| &text[..at]);
            let code = product.lines().filter(|line| !line.trim_start().starts_with("//"));
            found.push((path, code.collect::<Vec<_>>().join("\n")));
        }
    }
    found
}

/// Whether `code` names `path`, and not only something that begins so.
fn mentions(code: &str, path: &str) -> bool {
    code.match_indices(path)
        .any(|(at, _)| !code[at + path.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_'))
}

#[test]
fn no_crate_knows_one_above_it() {
    for (name, _, manifest) in crates() {
        let (_, allowed, in_tests) =
            CRATES.iter().find(|(known, ..)| *known == name).unwrap_or_else(|| panic!("{name} has no line in CRATES"));
        for section in ["dependencies", "build-dependencies", "dev-dependencies"] {
            for other in names(&manifest, section).iter().filter(|other| is_own(other)) {
                let other = other.as_str();
                let fine = allowed.contains(&other) || section == "dev-dependencies" && in_tests.contains(&other);
                assert!(fine, "{name} must not know {other} ({section})");
            }
        }
    }
}

#[test]
fn the_cores_use_nothing_that_does_io() {
    let crates = crates();
    for (core, pure) in PURE {
        let (_, folder, manifest) = crates.iter().find(|(name, ..)| name == core).expect("the core");
        for name in names(manifest, "dependencies").iter().filter(|name| !is_own(name)) {
            assert!(pure.contains(&name.as_str()), "{core} uses {name}: if that does no I/O, add it to PURE");
        }
        let library = fs::read_to_string(folder.join("src/lib.rs")).expect("lib.rs");
        assert!(library.contains("#![forbid(unsafe_code)]"), "{core} does not forbid unsafe code");
        let lints = fs::read_to_string(folder.join("clippy.toml")).expect("clippy.toml");
        for wanted in ["std::time::Instant::now", "std::time::SystemTime::now", "std::fs::File", "std::env::var"] {
            assert!(lints.contains(&format!("\"{wanted}\"")), "{core}/clippy.toml does not refuse {wanted}");
        }
    }
}

#[test]
fn the_cores_use_only_the_data_of_the_shared_crate() {
    for core in ["sitter/core/src", "proxy/core/src"] {
        for (path, code) in sources(&root().join(core)) {
            for (at, _) in code.match_indices("manatee_shared::") {
                let rest = &code[at + "manatee_shared::".len()..];
                let module: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                assert!(DATA.contains(&module.as_str()), "{}: manatee_shared::{module} is no data", path.display());
            }
            // The simulation plays ZooKeeper's part.
            if !path.starts_with(root().join("sitter/core/src/sim")) {
                for name in NO_DATA {
                    assert!(!mentions(&code, name), "{}: {name} is no data", path.display());
                }
            }
        }
    }
}

#[test]
fn no_folder_uses_what_lies_above_it() {
    for (folder, above) in ABOVE {
        let folder = root().join(folder);
        let mut all = if folder.is_dir() { sources(&folder) } else { Vec::new() };
        let file = folder.with_extension("rs");
        if file.is_file() {
            all.push((file.clone(), fs::read_to_string(file).expect("UTF-8")));
        }
        assert!(!all.is_empty(), "{} is not there: correct ABOVE", folder.display());
        for (path, code) in all {
            for module in *above {
                assert!(!mentions(&code, &format!("crate::{module}")), "{} uses {module}", path.display());
            }
        }
    }
}

/// A module by its path within the crate.
type Module = Vec<String>;

fn module_of(source: &Path, file: &Path) -> Module {
    let inside = file.strip_prefix(source).expect("below").with_extension("");
    let mut parts: Module = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod" || last == "lib") {
        parts.pop();
    }
    parts
}

/// The paths in one `use` tree: `a::{b, c::d}` has two.
fn paths(tree: &str) -> Vec<String> {
    let Some((before, inside)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![path.split_whitespace().collect()];
    };
    let inside = inside.rsplit_once('}').map_or(inside, |(inside, _)| inside);
    let (mut depth, mut begin, mut parts) = (0, 0, Vec::new());
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inside[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inside[begin..]);
    let parts = parts.into_iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(paths).map(|path| format!("{}{path}", before.trim())).collect()
}

/// The modules that a file's `use` lines name, other than those it lies in or that lie in it.
fn uses(module: &Module, code: &str, all: &BTreeSet<Module>) -> BTreeSet<Module> {
    let mut found = BTreeSet::new();
    for statement in code.split(';') {
        let Some((visibility, tree)) = statement.rsplit_once("use ") else { continue };
        // A word in a text or a name that ends so is none.
        if !visibility.ends_with(['\n', ' ']) && !visibility.is_empty() {
            continue;
        }
        for path in paths(tree) {
            let mut names: Vec<&str> = path.split("::").collect();
            let mut from: Module = match names[0] {
                "crate" => Vec::new(),
                "super" | "self" => module.clone(),
                _ => continue,
            };
            while matches!(names.first(), Some(&"crate" | &"super" | &"self")) {
                if names.remove(0) == "super" {
                    from.pop();
                }
            }
            from.extend(names.into_iter().map(str::to_owned));
            let known = (1..=from.len()).rev().map(|length| from[..length].to_vec()).find(|path| all.contains(path));
            found.extend(known.filter(|known| !known.starts_with(module) && !module.starts_with(known)));
        }
    }
    found
}

/// Circles: modules each of which comes to the other by `use`.
fn circles(graph: &BTreeMap<Module, BTreeSet<Module>>) -> BTreeSet<Vec<String>> {
    let reached = |from: &Module| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(module) = next.pop() {
            for used in graph.get(&module).into_iter().flatten() {
                if seen.insert(used.clone()) {
                    next.push(used.clone());
                }
            }
        }
        seen
    };
    let all: BTreeMap<&Module, BTreeSet<Module>> = graph.keys().map(|module| (module, reached(module))).collect();
    let mut circles = BTreeSet::new();
    for (module, reached) in &all {
        if reached.contains(*module) {
            let circle = reached.iter().filter(|other| all.get(other).is_some_and(|back| back.contains(*module)));
            circles.insert(circle.map(|module| module.join("/")).collect());
        }
    }
    circles
}

fn circles_of(source: &Path) -> BTreeSet<Vec<String>> {
    let files = sources(source);
    let all: BTreeSet<Module> = files.iter().map(|(path, _)| module_of(source, path)).collect();
    let graph = files.iter().map(|(path, code)| {
        let module = module_of(source, path);
        let used = uses(&module, code, &all);
        (module, used)
    });
    circles(&graph.collect())
}

#[test]
fn no_files_know_each_other_in_a_circle() {
    for source in ["shared/src", "sitter/core/src", "sitter/src", "sitter/adm/src", "proxy/core/src", "proxy/src"] {
        let allowed: BTreeSet<Vec<String>> = CIRCLES
            .iter()
            .filter(|(of, _)| *of == source)
            .map(|(_, files)| files.iter().map(|file| (*file).to_owned()).collect())
            .collect();
        assert_eq!(circles_of(&root().join(source)), allowed, "{source}: open it, or correct CIRCLES");
    }
}

#[test]
fn a_circle_is_found_in_every_form_of_use() {
    let all: BTreeSet<Module> = [&["a"][..], &["a", "b"], &["c"], &["d"]]
        .map(|path| path.iter().map(|part| (*part).to_owned()).collect())
        .into();
    let module = |path: &[&str]| path.iter().map(|part| (*part).to_owned()).collect::<Module>();
    let found = |from: &[&str], code: &str| uses(&module(from), code, &all);
    assert_eq!(
        found(&["a", "b"], "use super::super::c::X;\npub(crate) use crate::d;"),
        [module(&["c"]), module(&["d"])].into()
    );
    assert_eq!(
        found(&["c"], "use crate::{\n    a::{self, b::{X, Y}},\n    d,\n};"),
        [module(&["a"]), module(&["a", "b"]), module(&["d"])].into()
    );
    assert_eq!(found(&["a"], "use self::b::X;\nlet because = crate::c::X;"), BTreeSet::new(), "a child, and no use");
    let graph = [
        (module(&["c"]), [module(&["d"])].into()),
        (module(&["d"]), [module(&["c"])].into()),
        (module(&["a"]), [module(&["c"])].into()),
    ];
    assert_eq!(circles(&graph.into()), [vec!["c".to_owned(), "d".to_owned()]].into());
}
