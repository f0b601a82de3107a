//! What the backup-controller counts, beside what every controller counts.

use crate::{capture::CapturedShard, worker::UnitError};
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
pub struct BackupMetrics {
    raw_bytes: Counter,
    stored_bytes: Counter,
    keys: Counter,
    captures: Family<Ended, Counter>,
    capture_duration: Histogram,
    backups: Family<Ended, Counter>,
    backup_duration: Histogram,
}

fn durations() -> Histogram {
    Histogram::new([1.0, 5.0, 20.0, 60.0, 300.0, 1200.0, 3600.0, 14400.0])
}

impl BackupMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        let own = Self {
            raw_bytes: Counter::default(),
            stored_bytes: Counter::default(),
            keys: Counter::default(),
            captures: Family::default(),
            capture_duration: durations(),
            backups: Family::default(),
            backup_duration: durations(),
        };
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
            registry.register(
                "backup_captures",
                "Ended captures of shards",
                own.captures.clone(),
            );
            registry.register(
                "backup_capture_duration_seconds",
                "Time a stored shard took",
                own.capture_duration.clone(),
            );
            registry.register("backups", "Ended backups", own.backups.clone());
            registry.register(
                "backup_duration_seconds",
                "Time a succeeded backup took",
                own.backup_duration.clone(),
            );
        });
        own
    }

    /// A capture has ended.
    pub fn captured(&self, result: &Result<Box<CapturedShard>, UnitError>, took: Duration) {
        let (outcome, reason) = match result {
            Ok(shard) => {
                let index = &shard.document.index;
                self.raw_bytes.inc_by(index.raw_bytes);
                self.stored_bytes.inc_by(index.stored_bytes);
                self.keys.inc_by(index.keys().unwrap_or_default());
                self.capture_duration.observe(took.as_secs_f64());
                ("stored", "Stored")
            }
            Err(error) => ("failed", error.reason()),
        };
        self.captures
            .get_or_create(&Ended { outcome, reason })
            .inc();
    }

    /// A backup has succeeded.
    pub fn succeeded(&self, took: Option<Duration>) {
        let ended = Ended {
            outcome: "succeeded",
            reason: "Succeeded",
        };
        self.backups.get_or_create(&ended).inc();
        if let Some(took) = took {
            self.backup_duration.observe(took.as_secs_f64());
        }
    }

    /// A backup has failed.
    pub fn failed(&self, reason: &'static str) {
        self.backups
            .get_or_create(&Ended {
                outcome: "failed",
                reason,
            })
            .inc();
    }
}
