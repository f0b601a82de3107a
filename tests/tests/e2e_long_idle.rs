//! What the suite costs when there is nothing to do: no writes, few reads, little memory.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use tests::{
    kubectl::{Kubectl, holds},
    scenario::{self, Area, CONTROLLERS, FilledCluster, LIMIT, ScenarioRow, Volumes},
};

const NODES: usize = 6;
const CHILDREN: &str = "statefulsets,services,configmaps,secrets,poddisruptionbudgets -l redis.danieldorado.github.io/cluster=shop";
/// Resident memory of an idle controller stays below this, also after it has worked. Most of it is the program itself.
const IDLE_BYTES: f64 = 32.0 * 1024.0 * 1024.0;
/// Reads of the API server that an idle cluster may cost in a minute, in the leaders of all controllers together. (A standby
/// looks at the leader's Lease every 5 s, however many clusters there are.)
const READS: f64 = 12.0;
/// Writes of the cluster-controller's leader in a minute: it renews its Lease every 5 s. A write that changes nothing raises no
/// resourceVersion, and is still one.
const RENEWALS: f64 = 13.0;

/// A reconcile of an unchanged cluster writes nothing; over a whole minute hardly anything is read, and memory that work needed is
/// returned; children that are deleted come back, and what is owned goes with its owner.
#[tokio::test]
async fn an_idle_cluster_costs_next_to_nothing() -> Result<()> {
    scenario::run("e2e-idle", async |kubectl| {
        nothing_else_is_managed(kubectl).await?;
        let volumes = Volumes::DeletedWithCluster;
        FilledCluster::create(kubectl, "shop", 3, volumes, 100_000).await?;
        work(kubectl).await?;
        settled(kubectl).await?;
        let before = versions(kubectl).await?;
        let touch = json!({"metadata": {"annotations": {"touched": "yes"}}});
        kubectl.patch("rediscluster shop", &touch).await?;
        idle_for_a_minute().await?;
        ensure!(
            versions(kubectl).await? == before,
            "a reconcile of an unchanged cluster wrote something"
        );
        children_come_back(kubectl).await?;
        kubectl.run("delete rediscluster shop").await?;
        let gone = async || {
            let left = "statefulsets,services,configmaps,secrets,pods,pvc -l redis.danieldorado.github.io/cluster=shop";
            Ok(kubectl.list(left).await?.is_empty())
        };
        kubectl
            .until("children and volumes go with their owner", LIMIT, gone)
            .await
            .map(drop)
    })
    .await
}

/// Waits until the clusters of earlier scenarios are gone, whose pods end in the background: what is measured is this cluster alone.
async fn nothing_else_is_managed(kubectl: &Kubectl) -> Result<()> {
    let gone = async || {
        let all = "redisclusters,redisbackups,redisrestores --all-namespaces";
        Ok(kubectl.list(all).await?.is_empty())
    };
    let wait = "no other cluster, backup or restore";
    kubectl.until(wait, LIMIT, gone).await.map(drop)
}

/// Gives every controller something to do: what they need for it is not to stay with them.
async fn work(kubectl: &Kubectl) -> Result<()> {
    let backup = scenario::backup("now", "shop").to_string();
    kubectl.apply(&backup).await?;
    scenario::ended(kubectl, "redisbackup", "now").await?;
    let source = json!({"backupRef": {"name": "now"}});
    let spec = scenario::cluster_spec(3, 0);
    let target = json!({"newCluster": {"name": "copy", "spec": spec}});
    let restore = scenario::restore("copy", &source, &target).to_string();
    kubectl.apply(&restore).await?;
    scenario::ended(kubectl, "redisrestore", "copy").await?;
    kubectl.run("delete rediscluster copy").await?;
    let gone = async || Ok(scenario::pods(kubectl, "copy").await?.is_empty());
    let wait = "the copy's pods gone";
    kubectl.until(wait, LIMIT, gone).await.map(drop)
}

/// What a controller's replica reports about itself.
struct Figures {
    pod: String,
    leads: bool,
    reads: f64,
    writes: f64,
    bytes: f64,
}

async fn figures() -> Result<Vec<Figures>> {
    let system = scenario::system();
    let mut all = Vec::new();
    for pod in scenario::pod_names_by(&system, "app.kubernetes.io/part-of=redis-operator").await? {
        let path = format!(
            "/api/v1/namespaces/{}/pods/{pod}:8080/proxy/metrics",
            scenario::SYSTEM
        );
        let metrics = system.run(&format!("get --raw {path}")).await?;
        let value = |name: &str| -> Result<f64> {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name));
            let line = line.with_context(|| format!("{pod} has no metric {name}"))?;
            Ok(line.trim().parse()?)
        };
        all.push(Figures {
            leads: value("redis_operator_leading ")? > 0.0,
            reads: value("redis_operator_api_call_duration_seconds_count{call=\"read\"} ")?,
            writes: value("redis_operator_api_call_duration_seconds_count{call=\"write\"} ")?,
            bytes: value("process_resident_memory_bytes ")?,
            pod,
        });
    }
    let wanted = 2 * CONTROLLERS.len();
    ensure!(
        all.len() == wanted,
        "{} controller pods instead of {wanted}",
        all.len()
    );
    Ok(all)
}

/// The one test that waits by the clock: what is measured is a minute.
async fn idle_for_a_minute() -> Result<()> {
    let before = figures().await?;
    tokio::time::sleep(Duration::from_mins(1)).await;
    let after = figures().await?;
    let (mut reads, mut writes, mut most) = (0.0, None, 0.0_f64);
    for (before, after) in before.iter().zip(&after) {
        ensure!(before.pod == after.pod, "{} was replaced", before.pod);
        let (read, mib) = (after.reads - before.reads, after.bytes / 1024.0 / 1024.0);
        let role = if after.leads { "leader" } else { "standby" };
        let wrote = after.writes - before.writes;
        println!(
            "{}, {role}: {read} API reads and {wrote} writes in a minute, {mib:.1} MiB resident",
            after.pod
        );
        if after.leads {
            reads += read;
            if after.pod.starts_with("cluster-controller") {
                writes = Some(wrote);
            }
        }
        most = most.max(mib);
    }
    let writes = writes.context("no cluster-controller leads")?;
    let limit = IDLE_BYTES / 1024.0 / 1024.0;
    let figures = format!(
        "{reads} API reads by the leaders (goal: fewer than {READS}, {}); {writes} writes by the cluster-controller (at most {RENEWALS}, {}); \
         {most:.1} MiB resident (less than {limit}, {})",
        scenario::met(reads < READS),
        scenario::met(writes <= RENEWALS),
        scenario::met(most < limit)
    );
    let done = "the controllers of an idle cluster of 6 nodes, measured for a minute after a backup and a restore";
    ScenarioRow::new(Area::Cost, "idle controllers", done)
        .note(figures)
        .record()?;
    ensure!(
        writes <= RENEWALS,
        "the cluster-controller wrote {writes} times while idle"
    );
    ensure!(reads < READS, "{reads} reads in an idle minute");
    for Figures { pod, bytes, .. } in &after {
        ensure!(*bytes < IDLE_BYTES, "{pod} idles with {bytes} bytes");
    }
    Ok(())
}

async fn children_come_back(kubectl: &Kubectl) -> Result<()> {
    let children =
        "poddisruptionbudgets,configmaps,services -l redis.danieldorado.github.io/cluster=shop";
    let made = kubectl.list(children).await?.len();
    kubectl.run(&format!("delete {children}")).await?;
    let back = async || Ok(kubectl.list(children).await?.len() == made);
    kubectl
        .until("deleted children are back", LIMIT, back)
        .await?;
    let budget = kubectl.get("poddisruptionbudget shop").await?;
    ensure!(
        budget["spec"]["maxUnavailable"] == 1,
        "the budget is {}",
        budget["spec"]
    );
    let cluster = kubectl.get("rediscluster shop").await?;
    for condition in [
        "Ready",
        "Available",
        "Formed",
        "SlotsCovered",
        "ReplicationHealthy",
        "QuorumHealthy",
        "UpToDate",
    ] {
        ensure!(
            holds(&cluster, condition),
            "{condition} is not True: {}",
            cluster["status"]["conditions"]
        );
    }
    Ok(())
}

/// resourceVersion of everything the controller could have written, but for what others write into pods.
async fn versions(kubectl: &Kubectl) -> Result<Vec<Value>> {
    let children = kubectl.list(CHILDREN).await?;
    let mut all: Vec<Value> = children
        .iter()
        .map(|object| object["metadata"]["resourceVersion"].clone())
        .collect();
    all.push(kubectl.get("rediscluster shop").await?["status"].clone());
    Ok(all)
}

/// Waits until StatefulSets and budget have caught up with the pods, so that only the controller could still write.
async fn settled(kubectl: &Kubectl) -> Result<()> {
    let quiet = async || {
        let sets = kubectl.list("statefulsets").await?;
        let budget = kubectl.get("poddisruptionbudget shop").await?;
        Ok(sets
            .iter()
            .all(|set| set["status"]["availableReplicas"] == set["spec"]["replicas"])
            && budget["status"]["currentHealthy"] == json!(NODES))
    };
    kubectl
        .until("StatefulSets settled", LIMIT, quiet)
        .await
        .map(drop)
}
