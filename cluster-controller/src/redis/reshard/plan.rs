//! The whole plan: what becomes of open slots, then which slots move. Pure.

use super::{
    moves::{ShardLoad, SlotMove, moves},
    open_slots::{OpenSlotDecision, SlotTables, open_slots},
    weights::{SlotWeights, even_out},
};
use common::cluster::{slots::SlotSet, topology::NodeId};
use std::collections::BTreeMap;

/// What [`super::run()`] does, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReshardPlan {
    /// What becomes of open slots. Those that are [`OpenSlotDecision::Undecided`] are left as they are, for the caller to name.
    pub open_slots: Vec<OpenSlotDecision>,
    /// Which slots move, as if those decisions were carried out.
    pub moves: Vec<SlotMove>,
}

/// Plans from what every primary says. Call it only with the tables of all primaries: one that is missing would count as a shard without
/// slots. `stays`: whether a primary's shard is to stay.
pub fn plan(tables: &SlotTables, stays: impl Fn(NodeId) -> bool) -> ReshardPlan {
    let open_slots = open_slots(tables);
    let mut slots: BTreeMap<NodeId, SlotSet> = tables
        .iter()
        .map(|(id, table)| (*id, table.slots.clone()))
        .collect();
    for one in finishing(&open_slots) {
        if let Some(source) = slots.get_mut(&one.source) {
            *source = source.difference(&one.slots);
        }
        if let Some(target) = slots.get_mut(&one.target) {
            *target = target.union(&one.slots);
        }
    }
    let shards: Vec<ShardLoad> = slots
        .into_iter()
        .map(|(primary, slots)| ShardLoad {
            primary,
            slots,
            stays: stays(primary),
        })
        .collect();
    let undecided: SlotSet = open_slots
        .iter()
        .filter(|one| matches!(one, OpenSlotDecision::Undecided { .. }))
        .map(OpenSlotDecision::slot)
        .collect();
    let found = even_out(&shards, moves(&shards), &weights(tables));
    let moves = found.into_iter().filter_map(|one| {
        let slots = one.slots.difference(&undecided);
        (!slots.is_empty()).then_some(SlotMove { slots, ..one })
    });
    ReshardPlan {
        moves: moves.collect(),
        open_slots,
    }
}

/// What the data of each slot weigh at the primary that serves it.
fn weights(tables: &SlotTables) -> SlotWeights {
    let served = tables.values().flat_map(|table| {
        let keys = table.keys.iter();
        keys.filter(|(slot, _)| table.slots.contains(**slot))
            .map(|(slot, keys)| (*slot, keys.saturating_mul(table.bytes_per_key)))
    });
    served.collect()
}

impl ReshardPlan {
    /// Whether there is nothing that can be done.
    pub fn is_empty(&self) -> bool {
        let undecided = |one: &OpenSlotDecision| matches!(one, OpenSlotDecision::Undecided { .. });
        self.moves.is_empty() && self.open_slots.iter().all(undecided)
    }

    /// The first open slot about which nothing can be done, and why.
    pub fn undecided(&self) -> Option<String> {
        self.open_slots.iter().find_map(|one| match one {
            OpenSlotDecision::Undecided { slot, cause } => Some(format!("slot {slot}: {cause}")),
            OpenSlotDecision::Finish { .. }
            | OpenSlotDecision::Close { .. }
            | OpenSlotDecision::ReturnKeys { .. } => None,
        })
    }
}

/// The moves that are finished, a pair of nodes each.
pub(super) fn finishing(decisions: &[OpenSlotDecision]) -> Vec<SlotMove> {
    let mut pairs: BTreeMap<(NodeId, NodeId), SlotSet> = BTreeMap::new();
    for decision in decisions {
        if let OpenSlotDecision::Finish {
            slot,
            source,
            target,
        } = decision
        {
            pairs.entry((*source, *target)).or_default().insert(*slot);
        }
    }
    let moves = pairs.into_iter().map(|((source, target), slots)| SlotMove {
        source,
        target,
        slots,
    });
    moves.collect()
}
