//! How fast, how much at once, and by which engine slots are moved. Pure.

use std::{
    num::NonZeroU64,
    time::{Duration, Instant},
};

/// Which engine moves the slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// The atomic one if every node concerned has it and no rate is given, else the legacy one.
    #[default]
    Auto,
    /// `CLUSTER MIGRATESLOTS` of Valkey 9. The servers then move at their own speed: a rate does not apply.
    Atomic,
    /// `MIGRATE`, which every server has.
    Legacy,
}

/// The engine that was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// `MIGRATE`.
    #[default]
    Legacy,
    /// `CLUSTER MIGRATESLOTS`.
    Atomic,
}

/// Bounds of a reshard.
#[derive(Clone, Debug)]
pub struct ReshardLimits {
    /// Which engine.
    pub engine: EngineChoice,
    /// Slots of one source that are open at the same time. An open slot refuses commands with several keys (TRYAGAIN), and backups wait for it.
    pub open_slots: usize,
    /// Most keys in one `MIGRATE`.
    pub keys_per_call: usize,
    /// Most bytes of memory in one `MIGRATE`. A key with more goes alone.
    pub bytes_per_call: u64,
    /// How long the source waits for the target in one step of a call, beside the time that the bytes need. It answers no client meanwhile: keep it
    /// well below the node timeout.
    pub call_timeout: Duration,
    /// Keys a second over all sources; unlimited without.
    pub keys_per_second: Option<NonZeroU64>,
    /// Bytes of memory a second over all sources; unlimited without.
    pub bytes_per_second: Option<NonZeroU64>,
}

impl Default for ReshardLimits {
    fn default() -> Self {
        Self {
            engine: EngineChoice::default(),
            open_slots: 64,
            keys_per_call: 1000,
            bytes_per_call: 1 << 20,
            call_timeout: Duration::from_secs(2),
            keys_per_second: None,
            bytes_per_second: None,
        }
    }
}

impl ReshardLimits {
    /// Whether a rate is given.
    pub fn has_rate(&self) -> bool {
        self.keys_per_second.is_some() || self.bytes_per_second.is_some()
    }

    /// Keys that the open slots of one source may have together: what is open is finished within half a second when a reshard is cancelled.
    pub(super) fn keys_in_open_slots(&self) -> u64 {
        let rate = self.keys_per_second.map_or(u64::MAX, |rate| rate.get() / 2);
        rate.clamp(1, 8_000)
    }

    /// The largest call that keeps to the rate without long pauses.
    pub(super) fn largest_call(&self) -> (usize, u64) {
        let quarter = |rate: Option<NonZeroU64>| rate.map_or(u64::MAX, |rate| rate.get() / 4);
        let keys = usize::try_from(quarter(self.keys_per_second)).unwrap_or(usize::MAX);
        let bytes = quarter(self.bytes_per_second).min(self.bytes_per_call);
        (keys.min(self.keys_per_call).max(1), bytes.max(1))
    }

    /// How long one step of a call with so many bytes may take: a target that restores a large value answers after it has all of it.
    pub(super) fn timeout(&self, bytes: u64) -> Duration {
        const BYTES_PER_SECOND: u64 = 8 << 20;
        self.call_timeout + Duration::from_millis(bytes.saturating_mul(1000) / BYTES_PER_SECOND)
    }
}

/// Says when the next call may be sent, so that the rates are kept.
#[derive(Clone, Debug)]
pub(super) struct RateLimiter {
    keys_per_second: Option<NonZeroU64>,
    bytes_per_second: Option<NonZeroU64>,
    /// When everything sent so far has had its time.
    free: Option<Instant>,
}

impl RateLimiter {
    pub(super) fn new(limits: &ReshardLimits) -> Self {
        Self {
            keys_per_second: limits.keys_per_second,
            bytes_per_second: limits.bytes_per_second,
            free: None,
        }
    }

    /// How long a call that moves this much has to wait.
    pub(super) fn delay(&mut self, now: Instant, keys: usize, bytes: u64) -> Duration {
        let time = |amount: u64, rate: Option<NonZeroU64>| {
            rate.map_or(Duration::ZERO, |rate| {
                Duration::from_micros(amount.saturating_mul(1_000_000) / rate)
            })
        };
        let needs = time(keys as u64, self.keys_per_second).max(time(bytes, self.bytes_per_second));
        let start = self.free.map_or(now, |free| free.max(now));
        self.free = Some(start + needs);
        start.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_spread_over_the_time_that_the_rates_give_them() {
        let limits = ReshardLimits {
            keys_per_second: NonZeroU64::new(100),
            bytes_per_second: NonZeroU64::new(1000),
            ..ReshardLimits::default()
        };
        let mut rates = RateLimiter::new(&limits);
        let now = Instant::now();
        assert_eq!(rates.delay(now, 10, 0), Duration::ZERO);
        assert_eq!(rates.delay(now, 10, 500), Duration::from_millis(100));
        assert_eq!(rates.delay(now, 1, 1), Duration::from_millis(600));
        let later = now + Duration::from_secs(10);
        assert_eq!(
            rates.delay(later, 1, 1),
            Duration::ZERO,
            "nothing is saved up"
        );
        assert_eq!(limits.largest_call(), (25, 250));
        assert_eq!(limits.keys_in_open_slots(), 50);
        assert!(limits.has_rate() && !ReshardLimits::default().has_rate());
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let limits = ReshardLimits::default();
        let mut rates = RateLimiter::new(&limits);
        let now = Instant::now();
        for _ in 0..10 {
            assert_eq!(rates.delay(now, 1000, 1 << 30), Duration::ZERO);
        }
        assert_eq!(limits.largest_call(), (1000, 1 << 20));
        assert!(limits.timeout(64 << 20) >= Duration::from_secs(10));
    }
}
