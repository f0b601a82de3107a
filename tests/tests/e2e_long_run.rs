//! `make run`: the controllers as processes of this machine, which serve one namespace and leave another alone.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tests::{
    kubectl::Kubectl,
    scenario::{self, FilledCluster, Volumes},
};
use tokio::process::{Child, Command};

/// The controllers are compiled first, if they have not been.
const COMPILED: Duration = Duration::from_mins(20);
/// The generation that the API server gives an object which no controller has seen.
const NOT_OBSERVED: i64 = -1;
/// Longest end of the controllers after Ctrl-C.
const ENDED: Duration = Duration::from_secs(40);

/// The deployed controllers make room for those of `make run`, and come back whatever happens.
#[tokio::test]
async fn controllers_outside_the_cluster_serve_one_namespace() -> Result<()> {
    scenario::run("e2e-watched", async |watched| {
        scenario::run("e2e-ignored", async |ignored| {
            make(&["undeploy"]).await?;
            let served = served(watched, ignored).await;
            make(&["deploy"]).await?;
            served
        })
        .await
    })
    .await
}

async fn served(watched: &Kubectl, ignored: &Kubectl) -> Result<()> {
    let mut run = Run::start(watched.namespace())?;
    let used = async {
        let leads = async || Ok(scenario::leader("cluster-controller").await.is_ok());
        let wait = "a cluster-controller that `make run` started leads";
        watched.until(wait, COMPILED, leads).await?;
        scenario::cluster(ignored, "shop", 3, Volumes::None).await?;
        let shop = FilledCluster::create(watched, "shop", 3, Volumes::None, 1_000).await?;
        for namespace in [ignored, watched] {
            let backup = backup(namespace).await?;
            namespace.apply(&backup).await?;
        }
        scenario::ended(watched, "redisbackup", "now").await?;
        shop.is_intact("run").await?;
        is_left_alone(ignored).await
    };
    let used = used.await;
    let ended = run.end().await;
    used.and(ended).with_context(|| run.output())
}

/// A backup to the S3 server's address: names of the cluster mean nothing to a process outside it.
async fn backup(kubectl: &Kubectl) -> Result<String> {
    let service = kubectl.get("service s3").await?;
    let address = service["spec"]["clusterIP"]
        .as_str()
        .context("no address")?;
    let mut s3 = scenario::s3_location(kubectl);
    s3["endpoint"] = json!(format!("http://{address}:9000"));
    let mut backup = scenario::backup("now", "shop");
    backup["spec"] = json!({"clusterRef": {"name": "shop"}, "s3": s3});
    Ok(backup.to_string())
}

/// Nothing was made for its cluster, and nothing was written into its objects.
async fn is_left_alone(kubectl: &Kubectl) -> Result<()> {
    let children = format!(
        "statefulsets,services,configmaps,secrets,poddisruptionbudgets,pods -l {}=shop",
        crds::LABEL_CLUSTER
    );
    let children = kubectl.list(&children).await?;
    ensure!(children.is_empty(), "children were made: {children:?}");
    for object in ["rediscluster shop", "redisbackup now"] {
        let object = kubectl.get(object).await?;
        ensure!(
            object["status"]["observedGeneration"] == NOT_OBSERVED
                && object["metadata"].get("finalizers").is_none(),
            "an object of a namespace that is not watched was changed: {object}"
        );
    }
    Ok(())
}

fn makefile_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

async fn make(goals: &[&str]) -> Result<()> {
    let mut make = Command::new("make");
    make.current_dir(makefile_folder()).args(goals);
    let output = make.stdin(Stdio::null()).output().await?;
    ensure!(
        output.status.success(),
        "make {}: {}{}",
        goals.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// `make run` in a terminal of its own.
struct Run {
    child: Child,
    /// The process group, which a terminal sends Ctrl-C to.
    group: u32,
    output: PathBuf,
}

impl Run {
    fn start(namespace: &str) -> Result<Self> {
        let output = std::env::temp_dir().join(format!("make-run-{}.log", std::process::id()));
        let file = File::create(&output)?;
        let child = Command::new("make")
            .current_dir(makefile_folder())
            .arg("run")
            .env("WATCH_NAMESPACE", namespace)
            .stdin(Stdio::null())
            .stderr(file.try_clone()?)
            .stdout(file)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot run make")?;
        let group = child.id().context("make has ended")?;
        Ok(Self {
            child,
            group,
            output,
        })
    }

    /// Sends Ctrl-C: make ends, and with it every controller.
    async fn end(&mut self) -> Result<()> {
        self.signal("INT").await?;
        let ended = tokio::time::timeout(ENDED, self.child.wait()).await;
        let left = self.processes().await?;
        if !left.is_empty() {
            self.signal("KILL").await?;
        }
        ensure!(
            ended.is_ok(),
            "make run had not ended {ENDED:?} after Ctrl-C"
        );
        ensure!(left.is_empty(), "make run left processes behind: {left}");
        Ok(())
    }

    async fn signal(&self, signal: &str) -> Result<()> {
        let group = format!("-{}", self.group);
        let mut kill = Command::new("kill");
        kill.args(["-s", signal, "--", &group]).status().await?;
        Ok(())
    }

    /// The group's processes.
    async fn processes(&self) -> Result<String> {
        let group = self.group.to_string();
        let found = Command::new("pgrep")
            .args(["--list-full", "--pgroup", &group])
            .output()
            .await?;
        Ok(String::from_utf8_lossy(&found.stdout).trim().to_owned())
    }

    /// What make and the controllers printed.
    fn output(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_else(|error| error.to_string())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.output);
    }
}
