//! A RedisCluster on a real Kubernetes: formed, broken in every way that users report, healed, and quiet when all is well.

use anyhow::{Context, Result, ensure};
use std::time::Duration;
use tests::{
    crash::Killers,
    kubectl::Kubectl,
    scenario::{self, LIMIT, NODE_TIMEOUT},
};

const NODES: usize = 6;
const KEYS: &str = "20000";

/// Recovered is later than the last pod's start by at most this.
const GOAL: Duration = Duration::from_secs(3 + 2 * NODE_TIMEOUT.as_secs());

async fn keys_kept(kubectl: &Kubectl, cluster: &str, step: &str) -> Result<()> {
    let address = format!("{cluster}:6379");
    scenario::workload(
        kubectl,
        &format!("check-{step}"),
        &["check", &address, "--keys", KEYS],
    )
    .await
    .map(drop)
}

async fn filled(kubectl: &Kubectl, cluster: &str, storage: bool) -> Result<()> {
    scenario::cluster(kubectl, cluster, 3, storage).await?;
    scenario::formed(kubectl, cluster, NODES).await?;
    let address = format!("{cluster}:6379");
    scenario::workload(kubectl, "fill", &["fill", &address, "--keys", KEYS])
        .await
        .map(drop)
}

async fn scale_controller(replicas: u32) -> Result<()> {
    let system = Kubectl::new("redis-operator-system");
    system
        .run(&format!(
            "scale deployment cluster-controller --replicas={replicas}"
        ))
        .await?;
    let done = async || {
        let pods = system
            .list("pods -l app.kubernetes.io/name=cluster-controller")
            .await?;
        Ok(pods.len() == replicas as usize)
    };
    system
        .until("the controller scaled", LIMIT, done)
        .await
        .map(drop)
}

/// All pods deleted: gracefully, by force, and while the controller is down. Ids, slots and keys come back.
#[tokio::test]
async fn a_cluster_with_volumes_survives_the_loss_of_all_pods() -> Result<()> {
    let kubectl = scenario::namespace("e2e-all-pods").await?;
    filled(&kubectl, "shop", true).await?;
    let ids = scenario::node_ids(&kubectl, "shop").await?;
    for (step, forced) in [("graceful", false), ("forced", true)] {
        let healed = scenario::lose_all_pods(&kubectl, "shop", NODES, forced).await?;
        println!(
            "all pods deleted, {step}: whole {:.1} s after the last pod ran",
            healed.as_secs_f64()
        );
        keys_kept(&kubectl, "shop", step).await?;
        ensure!(
            scenario::node_ids(&kubectl, "shop").await? == ids,
            "{step}: node ids changed"
        );
        ensure!(
            healed <= GOAL,
            "{step}: took {healed:?}, the goal is {GOAL:?}"
        );
    }
    scale_controller(0).await?;
    let replaced = scenario::replace_all_pods(&kubectl, "shop", NODES, false).await;
    scale_controller(2).await?;
    replaced?;
    kubectl
        .until("whole after the controller is back", LIMIT, async || {
            scenario::whole(&kubectl, "shop", NODES).await
        })
        .await?;
    keys_kept(&kubectl, "shop", "controller-down").await?;
    ensure!(
        scenario::node_ids(&kubectl, "shop").await? == ids,
        "node ids changed while the controller was down"
    );
    kubectl.delete_namespace().await
}

/// One pod deleted together with its volume: a new id takes its place, the old one is forgotten.
#[tokio::test]
async fn a_lost_volume_costs_a_node_and_no_key() -> Result<()> {
    let kubectl = scenario::namespace("e2e-volume").await?;
    filled(&kubectl, "shop", true).await?;
    let ids = scenario::node_ids(&kubectl, "shop").await?;
    kubectl.run("delete pvc data-shop-1-0 --wait=false").await?;
    kubectl.run("delete pod shop-1-0").await?;
    let replaced = async || {
        Ok(scenario::whole(&kubectl, "shop", NODES).await?
            && scenario::node_ids(&kubectl, "shop").await? != ids)
    };
    kubectl
        .until("whole with a new node", LIMIT, replaced)
        .await?;
    keys_kept(&kubectl, "shop", "volume").await?;
    kubectl.delete_namespace().await
}

/// Without volumes: a primary's process is killed and restarted in place; its replica takes over with every key.
#[tokio::test]
async fn a_killed_primary_in_memory_is_replaced_by_its_replica() -> Result<()> {
    let kubectl = scenario::namespace("e2e-memory").await?;
    let killers = Killers::start(&kubectl).await?;
    filled(&kubectl, "cache", false).await?;
    let status = kubectl.get("rediscluster cache").await?;
    let primary = status["status"]["shardStatuses"][1]["primary"]["pod"]
        .as_str()
        .context("no primary")?;
    let pod = kubectl.get(&format!("pod {primary}")).await?;
    killers.kill(&kubectl, &[pod]).await?;
    let healed = scenario::healed(&kubectl, "cache", NODES).await?;
    println!(
        "killed primary in memory: whole {:.1} s after it ran again",
        healed.as_secs_f64()
    );
    keys_kept(&kubectl, "cache", "killed").await?;
    killers.end().await?;
    kubectl.delete_namespace().await
}
