//! What a node holds of the keys. Every slot has two, so that a move of it can be half done.

use common::cluster::slots::{Slot, SlotSet};
use std::{collections::BTreeMap, fmt};

/// Keys of each slot.
pub const KEYS: usize = 2;

/// The keys of each slot by the write that they come from: a later write has a higher number, and the first has 1.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Content {
    writes: [BTreeMap<u64, SlotSet>; KEYS],
}

impl Content {
    pub fn is_empty(&self) -> bool {
        self.writes.iter().all(BTreeMap::is_empty)
    }

    /// A key of each of these slots is written.
    pub fn write(&mut self, key: usize, slots: &SlotSet, number: u64) {
        if slots.is_empty() {
            return;
        }
        self.remove(key, slots);
        let written = self.writes[key].entry(number).or_default();
        *written = written.union(slots);
    }

    /// A key of each of these slots is removed.
    pub fn remove(&mut self, key: usize, slots: &SlotSet) {
        self.writes[key].retain(|_, held| {
            *held = held.difference(slots);
            !held.is_empty()
        });
    }

    /// All keys of these slots are removed.
    pub fn clear(&mut self, slots: &SlotSet) {
        (0..KEYS).for_each(|key| self.remove(key, slots));
    }

    /// Slots of which it has this key.
    pub fn slots(&self, key: usize) -> SlotSet {
        let mut all = self.writes[key].values();
        let first = all.next().cloned().unwrap_or_default();
        all.fold(first, |all, held| all.union(held))
    }

    /// Slots of which it has any key.
    pub fn any(&self) -> SlotSet {
        (1..KEYS).fold(self.slots(0), |all, key| all.union(&self.slots(key)))
    }

    /// The part in these slots.
    pub fn within(&self, slots: &SlotSet) -> Self {
        let mut part = self.clone();
        for held in part.writes.iter_mut().flat_map(BTreeMap::values_mut) {
            *held = held.intersection(slots);
        }
        part.writes
            .iter_mut()
            .for_each(|one| one.retain(|_, held| !held.is_empty()));
        part
    }

    /// Only this key.
    pub fn only(&self, key: usize) -> Self {
        let mut part = Self::default();
        part.writes[key].clone_from(&self.writes[key]);
        part
    }

    /// What another one does not have, or only from an earlier write.
    pub fn beyond(&self, other: &Self) -> Self {
        if self.is_empty() || self == other {
            return Self::default();
        }
        let mut rest = self.clone();
        for (key, writes) in rest.writes.iter_mut().enumerate() {
            writes.retain(|number, held| {
                for (_, theirs) in other.writes[key].range(number..) {
                    *held = held.difference(theirs);
                }
                !held.is_empty()
            });
        }
        rest
    }

    /// Adds what another one has beyond it.
    pub fn take_newer(&mut self, other: &Self) {
        self.put(&other.beyond(self));
    }

    /// Adds what another one has, in the place of what it has of the same keys.
    pub fn put(&mut self, other: &Self) {
        for (key, writes) in other.writes.iter().enumerate() {
            for (number, slots) in writes {
                self.write(key, slots, *number);
            }
        }
    }

    /// The last write.
    pub fn newest(&self) -> u64 {
        let numbers = self.writes.iter().filter_map(|one| one.keys().next_back());
        numbers.max().copied().unwrap_or_default()
    }

    /// The earliest of the writes that the keys of these slots come from; 0: one of them is missing.
    pub fn oldest(&self, slots: &SlotSet) -> u64 {
        let complete = (0..KEYS).all(|key| slots.difference(&self.slots(key)).is_empty());
        let part = self.within(slots);
        let numbers = part.writes.iter().filter_map(|one| one.keys().next());
        numbers
            .min()
            .copied()
            .filter(|_| complete)
            .unwrap_or_default()
    }

    /// Keys.
    pub fn count(&self) -> u64 {
        let held = self.writes.iter().flat_map(BTreeMap::values);
        held.map(|slots| slots.len() as u64).sum()
    }

    /// Keys of a slot.
    pub fn count_in(&self, slot: Slot) -> u64 {
        let held = self.writes.iter().flat_map(BTreeMap::values);
        held.map(|slots| u64::from(slots.contains(slot))).sum()
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_list().entries(&self.writes).finish()
    }
}
