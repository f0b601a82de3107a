//! What the restore-controller counts, beside what every controller counts.

use crate::{replay::Progress, worker::UnitError};
use common::{kubernetes::errors::Classified, runtime::metrics::Metrics};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
};
use std::time::Duration;

/// How something ended, and why.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    outcome: &'static str,
    reason: &'static str,
}

/// The controller's own metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RestoreMetrics {
    keys: Counter,
    replays: Family<Ended, Counter>,
    replay_duration: Histogram,
    restores: Family<Ended, Counter>,
    restore_duration: Histogram,
}

fn durations() -> Histogram {
    Histogram::new([1.0, 5.0, 20.0, 60.0, 300.0, 1200.0, 3600.0, 14400.0])
}

impl RestoreMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        let own = Self {
            keys: Counter::default(),
            replays: Family::default(),
            replay_duration: durations(),
            restores: Family::default(),
            restore_duration: durations(),
        };
        metrics.register(|r| {
            r.register("restore_keys", "Keys written", own.keys.clone());
            r.register(
                "restore_replays",
                "Ended replays of objects",
                own.replays.clone(),
            );
            r.register(
                "restore_replay_duration_seconds",
                "Time a replayed object took",
                own.replay_duration.clone(),
            );
            r.register("restores", "Ended restores", own.restores.clone());
            r.register(
                "restore_duration_seconds",
                "Time a succeeded restore took",
                own.restore_duration.clone(),
            );
        });
        own
    }

    /// A replay has ended after it had written so many keys.
    pub fn replayed(&self, result: &Result<Progress, UnitError>, keys: u64, took: Duration) {
        self.keys.inc_by(keys);
        let (outcome, reason) = match result {
            Ok(_) => {
                self.replay_duration.observe(took.as_secs_f64());
                ("loaded", "Loaded")
            }
            Err(UnitError::Cancelled) => ("stopped", "Cancelled"),
            Err(error) => ("failed", error.reason()),
        };
        let ended = Ended { outcome, reason };
        self.replays.get_or_create(&ended).inc();
    }

    /// A restore has succeeded.
    pub fn succeeded(&self, took: Option<Duration>) {
        if let Some(took) = took {
            self.restore_duration.observe(took.as_secs_f64());
        }
        self.ended("succeeded", "Succeeded");
    }

    /// A restore has failed.
    pub fn failed(&self, reason: &'static str) {
        self.ended("failed", reason);
    }

    fn ended(&self, outcome: &'static str, reason: &'static str) {
        let ended = Ended { outcome, reason };
        self.restores.get_or_create(&ended).inc();
    }
}
