//! Keys and expiries per slot.

use crate::cluster::slots::{SLOT_COUNT, Slot};

/// What is known of one slot's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotTally {
    /// Number of keys.
    pub keys: u64,
    /// Number of those that expire.
    pub expires: u64,
    /// The earliest expiry in milliseconds since the Unix epoch.
    pub first_expiry_ms: Option<i64>,
}

impl SlotTally {
    fn add(&mut self, other: Self) {
        self.keys = self.keys.saturating_add(other.keys);
        self.expires = self.expires.saturating_add(other.expires);
        self.first_expiry_ms = match (self.first_expiry_ms, other.first_expiry_ms) {
            (Some(mine), Some(theirs)) => Some(mine.min(theirs)),
            (mine, theirs) => mine.or(theirs),
        };
    }
}

/// Counts of all slots: a fixed table, whatever the number of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotCounts {
    slots: Box<[SlotTally]>,
}

impl Default for SlotCounts {
    fn default() -> Self {
        Self::new()
    }
}

impl SlotCounts {
    /// No keys.
    pub fn new() -> Self {
        Self {
            slots: vec![SlotTally::default(); usize::from(SLOT_COUNT)].into_boxed_slice(),
        }
    }

    /// Counts a key; the slot it belongs to.
    pub fn add(&mut self, key: &[u8], expire_ms: Option<i64>) -> Slot {
        let slot = Slot::of_key(key);
        self.add_count(
            slot,
            SlotTally {
                keys: 1,
                expires: u64::from(expire_ms.is_some()),
                first_expiry_ms: expire_ms,
            },
        );
        slot
    }

    /// Adds what was counted of a slot elsewhere.
    pub fn add_count(&mut self, slot: Slot, count: SlotTally) {
        if let Some(mine) = self.slots.get_mut(slot.index()) {
            mine.add(count);
        }
    }

    /// Adds the counts of another part of the cluster.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.slots.iter_mut().zip(other.slots.iter()) {
            mine.add(*theirs);
        }
    }

    /// One slot.
    pub fn get(&self, slot: Slot) -> SlotTally {
        self.slots.get(slot.index()).copied().unwrap_or_default()
    }

    /// The slots that hold keys, in ascending order.
    pub fn occupied(&self) -> impl Iterator<Item = (Slot, SlotTally)> + '_ {
        Slot::all()
            .zip(self.slots.iter().copied())
            .filter(|(_, count)| count.keys > 0)
    }

    /// All slots together.
    pub fn total(&self) -> SlotTally {
        self.slots
            .iter()
            .fold(SlotTally::default(), |mut total, count| {
                total.add(*count);
                total
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_counted_where_they_belong_and_parts_add_up() {
        let mut one = SlotCounts::new();
        assert_eq!(one.add(b"foo", None).get(), 12182);
        one.add(b"{foo}x", Some(2000));
        let mut two = SlotCounts::new();
        two.add(b"foo", Some(1000));
        two.add(b"bar", None);
        one.merge(&two);
        assert_eq!(
            one.occupied()
                .map(|(slot, count)| (slot.get(), count))
                .collect::<Vec<_>>(),
            [
                (
                    5061,
                    SlotTally {
                        keys: 1,
                        expires: 0,
                        first_expiry_ms: None
                    }
                ),
                (
                    12182,
                    SlotTally {
                        keys: 3,
                        expires: 2,
                        first_expiry_ms: Some(1000)
                    }
                ),
            ]
        );
        assert_eq!(
            one.total(),
            SlotTally {
                keys: 4,
                expires: 2,
                first_expiry_ms: Some(1000)
            }
        );
        assert_eq!(one.get(Slot::MIN), SlotTally::default());
    }
}
