//! `update.strategy: OnDelete`: a pod keeps the configuration that it was started with until it is deleted, also when its process ends.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Instant};
use tests::{
    crash::Killers,
    kubectl::Kubectl,
    scenario::{self, Area, FilledCluster, LIMIT, ScenarioRow, Volumes, Writer},
};

const KEYS: u64 = 20_000;
/// What the engine has for `databases` where redis.conf does not say it; a server takes it only at its start.
const OLD: &str = "16";
/// What the spec asks for.
const NEW: &str = "20";
const OUTDATED: (&str, &str, &str) = ("UpToDate", "False", "PodsOutdated");

#[tokio::test]
async fn pods_keep_their_configuration_until_they_are_deleted() -> Result<()> {
    scenario::run("e2e-on-delete", async |kubectl| {
        let killers = Killers::start(kubectl).await?;
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        let before = uids(kubectl).await?;
        let writer = Writer::start(kubectl, "shop").await?;
        let victim = changed(kubectl).await?;
        let begun = killers.kill_pod(kubectl, &victim).await?;
        shop.recovered().await?;
        let recovered = begun.elapsed();
        is_outdated(kubectl, &victim, &before).await?;

        let begun = Instant::now();
        delete_by_hand(kubectl, &shop, &before).await?;
        scenario::condition(kubectl, "shop", ("UpToDate", "True", "UpToDate")).await?;
        let updated = begun.elapsed();
        all_have(kubectl, NEW).await?;
        only_one_configuration_is_left(kubectl).await?;
        let seen = writer.finish().await?;
        shop.has_its_ids("deleted").await?;
        shop.is_intact("deleted").await?;
        let done = "a setting that needs a restart changes nothing yet, also after kill -9 of a primary; then the 6 pods are deleted one \
                    after another, replicas first";
        ScenarioRow::new(Area::Change, "configuration, OnDelete", done)
            .healthy_after(recovered)
            .lost(0)
            .writes(&seen)
            .note(format!(
                "since the kill; UpToDate {:.0} s after the first pod is deleted",
                updated.as_secs_f64()
            ))
            .record()?;
        killers.end().await
    })
    .await
}

/// Changes the spec and waits until the status says that pods have to be deleted; answers the pod of a primary.
async fn changed(kubectl: &Kubectl) -> Result<String> {
    let pods = scenario::pods(kubectl, "shop").await?;
    let old = pods.first().and_then(|pod| configuration(&pod["spec"]));
    let old = old.context("a pod without a configuration")?;
    let change = json!({"update": {"strategy": "OnDelete"}, "config": {"databases": NEW}});
    scenario::spec(kubectl, "shop", change).await?;
    let words = scenario::condition(kubectl, "shop", OUTDATED).await?;
    ensure!(words.contains("replicas before primaries"), "{words}");
    next_pods_differ(kubectl, old).await?;
    all_have(kubectl, OLD).await?;
    let primaries = scenario::serving_primaries(kubectl, "shop").await?;
    primaries.into_iter().next().context("no primary")
}

/// The server that was killed runs with what its pod was started with, whose ConfigMap is kept; no pod was replaced.
async fn is_outdated(
    kubectl: &Kubectl,
    victim: &str,
    before: &BTreeMap<String, String>,
) -> Result<()> {
    all_have(kubectl, OLD).await?;
    let after = uids(kubectl).await?;
    ensure!(after == *before, "{before:?} became {after:?}");
    scenario::condition(kubectl, "shop", OUTDATED).await?;
    let pod = kubectl.get(&format!("pod {victim}")).await?;
    let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
    ensure!(restarts.as_u64() > Some(0), "{victim} did not restart");
    let name = configuration(&pod["spec"]).context("a pod without a configuration")?;
    let map = kubectl.get(&format!("configmap {name}")).await?;
    let text = map["data"]["redis.conf"]
        .as_str()
        .context("no redis.conf")?;
    ensure!(!text.contains("databases"), "{name}: {text}");
    Ok(())
}

/// As the status says: one at a time, replicas before primaries, each when the cluster is Ready again.
async fn delete_by_hand(
    kubectl: &Kubectl,
    shop: &FilledCluster<'_>,
    before: &BTreeMap<String, String>,
) -> Result<()> {
    for _ in before {
        let primaries = scenario::serving_primaries(kubectl, "shop").await?;
        let now = uids(kubectl).await?;
        let outdated = before
            .iter()
            .filter(|(pod, uid)| now.get(*pod) == Some(*uid));
        let next = outdated
            .map(|(pod, _)| pod)
            .min_by_key(|pod| primaries.contains(*pod));
        let next = next.context("a pod was replaced that was not deleted")?;
        scenario::no_data_was_dropped_by(kubectl, next).await?;
        kubectl.run(&format!("delete pod {next}")).await?;
        let again = async || {
            let now = uids(kubectl).await?;
            Ok(now.len() == before.len() && now.get(next) != before.get(next))
        };
        let wait = format!("{next} is created again");
        kubectl.until(&wait, LIMIT, again).await?;
        scenario::formed(kubectl, "shop", shop.nodes()).await?;
    }
    Ok(())
}

/// Uids of the pods by name.
async fn uids(kubectl: &Kubectl) -> Result<BTreeMap<String, String>> {
    scenario::uids_by_name(&scenario::pods(kubectl, "shop").await?)
}

/// Every server has this value of `databases`.
async fn all_have(kubectl: &Kubectl, value: &str) -> Result<()> {
    let get = "redis-cli config get databases";
    let answers = scenario::on_every_server(kubectl, "shop", get).await?;
    let has = |answer: &String| answer.lines().nth(1) == Some(value);
    ensure!(answers.values().all(has), "{value}: {answers:?}");
    Ok(())
}

/// The ConfigMap with the redis.conf of a pod.
fn configuration(pod_spec: &Value) -> Option<&str> {
    let mut volumes = pod_spec["volumes"].as_array()?.iter();
    let volume = volumes.find(|volume| volume["name"] == "config")?;
    volume["configMap"]["name"].as_str()
}

/// Waits until the pods that Kubernetes creates from now on get another ConfigMap than this one.
async fn next_pods_differ(kubectl: &Kubectl, old: &str) -> Result<()> {
    let differ = async || {
        let sets = kubectl.list("statefulsets").await?;
        let differs = |set: &Value| {
            let is_observed = set["status"]["observedGeneration"] == set["metadata"]["generation"];
            let next = configuration(&set["spec"]["template"]["spec"]);
            is_observed && next.is_some_and(|next| next != old)
        };
        Ok(sets.len() == 3 && sets.iter().all(differs))
    };
    let wait = "the StatefulSets have the new configuration";
    kubectl.until(wait, LIMIT, differ).await.map(drop)
}

async fn only_one_configuration_is_left(kubectl: &Kubectl) -> Result<()> {
    let maps = format!("configmaps -l {}=shop", crds::LABEL_CLUSTER);
    let one = async || Ok(kubectl.list(&maps).await?.len() == 1);
    let wait = "the old configuration is deleted";
    kubectl.until(wait, LIMIT, one).await.map(drop)
}
