//! What is shown of the last successful backup of each cluster and schedule. Pure: computed from the RedisBackups there are.

use common::{
    kubernetes::conditions::holds,
    runtime::object_metrics::{ObjectGauge, Sample},
};
use crds::{LABEL_SCHEDULE, RedisBackup, RedisBackupStatus};
use kube::ResourceExt;
use std::{collections::BTreeMap, sync::Arc};

const SUCCESS: ObjectGauge = ObjectGauge {
    name: "backup_last_success_timestamp_seconds",
    help: "When the last successful backup of the cluster by this schedule ended; without a schedule: by hand",
};
const DURATION: ObjectGauge = ObjectGauge {
    name: "backup_last_duration_seconds",
    help: "Time that backup took",
};
const BYTES: ObjectGauge = ObjectGauge {
    name: "backup_last_stored_bytes",
    help: "Bytes that backup has in the bucket",
};
const KEYS: ObjectGauge = ObjectGauge {
    name: "backup_last_keys",
    help: "Keys of that backup",
};

/// All of them.
pub const GAUGES: [ObjectGauge; 4] = [SUCCESS, DURATION, BYTES, KEYS];

/// Namespace, cluster and schedule.
type Series = (String, String, String);

/// What the backups show.
pub fn samples(backups: &[Arc<RedisBackup>]) -> Vec<Sample> {
    let mut last: BTreeMap<Series, (i64, &RedisBackupStatus)> = BTreeMap::new();
    for backup in backups {
        let Some((ended, status)) = succeeded(backup) else {
            continue;
        };
        let schedule = backup.labels().get(LABEL_SCHEDULE).cloned();
        let series = (
            backup.namespace().unwrap_or_default(),
            backup.spec.cluster_ref.name.clone(),
            schedule.unwrap_or_default(),
        );
        let newest = last.entry(series).or_insert((ended, status));
        if newest.0 < ended {
            *newest = (ended, status);
        }
    }
    last.into_iter()
        .flat_map(|(series, (ended, status))| of_backup(&series, ended, status))
        .collect()
}

fn succeeded(backup: &RedisBackup) -> Option<(i64, &RedisBackupStatus)> {
    let status = backup.status.as_ref()?;
    let ended = status.completion_time.as_ref()?.0.as_second();
    holds(&status.conditions, "Complete").then_some((ended, status))
}

// Numbers of keys and bytes are exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
fn of_backup(series: &Series, ended: i64, status: &RedisBackupStatus) -> Vec<Sample> {
    let (namespace, cluster, schedule) = series;
    let started = status.start_time.as_ref().map(|time| time.0.as_second());
    let stored = status
        .progress
        .as_ref()
        .map(|progress| progress.stored_bytes);
    let keys = status.shards.iter().filter_map(|shard| shard.keys).sum();
    [
        (SUCCESS, Some(ended)),
        (DURATION, started.map(|started| ended - started)),
        (BYTES, stored),
        (KEYS, Some(keys)),
    ]
    .into_iter()
    .filter_map(|(gauge, value)| {
        let mut sample = Sample::of(gauge, namespace, cluster, value? as f64);
        sample.labels.push(("schedule", schedule.clone()));
        Some(sample)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::{BackupProgress, BackupShard, LocalRef, RedisBackupSpec};
    use k8s_openapi::{
        apimachinery::pkg::apis::meta::v1::{Condition, Time},
        jiff::Timestamp,
    };

    fn backup(
        schedule: Option<&str>,
        started: i64,
        ended: i64,
        complete: &str,
    ) -> Arc<RedisBackup> {
        let time = |second| Some(Time(Timestamp::from_second(second).unwrap()));
        let mut backup = RedisBackup::new(
            &format!("b{ended}"),
            RedisBackupSpec {
                cluster_ref: LocalRef {
                    name: "demo".into(),
                },
                ..RedisBackupSpec::default()
            },
        );
        backup.metadata.namespace = Some("shop".into());
        if let Some(schedule) = schedule {
            backup
                .labels_mut()
                .insert(LABEL_SCHEDULE.into(), schedule.into());
        }
        backup.status = Some(RedisBackupStatus {
            start_time: time(started),
            completion_time: time(ended),
            progress: Some(BackupProgress {
                stored_bytes: 512,
                ..BackupProgress::default()
            }),
            shards: vec![BackupShard {
                keys: Some(ended),
                ..BackupShard::default()
            }],
            conditions: vec![Condition {
                type_: "Complete".into(),
                status: complete.into(),
                reason: String::new(),
                message: String::new(),
                last_transition_time: Time(Timestamp::UNIX_EPOCH),
                observed_generation: None,
            }],
            ..RedisBackupStatus::default()
        });
        Arc::new(backup)
    }

    #[test]
    fn the_last_success_of_each_schedule_is_shown() {
        let samples = samples(&[
            backup(Some("nightly"), 100, 130, "True"),
            backup(Some("nightly"), 200, 220, "True"),
            backup(Some("nightly"), 300, 310, "False"),
            backup(None, 50, 60, "True"),
        ]);
        let shown: Vec<(&str, &str, f64)> = samples
            .iter()
            .map(|sample| (sample.gauge.name, sample.labels[2].1.as_str(), sample.value))
            .collect();
        assert_eq!(
            shown,
            [
                ("backup_last_success_timestamp_seconds", "", 60.0),
                ("backup_last_duration_seconds", "", 10.0),
                ("backup_last_stored_bytes", "", 512.0),
                ("backup_last_keys", "", 60.0),
                ("backup_last_success_timestamp_seconds", "nightly", 220.0),
                ("backup_last_duration_seconds", "nightly", 20.0),
                ("backup_last_stored_bytes", "nightly", 512.0),
                ("backup_last_keys", "nightly", 220.0),
            ]
        );
    }
}
