//! What the cases run against: servers in processes of their own, and data set J.

use crate::{dataset::json_text, redis::RedisServer, s3::S3Process, wait::eventually};
use anyhow::{Result, ensure};
use common::storage::{BackupId, Layout, ObjectStore};
use std::{net::SocketAddr, process::Stdio};
use tokio::process::Command;

/// Keys of data set J: each a string of about 200 bytes of JSON-like text.
pub const KEYS: u64 = 1_000_000;

/// A server in cluster mode that owns every slot, without the wait before a diskless transfer.
pub async fn sole_primary() -> Result<RedisServer> {
    let options = [
        ("repl-diskless-sync-delay", "0"),
        ("save", ""),
        ("cluster-node-timeout", "60000"),
    ];
    let mut server = RedisServer::cluster_node(&options).await?;
    server.quiet();
    server.call::<()>("CLUSTER ADDSLOTSRANGE 0 16383").await?;
    eventually("the server serves", async || {
        Ok(server
            .call::<String>("CLUSTER INFO")
            .await?
            .contains("cluster_state:ok"))
    })
    .await?;
    Ok(server)
}

/// Key number `index` of data set J.
pub fn key(index: u64) -> String {
    format!("json:{index}")
}

/// Writes data set J.
pub async fn fill(server: &RedisServer) -> Result<()> {
    const BATCH: u64 = 5_000;
    let mut connection = server.connect().await?;
    for start in (0..KEYS).step_by(usize::try_from(BATCH)?) {
        let mut pipeline = redis::pipe();
        for index in start..start + BATCH {
            pipeline
                .cmd("SET")
                .arg(key(index))
                .arg(json_text(index, 180))
                .ignore();
        }
        pipeline.query_async::<()>(&mut connection).await?;
    }
    let keys: u64 = server.call("DBSIZE").await?;
    ensure!(keys == KEYS, "{keys} keys instead of {KEYS}");
    Ok(())
}

/// The S3 server, in a process of its own: the program beside this one.
pub fn s3() -> Result<S3Process> {
    S3Process::start(&std::env::current_exe()?.with_file_name("s3-server"))
}

/// Where round `round` stores its backup.
pub fn place(store: &ObjectStore, round: usize) -> (BackupId, Layout) {
    let id = BackupId::new(jiff::Timestamp::now(), &format!("{round:032x}"));
    let layout = Layout::new(store.location(), "bench", "bench", &id);
    (id, layout)
}

/// `redis-cli` for a server, nothing printed.
pub fn redis_cli(address: SocketAddr) -> Command {
    let mut command = Command::new("redis-cli");
    command
        .args([
            "-h",
            &address.ip().to_string(),
            "-p",
            &address.port().to_string(),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
}
