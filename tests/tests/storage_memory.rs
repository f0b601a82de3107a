//! What a stream adds to the memory of a process, whatever its length. One test, so that nothing else runs in the process;
//! the S3 server runs in one of its own.

use anyhow::ensure;
use common::storage::{
    BLOCK_BYTES, BlockReader, Compression, CompressionPool, ObjectStore, ShardIndex, ShardWriter,
    manifest::SCHEMA,
};
use std::{fs, path::Path, sync::Arc};
use tests::{
    memory::{MIB, Peak, as_in_the_image},
    s3::S3Process,
};

const GZIP: Compression = Compression::Gzip { level: 1 };

/// Fills the writer's buffers again and again from one piece, as a socket would.
async fn write(
    store: &ObjectStore,
    key: &str,
    compression: Compression,
    piece: &[u8],
    length: u64,
) -> anyhow::Result<Arc<ShardIndex>> {
    let pool = CompressionPool::of_machine();
    let mut writer = ShardWriter::new(store.clone(), key.to_owned(), compression, pool, None);
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

fn noise(length: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn text(length: usize) -> Vec<u8> {
    let digits = noise(length / 4);
    let lines = digits.iter().map(|byte| format!("{{\"value\":{byte}}}\n"));
    let mut text = lines.collect::<String>().into_bytes();
    text.truncate(length);
    text
}

#[test]
fn a_stream_adds_less_than_64_mib_whatever_its_length() -> anyhow::Result<()> {
    as_in_the_image(measure())
}

async fn measure() -> anyhow::Result<()> {
    let server = S3Process::start(Path::new(env!("CARGO_BIN_EXE_s3-server")))?;
    let store = server.store().await?;
    store.probe("memory/").await?;
    let (text, noise) = (text(BLOCK_BYTES), noise(BLOCK_BYTES));
    // The client, its connections and the threads of the runtime are there before anything is measured.
    write(&store, "memory/first", GZIP, &text, 1000).await?;
    for (name, compression, piece, length) in [
        ("text", GZIP, &text, 2048 * MIB),
        ("noise", GZIP, &noise, 256 * MIB),
        ("stored", Compression::None, &noise, 256 * MIB),
    ] {
        let key = format!("memory/{name}");
        let peak = Peak::watch()?;
        let index = write(&store, &key, compression, piece, length).await?;
        let writing = peak.added() / MIB;
        let peak = Peak::watch()?;
        read(&store, &key, &index).await?;
        let reading = peak.added() / MIB;
        println!(
            "{name}: {} MiB raw: writing adds {writing} MiB, reading {reading} MiB",
            length / MIB
        );
        assert!(writing < 64, "writing {name} added {writing} MiB");
        assert!(reading < 64, "reading {name} added {reading} MiB");
        fs::remove_file(server.file(&key))?;
    }
    Ok(())
}
