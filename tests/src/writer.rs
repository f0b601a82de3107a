//! A client that writes all the time and knows what it may read: it follows redirects as cluster clients do, and finds lost writes.

use crate::login::{self, ClientLogin};
use anyhow::{Context, Result, bail, ensure};
use common::cluster::slots::{SLOT_COUNT, Slot};
use redis::{Cmd, RedisError, Value, aio::MultiplexedConnection, cmd, pipe};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for one answer: longer than a server may be stopped by moving a large key.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest time for one command, whatever is tried.
const OUTAGE: Duration = Duration::from_secs(30);
/// Before the next attempt after a refusal.
const PAUSE: Duration = Duration::from_millis(10);
/// A node that gave no answer is not asked again for so long: others may know better by then.
const SUSPECTED: Duration = Duration::from_millis(500);

/// Refusals after which a client tries again.
const PASSING: [&str; 7] = [
    "TRYAGAIN",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "READONLY",
    "NOREPLICAS",
    "BUSY",
];

/// Under this word attempts without a reply are counted: they may have been carried out twice, or not at all.
const NO_REPLY: &str = "connection";

/// Attempts that were refused, other than by a redirect to a node, or not answered: by the first word of the error reply.
pub type Refusals = BTreeMap<String, u64>;

/// Sends single commands to whichever node serves their key.
pub struct RoutedClient {
    /// Always worth an attempt: nodes, or the address of a Service.
    seeds: Vec<SocketAddr>,
    /// Nodes that others have named.
    named: BTreeSet<SocketAddr>,
    routes: Vec<Option<SocketAddr>>,
    connections: HashMap<SocketAddr, MultiplexedConnection>,
    suspects: HashMap<SocketAddr, Instant>,
    answer: Duration,
    outage: Duration,
    login: Option<ClientLogin>,
    /// What each attempt that led to another one ended with.
    pub refusals: Refusals,
}

impl RoutedClient {
    /// A client that knows these nodes.
    pub fn new(seeds: Vec<SocketAddr>) -> Self {
        Self {
            seeds,
            named: BTreeSet::new(),
            routes: vec![None; usize::from(SLOT_COUNT)],
            connections: HashMap::new(),
            suspects: HashMap::new(),
            answer: ANSWER,
            outage: OUTAGE,
            login: None,
            refusals: Refusals::new(),
        }
    }

    /// Waits at most so long for one answer, and tries a command again for at most `outage`.
    #[must_use]
    pub fn patient(mut self, answer: Duration, outage: Duration) -> Self {
        (self.answer, self.outage) = (answer, outage);
        self
    }

    /// Logs in so.
    #[must_use]
    pub fn as_user(mut self, login: Option<ClientLogin>) -> Self {
        self.login = login;
        self
    }

    /// Sends a command about this key until it is answered.
    pub async fn send(&mut self, key: &str, command: &Cmd) -> Result<Value> {
        let slot = Slot::of_key(key.as_bytes()).index();
        let mut asked = None;
        let mut last = String::new();
        let begun = Instant::now();
        for attempt in 0.. {
            if begun.elapsed() > self.outage {
                break;
            }
            let known = asked.or(self.routes[slot]).filter(|at| !self.suspected(at));
            let address = known.unwrap_or_else(|| self.seed(attempt));
            let asking = asked.take().is_some() && known.is_some();
            let error = match self.ask(address, command, asking).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            last = error.to_string();
            match (error.code(), error.redirect_node()) {
                (Some(kind @ ("MOVED" | "ASK")), Some((node, _))) => {
                    // A server that does not know where the primary is now names none (`MOVED 866 :6379`).
                    let Ok(node) = node.parse() else {
                        self.count(kind);
                        self.routes[slot] = None;
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    };
                    self.named.insert(node);
                    if kind == "ASK" {
                        asked = Some(node);
                    } else {
                        self.routes[slot] = Some(node);
                    }
                    if self.suspected(&node) {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                (Some(code), _) if PASSING.contains(&code) => {
                    self.count(code);
                    // The next attempt asks another node, which may know better.
                    self.routes[slot] = None;
                    tokio::time::sleep(PAUSE).await;
                }
                (Some(_), _) => return Err(error).with_context(|| format!("about {key}")),
                (None, _) => {
                    self.count(NO_REPLY);
                    self.give_up(address);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        bail!("no answer about {key} within {:?}: {last}", self.outage)
    }

    /// The addresses that servers have sent it to.
    pub fn named(&self) -> &BTreeSet<SocketAddr> {
        &self.named
    }

    fn count(&mut self, code: &str) {
        *self.refusals.entry(code.to_owned()).or_default() += 1;
    }

    /// The next node to ask when none is known to serve a slot.
    fn seed(&self, attempt: usize) -> SocketAddr {
        let all = self.seeds.iter().chain(&self.named);
        let promising: Vec<&SocketAddr> = all.filter(|at| !self.suspected(at)).collect();
        match promising.len() {
            0 => self.seeds[attempt % self.seeds.len()],
            count => *promising[attempt % count],
        }
    }

    fn suspected(&self, address: &SocketAddr) -> bool {
        let since = self.suspects.get(address);
        since.is_some_and(|since| since.elapsed() < SUSPECTED)
    }

    /// A node gave no answer: its other slots are not asked of it either.
    fn give_up(&mut self, address: SocketAddr) {
        self.connections.remove(&address);
        self.suspects.insert(address, Instant::now());
        self.named.remove(&address);
        for route in &mut self.routes {
            if *route == Some(address) {
                *route = None;
            }
        }
    }

    async fn ask(
        &mut self,
        address: SocketAddr,
        command: &Cmd,
        asking: bool,
    ) -> Result<Value, RedisError> {
        let mut connection = match self.connections.get(&address) {
            Some(connection) => connection.clone(),
            None => login::connect(address, self.login.as_ref(), self.answer).await?,
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

/// A writer that runs until it is ended.
pub struct Writer {
    stop: CancellationToken,
    task: JoinHandle<Result<WriterReport>>,
    login: Option<ClientLogin>,
}

/// What a writer did and saw.
#[derive(Debug, Default)]
pub struct WriterReport {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Attempts that were refused or not answered.
    pub refusals: Refusals,
    /// The longest time between two acknowledgements.
    pub longest_gap: Duration,
    /// Reads that returned another value than the last acknowledged one.
    pub wrong: Vec<String>,
    /// The last acknowledged number of each key, and the newest one that was sent.
    values: BTreeMap<u64, (u64, u64)>,
}

/// What clients are answered while a pod is replaced, or [`NO_REPLY`].
const OF_A_REPLACEMENT: [&str; 6] = [
    NO_REPLY,
    "CLUSTERDOWN",
    "TRYAGAIN",
    "LOADING",
    "MASTERDOWN",
    "READONLY",
];

impl WriterReport {
    /// Fails where a read was wrong, or no more writes than this were acknowledged.
    pub fn is_right(&self, least: u64) -> Result<()> {
        println!("{} writes, {:?}", self.acknowledged, self.longest_gap);
        ensure!(self.wrong.is_empty(), "{:?}", self.wrong);
        ensure!(self.acknowledged > least, "{}", self.acknowledged);
        Ok(())
    }

    /// Fails where attempts were refused otherwise than because a pod was replaced.
    pub fn only_of_replacements(&self) -> Result<()> {
        let mut refusals = self.refusals.keys();
        let passes = refusals.all(|word| OF_A_REPLACEMENT.contains(&word.as_str()));
        ensure!(passes, "{:?}", self.refusals);
        Ok(())
    }
}

impl Writer {
    /// Starts to write numbers that only grow into `keys` keys, and reads each back now and then.
    pub fn start(seeds: Vec<SocketAddr>, keys: u64) -> Self {
        Self::start_as(None, seeds, keys)
    }

    /// The same as a user.
    pub fn start_as(login: Option<ClientLogin>, seeds: Vec<SocketAddr>, keys: u64) -> Self {
        let stop = CancellationToken::new();
        let client = RoutedClient::new(seeds).as_user(login.clone());
        let task = tokio::spawn(write(client, keys, stop.clone()));
        Self { stop, task, login }
    }

    /// Ends the writer, and then reads every key once more.
    pub async fn end(self, seeds: Vec<SocketAddr>) -> Result<WriterReport> {
        self.stop.cancel();
        let mut report = self.task.await??;
        let mut client = RoutedClient::new(seeds).as_user(self.login);
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
        report.refusals.clone_from(&client.refusals);
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
