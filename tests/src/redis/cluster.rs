//! A Redis Cluster of processes.

use anyhow::{Context, Result, ensure};
use common::cluster::{
    seeds::Seeds,
    slots::{SLOT_COUNT, Slot, SlotRange},
    topology::NodeId,
};
use crds::{KnownNode, OwnUser};
use futures::future::try_join_all;

use super::{RedisServer, Sample, nothing_destroyed, own_users};
use crate::wait::eventually;

/// A formed cluster: its primaries first, then the replicas shard by shard.
pub struct TestCluster {
    nodes: Vec<RedisServer>,
    ranges: Vec<SlotRange>,
    ids: Vec<NodeId>,
}

impl TestCluster {
    /// Starts and forms a cluster whose slots are spread evenly.
    pub async fn start(shards: u16, replicas: u16) -> Result<Self> {
        Self::start_with(shards, replicas, &[]).await
    }

    /// The same with further settings for every node.
    pub async fn start_with(shards: u16, replicas: u16, options: &[(&str, &str)]) -> Result<Self> {
        ensure!(shards > 0, "a cluster has at least one shard");
        let count = usize::from(shards) * (1 + usize::from(replicas));
        let nodes = (0..count).map(|_| RedisServer::cluster_node(options));
        let nodes = try_join_all(nodes).await?;
        let ids = try_join_all(nodes.iter().map(RedisServer::id)).await?;
        let cluster = Self {
            nodes,
            ranges: even_ranges(shards)?,
            ids,
        };
        cluster.form().await?;
        Ok(cluster)
    }

    /// Starts one more primary, without slots. Its index.
    pub async fn join(&mut self, options: &[(&str, &str)]) -> Result<usize> {
        let node = RedisServer::cluster_node(options).await?;
        let (ip, port) = (node.address().ip(), node.address().port());
        let seed = self.nodes.first().context("a cluster without nodes")?;
        seed.call::<()>(&format!("CLUSTER MEET {ip} {port}"))
            .await?;
        self.nodes.push(node);
        self.healthy().await?;
        Ok(self.nodes.len() - 1)
    }

    /// The same, as a replica of the primary with this index. Returns its index.
    pub async fn join_replica(
        &mut self,
        primary: usize,
        options: &[(&str, &str)],
    ) -> Result<usize> {
        let primary = self.nodes.get(primary).context("no such node")?;
        let id = primary.id().await?;
        let index = self.join(options).await?;
        let node = self.nodes.get(index).context("no such node")?;
        replicate(node, id).await?;
        Ok(index)
    }

    /// Every node: primaries first, then the first replica of each shard, then the second ones.
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// Kills a node. What it was sent is checked first: its count ends with it.
    pub async fn kill(&mut self, index: usize) -> Result<()> {
        let node = self.nodes.get_mut(index).context("no such node")?;
        nothing_destroyed([&*node]).await?;
        node.kill()
    }

    /// Starts a killed node again, with the files that it had.
    pub async fn restart(&mut self, index: usize) -> Result<()> {
        let node = self.nodes.get_mut(index).context("no such node")?;
        node.restart().await
    }

    /// Ends a node in its own time.
    pub async fn stop(&mut self, index: usize) -> Result<()> {
        let node = self.nodes.get_mut(index).context("no such node")?;
        nothing_destroyed([&*node]).await?;
        node.stop().await
    }

    /// Fails if a node was sent a destructive command. The killed ones were asked before.
    pub async fn nothing_destroyed(&self) -> Result<()> {
        nothing_destroyed(self.nodes.iter().filter(|node| node.is_running())).await
    }

    /// The nodes that were primaries when the cluster was formed, in the order of their slots.
    pub fn primaries(&self) -> &[RedisServer] {
        self.nodes.get(..self.ranges.len()).unwrap_or_default()
    }

    /// The nodes that were replicas of a shard when the cluster was formed.
    pub fn replicas(&self, shard: usize) -> impl Iterator<Item = &RedisServer> {
        self.nodes
            .iter()
            .skip(shard)
            .step_by(self.ranges.len())
            .skip(1)
    }

    /// The ids of all nodes, in their order.
    pub fn ids(&self) -> &[NodeId] {
        &self.ids
    }

    /// Every node, as the pods and the status of its RedisCluster would show it.
    pub fn seeds(&self) -> Result<Seeds> {
        let addresses = self.nodes.iter().map(RedisServer::address);
        Ok(Seeds::new(addresses, self.ids.iter().copied())?)
    }

    /// The same for the program of an own user.
    pub fn seeds_as(&self, user: OwnUser) -> Result<Seeds> {
        Ok(self.seeds()?.with_login(own_users::login(user)))
    }

    /// The nodes as the status of its RedisCluster would list them.
    pub fn known_nodes(&self) -> Vec<KnownNode> {
        let numbered = self.ids.iter().enumerate();
        numbered
            .map(|(number, id)| KnownNode {
                pod: format!("pod-{number}"),
                node_id: id.to_string(),
                ..KnownNode::default()
            })
            .collect()
    }

    /// The slots of each shard.
    pub fn ranges(&self) -> &[SlotRange] {
        &self.ranges
    }

    /// The shard a key belongs to.
    pub fn shard_of(&self, key: &[u8]) -> Result<usize> {
        let slot = Slot::of_key(key);
        self.ranges
            .iter()
            .position(|range| range.contains(slot))
            .context("a slot without a shard")
    }

    /// Writes the samples, each where it belongs.
    pub async fn fill(&self, samples: &[Sample]) -> Result<()> {
        let mut connections =
            try_join_all(self.primaries().iter().map(RedisServer::connect)).await?;
        for sample in samples {
            let shard = self.shard_of(&sample.key)?;
            sample
                .write(
                    connections
                        .get_mut(shard)
                        .context("a shard without a connection")?,
                )
                .await?;
        }
        Ok(())
    }

    /// Waits until every node sees all of them, and the cluster serves every slot.
    pub async fn healthy(&self) -> Result<()> {
        for node in &self.nodes {
            eventually("every node serves and its replica is linked", || {
                self.serves(node)
            })
            .await?;
        }
        Ok(())
    }

    async fn serves(&self, node: &RedisServer) -> Result<bool> {
        let info: String = node.call("CLUSTER INFO").await?;
        let known = format!("cluster_known_nodes:{}\r\n", self.nodes.len());
        let linked =
            node.info("role").await? == "master" || node.info("master_link_status").await? == "up";
        Ok(linked && info.contains("cluster_state:ok\r\n") && info.contains(&known))
    }

    async fn form(&self) -> Result<()> {
        try_join_all(self.primaries().iter().zip(&self.ranges).zip(1..).map(
            |((node, range), epoch)| async move {
                node.call::<()>(&format!("CLUSTER SET-CONFIG-EPOCH {epoch}"))
                    .await?;
                node.add_slots(range).await
            },
        ))
        .await?;
        let seed = self.nodes.first().context("a cluster without nodes")?;
        for node in self.nodes.iter().skip(1) {
            let address = node.address();
            seed.call::<()>(&format!("CLUSTER MEET {} {}", address.ip(), address.port()))
                .await?;
        }
        let ids = self.ids.iter().take(self.ranges.len());
        let replicas = self.nodes.iter().skip(ids.len()).zip(ids.cycle());
        try_join_all(replicas.map(|(node, id)| replicate(node, *id))).await?;
        self.healthy().await
    }
}

/// Makes a node a replica, once it knows the primary.
async fn replicate(node: &RedisServer, primary: NodeId) -> Result<()> {
    let command = format!("CLUSTER REPLICATE {primary}");
    eventually("a replica knows its primary", async || {
        Ok(node.call::<()>(&command).await.is_ok())
    })
    .await
}

fn even_ranges(shards: u16) -> Result<Vec<SlotRange>> {
    let bound = |shard: u16| u32::from(SLOT_COUNT) * u32::from(shard) / u32::from(shards);
    (0..shards)
        .map(|shard| {
            let (start, next) = (bound(shard), bound(shard + 1));
            Ok(SlotRange::new(
                Slot::new(u16::try_from(start)?)?,
                Slot::new(u16::try_from(next - 1)?)?,
            )?)
        })
        .collect()
}
