//! What the planner writes into a backup's status. Pure; the units belong to the replicas that claim them.

use crate::plan::{Published, Step, is_finished};
use common::kubernetes::conditions::{Finding, holds, merge};
use crds::{
    BackupProgress, BackupShard, BackupShardState, RedisBackup, RedisBackupStatus, RedisCluster,
    S3Location,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

/// What was found out when a backup was accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Acceptance {
    /// Where it goes.
    pub storage: S3Location,
    /// Its identity.
    pub backup_id: String,
    /// Its address, for people.
    pub destination: String,
}

/// The status after a step. `cluster` is only looked at where the shards are handed out.
pub fn after(
    backup: &RedisBackup,
    step: &Step,
    acceptance: Option<Acceptance>,
    cluster: Option<&RedisCluster>,
    now: Timestamp,
) -> RedisBackupStatus {
    let mut status = backup.status.clone().unwrap_or_default();
    status.observed_generation = backup.metadata.generation;
    let mut findings = Vec::new();
    match step {
        Step::Accept(_) => {
            if let Some(accepted) = acceptance {
                findings.push(Finding::yes("Accepted", "StorageResolved", &accepted.destination));
                status.storage = Some(accepted.storage);
                status.backup_id = Some(accepted.backup_id);
                status.destination = Some(accepted.destination);
            }
            status.message = Some("waiting for the shards to be handed out".to_owned());
        }
        Step::List { units, topology_hash } => {
            findings.push(Finding::unknown("SlotsCovered", "NotForked", "not all shards have forked"));
            list(&mut status, units, topology_hash, cluster, now);
        }
        Step::Free(freed) => {
            let words: Vec<_> = freed.iter().map(|unit| unit.error.as_str()).collect();
            findings.push(Finding::unknown("SlotsCovered", "NotForked", "a shard is captured again"));
            status.message = Some(format!("another attempt: {}", words.join("; ")));
        }
        Step::ConfirmSlots => findings.push(Finding::yes(
            "SlotsCovered",
            "TopologyUnchanged",
            "the shards cover all 16384 slots, and no slot was moved while the snapshots were taken",
        )),
        Step::Succeed(published) => succeed(&mut status, published, &mut findings, now),
        Step::Fail { reason, message } => {
            findings.push(Finding::yes("Failed", reason, message));
            findings.push(Finding::no("Complete", reason, message));
            status.message = Some(message.clone());
            close(&mut status, now);
        }
        Step::Wait { message, .. } => status.message = Some(message.clone()),
        Step::Watch | Step::Publish | Step::DeleteArtifacts | Step::Probe(_) => {}
        Step::Ask(_)
        | Step::AddFinalizer
        | Step::RemoveFinalizer
        | Step::Abandon(_)
        | Step::Done => return status,
    }
    if !status.shards.is_empty() {
        captured(&status, &mut findings);
        status.progress = Some(progress(&status.shards));
        if matches!(step, Step::Watch | Step::Publish | Step::ConfirmSlots) {
            status.message = Some(under_way(&status));
        }
    }
    status.conditions = merge(
        &status.conditions,
        &findings,
        status.observed_generation,
        now,
    );
    status.phase = Some(phase(backup, &status, step).to_owned());
    status
}

fn list(
    status: &mut RedisBackupStatus,
    units: &[BackupShard],
    topology_hash: &str,
    cluster: Option<&RedisCluster>,
    now: Timestamp,
) {
    let slots_moved = !status.shards.is_empty();
    units.clone_into(&mut status.shards);
    status.topology_hash = Some(topology_hash.to_owned());
    status.started_at.get_or_insert(Time(now));
    status.message = Some(if slots_moved {
        "slots were moved between shards: all shards are captured again".to_owned()
    } else {
        format!("{} shards to capture", units.len())
    });
    if let Some(cluster) = cluster {
        status.cluster_uid = cluster.uid();
        status.redis_version = cluster
            .status
            .as_ref()
            .and_then(|status| status.version.running.clone());
    }
}

fn succeed(
    status: &mut RedisBackupStatus,
    published: &Published,
    findings: &mut Vec<Finding>,
    now: Timestamp,
) {
    status.manifest_key = Some(published.manifest_key.clone());
    status.manifest_sha256 = Some(published.manifest_sha256.clone());
    status.snapshot_skew_ms = Some(published.skew_ms);
    status.rdb_version = Some(published.rdb_version);
    status.message = Some("the backup is complete".to_owned());
    close(status, now);
    findings.push(Finding::yes(
        "Published",
        "ManifestWritten",
        &published.manifest_key,
    ));
    findings.push(Finding::yes(
        "Complete",
        "Succeeded",
        "every shard and the manifest are stored",
    ));
}

fn close(status: &mut RedisBackupStatus, now: Timestamp) {
    status.completed_at = Some(Time(now));
    status.duration = status
        .started_at
        .as_ref()
        .map(|start| duration(now.duration_since(start.0).as_secs()));
}

fn captured(status: &RedisBackupStatus, findings: &mut Vec<Finding>) {
    let (done, all) = count(&status.shards);
    let told = format!("{done} of {all} shards are stored");
    findings.push(if done == all {
        Finding::yes("Captured", "AllStored", told)
    } else {
        Finding::no("Captured", "Capturing", told)
    });
}

fn count(shards: &[BackupShard]) -> (usize, usize) {
    let stored = |unit: &&BackupShard| unit.state == BackupShardState::Stored;
    (shards.iter().filter(stored).count(), shards.len())
}

fn under_way(status: &RedisBackupStatus) -> String {
    let (done, all) = count(&status.shards);
    let failed = status
        .shards
        .iter()
        .find(|unit| unit.state == BackupShardState::Failed);
    match failed.and_then(|unit| unit.error.as_ref().map(|error| (unit.index, error))) {
        Some((index, error)) => format!("shard {index} will be tried again: {error}"),
        None if done == all => "writing the manifest".to_owned(),
        None => format!("{done} of {all} shards are stored"),
    }
}

/// The sum over the units.
fn progress(shards: &[BackupShard]) -> BackupProgress {
    let (done, all) = count(shards);
    let stored_bytes = shards.iter().map(|unit| unit.stored_bytes).sum();
    BackupProgress {
        summary: format!("{done}/{all}"),
        shards: i32::try_from(all).unwrap_or(i32::MAX),
        shards_done: i32::try_from(done).unwrap_or(i32::MAX),
        raw_bytes: shards.iter().map(|unit| unit.raw_bytes).sum(),
        stored_bytes,
        stored: bytes(stored_bytes),
        keys: shards.iter().map(|unit| unit.keys).sum(),
    }
}

/// One word for people.
fn phase(backup: &RedisBackup, status: &RedisBackupStatus, step: &Step) -> &'static str {
    if backup.metadata.deletion_timestamp.is_some() {
        return "Deleting";
    }
    if is_finished(status) {
        return if holds(&status.conditions, "Complete") {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    if matches!(step, Step::Wait { .. }) {
        return "Waiting";
    }
    match count(&status.shards) {
        (_, 0) => "Pending",
        (done, all) if done == all => "Publishing",
        _ => "Capturing",
    }
}

/// Bytes for people: three digits and a binary unit.
pub fn bytes(count: i64) -> String {
    let mut units = ["Ki", "Mi", "Gi", "Ti", "Pi"].into_iter();
    if count < 1024 {
        return count.to_string();
    }
    #[allow(clippy::cast_precision_loss)] // three digits are shown
    let mut rest = count as f64;
    let mut unit = "";
    while rest >= 1024.0 {
        let Some(next) = units.next() else { break };
        rest /= 1024.0;
        unit = next;
    }
    format!("{rest:.1}{unit}")
}

/// Seconds for people, for example 1h2m3s.
pub fn duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_for_people() {
        assert_eq!(bytes(812), "812");
        assert_eq!(bytes(64_382_566), "61.4Mi");
        assert_eq!(bytes(5 << 40), "5.0Ti");
        assert_eq!(duration(7), "7s");
        assert_eq!(duration(72), "1m12s");
        assert_eq!(duration(3723), "1h2m3s");
    }

    #[test]
    fn keys_are_unknown_when_one_shard_does_not_know() {
        let known = BackupShard {
            keys: Some(3),
            ..BackupShard::default()
        };
        assert_eq!(progress(&[known.clone(), known.clone()]).keys, Some(6));
        assert_eq!(progress(&[known, BackupShard::default()]).keys, None);
    }

    #[test]
    fn the_same_step_twice_writes_the_same() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let later = Timestamp::from_second(1_800_000_060).unwrap();
        let mut backup = RedisBackup::new("b", crds::RedisBackupSpec::default());
        let wait = Step::Wait {
            on: crate::plan::Awaited::Cluster,
            reason: "ClusterNotFound",
            message: "waiting".into(),
        };
        let first = after(&backup, &wait, None, None, now);
        assert_eq!(first.phase.as_deref(), Some("Waiting"));
        backup.status = Some(first.clone());
        assert_eq!(after(&backup, &wait, None, None, later), first);
    }

    #[test]
    fn a_failure_is_said_in_phase_message_and_condition() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let backup = RedisBackup::new("b", crds::RedisBackupSpec::default());
        let fail = Step::Fail {
            reason: "NoSuchBucket",
            message: "bucket b does not exist".into(),
        };
        let status = after(&backup, &fail, None, None, now);
        assert_eq!(status.phase.as_deref(), Some("Failed"));
        assert_eq!(status.message.as_deref(), Some("bucket b does not exist"));
        assert!(is_finished(&status));
        assert_eq!(status.conditions[0].reason, "NoSuchBucket");
    }
}
