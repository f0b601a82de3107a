//! What the planner writes into a restore's status. Pure; the units belong to the replicas that claim them.

use crate::plan::{Examined, Failure, Step, Verified, is_finished, is_loaded, target_name};
use common::kubernetes::conditions::{Finding, holds, merge};
use crds::{
    LocalRef, RedisRestore, RedisRestoreStatus, RestoreProgress, RestoreUnit, RestoreUnitState,
    Verification,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The status after a step.
pub fn after(restore: &RedisRestore, step: &Step, now: Timestamp) -> RedisRestoreStatus {
    let mut status = restore.status.clone().unwrap_or_default();
    let mut findings = Vec::new();
    match step {
        Step::Ask(_) | Step::Done => return status,
        Step::Examine => tell(&mut status, "reading the backup's manifest and indexes"),
        Step::Accept(examined) => accept(restore, &mut status, examined, &mut findings),
        Step::CreateCluster => tell(&mut status, "creating the RedisCluster"),
        Step::List {
            units,
            server,
            keys,
        } => {
            findings.push(Finding::yes(
                "Compatible",
                "VersionReadable",
                format!("the target runs {server}, which reads the backup's format"),
            ));
            findings.push(Finding::yes(
                "TargetReady",
                "Empty",
                "every slot of the target is served and no primary holds a key",
            ));
            units.clone_into(&mut status.units);
            status.started_at.get_or_insert(Time(now));
            status.progress = Some(RestoreProgress {
                total_keys: keys.map_or(0, whole),
                ..RestoreProgress::default()
            });
            let sentence = under_way(&status.units);
            tell(&mut status, sentence);
        }
        Step::Free(freed) => {
            let words: Vec<_> = freed.iter().map(|unit| unit.error.as_str()).collect();
            tell(
                &mut status,
                format!("another attempt: {}", words.join("; ")),
            );
        }
        Step::Succeed(verified) => succeed(&mut status, verified, &mut findings, now),
        Step::Fail(failure) => fail(&mut status, failure, &mut findings, now),
        Step::Wait { message, .. } => tell(&mut status, message),
        Step::Watch => {
            let sentence = under_way(&status.units);
            tell(&mut status, sentence);
        }
        Step::Verify => tell(&mut status, "counting the keys of the target slot by slot"),
    }
    status.observed_generation = restore.metadata.generation;
    if !status.units.is_empty() {
        loaded(&status, &mut findings);
        let total = status.progress.as_ref().map_or(0, |known| known.total_keys);
        status.progress = Some(progress(&status.units, total));
    }
    status.conditions = merge(
        &status.conditions,
        &findings,
        status.observed_generation,
        now,
    );
    status.phase = Some(phase(&status, step).to_owned());
    status
}

fn tell(status: &mut RedisRestoreStatus, message: impl Into<String>) {
    status.message = Some(message.into());
}

fn accept(
    restore: &RedisRestore,
    status: &mut RedisRestoreStatus,
    examined: &Examined,
    findings: &mut Vec<Finding>,
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
        "backup {} of {} in {} objects with {keys}: the manifest covers every slot and every object is there",
        examined.backup_id,
        examined.server,
        examined.blocks.len()
    );
    findings.push(Finding::yes("SourceValid", "ManifestProven", &sentence));
    tell(status, sentence);
}

fn succeed(
    status: &mut RedisRestoreStatus,
    verified: &Verified,
    findings: &mut Vec<Finding>,
    now: Timestamp,
) {
    let message = match verified {
        Verified::Compared(comparison) => {
            let sentence = comparison.sentence();
            findings.push(Finding::yes("Verified", "CountsFit", &sentence));
            sentence
        }
        Verified::NotCounted { actual } => {
            let sentence = format!(
                "{actual} keys found; the backup does not say how many there should be, because it holds a type that the controller which made it did not know"
            );
            findings.push(Finding::unknown("Verified", "NotCounted", &sentence));
            sentence
        }
    };
    status.verification = verification(verified);
    findings.push(Finding::yes("Complete", "Succeeded", &message));
    tell(status, message);
    close(status, now);
}

fn fail(
    status: &mut RedisRestoreStatus,
    failure: &Failure,
    findings: &mut Vec<Finding>,
    now: Timestamp,
) {
    let Failure {
        condition,
        reason,
        message,
        verified,
    } = failure;
    findings.push(Finding::no(condition, reason, message));
    findings.push(Finding::yes("Failed", reason, message));
    findings.push(Finding::no("Complete", reason, message));
    if let Some(verified) = verified {
        status.verification = verification(verified);
    }
    tell(status, message);
    close(status, now);
}

fn verification(verified: &Verified) -> Option<Verification> {
    match verified {
        Verified::Compared(comparison) => Some(Verification {
            expected: whole(comparison.expected),
            actual: whole(comparison.actual),
            expired: whole(comparison.expired),
            mismatched_slots: comparison.named_slots(),
        }),
        Verified::NotCounted { .. } => None,
    }
}

/// The API has signed numbers only.
fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn close(status: &mut RedisRestoreStatus, now: Timestamp) {
    status.completed_at = Some(Time(now));
    status.duration = status
        .started_at
        .as_ref()
        .map(|start| duration(now.duration_since(start.0).as_secs()));
}

fn loaded(status: &RedisRestoreStatus, findings: &mut Vec<Finding>) {
    let done = status.units.iter().filter(|unit| is_loaded(unit)).count();
    let all = status.units.len();
    let sentence = format!("{done} of {all} objects are replayed");
    if done == all {
        findings.push(Finding::yes("DataLoaded", "AllReplayed", sentence));
    } else if !findings.iter().any(|finding| finding.kind == "DataLoaded") {
        findings.push(Finding::no("DataLoaded", "Replaying", sentence));
    }
}

fn under_way(units: &[RestoreUnit]) -> String {
    let failed = units
        .iter()
        .find(|unit| unit.state == RestoreUnitState::Failed);
    if let Some(unit) = failed
        && let Some(error) = &unit.error
    {
        return format!("shard {} will be tried again: {error}", unit.index);
    }
    let done = units.iter().filter(|unit| is_loaded(unit)).count();
    format!("{done} of {} objects are replayed", units.len())
}

/// The sum over the units. The percentage is one of blocks: they are known even where keys are not.
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

/// One word for people.
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

/// Seconds for people, for example 1h2m3s.
fn duration(seconds: i64) -> String {
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

    #[test]
    fn durations_are_for_people() {
        assert_eq!(duration(72), "1m12s");
        assert_eq!(duration(3723), "1h2m3s");
    }
}
