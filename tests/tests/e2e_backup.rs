//! Backups and restores on a real Kubernetes: both replicas stream, a restore into another size compares equal, failures name their
//! cause, and what is deleted in the middle of its work leaves nothing behind.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};
use tests::{
    kubectl::{Kubectl, holds},
    scenario::{self, FilledCluster, LIMIT, Volumes},
};

/// Enough that a shard takes longer than a claim: each replica finds work.
const KEYS: u64 = 150_000;

/// Longest deletion of a namespace: its backups' objects are in a bucket that goes with it.
const NAMESPACE_GONE: Duration = Duration::from_mins(5);

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
        let done = shared_backup(kubectl).await?;
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

/// A backup of which both replicas took shards. One that is quick enough takes all of so small a cluster: then another backup is made.
async fn shared_backup(kubectl: &Kubectl) -> Result<Value> {
    let mut seen = Vec::new();
    for _ in 0..5 {
        apply(kubectl, &owning_backup("now")).await?;
        let done = scenario::ended(kubectl, "redisbackup", "now").await?;
        let workers = workers(&done);
        if workers.len() == 2 {
            return Ok(done);
        }
        seen.push(workers);
        kubectl.run("delete redisbackup now --timeout=60s").await?;
    }
    anyhow::bail!("every backup ran on one replica only: {seen:?}")
}

fn path(backup: &Value) -> Result<String> {
    let destination = backup["status"]["destination"].as_str();
    let destination = destination.with_context(|| format!("no destination: {backup}"))?;
    let path = destination.trim_start_matches("s3://backups/");
    Ok(path.trim_end_matches('/').to_owned())
}

async fn into_five(kubectl: &Kubectl) -> Result<()> {
    let source = json!({"backupRef": {"name": "now"}});
    let spec = scenario::cluster_spec(5, 0);
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

/// Every stream of a deleted backup ends, its objects go, and the next backup of the cluster starts at once.
#[tokio::test]
async fn a_running_backup_can_be_deleted() -> Result<()> {
    scenario::run("e2e-delete-backup", async |kubectl| {
        let shop = FilledCluster::create(kubectl, "shop", 3, Volumes::None, 6_000).await?;
        // Two thousand keys a shard at 10 ms each: a stream takes 20 s.
        let slow = "redis-cli config set rdb-key-save-delay 10000";
        scenario::on_every_server(kubectl, "shop", slow).await?;
        apply(kubectl, &owning_backup("now")).await?;
        at_work(kubectl, "redisbackup now", "shards", "Streaming").await?;
        kubectl.run("delete redisbackup now --timeout=60s").await?;
        let fast = "redis-cli config set rdb-key-save-delay 0";
        scenario::on_every_server(kubectl, "shop", fast).await?;
        let mut streams = 0;
        let ended = async || {
            streams = replica_connections(kubectl, "shop").await?;
            Ok(streams == shop.nodes() / 2)
        };
        let wait = "no connections but those of the cluster's replicas";
        let waited = kubectl.until(wait, LIMIT, ended).await;
        waited.with_context(|| format!("{streams} connections"))?;
        let mut files = Vec::new();
        let empty = async || {
            files = scenario::s3_files(kubectl).await?;
            Ok(files.is_empty())
        };
        let waited = kubectl.until("an empty bucket", LIMIT, empty).await;
        waited.with_context(|| format!("the bucket holds {files:?}"))?;

        apply(kubectl, &owning_backup("next")).await?;
        scenario::ended(kubectl, "redisbackup", "next").await?;
        shop.is_intact("deleted").await
    })
    .await
}

/// Connections by which data is copied from the servers of a cluster: one for each replica, and those of backups.
async fn replica_connections(kubectl: &Kubectl, cluster: &str) -> Result<usize> {
    let list = "redis-cli client list type replica";
    let lists = scenario::on_every_server(kubectl, cluster, list).await?;
    Ok(lists
        .values()
        .flat_map(|list| list.lines())
        .filter(|line| line.contains("id="))
        .count())
}

/// A deleted restore writes no more, and its target is free for other operations.
#[tokio::test]
async fn a_running_restore_can_be_deleted() -> Result<()> {
    const MANY: u64 = 60_000;
    scenario::run("e2e-delete-restore", async |kubectl| {
        FilledCluster::create(kubectl, "shop", 3, Volumes::None, MANY).await?;
        apply(kubectl, &scenario::backup("now", "shop")).await?;
        scenario::ended(kubectl, "redisbackup", "now").await?;
        scenario::cluster(kubectl, "copy", 3, Volumes::None).await?;
        scenario::formed(kubectl, "copy", 6).await?;

        let pause = "redis-cli client pause 120000 write";
        scenario::on_every_server(kubectl, "copy", pause).await?;
        let source = json!({"backupRef": {"name": "now"}});
        let restore = scenario::restore("copy", &source, &json!({"clusterRef": {"name": "copy"}}));
        apply(kubectl, &restore).await?;
        at_work(kubectl, "redisrestore copy", "units", "Replaying").await?;
        kubectl
            .run("delete redisrestore copy --timeout=60s")
            .await?;
        scenario::on_every_server(kubectl, "copy", "redis-cli client unpause").await?;

        // A backup needs the operation Lease that the restore held.
        apply(kubectl, &scenario::backup("after", "copy")).await?;
        scenario::ended(kubectl, "redisbackup", "after").await?;
        let before = keys(kubectl, "copy").await?;
        tokio::time::sleep(Duration::from_secs(3)).await; // time in which a worker would write on
        let after = keys(kubectl, "copy").await?;
        println!("the deleted restore left {after} of {MANY} keys");
        ensure!(
            before == after && after < MANY,
            "{before} keys after the deletion, {after} a moment later"
        );
        scenario::no_data_was_dropped(kubectl, "copy").await
    })
    .await
}

/// Keys of all primaries of a cluster.
async fn keys(kubectl: &Kubectl, cluster: &str) -> Result<u64> {
    let script = "redis-cli role | grep -q master && redis-cli dbsize || echo 0";
    let sizes = scenario::on_every_server(kubectl, cluster, script).await?;
    let sizes = sizes.values().map(|size| Ok(size.trim().parse::<u64>()?));
    sizes.sum()
}

/// Waits until every unit of a backup or restore is at work.
async fn at_work(kubectl: &Kubectl, what: &str, units: &str, state: &str) -> Result<()> {
    let all = async || {
        let units = kubectl.get(what).await?["status"][units].clone();
        let units = units.as_array().cloned().unwrap_or_default();
        Ok(!units.is_empty() && units.iter().all(|unit| unit["state"] == state))
    };
    let wait = format!("{what}: every unit {state}");
    kubectl.until(&wait, LIMIT, all).await.map(drop)
}

/// The S3 server goes with the namespace: the finalizer of a backup does not keep either of them for ever.
#[tokio::test]
async fn a_namespace_with_backups_is_deleted_to_its_end() -> Result<()> {
    scenario::run("e2e-namespace", async |kubectl| {
        FilledCluster::create(kubectl, "shop", 3, Volumes::DeletedWithCluster, 1_000).await?;
        for name in ["first", "second"] {
            apply(kubectl, &owning_backup(name)).await?;
            let backup = scenario::ended(kubectl, "redisbackup", name).await?;
            let finalizers = backup["metadata"]["finalizers"].to_string();
            ensure!(
                finalizers.contains(crds::FINALIZER_ARTIFACTS),
                "{name} has the finalizers {finalizers}"
            );
        }
        let time = kubectl.delete_namespace_to_its_end(NAMESPACE_GONE).await?;
        println!("the namespace was gone after {:.1} s", time.as_secs_f64());
        Ok(())
    })
    .await
}
