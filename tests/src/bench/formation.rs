//! `formation`: lone processes become a cluster of 3, 10 or 50 shards with a replica each, against `redis-cli --cluster create`.

use super::{
    report::{Goal, Measurement, Row},
    rounds, servers,
};
use crate::{drive::drive, redis::RedisServer, wait::eventually};
use anyhow::{Result, ensure};
use cluster_controller::redis::member::{ExpectedNode, Wanted, ZoneLabel};
use common::cluster::topology::NodeAddress;
use futures::future::try_join_all;
use std::time::{Duration, Instant};

/// Age of servers that run when they are needed: pods are ready some seconds before the last of them is.
const RUNNING: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_mins(2);

/// With servers that run for a while, and with servers that have just been started. Those serve no sooner than 2 s after their
/// start, whatever is done with them (CLUSTER_WRITABLE_DELAY in the engine), which binds both sides. On running servers the
/// rival's primaries see a minority while they join, and stay closed for a node timeout (5 s) after it.
pub async fn run(case: &'static str, shards: usize) -> Result<Vec<Row>> {
    let (mut running, mut fresh) = (Vec::new(), Vec::new());
    for round in rounds() {
        for (age, measured) in [(RUNNING, &mut running), (Duration::ZERO, &mut fresh)] {
            let ours = async { ours(&nodes(shards, age).await?, shards).await };
            let rival = async { rival(&nodes(shards, age).await?).await };
            let (ours, rival) = round.run(ours, rival).await?;
            println!("{shards} shards: {ours:.2} s, {rival:.2} s");
            if round.measured {
                measured.push(Measurement { ours, rival });
            }
        }
    }
    let row = |rival, rounds: &[Measurement]| Row::new(case, "s", rival, Goal::AtMost(0.7), rounds);
    Ok(vec![
        row("redis-cli --cluster create", &running),
        row("the same, servers just started", &fresh),
    ])
}

/// Two for each shard.
async fn nodes(shards: usize, age: Duration) -> Result<Vec<RedisServer>> {
    let options = [
        ("repl-diskless-sync-delay", "0"),
        ("cluster-node-timeout", "5000"),
    ];
    let mut nodes =
        try_join_all((0..shards * 2).map(|_| RedisServer::cluster_node(&options))).await?;
    nodes.iter_mut().for_each(RedisServer::quiet);
    tokio::time::sleep(age).await;
    Ok(nodes)
}

/// Until every node says that the cluster is healthy, replicas linked.
async fn ours(nodes: &[RedisServer], shards: usize) -> Result<f64> {
    let expected: Vec<ExpectedNode> = nodes
        .iter()
        .enumerate()
        .map(|(index, node)| expected_node(index, node, shards))
        .collect();
    let wanted = Wanted::new((shards, 1), false, Duration::from_secs(5));
    let started = Instant::now();
    let drive = drive(&wanted, &expected, LIMIT).await;
    let time = started.elapsed();
    ensure!(
        drive.assessment.is_healthy(),
        "not healthy: {:?}",
        drive.assessment.problems
    );
    Ok(time.as_secs_f64())
}

fn expected_node(index: usize, node: &RedisServer, shards: usize) -> ExpectedNode {
    let address = node.address();
    ExpectedNode {
        address: Some(NodeAddress::new(address.ip(), address.port())),
        zone: ZoneLabel::Absent,
        ..ExpectedNode::new(format!("bench-{index}"), index % shards, index / shards)
    }
}

/// Until it returns, and then until every node says that it is so and every replica is linked: the same end.
async fn rival(nodes: &[RedisServer]) -> Result<f64> {
    let addresses: Vec<String> = nodes
        .iter()
        .map(|node| node.address().to_string())
        .collect();
    let started = Instant::now();
    let status = servers::redis_cli(nodes[0].address())
        .args(["--cluster", "create"])
        .args(&addresses)
        .args(["--cluster-replicas", "1", "--cluster-yes"])
        .status()
        .await?;
    ensure!(status.success(), "redis-cli --cluster create failed");
    eventually("the rival's cluster is healthy", async || {
        healthy(nodes).await
    })
    .await?;
    Ok(started.elapsed().as_secs_f64())
}

async fn healthy(nodes: &[RedisServer]) -> Result<bool> {
    let views = try_join_all(nodes.iter().map(|node| async move {
        let cluster: String = node.call("CLUSTER INFO").await?;
        let replication: String = node.call("INFO replication").await?;
        anyhow::Ok(
            cluster.contains("cluster_state:ok")
                && cluster.contains(&format!("cluster_known_nodes:{}\r\n", nodes.len()))
                && (replication.contains("role:master")
                    || replication.contains("master_link_status:up")),
        )
    }))
    .await?;
    Ok(views.into_iter().all(|healthy| healthy))
}
