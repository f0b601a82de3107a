//! The product's main job, shown on the cluster of KUBECONFIG: form, fill, lose all pods, repair, back up, restore into
//! another size, compare. Prints each step as it happens and how long it took; ends non-zero if anything differed.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tests::{
    kubectl::{Kubectl, holds},
    progress::Progress,
    scenario::{self, LIMIT, NODE_TIMEOUT, Volumes},
};

const NAMESPACE: &str = "redis-demo";
const KEYS: &str = "200000";
const NODES: usize = 6;
const STEPS: usize = 11;
/// What the steps are about: their status is shown while they run.
const SHOP: &str = "rediscluster shop";
const BACKUP: &str = "redisbackup shop-now";
const RESTORE: &str = "redisrestore shop-copy";
/// What shows the result.
const RESOURCES: &str = "get redisclusters,redisbackups,redisrestores";
/// A cluster is formed in at most this many times what its pods need to become ready by themselves.
const FORMED: f64 = 1.2;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let kubectl = Kubectl::new(NAMESPACE);
    let mut progress = Progress::new(&kubectl, STEPS);
    let done = run(&kubectl, &mut progress).await;
    progress.summary();
    done?;
    println!("\n$ kubectl -n {NAMESPACE} {RESOURCES}");
    println!("{}", kubectl.run(RESOURCES).await?.trim_end());
    println!("\nEverything compared equal. The cluster is still up; try:");
    let existing = std::env::var("CLUSTER").is_ok_and(|cluster| cluster == "existing");
    if !existing {
        println!("  eval \"$(deploy/local/local-kubernetes env)\"");
    }
    println!("  kubectl -n {NAMESPACE} describe rediscluster shop");
    println!("  kubectl -n {NAMESPACE} exec shop-0-0 -- redis-cli -c get data:7000");
    let down = if existing {
        "demo-down CLUSTER=existing"
    } else {
        "demo-down"
    };
    println!("`make {down}` removes it.");
    Ok(())
}

async fn run(kubectl: &Kubectl, progress: &mut Progress<'_>) -> Result<()> {
    let prepared = async {
        scenario::namespace(NAMESPACE).await?;
        Ok((format!("namespace {NAMESPACE}"), ()))
    };
    progress
        .step("a namespace with an S3 server", "pods", prepared)
        .await?;
    form(kubectl, progress).await?;
    let fill = ["fill", "shop:6379", "--keys", KEYS];
    let filled = workload(kubectl, "fill", &fill);
    progress.step("fill with mixed keys", SHOP, filled).await?;
    let write = ["write", "shop:6379", "--seconds", "60"];
    scenario::start_workload(kubectl, "writer", &write).await?;
    repair(kubectl, progress).await?;
    schedule(kubectl).await?;
    progress
        .step("backup to S3", BACKUP, back_up(kubectl))
        .await?;
    let written = async { Ok((scenario::finish_workload(kubectl, "writer").await?, ())) };
    progress
        .step("writer while all this went on", SHOP, written)
        .await?;
    progress
        .step("restore into 5 shards", RESTORE, restore(kubectl))
        .await?;
    let compared = workload(kubectl, "compare", &["compare", "shop:6379", "copy:6379"]);
    progress
        .step("every type, value and time to live", RESTORE, compared)
        .await?;
    progress
        .step(
            "scheduled backup, by a CronJob",
            "redisbackups",
            scheduled_backup(kubectl),
        )
        .await
}

/// Runs the workload program; what it printed is the result.
async fn workload(kubectl: &Kubectl, pod: &str, arguments: &[&str]) -> Result<(String, ())> {
    Ok((scenario::workload(kubectl, pod, arguments).await?, ()))
}

async fn form(kubectl: &Kubectl, progress: &mut Progress<'_>) -> Result<()> {
    let formed = async {
        let begun = Instant::now();
        scenario::cluster(kubectl, "shop", 3, Volumes::DeletedWithCluster).await?;
        let formed = begun.elapsed() + scenario::formed(kubectl, "shop", NODES).await?;
        Ok((seconds(formed), formed))
    };
    let formed = progress
        .step("apply to fully formed (3 x 1, volumes)", SHOP, formed)
        .await?;
    let alone = async {
        let alone = scenario::pods_alone(kubectl, "shop", NODES).await?;
        let ratio = formed.as_secs_f64() / alone.as_secs_f64();
        let time = seconds(alone);
        Ok((
            format!("{time} (formed / alone = {ratio:.2}, goal {FORMED:.2})"),
            (),
        ))
    };
    progress
        .step("the same pods without a controller", SHOP, alone)
        .await
}

async fn repair(kubectl: &Kubectl, progress: &mut Progress<'_>) -> Result<()> {
    let repaired = async {
        let goal = Duration::from_secs(3) + 2 * NODE_TIMEOUT;
        let time = scenario::lose_all_pods(kubectl, "shop", NODES, false).await?;
        Ok((format!("{} (goal {})", seconds(time), seconds(goal)), ()))
    };
    progress
        .step("all pods deleted: last pod runs to healthy", SHOP, repaired)
        .await?;
    let kept = workload(kubectl, "kept", &["verify", "shop:6379", "--keys", KEYS]);
    progress.step("keys after it", SHOP, kept).await
}

async fn back_up(kubectl: &Kubectl) -> Result<(String, ())> {
    let backup = scenario::backup("shop-now", "shop");
    kubectl.apply(&backup.to_string()).await?;
    let backup = scenario::ended(kubectl, "redisbackup", "shop-now").await?;
    let status = &backup["status"];
    let shards = status["shards"]
        .as_array()
        .context("the backup's status has no shards")?;
    let workers: BTreeSet<&str> = shards
        .iter()
        .filter_map(|shard| shard["worker"].as_str())
        .collect();
    ensure!(
        workers.len() == 2,
        "both replicas of the backup-controller should have streamed, not {workers:?}"
    );
    let result = format!(
        "{}, {} keys, {} stored, by {} controller pods",
        text(&status["duration"]),
        status["progress"]["keys"],
        text(&status["progress"]["stored"]),
        workers.len()
    );
    Ok((result, ()))
}

async fn restore(kubectl: &Kubectl) -> Result<(String, ())> {
    let new_cluster = json!({"name": "copy", "spec": scenario::cluster_spec(5, 0)});
    let source = json!({"backupRef": {"name": "shop-now"}});
    let restore = scenario::restore("shop-copy", &source, &json!({"newCluster": new_cluster}));
    kubectl.apply(&restore.to_string()).await?;
    let restore = scenario::ended(kubectl, "redisrestore", "shop-copy").await?;
    ensure!(holds(&restore, "Verified"), "the restore is not Verified");
    let status = &restore["status"];
    let result = format!(
        "{}, {} keys, verified slot by slot",
        text(&status["duration"]),
        status["progress"]["keys"]
    );
    Ok((result, ()))
}

/// From now on a backup every minute.
async fn schedule(kubectl: &Kubectl) -> Result<()> {
    let schedules = json!([{"name": "minutely", "schedule": "* * * * *", "storageName": "s3"}]);
    let patch = json!({"spec": {"backup": {"schedules": schedules}}});
    kubectl.patch("rediscluster shop", &patch).await
}

async fn scheduled_backup(kubectl: &Kubectl) -> Result<(String, ())> {
    let label = format!("redisbackups -l {}=minutely", crds::LABEL_SCHEDULE);
    let one = async || {
        Ok(kubectl
            .list(&label)
            .await?
            .iter()
            .any(|backup| holds(backup, "Complete")))
    };
    kubectl.until("a scheduled backup", LIMIT, one).await?;
    let none = json!({"spec": {"backup": {"schedules": null}}});
    kubectl.patch("rediscluster shop", &none).await?;
    let backups = kubectl.list(&label).await?;
    let name = backups
        .iter()
        .find(|backup| holds(backup, "Complete"))
        .map(|backup| text(&backup["metadata"]["name"]));
    Ok((name.unwrap_or_default(), ()))
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
