//! The command-line switches in a startup message's `options`, as settings: what PostgreSQL's
//! `process_postgres_switches` (src/backend/tcop/postgres.c) makes of them for a client. Whether a client may change
//! the setting is the server's to say.

use crate::error::{ProxyError, Result};

/// Switches with an argument. Those for a server that is started by hand mean nothing to a client.
const WITH_ARGUMENT: &str = "BCcDdfhkNprStvW-";
/// Switches that do nothing for a client, with or without an argument: `secure` only, or ignored altogether.
const WITHOUT_MEANING: &str = "bCDEjnPrTv";

type Setting = (String, String);

/// Reads the switches.
///
/// # Errors
/// 42601 for what PostgreSQL does not take either.
pub(super) fn parse(options: &str) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    let mut words = split(options).into_iter();
    while let Some(word) = words.next() {
        let unknown = || ProxyError::Switch(format!("invalid command-line argument for server process: {word}"));
        // As getopt reads them: several in one word, the last one's argument in the same word or the next.
        let mut letters = word.strip_prefix('-').filter(|rest| !rest.is_empty()).ok_or_else(unknown)?.chars();
        while let Some(letter) = letters.next() {
            let argument = match WITH_ARGUMENT.contains(letter) {
                false => String::new(),
                true => match letters.as_str() {
                    "" => words.next().ok_or_else(unknown)?,
                    rest => {
                        let rest = rest.to_owned();
                        letters = "".chars();
                        rest
                    }
                },
            };
            settings.extend(read(letter, &argument)?.ok_or_else(unknown)?);
        }
    }
    Ok(settings)
}

/// The words, by blanks; a backslash takes the next character as it is (`pg_split_opts`).
fn split(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = options.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => word.get_or_insert_default().extend(letters.next()),
            _ if letter.is_ascii_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

/// One switch as settings; none if there is no such switch or argument.
fn read(letter: char, argument: &str) -> Result<Option<Vec<Setting>>> {
    let set = |name: &str, value: &str| Ok(Some(vec![(name.to_owned(), value.to_owned())]));
    match letter {
        'c' | '-' => {
            let (name, value) = argument.split_once('=').ok_or_else(|| match letter {
                'c' => ProxyError::Switch(format!("-c {argument} requires a value")),
                _ => ProxyError::Switch(format!("--{argument} requires a value")),
            })?;
            // `ParseLongOption`
            set(&name.replace('-', "_"), value)
        }
        'B' => set("shared_buffers", argument),
        'd' => Ok(Some(debug(argument))),
        'e' => set("datestyle", "euro"),
        'F' => set("fsync", "false"),
        'f' => plan_method(argument).map_or(Ok(None), |name| set(name, "false")),
        'h' => set("listen_addresses", argument),
        'i' => set("listen_addresses", "*"),
        'k' => set("unix_socket_directories", argument),
        'l' => set("ssl", "true"),
        'N' => set("max_connections", argument),
        'O' => set("allow_system_table_mods", "true"),
        'p' => set("port", argument),
        'P' => set("ignore_system_indexes", "true"),
        's' => set("log_statement_stats", "true"),
        'S' => set("work_mem", argument),
        't' => statistics(argument).map_or(Ok(None), |name| set(name, "true")),
        'W' => set("post_auth_delay", argument),
        _ if WITHOUT_MEANING.contains(letter) => Ok(Some(Vec::new())),
        _ => Ok(None),
    }
}

/// `-d level` (`set_debug_options`).
fn debug(level: &str) -> Vec<Setting> {
    // As atoi reads it: the digits at the beginning, or 0.
    let digits: String = level.trim_start().chars().take_while(char::is_ascii_digit).collect();
    let level = digits.parse::<u32>().unwrap_or(0);
    let messages = if level > 0 { format!("debug{level}") } else { "notice".to_owned() };
    let more = [
        (2, "log_statement", "all"),
        (3, "debug_print_parse", "true"),
        (4, "debug_print_plan", "true"),
        (5, "debug_print_rewritten", "true"),
    ];
    let more = more.into_iter().filter(|(from, ..)| level >= *from);
    let more = more.map(|(_, name, value)| (name.to_owned(), value.to_owned()));
    std::iter::once(("log_min_messages".to_owned(), messages)).chain(more).collect()
}

/// `-f x`: a method that the planner shall not use (`set_plan_disabling_options`).
fn plan_method(argument: &str) -> Option<&'static str> {
    Some(match argument.chars().next()? {
        's' => "enable_seqscan",
        'i' => "enable_indexscan",
        'o' => "enable_indexonlyscan",
        'b' => "enable_bitmapscan",
        't' => "enable_tidscan",
        'n' => "enable_nestloop",
        'm' => "enable_mergejoin",
        'h' => "enable_hashjoin",
        _ => return None,
    })
}

/// `-t x`: statistics in the log (`get_stats_option_name`).
fn statistics(argument: &str) -> Option<&'static str> {
    let mut letters = argument.chars();
    match (letters.next()?, letters.next()) {
        ('p', Some('a')) => Some("log_parser_stats"),
        ('p', Some('l')) => Some("log_planner_stats"),
        ('e', _) => Some("log_executor_stats"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_mean_what_they_mean_to_postgresql() {
        for (options, wanted) in [
            ("", ""),
            ("-c geqo=off -cwork_mem=1MB --lock-timeout=5\\ s", "geqo=off work_mem=1MB lock_timeout=5 s"),
            ("-e", "datestyle=euro"),
            ("-S 2048 -S64", "work_mem=2048 work_mem=64"),
            ("-d 3", "log_min_messages=debug3 log_statement=all debug_print_parse=true"),
            ("-d x", "log_min_messages=notice"),
            ("-B 16", "shared_buffers=16"),
            ("-f s -fm", "enable_seqscan=false enable_mergejoin=false"),
            ("-tpl -t e", "log_planner_stats=true log_executor_stats=true"),
            ("-EesD x", "datestyle=euro log_statement_stats=true"),
            ("-b -C x -v 3 -n", ""),
            ("-c x=", "x="),
        ] {
            let settings = parse(options).unwrap_or_else(|error| panic!("{options}: {error}"));
            let found: Vec<_> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
            assert_eq!(found.join(" "), wanted, "{options}");
        }
    }

    #[test]
    fn what_is_no_switch_is_named() {
        for (options, wanted) in [
            ("-Z", "invalid command-line argument for server process: -Z"),
            ("geqo", "invalid command-line argument for server process: geqo"),
            ("-", "invalid command-line argument for server process: -"),
            ("-f x", "invalid command-line argument for server process: -f"),
            ("-t p", "invalid command-line argument for server process: -t"),
            ("-S", "invalid command-line argument for server process: -S"),
            ("-c x", "-c x requires a value"),
            ("--x", "--x requires a value"),
        ] {
            assert_eq!(parse(options).expect_err(options).client_message(), wanted, "{options}");
        }
    }
}
