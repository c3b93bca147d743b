//! Reading configuration, certificates and users again: by SIGHUP or `RELOAD`.

use std::sync::Arc;

use manatee_shared::config;

use crate::auth::Policy;
use crate::config::Config;
use crate::context::ProxyContext;
use crate::session_threads::ThreadAction;
use crate::tls::servers::Servers;

impl ProxyContext {
    /// Takes over what can change without a restart, and says what cannot. All or nothing: on an
    /// error the old configuration stays in use.
    ///
    /// # Errors
    /// One line that names what is wrong.
    pub async fn reload(&self) -> Result<(), String> {
        let old = self.config.load_full();
        let result = self.read_again(&old);
        match &result {
            Ok(new) => {
                for change in old.changes(new) {
                    let (key, value) = (change.key, change.value);
                    match change.live {
                        true => tracing::info!(key, value, "configuration changed"),
                        false => tracing::warn!(key, value, "configuration changed, but needs a restart"),
                    }
                }
                self.config.store(new.clone());
                self.console.threads().order(ThreadAction::Reconfigure(new.clone())).await;
                for shard in self.shards.all() {
                    // BackgroundService: an unreachable node must not hold the answer up. Bounded by its own limits.
                    tokio::spawn(async move { shard.prove_own_login().await });
                }
                tracing::info!("reloaded");
            }
            Err(error) => tracing::error!(%error, "not reloaded: the old configuration stays in use"),
        }
        result.map(drop)
    }

    /// Reads everything; changes nothing if anything is wrong.
    fn read_again(&self, old: &Config) -> Result<Arc<Config>, String> {
        // Put together in a test, not read from a file.
        let mut new = match old.path.as_os_str().is_empty() {
            true => old.clone(),
            false => Config::load(&old.path).map_err(|error| error.to_string())?,
        };
        // The threads there are stay as they are.
        new.running_threads = Some(old.worker_count());
        new.check_shares().map_err(|(key, problem)| format!("`{key}` {problem}"))?;
        let certificates = crate::tls::Certificates::load(&new.tls).map_err(|error| error.to_string())?;
        let servers = Servers::load(&new.server_tls).map_err(|error| error.to_string())?;
        let policy = Policy::load(&new).map_err(|error| error.to_string())?;
        // Put together in a test that has no file of it.
        let passwords = match old.path.as_os_str().is_empty() {
            true => None,
            false => Some(config::read_secrets(&new.auth.password_file).map_err(|error| error.to_string())?),
        };
        if let Some(passwords) = passwords {
            self.own.replace(passwords);
        }
        for shard in self.shards.all() {
            shard.keys.replace_passwords(|user| policy.users.password(user));
        }
        self.gate.replace_policy(policy);
        self.servers.replace(servers);
        self.gate.certificates().replace(certificates);
        Ok(Arc::new(new))
    }
}
