//! Snapshots of real servers: pulled over the replication protocol, read, restored elsewhere, compared.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a test may panic

use std::ops::{ControlFlow, Range};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::BytesMut;
use common::cluster::replication::{
    Handshake, ReplicationError, ReplicationOptions, ReplicationStream,
};
use common::cluster::resp::{CommandWriter, Reply, ReplyDecoder};
use common::cluster::{endpoint::Endpoint, node::NodeError};
use common::rdb::checksum::{Checked, ChecksumVerifier};
use common::rdb::counts::SlotCounts;
use common::rdb::payload::{restore_payload, restore_payload_length};
use common::rdb::{Event, RecordReader, ValueType};
use redis::aio::MultiplexedConnection;
use redis::{Value, cmd};
use tests::{
    redis::{RedisServer, Sample, TestCluster, functions, samples},
    wait::eventually,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A key as the reader found it.
struct Found {
    key: Vec<u8>,
    kind: ValueType,
    value: Range<usize>,
    expire_ms: Option<i64>,
    idle_seconds: Option<u64>,
    frequency: Option<u8>,
}

/// A whole snapshot.
struct Snapshot {
    bytes: Vec<u8>,
    keys: Vec<Found>,
    functions: Vec<Vec<u8>>,
    counts: SlotCounts,
    checked: Checked,
}

fn options(version: &str) -> ReplicationOptions {
    ReplicationOptions {
        listening_port: Some(1),
        ip_address: Some([127, 0, 0, 1].into()),
        server_version: Some(version.to_owned()),
        ..ReplicationOptions::default()
    }
}

fn endpoint(server: &RedisServer) -> Endpoint {
    Endpoint::new(server.address(), Duration::from_secs(5))
}

async fn open(server: &RedisServer) -> Result<ReplicationStream, ReplicationError> {
    let handshake = Handshake::start(&endpoint(server), options("7.0.15")).await?;
    handshake.full_resync().await
}

async fn snapshot(server: &RedisServer) -> Result<Snapshot> {
    read_snapshot(open(server).await?).await
}

async fn read_snapshot(mut stream: ReplicationStream) -> Result<Snapshot> {
    ensure!(stream.fork().replication_id.len() == 40 && stream.fork().offset >= 0);
    let (mut reader, mut verifier, mut counts) = (
        RecordReader::new(),
        ChecksumVerifier::new(),
        SlotCounts::new(),
    );
    let (mut bytes, mut keys, mut functions) = (Vec::new(), Vec::new(), Vec::new());
    let mut piece = BytesMut::with_capacity(16 * 1024);
    while stream.read(&mut piece).await? > 0 {
        verifier.update(&piece);
        let taken = reader.feed(&piece, &mut |event| {
            match event {
                Event::Key(key) => {
                    counts.add(key.key, key.expire_ms);
                    keys.push(Found {
                        key: key.key.to_vec(),
                        kind: key.kind,
                        value: usize::try_from(key.value.start).unwrap()
                            ..usize::try_from(key.value.end).unwrap(),
                        expire_ms: key.expire_ms,
                        idle_seconds: key.idle_seconds,
                        frequency: key.frequency,
                    });
                }
                Event::Function(code) => functions.push(code.to_vec()),
                Event::Header(_)
                | Event::Aux { .. }
                | Event::SelectDb(_)
                | Event::ResizeDb { .. }
                | Event::ModuleAux
                | Event::End { .. } => {}
            }
            ControlFlow::Continue(())
        })?;
        ensure!(taken == piece.len(), "bytes after the end of the RDB");
        bytes.extend_from_slice(&piece);
        piece.clear();
    }
    ensure!(reader.is_finished(), "the stream ended before the RDB did");
    ensure!(stream.received() == bytes.len() as u64);
    Ok(Snapshot {
        bytes,
        keys,
        functions,
        counts,
        checked: verifier.finish()?,
    })
}

/// Replays the snapshot with RESTORE over one connection.
async fn restore(snapshot: &Snapshot, target: &RedisServer) -> Result<()> {
    let mut out = BytesMut::new();
    for code in &snapshot.functions {
        CommandWriter::write(&mut out, &[b"FUNCTION", b"LOAD", b"REPLACE", code]);
    }
    for found in &snapshot.keys {
        let body = &snapshot.bytes[found.value.clone()];
        let eviction =
            usize::from(found.idle_seconds.is_some()) + usize::from(found.frequency.is_some());
        let mut command = CommandWriter::new(&mut out, 5 + 2 * eviction);
        command
            .arg(b"RESTORE")
            .arg(&found.key)
            .integer(found.expire_ms.unwrap_or(0));
        command.written(restore_payload_length(body.len()), |out| {
            restore_payload(found.kind, body, out);
        });
        command.arg(b"ABSTTL");
        if let Some(idle) = found.idle_seconds {
            command.arg(b"IDLETIME").integer(i64::try_from(idle)?);
        }
        if let Some(frequency) = found.frequency {
            command.arg(b"FREQ").integer(frequency.into());
        }
    }
    let (mut input, mut output) = TcpStream::connect(target.address()).await?.into_split();
    let sending = async { anyhow::Ok(output.write_all(&out).await?) };
    let receiving = async {
        let mut decoder = ReplyDecoder::new(1 << 20);
        let mut buffer = BytesMut::new();
        let mut left = snapshot.functions.len() + snapshot.keys.len();
        while left > 0 {
            ensure!(
                input.read_buf(&mut buffer).await? > 0,
                "the target closed the connection"
            );
            while let Some((reply, length)) = decoder.decode(&buffer)? {
                if let Reply::Error(error) = &reply {
                    anyhow::bail!("the target refused: {}", String::from_utf8_lossy(error));
                }
                let _ = buffer.split_to(length);
                left -= 1;
            }
        }
        Ok(())
    };
    tokio::try_join!(sending, receiving)?;
    Ok(())
}

/// All that is to be known of a key but for what depends on the clock.
async fn describe(connection: &mut MultiplexedConnection, key: &[u8]) -> Result<Vec<Value>> {
    let mut known = redis::pipe()
        .cmd("DEBUG")
        .arg("DIGEST-VALUE")
        .arg(key)
        .cmd("PEXPIRETIME")
        .arg(key)
        .cmd("OBJECT")
        .arg("ENCODING")
        .arg(key)
        .cmd("TYPE")
        .arg(key)
        .query_async::<Vec<Value>>(connection)
        .await?;
    if known.last() == Some(&Value::SimpleString("stream".into())) {
        known.push(
            cmd("XINFO")
                .arg("STREAM")
                .arg(key)
                .arg("FULL")
                .arg("COUNT")
                .arg(0)
                .query_async(connection)
                .await?,
        );
    }
    Ok(known)
}

async fn compare(source: &RedisServer, target: &RedisServer, keys: &[Found]) -> Result<()> {
    let (mut ours, mut theirs) = (source.connect().await?, target.connect().await?);
    for found in keys {
        let (ours, theirs) = (
            describe(&mut ours, &found.key).await?,
            describe(&mut theirs, &found.key).await?,
        );
        assert_eq!(
            ours,
            theirs,
            "key {:?}",
            String::from_utf8_lossy(&found.key)
        );
    }
    assert_eq!(libraries(source).await?, libraries(target).await?);
    Ok(())
}

/// The function libraries, in an order that does not depend on the server's hash seed.
async fn libraries(server: &RedisServer) -> Result<Vec<String>> {
    let listed: Vec<Value> = server.call("FUNCTION LIST WITHCODE").await?;
    let mut libraries: Vec<String> = listed
        .iter()
        .map(|library| format!("{library:?}"))
        .collect();
    libraries.sort_unstable();
    Ok(libraries)
}

async fn fill(server: &RedisServer, samples: &[Sample]) -> Result<()> {
    let mut connection = server.connect().await?;
    for sample in samples {
        sample.write(&mut connection).await?;
    }
    for code in functions() {
        cmd("FUNCTION")
            .arg("LOAD")
            .arg("REPLACE")
            .arg(code)
            .query_async::<()>(&mut connection)
            .await?;
    }
    Ok(())
}

fn assert_holds(snapshot: &Snapshot, samples: &[Sample]) {
    let mut found: Vec<&[u8]> = snapshot
        .keys
        .iter()
        .map(|found| found.key.as_slice())
        .collect();
    let mut expected: Vec<&[u8]> = samples.iter().map(|sample| sample.key.as_slice()).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(snapshot.counts.total().keys, samples.len() as u64);
    assert_eq!(snapshot.functions.len(), functions().len());
}

/// Takes a snapshot of a server with these settings, restores it into another, compares.
async fn round_trip(settings: &[(&str, &str)]) -> Result<Snapshot> {
    let source = RedisServer::standalone(settings).await?;
    let target = RedisServer::standalone(settings).await?;
    let samples = samples("");
    fill(&source, &samples).await?;
    let snapshot = snapshot(&source).await?;
    assert_holds(&snapshot, &samples);
    restore(&snapshot, &target).await?;
    compare(&source, &target, &snapshot.keys).await?;
    // "Starting BGSAVE for SYNC with target: disk" or "replicas sockets".
    let by_disk = source.log().contains("with target: disk");
    let wanted = settings.contains(&("repl-diskless-sync", "no"));
    ensure!(by_disk == wanted, "the snapshot took the other way");
    Ok(snapshot)
}

#[tokio::test]
async fn every_type_survives_a_diskless_snapshot() -> Result<()> {
    let snapshot = round_trip(&[]).await?;
    assert!(matches!(snapshot.checked, Checked::Verified(_)));
    Ok(())
}

#[tokio::test]
async fn every_type_survives_a_snapshot_from_disk() -> Result<()> {
    let snapshot = round_trip(&[("repl-diskless-sync", "no")]).await?;
    assert!(matches!(snapshot.checked, Checked::Verified(_)));
    Ok(())
}

#[tokio::test]
async fn every_type_survives_without_compression_and_checksum() -> Result<()> {
    let snapshot = round_trip(&[("rdbchecksum", "no"), ("rdbcompression", "no")]).await?;
    assert_eq!(snapshot.checked, Checked::Disabled);
    Ok(())
}

#[tokio::test]
async fn small_nodes_and_tables_survive() -> Result<()> {
    let settings = [
        ("hash-max-listpack-entries", "0"),
        ("zset-max-listpack-entries", "0"),
        ("set-max-intset-entries", "0"),
        ("list-max-listpack-size", "2"),
        ("stream-node-max-entries", "3"),
    ];
    let kinds: Vec<ValueType> = round_trip(&settings)
        .await?
        .keys
        .iter()
        .map(|found| found.kind)
        .collect();
    assert!(kinds.contains(&ValueType::Hash) && !kinds.contains(&ValueType::HashListpack));
    assert!(kinds.contains(&ValueType::ZSet2) && !kinds.contains(&ValueType::SetIntset));
    Ok(())
}

#[tokio::test]
async fn eviction_state_survives() -> Result<()> {
    for (policy, subcommand) in [("allkeys-lfu", "FREQ"), ("allkeys-lru", "IDLETIME")] {
        let settings = [
            ("maxmemory-policy", policy),
            ("lfu-decay-time", "0"),
            ("lfu-log-factor", "0"),
        ];
        let source = RedisServer::standalone(&settings).await?;
        let target = RedisServer::standalone(&settings).await?;
        let mut connection = source.connect().await?;
        for (key, touches) in [("cold", 0), ("warm", 20), ("hot", 200)] {
            cmd("SET")
                .arg(key)
                .arg("x")
                .query_async::<()>(&mut connection)
                .await?;
            for _ in 0..touches {
                cmd("GET")
                    .arg(key)
                    .query_async::<()>(&mut connection)
                    .await?;
            }
        }
        if subcommand == "IDLETIME" {
            // A restored key is as old as it says, so that no clock needs to pass.
            let payload: Vec<u8> = cmd("DUMP").arg("cold").query_async(&mut connection).await?;
            let mut restore = cmd("RESTORE");
            restore
                .arg("cold")
                .arg(0)
                .arg(payload)
                .arg("REPLACE")
                .arg("IDLETIME")
                .arg(100_000);
            restore.query_async::<()>(&mut connection).await?;
        }
        let snapshot = snapshot(&source).await?;
        restore(&snapshot, &target).await?;
        let mut theirs = target.connect().await?;
        for key in ["cold", "warm", "hot"] {
            let look = |mut connection: MultiplexedConnection| async move {
                cmd("OBJECT")
                    .arg(subcommand)
                    .arg(key)
                    .query_async::<i64>(&mut connection)
                    .await
            };
            let (ours, restored) = (look(connection.clone()).await?, look(theirs.clone()).await?);
            // Idle times go on while the test runs.
            let allowed = if subcommand == "FREQ" { 0 } else { 30 };
            assert!(
                (ours - restored).abs() <= allowed,
                "{key}: {ours} became {restored} ({policy})"
            );
            assert!(key != "cold" || subcommand == "FREQ" || restored >= 100_000);
        }
        cmd("PING").query_async::<()>(&mut theirs).await?;
    }
    Ok(())
}

/// Numbers written one after another until stopped.
async fn write_numbers(
    server: &RedisServer,
    stop: tokio::sync::watch::Receiver<bool>,
) -> Result<u64> {
    let mut connection = server.connect().await?;
    let mut number = 0;
    while !*stop.borrow() {
        cmd("SET")
            .arg(format!("live:{number}"))
            .arg(number)
            .query_async::<()>(&mut connection)
            .await?;
        number += 1;
    }
    Ok(number)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_gives_one_instant_beside_writes() -> Result<()> {
    let primary = RedisServer::standalone(&[]).await?;
    let (ip, port) = (primary.address().ip().to_string(), primary.address().port());
    let replica = RedisServer::standalone(&[("replicaof", &format!("{ip} {port}"))]).await?;
    let target = RedisServer::standalone(&[]).await?;
    let samples = samples("sample:");
    fill(&primary, &samples).await?;
    eventually("the replica is in sync", async || {
        Ok(replica.info("master_link_status").await? == "up")
    })
    .await?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let copying = async {
        eventually("numbers are being written", async || {
            Ok(replica.call::<i64>("EXISTS live:100").await? == 1)
        })
        .await?;
        let offset: i64 = primary.info("master_repl_offset").await?.parse()?;
        eventually("the replica has caught up", async || {
            Ok(replica.info("slave_repl_offset").await?.parse::<i64>()? >= offset)
        })
        .await?;
        let stream = open(&replica).await?;
        assert!(
            stream.fork().offset >= offset,
            "the replica's offset is the primary's"
        );
        assert_eq!(
            stream.fork().replication_id,
            primary.info("master_replid").await?
        );
        let snapshot = read_snapshot(stream).await?;
        stop.send(true)?;
        Ok(snapshot)
    };
    let (mut snapshot, written) = tokio::try_join!(copying, write_numbers(&primary, stopped))?;
    let live: Vec<Found> = snapshot
        .keys
        .extract_if(.., |found| found.key.starts_with(b"live:"))
        .collect();
    let mut numbers: Vec<u64> = live
        .iter()
        .map(|found| String::from_utf8_lossy(&found.key)[5..].parse().unwrap())
        .collect();
    numbers.sort_unstable();
    let count = numbers.len() as u64;
    assert!(
        count > 100 && count <= written,
        "{count} of {written} numbers"
    );
    assert_eq!(
        numbers,
        (0..count).collect::<Vec<_>>(),
        "all numbers up to the instant, none after"
    );
    restore(&snapshot, &target).await?;
    assert_eq!(target.call::<usize>("DBSIZE").await?, samples.len());
    // A replica sees a stream's consumers later than its primary.
    compare(&replica, &target, &snapshot.keys).await
}

#[tokio::test]
async fn shards_hold_their_slots_and_no_more() -> Result<()> {
    let cluster = TestCluster::start(3, 1).await?;
    let samples: Vec<Sample> = (0..20)
        .flat_map(|set| tests::redis::samples(&format!("{set}:")))
        .collect();
    cluster.fill(&samples).await?;
    let mut total = SlotCounts::new();
    for (shard, range) in cluster.ranges().iter().enumerate() {
        let primary = &cluster.primaries()[shard];
        let replica = cluster
            .replicas(shard)
            .next()
            .context("a shard without replica")?;
        assert_eq!(primary.call::<i64>("WAIT 1 10000").await?, 1);
        let size: u64 = primary.call("DBSIZE").await?;
        eventually("the replica has every key", async || {
            Ok(replica.call::<u64>("DBSIZE").await? == size)
        })
        .await?;
        let snapshot = snapshot(replica).await?;
        assert_eq!(snapshot.counts.total().keys, size);
        for (slot, count) in snapshot.counts.occupied() {
            assert!(range.contains(slot));
            let keys: u64 = primary
                .call(&format!("CLUSTER COUNTKEYSINSLOT {slot}"))
                .await?;
            assert_eq!(count.keys, keys, "slot {slot}");
        }
        total.merge(&snapshot.counts);
    }
    assert_eq!(total.total().keys, samples.len() as u64);
    let expiring = samples
        .iter()
        .filter(|sample| sample.commands.len() > 1)
        .count() as u64;
    assert!(total.total().expires > 0 && total.total().expires <= expiring);
    Ok(())
}

/// A snapshot that takes long enough to be disturbed.
async fn slow_server() -> Result<RedisServer> {
    let server = RedisServer::standalone(&[("rdb-key-save-delay", "1000")]).await?;
    server.call::<()>("DEBUG POPULATE 20000 key 500").await?;
    Ok(server)
}

async fn read_to_end(stream: &mut ReplicationStream) -> Result<(), ReplicationError> {
    let mut piece = BytesMut::with_capacity(4096);
    while stream.read(&mut piece).await? > 0 {
        piece.clear();
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_drops_us_is_an_error() -> Result<()> {
    let server = slow_server().await?;
    let mut stream = open(&server).await?;
    stream.read(&mut BytesMut::with_capacity(1024)).await?;
    let killed: i64 = server.call("CLIENT KILL TYPE replica").await?;
    assert_eq!(killed, 1);
    let error = read_to_end(&mut stream).await.unwrap_err();
    assert!(
        matches!(
            error,
            ReplicationError::Closed { received: 1.., .. } | ReplicationError::Io { .. }
        ),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn a_server_that_dies_is_an_error() -> Result<()> {
    let mut server = slow_server().await?;
    let mut stream = open(&server).await?;
    stream.read(&mut BytesMut::with_capacity(1024)).await?;
    server.kill()?;
    let error = read_to_end(&mut stream).await.unwrap_err();
    assert!(
        matches!(
            error,
            ReplicationError::Closed { .. } | ReplicationError::Io { .. }
        ),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn a_replica_without_its_primary_says_so() -> Result<()> {
    let replica = RedisServer::standalone(&[("replicaof", "127.0.0.1 1")]).await?;
    let error = open(&replica).await.err().context("a snapshot")?;
    assert!(
        matches!(error, ReplicationError::NoPrimaryLink { .. }),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn a_server_with_a_password_says_so() -> Result<()> {
    let server = RedisServer::standalone(&[]).await?;
    server.call::<()>("CONFIG SET requirepass secret").await?;
    let error = open(&server).await.err().context("a snapshot")?;
    assert!(
        matches!(error, ReplicationError::Forbidden { .. }),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn a_closed_port_is_an_error() -> Result<()> {
    let mut server = RedisServer::standalone(&[]).await?;
    server.stop().await?;
    let error = open(&server).await.err().context("a snapshot")?;
    assert!(
        matches!(error, ReplicationError::Dial(NodeError::Connect { .. })),
        "{error}"
    );
    Ok(())
}

/// Two who wait for the same fork are served by one child; neither sees the other.
#[tokio::test]
async fn several_snapshots_may_be_asked_for_at_once() -> Result<()> {
    let server = RedisServer::standalone(&[]).await?;
    server.call::<()>("DEBUG POPULATE 5000 key 100").await?;
    let ask =
        || async { anyhow::Ok(Handshake::start(&endpoint(&server), options("7.0.15")).await?) };
    let handshakes = [ask().await?, ask().await?, ask().await?];
    for snapshot in futures::future::join_all(
        handshakes.map(|handshake| async { read_snapshot(handshake.full_resync().await?).await }),
    )
    .await
    {
        assert_eq!(snapshot?.keys.len(), 5000);
    }
    Ok(())
}
