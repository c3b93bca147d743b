//! The part of the configuration that one session thread has.

use super::CONNECT_LIMIT;
use crate::config::Config;
use crate::pool::{Limits, Settings};

/// The part of the configuration for one thread, counted from 0. What threads share is divided exactly: the first
/// ones have what is left over, and none is without ([`Config::check_shares`]).
pub(super) fn settings(config: &Config, index: usize) -> Settings {
    let threads = config.worker_count();
    let share = |all: usize| all / threads + usize::from(index < all % threads);
    let limit = |most: usize| if most == 0 { usize::MAX } else { share(most) };
    Settings {
        mode: config.pool.mode,
        size: share(config.pool.size),
        limits: Limits {
            per_node: limit(config.pool.max_servers_per_node),
            per_database: limit(config.pool.max_servers_per_database),
            per_user: limit(config.pool.max_servers_per_user),
        },
        unbound_percent: config.pool.unbound_percent,
        query_wait_timeout: config.pool.query_wait_timeout,
        server_idle_timeout: config.pool.server_idle_timeout,
        server_lifetime: config.pool.server_lifetime,
        connect_timeout: CONNECT_LIMIT,
        split: config.routing.split,
        consistency: config.routing.consistency,
        hold_timeout: config.hold.timeout,
        hold_standby_timeout: config.hold.standby_timeout,
        hold_max_clients: config.hold.max_clients,
        hold_max_bytes: usize::try_from(config.hold.max_bytes.bytes()).unwrap_or(usize::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(threads: usize, pool: &str) -> Config {
        let text = format!(
            "workers = {threads}\n[listen]\naddress = \"0.0.0.0:6432\"\n[zookeeper]\nservers = [\"127.0.0.1:2181\"]\n\
             [shard]\nname = \"demo\"\n[auth]\npassword_file = \"/x\"\n[pool]\n{pool}\n"
        );
        manatee_shared::config::parse(std::path::Path::new("x"), &text).expect("valid")
    }

    #[test]
    fn shares_add_up_to_the_limit_and_nobody_is_without() {
        for threads in 1..20 {
            for limit in threads..50 {
                let config = config(threads, &format!("size = {limit}\nmax_servers_per_node = {limit}"));
                config.check_shares().expect("enough for all");
                let shares: Vec<Settings> = (0..threads).map(|index| settings(&config, index)).collect();
                assert_eq!(shares.iter().map(|share| share.size).sum::<usize>(), limit);
                assert_eq!(shares.iter().map(|share| share.limits.per_node).sum::<usize>(), limit);
                assert!(shares.iter().all(|share| share.size > 0));
                assert_eq!(shares[0].limits.per_user, usize::MAX, "no limit");
            }
        }
    }

    #[test]
    fn more_threads_than_a_limit_are_refused_or_not_started() {
        assert!(config(5, "max_servers_per_user = 4").check_shares().is_err());
        assert!(config(0, "max_servers_per_user = 1").check_shares().is_ok());
        assert_eq!(config(0, "max_servers_per_user = 1").worker_count(), 1);
    }
}
