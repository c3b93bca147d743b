//! `pg_hba.conf` and `pg_ident.conf`, pure. The gate (rule 7) is the last part of the former.

use super::settings::Settings;
use super::{DATABASES, PROXY_ROLE, REPLICATION_ROLE};
use crate::machine::local::Gate;

/// Name in a pg_hba.conf or pg_ident.conf, quoted so that no keyword is meant.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Connection types (manual, section 21.1).
const TYPES: [&str; 6] = ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];

/// Methods of PostgreSQL 13 to 18.
const METHODS: [&str; 14] = [
    "trust",
    "reject",
    "scram-sha-256",
    "md5",
    "password",
    "gss",
    "sspi",
    "ident",
    "peer",
    "ldap",
    "radius",
    "cert",
    "pam",
    "oauth",
];

/// The fields of a line: words, or texts in quotes; what follows a comma belongs to the field before it (`next_token` in
/// hba.c).
fn fields(line: &str) -> Vec<String> {
    let mut fields: Vec<String> = Vec::new();
    let (mut word, mut quoted) = (String::new(), false);
    for c in line.chars().chain([' ']) {
        match c {
            '"' => {
                quoted = !quoted;
                word.push(c);
            }
            '#' if !quoted => break,
            c if c.is_whitespace() && !quoted => {
                if word.is_empty() {
                    continue;
                }
                let word = std::mem::take(&mut word);
                match fields.last_mut().filter(|last| last.ends_with(',') || word.starts_with(',')) {
                    Some(last) => last.push_str(&word),
                    None => fields.push(word),
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        fields.push(word);
    }
    fields
}

/// Whether PostgreSQL could read a line of `pg_hba.conf`: with one that it cannot, it keeps its old rules when it is
/// told to read them, and does not start. Only what is certainly wrong is refused here.
pub(super) fn check_line(line: &str) -> Result<(), String> {
    let fields = fields(line);
    let Some(kind) = fields.first() else { return Ok(()) };
    if line.trim_end().ends_with('\\') || kind.starts_with("include") {
        // Goes on in the next, or is refused elsewhere.
        return Ok(());
    }
    if !TYPES.contains(&kind.as_str()) {
        return Err(format!("`{kind}` is not a type of connection; begin with one of {}", TYPES.join(", ")));
    }
    // A netmask may follow an address in a field of its own.
    let places: &[usize] = if kind == "local" { &[3] } else { &[4, 5] };
    let is_method = |place: &&usize| {
        fields.get(**place).is_some_and(|field| METHODS.contains(&field.trim_matches('"')) || field == "bsd")
    };
    if places.iter().any(|place| is_method(&place)) {
        return Ok(());
    }
    let shape = if kind == "local" { "local DATABASE USER METHOD" } else { "host DATABASE USER ADDRESS METHOD" };
    let found = fields.get(places[0]).map_or("it is missing".to_owned(), |found| format!("`{found}` is none"));
    Err(format!("the method: {found}; write `{shape}`, with a method such as scram-sha-256"))
}

/// Renders the rules for who may connect.
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
    line(&format!("{host} {} {REPLICATION_ROLE} all scram-sha-256", DATABASES.join(",")));
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
    fn garbage_is_told_from_lines_that_postgresql_reads() {
        for line in [
            "host all all 0.0.0.0/0 scram-sha-256",
            "host all all 10.0.0.0 255.0.0.0 md5",
            "hostssl \"a b\", app all samenet cert clientcert=verify-full map=\"x y\"",
            "local all all peer # ours",
            "host app,other +staff .example.com ldap ldapserver=x",
            "host all all all \"reject\"",
        ] {
            assert_eq!(check_line(line), Ok(()), "{line}");
        }
        for (line, word) in [
            ("hots all all all trust", "hots"),
            ("garbage", "garbage"),
            ("host all all scram-sha-256", "missing"),
            ("host all all 0.0.0.0/0 scram", "`scram`"),
            ("local all all", "missing"),
        ] {
            let problem = check_line(line).unwrap_err();
            assert!(problem.contains(word), "{line}: {problem}");
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
