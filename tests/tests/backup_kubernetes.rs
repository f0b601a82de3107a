//! RedisBackups on a real API server, with two replicas of the controller, real Redis processes and a real S3 server.
//!
//! Pods are objects only: each stands for a Redis process and carries its address.

use anyhow::{Context, Result, ensure};
use backup_controller::{
    arguments::{ControllerArguments, CreateBackup, Policy},
    create_backup, run,
};
use common::{
    kubernetes::kstatus::{Kstatus, evaluate},
    runtime::{Runtime, metrics::Metrics},
    storage::Manifest,
};
use crds::{
    BackupPlan, BackupSchedule, BackupShardState, BackupStorage, DeletionPolicy, LocalRef,
    RedisBackup, RedisBackupSpec, RedisBackupStatus, RedisCluster, RedisClusterSpec, S3Location,
};
use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::CronJob, coordination::v1::Lease, core::v1::ServiceAccount, events::v1::Event,
    rbac::v1::RoleBinding,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::{
    collections::BTreeSet,
    fs,
    sync::mpsc,
    time::{Duration, Instant},
};
use tests::{
    kubernetes::api_server,
    leases::{TAKEN_OVER_SECONDS, take_over},
    namespace::TestNamespace,
    redis::{TestCluster, nothing_destroyed},
    replica::{Replica, ReplicaEnd, ReplicaSettings},
    s3::{Fault, On, TestBucket, leave_upload, loopback_allowed},
    wait::within,
};

/// Long enough that a replica renews in time on a busy machine: attempts are counted.
const LEASE: Duration = Duration::from_secs(10);
/// Long enough for the expiry of leases on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// Time in which a hot loop would be seen.
const QUIET: Duration = Duration::from_secs(5);

/// A namespace with a RedisCluster whose pods stand for real processes.
struct BackupStage {
    space: TestNamespace,
    redis: TestCluster,
}

impl BackupStage {
    async fn new(shards: u16) -> Result<Self> {
        let stage = Self {
            redis: TestCluster::start(shards, 0).await?,
            space: TestNamespace::new("backup").await?,
        };
        for (shard, node) in stage.redis.primaries().iter().enumerate() {
            let name = format!("cart-{shard}-0");
            stage.space.pod("cart", &name, node.address()).await?;
        }
        Ok(stage)
    }

    fn backups(&self) -> Api<RedisBackup> {
        self.space.api()
    }

    fn clusters(&self) -> Api<RedisCluster> {
        self.space.api()
    }

    fn storage(&self, name: &str, secret: &str, bucket: &str) -> BackupStorage {
        BackupStorage {
            name: name.to_owned(),
            s3: S3Location {
                bucket: bucket.to_owned(),
                prefix: Some("team".to_owned()),
                credentials_secret_ref: Some(LocalRef {
                    name: secret.to_owned(),
                }),
                ..self.space.storage()
            },
        }
    }

    async fn cluster(&self, schedules: Vec<BackupSchedule>) -> Result<RedisCluster> {
        let spec = RedisClusterSpec {
            image: Some("redis".to_owned()),
            shards: 4,
            replicas_per_shard: 0,
            backup: Some(BackupPlan {
                storages: vec![
                    self.storage("s3", "s3", TestBucket::NAME),
                    self.storage("wrong-key", "wrong", TestBucket::NAME),
                    self.storage("nowhere", "s3", "nowhere"),
                ],
                schedules,
            }),
            ..RedisClusterSpec::default()
        };
        let made = self
            .clusters()
            .create(&PostParams::default(), &RedisCluster::new("cart", spec))
            .await?;
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let status = json!({"status": {
            "observedGeneration": made.metadata.generation, "version": {"running": "Redis 7.0.15"},
            "nodes": self.redis.known_nodes(),
            "conditions": [{"type": "SlotsCovered", "status": "True", "reason": "Covered", "message": "", "lastTransitionTime": now}],
        }});
        let answer = self
            .clusters()
            .patch_status("cart", &PatchParams::default(), &Patch::Merge(status))
            .await?;
        Ok(answer)
    }

    async fn backup(
        &self,
        name: &str,
        storage: &str,
        deletion_policy: DeletionPolicy,
    ) -> Result<()> {
        let spec = RedisBackupSpec {
            cluster_ref: LocalRef {
                name: "cart".to_owned(),
            },
            storage_name: Some(storage.to_owned()),
            attempts: 3,
            deletion_policy,
            ..RedisBackupSpec::default()
        };
        self.backups()
            .create(&PostParams::default(), &RedisBackup::new(name, spec))
            .await?;
        Ok(())
    }

    async fn status(&self, name: &str) -> Result<RedisBackupStatus> {
        Ok(self.backups().get(name).await?.status.unwrap_or_default())
    }

    /// Waits until the backup's status is as wanted; shows the last one if it never is.
    async fn until(
        &self,
        name: &str,
        what: &str,
        mut wanted: impl FnMut(&RedisBackupStatus) -> bool,
    ) -> Result<RedisBackupStatus> {
        let mut last = None;
        let found = within(PATIENCE, what, async || {
            let status = self.status(name).await?;
            last = Some(status.clone());
            Ok(wanted(&status).then_some(status))
        });
        let found = found.await;
        found.with_context(|| format!("the status is {last:#?}"))
    }

    /// Makes every node send its snapshot slowly: 40 keys in about six seconds.
    async fn slow_nodes(&self) -> Result<()> {
        for node in self.redis.primaries() {
            node.call::<()>("DEBUG POPULATE 40 key 100").await?;
            node.call::<()>("CONFIG SET rdb-key-save-delay 150000")
                .await?;
        }
        Ok(())
    }

    /// A replica, and what it counts.
    fn counted_replica(&self, identity: &str) -> Result<(Replica, Metrics)> {
        let (send, counted) = mpsc::channel();
        let replica = self.replica_with(identity, move |runtime| {
            // Without a receiver the test has failed already.
            let _ = send.send(runtime.metrics.clone());
        });
        Ok((replica, counted.recv_timeout(PATIENCE)?))
    }

    fn replica(&self, identity: &str) -> Replica {
        self.replica_with(identity, |_| ())
    }

    fn replica_with(&self, identity: &str, see: impl FnOnce(&Runtime) + Send + 'static) -> Replica {
        let arguments = ControllerArguments {
            streams: 2,
            image: Some("controller:1".to_owned()),
            storage: loopback_allowed(),
        };
        let settings = ReplicaSettings {
            program: "backup-controller",
            identity: identity.to_owned(),
            namespace: self.space.namespace.clone(),
            lease: LEASE,
            proxy: None,
        };
        Replica::start(settings, |runtime| {
            see(&runtime);
            run::control(runtime, arguments)
        })
    }
}

/// Ended reconciles of RedisClusters.
fn cluster_reconciles(metrics: &Metrics) -> Result<u64> {
    let text = metrics.encode()?;
    let lines = text.lines().filter(|line| {
        line.starts_with("redis_operator_reconciles_total") && line.contains("RedisCluster")
    });
    let counts = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    Ok(counts.sum())
}

fn workers(status: &RedisBackupStatus) -> BTreeSet<String> {
    status
        .shards
        .iter()
        .map(|unit| unit.worker.clone())
        .collect()
}

fn all_are(status: &RedisBackupStatus, state: BackupShardState) -> bool {
    !status.shards.is_empty() && status.shards.iter().all(|unit| unit.state == state)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replica_costs_its_own_attempts_only() -> Result<()> {
    let stage = BackupStage::new(4).await?;
    stage.slow_nodes().await?;
    let (one, two) = (stage.replica("one"), stage.replica("two"));
    stage.backup("now", "s3", DeletionPolicy::Delete).await?;
    stage
        .until("now", "it waits for the cluster", |status| {
            status.phase.as_deref() == Some("Waiting")
        })
        .await?;
    stage.cluster(Vec::new()).await?;
    let shared = stage
        .until("now", "four shards stream on both replicas", |status| {
            all_are(status, BackupShardState::Streaming) && workers(status).len() == 2
        })
        .await?;
    let root = shared.destination.clone().context("no destination")?;
    let root = root.trim_start_matches("s3://backups/");
    let lost = format!("{root}shard-0009-a1.rdb.gz");
    leave_upload(&stage.space.bucket.store().await?, &lost).await?;
    one.end(ReplicaEnd::Kill)?;
    let done = stage
        .until("now", "it has ended", |status| {
            status.completion_time.is_some()
        })
        .await?;
    ensure!(done.phase.as_deref() == Some("Succeeded"), "{done:#?}");
    for (before, after) in shared.shards.iter().zip(&done.shards) {
        let killed = before.worker.ends_with("one");
        let expected = if killed { 2 } else { 1 };
        ensure!(
            after.attempt == expected,
            "shard {}: {before:#?} became {after:#?}",
            before.index
        );
        ensure!(after.worker.ends_with("two"));
        let source = after.source.clone().context("no source")?;
        ensure!(
            source.pod == format!("cart-{}-0", before.index),
            "{source:?}"
        );
    }
    let key = done.manifest_key.clone().context("no manifest")?;
    let text = fs::read(stage.space.bucket.server().file(TestBucket::NAME, &key))?;
    let manifest: Manifest = serde_json::from_slice(&text)?;
    manifest.validate()?;
    ensure!(manifest.totals.keys == Some(160), "{:?}", manifest.totals);
    ensure!(manifest.cluster_uid == done.cluster_uid.clone().context("no uid")?);
    let progress = done.progress.clone().context("no progress")?;
    ensure!(
        progress.summary == "4/4" && progress.keys == Some(160),
        "{progress:?}"
    );
    within(PATIENCE, "no unfinished upload is left", async || {
        Ok(stage.space.bucket.server().unfinished_uploads()?.is_empty())
    })
    .await?;
    let lease = crds::operation_lease_name(&stage.space.namespace, "cart");
    let leases = stage.space.api::<Lease>();
    within(PATIENCE, "the operation lease is released", async || {
        Ok(leases.get_opt(&lease).await?.is_none())
    })
    .await?;

    // Deleted with its artifacts.
    stage
        .backups()
        .delete("now", &DeleteParams::default())
        .await?;
    within(PATIENCE, "the backup is gone", async || {
        Ok(stage.backups().get_opt("now").await?.is_none())
    })
    .await?;
    let left = fs::read(stage.space.bucket.server().file(TestBucket::NAME, &key));
    ensure!(left.is_err(), "the manifest is still there");
    nothing_destroyed(stage.redis.nodes()).await?;
    two.end(ReplicaEnd::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_ends_in_order_hands_its_shards_back() -> Result<()> {
    let stage = BackupStage::new(3).await?;
    stage.slow_nodes().await?;
    stage.cluster(Vec::new()).await?;
    let one = stage.replica("one");
    stage.backup("now", "s3", DeletionPolicy::Retain).await?;
    stage
        .until("now", "two shards stream", |status| {
            status
                .shards
                .iter()
                .filter(|unit| unit.state == BackupShardState::Streaming)
                .count()
                == 2
        })
        .await?;
    one.end(ReplicaEnd::Orderly)?;
    let handed = stage.status("now").await?;
    ensure!(
        workers(&handed) == BTreeSet::from([String::new()]),
        "{handed:#?}"
    );
    ensure!(handed.shards.iter().all(|unit| unit.attempt == 1));
    ensure!(stage.space.bucket.server().unfinished_uploads()?.is_empty());
    let two = stage.replica("two");
    let done = stage
        .until("now", "it has ended", |status| {
            status.completion_time.is_some()
        })
        .await?;
    ensure!(done.phase.as_deref() == Some("Succeeded"), "{done:#?}");
    ensure!(
        done.shards.iter().all(|unit| unit.attempt == 1),
        "{done:#?}"
    );
    let delete = Patch::Merge(json!({"spec": {"deletionPolicy": "Delete"}}));
    let changed = stage
        .backups()
        .patch("now", &PatchParams::default(), &delete)
        .await?;
    let generation = changed.metadata.generation;
    ensure!(generation == Some(2), "{generation:?}");
    stage
        .until("now", "the change after the end is observed", |status| {
            status.observed_generation == generation
        })
        .await?;
    let object = serde_json::to_value(stage.backups().get("now").await?)?;
    ensure!(evaluate(&object) == Kstatus::Current, "{object:#}");
    nothing_destroyed(stage.redis.nodes()).await?;
    two.end(ReplicaEnd::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_fails_with_a_sentence_without_secrets() -> Result<()> {
    let stage = BackupStage::new(3).await?;
    stage.space.secret("wrong", "another-secret-value").await?;
    stage.cluster(Vec::new()).await?;
    let one = stage.replica("one");
    for (name, storage, reason, words) in [
        ("a", "typo", "StorageUnknown", "typo"),
        ("b", "wrong-key", "WrongSecretKey", "backups"),
        ("c", "nowhere", "NoSuchBucket", "nowhere"),
    ] {
        stage.backup(name, storage, DeletionPolicy::Retain).await?;
        let failed = stage
            .until(name, "it has failed", |status| {
                status.completion_time.is_some()
            })
            .await?;
        let message = failed.message.clone().unwrap_or_default();
        ensure!(
            failed.phase.as_deref() == Some("Failed") && message.contains(words),
            "{failed:#?}"
        );
        let condition = failed
            .conditions
            .iter()
            .find(|c| c.type_ == "Failed")
            .context("no condition")?;
        ensure!(
            condition.status == "True" && condition.reason == reason,
            "{condition:#?}"
        );
        let text = serde_json::to_string(&failed)?;
        ensure!(
            !text.contains("another-secret") && !text.contains("test-secret"),
            "{text}"
        );
    }
    one.end(ReplicaEnd::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedules_become_cron_jobs_and_go_with_them() -> Result<()> {
    let stage = BackupStage::new(3).await?;
    let schedule = |name: &str| BackupSchedule {
        name: name.to_owned(),
        schedule: "30 2 * * *".to_owned(),
        storage_name: "s3".to_owned(),
        ..BackupSchedule::default()
    };
    let cluster = stage
        .cluster(vec![schedule("nightly"), schedule("week-end")])
        .await?;
    let one = stage.replica("one");
    let jobs = stage.space.api::<CronJob>();
    let names = async || -> Result<Vec<String>> {
        let list = jobs.list(&ListParams::default()).await?;
        Ok(list.items.iter().map(ResourceExt::name_any).collect())
    };
    within(PATIENCE, "two CronJobs", async || {
        Ok(names().await?.len() == 2)
    })
    .await?;
    let job = jobs.get("cart-nightly").await?;
    ensure!(
        job.owner_references()
            .iter()
            .any(|owner| Some(&owner.uid) == cluster.metadata.uid.as_ref())
    );
    let account = stage.space.api::<ServiceAccount>();
    let bindings = stage.space.api::<RoleBinding>();
    let identity = "cart-backup-schedule";
    within(PATIENCE, "the identity", async || {
        Ok(account.get_opt(identity).await?.is_some()
            && bindings.get_opt(identity).await?.is_some())
    })
    .await?;

    let change = json!({"spec": {"backup": {"schedules": [schedule("nightly")]}}});
    stage
        .clusters()
        .patch("cart", &PatchParams::default(), &Patch::Merge(change))
        .await?;
    within(PATIENCE, "one CronJob", async || {
        Ok(names().await? == ["cart-nightly"])
    })
    .await?;
    let same = jobs.get("cart-nightly").await?;
    ensure!(
        same.resource_version() == job.resource_version(),
        "an unchanged CronJob was written"
    );
    let change = json!({"spec": {"backup": {"schedules": null}}});
    stage
        .clusters()
        .patch("cart", &PatchParams::default(), &Patch::Merge(change))
        .await?;
    within(PATIENCE, "none of it is left", async || {
        Ok(names().await?.is_empty() && account.get_opt(identity).await?.is_none())
    })
    .await?;
    one.end(ReplicaEnd::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_schedules_are_reported_and_stop_no_other() -> Result<()> {
    let stage = BackupStage::new(3).await?;
    let schedule = |name: &str, schedule: &str| BackupSchedule {
        name: name.to_owned(),
        schedule: schedule.to_owned(),
        storage_name: "s3".to_owned(),
        ..BackupSchedule::default()
    };
    let jobs = stage.space.api::<CronJob>();
    let accounts = stage.space.api::<ServiceAccount>();
    let pod = json!({"restartPolicy": "Never", "containers": [{"name": "own", "image": "own"}]});
    let own: CronJob = serde_json::from_value(json!({"metadata": {"name": "cart-nightly"},
        "spec": {"schedule": "0 4 * * *", "jobTemplate": {"spec": {"template": {"spec": pod}}}}}))?;
    let own = jobs.create(&PostParams::default(), &own).await?;
    let identity = "cart-backup-schedule";
    let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": identity}}))?;
    let account = accounts.create(&PostParams::default(), &account).await?;

    // No pod runs under an account of another owner.
    let mars = BackupSchedule {
        time_zone: Some("Mars/Base".to_owned()), // which the API server refuses
        ..schedule("mars", "30 2 * * *")
    };
    let wanted = vec![
        schedule("nightly", "30 2 * * *"),
        schedule("odd", "99 2 * * *"),
        mars,
        schedule("weekly", "30 2 * * 0"),
    ];
    stage.cluster(wanted.clone()).await?;
    let (one, counted) = stage.counted_replica("one")?;
    let events = stage.space.api::<Event>();
    within(
        PATIENCE,
        "an Event says that the account is not ours",
        async || {
            let found = events.list(&ListParams::default()).await?.items;
            Ok(found.iter().any(|event| {
                let note = event.note.as_deref().unwrap_or_default();
                event.reason.as_deref() == Some("NameTaken") && note.contains("ServiceAccount")
            }))
        },
    )
    .await?;
    let same = accounts.get(identity).await?;
    ensure!(same.resource_version() == account.resource_version());
    ensure!(jobs.list(&ListParams::default()).await?.items.len() == 1);

    // One that is refused and one whose name is taken do not stop the others.
    accounts.delete(identity, &DeleteParams::default()).await?;
    let schedules = [wanted, vec![schedule("yearly", "30 2 1 1 *")]].concat();
    let change = json!({"spec": {"backup": {"schedules": schedules}}});
    stage
        .clusters()
        .patch("cart", &PatchParams::default(), &Patch::Merge(change))
        .await?;
    within(
        PATIENCE,
        "the other schedules have their CronJobs",
        async || {
            let (weekly, yearly) = (jobs.get_opt("cart-weekly"), jobs.get_opt("cart-yearly"));
            Ok(weekly.await?.is_some() && yearly.await?.is_some())
        },
    )
    .await?;
    let same = jobs.get("cart-nightly").await?;
    ensure!(same.resource_version() == own.resource_version());
    ensure!(jobs.get_opt("cart-odd").await?.is_none());
    let condition = async || -> Result<Option<Condition>> {
        let status = stage.clusters().get("cart").await?.status;
        let conditions = status.context("no status")?.conditions;
        ensure!(
            conditions.iter().any(|c| c.type_ == "SlotsCovered"),
            "the other controller's condition is gone: {conditions:?}"
        );
        Ok(conditions
            .into_iter()
            .find(|c| c.type_ == "SchedulesAccepted"))
    };
    within(
        PATIENCE,
        "the condition names every bad schedule and field",
        async || {
            Ok(condition().await?.is_some_and(|condition| {
                let names = |words: &str| condition.message.contains(words);
                condition.status == "False"
                    && condition.reason == "InvalidSchedule"
                    && names("3 of 5 not in effect")
                    && names("schedule odd: minute `99` is not within 0-59")
                    && names("schedule mars: spec.timeZone: ")
                    && names("schedule nightly: ")
            }))
        },
    )
    .await
    .with_context(|| format!("{:?}", stage.space.namespace))?;
    // What only a person can correct is not tried again and again.
    let before = cluster_reconciles(&counted)?;
    ensure!(before > 0, "nothing is counted");
    tokio::time::sleep(QUIET).await;
    let more = cluster_reconciles(&counted)? - before;
    ensure!(
        more <= 3,
        "{more} reconciles in {QUIET:?} with bad schedules"
    );
    // The other writer sends the list as it has it; neither takes the other's condition away.
    let cluster = stage.clusters().get("cart").await?;
    let mut status = cluster.status.clone().context("no status")?;
    status.message = Some("looked again".to_owned());
    common::kubernetes::status::write(&stage.clusters(), &cluster, &status).await?;
    ensure!(condition().await?.is_some());
    let change = json!({"spec": {"backup": {"schedules": null}}});
    stage
        .clusters()
        .patch("cart", &PatchParams::default(), &Patch::Merge(change))
        .await?;
    within(
        PATIENCE,
        "without schedules the condition goes",
        async || Ok(condition().await?.is_none()),
    )
    .await?;
    one.end(ReplicaEnd::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_runs_twice_creates_one_backup() -> Result<()> {
    let server = api_server().await?;
    let namespace = server.namespace("create-backup").await?;
    let order = CreateBackup {
        namespace: namespace.clone(),
        cluster: "cart".to_owned(),
        schedule: "nightly".to_owned(),
        storage_name: "s3".to_owned(),
        deletion_policy: Policy::Delete,
        job_name: None,
    };
    let now: Timestamp = "2026-11-21T02:30:10Z".parse()?;
    create_backup::create(server.client.clone(), &order, now).await?;
    create_backup::create(server.client.clone(), &order, now).await?;
    let backups = Api::<RedisBackup>::namespaced(server.client.clone(), &namespace);
    let made = backups.list(&ListParams::default()).await?.items;
    ensure!(
        made.len() == 1
            && made
                .iter()
                .all(|b| b.name_any() == "cart-nightly-202611210230"),
        "{made:?}"
    );
    ensure!(
        made.iter()
            .all(|b| b.spec.deletion_policy == DeletionPolicy::Delete)
    );
    Ok(())
}

/// The leader hangs in front of the manifest while another replica takes the Lease: the manifest is for that one to write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_ends_with_the_leadership() -> Result<()> {
    let stage = BackupStage::new(1).await?;
    stage.redis.primaries()[0]
        .call::<()>("SET key value")
        .await?;
    stage.cluster(Vec::new()).await?;
    // The first read is that of the index before the manifest is written.
    let faults = stage.space.bucket.server().faults();
    let slow = LEASE + LEASE / 2;
    faults.add(On::Get, Fault::Slow(slow), 1);
    let one = stage.replica("one");
    stage.backup("now", "s3", DeletionPolicy::Retain).await?;
    within(PATIENCE, "the manifest is being made", async || {
        Ok(faults.left() == 0)
    })
    .await?;
    take_over(&stage.space.api(), "backup-controller").await?;
    let taken = Instant::now();
    let status = stage.status("now").await?;
    let root = status.destination.context("no destination")?;
    let root = root.trim_start_matches("s3://backups/");
    let manifest = stage
        .space
        .bucket
        .server()
        .file(TestBucket::NAME, &format!("{root}manifest.json"));
    // The answer has come by then, and the other replica is still believed to lead.
    let (answered, expires) = (slow, Duration::from_secs(TAKEN_OVER_SECONDS.into()));
    ensure!(answered < expires);
    tokio::time::sleep((answered + expires) / 2).await;
    ensure!(
        !manifest.exists(),
        "written without the Lease, {:?} after it was lost",
        taken.elapsed()
    );
    let done = stage
        .until("now", "it has ended", |status| {
            status.completion_time.is_some()
        })
        .await?;
    ensure!(done.phase.as_deref() == Some("Succeeded"), "{done:#?}");
    ensure!(manifest.exists());
    one.end(ReplicaEnd::Orderly)
}
