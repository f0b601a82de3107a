//! A shard of 2 GiB passes through buffers of less than 64 MiB. The source is made up: a server that speaks just enough of
//! the protocol and sends records as fast as they are taken.

use anyhow::{Result, ensure};
use backup_controller::capture::{CaptureProgress, CaptureRequest, capture};
use common::{
    cluster::slots::SlotSet,
    storage::{BackupId, Compression, CompressionPool, Layout},
};
use crds::SourceRole;
use jiff::Timestamp;
use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tests::{
    memory::{MIB, Peak, as_in_the_image},
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
/// Keys of the stream: 2 GiB of values.
const KEYS: u64 = (2 << 30) / VALUE as u64;
/// What one stream may add.
const ALLOWED: u64 = 64 * MIB;

#[test]
fn a_shard_of_2_gib_takes_no_more_memory_than_its_buffers() -> Result<()> {
    as_in_the_image(measure())
}

async fn measure() -> Result<()> {
    let keys = Arc::new(AtomicU64::new(10));
    let source = listen(Arc::clone(&keys)).await?;
    let server = S3Process::start(Path::new(env!("CARGO_BIN_EXE_s3-server")))?;
    let store = server.store().await?;
    let backup_id = BackupId::new(Timestamp::UNIX_EPOCH, "3f9c2a10");
    let mut request = CaptureRequest {
        seeds: vec![source],
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
    let (tell, _seen) = watch::channel(CaptureProgress::default());
    capture(&request, &tell, &CancellationToken::new()).await?;
    keys.store(KEYS, Ordering::Relaxed);
    request.attempt = 2;
    let peak = Peak::watch()?;
    let shard = capture(&request, &tell, &CancellationToken::new()).await?;
    let added = peak.added();
    let index = &shard.document.index;
    ensure!(index.keys() == Some(KEYS), "{:?} keys", index.keys());
    ensure!(index.raw_bytes > 2 << 30, "{} bytes", index.raw_bytes);
    ensure!(shard.document.capture.crc64 == "disabled");
    println!(
        "{} MiB passed, {} MiB were added",
        index.raw_bytes / MIB,
        added / MIB
    );
    ensure!(added < ALLOWED, "{} MiB were added", added / MIB);
    Ok(())
}

/// A primary that owns every slot.
async fn listen(keys: Arc<AtomicU64>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let keys = keys.load(Ordering::Relaxed);
            tokio::spawn(async move { serve(connection, address, keys).await });
        }
    });
    Ok(address)
}

async fn serve(connection: TcpStream, address: SocketAddr, keys: u64) -> Result<()> {
    let (reader, writer) = connection.into_split();
    let (mut reader, mut writer) = (BufReader::new(reader), BufWriter::new(writer));
    loop {
        let words = command(&mut reader).await?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["PSYNC", ..] => return snapshot(writer, keys).await,
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
                bulk(&mut writer, "redis_version:7.0.15\r\nrole:master\r\nmaster_replid:x\r\nmaster_repl_offset:1\r\n").await?;
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

/// An RDB of version 10 with strings of 64 KiB and the checksum off, announced by its length.
async fn snapshot(mut writer: BufWriter<OwnedWriteHalf>, keys: u64) -> Result<()> {
    let mut head = b"REDIS0010\xfe\x00".to_vec();
    let mut record = vec![0_u8, 12];
    record.extend_from_slice(b"k00000000000");
    record.push(0x80);
    record.extend_from_slice(&u32::try_from(VALUE)?.to_be_bytes());
    record.resize(record.len() + VALUE, b'v');
    let tail = [0xff_u8, 0, 0, 0, 0, 0, 0, 0, 0];
    let length = head.len() as u64 + keys * record.len() as u64 + tail.len() as u64;
    let mut answer = format!("+FULLRESYNC {ID} 1\r\n${length}\r\n").into_bytes();
    answer.append(&mut head);
    writer.write_all(&answer).await?;
    for number in 0..keys {
        let name = format!("{number:011}");
        if let Some(place) = record.get_mut(3..14) {
            place.copy_from_slice(name.as_bytes());
        }
        writer.write_all(&record).await?;
    }
    writer.write_all(&tail).await?;
    writer.flush().await?;
    Ok(())
}
