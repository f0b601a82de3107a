//! The planner: what it refuses, what it waits for, and that it gets to an end.

#![allow(clippy::wildcard_enum_match_arm)] // a test names what it expects; everything else fails it

use super::*;
use crate::{status, verify::Comparison};
use common::{
    claims::{
        attempts::{AttemptFacts, delay},
        jobs::JobFailure,
    },
    cluster::{
        info::{Family, ServerInfo},
        slot_map::NotSettled,
    },
    kubernetes::{
        conditions::{ConditionUpdate, find, merge},
        leases::{Holder, Operation},
    },
};
use crds::{
    ANNOTATION_RESTORE_UID, LocalRef, NewCluster, RedisBackup, RedisCluster, RedisRestoreSpec,
    RestoreSource, RestoreTarget, RestoreUnitState, S3Location,
};
use jiff::Timestamp;
use std::sync::Arc;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn restore() -> RedisRestore {
    let mut restore = RedisRestore::new(
        "r",
        RedisRestoreSpec {
            source: RestoreSource {
                backup_ref: Some(LocalRef { name: "b".into() }),
                location: None,
            },
            target: RestoreTarget {
                cluster_ref: Some(LocalRef { name: "c".into() }),
                new_cluster: None,
            },
            attempts: 3,
        },
    );
    restore.metadata.uid = Some("uid-1".into());
    restore.metadata.generation = Some(1);
    restore
}

fn into_new(mut restore: RedisRestore) -> RedisRestore {
    restore.spec.target = RestoreTarget {
        cluster_ref: None,
        new_cluster: Some(NewCluster {
            name: "c".into(),
            ..NewCluster::default()
        }),
    };
    restore
}

fn backup(update: &ConditionUpdate) -> RedisBackup {
    let mut backup = RedisBackup::new("b", crds::RedisBackupSpec::default());
    backup.status = Some(crds::RedisBackupStatus {
        storage: Some(S3Location::default()),
        manifest_key: Some("p/manifest.json".into()),
        manifest_sha256: Some("ab".into()),
        conditions: merge(&[], std::slice::from_ref(update), None, now()),
        ..crds::RedisBackupStatus::default()
    });
    backup
}

fn complete_backup() -> RedisBackup {
    backup(&ConditionUpdate::yes("Complete", "Succeeded", ""))
}

fn cluster(condition: &'static str) -> RedisCluster {
    let mut cluster = RedisCluster::new("c", crds::RedisClusterSpec::default());
    cluster.metadata.generation = Some(2);
    cluster.status = Some(crds::RedisClusterStatus {
        observed_generation: Some(2),
        conditions: merge(
            &[],
            &[ConditionUpdate::yes(condition, "Yes", "")],
            None,
            now(),
        ),
        ..crds::RedisClusterStatus::default()
    });
    cluster
}

fn examined() -> Arc<Examined> {
    Arc::new(Examined {
        storage: S3Location::default(),
        manifest_key: "p/manifest.json".into(),
        manifest_sha256: "ab".into(),
        backup_id: "20261121t003000z-3f9c2a10".into(),
        server: "Redis 7.0.15".into(),
        rdb_version: 10,
        keys: Some(100),
        blocks: vec![4, 1],
    })
}

fn target(keys: u64, version: &str) -> TargetState {
    TargetState {
        keys: vec![("10.0.0.1:6379".into(), keys), ("10.0.0.2:6379".into(), 0)],
        servers: vec![ServerInfo {
            family: Family::Redis,
            version: version.into(),
            uptime_seconds: 0,
            loading: false,
        }],
    }
}

fn ready() -> Observed {
    Observed {
        backup: Some(Some(Arc::new(complete_backup()))),
        source: Some(Ok(examined())),
        cluster: Some(Some(Arc::new(cluster("SlotsCovered")))),
        operation: Some(Operation::Held),
        target: Some(Ok(target(0, "7.0.15"))),
        attempts: AttemptFacts {
            members: Some(["m".to_owned()].into()),
            ..AttemptFacts::default()
        },
        ..Observed::default()
    }
}

/// The restore after a step has been written.
fn apply(restore: &RedisRestore, step: &Step) -> RedisRestore {
    let mut next = restore.clone();
    next.status = Some(status::after(restore, step, now()).0);
    next
}

fn accepted(restore: &RedisRestore) -> RedisRestore {
    apply(restore, &Step::Accept(examined()))
}

fn listed(restore: &RedisRestore) -> RedisRestore {
    let restore = accepted(restore);
    let step = plan(&restore, &ready());
    assert!(matches!(step, Step::List { .. }), "{step:?}");
    apply(&restore, &step)
}

fn failure(step: &Step) -> &Failure {
    match step {
        Step::Fail(failure) => failure,
        other => panic!("expected a failure, got {other:?}"),
    }
}

fn waits_for(step: &Step) -> &'static str {
    match step {
        Step::Wait { reason, .. } => reason,
        other => panic!("expected to wait, got {other:?}"),
    }
}

#[test]
fn a_backup_has_to_be_complete() {
    let seen = |backup: Option<RedisBackup>| Observed {
        backup: Some(backup.map(Arc::new)),
        ..Observed::default()
    };
    assert_eq!(
        plan(&restore(), &Observed::default()),
        Step::Ask(Question::Backup)
    );
    assert_eq!(waits_for(&plan(&restore(), &seen(None))), "BackupNotFound");
    let running = backup(&ConditionUpdate::no("Captured", "Capturing", ""));
    assert_eq!(
        waits_for(&plan(&restore(), &seen(Some(running)))),
        "BackupNotComplete"
    );
    let failed = backup(&ConditionUpdate::yes("Failed", "ShardFailed", "no space"));
    let step = plan(&restore(), &seen(Some(failed)));
    assert_eq!(failure(&step).reason, "BackupFailed");
    assert!(failure(&step).message.contains("no space"));
    assert_eq!(
        plan(&restore(), &seen(Some(complete_backup()))),
        Step::Examine
    );
}

#[test]
fn damaged_sources_are_refused_and_transient_failures_are_waited_out() {
    let of = |transient| Observed {
        source: Some(Err(JobFailure {
            reason: "DamagedDocument",
            message: "manifest of backup x is damaged".into(),
            transient,
        })),
        ..ready()
    };
    let step = plan(&restore(), &of(false));
    assert_eq!(failure(&step).condition, "SourceValid");
    assert_eq!(waits_for(&plan(&restore(), &of(true))), "DamagedDocument");
    let after = apply(&restore(), &step);
    assert_eq!(
        after.status.clone().unwrap().phase.as_deref(),
        Some("Failed")
    );
    assert_eq!(plan(&after, &ready()), Step::Done);
}

#[test]
fn an_accepted_source_no_longer_needs_its_backup() {
    let gone = Observed {
        backup: Some(None),
        ..ready()
    };
    assert!(matches!(
        plan(&accepted(&restore()), &gone),
        Step::List { .. }
    ));
    let origin = origin(&accepted(&restore()), None).unwrap();
    assert_eq!(origin.sha256.as_deref(), Some("ab"));
}

#[test]
fn nothing_is_written_into_a_target_with_keys() {
    let seen = Observed {
        target: Some(Ok(target(7, "7.0.15"))),
        ..ready()
    };
    let step = plan(&accepted(&restore()), &seen);
    let failure = failure(&step);
    assert_eq!(failure.reason, "TargetNotEmpty");
    assert!(failure.message.contains("7 keys"), "{}", failure.message);
}

#[test]
fn an_older_server_is_refused() {
    let seen = Observed {
        target: Some(Ok(target(0, "6.2.14"))),
        ..ready()
    };
    let step = plan(&accepted(&restore()), &seen);
    assert_eq!(failure(&step).condition, "Compatible");
}

#[test]
fn the_target_has_to_serve_and_to_be_ours_alone() {
    let restore = accepted(&restore());
    let with = |change: fn(&mut Observed)| {
        let mut seen = ready();
        change(&mut seen);
        plan(&restore, &seen)
    };
    let step = with(|seen| seen.cluster = Some(None));
    assert_eq!(waits_for(&step), "ClusterNotFound");
    let step = with(|seen| seen.cluster = Some(Some(Arc::new(cluster("Progressing")))));
    assert_eq!(waits_for(&step), "ClusterNotReady");
    let step = with(|seen| {
        let mut late = cluster("SlotsCovered");
        late.metadata.generation = Some(3);
        seen.cluster = Some(Some(Arc::new(late)));
    });
    assert_eq!(waits_for(&step), "ClusterNotObserved");
    let step = with(|seen| {
        seen.operation = Some(Operation::HeldBy(Holder {
            kind: "RedisBackup".into(),
            name: "other".into(),
            uid: String::new(),
        }));
    });
    assert_eq!(waits_for(&step), "OperationUnderWay");
    let step = with(|seen| {
        seen.target = Some(Err(NotSettled::Uncovered {
            slots: "1-2".into(),
        }));
    });
    assert_eq!(waits_for(&step), "TargetNotSettled");
    assert_eq!(with(|seen| seen.target = None), Step::Ask(Question::Target));
}

#[test]
fn a_new_cluster_is_created_once_and_never_taken_over() {
    let restore = accepted(&into_new(restore()));
    let with = |cluster: Option<RedisCluster>| {
        let seen = Observed {
            cluster: Some(cluster.map(Arc::new)),
            ..ready()
        };
        plan(&restore, &seen)
    };
    assert_eq!(with(None), Step::CreateCluster);
    assert_eq!(failure(&with(Some(cluster("Ready")))).reason, "NameTaken");
    let mut ours = cluster("Ready");
    ours.metadata.annotations =
        Some([(ANNOTATION_RESTORE_UID.to_owned(), "uid-1".to_owned())].into());
    assert!(matches!(with(Some(ours.clone())), Step::List { .. }));
    ours.status = None;
    assert_eq!(waits_for(&with(Some(ours))), "ClusterNotObserved");
}

#[test]
fn waiting_ends() {
    let seen = Observed {
        cluster: Some(None),
        waiting: Some(("ClusterNotFound", PATIENCE)),
        ..ready()
    };
    let step = plan(&accepted(&restore()), &seen);
    assert_eq!(failure(&step).reason, "ClusterNotFound");
    let something_else = Observed {
        waiting: Some(("TargetNotSettled", PATIENCE)),
        ..seen
    };
    let step = plan(&accepted(&restore()), &something_else);
    assert_eq!(waits_for(&step), "ClusterNotFound");
}

#[test]
fn units_of_dead_replicas_go_on_at_their_block() {
    let mut restore = listed(&restore());
    let unit = &mut restore.status.as_mut().unwrap().units[0];
    unit.worker = "dead".into();
    unit.state = RestoreUnitState::Replaying;
    unit.block = 2;
    let step = plan(&restore, &ready());
    let Step::Free(freed) = &step else {
        panic!("{step:?}");
    };
    assert_eq!((freed[0].position, freed[0].attempt), (0, 1));
    let unasked = Observed {
        attempts: AttemptFacts::default(),
        ..ready()
    };
    assert_eq!(plan(&restore, &unasked), Step::Ask(Question::Members));
    restore.status.as_mut().unwrap().units[0].attempt = 3;
    let step = plan(&restore, &ready());
    assert!(failure(&step).message.contains("block 2 of 4"));
}

#[test]
fn failed_units_rest_before_they_are_tried_again() {
    let mut restore = listed(&restore());
    let unit = &mut restore.status.as_mut().unwrap().units[1];
    unit.state = RestoreUnitState::Failed;
    unit.error = Some("the store is away".into());
    assert_eq!(plan(&restore, &ready()), Step::Watch);
    let mut later = ready();
    later.attempts.failed_for.insert(1, delay(1));
    assert!(matches!(plan(&restore, &later), Step::Free(_)));
    restore.status.as_mut().unwrap().units[1].attempt = 3;
    let step = plan(&restore, &ready());
    assert_eq!(failure(&step).reason, "UnitFailed");
    assert!(failure(&step).message.contains("the store is away"));
}

#[test]
fn what_would_fail_again_is_not_tried_again() {
    let mut restore = listed(&restore());
    let unit = &mut restore.status.as_mut().unwrap().units[1];
    unit.state = RestoreUnitState::Refused;
    unit.error = Some("the block is damaged".into());
    let step = plan(&restore, &ready());
    assert_eq!(failure(&step).reason, "UnitFailed");
    assert!(failure(&step).message.contains("the block is damaged"));
}

fn loaded() -> RedisRestore {
    let mut restore = listed(&restore());
    for unit in &mut restore.status.as_mut().unwrap().units {
        unit.state = RestoreUnitState::Loaded;
        unit.block = unit.blocks;
        unit.keys = 50;
    }
    restore
}

#[test]
fn counts_decide_how_it_ends() {
    let with = |verified: Verified| {
        let seen = Observed {
            verification: Some(Ok(verified)),
            ..ready()
        };
        let step = plan(&loaded(), &seen);
        apply(&loaded(), &step).status.unwrap()
    };
    assert_eq!(plan(&loaded(), &ready()), Step::Verify);
    let fits = with(Verified::Compared(Comparison {
        expected: 100,
        actual: 98,
        expired: 2,
        mismatched: vec![],
    }));
    assert_eq!(fits.phase.as_deref(), Some("Succeeded"));
    assert_eq!(find(&fits.conditions, "Verified").unwrap().status, "True");
    assert_eq!(find(&fits.conditions, "DataLoaded").unwrap().status, "True");
    assert_eq!(fits.verification.unwrap().expired, 2);
    assert_eq!(fits.progress.unwrap().summary, "100%");

    let differs = with(Verified::Compared(Comparison {
        expected: 100,
        actual: 99,
        expired: 0,
        mismatched: vec![common::cluster::slots::Slot::new(5).unwrap()],
    }));
    assert_eq!(differs.phase.as_deref(), Some("Failed"));
    assert_eq!(
        find(&differs.conditions, "Verified").unwrap().status,
        "False"
    );
    assert_eq!(differs.verification.unwrap().mismatched_slots, [5]);

    let unknown = with(Verified::NotCounted { actual: 99 });
    assert_eq!(unknown.phase.as_deref(), Some("Succeeded"));
    assert_eq!(
        find(&unknown.conditions, "Verified").unwrap().status,
        "Unknown"
    );
}

#[test]
fn deleted_restores_are_left_alone() {
    let mut restore = restore();
    restore.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    assert_eq!(plan(&restore, &Observed::default()), Step::Done);
}

/// Asked and answered step by step, a restore ends, every status differs from the one before only where something happened,
/// and the same step on the same status changes nothing.
#[test]
fn a_restore_gets_to_its_end() {
    let mut restore = restore();
    let mut seen = Observed::default();
    let world = Observed {
        verification: Some(Ok(Verified::Compared(Comparison {
            expected: 100,
            actual: 100,
            ..Comparison::default()
        }))),
        ..ready()
    };
    let mut names = Vec::new();
    for _ in 0..40 {
        let step = plan(&restore, &seen);
        names.push(
            format!("{step:?}")
                .split(['(', ' '])
                .next()
                .unwrap_or_default()
                .to_owned(),
        );
        match &step {
            Step::Ask(Question::Backup) => seen.backup = world.backup.clone(),
            Step::Ask(Question::Cluster) => seen.cluster = world.cluster.clone(),
            Step::Ask(Question::Operation) => seen.operation = world.operation.clone(),
            Step::Ask(Question::Target) => seen.target = world.target.clone(),
            Step::Ask(Question::Members) => seen.attempts.members = world.attempts.members.clone(),
            Step::Examine => seen.source = world.source.clone(),
            Step::Verify => seen.verification = world.verification.clone(),
            Step::Watch => {
                let unit = restore.status.as_mut().unwrap();
                let open = unit.units.iter_mut().find(|unit| !is_loaded(unit)).unwrap();
                open.state = RestoreUnitState::Loaded;
                open.block = open.blocks;
            }
            Step::Done => break,
            Step::Accept(_) | Step::List { .. } | Step::Succeed(_) => {}
            other => panic!("unexpected {other:?} after {names:?}"),
        }
        let next = apply(&restore, &step);
        assert_eq!(
            apply(&next, &step).status,
            next.status,
            "{step:?} is not idempotent"
        );
        restore = next;
    }
    assert_eq!(names.last().map(String::as_str), Some("Done"), "{names:?}");
    let status = restore.status.unwrap();
    assert_eq!(status.phase.as_deref(), Some("Succeeded"));
    assert!(status.completion_time.is_some());
}
