//! The slot map of a cluster as its nodes agree on it, cut into the shards of a backup. Pure.
//!
//! A node holds what is in its memory, not what it owns: while a slot is on its way its keys can be in both snapshots or
//! in neither. So a backup is planned only on a map without open slots on which all nodes agree, and it counts only if
//! the map is still cut the same way after the last fork.

use common::cluster::{
    slots::{SlotRange, SlotSet},
    topology::{NodeId, NodesView, Owners, owners_by_own_word, owners_hash},
};
use crds::BackupShard;

/// A settled slot map: all 16384 slots have an owner, no slot is open, and every node that answered says the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotMap {
    /// Who owns which slots.
    pub owners: Owners,
    /// [`owners_hash`] of it.
    pub hash: String,
}

/// Why the slot map cannot be used now. All of it passes by itself or is mended by the cluster-controller.
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
    /// Slots without an owner that answers.
    #[error("slots {slots} have no primary that answers: waiting until all 16384 slots are served")]
    Uncovered {
        /// The slots.
        slots: String,
    },
    /// Two nodes claim a slot.
    #[error("two nodes claim slots {slots}: waiting until they agree")]
    Overlap {
        /// The slots.
        slots: String,
    },
    /// A node has another map.
    #[error(
        "node {node} sees another slot map than the owners themselves: waiting until all nodes agree"
    )]
    Disagree {
        /// The node.
        node: String,
    },
    /// No node answers.
    #[error("no node of the cluster answers: {0}")]
    Silent(String),
}

impl SlotMap {
    /// The map on which the views agree.
    pub fn of(views: &[NodesView]) -> Result<Self, NotSettled> {
        let open: Vec<_> = views
            .iter()
            .map(NodesView::myself)
            .flat_map(|node| node.open_slots.iter().map(move |open| (node.id, open)))
            .collect();
        if let Some((node, first)) = open.first() {
            return Err(NotSettled::OpenSlot {
                slot: first.slot.get(),
                node: node.short(),
                others: open.len() - 1,
            });
        }
        let owners = owners_by_own_word(views);
        let mut covered = SlotSet::new();
        for slots in owners.values() {
            let twice = covered.intersection(slots);
            if !twice.is_empty() {
                return Err(NotSettled::Overlap {
                    slots: words(&twice),
                });
            }
            covered = covered.union(slots);
        }
        if !covered.is_full() {
            return Err(NotSettled::Uncovered {
                slots: words(&covered.missing()),
            });
        }
        if let Some(other) = views.iter().find(|view| view.owners() != owners) {
            return Err(NotSettled::Disagree {
                node: other.myself().id.short(),
            });
        }
        let hash = owners_hash(&owners);
        Ok(Self { owners, hash })
    }

    /// The shards in the order of their first slot.
    pub fn shards(&self) -> Vec<(NodeId, SlotSet)> {
        let mut shards: Vec<_> = self
            .owners
            .iter()
            .map(|(id, slots)| (*id, slots.clone()))
            .collect();
        shards.sort_by_key(|(_, slots)| slots.iter().next());
        shards
    }

    /// One unit of work for each shard, all at their attempt number `attempt`.
    pub fn units(&self, attempt: i32) -> Vec<BackupShard> {
        (0..)
            .zip(self.shards())
            .map(|(index, (primary, slots))| BackupShard {
                index,
                primary_id: primary.to_string(),
                slot_ranges: written(&slots),
                attempt,
                ..BackupShard::default()
            })
            .collect()
    }

    /// Whether the units cut the slots as this map does. Who owns a part does not matter: a failover moves a shard to another
    /// node, but no slot to another shard.
    pub fn is_cut_like(&self, units: &[BackupShard]) -> bool {
        let mine = self.shards();
        mine.len() == units.len()
            && mine
                .iter()
                .zip(units)
                .all(|((_, slots), unit)| written(slots) == unit.slot_ranges)
    }
}

/// Slots as a unit's status holds them: always the same text for the same slots.
fn written(slots: &SlotSet) -> Vec<String> {
    slots.ranges().iter().map(ToString::to_string).collect()
}

/// The slots of a unit; `None` if they do not read as slots.
pub fn slots_of(unit: &BackupShard) -> Option<SlotSet> {
    let mut slots = SlotSet::new();
    for range in &unit.slot_ranges {
        slots.insert_range(range.parse::<SlotRange>().ok()?);
    }
    Some(slots)
}

/// The first ranges of a set, for messages.
pub fn words(slots: &SlotSet) -> String {
    let ranges = slots.ranges();
    let mut text: Vec<String> = ranges.iter().take(4).map(ToString::to_string).collect();
    if ranges.len() > text.len() {
        text.push("…".to_owned());
    }
    text.join(",")
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
    fn agreement_gives_shards_in_the_order_of_slots() {
        let map = SlotMap::of(&views("8000-16383", "0-7999")).unwrap();
        let units = map.units(1);
        assert_eq!(units[0].primary_id, B);
        assert_eq!(units[0].slot_ranges, ["0-7999"]);
        assert_eq!(units[1].index, 1);
        assert!(map.is_cut_like(&units));
    }

    #[test]
    fn a_failover_cuts_alike_and_a_move_does_not() {
        let units = SlotMap::of(&views("8000-16383", "0-7999"))
            .unwrap()
            .units(1);
        let failed_over = SlotMap::of(&views("0-7999", "8000-16383")).unwrap();
        assert!(failed_over.is_cut_like(&units));
        let moved = SlotMap::of(&views("8001-16383", "0-8000")).unwrap();
        assert!(!moved.is_cut_like(&units));
    }

    #[test]
    fn what_is_not_settled_is_named() {
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
        let error = SlotMap::of(&views("8000-16383", "0-7998")).unwrap_err();
        assert_eq!(
            error,
            NotSettled::Uncovered {
                slots: "7999".into()
            }
        );
        let mut some = views("8000-16383", "0-7999");
        some.remove(1);
        let error = SlotMap::of(&some).unwrap_err();
        assert!(
            matches!(error, NotSettled::Uncovered { .. }),
            "the owner itself has to answer: {error}"
        );
        let mut split = views("8000-16383", "0-7999");
        split[2] = view(C, "0-7999", "8000-16383");
        assert!(matches!(
            SlotMap::of(&split),
            Err(NotSettled::Disagree { .. })
        ));
    }
}
