//! Pods with a Redis server that no controller knows: what the platform needs by itself.

use super::{LIMIT, redis_image};
use crate::kubectl::Kubectl;
use anyhow::Result;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The label that selects them.
pub const BARE: &str = "app=bare";

/// Makes so many bare pods, whose port is probed every `period` seconds, and answers how long it took until all were ready.
pub async fn bare_pods(kubectl: &Kubectl, count: usize, period: u32) -> Result<Duration> {
    let started = Instant::now();
    kubectl.apply(&bare(count, period).to_string()).await?;
    let ready = async || {
        let deployment = kubectl.get("deployment bare").await?;
        Ok(deployment["status"]["readyReplicas"] == json!(count))
    };
    kubectl.until("the bare pods ready", LIMIT, ready).await?;
    Ok(started.elapsed())
}

/// Deletes them and waits until they are gone.
pub async fn delete_bare_pods(kubectl: &Kubectl) -> Result<()> {
    kubectl.run("delete deployment bare").await?;
    let gone = async || {
        let pods = kubectl.list(&format!("pods -l {BARE}")).await?;
        Ok(pods.is_empty())
    };
    kubectl
        .until("the bare pods gone", LIMIT, gone)
        .await
        .map(drop)
}

fn bare(count: usize, period: u32) -> Value {
    let probe = json!({"tcpSocket": {"port": 6379}, "periodSeconds": period});
    let restricted = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    let user = json!({"runAsNonRoot": true, "runAsUser": 999, "seccompProfile": {"type": "RuntimeDefault"}});
    let container = json!({"name": "redis", "image": redis_image(), "imagePullPolicy": "IfNotPresent",
        "command": ["redis-server", "--save", "", "--dir", "/tmp", "--protected-mode", "no"],
        "readinessProbe": probe, "livenessProbe": probe, "securityContext": restricted});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "bare"}, "spec": {
        "replicas": count, "selector": {"matchLabels": {"app": "bare"}},
        "template": {"metadata": {"labels": {"app": "bare"}}, "spec": {
            "automountServiceAccountToken": false, "securityContext": user, "containers": [container]}}}})
}
