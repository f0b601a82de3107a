//! What the backup-controller counts, beside what every controller counts.

use crate::capture::CapturedShard;
use common::{claims::metrics::WorkNames, runtime::metrics::Metrics};
use prometheus_client::metrics::counter::Counter;

/// Names of the metrics of shards and backups.
pub const NAMES: WorkNames = WorkNames {
    units: ["backup_captures", "Ended captures of shards"],
    unit_duration: [
        "backup_capture_duration_seconds",
        "Time a stored shard took",
    ],
    objects: ["backups", "Ended backups"],
    object_duration: ["backup_duration_seconds", "Time a succeeded backup took"],
};

/// The controller's own metrics. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct BackupMetrics {
    raw_bytes: Counter,
    stored_bytes: Counter,
    keys: Counter,
}

impl BackupMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        let own = Self::default();
        metrics.register(|registry| {
            registry.register(
                "backup_raw_bytes",
                "Bytes of stored shards as received",
                own.raw_bytes.clone(),
            );
            registry.register(
                "backup_stored_bytes",
                "Bytes of stored shards as stored",
                own.stored_bytes.clone(),
            );
            registry.register(
                "backup_keys",
                "Keys counted in stored shards",
                own.keys.clone(),
            );
        });
        own
    }

    /// A shard is stored.
    pub fn stored(&self, shard: &CapturedShard) {
        let index = &shard.document.index;
        self.raw_bytes.inc_by(index.raw_bytes);
        self.stored_bytes.inc_by(index.stored_bytes);
        self.keys.inc_by(index.keys().unwrap_or_default());
    }
}
