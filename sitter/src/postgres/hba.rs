//! `pg_hba.conf` and `pg_ident.conf`, pure. The gate (rule 7) is the last part of the former.

use super::{PROXY_ROLE, REPLICATION_ROLE};
use crate::machine::local::Gate;

/// Name in a pg_hba.conf or pg_ident.conf, quoted so that no keyword is meant.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Who may connect.
pub(super) fn render(superuser: &str, gate: Gate, operators: &[String]) -> String {
    let mut text = String::from("# Written by manatee-sitter; changes here are lost.\n");
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    line(&format!("local all {} peer map=manatee", quote(superuser)));
    line(&format!("host replication {REPLICATION_ROLE} all scram-sha-256"));
    line(&format!("host postgres {REPLICATION_ROLE} all scram-sha-256"));
    line(&format!("host all {PROXY_ROLE} all scram-sha-256"));
    match gate {
        Gate::Open => operators.iter().for_each(|operators| line(operators)),
        Gate::Closed => line("# The gate is closed."),
    }
    text
}

/// The OS users that are let in as the superuser over the Unix socket.
pub(super) fn render_ident(superuser: &str, os_users: &[&str]) -> String {
    let mut text = String::from("# Written by manatee-sitter; changes here are lost.\n");
    for user in os_users {
        text.push_str(&format!("manatee {} {}\n", quote(user), quote(superuser)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_gate_leaves_the_operators_lines_out() {
        let operators = ["host all all 0.0.0.0/0 scram-sha-256".to_owned()];
        let open = render("postgres", Gate::Open, &operators);
        let closed = render("postgres", Gate::Closed, &operators);
        assert!(open.contains(&operators[0]) && !closed.contains(&operators[0]));
        for text in [open, closed] {
            assert!(text.contains("host replication manatee_replication all scram-sha-256"));
            assert!(text.contains("host all manatee_proxy all scram-sha-256"));
            assert!(text.contains("local all \"postgres\" peer map=manatee"));
        }
    }
}
