//! Side-by-side measurements: the same load against several addresses in turn, medians of
//! interleaved rounds, and the CPU that the process behind each address used.
//!
//! Absolute figures differ from machine to machine and from hour to hour; only ratios within one
//! run mean anything. That is why rounds are interleaved.

pub mod cpu;
pub mod pgbench;
pub mod target;

/// Median of `values`; None when there are none. For an even count, the lower of the two middle ones.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_a_middle_value() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.0));
    }
}
