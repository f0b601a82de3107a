//! What the target should hold after the load, slot by slot, and whether it does. Pure.

use common::{
    cluster::slots::{SLOT_COUNT, Slot, SlotSet},
    storage::{ShardIndex, SlotCount},
};

/// Slots named in a status at most.
const NAMED_SLOTS: usize = 100;
/// How much the clocks of the target's nodes may differ from ours, in milliseconds.
const CLOCK_TOLERANCE_MS: i64 = 5_000;

/// What the slots of the target should hold; absent for slots without keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    slots: Vec<Option<SlotCount>>,
}

/// How the counts compare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Keys of the backup.
    pub expected: u64,
    /// Keys found.
    pub actual: u64,
    /// Keys of the backup that are gone because they have expired.
    pub expired: u64,
    /// Slots that hold more or fewer keys than they should.
    pub mismatched: Vec<Slot>,
}

impl Expectation {
    /// What the shards hold in the slots they own: keys of other slots are leftovers that no restore writes. `None` if one
    /// shard's keys were not counted.
    pub fn of<'a>(shards: impl IntoIterator<Item = (&'a ShardIndex, &'a SlotSet)>) -> Option<Self> {
        let mut slots = vec![None; usize::from(SLOT_COUNT)];
        for (index, owned) in shards {
            for count in index.slots.as_ref()? {
                if let Some(place) = slots.get_mut(count.slot.index())
                    && owned.contains(count.slot)
                {
                    *place = Some(*count);
                }
            }
        }
        Some(Self { slots })
    }

    /// Keys of the backup.
    pub fn keys(&self) -> u64 {
        self.slots.iter().flatten().map(|count| count.keys).sum()
    }

    /// Compares with what was counted in the target. `now_ms` is the time after the counting, in milliseconds since 1970.
    ///
    /// A slot has exactly its keys while none of them can have expired, and at least those that never expire after that.
    pub fn compare(&self, counted: &[(Slot, u64)], now_ms: i64) -> Comparison {
        let mut actual = vec![0; usize::from(SLOT_COUNT)];
        for (slot, keys) in counted {
            if let Some(place) = actual.get_mut(slot.index()) {
                *place += keys;
            }
        }
        let mut result = Comparison::default();
        for (slot, (wanted, actual)) in Slot::all().zip(self.slots.iter().zip(actual)) {
            let (least, most) = wanted.map_or((0, 0), |count| bounds(&count, now_ms));
            result.expected += most;
            result.actual += actual;
            if (least..=most).contains(&actual) {
                result.expired += most - actual;
            } else {
                result.mismatched.push(slot);
            }
        }
        result
    }
}

/// Fewest and most keys that a slot may hold now.
fn bounds(count: &SlotCount, now_ms: i64) -> (u64, u64) {
    let may_have_expired = count
        .first_expiry_ms
        .is_some_and(|first| first <= now_ms.saturating_add(CLOCK_TOLERANCE_MS));
    let gone = if may_have_expired { count.expires } else { 0 };
    (count.keys.saturating_sub(gone), count.keys)
}

impl Comparison {
    /// Whether every slot holds what it should.
    pub fn fits(&self) -> bool {
        self.mismatched.is_empty()
    }

    /// The slots that do not fit, as many as a status names.
    pub fn named_slots(&self) -> Vec<i32> {
        let named = self.mismatched.iter().take(NAMED_SLOTS);
        named.map(|slot| i32::from(slot.get())).collect()
    }

    /// A sentence.
    pub fn sentence(&self) -> String {
        let Self {
            expected,
            actual,
            expired,
            mismatched,
        } = self;
        if mismatched.is_empty() {
            return format!(
                "{actual} keys counted slot by slot: {expected} of the backup less {expired} that have expired since"
            );
        }
        let slots: SlotSet = mismatched.iter().take(NAMED_SLOTS).copied().collect();
        format!(
            "{actual} keys counted where the backup has {expected}: {} slots hold more or fewer keys than they should ({slots}). Were keys written or deleted by clients during the restore, or did a primary fail over?",
            mismatched.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slot(number: u16) -> Slot {
        Slot::new(number).unwrap()
    }

    fn expectation(counts: &[SlotCount]) -> Expectation {
        let mut slots = vec![None; usize::from(SLOT_COUNT)];
        for count in counts {
            slots[count.slot.index()] = Some(*count);
        }
        Expectation { slots }
    }

    fn count(number: u16, keys: u64, expires: u64, first_expiry_ms: Option<i64>) -> SlotCount {
        SlotCount {
            slot: slot(number),
            keys,
            expires,
            first_expiry_ms,
        }
    }

    #[test]
    fn without_expiries_every_slot_is_exact() {
        let wanted = expectation(&[count(0, 3, 0, None), count(16383, 1, 0, None)]);
        assert_eq!(wanted.keys(), 4);
        let right = wanted.compare(&[(slot(0), 3), (slot(16383), 1)], 0);
        assert!(right.fits());
        assert_eq!((right.expected, right.actual, right.expired), (4, 4, 0));
        for wrong in [vec![(slot(0), 3)], vec![(slot(0), 4), (slot(16383), 1)]] {
            assert!(!wanted.compare(&wrong, 0).fits());
        }
        let foreign = [(slot(0), 3), (slot(16383), 1), (slot(5), 1)];
        assert_eq!(wanted.compare(&foreign, 0).mismatched, [slot(5)]);
    }

    #[test]
    fn expiries_count_only_once_they_can_have_passed() {
        let wanted = expectation(&[count(7, 10, 4, Some(1_000_000))]);
        let of = |keys, now| wanted.compare(&[(slot(7), keys)], now);
        assert!(of(10, 0).fits());
        assert!(!of(9, 0).fits());
        assert_eq!(of(6, 1_000_000).expired, 4);
        assert!(of(6, 1_000_000).fits() && of(10, 1_000_000).fits());
        assert!(!of(5, 1_000_000).fits() && !of(11, 1_000_000).fits());
    }

    #[test]
    fn a_mismatch_names_slots() {
        let wanted = expectation(&[]);
        let counted: Vec<_> = (0..200).map(|number| (slot(number), 1)).collect();
        let result = wanted.compare(&counted, 0);
        assert_eq!(result.named_slots().len(), 100);
        assert!(
            result.sentence().contains("200 slots"),
            "{}",
            result.sentence()
        );
        assert!(result.sentence().contains("0-99"), "{}", result.sentence());
    }

    proptest! {
        /// Whatever subset of the expiring keys is gone, a faithful restore fits; one key too few or too many does not.
        #[test]
        fn only_faithful_restores_fit(
            slots in prop::collection::btree_map(0_u16..SLOT_COUNT, (1_u64..50, 0_u64..50, any::<bool>(), 0_u64..50), 1..40),
            pick in any::<prop::sample::Index>(),
        ) {
            let now = 1_000_000_000;
            let mut counts = Vec::new();
            let mut counted = Vec::new();
            for (number, (keys, expires, past, gone)) in slots {
                let expires = expires.min(keys);
                let first = (expires > 0).then_some(if past { now - 1 } else { now + 60_000 });
                counts.push(count(number, keys, expires, first));
                let gone = if past { gone.min(expires) } else { 0 };
                counted.push((slot(number), keys - gone));
            }
            let wanted = expectation(&counts);
            let result = wanted.compare(&counted, now);
            prop_assert!(result.fits());
            prop_assert_eq!(result.expected, result.actual + result.expired);
            let at = pick.index(counted.len());
            let most = counts[at].keys;
            counted[at].1 = most + 1;
            prop_assert_eq!(wanted.compare(&counted, now).mismatched, vec![counted[at].0]);
            let (least, _) = bounds(&counts[at], now);
            if least > 0 {
                counted[at].1 = least - 1;
                prop_assert_eq!(wanted.compare(&counted, now).mismatched, vec![counted[at].0]);
            }
        }
    }
}
