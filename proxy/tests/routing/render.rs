//! A class in the notation of the table, and the table's rows.

use std::fmt::Write as _;

use manatee_proxy::route::{
    Access, Class, Control, SettingChange, TransactionControl,
    class::{CopyDirection, Deallocate, ProxyCommand, Scope, Statements},
};

fn control(one: TransactionControl) -> String {
    let mode = |read_only| match read_only {
        Some(true) => " ro",
        Some(false) => " rw",
        None => "",
    };
    let chained = |chain| if chain { " chain" } else { "" };
    match one {
        TransactionControl::Begin { read_only, serializable } => {
            format!("begin{}{}", mode(read_only), if serializable { " serializable" } else { "" })
        }
        TransactionControl::Commit { chain } => format!("commit{}", chained(chain)),
        TransactionControl::Rollback { chain } => format!("rollback{}", chained(chain)),
        TransactionControl::Savepoint => "savepoint".into(),
        TransactionControl::PrepareTransaction => "prepare".into(),
        TransactionControl::CommitPrepared => "commit prepared".into(),
        TransactionControl::RollbackPrepared => "rollback prepared".into(),
        TransactionControl::SetTransaction { read_only } => format!("set{}", mode(read_only)),
    }
}

/// A class in the table's notation.
pub(crate) fn render(class: &Class) -> String {
    let mut text = match class.access {
        Access::ReadOnly => "read".to_owned(),
        Access::Primary(reason) => reason.as_str().to_owned(),
    };
    if class.statements == Statements::Many {
        text.push_str(" many");
    }
    match class.control {
        Control::None => {}
        Control::Alone(one) => write!(text, " [{}]", control(one)).unwrap(),
        Control::Mixed { first: Some(first), .. } => write!(text, " [{}; …]", control(first)).unwrap(),
        Control::Mixed { first: None, .. } => text.push_str(" […]"),
    }
    if class.control.commits() {
        text.push_str(" commits");
    }
    let effects = format!("{:?}", class.effects);
    for flag in effects.split(|c: char| !c.is_ascii_uppercase() && c != '_').filter(|flag| !flag.is_empty()) {
        write!(text, " +{flag}").unwrap();
    }
    for change in &class.settings {
        let local = |scope| if scope == Scope::Transaction { " local" } else { "" };
        match change {
            SettingChange::Set { name, value, scope } => write!(text, " set {name}={value}{}", local(*scope)),
            SettingChange::Reset { name, scope } => write!(text, " reset {name}{}", local(*scope)),
            SettingChange::ResetAll => write!(text, " reset *"),
        }
        .unwrap();
    }
    for deallocate in &class.deallocates {
        match deallocate {
            Deallocate::Name(name) => write!(text, " deallocate={name}"),
            Deallocate::All => write!(text, " deallocate=*"),
        }
        .unwrap();
    }
    if let Some(copy) = class.copy {
        text.push_str(if copy == CopyDirection::In { " copy=in" } else { " copy=out" });
    }
    match &class.proxy {
        None => {}
        Some(ProxyCommand::Refused { sqlstate, .. }) => write!(text, " proxy={sqlstate}").unwrap(),
        Some(command) => write!(text, " proxy={command:?}").unwrap(),
    }
    if let Some(hint) = class.hint {
        write!(text, " hint={hint:?}").unwrap();
    }
    text
}

pub(crate) fn all_rows() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    use crate::table::{FUNCTIONS, ODD, QUERIES, RELATIONS, SESSION, TRANSACTIONS, WRAPPERS, WRITES};
    [QUERIES, FUNCTIONS, RELATIONS, WRITES, WRAPPERS, SESSION, TRANSACTIONS, ODD].into_iter().flatten()
}
