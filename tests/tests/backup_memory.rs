//! A shard that does not compress passes through the buffers of a backup and of a restore. The source is made up: a server that
//! speaks just enough of the protocol, claims to hold much more, and sends records as fast as they are taken.

use anyhow::{Context, Result, ensure};
use backup_controller::capture::{CaptureProgress, CaptureRequest, CapturedShard, capture};
use common::{
    cluster::{seeds::Seeds, slots::SlotSet},
    storage::{BLOCK_BYTES, BackupId, Compression, CompressionPool, Layout, upload::part_size_for},
};
use crds::SourceRole;
use jiff::Timestamp;
use restore_controller::replay::{Progress, ReplayRequest, ValueLimit, Window, replay};
use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tests::{
    bench::sole_primary,
    memory::{MIB, Peak, as_in_the_image},
    noise::Noise,
    redis::RedisServer,
    s3::S3Process,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter},
    net::{TcpListener, TcpStream, tcp::OwnedWriteHalf},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

const ID: &str = "0123456789abcdef0123456789abcdef01234567";
/// Length of each value.
const VALUE: usize = 64 << 10;
/// Records of the stream: 512 MiB of values.
const KEYS: u64 = (512 << 20) / VALUE as u64;
/// Names of keys: fewer, so that the target stays small.
const NAMES: u64 = 1024;
/// Bytes of an encoded string before its value.
const FRAME: usize = 5;
/// What the restore-controller needs beside its replays.
const PROCESS: u64 = 64 * MIB;
/// What the source claims to hold: the size of parts goes by it.
const USED_MEMORY: u64 = 100 << 30;

/// What the source sends.
#[derive(Clone, Copy)]
struct Shape {
    keys: u64,
    /// Bytes of each value.
    value: usize,
}

#[test]
fn backup_and_restore_of_a_shard_hold_their_buffers_only() -> Result<()> {
    as_in_the_image(measure())
}

async fn measure() -> Result<()> {
    let shape = Arc::new(Mutex::new(Shape {
        keys: 10,
        value: VALUE,
    }));
    let source = listen(Arc::clone(&shape)).await?;
    let server = S3Process::start(Path::new(env!("CARGO_BIN_EXE_s3-server")))?;
    let store = server.store().await?;
    let target = sole_primary().await?;
    let backup_id = BackupId::new(Timestamp::UNIX_EPOCH, "3f9c2a10");
    let mut request = CaptureRequest {
        seeds: Seeds::new([source], [ID.parse()?])?,
        slots: SlotSet::full(),
        prefer: SourceRole::Replica,
        patience: Duration::from_secs(5),
        layout: Layout::new(store.location(), "shop", "cart", &backup_id),
        store,
        backup_id,
        shard: 0,
        attempt: 1,
        compression: Compression::Gzip { level: 1 },
        pool: CompressionPool::of_machine(),
    };
    // What clients and servers need once is not a stream's.
    let (sender, _seen) = watch::channel(CaptureProgress::default());
    let first = capture(&request, &sender, &CancellationToken::new()).await?;
    restore(&request, first, &target, ValueLimit::default()).await?;
    let is_now = |keys, value| {
        *shape.lock().unwrap_or_else(PoisonError::into_inner) = Shape { keys, value };
    };
    is_now(KEYS, VALUE);
    request.attempt = 2;

    let peak = Peak::watch()?;
    let shard = capture(&request, &sender, &CancellationToken::new()).await?;
    let writing = peak.added();
    let index = &shard.document.index;
    ensure!(index.keys() == Some(KEYS), "{:?} keys", index.keys());
    let (raw, stored) = (index.raw_bytes, index.stored_bytes);
    ensure!(stored > raw * 99 / 100, "{raw} bytes became {stored}");
    ensure!(shard.document.capture.crc64 == "disabled");
    let peak = Peak::watch()?;
    let written = restore(&request, shard, &target, ValueLimit::default()).await?;
    let reading = peak.added();
    println!(
        "{} MiB passed: the backup added {} MiB, the restore {} MiB",
        raw / MIB,
        writing / MIB,
        reading / MIB
    );
    ensure!(written == KEYS, "{written} keys were written");
    let part = part_size_for(USED_MEMORY) as u64;
    let allowed = 3 * (BLOCK_BYTES as u64 + part) + 16 * MIB;
    ensure!(writing < allowed, "the backup added {writing} bytes");
    ensure!(reading < 64 * MIB, "the restore added {reading} bytes");

    // The longest value that fits the memory of a container: the replay's share of it is what is left beside the process.
    let container = 224 * MIB;
    let limit = ValueLimit::within(Some(usize::try_from(container)?), 1);
    is_now(1, limit.bytes() - FRAME);
    request.attempt = 3;
    let shard = capture(&request, &sender, &CancellationToken::new()).await?;
    let peak = Peak::watch()?;
    let written = restore(&request, shard, &target, limit).await?;
    let added = peak.added();
    println!(
        "a value of {} MiB added {} MiB",
        limit.bytes() as u64 / MIB,
        added / MIB
    );
    ensure!(written == 1, "{written} keys were written");
    ensure!(added < container - PROCESS, "{added} of {container} bytes");
    // One byte more is refused, by its key.
    is_now(1, limit.bytes() - FRAME + 1);
    request.attempt = 4;
    let shard = capture(&request, &sender, &CancellationToken::new()).await?;
    let refused = restore(&request, shard, &target, limit).await.err();
    let refused = format!(
        "{:#}",
        refused.context("a value beyond the limit was taken")?
    );
    ensure!(
        refused.contains("k00000000000") && refused.contains("224 MiB"),
        "{refused}"
    );
    Ok(())
}

/// Replays the shard; returns how many keys it wrote.
async fn restore(
    captured: &CaptureRequest,
    shard: CapturedShard,
    target: &RedisServer,
    value_limit: ValueLimit,
) -> Result<u64> {
    let request = ReplayRequest {
        key: shard.key,
        index: Arc::new(shard.document.index),
        slots: SlotSet::full(),
        seeds: target.seeds().await?,
        from: Progress::default(),
        window: Window::default(),
        patience: Duration::from_secs(30),
        value_limit,
    };
    let (sender, _seen) = watch::channel(Progress::default());
    let (store, pool) = (captured.store.clone(), captured.pool.clone());
    Ok(replay(store, pool, &request, &sender).await?.keys)
}

/// A primary that owns every slot.
async fn listen(shape: Arc<Mutex<Shape>>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let shape = *shape.lock().unwrap_or_else(PoisonError::into_inner);
            tokio::spawn(async move { serve(connection, address, shape).await });
        }
    });
    Ok(address)
}

async fn serve(connection: TcpStream, address: SocketAddr, shape: Shape) -> Result<()> {
    let (reader, writer) = connection.into_split();
    let (mut reader, mut writer) = (BufReader::new(reader), BufWriter::new(writer));
    loop {
        let words = command(&mut reader).await?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["PSYNC", ..] => return snapshot(writer, shape).await,
            ["CLUSTER", "MYID"] => bulk(&mut writer, ID).await?,
            ["CLUSTER", "INFO"] => bulk(&mut writer, "cluster_state:ok\r\n").await?,
            ["CLUSTER", "NODES"] => {
                let bus = u32::from(address.port()) + 10_000;
                let line = format!(
                    "{ID} {address}@{} myself,master - 0 0 1 connected 0-16383\n",
                    bus % 65_536
                );
                bulk(&mut writer, &line).await?;
            }
            ["INFO", ..] => {
                let text = format!(
                    "redis_version:7.0.15\r\nrole:master\r\nmaster_replid:x\r\nmaster_repl_offset:1\r\nused_memory:{USED_MEMORY}\r\n"
                );
                bulk(&mut writer, &text).await?;
            }
            _ => writer.write_all(b"+OK\r\n").await?,
        }
        writer.flush().await?;
    }
}

/// The words of the next command, in upper case where they are letters of a command.
async fn command(reader: &mut BufReader<tokio::net::tcp::OwnedReadHalf>) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let count = number(reader).await?;
    for _ in 0..count {
        let length = number(reader).await?;
        let mut word = vec![0; length + 2];
        reader.read_exact(&mut word).await?;
        word.truncate(length);
        words.push(String::from_utf8_lossy(&word).to_uppercase());
    }
    Ok(words)
}

async fn number(reader: &mut BufReader<tokio::net::tcp::OwnedReadHalf>) -> Result<usize> {
    let mut line = String::new();
    ensure!(
        reader.read_line(&mut line).await? > 0,
        "the connection has ended"
    );
    Ok(line.trim().get(1..).unwrap_or_default().parse()?)
}

async fn bulk(writer: &mut BufWriter<OwnedWriteHalf>, text: &str) -> Result<()> {
    let framed = format!("${}\r\n{text}\r\n", text.len());
    Ok(writer.write_all(framed.as_bytes()).await?)
}

/// An RDB of version 10 with strings of noise and the checksum off, announced by its length.
async fn snapshot(mut writer: BufWriter<OwnedWriteHalf>, shape: Shape) -> Result<()> {
    let keys = shape.keys;
    let mut head = b"REDIS0010\xfe\x00".to_vec();
    let mut record = vec![0_u8, 12];
    record.extend_from_slice(b"k00000000000");
    record.push(0x80);
    record.extend_from_slice(&u32::try_from(shape.value)?.to_be_bytes());
    let value = record.len();
    record.resize(value + shape.value, 0);
    let noise = Noise::new(1).bytes(4 * VALUE);
    let tail = [0xff_u8, 0, 0, 0, 0, 0, 0, 0, 0];
    let length = head.len() as u64 + keys * record.len() as u64 + tail.len() as u64;
    let mut answer = format!("+FULLRESYNC {ID} 1\r\n${length}\r\n").into_bytes();
    answer.append(&mut head);
    writer.write_all(&answer).await?;
    for number in 0..keys {
        record[3..14].copy_from_slice(format!("{:011}", number % NAMES).as_bytes());
        // What repeats is further away than a compressor looks back.
        let from = usize::try_from(number)? * 4093 % (3 * VALUE);
        let mut rest = &mut record[value..];
        while !rest.is_empty() {
            let (piece, more) = rest.split_at_mut(VALUE.min(rest.len()));
            piece.copy_from_slice(&noise[from..from + piece.len()]);
            rest = more;
        }
        writer.write_all(&record).await?;
    }
    writer.write_all(&tail).await?;
    writer.flush().await?;
    Ok(())
}
