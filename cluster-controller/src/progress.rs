//! How often words and progress are written to the status: memory that may be lost.
//!
//! Slots move by the hundred a second, and of a hundred pods that start each changes what is waited for. A status that follows each of them
//! would be written several times a second, and every write starts the next reconcile.

use common::kubernetes::conditions::holds;
use crds::{RedisClusterStatus, ShardStatus};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// The shortest time between two writes that differ in words and progress only.
pub const INTERVAL: SignedDuration = SignedDuration::from_secs(1);
/// The same before the cluster has served for the first time: every pod that starts changes all that is counted.
const FORMING: SignedDuration = SignedDuration::from_secs(2);

/// The status to write now.
#[derive(Clone, Debug, PartialEq)]
pub struct PacedStatus {
    /// The newest, or the old one.
    pub status: RedisClusterStatus,
    /// Whether it lacks something: the next look is due within [`INTERVAL`].
    pub is_held_back: bool,
}

impl PacedStatus {
    fn whole(status: RedisClusterStatus) -> Self {
        Self {
            status,
            is_held_back: false,
        }
    }
}

/// When the statuses of clusters were written last.
#[derive(Debug, Default)]
pub struct ProgressTracker {
    written: Mutex<HashMap<(String, String), Timestamp>>,
}

impl ProgressTracker {
    /// The status to write now: the old one while it was written a moment ago and lacks nothing but the newest words and progress; of a cluster
    /// that forms, nothing but how far it is.
    /// `records`: whether commands wait for the nodes that it records.
    pub fn paced(
        &self,
        (namespace, name): (&str, &str),
        old: Option<&RedisClusterStatus>,
        (new, records): (RedisClusterStatus, bool),
        now: Timestamp,
    ) -> PacedStatus {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (namespace.to_owned(), name.to_owned());
        let last = written.get(&place).copied();
        let Some(old) = old.filter(|old| **old != new) else {
            return PacedStatus::whole(new);
        };
        let forms = is_same_stage_of_forming(old, &new);
        let interval = if forms { FORMING } else { INTERVAL };
        let is_early = last.is_some_and(|last| now < last + interval);
        if is_early && !records && (forms || differs_little(old, &new)) {
            return PacedStatus {
                status: old.clone(),
                is_held_back: true,
            };
        }
        written.insert(place, now);
        PacedStatus::whole(new)
    }

    /// The cluster is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.remove(&(namespace.to_owned(), name.to_owned()));
    }
}

/// Whether the cluster has never served, and is as far on its way as before.
fn is_same_stage_of_forming(old: &RedisClusterStatus, new: &RedisClusterStatus) -> bool {
    let formed = |status: &RedisClusterStatus| holds(&status.conditions, "Formed");
    !formed(old)
        && !formed(new)
        && old.phase == new.phase
        && old.observed_generation == new.observed_generation
}

/// Whether two statuses differ in nothing but words, and where they are of one operation, in how far it is: in numbers, and in which slots
/// have moved.
fn differs_little(old: &RedisClusterStatus, new: &RedisClusterStatus) -> bool {
    let mut same = new.clone();
    match (&old.operation, &new.operation) {
        (None, None) => {}
        (Some(before), Some(after)) if before.kind == after.kind && before.total == after.total => {
            same.operation.clone_from(&old.operation);
            same.topology_hash.clone_from(&old.topology_hash);
            for (shard, before) in same.shard_statuses.iter_mut().zip(&old.shard_statuses) {
                copy_slots(shard, before);
            }
        }
        (None | Some(_), Some(_)) | (Some(_), None) => return false,
    }
    same.message.clone_from(&old.message);
    for (condition, before) in same.conditions.iter_mut().zip(&old.conditions) {
        condition.message.clone_from(&before.message);
    }
    same == *old
}

fn copy_slots(shard: &mut ShardStatus, before: &ShardStatus) {
    // The first slots of a shard, and its last, are more than progress.
    if shard.slot_ranges.is_empty() == before.slot_ranges.is_empty() {
        shard.slot_ranges.clone_from(&before.slot_ranges);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::{OperationKind, OperationStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

    const PLACE: (&str, &str) = ("team", "shop");

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(milliseconds).unwrap()
    }

    fn paced(
        tracker: &ProgressTracker,
        place: (&str, &str),
        old: Option<&RedisClusterStatus>,
        new: &RedisClusterStatus,
        now: Timestamp,
    ) -> RedisClusterStatus {
        let paced = tracker.paced(place, old, (new.clone(), false), now);
        assert_eq!(paced.is_held_back, paced.status != *new);
        paced.status
    }

    fn formed(status: &str) -> Condition {
        let changed = Time(at(0));
        Condition {
            last_transition_time: changed,
            message: String::new(),
            observed_generation: None,
            reason: "Forming".to_owned(),
            status: status.to_owned(),
            type_: "Formed".to_owned(),
        }
    }

    fn scaling(done: i32, slots: &str) -> RedisClusterStatus {
        RedisClusterStatus {
            conditions: vec![formed("True")],
            phase: Some("Scaling".to_owned()),
            message: Some(format!("{done} slots")),
            topology_hash: Some(slots.to_owned()),
            operation: Some(OperationStatus {
                kind: OperationKind::Scale,
                start_time: Time(at(0)),
                done,
                total: 16384,
                message: format!("{done} slots moved"),
            }),
            shard_statuses: vec![ShardStatus {
                slot_ranges: vec![slots.to_owned()],
                ..ShardStatus::default()
            }],
            ..RedisClusterStatus::default()
        }
    }

    #[test]
    fn words_alone_are_written_once_a_second() {
        let waiting = |words: &str| RedisClusterStatus {
            phase: Some("Repairing".to_owned()),
            message: Some(words.to_owned()),
            conditions: vec![formed("True")],
            ..RedisClusterStatus::default()
        };
        let tracker = ProgressTracker::default();
        let old = waiting("3 pods");
        let first = paced(&tracker, PLACE, Some(&old), &waiting("2 pods"), at(1000));
        assert_eq!(first, waiting("2 pods"), "nothing was written before");
        let early = paced(&tracker, PLACE, Some(&first), &waiting("1 pod"), at(1300));
        assert_eq!(early, first);
        let later = paced(&tracker, PLACE, Some(&first), &waiting("no pod"), at(2000));
        assert_eq!(later, waiting("no pod"));
    }

    /// Counts as well as words; but not the next phase, nor nodes that commands wait for.
    #[test]
    fn a_cluster_that_forms_is_reported_less_often() {
        let pods = |ready: i32, phase: &str| RedisClusterStatus {
            phase: Some(phase.to_owned()),
            ready_nodes: ready,
            conditions: vec![formed("False")],
            ..RedisClusterStatus::default()
        };
        let tracker = ProgressTracker::default();
        let (old, three) = (pods(0, "Forming"), pods(3, "Forming"));
        let first = paced(&tracker, PLACE, Some(&old), &three, at(1000));
        assert_eq!(first, three, "nothing was written before");
        let four = pods(4, "Forming");
        let early = paced(&tracker, PLACE, Some(&first), &four, at(2900));
        assert_eq!(early, first);
        let recorded = tracker.paced(PLACE, Some(&first), (four.clone(), true), at(2900));
        assert_eq!(recorded.status, four);
        let ready = pods(6, "Ready");
        assert_eq!(paced(&tracker, PLACE, Some(&four), &ready, at(3000)), ready);
    }

    #[test]
    fn progress_alone_is_written_once_a_second() {
        let tracker = ProgressTracker::default();
        let old = scaling(1, "0-1");
        let first = paced(&tracker, PLACE, Some(&old), &scaling(2, "0-2"), at(1000));
        assert_eq!(first, scaling(2, "0-2"), "nothing was written before");
        let early = paced(&tracker, PLACE, Some(&first), &scaling(3, "0-3"), at(1300));
        assert_eq!(early, first);
        let later = paced(&tracker, PLACE, Some(&first), &scaling(9, "0-9"), at(2000));
        assert_eq!(later, scaling(9, "0-9"));
    }

    #[test]
    fn whatever_else_changes_is_written_at_once() {
        let changes: [fn(&mut RedisClusterStatus); 5] = [
            |status| status.operation = None,
            |status| status.ready_nodes += 1,
            |status| status.phase = Some("Repairing".to_owned()),
            |status| status.slots.ok += 1,
            |status| status.shard_statuses[0].slot_ranges.clear(),
        ];
        for change in changes {
            let tracker = ProgressTracker::default();
            let old = paced(&tracker, PLACE, None, &scaling(1, "0-1"), at(1000));
            let old = paced(&tracker, PLACE, Some(&old), &scaling(2, "0-2"), at(1000));
            let mut new = scaling(3, "0-3");
            change(&mut new);
            let written = paced(&tracker, PLACE, Some(&old), &new, at(1100));
            assert_eq!(written, new);
        }
    }
}
