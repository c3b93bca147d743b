#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
//! Rights that the API gives, and to whom.

use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use manatee_shared::cluster::{ClusterState, Peer, Role};
use serde_json::Value;

use super::*;
use crate::host::Error;
use crate::status::CopyMethod;
use crate::storage::progress::Begin;
use crate::storage::{Outgoing, StreamRequest};

#[derive(Default)]
struct Fake {
    marked: AtomicU32,
}

#[async_trait]
impl Control for Fake {
    async fn mark_for_replacement(&self) -> Result<(), Error> {
        self.marked.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn send(&self, _: &StreamRequest) -> Result<Option<Outgoing>, Error> {
        Ok(None)
    }
}

struct Server {
    url: String,
    fake: Arc<Fake>,
    progress: Progress,
    status: watch::Sender<Arc<Status>>,
}

impl Server {
    async fn start(token: Option<&str>) -> Self {
        let fake = Arc::new(Fake::default());
        let progress = Progress::new();
        let me = Peer::new("127.0.0.1:5432:1".parse().unwrap(), "me");
        let status = Status::nothing(me, "demo".parse().unwrap(), Instant::now());
        let (sender, receiver) = watch::channel(Arc::new(status));
        let api = Api {
            status: receiver,
            metrics: Arc::new(String::new),
            progress: progress.clone(),
            control: fake.clone(),
            token: token.map(Secret::new),
            transfers: Api::transfers(),
        };
        let listener = bind("127.0.0.1:0".parse().unwrap(), Duration::ZERO).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(serve(listener, router(api)));
        Self { url, fake, progress, status: sender }
    }

    fn become_role(&self, role: Role) {
        let peer = |number| {
            let id = format!("10.0.0.{number}:1:2");
            format!(r#"{{"id":"{id}","zoneId":"{number}","ip":"10.0.0.{number}","pgUrl":"","backupUrl":""}}"#)
        };
        let state =
            format!(r#"{{"generation":1,"primary":{},"sync":{},"async":[],"initWal":"0/0"}}"#, peer(1), peer(2));
        let mut status = Status::clone(&self.status.borrow());
        status.state = Some(Arc::new(ClusterState::parse(state.as_bytes()).unwrap()));
        status.role = role;
        self.status.send_replace(Arc::new(status));
    }

    async fn post(&self, path: &str, token: Option<&str>) -> (u16, Value) {
        let mut request = reqwest::Client::new().post(format!("{}{path}", self.url));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }
}

#[tokio::test]
async fn what_changes_data_needs_the_token() {
    let open = Server::start(None).await;
    open.become_role(Role::Async(0));
    for path in ["/rebuild", "/backup"] {
        let (code, answer) = open.post(path, Some("anything")).await;
        assert_eq!(code, 403, "{path}");
        assert!(answer["error"].as_str().unwrap().contains("api.token_file"), "{answer}");
    }

    let server = Server::start(Some("s3cret")).await;
    server.become_role(Role::Async(0));
    for token in [None, Some("wrong"), Some(""), Some("s3cre"), Some("s3cret2")] {
        assert_eq!(server.post("/rebuild", token).await.0, 401, "{token:?}");
        assert_eq!(server.post("/backup", token).await.0, 401, "{token:?}");
    }
    assert_eq!(server.fake.marked.load(Ordering::SeqCst) + open.fake.marked.load(Ordering::SeqCst), 0);
    assert_eq!(server.post("/rebuild", Some("s3cret")).await.0, 202);
    assert_eq!(server.fake.marked.load(Ordering::SeqCst), 1);
    let reports = reqwest::get(format!("{}/restore", server.url)).await.unwrap();
    assert_eq!(reports.json::<Value>().await.unwrap(), serde_json::json!({ "restore": null }));
}

#[tokio::test]
async fn only_a_peer_that_is_not_needed_is_rebuilt() {
    let server = Server::start(Some("s3cret")).await;
    let refused = async |why: &str| {
        let (code, answer) = server.post("/rebuild", Some("s3cret")).await;
        assert_eq!(code, 409, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(why), "{answer}");
    };
    refused("not read yet").await;
    server.become_role(Role::Primary);
    refused("is primary").await;
    server.become_role(Role::Sync);
    refused("is sync").await;
    server.become_role(Role::Deposed);
    let source = "10.0.0.1:1:2".parse().unwrap();
    let begin = Begin { source, port: 1, dataset: "x".to_owned(), method: CopyMethod::BaseBackup, size: None };
    let copying = server.progress.begin(begin);
    refused("already").await;
    drop(copying);
    assert_eq!(server.fake.marked.load(Ordering::SeqCst), 0);
    assert_eq!(server.post("/rebuild", Some("s3cret")).await.0, 202);
}
