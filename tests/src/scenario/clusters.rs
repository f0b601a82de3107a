//! RedisClusters: made, formed, deprived of their pods, healthy again.

use super::{
    API_VERSION, LIMIT, NODE_TIMEOUT, VERSION, no_data_was_dropped, s3_location, slot_map,
};
use crate::kubectl::{Kubectl, holds};
use anyhow::{Context, Result};
use futures::future::try_join_all;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// What a cluster keeps its data on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volumes {
    /// Memory only.
    None,
    /// Volumes that are deleted with the cluster.
    DeletedWithCluster,
    /// Volumes that stay when the cluster is deleted.
    Kept,
}

/// Applies the RedisCluster that scenarios make, and answers it.
pub async fn cluster(
    kubectl: &Kubectl,
    name: &str,
    shards: i32,
    volumes: Volumes,
) -> Result<Value> {
    let object = cluster_object(kubectl, name, shards, volumes);
    kubectl.apply(&object.to_string()).await?;
    Ok(object)
}

/// The RedisCluster that scenarios make, with a replica a shard.
pub fn cluster_object(kubectl: &Kubectl, name: &str, shards: i32, volumes: Volumes) -> Value {
    let mut spec = cluster_spec(shards, 1);
    spec["config"] = json!({"cluster-node-timeout": NODE_TIMEOUT.as_millis().to_string()});
    spec["backup"] = json!({"storages": [{"name": "s3", "s3": s3_location(kubectl)}]});
    let when_deleted = match volumes {
        Volumes::None => None,
        Volumes::DeletedWithCluster => Some("Delete"),
        Volumes::Kept => Some("Retain"),
    };
    if let Some(when_deleted) = when_deleted {
        spec["storage"] = json!({"size": "1Gi", "whenDeleted": when_deleted});
    }
    json!({"apiVersion": API_VERSION, "kind": "RedisCluster", "metadata": {"name": name}, "spec": spec})
}

/// What the spec of every cluster of a scenario has, be it made by the scenario or by a RedisRestore.
pub fn cluster_spec(shards: i32, replicas: i32) -> Value {
    json!({"version": VERSION, "shards": shards, "replicasPerShard": replicas, "auth": open_auth()})
}

/// `spec.auth` of a cluster whose clients give neither a user nor a password and may do everything. The controllers log in as their own
/// users.
pub fn open_auth() -> Value {
    json!({"defaultUser": {"noPassword": true}})
}

/// Changes the spec of a cluster.
pub async fn spec(kubectl: &Kubectl, cluster: &str, change: Value) -> Result<()> {
    let what = format!("rediscluster {cluster}");
    kubectl.patch(&what, &json!({ "spec": change })).await
}

/// Waits until a condition of a cluster has this status and reason, and answers its message.
pub async fn condition(
    kubectl: &Kubectl,
    cluster: &str,
    (condition, status, reason): (&str, &str, &str),
) -> Result<String> {
    let mut message = String::new();
    let reported = async || {
        let object = kubectl.get(&format!("rediscluster {cluster}")).await?;
        let all = object["status"]["conditions"].as_array().cloned();
        let found = all.into_iter().flatten().find(|c| {
            c["type"] == condition
                && c["status"] == status
                && c["reason"] == reason
                && c["observedGeneration"] == object["metadata"]["generation"]
        });
        let words = found.as_ref().and_then(|c| c["message"].as_str());
        words.unwrap_or_default().clone_into(&mut message);
        Ok(found.is_some())
    };
    let wait = format!("{cluster}: {condition}={status}, {reason}");
    kubectl.until(&wait, LIMIT, reported).await?;
    Ok(message)
}

/// Pods of a cluster.
pub async fn pods(kubectl: &Kubectl, cluster: &str) -> Result<Vec<Value>> {
    kubectl
        .list(&format!("pods -l {}={cluster}", crds::LABEL_CLUSTER))
        .await
}

/// Uids of pods.
pub fn uids(pods: &[Value]) -> BTreeSet<String> {
    let uids = pods.iter().map(|pod| pod["metadata"]["uid"].to_string());
    uids.collect()
}

/// Uids of objects by name.
pub fn uids_by_name(objects: &[Value]) -> Result<BTreeMap<String, String>> {
    let uid = |object: &Value| {
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str().context("no name")?;
        Ok((name.to_owned(), metadata["uid"].to_string()))
    };
    objects.iter().map(uid).collect()
}

/// Names of the pods of a cluster.
pub async fn pod_names(kubectl: &Kubectl, cluster: &str) -> Result<Vec<String>> {
    pod_names_by(kubectl, &format!("{}={cluster}", crds::LABEL_CLUSTER)).await
}

/// Names of the pods that a label selects.
pub async fn pod_names_by(kubectl: &Kubectl, label: &str) -> Result<Vec<String>> {
    let pods = kubectl.list(&format!("pods -l {label}")).await?;
    let names = pods.iter().map(|pod| pod["metadata"]["name"].as_str());
    names
        .map(|name| Ok(name.context("a pod without a name")?.to_owned()))
        .collect()
}

/// Whether every node itself reports a healthy cluster: state ok, all slots ok, every node known and linked, every replica in sync,
/// no open slot. A bare `cluster_state:ok` comes too early.
pub async fn healthy(kubectl: &Kubectl, cluster: &str, nodes: usize) -> Result<bool> {
    let pods = pods(kubectl, cluster).await?;
    let running = pods.iter().filter(|pod| {
        pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null()
    });
    let names: Vec<String> = running
        .filter_map(|pod| pod["metadata"]["name"].as_str().map(Into::into))
        .collect();
    if names.len() != nodes {
        return Ok(false);
    }
    let script = "redis-cli cluster info; redis-cli info replication; redis-cli cluster nodes";
    let views = try_join_all(names.iter().map(|pod| kubectl.exec(pod, script))).await?;
    Ok(views.iter().all(|view| reports_health(view, nodes)))
}

fn reports_health(view: &str, nodes: usize) -> bool {
    let has = |line: &str| view.lines().any(|found| found.trim() == line);
    let members: Vec<&str> = view.lines().filter(|line| line.contains('@')).collect();
    has("cluster_state:ok")
        && has("cluster_slots_ok:16384")
        && has(&format!("cluster_known_nodes:{nodes}"))
        && (has("role:master") || has("master_link_status:up"))
        && members.len() == nodes
        && members.iter().all(|line| {
            // A host name may have any of these words.
            let word = |index| line.split_whitespace().nth(index).unwrap_or_default();
            !word(2).contains("fail") && word(7) == "connected" && !line.contains('[')
        })
}

/// Waits until the cluster is Ready by its status, healthy by its nodes, and its Service leads to each of them. Answers the time until the
/// status said so, where the nodes confirm that at once: asking each in its pod takes longer than what is measured.
pub async fn formed(kubectl: &Kubectl, name: &str, nodes: usize) -> Result<Duration> {
    let object = format!("rediscluster {name}");
    let started = Instant::now();
    let mut confirmed = None;
    let ready = async || {
        if !holds(&kubectl.get(&object).await?, "Ready") {
            return Ok(false);
        }
        let said = started.elapsed();
        let healthy = healthy(kubectl, name, nodes).await?;
        let is_first = confirmed.is_none();
        confirmed = Some(if is_first { said } else { started.elapsed() });
        Ok(healthy)
    };
    let formed = kubectl
        .until(&format!("cluster {name} formed"), LIMIT, ready)
        .await?;
    reachable(kubectl, name, nodes).await?;
    Ok(confirmed.unwrap_or(formed))
}

/// Deletes all pods of a cluster at once and waits until it is healthy again; answers the time from the moment the last
/// new pod ran.
pub async fn lose_all_pods(
    kubectl: &Kubectl,
    name: &str,
    nodes: usize,
    forced: bool,
) -> Result<Duration> {
    replace_all_pods(kubectl, name, nodes, forced).await?;
    recovered(kubectl, name, nodes).await
}

/// Deletes all pods of a cluster at once and waits until the new ones run. What their servers were sent is checked first: the count
/// ends with them.
pub async fn replace_all_pods(
    kubectl: &Kubectl,
    name: &str,
    nodes: usize,
    forced: bool,
) -> Result<()> {
    no_data_was_dropped(kubectl, name).await?;
    let before: Vec<Value> = pods(kubectl, name)
        .await?
        .iter()
        .map(|pod| pod["metadata"]["uid"].clone())
        .collect();
    let how = if forced {
        "--force --grace-period=0"
    } else {
        "--wait=false"
    };
    kubectl
        .run(&format!(
            "delete pods -l {}={name} {how}",
            crds::LABEL_CLUSTER
        ))
        .await?;
    let replaced = async || {
        let now = pods(kubectl, name).await?;
        let fresh = now
            .iter()
            .filter(|pod| !before.contains(&pod["metadata"]["uid"]) && started(pod));
        Ok(now.len() == nodes && fresh.count() == nodes)
    };
    kubectl
        .until("every pod replaced and running", LIMIT, replaced)
        .await
        .map(drop)
}

/// Waits until a cluster is healthy again by its nodes, and answers how long that took; then until its Service leads to each of them.
pub async fn recovered(kubectl: &Kubectl, name: &str, nodes: usize) -> Result<Duration> {
    let healthy = async || healthy(kubectl, name, nodes).await;
    let time = kubectl
        .until(&format!("cluster {name} healthy again"), LIMIT, healthy)
        .await?;
    reachable(kubectl, name, nodes).await?;
    Ok(time)
}

/// Waits until so many shards serve the slots with so many replicas each, no other pod is left, and the cluster is Ready; answers how long
/// that took. Then until it is healthy by its nodes.
pub async fn has_shards(
    kubectl: &Kubectl,
    name: &str,
    shards: usize,
    replicas: usize,
) -> Result<Duration> {
    let nodes = shards * (1 + replicas);
    let equal = async || {
        let status = kubectl.get(&format!("rediscluster {name}")).await?["status"].clone();
        Ok(status["shards"] == shards
            && status["phase"] == "Ready"
            && pods(kubectl, name).await?.len() == nodes
            && slot_map(kubectl, name).await?.len() == shards)
    };
    let wait = format!("{shards} shards with {replicas} replicas");
    let time = kubectl.until(&wait, LIMIT, equal).await?;
    formed(kubectl, name, nodes).await?;
    Ok(time)
}

/// Waits until the cluster's Service has every node as a ready endpoint: who connects after that needs no patience.
async fn reachable(kubectl: &Kubectl, name: &str, nodes: usize) -> Result<()> {
    let slices = format!("endpointslices -l kubernetes.io/service-name={name}");
    let complete = async || {
        let slices = kubectl.list(&slices).await?;
        let endpoints = slices
            .iter()
            .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true);
        Ok(ready.count() == nodes)
    };
    kubectl
        .until(
            &format!("Service {name} with {nodes} endpoints"),
            LIMIT,
            complete,
        )
        .await
        .map(drop)
}

fn started(pod: &Value) -> bool {
    let containers = pod["status"]["containerStatuses"].as_array();
    containers.is_some_and(|all| {
        all.iter()
            .all(|container| !container["state"]["running"].is_null())
    })
}
