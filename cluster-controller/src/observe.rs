//! What there is: the pods of a cluster as the API server knows them, and what the nodes in them say.

use crate::{
    context::Context,
    fencing::{self, FencingInputs, LastSeenNodes},
    pods::{self, Pods},
    redis::{
        identity::{KnownNodes, recognize},
        imports::find_imports,
        member::{AbsentPods, Answer, ExpectedNode, Member, Report, Wanted},
        observe,
        strays::count_strays,
        survey::Survey,
        unserved::count_unserved,
    },
    validate::Shape,
    volumes::{self, Claims},
};
use common::{
    cluster::topology::{NodeAddress, NodeId},
    kubernetes::{
        call::{self, ApiError},
        grouped::Grouped,
    },
};
use crds::{BUS_PORT, LABEL_CLUSTER, node_of_pod, pod_name};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{Api, ResourceExt, api::ListParams};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// How long connecting to a node, and its answer, may take.
pub const NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// What was found.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Pods of the cluster by name, as Kubernetes describes them.
    pub pods: Pods,
    /// The expected nodes and what their servers reported.
    pub members: Vec<Member>,
    /// Whether a node has missed a single answer and is alive all the same: the look is to be left without consequences.
    pub passed_over: bool,
}

impl Observed {
    /// Notes that a Kubernetes node is cordoned.
    pub fn mark_cordoned(&mut self, kubernetes_node: &str) {
        let expected = self.members.iter_mut().map(|member| &mut member.expected);
        for one in expected {
            one.cordoned |= one.kubernetes_node.as_deref() == Some(kubernetes_node);
        }
    }
}

/// Reads the pods from the cache and asks their nodes, for the settings of these names as well.
pub async fn observe(
    context: &Context,
    shape: &Shape,
    wanted: &Wanted,
    last_seen: &LastSeenNodes,
    settings: &BTreeSet<String>,
) -> Observed {
    let pods = cached(&context.caches.pods, shape);
    ask(context, shape, wanted, last_seen, settings, pods).await
}

/// Reads the pods live and asks their nodes: before something is done that could lose data.
pub async fn observe_live(
    context: &Context,
    shape: &Shape,
    wanted: &Wanted,
    last_seen: &LastSeenNodes,
    settings: &BTreeSet<String>,
) -> Result<Observed, ApiError> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &shape.namespace);
    let parameters = ListParams::default().labels(&format!("{LABEL_CLUSTER}={}", shape.name));
    let what = format!("list the pods of {}/{}", shape.namespace, shape.name);
    let list = call::read(what, api.list(&parameters)).await?;
    let pods = by_name(shape, list.items.into_iter().map(Arc::new));
    Ok(ask(context, shape, wanted, last_seen, settings, pods).await)
}

/// Those whose name is that of a node.
fn by_name(shape: &Shape, pods: impl IntoIterator<Item = Arc<Pod>>) -> Pods {
    let named = pods.into_iter().map(|pod| (pod.name_any(), pod));
    named
        .filter(|(name, _)| node_of_pod(&shape.name, name).is_some())
        .collect()
}

async fn ask(
    context: &Context,
    shape: &Shape,
    wanted: &Wanted,
    last_seen: &LastSeenNodes,
    settings: &BTreeSet<String>,
    pods: Pods,
) -> Observed {
    let expected = expected(shape, &pods);
    let cluster = (shape.namespace.as_str(), shape.name.as_str());
    let connections = context.connections.of(cluster);
    let mut members =
        observe::observe_settings(&expected, settings, &connections, NODE_TIMEOUT).await;
    recognize(wanted, &mut members);
    count_unserved(wanted, &mut members, &connections, NODE_TIMEOUT).await;
    find_imports(&mut members, &connections, NODE_TIMEOUT).await;
    if context.resharding.is_moving(cluster) {
        context.strays.forget(shape.namespace.as_str(), &shape.name);
    } else if wanted.formed_before {
        let tracker = &context.strays;
        count_strays(cluster, tracker, &mut members, &connections, NODE_TIMEOUT).await;
    }
    let exists = |name: &str| pods.contains_key(name);
    let now = Timestamp::now();
    let passed_over = context
        .unresponsive
        .note(cluster, &mut members, exists, &wanted.known, now);
    let elections = &context.elections;
    elections.note(cluster, &mut members, wanted.node_timeout, now);
    let survey = Survey::of(wanted, &members);
    let times = context.copies.note(cluster, &survey, last_seen, now);
    times.mark(&mut members, &wanted.known);
    let missing = if shape.hibernate {
        context.pod_events.forget(cluster.0, cluster.1);
        BTreeMap::new()
    } else {
        let names = names(shape).map(|(_, _, name)| name);
        context.pod_events.why_missing(cluster, names, &pods).await
    };
    for member in &mut members {
        explain(member, &pods, &missing, now);
    }
    add_zones(context, wanted, &mut members).await;
    add_evidence(context, shape, wanted, last_seen, &pods, &mut members).await;
    Observed {
        pods,
        members,
        passed_over,
    }
}

/// Zones only decide about hand-overs of a healthy cluster: a repair does not wait for them.
async fn add_zones(context: &Context, wanted: &Wanted, members: &mut [Member]) {
    let may_spread = wanted.may_spread && wanted.formed_before && wanted.replicas_per_shard > 0;
    if !may_spread || members.iter().any(|member| member.report().is_none()) {
        return;
    }
    let nodes = members
        .iter()
        .filter_map(|one| one.expected.kubernetes_node.clone());
    let zones = context.zones.labels(&nodes.collect()).await;
    for ExpectedNode {
        kubernetes_node,
        zone,
        ..
    } in members.iter_mut().map(|member| &mut member.expected)
    {
        let known = kubernetes_node.as_ref().and_then(|node| zones.get(node));
        *zone = known.cloned().unwrap_or_default();
    }
}

/// Where it matters whether the processes of lost primaries have ended: finds out.
async fn add_evidence(
    context: &Context,
    shape: &Shape,
    wanted: &Wanted,
    last_seen: &LastSeenNodes,
    pods: &Pods,
    members: &mut [Member],
) {
    if members.iter().all(|member| member.report().is_some()) && members.len() == wanted.nodes() {
        // A new pod that answers in the place of a lost one leaves a missing node as well.
        let ids = members.iter().filter_map(Member::report).map(Report::id);
        if ids.collect::<BTreeSet<_>>().len() == wanted.known.len() {
            return;
        }
    }
    let survey = Survey::of(wanted, members);
    if !fencing::is_asked_for(&survey) {
        return;
    }
    let lost: Vec<(NodeId, usize, &str)> = survey
        .lost_primaries()
        .filter_map(|(id, missing)| Some((id, missing.home?, wanted.known.get(&id)?.as_str())))
        .collect();
    let away: Vec<(NodeId, &str)> = lost.iter().map(|(id, _, pod)| (*id, *pod)).collect();
    let names = fencing::machines(&away, last_seen, pods);
    let machines = context.machines.states(&names).await;
    let cluster = (shape.namespace.as_str(), shape.name.as_str());
    let inputs = FencingInputs {
        last_seen,
        pods,
        machines: &machines,
        gone_since: &context.unresponsive.gone_since(cluster),
        now: Timestamp::now(),
    };
    for (id, home, _) in lost {
        if let Some(member) = members.get_mut(home) {
            let evidence = fencing::evidence(id, member, &inputs);
            member.expected.former.insert(id, evidence);
            let refusal = last_seen.get(&id).and_then(|last| last.refusal);
            member
                .expected
                .refusals
                .extend(refusal.map(|one| (id, one)));
        }
    }
}

/// Replaces what the network says, which is only that there is no answer, by what Kubernetes says.
fn explain(member: &mut Member, pods: &Pods, missing: &BTreeMap<String, String>, now: Timestamp) {
    let name = &member.expected.pod;
    let pod = pods.get(name).map(Arc::as_ref);
    let why = missing.get(name).cloned();
    if let Answer::Absent(words) | Answer::Unresponsive(words) = &mut member.answer
        && let Some(why) = why.or_else(|| pods::why_down(pod))
    {
        *words = why;
    }
    if member.answer == Answer::Loading {
        member.expected.why_loading = pod.and_then(|pod| pods::loading::why_loading(pod, now));
    }
}

/// The pods that the cache has, those that leave among them.
pub fn cached(cache: &Grouped<Pod>, shape: &Shape) -> Pods {
    let pods = cache.of(&shape.namespace, &shape.name);
    by_name(shape, pods)
}

/// What pods of a new cluster bring that have not answered yet: their volumes tell, or where the spec asks for none, whether a pod is left of
/// a cluster that had some. `created`: when the RedisCluster was.
pub fn absent_pods(
    shape: &Shape,
    created: Option<&Time>,
    pods: &Pods,
    claims: &Claims,
) -> AbsentPods {
    let are_blank = if shape.persistent {
        volumes::are_blank(shape, created, claims)
    } else {
        !pods.values().any(|pod| pods::has_claim(pod))
    };
    if are_blank {
        AbsentPods::Blank
    } else if shape.persistent && volumes::are_kept(shape, created, claims) {
        AbsentPods::Kept
    } else {
        AbsentPods::Unknown
    }
}

fn names(shape: &Shape) -> impl Iterator<Item = (i32, i32, String)> + '_ {
    (0..shape.shards).flat_map(move |shard| {
        (0..=shape.replicas)
            .map(move |ordinal| (shard, ordinal, pod_name(&shape.name, shard, ordinal)))
    })
}

/// The expected nodes: one for each wanted pod, whether it exists or not, and one for each other pod that exists. By shard and ordinal.
pub fn expected(shape: &Shape, pods: &Pods) -> Vec<ExpectedNode> {
    let existing = pods
        .keys()
        .filter_map(|name| node_of_pod(&shape.name, name).map(|node| (node, false)));
    // A pod that is not there may have one where the others do.
    let has_volumes = shape.persistent || pods.values().any(|pod| pods::has_claim(pod));
    let mut nodes: BTreeMap<(i32, i32), bool> = existing.collect();
    nodes.extend(names(shape).map(|(shard, ordinal, _)| ((shard, ordinal), true)));
    nodes
        .into_iter()
        .map(|((shard, ordinal), wanted)| {
            let name = pod_name(&shape.name, shard, ordinal);
            let pod = pods.get(&name).map(Arc::as_ref);
            ExpectedNode {
                wanted,
                exists: pod.is_some(),
                has_volume: pod.map_or(has_volumes, pods::has_claim),
                pod_uid: pod.and_then(|pod| pod.metadata.uid.clone()),
                address: pod.and_then(pods::ip).map(|ip| NodeAddress {
                    ip,
                    port: shape.port(),
                    bus_port: BUS_PORT,
                }),
                address_is_current: pod.is_some_and(pods::address_is_current),
                hostname: Some(shape.access.hostname(
                    &name,
                    crds::pod_hostname(&shape.name, &shape.namespace, &name),
                )),
                endpoint_type: shape.access.endpoint_type().map(ToOwned::to_owned),
                proof: pod.and_then(pods::proof),
                kubernetes_node: pod.and_then(pods::kubernetes_node).map(ToOwned::to_owned),
                terminating: pod.is_some_and(pods::is_terminating),
                is_being_created: pod.is_some_and(pods::start::is_being_created),
                down_since: pod.and_then(pods::down_since),
                last_started: pod.and_then(pods::last_started),
                ..ExpectedNode::new(
                    name,
                    usize::try_from(shard).unwrap_or_default(),
                    usize::try_from(ordinal).unwrap_or_default(),
                )
            }
        })
        .collect()
}

/// The cluster as the Redis half needs it.
pub fn wanted(shape: &Shape, formed_before: bool, known: KnownNodes) -> Wanted {
    let number = |value: i32| usize::try_from(value).unwrap_or_default();
    let size = (number(shape.shards), number(shape.replicas));
    Wanted {
        formed_before,
        recovery: shape.recovery.clone(),
        known,
        ..Wanted::new(size, shape.persistent, shape.node_timeout)
    }
}
