//! `restore-one-node`: data set J from S3 into one node, against `redis-cli --pipe` of the same RESTORE commands.

use super::{
    backup,
    report::{Goal, Measurement, Row},
    rounds,
    servers::{self, KEYS},
};
use crate::redis::RedisServer;
use anyhow::{Result, ensure};
use bytes::BytesMut;
use common::{
    cluster::{resp::CommandWriter, slots::SlotSet},
    storage::{CompressionPool, ObjectStore},
};
use restore_controller::replay::{Progress, ReplayRequest, ValueLimit, Window, replay};
use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;

pub async fn run() -> Result<Vec<Row>> {
    let source = servers::sole_primary().await?;
    servers::fill(&source).await?;
    let s3 = servers::s3()?;
    let store = s3.store().await?;
    let pool = CompressionPool::of_machine();
    let captured = backup::backup(&source, &store, &pool, 0).await?;
    let commands = Commands::write(&source).await?;
    drop(source);
    let target = servers::sole_primary().await?;
    let request = ReplayRequest {
        key: captured.key,
        index: Arc::new(captured.document.index),
        slots: SlotSet::full(),
        seeds: target.seeds().await?,
        from: Progress::default(),
        window: Window::default(),
        patience: Duration::from_secs(30),
        value_limit: ValueLimit::default(),
    };
    let mut measured = Vec::new();
    for round in rounds() {
        let ours = async {
            let ours = ours(&request, &store, &pool).await?;
            emptied(&target).await.map(|()| ours)
        };
        let rival = async {
            let rival = piped(&target, &commands.0).await?;
            emptied(&target).await.map(|()| rival)
        };
        let (ours, rival) = Box::pin(round.run(ours, rival)).await?;
        if round.measured {
            measured.push(Measurement { ours, rival });
        }
    }
    Ok(vec![Row::new(
        "restore-one-node",
        "keys/s",
        "redis-cli --pipe of the same RESTOREs",
        Goal::AtLeast(1.05),
        &measured,
    )])
}

async fn ours(request: &ReplayRequest, store: &ObjectStore, pool: &CompressionPool) -> Result<f64> {
    let (progress, _) = watch::channel(Progress::default());
    let started = Instant::now();
    let done = replay(store.clone(), pool.clone(), request, &progress).await?;
    ensure!(
        done.keys == KEYS,
        "{} keys written instead of {KEYS}",
        done.keys
    );
    Ok(rate(started))
}

async fn piped(target: &RedisServer, commands: &Path) -> Result<f64> {
    let started = Instant::now();
    let status = servers::redis_cli(target.address())
        .arg("--pipe")
        .stdin(File::open(commands)?)
        .status()
        .await?;
    ensure!(status.success(), "redis-cli --pipe failed");
    Ok(rate(started))
}

#[allow(clippy::cast_precision_loss)] // a million
fn rate(started: Instant) -> f64 {
    KEYS as f64 / started.elapsed().as_secs_f64()
}

async fn emptied(target: &RedisServer) -> Result<()> {
    let keys: u64 = target.call("DBSIZE").await?;
    ensure!(keys == KEYS, "{keys} keys in the target instead of {KEYS}");
    target.call::<()>("FLUSHALL SYNC").await
}

/// A file of RESTORE commands as RESP, gone with this value.
struct Commands(PathBuf);

impl Commands {
    async fn write(source: &RedisServer) -> Result<Self> {
        const BATCH: u64 = 5_000;
        let path = std::env::temp_dir().join(format!("bench-restore-{}.resp", std::process::id()));
        let mut file = File::create(&path)?;
        let written = Self(path);
        let mut connection = source.connect().await?;
        for start in (0..KEYS).step_by(usize::try_from(BATCH)?) {
            let mut pipeline = redis::pipe();
            for index in start..start + BATCH {
                pipeline.cmd("DUMP").arg(servers::key(index));
            }
            let payloads: Vec<Vec<u8>> = pipeline.query_async(&mut connection).await?;
            let mut text = BytesMut::new();
            for (index, payload) in (start..).zip(payloads) {
                let mut command = CommandWriter::new(&mut text, 5);
                command
                    .arg(b"RESTORE")
                    .arg(servers::key(index).as_bytes())
                    .integer(0)
                    .arg(&payload)
                    .arg(b"REPLACE");
            }
            file.write_all(&text)?;
        }
        Ok(written)
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
