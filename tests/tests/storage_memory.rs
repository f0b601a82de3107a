//! What a stream adds to the memory of a process, whatever its length. One test, so that nothing else runs in the process;
//! the S3 server runs in one of its own.

use anyhow::ensure;
use common::storage::{
    BLOCK_BYTES, BlockReader, Compression, CompressionPool, ObjectStore, ShardIndex, ShardWriter,
    layout::SCHEMA, upload::part_size_for,
};
use std::{fs, path::Path, sync::Arc};
use tests::{
    memory::{MIB, Peak, as_in_the_image},
    noise::Noise,
    s3::S3Process,
};

const GIB: u64 = 1 << 30;
const GZIP: Compression = Compression::Gzip { level: 1 };

/// Fills the writer's buffers again and again from one piece, as a socket would.
async fn write(
    store: &ObjectStore,
    key: &str,
    compression: Compression,
    piece: &[u8],
    length: u64,
    part: usize,
) -> anyhow::Result<Arc<ShardIndex>> {
    let pool = CompressionPool::of_machine();
    let part = Some(part);
    let mut writer = ShardWriter::new(store.clone(), key.to_owned(), compression, pool, part);
    let mut left = length;
    let mut source = piece.iter().as_slice();
    while left > 0 {
        if source.is_empty() {
            source = piece;
        }
        let now = writer
            .room()
            .min(source.len())
            .min(65_536)
            .min(usize::try_from(left)?);
        let (now, later) = source.split_at(now);
        writer.buffer().extend_from_slice(now);
        writer.commit().await?;
        left -= now.len() as u64;
        source = later;
    }
    let stored = writer.complete().await?;
    ensure!(stored.raw_bytes == length);
    Ok(Arc::new(ShardIndex {
        schema: SCHEMA,
        backup_id: "20261121t003000z-3f9c2a10".parse()?,
        shard: 0,
        object: "shard-0000-a1.rdb.gz".to_owned(),
        compression,
        raw_bytes: stored.raw_bytes,
        stored_bytes: stored.stored_bytes,
        sha256: stored.sha256,
        flavour: "redis".to_owned(),
        rdb_version: 10,
        blocks: stored.blocks,
        slots: None,
    }))
}

async fn read(store: &ObjectStore, key: &str, index: &Arc<ShardIndex>) -> anyhow::Result<()> {
    let pool = CompressionPool::of_machine();
    let mut reader = BlockReader::new(store.clone(), key.to_owned(), Arc::clone(index), 0, pool);
    let mut length = 0;
    while let Some(block) = reader.next().await? {
        length += block.bytes.len() as u64;
    }
    ensure!(length == index.raw_bytes, "{length} bytes came back");
    Ok(())
}

fn text(length: usize) -> Vec<u8> {
    let digits = Noise::new(1).bytes(length / 4);
    let lines = digits.iter().map(|byte| format!("{{\"value\":{byte}}}\n"));
    let mut text = lines.collect::<String>().into_bytes();
    text.truncate(length);
    text
}

/// What a stream may add that is sent in parts of this size: three blocks, three parts, and some room.
fn allowed(part: usize) -> u64 {
    3 * (BLOCK_BYTES + part) as u64 + 16 * MIB
}

#[test]
fn a_stream_adds_its_buffers_only_whatever_its_length() -> anyhow::Result<()> {
    as_in_the_image(measure())
}

async fn measure() -> anyhow::Result<()> {
    let server = S3Process::start(Path::new(env!("CARGO_BIN_EXE_s3-server")))?;
    let store = server.store().await?;
    store.probe("memory/").await?;
    let (text, noise) = (text(BLOCK_BYTES), Noise::new(1).bytes(BLOCK_BYTES));
    // The client, its connections and the threads of the runtime are there before anything is measured.
    let (small, large) = (part_size_for(GIB), part_size_for(450 * GIB));
    write(&store, "memory/first", GZIP, &text, 1000, small).await?;
    // Only what does not compress fills parts.
    for (name, compression, piece, length, part) in [
        ("text", GZIP, &text, 2048 * MIB, small),
        ("noise", GZIP, &noise, 256 * MIB, small),
        ("stored", Compression::None, &noise, 256 * MIB, small),
        ("parts-of-450-gib", GZIP, &noise, 512 * MIB, large),
    ] {
        let key = format!("memory/{name}");
        let peak = Peak::watch()?;
        let index = write(&store, &key, compression, piece, length, part).await?;
        let writing = peak.added();
        let peak = Peak::watch()?;
        read(&store, &key, &index).await?;
        let reading = peak.added();
        println!(
            "{name}: {} MiB in parts of {} MiB: writing adds {} MiB, reading {} MiB",
            length / MIB,
            part as u64 / MIB,
            writing / MIB,
            reading / MIB
        );
        ensure!(writing < allowed(part), "writing {name} added {writing}");
        ensure!(reading < 64 * MIB, "reading {name} added {reading}");
        fs::remove_file(server.file(&key))?;
    }
    Ok(())
}
