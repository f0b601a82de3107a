//! What a replica writes into the units it holds. Pure.

use crate::capture::{CaptureProgress, CapturedShard};
use common::kubernetes::{
    claims::{ClaimPath, Holding, UnitReport},
    session,
};
use crds::{BackupShardState, SourceRole};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// The units in a backup's status.
pub const UNITS: &str = "/status/shards";

/// How a capture ended.
pub type End = session::End<Box<CapturedShard>>;

/// The report on a unit that is at work.
pub fn running(
    holding: Holding,
    key: &str,
    progress: &CaptureProgress,
    pod: Option<&str>,
) -> UnitReport {
    let state = match progress.forked_at {
        Some(_) => BackupShardState::Streaming,
        None => BackupShardState::Pending,
    };
    let mut fields = Map::new();
    fields.insert("state".into(), json!(state));
    fields.insert("key".into(), json!(key));
    fields.insert("rawBytes".into(), json!(progress.raw_bytes));
    fields.insert("storedBytes".into(), json!(progress.stored_bytes));
    fields.insert("keys".into(), json!(progress.keys));
    fields.insert("forkedAt".into(), json!(progress.forked_at.map(seconds)));
    if let Some(source) = progress.source {
        let pod = pod.map_or_else(|| source.address.to_string(), ToOwned::to_owned);
        let role: SourceRole = source.role;
        fields.insert(
            "source".into(),
            json!({"pod": pod, "nodeId": source.id.to_string(), "role": role}),
        );
    }
    UnitReport { holding, fields }
}

/// The last report on a unit, on top of the one it had while at work.
pub fn ended(mut report: UnitReport, end: &End) -> UnitReport {
    match end {
        End::Done(shard) => {
            let index = &shard.document.index;
            report.fields.extend(object(json!({
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
        End::Failed(error) => report.fields.extend(object(json!({
            "state": BackupShardState::Failed,
            "error": error,
        }))),
        End::HandedBack => report.fields = fresh(None),
        End::Stopped => report.fields.extend(object(json!({
            "state": BackupShardState::Failed,
            "worker": "",
            "error": "stopped: the backup has ended",
        }))),
    }
    report
}

/// The fields of a unit that nobody has begun.
pub fn fresh(error: Option<&str>) -> Map<String, Value> {
    object(json!({
        "worker": "",
        "state": BackupShardState::Pending,
        "source": Value::Null,
        "forkedAt": Value::Null,
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

/// A unit as `worker` holds it.
pub fn holding(position: usize, worker: &str, attempt: i32) -> Holding {
    Holding {
        path: ClaimPath {
            array: UNITS,
            index: position,
        },
        worker: worker.to_owned(),
        attempt,
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Map::new()
        }
    }
}

fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::BackupShard;

    /// What the API server would keep: nulls go.
    fn read(report: &UnitReport) -> BackupShard {
        let mut unit = object(
            json!({"index": 0, "primaryId": "p", "slotRanges": ["0-1"], "worker": "a", "attempt": 1}),
        );
        unit.extend(report.fields.clone());
        let kept = unit
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .collect();
        serde_json::from_value(Value::Object(kept)).unwrap()
    }

    #[test]
    fn a_fork_is_told_with_its_time() {
        let mut progress = CaptureProgress::default();
        let before = running(holding(0, "a", 1), "k", &progress, None);
        assert_eq!(read(&before).state, BackupShardState::Pending);
        progress.forked_at = Some("2026-11-21T02:30:00.5Z".parse().unwrap());
        progress.keys = Some(4);
        let unit = read(&running(holding(0, "a", 1), "k", &progress, None));
        assert_eq!(unit.state, BackupShardState::Streaming);
        assert_eq!(unit.keys, Some(4));
        assert!(unit.forked_at.is_some());
    }

    #[test]
    fn a_unit_that_is_handed_back_is_as_if_nobody_had_begun_it() {
        let progress = CaptureProgress {
            forked_at: Some(Timestamp::UNIX_EPOCH),
            ..CaptureProgress::default()
        };
        let report = running(holding(0, "a", 1), "k", &progress, Some("demo-0-1"));
        let unit = read(&ended(report, &End::HandedBack));
        let expected = BackupShard {
            primary_id: "p".into(),
            slot_ranges: vec!["0-1".into()],
            attempt: 1,
            ..BackupShard::default()
        };
        assert_eq!(unit, expected);
    }

    #[test]
    fn a_failure_keeps_its_holder_and_says_why() {
        let report = running(holding(0, "a", 1), "k", &CaptureProgress::default(), None);
        let unit = read(&ended(report, &End::Failed("no luck".into())));
        assert_eq!(
            (unit.worker.as_str(), unit.state),
            ("a", BackupShardState::Failed)
        );
        assert_eq!(unit.error.as_deref(), Some("no luck"));
    }
}
