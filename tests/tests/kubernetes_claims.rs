//! Claims on a real API server: races, reports, freed units.

use anyhow::{Context, Result};
use backup_controller::{
    metrics::{BackupMetrics, NAMES},
    units::BackupUnits,
    worker::CapturePath,
};
use common::{
    access::Buckets,
    claims::{
        self, Claim, ClaimPath, Taken, UnitReport,
        driver::Driver,
        jobs::{JobRecord, JobResult},
        memory::{Recalled, Waiting},
        metrics::WorkMetrics,
        permits::Quota,
        planner::{Planner, PlannerError, Planning},
    },
    kubernetes::{controller::Controller, leases::Leadership, outcome::Outcome},
    storage::StorageRules,
};
use crds::{BackupShard, LocalRef, RedisBackup, RedisBackupSpec, RedisBackupStatus};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Map, Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tests::{
    kubernetes::{ApiServer, api_server},
    leases::take_over,
    wait::eventually,
};
use tokio::time::sleep;

const SHARDS: &str = "/status/shards";

fn at(index: usize) -> ClaimPath {
    ClaimPath {
        array: SHARDS,
        index,
    }
}

fn fields(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn unit(index: usize, worker: &str, attempt: i32, set: &Value) -> UnitReport {
    UnitReport {
        claim: Claim {
            path: at(index),
            worker: worker.into(),
            attempt,
        },
        fields: fields(set),
    }
}

/// A backup with free units.
async fn backup(server: &ApiServer, units: i32) -> Result<Api<RedisBackup>> {
    let namespace = server.namespace("claims").await?;
    let api: Api<RedisBackup> = Api::namespaced(server.client.clone(), &namespace);
    let spec = RedisBackupSpec {
        cluster_ref: LocalRef {
            name: "cache".into(),
        },
        storage_name: Some("s3".into()),
        attempts: 3,
        ..RedisBackupSpec::default()
    };
    api.create(&PostParams::default(), &RedisBackup::new("b", spec))
        .await?;
    let shards = (0..units).map(|index| BackupShard {
        index,
        attempt: 1,
        ..BackupShard::default()
    });
    let status = RedisBackupStatus {
        shards: shards.collect(),
        ..RedisBackupStatus::default()
    };
    let patch = Patch::Merge(json!({"status": status}));
    api.patch_status("b", &PatchParams::default(), &patch)
        .await?;
    Ok(api)
}

async fn shards(api: &Api<RedisBackup>) -> Result<Vec<BackupShard>> {
    Ok(api.get("b").await?.status.context("no status")?.shards)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_replicas_race_and_exactly_one_wins_each_unit() -> Result<()> {
    let server = api_server().await?;
    let api = backup(&server, 6).await?;
    let races = (0..10).map(|racer| {
        let api = api.clone();
        tokio::spawn(async move {
            let worker = format!("w{racer}");
            let mut won = Vec::new();
            for index in 0..6 {
                let index = (index + racer) % 6;
                let taken = claims::take(&api, "b", at(index), 1, &worker, Map::new()).await?;
                if let Taken::Won(_) = taken {
                    won.push(index);
                }
            }
            anyhow::Ok((worker, won))
        })
    });
    let mut winners = vec![Vec::new(); 6];
    for race in futures::future::join_all(races).await {
        let (worker, won) = race??;
        for index in won {
            winners[index].push(worker.clone());
        }
    }
    for (shard, winners) in shards(&api).await?.iter().zip(winners) {
        assert_eq!(winners.join(" "), shard.worker, "unit {}", shard.index);
        assert_eq!(shard.attempt, 1);
    }
    Ok(())
}

#[tokio::test]
async fn a_report_names_the_units_that_are_lost() -> Result<()> {
    let server = api_server().await?;
    let api = backup(&server, 3).await?;
    for index in 0..3 {
        let with = fields(&json!({"state": "Streaming"}));
        let taken = claims::take(&api, "b", at(index), 1, "w", with).await?;
        assert!(matches!(taken, Taken::Won(_)));
    }
    // The planner believes that the worker is dead and frees one of its units.
    let freed = claims::free(
        &api,
        "b",
        vec![unit(1, "w", 1, &json!({"state": "Pending"}))],
    )
    .await?;
    assert!(freed.lost.is_empty());
    let reports = (0..3).map(|index| unit(index, "w", 1, &json!({"rawBytes": 7, "key": "k"})));
    let reported = claims::report(&api, "b", reports.collect()).await?;
    assert_eq!(reported.lost, [at(1)]);
    let seen = shards(&api).await?;
    let state = |index: usize| {
        (
            seen[index].worker.as_str(),
            seen[index].attempt,
            seen[index].raw_bytes,
        )
    };
    assert_eq!(state(0), ("w", 1, 7));
    assert_eq!(state(1), ("", 2, 0));
    assert_eq!(state(2), ("w", 1, 7));
    // Null takes a field away.
    let report = unit(0, "w", 1, &json!({"key": null}));
    claims::report(&api, "b", vec![report]).await?;
    assert_eq!(shards(&api).await?[0].key, None);
    // Freeing what has moved on leaves it alone.
    let freed = claims::free(&api, "b", vec![unit(1, "w", 1, &json!({}))]).await?;
    assert_eq!((freed.lost.len(), shards(&api).await?[1].attempt), (1, 2));
    Ok(())
}

#[tokio::test]
async fn a_value_that_the_schema_refuses_is_an_error() -> Result<()> {
    let server = api_server().await?;
    let api = backup(&server, 1).await?;
    let wrong = unit(0, "", 1, &json!({"rawBytes": "many"}));
    let error = claims::report(&api, "b", vec![wrong]).await.unwrap_err();
    assert!(error.to_string().contains("rawBytes"), "{error}");
    Ok(())
}

#[tokio::test]
async fn units_of_an_object_that_is_gone_are_lost() -> Result<()> {
    let server = api_server().await?;
    let api = backup(&server, 1).await?;
    let taken = claims::take(&api, "other", at(0), 1, "w", Map::new()).await?;
    assert!(matches!(taken, Taken::Lost));
    let taken = claims::take(&api, "b", at(9), 1, "w", Map::new()).await?;
    assert!(matches!(taken, Taken::Lost));
    let taken = claims::take(&api, "b", at(0), 2, "w", Map::new()).await?;
    assert!(matches!(taken, Taken::Lost));
    Ok(())
}

/// Many replicas report on one object at the same time: no report is lost, and no replica loses a claim by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_report_side_by_side() -> Result<()> {
    let server = api_server().await?;
    let api = backup(&server, 8).await?;
    let replicas = (0..8).map(|index| {
        let api = api.clone();
        tokio::spawn(async move {
            let worker = format!("w{index}");
            claims::take(&api, "b", at(index), 1, &worker, Map::new()).await?;
            for bytes in 1..=20 {
                let report = unit(index, &worker, 1, &json!({"rawBytes": bytes}));
                let reported = claims::report(&api, "b", vec![report]).await?;
                anyhow::ensure!(reported.lost.is_empty(), "{worker} lost its claim");
            }
            Ok(())
        })
    });
    for replica in futures::future::join_all(replicas).await {
        replica??;
    }
    assert!(
        shards(&api)
            .await?
            .iter()
            .all(|shard| shard.raw_bytes == 20)
    );
    Ok(())
}

/// Work that is begun, and then completed or dropped.
#[derive(Clone, Default)]
struct Counted {
    begun: Arc<AtomicUsize>,
    completed: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
}

impl Counted {
    /// Lasts far longer than a Lease.
    async fn work(self) {
        struct Guard(Option<Arc<AtomicUsize>>);
        impl Drop for Guard {
            fn drop(&mut self) {
                if let Some(dropped) = &self.0 {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        let mut guard = Guard(Some(self.dropped));
        self.begun.fetch_add(1, Ordering::Relaxed);
        sleep(LEASE * 6).await;
        guard.0 = None;
        self.completed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Every step is slow, and starts a job that is as slow.
struct SlowPlanning {
    steps: Counted,
    jobs: Counted,
}

impl Planning for SlowPlanning {
    type Kind = BackupUnits;
    type Observed = ();
    type Step = ();
    type Question = ();
    type Awaited = ();
    type Jobs = JobRecord<()>;

    const ACTION: &'static str = "Test";
    const UNIT_ACTION: &'static str = "Test";
    const UNDER_WAY: &'static str = "Testing";

    fn observed(_: Recalled<()>, _: &mut JobRecord<()>, _: Instant) {}

    fn plan(_: &RedisBackup, (): &()) {}

    fn question((): &()) -> Option<()> {
        None
    }

    fn waiting((): &()) -> Waiting<()> {
        Waiting::Ends
    }

    fn cluster_name(backup: &RedisBackup) -> &str {
        &backup.spec.cluster_ref.name
    }

    async fn answer(
        &self,
        _: &Planner<Self>,
        (): (),
        _: &RedisBackup,
        (): &mut (),
    ) -> Result<(), PlannerError> {
        Ok(())
    }

    async fn execute(
        &self,
        planner: &Planner<Self>,
        backup: &RedisBackup,
        (): &(),
        (): &(),
    ) -> Result<Outcome, PlannerError> {
        let work = self.jobs.clone().work();
        let job = async move {
            work.await;
            JobResult::Ok(())
        };
        planner.start_job("work", backup, job, |record| record);
        self.steps.clone().work().await;
        Ok(Outcome::finished())
    }
}

const LEASE: Duration = Duration::from_secs(3);

/// Another replica holds the Lease: whatever this one has begun, a step or a job beside it, goes no further.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_and_jobs_end_with_the_leadership() -> Result<()> {
    let server = api_server().await?;
    let api = backup(&server, 0).await?;
    let namespace = api.namespace().context("no namespace")?.to_owned();
    let runtime = server.runtime("backup-controller", "a", &namespace, LEASE)?;
    let leadership = Leadership::start(&runtime);
    let mut backups = Controller::<RedisBackup>::new(&runtime, runtime.api());
    backups.trigger_on_leadership(&leadership);
    let (steps, jobs) = (Counted::default(), Counted::default());
    let buckets = Buckets::new(runtime.client.clone(), StorageRules::default());
    let captured = BackupMetrics::new(&runtime.metrics);
    let driver = Driver::new(
        &runtime,
        &backups,
        leadership,
        &WorkMetrics::new(&runtime.metrics, NAMES),
        Quota::streams(1),
        CapturePath::new(runtime.client.clone(), buckets, captured),
        SlowPlanning {
            steps: steps.clone(),
            jobs: jobs.clone(),
        },
    );
    let running = tokio::spawn(backups.run(driver));
    let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
    eventually("a step and a job are begun", async || {
        Ok(count(&steps.begun) > 0 && count(&jobs.begun) > 0)
    })
    .await?;
    let leases: Api<Lease> = Api::namespaced(server.client.clone(), &namespace);
    take_over(&leases, "backup-controller").await?;
    for (what, counted) in [("the step", &steps), ("the job", &jobs)] {
        eventually(&format!("{what} is dropped"), async || {
            anyhow::ensure!(count(&counted.completed) == 0, "{what} went on");
            Ok(count(&counted.dropped) == 1)
        })
        .await?;
    }
    runtime.shutdown.cancel();
    running.await?;
    Ok(())
}
