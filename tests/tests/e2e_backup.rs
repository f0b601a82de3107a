//! Backups and restores on a real Kubernetes: both replicas stream, a restore into another size compares equal, failures name their
//! cause.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tests::{
    kubectl::{Kubectl, holds},
    scenario::{self, FilledCluster, LIMIT, Volumes},
};

/// Enough that a shard takes longer than a claim: each replica finds work.
const KEYS: u64 = 150_000;

fn workers(backup: &Value) -> BTreeSet<String> {
    let shards = backup["status"]["shards"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    shards
        .iter()
        .filter_map(|shard| shard["worker"].as_str().map(Into::into))
        .collect()
}

/// A backup whose objects go with it.
fn owning_backup(name: &str) -> Value {
    let mut backup = scenario::backup(name, "shop");
    backup["spec"]["deletionPolicy"] = json!("Delete");
    backup
}

async fn apply(kubectl: &Kubectl, object: &Value) -> Result<()> {
    kubectl.apply(&object.to_string()).await.map(drop)
}

/// Four shards on two controller replicas, restored into five shards and, from the bucket alone, into three.
#[tokio::test]
async fn a_backup_is_shared_and_restores_into_other_sizes() -> Result<()> {
    scenario::run("e2e-backup", async |kubectl| {
        FilledCluster::create(kubectl, "shop", 4, Volumes::DeletedWithCluster, KEYS).await?;
        apply(kubectl, &owning_backup("now")).await?;
        let done = scenario::ended(kubectl, "redisbackup", "now").await?;
        let workers = workers(&done);
        ensure!(workers.len() == 2, "the backup ran on {workers:?} only");
        let path = path(&done)?;

        into_five(kubectl).await?;
        let location = json!({"location": {"s3": scenario::s3_location(kubectl), "path": path}});
        let three = json!({"clusterRef": {"name": "three"}});
        scenario::cluster(kubectl, "three", 3, Volumes::None).await?;
        apply(
            kubectl,
            &scenario::restore("from-bucket", &location, &three),
        )
        .await?;
        scenario::ended(kubectl, "redisrestore", "from-bucket").await?;
        compare(kubectl, "three").await?;

        apply(kubectl, &scenario::restore("again", &location, &three)).await?;
        let message = scenario::failed(kubectl, "redisrestore", "again").await?;
        ensure!(
            message.contains("empty") || message.contains("keys"),
            "a target with keys is refused with: {message}"
        );

        kubectl.run("delete redisbackup now --timeout=60s").await?;
        apply(kubectl, &scenario::restore("gone", &location, &three)).await?;
        let message = scenario::failed(kubectl, "redisrestore", "gone").await?;
        ensure!(
            message.contains("manifest"),
            "a deleted backup is refused with: {message}"
        );
        for cluster in ["shop", "five", "three"] {
            scenario::no_data_was_dropped(kubectl, cluster).await?;
        }
        Ok(())
    })
    .await
}

fn path(backup: &Value) -> Result<String> {
    let destination = backup["status"]["destination"].as_str();
    let destination = destination.with_context(|| format!("no destination: {backup}"))?;
    let path = destination.trim_start_matches("s3://backups/");
    Ok(path.trim_end_matches('/').to_owned())
}

async fn into_five(kubectl: &Kubectl) -> Result<()> {
    let source = json!({"backupRef": {"name": "now"}});
    let spec = json!({"version": scenario::VERSION, "shards": 5, "replicasPerShard": 0});
    let target = json!({"newCluster": {"name": "five", "spec": spec}});
    apply(kubectl, &scenario::restore("into-five", &source, &target)).await?;
    let restored = scenario::ended(kubectl, "redisrestore", "into-five").await?;
    ensure!(
        holds(&restored, "Verified"),
        "not Verified: {}",
        restored["status"]["conditions"]
    );
    compare(kubectl, "five").await
}

async fn compare(kubectl: &Kubectl, copy: &str) -> Result<()> {
    let (pod, address) = (format!("compare-{copy}"), format!("{copy}:6379"));
    let compared = scenario::workload(kubectl, &pod, &["compare", "shop:6379", &address]).await?;
    println!("into {copy}: {compared}");
    Ok(())
}

/// Whatever is wrong with the storage ends in a message that names it, and in no secret.
#[tokio::test]
async fn failures_of_storage_name_their_cause() -> Result<()> {
    scenario::run("e2e-failures", async |kubectl| {
        scenario::cluster(kubectl, "shop", 3, Volumes::None).await?;
        scenario::formed(kubectl, "shop", 6).await?;
        let wrong = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wrong"},
                           "stringData": {"accessKeyId": "scenario", "secretAccessKey": "not-the-key"}});
        apply(kubectl, &wrong).await?;
        let secret = |name: &str| json!({ "name": name });
        let cases = [
            ("no-bucket", "bucket", json!("nowhere"), "nowhere"),
            ("wrong-key", "credentialsSecretRef", secret("wrong"), "backups"),
            ("no-secret", "credentialsSecretRef", secret("absent"), "absent"),
            ("no-server", "endpoint", json!("http://s3.e2e-failures.svc:9999"), "backups"),
            ("no-name", "endpoint", json!("http://absent.e2e-failures.svc:9000"), "lookup"),
        ];
        for (name, member, value, _) in &cases {
            let mut s3 = scenario::s3_location(kubectl);
            s3[member] = value.clone();
            let mut backup = scenario::backup(name, "shop");
            backup["spec"] = json!({"clusterRef": {"name": "shop"}, "s3": s3});
            apply(kubectl, &backup).await?;
        }
        for (name, _, _, word) in &cases {
            let what = format!("redisbackup {name}");
            let named = async || {
                let status = kubectl.get(&what).await?["status"].clone();
                Ok(status["message"]
                    .as_str()
                    .is_some_and(|message| message.contains(word)))
            };
            let wait = format!("{what} names {word}");
            kubectl.until(&wait, LIMIT, named).await?;
            println!("{name}: {}", kubectl.get(&what).await?["status"]["message"]);
        }
        // What only a person can correct is final; a Secret or a server that may still come is waited for.
        for name in ["no-bucket", "wrong-key"] {
            scenario::failed(kubectl, "redisbackup", name).await?;
        }
        let everything = kubectl.run("get redisbackups,events -o yaml").await?;
        let logs = scenario::system()
            .run("logs -l app.kubernetes.io/name=backup-controller --tail -1")
            .await?;
        for secret in ["scenario-secret", "not-the-key"] {
            ensure!(
                !everything.contains(secret) && !logs.contains(secret),
                "a secret is readable"
            );
        }
        Ok(())
    })
    .await
}
