//! Servers that are made up: a process that answers as the nodes of formed clusters would, for suites that need more of them than the machine
//! could run. They take settings, and nothing else happens in them.

mod answers;

use answers::{Cluster, serve};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    env,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::net::TcpListener;

/// Says to this program that it is to be the servers.
const MADE_UP: &str = "MADE_UP_SERVERS";
/// What each line of theirs begins with: the test harness writes others.
const ANSWER: &str = "made up: ";

/// A cluster that was formed long ago.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MadeUpCluster {
    /// Part of the names of its nodes.
    pub name: String,
    /// Part of the host names that its nodes announce.
    pub namespace: String,
    /// Nodes of each shard: the first is the primary, the others are its replicas.
    pub per_shard: usize,
    /// Ranges of slots that each primary has.
    pub ranges: usize,
    /// Shard by shard.
    pub nodes: Vec<MadeUpNode>,
}

/// A server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MadeUpNode {
    /// Where it listens; port 0 is any.
    pub address: SocketAddr,
    /// What it says of its pod; may be empty.
    pub proof: String,
}

/// The id of a node: the same wherever it listens.
pub fn node_id(cluster: &str, index: usize) -> String {
    let letters = cluster.bytes().fold(0_u64, |all, byte| {
        all.wrapping_mul(131).wrapping_add(byte.into())
    });
    format!("{letters:020x}{:020x}", index + 1)
}

/// What their process is given.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// These clusters answer nothing, all others do.
    Hang(Vec<usize>),
    /// Say how many milliseconds ago each cluster was last asked and all its nodes have answered.
    Ages,
}

/// The process of the servers. It ends with this value.
pub struct MadeUpServers {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Where each cluster's nodes listen.
    pub addresses: Vec<Vec<SocketAddr>>,
}

impl MadeUpServers {
    /// Starts them all. The test has to begin with [`be_servers`].
    pub fn start(clusters: &[MadeUpCluster]) -> Result<Self> {
        let mut process = Command::new(env::current_exe()?)
            .arg("--nocapture")
            .env(MADE_UP, "yes")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = process.stdin.take().context("no input")?;
        let output = process.stdout.take().context("no output")?;
        let mut servers = Self {
            process,
            orders,
            answers: BufReader::new(output),
            addresses: Vec::new(),
        };
        servers.addresses = servers.ask(&clusters)?;
        Ok(servers)
    }

    /// From now on these clusters answer nothing, and all others do.
    pub fn hang(&mut self, clusters: Vec<usize>) -> Result<()> {
        self.ask(&Order::Hang(clusters))
    }

    /// How long ago the nodes of each cluster were last asked, and answered.
    pub fn ages(&mut self) -> Result<Vec<Duration>> {
        let ages: Vec<u64> = self.ask(&Order::Ages)?;
        Ok(ages.into_iter().map(Duration::from_millis).collect())
    }

    fn ask<A: DeserializeOwned>(&mut self, order: &impl Serialize) -> Result<A> {
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        self.orders.write_all(line.as_bytes())?;
        self.orders.flush()?;
        loop {
            line.clear();
            let read = self.answers.read_line(&mut line)?;
            ensure!(read > 0, "the made up servers have ended");
            // The harness may have begun the line.
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return Ok(serde_json::from_str(answer)?);
            }
        }
    }
}

impl Drop for MadeUpServers {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// In the process that is to be the servers: is them, until its input ends. Whether this is that process.
pub fn be_servers() -> Result<bool> {
    if env::var_os(MADE_UP).is_none() {
        return Ok(false);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let mut orders = std::io::stdin().lines();
    let first = orders.next().context("no clusters")??;
    let wanted: Vec<MadeUpCluster> = serde_json::from_str(&first)?;
    let (clusters, addresses) = runtime.block_on(listen(wanted))?;
    say(&addresses)?;
    for order in orders {
        match serde_json::from_str(&order?)? {
            Order::Hang(hanging) => {
                for (index, cluster) in clusters.iter().enumerate() {
                    cluster.hang(hanging.contains(&index));
                }
                say(&())?;
            }
            Order::Ages => {
                let now = Instant::now();
                let ages = clusters.iter().map(|cluster| cluster.age(now).as_millis());
                say(&ages.collect::<Vec<_>>())?;
            }
        }
    }
    Ok(true)
}

async fn listen(wanted: Vec<MadeUpCluster>) -> Result<(Vec<Arc<Cluster>>, Vec<Vec<SocketAddr>>)> {
    let (mut clusters, mut addresses) = (Vec::new(), Vec::new());
    for cluster in wanted {
        let mut listeners = Vec::new();
        for node in &cluster.nodes {
            let listener = TcpListener::bind(node.address).await;
            listeners.push(listener.with_context(|| format!("cannot listen at {}", node.address))?);
        }
        let bound = listeners.iter().map(TcpListener::local_addr);
        let bound: Vec<SocketAddr> = bound.collect::<Result<_, _>>()?;
        let cluster = Arc::new(Cluster::new(&cluster, &bound));
        for (index, listener) in listeners.into_iter().enumerate() {
            tokio::spawn(serve(listener, index, Arc::clone(&cluster)));
        }
        clusters.push(cluster);
        addresses.push(bound);
    }
    Ok((clusters, addresses))
}

fn say(answer: &impl Serialize) -> Result<()> {
    let mut output = std::io::stdout();
    writeln!(output, "\n{ANSWER}{}", serde_json::to_string(answer)?)?;
    Ok(output.flush()?)
}
