//! Servers of a cluster whose number of shards is changed: the Redis half of the cluster-controller, moves of slots included, without
//! Kubernetes.

use crate::{
    client::ClusterClient,
    redis::{RedisServer, own_users},
};
use anyhow::{Context, Result, bail, ensure};
use cluster_controller::redis::{
    assess::{Problem, assess},
    balance::balance,
    execute::execute,
    identity::{has_unrecorded, known_nodes, recognize},
    member::{ExpectedNode, Member, Wanted, ZoneLabel},
    observe::observe,
    plan::plan,
    reshard::{self, NodeEndpoints, ReshardLimits, ReshardProgress},
    survey::Survey,
};
use common::cluster::{endpoint::Endpoint, topology::NodeAddress};
use crds::OwnUser;
use k8s_openapi::jiff::Timestamp;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

/// Longest wait for a node's answer.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Between two reconciles.
const INTERVAL: Duration = Duration::from_millis(100);
/// The node timeout of the servers, as they are started.
const NODE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a server keeps when it ends, and what a pod's server is started with besides.
const SETTINGS: [(&str, &str); 3] = [
    ("appendonly", "yes"),
    ("appendfsync", "no"),
    ("cluster-allow-replica-migration", "no"),
];

/// One primary for each shard.
pub struct Shards {
    /// The servers, by shard but for a second one of a shard.
    pub servers: Vec<RedisServer>,
    /// The shard in which the last server runs as a second pod, one that is to leave.
    pub second_in: Option<usize>,
}

impl Shards {
    /// So many blank servers.
    pub async fn start(count: usize) -> Result<Self> {
        let mut shards = Self {
            servers: Vec::new(),
            second_in: None,
        };
        shards.add(count).await?;
        Ok(shards)
    }

    /// So many blank servers more.
    pub async fn add(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            self.servers
                .push(RedisServer::cluster_node(&SETTINGS).await?);
        }
        Ok(())
    }

    /// A client that asks the first server.
    pub async fn client(&self) -> Result<ClusterClient> {
        let first = self.servers.first().context("no server")?;
        ClusterClient::connect(&first.address().to_string()).await
    }

    /// Ends the servers, as a deleted cluster does, and starts those of the first shards again over the same files.
    pub async fn created_again(&mut self, running: usize) -> Result<()> {
        for server in &mut self.servers {
            server.stop().await?;
        }
        for server in self.servers.iter_mut().take(running) {
            server.restart().await?;
        }
        Ok(())
    }

    /// Reconciles a cluster of which nothing is recorded until so many shards have an equal part of the slots, and the others nothing. The
    /// servers beyond `pods` have no pods.
    pub async fn become_shards(&self, shards: usize, pods: usize, limit: Duration) -> Result<()> {
        let mut wanted = wanted(shards);
        let connections = own_users::connections();
        let started = Instant::now();
        loop {
            let expected = self.expected(shards, pods);
            let mut members = observe(&expected, &connections, TIMEOUT).await;
            recognize(&wanted, &mut members);
            let known = known_nodes(&wanted, &members);
            let is_new = has_unrecorded(&wanted, &known);
            wanted.known = known;
            let survey = Survey::of(&wanted, &members);
            let steps = plan(&survey, Timestamp::now());
            let balance = balance(&survey);
            let assessment = assess(&survey);
            let mut problems = assessment.problems.iter();
            let rest_leaves = problems.all(|one| matches!(one, Problem::Leaving { .. }));
            if rest_leaves && steps.steps.is_empty() && !balance.needs_moves() {
                return Ok(());
            }
            if started.elapsed() > limit {
                bail!(
                    "not {shards} shards after {limit:?}: {:?} {steps:?} {balance:?}",
                    assessment.problems
                );
            }
            if !is_new {
                for done in execute(&steps, &members, &connections, TIMEOUT).await {
                    println!("  {}: {:?}", done.step.reason, done.result);
                }
                if steps.lets_slots_move() && balance.needs_moves() {
                    move_slots(&members, &balance.goal().staying).await?;
                }
            }
            sleep(INTERVAL).await;
        }
    }

    fn expected(&self, shards: usize, pods: usize) -> Vec<ExpectedNode> {
        let servers = self.servers.iter().enumerate().take(pods);
        let last = self.servers.len().saturating_sub(1);
        let expected = servers.map(|(index, server)| {
            let address = server.address();
            let second_in = self.second_in.filter(|_| index == last);
            let (shard, ordinal) = second_in.map_or((index, 0), |shard| (shard, 1));
            ExpectedNode {
                wanted: shard < shards && ordinal == 0,
                address: Some(NodeAddress::new(address.ip(), address.port())),
                zone: ZoneLabel::Absent,
                ..ExpectedNode::new(format!("shape-{shard}-{ordinal}"), shard, ordinal)
            }
        });
        expected.collect()
    }

    /// Slots of each server by its own table.
    pub async fn slots(&self) -> Result<Vec<usize>> {
        let mut slots = Vec::new();
        for server in self.servers.iter().filter(|server| server.is_running()) {
            let table: String = server.call("CLUSTER NODES").await?;
            let view = common::cluster::topology::NodesView::parse(&table)?;
            ensure!(view.myself().open_slots.is_empty(), "open slots: {table}");
            slots.push(view.myself().slots.len());
        }
        Ok(slots)
    }
}

fn wanted(shards: usize) -> Wanted {
    Wanted::new((shards, 0), true, NODE_TIMEOUT)
}

async fn move_slots(
    members: &[Member],
    staying: &BTreeSet<common::cluster::topology::NodeId>,
) -> Result<()> {
    let login = own_users::login(OwnUser::Operator);
    let primary = |member: &Member| {
        let report = member.report().filter(|report| report.own().is_primary())?;
        let address = member.expected.address?.client();
        let endpoint = Endpoint::new(address, TIMEOUT).with_login(login.clone());
        Some((report.id(), endpoint))
    };
    let nodes: NodeEndpoints = members.iter().filter_map(primary).collect();
    let plan = reshard::plan(&reshard::tables(&nodes).await?, |id| staying.contains(&id));
    let (progress, _) = watch::channel(ReshardProgress::default());
    let (limits, cancel) = (ReshardLimits::default(), CancellationToken::new());
    let summary = reshard::run(&plan, &nodes, &limits, &cancel, &progress).await?;
    println!("  {summary:?}");
    Ok(())
}
