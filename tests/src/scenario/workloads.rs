//! The workload program, in pods of its own.

use super::{LIMIT, pod_names, pod_security, restricted, tools_image};
use crate::kubectl::Kubectl;
use anyhow::{Context, Result, ensure};
use serde_json::json;

/// Starts the workload program in a pod of its own.
pub async fn start_workload(kubectl: &Kubectl, pod: &str, arguments: &[&str]) -> Result<()> {
    let mut command = vec!["/bin/workload"];
    command.extend(arguments);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "labels": {"app": "workload"}}, "spec": {
        "restartPolicy": "Never", "securityContext": pod_security(), "automountServiceAccountToken": false,
        "containers": [{"name": "workload", "image": tools_image(), "imagePullPolicy": "IfNotPresent",
                        "command": command, "securityContext": restricted()}]}});
    kubectl.apply(&pod.to_string()).await.map(drop)
}

/// Waits for a workload pod to succeed, and answers what it printed.
pub async fn finish_workload(kubectl: &Kubectl, pod: &str) -> Result<String> {
    let ended = async || {
        let phase = kubectl.get(&format!("pod {pod}")).await?["status"]["phase"].clone();
        Ok(phase == "Succeeded" || phase == "Failed")
    };
    kubectl
        .until(&format!("the end of {pod}"), LIMIT, ended)
        .await?;
    let printed = kubectl.run(&format!("logs {pod}")).await?.trim().to_owned();
    ensure!(
        kubectl.get(&format!("pod {pod}")).await?["status"]["phase"] == "Succeeded",
        "{pod} failed: {printed}"
    );
    Ok(printed)
}

/// Runs the workload program in a pod to its end.
pub async fn workload(kubectl: &Kubectl, pod: &str, arguments: &[&str]) -> Result<String> {
    start_workload(kubectl, pod, arguments).await?;
    finish_workload(kubectl, pod).await
}

/// A pod that writes to a cluster until it is finished.
#[must_use]
pub struct Writer<'a> {
    kubectl: &'a Kubectl,
    cluster: String,
}

impl<'a> Writer<'a> {
    const POD: &'static str = "writer";

    /// Starts it and waits until it runs.
    pub async fn start(kubectl: &'a Kubectl, cluster: &str) -> Result<Self> {
        let address = format!("{cluster}:6379");
        let arguments = [
            "write",
            &address,
            "--seconds",
            "1800",
            "--until",
            "writer-end",
        ];
        start_workload(kubectl, Self::POD, &arguments).await?;
        let runs = async || {
            let pod = kubectl.get(&format!("pod {}", Self::POD)).await?;
            Ok(pod["status"]["phase"] == "Running")
        };
        kubectl.until("the writer runs", LIMIT, runs).await?;
        let cluster = cluster.to_owned();
        Ok(Self { kubectl, cluster })
    }

    /// Ends it: every acknowledged write must be there. Answers what it printed.
    pub async fn finish(self) -> Result<String> {
        let pods = pod_names(self.kubectl, &self.cluster).await?;
        let pod = pods.first().context("a cluster without pods")?;
        let end = "redis-cli -c set writer-end 1";
        self.kubectl.exec(pod, end).await?;
        let printed = finish_workload(self.kubectl, Self::POD).await?;
        self.kubectl
            .run(&format!("delete pod {} --now", Self::POD))
            .await?;
        self.kubectl
            .exec(pod, "redis-cli -c del writer-end")
            .await?;
        println!("writer: {printed}");
        Ok(printed)
    }
}
