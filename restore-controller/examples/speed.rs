#![allow(
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]
use bytes::{Bytes, BytesMut};
use common::{
    cluster::{resp::Command, slots::SlotSet},
    rdb::{Event, RecordReader, payload::*},
    storage::*,
};
use restore_controller::replay::*;
use std::{ops::ControlFlow, sync::Arc, time::*};

struct Mem(std::vec::IntoIter<RawBlock>);
impl Blocks for Mem {
    async fn next(&mut self) -> Result<Option<RawBlock>, StorageError> {
        Ok(self.0.next())
    }
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let data = Bytes::from(std::fs::read(&args[2]).unwrap());
    if args[1] == "resp" {
        let mut out = BytesMut::new();
        let mut reader = RecordReader::new();
        let mut n = 0;
        reader
            .feed(&data, &mut |e: Event<'_>| {
                if let Event::Key(k) = e {
                    let body = &data[k.value.start as usize..k.value.end as usize];
                    n += 1;
                    let mut c = Command::new(&mut out, 5 + usize::from(k.expire_ms.is_some()));
                    c.arg(b"RESTORE")
                        .arg(k.key)
                        .integer(k.expire_ms.unwrap_or(0))
                        .written(restore_payload_length(body.len()), |o| {
                            restore_payload(k.kind, body, o)
                        })
                        .arg(b"REPLACE");
                    if k.expire_ms.is_some() {
                        c.arg(b"ABSTTL");
                    }
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        std::fs::write(&args[3], &out).unwrap();
        println!("{n} keys, {} bytes", out.len());
        return;
    }
    if args[1] == "encode" {
        let t = Instant::now();
        let mut out = BytesMut::with_capacity(1 << 17);
        let mut reader = RecordReader::new();
        let mut n = 0;
        reader
            .feed(&data, &mut |e: Event<'_>| {
                if let Event::Key(k) = e {
                    let body = &data[k.value.start as usize..k.value.end as usize];
                    n += 1;
                    let mut c = Command::new(&mut out, 5);
                    c.arg(b"RESTORE")
                        .arg(k.key)
                        .integer(0)
                        .written(restore_payload_length(body.len()), |o| {
                            restore_payload(k.kind, body, o)
                        })
                        .arg(b"REPLACE");
                    if out.len() > 64 << 10 {
                        out.clear();
                    }
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        println!(
            "encode only: {n} keys {:.0} keys/s",
            n as f64 / t.elapsed().as_secs_f64()
        );
        return;
    }
    let window = Window {
        commands: args.get(4).map_or(4096, |s| s.parse().unwrap()),
        bytes: 4 << 20,
    };
    let blocks: Vec<RawBlock> = (0..data.len())
        .step_by(BLOCK_BYTES)
        .enumerate()
        .map(|(number, at)| RawBlock {
            number,
            raw_offset: at as u64,
            first_record: None,
            bytes: data.slice(at..data.len().min(at + BLOCK_BYTES)),
        })
        .collect();
    let entries = blocks
        .iter()
        .map(|b| BlockEntry {
            raw_offset: b.raw_offset,
            raw_bytes: b.bytes.len() as u64,
            stored_offset: b.raw_offset,
            stored_bytes: b.bytes.len() as u64,
            sha256: Sha256Digest::of(b""),
            first_record: None,
        })
        .collect();
    let index = Arc::new(ShardIndex {
        schema: 1,
        backup_id: "x".parse().unwrap(),
        shard: 0,
        object: "x".into(),
        compression: Compression::None,
        raw_bytes: data.len() as u64,
        stored_bytes: data.len() as u64,
        sha256: Sha256Digest::of(b""),
        flavour: "redis".into(),
        rdb_version: 10,
        blocks: entries,
        slots: None,
    });
    let request = ReplayRequest {
        key: "x".into(),
        index,
        slots: SlotSet::full(),
        seeds: vec![args[3].parse().unwrap()],
        from: Progress::default(),
        window,
        patience: Duration::from_secs(60),
    };
    let (tx, _rx) = tokio::sync::watch::channel(Progress::default());
    let t = Instant::now();
    let done = replay_blocks(Mem(blocks.into_iter()), &request, &tx)
        .await
        .unwrap();
    let s = t.elapsed().as_secs_f64();
    println!("{done:?} in {s:.2} s: {:.0} keys/s", done.keys as f64 / s);
}
