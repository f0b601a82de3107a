//! What the demonstration does to a cluster: fill it, keep writing to it, and compare it with another one.

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use redis::{Cmd, Value};
use std::time::{Duration, Instant};
use tests::{
    client::ClusterClient,
    dataset::{self, Comparison},
    verify,
    wait::within,
};
use tokio::time::{sleep, timeout};

/// Longest wait for a connection: kube-proxy follows the endpoints of a Service within a second or two. A Service that leads nowhere for
/// longer is a failure.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for one write, and for new connections to write over: a node without its cable never answers.
const WRITE: Duration = Duration::from_secs(2);
/// How often the writer looks for the key that ends it.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Parser)]
#[command(about = "Fills, writes to and compares Redis Clusters")]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Writes the mixed keys `data:0` to `data:<keys - 1>`.
    Fill {
        address: String,
        #[arg(long, default_value_t = 200_000)]
        keys: u64,
    },
    /// Writes numbered keys `writer:<n>` one after the other until the time is over, and reports how it went: fails if an acknowledged
    /// one is missing.
    Write {
        address: String,
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Ends earlier, as soon as this key exists.
        #[arg(long)]
        until: Option<String>,
    },
    /// Compares every key, value and time of expiry that starts with the prefix.
    Compare {
        wanted: String,
        found: String,
        #[arg(long, default_value = "data:")]
        prefix: String,
    },
    /// Compares every key of `fill` with what was written: kind, value and time to live.
    Verify {
        address: String,
        #[arg(long, default_value_t = 200_000)]
        keys: u64,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let started = Instant::now();
    match Arguments::parse().action {
        Action::Fill { address, keys } => {
            dataset::fill(&connect(&address).await?, keys).await?;
            println!(
                "{keys} keys written in {:.1} s",
                started.elapsed().as_secs_f64()
            );
        }
        Action::Write {
            address,
            seconds,
            until,
        } => write(&address, Duration::from_secs(seconds), until.as_deref()).await?,
        Action::Compare {
            wanted,
            found,
            prefix,
        } => {
            let (wanted, found) = (connect(&wanted).await?, connect(&found).await?);
            let comparison = dataset::compare(&wanted, &found, &prefix).await?;
            report(&comparison, "compared")?;
        }
        Action::Verify { address, keys } => {
            let cluster = connect(&address).await?;
            report(&verify::data_set(&cluster, keys).await?, "verified")?;
        }
    }
    Ok(())
}

fn report(comparison: &Comparison, how: &str) -> Result<()> {
    let (keys, different) = (comparison.keys, comparison.different);
    println!("{keys} keys {how}, {different} different");
    for sentence in &comparison.differences {
        println!("  {sentence}");
    }
    ensure!(different == 0 && keys > 0, "keys differ");
    Ok(())
}

/// Connects; right after its pods became ready a Service needs a moment.
async fn connect(address: &str) -> Result<ClusterClient> {
    within(CONNECT, "the cluster accepts connections", async || {
        ClusterClient::connect(address).await.map(Some)
    })
    .await
}

/// Writes until the time is over or the key exists; what a server acknowledged has to be there at the end, with its value.
async fn write(address: &str, time: Duration, until: Option<&str>) -> Result<()> {
    let end = Instant::now() + time;
    let (mut written, mut refused, mut longest) = (0_u64, 0_u64, Duration::ZERO);
    let (mut last, mut looked) = (Instant::now(), Instant::now());
    let mut cluster = None;
    while Instant::now() < end {
        if cluster.is_none() {
            let connected = timeout(WRITE, ClusterClient::connect(address)).await;
            cluster = connected.ok().and_then(Result::ok);
        }
        let mut command = redis::cmd("SET");
        command.arg(verify::writer_key(written)).arg(written);
        if answer(cluster.as_ref(), command).await == Some(Value::Okay) {
            written += 1;
            longest = longest.max(last.elapsed());
            last = Instant::now();
        } else {
            refused += 1;
            cluster = None;
            sleep(Duration::from_millis(100)).await;
        }
        if let Some(key) = until
            && looked.elapsed() > LOOK
        {
            looked = Instant::now();
            let mut exists = redis::cmd("EXISTS");
            exists.arg(key);
            if answer(cluster.as_ref(), exists).await == Some(Value::Int(1)) {
                break;
            }
        }
    }
    let found = verify::numbers(&connect(address).await?, written).await?;
    println!(
        "{written} writes acknowledged, {refused} refused, longest pause {:.1} s, {found} found",
        longest.as_secs_f64()
    );
    ensure!(
        written > 0 && found == written,
        "acknowledged writes are missing"
    );
    Ok(())
}

/// The reply to one command; none if it did not come in time.
async fn answer(cluster: Option<&ClusterClient>, command: Cmd) -> Option<Value> {
    let commands = [command];
    let replies = timeout(WRITE, cluster?.pipeline(&commands)).await;
    replies.ok()?.ok()?.into_iter().next()
}
