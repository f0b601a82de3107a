//! A RedisCluster on a real Kubernetes: formed, deprived of its pods and volumes in every way that users report, and healthy again.

use anyhow::{Context, Result, ensure};
use std::time::Duration;
use tests::{
    crash::Killers,
    kubectl::Kubectl,
    scenario::{self, FilledCluster, LIMIT, NODE_TIMEOUT, Volumes, Writer},
};

const KEYS: u64 = 20_000;

/// Recovered is later than the last pod's start by at most this.
const GOAL: Duration = Duration::from_secs(3 + 2 * NODE_TIMEOUT.as_secs());

/// All pods deleted, gracefully and by force, with the controller and without: ids, slots, values and acknowledged writes are there.
#[tokio::test]
async fn a_cluster_with_volumes_survives_the_loss_of_all_pods() -> Result<()> {
    scenario::run("e2e-all-pods", async |kubectl| {
        let shop =
            FilledCluster::create(kubectl, "shop", 3, Volumes::DeletedWithCluster, KEYS).await?;
        let writer = Writer::start(kubectl, "shop").await?;
        for (step, forced) in [("graceful", false), ("forced", true)] {
            let recovered = shop.lose_all_pods(forced).await?;
            println!(
                "all pods deleted, {step}: healthy {:.1} s after the last pod ran",
                recovered.as_secs_f64()
            );
            shop.is_intact(step).await?;
            shop.has_its_ids(step).await?;
            ensure!(
                recovered <= GOAL,
                "{step}: took {recovered:?}, the goal is {GOAL:?}"
            );
        }
        for (step, forced) in [("graceful-alone", false), ("forced-alone", true)] {
            without_controller(async || shop.replace_all_pods(forced).await).await?;
            shop.recovered().await?;
            shop.is_intact(step).await?;
            shop.has_its_ids(step).await?;
        }
        writer.finish().await.map(drop)
    })
    .await
}

/// Does something while no cluster-controller runs; afterwards two do, whatever happened.
async fn without_controller(action: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    scenario::scale("cluster-controller", 0).await?;
    let done = action().await;
    scenario::scale("cluster-controller", 2).await?;
    done
}

/// One pod deleted together with its volume: a node with a new id replaces it, the old id is forgotten.
#[tokio::test]
async fn a_lost_volume_costs_a_node_and_no_key() -> Result<()> {
    scenario::run("e2e-volume", async |kubectl| {
        let shop =
            FilledCluster::create(kubectl, "shop", 3, Volumes::DeletedWithCluster, KEYS).await?;
        let ids = scenario::node_ids(kubectl, "shop").await?;
        kubectl.run("delete pvc data-shop-1-0 --wait=false").await?;
        kubectl.run("delete pod shop-1-0").await?;
        let replaced = async || {
            Ok(scenario::healthy(kubectl, "shop", shop.nodes()).await?
                && scenario::node_ids(kubectl, "shop").await? != ids)
        };
        kubectl
            .until("healthy with a new node", LIMIT, replaced)
            .await?;
        shop.recovered().await?;
        shop.is_intact("volume").await
    })
    .await
}

/// Without volumes: a primary's process is killed and restarted in place; its replica takes over with every key, and the labels follow.
#[tokio::test]
async fn a_killed_primary_in_memory_is_replaced_by_its_replica() -> Result<()> {
    scenario::run("e2e-memory", async |kubectl| {
        let killers = Killers::start(kubectl).await?;
        let cache = FilledCluster::create(kubectl, "cache", 3, Volumes::None, KEYS).await?;
        let primary = primary(kubectl, "cache", 1).await?;
        killers.kill_pod(kubectl, &primary).await?;
        let recovered = cache.recovered().await?;
        println!(
            "killed primary in memory: healthy {:.1} s after it ran again",
            recovered.as_secs_f64()
        );
        cache.is_intact("killed").await?;
        let pod = kubectl.get(&format!("pod {primary}")).await?;
        let label = &pod["metadata"]["labels"][crds::LABEL_ROLE];
        ensure!(
            label == crds::ROLE_REPLICA,
            "{primary} was replaced as a primary, and its label says {label}"
        );
        killers.end().await
    })
    .await
}

/// A cluster that is deleted leaves its kept volumes, and one of the same name that is created later starts with their keys.
#[tokio::test]
async fn kept_volumes_serve_a_cluster_created_again() -> Result<()> {
    scenario::run("e2e-kept", async |kubectl| {
        let shop = FilledCluster::create(kubectl, "shop", 3, Volumes::Kept, KEYS).await?;
        kubectl.run("delete rediscluster shop").await?;
        let gone = async || Ok(scenario::pods(kubectl, "shop").await?.is_empty());
        kubectl
            .until("the cluster's pods gone", LIMIT, gone)
            .await?;
        let label = format!("pvc -l {}=shop", crds::LABEL_CLUSTER);
        let volumes = kubectl.list(&label).await?.len();
        ensure!(
            volumes == shop.nodes(),
            "{volumes} volumes stayed of {}",
            shop.nodes()
        );
        scenario::cluster(kubectl, "shop", 3, Volumes::Kept).await?;
        scenario::formed(kubectl, "shop", shop.nodes()).await?;
        shop.has_its_ids("created again").await?;
        shop.is_intact("again").await
    })
    .await
}

async fn primary(kubectl: &Kubectl, cluster: &str, shard: usize) -> Result<String> {
    let object = kubectl.get(&format!("rediscluster {cluster}")).await?;
    let pod = object["status"]["shardStatuses"][shard]["primary"]["pod"].as_str();
    Ok(pod
        .with_context(|| format!("shard {shard} has no primary: {}", object["status"]))?
        .to_owned())
}
