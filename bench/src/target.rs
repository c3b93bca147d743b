//! What is measured.

use std::str::FromStr;

/// An address to load, with the process whose CPU is charged for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name in the table.
    pub name: String,
    /// Host or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Process id of the proxy; none: CPU is not measured.
    pub pid: Option<u32>,
}

impl FromStr for Target {
    type Err = String;

    /// `NAME=HOST:PORT` or `NAME=HOST:PORT:PID`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let usage = || format!("`{text}` is not a target: expected NAME=HOST:PORT or NAME=HOST:PORT:PID");
        let (name, address) = text.split_once('=').ok_or_else(usage)?;
        let mut parts = address.split(':');
        let host = parts.next().filter(|host| !host.is_empty()).ok_or_else(usage)?;
        let port = parts.next().and_then(|port| port.parse().ok()).ok_or_else(usage)?;
        let pid = parts.next().map(str::parse).transpose().map_err(|_| usage())?;
        if parts.next().is_some() {
            return Err(usage());
        }
        Ok(Self { name: name.to_owned(), host: host.to_owned(), port, pid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_garbage_is_refused() {
        let target: Target = "proxy=127.0.0.1:6432:77".parse().unwrap();
        assert_eq!((target.name.as_str(), target.port, target.pid), ("proxy", 6432, Some(77)));
        assert_eq!("direct=db1:5432".parse::<Target>().unwrap().pid, None);
        for text in ["", "x", "x=y", "x=y:z", "x=y:1:z", "x=y:1:2:3", "x=:1"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
