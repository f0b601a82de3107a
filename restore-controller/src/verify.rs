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

    /// The slots that hold fewer keys than the backup, by no more than what may have expired at `now_ms`, the time after the
    /// counting in milliseconds since 1970. How many keys of them have expired is to be counted.
    pub fn doubtful(&self, counted: &[(Slot, u64)], now_ms: i64) -> SlotSet {
        let actual = by_slot(counted);
        let slots = Slot::all().zip(self.slots.iter().zip(actual));
        let doubtful = slots.filter(|(_, (wanted, actual))| {
            wanted.is_some_and(|count| {
                let first = count.first_expiry_ms;
                let begun = first.is_some_and(|first| first <= latest(now_ms));
                begun && *actual < count.keys
            })
        });
        doubtful.map(|(slot, _)| slot).collect()
    }

    /// Compares with what was counted in the target: a slot holds all its keys, but for as many as may have expired.
    pub fn compare(&self, counted: &[(Slot, u64)], expired: &Expired) -> Comparison {
        let mut result = Comparison::default();
        let actual = by_slot(counted);
        let slots = self.slots.iter().zip(actual).zip(&expired.slots);
        for (slot, ((wanted, actual), expired)) in Slot::all().zip(slots) {
            let most = wanted.map_or(0, |count| count.keys);
            let least = most.saturating_sub(*expired);
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

/// How many keys of each slot may have expired by a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    by_ms: i64,
    slots: Vec<u64>,
}

impl Expired {
    /// None are counted yet. `now_ms` is the time after the counting in the target.
    pub fn by(now_ms: i64) -> Self {
        Self {
            by_ms: latest(now_ms),
            slots: vec![0; usize::from(SLOT_COUNT)],
        }
    }

    /// Takes a key of the backup into account if its slot is among `wanted`.
    pub fn count(&mut self, key: &[u8], expire_ms: Option<i64>, wanted: &SlotSet) {
        if expire_ms.is_none_or(|at| at > self.by_ms) {
            return;
        }
        let slot = Slot::of_key(key);
        if wanted.contains(slot)
            && let Some(place) = self.slots.get_mut(slot.index())
        {
            *place += 1;
        }
    }
}

/// A key that expires by then may be gone.
fn latest(now_ms: i64) -> i64 {
    now_ms.saturating_add(CLOCK_TOLERANCE_MS)
}

fn by_slot(counted: &[(Slot, u64)]) -> Vec<u64> {
    let mut slots = vec![0; usize::from(SLOT_COUNT)];
    for (slot, keys) in counted {
        if let Some(place) = slots.get_mut(slot.index()) {
            *place += keys;
        }
    }
    slots
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

    /// Compares when so many keys of slot 7 have expired.
    fn compared(wanted: &Expectation, counted: &[(Slot, u64)], expired: u64) -> Comparison {
        let mut known = Expired::by(0);
        known.slots[7] = expired;
        wanted.compare(counted, &known)
    }

    #[test]
    fn without_expiries_every_slot_is_exact() {
        let wanted = expectation(&[count(0, 3, 0, None), count(16383, 1, 0, None)]);
        assert_eq!(wanted.keys(), 4);
        let right = compared(&wanted, &[(slot(0), 3), (slot(16383), 1)], 0);
        assert!(right.fits());
        assert_eq!((right.expected, right.actual, right.expired), (4, 4, 0));
        for wrong in [vec![(slot(0), 3)], vec![(slot(0), 4), (slot(16383), 1)]] {
            assert!(!compared(&wanted, &wrong, 0).fits());
            assert!(wanted.doubtful(&wrong, i64::MAX).is_empty());
        }
        let foreign = [(slot(0), 3), (slot(16383), 1), (slot(5), 1)];
        assert_eq!(compared(&wanted, &foreign, 0).mismatched, [slot(5)]);
    }

    #[test]
    fn only_keys_that_have_expired_may_be_missing() {
        let wanted = expectation(&[count(7, 10, 4, Some(1_000_000))]);
        let doubtful = |keys, now| wanted.doubtful(&[(slot(7), keys)], now);
        assert!(doubtful(9, 0).is_empty(), "none can have expired yet");
        assert!(doubtful(10, 1_000_000).is_empty(), "none is missing");
        assert!(doubtful(9, 1_000_000).contains(slot(7)));
        // One of the four that expire has done so: a second one that is missing is lost.
        let of = |keys| compared(&wanted, &[(slot(7), keys)], 1);
        assert!(of(10).fits() && of(9).fits());
        assert_eq!(of(9).expired, 1);
        assert!(!of(8).fits() && !of(11).fits());
    }

    #[test]
    fn expired_keys_are_counted_in_the_slots_that_are_wanted() {
        let now = 1_000_000;
        let mut expired = Expired::by(now);
        let key = b"a key";
        let mine: SlotSet = [Slot::of_key(key)].into_iter().collect();
        expired.count(key, None, &mine);
        expired.count(key, Some(now + 2 * CLOCK_TOLERANCE_MS), &mine);
        expired.count(key, Some(now), &SlotSet::new());
        assert_eq!(expired, Expired::by(now));
        expired.count(key, Some(now), &mine);
        assert_eq!(expired.slots[Slot::of_key(key).index()], 1);
    }

    #[test]
    fn a_mismatch_names_slots() {
        let wanted = expectation(&[]);
        let counted: Vec<_> = (0..200).map(|number| (slot(number), 1)).collect();
        let result = compared(&wanted, &counted, 0);
        assert_eq!(result.named_slots().len(), 100);
        assert!(
            result.sentence().contains("200 slots"),
            "{}",
            result.sentence()
        );
        assert!(result.sentence().contains("0-99"), "{}", result.sentence());
    }

    proptest! {
        /// Whatever subset of the expired keys is gone, a faithful restore fits; one key too few or too many does not.
        #[test]
        fn only_faithful_restores_fit(
            slots in prop::collection::btree_map(0_u16..SLOT_COUNT, (1_u64..50, 0_u64..50, 0_u64..50, 0_u64..50), 1..40),
            pick in any::<prop::sample::Index>(),
        ) {
            let mut counts = Vec::new();
            let mut counted = Vec::new();
            let mut expired = Expired::by(0);
            for (number, (keys, expires, past, gone)) in slots {
                let expires = expires.min(keys);
                let past = past.min(expires);
                counts.push(count(number, keys, expires, (expires > 0).then_some(1)));
                expired.slots[usize::from(number)] = past;
                counted.push((slot(number), keys - gone.min(past)));
            }
            let wanted = expectation(&counts);
            let result = wanted.compare(&counted, &expired);
            prop_assert!(result.fits());
            prop_assert_eq!(result.expected, result.actual + result.expired);
            let at = pick.index(counted.len());
            let most = counts[at].keys;
            counted[at].1 = most + 1;
            prop_assert_eq!(wanted.compare(&counted, &expired).mismatched, vec![counted[at].0]);
            let least = most - expired.slots[counts[at].slot.index()];
            if least > 0 {
                counted[at].1 = least - 1;
                prop_assert_eq!(wanted.compare(&counted, &expired).mismatched, vec![counted[at].0]);
            }
        }
    }
}
