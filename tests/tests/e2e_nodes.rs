//! Kubernetes nodes that are cut off the network, or that take no pods.

use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use tests::{
    kubectl::{Kubectl, holds},
    scenario::{self, Area, FilledCluster, LIMIT, ScenarioRow, Volumes, Writer},
};

const KEYS: u64 = 20_000;
/// Primaries are spread again within this time. A role that a server changes by itself raises no event in Kubernetes: it is seen by a look, at
/// most 30 s after the one before.
const SPREAD: Duration = Duration::from_secs(32);

/// A node falls silent: its primary is replaced by its replica and every key is served; when it is back, all is as it was.
#[tokio::test]
async fn a_cut_node_costs_no_key_and_comes_back() -> Result<()> {
    scenario::run("e2e-cut", async |kubectl| {
        let shop =
            FilledCluster::create(kubectl, "shop", 3, Volumes::DeletedWithCluster, KEYS).await?;
        let node = expendable(kubectl).await?;
        // What the scenario itself needs runs elsewhere.
        scenario::cordon(kubectl, &node).await?;
        let survived = survives(kubectl, &shop, &node).await;
        scenario::cable("heal", &node).await?;
        scenario::uncordon(kubectl, &node).await?;
        let writer = survived?;
        let recovered = shop.recovered().await?;
        shop.is_intact("back").await?;
        shop.has_its_ids("back").await?;
        let done = "the node of one primary is cut off, until Kubernetes calls it NotReady";
        ScenarioRow::new(Area::Nodes, "node cut off", done)
            .healthy_after(recovered)
            .lost(0)
            .writes(&writer.finish().await?)
            .note("since the node is back")
            .record()
    })
    .await
}

/// The node of exactly one primary, so that the majority of the primaries lives on, and not the S3 server's.
async fn expendable(kubectl: &Kubectl) -> Result<String> {
    let servers = kubectl.list("pods -l app=s3").await?;
    let needed: Vec<&str> = servers
        .iter()
        .filter_map(|pod| pod["spec"]["nodeName"].as_str())
        .collect();
    let nodes = scenario::primaries_by_node(kubectl, "shop").await?;
    let mut ones = nodes.iter().filter(|(_, primaries)| primaries.len() == 1);
    let found = ones.find(|(node, _)| !needed.contains(&node.as_str()));
    let (node, _) = found.with_context(|| {
        format!("no node of one primary besides {needed:?}, which the S3 server needs: {nodes:?}")
    })?;
    Ok(node.clone())
}

async fn survives<'a>(
    kubectl: &'a Kubectl,
    shop: &FilledCluster<'_>,
    node: &str,
) -> Result<Writer<'a>> {
    let writer = Writer::start(kubectl, "shop").await?;
    scenario::cable("cut", node).await?;
    scenario::not_ready(kubectl, node).await?;
    let served = async || {
        let cluster = kubectl.get("rediscluster shop").await?;
        Ok(holds(&cluster, "Available") && !holds(&cluster, "Ready"))
    };
    kubectl
        .until("all slots are served without it", LIMIT, served)
        .await?;
    shop.has_its_values("cut").await?;
    Ok(writer)
}

/// A pod whose volume is on a cordoned node cannot come back: the cluster serves without it, and its status names the cause.
#[tokio::test]
async fn a_cordoned_node_costs_no_key() -> Result<()> {
    scenario::run("e2e-cordon", async |kubectl| {
        let shop =
            FilledCluster::create(kubectl, "shop", 3, Volumes::DeletedWithCluster, KEYS).await?;
        let nodes = scenario::primaries_by_node(kubectl, "shop").await?;
        let (node, primary) = nodes
            .iter()
            .find_map(|(node, primaries)| Some((node, primaries.first()?)))
            .context("no primaries")?;
        scenario::cordon(kubectl, node).await?;
        let served = serves_without(kubectl, &shop, primary).await;
        scenario::uncordon(kubectl, node).await?;
        served?;
        let recovered = shop.recovered().await?;
        shop.is_intact("uncordoned").await?;
        shop.has_its_ids("uncordoned").await?;
        let done = "a primary with a volume is deleted while its node is cordoned";
        ScenarioRow::new(Area::Nodes, "node cordoned", done)
            .healthy_after(recovered)
            .lost(0)
            .note("since the node is schedulable again")
            .record()
    })
    .await
}

async fn serves_without(kubectl: &Kubectl, shop: &FilledCluster<'_>, pod: &str) -> Result<()> {
    kubectl.run(&format!("delete pod {pod}")).await?;
    let mut message = String::new();
    let explained = async || {
        let cluster = kubectl.get("rediscluster shop").await?;
        message = cluster["status"]["message"].to_string();
        Ok(holds(&cluster, "Available")
            && !holds(&cluster, "Ready")
            && message.contains(pod)
            && message.contains("not scheduled"))
    };
    let what = format!("served without {pod}, and the reason in the message");
    let waited = kubectl.until(&what, LIMIT, explained).await;
    waited.with_context(|| format!("the message is {message}"))?;
    println!("cordoned: {message}");
    shop.has_its_values("cordoned").await?;
    let replacement = kubectl.get(&format!("pod {pod}")).await?;
    ensure!(
        replacement["spec"]["nodeName"].is_null(),
        "{pod} was placed on a cordoned node: {replacement}"
    );
    Ok(())
}

/// Failovers have left two primaries on one node: they are spread again, and no write is lost meanwhile.
#[tokio::test]
async fn primaries_are_spread_after_failovers() -> Result<()> {
    scenario::run("e2e-spread", async |kubectl| {
        let shop =
            FilledCluster::create(kubectl, "shop", 3, Volumes::DeletedWithCluster, KEYS).await?;
        let writer = Writer::start(kubectl, "shop").await?;
        let replica = crowding(kubectl).await?;
        let before = hand_overs(kubectl).await?;
        let begun = Instant::now();
        kubectl
            .run(&format!(
                "exec {replica} -c redis -- redis-cli cluster failover"
            ))
            .await?;
        let handed_over = async || Ok(hand_overs(kubectl).await? > before);
        kubectl
            .until("a primary is handed over", SPREAD, handed_over)
            .await?;
        let spread = async || {
            let nodes = scenario::serving_primaries_by_node(kubectl, "shop").await?;
            Ok(nodes.len() == 3 && nodes.values().all(|primaries| primaries.len() == 1))
        };
        let took = kubectl
            .until("a primary is on each node", SPREAD, spread)
            .await?;
        let all = begun.elapsed();
        ensure!(all <= SPREAD, "the primaries were spread after {all:?}");
        shop.recovered().await?;
        let recovered = begun.elapsed();
        shop.is_intact("spread").await?;
        let done = "a failover puts two primaries on one node: one is handed over";
        ScenarioRow::new(Area::Nodes, "primaries spread", done)
            .healthy_after(recovered)
            .lost(0)
            .writes(&writer.finish().await?)
            .note(format!(
                "spread {:.1} s after the hand-over",
                took.as_secs_f64()
            ))
            .record()
    })
    .await
}

/// How often a primary was handed over, by the Events.
async fn hand_overs(kubectl: &Kubectl) -> Result<u64> {
    let events = kubectl.list("events").await?;
    let handed_over = events
        .iter()
        .filter(|event| event["reason"] == "PrimaryHandedOver");
    Ok(handed_over
        .map(|event| event["series"]["count"].as_u64().unwrap_or(1))
        .sum())
}

/// A replica on the node of another shard's primary.
async fn crowding(kubectl: &Kubectl) -> Result<String> {
    let nodes = scenario::primaries_by_node(kubectl, "shop").await?;
    for pod in scenario::pods(kubectl, "shop").await? {
        let name = pod["metadata"]["name"].as_str().context("no name")?;
        let node = pod["spec"]["nodeName"].as_str().context("not scheduled")?;
        let primaries = nodes.get(node).map(Vec::as_slice).unwrap_or_default();
        if !primaries.is_empty() && !primaries.iter().any(|primary| primary == name) {
            return Ok(name.to_owned());
        }
    }
    anyhow::bail!("no replica is on the node of a primary: {nodes:?}")
}
