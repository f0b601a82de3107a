//! An S3 server of files in a directory, for the demonstration, the benchmarks and the suites. Not for real data.

use anyhow::Context;
use clap::Parser;
use std::{io::Write, net::SocketAddr, path::PathBuf};
use tests::s3::{AccessKey, S3Server};
use tokio::signal::unix::{SignalKind, signal};

/// Serves a directory as S3-compatible storage.
#[derive(Debug, Parser)]
struct Arguments {
    /// Address to listen on; port 0 takes a free one, which is printed.
    #[arg(long, env = "S3_LISTEN", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Directory that holds the buckets; made if it is missing.
    #[arg(long, env = "S3_ROOT")]
    root: PathBuf,
    /// Access key id that clients have to use.
    #[arg(long, env = "S3_ACCESS_KEY")]
    access_key: String,
    /// Secret access key that clients have to use.
    #[arg(long, env = "S3_SECRET_KEY", hide_env_values = true)]
    secret_key: String,
    /// Bucket to make; may be given several times.
    #[arg(long = "bucket", env = "S3_BUCKETS", value_delimiter = ',')]
    buckets: Vec<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments {
        listen,
        root,
        access_key,
        secret_key,
        buckets,
    } = Arguments::parse();
    let key = AccessKey {
        id: access_key,
        secret: secret_key,
    };
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let server = S3Server::start(listen, &root, &key, &buckets, None).await?;
    let mut output = std::io::stdout();
    writeln!(output, "{}", server.endpoint())?;
    output.flush()?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot wait for SIGINT")?,
    }
    server.stop().await
}
