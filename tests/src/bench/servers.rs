//! What the cases run against: servers in processes of their own, and data set J.

use crate::{dataset::json_text, redis::RedisServer};
use anyhow::{Context, Result, ensure};
use common::storage::{BackupId, Credentials, Layout, Location, ObjectStore, location::Given};
use std::{net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// Keys of data set J: each a string of about 200 bytes of JSON-like text.
pub const KEYS: u64 = 1_000_000;

/// A server in cluster mode that owns every slot, without the wait before a diskless transfer.
pub async fn sole_owner() -> Result<RedisServer> {
    let options = [
        ("repl-diskless-sync-delay", "0"),
        ("save", ""),
        ("cluster-node-timeout", "60000"),
    ];
    let server = RedisServer::cluster_node(&options).await?;
    server.call::<()>("CLUSTER ADDSLOTSRANGE 0 16383").await?;
    crate::redis::eventually("the server serves", || async {
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

/// The S3 server in a process of its own, with one bucket in a directory of its own.
pub struct S3Process {
    _child: Child,
    directory: PathBuf,
    endpoint: String,
}

const BUCKET: &str = "bench";
const ACCESS_KEY: &str = "bench";
const SECRET_KEY: &str = "bench-secret";

impl S3Process {
    /// Starts it at a free port.
    pub async fn start() -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name("s3-server");
        let directory = std::env::temp_dir().join(format!("bench-s3-{}", std::process::id()));
        tokio::fs::create_dir_all(&directory).await?;
        let mut child = Command::new(&program)
            .args(["--listen", "127.0.0.1:0", "--bucket", BUCKET])
            .args([
                "--access-key",
                ACCESS_KEY,
                "--secret-key",
                SECRET_KEY,
                "--root",
            ])
            .arg(&directory)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let output = child.stdout.take().context("the S3 server has no output")?;
        let mut output = BufReader::new(output);
        let mut line = String::new();
        let read = output.read_line(&mut line);
        tokio::time::timeout(Duration::from_secs(10), read)
            .await
            .context("the S3 server says nothing")??;
        Ok(Self {
            _child: child,
            directory,
            endpoint: line.trim().to_owned(),
        })
    }

    /// The bucket.
    pub async fn store(&self) -> Result<ObjectStore> {
        let given = Given {
            bucket: BUCKET,
            endpoint: Some(&self.endpoint),
            ..Given::default()
        };
        let credentials =
            Credentials::new(ACCESS_KEY.to_owned(), SECRET_KEY.to_owned().into(), None);
        Ok(ObjectStore::connect(Location::new(&given)?, Some(credentials)).await)
    }
}

impl Drop for S3Process {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
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
