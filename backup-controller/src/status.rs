//! The status that the planner writes after each step. Pure. The shards in it belong to the replicas that claim them.

use crate::plan::{Published, Step, is_finished};
use common::{
    claims::attempts::retry_message,
    kubernetes::{
        conditions::{ConditionUpdate, holds, merge},
        kstatus::{self, Completion},
    },
    sentence::shorten,
};
use crds::{
    BackupProgress, BackupShard, BackupShardState, ElapsedTime, RedisBackup, RedisBackupStatus,
    RedisCluster, S3Location,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use std::time::Duration;

/// What is fixed when a backup is accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Acceptance {
    /// The storage that the spec resolves to.
    pub storage: S3Location,
    /// Identifies the backup in storage.
    pub backup_id: String,
    /// Address of the backup, `s3://…/`.
    pub destination: String,
}

/// The status after a step, and for the log its message in full, where the status shows it shortened and did not before. `cluster` is
/// read only by the step that lists the shards.
pub fn after(
    backup: &RedisBackup,
    step: &Step,
    acceptance: Option<Acceptance>,
    cluster: Option<&RedisCluster>,
    now: Timestamp,
) -> (RedisBackupStatus, Option<String>) {
    let mut status = in_full(backup, step, acceptance, cluster, now);
    let before = backup.status.as_ref().and_then(|old| old.message.as_ref());
    let full = shorten(&mut status.message, before);
    (status, full)
}

fn in_full(
    backup: &RedisBackup,
    step: &Step,
    acceptance: Option<Acceptance>,
    cluster: Option<&RedisCluster>,
    now: Timestamp,
) -> RedisBackupStatus {
    let mut status = backup.status.clone().unwrap_or_default();
    observe(&mut status, backup.metadata.generation);
    let mut updates = Vec::new();
    match step {
        Step::Accept(_) => {
            if let Some(accepted) = acceptance {
                updates.push(ConditionUpdate::yes(
                    "Accepted",
                    "StorageResolved",
                    &accepted.destination,
                ));
                status.storage = Some(accepted.storage);
                status.backup_id = Some(accepted.backup_id);
                status.destination = Some(accepted.destination);
            }
            status.message =
                Some("the storage accepts objects; the shards are listed next".to_owned());
        }
        Step::List {
            units,
            topology_hash,
        } => {
            updates.push(ConditionUpdate::unknown(
                "SlotsCovered",
                "NotForked",
                "not every shard has taken its snapshot",
            ));
            list(&mut status, units, topology_hash, cluster, now);
        }
        Step::Free(freed) => {
            updates.push(ConditionUpdate::unknown(
                "SlotsCovered",
                "NotForked",
                "a shard is captured again",
            ));
            let freed = freed.iter();
            let freed = freed.map(|lost| (lost.position.to_string(), lost.error.as_str()));
            status.message = Some(retry_message("shard", freed));
        }
        Step::ConfirmSlots => updates.push(ConditionUpdate::yes(
            "SlotsCovered",
            "TopologyUnchanged",
            "the shards cover all 16384 slots, and no slot moved while the snapshots were taken",
        )),
        Step::Succeed(published) => succeed(&mut status, published, &mut updates, now),
        Step::Fail { reason, message } => {
            updates.push(ConditionUpdate::yes("Failed", reason, message));
            updates.push(ConditionUpdate::no("Complete", reason, message));
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
        captured(&status, &mut updates);
        status.progress = Some(progress(&status.shards));
        if matches!(step, Step::Watch | Step::Publish | Step::ConfirmSlots) {
            status.message = Some(under_way(&status));
        }
    }
    status.conditions = merge(
        &status.conditions,
        &updates,
        status.observed_generation,
        now,
    );
    let phase = phase(backup, &status, step);
    status.phase = Some(phase.to_owned());
    if backup.metadata.deletion_timestamp.is_none() {
        let (completion, reason) = completion(step, phase);
        let message = status.message.as_deref().unwrap_or(phase);
        status.conditions = merge(
            &status.conditions,
            &kstatus::conditions(completion, reason, message),
            status.observed_generation,
            now,
        );
    }
    status
}

/// What is known of the backup holds for the new generation as well: the fields that may still change decide only about deletion.
fn observe(status: &mut RedisBackupStatus, generation: Option<i64>) {
    status.observed_generation = generation;
    for condition in &mut status.conditions {
        condition.observed_generation = generation;
    }
}

fn completion(step: &Step, phase: &'static str) -> (Completion, &'static str) {
    match step {
        Step::Succeed(_) => (Completion::Done, "Succeeded"),
        Step::Fail { reason, .. } => (Completion::Stalled, *reason),
        Step::Wait { reason, .. } => (Completion::UnderWay, *reason),
        Step::Ask(_)
        | Step::AddFinalizer
        | Step::RemoveFinalizer
        | Step::DeleteArtifacts
        | Step::Abandon(_)
        | Step::Probe(_)
        | Step::Accept(_)
        | Step::List { .. }
        | Step::Free(_)
        | Step::ConfirmSlots
        | Step::Publish
        | Step::Watch
        | Step::Done => (Completion::UnderWay, phase),
    }
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
    status.start_time.get_or_insert(Time(now));
    status.message = Some(if slots_moved {
        "slots moved between shards: all shards are captured again".to_owned()
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
    updates: &mut Vec<ConditionUpdate>,
    now: Timestamp,
) {
    status.manifest_key = Some(published.manifest_key.clone());
    status.manifest_sha256 = Some(published.manifest_sha256.clone());
    let skew = u64::try_from(published.skew_ms).unwrap_or_default();
    status.snapshot_skew = Some(Duration::from_millis(skew).into());
    status.rdb_version = Some(published.rdb_version);
    status.message = Some("the backup is complete".to_owned());
    close(status, now);
    updates.push(ConditionUpdate::yes(
        "Published",
        "ManifestWritten",
        &published.manifest_key,
    ));
    updates.push(ConditionUpdate::yes(
        "Complete",
        "Succeeded",
        "every shard and the manifest are stored",
    ));
}

fn close(status: &mut RedisBackupStatus, now: Timestamp) {
    status.completion_time = Some(Time(now));
    status.duration = status.start_time.as_ref().map(|start| {
        let seconds = now.duration_since(start.0).as_secs();
        ElapsedTime::from(Duration::from_secs(
            u64::try_from(seconds).unwrap_or_default(),
        ))
    });
}

fn captured(status: &RedisBackupStatus, updates: &mut Vec<ConditionUpdate>) {
    let (done, all) = count(&status.shards);
    let message = format!("{done} of {all} shards are stored");
    updates.push(if done == all {
        ConditionUpdate::yes("Captured", "AllStored", message)
    } else {
        ConditionUpdate::no("Captured", "Capturing", message)
    });
}

fn count(shards: &[BackupShard]) -> (usize, usize) {
    let stored = |unit: &&BackupShard| unit.state == BackupShardState::Stored;
    (shards.iter().filter(stored).count(), shards.len())
}

fn under_way(status: &RedisBackupStatus) -> String {
    let (done, all) = count(&status.shards);
    let shards = status.shards.iter();
    let failed = shards.filter(|unit| unit.state == BackupShardState::Failed);
    let failed: Vec<_> = failed
        .filter_map(|unit| Some((unit.index.to_string(), unit.error.as_deref()?)))
        .collect();
    if !failed.is_empty() {
        return retry_message("shard", failed);
    }
    if done == all {
        return "writing the manifest".to_owned();
    }
    format!("{done} of {all} shards are stored")
}

/// Totals over the shards.
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

/// Summary in one word. Nothing reads it back.
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

/// Bytes with a binary unit, to one decimal.
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

#[cfg(test)]
mod tests {
    use super::*;
    use common::{kubernetes::kstatus::Kstatus, sentence::LIMIT};

    #[test]
    fn bytes_have_one_decimal_and_a_unit() {
        assert_eq!(bytes(812), "812");
        assert_eq!(bytes(64_382_566), "61.4Mi");
        assert_eq!(bytes(5 << 40), "5.0Ti");
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
        let first = after(&backup, &wait(), None, None, now).0;
        assert_eq!(first.phase.as_deref(), Some("Waiting"));
        backup.status = Some(first.clone());
        assert_eq!(after(&backup, &wait(), None, None, later).0, first);
    }

    #[test]
    fn a_failure_sets_phase_message_and_condition() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let backup = RedisBackup::new("b", crds::RedisBackupSpec::default());
        let status = after(&backup, &failure(), None, None, now).0;
        assert_eq!(status.phase.as_deref(), Some("Failed"));
        assert_eq!(status.message.as_deref(), Some("bucket b does not exist"));
        assert!(is_finished(&status));
        assert_eq!(status.conditions[0].reason, "NoSuchBucket");
    }

    #[test]
    fn a_long_message_is_shortened_and_logged_once() {
        let mut backup = went_through(&[list()]);
        let message = format!("cannot read it: {}; correct the path", "x".repeat(400));
        let wait = Step::Wait {
            on: crate::plan::Awaited::Cluster,
            reason: "ClusterNotFound",
            message: message.clone(),
        };
        let now = Timestamp::UNIX_EPOCH;
        let (status, full) = after(&backup, &wait, None, None, now);
        assert_eq!(full, Some(message));
        let shown = status.message.clone().unwrap();
        let conditions = status.conditions.iter().map(|one| &one.message);
        for text in conditions.chain([&shown]) {
            assert!(text.chars().count() <= LIMIT, "{text}");
        }
        assert!(shown.starts_with("cannot read it: xxx"), "{shown}");
        assert!(shown.ends_with("xxx…; correct the path"), "{shown}");
        backup.status = Some(status.clone());
        assert_eq!(after(&backup, &wait, None, None, now), (status, None));
    }

    /// While the store is away, every shard fails with an error that names its own object.
    #[test]
    fn shards_that_fail_alike_are_one_sentence() {
        let mut backup = went_through(&[list()]);
        for (index, shard) in (0..).zip(&mut backup.status.as_mut().unwrap().shards) {
            shard.index = index;
            shard.state = BackupShardState::Failed;
            shard.error = Some(format!("cannot write s3://b/{index}.rdb at http://s: away"));
        }
        let (status, _) = after(&backup, &Step::Watch, None, None, Timestamp::UNIX_EPOCH);
        assert_eq!(
            status.message.unwrap(),
            "2 shards (0, 1) are tried again: cannot write s3://b/… at http://s: away"
        );
    }

    fn failure() -> Step {
        Step::Fail {
            reason: "NoSuchBucket",
            message: "bucket b does not exist".into(),
        }
    }

    fn wait() -> Step {
        Step::Wait {
            on: crate::plan::Awaited::Cluster,
            reason: "ClusterNotFound",
            message: "waiting".into(),
        }
    }

    fn list() -> Step {
        Step::List {
            units: vec![BackupShard::default(), BackupShard::default()],
            topology_hash: "h".into(),
        }
    }

    fn success() -> Step {
        Step::Succeed(Published {
            manifest_key: "k".into(),
            manifest_sha256: "s".into(),
            skew_ms: 250,
            rdb_version: 10,
        })
    }

    /// A backup after these steps; before `Publish` and `Succeed` every shard is stored.
    fn went_through(steps: &[Step]) -> RedisBackup {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let mut backup = RedisBackup::new("b", crds::RedisBackupSpec::default());
        backup.metadata.generation = Some(1);
        for step in steps {
            if let (Step::Publish | Step::Succeed(_), Some(status)) = (step, &mut backup.status) {
                for shard in &mut status.shards {
                    shard.state = BackupShardState::Stored;
                }
            }
            backup.status = Some(after(&backup, step, None, None, now).0);
        }
        backup
    }

    fn read(backup: &RedisBackup) -> Kstatus {
        kstatus::evaluate(&serde_json::to_value(backup).unwrap())
    }

    #[test]
    fn kstatus_reads_every_phase() {
        let probe = || Step::Probe(Box::default());
        let accept = || Step::Accept(Box::default());
        for (steps, phase, expected) in [
            (vec![probe()], "Pending", Kstatus::InProgress),
            (vec![wait()], "Waiting", Kstatus::InProgress),
            (vec![accept()], "Pending", Kstatus::InProgress),
            (vec![accept(), list()], "Capturing", Kstatus::InProgress),
            (
                vec![accept(), list(), Step::Watch],
                "Capturing",
                Kstatus::InProgress,
            ),
            (
                vec![accept(), list(), wait()],
                "Waiting",
                Kstatus::InProgress,
            ),
            (
                vec![accept(), list(), Step::Publish],
                "Publishing",
                Kstatus::InProgress,
            ),
            (
                vec![accept(), list(), success()],
                "Succeeded",
                Kstatus::Current,
            ),
            (vec![accept(), list(), failure()], "Failed", Kstatus::Failed),
            (vec![wait(), failure()], "Failed", Kstatus::Failed),
        ] {
            let backup = went_through(&steps);
            let status = backup.status.as_ref().unwrap();
            assert_eq!(status.phase.as_deref(), Some(phase), "{steps:?}");
            assert_eq!(read(&backup), expected, "{steps:?}");
        }
    }

    #[test]
    fn a_deletion_keeps_what_is_known() {
        let mut backup = went_through(&[list(), success()]);
        let before = backup.status.clone().unwrap().conditions;
        backup.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let now = Timestamp::UNIX_EPOCH;
        let (status, _) = after(&backup, &Step::DeleteArtifacts, None, None, now);
        assert_eq!(status.phase.as_deref(), Some("Deleting"));
        assert_eq!(status.conditions, before);
        assert_eq!(read(&backup), Kstatus::Terminating);
    }

    #[test]
    fn a_change_after_the_end_is_observed() {
        for end in [success(), failure()] {
            let mut backup = went_through(&[list(), end]);
            let before = read(&backup);
            backup.metadata.generation = Some(2);
            assert_eq!(read(&backup), Kstatus::InProgress);
            let now = Timestamp::UNIX_EPOCH;
            let (status, _) = after(&backup, &Step::Done, None, None, now);
            let mut observed = status.conditions.iter().map(|one| one.observed_generation);
            assert!(observed.all(|generation| generation == Some(2)));
            backup.status = Some(status);
            assert_eq!(read(&backup), before);
        }
    }
}
