//! What is shown of each RedisRestore. Pure: computed from its status.

use common::runtime::object_metrics::{ObjectGauge, Sample};
use crds::RedisRestore;
use kube::ResourceExt;
use std::sync::Arc;

const KEYS: ObjectGauge = ObjectGauge {
    name: "restore_progress_keys",
    help: "Keys that the restore has written",
};
const TOTAL_KEYS: ObjectGauge = ObjectGauge {
    name: "restore_progress_expected_keys",
    help: "Keys of the backup that the restore writes",
};

/// All of them.
pub const GAUGES: [ObjectGauge; 2] = [KEYS, TOTAL_KEYS];

/// What the statuses of the restores show.
// Numbers of keys are exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
pub fn samples(restores: &[Arc<RedisRestore>]) -> Vec<Sample> {
    let progress = restores.iter().filter_map(|restore| {
        let progress = restore.status.as_ref()?.progress.as_ref()?;
        let (namespace, name) = (restore.namespace().unwrap_or_default(), restore.name_any());
        let sample = |gauge, keys: i64| Sample::of(gauge, &namespace, &name, keys as f64);
        Some([
            sample(KEYS, progress.keys),
            sample(TOTAL_KEYS, progress.total_keys),
        ])
    });
    progress.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::{RedisRestoreSpec, RedisRestoreStatus, RestoreProgress};

    #[test]
    fn a_restore_shows_its_progress() {
        let mut restore = RedisRestore::new("back", RedisRestoreSpec::default());
        restore.metadata.namespace = Some("shop".into());
        assert!(samples(&[Arc::new(restore.clone())]).is_empty());
        restore.status = Some(RedisRestoreStatus {
            progress: Some(RestoreProgress {
                keys: 42,
                total_keys: 100,
                ..RestoreProgress::default()
            }),
            ..RedisRestoreStatus::default()
        });
        let samples = samples(&[Arc::new(restore)]);
        assert_eq!(samples[0], Sample::of(KEYS, "shop", "back", 42.0));
        assert_eq!(samples[1], Sample::of(TOTAL_KEYS, "shop", "back", 100.0));
    }
}
