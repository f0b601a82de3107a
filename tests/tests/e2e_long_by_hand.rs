//! What people do to a running cluster with redis-cli: the controller reports it and takes nothing away.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::{
    kubectl::Kubectl,
    scenario::{self, Area, FilledCluster, LIMIT, ScenarioRow, Volumes, Writer},
};

const KEYS: u64 = 5_000;
/// Slots that are moved by hand.
const SLOTS: u16 = 1000;
/// Earlier versions forgot such a node, and gave its slots away, within 30 s.
const WATCHED: Duration = Duration::from_secs(40);

/// A node is added by hand and gets slots; in memory, where slots of nodes that are gone are created again. Later it is removed by hand.
#[tokio::test]
async fn a_node_added_by_hand_keeps_its_keys() -> Result<()> {
    scenario::run("e2e-by-hand", async |kubectl| {
        let shop = FilledCluster::create(kubectl, "shop", 3, Volumes::None, KEYS).await?;
        let writer = Writer::start(kubectl, "shop").await?;
        let (address, id) = added(kubectl).await?;
        reshard(kubectl, &address, "all", &id).await?;
        let reason = ("Ready", "False", "NodeWithoutPod");
        let message = scenario::condition(kubectl, "shop", reason).await?;
        ensure!(message.contains(&address), "{message}");
        let begun = Instant::now();
        while begun.elapsed() < WATCHED {
            serves(kubectl, &address, &id).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        shop.has_its_values("added").await?;

        let primaries = scenario::primaries(kubectl, "shop").await?;
        let primary = primaries.first().context("no primary")?;
        let home = kubectl.exec(primary, "redis-cli cluster myid").await?;
        reshard(kubectl, &address, &id, home.trim()).await?;
        let mut begun = Instant::now();
        // It copies the one that took its last slots, and refuses redis-cli while it loads that.
        let remove = format!("redis-cli --cluster del-node {address} {id} 2>&1; echo status $?");
        let removed = async || {
            begun = Instant::now();
            let printed = kubectl.exec(primary, &remove).await?;
            println!("by hand: {printed}");
            Ok(printed.contains("status 0"))
        };
        let wait = "redis-cli removes the node";
        kubectl.until(wait, LIMIT, removed).await?;
        scenario::has_shards(kubectl, "shop", 3, 1).await?;
        let recovered = begun.elapsed();
        shop.has_its_values("removed").await?;
        scenario::no_data_was_dropped(kubectl, "shop").await?;
        let done = format!(
            "a node is added to a cluster in memory and gets {SLOTS} slots, then gives them back and is removed, all with redis-cli"
        );
        ScenarioRow::new(Area::Nodes, "node added by hand", &done)
            .healthy_after(recovered)
            .lost(0)
            .writes(&writer.finish().await?)
            .note("since it was removed; until then Ready says what to do")
            .record()
    })
    .await
}

/// Starts a server that no RedisCluster has and adds it to the cluster; answers its address and id.
async fn added(kubectl: &Kubectl) -> Result<(String, String)> {
    kubectl.apply(&server().to_string()).await?;
    let wait = "wait pod added --for=condition=Ready --timeout=60s";
    kubectl.run(wait).await?;
    let pod = kubectl.get("pod added").await?;
    let ip = pod["status"]["podIP"].as_str().context("no address")?;
    let address = format!("{ip}:6379");
    let id = kubectl.exec("added", "redis-cli cluster myid").await?;
    let add = format!("redis-cli --cluster add-node {address} $POD_IP:6379");
    kubectl.exec("shop-0-0", &add).await?;
    let id = id.trim().to_owned();
    let known = async || {
        let script = format!("redis-cli cluster nodes | grep {id} || true");
        let lines = scenario::on_every_server(kubectl, "shop", &script).await?;
        let connected = |line: &String| line.contains(" connected");
        Ok(lines.values().all(connected))
    };
    let wait = "every node knows the added one";
    kubectl.until(wait, LIMIT, known).await?;
    Ok((address, id))
}

/// Moves slots as a person does; a table that is not yet the same everywhere is waited for.
async fn reshard(kubectl: &Kubectl, address: &str, from: &str, to: &str) -> Result<()> {
    let script = format!(
        "redis-cli --cluster reshard {address} --cluster-from {from} --cluster-to {to} --cluster-slots {SLOTS} --cluster-yes"
    );
    let mut printed = String::new();
    let moved = async || {
        // Its exit status is 0 in some failures too.
        printed = kubectl
            .exec("added", &format!("{script} 2>&1 | tail -5"))
            .await?;
        let owned = slots(kubectl, address).await?;
        Ok(if from == "all" {
            owned >= u64::from(SLOTS) - 3
        } else {
            owned == 0
        })
    };
    let waited = kubectl.until("redis-cli moves slots", LIMIT, moved).await;
    waited.map(drop).with_context(|| printed.clone())
}

/// How many slots the added node serves by its own report.
async fn slots(kubectl: &Kubectl, address: &str) -> Result<u64> {
    let port = address.rsplit_once(':').context("no port")?.1;
    let script = format!("redis-cli -p {port} cluster nodes | grep myself");
    let line = kubectl.exec("added", &script).await?;
    let ranges = line.split_whitespace().skip(8);
    ranges
        .filter(|range| !range.starts_with('['))
        .map(|range| {
            let (start, end) = range.split_once('-').unwrap_or((range, range));
            Ok(end.parse::<u64>()? + 1 - start.parse::<u64>()?)
        })
        .sum()
}

/// It has its slots, and every node of the cluster knows it.
async fn serves(kubectl: &Kubectl, address: &str, id: &str) -> Result<()> {
    let owned = slots(kubectl, address).await?;
    ensure!(
        owned >= u64::from(SLOTS) - 3,
        "{owned} slots are left to {id}"
    );
    let tables = scenario::on_every_server(kubectl, "shop", "redis-cli cluster nodes").await?;
    for (pod, table) in tables {
        ensure!(table.contains(id), "{pod} has forgotten {id}:\n{table}");
    }
    Ok(())
}

fn server() -> Value {
    let user = json!({"runAsNonRoot": true, "runAsUser": 999, "seccompProfile": {"type": "RuntimeDefault"}});
    let restricted = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    let timeout = scenario::NODE_TIMEOUT.as_millis().to_string();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "added"}, "spec": {
        "automountServiceAccountToken": false, "securityContext": user,
        "containers": [{"name": "redis", "image": scenario::redis_image(), "imagePullPolicy": "IfNotPresent",
            "command": ["redis-server", "--save", "", "--dir", "/tmp", "--protected-mode", "no",
                        "--cluster-enabled", "yes", "--cluster-node-timeout", timeout],
            "readinessProbe": {"tcpSocket": {"port": 6379}, "periodSeconds": 1}, "securityContext": restricted}]}})
}
