//! What a user changes in a RedisCluster, and what comes of it.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};
use tests::{
    kubectl::{Kubectl, holds},
    scenario::{self, LIMIT},
};

const CLUSTER: &str = "rediscluster shop";

/// Waits until a condition has this status and reason, and answers its message.
async fn says(kubectl: &Kubectl, condition: &str, status: &str, reason: &str) -> Result<String> {
    let mut message = String::new();
    let said = async || {
        let object = kubectl.get(CLUSTER).await?;
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
    let wait = format!("{condition}={status}, {reason}");
    kubectl.until(&wait, LIMIT, said).await?;
    Ok(message)
}

async fn spec(kubectl: &Kubectl, change: Value) -> Result<()> {
    kubectl.patch(CLUSTER, &json!({ "spec": change })).await
}

#[tokio::test]
async fn each_field_that_may_change_does_what_it_says() -> Result<()> {
    let kubectl = scenario::namespace("e2e-spec").await?;
    scenario::cluster(&kubectl, "shop", 3, false).await?;
    scenario::formed(&kubectl, "shop", 6).await?;
    budget(&kubectl).await?;
    paused(&kubectl).await?;
    catalog(&kubectl).await?;

    spec(
        &kubectl,
        json!({"config": {"maxmemory-policy": "allkeys-lru"}}),
    )
    .await?;
    let words = says(&kubectl, "UpToDate", "False", "PodsOutdated").await?;
    ensure!(
        words.contains("shop-0-0") && words.contains("delete"),
        "{words}"
    );
    kubectl.delete_namespace().await
}

async fn budget(kubectl: &Kubectl) -> Result<()> {
    let count = async |wanted: usize| -> Result<()> {
        let there = async || Ok(kubectl.list("poddisruptionbudgets").await?.len() == wanted);
        let wait = format!("{wanted} budgets");
        kubectl.until(&wait, LIMIT, there).await.map(drop)
    };
    count(1).await?;
    spec(kubectl, json!({"podDisruptionBudget": {"enabled": false}})).await?;
    count(0).await?;
    spec(
        kubectl,
        json!({"podDisruptionBudget": {"enabled": true, "maxUnavailable": 2}}),
    )
    .await?;
    count(1).await?;
    let budget = kubectl.get("poddisruptionbudget shop").await?;
    ensure!(budget["spec"]["maxUnavailable"] == 2, "{}", budget["spec"]);
    Ok(())
}

/// Hands off: what is deleted stays away until the cluster is looked after again.
async fn paused(kubectl: &Kubectl) -> Result<()> {
    spec(kubectl, json!({"paused": true})).await?;
    says(kubectl, "Paused", "True", "Paused").await?;
    kubectl.run("delete service shop").await?;
    tokio::time::sleep(Duration::from_secs(4)).await; // time in which it would come back
    let absent = kubectl.get("service shop").await.is_err();
    ensure!(absent, "a paused cluster's Service was made again");
    spec(kubectl, json!({"paused": false})).await?;
    says(kubectl, "Paused", "False", "Active").await?;
    let back = async || Ok(kubectl.get("service shop").await.is_ok());
    kubectl
        .until("the Service is back", LIMIT, back)
        .await
        .map(drop)
}

/// An entry that is not there, and one that promises what its image does not hold.
async fn catalog(kubectl: &Kubectl) -> Result<()> {
    let image = scenario::redis_image();
    spec(kubectl, json!({"version": "e2e-spec-liar"})).await?;
    let words = says(kubectl, "Ready", "False", "VersionNotFound").await?;
    ensure!(words.contains("e2e-spec-liar"), "{words}");
    let liar = json!({"apiVersion": scenario::API_VERSION, "kind": "RedisVersion", "metadata": {"name": "e2e-spec-liar"},
                      "spec": {"distribution": "Redis", "version": "7.2.5", "image": image}});
    kubectl.apply(&liar.to_string()).await?;
    let words = says(kubectl, "UpToDate", "False", "VersionMismatch").await?;
    ensure!(
        words.contains("7.2.5") && words.contains("7.0.15"),
        "{words}"
    );
    spec(kubectl, json!({"version": scenario::VERSION})).await?;
    says(kubectl, "UpToDate", "True", "UpToDate").await?;
    kubectl
        .run("delete redisversion e2e-spec-liar")
        .await
        .map(drop)
}

/// The two ways to a nightly backup: a schedule in the spec, and a CronJob of one's own with kubectl.
#[tokio::test]
async fn cron_jobs_make_backups() -> Result<()> {
    let kubectl = scenario::namespace("e2e-cron").await?;
    let nightly = json!({"name": "nightly", "schedule": "30 2 * * *", "storageName": "s3"});
    let mut cluster = scenario::cluster(&kubectl, "shop", 3, false).await?;
    cluster["spec"]["backup"]["schedules"] = json!([nightly]);
    kubectl.apply(&cluster.to_string()).await?;
    scenario::formed(&kubectl, "shop", 6).await?;
    scenario::workload(&kubectl, "fill", &["fill", "shop:6379", "--keys", "1000"]).await?;

    let sample =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples/cronjob-kubectl.yaml");
    let registry = scenario::registry() + "/";
    let sample = fs::read_to_string(sample)?.replace("docker.io/local/", &registry);
    kubectl.apply(&sample).await?;
    let scheduled = format!("cronjobs -l {}=nightly", crds::LABEL_SCHEDULE);
    let made = async || Ok(kubectl.list(&scheduled).await?.len() == 1);
    kubectl
        .until("the schedule is a CronJob", LIMIT, made)
        .await?;
    let jobs = kubectl.list("cronjobs").await?;
    ensure!(jobs.len() == 2, "{} CronJobs instead of 2", jobs.len());
    for (number, job) in jobs.iter().enumerate() {
        let name = job["metadata"]["name"].as_str().context("no name")?;
        kubectl
            .run(&format!("create job now-{number} --from=cronjob/{name}"))
            .await?;
    }
    let complete = async || {
        let backups = kubectl.list("redisbackups").await?;
        Ok(backups
            .iter()
            .filter(|backup| holds(backup, "Complete"))
            .count()
            == 2)
    };
    kubectl
        .until("two complete backups", LIMIT, complete)
        .await?;
    kubectl.delete_namespace().await
}
