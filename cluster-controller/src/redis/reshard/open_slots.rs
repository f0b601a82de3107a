//! What becomes of slots that are open, that is marked as migrating or importing by a node, and of keys at a node that does not serve their
//! slot. Pure.
//!
//! It follows the rules of `redis-cli --cluster fix` where those are sound. The rule behind all of it: **the primary that serves the slot is
//! right.** It is where clients are sent, it answers for every key that it holds, and only for one it lacks it sends them on. So a key that two
//! nodes hold has the value that the serving primary has; the other copy is left over from a call that broke off.

use common::cluster::{
    slots::{Slot, SlotSet},
    topology::{NodeId, OpenSlot, OpenSlotKind},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// What a primary says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotTable {
    /// The slots it serves.
    pub slots: SlotSet,
    /// Marks of slots that migrate or are imported.
    pub open: Vec<OpenSlot>,
    /// How many keys it holds in each slot: in those that it serves, those that are open on any node, and those that it should hold none of.
    /// A slot that is missing counts as 0.
    pub keys: BTreeMap<Slot, u64>,
    /// Bytes of memory that an average key of it takes; 0 if that is not known.
    pub bytes_per_key: u64,
    /// Slots of which its table names no primary at all.
    pub unlisted: SlotSet,
    /// The other primaries it knows, whether they answer or not.
    pub primaries: BTreeSet<NodeId>,
}

/// What every primary that answers says of itself.
pub type SlotTables = BTreeMap<NodeId, SlotTable>;

/// What is to be done about an open slot on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenSlotDecision {
    /// Moves the rest of the keys and lets the target serve the slot.
    Finish {
        /// Marked on both nodes.
        slot: Slot,
        /// The primary that serves it.
        source: NodeId,
        /// The node that has a part of its keys, or expects them.
        target: NodeId,
    },
    /// Removes the node's mark: no keys depend on it.
    Close {
        /// Marked on the node.
        slot: Slot,
        /// The node with the mark.
        node: NodeId,
    },
    /// Moves keys to the primary that serves the slot; a key that this one holds as well is removed at `from`. Then the mark is removed.
    ReturnKeys {
        /// Served by the primary that the keys return to.
        slot: Slot,
        /// The node that holds keys and does not serve the slot.
        from: NodeId,
        /// The primary that does.
        owner: NodeId,
    },
    /// Nothing can be decided now.
    Undecided {
        /// Left as it is.
        slot: Slot,
        /// What is in the way.
        cause: OpenSlotCause,
    },
}

/// Why nothing can be decided about an open slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenSlotCause {
    /// No primary that answers serves the slot.
    NoOwner,
    /// Two primaries serve it: the newer claim wins within seconds.
    TwoOwners(NodeId, NodeId),
    /// The node that the keys go to does not answer, and may hold some of them.
    TargetUnresponsive(NodeId),
}

impl OpenSlotDecision {
    /// The slot that is decided about.
    pub fn slot(&self) -> Slot {
        match self {
            Self::Finish { slot, .. }
            | Self::Close { slot, .. }
            | Self::ReturnKeys { slot, .. }
            | Self::Undecided { slot, .. } => *slot,
        }
    }
}

impl fmt::Display for OpenSlotCause {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoOwner => out.write_str("no primary that answers serves it"),
            Self::TwoOwners(one, other) => write!(
                out,
                "nodes {} and {} both serve it",
                one.short(),
                other.short()
            ),
            Self::TargetUnresponsive(target) => write!(
                out,
                "node {}, which receives its keys, does not answer",
                target.short()
            ),
        }
    }
}

/// What is to be done about every open slot, and about every other one of which a node holds keys that does not serve it. Empty if there is
/// none.
pub fn open_slots(tables: &SlotTables) -> Vec<OpenSlotDecision> {
    let mut slots = marked(tables);
    slots.extend(tables.values().flat_map(SlotTable::strays));
    slots
        .into_iter()
        .flat_map(|slot| decide(slot, tables))
        .collect()
}

/// The slots that any node has marked.
pub fn marked(tables: &SlotTables) -> BTreeSet<Slot> {
    let marks = tables.values().flat_map(|table| &table.open);
    marks.map(|open| open.slot).collect()
}

impl SlotTable {
    fn peer(&self, slot: Slot, kind: OpenSlotKind) -> Option<NodeId> {
        let mut marks = self.open.iter();
        marks
            .find(|open| open.slot == slot && open.kind == kind)
            .map(|open| open.peer)
    }

    fn is_marked(&self, slot: Slot) -> bool {
        self.open.iter().any(|open| open.slot == slot)
    }

    /// Slots of which it holds keys that no client is sent to.
    fn strays(&self) -> impl Iterator<Item = Slot> + '_ {
        let held = self.keys.iter().filter(|(_, keys)| **keys > 0);
        held.map(|(slot, _)| *slot)
            .filter(|slot| !self.slots.contains(*slot))
    }

    fn holds(&self, slot: Slot) -> bool {
        self.keys.get(&slot).is_some_and(|keys| *keys > 0)
    }
}

/// Nodes that expect the slot and do not know who serves it. While a slot is marked as imported the engine takes in no claim to it
/// (`clusterUpdateSlotsConfigWith` in `cluster.c`), so such a node would never learn it, and call the cluster down for ever.
fn uninformed(slot: Slot, tables: &SlotTables) -> Vec<OpenSlotDecision> {
    let nodes = tables.iter().filter(|(_, table)| {
        table.unlisted.contains(slot) && table.peer(slot, OpenSlotKind::Importing).is_some()
    });
    nodes
        .map(|(id, _)| OpenSlotDecision::Close { slot, node: *id })
        .collect()
}

fn decide(slot: Slot, tables: &SlotTables) -> Vec<OpenSlotDecision> {
    let uninformed = uninformed(slot, tables);
    if !uninformed.is_empty() {
        return uninformed;
    }
    let undecided = |cause| vec![OpenSlotDecision::Undecided { slot, cause }];
    let mut owners = tables
        .iter()
        .filter(|(_, table)| table.slots.contains(slot));
    let (owner, table) = match (owners.next(), owners.next()) {
        (Some(owner), None) => owner,
        (Some((one, _)), Some((other, _))) => {
            return undecided(OpenSlotCause::TwoOwners(*one, *other));
        }
        (None, _) => return undecided(OpenSlotCause::NoOwner),
    };
    let Some(target) = table.peer(slot, OpenSlotKind::Migrating) else {
        return settle(slot, *owner, tables);
    };
    let others = tables.iter().filter(|(id, _)| *id != owner);
    let holders: Vec<NodeId> = others
        .filter(|(_, other)| other.holds(slot))
        .map(|(id, _)| *id)
        .collect();
    // Keys on a third node would stay hidden there once the move is finished: then all keys come home first.
    let alone = |node: NodeId| holders.iter().all(|holder| *holder == node);
    match tables.get(&target) {
        // Its answer may be all that is missing of the keys.
        None if table.primaries.contains(&target) => {
            undecided(OpenSlotCause::TargetUnresponsive(target))
        }
        Some(other)
            if alone(target)
                && (other.peer(slot, OpenSlotKind::Importing) == Some(*owner)
                    || other.holds(slot)) =>
        {
            finish(slot, *owner, target, tables)
        }
        // It was forgotten, has become a replica, or knows nothing of it.
        None | Some(_) => match holders.as_slice() {
            // A replica has taken over from the target: it has the keys, but not the mark.
            [holder] => finish(slot, *owner, *holder, tables),
            _ => settle(slot, *owner, tables),
        },
    }
}

/// Finishes the move, and removes marks on others. They hold nothing.
fn finish(
    slot: Slot,
    source: NodeId,
    target: NodeId,
    tables: &SlotTables,
) -> Vec<OpenSlotDecision> {
    let others = tables
        .iter()
        .filter(|(id, table)| **id != source && **id != target && table.is_marked(slot));
    let closes = others.map(|(id, _)| OpenSlotDecision::Close { slot, node: *id });
    closes
        .chain([OpenSlotDecision::Finish {
            slot,
            source,
            target,
        }])
        .collect()
}

/// The slot stays where it is: its primary's mark is removed first, so that it takes keys.
fn settle(slot: Slot, owner: NodeId, tables: &SlotTables) -> Vec<OpenSlotDecision> {
    let own = tables.get(&owner).filter(|table| table.is_marked(slot));
    let own = own.map(|_| OpenSlotDecision::Close { slot, node: owner });
    let others = tables.iter().filter(|(id, _)| **id != owner);
    let others = others.filter_map(|(id, table)| {
        if table.holds(slot) {
            Some(OpenSlotDecision::ReturnKeys {
                slot,
                from: *id,
                owner,
            })
        } else {
            table
                .is_marked(slot)
                .then_some(OpenSlotDecision::Close { slot, node: *id })
        }
    });
    own.into_iter().chain(others).collect()
}
