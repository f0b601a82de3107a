//! The Kubernetes node with the most primaries is cut off the network: after all pods were lost, which may put them together, and once they
//! are spread again.

use anyhow::{Context, Result, ensure};
use std::time::Duration;
use tests::{
    kubectl::{Kubectl, holds},
    scenario::{self, Area, FilledCluster, LIMIT, NODE_TIMEOUT, ScenarioRow, Volumes, Writer},
};

const KEYS: u64 = 20_000;
/// The longest time without an acknowledged write, as it is to be.
const GOAL: Duration = Duration::from_millis(NODE_TIMEOUT.as_secs() * 1500);
/// And as it may be. The servers need it themselves (`clusterCron` and `clusterHandleSlaveFailover` in the
/// engine's `cluster.c`): a ping goes out within half a node timeout and is missed after a whole one, the primaries tell each other so
/// within a second, and the replica stands for election within another one.
const GAP: Duration = GOAL.saturating_add(Duration::from_secs(2));
/// Primaries are on different nodes again after so long.
const SPREAD: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_node_with_most_primaries_costs_one_election() -> Result<()> {
    scenario::run("e2e-most", async |kubectl| {
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        shop.lose_all_pods(true).await?;
        let spread = async || {
            let nodes = scenario::primaries_by_node(kubectl, "shop").await?;
            Ok(nodes.values().all(|primaries| primaries.len() == 1))
        };
        kubectl
            .until("a primary on each node", SPREAD, spread)
            .await?;
        let (node, primaries) = fullest(kubectl).await?;
        scenario::cordon(kubectl, &node).await?;
        let writer = Writer::start(kubectl, "shop").await?;
        let served = serves_without(kubectl, &shop, &node).await;
        scenario::cable("heal", &node).await?;
        scenario::uncordon(kubectl, &node).await?;
        served?;
        let recovered = shop.recovered().await?;
        shop.is_intact("back").await?;
        shop.has_its_ids("back").await?;
        let seen = writer.finish().await?;
        let done = format!(
            "all pods deleted by force, then the node with {primaries} primaries is cut off"
        );
        ScenarioRow::new(Area::Nodes, "node with the most primaries cut off", &done)
            .healthy_after(recovered)
            .lost(0)
            .writes(&seen)
            .note(format!(
                "since the node is back; goal {} s of gap, {}; at most {} s",
                GOAL.as_secs_f64(),
                scenario::met(seen.longest_gap <= GOAL),
                GAP.as_secs_f64()
            ))
            .record()?;
        ensure!(seen.longest_gap <= GAP, "{seen}");
        Ok(())
    })
    .await
}

/// The node with the most primaries, and how many; of several one that the S3 server does not need.
async fn fullest(kubectl: &Kubectl) -> Result<(String, usize)> {
    let servers = kubectl.list("pods -l app=s3").await?;
    let needed = |node: &str| servers.iter().any(|pod| pod["spec"]["nodeName"] == node);
    let nodes = scenario::primaries_by_node(kubectl, "shop").await?;
    let fullest = nodes
        .iter()
        .max_by_key(|(node, primaries)| (primaries.len(), !needed(node)));
    let (node, primaries) = fullest.context("no nodes")?;
    Ok((node.clone(), primaries.len()))
}

async fn serves_without(kubectl: &Kubectl, shop: &FilledCluster<'_>, node: &str) -> Result<()> {
    scenario::cable("cut", node).await?;
    scenario::not_ready(kubectl, node).await?;
    let served = async || {
        let cluster = kubectl.get("rediscluster shop").await?;
        Ok(holds(&cluster, "Available") && !holds(&cluster, "Ready"))
    };
    let wait = "all slots are served without it";
    kubectl.until(wait, LIMIT, served).await?;
    shop.has_its_values("cut").await
}
