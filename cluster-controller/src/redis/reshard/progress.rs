//! How far a reshard is.

use super::limits::Engine;
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Over how long speeds are averaged.
const AVERAGED: Duration = Duration::from_secs(3);

/// How far a reshard is, and how fast.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReshardProgress {
    /// Which engine moves the slots.
    pub engine: Engine,
    /// Slots whose new primary serves them.
    pub slots_done: u64,
    /// Slots of the plan.
    pub slots_total: u64,
    /// Keys that were moved.
    pub keys_done: u64,
    /// Keys that the slots had at the beginning.
    pub keys_total: u64,
    /// Bytes of memory that were moved.
    pub bytes_done: u64,
    /// Keys a second, over the last seconds.
    pub keys_per_second: f64,
    /// Bytes of memory a second, over the last seconds.
    pub bytes_per_second: f64,
}

impl ReshardProgress {
    /// How long the rest takes at the present speed; none while that is not known.
    pub fn remaining(&self) -> Option<Duration> {
        let left = self.keys_total.saturating_sub(self.keys_done);
        if left == 0 {
            return Some(Duration::ZERO);
        }
        // Counts are far below what a double holds exactly.
        #[allow(clippy::cast_precision_loss)]
        let seconds = left as f64 / self.keys_per_second;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// What is to be moved.
#[derive(Clone, Copy, Debug, Default)]
struct Expected {
    engine: Engine,
    slots: u64,
    keys: u64,
}

/// Counts what is moved, for all sources together.
#[derive(Debug, Default)]
pub(super) struct ReshardTracker {
    expected: Mutex<Expected>,
    slots: AtomicU64,
    keys: AtomicU64,
    bytes: AtomicU64,
    repaired: AtomicU64,
    /// The longest call in microseconds.
    longest: AtomicU64,
    last: Mutex<Option<(Instant, ReshardProgress)>>,
}

impl ReshardTracker {
    /// What is to be moved is known.
    pub(super) fn expect(&self, engine: Engine, slots: u64, keys: u64) {
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = Expected {
            engine,
            slots,
            keys,
        };
    }

    /// Keys have arrived.
    pub(super) fn moved(&self, keys: u64, bytes: u64) {
        self.keys.fetch_add(keys, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Slots have a new primary.
    pub(super) fn handed_over(&self, slots: usize) {
        self.slots.fetch_add(slots as u64, Ordering::Relaxed);
    }

    /// Open slots were closed.
    pub(super) fn closed(&self, slots: usize) {
        self.repaired.fetch_add(slots as u64, Ordering::Relaxed);
    }

    /// A call took this long.
    pub(super) fn called(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.longest.fetch_max(micros, Ordering::Relaxed);
    }

    /// Open slots that were closed so far.
    pub(super) fn repaired(&self) -> u64 {
        self.repaired.load(Ordering::Relaxed)
    }

    /// The longest call so far.
    pub(super) fn longest_call(&self) -> Duration {
        Duration::from_micros(self.longest.load(Ordering::Relaxed))
    }

    /// The progress at this moment.
    pub(super) fn progress(&self, now: Instant) -> ReshardProgress {
        let expected = *self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        let mut progress = ReshardProgress {
            engine: expected.engine,
            slots_done: self.slots.load(Ordering::Relaxed),
            slots_total: expected.slots,
            keys_done: self.keys.load(Ordering::Relaxed),
            keys_total: expected.keys,
            bytes_done: self.bytes.load(Ordering::Relaxed),
            ..ReshardProgress::default()
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, before)) = *last {
            let time = now.saturating_duration_since(at).as_secs_f64();
            let weight = time / (time + AVERAGED.as_secs_f64());
            // Counts are far below what a double holds exactly.
            #[allow(clippy::cast_precision_loss)]
            let speed = |before: f64, moved: u64| {
                let now = if time > 0.0 {
                    moved as f64 / time
                } else {
                    before
                };
                if before > 0.0 {
                    before + (now - before) * weight
                } else {
                    now
                }
            };
            progress.keys_per_second = speed(
                before.keys_per_second,
                progress.keys_done - before.keys_done,
            );
            progress.bytes_per_second = speed(
                before.bytes_per_second,
                progress.bytes_done - before.bytes_done,
            );
        }
        *last = Some((now, progress));
        progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_follow_what_is_moved() {
        let tracker = ReshardTracker::default();
        tracker.expect(Engine::Legacy, 10, 4000);
        let start = Instant::now();
        assert_eq!(tracker.progress(start).remaining(), None);
        tracker.moved(1000, 200_000);
        tracker.handed_over(2);
        let one = tracker.progress(start + Duration::from_secs(1));
        assert_eq!((one.slots_done, one.keys_done), (2, 1000));
        assert!((one.keys_per_second - 1000.0).abs() < 1.0, "{one:?}");
        assert_eq!(one.remaining(), Some(Duration::from_secs(3)));
        let two = tracker.progress(start + Duration::from_secs(2));
        assert!(two.keys_per_second < 1000.0 && two.keys_per_second > 500.0);
        tracker.called(Duration::from_millis(3));
        tracker.called(Duration::from_millis(2));
        assert_eq!(tracker.longest_call(), Duration::from_millis(3));
    }
}
