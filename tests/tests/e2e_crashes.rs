//! What no process is told beforehand: SIGKILL for servers and controllers in the middle of their work, and a node without
//! its cable.

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};
use std::{collections::BTreeSet, path::Path};
use tests::{
    crash::Killers,
    kubectl::{Kubectl, holds},
    scenario::{self, LIMIT},
};
use tokio::process::Command;

const NODES: usize = 6;
const KEYS: &str = "100000";

/// The append-only file is written before a client is answered: what was acknowledged is there when the process is not.
#[tokio::test]
async fn killing_every_server_right_after_the_writes_loses_none() -> Result<()> {
    let kubectl = scenario::namespace("e2e-kill").await?;
    let killers = Killers::start(&kubectl).await?;
    scenario::cluster(&kubectl, "shop", 3, true).await?;
    scenario::formed(&kubectl, "shop", NODES).await?;
    let ids = scenario::node_ids(&kubectl, "shop").await?;
    let pods = scenario::pods(&kubectl, "shop").await?;
    scenario::workload(&kubectl, "fill", &["fill", "shop:6379", "--keys", KEYS]).await?;
    killers.kill(&kubectl, &pods).await?;
    let healed = scenario::healed(&kubectl, "shop", NODES).await?;
    println!(
        "every server killed: whole {:.1} s after the last one ran again",
        healed.as_secs_f64()
    );
    scenario::workload(&kubectl, "check", &["check", "shop:6379", "--keys", KEYS]).await?;
    ensure!(
        scenario::node_ids(&kubectl, "shop").await? == ids,
        "node ids changed"
    );
    killers.end().await?;
    kubectl.delete_namespace().await
}

/// One replica of each controller is killed while it works; the other's work goes on, and the copy compares equal.
#[tokio::test]
async fn killed_controllers_cost_their_own_work_and_nothing_else() -> Result<()> {
    let kubectl = scenario::namespace("e2e-workers").await?;
    let killers = Killers::start(&kubectl).await?;
    scenario::cluster(&kubectl, "shop", 4, false).await?;
    scenario::cluster(&kubectl, "copy", 5, false).await?;
    scenario::formed(&kubectl, "shop", 8).await?;
    scenario::workload(&kubectl, "fill", &["fill", "shop:6379", "--keys", "4000"]).await?;

    // A thousand keys a shard at 10 ms each: a stream takes 10 s.
    on_every_node(&kubectl, "shop", "config set rdb-key-save-delay 10000").await?;
    kubectl.apply(&backup()).await?;
    let streaming = shared(&kubectl, "redisbackup now", "shards", "Streaming").await?;
    let killed = killers
        .kill_one(&kubectl_of_controllers(), &streaming)
        .await?;
    on_every_node(&kubectl, "shop", "config set rdb-key-save-delay 0").await?;
    let done = scenario::ended(&kubectl, "redisbackup", "now").await?;
    others_are_untouched(&streaming, &done["status"]["shards"], &killed)?;

    scenario::formed(&kubectl, "copy", 10).await?;
    on_every_node(&kubectl, "copy", "client pause 60000 write").await?;
    kubectl.apply(&restore()).await?;
    let replaying = shared(&kubectl, "redisrestore copy", "units", "Replaying").await?;
    let killed = killers
        .kill_one(&kubectl_of_controllers(), &replaying)
        .await?;
    on_every_node(&kubectl, "copy", "client unpause").await?;
    let done = scenario::ended(&kubectl, "redisrestore", "copy").await?;
    ensure!(holds(&done, "Verified"), "{}", done["status"]["conditions"]);
    others_are_untouched(&replaying, &done["status"]["units"], &killed)?;
    scenario::workload(&kubectl, "compare", &["compare", "shop:6379", "copy:6379"]).await?;
    killers.end().await?;
    kubectl.delete_namespace().await
}

fn backup() -> String {
    json!({"apiVersion": scenario::API_VERSION, "kind": "RedisBackup", "metadata": {"name": "now"},
           "spec": {"clusterRef": {"name": "shop"}, "storageName": "s3"}})
    .to_string()
}

fn restore() -> String {
    json!({"apiVersion": scenario::API_VERSION, "kind": "RedisRestore", "metadata": {"name": "copy"},
           "spec": {"source": {"backupRef": {"name": "now"}}, "target": {"clusterRef": {"name": "copy"}}}})
    .to_string()
}

fn kubectl_of_controllers() -> Kubectl {
    Kubectl::new("redis-operator-system")
}

async fn on_every_node(kubectl: &Kubectl, cluster: &str, command: &str) -> Result<()> {
    let script = format!("redis-cli {command}");
    let names = scenario::pod_names(kubectl, cluster).await?;
    try_join_all(names.iter().map(|pod| kubectl.exec(pod, &script))).await?;
    Ok(())
}

/// Waits until all units are at work on two replicas, and answers them.
async fn shared(kubectl: &Kubectl, what: &str, units: &str, state: &str) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    let at_work = async || {
        found = units_of(&kubectl.get(what).await?["status"][units]);
        let workers: BTreeSet<_> = found
            .iter()
            .map(|unit| unit["worker"].to_string())
            .collect();
        Ok(workers.len() == 2 && found.iter().all(|unit| unit["state"] == state))
    };
    let wait = format!("{what}: every unit {state}, on two replicas");
    kubectl.until(&wait, LIMIT, at_work).await?;
    Ok(found)
}

fn units_of(array: &Value) -> Vec<Value> {
    array.as_array().cloned().unwrap_or_default()
}

/// Units of the replica that lived are still its own, at their first attempt.
fn others_are_untouched(before: &[Value], after: &Value, killed: &str) -> Result<()> {
    let after = units_of(after);
    ensure!(
        after.len() == before.len(),
        "units came or went: {after:#?}"
    );
    for (before, after) in before.iter().zip(&after) {
        if before["worker"] != killed {
            ensure!(
                after["worker"] == before["worker"] && after["attempt"] == 1,
                "{killed} was killed, and it cost {before} too: {after}"
            );
        }
    }
    Ok(())
}

/// A node falls silent: its primaries are replaced by their replicas and every key is served; when it is back, so is all.
#[tokio::test]
async fn a_cut_node_costs_no_key_and_comes_back() -> Result<()> {
    let kubectl = scenario::namespace("e2e-cut").await?;
    scenario::cluster(&kubectl, "shop", 3, true).await?;
    scenario::formed(&kubectl, "shop", NODES).await?;
    scenario::workload(&kubectl, "fill", &["fill", "shop:6379", "--keys", "20000"]).await?;
    let ids = scenario::node_ids(&kubectl, "shop").await?;
    // The node of a primary, and none that the S3 server or the like needs.
    let status = kubectl.get("rediscluster shop").await?;
    let primary = status["status"]["shardStatuses"][0]["primary"]["pod"]
        .as_str()
        .context("no primary")?;
    let node = kubectl.get(&format!("pod {primary}")).await?["spec"]["nodeName"]
        .as_str()
        .context("a pod without a node")?
        .to_owned();
    cable("cut", &node).await?;
    let survived = survives(&kubectl, &node).await;
    cable("heal", &node).await?;
    survived?;
    let healed = scenario::healed(&kubectl, "shop", NODES).await?;
    println!(
        "the node is back: whole after {:.1} s",
        healed.as_secs_f64()
    );
    scenario::workload(&kubectl, "back", &["check", "shop:6379", "--keys", "20000"]).await?;
    ensure!(
        scenario::node_ids(&kubectl, "shop").await? == ids,
        "node ids changed"
    );
    kubectl.delete_namespace().await
}

async fn survives(kubectl: &Kubectl, node: &str) -> Result<()> {
    let silent = async || {
        let conditions =
            kubectl.get(&format!("node {node}")).await?["status"]["conditions"].clone();
        let mut all = conditions.as_array().into_iter().flatten();
        Ok(all.any(|c| c["type"] == "Ready" && c["status"] != "True"))
    };
    kubectl.until("the node is NotReady", LIMIT, silent).await?;
    let served = async || {
        let cluster = kubectl.get("rediscluster shop").await?;
        Ok(holds(&cluster, "Available") && !holds(&cluster, "Ready"))
    };
    kubectl
        .until("all slots are served without it", LIMIT, served)
        .await?;
    scenario::workload(kubectl, "cut", &["check", "shop:6379", "--keys", "20000"])
        .await
        .map(drop)
}

/// `local-kubernetes cut` and `heal`: only the local cluster has cables.
async fn cable(action: &str, node: &str) -> Result<()> {
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
