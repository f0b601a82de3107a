//! What the demonstration does to a cluster: fill it, keep writing to it, and compare it with another one.

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use common::cluster::transport::{TlsAccess, Transport};
use crds::{Encryption, FOLDER_CERTIFICATES, KEY_ENCRYPTION};
use redis::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};
use tests::{
    client::ClusterClient,
    dataset::{self, Comparison},
    login::ClientLogin,
    scenario::Writes,
    verify,
    wait::within,
    writer::RoutedClient,
};
use tokio::time::timeout;

/// Longest wait for a connection: kube-proxy follows the endpoints of a Service within a second or two. A Service that leads nowhere for
/// longer is a failure.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for one attempt of that.
const ATTEMPT: Duration = Duration::from_secs(1);
/// Longest wait of the writer for one answer or connection: a node without its cable never answers.
const ANSWER: Duration = Duration::from_millis(500);
/// Longest time in which the writer tries one write again and again.
const OUTAGE: Duration = Duration::from_mins(4);
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
    /// Writes numbered keys `<prefix>:<n>` one after the other until the time is over, as a client that follows redirects and tries again,
    /// and reports how it went: fails if an acknowledged one is missing.
    Write {
        address: String,
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        #[arg(long, default_value = "writer")]
        prefix: String,
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
            prefix,
            until,
        } => {
            let time = Duration::from_secs(seconds);
            let writes = write(&address, &prefix, time, until.as_deref()).await?;
            println!("{writes}");
            ensure!(
                writes.acknowledged > 0 && writes.found == writes.acknowledged,
                "acknowledged writes are missing"
            );
        }
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
    let login = ClientLogin::encrypted(transport()?);
    let address = &entrance(address, &login)?;
    within(CONNECT, "the cluster accepts connections", async || {
        // The Service may still lead to a node without its cable, which never answers.
        let attempt = timeout(ATTEMPT, ClusterClient::connect_as(address, &login)).await;
        attempt.context("no connection within a second")?.map(Some)
    })
    .await
}

/// Whether the cluster encrypts: its certificates are mounted then.
fn transport() -> Result<Transport> {
    let folder = Path::new(FOLDER_CERTIFICATES);
    let file = folder.join(KEY_ENCRYPTION);
    let encryption = fs::read_to_string(file).unwrap_or_default();
    if !Encryption::parse(&encryption).is_some_and(Encryption::is_used) {
        return Ok(Transport::Plain);
    }
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file()
            && let Some(name) = path.file_name()
        {
            files.insert(name.to_string_lossy().into_owned(), fs::read(&path)?);
        }
    }
    Ok(Transport::Tls(TlsAccess::from_files(&files)?))
}

/// The same host, at the port for this.
fn entrance(address: &str, login: &ClientLogin) -> Result<String> {
    let (host, port) = address.rsplit_once(':').context("no port")?;
    Ok(match &login.transport {
        Transport::Plain => format!("{host}:{port}"),
        encrypted @ Transport::Tls(_) => format!("{host}:{}", encrypted.port()),
    })
}

/// Writes until the time is over or the key exists; what a server acknowledged has to be there at the end, with its value.
async fn write(address: &str, prefix: &str, time: Duration, until: Option<&str>) -> Result<Writes> {
    let login = ClientLogin::encrypted(transport()?);
    let address = &entrance(address, &login)?;
    let entrance = within(CONNECT, "the name of the cluster is known", async || {
        Ok(tokio::net::lookup_host(address).await?.next())
    });
    let mut client = RoutedClient::new(vec![entrance.await?])
        .as_user(Some(login))
        .patient(ANSWER, OUTAGE);
    let end = Instant::now() + time;
    let (mut written, mut longest) = (0_u64, Duration::ZERO);
    let (mut last, mut looked) = (Instant::now(), Instant::now());
    while Instant::now() < end {
        let key = verify::writer_key(prefix, written);
        let mut command = redis::cmd("SET");
        command.arg(&key).arg(written);
        client.send(&key, &command).await?;
        written += 1;
        longest = longest.max(last.elapsed());
        last = Instant::now();
        if let Some(key) = until
            && looked.elapsed() > LOOK
        {
            looked = Instant::now();
            let mut exists = redis::cmd("EXISTS");
            exists.arg(key);
            if client.send(key, &exists).await? == Value::Int(1) {
                break;
            }
        }
    }
    Ok(Writes {
        acknowledged: written,
        refusals: client.refusals,
        longest_gap: longest,
        found: verify::numbers(&connect(address).await?, prefix, written).await?,
    })
}
