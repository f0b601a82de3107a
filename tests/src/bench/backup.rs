//! `backup-gzip`: a shard of data set J into S3, against a dump to nowhere and against the classic pipe.

use super::{
    report::{Goal, Measurement, Row},
    rounds,
    servers::{self, KEYS},
};
use crate::redis::RedisServer;
use anyhow::{Context, Result, ensure};
use backup_controller::capture::{CaptureProgress, CaptureRequest, capture};
use common::{
    cluster::slots::SlotSet,
    storage::{Compression, CompressionPool, ObjectStore, upload::MultipartUpload},
};
use crds::SourceRole;
use std::{
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{io::AsyncReadExt, process::Command, sync::watch};
use tokio_util::sync::CancellationToken;

/// What a key of data set J has at least, uncompressed by the server, in bytes.
const LEAST_VALUE: u64 = 50;

/// Size of the rival's parts.
const PART: usize = 8 * 1024 * 1024;

pub async fn run() -> Result<Vec<Row>> {
    let server = servers::sole_primary().await?;
    servers::fill(&server).await?;
    let s3 = servers::s3()?;
    let store = s3.store().await?;
    let pool = CompressionPool::of_machine();
    let (mut dump, mut pipe) = (Vec::new(), Vec::new());
    for round in rounds() {
        let ours = ours(&server, &store, &pool, round.number);
        let rivals = async {
            Ok((
                to_nowhere(&server).await?,
                through_gzip(&server, &store).await?,
            ))
        };
        let (ours, (nowhere, gzip)) = Box::pin(round.run(ours, rivals)).await?;
        if round.measured {
            let against = |rival| Measurement { ours, rival };
            dump.push(against(nowhere));
            pipe.push(against(gzip));
        }
        store.delete_prefix("bench/").await?;
    }
    let row =
        |rival, goal, rounds: &[Measurement]| Row::new("backup-gzip", "s", rival, goal, rounds);
    Ok(vec![
        row("redis-cli --rdb - > /dev/null", Goal::AtMost(1.20), &dump),
        row(
            "redis-cli --rdb - | gzip -1 | upload",
            Goal::AtMost(0.95),
            &pipe,
        ),
    ])
}

/// A backup as the controller's worker makes it. Answers the seconds.
async fn ours(
    server: &RedisServer,
    store: &ObjectStore,
    pool: &CompressionPool,
    round: usize,
) -> Result<f64> {
    let started = Instant::now();
    backup(server, store, pool, round).await?;
    Ok(started.elapsed().as_secs_f64())
}

/// Captures the server's shard.
pub async fn backup(
    server: &RedisServer,
    store: &ObjectStore,
    pool: &CompressionPool,
    round: usize,
) -> Result<backup_controller::capture::CapturedShard> {
    let (backup_id, layout) = servers::place(store, round);
    let request = CaptureRequest {
        seeds: server.seeds().await?,
        slots: SlotSet::full(),
        prefer: SourceRole::Replica,
        patience: Duration::from_secs(10),
        store: store.clone(),
        layout,
        backup_id,
        shard: 0,
        attempt: 1,
        compression: Compression::Gzip { level: 1 },
        pool: pool.clone(),
    };
    let (progress, _) = watch::channel(CaptureProgress::default());
    Ok(capture(&request, &progress, &CancellationToken::new()).await?)
}

async fn to_nowhere(server: &RedisServer) -> Result<f64> {
    let started = Instant::now();
    // Not `output()`, which reads what is dumped through a pipe.
    let dumped = servers::redis_cli(server.address())
        .args(["--rdb", "-"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?
        .wait_with_output()
        .await?;
    let seconds = started.elapsed().as_secs_f64();
    let text = String::from_utf8_lossy(&dumped.stderr);
    ensure!(dumped.status.success(), "redis-cli --rdb: {text}");
    // "Transfer finished with success after 218000213 bytes"
    let words = text.split_whitespace().rev();
    let bytes = words.skip_while(|word| *word != "bytes").nth(1);
    let bytes: u64 = bytes.context("redis-cli names no length")?.parse()?;
    ensure!(bytes > KEYS * LEAST_VALUE, "only {bytes} bytes were dumped");
    Ok(seconds)
}

/// The upload is our own, in parts and beside the reading: the best that a script could have.
async fn through_gzip(server: &RedisServer, store: &ObjectStore) -> Result<f64> {
    let started = Instant::now();
    let address = server.address();
    let script = format!(
        "redis-cli -h {} -p {} --rdb - 2> /dev/null | gzip -1",
        address.ip(),
        address.port()
    );
    let mut child = Command::new("sh")
        .args(["-c", &script])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut output = child
        .stdout
        .take()
        .ok_or_else(|| anyhow::anyhow!("no output"))?;
    let mut upload = MultipartUpload::new(store.clone(), "bench/rival.rdb.gz".to_owned(), PART);
    let mut part = upload.buffer();
    while (&mut output)
        .take((PART - part.len()) as u64)
        .read_buf(&mut part)
        .await?
        > 0
    {
        if part.len() == PART {
            upload.send(part).await?;
            part = upload.buffer();
        }
    }
    ensure!(
        upload.in_flight() > 0 || upload.bytes() > 0,
        "the rival's pipe wrote less than a part"
    );
    upload.complete(part).await?;
    ensure!(child.wait().await?.success(), "the rival's pipe failed");
    Ok(started.elapsed().as_secs_f64())
}
