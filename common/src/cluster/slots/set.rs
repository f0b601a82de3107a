//! A set of slots as its maximal ranges: a shard has one or a few, so a set takes some tens of bytes instead of a bitmap of
//! 2 KiB. That counts where N nodes each describe N nodes.

use super::{Slot, SlotError, SlotRange};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{cmp::Ordering, fmt};

/// Ranges shown in a message.
const SHOWN_RANGES: usize = 4;

/// A set of slots.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct SlotSet {
    /// In ascending order, with at least one slot missing between two of them.
    ranges: Vec<SlotRange>,
}

impl SlotSet {
    /// No slot.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every slot.
    pub fn full() -> Self {
        SlotRange::ALL.into()
    }

    /// Adds every slot of the range.
    pub fn insert_range(&mut self, range: SlotRange) {
        let before = |other: &SlotRange| other.end.0 + 1 < range.start.0;
        let touching = |other: &SlotRange| other.start.0 <= range.end.0 + 1;
        let from = self.ranges.partition_point(before);
        let to = self.ranges.partition_point(touching).max(from);
        let joined = self.ranges.get(from..to).unwrap_or_default();
        let range = joined.iter().fold(range, |all, other| SlotRange {
            start: all.start.min(other.start),
            end: all.end.max(other.end),
        });
        self.ranges.splice(from..to, [range]);
    }

    /// Adds a slot; whether it was absent before.
    pub fn insert(&mut self, slot: Slot) -> bool {
        let absent = !self.contains(slot);
        self.insert_range(slot.into());
        absent
    }

    /// Removes a slot; whether it was present before.
    pub fn remove(&mut self, slot: Slot) -> bool {
        let present = self.contains(slot);
        if present {
            *self = self.difference(&SlotRange::from(slot).into());
        }
        present
    }

    /// Whether the slot is in the set.
    pub fn contains(&self, slot: Slot) -> bool {
        let place = self.ranges.binary_search_by(|range| {
            if range.end < slot {
                Ordering::Less
            } else if range.start > slot {
                Ordering::Greater
            } else {
                Ordering::Equal
            }
        });
        place.is_ok()
    }

    /// Number of slots in the set.
    pub fn len(&self) -> usize {
        self.ranges
            .iter()
            .map(|range| usize::from(range.len()))
            .sum()
    }

    /// Whether no slot is in the set.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether all 16384 slots are in the set.
    pub fn is_full(&self) -> bool {
        self.ranges.as_slice() == [SlotRange::ALL]
    }

    /// The slots in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        self.ranges.iter().flat_map(|range| range.slots())
    }

    /// The slots of either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.ranges.iter().chain(&other.ranges).copied().collect()
    }

    /// The slots of both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut mine, mut theirs) = (
            self.ranges.iter().peekable(),
            other.ranges.iter().peekable(),
        );
        let mut ranges = Vec::new();
        while let (Some(a), Some(b)) = (mine.peek(), theirs.peek()) {
            let both = SlotRange::new(a.start.max(b.start), a.end.min(b.end));
            ranges.extend(both.ok());
            if a.end <= b.end {
                mine.next();
            } else {
                theirs.next();
            }
        }
        Self { ranges }
    }

    /// The slots of this set that the other lacks.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.intersection(&other.missing())
    }

    /// The slots of the cluster this set lacks.
    #[must_use]
    pub fn missing(&self) -> Self {
        let starts = self.ranges.iter().map(|range| range.end.0 + 1);
        let ends = self.ranges.iter().map(|range| range.start.0.checked_sub(1));
        let gaps = std::iter::once(0)
            .chain(starts)
            .zip(ends.chain([Some(Slot::MAX.0)]));
        let ranges = gaps
            .filter_map(|(start, end)| SlotRange::new(Slot(start), Slot(end?)).ok())
            .collect();
        Self { ranges }
    }

    /// The set as maximal ranges in ascending order.
    pub fn ranges(&self) -> Vec<SlotRange> {
        self.ranges.clone()
    }

    /// The first ranges, for a message.
    pub fn summary(&self) -> String {
        let shown = self.ranges.iter().take(SHOWN_RANGES);
        let mut words: Vec<String> = shown.map(ToString::to_string).collect();
        if self.ranges.len() > words.len() {
            words.push("…".to_owned());
        }
        words.join(",")
    }
}

impl From<SlotRange> for SlotSet {
    fn from(range: SlotRange) -> Self {
        Self {
            ranges: vec![range],
        }
    }
}

impl FromIterator<SlotRange> for SlotSet {
    fn from_iter<I: IntoIterator<Item = SlotRange>>(ranges: I) -> Self {
        let mut sorted: Vec<SlotRange> = ranges.into_iter().collect();
        sorted.sort_unstable();
        let mut ranges: Vec<SlotRange> = Vec::new();
        for range in sorted {
            match ranges.last_mut() {
                Some(last) if range.start.0 <= last.end.0 + 1 => last.end = last.end.max(range.end),
                _ => ranges.push(range),
            }
        }
        ranges.shrink_to_fit();
        Self { ranges }
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        slots.into_iter().map(SlotRange::from).collect()
    }
}

/// The ranges separated by commas, `none` for the empty set.
impl fmt::Display for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (position, range) in self.ranges.iter().enumerate() {
            let separator = if position == 0 { "" } else { "," };
            write!(f, "{separator}{range}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlotSet({self})")
    }
}

/// A list of ranges, such as `["0-5460", "7000"]`.
impl Serialize for SlotSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.ranges)
    }
}

impl<'de> Deserialize<'de> for SlotSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<SlotRange>::deserialize(deserializer)?
            .into_iter()
            .collect())
    }
}

/// Reads the words of a status field, such as `["0-5460", "7000"]`.
impl<T: AsRef<str>> TryFrom<&[T]> for SlotSet {
    type Error = SlotError;

    fn try_from(words: &[T]) -> Result<Self, SlotError> {
        words
            .iter()
            .map(|word| word.as_ref().parse::<SlotRange>())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::slots::SLOT_COUNT;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn range(start: u16, end: u16) -> SlotRange {
        SlotRange::new(Slot(start), Slot(end)).unwrap()
    }

    #[test]
    fn a_set_is_written_as_its_ranges() {
        let set: SlotSet = [range(0, 5460), range(7, 9), range(7000, 7000)]
            .into_iter()
            .collect();
        let json = serde_json::to_string(&set).unwrap();
        assert_eq!(json, r#"["0-5460","7000"]"#);
        assert_eq!(serde_json::from_str::<SlotSet>(&json).unwrap(), set);
        assert_eq!(
            SlotSet::try_from(["0-5460", "7000"].as_slice()),
            Ok(set.clone())
        );
        assert_eq!(set.to_string(), "0-5460,7000");
        assert_eq!(SlotSet::new().to_string(), "none");
        assert_eq!(set.missing().len() + set.len(), usize::from(SLOT_COUNT));
        assert_eq!(SlotSet::from(SlotRange::ALL), SlotSet::full());
    }

    #[test]
    fn a_summary_has_few_ranges() {
        let set: SlotSet = (0..20).map(|n| range(n * 2, n * 2)).collect();
        assert_eq!(set.summary(), "0,2,4,6,…");
        assert_eq!(SlotSet::full().summary(), "0-16383");
    }

    #[test]
    fn a_set_owns_only_its_ranges() {
        assert_eq!(SlotSet::new().ranges.capacity(), 0);
        assert_eq!(SlotSet::from(range(0, 5460)).ranges.capacity(), 1);
        let read: SlotSet = [range(0, 5460), range(7000, 7000)].into_iter().collect();
        assert!(read.ranges.capacity() <= 4, "{}", read.ranges.capacity());
    }

    proptest! {
        #[test]
        fn a_set_behaves_like_a_tree_set(
            a in prop::collection::btree_set(0..SLOT_COUNT, 0..200),
            b in prop::collection::btree_set(16000..SLOT_COUNT, 0..100),
            gone in 0..SLOT_COUNT,
        ) {
            let set = |numbers: &BTreeSet<u16>| numbers.iter().map(|n| Slot(*n)).collect::<SlotSet>();
            let numbers = |set: &SlotSet| set.iter().map(Slot::get).collect::<BTreeSet<u16>>();
            let (mut x, y) = (set(&a), set(&b));
            prop_assert_eq!(numbers(&x.union(&y)), &a | &b);
            prop_assert_eq!(numbers(&x.intersection(&y)), &a & &b);
            prop_assert_eq!(numbers(&x.difference(&y)), &a - &b);
            prop_assert_eq!(x.len(), a.len());
            prop_assert_eq!(x.missing().missing(), x.clone());
            prop_assert_eq!(x.ranges().into_iter().collect::<SlotSet>(), x.clone());
            for number in a.iter().chain(&b) {
                prop_assert!(!x.contains(Slot(*number)) || a.contains(number));
            }
            prop_assert_eq!(x.remove(Slot(gone)), a.contains(&gone));
            prop_assert!(!x.contains(Slot(gone)));
            prop_assert!(x.insert(Slot(gone)));
            prop_assert!(x.contains(Slot(gone)));
        }

        #[test]
        fn insertion_keeps_ranges_maximal(inserted in prop::collection::vec((0..SLOT_COUNT, 0..50_u16), 0..100)) {
            let ranges = inserted.iter().map(|(start, more)| range(*start, (start + more).min(SLOT_COUNT - 1)));
            let mut one_by_one = SlotSet::new();
            ranges.clone().for_each(|range| one_by_one.insert_range(range));
            prop_assert_eq!(one_by_one, ranges.collect::<SlotSet>());
        }
    }
}
