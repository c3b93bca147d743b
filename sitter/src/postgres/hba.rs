//! `pg_hba.conf` and `pg_ident.conf`, pure. The gate (rule 7) is the last part of the former.

use super::settings::Settings;
use super::{PROXY_ROLE, REPLICATION_ROLE};
use crate::machine::local::Gate;

/// Name in a pg_hba.conf or pg_ident.conf, quoted so that no keyword is meant.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Who may connect.
pub(super) fn render(settings: &Settings, gate: Gate) -> String {
    let mut text = String::from("# Written by manatee-sitter; changes here are lost.\n");
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    line(&format!("local all {} peer map=manatee", quote(&settings.superuser)));
    let is_required = settings.replication_tls.mode().is_required();
    let host = if is_required { "hostssl" } else { "host" };
    line(&format!("{host} replication {REPLICATION_ROLE} all scram-sha-256"));
    line(&format!("{host} postgres {REPLICATION_ROLE} all scram-sha-256"));
    if is_required {
        // Nor by a line of the operator's.
        line(&format!("hostnossl all {REPLICATION_ROLE} all reject"));
    }
    line(&format!("host all {PROXY_ROLE} all scram-sha-256"));
    match gate {
        Gate::Open => settings.hba.iter().for_each(|operators| line(operators)),
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
    use manatee_shared::tls::{ServerTls, ServerTlsMode};

    use super::*;
    use crate::postgres::replication_tls::ReplicationTls;

    fn sample() -> Settings {
        let secret = || crate::postgres::Secret::new("s3cret");
        Settings::new("/var/lib/manatee".into(), "/bin".into(), secret(), secret())
    }

    #[test]
    fn required_tls_is_required_of_everybody() {
        let table = |mode| ServerTls { mode, ..ServerTls::default() };
        for (mode, wanted) in [
            (ServerTlsMode::Disable, &["host"][..]),
            (ServerTlsMode::Prefer, &["host"]),
            (ServerTlsMode::Require, &["hostssl", "hostnossl"]),
        ] {
            let settings = Settings { replication_tls: ReplicationTls::new(table(mode)), ..sample() };
            let text = render(&settings, Gate::Closed);
            let mut kinds: Vec<&str> = text
                .lines()
                .filter(|line| line.contains(REPLICATION_ROLE))
                .filter_map(|line| line.split(' ').next())
                .collect();
            kinds.dedup();
            assert_eq!(kinds, wanted, "{text}");
        }
    }

    #[test]
    fn closed_gate_leaves_the_operators_lines_out() {
        let operators = ["host all all 0.0.0.0/0 scram-sha-256".to_owned()];
        let settings = Settings { hba: operators.to_vec(), ..sample() };
        let (open, closed) = (render(&settings, Gate::Open), render(&settings, Gate::Closed));
        assert!(open.contains(&operators[0]) && !closed.contains(&operators[0]));
        for text in [open, closed] {
            assert!(text.contains("host replication manatee_replication all scram-sha-256"));
            assert!(text.contains("host all manatee_proxy all scram-sha-256"));
            assert!(text.contains("local all \"postgres\" peer map=manatee"));
        }
    }
}
