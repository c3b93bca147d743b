//! Commands of administrators. Pure: text in, commands out.

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Nothing between two semicolons.
    Empty,
    /// A table.
    Show(Subject),
    /// `SHOW HELP`
    Help,
    /// Keep new transactions waiting; done when no server is in use any more.
    Pause(Option<String>),
    /// The end of PAUSE and KILL.
    Resume(Option<String>),
    /// Read configuration, passwords, rules and certificates again.
    Reload,
    /// Drop all connections of a database, or of all, and keep new transactions waiting.
    Kill(Option<String>),
    /// Drop one client, by its process id.
    KillClient(u32),
    /// Refuse new clients of a database.
    Disable(String),
    /// The end of DISABLE.
    Enable(String),
    /// Replace server connections as soon as they are free.
    Reconnect(Option<String>),
    /// Wait until no server connection from before RECONNECT is left.
    WaitClose(Option<String>),
    /// Stop the proxy.
    Shutdown(Ending),
    /// A client's own setting, which changes nothing here: drivers send some when they connect.
    ClientSetting,
}

/// Tables that can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as they are typed")]
pub enum Subject {
    ActiveSockets,
    Clients,
    Config,
    Databases,
    DnsHosts,
    DnsZones,
    Lists,
    Mem,
    Nodes,
    Peers,
    Pools,
    Servers,
    Sockets,
    State,
    Stats,
    StatsAverages,
    StatsTotals,
    Topology,
    Totals,
    Users,
    Version,
}

/// Way of stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// At once.
    Immediate,
    /// Once the transactions under way have ended: idle clients are sent away. As SIGTERM.
    WaitForServers,
    /// Once all clients have left by themselves; nobody new is let in.
    WaitForClients,
}

/// Tables that can be shown, by name.
const SUBJECTS: [(&str, Subject); 21] = [
    ("ACTIVE_SOCKETS", Subject::ActiveSockets),
    ("CLIENTS", Subject::Clients),
    ("CONFIG", Subject::Config),
    ("DATABASES", Subject::Databases),
    ("DNS_HOSTS", Subject::DnsHosts),
    ("DNS_ZONES", Subject::DnsZones),
    ("LISTS", Subject::Lists),
    ("MEM", Subject::Mem),
    ("NODES", Subject::Nodes),
    ("PEERS", Subject::Peers),
    ("POOLS", Subject::Pools),
    ("SERVERS", Subject::Servers),
    ("SOCKETS", Subject::Sockets),
    ("STATE", Subject::State),
    ("STATS", Subject::Stats),
    ("STATS_AVERAGES", Subject::StatsAverages),
    ("STATS_TOTALS", Subject::StatsTotals),
    ("TOPOLOGY", Subject::Topology),
    ("TOTALS", Subject::Totals),
    ("USERS", Subject::Users),
    ("VERSION", Subject::Version),
];

/// Text of `SHOW HELP`.
pub const HELP: &str = "
\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION
\tSHOW TOPOLOGY|NODES|PEERS|LISTS|MEM|STATE|SOCKETS|ACTIVE_SOCKETS|DNS_HOSTS|DNS_ZONES
\tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS
\tRELOAD
\tPAUSE [<db>]
\tRESUME [<db>]
\tDISABLE <db>
\tENABLE <db>
\tRECONNECT [<db>]
\tWAIT_CLOSE [<db>]
\tKILL [<db>]
\tKILL_CLIENT <client_id>
\tSHUTDOWN [WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS]";

/// Settings of PostgreSQL that drivers set when they connect.
const CLIENT_SETTINGS: [&str; 10] = [
    "application_name",
    "bytea_output",
    "client_encoding",
    "client_min_messages",
    "datestyle",
    "extra_float_digits",
    "intervalstyle",
    "names",
    "statement_timeout",
    "timezone",
];

/// Reason why a text is no command: for the administrator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Not known at all.
    #[error("invalid command '{0}', use SHOW HELP;")]
    Unknown(String),
    /// A database is needed.
    #[error("{0} needs a database")]
    NoDatabase(&'static str),
    /// Not the number of a client.
    #[error("'{0}' is not the id of a client: see SHOW CLIENTS")]
    NotAClient(String),
    /// Configuration is changed in its file.
    #[error("'{0}' cannot be set here: change the configuration file, then RELOAD")]
    NotSettable(String),
}

/// Reads a text with any number of commands, separated by semicolons.
///
/// # Errors
/// [`CommandError`] for the first that is none; then none of them is to be run.
pub fn parse(text: &str) -> Result<Vec<Command>, CommandError> {
    let mut commands: Vec<Command> = statements(text).iter().map(|words| parse_one(words)).collect::<Result<_, _>>()?;
    if commands.is_empty() {
        commands.push(Command::Empty);
    }
    Ok(commands)
}

/// The words of each statement. Double quotes keep blanks and semicolons; a doubled one is one.
fn statements(text: &str) -> Vec<Vec<String>> {
    let (mut all, mut words, mut word) = (Vec::new(), Vec::new(), None::<String>);
    let mut letters = text.chars().peekable();
    let mut quoted = false;
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                word.get_or_insert_default().push('"');
            }
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ';' if !quoted => {
                words.extend(word.take());
                if !words.is_empty() {
                    all.push(std::mem::take(&mut words));
                }
            }
            _ if !quoted && (letter.is_whitespace() || letter == '\0') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    if !words.is_empty() {
        all.push(words);
    }
    all
}

fn parse_one(words: &[String]) -> Result<Command, CommandError> {
    let unknown = || CommandError::Unknown(words.join(" "));
    let (first, rest) = words.split_first().ok_or_else(unknown)?;
    let verb = first.to_ascii_uppercase();
    let argument = rest.first();
    if rest.len() > 1 && verb != "SET" {
        return Err(unknown());
    }
    let database = |verb| argument.cloned().ok_or(CommandError::NoDatabase(verb));
    Ok(match (verb.as_str(), argument) {
        ("SHOW", Some(subject)) => show(&subject.to_ascii_uppercase()).ok_or_else(unknown)?,
        ("PAUSE", database) => Command::Pause(database.cloned()),
        ("RESUME", database) => Command::Resume(database.cloned()),
        ("RECONNECT", database) => Command::Reconnect(database.cloned()),
        ("WAIT_CLOSE", database) => Command::WaitClose(database.cloned()),
        ("RELOAD", None) => Command::Reload,
        ("KILL", database) => Command::Kill(database.cloned()),
        ("DISABLE", _) => Command::Disable(database("DISABLE")?),
        ("ENABLE", _) => Command::Enable(database("ENABLE")?),
        ("KILL_CLIENT", Some(id)) => Command::KillClient(id.parse().map_err(|_| CommandError::NotAClient(id.clone()))?),
        ("SHUTDOWN", None) => Command::Shutdown(Ending::Immediate),
        ("SHUTDOWN", Some(how)) => match how.to_ascii_uppercase().as_str() {
            "WAIT_FOR_SERVERS" => Command::Shutdown(Ending::WaitForServers),
            "WAIT_FOR_CLIENTS" => Command::Shutdown(Ending::WaitForClients),
            _ => return Err(unknown()),
        },
        ("SET", Some(_)) => set(rest)?,
        _ => return Err(unknown()),
    })
}

fn show(subject: &str) -> Option<Command> {
    if subject == "HELP" {
        return Some(Command::Help);
    }
    SUBJECTS.iter().find(|(name, _)| *name == subject).map(|(_, subject)| Command::Show(*subject))
}

fn set(words: &[String]) -> Result<Command, CommandError> {
    let name = words
        .iter()
        .map(|word| word.to_ascii_lowercase())
        .find(|word| word != "session")
        .map(|word| word.split('=').next().unwrap_or_default().to_owned())
        .unwrap_or_default();
    match CLIENT_SETTINGS.contains(&name.as_str()) {
        true => Ok(Command::ClientSetting),
        false => Err(CommandError::NotSettable(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        for (text, wanted) in [
            ("show pools;", Command::Show(Subject::Pools)),
            ("SHOW STATS_TOTALS", Command::Show(Subject::StatsTotals)),
            (" \n ; ", Command::Empty),
            ("", Command::Empty),
            ("PAUSE", Command::Pause(None)),
            ("pause \"My ;\"\"db\"", Command::Pause(Some("My ;\"db".to_owned()))),
            ("KILL App;", Command::Kill(Some("App".to_owned()))),
            ("KILL", Command::Kill(None)),
            ("SHUTDOWN wait_for_clients", Command::Shutdown(Ending::WaitForClients)),
            ("KILL_CLIENT 17", Command::KillClient(17)),
            ("SET extra_float_digits = 3", Command::ClientSetting),
            ("set application_name='x y'", Command::ClientSetting),
            ("SET SESSION client_encoding TO 'UTF8'", Command::ClientSetting),
        ] {
            assert_eq!(parse(text), Ok(vec![wanted]), "{text}");
        }
        assert_eq!(parse("RELOAD; RESUME;"), Ok(vec![Command::Reload, Command::Resume(None)]));
    }

    #[test]
    fn nonsense_is_refused_as_a_whole() {
        for text in [
            "FOO",
            "SHOW",
            "SHOW FOO",
            "KILL a b",
            "DISABLE",
            "PAUSE a b",
            "RELOAD now",
            "SHUTDOWN maybe",
            "KILL_CLIENT x",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("PAUSE; FOO").is_err());
        assert_eq!(parse("SET pool_mode = session"), Err(CommandError::NotSettable("pool_mode".to_owned())));
    }
}
