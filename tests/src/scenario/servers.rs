//! What the servers of a cluster report about themselves.

use super::{LIMIT, clusters::pods, pod_names};
use crate::kubectl::Kubectl;
use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use std::collections::{BTreeMap, BTreeSet};

/// Commands that drop keys, slots or an identity, or hide that one of them was called. None has a place in a cluster that did not lose
/// every copy of a shard.
const DESTRUCTIVE: [&str; 8] = [
    "flushall",
    "flushdb",
    "swapdb",
    "cluster|reset",
    "cluster|delslots",
    "cluster|delslotsrange",
    "cluster|flushslots",
    "config|resetstat",
];

const COMMAND_STATISTICS: &str = "redis-cli info commandstats";

/// Runs a shell command in every pod of a cluster; answers what each printed, by the pod's name.
pub async fn on_every_server(
    kubectl: &Kubectl,
    cluster: &str,
    script: &str,
) -> Result<BTreeMap<String, String>> {
    let names = pod_names(kubectl, cluster).await?;
    ensure!(!names.is_empty(), "cluster {cluster} has no pods");
    let asked = names.into_iter().map(|pod| async move {
        let answer = kubectl.exec(&pod, script).await?;
        anyhow::Ok((pod, answer))
    });
    Ok(try_join_all(asked).await?.into_iter().collect())
}

/// Whole copies that each server has sent, and replicas that are linked to it.
pub async fn links(kubectl: &Kubectl, cluster: &str) -> Result<BTreeMap<String, String>> {
    let script = "redis-cli info | grep -E '^(sync_full|connected_slaves|master_link_status):'";
    on_every_server(kubectl, cluster, script).await
}

/// The ids of a cluster's nodes, sorted: they identify the nodes, whatever their pods and addresses are.
pub async fn node_ids(kubectl: &Kubectl, cluster: &str) -> Result<Vec<String>> {
    let ids = on_every_server(kubectl, cluster, "redis-cli cluster myid").await?;
    let mut ids: Vec<String> = ids.into_values().collect();
    ids.sort();
    Ok(ids)
}

/// The slots of each shard as its primary reports them, by the name of the shard's StatefulSet. A shard with two primaries is an error.
pub async fn slot_map(kubectl: &Kubectl, cluster: &str) -> Result<BTreeMap<String, String>> {
    let script = "redis-cli cluster nodes | grep myself";
    let mut map = BTreeMap::new();
    for (pod, line) in on_every_server(kubectl, cluster, script).await? {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let slots = fields.get(8..).unwrap_or_default().join(" ");
        if slots.is_empty() {
            continue;
        }
        let (shard, _) = pod.rsplit_once('-').context("a pod without an ordinal")?;
        let before = map.insert(shard.to_owned(), slots);
        ensure!(before.is_none(), "{shard} has two nodes with slots");
    }
    Ok(map)
}

/// Fails if a server of the cluster has executed a command that drops data since its process began.
pub async fn no_data_was_dropped(kubectl: &Kubectl, cluster: &str) -> Result<()> {
    let answers = on_every_server(kubectl, cluster, COMMAND_STATISTICS).await?;
    let mut answers = answers.iter();
    answers.try_for_each(|(pod, statistics)| has_nothing_destructive(pod, statistics))
}

/// The same of one server: before its process ends, and the statistics with it.
pub async fn no_data_was_dropped_by(kubectl: &Kubectl, pod: &str) -> Result<()> {
    let statistics = kubectl.exec(pod, COMMAND_STATISTICS).await?;
    has_nothing_destructive(pod, &statistics)
}

fn has_nothing_destructive(pod: &str, statistics: &str) -> Result<()> {
    ensure!(
        statistics.contains("cmdstat_info:") || statistics.contains("cmdstat_cluster|"),
        "{pod} reports no statistics of commands: {statistics}"
    );
    for command in DESTRUCTIVE {
        let called = format!("cmdstat_{command}:");
        let line = statistics.lines().find(|line| line.starts_with(&called));
        ensure!(line.is_none(), "{pod} was sent {command}: {line:?}");
    }
    Ok(())
}

/// Waits until the role label of every pod is what its server reports.
pub async fn roles_are_labelled(kubectl: &Kubectl, cluster: &str) -> Result<()> {
    let mut last = String::new();
    let equal = async || {
        let roles = on_every_server(kubectl, cluster, "redis-cli role | head -1").await?;
        let pods = pods(kubectl, cluster).await?;
        let differing = pods.iter().filter_map(|pod| {
            let name = pod["metadata"]["name"].as_str()?;
            let label = &pod["metadata"]["labels"][crds::LABEL_ROLE];
            let role = match roles.get(name).map(|role| role.trim()) {
                Some("master") => crds::ROLE_PRIMARY,
                Some("slave") => crds::ROLE_REPLICA,
                _ => "unknown",
            };
            (label != role).then(|| format!("{name} is a {role}, and its label is {label}"))
        });
        last = differing.collect::<Vec<_>>().join("; ");
        Ok(last.is_empty() && pods.len() == roles.len())
    };
    let waited = kubectl.until("role labels of all pods", LIMIT, equal).await;
    waited.map(drop).with_context(|| last.clone())
}

/// The pods that run primaries, by what their servers say: the status is as old as the controller's last look.
pub async fn serving_primaries(kubectl: &Kubectl, cluster: &str) -> Result<BTreeSet<String>> {
    let roles = on_every_server(kubectl, cluster, "redis-cli role | head -1").await?;
    let primaries = roles
        .into_iter()
        .filter(|(_, role)| role.trim() == "master");
    Ok(primaries.map(|(pod, _)| pod).collect())
}
