//! The program `manatee-adm` against a real ZooKeeper, without sitters: what it says when things
//! are missing, and its outputs from ZooKeeper alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../shared/tests/support/mod.rs"]
mod support;

use std::net::TcpListener;
use std::process::Command;

use manatee_shared::cluster::{ClusterState, Peer};
use manatee_shared::zk::Coordination;
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

    client.write_state(None, &first_state()).await.unwrap();
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
