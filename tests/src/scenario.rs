//! The steps of the demonstration and of the end-to-end suites: what a user does, and when it is done.

use crate::kubectl::{Kubectl, MADE_HERE, holds};
use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};
use std::{
    env,
    time::{Duration, Instant},
};

/// Longest wait for anything in a scenario.
pub const LIMIT: Duration = Duration::from_mins(3);
/// `cluster-node-timeout` of the clusters that scenarios make.
pub const NODE_TIMEOUT: Duration = Duration::from_secs(5);

/// apiVersion of the suite's kinds.
pub const API_VERSION: &str = "redis.danieldorado.github.io/v1alpha1";

/// The RedisVersion of the clusters that scenarios make: beside those that a user's catalog has.
pub const VERSION: &str = "redis-7.0.15-scenario";

/// The registry that images come from; set as in the Makefile.
pub fn registry() -> String {
    env::var("REGISTRY").unwrap_or_else(|_| "docker.io/local".into())
}

/// The image of Redis 7.0.15 with a shell: the one that deploy/local/images makes, or any other that `REDIS_IMAGE` names.
pub fn redis_image() -> String {
    env::var("REDIS_IMAGE").unwrap_or_else(|_| registry() + "/redis:7.0.15")
}

fn tools_image() -> String {
    let tag = env::var("TAG").unwrap_or_else(|_| "dev".into());
    format!("{}/redis-operator-tools:{tag}", registry())
}

/// A namespace that admits only restricted pods, with an S3 server and its credentials in it, and what its clusters run.
pub async fn namespace(name: &str) -> Result<Kubectl> {
    let kubectl = Kubectl::new(name);
    kubectl.create_namespace("restricted").await?;
    kubectl.apply(&s3_server()).await?;
    kubectl.apply(&version()).await?;
    Ok(kubectl)
}

fn version() -> String {
    let (label, value) = MADE_HERE;
    json!({"apiVersion": API_VERSION, "kind": "RedisVersion", "metadata": {"name": VERSION, "labels": {label: value}},
           "spec": {"version": "7.0.15", "distribution": "Redis", "image": redis_image()}})
    .to_string()
}

/// Location of backups in the scenario's S3 server. The controllers live in another namespace: the name is a full one.
pub fn s3_location(kubectl: &Kubectl) -> Value {
    let endpoint = format!("http://s3.{}.svc:9000", kubectl.namespace());
    json!({"bucket": "backups", "endpoint": endpoint, "credentialsSecretRef": {"name": "s3-credentials"}})
}

fn s3_server() -> String {
    let container = json!({
        "name": "s3", "image": tools_image(), "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/s3-server", "--listen", "0.0.0.0:9000", "--root", "/data", "--bucket", "backups",
                    "--access-key", "scenario", "--secret-key", "scenario-secret"],
        "ports": [{"containerPort": 9000}],
        "readinessProbe": {"tcpSocket": {"port": 9000}, "periodSeconds": 1},
        "securityContext": restricted(),
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    });
    let documents = [
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3-credentials"},
               "stringData": {"accessKeyId": "scenario", "secretAccessKey": "scenario-secret"}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s3"},
               "spec": {"selector": {"app": "s3"}, "ports": [{"port": 9000}]}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "s3"},
               "spec": {"selector": {"matchLabels": {"app": "s3"}}, "template": {
                   "metadata": {"labels": {"app": "s3"}},
                   "spec": {"containers": [container], "securityContext": pod_security(),
                            "volumes": [{"name": "data", "emptyDir": {}}]}}}}),
    ];
    documents
        .map(|document| document.to_string())
        .join("\n---\n")
}

fn restricted() -> Value {
    json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
}

fn pod_security() -> Value {
    json!({"runAsNonRoot": true, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}})
}

/// Starts the workload program in a pod of its own.
pub async fn start_workload(kubectl: &Kubectl, pod: &str, arguments: &[&str]) -> Result<()> {
    let mut command = vec!["/bin/workload"];
    command.extend(arguments);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "labels": {"app": "workload"}}, "spec": {
        "restartPolicy": "Never", "securityContext": pod_security(), "automountServiceAccountToken": false,
        "containers": [{"name": "workload", "image": tools_image(), "imagePullPolicy": "IfNotPresent",
                        "command": command, "securityContext": restricted()}]}});
    kubectl.apply(&pod.to_string()).await.map(drop)
}

/// Waits for a workload pod to end well, and answers what it printed.
pub async fn finish_workload(kubectl: &Kubectl, pod: &str) -> Result<String> {
    let ended = async || {
        let phase = kubectl.get(&format!("pod {pod}")).await?["status"]["phase"].clone();
        Ok(phase == "Succeeded" || phase == "Failed")
    };
    kubectl
        .until(&format!("the end of {pod}"), LIMIT, ended)
        .await?;
    let printed = kubectl.run(&format!("logs {pod}")).await?.trim().to_owned();
    ensure!(
        kubectl.get(&format!("pod {pod}")).await?["status"]["phase"] == "Succeeded",
        "{pod} failed: {printed}"
    );
    Ok(printed)
}

/// Runs the workload program in a pod to its end.
pub async fn workload(kubectl: &Kubectl, pod: &str, arguments: &[&str]) -> Result<String> {
    start_workload(kubectl, pod, arguments).await?;
    finish_workload(kubectl, pod).await
}

/// The RedisCluster that scenarios make.
pub async fn cluster(kubectl: &Kubectl, name: &str, shards: i32, storage: bool) -> Result<Value> {
    let mut spec = json!({"version": VERSION, "shards": shards, "replicasPerShard": 1,
                          "config": {"cluster-node-timeout": NODE_TIMEOUT.as_millis().to_string()},
                          "backup": {"storages": [{"name": "s3", "s3": s3_location(kubectl)}]}});
    if storage {
        spec["storage"] = json!({"size": "1Gi", "whenDeleted": "Delete"});
    }
    let object = json!({"apiVersion": API_VERSION, "kind": "RedisCluster",
                        "metadata": {"name": name}, "spec": spec});
    kubectl.apply(&object.to_string()).await?;
    Ok(object)
}

/// Pods of a cluster.
pub async fn pods(kubectl: &Kubectl, cluster: &str) -> Result<Vec<Value>> {
    kubectl
        .list(&format!("pods -l {}={cluster}", crds::LABEL_CLUSTER))
        .await
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

/// The ids of a cluster's nodes, sorted: who the nodes are, whatever their pods and addresses.
pub async fn node_ids(kubectl: &Kubectl, cluster: &str) -> Result<Vec<String>> {
    let names = pod_names(kubectl, cluster).await?;
    let asked = names
        .iter()
        .map(|pod| kubectl.exec(pod, "redis-cli cluster myid"));
    let mut ids = try_join_all(asked).await?;
    ids.sort();
    Ok(ids)
}

/// Whether the cluster serves wholly by every node's own word: state ok, all slots ok, every node known and linked,
/// every replica in sync, no open slot. A bare `cluster_state:ok` comes too early.
pub async fn whole(kubectl: &Kubectl, cluster: &str, nodes: usize) -> Result<bool> {
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
    Ok(views.iter().all(|view| {
        let says = |line: &str| view.lines().any(|found| found.trim() == line);
        let members: Vec<&str> = view.lines().filter(|line| line.contains('@')).collect();
        says("cluster_state:ok")
            && says("cluster_slots_ok:16384")
            && says(&format!("cluster_known_nodes:{nodes}"))
            && (says("role:master") || says("master_link_status:up"))
            && members.len() == nodes
            && members.iter().all(|line| {
                !line.contains("fail") && !line.contains("disconnected") && !line.contains('[')
            })
    }))
}

/// Waits until the cluster is Ready by its status and whole by its nodes.
pub async fn formed(kubectl: &Kubectl, name: &str, nodes: usize) -> Result<Duration> {
    let object = format!("rediscluster {name}");
    let ready = async || {
        Ok(holds(&kubectl.get(&object).await?, "Ready") && whole(kubectl, name, nodes).await?)
    };
    kubectl
        .until(&format!("cluster {name} formed"), LIMIT, ready)
        .await
}

/// Deletes all pods of a cluster at once and waits until it is whole again; answers the time from the moment the last
/// new pod ran.
pub async fn lose_all_pods(
    kubectl: &Kubectl,
    name: &str,
    nodes: usize,
    forced: bool,
) -> Result<Duration> {
    replace_all_pods(kubectl, name, nodes, forced).await?;
    healed(kubectl, name, nodes).await
}

/// Deletes all pods of a cluster at once and waits until the new ones run.
pub async fn replace_all_pods(
    kubectl: &Kubectl,
    name: &str,
    nodes: usize,
    forced: bool,
) -> Result<()> {
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

/// Waits until a cluster is whole again by its nodes, and answers how long that took.
pub async fn healed(kubectl: &Kubectl, name: &str, nodes: usize) -> Result<Duration> {
    let whole = async || whole(kubectl, name, nodes).await;
    kubectl
        .until(&format!("cluster {name} whole again"), LIMIT, whole)
        .await
}

fn started(pod: &Value) -> bool {
    let containers = pod["status"]["containerStatuses"].as_array();
    containers.is_some_and(|all| {
        all.iter()
            .all(|container| !container["state"]["running"].is_null())
    })
}

/// Waits for a RedisBackup or RedisRestore to end, and answers it; its failure is an error with its own words.
pub async fn ended(kubectl: &Kubectl, kind: &str, name: &str) -> Result<Value> {
    let what = format!("{kind} {name}");
    let over = async || {
        let object = kubectl.get(&what).await?;
        Ok(holds(&object, "Complete") || holds(&object, "Failed"))
    };
    kubectl.until(&format!("{what} ended"), LIMIT, over).await?;
    let object = kubectl.get(&what).await?;
    if holds(&object, "Failed") {
        kubectl.explain().await;
        bail!(
            "{what} failed: {}",
            object["status"]["message"]
                .as_str()
                .unwrap_or("without a word")
        );
    }
    Ok(object)
}

/// The time that a cluster's pods need by themselves until every server answers: the same StatefulSets, configuration and Services
/// in a namespace where no controller looks after them.
pub async fn pods_alone(kubectl: &Kubectl, cluster: &str, nodes: usize) -> Result<Duration> {
    let alone = Kubectl::new(&format!("{}-alone", kubectl.namespace()));
    alone.create_namespace("restricted").await?;
    let label = format!(
        "configmaps,services,statefulsets -l {}={cluster}",
        crds::LABEL_CLUSTER
    );
    let mut documents = Vec::new();
    for object in kubectl.list(&label).await? {
        let copy = copied(&object).context("copying a child object")?;
        let mut document = copy.to_string();
        if copy["kind"] == "StatefulSet" {
            // Without a controller no node gets slots, and none would ever be ready: that it answers has to do.
            document = document.replace("/ready.sh", "/alive.sh");
        }
        documents.push(document);
    }
    let started = Instant::now();
    alone.apply(&documents.join("\n---\n")).await?;
    let ready = async || {
        let pods = pods(&alone, cluster).await?;
        let ready = pods.iter().filter(|pod| {
            pod["status"]["conditions"].as_array().is_some_and(|all| {
                all.iter()
                    .any(|c| c["type"] == "Ready" && c["status"] == "True")
            })
        });
        Ok(ready.count() == nodes)
    };
    alone.until("the pods alone ready", LIMIT, ready).await?;
    let time = started.elapsed();
    alone.delete_namespace().await?;
    Ok(time)
}

/// An object without what ties it to its namespace and owner.
fn copied(object: &Value) -> Option<Value> {
    let mut spec = object["spec"].clone();
    if let Some(members) = spec.as_object_mut() {
        members.retain(|name, _| !name.starts_with("clusterIP"));
    }
    let mut copy = json!({"apiVersion": object.get("apiVersion")?, "kind": object.get("kind")?,
                          "metadata": {"name": object.pointer("/metadata/name")?, "labels": object.pointer("/metadata/labels")?}});
    for (name, value) in [("spec", spec), ("data", object["data"].clone())] {
        if !value.is_null() {
            copy[name] = value;
        }
    }
    if object["kind"] == "Service" && object["spec"]["clusterIP"] == "None" {
        copy["spec"]["clusterIP"] = json!("None");
    }
    Some(copy)
}
