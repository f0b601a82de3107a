//! The life of a RedisRestore: the controller's replicas against a real API server, real Redis processes and a real S3 server.
//! The pods and the status of the RedisCluster, which other parts write, are written by the test.

mod restore_support;

use anyhow::{Context, Result, ensure};
use common::{
    kubernetes::conditions::{ConditionUpdate, find, merge},
    storage::Compression,
};
use crds::{
    ANNOTATION_RESTORE_UID, BackupLocation, CLIENT_PORT, LocalRef, NewCluster, RedisBackup,
    RedisBackupSpec, RedisBackupStatus, RedisCluster as ClusterResource, RedisClusterSpec,
    RedisClusterStatus, RedisRestore, RedisRestoreSpec, RedisRestoreStatus, RestoreSource,
    RestoreTarget, RestoreUnit, RestoreUnitState,
};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use restore_controller::{
    arguments::ControllerArguments,
    run::{PROGRAM, control},
};
use restore_support::{Backup, assert_equal, back_up, back_up_as, fill, portraits, size};
use serde_json::json;
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tests::{
    namespace::TestNamespace,
    redis::{TestCluster, executed, nothing_destroyed},
    replica::{Replica, ReplicaEnd, ReplicaSettings},
    s3::{Fault, On, TestBucket, loopback_allowed},
    wait::{eventually, within},
};
use tokio::net::{TcpListener, TcpStream};

const GZIP: Compression = Compression::Gzip { level: 1 };
/// Long enough that a replica renews in time on a busy machine: attempts are counted.
const LEASE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_mins(3);

/// A namespace with everything that a restore needs.
struct RestoreStage {
    space: TestNamespace,
}

impl RestoreStage {
    async fn new() -> Result<Self> {
        let space = TestNamespace::new("restore").await?;
        Ok(Self { space })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        self.space.api()
    }

    /// A RedisBackup as the backup-controller leaves it.
    async fn complete_backup(&self, backup: &Backup) -> Result<()> {
        self.complete_backup_as("nightly", backup).await
    }

    async fn complete_backup_as(&self, name: &str, backup: &Backup) -> Result<()> {
        let spec = RedisBackupSpec {
            cluster_ref: LocalRef {
                name: "cart".into(),
            },
            s3: Some(self.space.storage()),
            attempts: 3,
            ..RedisBackupSpec::default()
        };
        let api: Api<RedisBackup> = self.api();
        api.create(&PostParams::default(), &RedisBackup::new(name, spec))
            .await?;
        let update = ConditionUpdate::yes("Complete", "Succeeded", "");
        let status = RedisBackupStatus {
            storage: Some(self.space.storage()),
            manifest_key: Some(backup.manifest_key.clone()),
            manifest_sha256: Some(backup.manifest_sha256.clone()),
            conditions: merge(&[], &[update], None, Timestamp::now()),
            ..RedisBackupStatus::default()
        };
        let patch = Patch::Merge(json!({"status": status}));
        api.patch_status(name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    /// An existing RedisCluster with its pods.
    async fn existing(&self, name: &str, cluster: &TestCluster) -> Result<()> {
        let resource = ClusterResource::new(name, cluster_spec(cluster));
        let api: Api<ClusterResource> = self.api();
        api.create(&PostParams::default(), &resource).await?;
        self.provision(name, cluster).await
    }

    /// What the cluster-controller does for a RedisCluster.
    async fn provision(&self, name: &str, cluster: &TestCluster) -> Result<()> {
        for (number, node) in cluster.nodes().iter().enumerate() {
            let address = forward(node.address()).await?;
            let pod = format!("{name}-{number}-0");
            self.space.pod(name, &pod, address).await?;
        }
        let api: Api<ClusterResource> = self.api();
        let generation = api.get(name).await?.metadata.generation;
        let updates = [
            ConditionUpdate::yes("Ready", "Formed", ""),
            ConditionUpdate::yes("SlotsCovered", "Covered", ""),
        ];
        let status = RedisClusterStatus {
            observed_generation: generation,
            nodes: cluster.known_nodes(),
            conditions: merge(&[], &updates, generation, Timestamp::now()),
            ..RedisClusterStatus::default()
        };
        let patch = Patch::Merge(json!({"status": status}));
        api.patch_status(name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    async fn restore(
        &self,
        name: &str,
        source: RestoreSource,
        target: RestoreTarget,
    ) -> Result<()> {
        let spec = RedisRestoreSpec {
            source,
            target,
            attempts: 3,
        };
        let api: Api<RedisRestore> = self.api();
        api.create(&PostParams::default(), &RedisRestore::new(name, spec))
            .await?;
        Ok(())
    }

    async fn status(&self, name: &str) -> Result<RedisRestoreStatus> {
        let api: Api<RedisRestore> = self.api();
        Ok(api.get(name).await?.status.unwrap_or_default())
    }

    /// Waits for the end; fails with the status if it does not come.
    async fn ends(&self, name: &str) -> Result<RedisRestoreStatus> {
        let mut last = None;
        let ended = within(PATIENCE, "the restore has ended", async || {
            let status = self.status(name).await?;
            last = Some(status.clone());
            let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
            Ok(ended.then_some(status))
        });
        let ended = ended.await;
        ended.with_context(|| format!("the status is {last:#?}"))
    }

    fn replica(&self, identity: &str) -> Replica {
        self.replica_within(identity, None)
    }

    /// A replica whose process may use so much memory, in MiB.
    fn replica_within(&self, identity: &str, memory_limit: Option<usize>) -> Replica {
        let settings = ReplicaSettings {
            program: PROGRAM.name,
            identity: identity.to_owned(),
            namespace: self.space.namespace.clone(),
            lease: LEASE,
            proxy: None,
        };
        let arguments = ControllerArguments {
            streams: 1,
            memory_limit,
            storage: loopback_allowed(),
        };
        Replica::start(settings, |runtime| control(runtime, arguments))
    }
}

fn cluster_spec(cluster: &TestCluster) -> RedisClusterSpec {
    RedisClusterSpec {
        image: Some("redis".into()),
        shards: i32::try_from(cluster.primaries().len()).unwrap_or(3).max(3),
        ..RedisClusterSpec::default()
    }
}

fn from_backup() -> RestoreSource {
    from("nightly")
}

fn from(backup: &str) -> RestoreSource {
    RestoreSource {
        backup_ref: Some(LocalRef {
            name: backup.into(),
        }),
        location: None,
    }
}

fn into(name: &str) -> RestoreTarget {
    RestoreTarget {
        cluster_ref: Some(LocalRef { name: name.into() }),
        new_cluster: None,
    }
}

/// Makes a node reachable where a pod would be: at the port of clients, at an address of its own.
async fn forward(node: SocketAddr) -> Result<SocketAddr> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id();
    for _ in 0..1000 {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // 127.128.0.0/9, apart from what the harness gives to the servers themselves.
        let [_, _, b, c] = (process.wrapping_mul(97).wrapping_add(number)).to_be_bytes();
        let ip = Ipv4Addr::new(127, 128 | (b & 0x7f), c, 1 + u8::try_from(number % 250)?);
        let Ok(listener) = TcpListener::bind((ip, CLIENT_PORT)).await else {
            continue;
        };
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(node).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        return Ok((ip, CLIENT_PORT).into());
    }
    anyhow::bail!("no free address for a pod")
}

async fn source_of(keys: usize, length: usize) -> Result<TestCluster> {
    let source = TestCluster::start(3, 0).await?;
    source.fill(&tests::redis::samples("")).await?;
    fill(&source, "key:", keys, length).await?;
    Ok(source)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_restore_a_backup_into_another_number_of_shards() -> Result<()> {
    let stage = RestoreStage::new().await?;
    let source = source_of(5000, 200).await?;
    let backup = back_up(&source, &stage.space.bucket, GZIP).await?;
    let target = TestCluster::start(5, 0).await?;
    let replicas = [stage.replica("a"), stage.replica("b")];
    let leases: Api<Lease> = stage.api();
    for replica in ["restore-controller-a", "restore-controller-b"] {
        eventually("the replica is a member", async || {
            Ok(leases.get_opt(replica).await?)
        })
        .await?;
    }
    // Units last long enough that each replica takes one.
    let slow = Fault::Slow(Duration::from_millis(500));
    stage
        .space
        .bucket
        .server()
        .faults()
        .add(On::Get, slow, 1000);
    // First the restore, then what it needs: it waits for each in turn.
    stage.restore("r", from_backup(), into("target")).await?;
    eventually("the restore waits for the backup", async || {
        Ok((stage.status("r").await?.phase.as_deref() == Some("Pending")).then_some(()))
    })
    .await?;
    stage.complete_backup(&backup).await?;
    // The address in the status of one of its pods is another cluster's by now.
    let foreign = &source.nodes()[0];
    let reused = forward(foreign.address()).await?;
    stage.space.pod("target", "target-9-0", reused).await?;
    stage.existing("target", &target).await?;

    let status = stage.ends("r").await?;
    assert_eq!(status.phase.as_deref(), Some("Succeeded"), "{status:#?}");
    let sent = executed(foreign).await?;
    assert!(!sent.contains_key("restore"), "the foreign node: {sent:?}");
    for condition in [
        "SourceValid",
        "Compatible",
        "TargetReady",
        "DataLoaded",
        "Verified",
        "Complete",
    ] {
        let found = find(&status.conditions, condition);
        let found = found.with_context(|| format!("no condition {condition}"))?;
        assert_eq!(found.status, "True", "{condition}: {}", found.message);
    }
    let keys = i64::try_from(size(&source).await?)?;
    let verification = status.verification.context("no verification")?;
    assert_eq!((verification.expected, verification.actual), (keys, keys));
    let progress = status.progress.context("no progress")?;
    assert_eq!(
        (
            progress.keys,
            progress.total_keys,
            progress.summary.as_str()
        ),
        (keys, keys, "100%")
    );
    assert_eq!(status.manifest_sha256, Some(backup.manifest_sha256));
    assert!(status.duration.is_some() && status.observed_generation == Some(1));
    let mut workers: Vec<_> = status
        .units
        .iter()
        .map(|unit| unit.worker.as_str())
        .collect();
    workers.sort_unstable();
    workers.dedup();
    assert_eq!(
        workers,
        ["restore-controller-a", "restore-controller-b"],
        "both replicas have worked"
    );
    assert_equal(&portraits(&source).await?, &portraits(&target).await?);
    nothing_destroyed(source.nodes().iter().chain(target.nodes())).await?;
    let lease = crds::operation_lease_name(&stage.space.namespace, "target");
    assert!(
        leases.get_opt(&lease).await?.is_none(),
        "the operation lease was released"
    );
    for replica in replicas {
        replica.end(ReplicaEnd::Orderly)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_cluster_is_created_filled_and_stays() -> Result<()> {
    let stage = RestoreStage::new().await?;
    let source = source_of(500, 50).await?;
    let backup = back_up(&source, &stage.space.bucket, GZIP).await?;
    let target = TestCluster::start(4, 0).await?;
    let replica = stage.replica("a");
    let path = backup
        .manifest_key
        .trim_end_matches("/manifest.json")
        .to_owned();
    let location = RestoreSource {
        backup_ref: None,
        location: Some(BackupLocation {
            s3: stage.space.storage(),
            path,
        }),
    };
    let new = RestoreTarget {
        cluster_ref: None,
        new_cluster: Some(NewCluster {
            name: "fresh".into(),
            spec: cluster_spec(&target),
        }),
    };
    stage.restore("r", location.clone(), new.clone()).await?;
    let clusters: Api<ClusterResource> = stage.api();
    let created = eventually("the cluster is created", async || {
        Ok(clusters.get_opt("fresh").await?)
    })
    .await?;
    let restores: Api<RedisRestore> = stage.api();
    let uid = restores.get("r").await?.uid();
    assert_eq!(
        created.annotations().get(ANNOTATION_RESTORE_UID),
        uid.as_ref()
    );
    assert_eq!(created.spec.shards, 4);
    assert!(
        created.owner_references().is_empty(),
        "it would go with the restore"
    );
    stage.provision("fresh", &target).await?;
    let status = stage.ends("r").await?;
    assert_eq!(status.phase.as_deref(), Some("Succeeded"), "{status:#?}");
    assert_equal(&portraits(&source).await?, &portraits(&target).await?);

    // Another restore does not take the cluster over.
    stage.restore("again", location, new).await?;
    let refused = stage.ends("again").await?;
    assert_eq!(
        find(&refused.conditions, "Failed")
            .context("no Failed")?
            .reason,
        "NameTaken"
    );

    restores.delete("r", &DeleteParams::default()).await?;
    eventually("the restore is gone", async || {
        Ok(restores.get_opt("r").await?.is_none().then_some(()))
    })
    .await?;
    assert!(clusters.get_opt("fresh").await?.is_some());
    replica.end(ReplicaEnd::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_restored_is_refused_before_writing() -> Result<()> {
    let stage = RestoreStage::new().await?;
    let source = source_of(500, 50).await?;
    let backup = back_up(&source, &stage.space.bucket, GZIP).await?;
    stage.complete_backup(&backup).await?;
    let replica = stage.replica("a");

    let full = TestCluster::start(3, 0).await?;
    fill(&full, "mine:", 3, 10).await?;
    stage.existing("full", &full).await?;
    stage
        .restore("into-full", from_backup(), into("full"))
        .await?;
    let refused = stage.ends("into-full").await?;
    let failed = find(&refused.conditions, "Failed").context("no Failed")?;
    assert_eq!(failed.reason, "TargetNotEmpty", "{}", failed.message);
    assert!(failed.message.contains("3 keys"), "{}", failed.message);
    assert!(refused.units.is_empty());
    assert_eq!(size(&full).await?, 3);

    // An object is shorter than the manifest says.
    let record = &backup.source.manifest().shards[1];
    let file = stage
        .space
        .bucket
        .server()
        .file(TestBucket::NAME, &backup.source.key(record));
    let object = std::fs::read(&file)?;
    std::fs::write(&file, &object[..object.len() - 1])?;
    stage.restore("cut", from_backup(), into("full")).await?;
    let refused = stage.ends("cut").await?;
    let failed = find(&refused.conditions, "SourceValid").context("no SourceValid")?;
    assert_eq!(
        (failed.status.as_str(), failed.reason.as_str()),
        ("False", "BackupIncomplete")
    );
    std::fs::write(&file, &object)?;

    // The manifest is another than the one the RedisBackup vouches for.
    let file = stage
        .space
        .bucket
        .server()
        .file(TestBucket::NAME, &backup.manifest_key);
    let mut manifest = std::fs::read(&file)?;
    manifest.push(b'\n');
    std::fs::write(&file, manifest)?;
    stage
        .restore("replaced", from_backup(), into("full"))
        .await?;
    let refused = stage.ends("replaced").await?;
    let failed = find(&refused.conditions, "SourceValid").context("no SourceValid")?;
    assert_eq!(failed.reason, "ManifestReplaced", "{}", failed.message);

    std::fs::remove_file(&file)?;
    stage.restore("absent", from_backup(), into("full")).await?;
    let refused = stage.ends("absent").await?;
    let failed = find(&refused.conditions, "SourceValid").context("no SourceValid")?;
    assert_eq!(failed.reason, "NoSuchKey", "{}", failed.message);
    let secret = &stage.space.bucket.key().secret;
    assert!(
        !format!("{refused:?}").contains(secret.as_str()),
        "a secret in the status"
    );
    replica.end(ReplicaEnd::Orderly)
}

/// A restore of one unit of four blocks, whose storage answers so slowly that the unit is seen at work.
async fn slow_restore(stage: &RestoreStage) -> Result<(TestCluster, TestCluster)> {
    let source = TestCluster::start(1, 0).await?;
    fill(&source, "long:", 3200, 8000).await?;
    let backup = back_up(&source, &stage.space.bucket, Compression::None).await?;
    stage.complete_backup(&backup).await?;
    let target = TestCluster::start(3, 0).await?;
    stage.existing("target", &target).await?;
    Ok((source, target))
}

/// Begins the restore; returns its unit when it is past its first block and not at its end.
async fn unit_at_work(stage: &RestoreStage) -> Result<RestoreUnit> {
    let api: Api<RedisRestore> = stage.api();
    stage.restore("r", from_backup(), into("target")).await?;
    eventually("the unit is handed out", async || {
        let status = stage.status("r").await?;
        Ok((!status.units.is_empty()).then_some(()))
    })
    .await?;
    // Two blocks are fetched at a time: the next two come later than the next report.
    let slow = Fault::Slow(Duration::from_secs(5));
    stage
        .space
        .bucket
        .server()
        .faults()
        .add(On::Get, slow, 1000);
    let mut last = None;
    let seen = within(PATIENCE, "the unit is seen at work", async || {
        let status = api.get("r").await?.status.unwrap_or_default();
        let unit = status.units.first().context("the unit is gone")?.clone();
        last = Some(status);
        let at_work = unit.state == RestoreUnitState::Replaying && unit.block > 0;
        Ok((at_work && unit.block < unit.blocks).then_some(unit))
    });
    let seen = seen.await;
    seen.with_context(|| format!("the status is {last:#?}"))
}

/// The unit as an ended replica left it. The target's counts of commands begin again here.
async fn left_by(stage: &RestoreStage, target: &TestCluster) -> Result<RestoreUnit> {
    for node in target.nodes() {
        // Ours is the one that asks.
        eventually("the ended replica's connections are closed", async || {
            Ok(node.info("connected_clients").await? == "1")
        })
        .await?;
        nothing_destroyed([node]).await?;
        node.call::<()>("CONFIG RESETSTAT").await?;
    }
    let status = stage.status("r").await?;
    let unit = status.units.first().context("the unit is gone")?;
    ensure!(unit.block > 0 && unit.keys > 0, "{unit:?}");
    Ok(unit.clone())
}

/// Keys that were written since [`left_by`]: a replica that resumes writes only what was not reported.
async fn restored(target: &TestCluster) -> Result<i64> {
    nothing_destroyed(target.nodes()).await?;
    let mut restored = 0;
    for node in target.nodes() {
        restored += executed(node).await?.get("restore").unwrap_or(&0);
    }
    Ok(i64::try_from(restored)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replicas_unit_resumes_at_its_block() -> Result<()> {
    let stage = RestoreStage::new().await?;
    let (source, target) = slow_restore(&stage).await?;
    let doomed = stage.replica("doomed");
    let at_work = unit_at_work(&stage).await?;
    doomed.end(ReplicaEnd::Kill)?;
    let left = left_by(&stage, &target).await?;
    stage.space.bucket.server().faults().clear();
    let heir = stage.replica("heir");
    let status = stage.ends("r").await?;
    assert_eq!(status.phase.as_deref(), Some("Succeeded"), "{status:#?}");
    let unit = status.units.first().context("the unit is gone")?;
    assert_eq!(unit.worker, "restore-controller-heir", "{unit:?}");
    assert_eq!(unit.attempt, at_work.attempt + 1, "{unit:?}");
    assert_eq!(unit.keys, 3200, "counted on from block {}", left.block);
    assert_eq!(restored(&target).await?, 3200 - left.keys, "{left:?}");
    assert_equal(&portraits(&source).await?, &portraits(&target).await?);
    heir.end(ReplicaEnd::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_end_hands_the_claims_back() -> Result<()> {
    let stage = RestoreStage::new().await?;
    let (source, target) = slow_restore(&stage).await?;
    let first = stage.replica("first");
    let at_work = unit_at_work(&stage).await?;
    first.end(ReplicaEnd::Orderly)?;
    stage.space.bucket.server().faults().clear();
    let left = left_by(&stage, &target).await?;
    assert_eq!(left.worker, "", "{left:?}");
    assert_eq!(left.state, RestoreUnitState::Pending);
    assert_eq!(left.attempt, 1, "handing back costs no attempt");
    assert!(
        left.block >= at_work.block && left.block < left.blocks,
        "{left:?}"
    );
    let second = stage.replica("second");
    let status = stage.ends("r").await?;
    assert_eq!(status.phase.as_deref(), Some("Succeeded"), "{status:#?}");
    assert_eq!(status.units.first().map(|unit| unit.keys), Some(3200));
    assert_eq!(restored(&target).await?, 3200 - left.keys, "{left:?}");
    assert_equal(&portraits(&source).await?, &portraits(&target).await?);
    second.end(ReplicaEnd::Orderly)
}

/// At this limit two replays have room for values of 6 MiB.
const MEMORY_MIB: usize = 64 + 2 * (64 + 3 * 6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_beyond_the_memory_fails_its_restore_alone() -> Result<()> {
    let stage = RestoreStage::new().await?;
    let source = TestCluster::start(1, 0).await?;
    let longest = (6 << 20) - 5; // behind its encoded length
    let bucket = &stage.space.bucket;
    fill(&source, "fits:", 1, longest).await?;
    let fits = back_up_as(
        &source,
        bucket,
        Compression::None,
        "20261121t003000z-00000001",
    )
    .await?;
    stage.complete_backup_as("fits", &fits).await?;
    let wanted = portraits(&source).await?;
    fill(&source, "long:", 1, longest + 1).await?;
    let long = back_up_as(
        &source,
        bucket,
        Compression::None,
        "20261121t003000z-00000002",
    )
    .await?;
    stage.complete_backup_as("long", &long).await?;
    let targets = [
        TestCluster::start(1, 0).await?,
        TestCluster::start(1, 0).await?,
    ];
    stage.existing("one", &targets[0]).await?;
    stage.existing("two", &targets[1]).await?;

    let replica = stage.replica_within("a", Some(MEMORY_MIB));
    stage.restore("long", from("long"), into("one")).await?;
    let refused = stage.ends("long").await?;
    let failed = find(&refused.conditions, "Failed").context("no Failed")?;
    for words in ["long:0", "6 MiB", &format!("{MEMORY_MIB} MiB")] {
        assert!(
            failed.message.contains(words),
            "{words}: {}",
            failed.message
        );
    }
    stage.restore("fits", from("fits"), into("two")).await?;
    let status = stage.ends("fits").await?;
    assert_eq!(status.phase.as_deref(), Some("Succeeded"), "{status:#?}");
    assert_equal(&wanted, &portraits(&targets[1]).await?);
    replica.end(ReplicaEnd::Orderly)
}
