//! Side-by-side measurements: the same load through several proxies in turn, in front of one shard,
//! in interleaved rounds of which medians are quoted.
//!
//! Absolute figures differ from machine to machine and from hour to hour; only ratios within one
//! run mean anything. That is why rounds are interleaved, and why everybody runs in the same run.

pub mod client;
pub mod contender;
pub mod cpu;
pub mod failover;
pub mod growth;
pub mod measure;
pub mod pgbench;
pub mod report;
pub mod shard;

/// Median of `values`; None when there are none. For an even count, the lower of the two middle ones.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    quantile(values, 0.5)
}

/// The value below which `share` (0 to 1) of `values` lie; the lower one where it falls between two.
pub fn quantile(values: impl IntoIterator<Item = f64>, share: f64) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    values.get((last as f64 * share) as usize).copied()
}

/// Lets this process, and what it starts, open as many files as the system allows at all: ten
/// thousand clients are twenty thousand sockets.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, what needs it says so itself.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_a_middle_value() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.0));
        assert_eq!(quantile((0..=100).map(f64::from), 0.99), Some(99.0));
    }
}
