//! Keys and expiries per slot.

use crate::cluster::slots::Slot;

/// What is known of one slot's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotCount {
    /// Number of keys.
    pub keys: u64,
    /// Number of those that expire.
    pub expires: u64,
    /// The earliest expiry in milliseconds since the Unix epoch.
    pub first_expiry_ms: Option<i64>,
}

/// Counts of all slots: a fixed table, whatever the number of keys.
#[derive(Clone, PartialEq, Eq)]
pub struct SlotCounts {
    slots: Box<[SlotCount]>,
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
            slots: vec![SlotCount::default(); usize::from(crate::cluster::slots::SLOT_COUNT)]
                .into_boxed_slice(),
        }
    }

    /// Counts a key.
    pub fn add(&mut self, _key: &[u8], _expire_ms: Option<i64>) -> Slot {
        todo!()
    }

    /// Adds the counts of another part of the cluster.
    pub fn merge(&mut self, _other: &Self) {
        todo!()
    }

    /// One slot.
    pub fn get(&self, slot: Slot) -> SlotCount {
        self.slots.get(slot.index()).copied().unwrap_or_default()
    }

    /// The slots that hold keys, in ascending order.
    pub fn occupied(&self) -> impl Iterator<Item = (Slot, SlotCount)> + '_ {
        Slot::all()
            .zip(self.slots.iter().copied())
            .filter(|(_, count)| count.keys > 0)
    }

    /// All slots together.
    pub fn total(&self) -> SlotCount {
        todo!()
    }
}
