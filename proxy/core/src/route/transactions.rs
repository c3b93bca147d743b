//! Transaction control: BEGIN … and the characteristics of a transaction.

use pg_query::{
    Node, NodeEnum,
    protobuf::{self, TransactionStmtKind, a_const::Val},
};

use super::{
    class::{Reason, TransactionControl},
    parse::Reader,
    walk::string_constant,
};

/// Contents of a list of transaction modes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Modes {
    pub(super) read_only: Option<bool>,
    pub(super) isolation: Option<String>,
    pub(super) deferrable: Option<bool>,
}

impl Modes {
    pub(super) fn read(options: &[Node]) -> Self {
        let mut modes = Self::default();
        for option in options {
            let Some(NodeEnum::DefElem(option)) = &option.node else { continue };
            let value = option.arg.as_deref();
            match option.defname.as_str() {
                "transaction_read_only" => modes.read_only = value.and_then(flag),
                "transaction_deferrable" => modes.deferrable = value.and_then(flag),
                "transaction_isolation" => modes.isolation = value.and_then(string_constant).map(str::to_owned),
                _ => {}
            }
        }
        modes
    }

    /// A hot standby refuses this level (manual, 26.4.5).
    pub(super) fn is_serializable(&self) -> bool {
        self.isolation.as_deref().is_some_and(|level| level.eq_ignore_ascii_case("serializable"))
    }
}

/// The grammar makes READ ONLY and the like an integer constant.
fn flag(node: &Node) -> Option<bool> {
    match &node.node {
        Some(NodeEnum::AConst(constant)) => match &constant.val {
            Some(Val::Ival(value)) => Some(value.ival != 0),
            Some(Val::Boolval(value)) => Some(value.boolval),
            // Protobuf leaves out an integer of 0.
            None if !constant.isnull => Some(false),
            _ => None,
        },
        Some(NodeEnum::Integer(value)) => Some(value.ival != 0),
        _ => None,
    }
}

pub(super) fn transaction(reader: &mut Reader<'_>, statement: &protobuf::TransactionStmt) {
    let control = match TransactionStmtKind::try_from(statement.kind) {
        Ok(TransactionStmtKind::TransStmtBegin | TransactionStmtKind::TransStmtStart) => {
            let modes = Modes::read(&statement.options);
            if modes.read_only != Some(true) || modes.is_serializable() {
                reader.needs_primary(Reason::Transaction);
            }
            TransactionControl::Begin { read_only: modes.read_only, serializable: modes.is_serializable() }
        }
        Ok(TransactionStmtKind::TransStmtCommit) => TransactionControl::Commit { chain: statement.chain },
        Ok(TransactionStmtKind::TransStmtRollback) => TransactionControl::Rollback { chain: statement.chain },
        Ok(
            TransactionStmtKind::TransStmtSavepoint
            | TransactionStmtKind::TransStmtRelease
            | TransactionStmtKind::TransStmtRollbackTo,
        ) => TransactionControl::Savepoint,
        Ok(TransactionStmtKind::TransStmtPrepare) => {
            reader.needs_primary(Reason::Transaction);
            TransactionControl::PrepareTransaction
        }
        Ok(TransactionStmtKind::TransStmtCommitPrepared) => {
            reader.needs_primary(Reason::Transaction);
            TransactionControl::CommitPrepared
        }
        Ok(TransactionStmtKind::TransStmtRollbackPrepared) => {
            reader.needs_primary(Reason::Transaction);
            TransactionControl::RollbackPrepared
        }
        Ok(TransactionStmtKind::Undefined) | Err(_) => {
            reader.needs_primary(Reason::Opaque);
            TransactionControl::Commit { chain: false }
        }
    };
    reader.control(control);
}

/// SET TRANSACTION, or SET of one of the variables behind it.
pub(super) fn set_transaction(reader: &mut Reader<'_>, modes: &Modes) {
    if modes.read_only == Some(false) || modes.is_serializable() {
        reader.needs_primary(Reason::Transaction);
    }
    reader.control(TransactionControl::SetTransaction { read_only: modes.read_only });
}
