//! Which slots go from which shard to which: the fewest that make the shards equal. Pure.

use common::cluster::{
    slots::{Slot, SlotRange, SlotSet},
    topology::NodeId,
};
use std::cmp::Reverse;

/// A shard, as its primary describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardLoad {
    /// Id of its primary.
    pub primary: NodeId,
    /// The slots that the primary serves; none for a new shard.
    pub slots: SlotSet,
    /// Whether the shard is to stay. One that leaves ends without slots.
    pub stays: bool,
}

/// Slots that go from one primary to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotMove {
    /// The primary that serves the slots now.
    pub source: NodeId,
    /// The primary that is to serve them.
    pub target: NodeId,
    /// The slots, at least one.
    pub slots: SlotSet,
}

/// The moves after which every shard that stays has as many slots as any other, or one more, and the others have none. Empty at that goal,
/// and without a shard that stays.
///
/// No set of moves with fewer slots does it: what is above its share moves once, from its own primary to a shard that is below, and never
/// through a third one. A shard keeps what it has: the remainder of the division goes to those that have most. The same shards give the same
/// moves, in any order; each is worth as much alone, so that it does not matter where an earlier plan was interrupted.
pub fn moves(shards: &[ShardLoad]) -> Vec<SlotMove> {
    let mut balances = balances(shards);
    balances.sort_by_key(|one| (one.slots.iter().next(), one.primary));
    let (mut surplus, deficit): (Vec<Balance>, Vec<Balance>) = balances
        .into_iter()
        .filter(|one| one.slots.len() != one.goal)
        .partition(|one| one.slots.len() > one.goal);
    let mut sources = surplus.iter_mut().peekable();
    let mut moves = Vec::new();
    for mut target in deficit {
        while target.slots.len() < target.goal
            && let Some(source) = sources.peek_mut()
        {
            let missing = target.goal - target.slots.len();
            let spare = source.slots.len().saturating_sub(source.goal);
            let slots = take(&mut source.slots, &target.slots, missing.min(spare));
            if slots.is_empty() {
                sources.next();
                continue;
            }
            target.slots = target.slots.union(&slots);
            moves.push(SlotMove {
                source: source.primary,
                target: target.primary,
                slots,
            });
        }
    }
    moves
}

/// How many slots are not where they are to be: what [`moves`] moves.
pub fn misplaced(shards: &[ShardLoad]) -> usize {
    let balances = balances(shards);
    balances
        .iter()
        .map(|one| one.slots.len().saturating_sub(one.goal))
        .sum()
}

/// A shard and the number of slots it is to have.
struct Balance {
    primary: NodeId,
    slots: SlotSet,
    goal: usize,
}

fn balances(shards: &[ShardLoad]) -> Vec<Balance> {
    let mut order: Vec<&ShardLoad> = shards.iter().collect();
    order.sort_by_key(|one| (!one.stays, Reverse(one.slots.len()), one.primary));
    let staying = order.iter().filter(|one| one.stays).count();
    if staying == 0 {
        return Vec::new();
    }
    let all: usize = order.iter().map(|one| one.slots.len()).sum();
    let (each, remainder) = (all / staying, all % staying);
    order
        .into_iter()
        .enumerate()
        .map(|(rank, one)| Balance {
            primary: one.primary,
            slots: one.slots.clone(),
            goal: if one.stays {
                each + usize::from(rank < remainder)
            } else {
                0
            },
        })
        .collect()
}

/// Takes `count` slots out of `source` for a shard that has those of `target`: first those that lie beside what it has, then the shortest
/// ranges, so that both sides have few ranges in the end.
fn take(source: &mut SlotSet, target: &SlotSet, count: usize) -> SlotSet {
    let mut taken = SlotSet::new();
    while taken.len() < count && !source.is_empty() {
        let left = count - taken.len();
        let mut found = beside(source, &target.union(&taken), left);
        if found.is_empty() {
            found = shortest(source, left);
        }
        *source = source.difference(&found);
        taken = taken.union(&found);
    }
    taken
}

/// At most `count` slots of `source` that continue a range of `border`.
fn beside(source: &SlotSet, border: &SlotSet, count: usize) -> SlotSet {
    let mut found = Vec::new();
    let mut left = count;
    for range in source.ranges() {
        let part = if follows(border, range) {
            first(range, left)
        } else if precedes(border, range) {
            last(range, left)
        } else {
            continue;
        };
        left = left.saturating_sub(part.len());
        found.extend(part);
        if left == 0 {
            break;
        }
    }
    found.into_iter().collect()
}

fn shortest(source: &SlotSet, count: usize) -> SlotSet {
    let ranges = source.ranges();
    let range = ranges.into_iter().min_by_key(|range| range.len());
    range.map_or_else(SlotSet::new, |range| {
        last(range, count).into_iter().collect()
    })
}

fn follows(border: &SlotSet, range: SlotRange) -> bool {
    let before = range.start().get().checked_sub(1);
    before.is_some_and(|number| contains(border, number))
}

fn precedes(border: &SlotSet, range: SlotRange) -> bool {
    contains(border, range.end().get() + 1)
}

fn contains(set: &SlotSet, number: u16) -> bool {
    Slot::new(number).is_ok_and(|slot| set.contains(slot))
}

fn first(range: SlotRange, count: usize) -> Vec<Slot> {
    range.slots().take(count).collect()
}

fn last(range: SlotRange, count: usize) -> Vec<Slot> {
    let length = usize::from(range.len());
    range.slots().skip(length.saturating_sub(count)).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use common::cluster::slots::SLOT_COUNT;
    use proptest::prelude::*;

    fn id(number: u8) -> NodeId {
        // The order of ids is not that of the shards.
        NodeId::from_bytes([number.wrapping_mul(151); 20])
    }

    pub(in crate::redis::reshard) fn range(start: u16, end: u16) -> SlotSet {
        SlotRange::new(Slot::new(start).unwrap(), Slot::new(end).unwrap())
            .unwrap()
            .into()
    }

    pub(in crate::redis::reshard) fn shard(number: u8, slots: SlotSet, stays: bool) -> ShardLoad {
        ShardLoad {
            primary: id(number),
            slots,
            stays,
        }
    }

    pub(in crate::redis::reshard) fn apply(
        shards: &[ShardLoad],
        moves: &[SlotMove],
    ) -> Vec<ShardLoad> {
        let mut shards = shards.to_vec();
        for one in moves {
            assert_ne!(one.source, one.target);
            let find = |id| shards.iter().position(|shard| shard.primary == id).unwrap();
            let (source, target) = (find(one.source), find(one.target));
            assert!(
                one.slots.difference(&shards[source].slots).is_empty(),
                "a slot is taken from a shard that does not have it"
            );
            shards[source].slots = shards[source].slots.difference(&one.slots);
            shards[target].slots = shards[target].slots.union(&one.slots);
        }
        shards
    }

    pub(in crate::redis::reshard) fn covered_once(shards: &[ShardLoad]) -> bool {
        let all: usize = shards.iter().map(|one| one.slots.len()).sum();
        let union = shards
            .iter()
            .fold(SlotSet::new(), |union, one| union.union(&one.slots));
        union.is_full() && all == usize::from(SLOT_COUNT)
    }

    #[test]
    fn a_fourth_shard_gets_a_quarter_from_the_three() {
        let shards = [
            shard(1, range(0, 5460), true),
            shard(2, range(5461, 10922), true),
            shard(3, range(10923, 16383), true),
            shard(4, SlotSet::new(), true),
        ];
        let found = moves(&shards);
        let total: usize = found.iter().map(|one| one.slots.len()).sum();
        assert_eq!((found.len(), total), (3, 4096));
        assert!(found.iter().all(|one| one.slots.ranges().len() == 1));
        let after = apply(&shards, &found);
        assert!(after.iter().all(|one| one.slots.len() == 4096));
        assert!(after[..3].iter().all(|one| one.slots.ranges().len() == 1));
        assert_eq!(moves(&after), []);
    }

    #[test]
    fn a_shard_that_leaves_ends_empty_and_the_neighbour_grows() {
        let shards = [
            shard(1, range(0, 4095), true),
            shard(2, range(4096, 8191), true),
            shard(3, range(8192, 12287), true),
            shard(4, range(12288, 16383), false),
        ];
        let found = moves(&shards);
        assert_eq!(found.len(), 3);
        let after = apply(&shards, &found);
        let lengths: Vec<usize> = after.iter().map(|one| one.slots.len()).collect();
        assert_eq!(lengths.iter().sum::<usize>(), 16384);
        assert_eq!(lengths[3], 0);
        assert!(
            lengths[..3]
                .iter()
                .all(|length| (5461..=5462).contains(length))
        );
        assert_eq!(after[2].slots.ranges().len(), 1, "{:?}", after[2].slots);
    }

    #[test]
    fn uneven_shards_within_one_slot_are_left_alone() {
        let shards = [
            shard(1, range(0, 5460), true),
            shard(2, range(5461, 10922), true),
            shard(3, range(10923, 16383), true),
            shard(4, SlotSet::new(), false),
        ];
        assert_eq!(moves(&shards), []);
        assert_eq!(moves(&[shard(1, SlotSet::full(), false)]), []);
    }

    /// Shards as any history could have left them: cut at any places, handed out in any order.
    pub(in crate::redis::reshard) fn any_shards() -> impl Strategy<Value = Vec<ShardLoad>> {
        (
            1..9_u8,
            prop::collection::vec((0..9_u8, 1..SLOT_COUNT), 0..40),
            prop::collection::vec(any::<bool>(), 9),
        )
            .prop_map(|(count, mut cuts, stays)| {
                cuts.sort_by_key(|(_, at)| *at);
                cuts.dedup_by_key(|(_, at)| *at);
                let mut slots = vec![SlotSet::new(); usize::from(count)];
                let mut start = 0;
                for (owner, end) in cuts.iter().copied().chain([(0, SLOT_COUNT)]) {
                    let owner = usize::from(owner % count);
                    slots[owner] = slots[owner].union(&range(start, end - 1));
                    start = end;
                }
                let shards = slots.into_iter().zip(stays).zip(0..);
                shards
                    .map(|((slots, stays), number)| shard(number, slots, stays || number == 0))
                    .collect()
            })
    }

    proptest! {
        #[test]
        fn moves_reach_the_goal_with_the_fewest_slots(shards in any_shards()) {
            let found = moves(&shards);
            let after = apply(&shards, &found);
            prop_assert!(covered_once(&after));
            let staying: Vec<usize> = after.iter().filter(|one| one.stays).map(|one| one.slots.len()).collect();
            let (least, most) = (staying.iter().min().unwrap(), staying.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{staying:?}");
            prop_assert!(after.iter().all(|one| one.stays || one.slots.is_empty()));
            // Whatever the goals of the single shards are, a leaving one gives all, and a staying one at least what exceeds the larger goal;
            // a staying one is given at least what it lacks of the smaller goal.
            let moved: usize = found.iter().map(|one| one.slots.len()).sum();
            let larger = usize::from(SLOT_COUNT).div_ceil(staying.len());
            let smaller = usize::from(SLOT_COUNT) / staying.len();
            let gives: usize = shards.iter().map(|one| if one.stays { one.slots.len().saturating_sub(larger) } else { one.slots.len() }).sum();
            let lacks: usize = shards.iter().filter(|one| one.stays).map(|one| smaller.saturating_sub(one.slots.len())).sum();
            prop_assert_eq!(moved, gives.max(lacks));
            prop_assert_eq!(moved, misplaced(&shards));
            prop_assert_eq!(moves(&after), []);
            // No node is both: nothing goes through a third one.
            prop_assert!(found.iter().all(|one| found.iter().all(|other| one.source != other.target)));
            let pairs: std::collections::BTreeSet<_> = found.iter().map(|one| (one.source, one.target)).collect();
            prop_assert_eq!(pairs.len(), found.len(), "a pair occurs twice");
        }

        #[test]
        fn an_interrupted_plan_is_continued(shards in any_shards(), done in 0..20_usize, cut in 0..5000_usize) {
            let mut part: Vec<SlotMove> = moves(&shards).into_iter().take(done + 1).collect();
            if let Some(last) = part.last_mut() {
                last.slots = last.slots.iter().take(cut).collect();
            }
            let moved: usize = part.iter().map(|one| one.slots.len()).sum();
            let between = apply(&shards, &part);
            prop_assert_eq!(misplaced(&between), misplaced(&shards) - moved, "the measure falls by what was moved");
            let after = apply(&between, &moves(&between));
            prop_assert_eq!(misplaced(&after), 0);
        }

        #[test]
        fn the_order_of_the_shards_does_not_matter(shards in any_shards()) {
            let mut turned = shards.clone();
            turned.reverse();
            prop_assert_eq!(moves(&turned), moves(&shards));
        }
    }
}
