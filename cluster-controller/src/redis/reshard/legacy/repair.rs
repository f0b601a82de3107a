//! Carries out the decisions about open slots that move nothing forward: removes marks, and brings keys home.

use super::keys::{KeyMover, RightSide};
use crate::redis::reshard::{
    context::Context, error::ReshardError, nodes::SlotState, open_slots::OpenSlotDecision,
};
use common::cluster::{slots::Slot, topology::NodeId};
use std::collections::BTreeMap;

/// Slots whose keys come home together: they are open meanwhile.
const SLOTS_AT_ONCE: usize = 64;

/// Closes first, so that a primary which gave a slot away takes keys of it again; then brings keys home.
pub(in crate::redis::reshard) async fn repair(
    context: &Context<'_>,
    decisions: &[OpenSlotDecision],
) -> Result<(), ReshardError> {
    let mut closed: BTreeMap<NodeId, Vec<Slot>> = BTreeMap::new();
    let mut returned: BTreeMap<(NodeId, NodeId), Vec<Slot>> = BTreeMap::new();
    for decision in decisions {
        match *decision {
            OpenSlotDecision::Close { slot, node } => closed.entry(node).or_default().push(slot),
            OpenSlotDecision::ReturnKeys { slot, from, owner } => {
                returned.entry((from, owner)).or_default().push(slot);
            }
            OpenSlotDecision::Finish { .. } | OpenSlotDecision::Undecided { .. } => {}
        }
    }
    for (node, slots) in closed {
        context
            .links
            .get(node)?
            .set_slots(&slots, SlotState::Stable)
            .await?;
        context.tracker.closed(slots.len());
    }
    for ((from, owner), slots) in returned {
        let (from, owner) = (context.links.get(from)?, context.links.get(owner)?);
        let mover = KeyMover::new(context, from);
        for slots in slots.chunks(SLOTS_AT_ONCE) {
            if context.stop.is_cancelled() {
                return Ok(());
            }
            // MIGRATE works on a node that does not serve the slot only while it is open there.
            from.set_slots(slots, SlotState::Importing(owner.id))
                .await?;
            mover.drain(slots, owner, RightSide::Target).await?;
            from.set_slots(slots, SlotState::Stable).await?;
            context.tracker.closed(slots.len());
        }
    }
    Ok(())
}
