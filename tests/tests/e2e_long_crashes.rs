//! SIGKILL, of which no process knows beforehand, for servers and controllers in the middle of their work.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tests::{
    crash::Killers,
    kubectl::{Kubectl, holds},
    scenario::{self, Area, FilledCluster, LIMIT, ScenarioRow, Volumes, Writer},
};

const KEYS: u64 = 100_000;

/// The append-only file is written before a client is answered: what was acknowledged is there when the process is not.
#[tokio::test]
async fn killing_every_server_loses_no_acknowledged_write() -> Result<()> {
    scenario::run("e2e-kill", async |kubectl| {
        let killers = Killers::start(kubectl).await?;
        let shop =
            FilledCluster::create(kubectl, "shop", 3, Volumes::DeletedWithCluster, KEYS).await?;
        let writer = Writer::start(kubectl, "shop").await?;
        let pods = scenario::pods(kubectl, "shop").await?;
        killers.kill(kubectl, &pods).await?;
        let recovered = shop.recovered().await?;
        shop.is_intact("killed").await?;
        shop.has_its_ids("killed").await?;
        let done = "kill -9 of all 6 servers with volumes at once";
        ScenarioRow::new(Area::Pods, "every server killed", done)
            .healthy_after(recovered)
            .lost(0)
            .writes(&writer.finish().await?)
            .note("since the last one runs again")
            .record()?;
        killers.end().await
    })
    .await
}

/// The leader is killed while a cluster forms and while it is repaired: another replica, or the restarted one, finishes.
#[tokio::test]
async fn a_killed_leader_leaves_no_cluster_unfinished() -> Result<()> {
    scenario::run("e2e-leader", async |kubectl| {
        let killers = Killers::start(kubectl).await?;
        let nodes = 6;
        scenario::cluster(kubectl, "shop", 3, Volumes::DeletedWithCluster).await?;
        let runs = async || {
            let pods = scenario::pods(kubectl, "shop").await?;
            Ok(pods.iter().any(|pod| pod["status"]["phase"] == "Running"))
        };
        kubectl.until("the first pod runs", LIMIT, runs).await?;
        killers.send_kill(&[leader().await?]).await?;
        let cluster = kubectl.get("rediscluster shop").await?;
        ensure!(
            !holds(&cluster, "Formed"),
            "the cluster was formed before its leader ended"
        );
        let shop = FilledCluster::fill(kubectl, "shop", nodes, 20_000).await?;

        let leader = leader().await?;
        let before = scenario::pods(kubectl, "shop").await?;
        let label = format!("{}=shop", crds::LABEL_CLUSTER);
        kubectl
            .run(&format!("delete pods -l {label} --wait=false"))
            .await?;
        let replaced = async || {
            let pods = scenario::pods(kubectl, "shop").await?;
            let uid = |pod: &Value| pod["metadata"]["uid"].clone();
            let known = |pod: &Value| before.iter().any(|old| uid(old) == uid(pod));
            Ok(pods
                .iter()
                .any(|pod| !known(pod) && pod["status"]["phase"] == "Running"))
        };
        kubectl
            .until("the first new pod runs", LIMIT, replaced)
            .await?;
        killers.send_kill(&[leader]).await?;
        let healthy = scenario::healthy(kubectl, "shop", nodes).await?;
        ensure!(!healthy, "the cluster was healthy before its leader ended");
        let time = shop.recovered().await?;
        shop.is_intact("leader").await?;
        shop.has_its_ids("leader").await?;
        let done = "all pods are deleted, and the leading controller is killed in mid-repair";
        ScenarioRow::new(Area::Controllers, "leader killed", done)
            .healthy_after(time)
            .lost(0)
            .note("since the kill")
            .record()?;
        killers.end().await
    })
    .await
}

/// The pod of the cluster-controller that leads.
async fn leader() -> Result<Value> {
    let leader = scenario::leader("cluster-controller").await?;
    scenario::system().get(&format!("pod {leader}")).await
}

/// One replica of each controller is killed while it works; the other's work goes on, and the copy compares equal.
#[tokio::test]
async fn killed_controllers_cost_their_own_work_and_nothing_else() -> Result<()> {
    scenario::run("e2e-workers", async |kubectl| {
        let killers = Killers::start(kubectl).await?;
        scenario::cluster(kubectl, "copy", 5, Volumes::None).await?;
        FilledCluster::create(kubectl, "shop", 4, Volumes::None, 4_000).await?;

        // A thousand keys a shard at 10 ms each: a stream takes 10 s.
        let slow = "redis-cli config set rdb-key-save-delay 10000";
        scenario::on_every_server(kubectl, "shop", slow).await?;
        kubectl
            .apply(&scenario::backup("now", "shop").to_string())
            .await?;
        let streaming = shared(kubectl, "redisbackup now", "shards", "Streaming").await?;
        let killed = kill_worker(&killers, &streaming).await?;
        let fast = "redis-cli config set rdb-key-save-delay 0";
        scenario::on_every_server(kubectl, "shop", fast).await?;
        let done = scenario::ended(kubectl, "redisbackup", "now").await?;
        only_the_killed_lost(&streaming, &done["status"]["shards"], &killed)?;

        scenario::formed(kubectl, "copy", 10).await?;
        let pause = "redis-cli client pause 60000 write";
        scenario::on_every_server(kubectl, "copy", pause).await?;
        let source = json!({"backupRef": {"name": "now"}});
        let restore = scenario::restore("copy", &source, &json!({"clusterRef": {"name": "copy"}}));
        kubectl.apply(&restore.to_string()).await?;
        let replaying = shared(kubectl, "redisrestore copy", "units", "Replaying").await?;
        let killed = kill_worker(&killers, &replaying).await?;
        scenario::on_every_server(kubectl, "copy", "redis-cli client unpause").await?;
        let done = scenario::ended(kubectl, "redisrestore", "copy").await?;
        ensure!(holds(&done, "Verified"), "{}", done["status"]["conditions"]);
        only_the_killed_lost(&replaying, &done["status"]["units"], &killed)?;
        let compare = ["compare", "shop:6379", "copy:6379"];
        scenario::workload(kubectl, "compare", &compare).await?;
        for cluster in ["shop", "copy"] {
            scenario::no_data_was_dropped(kubectl, cluster).await?;
        }
        killers.end().await
    })
    .await
}

/// Kills the replica that holds the first of these claims; answers its name.
async fn kill_worker(killers: &Killers, claims: &[Value]) -> Result<String> {
    let worker = claims.first().context("no claims")?["worker"].clone();
    let worker = worker.as_str().context("a claim without a holder")?;
    killers.kill_pod(&scenario::system(), worker).await?;
    Ok(worker.to_owned())
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

/// Units of the replica that lived are still its own, at their first attempt; each of the killed one was resumed by it, or begun once
/// more and no oftener.
fn only_the_killed_lost(before: &[Value], after: &Value, killed: &str) -> Result<()> {
    let after = units_of(after);
    ensure!(
        after.len() == before.len(),
        "units came or went: {after:#?}"
    );
    for (before, after) in before.iter().zip(&after) {
        let attempt = &after["attempt"];
        if before["worker"] == killed {
            // A container that is back before its member Lease expires goes on with its own units; others begin them once more.
            let resumed = attempt == 1 && after["worker"] == killed;
            ensure!(
                resumed || attempt == 2,
                "{killed} was killed, and its unit {before} ended at attempt {attempt}: {after}"
            );
        } else {
            ensure!(
                after["worker"] == before["worker"] && attempt == 1,
                "{killed} was killed, and it cost {before} too: {after}"
            );
        }
    }
    Ok(())
}
