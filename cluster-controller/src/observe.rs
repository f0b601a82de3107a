//! What there is: the pods of a cluster as the API server knows them, and what the nodes in them say.

use crate::{
    context::Context,
    redis::{
        member::{Member, Place, Wanted},
        observe,
    },
    validate::ValidatedCluster,
};
use common::{
    cluster::topology::NodeAddress,
    kubernetes::call::{self, ApiError},
};
use crds::{ANNOTATION_RESTART_HASH, CLIENT_PORT, LABEL_CLUSTER, LABEL_ROLE, pod_name};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, ResourceExt,
    api::ListParams,
    runtime::reflector::{ObjectRef, Store},
};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// How long connecting to a node, and its answer, may take.
pub const NODE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a majority or a node of a new cluster may be missing before it is done without.
const PATIENCE: Duration = Duration::from_secs(30);

/// The pods of a cluster by name.
pub type Pods = HashMap<String, Arc<Pod>>;

/// What was found.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The pods.
    pub pods: Pods,
    /// The places of the cluster and what their nodes said.
    pub members: Vec<Member>,
}

/// Looks at the pods in the cache and asks their nodes.
pub async fn observe(context: &Context, cluster: &ValidatedCluster) -> Observed {
    let pods = cached(&context.caches.pods, cluster);
    ask(cluster, pods).await
}

/// Looks at the pods live and asks their nodes: before something is done that could lose data.
pub async fn observe_live(
    context: &Context,
    cluster: &ValidatedCluster,
) -> Result<Observed, ApiError> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &cluster.namespace);
    let parameters = ListParams::default().labels(&format!("{LABEL_CLUSTER}={}", cluster.name));
    let what = format!("list the pods of {}/{}", cluster.namespace, cluster.name);
    let list = call::read(what, api.list(&parameters)).await?;
    let pods = list.items.into_iter().map(Arc::new);
    let pods = pods.map(|pod| (pod.name_any(), pod)).collect();
    Ok(ask(cluster, pods).await)
}

async fn ask(cluster: &ValidatedCluster, pods: Pods) -> Observed {
    let places = places(cluster, &pods);
    let members = observe::observe(&places, NODE_TIMEOUT).await;
    Observed { pods, members }
}

fn cached(store: &Store<Pod>, cluster: &ValidatedCluster) -> Pods {
    names(cluster)
        .filter_map(|(_, _, name)| {
            let pod = store.get(&ObjectRef::<Pod>::new(&name).within(&cluster.namespace))?;
            let ours = pod.labels().get(LABEL_CLUSTER) == Some(&cluster.name);
            ours.then_some((name, pod))
        })
        .collect()
}

fn names(cluster: &ValidatedCluster) -> impl Iterator<Item = (i32, i32, String)> + '_ {
    (0..cluster.shards).flat_map(move |shard| {
        (0..=cluster.replicas)
            .map(move |ordinal| (shard, ordinal, pod_name(&cluster.name, shard, ordinal)))
    })
}

/// The places of the cluster: one for each pod that is wanted, whether it exists or not.
pub fn places(cluster: &ValidatedCluster, pods: &Pods) -> Vec<Place> {
    names(cluster)
        .map(|(shard, ordinal, name)| {
            let pod = pods.get(&name);
            let status = pod.and_then(|pod| pod.status.as_ref());
            Place {
                shard: usize::try_from(shard).unwrap_or_default(),
                ordinal: usize::try_from(ordinal).unwrap_or_default(),
                address: status
                    .and_then(|status| status.pod_ip.as_deref()?.parse().ok())
                    .map(|ip| NodeAddress::new(ip, CLIENT_PORT)),
                machine: pod.and_then(|pod| pod.spec.as_ref()?.node_name.clone()),
                leaving: pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_some()),
                down_since: pod.and_then(|pod| down_since(pod)),
                pod: name,
            }
        })
        .collect()
}

/// Since when the API server knows the pod to be not ready: the second witness beside the node's silence.
fn down_since(pod: &Pod) -> Option<Timestamp> {
    let ready = ready_condition(pod);
    match ready {
        Some(condition) if condition.status == "True" => None,
        Some(condition) => condition
            .last_transition_time
            .as_ref()
            .map(|time| time.0)
            .or_else(|| created(pod)),
        None => created(pod),
    }
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

fn ready_condition(pod: &Pod) -> Option<&k8s_openapi::api::core::v1::PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == "Ready")
}

/// Whether Kubernetes counts the pod as ready.
pub fn is_ready(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && ready_condition(pod).is_some_and(|condition| condition.status == "True")
}

/// What the pod's role label says.
pub fn role_label(pod: &Pod) -> Option<&str> {
    pod.labels().get(LABEL_ROLE).map(String::as_str)
}

/// The restart hash the pod was made with.
pub fn restart_hash(pod: &Pod) -> Option<&str> {
    pod.annotations()
        .get(ANNOTATION_RESTART_HASH)
        .map(String::as_str)
}

/// What the Redis half is told of the cluster.
pub fn wanted(cluster: &ValidatedCluster, formed_before: bool) -> Wanted {
    Wanted {
        shards: usize::try_from(cluster.shards).unwrap_or_default(),
        replicas_per_shard: usize::try_from(cluster.replicas).unwrap_or_default(),
        persistent: cluster.storage.is_some(),
        formed_before,
        node_timeout: cluster.node_timeout,
        patience: PATIENCE,
    }
}
