use super::*;
use crate::status;
use common::cluster::{slot_map::SlotMap, topology::NodeId};
use common::{
    claims::{
        attempts::{AttemptFacts, delay},
        jobs::JobFailure,
    },
    kubernetes::leases::Holder,
};
use crds::{
    BackupPlan, BackupShard, BackupShardState, BackupStorage, LocalRef, RedisBackupSpec,
    RedisClusterSpec, RedisClusterStatus,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub(super) fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn backup() -> RedisBackup {
    let mut backup = RedisBackup::new(
        "b",
        RedisBackupSpec {
            cluster_ref: LocalRef {
                name: "demo".into(),
            },
            storage_name: Some("main".into()),
            attempts: 3,
            ..RedisBackupSpec::default()
        },
    );
    backup.metadata.namespace = Some("shop".into());
    backup.metadata.generation = Some(1);
    backup
}

fn cluster() -> RedisCluster {
    let mut cluster = RedisCluster::new(
        "demo",
        RedisClusterSpec {
            backup: Some(BackupPlan {
                storages: vec![BackupStorage {
                    name: "main".into(),
                    s3: S3Location {
                        bucket: "backups".into(),
                        ..S3Location::default()
                    },
                }],
                schedules: Vec::new(),
            }),
            ..RedisClusterSpec::default()
        },
    );
    cluster.metadata.generation = Some(1);
    cluster.status = Some(RedisClusterStatus {
        observed_generation: Some(1),
        conditions: vec![Condition {
            type_: "SlotsCovered".into(),
            status: "True".into(),
            reason: "Covered".into(),
            message: String::new(),
            observed_generation: Some(1),
            last_transition_time: Time(now()),
        }],
        ..RedisClusterStatus::default()
    });
    cluster
}

fn map(cuts: &[u16]) -> SlotMap {
    let mut start = 0;
    let mut primaries = common::cluster::slot_map::SlotsByPrimary::new();
    for (number, end) in (0u8..).zip(cuts.iter().copied().chain([16383])) {
        let mut slots = common::cluster::slots::SlotSet::new();
        slots.insert_range(format!("{start}-{end}").parse().unwrap());
        primaries.insert(NodeId::from_bytes([number; 20]), slots);
        start = end + 1;
    }
    SlotMap::new(primaries)
}

fn ready() -> Observed {
    Observed {
        cluster: Some(Some(Arc::new(cluster()))),
        storage: Some(Ok(())),
        operation: Some(Operation::Held),
        slot_map: Some(Ok(map(&[4000, 9000]))),
        attempts: AttemptFacts {
            members: Some(BTreeSet::from(["w0".to_owned()])),
            ..AttemptFacts::default()
        },
        ..Observed::default()
    }
}

fn accepted() -> RedisBackup {
    let mut backup = backup();
    backup.status = Some(RedisBackupStatus {
        storage: Some(S3Location::default()),
        backup_id: Some("id".into()),
        ..RedisBackupStatus::default()
    });
    backup
}

fn capturing(states: &[(BackupShardState, &str, i32)]) -> RedisBackup {
    let mut backup = accepted();
    let shards = &mut backup.status.as_mut().unwrap().shards;
    *shards = shards::units(&map(&[4000, 9000]), 1);
    for (unit, (state, worker, attempt)) in shards.iter_mut().zip(states) {
        unit.state = *state;
        unit.worker = (*worker).to_owned();
        unit.attempt = *attempt;
        let forked = matches!(
            state,
            BackupShardState::Streaming | BackupShardState::Stored
        );
        unit.fork_time = forked.then(|| Time(now()));
    }
    backup
}

use BackupShardState::{Failed, Pending, Stored, Streaming};

#[test]
fn asks_only_what_it_needs_and_in_order() {
    let mut seen = Observed::default();
    assert_eq!(plan(&backup(), &seen), Step::Ask(Question::Cluster));
    seen.cluster = ready().cluster;
    assert!(matches!(plan(&backup(), &seen), Step::Probe(_)));
    seen.storage = Some(Ok(()));
    assert!(matches!(plan(&backup(), &seen), Step::Accept(_)));
    assert_eq!(plan(&accepted(), &seen), Step::Ask(Question::Operation));
    seen.operation = Some(Operation::Held);
    assert_eq!(plan(&accepted(), &seen), Step::Ask(Question::SlotMap));
    seen.slot_map = ready().slot_map;
    assert!(matches!(plan(&accepted(), &seen), Step::List { .. }));
}

#[test]
fn the_slot_map_is_read_only_under_the_operation_lease() {
    let mut seen = ready();
    let holder = Holder {
        kind: "RedisRestore".into(),
        name: "r".into(),
        uid: "u".into(),
    };
    seen.operation = Some(Operation::HeldBy(holder));
    let Step::Wait { message, .. } = plan(&accepted(), &seen) else {
        panic!("not waiting")
    };
    assert!(message.contains("RedisRestore/r"), "{message}");
}

#[test]
fn the_wait_for_a_cluster_that_is_not_ready_ends() {
    let mut seen = ready();
    seen.cluster = Some(None);
    assert!(matches!(
        plan(&backup(), &seen),
        Step::Wait {
            reason: "ClusterNotFound",
            ..
        }
    ));
    let mut behind = cluster();
    behind.metadata.generation = Some(2);
    seen.cluster = Some(Some(Arc::new(behind)));
    assert!(matches!(
        plan(&accepted(), &seen),
        Step::Wait {
            reason: "ClusterNotObserved",
            ..
        }
    ));
    let mut broken = cluster();
    broken.status.as_mut().unwrap().conditions[0].status = "False".into();
    seen.cluster = Some(Some(Arc::new(broken)));
    assert!(matches!(
        plan(&accepted(), &seen),
        Step::Wait {
            reason: "SlotsNotCovered",
            ..
        }
    ));
    seen.waiting = Some((Awaited::Cluster, PATIENCE));
    let Step::Fail { reason, message } = plan(&accepted(), &seen) else {
        panic!("still waiting")
    };
    assert_eq!(reason, "SlotsNotCovered");
    assert!(message.starts_with("gave up after 10 minutes"), "{message}");
}

#[test]
fn an_unknown_storage_is_refused_with_the_known_ones() {
    let mut backup = backup();
    backup.spec.storage_name = Some("mian".into());
    let Step::Fail { reason, message } = plan(&backup, &ready()) else {
        panic!("accepted")
    };
    assert_eq!(reason, "StorageUnknown");
    assert!(
        message.contains("\"mian\"") && message.contains("it has: main"),
        "{message}"
    );
}

#[test]
fn a_wrong_storage_fails_and_an_outage_is_waited_for() {
    let mut seen = ready();
    let mut failure = JobFailure {
        reason: "NoSuchBucket",
        message: "bucket".into(),
        transient: false,
    };
    seen.storage = Some(Err(failure.clone()));
    assert!(matches!(
        plan(&backup(), &seen),
        Step::Fail {
            reason: "NoSuchBucket",
            ..
        }
    ));
    failure.transient = true;
    seen.storage = Some(Err(failure));
    assert!(matches!(plan(&backup(), &seen), Step::Wait { .. }));
    // The wait for the cluster before does not count.
    seen.waiting = Some((Awaited::Cluster, PATIENCE));
    assert!(matches!(plan(&backup(), &seen), Step::Wait { .. }));
    seen.waiting = Some((Awaited::Storage, STORAGE_PATIENCE));
    assert!(matches!(plan(&backup(), &seen), Step::Fail { .. }));
}

#[test]
fn an_open_slot_is_waited_for() {
    let mut seen = ready();
    seen.slot_map = Some(Err(common::cluster::slot_map::NotSettled::OpenSlot {
        slot: 7,
        node: "aa".into(),
        others: 0,
    }));
    assert!(matches!(
        plan(&accepted(), &seen),
        Step::Wait {
            reason: "SlotMapNotSettled",
            ..
        }
    ));
}

#[test]
fn a_dead_replicas_unit_is_freed_and_only_that() {
    let backup = capturing(&[
        (Streaming, "w0", 1),
        (Streaming, "gone", 1),
        (Stored, "gone", 1),
    ]);
    let Step::Free(freed) = plan(&backup, &ready()) else {
        panic!("not freed")
    };
    assert_eq!(freed.len(), 1);
    assert_eq!(
        (
            freed[0].position,
            freed[0].worker.as_str(),
            freed[0].attempt
        ),
        (1, "gone", 1)
    );
    assert!(freed[0].error.contains("gone"));
}

#[test]
fn a_failed_unit_waits_and_its_last_attempt_is_final() {
    let backup = capturing(&[(Failed, "w0", 1), (Pending, "", 1), (Pending, "", 1)]);
    let mut seen = ready();
    assert_eq!(plan(&backup, &seen), Step::Watch);
    seen.attempts.failed_for = BTreeMap::from([(0, delay(1))]);
    assert!(matches!(plan(&backup, &seen), Step::Free(freed) if freed.len() == 1));
    let mut last = capturing(&[(Failed, "w0", 3), (Streaming, "w0", 1), (Pending, "", 1)]);
    last.status.as_mut().unwrap().shards[0].error = Some("bucket \"b\" does not exist".into());
    let Step::Fail { reason, message } = plan(&last, &seen) else {
        panic!("goes on")
    };
    assert_eq!(reason, "ShardFailed");
    assert!(
        message.contains("0-4000") && message.contains("bucket \"b\""),
        "{message}"
    );
}

#[test]
fn the_map_is_compared_after_the_last_fork_despite_failovers() {
    let backup = capturing(&[
        (Streaming, "w0", 1),
        (Streaming, "w0", 1),
        (Stored, "w0", 1),
    ]);
    let mut seen = ready();
    assert_eq!(plan(&backup, &seen), Step::ConfirmSlots);
    let mut failed_over = map(&[4000, 9000]);
    let slots = failed_over
        .primaries
        .remove(&NodeId::from_bytes([1; 20]))
        .unwrap();
    failed_over
        .primaries
        .insert(NodeId::from_bytes([9; 20]), slots);
    seen.slot_map = Some(Ok(failed_over));
    assert_eq!(plan(&backup, &seen), Step::ConfirmSlots);
    seen.slot_map = Some(Ok(map(&[4001, 9000])));
    let Step::List { units, .. } = plan(&backup, &seen) else {
        panic!("not captured again")
    };
    assert!(
        units
            .iter()
            .all(|unit| unit.attempt == 2 && unit.worker.is_empty())
    );
    let last = capturing(&[
        (Streaming, "w0", 3),
        (Streaming, "w0", 1),
        (Stored, "w0", 1),
    ]);
    assert!(matches!(
        plan(&last, &seen),
        Step::Fail {
            reason: "SlotsMoved",
            ..
        }
    ));
}

#[test]
fn the_manifest_comes_after_every_shard_and_the_confirmed_map() {
    let mut backup = capturing(&[(Stored, "w0", 1), (Stored, "w0", 2), (Stored, "w0", 1)]);
    assert_eq!(plan(&backup, &ready()), Step::ConfirmSlots);
    let (confirmed, _) = status::after(&backup, &Step::ConfirmSlots, None, None, now());
    backup.status = Some(confirmed);
    let mut seen = ready();
    assert_eq!(plan(&backup, &seen), Step::Publish);
    let published = Published {
        manifest_key: "k".into(),
        manifest_sha256: "s".into(),
        skew_ms: 4,
        rdb_version: 10,
    };
    seen.publishing = Some(Ok(published.clone()));
    assert_eq!(plan(&backup, &seen), Step::Succeed(published.clone()));
    let (succeeded, _) = status::after(&backup, &Step::Succeed(published), None, None, now());
    backup.status = Some(succeeded);
    assert_eq!(plan(&backup, &seen), Step::Done);
    assert_eq!(backup.status.unwrap().phase.as_deref(), Some("Succeeded"));
}

#[test]
fn artifacts_are_deleted_before_the_finalizer_is_removed() {
    let mut backup = accepted();
    backup.spec.deletion_policy = DeletionPolicy::Delete;
    assert_eq!(plan(&backup, &ready()), Step::AddFinalizer);
    backup.metadata.finalizers = Some(vec![FINALIZER_ARTIFACTS.to_owned()]);
    backup.metadata.deletion_timestamp = Some(Time(now()));
    let mut seen = ready();
    assert_eq!(plan(&backup, &seen), Step::DeleteArtifacts);
    seen.deletion = Some(Ok(()));
    assert_eq!(plan(&backup, &seen), Step::RemoveFinalizer);
    let failure = JobFailure {
        reason: "StorageFault",
        message: "m".into(),
        transient: true,
    };
    seen.deletion = Some(Err(failure));
    assert!(matches!(plan(&backup, &seen), Step::Wait { .. }));
    seen.waiting = Some((Awaited::Manifest, DELETION_PATIENCE));
    assert!(matches!(plan(&backup, &seen), Step::Wait { .. }));
    seen.waiting = Some((Awaited::Deletion, DELETION_PATIENCE));
    assert!(matches!(plan(&backup, &seen), Step::Abandon(_)));
}

#[test]
fn a_deletion_waits_once_for_replicas_that_do_not_stop() {
    let mut backup = capturing(&[(Streaming, "w0", 1)]);
    backup.spec.deletion_policy = DeletionPolicy::Delete;
    backup.metadata.finalizers = Some(vec![FINALIZER_ARTIFACTS.to_owned()]);
    backup.metadata.deletion_timestamp = Some(Time(now()));
    let mut seen = ready();
    let stopping = |seen: &Observed| {
        let step = plan(&backup, seen);
        matches!(step, Step::Wait { on, .. } if on == Awaited::Stopping)
    };
    // What was waited for before the deletion does not count.
    seen.waiting = Some((Awaited::Manifest, PATIENCE));
    assert!(stopping(&seen));
    seen.waiting = Some((Awaited::Stopping, STOPPING_PATIENCE));
    assert_eq!(plan(&backup, &seen), Step::DeleteArtifacts);
    // Between two tries of the deletion they are not waited for again, or its own patience would never end.
    seen.waiting = Some((Awaited::Deletion, Duration::ZERO));
    assert_eq!(plan(&backup, &seen), Step::DeleteArtifacts);
}

#[test]
fn artifacts_that_are_to_be_kept_need_no_finalizer() {
    let mut backup = accepted();
    backup.metadata.finalizers = Some(vec![FINALIZER_ARTIFACTS.to_owned()]);
    assert_eq!(plan(&backup, &ready()), Step::RemoveFinalizer);
    backup.metadata.finalizers = None;
    backup.metadata.deletion_timestamp = Some(Time(now()));
    assert_eq!(plan(&backup, &ready()), Step::Done);
}

/// What happens next in the simulated world.
#[derive(Clone, Debug)]
enum Happening {
    Claims { worker: usize, unit: usize },
    Forks { unit: usize },
    Stores { unit: usize },
    Fails { unit: usize },
    Dies { worker: usize },
    Comes { worker: usize },
    SlotsMove,
    Plans,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (0..10usize, 0..6usize).prop_map(|(worker, unit)| Happening::Claims { worker, unit }),
        4 => (0..6usize).prop_map(|unit| Happening::Forks { unit }),
        4 => (0..6usize).prop_map(|unit| Happening::Stores { unit }),
        1 => (0..6usize).prop_map(|unit| Happening::Fails { unit }),
        1 => (0..10usize).prop_map(|worker| Happening::Dies { worker }),
        1 => (0..10usize).prop_map(|worker| Happening::Comes { worker }),
        1 => Just(Happening::SlotsMove),
        5 => Just(Happening::Plans),
    ]
}

/// Ten replicas of the controller, some of which die, and a backup of six shards.
struct World {
    backup: RedisBackup,
    live: BTreeSet<String>,
    map: SlotMap,
    moves: u16,
    /// The slot map at each fork, by unit index and attempt.
    forks: BTreeMap<(i32, i32), SlotMap>,
}

impl World {
    fn new() -> Self {
        Self {
            backup: accepted(),
            live: (0..10).map(|n| format!("w{n}")).collect(),
            map: map(&[2000, 5000, 8000, 11000, 14000]),
            moves: 0,
            forks: BTreeMap::new(),
        }
    }

    fn unit(&mut self, position: usize) -> Option<&mut BackupShard> {
        self.backup
            .status
            .as_mut()
            .unwrap()
            .shards
            .get_mut(position)
    }

    fn happens(&mut self, what: &Happening) {
        let live = self.live.clone();
        let map = self.map.clone();
        match what {
            Happening::Claims { worker, unit } => {
                let name = format!("w{worker}");
                if let Some(unit) = self.unit(*unit)
                    && unit.worker.is_empty()
                    && unit.state == Pending
                    && live.contains(&name)
                {
                    unit.worker = name;
                }
            }
            Happening::Forks { unit } => {
                let Some(unit) = self.unit(*unit) else { return };
                if live.contains(&unit.worker) && unit.state == Pending {
                    unit.state = Streaming;
                    unit.fork_time = Some(Time(now()));
                    let key = (unit.index, unit.attempt);
                    assert!(
                        self.forks.insert(key, map).is_none(),
                        "an attempt ran twice: {key:?}"
                    );
                }
            }
            Happening::Stores { unit } => {
                if let Some(unit) = self.unit(*unit)
                    && live.contains(&unit.worker)
                    && unit.state == Streaming
                {
                    unit.state = Stored;
                }
            }
            Happening::Fails { unit } => {
                if let Some(unit) = self.unit(*unit)
                    && live.contains(&unit.worker)
                    && matches!(unit.state, Pending | Streaming)
                {
                    unit.state = Failed;
                }
            }
            Happening::Dies { worker } => {
                if self.live.len() > 1 {
                    self.live.remove(&format!("w{worker}"));
                }
            }
            Happening::Comes { worker } => {
                self.live.insert(format!("w{worker}"));
            }
            Happening::SlotsMove => {
                self.moves += 1;
                self.map = super::tests::map(&[2000 + self.moves, 5000, 8000, 11000, 14000]);
            }
            Happening::Plans => self.plans(),
        }
    }

    fn plans(&mut self) {
        let seen = Observed {
            cluster: Some(Some(Arc::new(cluster()))),
            storage: Some(Ok(())),
            operation: Some(Operation::Held),
            slot_map: Some(Ok(self.map.clone())),
            attempts: AttemptFacts {
                members: Some(self.live.clone()),
                failed_for: (0..6).map(|index| (index, PATIENCE)).collect(),
            },
            publishing: Some(Ok(Published {
                manifest_key: "k".into(),
                manifest_sha256: "s".into(),
                skew_ms: 0,
                rdb_version: 10,
            })),
            ..Observed::default()
        };
        let step = plan(&self.backup, &seen);
        if let Step::Succeed(_) = step {
            self.is_complete();
        }
        let (mut status, _) = status::after(&self.backup, &step, None, None, now());
        if let Step::Free(freed) = &step {
            for lost in freed {
                let unit = &mut status.shards[lost.position];
                assert_eq!((&unit.worker, unit.attempt), (&lost.worker, lost.attempt));
                *unit = BackupShard {
                    index: unit.index,
                    primary_id: unit.primary_id.clone(),
                    slot_ranges: unit.slot_ranges.clone(),
                    attempt: unit.attempt + 1,
                    ..BackupShard::default()
                };
            }
        }
        self.backup.status = Some(status);
    }

    /// Every shard of a backup that counts was forked while the slots were cut as the backup says.
    fn is_complete(&self) {
        let shards = &self.backup.status.as_ref().unwrap().shards;
        for unit in shards {
            assert_eq!(unit.state, Stored);
            let at_fork = &self.forks[&(unit.index, unit.attempt)];
            assert!(
                shards::are_divided_like(shards, at_fork),
                "forked under another slot map"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_dies_the_backup_is_complete_or_failed(
        story in prop::collection::vec(happening(), 0..200)
    ) {
        let mut world = World::new();
        for what in &story {
            world.happens(what);
        }
        // From here on nothing goes wrong any more, so it has to end.
        world.happens(&Happening::Comes { worker: 0 });
        for _ in 0..60 {
            if is_finished(world.backup.status.as_ref().unwrap()) {
                break;
            }
            for unit in 0..6 {
                world.happens(&Happening::Claims { worker: 0, unit });
                world.happens(&Happening::Forks { unit });
                world.happens(&Happening::Plans);
            }
            for unit in 0..6 {
                world.happens(&Happening::Stores { unit });
            }
            world.happens(&Happening::Plans);
        }
        let status = world.backup.status.unwrap();
        prop_assert!(is_finished(&status), "{status:#?}");
        prop_assert!(status.shards.iter().all(|unit| unit.attempt <= 3));
    }
}
