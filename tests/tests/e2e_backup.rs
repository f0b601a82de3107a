//! Backups and restores on a real Kubernetes: both replicas stream, a killed one costs its shards' attempt and nothing
//! else, failures say what to mend, and a restore into another size compares equal.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tests::{
    kubectl::{Kubectl, holds},
    scenario::{self, LIMIT},
};

/// Enough that a shard takes longer than a claim: each replica finds work.
const KEYS: &str = "150000";

fn backup(name: &str, cluster: &str, change: &Value) -> String {
    let mut spec = json!({"clusterRef": {"name": cluster}, "storageName": "s3"});
    if let (Some(spec), Some(change)) = (spec.as_object_mut(), change.as_object()) {
        for (member, value) in change {
            spec.insert(member.clone(), value.clone());
        }
        spec.retain(|_, value| !value.is_null());
    }
    json!({"apiVersion": scenario::API_VERSION, "kind": "RedisBackup",
           "metadata": {"name": name}, "spec": spec})
    .to_string()
}

fn restore(name: &str, source: &Value, target: &Value) -> String {
    json!({"apiVersion": scenario::API_VERSION, "kind": "RedisRestore",
           "metadata": {"name": name}, "spec": {"source": source, "target": target}})
    .to_string()
}

async fn filled(kubectl: &Kubectl, shards: i32) -> Result<()> {
    scenario::cluster(kubectl, "shop", shards, true).await?;
    scenario::formed(kubectl, "shop", usize::try_from(shards)? * 2).await?;
    scenario::workload(kubectl, "fill", &["fill", "shop:6379", "--keys", KEYS])
        .await
        .map(drop)
}

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

/// Four shards on two controller replicas, restored into five shards and, from the bucket alone, into three.
#[tokio::test]
async fn a_backup_is_shared_and_restores_into_other_sizes() -> Result<()> {
    let kubectl = scenario::namespace("e2e-backup").await?;
    filled(&kubectl, 4).await?;
    kubectl
        .apply(&backup("now", "shop", &json!({"deletionPolicy": "Delete"})))
        .await?;
    let done = scenario::ended(&kubectl, "redisbackup", "now").await?;
    ensure!(
        workers(&done).len() == 2,
        "the backup ran on {:?} only",
        workers(&done)
    );

    let five = json!({"newCluster": {"name": "five", "spec": {"version": scenario::VERSION, "shards": 5, "replicasPerShard": 0}}});
    kubectl
        .apply(&restore(
            "into-five",
            &json!({"backupRef": {"name": "now"}}),
            &five,
        ))
        .await?;
    let restored = scenario::ended(&kubectl, "redisrestore", "into-five").await?;
    ensure!(
        holds(&restored, "Verified"),
        "not Verified: {}",
        restored["status"]["conditions"]
    );
    let compared =
        scenario::workload(&kubectl, "compare", &["compare", "shop:6379", "five:6379"]).await?;
    println!("into five shards: {compared}");

    let destination = done["status"]["destination"]
        .as_str()
        .context("no destination")?;
    let path = destination
        .trim_start_matches("s3://backups/")
        .trim_end_matches('/');
    let location = json!({"location": {"s3": scenario::s3_location(&kubectl), "path": path}});
    scenario::cluster(&kubectl, "three", 3, false).await?;
    kubectl
        .apply(&restore(
            "from-bucket",
            &location,
            &json!({"clusterRef": {"name": "three"}}),
        ))
        .await?;
    scenario::ended(&kubectl, "redisrestore", "from-bucket").await?;
    scenario::workload(
        &kubectl,
        "compare-three",
        &["compare", "shop:6379", "three:6379"],
    )
    .await?;

    kubectl
        .apply(&restore(
            "again",
            &location,
            &json!({"clusterRef": {"name": "three"}}),
        ))
        .await?;
    let words = failed(&kubectl, "redisrestore", "again").await?;
    ensure!(
        words.contains("empty") || words.contains("keys"),
        "a target with keys is refused with: {words}"
    );

    kubectl.run("delete redisbackup now --timeout=60s").await?;
    kubectl
        .apply(&restore(
            "gone",
            &location,
            &json!({"clusterRef": {"name": "three"}}),
        ))
        .await?;
    let words = failed(&kubectl, "redisrestore", "gone").await?;
    ensure!(
        words.contains("manifest"),
        "a deleted backup is refused with: {words}"
    );
    kubectl.delete_namespace().await
}

async fn failed(kubectl: &Kubectl, kind: &str, name: &str) -> Result<String> {
    let what = format!("{kind} {name}");
    let over = async || Ok(holds(&kubectl.get(&what).await?, "Failed"));
    kubectl
        .until(&format!("{what} failed"), LIMIT, over)
        .await?;
    Ok(kubectl.get(&what).await?["status"]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

/// Whatever is wrong with the storage ends in a sentence that names it, and in no secret.
#[tokio::test]
async fn failures_of_storage_say_what_to_mend() -> Result<()> {
    let kubectl = scenario::namespace("e2e-failures").await?;
    scenario::cluster(&kubectl, "shop", 3, false).await?;
    scenario::formed(&kubectl, "shop", 6).await?;
    kubectl
        .apply(
            &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wrong"},
                       "stringData": {"accessKeyId": "scenario", "secretAccessKey": "not-the-key"}})
            .to_string(),
        )
        .await?;
    let s3 = |member: &str, value: Value| {
        let mut s3 = scenario::s3_location(&kubectl);
        s3[member] = value;
        json!({"storageName": null, "s3": s3})
    };
    let cases = [
        ("no-bucket", s3("bucket", json!("nowhere")), "nowhere"),
        (
            "wrong-key",
            s3("credentialsSecretRef", json!({"name": "wrong"})),
            "backups",
        ),
        (
            "no-secret",
            s3("credentialsSecretRef", json!({"name": "absent"})),
            "absent",
        ),
        (
            "no-server",
            s3("endpoint", json!("http://s3.e2e-failures.svc:9999")),
            "backups",
        ),
        (
            "no-name",
            s3("endpoint", json!("http://absent.e2e-failures.svc:9000")),
            "lookup",
        ),
    ];
    for (name, change, _) in &cases {
        kubectl.apply(&backup(name, "shop", change)).await?;
    }
    for (name, _, word) in &cases {
        let what = format!("redisbackup {name}");
        let words = async || {
            let status = kubectl.get(&what).await?["status"].clone();
            Ok(status["message"]
                .as_str()
                .is_some_and(|message| message.contains(word)))
        };
        kubectl
            .until(&format!("{what} names {word}"), LIMIT, words)
            .await?;
        println!("{name}: {}", kubectl.get(&what).await?["status"]["message"]);
    }
    // What only a person can mend is final; a Secret or a server that may still come is waited for.
    for name in ["no-bucket", "wrong-key"] {
        failed(&kubectl, "redisbackup", name).await?;
    }
    let everything = kubectl.run("get redisbackups,events -o yaml").await?;
    let logs = Kubectl::new("redis-operator-system")
        .run("logs -l app.kubernetes.io/name=backup-controller --tail -1")
        .await?;
    for secret in ["scenario-secret", "not-the-key"] {
        ensure!(
            !everything.contains(secret) && !logs.contains(secret),
            "a secret is readable"
        );
    }
    kubectl.delete_namespace().await
}
