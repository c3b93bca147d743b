//! Statements that PostgreSQL runs only while nobody else is connected to a database (`CountOtherDBBackends` in
//! dbcommands.c): a pool's idle connections would keep them from running.

use pg_query::NodeEnum;
use pg_query::protobuf::{DefElem, ObjectType};

/// The database that CREATE DATABASE copies where no other is said.
const DEFAULT_TEMPLATE: &str = "template1";

/// The database that nobody else may be connected to while this runs.
pub(super) fn vacated(kind: &NodeEnum) -> Option<&str> {
    match kind {
        NodeEnum::DropdbStmt(drop) => Some(&drop.dbname),
        NodeEnum::CreatedbStmt(create) => {
            let template = options(&create.options).find(|option| option.defname == "template");
            Some(template.and_then(text).unwrap_or(DEFAULT_TEMPLATE))
        }
        NodeEnum::RenameStmt(rename) if rename.rename_type() == ObjectType::ObjectDatabase => Some(&rename.subname),
        NodeEnum::AlterDatabaseStmt(alter) => {
            options(&alter.options).any(|option| option.defname == "tablespace").then_some(alter.dbname.as_str())
        }
        _ => None,
    }
}

fn options(nodes: &[pg_query::Node]) -> impl Iterator<Item = &DefElem> {
    nodes.iter().filter_map(|node| match &node.node {
        Some(NodeEnum::DefElem(option)) => Some(option.as_ref()),
        _ => None,
    })
}

/// An option's value; none for DEFAULT.
fn text(option: &DefElem) -> Option<&str> {
    match option.arg.as_ref()?.node.as_ref()? {
        NodeEnum::String(text) => Some(&text.sval),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::route::SqlContext;
    use crate::route::cache::classify_uncached;

    #[test]
    fn statements_that_need_a_database_for_themselves_are_known() {
        for (sql, wanted) in [
            ("DROP DATABASE app", &["app"][..]),
            ("drop database if exists \"My App\" with (force)", &["My App"]),
            ("CREATE DATABASE a", &["template1"]),
            ("CREATE DATABASE a TEMPLATE b OWNER c", &["b"]),
            ("CREATE DATABASE a WITH TEMPLATE = 'b' ENCODING 'UTF8'", &["b"]),
            ("CREATE DATABASE a TEMPLATE DEFAULT", &["template1"]),
            ("ALTER DATABASE app RENAME TO other", &["app"]),
            ("ALTER DATABASE app SET TABLESPACE fast", &["app"]),
            ("ALTER DATABASE app CONNECTION LIMIT 5", &[]),
            ("ALTER DATABASE app SET work_mem = '1MB'", &[]),
            ("ALTER TABLE app RENAME TO other", &[]),
            ("DROP TABLE app", &[]),
            ("SELECT 1", &[]),
        ] {
            let class = classify_uncached(sql.as_bytes(), SqlContext::default(), None);
            assert_eq!(class.vacates.iter().map(|name| &**name).collect::<Vec<_>>(), wanted, "{sql}");
        }
    }
}
