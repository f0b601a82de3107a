//! Kubernetes nodes: cut off, cordoned, and what runs on them.

use super::{LIMIT, pods, serving_primaries};
use crate::kubectl::Kubectl;
use anyhow::{Context, Result, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};
use tokio::process::Command;

/// `local-kubernetes cut` and `heal`: only the local cluster has cables.
pub async fn cable(action: &str, node: &str) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/local/local-kubernetes");
    let number = node.trim_start_matches("node");
    let output = Command::new(script).args([action, number]).output().await?;
    ensure!(
        output.status.success(),
        "{action} {node}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Waits until Kubernetes reports that a node is not Ready.
pub async fn not_ready(kubectl: &Kubectl, node: &str) -> Result<()> {
    let unready = async || {
        let conditions =
            kubectl.get(&format!("node {node}")).await?["status"]["conditions"].clone();
        let mut all = conditions.as_array().into_iter().flatten();
        Ok(all.any(|c| c["type"] == "Ready" && c["status"] != "True"))
    };
    kubectl
        .until(&format!("{node} is NotReady"), LIMIT, unready)
        .await
        .map(drop)
}

/// No new pod is placed on this node.
pub async fn cordon(kubectl: &Kubectl, node: &str) -> Result<()> {
    kubectl.run(&format!("cordon {node}")).await.map(drop)
}

/// New pods are placed on this node again.
pub async fn uncordon(kubectl: &Kubectl, node: &str) -> Result<()> {
    kubectl.run(&format!("uncordon {node}")).await.map(drop)
}

/// The pods of a cluster's primaries, shard by shard, by its status.
pub async fn primaries(kubectl: &Kubectl, cluster: &str) -> Result<Vec<String>> {
    let object = kubectl.get(&format!("rediscluster {cluster}")).await?;
    let shards = object["status"]["shardStatuses"].as_array();
    let primaries = shards.into_iter().flatten();
    Ok(primaries
        .filter_map(|shard| shard["primary"]["pod"].as_str().map(Into::into))
        .collect())
}

/// The primaries of a cluster on each node that runs any of its pods, by its status.
pub async fn primaries_by_node(
    kubectl: &Kubectl,
    cluster: &str,
) -> Result<BTreeMap<String, Vec<String>>> {
    let primaries = primaries(kubectl, cluster).await?.into_iter().collect();
    by_node(kubectl, cluster, &primaries).await
}

/// The same, by what their servers say.
pub async fn serving_primaries_by_node(
    kubectl: &Kubectl,
    cluster: &str,
) -> Result<BTreeMap<String, Vec<String>>> {
    let primaries = serving_primaries(kubectl, cluster).await?;
    by_node(kubectl, cluster, &primaries).await
}

async fn by_node(
    kubectl: &Kubectl,
    cluster: &str,
    primaries: &BTreeSet<String>,
) -> Result<BTreeMap<String, Vec<String>>> {
    let mut nodes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in pods(kubectl, cluster).await? {
        let name = pod["metadata"]["name"].as_str().context("no name")?;
        let node = pod["spec"]["nodeName"].as_str().context("not scheduled")?;
        let here = nodes.entry(node.to_owned()).or_default();
        if primaries.contains(name) {
            here.push(name.to_owned());
        }
    }
    Ok(nodes)
}
