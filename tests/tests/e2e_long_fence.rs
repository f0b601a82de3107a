//! Two of three Kubernetes nodes are cut off, and with them the majority of the primaries, which may still acknowledge writes: no replica
//! takes over before a person accepts the loss of such writes, or declares the nodes out of service.

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tests::{
    kubectl::{Kubectl, holds},
    scenario::{self, Area, FilledCluster, LIMIT, ScenarioRow, Volumes, Writer},
};

const KEYS: u64 = 20_000;
/// Of each shard, one on each Kubernetes node: wherever the primaries are, the node that stays has a copy of everything.
const PODS: usize = 3;
/// The controller looks at such a cluster every 2 s in the first ten minutes: it has decided again by then.
const WATCHED: Duration = Duration::from_secs(15);
/// What the engine logs when it learns that another node has its slots by a newer claim (`clusterUpdateSlotsConfigWith` in `cluster.c` of 7.0).
const DEMOTED: &str = "Reconfiguring myself as a replica of";

/// What allows the replicas to take over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clearance {
    /// The annotation accepts the loss of what the primaries may have acknowledged since.
    Annotation,
    /// The taint says that the machines are off.
    OutOfService,
}

impl Clearance {
    async fn give(self, kubectl: &Kubectl, nodes: &[String]) -> Result<()> {
        let commands = match self {
            Self::Annotation => vec![format!(
                "annotate rediscluster shop {}=all",
                crds::ANNOTATION_TAKEOVER
            )],
            Self::OutOfService => {
                let taint = format!("{}=nodeshutdown:NoExecute", crds::TAINT_OUT_OF_SERVICE);
                let taint = |node: &String| format!("taint node {node} {taint}");
                nodes.iter().map(taint).collect()
            }
        };
        for command in commands {
            kubectl.run(&command).await?;
        }
        Ok(())
    }

    /// The reason that the Event of the first takeover gives. The second replica is elected by the two primaries that exist by then.
    fn reason(self) -> &'static str {
        match self {
            Self::Annotation => "only 1 of 3 primaries are left, as the annotation asks",
            Self::OutOfService => "only 1 of 3 primaries are left",
        }
    }
}

#[tokio::test]
async fn a_cut_majority_waits_for_a_person() -> Result<()> {
    run("e2e-fence", Clearance::Annotation).await
}

#[tokio::test]
async fn a_majority_out_of_service_is_replaced() -> Result<()> {
    run("e2e-fence-off", Clearance::OutOfService).await
}

async fn run(namespace: &str, clearance: Clearance) -> Result<()> {
    scenario::run(namespace, async |kubectl| {
        let mut replicas = BTreeMap::new();
        for controller in scenario::CONTROLLERS {
            replicas.insert(controller, replicas_of(controller).await?);
        }
        let shown = the_majority_is_cut_off(kubectl, clearance, &replicas).await;
        let restored = spread_again(&replicas).await;
        shown?;
        restored
    })
    .await
}

async fn replicas_of(controller: &str) -> Result<usize> {
    let deployment = format!("deployment {controller}");
    let deployment = scenario::system().get(&deployment).await?;
    let replicas = deployment["spec"]["replicas"].as_u64();
    Ok(usize::try_from(replicas.context("a size")?)?)
}

/// The controllers have their sizes again. The taint has put all of them on one Kubernetes node; new pods are spread over all nodes.
async fn spread_again(replicas: &BTreeMap<&str, usize>) -> Result<()> {
    let mut steps = Vec::new();
    for (controller, replicas) in replicas {
        steps.push(scenario::scale(controller, 0).await);
        steps.push(scenario::scale(controller, *replicas).await);
    }
    steps.into_iter().collect()
}

/// Where everything is when the nodes are cut off.
struct CutNodes {
    /// The Kubernetes node that stays: the S3 server's.
    stays: String,
    /// Those that are cut off.
    away: Vec<String>,
    /// Pods on the node that stays, one of each shard.
    here: Vec<String>,
    /// Pods of the primaries on the others.
    lost: Vec<String>,
}

impl CutNodes {
    async fn of(kubectl: &Kubectl) -> Result<Self> {
        let servers = kubectl.list("pods -l app=s3").await?;
        let stays = servers
            .first()
            .and_then(|pod| pod["spec"]["nodeName"].as_str())
            .context("the S3 server is on no Kubernetes node")?;
        let mut primaries = scenario::serving_primaries_by_node(kubectl, "shop").await?;
        primaries.remove(stays);
        let away: Vec<String> = primaries.keys().cloned().collect();
        let lost: Vec<String> = primaries.into_values().flatten().collect();
        let mut here = Vec::new();
        for pod in scenario::pods(kubectl, "shop").await? {
            if pod["spec"]["nodeName"] == stays {
                let name = pod["metadata"]["name"].as_str().context("no name")?;
                here.push(name.to_owned());
            }
        }
        ensure!(
            away.len() == 2 && lost.len() == 2 && here.len() == PODS,
            "{stays} stays with {here:?}, {away:?} are to be cut off with the primaries {lost:?}"
        );
        println!("fence: {stays} stays with {here:?}; the primaries {lost:?} are lost");
        Ok(Self {
            stays: stays.to_owned(),
            away,
            here,
            lost,
        })
    }

    /// The Kubernetes nodes are as they were before. One that cannot be brought back does not keep the other from it.
    async fn bring_back(&self, kubectl: &Kubectl) -> Result<()> {
        let mut steps = Vec::new();
        for node in &self.away {
            steps.push(remove_taint(kubectl, node).await);
            steps.push(scenario::cable("heal", node).await);
            steps.push(scenario::uncordon(kubectl, node).await);
        }
        steps.into_iter().collect()
    }
}

/// `kubectl taint` fails where there is no taint to remove.
async fn remove_taint(kubectl: &Kubectl, node: &str) -> Result<()> {
    let key = crds::TAINT_OUT_OF_SERVICE;
    let taints = kubectl.get(&format!("node {node}")).await?["spec"]["taints"].clone();
    let mut taints = taints.as_array().into_iter().flatten();
    if taints.any(|taint| taint["key"] == key) {
        kubectl.run(&format!("taint node {node} {key}-")).await?;
    }
    Ok(())
}

async fn the_majority_is_cut_off(
    kubectl: &Kubectl,
    clearance: Clearance,
    replicas: &BTreeMap<&str, usize>,
) -> Result<()> {
    let shop = with_a_copy_on_each_node(kubectl).await?;
    let cut = CutNodes::of(kubectl).await?;
    let demoted = demotions(kubectl, &cut.lost).await?;
    let size = replicas.get("cluster-controller").context("its size")? + 1;
    let served = serves_once_cleared(kubectl, &shop, &cut, clearance, size).await;
    if served.is_err() {
        // Before the controllers start again: their logs go with them.
        kubectl.explain().await;
    }
    let returned = cut.bring_back(kubectl).await;
    let (writer, served) = served?;
    returned?;
    let back = Instant::now();
    every_pod_is_ready(kubectl).await?;
    shop.recovered().await?;
    let recovered = back.elapsed();
    shop.is_intact("back").await?;
    shop.has_its_ids("back").await?;
    let (name, done, since) = match clearance {
        Clearance::Annotation => {
            // Which pods are primaries now says nothing: they are spread over the Kubernetes nodes again.
            let now = demotions(kubectl, &cut.lost).await?;
            let mut both = demoted.iter().zip(&now);
            ensure!(
                both.all(|(before, now)| now > before),
                "of the primaries {:?} one has not become a replica: {demoted:?}, {now:?}",
                cut.lost
            );
            let done = "the nodes of two of three primaries are cut off; once Ready says PrimaryNotFenced, the annotation is set";
            ("majority cut off", done, "annotation")
        }
        Clearance::OutOfService => {
            let done = "the nodes of two of three primaries are cut off; once Ready says PrimaryNotFenced, they get the taint";
            ("majority out of service", done, "taint")
        }
    };
    ScenarioRow::new(Area::Majority, name, done)
        .healthy_after(served)
        .lost(0)
        .writes(&writer.finish().await?)
        .note(format!(
            "from the {since} until every slot is served; healthy {:.1} s after the nodes are back",
            recovered.as_secs_f64()
        ))
        .record()
}

/// Three shards with two replicas each, a pod of each shard and a primary on each of three Kubernetes nodes.
async fn with_a_copy_on_each_node(kubectl: &Kubectl) -> Result<FilledCluster<'_>> {
    let volumes = Volumes::DeletedWithCluster;
    let mut cluster = scenario::cluster_object(kubectl, "shop", 3, volumes);
    cluster["spec"]["replicasPerShard"] = json!(PODS - 1);
    cluster["spec"]["placement"] = json!({"shardAntiAffinity": "Required"});
    kubectl.apply(&cluster.to_string()).await?;
    let shop = FilledCluster::fill_shards(kubectl, "shop", (3, 3 * PODS), KEYS).await?;
    let spread = async || {
        let nodes = scenario::serving_primaries_by_node(kubectl, "shop").await?;
        Ok(nodes.len() == 3 && nodes.values().all(|primaries| primaries.len() == 1))
    };
    let wait = "a primary on each of three Kubernetes nodes";
    kubectl.until(wait, LIMIT, spread).await?;
    Ok(shop)
}

/// How often each pod has logged that it became a replica because another node had taken its slots over.
async fn demotions(kubectl: &Kubectl, pods: &[String]) -> Result<Vec<usize>> {
    let logs = pods.iter().map(async |pod| {
        let log = format!("logs {pod} -c {}", crds::CONTAINER);
        anyhow::Ok(kubectl.run(&log).await?.matches(DEMOTED).count())
    });
    try_join_all(logs).await
}

/// The nodes are cut off, and the replicas on the one that stays wait until they may take over. Answers how long it then took until every
/// slot was served.
async fn serves_once_cleared<'a>(
    kubectl: &'a Kubectl,
    shop: &FilledCluster<'_>,
    cut: &CutNodes,
    clearance: Clearance,
    controllers: usize,
) -> Result<(Writer<'a>, Duration)> {
    for node in &cut.away {
        scenario::cordon(kubectl, node).await?;
    }
    a_controller_stays(kubectl, cut, controllers).await?;
    let writer = Writer::start(kubectl, "shop").await?;
    let before = scenario::uids(&scenario::pods(kubectl, "shop").await?);
    let listed = primaries_listed(kubectl, &cut.here).await?;
    for node in &cut.away {
        scenario::cable("cut", node).await?;
    }
    for node in &cut.away {
        scenario::not_ready(kubectl, node).await?;
    }
    is_reported(kubectl, cut).await?;
    tokio::time::sleep(WATCHED).await;
    let asked = takeovers(kubectl).await?;
    ensure!(
        asked.is_empty(),
        "replicas were asked to take over: {asked:?}"
    );
    let listed_now = primaries_listed(kubectl, &cut.here).await?;
    ensure!(
        listed_now == listed,
        "slots moved from {listed:?} to {listed_now:?}"
    );
    is_reported(kubectl, cut).await?;
    let begun = Instant::now();
    clearance.give(kubectl, &cut.away).await?;
    serves_alone(kubectl, cut).await?;
    let served = begun.elapsed();
    shop.has_its_values("cut").await?;
    let asked = takeovers(kubectl).await?;
    let mut reasons = asked.iter();
    ensure!(
        reasons.any(|asked| asked.contains(clearance.reason())),
        "no takeover for this reason: {asked:?}"
    );
    if clearance == Clearance::OutOfService {
        are_replaced(kubectl, &before).await?;
    }
    Ok((writer, served))
}

/// One replica more: with the other nodes cordoned it runs on the node that stays.
async fn a_controller_stays(kubectl: &Kubectl, cut: &CutNodes, size: usize) -> Result<()> {
    let controller = "cluster-controller";
    scenario::scale(controller, size).await?;
    let ready = async || {
        let pods = format!("pods -l app.kubernetes.io/name={controller}");
        let pods = scenario::system().list(&pods).await?;
        Ok(pods
            .iter()
            .any(|pod| pod["spec"]["nodeName"] == cut.stays && is_ready(pod)))
    };
    let wait = format!("a {controller} on {}", cut.stays);
    kubectl.until(&wait, LIMIT, ready).await?;
    let leader = scenario::leader(controller).await?;
    let leader = scenario::system().get(&format!("pod {leader}")).await?;
    println!("fence: the leader is on {}", leader["spec"]["nodeName"]);
    Ok(())
}

/// After the taint a kubelet first has to end the containers of pods that Kubernetes has deleted meanwhile.
async fn every_pod_is_ready(kubectl: &Kubectl) -> Result<()> {
    let ready = async || {
        let pods = scenario::pods(kubectl, "shop").await?;
        Ok(pods.iter().filter(|pod| is_ready(pod)).count() == 3 * PODS)
    };
    let wait = "every pod is ready again";
    kubectl.until(wait, LIMIT, ready).await.map(drop)
}

fn is_ready(pod: &Value) -> bool {
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
}

/// The status names the replica that waits, how far it is behind, the node in doubt, and both cures.
async fn is_reported(kubectl: &Kubectl, cut: &CutNodes) -> Result<()> {
    let reason = ("Ready", "False", "PrimaryNotFenced");
    let message = scenario::condition(kubectl, "shop", reason).await?;
    println!("fence: {message}");
    let any = |names: &[String], words: fn(&str) -> String| {
        let mut names = names.iter();
        names.any(|name| message.contains(&words(name)))
    };
    ensure!(
        any(&cut.here, |pod| format!("{pod} (")) && message.contains("linked"),
        "which replica waits, and how far it is behind: {message}"
    );
    ensure!(
        any(&cut.lost, |pod| format!("{pod} has surely ended"))
            && any(&cut.away, |node| format!(
                "its Kubernetes node {node} is not Ready"
            )),
        "which primary is in doubt, and why: {message}"
    );
    ensure!(
        message.contains("kubectl delete node") && message.contains(crds::ANNOTATION_TAKEOVER),
        "what to do: {message}"
    );
    let reason = ("QuorumHealthy", "False", "MajorityLost");
    let message = scenario::condition(kubectl, "shop", reason).await?;
    ensure!(message.contains("only 1 of 3 primaries"), "{message}");
    let reason = ("Available", "False", "SlotsNotServed");
    scenario::condition(kubectl, "shop", reason).await.map(drop)
}

/// Why replicas were asked to take over.
async fn takeovers(kubectl: &Kubectl) -> Result<Vec<String>> {
    let events = "events --field-selector reason=FailoverRequested";
    let events = kubectl.list(events).await?;
    let messages = events.iter().map(|event| event["message"].to_string());
    Ok(messages.collect())
}

/// The slots of each primary by its node id, as each of these pods lists them.
async fn primaries_listed(
    kubectl: &Kubectl,
    pods: &[String],
) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let tables = pods.iter().map(async |pod| {
        let table = kubectl.exec(pod, "redis-cli cluster nodes").await?;
        let primaries = table.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let slots = fields.get(8..)?.join(" ");
            let id = fields.first()?;
            (!slots.is_empty()).then(|| ((*id).to_owned(), slots))
        });
        anyhow::Ok((pod.clone(), primaries.collect()))
    });
    Ok(try_join_all(tables).await?.into_iter().collect())
}

/// Waits until the pods on the node that stays serve every slot: by the status, by Kubernetes, and by each of them.
async fn serves_alone(kubectl: &Kubectl, cut: &CutNodes) -> Result<()> {
    let served = async || {
        let cluster = kubectl.get("rediscluster shop").await?;
        let pods = scenario::pods(kubectl, "shop").await?;
        let here = pods
            .iter()
            .filter(|pod| pod["spec"]["nodeName"] == cut.stays);
        let ready = here.filter(|pod| is_ready(pod)).count();
        Ok(holds(&cluster, "Available") && !holds(&cluster, "Ready") && ready == PODS)
    };
    let wait = format!("{} serves all slots alone", cut.stays);
    kubectl.until(&wait, LIMIT, served).await?;
    let ids = cut.here.iter().map(async |pod| {
        let id = kubectl.exec(pod, "redis-cli cluster myid").await?;
        anyhow::Ok(id.trim().to_owned())
    });
    let ids: BTreeSet<String> = try_join_all(ids).await?.into_iter().collect();
    let agreed = async || {
        let listed = primaries_listed(kubectl, &cut.here).await?;
        let mut tables = listed.values();
        Ok(tables.all(|table| table.keys().eq(ids.iter())))
    };
    let wait = "the pods of that node list each other as the only primaries with slots";
    kubectl.until(wait, LIMIT, agreed).await.map(drop)
}

/// Waits until Kubernetes has deleted the pods of the nodes that are out of service. Their successors find no place: their volumes are there.
async fn are_replaced(kubectl: &Kubectl, before: &BTreeSet<String>) -> Result<()> {
    let replaced = async || {
        let pods = scenario::pods(kubectl, "shop").await?;
        let fresh = pods.iter().filter(|pod| {
            let uid = pod["metadata"]["uid"].to_string();
            !before.contains(&uid) && pod["spec"]["nodeName"].is_null()
        });
        Ok(pods.len() == 3 * PODS && fresh.count() == 2 * PODS)
    };
    let wait = "Kubernetes replaces the pods of the nodes that are out of service";
    kubectl.until(wait, LIMIT, replaced).await.map(drop)
}
