//! TLS between the shard's servers: the same settings for libpq (WAL receiver, `pg_basebackup`, `pg_rewind`), for the
//! sitter's own sessions with other peers, and for `pg_hba.conf`.

use std::collections::BTreeMap;
use std::path::Path;

use manatee_shared::tls::{Secured, ServerTls, ServerTlsMode, Wanted};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::conf::{quote_conninfo, setting};
use super::error::Error;

/// TLS towards other peers' PostgreSQL.
#[derive(Clone, Debug)]
pub struct ReplicationTls {
    table: ServerTls,
}

impl Default for ReplicationTls {
    /// As libpq does by default.
    fn default() -> Self {
        Self::new(ServerTls { mode: ServerTlsMode::Prefer, ..ServerTls::default() })
    }
}

/// Transport of a session.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl ReplicationTls {
    /// As `[postgres.replication_tls]` says, whose keys fit together.
    pub fn new(table: ServerTls) -> Self {
        Self { table }
    }

    /// Mode that is asked for.
    pub fn mode(&self) -> ServerTlsMode {
        self.table.mode
    }

    /// Whether it can work with the operator's settings: any peer may become the one that is followed.
    pub(super) fn check(&self, parameters: &BTreeMap<String, String>, template: &str) -> Result<(), Error> {
        let refuse = |key: &str, problem: String| Err(Error::Setting { key: format!("postgres.{key}"), problem });
        // PostgreSQL takes any unique beginning of these (`parse_bool`).
        let is_on = |value: String| ["on", "true", "yes", "1"].contains(&value.to_ascii_lowercase().as_str());
        if self.mode().is_required() && !setting("ssl", parameters, template).is_some_and(is_on) {
            let problem = "is required, but this peer's own PostgreSQL has no TLS: set ssl, ssl_cert_file and \
                           ssl_key_file in [postgres.parameters]";
            return refuse("replication_tls.mode", problem.to_owned());
        }
        let files = [&self.table.ca_file, &self.table.certificate_file, &self.table.key_file];
        if let Some(file) = files.into_iter().flatten().find(|file| !file.is_absolute()) {
            let problem = format!("`{}` is not an absolute path; write it from /", file.display());
            return refuse("replication_tls", problem);
        }
        Wanted::load(&self.table).map(drop).or_else(|error| refuse("replication_tls", error.to_string()))
    }

    /// Parameters for libpq (manual, section 34.1.2).
    pub(crate) fn conninfo(&self) -> String {
        let mut text = format!("gssencmode=disable sslmode={}", self.mode().name());
        let mut file = |name: &str, path: Option<&Path>| {
            // Without one, libpq would look for its own in the home of whoever runs it.
            let path = path.map_or_else(|| "/nonexistent".into(), |path| path.to_string_lossy());
            text.push_str(&format!(" {name}={}", quote_conninfo(&path)));
        };
        if self.mode() != ServerTlsMode::Disable {
            // With a root certificate `require` would verify as `verify-ca` does.
            file("sslrootcert", self.table.ca_file.as_deref().filter(|_| self.mode().verifies()));
            file("sslcert", self.table.certificate_file.as_deref());
            file("sslkey", self.table.key_file.as_deref());
        }
        text
    }

    /// Makes of a new connection what is asked for. The files are read anew each time, as libpq does.
    pub(super) async fn secure(&self, stream: TcpStream, peer: &str) -> Result<Box<dyn Stream>, Error> {
        let failed = |problem: String| Error::Tls { target: peer.to_owned(), problem };
        let wanted = Wanted::load(&self.table).map_err(|error| failed(error.to_string()))?;
        let Some(wanted) = wanted else { return Ok(Box::new(stream)) };
        match wanted.secure(stream).await {
            Ok(Secured::Plain(stream)) => Ok(Box::new(stream)),
            Ok(Secured::Tls(stream)) => Ok(stream),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(mode: ServerTlsMode) -> ReplicationTls {
        ReplicationTls::new(ServerTls { mode, ca_file: Some("/etc/it's/ca.pem".into()), ..ServerTls::default() })
    }

    #[test]
    fn libpq_is_told_the_mode_and_never_looks_for_files_by_itself() {
        let none = ReplicationTls::new(ServerTls::default()).conninfo();
        assert_eq!(none, "gssencmode=disable sslmode=disable");
        assert!(ReplicationTls::default().conninfo().contains("sslmode=prefer"));
        let required = tls(ServerTlsMode::Require).conninfo();
        assert!(required.contains("sslmode=require sslrootcert='/nonexistent' sslcert='/nonexistent'"), "{required}");
        let full = tls(ServerTlsMode::VerifyFull).conninfo();
        assert!(full.contains(r"sslmode=verify-full sslrootcert='/etc/it\'s/ca.pem'"), "{full}");
    }

    #[test]
    fn a_peer_that_requires_tls_must_offer_it() {
        let none = BTreeMap::new();
        let on = BTreeMap::from([("ssl".to_owned(), "on".to_owned())]);
        let off = BTreeMap::from([("ssl".to_owned(), "off".to_owned())]);
        let require = tls(ServerTlsMode::Require);
        assert!(ReplicationTls::default().check(&none, "").is_ok());
        assert!(require.check(&on, "").is_ok() && require.check(&none, "work_mem = '1MB'\nssl = on # TLS\n").is_ok());
        for (parameters, template) in [(&none, ""), (&off, "ssl = on"), (&none, "ssl off")] {
            let error = require.check(parameters, template).unwrap_err().to_string();
            assert!(error.contains("postgres.replication_tls.mode") && error.contains("ssl_cert_file"), "{error}");
        }
        let missing = tls(ServerTlsMode::VerifyCa).check(&on, "").unwrap_err().to_string();
        assert!(missing.contains("/etc/it's/ca.pem"), "{missing}");
    }
}
