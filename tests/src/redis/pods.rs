//! The servers of one cluster as its pods run them, each at an address that can change. A controller forms the cluster.

use super::{
    MountedUsers, PodFiles, PodStorage, RedisServer,
    commands::{executed, refuse_destruction},
    free_address,
};
use crate::{
    drive::EarlierLooks,
    login::ClientLogin,
    servers::{self, ServerProgram},
    wait::eventually,
};
use anyhow::{Context, Result, bail, ensure};
use cluster_controller::redis::{
    identity::KnownNodes,
    member::{ExpectedNode, Hostname, ProcessEvidence, Wanted, ZoneLabel},
};
use common::cluster::{
    info::Info,
    slots::{Slot, SlotSet},
    topology::{NodeAddress, NodeId, NodesView},
};
use k8s_openapi::jiff::Timestamp;
use redis::pipe;
use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// The node timeout of these clusters.
pub const NODE_TIMEOUT: Duration = Duration::from_millis(1500);

struct PodServer {
    server: RedisServer,
    down_since: Option<Timestamp>,
    kubernetes_node: Option<String>,
    /// Whether Kubernetes does not know that a server which is down has ended.
    doubtful: bool,
}

/// The servers of three shards, shard by shard.
pub struct PodCluster {
    pods: Vec<PodServer>,
    replicas: usize,
    storage: PodStorage,
    known: Mutex<KnownNodes>,
    looks: EarlierLooks,
}

/// What must outlive every loss: the slots of each shard. Keys and values follow from [`PodCluster::fill`].
#[derive(Clone, Debug, PartialEq)]
pub struct ShardSlots(Vec<SlotSet>);

impl ShardSlots {
    /// The slots of a shard's primary.
    pub fn shard(&self, shard: usize) -> &SlotSet {
        &self.0[shard]
    }
}

impl PodCluster {
    /// Shards of every cluster.
    pub const SHARDS: usize = 3;

    /// Starts the servers; they do not know each other yet.
    pub async fn start(replicas: usize, storage: PodStorage) -> Result<Self> {
        Self::start_program(replicas, storage, &servers::selected()?).await
    }

    /// The same, with this program.
    pub async fn start_program(
        replicas: usize,
        storage: PodStorage,
        program: &ServerProgram,
    ) -> Result<Self> {
        let count = Self::SHARDS * (1 + replicas);
        let addresses: Result<Vec<_>> = (0..count).map(|_| free_address()).collect();
        let users = MountedUsers::Own;
        Self::start_all(addresses?, storage, (program, users)).await
    }

    /// Starts a server at each of these addresses, shard by shard.
    pub async fn start_at(
        addresses: Vec<SocketAddr>,
        storage: PodStorage,
        users: MountedUsers,
    ) -> Result<Self> {
        Self::start_all(addresses, storage, (&servers::selected()?, users)).await
    }

    async fn start_all(
        addresses: Vec<SocketAddr>,
        storage: PodStorage,
        (program, users): (&ServerProgram, MountedUsers),
    ) -> Result<Self> {
        let replicas = addresses.len() / Self::SHARDS - 1;
        let files = PodFiles::render(storage, replicas, NODE_TIMEOUT)?;
        let mut cluster = Self {
            pods: Vec::new(),
            replicas,
            storage,
            known: Mutex::default(),
            looks: EarlierLooks::default(),
        };
        for address in addresses {
            let mut server = RedisServer::pod(address, files.clone())?;
            server.set_program(program);
            server.mount(users.clone());
            cluster.pods.push(PodServer {
                server,
                down_since: None,
                kubernetes_node: None,
                doubtful: false,
            });
        }
        cluster.restart_all().await?;
        Ok(cluster)
    }

    /// What is wanted of it.
    pub fn wanted(&self, formed_before: bool) -> Wanted {
        let is_kept = self.storage == PodStorage::Volume;
        Wanted {
            formed_before,
            ..Wanted::new((Self::SHARDS, self.replicas), is_kept, NODE_TIMEOUT)
        }
    }

    /// Replicas of each shard.
    pub fn replicas(&self) -> usize {
        self.replicas
    }

    /// Whether data outlives a pod.
    pub fn storage(&self) -> PodStorage {
        self.storage
    }

    /// How many servers there are.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Never: a cluster has servers.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// One of the servers.
    pub fn server(&self, index: usize) -> &RedisServer {
        &self.pods[index].server
    }

    fn shard(&self, index: usize) -> usize {
        index / (1 + self.replicas)
    }

    /// The servers as the controller expects them.
    pub fn expected(&self) -> Vec<ExpectedNode> {
        let known = self.known();
        let expected = self.pods.iter().enumerate().map(|(index, pod)| {
            let (shard, ordinal) = (self.shard(index), index % (1 + self.replicas));
            let address = pod.server.address();
            let name = format!("test-{shard}-{ordinal}");
            let ids = known.iter().filter(|(_, pod)| **pod == name);
            let evidence = if pod.doubtful {
                ProcessEvidence::MayRun {
                    why: "its Kubernetes node is cut off".to_owned(),
                    cure: "delete that node".to_owned(),
                }
            } else {
                ProcessEvidence::Ended("its server was killed".to_owned())
            };
            ExpectedNode {
                former: ids.map(|(id, _)| (*id, evidence.clone())).collect(),
                address: Some(NodeAddress::new(address.ip(), address.port())),
                has_volume: self.storage == PodStorage::Volume,
                hostname: Some(Hostname {
                    name: crds::pod_hostname("test", "test", &name),
                    replaces: true,
                }),
                proof: Some(PodFiles::proof(address)),
                kubernetes_node: pod.kubernetes_node.clone(),
                zone: ZoneLabel::Absent,
                down_since: pod.down_since,
                ..ExpectedNode::new(name, shard, ordinal)
            }
        });
        expected.collect()
    }

    /// The node ids that the last drive recorded, as the status of the cluster would.
    pub fn known(&self) -> KnownNodes {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What a controller remembers of its looks at it.
    pub fn looks(&self) -> &EarlierLooks {
        &self.looks
    }

    /// As for a controller that has just begun to look.
    pub fn forget_looks(&mut self) {
        self.looks = EarlierLooks::default();
    }

    /// Records node ids.
    pub fn record(&self, known: &KnownNodes) {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(known);
    }

    /// Kills a server. What it was sent is checked first: its count ends with it.
    pub async fn kill(&mut self, index: usize) -> Result<()> {
        let server = &mut self.pods[index].server;
        let executed = executed(server).await?;
        refuse_destruction(server, &executed)?;
        server.kill()
    }

    /// Ends a server in its own time, as Kubernetes does.
    pub async fn stop(&mut self, index: usize) -> Result<()> {
        let server = &mut self.pods[index].server;
        let executed = executed(server).await?;
        refuse_destruction(server, &executed)?;
        server.stop().await
    }

    /// Kills every server.
    pub async fn kill_all(&mut self) -> Result<()> {
        for index in 0..self.len() {
            // Some may be down already.
            if self.pods[index].server.is_running() {
                self.kill(index).await?;
            }
        }
        Ok(())
    }

    /// Says what Kubernetes says of servers that do not answer.
    pub fn mark_down_since(&mut self, servers: &[usize], since: Timestamp) {
        for index in servers {
            self.pods[*index].down_since = Some(since);
        }
    }

    /// Says whether Kubernetes knows that these servers have ended when they are down.
    pub fn mark_doubtful(&mut self, servers: &[usize], doubtful: bool) {
        for index in servers {
            self.pods[*index].doubtful = doubtful;
        }
    }

    /// Says which Kubernetes node each server runs on.
    pub fn place_on(&mut self, nodes: &[&str]) {
        for (pod, node) in self.pods.iter_mut().zip(nodes) {
            pod.kubernetes_node = Some((*node).to_owned());
        }
    }

    /// What is mounted as the users of a server from its next start on.
    pub fn mount(&mut self, index: usize, users: MountedUsers) {
        self.pods[index].server.mount(users);
    }

    /// From now on, the test's own connections log in so.
    pub fn log_in(&self, login: Option<&ClientLogin>) {
        for pod in &self.pods {
            pod.server.log_in(login.cloned());
        }
    }

    /// Sets the program that a server which is down runs from its next start on.
    pub fn set_program(&mut self, index: usize, program: &ServerProgram) {
        self.pods[index].server.set_program(program);
    }

    /// Gives a server that is down another address.
    pub fn move_one(&mut self, index: usize) -> Result<()> {
        self.pods[index].server.set_address(free_address()?);
        Ok(())
    }

    /// Gives every server another address.
    pub fn move_all(&mut self) -> Result<()> {
        (0..self.len()).try_for_each(|index| self.move_one(index))
    }

    /// Gives every server the address of another one.
    pub fn rotate_addresses(&mut self) {
        let mut addresses: Vec<_> = self.pods.iter().map(|pod| pod.server.address()).collect();
        addresses.rotate_right(1);
        for (pod, address) in self.pods.iter_mut().zip(addresses) {
            pod.server.set_address(address);
        }
    }

    /// Takes the data of a server that is down away.
    pub fn wipe(&self, index: usize) -> Result<()> {
        self.pods[index].server.wipe()
    }

    /// Takes the data of all servers away, which are down.
    pub fn wipe_all(&self) -> Result<()> {
        (0..self.len()).try_for_each(|index| self.wipe(index))
    }

    /// Starts a server that is down.
    pub async fn restart(&mut self, index: usize) -> Result<()> {
        let pod = &mut self.pods[index];
        pod.server.restart().await?;
        pod.down_since = None;
        Ok(())
    }

    /// Starts every server.
    pub async fn restart_all(&mut self) -> Result<()> {
        for index in 0..self.len() {
            self.restart(index).await?;
        }
        Ok(())
    }

    /// Starts a server that is down and takes this long to load each of its keys. It is not waited for, and stays marked as down.
    pub fn start_slowly(&mut self, index: usize, each: Duration) -> Result<()> {
        let delay = each.as_micros().to_string();
        let slowly = [
            ("key-load-delay", delay.as_str()),
            ("loading-process-events-interval-bytes", "1024"),
        ];
        self.pods[index].server.start_unattended(&slowly)
    }

    /// Leaves a server that is down no room for more than the append-only file which [`PodCluster::rewrite`] has written.
    pub fn fill_disk(&self, index: usize) -> Result<()> {
        let files = self.server(index).directory().join("appendonlydir");
        for entry in fs::read_dir(&files)? {
            let file = entry?.path();
            if file.to_string_lossy().ends_with(".incr.aof") {
                fs::remove_file(&file)?;
                // Every write to it fails with "No space left on device".
                symlink("/dev/full", &file)?;
            }
        }
        Ok(())
    }

    /// Lets a server write its append-only file again, so that all its keys are in one piece.
    pub async fn rewrite(&self, index: usize) -> Result<()> {
        let server = self.server(index);
        let _: redis::Value = server.call("BGREWRITEAOF").await?;
        eventually("the file is written", async || {
            let busy = server.info("aof_rewrite_in_progress").await? == "1"
                || server.info("aof_rewrite_scheduled").await? == "1";
            Ok(!busy)
        })
        .await
    }

    /// Whether a server was sent this command since it started, for example `cluster|addslots`.
    pub async fn was_sent(&self, index: usize, command: &str) -> Result<bool> {
        Ok(executed(self.server(index)).await?.contains_key(command))
    }

    /// What every server that answers says of the cluster.
    async fn views(&self) -> Vec<(usize, NodesView)> {
        let mut views = Vec::new();
        for (index, pod) in self.pods.iter().enumerate() {
            if pod.server.is_running()
                && let Ok(text) = pod.server.call::<String>("CLUSTER NODES").await
                && let Ok(view) = NodesView::parse(&text)
            {
                views.push((index, view));
            }
        }
        views
    }

    /// What every node says, for a failure.
    pub async fn tables(&self) -> String {
        let mut text = String::new();
        for pod in &self.pods {
            let table = pod.server.call::<String>("CLUSTER NODES").await;
            let table = table.unwrap_or_else(|error| format!("{error:#}\n"));
            text.extend([pod.server.address().to_string(), ":\n".to_owned(), table]);
        }
        text
    }

    /// How often each server has sent a whole copy, and how many replicas it has.
    pub async fn copies(&self) -> Result<Vec<(String, String)>> {
        let mut found = Vec::new();
        for pod in &self.pods {
            let links = pod.server.info("connected_slaves").await?;
            found.push((pod.server.info("sync_full").await?, links));
        }
        Ok(found)
    }

    /// The ids of all nodes.
    pub async fn ids(&self) -> Result<Vec<NodeId>> {
        let mut ids = Vec::new();
        for pod in &self.pods {
            ids.push(pod.server.id().await?);
        }
        Ok(ids)
    }

    /// Index of the shard's primary by its own view: the one with the highest epoch.
    pub async fn primary_of(&self, shard: usize) -> Result<usize> {
        let (index, _) = self.primary(shard).await?;
        Ok(index)
    }

    async fn primary(&self, shard: usize) -> Result<(usize, SlotSet)> {
        let views = self.views().await;
        let primaries = views.iter().filter(|(index, view)| {
            let node = view.myself();
            self.shard(*index) == shard && node.is_primary() && !node.slots.is_empty()
        });
        let newest = primaries.max_by_key(|(_, view)| view.myself().config_epoch);
        let (index, view) = newest.with_context(|| format!("shard {shard} has no primary"))?;
        Ok((*index, view.myself().slots.clone()))
    }

    /// Index of a replica of the shard.
    pub async fn replica_of(&self, shard: usize) -> Result<usize> {
        let views = self.views().await;
        let mut replicas = views
            .iter()
            .filter(|(index, view)| self.shard(*index) == shard && view.myself().is_replica());
        let (index, _) = replicas
            .next()
            .with_context(|| format!("shard {shard} has no replica"))?;
        Ok(*index)
    }

    /// The slots of each shard's primary.
    pub async fn slot_map(&self) -> Result<ShardSlots> {
        let mut map = Vec::new();
        for shard in 0..Self::SHARDS {
            map.push(self.primary(shard).await?.1);
        }
        Ok(ShardSlots(map))
    }

    /// Slots of the shard's primary that have keys after [`PodCluster::fill`] with this count.
    pub async fn slots_with_keys(&self, shard: usize, count: usize) -> Result<SlotSet> {
        let (_, slots) = self.primary(shard).await?;
        let keys = keys(count, &slots);
        Ok(keys.map(|(key, _)| Slot::of_key(key.as_bytes())).collect())
    }

    /// Writes `count` keys, each on the primary of its slot.
    pub async fn fill(&self, count: usize) -> Result<()> {
        for shard in 0..Self::SHARDS {
            let (index, slots) = self.primary(shard).await?;
            let mut commands = pipe();
            for (key, value) in keys(count, &slots) {
                commands.cmd("SET").arg(key).arg(value).ignore();
            }
            let mut connection = self.server(index).connect().await?;
            commands.query_async::<()>(&mut connection).await?;
        }
        Ok(())
    }

    /// Writes so many keys and waits until they are everywhere. Returns who serves which slots.
    pub async fn fill_and_replicate(&self, count: usize) -> Result<ShardSlots> {
        self.fill(count).await?;
        self.replicated().await?;
        self.slot_map().await
    }

    /// What was waited for; where it did not come, with what every node says.
    pub async fn explained<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => Err(error.context(self.tables().await)),
        }
    }

    /// Waits until every replica has everything its primary has written, and until all of them have given it to the operating system. While
    /// a file is synchronised the engine keeps what is written meanwhile to itself, for up to two seconds (`flushAppendOnlyFile` in `aof.c`
    /// with `appendfsync everysec`): a process that is killed then loses it.
    pub async fn replicated(&self) -> Result<()> {
        for shard in 0..Self::SHARDS {
            // Not WAIT: it waits for what its own connection has written.
            let what = format!("the replicas of shard {shard} have all that was written");
            eventually(&what, async || {
                // A hand-over may be under way.
                let Ok(primary) = self.primary_of(shard).await else {
                    return Ok(false);
                };
                let text: String = self.server(primary).call("INFO replication").await?;
                let own = Info::parse(&text).replication();
                let have_all = own.replicas.iter().filter(|one| one.offset >= own.offset);
                Ok(have_all.count() >= self.replicas)
            })
            .await?;
        }
        if self.storage() == PodStorage::Memory {
            return Ok(());
        }
        for pod in 0..self.len() {
            eventually("everything is in the append-only file", async || {
                Ok(self.server(pod).info("aof_buffer_length").await? == "0")
            })
            .await?;
        }
        Ok(())
    }

    /// Proves that every key is there with its value.
    pub async fn check(&self, count: usize) -> Result<()> {
        let mut seen = 0;
        for shard in 0..Self::SHARDS {
            let (index, slots) = self.primary(shard).await?;
            seen += self.check_values(shard, index, &slots, count).await?;
        }
        if seen != count {
            bail!("{seen} keys of {count} are in slots that have a primary");
        }
        Ok(())
    }

    /// Proves that a node holds the keys of its slots and no other ones; returns how many.
    async fn check_values(
        &self,
        shard: usize,
        index: usize,
        slots: &SlotSet,
        count: usize,
    ) -> Result<usize> {
        let wanted: BTreeMap<String, String> = keys(count, slots).collect();
        let mut commands = pipe();
        for key in wanted.keys() {
            commands.cmd("GET").arg(key);
        }
        let mut connection = self.server(index).connect().await?;
        let values: Vec<Option<String>> = commands.query_async(&mut connection).await?;
        for ((key, value), found) in wanted.iter().zip(values) {
            ensure!(
                found.as_ref() == Some(value),
                "{key}: {found:?} instead of {value}"
            );
        }
        let held: usize = self.server(index).call("DBSIZE").await?;
        ensure!(
            held == wanted.len(),
            "shard {shard} holds {held} keys instead of {}",
            wanted.len()
        );
        Ok(wanted.len())
    }

    /// Proves of one shard, while another one is lost: it has the slots it had, and of `count` keys those in them with their values.
    pub async fn is_as_before(&self, shard: usize, slots: &ShardSlots, count: usize) -> Result<()> {
        let (index, now) = self.primary(shard).await?;
        let before = slots.0.get(shard).context("no such shard")?;
        ensure!(
            now == *before,
            "shard {shard} had {before:?} and has {now:?}"
        );
        // A server of a cluster that lost slots refuses even to read those it has.
        self.server(index)
            .call::<()>("CONFIG SET cluster-allow-reads-when-down yes")
            .await?;
        self.check_values(shard, index, before, count).await?;
        Ok(())
    }

    /// Proves after a loss: every value is there, each shard has the slots it had, every node agrees on them, and no server was
    /// sent a destructive command.
    pub async fn unharmed(&self, slots: &ShardSlots, count: usize) -> Result<()> {
        self.check(count).await?;
        let now = self.slot_map().await?;
        ensure!(now == *slots, "the slots were {slots:?} and are {now:?}");
        let agreed = eventually("every node agrees on the slots", async || {
            let views = self.views().await;
            Ok(views.iter().all(|(_, view)| {
                let agrees = |shard: &SlotSet| view.nodes().iter().any(|node| node.slots == *shard);
                slots.0.iter().all(agrees)
            }))
        });
        self.explained(agreed.await).await?;
        self.nothing_destroyed().await
    }

    /// Fails if a server was sent a destructive command. The killed ones were asked before.
    pub async fn nothing_destroyed(&self) -> Result<()> {
        let running = self.pods.iter().map(|pod| &pod.server);
        super::nothing_destroyed(running.filter(|server| server.is_running())).await
    }
}

fn keys(count: usize, slots: &SlotSet) -> impl Iterator<Item = (String, String)> + '_ {
    let all = (0..count).map(|number| (format!("key:{number}"), format!("value {number}")));
    all.filter(|(key, _)| slots.contains(Slot::of_key(key.as_bytes())))
}
