//! A RedisCluster on a real Kubernetes: formed, deprived of its pods and volumes in every way that users report, and healthy again.

use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use tests::{
    crash::Killers,
    kubectl::Kubectl,
    scenario::{
        self, Area, FilledCluster, LIMIT, NODE_TIMEOUT, ScenarioRow, Volumes, Writer,
        roles_are_labelled,
    },
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
        for (step, forced) in [("graceful", false), ("forced", true)] {
            let writer = Writer::start(kubectl, "shop").await?;
            let recovered = shop.lose_all_pods(forced).await?;
            shop.is_intact(step).await?;
            shop.has_its_ids(step).await?;
            all_pods(step)
                .healthy_after(recovered)
                .writes(&writer.finish().await?)
                .note(format!(
                    "since the last pod runs; goal {} s",
                    GOAL.as_secs()
                ))
                .record()?;
            ensure!(
                recovered <= GOAL,
                "{step}: took {recovered:?}, the goal is {GOAL:?}"
            );
        }
        for (step, forced) in [("graceful-alone", false), ("forced-alone", true)] {
            let writer = Writer::start(kubectl, "shop").await?;
            without_controller(async || shop.replace_all_pods(forced).await).await?;
            let recovered = shop.recovered().await?;
            shop.is_intact(step).await?;
            shop.has_its_ids(step).await?;
            all_pods(&format!("{step}, without a controller"))
                .healthy_after(recovered)
                .writes(&writer.finish().await?)
                .note("since the controller has been scaled up again")
                .record()?;
        }
        Ok(())
    })
    .await
}

fn all_pods(how: &str) -> ScenarioRow {
    let done = format!("3 shards with a replica each, volumes: {how}");
    ScenarioRow::new(Area::Pods, "all pods deleted", &done).lost(0)
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
        let writer = Writer::start(kubectl, "shop").await?;
        let begun = Instant::now();
        let victim = primary(kubectl, "shop", 1).await?;
        let claim = format!("delete pvc data-{victim} --wait=false");
        kubectl.run(&claim).await?;
        kubectl.run(&format!("delete pod {victim}")).await?;
        let replaced = async || {
            Ok(scenario::healthy(kubectl, "shop", shop.nodes()).await?
                && scenario::node_ids(kubectl, "shop").await? != ids)
        };
        kubectl
            .until("healthy with a new node", LIMIT, replaced)
            .await?;
        shop.recovered().await?;
        let recovered = begun.elapsed();
        shop.is_intact("volume").await?;
        let done = "the PersistentVolumeClaim and the pod of a primary are deleted";
        ScenarioRow::new(Area::Volumes, "volume lost", done)
            .healthy_after(recovered)
            .lost(0)
            .writes(&writer.finish().await?)
            .record()
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
        let writer = Writer::start(kubectl, "cache").await?;
        let begun = killers.kill_pod(kubectl, &primary).await?;
        cache.recovered().await?;
        let recovered = begun.elapsed();
        cache.is_intact("killed").await?;
        let done = "kill -9 of a primary without a volume, restarted in place";
        ScenarioRow::new(Area::Pods, "primary in memory killed", done)
            .healthy_after(recovered)
            .lost(0)
            .writes(&writer.finish().await?)
            .record()?;
        // That its replica took over is proven by the keys. By now the primaries may have been spread again, and the slots be back.
        roles_are_labelled(kubectl, "cache").await?;
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
        let begun = Instant::now();
        scenario::cluster(kubectl, "shop", 3, Volumes::Kept).await?;
        scenario::formed(kubectl, "shop", shop.nodes()).await?;
        let formed = begun.elapsed();
        shop.has_its_ids("created again").await?;
        shop.is_intact("again").await?;
        let done = "the RedisCluster is deleted and created again over its kept volumes";
        ScenarioRow::new(Area::Volumes, "created again", done)
            .healthy_after(formed)
            .lost(0)
            .record()
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
