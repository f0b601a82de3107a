//! Blocks, uploads and reads against a real S3 server: what comes back is what went in, what is damaged is found, what
//! fails leaves nothing behind and says why.

use anyhow::{Context, ensure};
use axum::http::StatusCode;
use backup_controller::artifacts;
use common::errors::Recovery;
use common::storage::{
    BLOCK_BYTES, BackupId, BlockReader, Compression, CompressionPool, Credentials, Layout,
    Location, ObjectStore, S3Cause, ShardIndex, ShardWriter, StorageError, StoredObject,
    layout::SCHEMA, location::Given,
};
use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tests::{
    noise::Noise,
    s3::{Fault, On, TestBucket, leave_upload, on_loopback},
    wait::eventually,
};

const GZIP: Compression = Compression::Gzip { level: 1 };
const PART: usize = 5 << 20;
/// After so long without reading a Redis server drops the connection (`repl-timeout`).
const REPL_TIMEOUT: Duration = Duration::from_mins(1);
const KEY: &str = "shop/cart/20261121t003000z-3f9c2a10/shard-0000-a1.rdb.gz";

/// Bytes that no compressor makes smaller, the same for the same seed.
fn random(length: usize, seed: u64) -> Vec<u8> {
    Noise::new(seed).bytes(length)
}

/// JSON-like text.
fn text(length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 200);
    let mut number = 0_u64;
    while bytes.len() < length {
        let line = format!(
            "{{\"id\":{number},\"name\":\"customer {}\",\"balance\":{},\"city\":\"Sample Town\"}}\n",
            number * 7919 % 10_007,
            number * 104_729 % 1_000_003
        );
        bytes.extend_from_slice(line.as_bytes());
        number += 1;
    }
    bytes.truncate(length);
    bytes
}

fn writer(store: &ObjectStore, key: &str, compression: Compression) -> ShardWriter {
    let pool = CompressionPool::of_machine();
    ShardWriter::new(store.clone(), key.to_owned(), compression, pool, Some(PART))
}

/// Writes in pieces of odd sizes, as a network gives them.
async fn store_bytes(
    store: &ObjectStore,
    key: &str,
    compression: Compression,
    raw: &[u8],
) -> Result<StoredObject, StorageError> {
    let mut writer = writer(store, key, compression);
    for piece in raw.chunks(777_777) {
        if let Err(error) = writer.write(piece).await {
            writer.abort().await;
            return Err(error);
        }
    }
    let stored = writer.complete().await;
    if stored.is_err() {
        writer.abort().await;
    }
    stored
}

fn index(stored: &StoredObject, compression: Compression) -> Arc<ShardIndex> {
    let id: BackupId = "20261121t003000z-3f9c2a10".parse().expect("an id");
    Arc::new(ShardIndex {
        schema: SCHEMA,
        backup_id: id,
        shard: 0,
        object: "shard-0000-a1.rdb.gz".to_owned(),
        compression,
        raw_bytes: stored.raw_bytes,
        stored_bytes: stored.stored_bytes,
        sha256: stored.sha256,
        flavour: "redis".to_owned(),
        rdb_version: 10,
        blocks: stored.blocks.clone(),
        slots: None,
    })
}

async fn read_from(
    store: &ObjectStore,
    key: &str,
    index: &Arc<ShardIndex>,
    first: usize,
) -> Result<Vec<u8>, StorageError> {
    let pool = CompressionPool::of_machine();
    let mut reader = BlockReader::new(
        store.clone(),
        key.to_owned(),
        Arc::clone(index),
        first,
        pool,
    );
    let mut raw = Vec::new();
    let mut expected = first;
    while let Some(block) = reader.next().await? {
        assert_eq!(block.number, expected, "blocks come in order");
        expected += 1;
        raw.extend_from_slice(&block.bytes);
    }
    Ok(raw)
}

fn gunzip(stored: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut gzip = Command::new("gzip")
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run gzip")?;
    let mut input = gzip.stdin.take().context("gzip has no input")?;
    let stored = stored.to_vec();
    let feeding = std::thread::spawn(move || input.write_all(&stored));
    let output = gzip.wait_with_output()?;
    feeding.join().expect("feeding gzip")?;
    ensure!(output.status.success(), "gzip -dc: {}", output.status);
    Ok(output.stdout)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_size_comes_back_and_is_a_plain_gzip_file() -> anyhow::Result<()> {
    let bucket = TestBucket::start().await?;
    let store = bucket.store().await?;
    let sizes = [
        1,
        PART - 1,
        PART,
        BLOCK_BYTES - 1,
        BLOCK_BYTES,
        BLOCK_BYTES + 1,
        2 * PART,
        2 * BLOCK_BYTES + 12_345,
    ];
    for (number, size) in sizes.into_iter().enumerate() {
        for (kind, raw) in [
            ("random", random(size, 1 + number as u64)),
            ("text", text(size)),
        ] {
            for compression in [GZIP, Compression::None] {
                let key = format!("{KEY}.{kind}.{size}{}", compression.extension());
                let stored = store_bytes(&store, &key, compression, &raw).await?;
                let index = index(&stored, compression);
                index.validate().map_err(anyhow::Error::msg)?;
                assert_eq!(stored.raw_bytes, size as u64, "{key}");
                let file = fs::read(bucket.server().file(TestBucket::NAME, &key))?;
                assert_eq!(file.len() as u64, stored.stored_bytes, "{key}");
                let digest = common::storage::Sha256Digest::of(&file);
                assert_eq!(digest, stored.sha256, "{key}");
                assert!(read_from(&store, &key, &index, 0).await? == raw, "{key}");
                if compression == GZIP {
                    assert!(gunzip(&file)? == raw, "gzip -dc {key}");
                }
            }
        }
    }
    assert!(bucket.server().unfinished_uploads()?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_can_begin_at_any_block_and_records_are_remembered() -> anyhow::Result<()> {
    let bucket = TestBucket::start().await?;
    let store = bucket.store().await?;
    let raw = text(4 * BLOCK_BYTES + 5);
    let mut writer = writer(&store, KEY, GZIP);
    writer.write(&raw).await?;
    let block = BLOCK_BYTES as u64;
    // One value goes on through all of block 2.
    for (offset, db) in [
        (9, 0),
        (100, 0),
        (block + 7, 0),
        (block + 9, 1),
        (3 * block, 1),
    ] {
        writer.record_begins(offset, db);
    }
    let stored = writer.complete().await?;
    let firsts: Vec<_> = stored
        .blocks
        .iter()
        .map(|entry| entry.first_record.map(|first| (first.offset, first.db)))
        .collect();
    let expected = [
        Some((9, 0)),
        Some((block + 7, 0)),
        None,
        Some((3 * block, 1)),
        None,
    ];
    assert_eq!(firsts, expected);
    let index = index(&stored, GZIP);
    for first in 0..=5 {
        let tail = read_from(&store, KEY, &index, first).await?;
        let from = (first * BLOCK_BYTES).min(raw.len());
        assert!(tail == raw[from..], "from block {first}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_byte_is_found_before_its_block_is_delivered() -> anyhow::Result<()> {
    let bucket = TestBucket::start().await?;
    let store = bucket.store().await?;
    let raw = text(3 * BLOCK_BYTES + 100);
    let stored = store_bytes(&store, KEY, GZIP, &raw).await?;
    let index = index(&stored, GZIP);
    let path = bucket.server().file(TestBucket::NAME, KEY);
    let whole = fs::read(&path)?;
    for (number, block) in stored.blocks.iter().enumerate() {
        let mut damaged = whole.clone();
        let at = usize::try_from(block.stored_offset + block.stored_bytes / 2)?;
        damaged[at] ^= 0x10;
        fs::write(&path, &damaged)?;
        let pool = CompressionPool::of_machine();
        let mut reader =
            BlockReader::new(store.clone(), KEY.to_owned(), Arc::clone(&index), 0, pool);
        for good in 0..number {
            let block = reader
                .next()
                .await?
                .context("a block before the damaged one")?;
            assert_eq!(block.number, good);
        }
        let error = reader.next().await.expect_err("the damage was not found");
        let found = matches!(&error, StorageError::DamagedBlock { block, .. } if *block == number);
        assert!(found, "{error}");
        let text = error.to_string();
        assert!(
            text.contains(KEY) && text.contains(&format!("block {number} ")),
            "{text}"
        );
    }
    // An object that was cut short is found as well.
    fs::write(&path, &whole[..whole.len() - 1])?;
    let error = read_from(&store, KEY, &index, 3)
        .await
        .expect_err("a short object was read");
    assert!(!error.is_not_found(), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn transient_failures_of_the_store_are_retried() -> anyhow::Result<()> {
    let bucket = TestBucket::start().await?;
    let store = bucket.store().await?;
    let raw = random(3 * BLOCK_BYTES, 5);
    let faults = bucket.server().faults();
    let unavailable = Fault::Answer(StatusCode::SERVICE_UNAVAILABLE, "SlowDown");
    let internal = Fault::Answer(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
    faults.add(On::Begin, unavailable, 2);
    faults.add(On::Part, Fault::Break, 2);
    faults.add(On::Part, internal, 2);
    faults.add(On::Part, Fault::LoseAnswer, 1);
    faults.add(On::Complete, Fault::LoseAnswer, 1);
    faults.add(On::Get, unavailable, 1);
    faults.add(On::Get, Fault::Break, 1);
    let stored = store_bytes(&store, KEY, GZIP, &raw).await?;
    let index = index(&stored, GZIP);
    assert!(read_from(&store, KEY, &index, 0).await? == raw);
    assert_eq!(faults.left(), 0, "{faults:?}");
    assert!(bucket.server().unfinished_uploads()?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn permanent_failures_end_at_once_and_leave_nothing() -> anyhow::Result<()> {
    let bucket = TestBucket::start().await?;
    let store = bucket.store().await?;
    let raw = random(2 * BLOCK_BYTES, 6);
    let (missing, forbidden) = (StatusCode::NOT_FOUND, StatusCode::FORBIDDEN);
    for (on, status, code, cause) in [
        (On::Begin, missing, "NoSuchBucket", S3Cause::NoSuchBucket),
        (On::Part, missing, "NoSuchBucket", S3Cause::NoSuchBucket),
        (On::Complete, missing, "NoSuchBucket", S3Cause::NoSuchBucket),
        (
            On::Begin,
            forbidden,
            "InvalidAccessKeyId",
            S3Cause::InvalidAccessKey,
        ),
        (On::Part, forbidden, "AccessDenied", S3Cause::AccessDenied),
        (
            On::Complete,
            forbidden,
            "AccessDenied",
            S3Cause::AccessDenied,
        ),
        (
            On::Part,
            forbidden,
            "SignatureDoesNotMatch",
            S3Cause::WrongSecret,
        ),
    ] {
        let faults = bucket.server().faults();
        faults.add(on, Fault::Answer(status, code), 10);
        let error = store_bytes(&store, KEY, GZIP, &raw)
            .await
            .expect_err("a permanent refusal was ignored");
        assert_eq!(error.cause(), Some(cause), "{error}");
        assert_ne!(error.recovery(), Recovery::Soon, "{error}");
        says_what_and_where(&error, &bucket);
        // Nothing was tried twice; but two parts travel at the same time, and a third may have begun.
        let tries = 10 - faults.left();
        let allowed = if on == On::Part { 3 } else { 1 };
        assert!(tries <= allowed, "{tries} tries: {code} on {on:?}");
        faults.clear();
        let left = bucket.server().unfinished_uploads()?;
        assert!(left.is_empty(), "{code} on {on:?} left {left:?}");
        assert!(!bucket.server().file(TestBucket::NAME, KEY).exists());
    }
    Ok(())
}

/// Names bucket, key and endpoint; shows nothing of the access key.
fn says_what_and_where(error: &StorageError, bucket: &TestBucket) {
    let text = error.to_string();
    for part in [TestBucket::NAME, KEY, bucket.server().endpoint().as_str()] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    for text in [text, format!("{error:?}")] {
        for secret in [&bucket.key().id, &bucket.key().secret] {
            assert!(!text.contains(secret.as_str()), "a secret shows in: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_buckets_and_addresses_are_distinguished() -> anyhow::Result<()> {
    let bucket = TestBucket::start().await?;
    let endpoint = bucket.server().endpoint();
    let place = |bucket, endpoint| {
        Location::new(&Given {
            bucket,
            endpoint: Some(endpoint),
            ..Given::default()
        })
    };
    let right = bucket.credentials();
    let wrong_secret = Credentials::new(
        bucket.key().id.clone(),
        "wrong-secret-key".to_owned().into(),
        None,
    );
    let wrong_key = Credentials::new(
        "UNKNOWNKEY".to_owned(),
        bucket.key().secret.clone().into(),
        None,
    );
    let here = place(TestBucket::NAME, &endpoint)?;
    for (location, credentials, cause) in [
        (here.clone(), wrong_secret, S3Cause::WrongSecret),
        (here, wrong_key, S3Cause::InvalidAccessKey),
        (
            place("no-such-bucket", &endpoint)?,
            right,
            S3Cause::NoSuchBucket,
        ),
    ] {
        let store = ObjectStore::connect(location, on_loopback(credentials)).await;
        let error = store.probe("shop/").await.expect_err("the probe passed");
        assert_eq!(error.cause(), Some(cause), "{error}");
        assert!(
            error.to_string().contains("shop/ at http://127.0.0.1"),
            "{error}"
        );
        for text in [error.to_string(), format!("{error:?} {store:?}")] {
            assert!(!text.contains(&bucket.key().secret), "{text}");
            assert!(!text.contains("wrong-secret-key"), "{text}");
        }
    }
    bucket.store().await?.probe("shop/").await?;
    assert!(bucket.server().unfinished_uploads()?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_store_is_a_transient_failure_with_an_address() -> anyhow::Result<()> {
    let bucket = TestBucket::start().await?;
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0")?;
        free.local_addr()?.port()
    };
    let endpoint = format!("http://127.0.0.1:{port}");
    let location = Location::new(&Given {
        bucket: TestBucket::NAME,
        endpoint: Some(&endpoint),
        ..Given::default()
    })?;
    let store = ObjectStore::connect(location, on_loopback(bucket.credentials())).await;
    let error = store.head(KEY).await.expect_err("no server listens there");
    assert_eq!(error.cause(), Some(S3Cause::Connection), "{error}");
    assert_eq!(error.recovery(), Recovery::Soon);
    assert!(error.to_string().contains(&endpoint), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_given_up_or_dropped_leaves_nothing() -> anyhow::Result<()> {
    let bucket = TestBucket::start().await?;
    let store = bucket.store().await?;
    let raw = random(4 * BLOCK_BYTES, 8);
    let mut given_up = writer(&store, KEY, GZIP);
    given_up.write(&raw).await?;
    let begun = bucket.server().unfinished_uploads()?;
    assert!(!begun.is_empty(), "no upload was under way");
    given_up.abort().await;
    assert!(bucket.server().unfinished_uploads()?.is_empty());

    let mut dropped = writer(&store, KEY, GZIP);
    dropped.write(&raw).await?;
    drop(dropped);
    eventually("the dropped upload is aborted", async || {
        Ok(bucket.server().unfinished_uploads()?.is_empty())
    })
    .await?;
    assert!(!bucket.server().file(TestBucket::NAME, KEY).exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_stalls_ends_the_stream_within_its_limit() -> anyhow::Result<()> {
    let bucket = TestBucket::start().await?;
    let store = bucket.store().await?;
    bucket
        .server()
        .faults()
        .add(On::Part, Fault::Stall, usize::MAX);
    let raw = random(8 * BLOCK_BYTES, 9);
    let start = Instant::now();
    let error = store_bytes(&store, KEY, GZIP, &raw)
        .await
        .expect_err("parts that are never taken were ignored");
    assert!(
        start.elapsed() < REPL_TIMEOUT,
        "{:?}: {error}",
        start.elapsed()
    );
    assert!(matches!(error, StorageError::Stalled { .. }), "{error}");
    assert_eq!(error.recovery(), Recovery::Soon);
    says_what_and_where(&error, &bucket);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn small_objects_and_deletion() -> anyhow::Result<()> {
    let bucket = TestBucket::start().await?;
    let store = bucket.store().await?;
    let location = bucket.location()?;
    let id = "20261121t003000z-3f9c2a10".parse()?;
    let layout = Layout::new(&location, "shop", "cart", &id);
    for name in ["shard-0000-a1.rdb", "shard-0000-a1.json", "manifest.json"] {
        store
            .put(&layout.key(name), "{}".into(), "application/json")
            .await?;
    }
    let neighbour = "shop/cart/20261121t003000z-3f9c2a10x/manifest.json";
    store
        .put(neighbour, "{}".into(), "application/json")
        .await?;
    let listed = store.list(layout.root(), 100).await?;
    assert_eq!(listed.len(), 3, "{listed:?}");
    assert_eq!(store.list("shop/", 2).await?.len(), 2);
    let head = store
        .head(&layout.manifest())
        .await?
        .context("no manifest")?;
    assert_eq!(head.bytes, 2);
    assert_eq!(store.get(neighbour, 10).await?, "{}");
    let error = store
        .get(neighbour, 1)
        .await
        .expect_err("the limit was ignored");
    assert_ne!(error.recovery(), Recovery::Soon, "{error}");
    let error = store
        .read_manifest(&layout)
        .await
        .expect_err("{} is no manifest");
    assert!(
        matches!(error, StorageError::DamagedDocument { .. }),
        "{error}"
    );
    for prefix in ["", "/", "shop/cart/2026"] {
        assert!(
            store.delete_prefix(prefix).await.is_err(),
            "{prefix:?} was deleted"
        );
    }
    artifacts::delete(&store, &layout).await?;
    let left = store.list(layout.root(), 100).await?;
    assert!(left.is_empty(), "{left:?}");
    artifacts::delete(&store, &layout).await?; // gone already is fine
    let error = store
        .read_manifest(&layout)
        .await
        .expect_err("it is deleted");
    assert!(error.is_not_found(), "{error}");
    assert!(
        store.head(neighbour).await?.is_some(),
        "a neighbour was deleted"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn checksums_on_every_request_work_where_the_store_takes_them() -> anyhow::Result<()> {
    let bucket = TestBucket::start().await?;
    let endpoint = bucket.server().endpoint();
    let location = Location::new(&Given {
        bucket: TestBucket::NAME,
        endpoint: Some(&endpoint),
        checksums: common::storage::Checksums::Always,
        ..Given::default()
    })?;
    let store = ObjectStore::connect(location, on_loopback(bucket.credentials())).await;
    let raw = random(2 * BLOCK_BYTES + 1, 11);
    let stored = store_bytes(&store, KEY, GZIP, &raw).await?;
    assert!(read_from(&store, KEY, &index(&stored, GZIP), 0).await? == raw);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_takes_unfinished_uploads_along_but_needs_no_right_to() -> anyhow::Result<()> {
    let bucket = TestBucket::start().await?;
    let store = bucket.store().await?;
    let id = "20261121t003000z-3f9c2a10".parse()?;
    let layout = Layout::new(&bucket.location()?, "shop", "cart", &id);
    let shard = layout.key("shard-0000-a1.rdb");
    let faults = bucket.server().faults();
    for (status, code) in [
        (StatusCode::FORBIDDEN, "AccessDenied"),
        (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        (StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
    ] {
        for key in [&layout.manifest(), &shard] {
            store.put(key, "{}".into(), "application/json").await?;
        }
        faults.add(On::Uploads, Fault::Answer(status, code), usize::MAX);
        artifacts::delete(&store, &layout)
            .await
            .with_context(|| format!("{code} on the listing of uploads"))?;
        faults.clear();
        let left = store.list(layout.root(), 100).await?;
        assert!(left.is_empty(), "{code}: {left:?}");
    }
    leave_upload(&store, &shard).await?;
    let begun = bucket.server().unfinished_uploads()?;
    assert!(!begun.is_empty(), "no upload was left behind");
    artifacts::delete(&store, &layout).await?;
    let left = bucket.server().unfinished_uploads()?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_may_take_longer_than_other_requests() -> anyhow::Result<()> {
    let bucket = TestBucket::start().await?;
    let store = bucket.store().await?;
    let slow = Fault::Slow(Duration::from_secs(35));
    bucket.server().faults().add(On::Complete, slow, 2);
    let stored = store_bytes(&store, KEY, GZIP, &random(BLOCK_BYTES, 12)).await?;
    let file = fs::read(bucket.server().file(TestBucket::NAME, KEY))?;
    assert_eq!(file.len() as u64, stored.stored_bytes);
    assert_eq!(bucket.server().faults().left(), 1, "it was tried again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_without_an_answer_is_known_by_its_object() -> anyhow::Result<()> {
    let bucket = TestBucket::start().await?;
    let store = bucket.store().await?;
    let faults = bucket.server().faults();
    let internal = Fault::Answer(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
    faults.add(On::Complete, Fault::LoseAnswer, 1);
    faults.add(On::Complete, internal, usize::MAX);
    let raw = random(BLOCK_BYTES, 13);
    let stored = store_bytes(&store, KEY, GZIP, &raw).await?;
    assert!(read_from(&store, KEY, &index(&stored, GZIP), 0).await? == raw);
    assert!(bucket.server().unfinished_uploads()?.is_empty());
    Ok(())
}
