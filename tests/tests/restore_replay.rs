//! Replays of real backups into real clusters: every key arrives, wherever its slot is by then; what is damaged is not used;
//! what was begun is gone on with.

mod restore_support;

use anyhow::{Context, Result, ensure};
use common::{
    cluster::{
        seeds::Seeds,
        slots::{Slot, SlotRange, SlotSet},
    },
    errors::Recovery,
    rdb::{Event, RecordReader},
    storage::{BlockReader, Compression, CompressionPool, S3Cause, StorageError},
};
use crds::OwnUser;
use futures::future::join_all;
use redis::cmd;
use restore_controller::{
    plan::Verified,
    replay::{Progress, Refusal, ReplayError, ReplayRequest, RetryReason},
    source::Walks,
    target,
};
use restore_support::{
    Backup, assert_equal, back_up, fill, libraries, portraits, portraits_of, seeds, size,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};
use tests::{
    redis::{RedisServer, TestCluster, executed, functions, nothing_destroyed, samples},
    s3::{Fault, On, TestBucket},
    wait::eventually,
};
use tokio::{sync::watch, time::timeout};

const GZIP: Compression = Compression::Gzip { level: 1 };
const LIMIT: Duration = Duration::from_mins(2);

/// Keys that expire between the backup and the restore.
const SHORT_LIVED: u64 = 50;

async fn rich_source() -> Result<TestCluster> {
    let source = TestCluster::start(3, 0).await?;
    source.fill(&samples("")).await?;
    for set in 0..5 {
        source.fill(&samples(&format!("set {set}:"))).await?;
    }
    fill(&source, "plain:", 5_000, 120).await?;
    for node in source.primaries() {
        for code in functions() {
            let mut connection = node.connect().await?;
            cmd("FUNCTION")
                .arg("LOAD")
                .arg(code)
                .query_async::<()>(&mut connection)
                .await?;
        }
    }
    Ok(source)
}

async fn add_short_lived(source: &TestCluster, life: Duration) -> Result<()> {
    for number in 0..SHORT_LIVED {
        let key = format!("short:{number}");
        let node = &source.primaries()[source.shard_of(key.as_bytes())?];
        node.call::<()>(&format!("SET {key} x PX {}", life.as_millis()))
            .await?;
    }
    Ok(())
}

async fn all_expired(source: &TestCluster) -> Result<()> {
    eventually("the short-lived keys have expired", async || {
        for number in 0..SHORT_LIVED {
            let key = format!("short:{number}");
            let node = &source.primaries()[source.shard_of(key.as_bytes())?];
            if node.call::<i64>(&format!("PTTL {key}")).await? != -2 {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await
}

/// What the controller would say of the target.
async fn verified(backup: &Backup, target: &TestCluster) -> Result<()> {
    let counted = target::count(&seeds(target)?).await?;
    let now = jiff::Timestamp::now().as_millisecond();
    let walks = Walks::default();
    let verified = backup.source.compare(&counted, now, &walks).await?;
    let Verified::Compared(result) = verified else {
        anyhow::bail!("keys were not counted");
    };
    ensure!(result.fits(), "{}", result.sentence());
    Ok(())
}

#[tokio::test]
async fn every_value_arrives_in_five_three_and_one_shards() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let source = rich_source().await?;
    let expected_keys = size(&source).await?;
    add_short_lived(&source, Duration::from_secs(3)).await?;
    let backup = back_up(&source, &bucket, GZIP).await?;
    all_expired(&source).await?;
    let wanted = portraits(&source).await?;
    assert_eq!(wanted.len() as u64, expected_keys);
    for shards in [5, 3, 1] {
        let target = TestCluster::start(shards, 0).await?;
        let done = timeout(LIMIT, backup.replay_all(&target)).await??;
        let found = portraits(&target).await?;
        assert_equal(&wanted, &found);
        let sum = |of: fn(&Progress) -> u64| done.iter().map(of).sum::<u64>();
        assert_eq!(sum(|p| p.keys), expected_keys, "into {shards} shards");
        assert_eq!(sum(|p| p.expired), SHORT_LIVED);
        assert_eq!(sum(|p| p.foreign), 0);
        for node in target.primaries() {
            let libraries = libraries(node).await?;
            let codes: Vec<_> = libraries.values().map(String::as_str).collect();
            assert_eq!(codes, functions(), "at {}", node.address());
        }
        verified(&backup, &target).await?;
    }
    Ok(())
}

/// How often a key was used and how long it was not decides what an eviction takes first.
#[tokio::test]
async fn use_counts_survive_where_eviction_goes_by_them() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let lfu = [
        ("maxmemory-policy", "allkeys-lfu"),
        ("lfu-log-factor", "0"),
        ("lfu-decay-time", "0"),
    ];
    let source = TestCluster::start_with(2, 0, &lfu).await?;
    fill(&source, "key:", 40, 20).await?;
    for number in 0..40 {
        let key = format!("key:{number}");
        let node = &source.primaries()[source.shard_of(key.as_bytes())?];
        for _ in 0..number {
            node.call::<()>(&format!("TOUCH {key}")).await?;
        }
    }
    let wanted = per_key(&source, "FREQ").await?;
    let distinct: BTreeSet<i64> = wanted.values().copied().collect();
    ensure!(distinct.len() == 40, "{wanted:?}");
    let backup = back_up(&source, &bucket, GZIP).await?;
    let target = TestCluster::start_with(3, 0, &lfu).await?;
    timeout(LIMIT, backup.replay_all(&target)).await??;
    assert_eq!(per_key(&target, "FREQ").await?, wanted);
    Ok(())
}

#[tokio::test]
async fn idle_times_survive_where_eviction_goes_by_them() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let lru = [("maxmemory-policy", "allkeys-lru")];
    let source = TestCluster::start_with(2, 0, &lru).await?;
    fill(&source, "key:", 20, 20).await?;
    for number in 0..20 {
        let key = format!("key:{number}");
        let node = &source.primaries()[source.shard_of(key.as_bytes())?];
        let mut connection = node.connect().await?;
        let dump: Vec<u8> = cmd("DUMP").arg(&key).query_async(&mut connection).await?;
        let mut restore = cmd("RESTORE");
        restore.arg(&key).arg(0).arg(dump).arg("REPLACE");
        restore.arg("IDLETIME").arg(number * 10_000);
        restore.query_async::<()>(&mut connection).await?;
    }
    let wanted = per_key(&source, "IDLETIME").await?;
    let backup = back_up(&source, &bucket, GZIP).await?;
    let target = TestCluster::start_with(3, 0, &lru).await?;
    timeout(LIMIT, backup.replay_all(&target)).await??;
    let found = per_key(&target, "IDLETIME").await?;
    assert_eq!(found.len(), wanted.len());
    for (key, idle) in &wanted {
        // It has been idle for as long as the test takes on top.
        let later = found[key] - idle;
        assert!(
            (-2..1000).contains(&later),
            "{key}: {} s, then {}",
            idle,
            found[key]
        );
    }
    Ok(())
}

/// What OBJECT says of every key of a cluster.
async fn per_key(cluster: &TestCluster, what: &str) -> Result<BTreeMap<String, i64>> {
    let mut all = BTreeMap::new();
    for node in cluster.primaries() {
        for key in node.call::<Vec<String>>("KEYS *").await? {
            let number = node.call(&format!("OBJECT {what} {key}")).await?;
            all.insert(key, number);
        }
    }
    Ok(all)
}

/// Of keys that expire, only those that have expired may be missing.
#[tokio::test]
async fn a_lost_key_is_noticed_among_expired_ones() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let source = TestCluster::start(1, 0).await?;
    let node = &source.primaries()[0];
    for number in 0..20 {
        let life = if number < 5 { 2 } else { 3600 };
        node.call::<()>(&format!("SET {{one}}:{number} x EX {life}"))
            .await?;
    }
    let backup = back_up(&source, &bucket, GZIP).await?;
    eventually("five have expired", async || {
        Ok(node.call::<i64>("PTTL {one}:4").await? == -2)
    })
    .await?;
    let target = TestCluster::start(2, 0).await?;
    timeout(LIMIT, backup.replay_all(&target)).await??;
    // The nodes' clocks may differ from ours by some seconds: what expired that recently may be there or not.
    verified(&backup, &target).await?;
    let primary = &target.primaries()[target.shard_of(b"{one}")?];
    primary.call::<()>("DEL {one}:19").await?;
    let noticed = verified(&backup, &target).await.unwrap_err();
    assert!(noticed.to_string().contains("14 keys"), "{noticed}");
    Ok(())
}

#[tokio::test]
async fn uncompressed_backups_are_restored_too() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let source = TestCluster::start(1, 0).await?;
    source.fill(&samples("")).await?;
    let backup = back_up(&source, &bucket, Compression::None).await?;
    let target = TestCluster::start(2, 0).await?;
    timeout(LIMIT, backup.replay_all(&target)).await??;
    assert_equal(&portraits(&source).await?, &portraits(&target).await?);
    Ok(())
}

#[tokio::test]
async fn a_library_with_other_code_stops_the_replay() -> Result<()> {
    // Servers before 7.0 have no functions.
    if functions().is_empty() {
        println!("SKIPPED: servers before 7.0 have no functions");
        return Ok(());
    }
    let bucket = TestBucket::start().await?;
    let source = rich_source().await?;
    let backup = back_up(&source, &bucket, GZIP).await?;
    let target = TestCluster::start(2, 0).await?;
    let other = "#!lua name=first\nredis.register_function('one', function() return 2 end)";
    let mut connection = target.primaries()[1].connect().await?;
    cmd("FUNCTION")
        .arg("LOAD")
        .arg(other)
        .query_async::<()>(&mut connection)
        .await?;
    let request = backup.request(0, seeds(&target)?).await?;
    let error = timeout(LIMIT, backup.replay(&request)).await?.unwrap_err();
    assert!(
        matches!(&error, ReplayError::FunctionConflict { library, .. } if library == "first"),
        "{error}"
    );
    assert_ne!(error.recovery(), Recovery::Soon);
    assert_eq!(
        size(&target).await?,
        0,
        "functions come before the first key"
    );
    Ok(())
}

/// Keys of a backup with four blocks.
const LONG_KEYS: usize = 3200;

/// A backup of one shard with several blocks.
async fn long_backup(bucket: &TestBucket) -> Result<(TestCluster, Backup)> {
    let source = TestCluster::start(1, 0).await?;
    fill(&source, "long:", LONG_KEYS, 8000).await?;
    let backup = back_up(&source, bucket, Compression::None).await?;
    Ok((source, backup))
}

/// Where each key's record starts in the raw stream.
async fn record_starts(backup: &Backup, request: &ReplayRequest) -> Result<BTreeMap<Vec<u8>, u64>> {
    let index = Arc::clone(&request.index);
    let (store, pool) = (backup.store.clone(), CompressionPool::of_machine());
    let mut blocks = BlockReader::new(store, request.key.clone(), index, 0, pool);
    let mut reader = RecordReader::new();
    let mut starts = BTreeMap::new();
    while let Some(block) = blocks.next().await? {
        reader.feed(&block.bytes, &mut |event| {
            if let Event::Key(key) = event {
                starts.insert(key.key.to_vec(), key.record_start);
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(starts)
}

#[tokio::test]
async fn nothing_of_a_damaged_block_is_written() -> Result<()> {
    const DAMAGED: usize = 1;
    let bucket = TestBucket::start().await?;
    let (_source, backup) = long_backup(&bucket).await?;
    let target = TestCluster::start(2, 0).await?;
    let request = backup.request(0, seeds(&target)?).await?;
    let starts = record_starts(&backup, &request).await?;
    let block = request.index.blocks[DAMAGED];
    let file = bucket.server().file(TestBucket::NAME, &request.key);
    let mut object = std::fs::read(&file)?;
    object[usize::try_from(block.stored_offset + block.stored_bytes / 2)?] ^= 1;
    std::fs::write(&file, object)?;

    let (sender, progress) = watch::channel(Progress::default());
    let replayed = timeout(LIMIT, backup.replay_reporting(&request, &sender)).await?;
    let error = replayed.unwrap_err();
    assert!(
        matches!(
            &error,
            ReplayError::Storage(StorageError::DamagedBlock { block: DAMAGED, .. })
        ),
        "{error}"
    );
    assert_ne!(error.recovery(), Recovery::Soon);
    assert!(error.to_string().contains(&request.key), "{error}");
    let found = portraits(&target).await?;
    for key in found.keys() {
        let start = starts[key];
        assert!(
            start < block.raw_offset,
            "a key that starts at {start} was written"
        );
    }
    let reached = progress.borrow().block;
    assert!(reached <= DAMAGED as u64, "block {reached} was reported");
    Ok(())
}

#[tokio::test]
async fn a_killed_replay_goes_on_at_its_block() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let (source, backup) = long_backup(&bucket).await?;
    let target = TestCluster::start(2, 0).await?;
    let mut request = backup.request(0, seeds(&target)?).await?;
    let blocks = request.index.blocks.len() as u64;
    assert!(blocks >= 4, "{blocks} blocks");

    let (sender, mut progress) = watch::channel(Progress::default());
    tokio::select! {
        done = backup.replay_reporting(&request, &sender) => anyhow::bail!("not killed in time: {done:?}"),
        reached = progress.wait_for(|seen| seen.block >= 1) => drop(reached?),
    }
    let reached = *progress.borrow();
    assert!(reached.block < blocks && reached.keys > 0, "{reached:?}");
    let before = calls(&target).await?;

    request.from = reached;
    let done = timeout(LIMIT, backup.replay(&request)).await??;
    assert_equal(&portraits(&source).await?, &portraits(&target).await?);
    assert_eq!(done.block, blocks);
    assert_eq!(done.keys, size(&source).await?, "{done:?}");
    let repeated = calls(&target).await? - before;
    assert_eq!(
        repeated,
        done.keys - reached.keys,
        "only what was not reported is sent again"
    );
    nothing_destroyed(target.nodes()).await
}

/// RESTORE commands that the primaries have executed.
async fn calls(cluster: &TestCluster) -> Result<u64> {
    let mut calls = 0;
    for node in cluster.primaries() {
        calls += executed(node).await?.get("restore").unwrap_or(&0);
    }
    Ok(calls)
}

#[tokio::test]
async fn a_finished_unit_writes_nothing_when_it_is_begun_again() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let (_source, backup) = long_backup(&bucket).await?;
    let target = TestCluster::start(1, 0).await?;
    let mut request = backup.request(0, seeds(&target)?).await?;
    request.from = Progress {
        block: request.index.blocks.len() as u64,
        keys: LONG_KEYS as u64,
        ..Progress::default()
    };
    assert_eq!(backup.replay(&request).await?, request.from);
    assert_eq!(size(&target).await?, 0);
    Ok(())
}

#[tokio::test]
async fn keys_of_other_shards_are_left_out_and_counted() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let source = TestCluster::start(1, 0).await?;
    fill(&source, "key:", 2000, 20).await?;
    let backup = back_up(&source, &bucket, GZIP).await?;
    let target = TestCluster::start(1, 0).await?;
    let mut request = backup.request(0, seeds(&target)?).await?;
    let half = SlotRange::new(Slot::new(0)?, Slot::new(8191)?)?;
    request.slots = SlotSet::from(half);
    let done = backup.replay(&request).await?;
    assert_eq!(done.keys + done.foreign, 2000);
    assert_eq!(done.keys, size(&target).await?);
    for key in portraits(&target).await?.keys() {
        assert!(half.contains(Slot::of_key(key)));
    }
    Ok(())
}

/// Moves a slot by hand, as redis-cli does: keys that are there go along.
async fn move_slot(slot: u16, from: &RedisServer, to: &RedisServer) -> Result<()> {
    let from_id: String = from.call("CLUSTER MYID").await?;
    let to_id: String = to.call("CLUSTER MYID").await?;
    to.call::<()>(&format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}"))
        .await?;
    from.call::<()>(&format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}"))
        .await?;
    let mut connection = from.connect().await?;
    loop {
        let keys: Vec<Vec<u8>> = cmd("CLUSTER")
            .arg("GETKEYSINSLOT")
            .arg(slot)
            .arg(100)
            .query_async(&mut connection)
            .await?;
        if keys.is_empty() {
            break;
        }
        let (ip, port) = (to.address().ip().to_string(), to.address().port());
        let mut migrate = cmd("MIGRATE");
        migrate
            .arg(ip)
            .arg(port)
            .arg("")
            .arg(0)
            .arg(5000)
            .arg("REPLACE")
            .arg("KEYS")
            .arg(keys);
        migrate.query_async::<()>(&mut connection).await?;
    }
    for node in [to, from] {
        node.call::<()>(&format!("CLUSTER SETSLOT {slot} NODE {to_id}"))
            .await?;
    }
    Ok(())
}

/// A number from a section of INFO, for example of `errorstat_MOVED:count=7`; 0 without one.
async fn stat(node: &RedisServer, section: &str, name: &str) -> Result<u64> {
    let text: String = node.call(&format!("INFO {section}")).await?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split(['=', ',']).nth(1)?.parse().ok());
    Ok(number.unwrap_or(0))
}

#[tokio::test]
async fn slots_that_moved_after_the_map_was_read_are_followed() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let source = TestCluster::start(1, 0).await?;
    fill(&source, "key:", 20_000, 50).await?;
    let backup = back_up(&source, &bucket, Compression::None).await?;
    let target = TestCluster::start(2, 0).await?;
    let request = backup.request(0, seeds(&target)?).await?;
    let [first, second] = target.primaries() else {
        anyhow::bail!("not two primaries");
    };
    let maps = async || {
        let counts = executed(first).await?;
        anyhow::Ok(counts.get("cluster|nodes").copied().unwrap_or_default())
    };
    let before = maps().await?;
    // The slot map is read before the first block, which takes its time to arrive.
    let slow = Fault::Slow(Duration::from_secs(3));
    bucket.server().faults().add(On::Get, slow, 1);
    let moving = async {
        eventually("the slot map was read", async || Ok(maps().await? > before)).await?;
        for slot in 0..60 {
            move_slot(slot, first, second).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let (moved, done) = tokio::join!(moving, timeout(LIMIT, backup.replay(&request)));
    moved?;
    assert_eq!(done??.keys, 20_000);
    assert!(stat(first, "errorstats", "errorstat_MOVED").await? > 0);
    assert_equal(&portraits(&source).await?, &portraits(&target).await?);
    verified(&backup, &target).await?;
    Ok(())
}

#[tokio::test]
async fn keys_of_a_moving_slot_go_to_its_new_primary() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let source = TestCluster::start(1, 0).await?;
    fill(&source, "{tag}", 3000, 50).await?;
    fill(&source, "other", 3000, 50).await?;
    let backup = back_up(&source, &bucket, GZIP).await?;
    let target = TestCluster::start(2, 0).await?;
    let slot = Slot::of_key(b"{tag}").get();
    let shard = target.shard_of(b"{tag}")?;
    let (from, to) = (&target.primaries()[shard], &target.primaries()[1 - shard]);
    let (from_id, to_id): (String, String) = (
        from.call("CLUSTER MYID").await?,
        to.call("CLUSTER MYID").await?,
    );
    to.call::<()>(&format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}"))
        .await?;
    from.call::<()>(&format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}"))
        .await?;

    let request = backup.request(0, seeds(&target)?).await?;
    let done = timeout(LIMIT, backup.replay(&request)).await??;
    assert_eq!(done.keys, 6000);
    let there: u64 = to.call(&format!("CLUSTER COUNTKEYSINSLOT {slot}")).await?;
    assert_eq!(there, 3000, "every key of the slot was sent on by ASK");
    for node in [to, from] {
        node.call::<()>(&format!("CLUSTER SETSLOT {slot} NODE {to_id}"))
            .await?;
    }
    assert_equal(&portraits(&source).await?, &portraits(&target).await?);
    Ok(())
}

#[tokio::test]
async fn broken_connections_are_made_again() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let (source, backup) = long_backup(&bucket).await?;
    let target = TestCluster::start(2, 0).await?;
    let request = backup.request(0, seeds(&target)?).await?;
    let (sender, mut progress) = watch::channel(Progress::default());
    let breaking = async {
        for block in 1..4 {
            progress.wait_for(|seen| seen.block >= block).await?;
            let kills = target
                .primaries()
                .iter()
                .map(|n| n.call::<u64>("CLIENT KILL TYPE normal"));
            for killed in join_all(kills).await {
                killed?;
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    let replaying = timeout(LIMIT, backup.replay_reporting(&request, &sender));
    let (broken, done) = tokio::join!(breaking, replaying);
    broken?;
    assert_eq!(done??.keys, LONG_KEYS as u64);
    assert_equal(&portraits(&source).await?, &portraits(&target).await?);
    Ok(())
}

#[tokio::test]
async fn a_paused_node_holds_the_replay_up_and_no_more() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let (source, backup) = long_backup(&bucket).await?;
    let target = TestCluster::start(2, 0).await?;
    target.primaries()[0]
        .call::<()>("CLIENT PAUSE 1500 WRITE")
        .await?;
    let request = backup.request(0, seeds(&target)?).await?;
    assert_eq!(
        timeout(LIMIT, backup.replay(&request)).await??.keys,
        LONG_KEYS as u64
    );
    assert_equal(&portraits(&source).await?, &portraits(&target).await?);
    Ok(())
}

#[tokio::test]
async fn a_full_memory_is_said_clearly() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let (_source, backup) = long_backup(&bucket).await?;
    let target = TestCluster::start_with(2, 0, &[("maxmemory", "12mb")]).await?;
    let request = backup.request(0, seeds(&target)?).await?;
    let error = timeout(LIMIT, backup.replay(&request)).await?.unwrap_err();
    let ReplayError::Refused { node, refusal, .. } = &error else {
        anyhow::bail!("{error}");
    };
    assert_eq!(*refusal, Refusal::OutOfMemory);
    assert!(error.to_string().contains(&node.to_string()), "{error}");
    assert!(error.to_string().contains("maxmemory"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_node_that_stays_away_ends_the_patience() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let (_source, backup) = long_backup(&bucket).await?;
    let mut target = TestCluster::start(3, 0).await?;
    let mut request = backup.request(0, seeds(&target)?).await?;
    request.patience = Duration::from_secs(3);
    target.kill(1).await?;
    let error = timeout(LIMIT, backup.replay(&request)).await?.unwrap_err();
    assert!(matches!(error, ReplayError::Unavailable { .. }), "{error}");
    assert_eq!(error.recovery(), Recovery::Soon);
    target.nothing_destroyed().await?;
    if let ReplayError::Unavailable { reason, .. } = error {
        assert!(
            matches!(reason, RetryReason::Disconnected | RetryReason::ClusterDown),
            "{reason}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_primary_that_fails_over_is_followed() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let (source, backup) = long_backup(&bucket).await?;
    let target = TestCluster::start(3, 1).await?;
    let request = backup.request(0, seeds(&target)?).await?;
    let (sender, mut progress) = watch::channel(Progress::default());
    let replica = target.replicas(0).next().context("no replica")?;
    let failing_over = async {
        progress.wait_for(|seen| seen.block >= 1).await?;
        replica.call::<()>("CLUSTER FAILOVER").await
    };
    let replaying = timeout(LIMIT, backup.replay_reporting(&request, &sender));
    let (asked, done) = tokio::join!(failing_over, replaying);
    asked?;
    assert_eq!(done??.keys, LONG_KEYS as u64);
    eventually("the replica has become primary", async || {
        Ok(replica.info("role").await? == "master")
    })
    .await?;
    let nodes = target.seeds_as(OwnUser::Restore)?;
    eventually("every key is at its slot's primary", async || {
        let Ok(counted) = target::count(&nodes).await else {
            return Ok(false);
        };
        Ok(counted.iter().map(|(_, keys)| keys).sum::<u64>() == LONG_KEYS as u64)
    })
    .await?;
    let mut found = portraits_of(replica).await?;
    for primary in target.primaries().iter().skip(1) {
        found.extend(portraits_of(primary).await?);
    }
    assert_equal(&portraits(&source).await?, &found);
    nothing_destroyed(target.nodes()).await
}

#[tokio::test]
async fn storage_failures_are_distinguished() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let (_source, backup) = long_backup(&bucket).await?;
    let target = TestCluster::start(1, 0).await?;
    let request = backup.request(0, seeds(&target)?).await?;
    // A connection that breaks once or twice is no failure.
    bucket.server().faults().add(On::Get, Fault::Break, 2);
    assert_eq!(
        timeout(LIMIT, backup.replay(&request)).await??.keys,
        LONG_KEYS as u64
    );
    std::fs::remove_file(bucket.server().file(TestBucket::NAME, &request.key))?;
    let error = timeout(LIMIT, backup.replay(&request)).await?.unwrap_err();
    let ReplayError::Storage(cause) = &error else {
        anyhow::bail!("{error}");
    };
    assert_eq!(cause.cause(), Some(S3Cause::NoSuchKey), "{error}");
    assert!(error.to_string().contains(&request.key), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_target_with_keys_or_uncovered_slots_is_seen_before() -> Result<()> {
    let target = TestCluster::start(3, 0).await?;
    let empty = target::look(&seeds(&target)?).await?;
    assert!(empty.keys.is_empty(), "{empty:?}");
    assert_eq!(empty.servers.len(), 1);
    target.fill(&samples("x")[..1]).await?;
    let holding = target::look(&seeds(&target)?).await?;
    assert_eq!(holding.keys.iter().map(|(_, keys)| keys).sum::<u64>(), 1);
    let some = target.nodes()[..2].iter().map(RedisServer::address);
    let some = Seeds::new(some, target.ids().iter().copied())?;
    let partial = target::look(&some).await;
    assert!(partial.is_err(), "{partial:?}");
    Ok(())
}

/// A pod's address was given to another cluster's replica, and its entry comes first: what it says would make its whole cluster the
/// target.
#[tokio::test]
async fn a_foreign_node_at_a_seed_gets_nothing() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let (source, backup) = long_backup(&bucket).await?;
    let foreign = TestCluster::start(1, 1).await?;
    fill(&foreign, "theirs:", 200, 20).await?;
    let theirs = portraits(&foreign).await?;
    let target = TestCluster::start(3, 0).await?;
    let other = foreign.replicas(0).next().context("no replica")?;
    let addresses = target.nodes().iter().map(RedisServer::address);
    let addresses = std::iter::once(other.address()).chain(addresses);
    let seeds = Seeds::new(addresses, target.ids().iter().copied())?;

    let before = [executed(&foreign.nodes()[0]).await?, executed(other).await?];
    let empty = target::look(&seeds).await?;
    ensure!(empty.keys.is_empty(), "{empty:?}");
    let request = backup.request(0, seeds.clone()).await?;
    timeout(LIMIT, backup.replay(&request)).await??;
    let counted = target::count(&seeds).await?;
    ensure!(counted.iter().map(|(_, keys)| keys).sum::<u64>() == size(&source).await?);
    assert_equal(&portraits(&source).await?, &portraits(&target).await?);

    for (node, before) in foreign.nodes().iter().zip(before) {
        let sent = executed(node).await?;
        let known = ["cluster|myid", "info", "replconf", "ping"];
        let new = sent.keys().filter(|name| !before.contains_key(*name));
        let new: Vec<_> = new.filter(|name| !known.contains(&name.as_str())).collect();
        ensure!(new.is_empty(), "{} was sent {new:?}", node.address());
    }
    assert_equal(&theirs, &portraits(&foreign).await?);
    Ok(())
}

/// Without any node of the target there is nothing to replay into, however many of another cluster answer.
#[tokio::test]
async fn foreign_nodes_alone_are_no_target() -> Result<()> {
    let bucket = TestBucket::start().await?;
    let (_source, backup) = long_backup(&bucket).await?;
    let foreign = TestCluster::start(1, 0).await?;
    let target = TestCluster::start(1, 0).await?;
    let addresses = foreign.nodes().iter().map(RedisServer::address);
    let seeds = Seeds::new(addresses, target.ids().iter().copied())?;
    let looked = target::look(&seeds).await;
    assert!(looked.is_err(), "{looked:?}");
    let request = backup.request(0, seeds).await?;
    let error = timeout(LIMIT, backup.replay(&request)).await?.unwrap_err();
    assert_eq!(error.reason(), "WrongNode", "{error}");
    assert_eq!(size(&foreign).await?, 0);
    Ok(())
}
