//! What an idle pod costs in processor time, beside a pod with the same server and TCP probes that no controller knows.

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use std::time::{Duration, Instant};
use tests::{
    kubectl::Kubectl,
    processor,
    scenario::{self, Area, ScenarioRow, Volumes},
};

/// Pods of each kind: two clusters of three shards with a replica each, and as many bare ones.
const PODS: u32 = 12;
/// Everything that works for pods or in them, on all nodes and for the API. Names as the kernel cuts them.
const PROGRAMS: [&str; 12] = [
    "kubelet",
    "containerd",
    "containerd-shim",
    "runc",
    "pause",
    "redis-server",
    "kube-proxy",
    "kube-apiserver",
    "etcd",
    "kube-controller",
    "kube-scheduler",
    "cluster-control",
];
/// Until what the creation and deletion of pods has started is over.
const SETTLES: Duration = Duration::from_secs(45);
/// The time that is measured: at least one liveness probe of each pod, and many reconciles.
const MEASURED: Duration = Duration::from_mins(2);
/// Seconds between two probes of a bare pod.
const PERIOD: u32 = 2;
/// What a pod of ours may cost above a bare one.
const MOST: f64 = 5.0;

#[tokio::test]
async fn an_idle_pod_costs_five_millicores_above_a_bare_one() -> Result<()> {
    scenario::run("e2e-idle-pods", async |kubectl| {
        let nothing = millicores("no pods").await?;
        let bare = bare_pods(kubectl).await?;
        let ours = our_pods(kubectl).await?;
        let per_pod = |all: f64| (all - nothing) / f64::from(PODS);
        let (bare, ours) = (per_pod(bare), per_pod(ours));
        let figures = format!(
            "{ours:.1} millicores a pod, {bare:.1} a bare one with TCP probes: difference {:.1}, at most {MOST:.0}",
            ours - bare
        );
        let done = "12 idle pods of two clusters, measured for two minutes";
        ScenarioRow::new(Area::Cost, "idle pods", done)
            .note(figures)
            .record()?;
        ensure!(
            ours - bare <= MOST,
            "{ours:.1} millicores a pod are more than {MOST} above {bare:.1}"
        );
        Ok(())
    })
    .await
}

/// What [`PROGRAMS`] use, in thousandths of a processor.
async fn millicores(what: &str) -> Result<f64> {
    tokio::time::sleep(SETTLES).await;
    let (begun, before) = (Instant::now(), processor::used_by(&PROGRAMS)?);
    tokio::time::sleep(MEASURED).await;
    let used = processor::used_by(&PROGRAMS)?.saturating_sub(before);
    let millicores = used.as_secs_f64() * 1000.0 / begun.elapsed().as_secs_f64();
    println!("{what}: {millicores:.0} millicores in all");
    Ok(millicores)
}

async fn bare_pods(kubectl: &Kubectl) -> Result<f64> {
    scenario::bare_pods(kubectl, usize::try_from(PODS)?, PERIOD).await?;
    let millicores = millicores("bare pods").await?;
    no_restart(kubectl, scenario::BARE).await?;
    scenario::delete_bare_pods(kubectl).await?;
    Ok(millicores)
}

async fn our_pods(kubectl: &Kubectl) -> Result<f64> {
    let names = ["cart", "shop"];
    let nodes = usize::try_from(PODS)? / names.len();
    try_join_all(names.map(|name| scenario::cluster(kubectl, name, 3, Volumes::None))).await?;
    for name in names {
        scenario::formed(kubectl, name, nodes).await?;
    }
    let millicores = millicores("our pods").await?;
    no_restart(kubectl, crds::LABEL_CLUSTER).await?;
    Ok(millicores)
}

/// A restart within the measured time would be part of the figure.
async fn no_restart(kubectl: &Kubectl, label: &str) -> Result<()> {
    let pods = kubectl.list(&format!("pods -l {label}")).await?;
    ensure!(
        pods.len() == usize::try_from(PODS)?,
        "{} pods instead of {PODS}: {label}",
        pods.len()
    );
    for pod in pods {
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        ensure!(*restarts == 0, "{}: {restarts}", pod["metadata"]["name"]);
    }
    Ok(())
}
