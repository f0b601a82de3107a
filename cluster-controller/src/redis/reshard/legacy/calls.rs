//! How keys are divided into calls of `MIGRATE`, and how large the next call may be. Pure.
//!
//! A call stops the source until the target has answered for every key (`migrateCommand` in the engine's `cluster.c`): what it costs the
//! clients is its duration. So the size follows the durations that were measured, in keys and in bytes.

use std::{collections::VecDeque, time::Duration};

/// A call that took longer is too large.
const LONGEST: Duration = Duration::from_millis(10);
/// One that took less may grow.
const SHORT: Duration = Duration::from_millis(2);
const FIRST_KEYS: usize = 16;
const FIRST_BYTES: u64 = 64 << 10;
const LEAST_BYTES: u64 = 4 << 10;

/// A key that is to be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListedKey {
    pub(super) key: Vec<u8>,
    /// Bytes of memory.
    pub(super) bytes: u64,
}

/// The keys of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Call {
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
}

impl CallSize {
    pub(super) fn new((most_keys, most_bytes): (usize, u64)) -> Self {
        Self {
            keys: FIRST_KEYS.min(most_keys),
            bytes: FIRST_BYTES.min(most_bytes),
            most_keys,
            most_bytes,
        }
    }

    /// Takes the keys of the next call, all of one slot. A key that is larger than a call may be goes alone.
    pub(super) fn take(&self, list: &mut VecDeque<ListedKey>) -> Call {
        let mut call = Call::default();
        while call.keys.len() < self.keys
            && let Some(next) = list.pop_front_if(|next| {
                call.keys.is_empty() || call.bytes.saturating_add(next.bytes) <= self.bytes
            })
        {
            call.bytes = call.bytes.saturating_add(next.bytes);
            call.keys.push(next.key);
        }
        call
    }

    /// Learns from how long a call took.
    pub(super) fn adapt(&mut self, call: &Call, took: Duration) {
        if took > LONGEST && call.keys.len() > 1 {
            self.keys = (call.keys.len() / 2).max(1);
            self.bytes = (call.bytes / 2).max(LEAST_BYTES).min(self.most_bytes);
        } else if took < SHORT {
            // Only what was filled has shown that it is too small.
            if call.keys.len() >= self.keys {
                self.keys = (self.keys * 2).min(self.most_keys);
            }
            if call.bytes.saturating_mul(2) >= self.bytes {
                self.bytes = self.bytes.saturating_mul(2).min(self.most_bytes);
            }
        }
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
        let size = CallSize::new((100, 1 << 20));
        let mut keys = list(&[100, 5 << 20, 100, 100]);
        let calls: Vec<usize> = std::iter::from_fn(|| {
            let call = size.take(&mut keys);
            (!call.keys.is_empty()).then_some(call.keys.len())
        })
        .collect();
        assert_eq!(calls, [1, 1, 2]);
    }

    #[test]
    fn slow_calls_halve_and_fast_ones_grow() {
        let mut size = CallSize::new((1000, 1 << 20));
        let sizes = [100; 5000];
        let mut grown = Vec::new();
        for _ in 0..8 {
            let call = size.take(&mut list(&sizes));
            size.adapt(&call, Duration::from_millis(1));
            grown.push(call.keys.len());
        }
        assert_eq!(grown, [16, 32, 64, 128, 256, 512, 1000, 1000]);
        let call = size.take(&mut list(&sizes));
        size.adapt(&call, Duration::from_millis(11));
        assert_eq!(size.take(&mut list(&sizes)).keys.len(), 500);
        let call = size.take(&mut list(&sizes));
        size.adapt(&call, Duration::from_millis(5));
        assert_eq!(size.take(&mut list(&sizes)).keys.len(), 500);
        // One large value says nothing about calls of many keys.
        let large = size.take(&mut list(&[5 << 20]));
        size.adapt(&large, Duration::from_secs(1));
        assert_eq!(size.take(&mut list(&sizes)).keys.len(), 500);
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
                size.adapt(&call, Duration::from_millis(*took));
                seen.extend(call.keys);
            }
            let all: Vec<Vec<u8>> = list(&sizes).into_iter().map(|one| one.key).collect();
            prop_assert_eq!(seen, all);
        }
    }
}
