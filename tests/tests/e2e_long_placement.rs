//! Where pods run and what is added to them: podTemplate, placement, and primaries spread over zones.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tests::{
    kubectl::Kubectl,
    scenario::{self, Area, FilledCluster, LIMIT, ScenarioRow, Volumes, Writer},
};

const KEYS: u64 = 20_000;
/// The controller looks at a healthy cluster every 30 s.
const SPREAD: Duration = Duration::from_mins(1);

async fn reports(kubectl: &Kubectl, condition: (&str, &str, &str)) -> Result<String> {
    scenario::condition(kubectl, "shop", condition).await
}

async fn updated(kubectl: &Kubectl) -> Result<()> {
    reports(kubectl, ("UpToDate", "True", "UpToDate")).await?;
    reports(kubectl, ("Ready", "True", "Healthy"))
        .await
        .map(drop)
}

/// Labels, an account, another user, a mounted file and strict placement reach every pod under load; what cannot be scheduled stops at
/// the first pod and is named, and taking it back repairs it.
#[tokio::test]
async fn the_pod_template_rolls_through_the_pods() -> Result<()> {
    scenario::run("e2e-template", async |kubectl| {
        let notes = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "notes"},
                           "data": {"note": "read me"}});
        kubectl.apply(&notes.to_string()).await?;
        kubectl.run("create serviceaccount redis").await?;
        // In memory: the files of a volume belong to the user that wrote them.
        let shop = FilledCluster::create(kubectl, "shop", 3, Volumes::None, KEYS).await?;
        let before = scenario::uids(&scenario::pods(kubectl, "shop").await?);
        let writer = Writer::start(kubectl, "shop").await?;
        let begun = Instant::now();
        scenario::spec(kubectl, "shop", template()).await?;
        reports(kubectl, ("Ready", "False", "Updating")).await?;
        updated(kubectl).await?;
        let rolled = begun.elapsed();
        let seen = writer.finish().await?;
        let pods = scenario::pods(kubectl, "shop").await?;
        let after = scenario::uids(&pods);
        ensure!(
            after.len() == 6 && after.is_disjoint(&before),
            "not every pod was replaced"
        );
        have_the_template(kubectl, &pods).await?;
        shop.is_intact("rolled").await?;
        let done = "labels, an account, another user, a mounted file and strict placement roll through 6 pods in memory";
        ScenarioRow::new(Area::Change, "pod template", done)
            .healthy_after(rolled)
            .lost(0)
            .writes(&seen)
            .record()?;
        a_selector_of_no_node_is_corrected(kubectl, &shop, &after).await
    })
    .await
}

fn template() -> Value {
    let template = json!({
        "labels": {"team": "web"},
        "annotations": {"example.com/note": "two words"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
        "serviceAccountName": "redis",
        "securityContext": {"runAsUser": 1001, "runAsGroup": 1001, "fsGroup": 1001},
        "extraVolumes": [{"name": "notes", "mountPath": "/notes", "configMap": {"name": "notes"}, "readOnly": true}],
    });
    json!({"podTemplate": template, "placement": {"shardAntiAffinity": "Required"}})
}

async fn have_the_template(kubectl: &Kubectl, pods: &[Value]) -> Result<()> {
    let mut apart: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for pod in pods {
        let name = pod["metadata"]["name"].as_str().context("no name")?;
        ensure!(pod["metadata"]["labels"]["team"] == "web", "{pod:#}");
        ensure!(pod["spec"]["serviceAccountName"] == "redis", "{pod:#}");
        let seen = kubectl.exec(name, "id -u; cat /notes/note").await?;
        ensure!(seen.trim() == "1001\nread me", "{name}: {seen}");
        let node = pod["spec"]["nodeName"].to_string();
        apart.entry(shard(pod)).or_default().insert(node);
    }
    ensure!(apart.values().all(|nodes| nodes.len() == 2), "{apart:?}");
    Ok(())
}

/// The first pod that finds no node stops the rollout; it alone is replaced once more.
async fn a_selector_of_no_node_is_corrected(
    kubectl: &Kubectl,
    shop: &FilledCluster<'_>,
    before: &BTreeSet<String>,
) -> Result<()> {
    let selector = |disk: Value| json!({"podTemplate": {"nodeSelector": {"disk": disk}}});
    scenario::spec(kubectl, "shop", selector(json!("none-such"))).await?;
    let named = async || {
        let status = kubectl.get("rediscluster shop").await?["status"].clone();
        let words = status.to_string();
        Ok(words.contains("not scheduled") && words.contains("spec.podTemplate.nodeSelector"))
    };
    kubectl.until("the cure is named", LIMIT, named).await?;
    reports(kubectl, ("Available", "True", "AllSlotsServed")).await?;
    let kept = async || {
        let pods = scenario::pods(kubectl, "shop").await?;
        let kept = scenario::uids(&pods).intersection(before).count();
        ensure!(kept == 5, "{kept} of 6 pods were left alone");
        Ok(())
    };
    kept().await?;
    let begun = Instant::now();
    scenario::spec(kubectl, "shop", selector(Value::Null)).await?;
    updated(kubectl).await?;
    shop.recovered().await?;
    let corrected = begun.elapsed();
    kept().await.context("by the correction")?;
    shop.is_intact("corrected").await?;
    let done =
        "the first pod stops the update; the spec is set back, which is where the time begins";
    ScenarioRow::new(Area::Change, "node selector of no node", done)
        .healthy_after(corrected)
        .lost(0)
        .record()
}

/// Two Kubernetes nodes share a zone for the time of this scenario, so that the nodes alone would allow it three of four primaries.
#[tokio::test]
async fn no_zone_has_the_majority_of_the_primaries() -> Result<()> {
    scenario::run("e2e-zones", async |kubectl| {
        let zones = zones(kubectl).await?;
        let mut nodes = zones.iter();
        let (Some((_, shared)), Some((joining, own))) = (nodes.next(), nodes.next()) else {
            anyhow::bail!("the scenario needs nodes with zones: {zones:?}")
        };
        relabel(kubectl, joining, shared).await?;
        let kept = half_of_the_primaries_are_in_each_zone(kubectl, shared).await;
        relabel(kubectl, joining, own).await?;
        kept
    })
    .await
}

/// Zones of the Kubernetes nodes by name.
async fn zones(kubectl: &Kubectl) -> Result<BTreeMap<String, String>> {
    let nodes = kubectl.list("nodes").await?;
    let zone = |node: &Value| {
        let name = node["metadata"]["name"].as_str()?;
        let zone = node["metadata"]["labels"][crds::LABEL_ZONE].as_str()?;
        Some((name.to_owned(), zone.to_owned()))
    };
    Ok(nodes.iter().filter_map(zone).collect())
}

/// The controller keeps what it has read of nodes for ten minutes: it starts again.
async fn relabel(kubectl: &Kubectl, node: &str, zone: &str) -> Result<()> {
    let label = format!("label node {node} {}={zone} --overwrite", crds::LABEL_ZONE);
    kubectl.run(&label).await?;
    scenario::scale("cluster-controller", 0).await?;
    scenario::scale("cluster-controller", 2).await
}

async fn half_of_the_primaries_are_in_each_zone(kubectl: &Kubectl, shared: &str) -> Result<()> {
    let mut cluster = scenario::cluster(kubectl, "other", 4, Volumes::None).await?;
    kubectl.run("delete rediscluster other").await?;
    cluster["metadata"]["name"] = json!("shop");
    cluster["spec"]["placement"] =
        json!({"shardAntiAffinity": "Required", "zones": {"spread": true}});
    kubectl.apply(&cluster.to_string()).await?;
    let shop = FilledCluster::fill(kubectl, "shop", 8, KEYS).await?;
    let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut zones = BTreeMap::new();
    for pod in scenario::pods(kubectl, "shop").await? {
        let zone = zone_of(kubectl, &pod).await?;
        shards.entry(shard(&pod)).or_default().insert(zone.clone());
        zones.insert(
            pod["metadata"]["name"]
                .as_str()
                .context("no name")?
                .to_owned(),
            zone,
        );
    }
    let apart = shards.values().all(|zones| zones.len() == 2);
    ensure!(shards.len() == 4 && apart, "{shards:?}");

    primaries_are(kubectl, &zones, [2, 2]).await?;
    let writer = Writer::start(kubectl, "shop").await?;
    let primaries_now = scenario::serving_primaries(kubectl, "shop").await?;
    let mut replicas = zones
        .iter()
        .filter(|(pod, zone)| zone.as_str() == shared && !primaries_now.contains(*pod));
    let (replica, _) = replicas
        .next()
        .context("no replica is in the shared zone")?;
    let begun = Instant::now();
    kubectl
        .run(&format!(
            "exec {replica} -c redis -- redis-cli cluster failover"
        ))
        .await?;
    primaries_are(kubectl, &zones, [1, 3]).await?;
    primaries_are(kubectl, &zones, [2, 2]).await?;
    shop.recovered().await?;
    let recovered = begun.elapsed();
    let events = kubectl.list("events").await?;
    let named = events.iter().any(|event| {
        let words = event["message"].as_str().unwrap_or_default();
        event["reason"] == "PrimaryHandedOver" && words.contains("3 of 4 primaries are in zone")
    });
    ensure!(named, "no Event names the zone");
    let seen = writer.finish().await?;
    shop.is_intact("spread").await?;
    let done = "a failover puts three of four primaries into one zone: one is handed over";
    ScenarioRow::new(Area::Nodes, "primaries spread over zones", done)
        .healthy_after(recovered)
        .lost(0)
        .writes(&seen)
        .record()
}

fn shard(pod: &Value) -> String {
    pod["metadata"]["labels"][crds::LABEL_SHARD].to_string()
}

async fn zone_of(kubectl: &Kubectl, pod: &Value) -> Result<String> {
    let node = pod["spec"]["nodeName"].as_str().context("not scheduled")?;
    let zones = zones(kubectl).await?;
    zones.get(node).cloned().context("a node without a zone")
}

/// Waits until the zones of these pods have so many primaries, the smaller number first.
async fn primaries_are(
    kubectl: &Kubectl,
    zones: &BTreeMap<String, String>,
    wanted: [usize; 2],
) -> Result<()> {
    let counted = async || {
        let primaries = scenario::serving_primaries(kubectl, "shop").await?;
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (pod, zone) in zones {
            *counts.entry(zone).or_default() += usize::from(primaries.contains(pod));
        }
        let mut counts: Vec<usize> = counts.into_values().collect();
        counts.sort_unstable();
        Ok(counts == wanted)
    };
    let wait = format!("the zones have {wanted:?} primaries");
    kubectl.until(&wait, SPREAD, counted).await.map(drop)
}
