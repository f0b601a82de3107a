//! The units of a backup: one for each shard, as the status shows them and as a replica reports them. Pure.

use crate::{
    capture::{CaptureProgress, CapturedShard},
    plan::is_finished,
};
use common::claims::{
    held,
    unit::{Stage, Unit, UnitKind, fields},
};
use crds::{BackupShard, BackupShardState, RedisBackup, SourceRole};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// How a capture ended.
pub type CaptureEnd = held::End<Box<CapturedShard>>;

/// The units of RedisBackups.
pub struct BackupUnits;

impl UnitKind for BackupUnits {
    type Object = RedisBackup;

    const UNITS: &'static str = "/status/shards";

    fn units(backup: &RedisBackup) -> Vec<Unit<'_>> {
        let shards = backup.status.iter().flat_map(|status| &status.shards);
        shards.map(unit).collect()
    }

    fn is_finished(backup: &RedisBackup) -> bool {
        backup.status.as_ref().is_some_and(is_finished)
    }

    fn failed(error: &str) -> Map<String, Value> {
        fields(json!({"state": BackupShardState::Failed, "error": error}))
    }

    fn freed(error: &str) -> Map<String, Value> {
        pending(Some(error))
    }
}

/// A snapshot lives in the connection to the server: only the process that asked for it can continue it.
fn unit(shard: &BackupShard) -> Unit<'_> {
    Unit {
        index: shard.index,
        worker: &shard.worker,
        attempt: shard.attempt,
        stage: match shard.state {
            BackupShardState::Pending => Stage::Open,
            BackupShardState::Streaming => Stage::Started,
            BackupShardState::Failed => Stage::Failed,
            BackupShardState::Stored => Stage::Ended,
        },
        error: shard.error.as_deref(),
    }
}

/// The fields of a unit at work.
pub fn running(key: &str, progress: &CaptureProgress, pod: Option<&str>) -> Map<String, Value> {
    let state = match progress.forked_at {
        Some(_) => BackupShardState::Streaming,
        None => BackupShardState::Pending,
    };
    let mut unit = fields(json!({
        "state": state,
        "key": key,
        "rawBytes": progress.raw_bytes,
        "storedBytes": progress.stored_bytes,
        "keys": progress.keys,
        "forkTime": progress.forked_at.map(seconds),
    }));
    if let Some(source) = progress.source {
        let pod = pod.map_or_else(|| source.address.to_string(), ToOwned::to_owned);
        let role: SourceRole = source.role;
        unit.insert(
            "source".into(),
            json!({"pod": pod, "nodeId": source.id.to_string(), "role": role}),
        );
    }
    unit
}

/// The fields of a unit that has ended, given those it had while at work.
pub fn ended(mut unit: Map<String, Value>, end: &CaptureEnd) -> Map<String, Value> {
    match end {
        CaptureEnd::Done(shard) => {
            let index = &shard.document.index;
            unit.extend(fields(json!({
                "state": BackupShardState::Stored,
                "key": shard.key,
                "indexKey": shard.index_key,
                "indexSha256": shard.index_sha256.to_string(),
                "sha256": index.sha256.to_string(),
                "rawBytes": index.raw_bytes,
                "storedBytes": index.stored_bytes,
                "keys": index.keys(),
                "error": Value::Null,
            })));
        }
        CaptureEnd::Failed(error) => unit.extend(BackupUnits::failed(error)),
        CaptureEnd::Released => unit = pending(None),
        CaptureEnd::Stopped => {
            unit.extend(BackupUnits::failed("stopped: the backup has ended"));
            unit.insert("worker".into(), "".into());
        }
    }
    unit
}

/// The fields of a unit that is not started.
fn pending(error: Option<&str>) -> Map<String, Value> {
    fields(json!({
        "worker": "",
        "state": BackupShardState::Pending,
        "source": Value::Null,
        "forkTime": Value::Null,
        "key": Value::Null,
        "indexKey": Value::Null,
        "indexSha256": Value::Null,
        "sha256": Value::Null,
        "rawBytes": 0,
        "storedBytes": 0,
        "keys": Value::Null,
        "error": error,
    }))
}

fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the API server would keep: nulls are removed.
    fn read(reported: Map<String, Value>) -> BackupShard {
        let mut unit = fields(
            json!({"index": 0, "primaryId": "p", "slotRanges": ["0-1"], "worker": "a", "attempt": 1}),
        );
        unit.extend(reported);
        let kept = unit
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .collect();
        serde_json::from_value(Value::Object(kept)).unwrap()
    }

    #[test]
    fn a_fork_is_reported_with_its_time() {
        let mut progress = CaptureProgress::default();
        let before = running("k", &progress, None);
        assert_eq!(read(before).state, BackupShardState::Pending);
        progress.forked_at = Some("2026-11-21T02:30:00.5Z".parse().unwrap());
        progress.keys = Some(4);
        let shard = read(running("k", &progress, None));
        assert_eq!(unit(&shard).stage, Stage::Started);
        assert_eq!(shard.keys, Some(4));
        assert!(shard.fork_time.is_some());
    }

    #[test]
    fn a_released_unit_is_as_before_its_start() {
        let progress = CaptureProgress {
            forked_at: Some(Timestamp::UNIX_EPOCH),
            ..CaptureProgress::default()
        };
        let fields = running("k", &progress, Some("demo-0-1"));
        let unit = read(ended(fields, &CaptureEnd::Released));
        let expected = BackupShard {
            primary_id: "p".into(),
            slot_ranges: vec!["0-1".into()],
            attempt: 1,
            ..BackupShard::default()
        };
        assert_eq!(unit, expected);
    }

    #[test]
    fn a_failed_unit_keeps_its_worker_and_the_cause() {
        let fields = running("k", &CaptureProgress::default(), None);
        let shard = read(ended(fields, &CaptureEnd::Failed("no luck".into())));
        let unit = unit(&shard);
        assert_eq!((unit.worker, unit.stage), ("a", Stage::Failed));
        assert_eq!(unit.error, Some("no luck"));
    }

    #[test]
    fn a_stopped_unit_has_no_worker() {
        let fields = running("k", &CaptureProgress::default(), None);
        let shard = read(ended(fields, &CaptureEnd::Stopped));
        assert_eq!(
            (shard.worker.as_str(), shard.state),
            ("", BackupShardState::Failed)
        );
    }
}
