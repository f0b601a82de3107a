//! Which slots are open together. Pure.

use crate::redis::reshard::{limits::ReshardLimits, moves::SlotMove};
use common::cluster::{slots::Slot, topology::NodeId};
use std::collections::VecDeque;

/// Workers of a source: each has one group open.
pub(super) const WORKERS: usize = 3;

/// Slots that are opened, moved and handed over together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotGroup {
    pub(super) target: NodeId,
    pub(super) slots: Vec<Slot>,
}

/// The slots of one source in groups, its targets taking turns, so that none gets all at once. `keys`: how many a slot has.
pub(super) fn groups(
    moves: &[&SlotMove],
    limits: &ReshardLimits,
    keys: impl Fn(Slot) -> u64,
) -> VecDeque<SlotGroup> {
    let most_slots = (limits.open_slots / WORKERS).max(1);
    let most_keys = limits.keys_in_open_slots() / WORKERS as u64;
    let mut by_target: Vec<VecDeque<SlotGroup>> = moves
        .iter()
        .map(|one| split(one, most_slots, most_keys, &keys))
        .collect();
    let mut all = VecDeque::new();
    while by_target.iter().any(|groups| !groups.is_empty()) {
        all.extend(by_target.iter_mut().filter_map(VecDeque::pop_front));
    }
    all
}

fn split(
    one: &SlotMove,
    most_slots: usize,
    most_keys: u64,
    keys: impl Fn(Slot) -> u64,
) -> VecDeque<SlotGroup> {
    let mut groups: VecDeque<SlotGroup> = VecDeque::new();
    let mut held = 0;
    for slot in one.slots.iter() {
        let more = keys(slot);
        match groups.back_mut() {
            Some(last) if last.slots.len() < most_slots && held + more <= most_keys => {
                last.slots.push(slot);
                held += more;
            }
            _ => {
                groups.push_back(SlotGroup {
                    target: one.target,
                    slots: vec![slot],
                });
                held = more;
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::cluster::slots::SlotRange;
    use std::num::NonZeroU64;

    fn one(target: u8, start: u16, end: u16) -> SlotMove {
        let slot = |number| Slot::new(number).unwrap();
        SlotMove {
            source: NodeId::from_bytes([0; 20]),
            target: NodeId::from_bytes([target; 20]),
            slots: SlotRange::new(slot(start), slot(end)).unwrap().into(),
        }
    }

    #[test]
    fn targets_take_turns_and_bounds_are_kept() {
        let (a, b) = (one(1, 0, 99), one(2, 100, 139));
        let limits = ReshardLimits::default();
        let found = groups(&[&a, &b], &limits, |_| 10);
        let turns: Vec<(NodeId, usize)> = found
            .iter()
            .map(|group| (group.target, group.slots.len()))
            .collect();
        let expected = [
            (a.target, 21),
            (b.target, 21),
            (a.target, 21),
            (b.target, 19),
            (a.target, 21),
            (a.target, 21),
            (a.target, 16),
        ];
        assert_eq!(turns, expected);
        // Large slots are opened one by one, and slots are never left out.
        let found = groups(&[&a], &limits, |_| 1_000_000);
        assert!(found.len() == 100 && found.iter().all(|group| group.slots.len() == 1));
        let slow = ReshardLimits {
            keys_per_second: NonZeroU64::new(400),
            ..limits
        };
        assert_eq!(groups(&[&a], &slow, |_| 10)[0].slots.len(), 6);
    }
}
