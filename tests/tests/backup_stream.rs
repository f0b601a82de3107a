//! The way of the data without Kubernetes: shards of real clusters into a real S3 server, complete, proven, readable with
//! stock tools; and what is left and said when servers or the store fail.

use anyhow::{Context, Result, bail, ensure};
use axum::http::StatusCode;
use backup_controller::{
    capture::{CaptureError, CaptureProgress, CaptureRequest, CapturedShard, capture},
    publish::{PublishRequest, StoredUnit, publish},
    shards::units,
    survey::slot_map,
};
use common::{
    cluster::{seeds::Seeds, slot_map::SlotMap, slots::SlotSet},
    rdb::{Event, RecordReader},
    storage::{
        BackupId, Compression, CompressionPool, Credentials, Layout, Location, Manifest,
        ObjectStore,
        location::{Given, SMALLEST_PART},
    },
};
use crds::{OwnUser, SourceRole};
use futures::future::try_join_all;
use jiff::Timestamp;
use redis::{Cmd, aio::MultiplexedConnection};
use std::{fs, ops::ControlFlow, process::Command, time::Duration};
use tests::{
    noise::Noise,
    redis::{RedisServer, TestCluster, functions, samples},
    s3::{Fault, On, TestBucket, on_loopback},
    wait::{PATIENCE, eventually},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const GZIP: Compression = Compression::Gzip { level: 1 };

fn backup_id() -> BackupId {
    BackupId::new(Timestamp::UNIX_EPOCH, "3f9c2a10")
}

fn request(store: &ObjectStore, seeds: Seeds, shard: u32, slots: SlotSet) -> CaptureRequest {
    let backup_id = backup_id();
    CaptureRequest {
        seeds,
        slots,
        prefer: SourceRole::Replica,
        patience: Duration::from_secs(20),
        layout: Layout::new(store.location(), "shop", "cart", &backup_id),
        store: store.clone(),
        backup_id,
        shard,
        attempt: 1,
        compression: GZIP,
        pool: CompressionPool::of_machine(),
    }
}

async fn requests(store: &ObjectStore, cluster: &TestCluster) -> Result<Vec<CaptureRequest>> {
    let seeds = cluster.seeds_as(OwnUser::Backup)?;
    let map = slot_map(&seeds).await?;
    let shards = (0..).zip(map.shards());
    Ok(shards
        .map(|(shard, (_, slots))| request(store, seeds.clone(), shard, slots.clone()))
        .collect())
}

async fn run(request: &CaptureRequest) -> Result<CapturedShard, CaptureError> {
    let (sender, _seen) = watch::channel(CaptureProgress::default());
    capture(request, &sender, &CancellationToken::new()).await
}

fn publication(store: &ObjectStore, map: &SlotMap, shards: &[CapturedShard]) -> PublishRequest {
    let backup_id = backup_id();
    let units = units(map, 1).into_iter().zip(shards);
    PublishRequest {
        layout: Layout::new(store.location(), "shop", "cart", &backup_id),
        store: store.clone(),
        backup_id,
        namespace: "shop".to_owned(),
        cluster: "cart".to_owned(),
        cluster_uid: "uid".to_owned(),
        created_at: Timestamp::now(),
        topology_hash: map.hash.clone(),
        compression: GZIP,
        units: units
            .map(|(unit, shard)| StoredUnit {
                shard: shard.document.index.shard,
                slots: unit.slot_ranges,
                index_key: shard.index_key.clone(),
                index_sha256: shard.index_sha256.to_string(),
            })
            .collect(),
    }
}

/// What `gzip -dc` makes of a stored object.
fn unpacked(bucket: &TestBucket, key: &str) -> Result<Vec<u8>> {
    let file = bucket.server().file(TestBucket::NAME, key);
    let output = Command::new("gzip").arg("-dc").arg(&file).output()?;
    ensure!(
        output.status.success(),
        "gzip: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

fn keys_in(rdb: &[u8]) -> Result<u64> {
    let mut keys = 0;
    let mut reader = RecordReader::new();
    reader.feed(rdb, &mut |event| {
        keys += u64::from(matches!(event, Event::Key(_)));
        ControlFlow::Continue(())
    })?;
    ensure!(reader.is_finished(), "the RDB has no end");
    Ok(keys)
}

/// Writes without a pause until it is stopped; returns how many writes were made.
async fn write_all_the_time(cluster: &TestCluster, stop: CancellationToken) -> Result<u64> {
    let mut connections: Vec<MultiplexedConnection> =
        try_join_all(cluster.primaries().iter().map(RedisServer::connect)).await?;
    let mut written = 0;
    while !stop.is_cancelled() {
        let key = format!("counter:{}", written % 500);
        let shard = cluster.shard_of(key.as_bytes())?;
        let connection = connections.get_mut(shard).context("no connection")?;
        let mut command = Cmd::new();
        command.arg("INCR").arg(&key);
        let _: i64 = command.query_async(connection).await?;
        written += 1;
    }
    Ok(written)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_shards_under_a_running_writer_are_a_complete_backup() -> Result<()> {
    let cluster = TestCluster::start(3, 1).await?;
    let bucket = TestBucket::start().await?;
    let store = bucket.store().await?;
    cluster.fill(&samples("sample:")).await?;
    for primary in cluster.primaries() {
        for code in functions() {
            let mut command = Cmd::new();
            command.arg("FUNCTION").arg("LOAD").arg(code);
            let _: String = command.query_async(&mut primary.connect().await?).await?;
        }
        primary
            .call::<()>("DEBUG POPULATE 20000 filler 300")
            .await?;
    }
    let stop = CancellationToken::new();
    let before = slot_map(&cluster.seeds_as(OwnUser::Backup)?).await?;
    let work = async {
        let requests = requests(&store, &cluster).await?;
        let shards = try_join_all(requests.iter().map(run)).await?;
        stop.cancel();
        Ok::<_, anyhow::Error>(shards)
    };
    let (shards, written) = tokio::try_join!(work, write_all_the_time(&cluster, stop.clone()))?;
    let after = slot_map(&cluster.seeds_as(OwnUser::Backup)?).await?;
    ensure!(before == after, "the slot map has changed by itself");
    ensure!(written > 0, "the writer did not write");

    let request = publication(&store, &before, &shards);
    let published = publish(&request).await?;
    let text = fs::read(
        bucket
            .server()
            .file(TestBucket::NAME, &published.manifest_key),
    )?;
    let manifest: Manifest = serde_json::from_slice(&text)?;
    manifest.validate()?;
    let server = cluster.primaries()[0].program();
    let (major, minor) = server.version;
    let version = format!("{major}.{minor}.");
    ensure!(
        manifest.redis_version.starts_with(&version)
            && manifest.rdb_version == server.rdb_version(),
        "{} writes RDB {}",
        manifest.redis_version,
        manifest.rdb_version
    );
    ensure!(
        manifest.functions.unwrap_or_default() == functions().len() as u64,
        "functions: {:?}",
        manifest.functions
    );
    ensure!(manifest.topology_hash == before.hash);
    for record in &manifest.shards {
        ensure!(record.role == common::storage::manifest::CapturedRole::Replica);
        ensure!(record.crc64 != "disabled");
        let rdb = unpacked(&bucket, &request.layout.key(&record.object))?;
        ensure!(rdb.len() as u64 == record.raw_bytes);
        ensure!(
            Some(keys_in(&rdb)?) == record.keys,
            "shard {}",
            record.index
        );
        is_loadable(&rdb, record.keys).await?;
    }
    ensure!(bucket.server().unfinished_uploads()?.is_empty());

    // A planner that died after the manifest finds it, and writes nothing.
    let again = publish(&request).await?;
    ensure!(again == published);
    Ok(())
}

/// `redis-check-rdb` and a real server both take the unpacked object.
async fn is_loadable(rdb: &[u8], keys: Option<u64>) -> Result<()> {
    let mut server = RedisServer::standalone(&[]).await?;
    let file = server.directory().join("dump.rdb");
    fs::write(&file, rdb)?;
    let check = server.tool("redis-check-rdb")?.arg(&file).output()?;
    let words = String::from_utf8_lossy(&check.stdout).into_owned();
    ensure!(
        check.status.success() && words.contains("RDB looks OK"),
        "{words}"
    );
    server.restart().await?;
    let loaded: u64 = server.call("DBSIZE").await?;
    ensure!(Some(loaded) == keys, "loaded {loaded} of {keys:?} keys");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_is_read_if_preferred_or_its_replica_lags() -> Result<()> {
    use common::storage::manifest::CapturedRole::{Primary, Replica};
    let mut cluster = TestCluster::start(3, 1).await?;
    let bucket = TestBucket::start().await?;
    let store = bucket.store().await?;
    let mut requests = requests(&store, &cluster).await?;
    let mut first = requests.remove(0);
    let role = async |request: &CaptureRequest| -> Result<_> {
        Ok(run(request).await?.document.capture.role)
    };
    ensure!(role(&first).await? == Replica);
    first.prefer = SourceRole::Primary;
    first.attempt = 2;
    ensure!(role(&first).await? == Primary);
    first.prefer = SourceRole::Replica;
    first.attempt = 3;
    cluster.kill(3).await?;
    ensure!(role(&first).await? == Primary);
    for node in cluster.nodes() {
        // Servers before 7.0 write a file unless they are set otherwise; newer ones do so for who has not said that it reads a stream.
        let writes_a_file = node.log().contains("with target: disk");
        ensure!(!writes_a_file || !node.program().at_least(7, 0));
    }
    cluster.nothing_destroyed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_moved_are_reported() -> Result<()> {
    let cluster = TestCluster::start(3, 0).await?;
    let bucket = TestBucket::start().await?;
    let store = bucket.store().await?;
    let mut requests = requests(&store, &cluster).await?;
    let mut first = requests.remove(0);
    first
        .slots
        .remove(first.slots.iter().last().context("no slot")?);
    match run(&first).await {
        Err(error @ CaptureError::SlotsMoved { .. }) => {
            ensure!(error.to_string().contains("0-5460"), "{error}");
            Ok(())
        }
        other => bail!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_in_the_minority_is_not_read() -> Result<()> {
    let mut cluster = TestCluster::start(3, 0).await?;
    let bucket = TestBucket::start().await?;
    let store = bucket.store().await?;
    let mut first = requests(&store, &cluster).await?.remove(0);
    first.patience = Duration::from_secs(1);
    for index in 1..cluster.nodes().len() {
        cluster.kill(index).await?;
    }
    let alone = cluster.nodes().first().context("no node")?;
    eventually("it knows that it is alone", async || {
        let info: String = alone.call("CLUSTER INFO").await?;
        Ok(info.contains("cluster_state:fail"))
    })
    .await?;
    match run(&first).await {
        Err(error @ CaptureError::NoSource(_)) => {
            ensure!(error.to_string().contains("cluster_state"), "{error}");
            cluster.nothing_destroyed().await
        }
        other => bail!("{other:?}"),
    }
}

/// Addresses of pods were given to nodes of another cluster, whose slots are divided in the same way: their keys would be stored as ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_with_the_same_slots_is_not_stored() -> Result<()> {
    let ours = TestCluster::start(1, 1).await?;
    let foreign = TestCluster::start(1, 1).await?;
    ours.primaries()[0].call::<()>("SET ours here").await?;
    foreign.primaries()[0]
        .call::<()>("SET theirs there")
        .await?;
    let bucket = TestBucket::start().await?;
    let store = bucket.store().await?;
    let only_foreign = foreign.nodes().iter().map(RedisServer::address);
    let only_foreign = Seeds::new(only_foreign, ours.ids().iter().copied())?;
    ensure!(
        slot_map(&only_foreign).await.is_err(),
        "foreign slots count"
    );
    // The foreign nodes first.
    let address = ours.primaries()[0].address();
    let addresses = only_foreign.addresses().iter().copied().chain([address]);
    let mixed = Seeds::new(addresses, ours.ids().iter().copied())?;
    let map = slot_map(&mixed).await?;
    ensure!(map.primaries.keys().eq([&ours.ids()[0]]), "{map:?}");

    let slots = SlotSet::from(ours.ranges()[0]);
    let mut wrong = request(&store, only_foreign, 0, slots.clone());
    wrong.patience = Duration::from_secs(1);
    let error = run(&wrong).await.err().context("foreign keys are stored")?;
    ensure!(error.reason() == "WrongNode", "{error}");
    let mut right = request(&store, mixed, 0, slots);
    right.attempt = 2;
    right.prefer = SourceRole::Primary;
    let stored = run(&right).await?;
    ensure!(stored.document.capture.node_id == ours.ids()[0].to_string());
    ensure!(keys_in(&unpacked(&bucket, &stored.key)?)? == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_slot_is_seen_before_anything_is_captured() -> Result<()> {
    let cluster = TestCluster::start(3, 0).await?;
    let [source, target, ..] = cluster.primaries() else {
        bail!("no primaries")
    };
    let target: String = target.call("CLUSTER MYID").await?;
    source
        .call::<()>(&format!("CLUSTER SETSLOT 7 MIGRATING {target}"))
        .await?;
    let error = slot_map(&cluster.seeds_as(OwnUser::Backup)?).await.err();
    let error = error.context("settled")?;
    ensure!(
        error.to_string().starts_with("slot 7 is being moved"),
        "{error}"
    );
    Ok(())
}

/// One shard with 48 MiB that no compressor makes smaller, which its nodes send at about 4 MiB/s.
async fn slow_cluster() -> Result<TestCluster> {
    let cluster = TestCluster::start(1, 1).await?;
    let primary = cluster.primaries().first().context("no primary")?;
    let mut connection = primary.connect().await?;
    let mut noise = Noise::new(1);
    for number in 0..192 {
        let value = noise.bytes(256 << 10);
        let mut command = Cmd::new();
        command.arg("SET").arg(format!("big:{number}")).arg(value);
        command.query_async::<()>(&mut connection).await?;
    }
    for node in cluster.nodes() {
        node.call::<()>("CONFIG SET rdb-key-save-delay 60000")
            .await?;
    }
    let replica = cluster.replicas(0).next().context("no replica")?;
    eventually("the replica has every key", async || {
        Ok(replica.call::<u64>("DBSIZE").await? == 192)
    })
    .await?;
    Ok(cluster)
}

/// The bucket with the smallest parts there are.
async fn small_parts(bucket: &TestBucket) -> Result<ObjectStore> {
    let endpoint = bucket.server().endpoint();
    let given = Given {
        bucket: TestBucket::NAME,
        endpoint: Some(&endpoint),
        part_size: Some(SMALLEST_PART),
        ..Given::default()
    };
    Ok(ObjectStore::connect(Location::new(&given)?, on_loopback(bucket.credentials())).await)
}

/// Waits until a multipart upload has begun.
async fn is_uploading(bucket: &TestBucket) -> Result<()> {
    eventually("an upload has begun", async || {
        Ok(!bucket.server().unfinished_uploads()?.is_empty())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_dies_leaves_nothing_and_another_attempt_works() -> Result<()> {
    let mut cluster = slow_cluster().await?;
    let bucket = TestBucket::start().await?;
    let store = small_parts(&bucket).await?;
    let mut request = requests(&store, &cluster).await?.remove(0);
    request.compression = Compression::None;
    let running = tokio::spawn({
        let request = request.clone();
        async move { run(&request).await }
    });
    is_uploading(&bucket).await?;
    cluster.kill(1).await?;
    let error = running.await?.err().context("it survived its source")?;
    ensure!(
        error.reason() == "SourceLost",
        "{}: {error}",
        error.reason()
    );
    ensure!(
        bucket.server().unfinished_uploads()?.is_empty(),
        "an upload was left behind"
    );

    for node in cluster.primaries() {
        node.call::<()>("CONFIG SET rdb-key-save-delay 0").await?;
    }
    request.attempt = 2;
    let shard = run(&request).await?;
    ensure!(shard.document.index.keys() == Some(192));
    ensure!(shard.key.ends_with("shard-0000-a2.rdb"), "{}", shard.key);
    cluster.nothing_destroyed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_capture_leaves_nothing() -> Result<()> {
    let cluster = slow_cluster().await?;
    let bucket = TestBucket::start().await?;
    let store = small_parts(&bucket).await?;
    let mut request = requests(&store, &cluster).await?.remove(0);
    request.compression = Compression::None;
    let cancel = CancellationToken::new();
    let (sender, mut seen) = watch::channel(CaptureProgress::default());
    let running = tokio::spawn({
        let cancel = cancel.clone();
        async move { capture(&request, &sender, &cancel).await }
    });
    let forked = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| seen.forked_at.is_some()));
    ensure!(forked.await??.source.is_some());
    // The store may have begun an upload whose answer is still on its way: nothing could abort that one.
    let stored = seen.wait_for(|seen| seen.stored_bytes > 0);
    tokio::time::timeout(PATIENCE, stored).await??;
    cancel.cancel();
    let end = running.await?;
    ensure!(matches!(end, Err(CaptureError::Cancelled)), "{end:?}");
    ensure!(
        bucket.server().unfinished_uploads()?.is_empty(),
        "an upload was left behind"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_stores_are_tried_again_and_refusing_ones_named() -> Result<()> {
    let cluster = TestCluster::start(1, 0).await?;
    cluster
        .primaries()
        .first()
        .context("no primary")?
        .call::<()>("DEBUG POPULATE 1000")
        .await?;
    let bucket = TestBucket::start().await?;
    let store = bucket.store().await?;
    let mut request = requests(&store, &cluster).await?.remove(0);
    let faults = bucket.server().faults();

    faults.add(
        On::Put,
        Fault::Answer(StatusCode::SERVICE_UNAVAILABLE, "SlowDown"),
        1,
    );
    faults.add(On::Put, Fault::Break, 1);
    faults.add(On::Put, Fault::LoseAnswer, 1);
    run(&request).await?;
    ensure!(faults.left() == 0);

    request.attempt = 2;
    faults.add(
        On::Any,
        Fault::Answer(StatusCode::FORBIDDEN, "AccessDenied"),
        usize::MAX,
    );
    is_named(&run(&request).await, "AccessDenied", "shard-0000-a2.rdb.gz")?;
    faults.clear();

    let wrong = Credentials::new(bucket.key().id.clone(), "another".to_owned().into(), None);
    request.store = ObjectStore::connect(bucket.location()?, on_loopback(wrong)).await;
    is_named(
        &run(&request).await,
        "WrongSecretKey",
        "shard-0000-a2.rdb.gz",
    )?;

    request.store = store;
    let gone = Fault::Answer(StatusCode::NOT_FOUND, "NoSuchBucket");
    faults.add(On::Put, gone, usize::MAX);
    is_named(&run(&request).await, "NoSuchBucket", "backups")?;
    ensure!(bucket.server().unfinished_uploads()?.is_empty());
    Ok(())
}

fn is_named(result: &Result<CapturedShard, CaptureError>, reason: &str, word: &str) -> Result<()> {
    let Err(error) = result else {
        bail!("it was captured")
    };
    let text = error.to_string();
    ensure!(error.reason() == reason, "{}: {text}", error.reason());
    ensure!(text.contains(word) && text.contains("s3://"), "{text}");
    ensure!(!text.contains("test-secret"), "a secret shows: {text}");
    Ok(())
}
