//! The product's main job, shown on the cluster of KUBECONFIG: form, fill, lose all pods, heal, back up, restore into
//! another size, compare. Prints what was done and how long it took; ends non-zero if anything differed.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tests::{
    kubectl::{Kubectl, holds},
    scenario::{self, LIMIT, NODE_TIMEOUT},
};

const NAMESPACE: &str = "redis-demo";
const KEYS: &str = "200000";
const NODES: usize = 6;
/// A cluster is formed in at most this many times what its pods need to become ready by themselves.
const FORMED: f64 = 1.2;

/// One row of the table at the end.
struct Row(&'static str, String);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut rows = Vec::new();
    let done = run(&mut rows).await;
    println!("\n{:<42} RESULT", "STEP");
    for Row(step, result) in &rows {
        println!("{step:<42} {result}");
    }
    done?;
    println!("\nEverything compared equal. The cluster is still up; try:");
    let existing = std::env::var("CLUSTER").is_ok_and(|cluster| cluster == "existing");
    if !existing {
        println!("  eval \"$(deploy/local/local-kubernetes env)\"");
    }
    println!("  kubectl -n {NAMESPACE} get redisclusters,redisbackups,redisrestores,pods");
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

async fn run(rows: &mut Vec<Row>) -> Result<()> {
    let kubectl = scenario::namespace(NAMESPACE)
        .await
        .context("preparing the namespace")?;
    form(&kubectl, rows).await?;
    let filled =
        scenario::workload(&kubectl, "fill", &["fill", "shop:6379", "--keys", KEYS]).await?;
    rows.push(Row("fill with mixed keys", filled));
    scenario::start_workload(
        &kubectl,
        "writer",
        &["write", "shop:6379", "--seconds", "60"],
    )
    .await?;
    heal(&kubectl, rows).await?;
    schedule(&kubectl).await?;
    back_up(&kubectl, rows).await?;
    rows.push(Row(
        "writer while all this went on",
        scenario::finish_workload(&kubectl, "writer").await?,
    ));
    restore(&kubectl, rows).await?;
    let scheduled = scheduled_backup(&kubectl).await?;
    rows.push(Row("scheduled backup, by a CronJob", scheduled));
    Ok(())
}

async fn form(kubectl: &Kubectl, rows: &mut Vec<Row>) -> Result<()> {
    let applied = Instant::now();
    scenario::cluster(kubectl, "shop", 3, true).await?;
    scenario::formed(kubectl, "shop", NODES).await?;
    let formed = applied.elapsed();
    rows.push(Row(
        "apply to fully formed (3 x 1, volumes)",
        seconds(formed),
    ));
    let alone = scenario::pods_alone(kubectl, "shop", NODES).await?;
    let ratio = formed.as_secs_f64() / alone.as_secs_f64();
    rows.push(Row(
        "the same pods alone until ready",
        format!(
            "{} (formed / alone = {ratio:.2}, goal {FORMED:.2})",
            seconds(alone)
        ),
    ));
    Ok(())
}

async fn heal(kubectl: &Kubectl, rows: &mut Vec<Row>) -> Result<()> {
    let goal = Duration::from_secs(3) + 2 * NODE_TIMEOUT;
    let healed = scenario::lose_all_pods(kubectl, "shop", NODES, false).await?;
    rows.push(Row(
        "all pods deleted: last pod runs to whole",
        format!("{} (goal {})", seconds(healed), seconds(goal)),
    ));
    let kept = scenario::workload(kubectl, "kept", &["check", "shop:6379", "--keys", KEYS]).await?;
    rows.push(Row("keys after it", kept));
    Ok(())
}

async fn back_up(kubectl: &Kubectl, rows: &mut Vec<Row>) -> Result<()> {
    let backup = json!({"apiVersion": scenario::API_VERSION, "kind": "RedisBackup",
                        "metadata": {"name": "shop-now"},
                        "spec": {"clusterRef": {"name": "shop"}, "storageName": "s3"}});
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
    rows.push(Row(
        "backup to S3",
        format!(
            "{}, {} keys, {} stored, by {} controller pods",
            text(&status["duration"]),
            status["progress"]["keys"],
            text(&status["progress"]["stored"]),
            workers.len()
        ),
    ));
    ensure!(
        workers.len() == 2,
        "both replicas of the backup-controller should have streamed, not {workers:?}"
    );
    Ok(())
}

async fn restore(kubectl: &Kubectl, rows: &mut Vec<Row>) -> Result<()> {
    let new_cluster = json!({"name": "copy", "spec": {"version": scenario::VERSION, "shards": 5, "replicasPerShard": 0}});
    let restore = json!({"apiVersion": scenario::API_VERSION, "kind": "RedisRestore",
                         "metadata": {"name": "shop-copy"},
                         "spec": {"source": {"backupRef": {"name": "shop-now"}}, "target": {"newCluster": new_cluster}}});
    kubectl.apply(&restore.to_string()).await?;
    let restore = scenario::ended(kubectl, "redisrestore", "shop-copy").await?;
    ensure!(holds(&restore, "Verified"), "the restore is not Verified");
    let status = &restore["status"];
    rows.push(Row(
        "restore into 5 shards",
        format!(
            "{}, {} keys, verified slot by slot",
            text(&status["duration"]),
            status["progress"]["keys"]
        ),
    ));
    let compared =
        scenario::workload(kubectl, "compare", &["compare", "shop:6379", "copy:6379"]).await?;
    rows.push(Row("every type, value and time to live", compared));
    Ok(())
}

/// From now on a backup every minute.
async fn schedule(kubectl: &Kubectl) -> Result<()> {
    let schedules = json!([{"name": "minutely", "schedule": "* * * * *", "storageName": "s3"}]);
    let patch = json!({"spec": {"backup": {"schedules": schedules}}});
    kubectl.patch("rediscluster shop", &patch).await
}

async fn scheduled_backup(kubectl: &Kubectl) -> Result<String> {
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
    Ok(name.unwrap_or_default())
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
