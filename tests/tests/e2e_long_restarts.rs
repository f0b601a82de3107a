//! Pods that all end and come back: in another order, after many crashes, without a volume.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tests::{
    crash::Killers,
    kubectl::Kubectl,
    scenario::{self, Area, FilledCluster, LIMIT, ScenarioRow, Volumes, Writer},
};

const KEYS: u64 = 20_000;
/// Kills of the same pod: the sixth start would wait for 160 s in CrashLoopBackOff.
const KILLS: usize = 6;
/// Back within so long after the last kill.
const BACK: Duration = Duration::from_mins(1);

/// All machines go down, and come back one after the other, the last first.
#[tokio::test]
async fn a_reboot_in_reversed_order_loses_nothing() -> Result<()> {
    scenario::run("e2e-reboot", async |kubectl| {
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        let writer = Writer::start(kubectl, "shop").await?;
        let nodes = pods_by_node(kubectl).await?;
        for node in nodes.keys() {
            scenario::cordon(kubectl, node).await?;
        }
        let rebooted = rebooted(kubectl, &nodes).await;
        for node in nodes.keys() {
            scenario::uncordon(kubectl, node).await?;
        }
        rebooted?;
        let recovered = shop.recovered().await?;
        shop.is_intact("rebooted").await?;
        shop.has_its_ids("rebooted").await?;
        let done = "all pods deleted by force; the Kubernetes nodes take pods again one after the other, the last first";
        ScenarioRow::new(Area::Pods, "reboot in reversed order", done)
            .healthy_after(recovered)
            .lost(0)
            .writes(&writer.finish().await?)
            .note("since the last pod runs")
            .record()
    })
    .await
}

/// How many pods of the cluster each Kubernetes node has.
async fn pods_by_node(kubectl: &Kubectl) -> Result<BTreeMap<String, usize>> {
    let mut nodes = BTreeMap::new();
    for pod in scenario::pods(kubectl, "shop").await? {
        if let Some(node) = pod["spec"]["nodeName"].as_str() {
            *nodes.entry(node.to_owned()).or_default() += 1;
        }
    }
    Ok(nodes)
}

async fn rebooted(kubectl: &Kubectl, nodes: &BTreeMap<String, usize>) -> Result<()> {
    scenario::no_data_was_dropped(kubectl, "shop").await?;
    let label = format!("{}=shop", crds::LABEL_CLUSTER);
    let delete = format!("delete pods -l {label} --force --grace-period=0");
    kubectl.run(&delete).await?;
    let all = nodes.values().sum::<usize>();
    let pending = async || {
        let pods = scenario::pods(kubectl, "shop").await?;
        let waiting = pods.iter().filter(|pod| pod["spec"]["nodeName"].is_null());
        Ok(pods.len() == all && waiting.count() == all)
    };
    kubectl
        .until("every pod waits for a node", LIMIT, pending)
        .await?;
    for (node, pods) in nodes.iter().rev() {
        scenario::uncordon(kubectl, node).await?;
        let runs = async || {
            let here = scenario::pods(kubectl, "shop").await?;
            let here = here.iter().filter(|pod| {
                pod["spec"]["nodeName"] == **node && pod["status"]["phase"] == "Running"
            });
            Ok(here.count() == *pods)
        };
        let wait = format!("{pods} pods run on {node}");
        kubectl.until(&wait, LIMIT, runs).await?;
    }
    Ok(())
}

/// Kubernetes would let a pod wait longer and longer; one whose server served until it was killed is replaced.
#[tokio::test]
async fn a_pod_that_is_killed_often_is_back_soon() -> Result<()> {
    scenario::run("e2e-back-off", async |kubectl| {
        let killers = Killers::start(kubectl).await?;
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        let primaries = scenario::primaries(kubectl, "shop").await?;
        let victim = primaries.first().context("no primary")?;
        let writer = Writer::start(kubectl, "shop").await?;
        let mut begun = Instant::now();
        for _ in 0..KILLS {
            begun = killers.kill_pod(kubectl, victim).await?;
            shop.recovered().await?;
        }
        let recovered = begun.elapsed();
        shop.is_intact("killed").await?;
        let done =
            format!("kill -9 of the same pod {KILLS} times, each time when the cluster is healthy");
        ScenarioRow::new(Area::Pods, "pod killed often", &done)
            .healthy_after(recovered)
            .lost(0)
            .writes(&writer.finish().await?)
            .note(format!("since the last kill; goal {} s", BACK.as_secs()))
            .record()?;
        ensure!(
            recovered <= BACK,
            "healthy {recovered:?} after the last kill"
        );
        killers.end().await
    })
    .await
}

/// What has no copy is lost; the cluster must serve again, empty, without a hand on it.
#[tokio::test]
async fn a_cluster_in_memory_serves_again_after_all_pods() -> Result<()> {
    scenario::run("e2e-memory-lost", async |kubectl| {
        let cache = FilledCluster::create(kubectl, "cache", 3, Volumes::None, KEYS).await?;
        let recovered = cache.lose_all_pods(true).await?;
        let sizes = scenario::on_every_server(
            kubectl,
            "cache",
            "redis-cli role | head -1; redis-cli dbsize",
        )
        .await?;
        let mut left = 0;
        for (pod, answer) in sizes {
            let (role, size) = answer.trim().split_once('\n').context("no size")?;
            let size: u64 = size
                .trim()
                .parse()
                .with_context(|| format!("{pod}: {answer}"))?;
            left += if role.trim() == "master" { size } else { 0 };
        }
        let done = "3 shards with a replica each without volumes: all pods deleted by force";
        ScenarioRow::new(Area::Pods, "all pods deleted, in memory", done)
            .healthy_after(recovered)
            .lost(KEYS.saturating_sub(left))
            .note("by design: no copy outlives the pods; healthy since the last pod runs")
            .record()?;
        let again = ["fill", "cache:6379", "--keys", "1000"];
        scenario::workload(kubectl, "again", &again).await?;
        let verify = ["verify", "cache:6379", "--keys", "1000"];
        scenario::workload(kubectl, "verify", &verify)
            .await
            .map(drop)
    })
    .await
}

/// Without replicas the volumes are all there is.
#[tokio::test]
async fn a_cluster_without_replicas_comes_back_from_its_volumes() -> Result<()> {
    scenario::run("e2e-no-replicas", async |kubectl| {
        let volumes = Volumes::DeletedWithCluster;
        let mut shop = scenario::cluster_object(kubectl, "shop", 3, volumes);
        shop["spec"]["replicasPerShard"] = json!(0);
        kubectl.apply(&shop.to_string()).await?;
        let shop = FilledCluster::fill_shards(kubectl, "shop", (3, 3), KEYS).await?;
        let writer = Writer::start(kubectl, "shop").await?;
        let recovered = shop.lose_all_pods(true).await?;
        shop.is_intact("back").await?;
        shop.has_its_ids("back").await?;
        let done = "3 shards without replicas, volumes: all pods deleted by force";
        ScenarioRow::new(Area::Pods, "all pods deleted, no replicas", done)
            .healthy_after(recovered)
            .lost(0)
            .writes(&writer.finish().await?)
            .note("since the last pod runs")
            .record()
    })
    .await
}
