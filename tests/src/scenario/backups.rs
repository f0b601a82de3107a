//! Backups and restores, and the S3 server between them.

use super::{API_VERSION, LIMIT, pod_security, redis_image, restricted, tools_image};
use crate::kubectl::{Kubectl, holds};
use anyhow::{Result, bail};
use serde_json::{Value, json};

/// A RedisBackup of a cluster into its storage `s3`, to be changed and applied.
pub fn backup(name: &str, cluster: &str) -> Value {
    json!({"apiVersion": API_VERSION, "kind": "RedisBackup", "metadata": {"name": name},
           "spec": {"clusterRef": {"name": cluster}, "storageName": "s3"}})
}

/// A RedisRestore from a source into a target, as its spec names them, to be changed and applied.
pub fn restore(name: &str, source: &Value, target: &Value) -> Value {
    json!({"apiVersion": API_VERSION, "kind": "RedisRestore", "metadata": {"name": name},
           "spec": {"source": source, "target": target}})
}

/// Waits for a RedisBackup or RedisRestore to end, and answers it; its failure is an error with its own message.
pub async fn ended(kubectl: &Kubectl, kind: &str, name: &str) -> Result<Value> {
    let what = format!("{kind} {name}");
    let over = async || {
        let object = kubectl.get(&what).await?;
        Ok(holds(&object, "Complete") || holds(&object, "Failed"))
    };
    kubectl.until(&format!("{what} ended"), LIMIT, over).await?;
    let object = kubectl.get(&what).await?;
    if holds(&object, "Failed") {
        kubectl.explain().await;
        bail!("{what} failed: {}", object["status"]["message"]);
    }
    Ok(object)
}

/// Waits for a RedisBackup or RedisRestore to fail, and answers its message.
pub async fn failed(kubectl: &Kubectl, kind: &str, name: &str) -> Result<String> {
    let what = format!("{kind} {name}");
    let over = async || Ok(holds(&kubectl.get(&what).await?, "Failed"));
    kubectl
        .until(&format!("{what} failed"), LIMIT, over)
        .await?;
    let message = kubectl.get(&what).await?["status"]["message"].clone();
    Ok(message.as_str().unwrap_or_default().to_owned())
}

/// Location of backups in the scenario's S3 server. The controllers live in another namespace: the name is a full one.
pub fn s3_location(kubectl: &Kubectl) -> Value {
    let endpoint = format!("http://s3.{}.svc:9000", kubectl.namespace());
    json!({"bucket": "backups", "endpoint": endpoint, "credentialsSecretRef": {"name": "s3-credentials"}})
}

/// Every file that the scenario's S3 server keeps, also those of unfinished uploads.
pub async fn s3_files(kubectl: &Kubectl) -> Result<Vec<String>> {
    let find = "exec deployment/s3 -c files -- find /data -type f";
    let files = kubectl.run(find).await?;
    Ok(files.lines().map(Into::into).collect())
}

/// The S3 server; beside it a container with a shell, to look at its files.
pub(super) fn s3_server() -> String {
    let mount = json!([{"name": "data", "mountPath": "/data"}]);
    let server = json!({
        "name": "s3", "image": tools_image(), "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/s3-server", "--listen", "0.0.0.0:9000", "--root", "/data", "--bucket", "backups",
                    "--access-key", "scenario", "--secret-key", "scenario-secret"],
        "ports": [{"containerPort": 9000}],
        "readinessProbe": {"tcpSocket": {"port": 9000}, "periodSeconds": 1},
        "securityContext": restricted(),
        "volumeMounts": mount,
    });
    let files = json!({
        "name": "files", "image": redis_image(), "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "86400"], "securityContext": restricted(), "volumeMounts": mount,
    });
    let documents = [
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3-credentials"},
               "stringData": {"accessKeyId": "scenario", "secretAccessKey": "scenario-secret"}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s3"},
               "spec": {"selector": {"app": "s3"}, "ports": [{"port": 9000}]}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "s3"},
               "spec": {"selector": {"matchLabels": {"app": "s3"}}, "template": {
                   "metadata": {"labels": {"app": "s3"}},
                   "spec": {"containers": [server, files], "securityContext": pod_security(),
                            "terminationGracePeriodSeconds": 2,
                            "volumes": [{"name": "data", "emptyDir": {}}]}}}}),
    ];
    documents
        .map(|document| document.to_string())
        .join("\n---\n")
}
