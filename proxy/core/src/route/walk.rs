//! The walk over a query's parse tree: everything that may run in it, judged.
//!
//! Default deny: a kind of node that is not listed needs the primary and may have done anything.

use pg_query::{
    Node, NodeEnum,
    protobuf::{self, a_const::Val},
};

use super::{
    class::{Access, Effects, Reason},
    volatility::{self, BuiltInEffect, Catalog, Verdict},
};

/// Deeper trees go to the primary unread. The parser's own limit (100 levels of protobuf) comes first;
/// this one keeps the recursion here bounded whatever that limit becomes.
const MAX_DEPTH: usize = 256;

/// Findings so far.
pub(super) struct Walk<'a> {
    catalog: Option<&'a Catalog>,
    pub(super) access: Access,
    pub(super) effects: Effects,
    depth: usize,
}

/// True for a relation that is created as a temporary one.
pub(super) fn is_temporary(relation: &protobuf::RangeVar) -> bool {
    relation.relpersistence == "t" || relation.schemaname.starts_with("pg_temp")
}

/// The text of a string node.
pub(super) fn string(node: &Node) -> Option<&str> {
    match &node.node {
        Some(NodeEnum::String(string)) => Some(&string.sval),
        _ => None,
    }
}

/// A possibly qualified name: the schema if given, and the name.
pub(super) fn qualified_name(list: &[Node]) -> (Option<&str>, &str) {
    let name = list.last().and_then(string).unwrap_or("");
    let schema = list.len().checked_sub(2).and_then(|at| list.get(at)).and_then(string);
    (schema, name)
}

/// The value of a constant that is a string, as written.
pub(super) fn string_constant(node: &Node) -> Option<&str> {
    match &node.node {
        Some(NodeEnum::AConst(constant)) if !constant.isnull => match &constant.val {
            Some(Val::Sval(value)) => Some(&value.sval),
            _ => None,
        },
        Some(NodeEnum::TypeCast(cast)) => {
            // 'x'::text
            let (_, name) = qualified_name(&cast.type_name.as_ref()?.names);
            if name == "text" { string_constant(cast.arg.as_deref()?) } else { None }
        }
        _ => None,
    }
}

/// The value of a constant that is a boolean.
pub(super) fn boolean_constant(node: &Node) -> Option<bool> {
    match &node.node {
        Some(NodeEnum::AConst(constant)) if !constant.isnull => match &constant.val {
            Some(Val::Boolval(value)) => Some(value.boolval),
            Some(Val::Sval(value)) => match value.sval.to_ascii_lowercase().as_str() {
                "t" | "true" | "on" | "yes" | "1" => Some(true),
                "f" | "false" | "off" | "no" | "0" => Some(false),
                _ => None,
            },
            _ => None,
        },
        Some(NodeEnum::TypeCast(cast)) => boolean_constant(cast.arg.as_deref()?),
        _ => None,
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(catalog: Option<&'a Catalog>) -> Self {
        Self { catalog, access: Access::ReadOnly, effects: Effects::NONE, depth: 0 }
    }

    pub(super) fn needs_primary(&mut self, reason: Reason) {
        self.access = self.access.and(Access::Primary(reason));
    }

    fn opaque(&mut self) {
        self.needs_primary(Reason::Opaque);
        self.effects.insert(Effects::UNKNOWN);
    }

    pub(super) fn list(&mut self, nodes: &[Node]) {
        for node in nodes {
            self.node(node);
        }
    }

    pub(super) fn maybe(&mut self, node: Option<&Node>) {
        if let Some(node) = node {
            self.node(node);
        }
    }

    pub(super) fn node(&mut self, node: &Node) {
        let Some(node) = &node.node else { return };
        if self.depth >= MAX_DEPTH {
            self.needs_primary(Reason::Unreadable);
            self.effects.insert(Effects::UNKNOWN);
            return;
        }
        self.depth += 1;
        self.kind(node);
        self.depth -= 1;
    }

    fn kind(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::SelectStmt(select) => self.select(select),
            NodeEnum::InsertStmt(_)
            | NodeEnum::UpdateStmt(_)
            | NodeEnum::DeleteStmt(_)
            | NodeEnum::MergeStmt(_)
            | NodeEnum::OnConflictClause(_)
            | NodeEnum::MergeWhenClause(_)
            | NodeEnum::IndexElem(_)
            | NodeEnum::MultiAssignRef(_)
            | NodeEnum::ReturningOption(_) => self.write(node),
            NodeEnum::FuncCall(call) => self.call(call),
            NodeEnum::RangeVar(relation) => self.relation(relation),
            NodeEnum::RangeSubselect(_)
            | NodeEnum::RangeFunction(_)
            | NodeEnum::RangeTableFunc(_)
            | NodeEnum::RangeTableFuncCol(_)
            | NodeEnum::RangeTableSample(_)
            | NodeEnum::JoinExpr(_)
            | NodeEnum::CommonTableExpr(_)
            | NodeEnum::LockingClause(_) => self.table_expression(node),
            _ => self.expression(node),
        }
    }

    pub(super) fn select(&mut self, select: &protobuf::SelectStmt) {
        if select.into_clause.is_some() {
            self.needs_primary(Reason::Command);
            self.effects.insert(Effects::DDL);
            if select.into_clause.as_ref().and_then(|into| into.rel.as_ref()).is_some_and(is_temporary) {
                self.effects.insert(Effects::TEMP_OBJECT);
            }
        }
        if !select.locking_clause.is_empty() {
            self.needs_primary(Reason::Lock);
        }
        self.with(select.with_clause.as_ref());
        for list in [
            &select.distinct_clause,
            &select.target_list,
            &select.from_clause,
            &select.group_clause,
            &select.window_clause,
            &select.values_lists,
            &select.sort_clause,
        ] {
            self.list(list);
        }
        for node in [&select.where_clause, &select.having_clause, &select.limit_offset, &select.limit_count] {
            self.maybe(node.as_deref());
        }
        for side in [&select.larg, &select.rarg].into_iter().flatten() {
            if self.depth >= MAX_DEPTH {
                self.opaque();
                return;
            }
            self.depth += 1;
            self.select(side);
            self.depth -= 1;
        }
    }

    fn with(&mut self, clause: Option<&protobuf::WithClause>) {
        if let Some(clause) = clause {
            self.list(&clause.ctes);
        }
    }

    fn returning(&mut self, clause: Option<&protobuf::ReturningClause>) {
        if let Some(clause) = clause {
            self.list(&clause.exprs);
        }
    }

    /// Statements that write: they need the primary; the walk goes on for what they leave behind.
    fn write(&mut self, node: &NodeEnum) {
        self.needs_primary(Reason::Write);
        match node {
            NodeEnum::InsertStmt(insert) => {
                self.with(insert.with_clause.as_ref());
                self.list(&insert.cols);
                self.maybe(insert.select_stmt.as_deref());
                if let Some(conflict) = &insert.on_conflict_clause {
                    self.list(&conflict.target_list);
                    self.maybe(conflict.where_clause.as_deref());
                }
                self.returning(insert.returning_clause.as_ref());
            }
            NodeEnum::UpdateStmt(update) => {
                self.with(update.with_clause.as_ref());
                if update.relation.as_ref().is_some_and(|relation| relation.relname == "pg_settings") {
                    // Its rule calls set_config (system_views.sql).
                    self.effects.insert(Effects::MAY_SET);
                }
                self.list(&update.target_list);
                self.list(&update.from_clause);
                self.maybe(update.where_clause.as_deref());
                self.returning(update.returning_clause.as_ref());
            }
            NodeEnum::DeleteStmt(delete) => {
                self.with(delete.with_clause.as_ref());
                self.list(&delete.using_clause);
                self.maybe(delete.where_clause.as_deref());
                self.returning(delete.returning_clause.as_ref());
            }
            NodeEnum::MergeStmt(merge) => {
                self.with(merge.with_clause.as_ref());
                self.maybe(merge.source_relation.as_deref());
                self.maybe(merge.join_condition.as_deref());
                self.list(&merge.merge_when_clauses);
                self.returning(merge.returning_clause.as_ref());
            }
            NodeEnum::MergeWhenClause(when) => {
                self.maybe(when.condition.as_deref());
                self.list(&when.target_list);
                self.list(&when.values);
            }
            NodeEnum::MultiAssignRef(assignment) => self.maybe(assignment.source.as_deref()),
            _ => {}
        }
    }

    fn table_expression(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::RangeSubselect(item) => self.maybe(item.subquery.as_deref()),
            NodeEnum::RangeFunction(item) => self.list(&item.functions),
            NodeEnum::RangeTableFunc(item) => {
                self.maybe(item.docexpr.as_deref());
                self.maybe(item.rowexpr.as_deref());
                self.list(&item.namespaces);
                self.list(&item.columns);
            }
            NodeEnum::RangeTableFuncCol(column) => {
                self.type_name(column.type_name.as_ref());
                self.maybe(column.colexpr.as_deref());
                self.maybe(column.coldefexpr.as_deref());
            }
            NodeEnum::RangeTableSample(sample) => {
                let (schema, name) = qualified_name(&sample.method);
                if !matches!((schema, name), (None | Some("pg_catalog"), "system" | "bernoulli")) {
                    self.needs_primary(Reason::Function);
                }
                self.maybe(sample.relation.as_deref());
                self.list(&sample.args);
                self.maybe(sample.repeatable.as_deref());
            }
            NodeEnum::JoinExpr(join) => {
                self.maybe(join.larg.as_deref());
                self.maybe(join.rarg.as_deref());
                self.maybe(join.quals.as_deref());
            }
            NodeEnum::CommonTableExpr(table) => {
                self.maybe(table.ctequery.as_deref());
                if let Some(cycle) = &table.cycle_clause {
                    self.maybe(cycle.cycle_mark_value.as_deref());
                    self.maybe(cycle.cycle_mark_default.as_deref());
                }
            }
            _ => self.needs_primary(Reason::Lock),
        }
    }

    fn expression(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::ColumnRef(column) if column.fields.len() > 1 => self.field(&column.fields),
            NodeEnum::ColumnRef(_) => {}
            NodeEnum::AConst(_)
            | NodeEnum::ParamRef(_)
            | NodeEnum::AStar(_)
            | NodeEnum::String(_)
            | NodeEnum::Integer(_)
            | NodeEnum::Float(_)
            | NodeEnum::Boolean(_)
            | NodeEnum::BitString(_)
            | NodeEnum::SqlvalueFunction(_)
            | NodeEnum::SetToDefault(_)
            | NodeEnum::CurrentOfExpr(_)
            | NodeEnum::ColumnDef(_) => {}
            NodeEnum::TypeName(name) => self.type_name(Some(name)),
            NodeEnum::AExpr(expression) => {
                self.operator(&expression.name);
                self.maybe(expression.lexpr.as_deref());
                self.maybe(expression.rexpr.as_deref());
            }
            NodeEnum::BoolExpr(expression) => self.list(&expression.args),
            NodeEnum::NullTest(test) => self.maybe(test.arg.as_deref()),
            NodeEnum::BooleanTest(test) => self.maybe(test.arg.as_deref()),
            NodeEnum::CaseExpr(case) => {
                self.maybe(case.arg.as_deref());
                self.list(&case.args);
                self.maybe(case.defresult.as_deref());
            }
            NodeEnum::CaseWhen(when) => {
                self.maybe(when.expr.as_deref());
                self.maybe(when.result.as_deref());
            }
            NodeEnum::CoalesceExpr(expression) => self.list(&expression.args),
            NodeEnum::MinMaxExpr(expression) => self.list(&expression.args),
            NodeEnum::SubLink(link) => {
                self.maybe(link.testexpr.as_deref());
                self.operator(&link.oper_name);
                self.maybe(link.subselect.as_deref());
            }
            NodeEnum::TypeCast(cast) => {
                self.type_name(cast.type_name.as_ref());
                self.maybe(cast.arg.as_deref());
            }
            NodeEnum::CollateClause(clause) => self.maybe(clause.arg.as_deref()),
            NodeEnum::NamedArgExpr(argument) => self.maybe(argument.arg.as_deref()),
            NodeEnum::AArrayExpr(array) => self.list(&array.elements),
            NodeEnum::AIndirection(expression) => {
                self.maybe(expression.arg.as_deref());
                self.field(&expression.indirection);
                self.list(&expression.indirection);
            }
            NodeEnum::AIndices(indices) => {
                self.maybe(indices.lidx.as_deref());
                self.maybe(indices.uidx.as_deref());
            }
            NodeEnum::RowExpr(row) => self.list(&row.args),
            NodeEnum::GroupingFunc(grouping) => self.list(&grouping.args),
            NodeEnum::GroupingSet(set) => self.list(&set.content),
            NodeEnum::ResTarget(target) => {
                self.list(&target.indirection);
                self.maybe(target.val.as_deref());
            }
            NodeEnum::SortBy(sort) => {
                self.operator(&sort.use_op);
                self.maybe(sort.node.as_deref());
            }
            NodeEnum::WindowDef(window) => self.window(window),
            NodeEnum::List(list) => self.list(&list.items),
            NodeEnum::XmlExpr(xml) => {
                self.list(&xml.named_args);
                self.list(&xml.args);
            }
            NodeEnum::XmlSerialize(xml) => {
                self.type_name(xml.type_name.as_ref());
                self.maybe(xml.expr.as_deref());
            }
            _ => self.json(node),
        }
    }

    fn json(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::JsonFormat(_) | NodeEnum::JsonTablePathSpec(_) => {}
            NodeEnum::JsonValueExpr(value) => self.json_value(Some(value)),
            NodeEnum::JsonIsPredicate(predicate) => self.maybe(predicate.expr.as_deref()),
            NodeEnum::JsonArgument(argument) => self.json_value(argument.val.as_deref()),
            NodeEnum::JsonFuncExpr(function) => {
                self.json_value(function.context_item.as_deref());
                self.maybe(function.pathspec.as_deref());
                self.list(&function.passing);
                self.json_output(function.output.as_ref());
                self.json_behavior(function.on_empty.as_deref());
                self.json_behavior(function.on_error.as_deref());
            }
            NodeEnum::JsonTable(table) => {
                self.json_value(table.context_item.as_deref());
                self.list(&table.passing);
                self.list(&table.columns);
                self.json_behavior(table.on_error.as_deref());
            }
            NodeEnum::JsonTableColumn(column) => {
                self.type_name(column.type_name.as_ref());
                self.list(&column.columns);
                self.json_behavior(column.on_empty.as_deref());
                self.json_behavior(column.on_error.as_deref());
            }
            NodeEnum::JsonBehavior(behavior) => self.json_behavior(Some(behavior)),
            NodeEnum::JsonKeyValue(pair) => {
                self.maybe(pair.key.as_deref());
                self.json_value(pair.value.as_deref());
            }
            NodeEnum::JsonParseExpr(expression) => self.json_value(expression.expr.as_deref()),
            NodeEnum::JsonScalarExpr(expression) => self.maybe(expression.expr.as_deref()),
            NodeEnum::JsonSerializeExpr(expression) => {
                self.json_value(expression.expr.as_deref());
                self.json_output(expression.output.as_ref());
            }
            NodeEnum::JsonObjectConstructor(constructor) => {
                self.list(&constructor.exprs);
                self.json_output(constructor.output.as_ref());
            }
            NodeEnum::JsonArrayConstructor(constructor) => {
                self.list(&constructor.exprs);
                self.json_output(constructor.output.as_ref());
            }
            NodeEnum::JsonArrayQueryConstructor(constructor) => {
                self.maybe(constructor.query.as_deref());
                self.json_output(constructor.output.as_ref());
            }
            NodeEnum::JsonObjectAgg(aggregate) => {
                self.json_aggregate(aggregate.constructor.as_deref());
                if let Some(pair) = &aggregate.arg {
                    self.maybe(pair.key.as_deref());
                    self.json_value(pair.value.as_deref());
                }
            }
            NodeEnum::JsonArrayAgg(aggregate) => {
                self.json_aggregate(aggregate.constructor.as_deref());
                self.json_value(aggregate.arg.as_deref());
            }
            _ => self.opaque(),
        }
    }

    fn json_value(&mut self, value: Option<&protobuf::JsonValueExpr>) {
        if let Some(value) = value {
            self.maybe(value.raw_expr.as_deref());
            self.maybe(value.formatted_expr.as_deref());
        }
    }

    fn json_behavior(&mut self, behavior: Option<&protobuf::JsonBehavior>) {
        self.maybe(behavior.and_then(|behavior| behavior.expr.as_deref()));
    }

    fn json_output(&mut self, output: Option<&protobuf::JsonOutput>) {
        self.type_name(output.and_then(|output| output.type_name.as_ref()));
    }

    fn json_aggregate(&mut self, constructor: Option<&protobuf::JsonAggConstructor>) {
        let Some(constructor) = constructor else { return };
        self.json_output(constructor.output.as_ref());
        self.maybe(constructor.agg_filter.as_deref());
        self.list(&constructor.agg_order);
        if let Some(window) = &constructor.over {
            self.window(window);
        }
    }

    fn window(&mut self, window: &protobuf::WindowDef) {
        self.list(&window.partition_clause);
        self.list(&window.order_clause);
        self.maybe(window.start_offset.as_deref());
        self.maybe(window.end_offset.as_deref());
    }

    pub(super) fn relation(&mut self, relation: &protobuf::RangeVar) {
        let schema = (!relation.schemaname.is_empty()).then_some(relation.schemaname.as_str());
        match self.catalog {
            None => self.needs_primary(Reason::NoCatalog),
            Some(_) if schema.is_some_and(|schema| schema.starts_with("pg_temp")) => {
                self.needs_primary(Reason::Session);
            }
            Some(catalog) if !catalog.relation_is_safe(schema, &relation.relname) => {
                self.needs_primary(Reason::Relation);
            }
            Some(_) => {}
        }
    }

    /// `relation.name` is a function call if there is no such column (manual, 8.16.5).
    fn field(&mut self, path: &[Node]) {
        let (_, name) = qualified_name(path);
        let effects = match self.catalog.map(|catalog| catalog.function(None, name)) {
            Some(Verdict::User) => Effects::UNKNOWN.union(Effects::MAY_SET),
            Some(Verdict::Keeps) => Effects::UNKNOWN,
            _ => return,
        };
        self.needs_primary(Reason::Function);
        self.effects.insert(effects);
    }

    fn operator(&mut self, name: &[Node]) {
        let (_, name) = qualified_name(name);
        if !self.catalog.is_none_or(|catalog| catalog.operator_is_safe(name)) {
            self.needs_primary(Reason::Function);
            self.effects.insert(Effects::UNKNOWN);
        }
    }

    fn type_name(&mut self, name: Option<&protobuf::TypeName>) {
        let Some(name) = name else { return };
        let (_, name) = qualified_name(&name.names);
        if !self.catalog.is_none_or(|catalog| catalog.type_is_safe(name)) {
            self.needs_primary(Reason::Function);
            self.effects.insert(Effects::UNKNOWN);
        }
    }

    fn call(&mut self, call: &protobuf::FuncCall) {
        self.list(&call.args);
        self.list(&call.agg_order);
        self.maybe(call.agg_filter.as_deref());
        if let Some(window) = &call.over {
            self.window(window);
        }
        let (schema, name) = qualified_name(&call.funcname);
        match name {
            "set_config" => return self.set_config(&call.args),
            "current_setting" => return self.current_setting(&call.args),
            _ => {}
        }
        let built_in = matches!(schema, None | Some("pg_catalog"));
        if built_in && let Some(effect) = volatility::built_in_effect(name) {
            return self.built_in(effect);
        }
        // SQL's own spellings (EXTRACT, OVERLAY, AT TIME ZONE …) stand for built-in functions whose names
        // vary with the version; none of them is volatile.
        if call.funcformat == protobuf::CoercionForm::CoerceSqlSyntax as i32 && schema == Some("pg_catalog") {
            return;
        }
        let Some(catalog) = self.catalog else {
            self.needs_primary(Reason::NoCatalog);
            self.effects.insert(Effects::UNKNOWN.union(Effects::MAY_SET));
            return;
        };
        match catalog.function(schema, name) {
            Verdict::Safe => {}
            Verdict::BuiltIn => self.needs_primary(Reason::Node),
            Verdict::Acts => {
                self.needs_primary(Reason::Node);
                self.effects.insert(Effects::NOT_UNDONE);
            }
            Verdict::Keeps => {
                self.needs_primary(Reason::Function);
                self.effects.insert(Effects::UNKNOWN);
            }
            Verdict::User | Verdict::Unknown => {
                self.needs_primary(Reason::Function);
                self.effects.insert(Effects::UNKNOWN.union(Effects::MAY_SET));
            }
        }
    }

    fn built_in(&mut self, effect: BuiltInEffect) {
        let (reason, effects) = match effect {
            // Who has a lock is bound to its server; who has none may let go of it anywhere.
            BuiltInEffect::AdvisoryUnlock => return self.effects.insert(Effects::ADVISORY_UNLOCK),
            BuiltInEffect::AdvisoryLock => (Reason::Lock, Effects::ADVISORY_LOCK),
            BuiltInEffect::AdvisoryLockTransaction => (Reason::Lock, Effects::NONE),
            BuiltInEffect::SequenceRead => (Reason::Session, Effects::SEQUENCE_READ),
            BuiltInEffect::SequenceWrite => (Reason::Write, Effects::SEQUENCE_WRITE),
            BuiltInEffect::Seed => (Reason::Session, Effects::SEED),
            BuiltInEffect::Unknown => (Reason::Function, Effects::UNKNOWN),
        };
        self.needs_primary(reason);
        self.effects.insert(effects);
    }

    /// Inside an expression it may run any number of times or never: only "local" is certain.
    fn set_config(&mut self, arguments: &[Node]) {
        if arguments.get(2).and_then(boolean_constant) != Some(true) {
            self.needs_primary(Reason::Session);
            // No view shows those with dots.
            let is_shown = |name: &str| !name.contains('.');
            let named = arguments.first().and_then(string_constant).is_some_and(is_shown);
            self.effects.insert(if named { Effects::SETTINGS_DOUBT } else { Effects::SETTINGS_UNKNOWN });
        }
    }

    fn current_setting(&mut self, arguments: &[Node]) {
        let own = arguments.first().and_then(string_constant).is_some_and(volatility::is_session_setting);
        if !own {
            self.needs_primary(Reason::Node);
        }
    }
}
