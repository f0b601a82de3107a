//! A RedisCluster between a real API server and real servers, with the cluster-controller in this process. There is no kubelet: the test says
//! what runs where.

use crate::{
    api_proxy::ApiProxy,
    kubernetes::{ApiServer, api_server, no_users, status_within},
    redis::{MountedUsers, NODE_TIMEOUT, PodCluster, PodStorage, ShardSlots, executed},
    replica::{Replica, ReplicaSettings},
    wait::{eventually, within},
};
use anyhow::{Context, Result};
use cluster_controller::pods::has_secret;
use common::kubernetes::conditions::{find, holds};
use crds::{
    ANNOTATION_RESTART_HASH, CLIENT_PORT, LABEL_CLUSTER, LABEL_TRIAL, RedisCluster,
    RedisClusterStatus,
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        coordination::v1::Lease,
        core::v1::{Node, Pod, PodCondition, PodSpec},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Resource,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    process,
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

const LEASE: Duration = Duration::from_secs(3);
/// For a state that needs the expiry of a Lease, or the return of the API server.
pub const LIMIT: Duration = Duration::from_mins(2);
/// So long after an election the others give a server no vote (twice the node timeout).
const ELECTED_LATELY: Duration = Duration::from_secs(7);
/// Pods of the cluster.
pub const NODES: u8 = 6;
/// Keys that it is filled with.
pub const KEYS: usize = 1000;

/// Pods have the port of the product; the second and third number keep runs apart, the last one the tests of a run.
pub fn addresses() -> Vec<SocketAddr> {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let first = NEXT.fetch_add(NODES, Ordering::Relaxed);
    let [.., high, low] = process::id().to_be_bytes();
    (first..first + NODES)
        .map(|last| (Ipv4Addr::new(127, high | 0x80, low, last), CLIENT_PORT).into())
        .collect()
}

/// The pod of a server.
pub fn pod_name(index: usize) -> String {
    format!("shop-{}-{}", index / 2, index % 2)
}

/// A RedisCluster `shop` of three shards with a replica each.
pub struct ClusterStage {
    /// The API server.
    pub server: ApiServer,
    /// Where its objects are.
    pub namespace: String,
    /// The servers of its pods.
    pub nodes: PodCluster,
    kubelet: JoinHandle<()>,
}

impl Drop for ClusterStage {
    fn drop(&mut self) {
        self.kubelet.abort();
    }
}

/// Keeps `Ready` of every pod to its containers and its readiness gate, as a kubelet does.
async fn keep_ready(pods: Api<Pod>) {
    loop {
        let listed = pods.list(&ListParams::default()).await;
        for pod in listed.into_iter().flatten() {
            let name = pod.metadata.name.clone().unwrap_or_default();
            if let Some(ready) = outdated_ready(&pod) {
                // Only of what was read: a kubelet is alone in writing this, here the test does so too.
                let version = &pod.metadata.resource_version;
                let patch = json!({"metadata": {"resourceVersion": version}, "status": {"conditions": [ready]}});
                let patch = Patch::Strategic(patch);
                // One that fails is tried again.
                let _ = pods
                    .patch_status(&name, &PatchParams::default(), &patch)
                    .await;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// `Ready` as a kubelet would write it (`GeneratePodReadyCondition`), where it is otherwise.
fn outdated_ready(pod: &Pod) -> Option<Value> {
    let containers = pod_condition(pod, "ContainersReady")?;
    let gates = pod.spec.as_ref()?.readiness_gates.as_deref();
    let holds = |kind: &str| pod_condition(pod, kind).is_some_and(|one| one.status == "True");
    let opened = gates
        .into_iter()
        .flatten()
        .all(|gate| holds(&gate.condition_type));
    let (status, reason) = match (containers.status.as_str(), opened) {
        ("True", true) => ("True", None),
        ("True", false) => ("False", Some("ReadinessGatesNotReady")),
        (status, _) => (status, containers.reason.as_deref()),
    };
    let ready = pod_condition(pod, "Ready");
    let changes = ready.is_none_or(|ready| ready.status != status);
    let same = !changes && ready.is_some_and(|ready| ready.reason.as_deref() == reason);
    let mut condition = json!({"type": "Ready", "status": status, "reason": reason});
    if changes {
        condition["lastTransitionTime"] = json!(Timestamp::now());
    }
    (!same).then_some(condition)
}

/// The status that a kubelet gives a pod at an address, whose container has restarted so often, is ready or not, and is in a state.
pub fn running(
    ip: &str,
    conditions: &Value,
    (restarts, ready, state): (u32, bool, &Value),
) -> Value {
    json!({"status": {
        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": conditions,
        "containerStatuses": [{"name": crds::CONTAINER, "image": "redis", "imageID": "", "ready": ready,
                               "restartCount": restarts, "state": state}],
    }})
}

/// A condition of a pod.
pub fn pod_condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|one| one.type_ == kind)
}

impl ClusterStage {
    /// In memory.
    pub async fn new() -> Result<Self> {
        Self::with(PodStorage::Memory).await
    }

    /// Starts the servers and the part of a kubelet that keeps `Ready`.
    pub async fn with(storage: PodStorage) -> Result<Self> {
        let server = api_server().await?;
        let namespace = server.namespace("cluster").await?;
        let pods = Api::namespaced(server.client.clone(), &namespace);
        Ok(Self {
            server,
            namespace,
            kubelet: tokio::spawn(keep_ready(pods)),
            nodes: PodCluster::start_at(addresses(), storage, MountedUsers::None).await?,
        })
    }

    /// The objects of a kind in the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.server.client.clone(), &self.namespace)
    }

    /// A replica of the cluster-controller, behind a proxy if there is one.
    pub fn replica(&self, identity: &str, proxy: Option<&ApiProxy>) -> Replica {
        let settings = ReplicaSettings {
            program: "cluster-controller",
            identity: identity.to_owned(),
            namespace: self.namespace.clone(),
            lease: LEASE,
            proxy: proxy.map(ApiProxy::address),
        };
        Replica::start(settings, cluster_controller::run::start)
    }

    /// Waits until the replica leads.
    pub async fn leads(&self, identity: &str) -> Result<()> {
        within(LIMIT, "the replica leads", async || {
            let lease = self.api::<Lease>().get_opt("cluster-controller").await?;
            let holder = lease.and_then(|lease| lease.spec?.holder_identity);
            Ok(holder.as_deref() == Some(identity))
        })
        .await
    }

    /// Creates the RedisCluster, with this besides in its spec.
    pub async fn create(&self, more: Value) -> Result<()> {
        let timeout = NODE_TIMEOUT.as_millis().to_string();
        let mut object = json!({
            "apiVersion": "redis.danieldorado.github.io/v1alpha1", "kind": "RedisCluster", "metadata": {"name": "shop"},
            // No StatefulSet controller runs here, which would create the pods of another template.
            "spec": {"image": "redis", "shards": 3, "replicasPerShard": 1, "config": {"cluster-node-timeout": timeout},
                     "update": {"strategy": "OnDelete"}, "auth": no_users()},
        });
        if let (Some(spec), Value::Object(more)) = (object["spec"].as_object_mut(), more) {
            spec.extend(more);
        }
        let object: RedisCluster = serde_json::from_value(object)?;
        self.api().create(&PostParams::default(), &object).await?;
        Ok(())
    }

    /// The Kubernetes node of all pods. There is no such object unless a test creates it.
    pub fn kubernetes_node(&self) -> String {
        format!("node-of-{}", self.namespace)
    }

    /// Says, as a kubelet or the node controller would, what is the matter with a pod.
    pub async fn reported(&self, index: usize, status: Value) -> Result<()> {
        let (name, parameters) = (pod_name(index), PatchParams::default());
        let patch = Patch::Merge(json!({ "status": status }));
        self.api::<Pod>()
            .patch_status(&name, &parameters, &patch)
            .await?;
        Ok(())
    }

    /// Creates every pod, with its server running.
    pub async fn run_pods(&self) -> Result<()> {
        self.run_pods_on(|_| self.kubernetes_node()).await
    }

    /// Creates every pod on a Kubernetes node, with its server running.
    pub async fn run_pods_on(&self, kubernetes_node: impl Fn(usize) -> String) -> Result<()> {
        for index in 0..self.nodes.len() {
            self.run_pod(index, &kubernetes_node(index), json!([]))
                .await?;
        }
        Ok(())
    }

    /// Creates a pod with these volumes on a Kubernetes node, with its server running.
    pub async fn run_pod(&self, index: usize, node: &str, volumes: Value) -> Result<()> {
        let pod = json!({
            "metadata": {"name": pod_name(index), "labels": {LABEL_CLUSTER: "shop"}},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [{"name": crds::CONTAINER, "image": "redis"}],
                     "readinessGates": [{"conditionType": crds::CONDITION_SERVING}], "volumes": volumes},
        });
        let pod: Pod = serde_json::from_value(pod)?;
        self.api().create(&PostParams::default(), &pod).await?;
        self.started(index, 0).await
    }

    /// Says, as a kubelet would, that the pod's server has just been started and listens.
    pub async fn started(&self, index: usize, restarts: u32) -> Result<()> {
        let state = json!({"running": {"startedAt": Timestamp::now()}});
        self.container(index, restarts, (true, &state)).await
    }

    /// Says, as a kubelet would, that the pod's server has ended.
    pub async fn ended(&self, index: usize, restarts: u32) -> Result<()> {
        let state = json!({"terminated": {"exitCode": 137, "finishedAt": Timestamp::now()}});
        self.container(index, restarts, (false, &state)).await
    }

    async fn container(
        &self,
        index: usize,
        restarts: u32,
        (ready, state): (bool, &Value),
    ) -> Result<()> {
        let ip = self.nodes.server(index).address().ip().to_string();
        let (status, reason) = if ready {
            ("True", None)
        } else {
            ("False", Some("ContainersNotReady"))
        };
        let condition = json!({"type": "ContainersReady", "status": status, "reason": reason,
                               "lastTransitionTime": Timestamp::now()});
        let status = running(&ip, &json!([condition]), (restarts, ready, state));
        let (name, parameters) = (pod_name(index), PatchParams::default());
        // Strategic: what others wrote stays.
        let patch = Patch::Strategic(status);
        self.api::<Pod>()
            .patch_status(&name, &parameters, &patch)
            .await?;
        Ok(())
    }

    /// Waits until the pod has this readiness and this reason in its serving condition.
    pub async fn readiness(&self, index: usize, ready: bool, reason: &str) -> Result<Pod> {
        let mut last = None;
        let wait = format!("{} has Ready={ready} and is {reason}", pod_name(index));
        let found = eventually(&wait, async || {
            let pod = self.api::<Pod>().get(&pod_name(index)).await?;
            last = pod.status.clone().and_then(|status| status.conditions);
            let is = |kind, wanted: &str| {
                pod_condition(&pod, kind).is_some_and(|one| one.status == wanted)
            };
            let serving = pod_condition(&pod, crds::CONDITION_SERVING);
            let found = serving.is_some_and(|one| one.reason.as_deref() == Some(reason))
                && is("Ready", if ready { "True" } else { "False" })
                && serving.is_some_and(|one| one.message.is_some());
            Ok(found.then_some(pod))
        });
        let found = found.await;
        found.with_context(|| format!("the conditions are {last:#?}"))
    }

    /// Changes fields of the spec.
    pub async fn change(&self, spec: Value) -> Result<()> {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let parameters = PatchParams::default();
        self.api::<RedisCluster>()
            .patch("shop", &parameters, &patch)
            .await?;
        Ok(())
    }

    /// The template of a pod.
    pub async fn template(&self, index: usize) -> Result<PodSpec> {
        let name = format!("shop-{}", index / 2);
        let set = self.api::<StatefulSet>().get(&name).await?;
        set.spec.template.spec.context("no template")
    }

    /// Waits until all templates have the Secret of this volume, or none has.
    pub async fn templates_mount(&self, volume: &str, wanted: bool) -> Result<()> {
        let what = format!("{volume} is in all templates: {wanted}");
        within(LIMIT, &what, async || {
            let api = self.api::<StatefulSet>();
            let templates = api.list(&ListParams::default()).await?.items.into_iter();
            let mut templates = templates.filter_map(|set| set.spec.template.spec);
            Ok(templates.all(|pod| has_secret(&pod, volume) == wanted))
        })
        .await
    }

    /// Makes a pod in memory again, with its server. A primary hands over before, as the stop script does. `prepare`: before the server
    /// starts.
    pub async fn replace(
        &mut self,
        index: usize,
        volumes: Value,
        prepare: impl FnOnce(&mut PodCluster) -> Result<()>,
    ) -> Result<()> {
        if self.nodes.primary_of(index / 2).await? == index {
            self.take_over_from(index).await?;
        }
        let name = pod_name(index);
        self.nodes.kill(index).await?;
        self.api::<Pod>()
            .delete(&name, &DeleteParams::default().grace_period(0))
            .await?;
        within(LIMIT, "the pod is gone", async || {
            Ok(self.api::<Pod>().get_opt(&name).await?.is_none())
        })
        .await?;
        self.nodes.wipe(index)?;
        prepare(&mut self.nodes)?;
        self.nodes.restart(index).await?;
        let node = self.kubernetes_node();
        self.run_pod(index, &node, volumes).await?;
        self.readiness(index, true, "Serving").await?;
        let all = i32::try_from(self.nodes.len())?;
        let back = |status: &RedisClusterStatus| serves(status) && status.ready_nodes == all;
        self.until("the pod's server is back", back).await?;
        Ok(())
    }

    /// Lets the replica of a primary take over. One that was elected a moment ago is refused by the others, so it is asked again.
    async fn take_over_from(&self, index: usize) -> Result<()> {
        let shard = index / 2;
        let replica = self.nodes.replica_of(shard).await?;
        let mut asked = Instant::now();
        let ask = async || {
            let server = self.nodes.server(replica);
            server.call::<()>("CLUSTER FAILOVER").await
        };
        ask().await?;
        within(LIMIT, "the replica has taken over", async || {
            // None: just now neither is.
            let primary = self.nodes.primary_of(shard).await.ok();
            if asked.elapsed() > ELECTED_LATELY && primary == Some(index) {
                asked = Instant::now();
                ask().await?;
            }
            let old = self.nodes.server(index);
            let link = old.info("master_link_status").await;
            Ok(primary == Some(replica) && link.is_ok_and(|link| link == "up"))
        })
        .await
    }

    /// Creates the Kubernetes node of the pods, whose condition Ready has this status since then; its name.
    pub async fn create_kubernetes_node(&self, ready: &str, since: &str) -> Result<String> {
        let nodes: Api<Node> = Api::all(self.server.client.clone());
        let name = self.kubernetes_node();
        let node: Node = serde_json::from_value(json!({"metadata": {"name": &name}}))?;
        nodes.create(&PostParams::default(), &node).await?;
        let ready = json!([{"type": "Ready", "status": ready, "lastHeartbeatTime": since, "lastTransitionTime": since}]);
        let patch = Patch::Merge(json!({"status": {"conditions": ready}}));
        nodes
            .patch_status(&name, &PatchParams::default(), &patch)
            .await?;
        Ok(name)
    }

    /// Waits for a status that answers the present spec.
    pub async fn until(
        &self,
        what: &str,
        is_so: impl Fn(&RedisClusterStatus) -> bool,
    ) -> Result<RedisClusterStatus> {
        status_within(LIMIT, (&self.api(), "shop"), what, is_so).await
    }

    /// Waits until the cluster serves, then fills it.
    pub async fn fill(&self) -> Result<ShardSlots> {
        self.until("formed", serves).await?;
        self.nodes.fill_and_replicate(KEYS).await
    }

    /// Kills a replica and lets its container run again, without data.
    pub async fn lose_a_replica(&mut self) -> Result<usize> {
        let victim = self.nodes.replica_of(1).await?;
        self.nodes.kill(victim).await?;
        self.ended(victim, 0).await?;
        self.nodes.wipe(victim)?;
        self.nodes.restart(victim).await?;
        Ok(victim)
    }

    /// Gives every pod the restart hash of its StatefulSet, as if it had been made of that.
    pub async fn has_current_pods(&self) -> Result<()> {
        let set = self.api::<StatefulSet>().get("shop-0").await?;
        let template = set.spec.template.metadata;
        let annotations = template.and_then(|template| template.annotations);
        let hash = annotations.and_then(|all| all.get(ANNOTATION_RESTART_HASH).cloned());
        let annotations = json!({ANNOTATION_RESTART_HASH: hash.context("no hash")?});
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        for index in 0..self.nodes.len() {
            let (name, parameters) = (pod_name(index), PatchParams::default());
            self.api::<Pod>().patch(&name, &parameters, &patch).await?;
        }
        Ok(())
    }

    /// Waits until the node is a linked replica, and every other one is as it was.
    pub async fn repaired(&self, victim: usize) -> Result<RedisClusterStatus> {
        let id = self.nodes.ids().await?[victim].to_string();
        let repaired = self.until("repaired", |status| {
            let mut replicas = status.shard_statuses.iter().flat_map(|one| &one.replicas);
            serves(status) && replicas.any(|one| one.linked && one.node_id == id)
        });
        let repaired = repaired.await;
        self.nodes.explained(repaired).await
    }

    /// Whether a server was sent the command since its counts began.
    pub async fn any_was_sent(&self, command: &str) -> Result<bool> {
        for index in 0..self.nodes.len() {
            if executed(self.nodes.server(index))
                .await?
                .contains_key(command)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether every slot is served and every primary has its replicas.
pub fn serves(status: &RedisClusterStatus) -> bool {
    holds(&status.conditions, "Available")
        && holds(&status.conditions, "ReplicationHealthy")
        && status.slots.ok == 16384
}

/// The reason of a condition; empty without it.
pub fn reason(status: &RedisClusterStatus, kind: &str) -> String {
    let condition = find(&status.conditions, kind);
    condition.map_or_else(String::new, |condition| condition.reason.clone())
}

/// The message of a condition; empty without it.
pub fn message(status: &RedisClusterStatus, kind: &str) -> String {
    let condition = find(&status.conditions, kind);
    condition.map_or_else(String::new, |condition| condition.message.clone())
}

impl ClusterStage {
    /// Waits for the pod that tries a configuration, and says as a kubelet would how its container has ended.
    pub async fn tried(&self, exit_code: i32, message: &str) -> Result<String> {
        let pods = self.api::<Pod>();
        let selector = ListParams::default().labels(&format!("{LABEL_TRIAL}=shop"));
        let pod = eventually("a pod tries the configuration", async || {
            let found = pods.list(&selector).await?.items.into_iter();
            let mut running = found.filter(|pod| pod.metadata.deletion_timestamp.is_none());
            Ok(running.next())
        })
        .await?;
        let name = pod.metadata.name.context("no name")?;
        let (phase, reason) = match exit_code {
            0 => ("Succeeded", "Completed"),
            _ => ("Failed", "Error"),
        };
        let end = json!({"exitCode": exit_code, "reason": reason, "message": message});
        let status = json!({"phase": phase, "containerStatuses": [{"name": crds::CONTAINER, "image": "redis", "imageID": "",
            "ready": false, "restartCount": 0, "state": {"terminated": end}}]});
        let patch = Patch::Merge(json!({ "status": status }));
        pods.patch_status(&name, &PatchParams::default(), &patch)
            .await?;
        within(LIMIT, "the pod is deleted", async || {
            Ok(pods.get_opt(&name).await?.is_none())
        })
        .await?;
        Ok(name)
    }

    /// The ConfigMaps that the StatefulSets name.
    pub async fn named(&self) -> Result<BTreeSet<String>> {
        let sets = self
            .api::<StatefulSet>()
            .list(&ListParams::default())
            .await?;
        let templates = sets
            .items
            .into_iter()
            .filter_map(|set| set.spec.template.spec);
        let volumes = templates.flat_map(|pod| pod.volumes.unwrap_or_default());
        let maps = volumes.filter_map(|volume| Some(volume.config_map?.name));
        Ok(maps.collect())
    }

    /// A setting on every server.
    pub async fn setting(&self, name: &str) -> Result<BTreeSet<String>> {
        let mut values = BTreeSet::new();
        for index in 0..self.nodes.len() {
            let server = self.nodes.server(index);
            let answer: Vec<String> = server.call(&format!("CONFIG GET {name}")).await?;
            values.extend(answer.into_iter().nth(1));
        }
        Ok(values)
    }

    /// The uids of the pods.
    pub async fn uids(&self) -> Result<BTreeSet<Option<String>>> {
        let selector = ListParams::default().labels(&format!("{LABEL_CLUSTER}=shop"));
        let pods = self.api::<Pod>().list(&selector).await?.items;
        Ok(pods.into_iter().map(|pod| pod.metadata.uid).collect())
    }
}
