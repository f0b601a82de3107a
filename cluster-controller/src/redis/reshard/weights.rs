//! Which slots move, where the number of slots alone would leave one shard with far more data than another. Pure.
//!
//! How many slots go from where to where is decided before (`moves`), and stays as it is: weights only exchange slots for others, so
//! nothing moves more than without them. And data alone never makes a slot move.

use super::moves::{ShardLoad, SlotMove};
use common::cluster::{
    slots::{Slot, SlotSet},
    topology::NodeId,
};
use std::collections::BTreeMap;

/// Shards whose data differ by less, in per cent of the average, are left as they are: so much is chance, and each exchange costs ranges.
const TOLERANCE: u64 = 5;
/// Bytes of an average shard below which it does not matter where they are.
const LEAST: u64 = 1 << 20;
/// Most exchanges: each makes a few ranges more, which every node stores and sends.
const EXCHANGES: usize = 256;
/// Shards that the heaviest and the lightest one are compared with.
const PAIRS: usize = 32;

/// What the data of each slot weigh, in bytes of memory. A slot that is missing weighs nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotWeights(BTreeMap<Slot, u64>);

impl SlotWeights {
    /// The weight of a slot.
    pub fn of(&self, slot: Slot) -> u64 {
        self.0.get(&slot).copied().unwrap_or_default()
    }

    /// The weight of some slots together.
    pub fn sum(&self, slots: &SlotSet) -> u64 {
        slots
            .iter()
            .fold(0, |sum, slot| self.of(slot).saturating_add(sum))
    }
}

impl FromIterator<(Slot, u64)> for SlotWeights {
    fn from_iter<T: IntoIterator<Item = (Slot, u64)>>(weights: T) -> Self {
        Self(weights.into_iter().collect())
    }
}

/// The same moves with other slots, so that afterwards the shards that stay differ less in their data. Between each two shards as many slots
/// move as before. Without known weights, and where the shards differ little, the moves are returned as they are.
pub fn even_out(
    shards: &[ShardLoad],
    moves: Vec<SlotMove>,
    weights: &SlotWeights,
) -> Vec<SlotMove> {
    let mut ends = Ends::of(shards, &moves, weights);
    for _ in 0..EXCHANGES {
        if !ends.exchange_one() {
            break;
        }
    }
    let with_slots = moves.into_iter().map(|one| SlotMove {
        slots: ends.slots(one.source, one.target),
        ..one
    });
    with_slots.collect()
}

/// A slot of a shard that gives some away, and where it ends: at a target, or where it is.
#[derive(Clone, Copy)]
struct Placed {
    slot: Slot,
    weight: u64,
    source: NodeId,
    end: NodeId,
}

/// Where everything ends.
struct Ends {
    placed: Vec<Placed>,
    /// The data of each shard that stays, in the end.
    loads: BTreeMap<NodeId, u64>,
}

impl Ends {
    fn of(shards: &[ShardLoad], moves: &[SlotMove], weights: &SlotWeights) -> Self {
        let mut loads = BTreeMap::new();
        let mut placed = Vec::new();
        for shard in shards {
            let mut kept = shard.slots.clone();
            for one in moves.iter().filter(|one| one.source == shard.primary) {
                kept = kept.difference(&one.slots);
                placed.extend(one.slots.iter().map(|slot| (slot, one.source, one.target)));
            }
            if kept.len() < shard.slots.len() {
                placed.extend(kept.iter().map(|slot| (slot, shard.primary, shard.primary)));
            }
            if shard.stays {
                let received = moves.iter().filter(|one| one.target == shard.primary);
                let received = received.map(|one| weights.sum(&one.slots));
                loads.insert(shard.primary, weights.sum(&kept) + received.sum::<u64>());
            }
        }
        let placed = placed.into_iter().map(|(slot, source, end)| Placed {
            slot,
            weight: weights.of(slot),
            source,
            end,
        });
        let mut placed: Vec<Placed> = placed.collect();
        // The same slots give the same exchanges, whatever the order of the shards.
        placed.sort_unstable_by_key(|one| one.slot);
        Self { placed, loads }
    }

    /// Exchanges two slots of one source between the heaviest shard, or the lightest, and another one, so that these two differ less. Whether
    /// there were two.
    fn exchange_one(&mut self) -> bool {
        let mut order: Vec<(u64, NodeId)> =
            self.loads.iter().map(|(id, load)| (*load, *id)).collect();
        order.sort_unstable();
        let all: u64 = order.iter().map(|(load, _)| *load).sum();
        let average = all / (order.len() as u64).max(1);
        let (Some(lightest), Some(heaviest)) = (order.first().copied(), order.last().copied())
        else {
            return false;
        };
        let spread = heaviest.0 - lightest.0;
        if average < LEAST || spread.saturating_mul(100) <= average.saturating_mul(TOLERANCE) {
            return false;
        }
        let lighter = order.iter().take(PAIRS);
        let from_heaviest = lighter.map(|light| (heaviest, *light));
        let heavier = order.iter().rev().take(PAIRS);
        let to_lightest = heavier.map(|heavy| (*heavy, lightest));
        let mut pairs = from_heaviest.chain(to_lightest);
        let found = pairs.find_map(|((heavy_load, heavy), (light_load, light))| {
            let (given, taken) = self.best_exchange(heavy, light, heavy_load - light_load)?;
            Some((heavy, light, given, taken))
        });
        let Some((heavy, light, given, taken)) = found else {
            return false;
        };
        let mut less = 0;
        for (position, end) in [(given, light), (taken, heavy)] {
            if let Some(one) = self.placed.get_mut(position) {
                one.end = end;
                less = one.weight.abs_diff(less);
            }
        }
        if let Some(load) = self.loads.get_mut(&heavy) {
            *load -= less;
        }
        if let Some(load) = self.loads.get_mut(&light) {
            *load += less;
        }
        true
    }

    /// Positions of a slot that ends at `heavy` and of a lighter one of the same source that ends at `light`, whose difference is nearest to
    /// half of the gap between the two shards. None that would leave a gap as large.
    fn best_exchange(&self, heavy: NodeId, light: NodeId, gap: u64) -> Option<(usize, usize)> {
        let mut lighter: BTreeMap<NodeId, Vec<(u64, usize)>> = BTreeMap::new();
        for (position, one) in self.ending_at(light) {
            let of_source = lighter.entry(one.source).or_default();
            of_source.push((one.weight, position));
        }
        for slots in lighter.values_mut() {
            slots.sort_unstable();
        }
        let mut best: Option<(u64, usize, usize)> = None;
        for (given, one) in self.ending_at(heavy) {
            let Some(slots) = lighter.get(&one.source) else {
                continue;
            };
            let wanted = one.weight.saturating_sub(gap / 2);
            let after = slots.partition_point(|(weight, _)| *weight < wanted);
            let nearest = [after.checked_sub(1), Some(after)];
            for (weight, taken) in nearest.into_iter().flatten().filter_map(|at| slots.get(at)) {
                let less = one.weight.saturating_sub(*weight);
                let left = gap.abs_diff(less.saturating_mul(2));
                let is_better = best.is_none_or(|(least, ..)| left < least);
                if less > 0 && less < gap && is_better {
                    best = Some((left, given, *taken));
                }
            }
        }
        best.map(|(_, given, taken)| (given, taken))
    }

    fn ending_at(&self, end: NodeId) -> impl Iterator<Item = (usize, &Placed)> + '_ {
        let placed = self.placed.iter().enumerate();
        placed.filter(move |(_, one)| one.end == end)
    }

    fn slots(&self, source: NodeId, target: NodeId) -> SlotSet {
        let slots = self.placed.iter();
        let slots = slots.filter(|one| one.source == source && one.end == target);
        slots.map(|one| one.slot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::reshard::moves::{
        misplaced, moves,
        tests::{any_shards, apply, covered_once, range, shard},
    };
    use proptest::prelude::*;

    /// Largest and smallest data of the shards that stay.
    fn bounds(shards: &[ShardLoad], weights: &SlotWeights) -> (u64, u64) {
        let staying = shards.iter().filter(|one| one.stays);
        let loads: Vec<u64> = staying.map(|one| weights.sum(&one.slots)).collect();
        (*loads.iter().max().unwrap(), *loads.iter().min().unwrap())
    }

    fn three() -> [ShardLoad; 4] {
        [
            shard(1, range(0, 5460), true),
            shard(2, range(5461, 10922), true),
            shard(3, range(10923, 16383), true),
            shard(4, SlotSet::new(), true),
        ]
    }

    /// The slots that are nearest to a new shard's, and would move together, have all the data of large hash tags.
    #[test]
    fn a_new_shard_does_not_get_all_heavy_slots() {
        let shards = three();
        let plain = moves(&shards);
        let heavy = plain.iter().flat_map(|one| one.slots.iter().take(40));
        let heavy: SlotSet = heavy.collect();
        let all = SlotSet::full();
        let weights: SlotWeights = all
            .iter()
            .map(|slot| {
                (
                    slot,
                    if heavy.contains(slot) {
                        1_000_000
                    } else {
                        1_000
                    },
                )
            })
            .collect();
        let (most, least) = bounds(&apply(&shards, &plain), &weights);
        assert!(most > 10 * least, "{most} {least}");
        let found = even_out(&shards, plain.clone(), &weights);
        let after = apply(&shards, &found);
        let (most, least) = bounds(&after, &weights);
        assert!((most - least) * 100 <= most * TOLERANCE, "{most} {least}");
        let counts = |moves: &[SlotMove]| -> Vec<usize> {
            moves.iter().map(|one| one.slots.len()).collect()
        };
        assert_eq!(counts(&found), counts(&plain));
        assert_eq!(misplaced(&after), 0);
    }

    #[test]
    fn even_data_leave_the_ranges_whole() {
        let shards = three();
        let plain = moves(&shards);
        let weight = |each: u64| -> SlotWeights {
            let slots = SlotSet::full();
            slots.iter().map(|slot| (slot, each)).collect()
        };
        for weights in [SlotWeights::default(), weight(1), weight(10_000)] {
            assert_eq!(even_out(&shards, plain.clone(), &weights), plain);
        }
    }

    proptest! {
        #[test]
        fn weights_move_no_slot_more_and_even_out(
            shards in any_shards(),
            heavy in prop::collection::vec((0..16384_u16, 1..100_u64), 0..60),
        ) {
            let plain = moves(&shards);
            let mut weights: SlotWeights = SlotSet::full().iter().map(|slot| (slot, 2_000)).collect();
            for (slot, megabytes) in heavy {
                weights.0.insert(Slot::new(slot).unwrap(), megabytes << 20);
            }
            let found = even_out(&shards, plain.clone(), &weights);
            prop_assert_eq!(found.len(), plain.len());
            for (one, before) in found.iter().zip(&plain) {
                let pair = (one.source, one.target, one.slots.len());
                prop_assert_eq!(pair, (before.source, before.target, before.slots.len()));
            }
            let after = apply(&shards, &found);
            prop_assert!(covered_once(&after));
            prop_assert_eq!(misplaced(&after), 0);
            let (most, least) = bounds(&after, &weights);
            let (plain_most, plain_least) = bounds(&apply(&shards, &plain), &weights);
            prop_assert!(most <= plain_most && least >= plain_least, "{most} {least} instead of {plain_most} {plain_least}");
            let mut turned = shards.clone();
            turned.reverse();
            prop_assert_eq!(even_out(&turned, plain, &weights), found);
        }
    }
}
