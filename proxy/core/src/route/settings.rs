//! SET, RESET and `set_config`: what they change, as values that can be replayed.
//!
//! The value is flattened as the server does it (`flatten_set_variable_args` in
//! `src/backend/utils/misc/guc_funcs.c`), so that `set_config(name, value, …)` sets the same.

use pg_query::{
    Node, NodeEnum,
    protobuf::{self, VariableSetKind, a_const::Val},
};

use super::{
    class::{ConsistencyName, Effects, ProxyCommand, Reason, Route, Scope, SettingChange},
    parse::Reader,
    transactions::{self, Modes},
    walk::{boolean_constant, qualified_name, string_constant},
};

/// SET in all its forms, and RESET.
pub(super) fn set(reader: &mut Reader<'_>, statement: &protobuf::VariableSetStmt) {
    let scope = if statement.is_local { Scope::Transaction } else { Scope::Session };
    let name = statement.name.to_ascii_lowercase();
    match VariableSetKind::try_from(statement.kind) {
        Ok(VariableSetKind::VarSetValue) => match flatten(&name, &statement.args) {
            Some(value) => change(reader, &name, Some(value), scope),
            None => {
                reader.needs_primary(Reason::Opaque);
                reader.effects.insert(Effects::SETTINGS_UNKNOWN);
            }
        },
        Ok(VariableSetKind::VarSetDefault | VariableSetKind::VarReset) => change(reader, &name, None, scope),
        Ok(VariableSetKind::VarResetAll) => reader.settings.push(SettingChange::ResetAll),
        // Only has a meaning within CREATE FUNCTION; as a statement it keeps the value for the session.
        Ok(VariableSetKind::VarSetCurrent) => {
            reader.needs_primary(Reason::Session);
            reader.effects.insert(if name.contains('.') { Effects::SETTINGS_UNKNOWN } else { Effects::SETTINGS_DOUBT });
        }
        Ok(VariableSetKind::VarSetMulti) => several(reader, &statement.name, &statement.args),
        Ok(VariableSetKind::Undefined) | Err(_) => {
            reader.needs_primary(Reason::Opaque);
            reader.effects.insert(Effects::UNKNOWN);
        }
    }
}

/// SET TRANSACTION …, SET SESSION CHARACTERISTICS AS TRANSACTION …
fn several(reader: &mut Reader<'_>, name: &str, arguments: &[Node]) {
    let modes = Modes::read(arguments);
    match name {
        "TRANSACTION" => transactions::set_transaction(reader, &modes),
        "SESSION CHARACTERISTICS" => {
            let on_off = |on: bool| if on { "on" } else { "off" }.to_owned();
            let changes = [
                ("default_transaction_isolation", modes.isolation),
                ("default_transaction_read_only", modes.read_only.map(on_off)),
                ("default_transaction_deferrable", modes.deferrable.map(on_off)),
            ];
            for (name, value) in changes {
                if value.is_some() {
                    change(reader, name, value, Scope::Session);
                }
            }
        }
        // TRANSACTION SNAPSHOT: exported on the primary.
        _ => {
            reader.needs_primary(Reason::Transaction);
            transactions::set_transaction(reader, &modes);
        }
    }
}

/// One setting changed; no value: back to its default.
fn change(reader: &mut Reader<'_>, name: &str, value: Option<String>, scope: Scope) {
    if let Some(own) = name.strip_prefix("manatee.") {
        reader.proxy = Some(proxy_setting(own, value.as_deref(), scope));
        return;
    }
    match name {
        "transaction_read_only" | "transaction_isolation" | "transaction_deferrable" => {
            let on = || value.as_deref().map(is_on);
            let modes = Modes {
                read_only: if name == "transaction_read_only" { Some(on() == Some(true)) } else { None },
                isolation: if name == "transaction_isolation" { value.clone() } else { None },
                deferrable: None,
            };
            transactions::set_transaction(reader, &modes);
            return;
        }
        "seed" => {
            reader.needs_primary(Reason::Session);
            reader.effects.insert(Effects::SEED);
            return;
        }
        "role" if scope == Scope::Session => reader.effects.insert(Effects::ROLE),
        // Decides what else may be set: the session stays on its server.
        "session_authorization" => {
            reader.needs_primary(Reason::Session);
            reader.effects.insert(Effects::ROLE);
        }
        // What is created then is temporary without saying so.
        "search_path" if value.as_deref().is_some_and(|path| path.trim_start().starts_with("pg_temp")) => {
            reader.needs_primary(Reason::Session);
            reader.effects.insert(Effects::TEMP_OBJECT);
        }
        _ => {}
    }
    if !reader.exact && value.as_deref().is_some_and(|value| !value.is_ascii()) {
        // Its characters are not known, so the server is asked what it has understood.
        if scope == Scope::Session {
            reader.effects.insert(Effects::MAY_SET);
            reader.may_set.push(name.into());
        }
        return;
    }
    reader.settings.push(match value {
        Some(value) => SettingChange::Set { name: name.into(), value: value.into(), scope },
        None => SettingChange::Reset { name: name.into(), scope },
    });
}

fn is_on(value: &str) -> bool {
    // parse_bool: unique prefixes are enough; a wrong guess here only costs a 25006 on the client's own wish.
    ["on", "true", "yes", "t", "y", "1"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

fn proxy_setting(name: &str, value: Option<&str>, scope: Scope) -> ProxyCommand {
    let refused = |sqlstate, message: String| ProxyCommand::Refused { sqlstate, message: message.into() };
    if scope == Scope::Transaction {
        return refused("0A000", format!("manatee.{name} cannot be set for one transaction: use SET, or a comment"));
    }
    let value = value.map(str::to_ascii_lowercase);
    match (name, value.as_deref()) {
        ("route", None) => ProxyCommand::SetRoute(None),
        ("route", Some("auto")) => ProxyCommand::SetRoute(Some(Route::Auto)),
        ("route", Some("primary")) => ProxyCommand::SetRoute(Some(Route::Primary)),
        ("route", Some("standby")) => ProxyCommand::SetRoute(Some(Route::Standby)),
        ("route", Some(other)) => {
            refused("22023", format!("manatee.route is auto, primary or standby, not \"{other}\""))
        }
        ("consistency", None) => ProxyCommand::SetConsistency(None),
        ("consistency", Some("session")) => ProxyCommand::SetConsistency(Some(ConsistencyName::Session)),
        ("consistency", Some("strong")) => ProxyCommand::SetConsistency(Some(ConsistencyName::Strong)),
        ("consistency", Some("eventual")) => ProxyCommand::SetConsistency(Some(ConsistencyName::Eventual)),
        ("consistency", Some(other)) => {
            refused("22023", format!("manatee.consistency is session, strong or eventual, not \"{other}\""))
        }
        (other, _) => refused("42704", format!("unrecognized configuration parameter \"manatee.{other}\"")),
    }
}

/// A SELECT of nothing but `set_config('…', '…', true|false)`, which runs exactly once: known changes.
/// False: it is something else.
pub(super) fn set_config(reader: &mut Reader<'_>, node: &Node) -> bool {
    let Some(NodeEnum::SelectStmt(select)) = &node.node else { return false };
    let bare = protobuf::SelectStmt {
        target_list: select.target_list.clone(),
        limit_option: select.limit_option,
        op: select.op,
        ..protobuf::SelectStmt::default()
    };
    // Cheap first: nearly no SELECT is of this kind.
    if select.target_list.is_empty()
        || !select.target_list.iter().all(|target| call_of_set_config(target).is_some())
        || **select != bare
    {
        return false;
    }
    let Some(changes): Option<Vec<_>> =
        select.target_list.iter().filter_map(call_of_set_config).map(literal_change).collect()
    else {
        return false;
    };
    for (name, value, scope) in changes {
        if name.starts_with("manatee.") {
            reader.proxy = Some(ProxyCommand::Refused {
                sqlstate: "0A000",
                message: format!("{name} is the proxy's own: use SET").into(),
            });
        } else {
            change(reader, &name, Some(value), scope);
        }
    }
    true
}

fn call_of_set_config(target: &Node) -> Option<&[Node]> {
    let Some(NodeEnum::ResTarget(target)) = &target.node else { return None };
    match &target.val.as_deref()?.node {
        Some(NodeEnum::FuncCall(call)) => match qualified_name(&call.funcname) {
            (None | Some("pg_catalog"), "set_config") if call.args.len() == 3 => Some(&call.args),
            _ => None,
        },
        _ => None,
    }
}

fn literal_change(arguments: &[Node]) -> Option<(String, String, Scope)> {
    let [name, value, local] = arguments else { return None };
    let scope = if boolean_constant(local)? { Scope::Transaction } else { Scope::Session };
    Some((string_constant(name)?.to_ascii_lowercase(), string_constant(value)?.to_owned(), scope))
}

/// The arguments of SET as one value.
fn flatten(name: &str, arguments: &[Node]) -> Option<String> {
    // GUC_LIST_QUOTE, which extensions cannot have.
    let quoted =
        matches!(name, "search_path" | "temp_tablespaces" | "local_preload_libraries" | "session_preload_libraries");
    let mut flat = String::new();
    for argument in arguments {
        let part = match &argument.node {
            Some(NodeEnum::AConst(constant)) => match &constant.val {
                Some(Val::Sval(value)) if quoted => quote_identifier(&value.sval),
                Some(Val::Sval(value)) => value.sval.clone(),
                Some(Val::Ival(value)) => value.ival.to_string(),
                Some(Val::Fval(value)) => value.fval.clone(),
                Some(Val::Boolval(value)) => if value.boolval { "true" } else { "false" }.to_owned(),
                // Protobuf leaves out an integer of 0.
                None if !constant.isnull => "0".to_owned(),
                _ => return None,
            },
            // SET TIME ZONE INTERVAL '…': the one typed value there is.
            Some(NodeEnum::TypeCast(cast)) => format!("INTERVAL '{}'", string_constant(cast.arg.as_deref()?)?),
            _ => return None,
        };
        if !flat.is_empty() {
            flat.push_str(", ");
        }
        flat.push_str(&part);
    }
    Some(flat)
}

fn quote_identifier(name: &str) -> String {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty();
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}
