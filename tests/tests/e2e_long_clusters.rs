//! Twenty clusters that are made at once need little more time than as many pods of the same image.

use anyhow::{Result, ensure};
use serde_json::json;
use std::time::{Duration, Instant};
use tests::{
    kubectl::{Kubectl, holds},
    scenario::{self, API_VERSION, Area, LIMIT, NODE_TIMEOUT, ScenarioRow},
};

const CLUSTERS: usize = 20;
const SHARDS: usize = 3;
/// How many times as long as the bare pods the clusters are to take. It is missed: their StatefulSets, Services and ConfigMaps alone, without
/// any controller, take most of that time (FIGURES.md).
const GOAL: f64 = 1.5;
/// What they may take, at most.
const MOST: f64 = 2.5;
/// Seconds between two probes of a bare pod: as often as the probes of ours while they start.
const PERIOD: u32 = 1;

#[tokio::test]
async fn twenty_clusters_at_once_form_like_bare_pods() -> Result<()> {
    scenario::run("e2e-many-clusters", async |kubectl| {
        // Before and after: the first ones find nothing in the caches of the machine.
        let before = bare(kubectl).await?;
        let ours = clusters(kubectl).await?;
        for name in names() {
            scenario::formed(kubectl, &name, SHARDS).await?;
        }
        no_restart(kubectl).await?;
        delete(kubectl).await?;
        let after = bare(kubectl).await?;
        let bare = (before + after) / 2;
        let ratio = ours.as_secs_f64() / bare.as_secs_f64();
        let figures = format!(
            "{} bare pods of the same image: {before:.1?} before, {after:.1?} after; ratio {ratio:.2}, goal {GOAL}, {}; at most {MOST}",
            CLUSTERS * SHARDS,
            scenario::met(ratio <= GOAL)
        );
        let done = format!("{CLUSTERS} clusters of {SHARDS} shards without replicas, in memory, at once");
        ScenarioRow::new(Area::Forming, "many clusters", &done)
            .healthy_after(ours)
            .note(figures)
            .record()?;
        ensure!(ratio <= MOST, "{ours:?} is {ratio:.2} times {bare:?}");
        Ok(())
    })
    .await
}

fn names() -> impl Iterator<Item = String> {
    (0..CLUSTERS).map(|number| format!("shop{number}"))
}

async fn bare(kubectl: &Kubectl) -> Result<Duration> {
    scenario::idle_machine().await?;
    let time = scenario::bare_pods(kubectl, CLUSTERS * SHARDS, PERIOD).await?;
    scenario::delete_bare_pods(kubectl).await?;
    Ok(time)
}

/// The time until each cluster says of itself that it is Ready.
async fn clusters(kubectl: &Kubectl) -> Result<Duration> {
    let mut spec = scenario::cluster_spec(i32::try_from(SHARDS)?, 0);
    spec["config"] = json!({"cluster-node-timeout": NODE_TIMEOUT.as_millis().to_string()});
    let objects = names().map(|name| {
        json!({"apiVersion": API_VERSION, "kind": "RedisCluster", "metadata": {"name": name}, "spec": spec})
            .to_string()
    });
    let objects: Vec<String> = objects.collect();
    scenario::idle_machine().await?;
    let started = Instant::now();
    kubectl.apply(&objects.join("\n---\n")).await?;
    let ready = async || {
        let clusters = kubectl.list("redisclusters").await?;
        let ready = clusters.iter().filter(|one| holds(one, "Ready"));
        Ok(ready.count() == CLUSTERS)
    };
    kubectl.until("every cluster Ready", LIMIT, ready).await?;
    Ok(started.elapsed())
}

async fn no_restart(kubectl: &Kubectl) -> Result<()> {
    let pods = kubectl
        .list(&format!("pods -l {}", crds::LABEL_CLUSTER))
        .await?;
    ensure!(pods.len() == CLUSTERS * SHARDS, "{} pods", pods.len());
    for pod in pods {
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        ensure!(*restarts == 0, "{}: {restarts}", pod["metadata"]["name"]);
    }
    Ok(())
}

async fn delete(kubectl: &Kubectl) -> Result<()> {
    kubectl.run("delete redisclusters --all").await?;
    let gone = async || {
        let pods = format!("pods -l {}", crds::LABEL_CLUSTER);
        Ok(kubectl.list(&pods).await?.is_empty())
    };
    kubectl
        .until("the clusters' pods gone", LIMIT, gone)
        .await
        .map(drop)
}
