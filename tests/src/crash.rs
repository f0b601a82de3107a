//! SIGKILL for the processes of pods, as a kernel that is short of memory sends it: nothing is flushed, no peer is notified, and
//! Kubernetes restarts the container in place. And SIGSTOP: the processes are there, and do nothing any more.

use crate::{
    kubectl::Kubectl,
    scenario::{LIMIT, no_data_was_dropped_by, redis_image},
};
use anyhow::{Context, Result};
use futures::future::try_join_all;
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Instant};

/// A pod on each node that sees the node's processes.
pub struct Killers {
    kubectl: Kubectl,
    by_node: BTreeMap<String, String>,
}

impl Killers {
    /// Starts a pod on each node, in a namespace beside that of the scenario.
    pub async fn start(scenario: &Kubectl) -> Result<Self> {
        let kubectl = Kubectl::new(&format!("{}-kill", scenario.namespace()));
        kubectl.create_namespace("privileged").await?;
        let image = redis_image(); // it has a shell
        let mut by_node = BTreeMap::new();
        for node in kubectl.list("nodes").await? {
            let node = text(&node, "/metadata/name")?;
            let pod = format!("on-{node}");
            kubectl
                .apply(&killer(&pod, &node, &image).to_string())
                .await?;
            by_node.insert(node, pod);
        }
        kubectl
            .run("wait pods --all --for=condition=Ready --timeout=120s")
            .await?;
        Ok(Self { kubectl, by_node })
    }

    /// Kills every process of these pods at the same time, and waits until Kubernetes has started the containers again. When they were killed.
    pub async fn kill(&self, scenario: &Kubectl, pods: &[Value]) -> Result<Instant> {
        let begun = self.send_kill(pods).await?;
        for pod in pods {
            restarted(scenario, pod).await?;
        }
        Ok(begun)
    }

    /// Kills every process of these pods at the same time, and does not wait. When that was.
    pub async fn send_kill(&self, pods: &[Value]) -> Result<Instant> {
        self.send("KILL", pods).await
    }

    /// Lets every process of these pods hang.
    pub async fn stop(&self, pods: &[Value]) -> Result<()> {
        self.send("STOP", pods).await.map(drop)
    }

    async fn send(&self, signal: &str, pods: &[Value]) -> Result<Instant> {
        have_dropped_nothing(pods).await?;
        let begun = Instant::now();
        let mut by_killer: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for pod in pods {
            let node = text(pod, "/spec/nodeName")?;
            let killer = self
                .by_node
                .get(&node)
                .with_context(|| format!("no killer on {node}"))?;
            by_killer
                .entry(killer)
                .or_default()
                .push(text(pod, "/metadata/uid")?);
        }
        let scripts = by_killer
            .into_iter()
            .map(|(killer, uids)| (killer, script(signal, &uids)));
        let kills =
            scripts.map(|(killer, script)| async move { self.kubectl.exec(killer, &script).await });
        try_join_all(kills).await?;
        Ok(begun)
    }

    /// Kills one pod, by its name. When that was.
    pub async fn kill_pod(&self, kubectl: &Kubectl, name: &str) -> Result<Instant> {
        let pod = kubectl.get(&format!("pod {name}")).await?;
        self.kill(kubectl, &[pod]).await
    }

    /// Deletes their namespace.
    pub async fn end(self) -> Result<()> {
        self.kubectl.delete_namespace().await
    }
}

/// A server counts the commands that it was sent until its process ends, so the count is checked before the signal. Pods of controllers have no
/// such count.
async fn have_dropped_nothing(pods: &[Value]) -> Result<()> {
    let is_server = |pod: &&Value| pod["metadata"]["labels"][crds::LABEL_CLUSTER].is_string();
    let checks = pods.iter().filter(is_server).map(async |pod| {
        let kubectl = Kubectl::new(&text(pod, "/metadata/namespace")?);
        no_data_was_dropped_by(&kubectl, &text(pod, "/metadata/name")?).await
    });
    try_join_all(checks).await.map(drop)
}

fn killer(pod: &str, node: &str, image: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod}, "spec": {
        "nodeName": node, "hostPID": true, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
        "containers": [{"name": "killer", "image": image, "imagePullPolicy": "IfNotPresent",
                        "command": ["sleep", "3600"], "securityContext": {"runAsUser": 0}}]}})
}

/// Sends a signal to what runs in the pods' control groups, whose paths hold the pods' uids. `pause` holds the pod's network: a kernel
/// spares it, being small.
fn script(signal: &str, uids: &[String]) -> String {
    let patterns: Vec<String> = uids
        .iter()
        .flat_map(|uid| [uid.clone(), uid.replace('-', "_")])
        .map(|uid| format!("-e {uid}"))
        .collect();
    format!(
        "for process in /proc/[0-9]*; do \
           if grep -q {} $process/cgroup 2> /dev/null && [ \"$(cat $process/comm)\" != pause ]; then \
             victims=\"$victims ${{process#/proc/}}\"; \
           fi; \
         done; kill -{signal} $victims",
        patterns.join(" ")
    )
}

async fn restarted(kubectl: &Kubectl, before: &Value) -> Result<()> {
    let what = format!("pod {}", text(before, "/metadata/name")?);
    let container = |pod: &Value| pod["status"]["containerStatuses"][0].clone();
    let old = container(before)["containerID"].clone();
    let again = async || {
        let now = container(&kubectl.get(&what).await?);
        Ok(now["containerID"] != old && !now["state"]["running"].is_null())
    };
    kubectl
        .until(&format!("{what} restarted in place"), LIMIT, again)
        .await
        .map(drop)
}

fn text(object: &Value, pointer: &str) -> Result<String> {
    let found = object.pointer(pointer).and_then(Value::as_str);
    found
        .map(Into::into)
        .with_context(|| format!("an object without {pointer}: {object}"))
}
