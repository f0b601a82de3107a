//! What a user changes in a RedisCluster, and what comes of it.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};
use tests::{
    kubectl::{Kubectl, holds},
    scenario::{self, FilledCluster, LIMIT, Volumes},
};

async fn reports(kubectl: &Kubectl, condition: &str, status: &str, reason: &str) -> Result<String> {
    scenario::condition(kubectl, "shop", (condition, status, reason)).await
}

async fn spec(kubectl: &Kubectl, change: Value) -> Result<()> {
    scenario::spec(kubectl, "shop", change).await
}

#[tokio::test]
async fn each_mutable_field_takes_effect() -> Result<()> {
    scenario::run("e2e-spec", async |kubectl| {
        scenario::cluster(kubectl, "shop", 3, Volumes::None).await?;
        scenario::formed(kubectl, "shop", 6).await?;
        budget(kubectl).await?;
        paused(kubectl).await?;
        catalog(kubectl).await?;

        let by_hand = json!({"update": {"strategy": "OnDelete"},
                             "config": {"databases": "20"}});
        spec(kubectl, by_hand).await?;
        let words = reports(kubectl, "UpToDate", "False", "PodsOutdated").await?;
        ensure!(
            words.contains("shop-0-0") && words.contains("delete"),
            "{words}"
        );
        spec(kubectl, json!({"update": {"strategy": "RollingUpdate"}})).await?;
        reports(kubectl, "UpToDate", "True", "UpToDate").await?;
        // The last pod may be on its way still.
        reports(kubectl, "Ready", "True", "Healthy").await?;
        let setting = "redis-cli config get databases";
        for pod in scenario::pod_names(kubectl, "shop").await? {
            let value = kubectl.exec(&pod, setting).await?;
            ensure!(value.contains("20"), "{pod}: {value}");
        }
        Ok(())
    })
    .await
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

/// Hands off: what is deleted stays away until the cluster is no longer paused.
async fn paused(kubectl: &Kubectl) -> Result<()> {
    spec(kubectl, json!({"paused": true})).await?;
    reports(kubectl, "Paused", "True", "Paused").await?;
    kubectl.run("delete service shop").await?;
    tokio::time::sleep(Duration::from_secs(4)).await; // time in which it would come back
    let absent = kubectl.get("service shop").await.is_err();
    ensure!(absent, "a paused cluster's Service was made again");
    spec(kubectl, json!({"paused": false})).await?;
    reports(kubectl, "Paused", "False", "Active").await?;
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
    let words = reports(kubectl, "Ready", "False", "VersionNotFound").await?;
    ensure!(words.contains("e2e-spec-liar"), "{words}");
    let liar = json!({"apiVersion": scenario::API_VERSION, "kind": "RedisVersion", "metadata": {"name": "e2e-spec-liar"},
                      "spec": {"distribution": "Redis", "version": "7.2.5", "image": image}});
    kubectl.apply(&liar.to_string()).await?;
    let words = reports(kubectl, "UpToDate", "False", "VersionMismatch").await?;
    ensure!(
        words.contains("7.2.5") && words.contains("7.0.15"),
        "{words}"
    );
    spec(kubectl, json!({"version": scenario::VERSION})).await?;
    reports(kubectl, "UpToDate", "True", "UpToDate").await?;
    kubectl
        .run("delete redisversion e2e-spec-liar")
        .await
        .map(drop)
}

/// A paused cluster that loses a node with its volume serves on; the new node is taken in only afterwards.
#[tokio::test]
async fn a_loss_during_a_pause_is_repaired_afterwards() -> Result<()> {
    scenario::run("e2e-paused", async |kubectl| {
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, 20_000).await?;
        spec(kubectl, json!({"paused": true})).await?;
        reports(kubectl, "Paused", "True", "Paused").await?;
        let cluster = kubectl.get("rediscluster shop").await?;
        let pod = cluster["status"]["shardStatuses"][1]["replicas"][0]["pod"].clone();
        let pod = pod.as_str().context("no replica")?;
        kubectl
            .run(&format!("delete pvc data-{pod} --wait=false"))
            .await?;
        kubectl.run(&format!("delete pod {pod}")).await?;
        let alone = async || {
            let info = kubectl.exec(pod, "redis-cli cluster info").await?;
            Ok(info.contains("cluster_known_nodes:1\r"))
        };
        let wait = format!("{pod} is back, and knows no other node");
        kubectl.until(&wait, LIMIT, alone).await?;
        tokio::time::sleep(Duration::from_secs(4)).await; // time in which it would be introduced
        ensure!(
            alone().await?,
            "{pod} was introduced to the others while the cluster was paused"
        );
        shop.has_its_values("paused").await?;
        spec(kubectl, json!({"paused": false})).await?;
        shop.recovered().await?;
        shop.is_intact("active").await
    })
    .await
}

/// The two ways to a nightly backup: a schedule in the spec, and a CronJob of one's own with kubectl.
#[tokio::test]
async fn cron_jobs_make_backups() -> Result<()> {
    scenario::run("e2e-cron", async |kubectl| {
        let nightly = json!({"name": "nightly", "schedule": "30 2 * * *", "storageName": "s3"});
        let mut cluster = scenario::cluster(kubectl, "shop", 3, Volumes::None).await?;
        cluster["spec"]["backup"]["schedules"] = json!([nightly]);
        kubectl.apply(&cluster.to_string()).await?;
        FilledCluster::fill(kubectl, "shop", 6, 1_000).await?;

        let sample =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples/cronjob-kubectl.yaml");
        let registry = scenario::registry() + "/";
        let sample = fs::read_to_string(sample)?.replace("docker.io/local/", &registry);
        kubectl.apply(&sample).await?;
        let scheduled = format!("cronjobs -l {}=nightly", crds::LABEL_SCHEDULE);
        let made = async || Ok(kubectl.list(&scheduled).await?.len() == 1);
        let wait = "the schedule is a CronJob";
        kubectl.until(wait, LIMIT, made).await?;
        let jobs = kubectl.list("cronjobs").await?;
        ensure!(jobs.len() == 2, "{} CronJobs instead of 2", jobs.len());
        for (number, job) in jobs.iter().enumerate() {
            let name = job["metadata"]["name"].as_str().context("no name")?;
            let create = format!("create job now-{number} --from=cronjob/{name}");
            kubectl.run(&create).await?;
        }
        let complete = async || {
            let backups = kubectl.list("redisbackups").await?;
            let complete = backups.iter().filter(|backup| holds(backup, "Complete"));
            Ok(complete.count() == 2)
        };
        let wait = "two complete backups";
        kubectl.until(wait, LIMIT, complete).await.map(drop)
    })
    .await
}

/// A quota that refuses pods: the status quotes which one it is, and what it counts.
#[tokio::test]
async fn a_quota_that_refuses_pods_is_quoted() -> Result<()> {
    scenario::run("e2e-quota", async |kubectl| {
        kubectl.run("create quota small --hard=pods=4").await?;
        let counts = async || {
            let quota = kubectl.get("resourcequota small").await?;
            Ok(quota["status"]["used"]["pods"].is_string())
        };
        kubectl.until("the quota counts", LIMIT, counts).await?;
        scenario::cluster(kubectl, "shop", 3, Volumes::None).await?;
        let mut message = String::new();
        let quoted = async || {
            let cluster = kubectl.get("rediscluster shop").await?;
            message = cluster["status"]["message"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            Ok(message.contains("exceeded quota: small"))
        };
        kubectl.until("the quota is quoted", LIMIT, quoted).await?;
        ensure!(
            message.contains("shop-") && message.contains("limited: pods=4"),
            "{message}"
        );
        ensure!(message.chars().count() <= 256, "{message}");
        let pods = kubectl.list("pods").await?;
        ensure!(pods.len() == 4, "{} pods in spite of the quota", pods.len());
        Ok(())
    })
    .await
}
