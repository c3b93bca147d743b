//! Rules for who may connect from where, and for how they prove themselves: as in pg_hba.conf (manual,
//! section 21.1), the first that fits decides. Pure.
//!
//! Understood: `local`, `host`, `hostssl`, `hostnossl`; databases `all`, `sameuser` and names; users
//! `all` and names; addresses as CIDR, with a mask, or `all`; methods `trust`, `reject`,
//! `scram-sha-256`, `md5`, `password`, `cert`, `peer`; options `clientcert=verify-ca|verify-full` and `map=NAME`.
//! Without a file everybody is asked for a password.

use std::net::IpAddr;

/// Method of authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Not at all.
    Trust,
    /// They cannot.
    Reject,
    /// SCRAM only.
    Scram,
    /// SCRAM or, for roles whose secret is an md5 hash, md5.
    Md5,
    /// A password in clear.
    Password,
    /// A certificate.
    Certificate,
    /// The operating system's word, over a Unix socket.
    Peer,
}

/// Demand on the client's certificate, beside the one of the method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificate {
    /// Nothing: none is needed.
    #[default]
    Optional,
    /// It must be signed by one of our authorities.
    Verified,
    /// And its common name must be the role's, by the map if there is one.
    Named,
}

/// Content of the rule that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Method of authentication.
    pub method: Method,
    /// Further demand on the certificate.
    pub certificate: ClientCertificate,
    /// Map of names in certificates to roles.
    pub map: Option<String>,
}

/// Transport of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Over a Unix socket.
    Local,
    /// Over TCP.
    Host {
        /// Address of the client.
        address: IpAddr,
        /// With TLS.
        tls: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Local,
    Host,
    HostSsl,
    HostNoSsl,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    All,
    SameUser,
    Replication,
    Exactly(String),
}

/// Addresses that begin alike, written `10.0.0.0/8`; a single one may come without the bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no address; write it like 10.0.0.0/8 or fd00::/8");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text.as_str(), None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.parse().map_err(|_| wrong()))?;
        if bits <= most { Ok(Self { address, bits }) } else { Err(wrong()) }
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        format!("{}/{}", network.address, network.bits)
    }
}

#[derive(Clone, Debug)]
struct Rule {
    kind: Kind,
    databases: Vec<Name>,
    users: Vec<Name>,
    /// None: from everywhere.
    network: Option<Network>,
    verdict: Verdict,
}

/// All rules, in order.
#[derive(Clone, Debug)]
pub struct Rules(Vec<Rule>);

impl Default for Rules {
    /// Everybody is asked for a password.
    fn default() -> Self {
        let verdict = Verdict { method: Method::Md5, certificate: ClientCertificate::Optional, map: None };
        let rule = |kind| Rule {
            kind,
            databases: vec![Name::All, Name::Replication],
            users: vec![Name::All],
            network: None,
            verdict: verdict.clone(),
        };
        Self(vec![rule(Kind::Local), rule(Kind::Host)])
    }
}

impl Rules {
    /// Reads rules; on an error the line, from 1, and the problem.
    ///
    /// # Errors
    /// For the first line that is not understood.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut rules = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let words = fields(line);
            if !words.is_empty() {
                rules.push(rule(&words).map_err(|problem| (index + 1, problem))?);
            }
        }
        Ok(Self(rules))
    }

    /// Whether any rule wants a certificate.
    pub fn want_certificates(&self) -> bool {
        let wants = |verdict: &Verdict| {
            verdict.method == Method::Certificate || verdict.certificate != ClientCertificate::Optional
        };
        self.0.iter().any(|rule| wants(&rule.verdict))
    }

    /// Verdict of the first rule that fits; none if none does, and then nobody gets in. Who replicates without
    /// a database is meant by `replication` and by nothing else, as in PostgreSQL.
    pub fn find(&self, origin: Origin, database: Option<&str>, user: &str) -> Option<&Verdict> {
        let fits = |rule: &&Rule| {
            let kind = match (rule.kind, origin) {
                (Kind::Local, Origin::Local) | (Kind::Host, Origin::Host { .. }) => true,
                (Kind::HostSsl, Origin::Host { tls, .. }) => tls,
                (Kind::HostNoSsl, Origin::Host { tls, .. }) => !tls,
                _ => false,
            };
            let from = match (rule.network, origin) {
                (Some(network), Origin::Host { address, .. }) => network.contains(address),
                _ => true,
            };
            let names = |names: &[Name], wanted: Option<&str>| {
                names.iter().any(|name| match name {
                    Name::All => wanted.is_some(),
                    Name::SameUser => wanted == Some(user),
                    Name::Replication => wanted.is_none(),
                    Name::Exactly(name) => wanted == Some(name.as_str()),
                })
            };
            kind && from && names(&rule.databases, database) && names(&rule.users, Some(user))
        };
        self.0.iter().find(fits).map(|rule| &rule.verdict)
    }
}

impl Network {
    /// Whether it is one of them.
    pub fn contains(self, address: IpAddr) -> bool {
        let shares = |ours: u128, theirs: u128, width: u32| {
            let shift = width.saturating_sub(u32::from(self.bits));
            shift >= width || ours >> shift == theirs >> shift
        };
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => shares(u32::from(ours).into(), u32::from(theirs).into(), 32),
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => shares(ours.into(), theirs.into(), 128),
            _ => false,
        }
    }
}

/// A word, and whether it was quoted: then it is a name whatever it says.
pub(super) type Word = (String, bool);

/// The fields of a line, each a list of words separated by commas.
pub(super) fn fields(line: &str) -> Vec<Vec<Word>> {
    let mut fields: Vec<Vec<Word>> = Vec::new();
    let mut letters = line.chars().peekable();
    let mut joined = false;
    loop {
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        let mut word = String::new();
        let mut quoted = false;
        match letters.peek() {
            None | Some('#') => return fields,
            Some(',') => {
                letters.next();
                joined = true;
                continue;
            }
            Some('"') => {
                letters.next();
                quoted = true;
                word.extend(letters.by_ref().take_while(|letter| *letter != '"'));
            }
            Some(_) => {
                while let Some(letter) =
                    letters.next_if(|letter| !letter.is_whitespace() && !matches!(letter, ',' | '#' | '"'))
                {
                    word.push(letter);
                }
            }
        }
        match fields.last_mut().filter(|_| joined) {
            Some(field) => field.push((word, quoted)),
            None => fields.push(vec![(word, quoted)]),
        }
        joined = false;
    }
}

fn rule(words: &[Vec<Word>]) -> Result<Rule, String> {
    let one = |index: usize, what: &str| -> Result<&str, String> {
        match words.get(index).map(Vec::as_slice) {
            Some([(word, _)]) => Ok(word),
            Some(_) => Err(format!("the {what} must be one word")),
            None => Err(format!("the {what} is missing; write TYPE DATABASE USER ADDRESS METHOD")),
        }
    };
    let kind = match one(0, "type")? {
        "local" => Kind::Local,
        "host" => Kind::Host,
        "hostssl" => Kind::HostSsl,
        "hostnossl" => Kind::HostNoSsl,
        other => return Err(format!("`{other}` is no type; use local, host, hostssl or hostnossl")),
    };
    let databases = names(words.get(1), "database", true)?;
    let users = names(words.get(2), "user", false)?;
    let mut next = 3;
    let network = if kind == Kind::Local { None } else { network(words, &mut next)? };
    let method = match one(next, "method")? {
        "trust" => Method::Trust,
        "reject" => Method::Reject,
        "scram-sha-256" => Method::Scram,
        "md5" => Method::Md5,
        "password" => Method::Password,
        "cert" => Method::Certificate,
        "peer" => Method::Peer,
        other => {
            let known = "trust, reject, scram-sha-256, md5, password, cert or peer";
            return Err(format!("`{other}` is no method known here; use {known}"));
        }
    };
    if method == Method::Peer && kind != Kind::Local {
        return Err("method peer needs type local".to_owned());
    }
    if method == Method::Certificate && kind != Kind::HostSsl {
        return Err("method cert needs type hostssl".to_owned());
    }
    let mut verdict = Verdict { method, certificate: ClientCertificate::Optional, map: None };
    for option in words.iter().skip(next + 1) {
        let [(option, _)] = option.as_slice() else { return Err("an option must be one word".to_owned()) };
        match option.split_once('=') {
            Some(("clientcert", "verify-ca")) if kind == Kind::HostSsl => {
                verdict.certificate = ClientCertificate::Verified;
            }
            Some(("clientcert", "verify-full")) if kind == Kind::HostSsl => {
                verdict.certificate = ClientCertificate::Named;
            }
            Some(("clientcert", _)) => {
                return Err("clientcert is verify-ca or verify-full, with type hostssl".to_owned());
            }
            Some(("map", name)) => verdict.map = Some(name.to_owned()),
            _ => return Err(format!("`{option}` is no option known here; use clientcert=… or map=…")),
        }
    }
    Ok(Rule { kind, databases, users, network, verdict })
}

fn names(field: Option<&Vec<Word>>, what: &str, of_databases: bool) -> Result<Vec<Name>, String> {
    let field = field.ok_or_else(|| format!("the {what} is missing; write TYPE DATABASE USER ADDRESS METHOD"))?;
    let name = |(word, quoted): &Word| match (word.as_str(), quoted) {
        ("all", false) => Ok(Name::All),
        ("sameuser", false) if of_databases => Ok(Name::SameUser),
        ("replication", false) if of_databases => Ok(Name::Replication),
        ("samerole" | "samegroup", false) if of_databases => {
            Err(format!("`{word}` is not supported: memberships are not known here; list the databases"))
        }
        (word, false) if word.starts_with(['+', '@', '/']) => {
            Err(format!("`{word}`: groups, files and patterns are not supported; list the names"))
        }
        (word, _) => Ok(Name::Exactly(word.to_owned())),
    };
    field.iter().map(name).collect()
}

/// Reads the address at `next`, and the mask after it if there is one.
fn network(words: &[Vec<Word>], next: &mut usize) -> Result<Option<Network>, String> {
    let word = |index: usize| match words.get(index).map(Vec::as_slice) {
        Some([(word, _)]) => Ok(word.as_str()),
        _ => Err("the address is missing; write TYPE DATABASE USER ADDRESS METHOD".to_owned()),
    };
    let text = word(*next)?;
    *next += 1;
    if text == "all" {
        return Ok(None);
    }
    let wrong = || format!("`{text}` is no address; write it like 10.0.0.0/8, fd00::/8, or all");
    if text.contains('/') {
        return Network::try_from(text.to_owned()).map(Some);
    }
    let address: IpAddr = text.parse().map_err(|_| wrong())?;
    let mask: IpAddr = word(*next)?.parse().map_err(|_| format!("`{text}` needs a mask; write it like {text}/32"))?;
    *next += 1;
    let (leading, all) = match mask {
        IpAddr::V4(mask) => (u32::from(mask).leading_ones(), u32::from(mask).count_ones()),
        IpAddr::V6(mask) => (u128::from(mask).leading_ones(), u128::from(mask).count_ones()),
    };
    if leading != all || mask.is_ipv4() != address.is_ipv4() {
        return Err(format!("`{mask}` is no mask for {text}"));
    }
    Ok(Some(Network { address, bits: u8::try_from(leading).unwrap_or(0) }))
}

#[cfg(test)]
#[path = "hba_tests.rs"]
mod tests;
