//! Everything about logins that is read from files: users, rules, maps. Replaced as a whole.

use super::hba::Rules;
use super::rules::{self, RulesError};
use super::usermap::UserMaps;
use super::users::{Users, UsersError};
use crate::config::Config;

/// Policy that is read from files.
#[derive(Default)]
pub struct Policy {
    /// Roles with secrets of their own.
    pub users: Users,
    /// Rules for who may connect from where.
    pub rules: Rules,
    /// Names in certificates.
    pub maps: UserMaps,
}

/// Reason why the files cannot be used. One line, with the key.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// `auth.users_file`
    #[error("`auth.users_file`: {0}")]
    Users(#[from] UsersError),
    /// `auth.hba_file`
    #[error("`auth.hba_file`: {0}")]
    Rules(RulesError),
    /// `auth.ident_file`
    #[error("`auth.ident_file`: {0}")]
    Maps(RulesError),
    /// Rules that nobody could ever satisfy.
    #[error("`auth.hba_file`: a rule asks for client certificates; set tls.client_ca_file")]
    NoAuthorities,
}

impl Policy {
    /// Reads the files that the configuration names.
    ///
    /// # Errors
    /// [`PolicyError`]
    pub fn load(config: &Config) -> Result<Self, PolicyError> {
        let policy = Self {
            users: Users::load(config.auth.users_file.as_deref())?,
            rules: rules::load(config.auth.hba_file.as_deref(), Rules::parse).map_err(PolicyError::Rules)?,
            maps: rules::load(config.auth.ident_file.as_deref(), UserMaps::parse).map_err(PolicyError::Maps)?,
        };
        if policy.rules.want_certificates() && config.tls.client_ca_file.is_none() {
            return Err(PolicyError::NoAuthorities);
        }
        Ok(policy)
    }
}
