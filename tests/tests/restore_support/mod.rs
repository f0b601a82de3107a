//! What the restore suites share: a backup made of a running cluster, and everything that can be said of a cluster's keys.

#![allow(dead_code)] // each suite uses a part of it

use anyhow::{Context, Result, ensure};
use backup_controller::{
    capture::{CaptureProgress, CaptureRequest, capture},
    publish::{PublishRequest, StoredUnit, publish},
};
use common::{
    cluster::{
        endpoint::Endpoint, reader::read, seeds::Seeds, slot_map::topology_hash, slots::SlotSet,
    },
    storage::{BackupId, Compression, CompressionPool, Layout, ObjectStore},
};
use crds::{OwnUser, S3Location, SourceRole};
use futures::future::try_join_all;
use k8s_openapi::jiff::Timestamp;
use redis::{Cmd, FromRedisValue, Value, cmd};
use restore_controller::{
    plan::{ManifestName, Origin},
    replay::{Progress, ReplayError, ReplayRequest, ValueLimit, Window, replay},
    source::Source,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tests::{
    noise::Noise,
    redis::own_users,
    redis::{RedisServer, TestCluster},
    s3::TestBucket,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const ID: &str = "20261121t003000z-3f9c2a10";

/// A stored backup of a cluster.
pub struct Backup {
    pub store: ObjectStore,
    pub source: Source,
    pub manifest_key: String,
    pub manifest_sha256: String,
    pub server: String,
}

/// Backs a cluster up into the bucket, below `namespace/cluster/`.
pub async fn back_up(
    cluster: &TestCluster,
    bucket: &TestBucket,
    compression: Compression,
) -> Result<Backup> {
    back_up_as(cluster, bucket, compression, ID).await
}

/// The same with this identity.
pub async fn back_up_as(
    cluster: &TestCluster,
    bucket: &TestBucket,
    compression: Compression,
    id: &str,
) -> Result<Backup> {
    let store = bucket.store().await?;
    let backup_id: BackupId = id.parse()?;
    let layout = Layout::new(store.location(), "shop", "cart", &backup_id);
    let pool = CompressionPool::of_machine();
    let seeds = seeds(cluster)?.with_login(own_users::login(OwnUser::Backup));
    let cancel = CancellationToken::new();
    let capturing = (0_u32..).zip(cluster.ranges()).map(|(shard, range)| {
        let request = CaptureRequest {
            seeds: seeds.clone(),
            slots: SlotSet::from(*range),
            prefer: SourceRole::Primary,
            patience: Duration::from_secs(20),
            store: store.clone(),
            layout: layout.clone(),
            backup_id: backup_id.clone(),
            shard,
            attempt: 1,
            compression,
            pool: pool.clone(),
        };
        let cancel = &cancel;
        async move {
            let (progress, _) = watch::channel(CaptureProgress::default());
            capture(&request, &progress, cancel).await
        }
    });
    let captured = try_join_all(capturing).await?;
    let units = captured.iter().zip(cluster.ranges());
    let published = publish(&PublishRequest {
        store: store.clone(),
        layout,
        backup_id,
        namespace: "shop".into(),
        cluster: "cart".into(),
        cluster_uid: "uid".into(),
        created_at: jiff::Timestamp::now(),
        topology_hash: hash(cluster).await?,
        compression,
        units: units
            .map(|(shard, range)| StoredUnit {
                shard: shard.document.index.shard,
                slots: vec![range.to_string()],
                index_key: shard.index_key.clone(),
                index_sha256: shard.index_sha256.to_string(),
            })
            .collect(),
    })
    .await?;
    let origin = Origin {
        storage: S3Location::default(),
        manifest: ManifestName::Key(published.manifest_key.clone()),
        sha256: Some(published.manifest_sha256.clone()),
    };
    Ok(Backup {
        source: Source::open(store.clone(), &origin).await?,
        store,
        manifest_key: published.manifest_key,
        manifest_sha256: published.manifest_sha256,
        server: captured
            .first()
            .map(|shard| shard.document.capture.server_version.clone())
            .unwrap_or_default(),
    })
}

async fn hash(cluster: &TestCluster) -> Result<String> {
    let mut views = Vec::new();
    for node in cluster.primaries() {
        let endpoint = Endpoint::new(node.address(), Duration::from_secs(5));
        views.push(read(&endpoint).await?.view);
    }
    Ok(topology_hash(&views))
}

impl Backup {
    /// The order to replay one shard, from its start.
    pub async fn request(&self, shard: i32, seeds: Seeds) -> Result<ReplayRequest> {
        let (record, index) = self.source.shard(shard).await?;
        Ok(ReplayRequest {
            key: self.source.key(record),
            slots: record.slots.iter().copied().collect(),
            index: Arc::new(index),
            seeds,
            from: Progress::default(),
            window: Window::default(),
            patience: Duration::from_secs(30),
            value_limit: ValueLimit::default(),
        })
    }

    /// Replays one shard.
    pub async fn replay(&self, request: &ReplayRequest) -> Result<Progress, ReplayError> {
        let (progress, _) = watch::channel(Progress::default());
        self.replay_reporting(request, &progress).await
    }

    /// Replays one shard and reports its progress.
    pub async fn replay_reporting(
        &self,
        request: &ReplayRequest,
        progress: &watch::Sender<Progress>,
    ) -> Result<Progress, ReplayError> {
        let pool = CompressionPool::of_machine();
        replay(self.store.clone(), pool, request, progress).await
    }

    /// Replays every shard at the same time.
    pub async fn replay_all(&self, target: &TestCluster) -> Result<Vec<Progress>> {
        let shards = self.source.manifest().shards.iter();
        let replays = shards.map(async |shard| {
            let request = self
                .request(i32::try_from(shard.index)?, seeds(target)?)
                .await?;
            Ok::<_, anyhow::Error>(self.replay(&request).await?)
        });
        try_join_all(replays).await
    }
}

/// Where the primaries of a cluster listen, and the ids of its nodes.
pub fn seeds(cluster: &TestCluster) -> Result<Seeds> {
    let addresses = cluster.primaries().iter().map(RedisServer::address);
    let seeds = Seeds::new(addresses, cluster.ids().iter().copied())?;
    Ok(seeds.with_login(own_users::login(OwnUser::Restore)))
}

/// Everything that can be said of a key: equal for equal keys, whatever server holds them.
#[derive(Clone, Debug, PartialEq)]
pub struct Portrait {
    kind: String,
    encoding: String,
    digest: String,
    expires: Expiry,
    details: Option<Value>,
}

/// When a key expires.
#[derive(Clone, Copy, Debug)]
enum Expiry {
    /// Milliseconds since 1970 as the server keeps them; negative without an expiry.
    At(i64),
    /// Of servers before 7.0, which tell only what is left: that and the time of this machine.
    Around(i64),
}

impl Expiry {
    /// Longest time between the server's clock and ours in one answer.
    const APART: u64 = 2_000;
}

impl PartialEq for Expiry {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::At(one), Self::At(other)) => one == other,
            (Self::At(one) | Self::Around(one), Self::At(other) | Self::Around(other)) => {
                one == other || (*one > 0 && *other > 0 && one.abs_diff(*other) < Self::APART)
            }
        }
    }
}

/// All keys of a cluster.
pub async fn portraits(cluster: &TestCluster) -> Result<BTreeMap<Vec<u8>, Portrait>> {
    let mut all = BTreeMap::new();
    for node in cluster.primaries() {
        for (key, portrait) in portraits_of(node).await? {
            ensure!(
                all.insert(key.clone(), portrait).is_none(),
                "key {} is on two nodes",
                key.escape_ascii()
            );
        }
    }
    Ok(all)
}

/// All keys of a node.
pub async fn portraits_of(node: &RedisServer) -> Result<BTreeMap<Vec<u8>, Portrait>> {
    const AT_ONCE: usize = 500;
    let mut connection = node.connect().await?;
    let keys: Vec<Vec<u8>> = cmd("KEYS").arg("*").query_async(&mut connection).await?;
    let mut all = BTreeMap::new();
    let exact = node.program().at_least(7, 0);
    for keys in keys.chunks(AT_ONCE) {
        let mut pipeline = redis::pipe();
        for key in keys {
            pipeline.cmd("TYPE").arg(key);
            pipeline.cmd("OBJECT").arg("ENCODING").arg(key);
            pipeline.cmd("DEBUG").arg("DIGEST-VALUE").arg(key);
            let expiry = if exact { "PEXPIRETIME" } else { "PTTL" };
            pipeline.cmd(expiry).arg(key);
        }
        let answers: Vec<Value> = pipeline.query_async(&mut connection).await?;
        let now = Timestamp::now().as_millisecond();
        for (key, answers) in keys.iter().zip(answers.chunks_exact(4)) {
            let [kind, encoding, digest, expiry] = answers else {
                anyhow::bail!("answers are missing");
            };
            let kind = String::from_redis_value_ref(kind)?;
            let details = match kind.as_str() {
                "stream" => Some(stream(key).query_async(&mut connection).await?),
                _ => None,
            };
            let digest = Vec::<String>::from_redis_value_ref(digest)?;
            let portrait = Portrait {
                kind,
                encoding: String::from_redis_value_ref(encoding)?,
                digest: digest.concat(),
                expires: match i64::from_redis_value_ref(expiry)? {
                    at if exact => Expiry::At(at),
                    left if left < 0 => Expiry::Around(left),
                    left => Expiry::Around(now + left),
                },
                details,
            };
            all.insert(key.clone(), portrait);
        }
    }
    Ok(all)
}

/// Groups, consumers and pending entries of a stream are in no digest.
fn stream(key: &[u8]) -> Cmd {
    let mut command = cmd("XINFO");
    command
        .arg("STREAM")
        .arg(key)
        .arg("FULL")
        .arg("COUNT")
        .arg(0);
    command
}

/// The libraries of functions of a node, by name.
pub async fn libraries(node: &RedisServer) -> Result<BTreeMap<String, String>> {
    if !node.program().at_least(7, 0) {
        return Ok(BTreeMap::new());
    }
    let lists: Vec<BTreeMap<String, Value>> = node.call("FUNCTION LIST WITHCODE").await?;
    lists
        .iter()
        .map(|library| {
            let text = |name: &str| {
                let value = library.get(name).context("a library without it")?;
                Ok::<_, anyhow::Error>(String::from_redis_value_ref(value)?)
            };
            Ok((text("library_name")?, text("library_code")?))
        })
        .collect()
}

/// Fails with the first keys that differ.
pub fn assert_equal(wanted: &BTreeMap<Vec<u8>, Portrait>, found: &BTreeMap<Vec<u8>, Portrait>) {
    let missing = wanted.keys().filter(|key| !found.contains_key(*key));
    let surplus = found.keys().filter(|key| !wanted.contains_key(*key));
    let name = |key: &Vec<u8>| key.escape_ascii().to_string();
    let missing: Vec<_> = missing.take(5).map(name).collect();
    let surplus: Vec<_> = surplus.take(5).map(name).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "{} keys wanted, {} found; missing {missing:?}, surplus {surplus:?}",
        wanted.len(),
        found.len()
    );
    for (key, portrait) in wanted {
        assert_eq!(found.get(key), Some(portrait), "key {}", name(key));
    }
}

/// Writes `count` strings of `length` bytes each, spread over the slots.
pub async fn fill(cluster: &TestCluster, prefix: &str, count: usize, length: usize) -> Result<()> {
    const AT_ONCE: usize = 2000;
    let mut connections =
        try_join_all(cluster.primaries().iter().map(RedisServer::connect)).await?;
    let numbers: Vec<usize> = (0..count).collect();
    for numbers in numbers.chunks(AT_ONCE) {
        let mut pipelines: Vec<_> = connections.iter().map(|_| redis::pipe()).collect();
        for number in numbers {
            let key = format!("{prefix}{number}");
            let value = Noise::new(*number as u64).bytes(length);
            let shard = cluster.shard_of(key.as_bytes())?;
            pipelines[shard].cmd("SET").arg(key).arg(value).ignore();
        }
        for (pipeline, connection) in pipelines.iter().zip(&mut connections) {
            if pipeline.cmd_iter().next().is_some() {
                pipeline.query_async::<()>(connection).await?;
            }
        }
    }
    Ok(())
}

/// Keys of all primaries.
pub async fn size(cluster: &TestCluster) -> Result<u64> {
    let mut keys = 0;
    for node in cluster.primaries() {
        keys += node.call::<u64>("DBSIZE").await?;
    }
    Ok(keys)
}
