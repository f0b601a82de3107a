//! What there is: the pods of a cluster as the API server knows them, and what the nodes in them say.

use crate::{
    context::Context,
    pods::{self, Pods},
    redis::{
        identity::{KnownNodes, recognize},
        member::{Answer, ExpectedNode, Member, Wanted},
        observe,
    },
    validate::Shape,
};
use common::{
    cluster::topology::NodeAddress,
    kubernetes::call::{self, ApiError},
};
use crds::{CLIENT_PORT, LABEL_CLUSTER, pod_name};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, ResourceExt,
    api::ListParams,
    runtime::reflector::{ObjectRef, Store},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// How long connecting to a node, and its answer, may take.
pub const NODE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a majority or a node of a new cluster may be missing before it is done without.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was found.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Pods of the cluster by name, as Kubernetes describes them.
    pub pods: Pods,
    /// The expected nodes and what their servers reported.
    pub members: Vec<Member>,
}

/// Reads the pods from the cache and asks their nodes.
pub async fn observe(context: &Context, shape: &Shape, wanted: &Wanted) -> Observed {
    let pods = cached(&context.caches.pods, shape);
    ask(context, shape, wanted, pods).await
}

/// Reads the pods live and asks their nodes: before something is done that could lose data.
pub async fn observe_live(
    context: &Context,
    shape: &Shape,
    wanted: &Wanted,
) -> Result<Observed, ApiError> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &shape.namespace);
    let parameters = ListParams::default().labels(&format!("{LABEL_CLUSTER}={}", shape.name));
    let what = format!("list the pods of {}/{}", shape.namespace, shape.name);
    let list = call::read(what, api.list(&parameters)).await?;
    let pods = list.items.into_iter().map(Arc::new);
    let pods = pods.map(|pod| (pod.name_any(), pod)).collect();
    Ok(ask(context, shape, wanted, pods).await)
}

async fn ask(context: &Context, shape: &Shape, wanted: &Wanted, pods: Pods) -> Observed {
    let expected = expected(shape, &pods);
    let mut members = observe::observe(&expected, NODE_TIMEOUT).await;
    recognize(wanted, &mut members);
    let cluster = (shape.namespace.as_str(), shape.name.as_str());
    let exists = |name: &str| pods.contains_key(name);
    context
        .unresponsive
        .note(cluster, &mut members, exists, Timestamp::now());
    let names = names(shape).map(|(_, _, name)| name);
    let missing = context.pod_events.why_missing(cluster, names, &pods).await;
    for member in &mut members {
        explain(member, &pods, &missing);
    }
    Observed { pods, members }
}

/// Replaces what the network says, which is only that there is no answer, by what Kubernetes says.
fn explain(member: &mut Member, pods: &Pods, missing: &BTreeMap<String, String>) {
    let name = &member.expected.pod;
    let pod = pods.get(name).map(Arc::as_ref);
    let why = missing.get(name).cloned();
    if let Answer::Absent(words) | Answer::Unresponsive(words) = &mut member.answer
        && let Some(why) = why.or_else(|| pods::why_down(pod))
    {
        *words = why;
    }
}

/// The pods that the cache has.
pub fn cached(store: &Store<Pod>, shape: &Shape) -> Pods {
    names(shape)
        .filter_map(|(_, _, name)| {
            let pod = store.get(&ObjectRef::<Pod>::new(&name).within(&shape.namespace))?;
            let ours = pod.labels().get(LABEL_CLUSTER) == Some(&shape.name);
            ours.then_some((name, pod))
        })
        .collect()
}

/// Whether every pod has its Kubernetes node: the scheduler has written to their volume claims for the last time.
pub fn all_scheduled(shape: &Shape, pods: &Pods) -> bool {
    names(shape).all(|(_, _, name)| {
        pods.get(&name)
            .is_some_and(|pod| pods::kubernetes_node(pod).is_some())
    })
}

fn names(shape: &Shape) -> impl Iterator<Item = (i32, i32, String)> + '_ {
    (0..shape.shards).flat_map(move |shard| {
        (0..=shape.replicas)
            .map(move |ordinal| (shard, ordinal, pod_name(&shape.name, shard, ordinal)))
    })
}

/// The expected nodes: one for each wanted pod, whether it exists or not.
pub fn expected(shape: &Shape, pods: &Pods) -> Vec<ExpectedNode> {
    names(shape)
        .map(|(shard, ordinal, name)| {
            let pod = pods.get(&name).map(Arc::as_ref);
            ExpectedNode {
                shard: usize::try_from(shard).unwrap_or_default(),
                ordinal: usize::try_from(ordinal).unwrap_or_default(),
                address: pod
                    .and_then(pods::ip)
                    .map(|ip| NodeAddress::new(ip, CLIENT_PORT)),
                address_is_current: pod.is_some_and(pods::address_is_current),
                proof: pod.and_then(pods::proof),
                kubernetes_node: pod.and_then(pods::kubernetes_node).map(ToOwned::to_owned),
                terminating: pod.is_some_and(pods::is_terminating),
                down_since: pod.and_then(pods::down_since),
                pod: name,
            }
        })
        .collect()
}

/// The cluster as the Redis half needs it.
pub fn wanted(shape: &Shape, formed_before: bool, known: KnownNodes) -> Wanted {
    Wanted {
        shards: usize::try_from(shape.shards).unwrap_or_default(),
        replicas_per_shard: usize::try_from(shape.replicas).unwrap_or_default(),
        persistent: shape.persistent,
        formed_before,
        node_timeout: shape.node_timeout,
        patience: PATIENCE,
        known,
    }
}
