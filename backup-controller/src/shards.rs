//! The shards of a backup, as its status lists them, against the slot map of the cluster. Pure.
//!
//! A backup counts only if the slots are divided the same way after the last fork as before the first.

use common::cluster::{slot_map::SlotMap, slots::SlotSet};
use crds::BackupShard;

/// One unit of work for each shard, all at their attempt number `attempt`.
pub fn units(map: &SlotMap, attempt: i32) -> Vec<BackupShard> {
    (0..)
        .zip(map.shards())
        .map(|(index, (primary, slots))| BackupShard {
            index,
            primary_id: primary.to_string(),
            slot_ranges: written(slots),
            attempt,
            ..BackupShard::default()
        })
        .collect()
}

/// Whether the units divide the slots as this map does. Which node is the primary of a shard does not matter: a failover
/// moves a shard to another node, but no slot to another shard.
pub fn are_divided_like(units: &[BackupShard], map: &SlotMap) -> bool {
    let shards = map.shards();
    shards.len() == units.len()
        && shards
            .iter()
            .zip(units)
            .all(|((_, slots), unit)| written(slots) == unit.slot_ranges)
}

/// Slots as a unit's status holds them: always the same text for the same slots.
fn written(slots: &SlotSet) -> Vec<String> {
    slots.ranges().iter().map(ToString::to_string).collect()
}

/// The slots of a unit; `None` if they do not read as slots.
pub fn slots_of(unit: &BackupShard) -> Option<SlotSet> {
    SlotSet::try_from(unit.slot_ranges.as_slice()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::cluster::{slot_map::SlotsByPrimary, topology::NodeId};

    /// Two primaries, of which the second has the first slots.
    fn map(second: &str, first: &str) -> SlotMap {
        let slots = |range| SlotSet::try_from([range].as_slice()).unwrap();
        SlotMap::new(SlotsByPrimary::from([
            (NodeId::from_bytes([1; 20]), slots(second)),
            (NodeId::from_bytes([2; 20]), slots(first)),
        ]))
    }

    #[test]
    fn units_come_in_the_order_of_slots() {
        let map = map("8000-16383", "0-7999");
        let units = units(&map, 1);
        assert_eq!(units[0].primary_id, NodeId::from_bytes([2; 20]).to_string());
        assert_eq!(units[0].slot_ranges, ["0-7999"]);
        assert_eq!(units[1].index, 1);
        assert_eq!(slots_of(&units[0]).unwrap().len(), 8000);
        assert!(are_divided_like(&units, &map));
    }

    #[test]
    fn a_failover_divides_alike_and_a_move_does_not() {
        let units = units(&map("8000-16383", "0-7999"), 1);
        assert!(are_divided_like(&units, &map("0-7999", "8000-16383")));
        assert!(!are_divided_like(&units, &map("8001-16383", "0-8000")));
    }
}
