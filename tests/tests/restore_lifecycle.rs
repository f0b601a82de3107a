//! The life of a RedisRestore: the controller's replicas against a real API server, real Redis processes and a real S3 server.
//! The pods and the status of the RedisCluster, which other parts write, are written by the test.

mod restore_support;

use anyhow::{Context, Result, ensure};
use common::{
    kubernetes::conditions::{Finding, find, merge},
    storage::Compression,
};
use crds::{
    BackupLocation, CLIENT_PORT, LABEL_CLUSTER, LocalRef, NewCluster, RedisBackup, RedisBackupSpec,
    RedisBackupStatus, RedisCluster as ClusterResource, RedisClusterSpec, RedisClusterStatus,
    RedisRestore, RedisRestoreSpec, RedisRestoreStatus, RestoreSource, RestoreTarget, RestoreUnit,
    RestoreUnitState, S3Location,
};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{
        coordination::v1::Lease,
        core::v1::{Container, Pod, PodSpec, Secret},
    },
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use restore_controller::{
    arguments::ControllerArguments,
    plan::ANNOTATION_RESTORE_UID,
    run::{PROGRAM, control},
};
use restore_support::{Backup, assert_equal, back_up, fill, portraits, size};
use serde_json::json;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};
use tests::{
    kubernetes::{ApiServer, api_server, eventually},
    redis::RedisCluster,
    s3::{Fault, On, TestBucket},
};
use tokio::net::{TcpListener, TcpStream};

const GZIP: Compression = Compression::Gzip { level: 1 };
const LEASE: Duration = Duration::from_secs(2);

/// A namespace with everything a restore looks at.
struct World {
    server: ApiServer,
    namespace: String,
    bucket: TestBucket,
}

impl World {
    async fn new() -> Result<Self> {
        let server = api_server().await?;
        let namespace = server.namespace("restore").await?;
        let bucket = TestBucket::start().await?;
        let world = Self {
            server,
            namespace,
            bucket,
        };
        let key = world.bucket.key();
        let data = [("accessKeyId", &key.id), ("secretAccessKey", &key.secret)]
            .map(|(name, value)| (name.to_owned(), ByteString(value.clone().into_bytes())));
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some("s3".into()),
                ..ObjectMeta::default()
            },
            data: Some(data.into()),
            ..Secret::default()
        };
        world
            .api::<Secret>()
            .create(&PostParams::default(), &secret)
            .await?;
        Ok(world)
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.server.client.clone(), &self.namespace)
    }

    fn storage(&self) -> S3Location {
        S3Location {
            bucket: TestBucket::NAME.into(),
            endpoint: Some(self.bucket.server().endpoint()),
            credentials_secret_ref: Some(LocalRef { name: "s3".into() }),
            ..S3Location::default()
        }
    }

    /// A RedisBackup as the backup-controller leaves it.
    async fn complete_backup(&self, backup: &Backup) -> Result<()> {
        let spec = RedisBackupSpec {
            cluster_ref: LocalRef {
                name: "cart".into(),
            },
            s3: Some(self.storage()),
            attempts: 3,
            ..RedisBackupSpec::default()
        };
        let api: Api<RedisBackup> = self.api();
        api.create(&PostParams::default(), &RedisBackup::new("nightly", spec))
            .await?;
        let finding = Finding::yes("Complete", "Succeeded", "");
        let status = RedisBackupStatus {
            storage: Some(self.storage()),
            manifest_key: Some(backup.manifest_key.clone()),
            manifest_sha256: Some(backup.manifest_sha256.clone()),
            conditions: merge(&[], &[finding], None, Timestamp::now()),
            ..RedisBackupStatus::default()
        };
        let patch = Patch::Merge(json!({"status": status}));
        api.patch_status("nightly", &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    /// An existing RedisCluster with its pods.
    async fn existing(&self, name: &str, cluster: &RedisCluster) -> Result<()> {
        let resource = ClusterResource::new(name, cluster_spec(cluster));
        let api: Api<ClusterResource> = self.api();
        api.create(&PostParams::default(), &resource).await?;
        self.provision(name, cluster).await
    }

    /// What the cluster-controller does for a RedisCluster.
    async fn provision(&self, name: &str, cluster: &RedisCluster) -> Result<()> {
        for (number, node) in cluster.nodes().iter().enumerate() {
            let ip = forward(node.address()).await?;
            self.pod(name, number, ip).await?;
        }
        let api: Api<ClusterResource> = self.api();
        let generation = api.get(name).await?.metadata.generation;
        let findings = [
            Finding::yes("Ready", "Formed", ""),
            Finding::yes("SlotsCovered", "Covered", ""),
        ];
        let status = RedisClusterStatus {
            observed_generation: generation,
            conditions: merge(&[], &findings, generation, Timestamp::now()),
            ..RedisClusterStatus::default()
        };
        let patch = Patch::Merge(json!({"status": status}));
        api.patch_status(name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    async fn pod(&self, cluster: &str, number: usize, ip: IpAddr) -> Result<()> {
        let name = format!("{cluster}-{number}-0");
        let labels = BTreeMap::from([(LABEL_CLUSTER.to_owned(), cluster.to_owned())]);
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                containers: vec![Container {
                    name: "redis".into(),
                    image: Some("redis".into()),
                    ..Container::default()
                }],
                ..PodSpec::default()
            }),
            ..Pod::default()
        };
        let api: Api<Pod> = self.api();
        api.create(&PostParams::default(), &pod).await?;
        let ip = ip.to_string();
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
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
        let begun = Instant::now();
        loop {
            let status = self.status(name).await?;
            if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
                return Ok(status);
            }
            ensure!(
                begun.elapsed() < Duration::from_mins(3),
                "no end: {status:#?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts a replica of the controller in a thread of its own.
    fn replica(&self, identity: &'static str) -> Replica {
        let namespace = self.namespace.clone();
        let (end, ended) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let tokio = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?;
            let runtime = tokio.block_on(async {
                let server = api_server().await?;
                server.runtime(PROGRAM.name, identity, &namespace, LEASE)
            })?;
            let arguments = ControllerArguments {
                streams: 1,
                memory_limit: None,
            };
            let work = tokio.spawn(control(runtime.clone(), arguments));
            match ended.recv() {
                Ok(End::Orderly) => tokio.block_on(async {
                    runtime.shutdown.cancel();
                    let ended = work.await?;
                    runtime.finish(Duration::from_secs(10)).await;
                    ended.map_err(anyhow::Error::from_boxed)
                })?,
                Ok(End::Kill) | Err(_) => {}
            }
            tokio.shutdown_background();
            Ok(())
        });
        Replica { end, thread }
    }
}

/// How a replica ends.
enum End {
    /// As after SIGTERM.
    Orderly,
    /// As after SIGKILL.
    Kill,
}

struct Replica {
    end: mpsc::Sender<End>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Replica {
    fn end(self, how: End) -> Result<()> {
        let _ = self.end.send(how);
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("it panicked"))?
    }
}

fn cluster_spec(cluster: &RedisCluster) -> RedisClusterSpec {
    RedisClusterSpec {
        image: Some("redis".into()),
        shards: i32::try_from(cluster.primaries().len()).unwrap_or(3).max(3),
        ..RedisClusterSpec::default()
    }
}

fn from_backup() -> RestoreSource {
    RestoreSource {
        backup_ref: Some(LocalRef {
            name: "nightly".into(),
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
async fn forward(node: SocketAddr) -> Result<IpAddr> {
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
        return Ok(ip.into());
    }
    anyhow::bail!("no free address for a pod")
}

async fn source_of(keys: usize, length: usize) -> Result<RedisCluster> {
    let source = RedisCluster::start(3, 0).await?;
    source.fill(&tests::redis::samples("")).await?;
    fill(&source, "key:", keys, length).await?;
    Ok(source)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_restore_a_backup_into_another_number_of_shards() -> Result<()> {
    let world = World::new().await?;
    let source = source_of(5000, 200).await?;
    let backup = back_up(&source, &world.bucket, GZIP).await?;
    let target = RedisCluster::start(5, 0).await?;
    let replicas = [world.replica("a"), world.replica("b")];
    // First the restore, then what it needs: it waits for each in turn.
    world.restore("r", from_backup(), into("target")).await?;
    eventually("the restore waits for the backup", async || {
        Ok((world.status("r").await?.phase.as_deref() == Some("Pending")).then_some(()))
    })
    .await?;
    world.complete_backup(&backup).await?;
    world.existing("target", &target).await?;

    let status = world.ends("r").await?;
    assert_eq!(status.phase.as_deref(), Some("Succeeded"), "{status:#?}");
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
    let leases: Api<Lease> = world.api();
    let lease = crds::operation_lease_name(&world.namespace, "target");
    assert!(
        leases.get_opt(&lease).await?.is_none(),
        "the operation lease was released"
    );
    for replica in replicas {
        replica.end(End::Orderly)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_cluster_is_created_filled_and_stays() -> Result<()> {
    let world = World::new().await?;
    let source = source_of(500, 50).await?;
    let backup = back_up(&source, &world.bucket, GZIP).await?;
    let target = RedisCluster::start(4, 0).await?;
    let replica = world.replica("a");
    let path = backup
        .manifest_key
        .trim_end_matches("/manifest.json")
        .to_owned();
    let location = RestoreSource {
        backup_ref: None,
        location: Some(BackupLocation {
            s3: world.storage(),
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
    world.restore("r", location.clone(), new.clone()).await?;
    let clusters: Api<ClusterResource> = world.api();
    let created = eventually("the cluster is created", async || {
        Ok(clusters.get_opt("fresh").await?)
    })
    .await?;
    let restores: Api<RedisRestore> = world.api();
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
    world.provision("fresh", &target).await?;
    let status = world.ends("r").await?;
    assert_eq!(status.phase.as_deref(), Some("Succeeded"), "{status:#?}");
    assert_equal(&portraits(&source).await?, &portraits(&target).await?);

    // Another restore does not take the cluster over.
    world.restore("again", location, new).await?;
    let refused = world.ends("again").await?;
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
    replica.end(End::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_restored_is_refused_before_a_key_is_written() -> Result<()> {
    let world = World::new().await?;
    let source = source_of(500, 50).await?;
    let backup = back_up(&source, &world.bucket, GZIP).await?;
    world.complete_backup(&backup).await?;
    let replica = world.replica("a");

    let full = RedisCluster::start(3, 0).await?;
    fill(&full, "mine:", 3, 10).await?;
    world.existing("full", &full).await?;
    world
        .restore("into-full", from_backup(), into("full"))
        .await?;
    let refused = world.ends("into-full").await?;
    let failed = find(&refused.conditions, "Failed").context("no Failed")?;
    assert_eq!(failed.reason, "TargetNotEmpty", "{}", failed.message);
    assert!(failed.message.contains("3 keys"), "{}", failed.message);
    assert!(refused.units.is_empty());
    assert_eq!(size(&full).await?, 3);

    // An object is shorter than the manifest says.
    let record = &backup.source.manifest().shards[1];
    let file = world
        .bucket
        .server()
        .file(TestBucket::NAME, &backup.source.key(record));
    let object = std::fs::read(&file)?;
    std::fs::write(&file, &object[..object.len() - 1])?;
    world.restore("cut", from_backup(), into("full")).await?;
    let refused = world.ends("cut").await?;
    let failed = find(&refused.conditions, "SourceValid").context("no SourceValid")?;
    assert_eq!(
        (failed.status.as_str(), failed.reason.as_str()),
        ("False", "BackupIncomplete")
    );
    std::fs::write(&file, &object)?;

    // The manifest is another than the one the RedisBackup vouches for.
    let file = world
        .bucket
        .server()
        .file(TestBucket::NAME, &backup.manifest_key);
    let mut manifest = std::fs::read(&file)?;
    manifest.push(b'\n');
    std::fs::write(&file, manifest)?;
    world
        .restore("replaced", from_backup(), into("full"))
        .await?;
    let refused = world.ends("replaced").await?;
    let failed = find(&refused.conditions, "SourceValid").context("no SourceValid")?;
    assert_eq!(failed.reason, "ManifestReplaced", "{}", failed.message);

    std::fs::remove_file(&file)?;
    world.restore("absent", from_backup(), into("full")).await?;
    let refused = world.ends("absent").await?;
    let failed = find(&refused.conditions, "SourceValid").context("no SourceValid")?;
    assert_eq!(failed.reason, "NoSuchKey", "{}", failed.message);
    let secret = &world.bucket.key().secret;
    assert!(
        !format!("{refused:?}").contains(secret.as_str()),
        "a secret in the status"
    );
    replica.end(End::Orderly)
}

/// A restore of one unit of four blocks, whose storage answers so slowly that the unit is seen at work.
async fn slow_restore(world: &World) -> Result<(RedisCluster, RedisCluster)> {
    let source = RedisCluster::start(1, 0).await?;
    fill(&source, "long:", 3200, 8000).await?;
    let backup = back_up(&source, &world.bucket, Compression::None).await?;
    world.complete_backup(&backup).await?;
    let target = RedisCluster::start(3, 0).await?;
    world.existing("target", &target).await?;
    Ok((source, target))
}

/// Begins the restore; returns its unit when it is past its first block and not at its end.
async fn unit_at_work(world: &World) -> Result<RestoreUnit> {
    let api: Api<RedisRestore> = world.api();
    world.restore("r", from_backup(), into("target")).await?;
    eventually("the unit is handed out", async || {
        let status = world.status("r").await?;
        Ok((!status.units.is_empty()).then_some(()))
    })
    .await?;
    // Two blocks are fetched at a time: the next two come later than the next report.
    let slow = Fault::Slow(Duration::from_secs(5));
    world.bucket.server().faults().add(On::Get, slow, 1000);
    let begun = Instant::now();
    loop {
        let status = api.get("r").await?.status.unwrap_or_default();
        let unit = status.units.first().context("the unit is gone")?;
        let at_work = unit.state == RestoreUnitState::Replaying && unit.block > 0;
        if at_work && unit.block < unit.blocks {
            return Ok(unit.clone());
        }
        ensure!(
            begun.elapsed() < Duration::from_mins(2),
            "never seen at work: {status:#?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_unit_of_a_killed_replica_goes_on_at_its_block() -> Result<()> {
    let world = World::new().await?;
    let (source, target) = slow_restore(&world).await?;
    let doomed = world.replica("doomed");
    let at_work = unit_at_work(&world).await?;
    doomed.end(End::Kill)?;
    world.bucket.server().faults().clear();
    let heir = world.replica("heir");
    let status = world.ends("r").await?;
    assert_eq!(status.phase.as_deref(), Some("Succeeded"), "{status:#?}");
    let unit = status.units.first().context("the unit is gone")?;
    assert_eq!(unit.worker, "restore-controller-heir", "{unit:?}");
    assert_eq!(unit.attempt, at_work.attempt + 1, "{unit:?}");
    assert_eq!(unit.keys, 3200, "counted on from block {}", at_work.block);
    assert_equal(&portraits(&source).await?, &portraits(&target).await?);
    heir.end(End::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_end_hands_the_claims_back() -> Result<()> {
    let world = World::new().await?;
    let (source, target) = slow_restore(&world).await?;
    let first = world.replica("first");
    let at_work = unit_at_work(&world).await?;
    first.end(End::Orderly)?;
    world.bucket.server().faults().clear();
    let status = world.status("r").await?;
    let left = status.units.first().context("the unit is gone")?;
    assert_eq!(left.worker, "", "{left:?}");
    assert_eq!(left.state, RestoreUnitState::Pending);
    assert_eq!(left.attempt, 1, "handing back costs no attempt");
    assert!(
        left.block >= at_work.block && left.block < left.blocks,
        "{left:?}"
    );
    let second = world.replica("second");
    let status = world.ends("r").await?;
    assert_eq!(status.phase.as_deref(), Some("Succeeded"), "{status:#?}");
    assert_eq!(status.units.first().map(|unit| unit.keys), Some(3200));
    assert_equal(&portraits(&source).await?, &portraits(&target).await?);
    second.end(End::Orderly)
}
