//! kubectl as a user types it: the demonstration and the end-to-end suites see only what a user sees.

pub use crate::kubectl_error::KubectlError;

use crate::wait;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt, process::Command};

/// Label and value of the namespaces and of the cluster-wide objects that scenarios make: `make demo-down` deletes by them.
pub const MADE_HERE: (&str, &str) = ("app.kubernetes.io/managed-by", "redis-operator-scenario");

/// How often a condition is looked at: each look starts a process.
const INTERVAL: Duration = Duration::from_millis(100);

/// With the certificate of the server itself. An alias is known to the lines that follow.
const ENCRYPTED_CLIENT: &str = r#"[ ! -e /tls/tls.conf ] || alias redis-cli="redis-cli -p 6380 --tls --insecure --cert $(sed -n 's|^tls-cert-file \.\.||p' /tls/tls.conf) --key $(sed -n 's|^tls-key-file \.\.||p' /tls/tls.conf)""#;

/// kubectl for one namespace of the cluster that KUBECONFIG names.
#[derive(Clone, Debug)]
pub struct Kubectl {
    namespace: String,
    /// Whether the namespace's state was printed: once is enough for a failure and for what it makes fail.
    explained: Arc<AtomicBool>,
}

impl Kubectl {
    /// kubectl for `namespace`.
    pub fn new(namespace: &str) -> Self {
        Self {
            namespace: namespace.into(),
            explained: Arc::default(),
        }
    }

    /// Name of the namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Runs kubectl with arguments separated by spaces and answers what it printed.
    pub async fn run(&self, arguments: &str) -> Result<String> {
        self.call(&arguments.split_whitespace().collect::<Vec<_>>(), None)
            .await
    }

    /// Applies YAML.
    pub async fn apply(&self, yaml: &str) -> Result<String> {
        self.call(&["apply", "-f", "-"], Some(yaml)).await
    }

    /// `kubectl get … -o json`.
    pub async fn get(&self, what: &str) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.run(&format!("get {what} -o json")).await?,
        )?)
    }

    /// The items of `kubectl get … -o json` of a list.
    pub async fn list(&self, what: &str) -> Result<Vec<Value>> {
        Ok(self.get(what).await?["items"]
            .as_array()
            .cloned()
            .unwrap_or_default())
    }

    /// Makes the namespace; `admits` is the pod security level it enforces. What an earlier run left in one of this name would
    /// pass for the work of this one: it goes first. A namespace that no scenario made is left alone.
    pub async fn create_namespace(&self, admits: &str) -> Result<()> {
        let name = &self.namespace;
        let (label, value) = MADE_HERE;
        let earlier =
            format!("namespaces -l {label}={value} --field-selector metadata.name={name}");
        self.run(&format!("delete {earlier} --wait=false")).await?;
        let gone = async || Ok(self.list(&earlier).await?.is_empty());
        let wait = format!("the namespace {name} of an earlier run gone");
        self.until(&wait, Duration::from_mins(5), gone).await?;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {
            "pod-security.kubernetes.io/enforce": admits, label: value}}});
        self.call(&["create", "-f", "-"], Some(&namespace.to_string()))
            .await?;
        let account = async || Ok(self.run("get serviceaccount default").await.is_ok());
        self.until(
            "the namespace's default account",
            Duration::from_mins(1),
            account,
        )
        .await
        .map(drop)
    }

    /// Deletes the namespace and waits until nothing of it is left.
    pub async fn delete_namespace_to_its_end(&self, limit: Duration) -> Result<Duration> {
        self.delete_namespace().await?;
        let name = &self.namespace;
        let named = format!("namespaces --field-selector metadata.name={name}");
        let gone = async || Ok(self.list(&named).await?.is_empty());
        self.until(&format!("the namespace {name} gone"), limit, gone)
            .await
    }

    /// Begins to delete the namespace.
    pub async fn delete_namespace(&self) -> Result<()> {
        let name = &self.namespace;
        let delete = format!("delete namespace {name} --wait=false --ignore-not-found");
        self.run(&delete).await.map(drop)
    }

    /// `kubectl patch --type=merge`.
    pub async fn patch(&self, what: &str, change: &Value) -> Result<()> {
        let patch = change.to_string();
        let (kind, name) = what.split_once(' ').context("a kind and a name")?;
        self.call(
            &["patch", kind, name, "--type=merge", "--patch", &patch],
            None,
        )
        .await
        .map(drop)
    }

    /// Runs a shell command inside a pod. In one that encrypts, `redis-cli` does so too.
    pub async fn exec(&self, pod: &str, script: &str) -> Result<String> {
        let script = format!("{ENCRYPTED_CLIENT}\n{script}");
        self.call(&["exec", pod, "--", "sh", "-c", &script], None)
            .await
    }

    /// kubectl with arguments and standard input.
    pub async fn call(&self, arguments: &[&str], input: Option<&str>) -> Result<String> {
        let mut child = Command::new("kubectl")
            .arg("--namespace")
            .arg(&self.namespace)
            .args(arguments)
            .stdin(if input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(KubectlError::Start)?;
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
            pipe.write_all(input.as_bytes()).await?;
        }
        let output =
            tokio::time::timeout(Duration::from_mins(2), child.wait_with_output()).await??;
        if !output.status.success() {
            return Err(KubectlError::Failed {
                arguments: arguments.join(" "),
                printed: String::from_utf8_lossy(&output.stderr).into_owned(),
            }
            .into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Waits until `test` is true, and answers how long that took; prints the state of the namespace if the limit passes first, or an
    /// error comes that waiting cannot cure.
    pub async fn until<F>(&self, what: &str, limit: Duration, test: F) -> Result<Duration>
    where
        F: AsyncFnMut() -> Result<bool>,
    {
        let started = Instant::now();
        match wait::at_intervals(INTERVAL, limit, what, test).await {
            Ok(()) => Ok(started.elapsed()),
            Err(error) => {
                self.explain().await;
                Err(error)
            }
        }
    }

    /// Prints what is needed to understand a failure, once: objects, events, what each server reports, and all logs.
    pub async fn explain(&self) {
        if self.explained.swap(true, Ordering::Relaxed) {
            return;
        }
        self.show("get nodes -o wide").await;
        self.show("get all,pvc,leases,redisclusters,redisbackups,redisrestores -o wide")
            .await;
        self.show("get redisclusters,redisbackups,redisrestores -o yaml")
            .await;
        self.show("get events --sort-by=.metadata.creationTimestamp")
            .await;
        let label = format!("pods -l {}", crds::LABEL_CLUSTER);
        for pod in self.list(&label).await.unwrap_or_default() {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let script = "redis-cli cluster nodes; redis-cli cluster info | head -6; redis-cli info replication; ls -la /data";
            let answer = self.exec(name, script).await;
            eprintln!("--- {name}\n{}", shown(answer));
            self.logs(&pod).await;
        }
        for app in ["workload", "s3"] {
            let pods = self.list(&format!("pods -l app={app}")).await;
            for pod in pods.unwrap_or_default() {
                self.logs(&pod).await;
            }
        }
        let system = Self::new(crate::scenario::SYSTEM);
        system.show("get pods,leases -o wide").await;
        let controllers = "pods -l app.kubernetes.io/part-of=redis-operator";
        for pod in system.list(controllers).await.unwrap_or_default() {
            system.logs(&pod).await;
        }
    }

    /// Prints the logs of a pod: of its containers, and of those before them if they were restarted.
    async fn logs(&self, pod: &Value) {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let containers = pod["status"]["containerStatuses"].as_array();
        let restarted = containers
            .into_iter()
            .flatten()
            .any(|container| container["restartCount"].as_u64() > Some(0));
        if restarted {
            self.show(&format!(
                "logs {name} --all-containers --previous --tail 30"
            ))
            .await;
        }
        self.show(&format!("logs {name} --all-containers --tail 100"))
            .await;
    }

    async fn show(&self, arguments: &str) {
        let answer = self.run(arguments).await;
        eprintln!("--- kubectl {arguments}\n{}", shown(answer));
    }
}

fn shown(answer: Result<String>) -> String {
    answer.unwrap_or_else(|error| format!("{error:#}"))
}

/// Whether an object has the condition with the status `True`, for the generation it has now.
pub fn holds(object: &Value, condition: &str) -> bool {
    object["status"]["observedGeneration"] == object["metadata"]["generation"]
        && object["status"]["conditions"]
            .as_array()
            .is_some_and(|all| {
                all.iter()
                    .any(|c| c["type"] == condition && c["status"] == "True")
            })
}
