//! At most one node acknowledges at a time. Pure.
//!
//! Each acknowledged row tells on which timeline it was written, and its client when it asked and
//! when it had its answer. A newer timeline is a newer primary: once one has acknowledged, nothing
//! that is asked later may be acknowledged on an older one.

use std::collections::BTreeMap;
use std::time::Instant;

use super::ledger::{Row, Span};

/// Writer of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Writer {
    /// Address of the node.
    pub(super) node: Option<String>,
    /// Its timeline at the time, 8 hexadecimal digits.
    pub(super) timeline: String,
}

/// The rows that a former primary acknowledged, or that two nodes acknowledged on one timeline, in
/// words.
pub(super) fn double(rows: &[(Row, Span, Writer)]) -> Vec<String> {
    let mut found = Vec::new();
    let mut nodes: BTreeMap<&str, &Option<String>> = BTreeMap::new();
    let mut first_answers: BTreeMap<&str, Instant> = BTreeMap::new();
    for (row, span, writer) in rows {
        let timeline = writer.timeline.as_str();
        let node = nodes.entry(timeline).or_insert(&writer.node);
        if *node != &writer.node {
            found.push(format!("row {row:?} is of {:?} on timeline {timeline}, which is {node:?}'s", writer.node));
        }
        let first = first_answers.entry(timeline).or_insert(span.end);
        *first = span.end.min(*first);
    }
    for (row, span, writer) in rows {
        let newer = first_answers
            .range::<str, _>((std::ops::Bound::Excluded(writer.timeline.as_str()), std::ops::Bound::Unbounded));
        if let Some((newer, _)) = newer.into_iter().find(|(_, answered)| **answered < span.begin) {
            found.push(format!(
                "row {row:?} was acknowledged on timeline {} after timeline {newer} had acknowledged",
                writer.timeline
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn row(sequence: i64, origin: Instant, ms: [u64; 2], node: &str, timeline: u32) -> (Row, Span, Writer) {
        let at = |ms| origin + Duration::from_millis(ms);
        let writer = Writer { node: Some(node.to_owned()), timeline: format!("{timeline:08X}") };
        ((1, sequence), Span { begin: at(ms[0]), end: at(ms[1]) }, writer)
    }

    #[test]
    fn one_after_the_other_is_right_even_if_answers_come_late() {
        let origin = Instant::now();
        let rows = [
            row(1, origin, [0, 10], "a", 9),
            row(2, origin, [5, 500], "a", 9),
            row(3, origin, [50, 60], "b", 10),
            row(4, origin, [70, 80], "a", 16),
        ];
        assert_eq!(double(&rows), Vec::<String>::new());
    }

    #[test]
    fn a_former_primary_that_goes_on_is_found() {
        let origin = Instant::now();
        let rows = [row(1, origin, [0, 10], "b", 10), row(2, origin, [20, 30], "a", 9)];
        assert_eq!(double(&rows).len(), 1);
    }

    #[test]
    fn two_nodes_on_one_timeline_are_found() {
        let origin = Instant::now();
        let rows = [row(1, origin, [0, 10], "a", 2), row(2, origin, [0, 10], "b", 2)];
        assert_eq!(double(&rows).len(), 1);
    }
}
