//! The rehearsal: whether ZooKeeper would take what a takeover and a new session write (rule 11).
//!
//! It is a transaction of the same operations with the same bytes, and at its end one that cannot succeed: it creates
//! the state, which an operation before it has set. So nothing changes and no watch fires. The server goes through the
//! operations in their order, looks at the rights of each before it does anything (`PrepRequestProcessor.pRequest2Txn`),
//! and answers which one it refused.
//!
//! Each transaction that fails is a line in the log of ZooKeeper's leader. So it is tried when the answer may have become
//! another one (in a new session, after a reconnection, when a node or its ACL is another), and else every [`PERIOD`].

use std::time::Duration;

use zookeeper_client::{Client, CreateMode, Error, MultiWriteError, Stat};

use super::{Shared, zk_error};
use crate::zk::{Version, ZkError};

/// Between two that no change of an ACL asks for: a quota fills up unseen.
pub(super) const PERIOD: Duration = Duration::from_secs(60);

/// Facts that the answer depends on, as far as they can be seen: which nodes state, election and history are, and the
/// versions of their ACLs.
pub(super) type Rights = [Option<(i64, i32)>; 3];

/// Of one node.
pub(super) fn rights(stat: Option<&Stat>) -> Option<(i64, i32)> {
    stat.map(|stat| (stat.czxid, stat.aversion))
}

/// Writes that would be made.
pub(super) struct Writes<'a> {
    /// Our election node, and what it says.
    pub(super) node: &'a str,
    pub(super) announcement: Vec<u8>,
    pub(super) election_prefix: String,
    /// The state as it is.
    pub(super) version: Version,
    pub(super) state: Vec<u8>,
    pub(super) history_prefix: String,
}

/// Refusal by ZooKeeper, for people; None: it would take everything.
pub(super) async fn rehearse(shared: &Shared, client: &Client, writes: &Writes<'_>) -> Result<Option<String>, ZkError> {
    let paths = &shared.paths;
    let failed = match tokio::time::timeout(shared.operation_timeout(), attempt(shared, client, writes)).await {
        Ok(Err(MultiWriteError::OperationFailed { index, source })) => (index, source),
        Ok(Err(MultiWriteError::RequestFailed { source })) => return Err(zk_error(source)),
        Ok(Ok(())) => return Err(ZkError::Unknown("a transaction that cannot succeed has succeeded".to_owned())),
        Err(_) => return Err(ZkError::Unknown(format!("nothing within {:?}", shared.operation_timeout()))),
    };
    let what = match failed {
        (4, Error::NodeExists) => return Ok(None),
        (1, Error::NoAuth | Error::QuotaExceeded) => format!("write {}", paths.state),
        (2, Error::NoAuth | Error::QuotaExceeded | Error::InvalidAcl) => format!("add to {}", paths.history),
        (3, Error::NoAuth | Error::QuotaExceeded | Error::InvalidAcl) => format!("register under {}", paths.election),
        // Somebody wrote meanwhile, or our node is gone: the next reading tells.
        (_, source) => return Err(ZkError::Unknown(source.to_string())),
    };
    Ok(Some(format!("ZooKeeper does not let us {what}: {}", failed.1)))
}

async fn attempt(shared: &Shared, client: &Client, writes: &Writes<'_>) -> Result<(), MultiWriteError> {
    let acls = || shared.access.acls();
    let mut writer = client.new_multi_writer();
    writer.add_check_version(writes.node, -1)?;
    writer.add_set_data(&shared.paths.state, &writes.state, Some(writes.version))?;
    let sequential = CreateMode::PersistentSequential.with_acls(acls());
    writer.add_create(&writes.history_prefix, &writes.state, &sequential)?;
    let ephemeral = CreateMode::EphemeralSequential.with_acls(acls());
    writer.add_create(&writes.election_prefix, &writes.announcement, &ephemeral)?;
    // It is there, or the second operation would have failed.
    writer.add_create(&shared.paths.state, &writes.state, &CreateMode::Persistent.with_acls(acls()))?;
    writer.commit().await.map(drop)
}
