//! The readiness of pods follows the nodes, with and without a controller, and a server that hangs is restarted.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::{Duration, Instant};
use tests::{
    crash::Killers,
    kubectl::Kubectl,
    scenario::{self, Area, FilledCluster, LIMIT, ScenarioRow, Volumes},
};

const NODES: usize = 6;
/// The liveness probe fails twice, 60 s apart, after 20 s each; then the container has 10 s to end.
const RESTARTED: Duration = Duration::from_mins(3);

/// The kernel still takes connections for it, so that every TCP probe succeeds: its peers see it first, then the
/// controller, then its kubelet.
#[tokio::test]
async fn a_server_that_hangs_is_unready_and_then_restarted() -> Result<()> {
    scenario::run("e2e-hang", async |kubectl| {
        let killers = Killers::start(kubectl).await?;
        let shop = FilledCluster::create(kubectl, "shop", 3, Volumes::DeletedWithCluster, 5_000);
        let shop = shop.await?;
        let victim = of_role(kubectl, crds::ROLE_PRIMARY).await?;
        killers.stop(&[kubectl.get(&victim).await?]).await?;
        let begun = Instant::now();
        readiness(kubectl, &victim, false).await?;
        let unready = begun.elapsed();
        let restarted = async || {
            let pod = kubectl.get(&victim).await?;
            Ok(pod["status"]["containerStatuses"][0]["restartCount"].as_u64() > Some(0))
        };
        let wait = format!("{victim} restarted");
        kubectl.until(&wait, RESTARTED, restarted).await?;
        let restart = begun.elapsed();
        shop.recovered().await?;
        readiness(kubectl, &victim, true).await?;
        let recovered = begun.elapsed();
        shop.is_intact("hung").await?;
        let figures = format!(
            "unready after {:.0} s, restarted after {:.0} s",
            unready.as_secs_f64(),
            restart.as_secs_f64()
        );
        ScenarioRow::new(Area::Pods, "server hangs", "SIGSTOP for a primary")
            .healthy_after(recovered)
            .lost(0)
            .note(figures)
            .record()?;
        killers.end().await
    })
    .await
}

/// A container that starts again listens long before it is a linked replica.
#[tokio::test]
async fn a_restarted_container_is_not_ready_before_it_serves() -> Result<()> {
    scenario::run("e2e-restarted", async |kubectl| {
        let killers = Killers::start(kubectl).await?;
        let shop = FilledCluster::create(kubectl, "shop", 3, Volumes::None, 5_000).await?;
        for role in [crds::ROLE_REPLICA, crds::ROLE_PRIMARY] {
            let victim = of_role(kubectl, role).await?;
            let name = victim.replace("pod ", "");
            let before = kubectl.get(&victim).await?;
            killers.kill_pod(kubectl, &name).await?;
            shop.recovered().await?;
            let after = readiness(kubectl, &victim, true).await?;
            let started = after
                .pointer("/status/containerStatuses/0/state/running/startedAt")
                .and_then(Value::as_str)
                .context("it does not run")?;
            let since = serving(&after)
                .and_then(|one| one["lastTransitionTime"].as_str())
                .context("no serving condition")?;
            // Times of one form and zone compare as texts: the gate was closed, and opened after the start.
            ensure!(
                since >= started,
                "{victim}: gate since {since}, started {started}"
            );
            ensure!(serving(&before).is_some(), "{before}");
        }
        shop.is_intact("restarted").await?;
        let done = "kill -9 of a replica, then of a primary, without volumes: neither is ready before it serves";
        ScenarioRow::new(Area::Pods, "container restarted", done)
            .lost(0)
            .record()?;
        killers.end().await
    })
    .await
}

/// Pods stay as they are while no controller runs; a controller that starts corrects what has changed meanwhile.
#[tokio::test]
async fn pods_stay_ready_while_no_controller_runs() -> Result<()> {
    scenario::run("e2e-no-controller", async |kubectl| {
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, 5_000).await?;
        scenario::scale("cluster-controller", 0).await?;
        let alone = async {
            tokio::time::sleep(Duration::from_mins(1)).await;
            let pods = scenario::pods(kubectl, "shop").await?;
            let ready = pods.iter().filter(|pod| holds(pod, "Ready")).count();
            ensure!(ready == NODES, "{ready} of {NODES} pods are ready");
            let victim = of_role(kubectl, crds::ROLE_REPLICA).await?;
            kubectl.run(&format!("delete {victim}")).await?;
            anyhow::Ok(victim)
        };
        let alone = alone.await;
        let begun = Instant::now();
        scenario::scale("cluster-controller", 2).await?;
        readiness(kubectl, &alone?, true).await?;
        shop.recovered().await?;
        let recovered = begun.elapsed();
        shop.is_intact("alone").await?;
        let done =
            "no controller runs for a minute: pods stay ready; then a replica's pod is deleted";
        ScenarioRow::new(Area::Controllers, "no controller", done)
            .healthy_after(recovered)
            .lost(0)
            .note("since the controller has been scaled up again")
            .record()
    })
    .await
}

/// `pod NAME` of one with this role.
async fn of_role(kubectl: &Kubectl, role: &str) -> Result<String> {
    let label = format!("{}=shop,{}={role}", crds::LABEL_CLUSTER, crds::LABEL_ROLE);
    let names = scenario::pod_names_by(kubectl, &label).await?;
    let name = names.first().with_context(|| format!("no {role}"))?;
    Ok(format!("pod {name}"))
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    let mut conditions = pod["status"]["conditions"].as_array()?.iter();
    conditions.find(|one| one["type"] == kind)
}

fn serving(pod: &Value) -> Option<&Value> {
    condition(pod, crds::CONDITION_SERVING)
}

fn holds(pod: &Value, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|one| one["status"] == "True")
}

/// Waits until the pod and its gate have this readiness.
async fn readiness(kubectl: &Kubectl, pod: &str, ready: bool) -> Result<Value> {
    let mut found = Value::Null;
    let is_so = async || {
        found = kubectl.get(pod).await?;
        Ok(holds(&found, "Ready") == ready && holds(&found, crds::CONDITION_SERVING) == ready)
    };
    let wait = format!("{pod} has Ready={ready}");
    kubectl.until(&wait, LIMIT, is_so).await?;
    Ok(found)
}
