//! Which primary serves which slots, as the primaries themselves say. Pure.
//!
//! A node holds what is in its memory: while a slot is being moved its keys can be in two snapshots or in none. So work on
//! whole shards is planned on a settled map only: every slot has one primary, and no slot is open.

use super::{
    seeds::NoSeeds,
    slots::SlotSet,
    topology::{NodeId, NodesView},
};
use crate::hexadecimal::short_hash;
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fmt::Write};

/// The slots of each primary that has any.
pub type SlotsByPrimary = BTreeMap<NodeId, SlotSet>;

/// A settled slot map: all 16384 slots have one primary, and no slot is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotMap {
    /// The slots of each primary.
    pub primaries: SlotsByPrimary,
    /// Equal for equal maps: `v1-` and 32 digits.
    pub hash: String,
}

/// Why the slot map cannot be used now. Each cause ends by itself or is repaired by the cluster-controller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSettled {
    /// A slot is being moved.
    #[error(
        "slot {slot} is being moved on node {node} (and {others} more): waiting until no slot is open"
    )]
    OpenSlot {
        /// The first open slot.
        slot: u16,
        /// The node that shows it.
        node: String,
        /// How many more are open.
        others: usize,
    },
    /// Slots without a primary that answers.
    #[error("slots {slots} have no primary that answers: waiting until all 16384 slots are served")]
    Uncovered {
        /// Ranges, separated by commas.
        slots: String,
    },
    /// Two primaries claim a slot.
    #[error("two primaries claim slots {slots}: waiting until they agree")]
    Overlap {
        /// Ranges that two primaries claim.
        slots: String,
    },
    /// A node has another map.
    #[error("node {node} sees another slot map than the primaries: waiting until all nodes agree")]
    Disagree {
        /// The first characters of the id of the node whose view differs.
        node: String,
    },
    /// No node can be asked.
    #[error(transparent)]
    NoSeeds(#[from] NoSeeds),
    /// No node answers.
    #[error("no node of the cluster answers: {0}")]
    Unreachable(String),
}

impl SlotMap {
    /// The map of these slots.
    pub fn new(primaries: SlotsByPrimary) -> Self {
        let hash = hash(&primaries);
        Self { primaries, hash }
    }

    /// The map that the primaries among the views' own nodes make together.
    pub fn of<'a>(views: impl IntoIterator<Item = &'a NodesView>) -> Result<Self, NotSettled> {
        let own: Vec<_> = views.into_iter().map(NodesView::myself).collect();
        let open: Vec<_> = own
            .iter()
            .flat_map(|node| node.open_slots.iter().map(|open| (node.id, open)))
            .collect();
        if let Some((node, first)) = open.first() {
            return Err(NotSettled::OpenSlot {
                slot: first.slot.get(),
                node: node.short(),
                others: open.len() - 1,
            });
        }
        let mut covered = SlotSet::new();
        let mut twice = SlotSet::new();
        for node in own.iter().filter(|node| node.is_primary()) {
            twice = twice.union(&covered.intersection(&node.slots));
            covered = covered.union(&node.slots);
        }
        if !twice.is_empty() {
            return Err(NotSettled::Overlap {
                slots: twice.summary(),
            });
        }
        if !covered.is_full() {
            return Err(NotSettled::Uncovered {
                slots: covered.missing().summary(),
            });
        }
        Ok(Self::new(slots_by_primary(own)))
    }

    /// The same, if every view shows it.
    pub fn agreed_by(views: &[NodesView]) -> Result<Self, NotSettled> {
        let map = Self::of(views)?;
        let other = views
            .iter()
            .find(|view| slots_by_primary(view.nodes().iter().map(AsRef::as_ref)) != map.primaries);
        match other {
            Some(view) => Err(NotSettled::Disagree {
                node: view.myself().id.short(),
            }),
            None => Ok(map),
        }
    }

    /// The shards in the order of their first slot.
    pub fn shards(&self) -> Vec<(NodeId, &SlotSet)> {
        let mut shards: Vec<_> = self
            .primaries
            .iter()
            .map(|(id, slots)| (*id, slots))
            .collect();
        shards.sort_by_key(|(_, slots)| slots.iter().next());
        shards
    }
}

fn slots_by_primary<'a>(
    nodes: impl IntoIterator<Item = &'a super::topology::ClusterNode>,
) -> SlotsByPrimary {
    nodes
        .into_iter()
        .filter(|node| node.is_primary() && !node.slots.is_empty())
        .map(|node| (node.id, node.slots.clone()))
        .collect()
}

/// Hash of the slot map as the views' own nodes describe it, settled or not. A primary without a view has no part in it.
pub fn topology_hash<'a>(views: impl IntoIterator<Item = &'a NodesView>) -> String {
    hash(&slots_by_primary(views.into_iter().map(NodesView::myself)))
}

/// SHA-256 of a line `id range range…` for each primary, sorted by id, shortened to 16 bytes.
fn hash(primaries: &SlotsByPrimary) -> String {
    let mut sha = Sha256::new();
    let mut line = String::new();
    for (id, slots) in primaries {
        line.clear();
        // Writing into a String cannot fail.
        let _ = write!(line, "{id}");
        for range in slots.ranges() {
            let _ = write!(line, " {range}");
        }
        line.push('\n');
        sha.update(line.as_bytes());
    }
    short_hash(&sha.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const C: &str = "cccccccccccccccccccccccccccccccccccccccc";

    fn view(myself: &str, a: &str, b: &str) -> NodesView {
        let line = |id: &str, role: &str, rest: &str| {
            let mark = if id == myself { "myself," } else { "" };
            format!("{id} 10.0.0.1:6379@16379 {mark}{role} 0 0 1 connected {rest}\n")
        };
        let text =
            line(A, "master -", a) + &line(B, "master -", b) + &line(C, &format!("slave {B}"), "");
        NodesView::parse(&text).unwrap()
    }

    fn views(a: &str, b: &str) -> Vec<NodesView> {
        [A, B, C].iter().map(|id| view(id, a, b)).collect()
    }

    #[test]
    fn shards_come_in_the_order_of_slots() {
        let map = SlotMap::agreed_by(&views("8000-16383", "0-7999")).unwrap();
        let shards: Vec<_> = map.shards().iter().map(|(id, _)| id.to_string()).collect();
        assert_eq!(shards, [B, A]);
        assert_eq!(map.hash, topology_hash(&views("8000-16383", "0-7999")));
    }

    #[test]
    fn the_hash_follows_primaries_and_slots_only() {
        let hash = |a, b| topology_hash(&views(a, b));
        let settled = hash("8000-16383", "0-7999");
        assert!(
            settled.starts_with("v1-") && settled.len() == 35,
            "{settled}"
        );
        assert_ne!(settled, hash("0-7999", "8000-16383"));
        assert_ne!(settled, hash("8001-16383", "0-7999"));
        assert_eq!(settled, topology_hash(&views("8000-16383", "0-7999")[..2]));
    }

    #[test]
    fn an_open_slot_is_named() {
        let open = format!("0-7999 [42->-{A}]");
        let error = SlotMap::of(&views("8000-16383", &open)).unwrap_err();
        assert!(
            matches!(
                error,
                NotSettled::OpenSlot {
                    slot: 42,
                    others: 0,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn each_slot_has_exactly_one_primary_that_answers() {
        let error = SlotMap::of(&views("8000-16383", "0-7998")).unwrap_err();
        assert!(matches!(error, NotSettled::Uncovered { slots } if slots == "7999"));
        let mut some = views("8000-16383", "0-7999");
        some.remove(1);
        let error = SlotMap::of(&some).unwrap_err();
        assert!(matches!(error, NotSettled::Uncovered { slots } if slots == "0-7999"));
        let error = SlotMap::of(&views("7-16383", "0-7")).unwrap_err();
        assert!(matches!(error, NotSettled::Overlap { slots } if slots == "7"));
    }

    #[test]
    fn a_view_that_differs_is_named_where_all_must_agree() {
        let mut split = views("8000-16383", "0-7999");
        split[2] = view(C, "0-7999", "8000-16383");
        assert!(SlotMap::of(&split).is_ok());
        let error = SlotMap::agreed_by(&split).unwrap_err();
        assert!(matches!(error, NotSettled::Disagree { node } if C.starts_with(&node)));
    }
}
