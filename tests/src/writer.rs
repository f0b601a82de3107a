//! A client that writes all the time and knows what it may read: it follows redirects as cluster clients do, and finds lost writes.

use anyhow::{Context, Result, bail};
use common::cluster::slots::{SLOT_COUNT, Slot};
use redis::{
    AsyncConnectionConfig, Client, Cmd, RedisError, Value, aio::MultiplexedConnection, cmd, pipe,
};
use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for one answer: longer than a server may be stopped by moving a large key.
const ANSWER: Duration = Duration::from_secs(5);
/// Redirects and refusals that one command may meet.
const ATTEMPTS: u32 = 400;
const PAUSE: Duration = Duration::from_millis(10);

/// Sends single commands to whichever node serves their key.
pub struct RoutedClient {
    seeds: Vec<SocketAddr>,
    routes: Vec<Option<SocketAddr>>,
    connections: HashMap<SocketAddr, MultiplexedConnection>,
    /// Commands sent again after an answer that was none: they may have been carried out twice, or not at all.
    pub uncertain: u64,
}

impl RoutedClient {
    /// A client that knows these nodes.
    pub fn new(seeds: Vec<SocketAddr>) -> Self {
        Self {
            seeds,
            routes: vec![None; usize::from(SLOT_COUNT)],
            connections: HashMap::new(),
            uncertain: 0,
        }
    }

    /// Sends a command about this key until it is answered.
    pub async fn send(&mut self, key: &str, command: &Cmd) -> Result<Value> {
        let slot = Slot::of_key(key.as_bytes()).index();
        let mut asked = None;
        let mut last = String::new();
        for attempt in 0..ATTEMPTS {
            let seed = self.seeds[attempt as usize % self.seeds.len()];
            let address = asked.or(self.routes[slot]).unwrap_or(seed);
            let error = match self.ask(address, command, asked.take().is_some()).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            last = error.to_string();
            match (error.code(), error.redirect_node()) {
                (Some("MOVED"), Some((node, _))) => self.routes[slot] = Some(node.parse()?),
                (Some("ASK"), Some((node, _))) => asked = Some(node.parse()?),
                (Some("TRYAGAIN" | "CLUSTERDOWN" | "LOADING" | "MASTERDOWN"), _) => {
                    tokio::time::sleep(PAUSE).await;
                }
                (Some(_), _) => return Err(error).with_context(|| format!("about {key}")),
                (None, _) => {
                    self.uncertain += 1;
                    self.connections.remove(&address);
                    self.routes[slot] = None;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        bail!("no answer about {key}: {last}")
    }

    async fn ask(
        &mut self,
        address: SocketAddr,
        command: &Cmd,
        asking: bool,
    ) -> Result<Value, RedisError> {
        let mut connection = match self.connections.get(&address) {
            Some(connection) => connection.clone(),
            None => open(address).await?,
        };
        self.connections.insert(address, connection.clone());
        if asking {
            let mut commands = pipe();
            commands.cmd("ASKING").ignore();
            commands.add_command(command.clone());
            let (value,): (Value,) = commands.query_async(&mut connection).await?;
            return Ok(value);
        }
        command.query_async(&mut connection).await
    }
}

async fn open(address: SocketAddr) -> Result<MultiplexedConnection, RedisError> {
    let client = Client::open(format!("redis://{address}"))?;
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(ANSWER))
        .set_response_timeout(Some(ANSWER));
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

/// A writer that runs until it is ended.
pub struct Writer {
    stop: CancellationToken,
    task: JoinHandle<Result<WriterReport>>,
}

/// What a writer did and saw.
#[derive(Debug, Default)]
pub struct WriterReport {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// The longest time between two acknowledgements.
    pub longest_gap: Duration,
    /// Reads that returned another value than the last acknowledged one.
    pub wrong: Vec<String>,
    /// The last acknowledged number of each key, and the newest one that was sent.
    values: BTreeMap<u64, (u64, u64)>,
}

impl Writer {
    /// Starts to write numbers that only grow into `keys` keys, and reads each back now and then.
    pub fn start(seeds: Vec<SocketAddr>, keys: u64) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(write(RoutedClient::new(seeds), keys, stop.clone()));
        Self { stop, task }
    }

    /// Ends the writer, and then reads every key once more.
    pub async fn end(self, seeds: Vec<SocketAddr>) -> Result<WriterReport> {
        self.stop.cancel();
        let mut report = self.task.await??;
        let mut client = RoutedClient::new(seeds);
        for number in report.values.keys().copied().collect::<Vec<_>>() {
            read(&mut client, number, &mut report).await?;
        }
        Ok(report)
    }
}

fn key(number: u64) -> String {
    format!("written:{number}")
}

async fn write(
    mut client: RoutedClient,
    keys: u64,
    stop: CancellationToken,
) -> Result<WriterReport> {
    let mut report = WriterReport::default();
    let mut last = Instant::now();
    let mut value = 0;
    while !stop.is_cancelled() {
        value += 1;
        let number = value % keys;
        let entry = report.values.entry(number).or_insert((0, 0));
        entry.1 = value;
        let mut command = cmd("SET");
        command.arg(key(number)).arg(value);
        client.send(&key(number), &command).await?;
        report.values.insert(number, (value, value));
        report.acknowledged += 1;
        report.longest_gap = report.longest_gap.max(last.elapsed());
        last = Instant::now();
        if value % 3 == 0 {
            read(&mut client, value.wrapping_mul(7919) % keys, &mut report).await?;
            last = Instant::now();
        }
        // Leaves the two cores to the servers.
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    Ok(report)
}

/// Compares a key with what was written. A write without an acknowledgement may have been carried out.
async fn read(client: &mut RoutedClient, number: u64, report: &mut WriterReport) -> Result<()> {
    let Some((acknowledged, sent)) = report.values.get(&number).copied() else {
        return Ok(());
    };
    let mut command = cmd("GET");
    command.arg(key(number));
    let found = client.send(&key(number), &command).await?;
    let found: Option<u64> = redis::from_redis_value(found)?;
    if !found.is_some_and(|found| (acknowledged..=sent).contains(&found)) {
        report.wrong.push(format!(
            "{}: {found:?} instead of {acknowledged}",
            key(number)
        ));
    }
    Ok(())
}
