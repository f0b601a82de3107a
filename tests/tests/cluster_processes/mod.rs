//! Real redis-server processes that make one cluster, each at an address of its own that can change.

#![allow(dead_code)] // each suite uses a part of it

use anyhow::{Context, Result, bail, ensure};
use cluster_controller::redis::member::Place;
use common::cluster::{
    node::NodeClient,
    slots::Slot,
    topology::{NodeAddress, NodeId, NodesView},
};
use k8s_openapi::jiff::Timestamp;
use redis::{cmd, pipe};
use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU8, AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// The node timeout of these clusters.
pub const NODE_TIMEOUT: Duration = Duration::from_millis(1500);
const TIMEOUT: Duration = Duration::from_secs(2);

/// Whether data outlives a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// The append-only file.
    AppendOnly,
    /// Memory only.
    None,
}

struct Server {
    address: NodeAddress,
    dir: PathBuf,
    child: Option<Child>,
    down_since: Option<Timestamp>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The processes of one cluster.
pub struct Cluster {
    servers: Vec<Server>,
    shards: usize,
    replicas: usize,
    persistence: Persistence,
}

impl Cluster {
    /// Starts the processes; they do not know each other yet.
    pub async fn start(shards: usize, replicas: usize, persistence: Persistence) -> Result<Self> {
        let addresses: Result<Vec<_>> = (0..shards * (1 + replicas))
            .map(|_| free_address())
            .collect();
        Self::start_at(addresses?, shards, persistence).await
    }

    /// Starts a process at each of these addresses, shard by shard.
    pub async fn start_at(
        addresses: Vec<NodeAddress>,
        shards: usize,
        persistence: Persistence,
    ) -> Result<Self> {
        let mut cluster = Self {
            servers: Vec::new(),
            shards,
            replicas: addresses.len() / shards - 1,
            persistence,
        };
        for address in addresses {
            cluster.servers.push(Server {
                address,
                dir: new_dir()?,
                child: None,
                down_since: None,
            });
        }
        cluster.restart_all().await?;
        Ok(cluster)
    }

    pub fn replicas(&self) -> usize {
        self.replicas
    }

    pub fn persistence(&self) -> Persistence {
        self.persistence
    }

    fn shard(&self, index: usize) -> usize {
        index / (1 + self.replicas)
    }

    /// The places as the controller is told of them.
    pub fn places(&self) -> Vec<Place> {
        let places = self.servers.iter().enumerate().map(|(index, server)| {
            let (shard, ordinal) = (self.shard(index), index % (1 + self.replicas));
            Place {
                pod: format!("test-{shard}-{ordinal}"),
                shard,
                ordinal,
                address: Some(server.address),
                machine: None,
                leaving: false,
                down_since: server.down_since,
            }
        });
        places.collect()
    }

    pub fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.servers[index].child.take() {
            child.kill().unwrap(); // SIGKILL
            child.wait().unwrap();
        }
    }

    pub fn kill_all(&mut self) {
        for index in 0..self.servers.len() {
            self.kill(index);
        }
    }

    pub fn mark_down(&mut self, servers: &[usize]) {
        self.mark_down_since(servers, Timestamp::now());
    }

    /// What Kubernetes says of servers that do not answer.
    pub fn mark_down_since(&mut self, servers: &[usize], since: Timestamp) {
        for index in servers {
            self.servers[*index].down_since = Some(since);
        }
    }

    /// Gives a server that is down another address.
    pub fn move_one(&mut self, index: usize) -> Result<()> {
        self.servers[index].address = free_address()?;
        Ok(())
    }

    pub fn move_all(&mut self) -> Result<()> {
        (0..self.servers.len()).try_for_each(|index| self.move_one(index))
    }

    /// Gives every server the address of another one.
    pub fn rotate_addresses(&mut self) {
        let mut addresses: Vec<_> = self.servers.iter().map(|server| server.address).collect();
        addresses.rotate_right(1);
        for (server, address) in self.servers.iter_mut().zip(addresses) {
            server.address = address;
        }
    }

    /// Takes a server's files away.
    pub fn wipe(&mut self, index: usize) -> Result<()> {
        std::fs::remove_dir_all(&self.servers[index].dir)?;
        std::fs::create_dir(&self.servers[index].dir)?;
        Ok(())
    }

    pub fn wipe_all(&mut self) -> Result<()> {
        (0..self.servers.len()).try_for_each(|index| self.wipe(index))
    }

    /// Starts a server that is down, as the pod's start script would.
    pub async fn restart(&mut self, index: usize) -> Result<()> {
        let persistence = self.persistence;
        let server = &mut self.servers[index];
        server.child = Some(spawn(&server.address, &server.dir, persistence, &[])?);
        server.down_since = None;
        let address = server.address;
        eventually("a server answers", async || {
            let Ok(node) = NodeClient::connect(address.client(), TIMEOUT).await else {
                return Ok(false);
            };
            Ok(node.nodes().await.is_ok())
        })
        .await
    }

    /// Starts a server that is down and takes this long to load each of its keys. It is not waited for, and stays marked as down.
    pub fn start_slowly(&mut self, index: usize, each: Duration) -> Result<()> {
        let persistence = self.persistence;
        let delay = each.as_micros().to_string();
        let slowly = [
            "--key-load-delay",
            &delay,
            "--loading-process-events-interval-bytes",
            "1024",
        ];
        let server = &mut self.servers[index];
        server.child = Some(spawn(&server.address, &server.dir, persistence, &slowly)?);
        Ok(())
    }

    /// Lets a server write its append-only file anew, so that all its keys are in one piece.
    pub async fn rewrite(&self, index: usize) -> Result<()> {
        let node = self.node(index).await?;
        let _: redis::Value = node.ask("BGREWRITEAOF", &cmd("BGREWRITEAOF")).await?;
        eventually("the file is written", async || {
            let info = node.info(Some("persistence")).await?;
            Ok(!info.flag("aof_rewrite_in_progress") && !info.flag("aof_rewrite_scheduled"))
        })
        .await
    }

    pub async fn restart_all(&mut self) -> Result<()> {
        for index in 0..self.servers.len() {
            self.restart(index).await?;
        }
        Ok(())
    }

    async fn node(&self, index: usize) -> Result<NodeClient> {
        let address = self.servers[index].address.client();
        Ok(NodeClient::connect(address, TIMEOUT).await?)
    }

    /// Whether a server was ever sent this command, for example `cluster|addslots`.
    pub async fn was_sent(&self, index: usize, command: &str) -> Result<bool> {
        let stats = self.node(index).await?.info(Some("commandstats")).await?;
        Ok(stats.get(&format!("cmdstat_{command}")).is_some())
    }

    async fn views(&self) -> Vec<(usize, NodesView)> {
        let mut views = Vec::new();
        for index in 0..self.servers.len() {
            if let Ok(node) = self.node(index).await
                && let Ok(view) = node.nodes().await
            {
                views.push((index, view));
            }
        }
        views
    }

    /// What every node says, for a failure.
    pub async fn tables(&self) -> String {
        let mut text = String::new();
        for index in 0..self.servers.len() {
            let table: Result<String> = async {
                let node = self.node(index).await?;
                let mut command = cmd("CLUSTER");
                Ok(node.ask("CLUSTER NODES", command.arg("NODES")).await?)
            }
            .await;
            let address = self.servers[index].address;
            let table = table.unwrap_or_else(|error| error.to_string());
            text.extend([address.to_string(), "\n".into(), table, "\n".into()]);
        }
        text
    }

    pub async fn ids(&self) -> Result<Vec<NodeId>> {
        let mut ids = Vec::new();
        for index in 0..self.servers.len() {
            ids.push(self.node(index).await?.my_id().await?);
        }
        Ok(ids)
    }

    /// Index of the server that owns the shard's slots, by its own word.
    pub async fn primary_of(&self, shard: usize) -> Result<usize> {
        let owners: Vec<(u64, usize)> = self
            .views()
            .await
            .into_iter()
            .filter(|(index, view)| {
                self.shard(*index) == shard
                    && view.myself().is_primary()
                    && !view.myself().slots.is_empty()
            })
            .map(|(index, view)| (view.myself().config_epoch, index))
            .collect();
        let (_, index) = owners.into_iter().max().context("no primary")?;
        Ok(index)
    }

    pub async fn replica_of(&self, shard: usize) -> Result<usize> {
        let (index, _) = self
            .views()
            .await
            .into_iter()
            .find(|(index, view)| self.shard(*index) == shard && view.myself().is_replica())
            .context("no replica")?;
        Ok(index)
    }

    /// Writes `count` keys, each on the owner of its slot.
    pub async fn fill(&self, count: usize) -> Result<()> {
        for shard in 0..self.shards {
            let index = self.primary_of(shard).await?;
            let node = self.node(index).await?;
            let slots = node.nodes().await?.myself().slots.clone();
            let mut commands = pipe();
            for (key, value) in
                keys(count).filter(|(key, _)| slots.contains(Slot::of_key(key.as_bytes())))
            {
                commands.cmd("SET").arg(key).arg(value).ignore();
            }
            node.ask_all::<()>("SET", &commands).await?;
        }
        Ok(())
    }

    /// Waits until every replica has everything its primary has written.
    pub async fn replicated(&self) -> Result<()> {
        for shard in 0..self.shards {
            let node = self.node(self.primary_of(shard).await?).await?;
            let mut wait = cmd("WAIT");
            wait.arg(self.replicas).arg(1500);
            let reached: usize = node.ask("WAIT", &wait).await?;
            ensure!(
                reached >= self.replicas,
                "shard {shard}: WAIT reached {reached}"
            );
        }
        Ok(())
    }

    /// Proves that every key is there with its value.
    pub async fn check(&self, count: usize) -> Result<()> {
        let mut seen = HashSet::new();
        for shard in 0..self.shards {
            let node = self.node(self.primary_of(shard).await?).await?;
            let slots = node.nodes().await?.myself().slots.clone();
            let wanted: Vec<_> = keys(count)
                .filter(|(key, _)| slots.contains(Slot::of_key(key.as_bytes())))
                .collect();
            let mut commands = pipe();
            for (key, _) in &wanted {
                commands.cmd("GET").arg(key);
            }
            let values: Vec<Option<String>> = node.ask_all("GET", &commands).await?;
            for ((key, value), found) in wanted.into_iter().zip(values) {
                ensure!(
                    found.as_ref() == Some(&value),
                    "{key}: {found:?} instead of {value}"
                );
                seen.insert(key);
            }
        }
        if seen.len() != count {
            bail!(
                "{} keys of {count} are in slots that have an owner",
                seen.len()
            );
        }
        Ok(())
    }
}

fn keys(count: usize) -> impl Iterator<Item = (String, String)> {
    (0..count).map(|number| (format!("key:{number}"), format!("value {number}")))
}

/// Waits for a condition, for at most 30 s.
pub async fn eventually(what: &str, condition: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !condition().await? {
        ensure!(
            start.elapsed() < Duration::from_secs(30),
            "not in time: {what}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// An address of 127.0.0.0/8 with two free ports.
fn free_address() -> Result<NodeAddress> {
    static LAST: AtomicU8 = AtomicU8::new(1);
    for _ in 0..200 {
        let last = LAST.fetch_add(1, Ordering::Relaxed).clamp(2, 250);
        let ip = Ipv4Addr::new(127, 0, 7, last);
        let port = TcpListener::bind((ip, 0))?.local_addr()?.port();
        if port < 55_000 && TcpListener::bind((ip, port + 10_000)).is_ok() {
            return Ok(NodeAddress::new(IpAddr::V4(ip), port));
        }
    }
    bail!("no free ports on 127.0.7.x")
}

fn new_dir() -> Result<PathBuf> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("cluster-redis-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn spawn(
    address: &NodeAddress,
    dir: &Path,
    persistence: Persistence,
    options: &[&str],
) -> Result<Child> {
    let ip = address.ip.to_string();
    let blank = !dir.join("nodes.conf").exists();
    // Whatever becomes of the test, its servers end with its thread.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "redis-server"])
        .args(["--bind", &ip, "--port", &address.port.to_string()])
        .args(["--dir", &dir.display().to_string()])
        .args(["--protected-mode", "no", "--save", ""])
        .args(["--cluster-enabled", "yes", "--cluster-announce-ip", &ip])
        .args([
            "--cluster-node-timeout",
            &NODE_TIMEOUT.as_millis().to_string(),
        ])
        .args(["--cluster-allow-replica-migration", "no"])
        .args([
            "--repl-diskless-sync",
            "yes",
            "--repl-diskless-sync-delay",
            "0",
        ])
        .args(match persistence {
            Persistence::AppendOnly => ["--appendonly", "yes"],
            Persistence::None => ["--appendonly", "no"],
        })
        .args(options);
    if blank {
        command.args([
            "--user", "default", "on", "nopass", "~*", "&*", "+@all", "-psync", "-sync",
        ]);
    }
    let log = std::fs::File::create(dir.join("log"))?;
    command
        .stdout(log)
        .stderr(Stdio::null())
        .stdin(Stdio::null());
    let spawned = command.spawn();
    spawned.context("cannot start redis-server (and setpriv of util-linux)")
}
