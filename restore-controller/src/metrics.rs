//! What the restore-controller counts, beside what every controller counts.

use common::{claims::metrics::WorkNames, runtime::metrics::Metrics};
use prometheus_client::metrics::counter::Counter;

/// Names of the metrics of objects and restores.
pub const NAMES: WorkNames = WorkNames {
    units: ["restore_replays", "Ended replays of objects"],
    unit_duration: [
        "restore_replay_duration_seconds",
        "Time a replayed object took",
    ],
    objects: ["restores", "Ended restores"],
    object_duration: ["restore_duration_seconds", "Time a succeeded restore took"],
};

/// The controller's own metrics. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct RestoreMetrics {
    keys: Counter,
}

impl RestoreMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        let own = Self::default();
        metrics.register(|r| r.register("restore_keys", "Keys written", own.keys.clone()));
        own
    }

    /// Keys were written.
    pub fn wrote(&self, keys: u64) {
        self.keys.inc_by(keys);
    }
}
