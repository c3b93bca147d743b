//! Reading of a text by PostgreSQL's own parser, statement by statement. Runs on a cache miss only.

use std::borrow::Cow;

use pg_query::{
    Node, NodeEnum, ParserOptions,
    protobuf::{self, AlterTableType, DiscardMode},
};

use super::{
    class::{
        Access, Class, Control, CopyDirection, Deallocate, Effects, Hint, ProxyCommand, Reason, SettingChange,
        SqlContext, Statements, TextEncoding, TransactionControl,
    },
    databases, settings, transactions,
    volatility::{self, Catalog},
    walk::{Walk, is_temporary},
};

/// Longer texts go to the primary unread: parsing runs on the session thread, and takes about 0.2 µs a byte.
pub(super) const MAX_TEXT_BYTES: usize = 256 * 1024;

/// Texts with more comments than this are not parsed: nested ones take the parser's scanner time that grows
/// with their square (12 s for 100 kB). A fingerprint has none.
const MAX_COMMENTS: usize = 64;

/// Classifies a text.
pub(super) fn classify(text: &[u8], context: SqlContext, catalog: Option<&Catalog>, hint: Option<Hint>) -> Class {
    let mut class = match parse(text, context) {
        Ok(statements) => {
            let exact = match context.encoding {
                TextEncoding::Utf8 => std::str::from_utf8(text).is_ok(),
                encoding => encoding == TextEncoding::Latin1,
            };
            let mut reader = Reader::new(text, exact, catalog);
            for statement in &statements.stmts {
                if let Some(node) = statement.stmt.as_deref() {
                    reader.statement(node);
                }
            }
            reader.finish()
        }
        Err(reason) => Class::unknown(reason),
    };
    class.hint = hint;
    class
}

fn parse(text: &[u8], context: SqlContext) -> Result<protobuf::ParseResult, Reason> {
    if text.len() > MAX_TEXT_BYTES || (context.encoding == TextEncoding::Unsafe && !text.is_ascii()) {
        return Err(Reason::Unreadable);
    }
    if memchr::memmem::find_iter(text, b"/*").nth(MAX_COMMENTS).is_some() {
        return Err(Reason::Unreadable);
    }
    // In another encoding that keeps ASCII, what is not ASCII can only be within names and literals, where any
    // character will do. Names that differ from the catalog's are unknown ones; values are not taken from there.
    let text = match std::str::from_utf8(text) {
        Ok(text) if text.is_ascii() || context.encoding == TextEncoding::Utf8 => Cow::Borrowed(text),
        _ => Cow::Owned(text.iter().map(|byte| char::from(*byte)).collect()),
    };
    let options = if context.standard_conforming_strings {
        ParserOptions::DEFAULT
    } else {
        ParserOptions::DISABLE_STANDARD_CONFORMING_STRINGS
    };
    match pg_query::parse(&text, options) {
        Ok(parsed) => Ok(parsed.protobuf),
        Err(pg_query::Error::Parse(_)) => Err(Reason::Unparsable),
        // The tree is too deep for its encoding, or there is a NUL in the text.
        Err(_) => Err(Reason::Unreadable),
    }
}

/// Collects what the statements of a text mean together.
pub(super) struct Reader<'a> {
    text: &'a [u8],
    catalog: Option<&'a Catalog>,
    statements: usize,
    pub(super) access: Access,
    pub(super) effects: Effects,
    pub(super) settings: Vec<SettingChange>,
    pub(super) may_set: Vec<Box<str>>,
    /// Characters beyond ASCII are what the client wrote.
    pub(super) exact: bool,
    deallocates: Vec<Deallocate>,
    vacates: Vec<Box<str>>,
    pub(super) proxy: Option<ProxyCommand>,
    copy: Option<CopyDirection>,
    first_control: Option<TransactionControl>,
    controls: bool,
    commits: bool,
}

impl<'a> Reader<'a> {
    fn new(text: &'a [u8], exact: bool, catalog: Option<&'a Catalog>) -> Self {
        Self {
            text,
            catalog,
            statements: 0,
            access: Access::ReadOnly,
            effects: Effects::NONE,
            settings: Vec::new(),
            may_set: Vec::new(),
            exact,
            deallocates: Vec::new(),
            vacates: Vec::new(),
            proxy: None,
            copy: None,
            first_control: None,
            controls: false,
            commits: false,
        }
    }

    fn finish(mut self) -> Class {
        if self.statements > 1 && self.proxy.is_some() {
            self.proxy = Some(ProxyCommand::Refused {
                sqlstate: "0A000",
                message: "a command for the proxy (manatee.…) must be the only statement of its text".into(),
            });
        }
        let control = match (self.controls, self.first_control) {
            (false, _) => Control::None,
            (true, Some(one)) if self.statements == 1 => Control::Alone(one),
            (true, first) => Control::Mixed { first, commits: self.commits },
        };
        Class {
            access: self.access,
            statements: match self.statements {
                0 => Statements::None,
                1 => Statements::One,
                _ => Statements::Many,
            },
            control,
            effects: self.effects,
            settings: self.settings.into(),
            may_set: self.may_set.into(),
            deallocates: self.deallocates.into(),
            vacates: self.vacates.into(),
            hint: None,
            copy: self.copy,
            proxy: self.proxy,
        }
    }

    pub(super) fn needs_primary(&mut self, reason: Reason) {
        self.access = self.access.and(Access::Primary(reason));
    }

    pub(super) fn control(&mut self, control: TransactionControl) {
        if self.statements == 1 {
            self.first_control = Some(control);
        }
        self.controls = true;
        self.commits |= Control::Alone(control).commits();
    }

    fn statement(&mut self, node: &Node) {
        self.statements += 1;
        match &node.node {
            None => self.opaque(),
            Some(
                NodeEnum::SelectStmt(_)
                | NodeEnum::InsertStmt(_)
                | NodeEnum::UpdateStmt(_)
                | NodeEnum::DeleteStmt(_)
                | NodeEnum::MergeStmt(_),
            ) => {
                if !settings::set_config(self, node) {
                    self.query(Some(node));
                }
            }
            Some(NodeEnum::TransactionStmt(statement)) => transactions::transaction(self, statement),
            Some(NodeEnum::VariableSetStmt(statement)) => settings::set(self, statement),
            Some(NodeEnum::VariableShowStmt(statement)) => self.show(&statement.name),
            Some(NodeEnum::CopyStmt(statement)) => self.copy(statement),
            // Also without ANALYZE: what a plan's costs depend on is the same, but the primary is never wrong.
            Some(NodeEnum::ExplainStmt(statement)) => self.query(statement.query.as_deref()),
            Some(kind) => self.utility(kind),
        }
    }

    /// A statement that is planned and run, or one that holds such a statement.
    fn query(&mut self, node: Option<&Node>) {
        let mut walk = Walk::new(self.catalog);
        walk.maybe(node);
        self.access = self.access.and(walk.access);
        self.effects.insert(walk.effects);
    }

    fn opaque(&mut self) {
        self.needs_primary(Reason::Opaque);
        self.effects.insert(Effects::UNKNOWN);
    }

    fn show(&mut self, name: &str) {
        if let Some(own) = name.to_ascii_lowercase().strip_prefix("manatee.") {
            self.proxy = Some(ProxyCommand::Show(own.into()));
        } else if !volatility::is_session_setting(name) {
            self.needs_primary(Reason::Node);
        }
    }

    fn copy(&mut self, copy: &protobuf::CopyStmt) {
        if copy.is_from {
            self.needs_primary(Reason::Write);
        } else if copy.is_program || !copy.filename.is_empty() {
            // A file on the server's host.
            self.needs_primary(Reason::Node);
        }
        if copy.is_program || !copy.is_from && !copy.filename.is_empty() {
            self.effects.insert(Effects::NOT_UNDONE);
        }
        if !copy.is_program && copy.filename.is_empty() {
            self.copy = Some(if copy.is_from { CopyDirection::In } else { CopyDirection::Out });
        }
        let mut walk = Walk::new(self.catalog);
        if let Some(relation) = &copy.relation {
            walk.relation(relation);
        }
        walk.maybe(copy.query.as_deref());
        walk.maybe(copy.where_clause.as_deref());
        self.access = self.access.and(walk.access);
        self.effects.insert(walk.effects);
    }

    /// Statements about the session, then the rest.
    fn utility(&mut self, kind: &NodeEnum) {
        if is_not_undone(kind) {
            self.effects.insert(Effects::NOT_UNDONE);
        }
        match kind {
            NodeEnum::DeclareCursorStmt(declare) => {
                // src/include/nodes/parsenodes.h
                const CURSOR_OPT_HOLD: i32 = 0x0020;
                if declare.options & CURSOR_OPT_HOLD != 0 {
                    self.effects.insert(Effects::HOLD_CURSOR);
                }
                self.query(declare.query.as_deref());
            }
            NodeEnum::FetchStmt(_) | NodeEnum::ConstraintsSetStmt(_) => {}
            NodeEnum::ClosePortalStmt(_) => self.effects.insert(Effects::CLOSE_CURSOR),
            NodeEnum::DeallocateStmt(deallocate) => self.deallocates.push(if deallocate.isall {
                Deallocate::All
            } else {
                Deallocate::Name(deallocate.name.as_str().into())
            }),
            NodeEnum::DiscardStmt(discard) => self.discard(discard.target),
            NodeEnum::UnlistenStmt(unlisten) => self.effects.insert(if unlisten.conditionname.is_empty() {
                Effects::UNLISTEN_ALL
            } else {
                Effects::UNLISTEN
            }),
            NodeEnum::ListenStmt(_) => {
                self.needs_primary(Reason::Session);
                self.effects.insert(Effects::LISTEN);
            }
            NodeEnum::LoadStmt(_) => {
                self.needs_primary(Reason::Session);
                self.effects.insert(Effects::LOAD.union(Effects::UNKNOWN));
            }
            NodeEnum::PrepareStmt(prepare) => {
                let before = self.effects;
                self.query(prepare.query.as_deref());
                // They happen at EXECUTE, which does not show them.
                if self.effects != before {
                    self.effects = before.union(Effects::UNKNOWN);
                }
                self.access = Access::Primary(Reason::Session);
                self.effects.insert(Effects::PREPARE_SQL);
            }
            NodeEnum::ExecuteStmt(_) => {
                self.needs_primary(Reason::Session);
                // What it runs was seen at PREPARE, if at all.
                self.effects.insert(Effects::NOT_UNDONE);
            }
            NodeEnum::DoStmt(_) => {
                self.opaque();
                self.effects.insert(Effects::MAY_SET);
                self.may_set = named_settings(self.text);
            }
            // What a procedure names, the catalog knows.
            NodeEnum::CallStmt(_) => {
                self.opaque();
                self.effects.insert(Effects::MAY_SET);
            }
            NodeEnum::LockStmt(_) => self.needs_primary(Reason::Lock),
            NodeEnum::NotifyStmt(_)
            | NodeEnum::TruncateStmt(_)
            | NodeEnum::VacuumStmt(_)
            | NodeEnum::ClusterStmt(_)
            | NodeEnum::ReindexStmt(_)
            | NodeEnum::CheckPointStmt(_)
            | NodeEnum::RefreshMatViewStmt(_) => self.needs_primary(Reason::Command),
            _ => self.definition(kind),
        }
    }

    fn discard(&mut self, target: i32) {
        match DiscardMode::try_from(target) {
            Ok(DiscardMode::DiscardPlans) => self.effects.insert(Effects::DISCARD_PLANS),
            Ok(DiscardMode::DiscardSequences) => self.effects.insert(Effects::DISCARD_SEQUENCES),
            Ok(DiscardMode::DiscardTemp) => self.effects.insert(Effects::DISCARD_TEMP),
            _ => {
                self.effects.insert(Effects::DISCARD_ALL);
                self.deallocates.push(Deallocate::All);
                self.settings.push(SettingChange::ResetAll);
            }
        }
    }

    /// CREATE, ALTER, DROP, GRANT … and whatever else there is.
    fn definition(&mut self, kind: &NodeEnum) {
        self.needs_primary(Reason::Command);
        self.effects.insert(Effects::DDL);
        self.vacates.extend(databases::vacated(kind).map(Box::from));
        let relation = match kind {
            NodeEnum::CreateStmt(create) => create.relation.as_ref(),
            NodeEnum::ViewStmt(create) => create.view.as_ref(),
            NodeEnum::CreateSeqStmt(create) => create.sequence.as_ref(),
            NodeEnum::CreateTableAsStmt(create) => {
                self.query(create.query.as_deref());
                create.into.as_ref().and_then(|into| into.rel.as_ref())
            }
            _ => None,
        };
        // Types, functions, operators … can be temporary too, if rarely: their names are found in the text.
        if relation.is_some_and(is_temporary) || contains_ignoring_case(self.text, b"pg_temp") {
            self.effects.insert(Effects::TEMP_OBJECT);
        }
    }
}

/// Names of custom settings within the literals of a text, as far as they can be told; bounded.
fn named_settings(text: &[u8]) -> Vec<Box<str>> {
    /// More are not asked for after one statement.
    const MOST: usize = 16;
    let is_name = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$'))
    };
    let words = text.split(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'.')));
    let dotted = words.filter_map(|word| std::str::from_utf8(word).ok()).filter(|word| word.contains('.'));
    dotted.filter(|word| word.split('.').all(is_name)).take(MOST).map(|word| word.to_ascii_lowercase().into()).collect()
}

/// Whether a command commits on its way, or does what no rollback undoes. PostgreSQL refuses these in a
/// transaction block for just that reason: they are the callers of `PreventInTransactionBlock` (xact.c), but
/// for DISCARD ALL, which is about the session only; and those that use transactions of their own when they
/// are not in a block (`vacuum` in vacuum.c by `IsInTransactionBlock`, for ANALYZE of several tables). CALL and
/// DO, which may commit, have [`Effects::UNKNOWN`]. ALTER TYPE … ADD VALUE is one transaction since
/// PostgreSQL 12 (`AlterEnum`).
fn is_not_undone(kind: &NodeEnum) -> bool {
    match kind {
        NodeEnum::CreatedbStmt(_)
        | NodeEnum::DropdbStmt(_)
        | NodeEnum::CreateTableSpaceStmt(_)
        | NodeEnum::DropTableSpaceStmt(_)
        | NodeEnum::CreateSubscriptionStmt(_)
        | NodeEnum::AlterSubscriptionStmt(_)
        | NodeEnum::DropSubscriptionStmt(_)
        | NodeEnum::AlterSystemStmt(_)
        | NodeEnum::VacuumStmt(_)
        // Of a partitioned table each partition is a transaction: `cluster`, `ReindexPartitions`.
        | NodeEnum::ClusterStmt(_)
        | NodeEnum::ReindexStmt(_)
        | NodeEnum::CheckPointStmt(_) => true,
        // SET TABLESPACE, by `movedb`.
        NodeEnum::AlterDatabaseStmt(alter) => alter.options.iter().any(
            |option| matches!(&option.node, Some(NodeEnum::DefElem(option)) if option.defname == "tablespace"),
        ),
        NodeEnum::IndexStmt(create) => create.concurrent,
        NodeEnum::DropStmt(drop) => drop.concurrent,
        // DETACH PARTITION CONCURRENTLY, and FINALIZE of one that was interrupted.
        NodeEnum::AlterTableStmt(alter) => alter.cmds.iter().any(|command| match &command.node {
            Some(NodeEnum::AlterTableCmd(command)) => match AlterTableType::try_from(command.subtype) {
                Ok(AlterTableType::AtDetachPartitionFinalize) => true,
                Ok(AlterTableType::AtDetachPartition) => command.def.as_deref().is_some_and(|partition| {
                    matches!(&partition.node, Some(NodeEnum::PartitionCmd(partition)) if partition.concurrent)
                }),
                _ => false,
            },
            _ => false,
        }),
        _ => false,
    }
}

fn contains_ignoring_case(text: &[u8], needle: &[u8]) -> bool {
    text.windows(needle.len()).any(|window| window.eq_ignore_ascii_case(needle))
}
