//! Identity towards ZooKeeper, and rights to the nodes we create.

use std::path::Path;

use rustls::crypto::aws_lc_rs;
use zookeeper_client::{Acl, Acls, AuthId, Client, Error, Permission, SaslOptions, TlsOptions};

use super::ConnectError;
use crate::config::{AuthScheme, Secret, ZkSettings, ZkTls, read_named, read_secret};

/// Read from the files that the settings name, once: a change of them takes a restart.
pub(super) struct Access {
    /// `user:password`.
    user: Option<Secret>,
    scheme: AuthScheme,
    acls: Vec<Acl>,
    tls: Option<TlsOptions>,
}

impl Access {
    /// Reads the files.
    pub(super) fn read(settings: &ZkSettings) -> Result<Self, ConnectError> {
        let user = settings.auth_file.as_deref().map(read_user).transpose()?;
        let mut acls = Acls::anyone_all().to_vec();
        if user.is_some() {
            acls = Acls::creator_all().to_vec();
            if settings.world_readable {
                acls.push(Acl::new(Permission::READ, AuthId::new("world", "anyone")));
            }
        }
        Ok(Self { user, scheme: settings.auth_scheme, acls, tls: settings.tls.as_ref().map(read_tls).transpose()? })
    }

    /// Opens a session.
    pub(super) async fn connect(&self, settings: &ZkSettings) -> Result<Client, Error> {
        // The client asks for the process's TLS provider even without TLS, and panics if there is none.
        // An error means that somebody has chosen one already, which will do.
        let _ = aws_lc_rs::default_provider().install_default();
        let mut connector = Client::connector().with_session_timeout(settings.session_timeout).with_fail_eagerly();
        if let Some(user) = &self.user {
            connector = match (self.scheme, user.expose().split_once(':')) {
                (AuthScheme::SaslDigestMd5, Some((name, password))) => {
                    connector.with_sasl(SaslOptions::digest_md5(name.to_owned(), password.to_owned()))
                }
                _ => connector.with_auth("digest", user.expose().as_bytes()),
            };
        }
        match &self.tls {
            Some(tls) => connector.with_tls(tls.clone()).secure_connect(&settings.ensemble()).await,
            None => connector.connect(&settings.ensemble()).await,
        }
    }

    /// ACLs of every node that is created.
    pub(super) fn acls(&self) -> Acls<'_> {
        Acls::new(&self.acls)
    }
}

fn read_user(path: &Path) -> Result<Secret, ConnectError> {
    let fail = |problem: String| ConnectError { key: "auth_file", problem };
    let user = read_secret(path).map_err(|error| fail(error.to_string()))?;
    if !user.expose().split_once(':').is_some_and(|(name, password)| !name.is_empty() && !password.is_empty()) {
        return Err(fail(format!("{} does not hold `user:password`", path.display())));
    }
    Ok(user)
}

fn read_tls(tls: &ZkTls) -> Result<TlsOptions, ConnectError> {
    let read =
        |key, path: &Path| read_named(key, path).map_err(|error| ConnectError { key, problem: error.to_string() });
    let bad = |key, path: &Path, error: &Error| ConnectError { key, problem: format!("{}: {error}", path.display()) };
    let ca = read("tls.ca_file", &tls.ca_file)?;
    let options = TlsOptions::new().with_pem_ca(&ca).map_err(|error| bad("tls.ca_file", &tls.ca_file, &error))?;
    let (Some(cert_file), Some(key_file)) = (&tls.cert_file, &tls.key_file) else { return Ok(options) };
    let (cert, key) = (read("tls.cert_file", cert_file)?, read("tls.key_file", key_file)?);
    options.with_pem_identity(&cert, &key).map_err(|error| bad("tls.cert_file", cert_file, &error))
}
