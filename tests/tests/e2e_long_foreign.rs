//! Two clusters in one network whose pods' addresses get mixed up: neither takes a node of the other for its own.

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::{
    kubectl::Kubectl,
    scenario::{self, Area, FilledCluster, LIMIT, ScenarioRow, Volumes},
};

const KEYS: u64 = 3_000;

/// Two clusters that were merged had become one within 20 s.
const WATCHED: Duration = Duration::from_secs(40);

/// A node is cut off; the address that the API server still shows for a pod of `a` there becomes that of a primary of `b`. Then a
/// replica of `a` comes back blank, and the controller looks for its nodes.
#[tokio::test]
async fn a_reused_address_merges_no_clusters() -> Result<()> {
    scenario::run("e2e-foreign", async |kubectl| {
        let volumes = Volumes::DeletedWithCluster;
        let a = FilledCluster::create(kubectl, "a", 3, volumes, KEYS).await?;
        let b = FilledCluster::create(kubectl, "b", 3, volumes, KEYS).await?;
        let node = node_to_cut(kubectl).await?;
        scenario::cordon(kubectl, &node).await?;
        scenario::cable("cut", &node).await?;
        let apart = stay_apart(kubectl, &node, &a, &b).await;
        // From now on the kubelet reports the pod's own address again.
        scenario::cable("heal", &node).await?;
        scenario::uncordon(kubectl, &node).await?;
        apart?;
        let back = Instant::now();
        a.recovered().await?;
        b.recovered().await?;
        let recovered = back.elapsed();
        for (cluster, step) in [(&a, "a-recovered"), (&b, "b-recovered")] {
            cluster.is_intact(step).await?;
        }
        b.has_its_ids("recovered").await?;
        let done = "a pod on a cut node seems to have the address of another cluster's primary, and a replica comes back blank";
        ScenarioRow::new(Area::Pods, "address reused", done)
            .healthy_after(recovered)
            .lost(0)
            .note("both clusters, since the node is back")
            .record()
    })
    .await
}

/// A node that takes at most one primary of either cluster with it, so that a majority of each lives on, and at most one other pod of `a`, so
/// that a replica of it is left.
async fn node_to_cut(kubectl: &Kubectl) -> Result<String> {
    let pods = scenario::pods(kubectl, "a").await?;
    let a = scenario::primaries_by_node(kubectl, "a").await?;
    let b = scenario::primaries_by_node(kubectl, "b").await?;
    let few = |primaries: Option<&Vec<String>>| primaries.is_none_or(|all| all.len() <= 1);
    let mut nodes = a.iter();
    let leaves_a_replica = |node: &str| split(pods.clone(), node).0.len() <= 2;
    let found = nodes.find(|(node, primaries)| {
        few(Some(primaries)) && few(b.get(*node)) && leaves_a_replica(node)
    });
    let (node, _) = found.with_context(|| format!("no such node: {a:?} {b:?}"))?;
    Ok(node.clone())
}

async fn stay_apart(
    kubectl: &Kubectl,
    node: &str,
    a: &FilledCluster<'_>,
    b: &FilledCluster<'_>,
) -> Result<()> {
    scenario::not_ready(kubectl, node).await?;
    for cluster in ["a", "b"] {
        scenario::condition(kubectl, cluster, ("Available", "True", "AllSlotsServed")).await?;
    }
    let (there, here) = split(scenario::pods(kubectl, "a").await?, node);
    let (_, of_b) = split(scenario::pods(kubectl, "b").await?, node);
    let foreign = with_role(&of_b, crds::ROLE_PRIMARY).context("b has no primary here")?;
    let victim = there.first().context("no pod of a on the node")?;
    lend_address(kubectl, victim, foreign).await?;

    let blank = with_role(&here, crds::ROLE_REPLICA).context("a has no replica here")?;
    let blank = name(blank)?;
    println!(
        "{} is on {node}, and its address is that of {}; {blank} loses its volume",
        name(victim)?,
        name(foreign)?
    );
    let ids_of_b = ids(kubectl, &of_b).await?;
    scenario::no_data_was_dropped_by(kubectl, blank).await?;
    kubectl
        .run(&format!("delete pvc data-{blank} --wait=false"))
        .await?;
    kubectl.run(&format!("delete pod {blank}")).await?;
    let back = async || {
        Ok(kubectl
            .exec(blank, "redis-cli ping")
            .await?
            .contains("PONG"))
    };
    let wait = format!("{blank} is back");
    kubectl.until(&wait, LIMIT, back).await?;

    let begun = Instant::now();
    while begun.elapsed() < WATCHED {
        unknown_to_each_other(kubectl, &here, &of_b, &ids_of_b).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    a.has_its_values("cut").await?;
    b.has_its_values("cut").await?;
    is_named(kubectl, foreign).await
}

/// A condition of `a` names the foreign node: by its id, its address or its pod.
async fn is_named(kubectl: &Kubectl, foreign: &Value) -> Result<()> {
    let id = kubectl
        .exec(name(foreign)?, "redis-cli cluster myid")
        .await?;
    let names = [id.trim(), text(foreign, "/status/podIP")?, name(foreign)?];
    let mut conditions = Value::Null;
    let shows = async || {
        conditions = kubectl.get("rediscluster a").await?["status"]["conditions"].clone();
        let all = conditions.to_string();
        Ok(names.iter().any(|name| all.contains(name)))
    };
    let wait = format!("a condition of a names one of {names:?}");
    let waited = kubectl.until(&wait, Duration::from_secs(30), shows).await;
    waited.map(drop).with_context(|| conditions.to_string())
}

/// Gives the pod on the silent node the address of another: what the API server shows is what the kubelet wrote last.
async fn lend_address(kubectl: &Kubectl, pod: &Value, other: &Value) -> Result<()> {
    let ip = text(other, "/status/podIP")?;
    let patch = json!({"status": {"podIP": ip, "podIPs": [{"ip": ip}]}}).to_string();
    let pod = name(pod)?;
    let arguments = [
        "patch",
        "pod",
        pod,
        "--subresource=status",
        "--type=merge",
        "--patch",
        &patch,
    ];
    kubectl.call(&arguments, None).await.map(drop)
}

/// No reachable node of `a` knows a node of `b`, and none of `b` knows any but its six.
async fn unknown_to_each_other(
    kubectl: &Kubectl,
    of_a: &[Value],
    of_b: &[Value],
    ids_of_b: &[String],
) -> Result<()> {
    for (pod, view) in views(kubectl, of_a).await? {
        let foreign = ids_of_b.iter().find(|id| view.contains(id.as_str()));
        ensure!(foreign.is_none(), "{pod} of a knows nodes of b:\n{view}");
    }
    for (pod, view) in views(kubectl, of_b).await? {
        let known = view.lines().filter(|line| line.contains('@')).count();
        ensure!(known == 6, "{pod} of b knows {known} nodes:\n{view}");
    }
    Ok(())
}

async fn views(kubectl: &Kubectl, pods: &[Value]) -> Result<Vec<(String, String)>> {
    let asked = pods.iter().map(|pod| async move {
        let view = kubectl.exec(name(pod)?, "redis-cli cluster nodes").await?;
        anyhow::Ok((name(pod)?.to_owned(), view))
    });
    try_join_all(asked).await
}

async fn ids(kubectl: &Kubectl, pods: &[Value]) -> Result<Vec<String>> {
    let asked = pods.iter().map(|pod| async move {
        let id = kubectl.exec(name(pod)?, "redis-cli cluster myid").await?;
        anyhow::Ok(id.trim().to_owned())
    });
    try_join_all(asked).await
}

/// The pods on a node, and those on others.
fn split(pods: Vec<Value>, node: &str) -> (Vec<Value>, Vec<Value>) {
    pods.into_iter()
        .partition(|pod| pod["spec"]["nodeName"] == node)
}

fn with_role<'a>(pods: &'a [Value], role: &str) -> Option<&'a Value> {
    pods.iter()
        .find(|pod| pod["metadata"]["labels"][crds::LABEL_ROLE] == role)
}

fn name(pod: &Value) -> Result<&str> {
    text(pod, "/metadata/name")
}

fn text<'a>(object: &'a Value, pointer: &str) -> Result<&'a str> {
    let found = object.pointer(pointer).and_then(Value::as_str);
    found.with_context(|| format!("an object without {pointer}: {object}"))
}
