//! What the demonstration does to a cluster: fill it, keep writing to it, and compare it with another one.

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use redis::Value;
use std::time::{Duration, Instant};
use tests::{client::ClusterClient, dataset};

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
    /// Writes numbered keys `writer:<n>` one after the other until the time is over, and says how it went.
    Write {
        address: String,
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Compares every key, value and time of expiry that starts with the prefix.
    Compare {
        wanted: String,
        found: String,
        #[arg(long, default_value = "data:")]
        prefix: String,
    },
    /// Counts the keys of `fill`.
    Check {
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
        Action::Write { address, seconds } => write(&address, Duration::from_secs(seconds)).await?,
        Action::Compare {
            wanted,
            found,
            prefix,
        } => {
            let (wanted, found) = (connect(&wanted).await?, connect(&found).await?);
            let comparison = dataset::compare(&wanted, &found, &prefix).await?;
            println!(
                "{} keys compared, {} different",
                comparison.keys, comparison.different
            );
            for sentence in &comparison.differences {
                println!("  {sentence}");
            }
            ensure!(
                comparison.different == 0 && comparison.keys > 0,
                "the clusters differ"
            );
        }
        Action::Check { address, keys } => {
            let found = connect(&address).await?.scan("data:").await?.len() as u64;
            println!("{found} of {keys} keys found");
            ensure!(found == keys, "keys are missing");
        }
    }
    Ok(())
}

/// Connects as patient clients do: the address of a Service reaches every node a moment after its pods are ready.
async fn connect(address: &str) -> Result<ClusterClient> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match ClusterClient::connect(address).await {
            Err(_) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            connected => return connected,
        }
    }
}

/// Writes until the time is over; what a server acknowledged has to be there at the end.
async fn write(address: &str, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    let (mut written, mut refused, mut longest) = (0_u64, 0_u64, Duration::ZERO);
    let mut last = Instant::now();
    let mut cluster = None;
    while Instant::now() < end {
        if cluster.is_none() {
            cluster = ClusterClient::connect(address).await.ok();
        }
        let mut command = redis::cmd("SET");
        command.arg(format!("writer:{written}")).arg(written);
        let answer = match &cluster {
            Some(cluster) => cluster.pipeline(std::slice::from_ref(&command)).await.ok(),
            None => None,
        };
        if answer.is_some_and(|values| values.first() == Some(&Value::Okay)) {
            written += 1;
            longest = longest.max(last.elapsed());
            last = Instant::now();
        } else {
            refused += 1;
            cluster = None;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let found = connect(address).await?.scan("writer:").await?.len() as u64;
    println!(
        "{written} writes acknowledged, {refused} refused, longest pause {:.1} s, {found} found",
        longest.as_secs_f64()
    );
    ensure!(found >= written, "acknowledged writes are missing");
    Ok(())
}
