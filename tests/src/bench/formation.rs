//! `formation`: six lone processes become a cluster of 3 × 1, against `redis-cli --cluster create`.

use super::{
    report::{Goal, Measurement, Row},
    servers,
};
use crate::redis::{RedisServer, eventually};
use anyhow::{Result, ensure};
use cluster_controller::redis::{
    drive::drive,
    member::{Place, Wanted},
};
use common::cluster::topology::NodeAddress;
use futures::future::try_join_all;
use std::time::{Duration, Instant};

const SHARDS: usize = 3;
const NODES: usize = 6;
/// Whatever is done with it, a server serves no sooner than 2 s after its start (CLUSTER_WRITABLE_DELAY in the engine): nothing is
/// measured before that.
const WARM: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_mins(1);

pub async fn run(rounds: usize) -> Result<Vec<Row>> {
    let mut measured = Vec::new();
    for _ in 0..rounds {
        let ours = ours().await?;
        let rival = rival().await?;
        measured.push(Measurement { ours, rival });
    }
    Ok(vec![Row::new(
        "formation",
        "s",
        "redis-cli --cluster create",
        Goal::AtMost(0.7),
        &measured,
    )])
}

async fn nodes() -> Result<Vec<RedisServer>> {
    let options = [
        ("repl-diskless-sync-delay", "0"),
        ("cluster-node-timeout", "5000"),
    ];
    let nodes = try_join_all((0..NODES).map(|_| RedisServer::cluster_node(&options))).await?;
    tokio::time::sleep(WARM).await;
    Ok(nodes)
}

/// Until the cluster is whole by every node's own word, replicas linked.
async fn ours() -> Result<f64> {
    let nodes = nodes().await?;
    let places: Vec<Place> = nodes
        .iter()
        .enumerate()
        .map(|(index, node)| place(index, node))
        .collect();
    let wanted = Wanted {
        shards: SHARDS,
        replicas_per_shard: 1,
        persistent: false,
        formed_before: false,
        node_timeout: Duration::from_secs(5),
        patience: Duration::from_secs(30),
    };
    let started = Instant::now();
    let drive = drive(&wanted, &places, Duration::from_millis(50), LIMIT).await;
    let time = started.elapsed();
    ensure!(
        drive.assessment.is_whole(),
        "not whole: {:?}",
        drive.assessment.problems
    );
    Ok(time.as_secs_f64())
}

fn place(index: usize, node: &RedisServer) -> Place {
    let address = node.address();
    Place {
        pod: format!("bench-{index}"),
        shard: index % SHARDS,
        ordinal: index / SHARDS,
        address: Some(NodeAddress::new(address.ip(), address.port())),
        machine: None,
        leaving: false,
        down_since: None,
    }
}

/// Until it returns, and then until every node says that it is so and every replica is linked: the same end.
async fn rival() -> Result<f64> {
    let nodes = nodes().await?;
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
    eventually("the rival's cluster is whole", || whole(&nodes)).await?;
    Ok(started.elapsed().as_secs_f64())
}

async fn whole(nodes: &[RedisServer]) -> Result<bool> {
    let views = try_join_all(nodes.iter().map(|node| async move {
        let cluster: String = node.call("CLUSTER INFO").await?;
        let replication: String = node.call("INFO replication").await?;
        anyhow::Ok(
            cluster.contains("cluster_state:ok")
                && cluster.contains(&format!("cluster_known_nodes:{NODES}"))
                && (replication.contains("role:master")
                    || replication.contains("master_link_status:up")),
        )
    }))
    .await?;
    Ok(views.into_iter().all(|whole| whole))
}
