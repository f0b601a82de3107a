//! What a look at a cluster of 500 nodes holds in memory, and how the work grows with the nodes. The nodes are made up.

use anyhow::{Context, Result, ensure};
use cluster_controller::{
    decision::{Goal, decide},
    observe::{Observed, wanted},
    pods::Pods,
    redis::{
        identity::known_nodes,
        member::{ExpectedNode, Member, ZoneLabel},
        observe::observe,
    },
    settings::tracker::ClusterAnswers,
    validate::shape,
};
use common::cluster::{kept_connections::ClusterConnections, topology::NodeAddress};
use crds::RedisCluster;
use jiff::Timestamp;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};
use tests::{
    made_up::{MadeUpCluster, MadeUpNode, MadeUpServers, be_servers},
    memory::{MIB, Peak, as_in_the_image},
};

const NODES: usize = 500;
/// A fourth of them: four times as many nodes may take sixteen times as long, for there are so many more lines.
const FEWER: usize = NODES / 4 - 1;
/// Most memory that a look may add, with all that follows from it.
const MOST: u64 = 64 * MIB;
/// How much longer the larger cluster may take: what grows with the third power would take 64 times as long.
const LONGER: u32 = 40;
/// This machine has other work, and answers are not what is measured.
const TIMEOUT: Duration = Duration::from_secs(20);

#[test]
fn a_cluster_of_500_nodes_is_held_in_64_mebibytes() -> Result<()> {
    if be_servers()? {
        return Ok(());
    }
    as_in_the_image(measure())
}

async fn measure() -> Result<()> {
    let nodes = servers(NODES)?;
    let peak = Peak::watch()?;
    let began = Instant::now();
    let many = Look::at(&nodes.addresses[0]).await?;
    let looked = began.elapsed();
    let took = many.decide(3)?;
    let added = peak.added();
    drop((many, nodes));
    let nodes = servers(FEWER)?;
    let few = Look::at(&nodes.addresses[0]).await?.decide(20)?;
    println!(
        "{NODES} nodes: {} MiB, asked in {looked:?}; decided in {took:?}, {FEWER} of them in {few:?}",
        added / MIB
    );
    ensure!(added < MOST, "{added} bytes");
    ensure!(took < few * LONGER, "{took:?} and {few:?}");
    Ok(())
}

/// Each second node is the replica of the one before, and each primary has two ranges of slots.
fn servers(nodes: usize) -> Result<MadeUpServers> {
    let node = MadeUpNode {
        address: (Ipv4Addr::LOCALHOST, 0).into(),
        proof: String::new(),
    };
    MadeUpServers::start(&[MadeUpCluster {
        name: "shop".to_owned(),
        namespace: "team".to_owned(),
        per_shard: 2,
        ranges: 2,
        nodes: vec![node; nodes],
    }])
}

/// A cluster, and what its nodes reported.
struct Look {
    object: RedisCluster,
    members: Vec<Member>,
}

impl Look {
    async fn at(addresses: &[SocketAddr]) -> Result<Self> {
        let object = cluster(addresses.len())?;
        let expected: Vec<ExpectedNode> = addresses.iter().enumerate().map(expected).collect();
        let members = observe(&expected, &ClusterConnections::default(), TIMEOUT).await;
        for member in &members {
            ensure!(member.report().is_some(), "{member:?}");
        }
        Ok(Self { object, members })
    }

    /// How much processor time it takes to find that nothing is to be done: the mean of so many times.
    fn decide(&self, times: u32) -> Result<Duration> {
        let shape = shape(&self.object)?;
        let mut used = Duration::ZERO;
        for _ in 0..times {
            let mut wanted = wanted(&shape, true, BTreeMap::new());
            wanted.known = known_nodes(&wanted, &self.members);
            let observed = Observed {
                pods: Pods::new(),
                members: self.members.clone(),
                passed_over: false,
            };
            let goal = Goal {
                written: &BTreeSet::new(),
                shape: &shape,
                cluster: None,
                wanted: &wanted,
                sets: &[],
                moving: false,
                settings: None,
            };
            let before = processor_time()?;
            let decision = decide(&goal, observed, &ClusterAnswers::new(), Timestamp::now());
            used += processor_time()?.saturating_sub(before);
            let (plan, problems) = (decision.plan, decision.assessment.problems);
            ensure!(plan.steps.is_empty(), "{plan:?}");
            ensure!(problems.is_empty(), "{problems:?}");
        }
        Ok(used / times)
    }
}

/// What this thread has used, which does not depend on the other work of the machine.
fn processor_time() -> Result<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split_whitespace().next().context("no time")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}

fn cluster(nodes: usize) -> Result<RedisCluster> {
    let object = json!({"apiVersion": "redis.danieldorado.github.io/v1alpha1", "kind": "RedisCluster",
        "metadata": {"name": "shop", "namespace": "team"},
        "spec": {"version": "redis-7.0.15", "shards": nodes / 2, "replicasPerShard": 1,
                 "config": {"cluster-node-timeout": "5000"}}});
    Ok(serde_json::from_value(object)?)
}

fn expected((index, address): (usize, &SocketAddr)) -> ExpectedNode {
    let (shard, ordinal) = (index / 2, index % 2);
    ExpectedNode {
        address: Some(NodeAddress::new(address.ip(), address.port())),
        // The two of a shard run on different ones, and each has the same number of primaries.
        kubernetes_node: Some(format!("node-{}", (shard + ordinal * 25) % 50)),
        zone: ZoneLabel::Absent,
        ..ExpectedNode::new(format!("shop-{shard}-{ordinal}"), shard, ordinal)
    }
}
