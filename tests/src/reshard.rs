//! The reshard of the cluster-controller without Kubernetes, on a cluster of processes.

use crate::{
    client::ClusterClient,
    dataset,
    redis::{RedisServer, TestCluster, own_users},
    servers, verify,
    wait::eventually,
};
use anyhow::{Context, Result, bail, ensure};
use cluster_controller::redis::reshard::{
    EngineChoice, NodeEndpoints, ReshardError, ReshardLimits, ReshardPlan, ReshardProgress,
    ReshardSummary, SlotMove, SlotTables, plan, run, tables,
};
use common::cluster::{
    endpoint::Endpoint,
    slot_map::SlotMap,
    slots::{Slot, SlotRange},
    topology::{NodeId, NodesView},
};
use crds::OwnUser;
use std::{collections::BTreeSet, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// As the product sets it: a primary that has given its last slot away stays a primary.
pub const STAYING: (&str, &str) = ("cluster-allow-replica-migration", "no");

/// Longest wait for a node's answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The limits of the product. Valkey 9 would move slots by itself, which `cluster_valkey` is about; every other server has MIGRATE only.
pub fn by_migrate() -> ReshardLimits {
    let atomic = servers::selected().is_ok_and(|program| program.moves_slots());
    ReshardLimits {
        engine: if atomic {
            EngineChoice::Legacy
        } else {
            EngineChoice::Auto
        },
        ..ReshardLimits::default()
    }
}

/// A cluster of primaries whose slots move.
pub struct ReshardCluster {
    /// The servers, by shard.
    pub servers: TestCluster,
    /// Their ids, in the same order.
    pub ids: Vec<NodeId>,
}

impl ReshardCluster {
    /// `shards` shards without replicas, and one more primary without slots.
    pub async fn start(shards: u16, options: &[(&str, &str)]) -> Result<Self> {
        let mut servers = TestCluster::start_with(shards, 0, options).await?;
        servers.join(options).await?;
        let mut ids = Vec::new();
        for server in servers.nodes() {
            ids.push(server.call::<String>("CLUSTER MYID").await?.parse()?);
        }
        Ok(Self { servers, ids })
    }

    /// The same, with keys.
    pub async fn filled(options: &[(&str, &str)], keys: u64) -> Result<Self> {
        let cluster = Self::start(3, options).await?;
        dataset::fill(&cluster.client().await?, keys).await?;
        Ok(cluster)
    }

    /// A client that knows the second server.
    pub async fn client(&self) -> Result<ClusterClient> {
        ClusterClient::connect(&self.server(1).address().to_string()).await
    }

    /// Proves that these keys are there with their values, and no others.
    pub async fn unharmed(&self, keys: u64) -> Result<()> {
        let comparison = verify::data_set(&self.client().await?, keys).await?;
        ensure!(
            comparison.keys == keys && comparison.different == 0,
            "{comparison:?}\n{}",
            self.describe().await
        );
        Ok(())
    }

    /// The server with this index.
    pub fn server(&self, index: usize) -> &RedisServer {
        &self.servers.nodes()[index]
    }

    /// How every server is reached.
    pub fn endpoints(&self) -> NodeEndpoints {
        let servers = self.servers.nodes().iter();
        let login = own_users::login(OwnUser::Operator);
        let endpoints = servers
            .map(|server| Endpoint::new(server.address(), TIMEOUT).with_login(login.clone()));
        self.ids.iter().copied().zip(endpoints).collect()
    }

    /// What every primary says.
    pub async fn tables(&self) -> Result<SlotTables> {
        Ok(tables(&self.endpoints()).await?)
    }

    /// The plan by which the shards with these indices stay. Of a slot that a run which was cut off has just handed over, nodes that are asked one
    /// after the other may name no primary: they are asked again.
    pub async fn plan(&self, staying: &[usize]) -> Result<ReshardPlan> {
        let staying: BTreeSet<NodeId> = staying.iter().map(|index| self.ids[*index]).collect();
        let whole = async || Ok(self.tables().await.ok());
        let tables = match eventually("every slot has a primary", whole).await {
            Ok(tables) => tables,
            Err(_) => self.tables().await?,
        };
        Ok(plan(&tables, |id| staying.contains(&id)))
    }

    /// The plan of one slot, from a server to another.
    pub fn one_slot(&self, slot: Slot, source: usize, target: usize) -> ReshardPlan {
        let one = SlotMove {
            source: self.ids[source],
            target: self.ids[target],
            slots: SlotRange::from(slot).into(),
        };
        ReshardPlan {
            moves: vec![one],
            ..ReshardPlan::default()
        }
    }

    /// Those of the keys that a server has: it sends clients on for one that has moved.
    pub async fn keys_at(&self, index: usize, keys: &[String]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for key in keys {
            let exists = format!("EXISTS {key}");
            if let Ok(1) = self.server(index).call::<u64>(&exists).await {
                found.push(key.clone());
            }
        }
        Ok(found)
    }

    /// Carries out a plan to its end.
    pub async fn run(
        &self,
        plan: &ReshardPlan,
        limits: &ReshardLimits,
    ) -> Result<ReshardSummary, ReshardError> {
        self.run_until(plan, limits, &CancellationToken::new())
            .await
    }

    /// Carries out a plan until it is cancelled.
    pub async fn run_until(
        &self,
        plan: &ReshardPlan,
        limits: &ReshardLimits,
        cancel: &CancellationToken,
    ) -> Result<ReshardSummary, ReshardError> {
        let (progress, _) = watch::channel(ReshardProgress::default());
        run(plan, &self.endpoints(), limits, cancel, &progress).await
    }

    /// Plans and carries out until nothing is left to do. Returns the summary of the last run that did something.
    pub async fn reach(
        &self,
        staying: &[usize],
        limits: &ReshardLimits,
    ) -> Result<Option<ReshardSummary>> {
        let mut last = None;
        for _ in 0..5 {
            let plan = self.plan(staying).await?;
            if plan.is_empty() {
                ensure!(
                    plan.open_slots.is_empty(),
                    "undecided: {:?}",
                    plan.open_slots
                );
                return Ok(last);
            }
            last = Some(self.run(&plan, limits).await?);
        }
        bail!(
            "five runs did not reach the goal: {}",
            self.describe().await
        )
    }

    /// Proves the end: the shards have as many slots each, all slots are covered once, no slot is open, every node agrees.
    pub async fn settled(&self, staying: &[usize]) -> Result<()> {
        let mut views = Vec::new();
        for server in self.servers.nodes() {
            views.push(NodesView::parse(
                &server.call::<String>("CLUSTER NODES").await?,
            )?);
        }
        let map = SlotMap::agreed_by(&views).map_err(anyhow::Error::from);
        let map = match map {
            Ok(map) => map,
            Err(error) => bail!("{error}\n{}", self.describe().await),
        };
        let lengths = staying.iter().map(|index| {
            let slots = map.primaries.get(&self.ids[*index]);
            slots.map_or(0, common::cluster::slots::SlotSet::len)
        });
        let lengths: Vec<usize> = lengths.collect();
        let (least, most) = (lengths.iter().min(), lengths.iter().max());
        let (least, most) = (least.context("no shard")?, most.context("no shard")?);
        ensure!(most - least <= 1, "slots of the shards: {lengths:?}");
        ensure!(
            map.primaries.len() == staying.len(),
            "{} primaries have slots",
            map.primaries.len()
        );
        Ok(())
    }

    /// Every node's table, for a failure.
    pub async fn describe(&self) -> String {
        let mut text = String::new();
        for server in self.servers.nodes() {
            let table = server.call::<String>("CLUSTER NODES").await;
            let table = table.unwrap_or_else(|error| format!("{error:#}\n"));
            text.extend([server.address().to_string(), ":\n".to_owned(), table]);
        }
        text
    }
}
