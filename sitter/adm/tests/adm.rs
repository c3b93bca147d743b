//! The program `manatee-adm` against a real ZooKeeper, without sitters: what it says when things
//! are missing, and its outputs from ZooKeeper alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

#[allow(dead_code, reason = "serves the tests of the client as well")]
#[path = "../../../shared/tests/support/mod.rs"]
mod support;

use std::net::TcpListener;
use std::process::Command;

use manatee_shared::cluster::{ClusterState, Peer};
use manatee_shared::zk::{Coordination, Over};
use support::relay::{Loss, Relay};
use support::{DEADLINE, Server};

struct Output {
    code: i32,
    out: String,
    err: String,
}

fn adm(zk: &str, line: &str) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_manatee-adm"))
        .args(line.split(' '))
        .env_clear()
        .env("ZK_IPS", zk)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Output { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// A peer on this machine at whose ports nobody is.
fn peer(number: u16) -> Peer {
    Peer::new(format!("127.0.0.1:{number}:{}", number + 10).parse().unwrap(), format!("peer{number}"))
}

fn first_state() -> ClusterState {
    let json = serde_json::json!({"generation": 1, "primary": peer(1), "sync": peer(2), "async": [peer(3)],
        "initWal": "0/00000000", "initWalTimeline": 1, "systemIdentifier": "7"});
    ClusterState::parse(json.to_string().as_bytes()).unwrap()
}

#[test]
fn an_unreachable_zookeeper_is_one_line() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let Output { code, out, err } = adm(&format!("127.0.0.1:{port}"), "show -s x");
    assert_eq!((code, out.as_str(), err.lines().count()), (1, "", 1), "{err}");
    assert!(err.starts_with(&format!("manatee-adm: ZooKeeper at 127.0.0.1:{port} cannot be reached: ")), "{err}");
    let Output { code, err, .. } = adm("nonsense:port", "show -s x");
    assert_eq!(code, 1);
    assert!(err.contains("`nonsense:port` is not a server; write it as \"host:port\""), "{err}");
    let Output { code, err, .. } = adm("", "show -s x");
    assert_eq!(code, 1);
    assert!(err.contains("no ZooKeeper is named; give --zk"), "{err}");
}

/// "It was written", "it was not" and "it may have been" are each said only when they are true.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_answer_is_lost_is_told_as_it_was() {
    for loss in [Loss::Silence, Loss::Reset, Loss::Request, Loss::SilenceForGood] {
        let server = Server::start();
        let writer = server.client();
        writer.ready(DEADLINE).await.unwrap();
        writer.write_state(Over::Nothing, &first_state()).await.unwrap();
        let relay = Relay::start(&server, loss, 1);
        let zk = relay.settings().servers.join(",");
        let told = tokio::task::spawn_blocking(move || adm(&zk, "freeze -s 1.test -r maintenance")).await.unwrap();
        let Output { code, out, err } = told;
        assert_eq!(relay.lost(), 1, "{loss:?}: {err}");
        let history = writer.history().await.unwrap();
        let written = history.last().unwrap().state.is_frozen();
        assert_eq!(written, loss != Loss::Request);
        match loss {
            Loss::Silence | Loss::Reset => assert!(code == 0 && out.starts_with("frozen: "), "{loss:?}: {out}{err}"),
            Loss::Request => assert!(code == 1 && err.contains("it was not written: "), "{err}"),
            Loss::SilenceForGood => {
                assert!(code == 1 && out.is_empty(), "{out}{err}");
                assert!(err.contains("it may have been written, and may still be: "), "{err}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_from_zookeeper() {
    let server = Server::start();
    let zk = server.settings().ensemble();
    let Output { code, err, .. } = adm(&zk, "peers -s 1.test");
    assert_eq!(code, 1);
    assert!(err.contains("shard `1.test` is not in ZooKeeper"), "{err}");

    let client = server.client();
    client.ready(DEADLINE).await.unwrap();
    assert!(!client.shard_exists().await.unwrap(), "nothing is created by looking");
    client.join(peer(1)).await.unwrap();
    let Output { code, err, .. } = adm(&zk, "show -s 1.test");
    assert_eq!(code, 1);
    assert!(err.contains("shard `1.test` is not set up yet: 1 of the 2 peers needed"), "{err}");
    let Output { code, err, .. } = adm(&zk, "show -s other");
    assert_eq!(code, 1);
    assert!(err.contains("(there are: 1.test); check --shard"), "{err}");

    client.write_state(Over::Nothing, &first_state()).await.unwrap();
    let Output { code, out, err } = adm(&zk, "peers -s 1.test -o role,peerabbr,ip");
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(
        out,
        "\
ROLE     PEER     IP
primary  peer1    127.0.0.1
sync     peer2    127.0.0.1
async    peer3    127.0.0.1
"
    );
    let Output { code, out, .. } = adm(&zk, "-s 1.test pg-status -H");
    assert_eq!(code, 0);
    assert!(out.starts_with("primary  peer1    fail -     -          -"), "{out}");
    assert!(out.contains("\n\nerror: primary peer1: its sitter does not answer: "), "{out}");
    let Output { code, out, .. } = adm(&zk, "verify --shard 1.test");
    assert_eq!(code, 1, "issues were found");
    assert!(out.lines().all(|line| line.starts_with("error: ") || line.starts_with("warning: ")), "{out}");
    let Output { code, out, .. } = adm(&zk, "history --shard 1.test -j");
    let entry: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, entry["zkSeq"].as_u64(), entry["state"]["generation"].as_u64()), (0, Some(0), Some(1)));
    let Output { out, .. } = adm(&zk, "zk-state -s 1.test");
    assert_eq!(ClusterState::parse(out.as_bytes()).unwrap(), first_state());
    let Output { out, .. } = adm(&zk, "zk-active -s 1.test");
    let active: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(active[0]["id"], "127.0.0.1:1:11");
    let Output { out, .. } = adm(&zk, "show -s 1.test");
    assert!(
        out.starts_with(&format!("zookeeper:    {zk}\ncluster:      1.test\ngeneration:   1 (0/00000000)\n")),
        "{out}"
    );
}

/// Changes by an operator are written as the sitters write: over the version they were decided from,
/// with its history entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_changes() {
    let server = Server::start();
    let zk = server.settings().ensemble();
    let client = server.client();
    client.ready(DEADLINE).await.unwrap();
    client.write_state(Over::Nothing, &first_state()).await.unwrap();
    let done = |line: &str| {
        let Output { code, out, err } = adm(&zk, &format!("-s 1.test {line}"));
        assert_eq!((code, err.as_str()), (0, ""), "{line}: {out}");
        out
    };
    let refused = |line: &str, about: &str| {
        let Output { code, out, err } = adm(&zk, &format!("-s 1.test {line}"));
        assert_eq!((code, out.as_str()), (1, ""), "{line}");
        assert!(err.starts_with("manatee-adm: ") && err.contains(about), "{line}: {err}");
    };
    done("freeze -r maintenance");
    refused("freeze -r again", "frozen already, since ");
    refused("promote -n peer2 -y -l 1", "nothing would happen before `manatee-adm unfreeze`");
    done("unfreeze");
    refused("unfreeze", "is not frozen");
    refused("promote -n peer2", "not promoted: the shard has problems");
    refused("promote -n peer1 -y", "is the primary already");
    refused("promote -n peer3 -r sync -y", "is async now");
    assert_eq!(done("promote -n peer2 -y --no-wait"), "asked for: peer2 to become primary\n");
    refused("promote -n peer3 -y", "is pending until");
    done("clear-promote");
    refused("clear-promote", "no promotion is pending");
    refused("reap -n peer3", "is async, not deposed");
    refused("set-onwm -m on -y", "the sitter of the primary peer1 does not answer");
    refused("set-onwm -m off -y", "is not in one-node-write mode");
    refused("state-backfill -y", "has a valid state");
    let Output { code, out, .. } = adm(&zk, "-s 1.test explain");
    assert_eq!(code, 1);
    assert!(out.contains("peer1 is gone: neither registered nor answering (stops writes)"), "{out}");
    let Output { code, out, .. } = adm(&zk, "status");
    let status: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &status["1.test"]["async"]["online"]), (0, &false.into()));
    assert_eq!(adm(&zk, "check-lock -p /manatee/1.test/state").code, 1);
    assert_eq!(adm(&zk, "check-lock -p /manatee/1.test/nothing").code, 0);
    let summaries = done("history --shard 1.test -v");
    for word in ["frozen by an operator: maintenance", "unfrozen by an operator", "took the request to promote back"] {
        assert!(summaries.contains(word), "{summaries}");
    }
    assert_eq!(summaries.lines().count(), 6, "each change has its entry:\n{summaries}");
}

/// Only the `state` node is lost, or damaged: the history has what it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_state_comes_back_from_the_history() {
    let server = Server::start();
    let zk = server.settings().ensemble();
    let client = server.client();
    client.ready(DEADLINE).await.unwrap();
    client.write_state(Over::Nothing, &first_state()).await.unwrap();
    let raw = zookeeper_client::Client::connect(&zk).await.unwrap();
    let explained = |about: &str| {
        let Output { code, out, .. } = adm(&zk, "-s 1.test explain");
        assert_eq!(code, 1);
        assert!(out.contains(about) && out.contains("manatee-adm state-backfill"), "{out}");
    };
    raw.set_data("/manatee/1.test/state", b"{", None).await.unwrap();
    explained("the state in ZooKeeper cannot be used");
    let Output { code, out, err } = adm(&zk, "-s 1.test state-backfill --dry-run");
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("primary:    peer1 (127.0.0.1:1:11)\nsync:       peer2"), "{out}");
    let Output { code, err, .. } = adm(&zk, "-s 1.test state-backfill");
    assert_eq!(code, 1);
    assert!(err.contains("nobody is there to be asked; to go ahead, give --yes"), "{err}");
    assert_eq!(adm(&zk, "-s 1.test state-backfill -y").code, 0);
    raw.delete("/manatee/1.test/state", None).await.unwrap();
    explained("not its history");
    assert_eq!(adm(&zk, "-s 1.test state-backfill -y").code, 0);
    assert_eq!(adm(&zk, "-s 1.test unfreeze").code, 0);
    let Output { out, .. } = adm(&zk, "-s 1.test zk-state");
    let restored = ClusterState::parse(out.as_bytes()).unwrap();
    assert_eq!(ClusterState { reason: None, ..restored }, first_state());
    let Output { out, .. } = adm(&zk, "verify --shard 1.test");
    assert!(!out.contains("history") && !out.contains("rule"), "{out}");
}

#[test]
fn completions_and_manual_pages_are_printed() {
    let Output { code, out, .. } = adm("", "completion bash");
    assert!(code == 0 && out.contains("complete -F _manatee__adm"), "{out}");
    let Output { code, out, .. } = adm("", "man promote");
    assert!(code == 0 && out.contains(".TH") && out.contains("\\-\\-lag"), "{out}");
}
