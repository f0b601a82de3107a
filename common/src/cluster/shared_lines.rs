//! Lines of `CLUSTER NODES` that are the same in many views, kept once.
//!
//! N nodes describe N nodes each, and nearly all of them alike: without sharing, what is known of a cluster grows with the square of its
//! nodes, with it only by a pointer for each line.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

/// Descriptions of one node that are compared. Views differ in few ways: its own line, linked or not, suspected or not.
const MOST_COMPARED: usize = 8;

/// The lines of one look at a cluster, which ends with that look, by what they describe.
#[derive(Debug)]
pub struct SharedLines<K, L> {
    known: Mutex<HashMap<K, Vec<Arc<L>>>>,
}

impl<K, L> Default for SharedLines<K, L> {
    fn default() -> Self {
        let known = Mutex::default();
        Self { known }
    }
}

impl<K: Eq + Hash, L: PartialEq> SharedLines<K, L> {
    /// The line, or an equal one that is there already.
    pub fn share(&self, described: K, line: L) -> Arc<L> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let same = known.entry(described).or_default();
        if let Some(equal) = same.iter().find(|other| ***other == line) {
            return Arc::clone(equal);
        }
        let line = Arc::new(line);
        if same.len() < MOST_COMPARED {
            same.push(Arc::clone(&line));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::topology::{NodesView, SharedNodes};
    use std::fmt::Write;

    /// What one of two nodes sees.
    fn view(mine: usize, lines: &SharedNodes, link: &str) -> NodesView {
        let mut text = String::new();
        for number in 0..2_usize {
            let mark = if number == mine { "myself," } else { "" };
            writeln!(
                text,
                "{number:040x} 10.0.0.1:6379@16379,shop-{number} {mark}master - 0 {mine} 1 {link} {number}"
            )
            .unwrap();
        }
        NodesView::parse_sharing(&text, lines).unwrap()
    }

    #[test]
    fn equal_lines_are_kept_once() {
        let lines = SharedNodes::default();
        let [first, again, other] = [0, 0, 1].map(|mine| view(mine, &lines, "connected"));
        assert_eq!(first, again);
        for (a, b) in first.nodes().iter().zip(again.nodes()) {
            assert!(Arc::ptr_eq(a, b));
        }
        // Its own line is marked.
        for (a, b) in first.nodes().iter().zip(other.nodes()) {
            assert!(a != b && !Arc::ptr_eq(a, b));
        }
        let lost = view(0, &lines, "disconnected");
        assert!(!lost.nodes()[1].linked && first.nodes()[1].linked);
    }

    #[test]
    fn few_descriptions_of_a_node_are_compared() {
        let lines = SharedNodes::default();
        let line = |epoch| {
            let text = format!(
                "{:040x} 10.0.0.1:6379@16379 myself,master - 0 0 {epoch} connected\n",
                7
            );
            let view = NodesView::parse_sharing(&text, &lines).unwrap();
            Arc::clone(&view.nodes()[0])
        };
        let all: Vec<_> = (0..2 * MOST_COMPARED).map(line).collect();
        for (epoch, first) in all.iter().enumerate() {
            let shared = Arc::ptr_eq(first, &line(epoch));
            assert_eq!(shared, epoch < MOST_COMPARED, "{epoch}");
        }
    }
}
