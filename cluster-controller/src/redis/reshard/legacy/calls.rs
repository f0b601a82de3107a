//! How keys are divided into calls of `MIGRATE`, and how large the next call may be. Pure.
//!
//! A call stops the source until the target has answered for every key (`migrateCommand` in the engine's `cluster.c`): what it costs the
//! clients is its duration. A part of that is the way to the target and back, however few the keys are. So the size follows the durations
//! that were measured: as small as can be while those fixed costs stay half of the whole.

use std::{collections::VecDeque, time::Duration};

/// A call that took longer is far too large.
const LONGEST: Duration = Duration::from_millis(10);
/// The duration that calls are to have lies between these, however near or far the target is.
const GOAL: (Duration, Duration) = (Duration::from_micros(150), Duration::from_millis(2));
/// So many times the shortest call seen.
const FIXED_COSTS: u32 = 2;
/// The first calls show what the way to the target costs.
const FIRST_KEYS: usize = 1;
const FIRST_BYTES: u64 = 4 << 10;
const LEAST_BYTES: u64 = 1 << 10;

/// A key that is to be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListedKey {
    pub(super) key: Vec<u8>,
    /// Bytes of memory.
    pub(super) bytes: u64,
}

/// The keys of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MigrateCall {
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) bytes: u64,
}

/// The size of the next call.
#[derive(Clone, Debug)]
pub(super) struct CallSize {
    keys: usize,
    bytes: u64,
    most_keys: usize,
    most_bytes: u64,
    /// The shortest call so far.
    shortest: Duration,
}

impl CallSize {
    pub(super) fn new((most_keys, most_bytes): (usize, u64)) -> Self {
        Self {
            keys: FIRST_KEYS.min(most_keys),
            bytes: FIRST_BYTES.min(most_bytes),
            most_keys,
            most_bytes,
            shortest: LONGEST,
        }
    }

    /// Takes the keys of the next call, all of one slot. The keys of a slot are divided evenly, and one that is larger than a call may be goes alone.
    pub(super) fn take(&self, list: &mut VecDeque<ListedKey>) -> MigrateCall {
        let even = list.len().div_ceil(list.len().div_ceil(self.keys).max(1));
        let mut call = MigrateCall::default();
        while call.keys.len() < even
            && let Some(next) = list.pop_front_if(|next| {
                call.keys.is_empty() || call.bytes.saturating_add(next.bytes) <= self.bytes
            })
        {
            call.bytes = call.bytes.saturating_add(next.bytes);
            call.keys.push(next.key);
        }
        call
    }

    /// Learns from how long a call took. `waited`: another call was before it. When the answers of both are read at once, the time of the
    /// second seems to be none, which says nothing about the way to the target.
    pub(super) fn adapt(&mut self, call: &MigrateCall, took: Duration, waited: bool) {
        if !waited {
            self.shortest = self.shortest.min(took);
        }
        let goal = (self.shortest * FIXED_COSTS).clamp(GOAL.0, GOAL.1);
        if took > LONGEST {
            // A single large value says nothing about calls of many keys.
            if call.keys.len() > 1 {
                self.resize(call.keys.len() / 2, call.bytes / 2);
            }
        } else if took > goal * 5 / 4 && call.keys.len() > 1 {
            self.resize(self.keys * 3 / 4, self.bytes / 4 * 3);
        } else if took < goal * 3 / 4 {
            // Only what was filled has shown that it is too small.
            let keys = if call.keys.len().saturating_mul(2) > self.keys {
                self.keys.saturating_add(self.keys.div_ceil(2))
            } else {
                self.keys
            };
            let bytes = if call.bytes.saturating_mul(2) > self.bytes {
                self.bytes.saturating_add(self.bytes / 2)
            } else {
                self.bytes
            };
            self.resize(keys, bytes);
        }
    }

    fn resize(&mut self, keys: usize, bytes: u64) {
        self.keys = keys.clamp(1, self.most_keys);
        self.bytes = bytes.max(LEAST_BYTES).min(self.most_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(sizes: &[u64]) -> VecDeque<ListedKey> {
        let keys = sizes.iter().enumerate();
        keys.map(|(number, bytes)| ListedKey {
            key: number.to_string().into(),
            bytes: *bytes,
        })
        .collect()
    }

    #[test]
    fn large_keys_go_alone() {
        let mut size = CallSize::new((100, 1 << 20));
        size.resize(100, 1 << 20);
        let mut keys = list(&[100, 5 << 20, 100, 100]);
        let calls: Vec<usize> = std::iter::from_fn(|| {
            let call = size.take(&mut keys);
            (!call.keys.is_empty()).then_some(call.keys.len())
        })
        .collect();
        assert_eq!(calls, [1, 1, 2]);
    }

    /// The size after many calls that take `fixed` and `each` key more.
    fn settled(fixed: Duration, each: Duration) -> CallSize {
        let mut size = CallSize::new((1000, 1 << 20));
        for _ in 0..60 {
            let call = size.take(&mut list(&vec![100; 5000]));
            let keys = u32::try_from(call.keys.len()).unwrap();
            size.adapt(&call, fixed + each * keys, false);
        }
        size
    }

    #[test]
    fn calls_are_short_where_the_way_is_short() {
        let micros = Duration::from_micros;
        let near = settled(micros(50), micros(5)).keys;
        assert!((10..=45).contains(&near), "{near}");
        let far = settled(micros(500), micros(5)).keys;
        assert!((60..=160).contains(&far), "{far}");
        let slow = settled(micros(50), micros(1000)).keys;
        assert!(slow <= 4, "{slow}");
    }

    #[test]
    fn a_call_that_is_far_too_long_halves() {
        let mut size = settled(Duration::from_micros(500), Duration::from_micros(5));
        let before = size.keys;
        // One large value says nothing about calls of many keys.
        let large = size.take(&mut list(&[5 << 20]));
        size.adapt(&large, Duration::from_secs(1), false);
        assert_eq!(size.keys, before);
        let call = size.take(&mut list(&vec![100; 5000]));
        size.adapt(&call, Duration::from_millis(11), true);
        assert_eq!(size.keys, call.keys.len() / 2);
    }

    #[test]
    fn keys_are_divided_evenly() {
        let mut size = CallSize::new((1000, 1 << 20));
        size.resize(48, 1 << 20);
        let mut keys = list(&[200; 61]);
        let first = size.take(&mut keys).keys.len();
        assert_eq!((first, size.take(&mut keys).keys.len()), (31, 30));
    }

    proptest! {
        #[test]
        fn every_key_is_in_one_call_and_bounds_are_kept(
            sizes in prop::collection::vec(0..3_000_000_u64, 0..300),
            times in prop::collection::vec(0..30_u64, 1..20),
            most_keys in 1..200_usize,
        ) {
            let most_bytes = 1 << 20;
            let mut size = CallSize::new((most_keys, most_bytes));
            let mut keys = list(&sizes);
            let mut seen = Vec::new();
            for took in times.iter().cycle() {
                let call = size.take(&mut keys);
                if call.keys.is_empty() {
                    break;
                }
                prop_assert!(call.keys.len() <= most_keys);
                prop_assert!(call.bytes <= most_bytes || call.keys.len() == 1);
                size.adapt(&call, Duration::from_millis(*took), *took % 2 == 0);
                seen.extend(call.keys);
            }
            let all: Vec<Vec<u8>> = list(&sizes).into_iter().map(|one| one.key).collect();
            prop_assert_eq!(seen, all);
        }
    }
}
