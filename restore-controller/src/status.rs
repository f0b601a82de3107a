//! The status that the planner writes after each step. Pure. The units in it belong to the replicas that claim them.

use crate::plan::{Examined, Failure, Step, Verified, is_finished, is_loaded, target_name};
use common::{
    claims::attempts::retry_message,
    kubernetes::{
        conditions::{ConditionUpdate, holds, merge},
        kstatus::{self, Completion},
    },
    sentence::shorten,
};
use crds::{
    ElapsedTime, LocalRef, RedisRestore, RedisRestoreStatus, RestoreProgress, RestoreUnit,
    RestoreUnitState, Verification,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::time::Duration;

/// The status after a step, and for the log its message in full, where the status shows it shortened and did not before.
pub fn after(
    restore: &RedisRestore,
    step: &Step,
    now: Timestamp,
) -> (RedisRestoreStatus, Option<String>) {
    let mut status = in_full(restore, step, now);
    let before = restore.status.as_ref();
    let before = before.and_then(|old| old.message.as_ref());
    let full = shorten(&mut status.message, before);
    (status, full)
}

fn in_full(restore: &RedisRestore, step: &Step, now: Timestamp) -> RedisRestoreStatus {
    let mut status = restore.status.clone().unwrap_or_default();
    let mut updates = Vec::new();
    match step {
        // Of freed units only their own fields are written.
        Step::Ask(_) | Step::Free(_) | Step::Done => return status,
        Step::Examine => report(&mut status, "reading manifest and indexes of the backup"),
        Step::Accept(examined) => accept(restore, &mut status, examined, &mut updates),
        Step::CreateCluster => report(
            &mut status,
            format!("creating RedisCluster {}", target_name(restore)),
        ),
        Step::List {
            units,
            server,
            keys,
        } => {
            updates.push(ConditionUpdate::yes(
                "Compatible",
                "VersionReadable",
                format!("the target runs {server}, which reads the format of the backup"),
            ));
            updates.push(ConditionUpdate::yes(
                "TargetReady",
                "Empty",
                "every slot of the target is served and no primary holds a key",
            ));
            units.clone_into(&mut status.units);
            status.start_time.get_or_insert(Time(now));
            status.progress = Some(RestoreProgress {
                total_keys: keys.map_or(0, signed),
                ..RestoreProgress::default()
            });
            let sentence = under_way(&status.units);
            report(&mut status, sentence);
        }
        Step::Succeed(verified) => succeed(&mut status, verified, &mut updates, now),
        Step::Fail(failure) => fail(&mut status, failure, &mut updates, now),
        Step::Wait { message, .. } => report(&mut status, message),
        Step::Watch => {
            let sentence = under_way(&status.units);
            report(&mut status, sentence);
        }
        Step::Verify => report(&mut status, "counting the keys of the target slot by slot"),
    }
    status.observed_generation = restore.metadata.generation;
    if !status.units.is_empty() {
        loaded(&status, &mut updates);
        let total = status.progress.as_ref().map_or(0, |known| known.total_keys);
        status.progress = Some(progress(&status.units, total));
    }
    status.conditions = merge(
        &status.conditions,
        &updates,
        status.observed_generation,
        now,
    );
    let phase = phase(&status, step);
    status.phase = Some(phase.to_owned());
    let (completion, reason) = completion(step, phase);
    let message = status.message.as_deref().unwrap_or(phase);
    status.conditions = merge(
        &status.conditions,
        &kstatus::conditions(completion, reason, message),
        status.observed_generation,
        now,
    );
    status
}

fn completion(step: &Step, phase: &'static str) -> (Completion, &'static str) {
    match step {
        Step::Succeed(_) => (Completion::Done, "Succeeded"),
        Step::Fail(failure) => (Completion::Stalled, failure.reason),
        Step::Wait { reason, .. } => (Completion::UnderWay, *reason),
        Step::Ask(_)
        | Step::Examine
        | Step::Accept(_)
        | Step::CreateCluster
        | Step::List { .. }
        | Step::Free(_)
        | Step::Verify
        | Step::Watch
        | Step::Done => (Completion::UnderWay, phase),
    }
}

fn report(status: &mut RedisRestoreStatus, message: impl Into<String>) {
    status.message = Some(message.into());
}

fn accept(
    restore: &RedisRestore,
    status: &mut RedisRestoreStatus,
    examined: &Examined,
    updates: &mut Vec<ConditionUpdate>,
) {
    status.storage = Some(examined.storage.clone());
    status.manifest_key = Some(examined.manifest_key.clone());
    status.manifest_sha256 = Some(examined.manifest_sha256.clone());
    status.backup_id = Some(examined.backup_id.clone());
    status.target_ref = Some(LocalRef {
        name: target_name(restore).to_owned(),
    });
    let keys = examined.keys.map_or_else(
        || "an unknown number of keys".to_owned(),
        |keys| format!("{keys} keys"),
    );
    let sentence = format!(
        "backup {} of {}: {} objects with {keys}; the manifest covers every slot, and every object exists",
        examined.backup_id,
        examined.server,
        examined.blocks.len()
    );
    updates.push(ConditionUpdate::yes(
        "SourceValid",
        "ManifestProven",
        &sentence,
    ));
    report(status, sentence);
}

fn succeed(
    status: &mut RedisRestoreStatus,
    verified: &Verified,
    updates: &mut Vec<ConditionUpdate>,
    now: Timestamp,
) {
    let message = match verified {
        Verified::Compared(comparison) => {
            let sentence = comparison.sentence();
            updates.push(ConditionUpdate::yes("Verified", "CountsFit", &sentence));
            sentence
        }
        Verified::NotCounted { actual } => {
            let sentence = format!(
                "{actual} keys found; the backup has no count to compare with: it holds values of a type that was unknown when it was made"
            );
            updates.push(ConditionUpdate::unknown(
                "Verified",
                "NotCounted",
                &sentence,
            ));
            sentence
        }
    };
    status.verification = verification(verified);
    updates.push(ConditionUpdate::yes("Complete", "Succeeded", &message));
    report(status, message);
    close(status, now);
}

fn fail(
    status: &mut RedisRestoreStatus,
    failure: &Failure,
    updates: &mut Vec<ConditionUpdate>,
    now: Timestamp,
) {
    let Failure {
        condition,
        reason,
        message,
        verified,
    } = failure;
    updates.push(ConditionUpdate::no(condition, reason, message));
    updates.push(ConditionUpdate::yes("Failed", reason, message));
    updates.push(ConditionUpdate::no("Complete", reason, message));
    if let Some(verified) = verified {
        status.verification = verification(verified);
    }
    report(status, message);
    close(status, now);
}

fn verification(verified: &Verified) -> Option<Verification> {
    match verified {
        Verified::Compared(comparison) => Some(Verification {
            expected: signed(comparison.expected),
            actual: signed(comparison.actual),
            expired: signed(comparison.expired),
            mismatched_slots: comparison.named_slots(),
        }),
        Verified::NotCounted { .. } => None,
    }
}

/// The API has no unsigned numbers.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn close(status: &mut RedisRestoreStatus, now: Timestamp) {
    status.completion_time = Some(Time(now));
    status.duration = status.start_time.as_ref().map(|start| {
        let seconds = now.duration_since(start.0).as_secs();
        ElapsedTime::from(Duration::from_secs(
            u64::try_from(seconds).unwrap_or_default(),
        ))
    });
}

fn loaded(status: &RedisRestoreStatus, updates: &mut Vec<ConditionUpdate>) {
    let done = status.units.iter().filter(|unit| is_loaded(unit)).count();
    let all = status.units.len();
    let sentence = format!("{done} of {all} objects are replayed");
    if done == all {
        updates.push(ConditionUpdate::yes("DataLoaded", "AllReplayed", sentence));
    } else if !updates.iter().any(|update| update.kind == "DataLoaded") {
        updates.push(ConditionUpdate::no("DataLoaded", "Replaying", sentence));
    }
}

fn under_way(units: &[RestoreUnit]) -> String {
    let failed = units
        .iter()
        .filter(|unit| unit.state == RestoreUnitState::Failed);
    let failed: Vec<_> = failed
        .filter_map(|unit| Some((unit.index.to_string(), unit.error.as_deref()?)))
        .collect();
    if !failed.is_empty() {
        return retry_message("object", failed);
    }
    let done = units.iter().filter(|unit| is_loaded(unit)).count();
    format!("{done} of {} objects are replayed", units.len())
}

/// Totals over the units. The percentage counts blocks: their number is known even where that of the keys is not.
fn progress(units: &[RestoreUnit], total_keys: i64) -> RestoreProgress {
    let blocks: i64 = units.iter().map(|unit| unit.blocks).sum();
    let done: i64 = units.iter().map(|unit| unit.block.min(unit.blocks)).sum();
    let percent = (done * 100).checked_div(blocks).unwrap_or(100);
    RestoreProgress {
        summary: format!("{percent}%"),
        keys: units.iter().map(|unit| unit.keys).sum(),
        total_keys,
        expired: units.iter().map(|unit| unit.expired).sum(),
    }
}

/// Summary in one word. Nothing reads it back.
fn phase(status: &RedisRestoreStatus, step: &Step) -> &'static str {
    if is_finished(status) {
        let succeeded = holds(&status.conditions, "Complete");
        return if succeeded { "Succeeded" } else { "Failed" };
    }
    if status.units.iter().all(is_loaded) && !status.units.is_empty() {
        return "Verifying";
    }
    if !status.units.is_empty() {
        return "Replaying";
    }
    match (status.manifest_sha256.is_some(), step) {
        (false, Step::Wait { .. }) => "Pending",
        (false, _) => "Validating",
        (true, _) => "Provisioning",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::{kubernetes::kstatus::Kstatus, sentence::LIMIT};
    use std::sync::Arc;

    fn unit(block: i64, blocks: i64, keys: i64) -> RestoreUnit {
        RestoreUnit {
            block,
            blocks,
            keys,
            ..RestoreUnit::default()
        }
    }

    #[test]
    fn progress_is_counted_in_blocks() {
        let all = progress(&[unit(1, 4, 10), unit(4, 4, 30)], 100);
        assert_eq!(
            (all.summary.as_str(), all.keys, all.total_keys),
            ("62%", 40, 100)
        );
        assert_eq!(progress(&[unit(0, 0, 0)], 0).summary, "100%");
    }

    fn restore() -> RedisRestore {
        let mut restore = RedisRestore::new("r", crds::RedisRestoreSpec::default());
        restore.metadata.generation = Some(1);
        restore
    }

    fn accept() -> Step {
        Step::Accept(Arc::new(Examined {
            storage: crds::S3Location::default(),
            manifest_key: "p/manifest.json".into(),
            manifest_sha256: "ab".into(),
            backup_id: "id".into(),
            server: "Redis 7.0.15".into(),
            rdb_version: 10,
            keys: Some(100),
            blocks: vec![4, 1],
        }))
    }

    fn wait() -> Step {
        Step::Wait {
            reason: "BackupNotComplete",
            message: "waiting".into(),
        }
    }

    fn list() -> Step {
        Step::List {
            units: vec![unit(0, 4, 0), unit(0, 1, 0)],
            server: "Redis 7.0.15".into(),
            keys: Some(100),
        }
    }

    fn failure() -> Step {
        Step::Fail(Failure {
            condition: "TargetReady",
            reason: "TargetNotEmpty",
            message: "the target holds keys".into(),
            verified: None,
        })
    }

    fn success() -> Step {
        Step::Succeed(Verified::NotCounted { actual: 100 })
    }

    #[test]
    fn a_long_message_is_shortened_and_logged_once() {
        let mut restore = restore();
        let message = format!("cannot read it: {}; correct the path", "x".repeat(400));
        let fail = Step::Fail(Failure {
            condition: "SourceValid",
            reason: "NoSuchKey",
            message: message.clone(),
            verified: None,
        });
        let (status, full) = after(&restore, &fail, Timestamp::UNIX_EPOCH);
        assert_eq!(full, Some(message));
        let shown = status.message.clone().unwrap();
        let conditions = status.conditions.iter().map(|one| &one.message);
        for text in conditions.chain([&shown]) {
            assert!(text.chars().count() <= LIMIT, "{text}");
        }
        assert!(shown.ends_with("xxx…; correct the path"), "{shown}");
        restore.status = Some(status.clone());
        let again = after(&restore, &fail, Timestamp::UNIX_EPOCH);
        assert_eq!(again, (status, None));
    }

    /// While the store is away, every object fails with an error that names its own key.
    #[test]
    fn objects_that_fail_alike_are_one_sentence() {
        let failed = |index| RestoreUnit {
            index,
            state: RestoreUnitState::Failed,
            error: Some(format!("cannot read s3://b/{index}.rdb at http://s: away")),
            ..RestoreUnit::default()
        };
        assert_eq!(
            under_way(&[failed(0), unit(0, 4, 0), failed(2), failed(3)]),
            "3 objects (0, 2, …) are tried again: cannot read s3://b/… at http://s: away"
        );
    }

    #[test]
    fn kstatus_reads_every_phase() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        for (steps, phase, expected) in [
            (vec![wait()], "Pending", Kstatus::InProgress),
            (vec![Step::Examine], "Validating", Kstatus::InProgress),
            (vec![accept()], "Provisioning", Kstatus::InProgress),
            (
                vec![accept(), Step::CreateCluster],
                "Provisioning",
                Kstatus::InProgress,
            ),
            (vec![accept(), wait()], "Provisioning", Kstatus::InProgress),
            (vec![accept(), list()], "Replaying", Kstatus::InProgress),
            (
                vec![accept(), list(), Step::Watch],
                "Replaying",
                Kstatus::InProgress,
            ),
            (
                vec![accept(), list(), Step::Verify],
                "Verifying",
                Kstatus::InProgress,
            ),
            (
                vec![accept(), list(), success()],
                "Succeeded",
                Kstatus::Current,
            ),
            (vec![accept(), list(), failure()], "Failed", Kstatus::Failed),
            (vec![failure()], "Failed", Kstatus::Failed),
        ] {
            let mut restore = restore();
            for step in &steps {
                if let (Step::Verify | Step::Succeed(_), Some(status)) = (step, &mut restore.status)
                {
                    for unit in &mut status.units {
                        unit.state = RestoreUnitState::Loaded;
                    }
                }
                restore.status = Some(after(&restore, step, now).0);
            }
            let status = restore.status.as_ref().unwrap();
            assert_eq!(status.phase.as_deref(), Some(phase), "{steps:?}");
            let read = kstatus::evaluate(&serde_json::to_value(&restore).unwrap());
            assert_eq!(read, expected, "{steps:?}");
        }
    }
}
