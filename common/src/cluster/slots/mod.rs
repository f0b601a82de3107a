//! Hash slots: one, a range, a set, and the slot of a key.
//!
//! A Redis Cluster has 16384 slots; a key belongs to CRC-16/XMODEM of its hash tag modulo 16384
//! (Redis Cluster specification, "Key distribution model" and "Hash tags").

mod hash;
mod set;

pub use set::SlotSet;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Number of hash slots of every Redis Cluster.
pub const SLOT_COUNT: u16 = 16384;

/// Text or number that is not a slot, a range or a set of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// The number is not below 16384.
    #[error("slot {0} does not exist: slots go from 0 to 16383")]
    OutOfRange(u64),
    /// The text is neither `start-end` nor a single number.
    #[error("{0:?} is no slot range: expected a number or start-end, such as 0-5460")]
    Syntax(String),
    /// The range ends before it starts.
    #[error("slot range {start}-{end} ends before it starts")]
    Backwards {
        /// The first slot given.
        start: Slot,
        /// The last slot given.
        end: Slot,
    },
}

/// A hash slot, always below [`SLOT_COUNT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The first slot.
    pub const MIN: Slot = Slot(0);
    /// The last slot.
    pub const MAX: Slot = Slot(SLOT_COUNT - 1);

    /// The slot with this number.
    pub fn new(number: u16) -> Result<Self, SlotError> {
        if number < SLOT_COUNT {
            Ok(Self(number))
        } else {
            Err(SlotError::OutOfRange(number.into()))
        }
    }

    /// The slot a key belongs to: of its hash tag `{...}` if it has a non-empty one, else of the whole key.
    pub fn of_key(key: &[u8]) -> Self {
        Self(hash::crc16(hash::tag(key)) % SLOT_COUNT)
    }

    /// The slot's number, 0 to 16383.
    pub fn get(self) -> u16 {
        self.0
    }

    /// The slot's number as an index into a table of [`SLOT_COUNT`] entries.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Every slot in ascending order.
    pub fn all() -> impl Iterator<Item = Slot> {
        (0..SLOT_COUNT).map(Slot)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u16> for Slot {
    type Error = SlotError;

    fn try_from(number: u16) -> Result<Self, SlotError> {
        Self::new(number)
    }
}

impl FromStr for Slot {
    type Err = SlotError;

    fn from_str(text: &str) -> Result<Self, SlotError> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = text
            .parse::<u64>()
            .ok()
            .filter(|_| digits)
            .ok_or_else(|| SlotError::Syntax(text.to_owned()))?;
        u16::try_from(number)
            .map_err(|_| SlotError::OutOfRange(number))
            .and_then(Self::new)
    }
}

/// An inclusive range of slots, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotRange {
    start: Slot,
    end: Slot,
}

impl SlotRange {
    /// Every slot.
    pub const ALL: SlotRange = SlotRange {
        start: Slot::MIN,
        end: Slot::MAX,
    };

    /// The range from `start` to `end`, both included.
    pub fn new(start: Slot, end: Slot) -> Result<Self, SlotError> {
        if start <= end {
            Ok(Self { start, end })
        } else {
            Err(SlotError::Backwards { start, end })
        }
    }

    /// First slot.
    pub fn start(self) -> Slot {
        self.start
    }

    /// Last slot.
    pub fn end(self) -> Slot {
        self.end
    }

    /// Number of slots, at least 1.
    #[allow(clippy::len_without_is_empty)] // a range is never empty
    pub fn len(self) -> u16 {
        self.end.0 - self.start.0 + 1
    }

    /// Whether the slot lies in the range.
    pub fn contains(self, slot: Slot) -> bool {
        self.start <= slot && slot <= self.end
    }

    /// The slots in ascending order.
    pub fn slots(self) -> impl Iterator<Item = Slot> {
        (self.start.0..=self.end.0).map(Slot)
    }
}

impl From<Slot> for SlotRange {
    fn from(slot: Slot) -> Self {
        Self {
            start: slot,
            end: slot,
        }
    }
}

impl fmt::Display for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.start == self.end {
            write!(f, "{}", self.start)
        } else {
            write!(f, "{}-{}", self.start, self.end)
        }
    }
}

impl FromStr for SlotRange {
    type Err = SlotError;

    fn from_str(text: &str) -> Result<Self, SlotError> {
        let (start, end) = text.split_once('-').unwrap_or((text, text));
        Self::new(start.parse()?, end.parse()?)
    }
}

impl Serialize for Slot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Slot {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Serialize for SlotRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SlotRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slots_of_keys_match_the_server() {
        // Answers of CLUSTER KEYSLOT of Redis 7.0.
        for (key, slot) in [
            ("", 0),
            ("foo", 12182),
            ("123456789", 12739),
            ("{user1000}.following", 3443),
            ("user1000", 3443),
            ("foo{}{bar}", 8363),
            ("foo{{bar}}zap", 4015),
            ("{bar", 4015),
            ("foo{bar}{zap}", 5061),
            ("bar", 5061),
        ] {
            assert_eq!(Slot::of_key(key.as_bytes()).get(), slot, "{key}");
        }
    }

    #[test]
    fn text_that_is_no_slot_is_refused() {
        assert_eq!("16384".parse::<Slot>(), Err(SlotError::OutOfRange(16384)));
        assert!(matches!("+1".parse::<Slot>(), Err(SlotError::Syntax(_))));
        assert!(matches!("".parse::<SlotRange>(), Err(SlotError::Syntax(_))));
        assert!(matches!(
            "1-2-3".parse::<SlotRange>(),
            Err(SlotError::Syntax(_))
        ));
        assert!(matches!(
            "5-4".parse::<SlotRange>(),
            Err(SlotError::Backwards { .. })
        ));
    }

    proptest! {
        #[test]
        fn a_range_reads_back_what_it_writes(start in 0..SLOT_COUNT, more in 0..SLOT_COUNT) {
            let range = SlotRange::new(Slot(start), Slot((start + more).min(SLOT_COUNT - 1))).unwrap();
            prop_assert_eq!(range.to_string().parse::<SlotRange>().unwrap(), range);
        }
    }
}
