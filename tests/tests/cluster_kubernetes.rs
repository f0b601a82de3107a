//! The whole cluster-controller between a real API server and real servers. There is no kubelet: the test says what runs where.

use anyhow::{Context, Result, ensure};
use common::kubernetes::conditions::{find, holds};
use crds::{
    CLIENT_PORT, LABEL_CLUSTER, LABEL_TRIAL, RedisCluster, RedisClusterStatus, RedisVersion,
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Node, Pod, PodCondition},
        events::v1::Event,
        policy::v1::PodDisruptionBudget,
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
    time::Duration,
};
use tests::{
    api_proxy::ApiProxy,
    kubernetes::{ApiServer, api_server, status_within},
    pod_template,
    redis::{NODE_TIMEOUT, PodCluster, PodStorage, ShardSlots, executed},
    replica::{Replica, ReplicaEnd, ReplicaSettings},
    wait::{eventually, within},
};
use tokio::task::JoinHandle;

const LEASE: Duration = Duration::from_secs(3);
/// For a state that needs the expiry of a Lease, or the return of the API server.
const LIMIT: Duration = Duration::from_mins(2);
/// How long the API server is away.
const OUTAGE: Duration = Duration::from_mins(1);
const NODES: u8 = 6;
const KEYS: usize = 1000;

/// Pods have the port of the product; the second and third number keep runs apart, the last one the tests of a run.
fn addresses() -> Vec<SocketAddr> {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let first = NEXT.fetch_add(NODES, Ordering::Relaxed);
    let [.., high, low] = process::id().to_be_bytes();
    (first..first + NODES)
        .map(|last| (Ipv4Addr::new(127, high | 0x80, low, last), CLIENT_PORT).into())
        .collect()
}

fn pod_name(index: usize) -> String {
    format!("shop-{}-{}", index / 2, index % 2)
}

struct ClusterStage {
    server: ApiServer,
    namespace: String,
    nodes: PodCluster,
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
                let patch = json!({"status": {"conditions": [ready]}});
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

fn pod_condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|one| one.type_ == kind)
}

impl ClusterStage {
    async fn new() -> Result<Self> {
        Self::with(PodStorage::Memory).await
    }

    async fn with(storage: PodStorage) -> Result<Self> {
        let server = api_server().await?;
        let namespace = server.namespace("cluster").await?;
        let pods = Api::namespaced(server.client.clone(), &namespace);
        Ok(Self {
            server,
            namespace,
            kubelet: tokio::spawn(keep_ready(pods)),
            nodes: PodCluster::start_at(addresses(), storage).await?,
        })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.server.client.clone(), &self.namespace)
    }

    fn replica(&self, identity: &str, proxy: Option<&ApiProxy>) -> Replica {
        let settings = ReplicaSettings {
            program: "cluster-controller",
            identity: identity.to_owned(),
            namespace: self.namespace.clone(),
            lease: LEASE,
            proxy: proxy.map(ApiProxy::address),
        };
        Replica::start(settings, cluster_controller::run::start)
    }

    async fn leads(&self, identity: &str) -> Result<()> {
        within(LIMIT, "the replica leads", async || {
            let lease = self.api::<Lease>().get_opt("cluster-controller").await?;
            let holder = lease.and_then(|lease| lease.spec?.holder_identity);
            Ok(holder.as_deref() == Some(identity))
        })
        .await
    }

    async fn create(&self, more: Value) -> Result<()> {
        let timeout = NODE_TIMEOUT.as_millis().to_string();
        let mut object = json!({
            "apiVersion": "redis.danieldorado.github.io/v1alpha1", "kind": "RedisCluster", "metadata": {"name": "shop"},
            // No StatefulSet controller runs here, which would create the pods of another template.
            "spec": {"image": "redis", "shards": 3, "replicasPerShard": 1, "config": {"cluster-node-timeout": timeout},
                     "update": {"strategy": "OnDelete"}},
        });
        if let (Some(spec), Value::Object(more)) = (object["spec"].as_object_mut(), more) {
            spec.extend(more);
        }
        let object: RedisCluster = serde_json::from_value(object)?;
        self.api().create(&PostParams::default(), &object).await?;
        Ok(())
    }

    /// The Kubernetes node of all pods. There is no such object unless a test creates it.
    fn kubernetes_node(&self) -> String {
        format!("node-of-{}", self.namespace)
    }

    /// Says, as a kubelet or the node controller would, what is the matter with a pod.
    async fn reported(&self, index: usize, status: Value) -> Result<()> {
        let (name, parameters) = (pod_name(index), PatchParams::default());
        let patch = Patch::Merge(json!({ "status": status }));
        self.api::<Pod>()
            .patch_status(&name, &parameters, &patch)
            .await?;
        Ok(())
    }

    /// Creates every pod, with its server running.
    async fn run_pods(&self) -> Result<()> {
        self.run_pods_on(|_| self.kubernetes_node()).await
    }

    /// Creates every pod on a Kubernetes node, with its server running.
    async fn run_pods_on(&self, kubernetes_node: impl Fn(usize) -> String) -> Result<()> {
        for index in 0..self.nodes.len() {
            let pod = json!({
                "metadata": {"name": pod_name(index), "labels": {LABEL_CLUSTER: "shop"}},
                "spec": {"nodeName": kubernetes_node(index), "terminationGracePeriodSeconds": 1, "containers": [{"name": crds::CONTAINER, "image": "redis"}],
                         "readinessGates": [{"conditionType": crds::CONDITION_SERVING}]},
            });
            let pod: Pod = serde_json::from_value(pod)?;
            self.api().create(&PostParams::default(), &pod).await?;
            self.started(index, 0).await?;
        }
        Ok(())
    }

    /// Says, as a kubelet would, that the pod's server has just been started and listens.
    async fn started(&self, index: usize, restarts: u32) -> Result<()> {
        let state = json!({"running": {"startedAt": Timestamp::now()}});
        self.container(index, restarts, (true, &state)).await
    }

    /// Says, as a kubelet would, that the pod's server has ended.
    async fn ended(&self, index: usize, restarts: u32) -> Result<()> {
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
        let status = json!({"status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [condition],
            "containerStatuses": [{"name": crds::CONTAINER, "image": "redis", "imageID": "", "ready": ready,
                                   "restartCount": restarts, "state": state}],
        }});
        let (name, parameters) = (pod_name(index), PatchParams::default());
        // Strategic: what others wrote stays.
        let patch = Patch::Strategic(status);
        self.api::<Pod>()
            .patch_status(&name, &parameters, &patch)
            .await?;
        Ok(())
    }

    /// Waits until the pod has this readiness and this reason in its serving condition.
    async fn readiness(&self, index: usize, ready: bool, reason: &str) -> Result<Pod> {
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

    async fn change(&self, spec: Value) -> Result<()> {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let parameters = PatchParams::default();
        self.api::<RedisCluster>()
            .patch("shop", &parameters, &patch)
            .await?;
        Ok(())
    }

    /// Creates the Kubernetes node of the pods, whose condition Ready has this status since then; its name.
    async fn create_kubernetes_node(&self, ready: &str, since: &str) -> Result<String> {
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
    async fn until(
        &self,
        what: &str,
        is_so: impl Fn(&RedisClusterStatus) -> bool,
    ) -> Result<RedisClusterStatus> {
        status_within(LIMIT, (&self.api(), "shop"), what, is_so).await
    }

    /// Waits until the cluster serves, then fills it.
    async fn fill(&self) -> Result<ShardSlots> {
        self.until("formed", serves).await?;
        self.nodes.fill(KEYS).await?;
        self.nodes.replicated().await?;
        self.nodes.slot_map().await
    }

    /// Kills a replica and lets its container run again, without data.
    async fn lose_a_replica(&mut self) -> Result<usize> {
        let victim = self.nodes.replica_of(1).await?;
        self.nodes.kill(victim).await?;
        self.ended(victim, 0).await?;
        self.nodes.wipe(victim)?;
        self.nodes.restart(victim).await?;
        Ok(victim)
    }

    /// Waits until the node is a linked replica, and every other one is as it was.
    async fn repaired(&self, victim: usize) -> Result<RedisClusterStatus> {
        let id = self.nodes.ids().await?[victim].to_string();
        let repaired = self.until("repaired", |status| {
            let mut replicas = status.shard_statuses.iter().flat_map(|one| &one.replicas);
            serves(status) && replicas.any(|one| one.linked && one.node_id == id)
        });
        let repaired = repaired.await;
        match repaired {
            Ok(status) => Ok(status),
            Err(error) => Err(error.context(self.nodes.tables().await)),
        }
    }

    /// Whether a server was sent the command since its counts began.
    async fn any_was_sent(&self, command: &str) -> Result<bool> {
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

fn serves(status: &RedisClusterStatus) -> bool {
    holds(&status.conditions, "Available")
        && holds(&status.conditions, "ReplicationHealthy")
        && status.slots.ok == 16384
}

fn reason(status: &RedisClusterStatus, kind: &str) -> String {
    let condition = find(&status.conditions, kind);
    condition.map_or_else(String::new, |condition| condition.reason.clone())
}

fn message(status: &RedisClusterStatus, kind: &str) -> String {
    let condition = find(&status.conditions, kind);
    condition.map_or_else(String::new, |condition| condition.message.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_repaired_whatever_is_wrong_with_the_spec() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let replica = stage.replica("a", None);
    let too_much = json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}});
    stage.create(json!({ "resources": too_much })).await?;
    let refused = stage
        .until("the refusal is reported", |status| {
            reason(status, "Ready") == "RefusedByServer"
        })
        .await?;
    let words = message(&refused, "Ready");
    ensure!(
        words.contains("StatefulSet") && words.contains("cpu limit"),
        "{words}"
    );
    ensure!(reason(&refused, "Progressing") == "RefusedByServer");
    // What is not refused is there.
    let maps = stage.api::<ConfigMap>();
    let selector = ListParams::default().labels(&format!("{LABEL_CLUSTER}=shop"));
    ensure!(maps.list(&selector).await?.items.len() == 1);
    stage.api::<PodDisruptionBudget>().get("shop").await?;
    let words = message(&refused, "Formed");
    ensure!(words.contains("the pod does not exist"), "{words}");

    stage.run_pods().await?;
    let formed = stage.until("formed nevertheless", serves).await?;
    ensure!(holds(&formed.conditions, "Formed"));
    ensure!(!holds(&formed.conditions, "Ready"));
    let slots = stage.fill().await?;

    stage.change(json!({"resources": null})).await?;
    let ready = |status: &RedisClusterStatus| holds(&status.conditions, "Ready");
    stage.until("ready once it is corrected", ready).await?;
    let sets = stage.api::<StatefulSet>();
    ensure!(sets.list(&ListParams::default()).await?.items.len() == 3);

    // A version that does not exist; and then a replica is lost.
    stage
        .change(json!({"image": null, "version": "nowhere"}))
        .await?;
    let wrong = |status: &RedisClusterStatus| reason(status, "Ready") == "VersionNotFound";
    stage.until("the mistake is reported", wrong).await?;
    let before = stage.nodes.ids().await?;
    let victim = stage.lose_a_replica().await?;
    stage.started(victim, 1).await?;
    let repaired = stage.repaired(victim).await?;
    ensure!(stage.nodes.ids().await?[victim] != before[victim]);
    ensure!(wrong(&repaired));
    let events = stage.api::<Event>().list(&ListParams::default()).await?;
    let reasons: Vec<String> = events
        .items
        .into_iter()
        .filter_map(|event| event.reason)
        .collect();
    for reason in ["RefusedByServer", "VersionNotFound"] {
        ensure!(reasons.iter().any(|one| one == reason), "{reasons:?}");
    }
    stage.nodes.unharmed(&slots, KEYS).await?;
    replica.end(ReplicaEnd::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_ready_while_its_node_serves() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let replica = stage.replica("a", None);
    stage.create(json!({})).await?;
    stage.run_pods().await?;
    let slots = stage.fill().await?;
    for index in 0..stage.nodes.len() {
        stage.readiness(index, true, "Serving").await?;
    }
    let all = |status: &RedisClusterStatus| status.ready_nodes == i32::from(NODES);
    stage.until("all pods are counted", all).await?;

    // Its container ends, starts again, and listens before it is linked.
    let victim = stage.nodes.replica_of(1).await?;
    stage.nodes.kill(victim).await?;
    stage.ended(victim, 0).await?;
    let ended = stage.readiness(victim, false, "NotAnswering").await?;
    let since = |pod: &Pod| {
        let serving = pod_condition(pod, crds::CONDITION_SERVING);
        serving.and_then(|one| one.last_transition_time.clone())
    };
    stage.nodes.wipe(victim)?;
    stage.nodes.restart(victim).await?;
    stage.started(victim, 1).await?;
    let again = stage.readiness(victim, true, "Serving").await?;
    ensure!(since(&again) > since(&ended), "{again:?}");

    // The spec is paused, and a replica loses its primary.
    stage.change(json!({"paused": true})).await?;
    let paused = |status: &RedisClusterStatus| status.phase.as_deref() == Some("Paused");
    stage.until("paused", paused).await?;
    let primary = stage.nodes.primary_of(1).await?;
    let on_primary = async |command| stage.nodes.server(primary).call::<()>(command).await;
    on_primary("ACL SETUSER default -psync -sync").await?;
    on_primary("CLIENT KILL TYPE replica").await?;
    stage.readiness(victim, false, "NotLinked").await?;
    on_primary("ACL SETUSER default +psync +sync").await?;
    stage.readiness(victim, true, "Serving").await?;
    stage.nodes.unharmed(&slots, KEYS).await?;
    replica.end(ReplicaEnd::Orderly)
}

/// The servers replace the primary themselves; the container that runs again is taken in once the API server is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_api_server_delays_repair_only() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let mut proxy = ApiProxy::start()?;
    let replica = stage.replica("a", Some(&proxy));
    stage.create(json!({})).await?;
    stage.run_pods().await?;
    let slots = stage.fill().await?;
    proxy.leave();
    let back = tokio::time::Instant::now() + OUTAGE;
    let victim = stage.nodes.primary_of(0).await?;
    stage.nodes.kill(victim).await?;
    stage.ended(victim, 0).await?;
    stage.nodes.restart(victim).await?;
    stage.started(victim, 1).await?;
    eventually("the replica serves", async || {
        let primary = stage.nodes.primary_of(0).await;
        Ok(primary.is_ok_and(|primary| primary != victim))
    })
    .await?;
    stage.nodes.check(KEYS).await?;
    tokio::time::sleep_until(back).await;
    proxy.come_back()?;
    stage.repaired(victim).await?;
    stage.nodes.unharmed(&slots, KEYS).await?;
    replica.end(ReplicaEnd::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overloaded_api_server_does_not_stop_formation_or_repair() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let proxy = ApiProxy::start()?;
    proxy.overload();
    let replica = stage.replica("a", Some(&proxy));
    stage.create(json!({})).await?;
    stage.run_pods().await?;
    let slots = stage.fill().await?;
    let victim = stage.lose_a_replica().await?;
    stage.started(victim, 1).await?;
    stage.repaired(victim).await?;
    stage.nodes.unharmed(&slots, KEYS).await?;
    let refused = proxy.relieve();
    ensure!(refused > 20, "only {refused} requests were refused");
    replica.end(ReplicaEnd::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_completes_what_a_killed_leader_began() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let first = stage.replica("first", None);
    stage.leads("first").await?;
    let second = stage.replica("second", None);
    stage.create(json!({})).await?;
    stage.run_pods().await?;
    eventually("the formation has begun", async || {
        stage.any_was_sent("cluster|addslotsrange").await
    })
    .await?;
    first.end(ReplicaEnd::Kill)?;
    let status = stage.api::<RedisCluster>().get("shop").await?.status;
    let formed = status.is_some_and(|status| holds(&status.conditions, "Formed"));
    ensure!(!formed, "the leader was killed too late");
    let slots = stage.fill().await?;

    stage.leads("second").await?;
    let third = stage.replica("third", None);
    for index in 0..stage.nodes.len() {
        stage.nodes.nothing_destroyed().await?;
        let server = stage.nodes.server(index);
        server.call::<()>("CONFIG RESETSTAT").await?;
    }
    let victim = stage.lose_a_replica().await?;
    stage.started(victim, 1).await?;
    eventually("the repair has begun", async || {
        stage.any_was_sent("cluster|meet").await
    })
    .await?;
    second.end(ReplicaEnd::Kill)?;
    let status = stage.api::<RedisCluster>().get("shop").await?.status;
    let id = stage.nodes.ids().await?[victim].to_string();
    let mut replicas = status.iter().flat_map(|status| &status.shard_statuses);
    let linked = replicas.any(|shard| {
        shard
            .replicas
            .iter()
            .any(|one| one.node_id == id && one.linked)
    });
    ensure!(!linked, "the leader was killed too late");
    stage.repaired(victim).await?;
    stage.nodes.unharmed(&slots, KEYS).await?;
    third.end(ReplicaEnd::Orderly)
}

/// Two of three primaries are on a Kubernetes node that is cut off: their replicas wait until the node is deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_that_may_live_is_not_overruled() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let now = Timestamp::now().to_string();
    let name = stage.create_kubernetes_node("Unknown", &now).await?;
    let replica = stage.replica("a", None);
    stage.create(json!({"recovery": {"after": "3s"}})).await?;
    stage.run_pods().await?;
    let slots = stage.fill().await?;
    let recorded = |status: &RedisClusterStatus| {
        let mut nodes = status.nodes.iter();
        status.nodes.len() == usize::from(NODES)
            && nodes.all(|node| node.pod_uid.is_some() && node.kubernetes_node.is_some())
    };
    stage
        .until("it is recorded where nodes run", recorded)
        .await?;
    let victims = [
        stage.nodes.primary_of(0).await?,
        stage.nodes.primary_of(1).await?,
    ];
    for victim in victims {
        stage.nodes.kill(victim).await?;
        let unready = json!({"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": &now}]});
        stage.reported(victim, unready).await?;
    }
    let fenced = |status: &RedisClusterStatus| reason(status, "Ready") == "PrimaryNotFenced";
    let waiting = stage.until("the doubt is named", fenced).await?;
    let words = message(&waiting, "Ready");
    ensure!(
        words.contains(&format!("its Kubernetes node {name} is not")),
        "{words}"
    );
    tokio::time::sleep(Duration::from_secs(5)).await;
    for (shard, victim) in victims.into_iter().enumerate() {
        let replica = (shard * 2 + (victim + 1) % 2, victim);
        let role = stage.nodes.server(replica.0).info("role").await?;
        ensure!(role == "slave", "{replica:?} is {role}");
    }
    let nodes: Api<Node> = Api::all(stage.server.client.clone());
    nodes.delete(&name, &DeleteParams::default()).await?;
    let serves_again = |status: &RedisClusterStatus| holds(&status.conditions, "Available");
    stage
        .until("the replicas have taken over", serves_again)
        .await?;
    stage.nodes.check(KEYS).await?;
    ensure!(stage.nodes.slot_map().await? == slots);
    replica.end(ReplicaEnd::Orderly)
}

/// The pods of two of three primaries are deleted by force, with all that they had. Their replicas do not wait for two minutes: the kubelet
/// has started a later pod, so it has ended the earlier ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_deleted_by_force_is_replaced_early() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let past = (Timestamp::now() - Duration::from_hours(1)).to_string();
    let name = stage.create_kubernetes_node("True", &past).await?;
    let replica = stage.replica("a", None);
    stage.create(json!({"recovery": {"after": "3s"}})).await?;
    stage.run_pods().await?;
    let slots = stage.fill().await?;
    let recorded = |status: &RedisClusterStatus| {
        let mut nodes = status.nodes.iter();
        status.nodes.len() == usize::from(NODES) && nodes.all(|node| node.grace_seconds == Some(1))
    };
    stage
        .until("it is recorded how long pods have to end", recorded)
        .await?;
    let pods = stage.api::<Pod>();
    let victims = [
        stage.nodes.primary_of(0).await?,
        stage.nodes.primary_of(1).await?,
    ];
    for (victim, place) in victims.into_iter().zip([None, Some(&name)]) {
        stage.nodes.kill(victim).await?;
        let by_force = DeleteParams::default().grace_period(0);
        pods.delete(&pod_name(victim), &by_force).await?;
        let created = Timestamp::now();
        // The first finds no place, and the second one ends as soon as it is started.
        let pod = json!({
            "metadata": {"name": pod_name(victim), "labels": {LABEL_CLUSTER: "shop"}},
            "spec": {"nodeName": place, "containers": [{"name": crds::CONTAINER, "image": "redis"}]},
        });
        let pod: Pod = serde_json::from_value(pod)?;
        pods.create(&PostParams::default(), &pod).await?;
        if place.is_some() {
            let run = json!({"exitCode": 1, "startedAt": Timestamp::now(), "finishedAt": Timestamp::now()});
            stage.reported(victim, json!({"containerStatuses": [
                {"name": crds::CONTAINER, "image": "redis", "imageID": "", "ready": false, "restartCount": 1,
                 "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": run}}]})).await?;
        }
        // What is created in the same second may be older than the end of the other one.
        within(LIMIT, "the next second but one", async || {
            Ok(Timestamp::now().as_second() > created.as_second() + 1)
        })
        .await?;
    }
    let fenced = |status: &RedisClusterStatus| reason(status, "Ready") == "PrimaryNotFenced";
    stage.until("the doubt is named", fenced).await?;
    let began = Timestamp::now();
    let serves_again = |status: &RedisClusterStatus| holds(&status.conditions, "Available");
    stage
        .until("the replicas have taken over", serves_again)
        .await?;
    let took = Timestamp::now().duration_since(began).unsigned_abs();
    ensure!(took < Duration::from_mins(1), "took {took:?}");
    for (shard, victim) in victims.into_iter().enumerate() {
        ensure!(stage.nodes.primary_of(shard).await? != victim);
    }
    stage.nodes.check(KEYS).await?;
    ensure!(stage.nodes.slot_map().await? == slots);
    replica.end(ReplicaEnd::Orderly)
}

/// Two of three primaries are on one Kubernetes node. The other place of one is cordoned: it is handed over to once that has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primaries_are_not_handed_over_to_cordoned_machines() -> Result<()> {
    let stage = ClusterStage::new().await?;
    let nodes: Api<Node> = Api::all(stage.server.client.clone());
    let [one, two, three] =
        ["one", "two", "three"].map(|name| format!("{name}-of-{}", stage.namespace));
    for (name, cordoned) in [(&one, false), (&two, true), (&three, false)] {
        let node = json!({"metadata": {"name": name}, "spec": {"unschedulable": cordoned}});
        let node: Node = serde_json::from_value(node)?;
        nodes.create(&PostParams::default(), &node).await?;
    }
    let replica = stage.replica("a", None);
    stage.create(json!({})).await?;
    let places = [&one, &one, &one, &two, &three, &three];
    stage.run_pods_on(|index| places[index].clone()).await?;
    let slots = stage.fill().await?;
    // A new cluster has a primary on each.
    let moved = 3;
    ensure!(stage.nodes.primary_of(1).await? == moved);
    let answer: String = stage.nodes.server(2).call("CLUSTER FAILOVER").await?;
    ensure!(answer == "OK", "{answer}");
    let is_primary = async |index: usize| anyhow::Ok(stage.nodes.primary_of(1).await? == index);
    within(LIMIT, "the failover by hand", async || is_primary(2).await).await?;
    let returned = within(Duration::from_secs(15), "a hand-over", async || {
        is_primary(moved).await
    });
    ensure!(returned.await.is_err(), "handed over to a cordoned machine");
    let uncordon = Patch::Merge(json!({"spec": {"unschedulable": null}}));
    let parameters = PatchParams::default();
    nodes.patch(&two, &parameters, &uncordon).await?;
    within(LIMIT, "the hand-over", async || is_primary(moved).await).await?;
    stage.until("healthy", serves).await?;
    ensure!(stage.nodes.slot_map().await? == slots);
    stage.nodes.check(KEYS).await?;
    let events = stage.api::<Event>();
    within(LIMIT, "the Event", async || {
        let events = events.list(&ListParams::default()).await?.items;
        let reasons = events.iter().filter_map(|one| one.reason.as_deref());
        Ok(reasons.filter(|one| *one == "PrimaryHandedOver").count() == 1)
    })
    .await?;
    replica.end(ReplicaEnd::Orderly)
}

/// A server was killed from outside several times: its pod is replaced instead of waiting for minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_kept_by_its_back_off_is_replaced() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let replica = stage.replica("a", None);
    stage.create(json!({})).await?;
    stage.run_pods().await?;
    stage.fill().await?;
    let victim = stage.nodes.replica_of(0).await?;
    stage.nodes.kill(victim).await?;
    let started = Timestamp::now();
    let ended = started + Duration::from_secs(20);
    let back_off = |exit_reason: &str| {
        json!({
            "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": started.to_string()}],
            "containerStatuses": [{"name": crds::CONTAINER, "image": "redis", "imageID": "", "ready": false, "restartCount": 5,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 2m40s"}},
                "lastState": {"terminated": {"exitCode": 137, "reason": exit_reason, "startedAt": started.to_string(),
                                             "finishedAt": ended.to_string()}}}],
        })
    };
    // One that is ended for its memory is not hurried: it is a minute old by the end of this.
    stage.reported(victim, back_off("OOMKilled")).await?;
    let pods = stage.api::<Pod>();
    let deleted = async || {
        let pod = pods.get(&pod_name(victim)).await?;
        anyhow::Ok(pod.metadata.deletion_timestamp.is_some())
    };
    tokio::time::sleep(Duration::from_secs(65)).await;
    ensure!(!deleted().await?, "a server without memory was hurried");
    stage.reported(victim, back_off("Error")).await?;
    within(LIMIT, "the pod is replaced", deleted).await?;
    let others = pods.list(&ListParams::default()).await?.items;
    let gone = others
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_some());
    ensure!(gone.count() == 1);
    let events = stage.api::<Event>();
    within(LIMIT, "the Event", async || {
        let events = events.list(&ListParams::default()).await?.items;
        Ok(events
            .iter()
            .any(|one| one.reason.as_deref() == Some("PodReplaced")))
    })
    .await?;
    replica.end(ReplicaEnd::Orderly)
}

/// Every pod has a Kubernetes node of its own, and all primaries are in one zone: all but one of them are handed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_zone_keeps_the_majority_of_the_primaries() -> Result<()> {
    let stage = ClusterStage::new().await?;
    let machines: Api<Node> = Api::all(stage.server.client.clone());
    let name = |index: usize| format!("{}-{index}", stage.kubernetes_node());
    for index in 0..stage.nodes.len() {
        let zone = if index % 2 == 0 {
            "crowded".to_owned()
        } else {
            format!("zone-{index}")
        };
        let machine =
            json!({"metadata": {"name": name(index), "labels": {crds::LABEL_ZONE: zone}}});
        let machine: Node = serde_json::from_value(machine)?;
        machines.create(&PostParams::default(), &machine).await?;
    }
    let replica = stage.replica("a", None);
    stage.create(json!({})).await?;
    stage.run_pods_on(name).await?;
    let slots = stage.fill().await?;
    let events = stage.api::<Event>();
    within(LIMIT, "a primary is handed over", async || {
        let events = events.list(&ListParams::default()).await?.items;
        let why = "3 of 3 primaries are in zone crowded: ";
        Ok(events.iter().any(|event| {
            event.reason.as_deref() == Some("PrimaryHandedOver")
                && event.note.as_ref().is_some_and(|note| note.contains(why))
        }))
    })
    .await?;
    let one_is_left = |status: &RedisClusterStatus| {
        let primaries = status.shard_statuses.iter();
        let primaries = primaries.filter_map(|shard| shard.primary.as_ref());
        let crowded = primaries
            .filter(|primary| primary.pod.ends_with("-0"))
            .count();
        serves(status) && holds(&status.conditions, "Ready") && crowded == 1
    };
    stage
        .until("one primary is left there", one_is_left)
        .await?;
    stage.nodes.unharmed(&slots, KEYS).await?;
    for index in 0..stage.nodes.len() {
        machines
            .delete(&name(index), &DeleteParams::default())
            .await?;
    }
    replica.end(ReplicaEnd::Orderly)
}

/// The API server checks the pods of a StatefulSet as it checks pods.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_part_of_a_pod_reaches_the_stateful_sets() -> Result<()> {
    let stage = ClusterStage::new().await?;
    let replica = stage.replica("a", None);
    let wanted = pod_template::complete();
    let placement = json!({"shardAntiAffinity": "Required", "zones": {"spread": true}});
    let spec = json!({"podTemplate": wanted, "placement": placement});
    stage.create(spec).await?;
    let sets = stage.api::<StatefulSet>();
    let mut templates = Vec::new();
    eventually("the StatefulSets are made", async || {
        let sets = sets.list(&ListParams::default()).await?.items;
        templates = sets.into_iter().map(|set| set.spec.template).collect();
        Ok(templates.len() == 3)
    })
    .await?;
    for template in templates {
        let template = serde_json::to_value(template)?;
        let pod = &template["spec"];
        ensure!(
            template["metadata"]["labels"]["team"] == "web",
            "{template:#}"
        );
        for field in [
            "nodeSelector",
            "tolerations",
            "priorityClassName",
            "serviceAccountName",
            "imagePullSecrets",
        ] {
            ensure!(pod[field] == wanted[field], "{field}: {pod:#}");
        }
        let anti = &pod["affinity"]["podAntiAffinity"];
        let (required, preferred) = (
            &anti["requiredDuringSchedulingIgnoredDuringExecution"],
            &anti["preferredDuringSchedulingIgnoredDuringExecution"],
        );
        let lengths = [required, preferred].map(|terms| terms.as_array().map_or(0, Vec::len));
        ensure!(lengths == [1, 2], "{anti:#}");
        ensure!(
            pod["affinity"]["nodeAffinity"] == wanted["affinity"]["nodeAffinity"],
            "{pod:#}"
        );
        let constraints = pod["topologySpreadConstraints"].as_array();
        let keys: Vec<&Value> = constraints
            .into_iter()
            .flatten()
            .map(|one| &one["topologyKey"])
            .collect();
        ensure!(keys == [crds::LABEL_ZONE, "rack"], "{keys:?}");
        let names = |list: &Value| -> Vec<Value> {
            list.as_array()
                .into_iter()
                .flatten()
                .map(|one| one["name"].clone())
                .collect()
        };
        let ours = ["config", "tmp", "memory"].map(Value::from);
        let all: Vec<Value> = ours
            .into_iter()
            .chain(names(&wanted["extraVolumes"]))
            .collect();
        ensure!(names(&pod["volumes"]) == all, "{pod:#}");
        ensure!(
            pod["containers"][0]["volumeMounts"]
                .as_array()
                .map(Vec::len)
                == Some(all.len())
        );
    }
    replica.end(ReplicaEnd::Orderly)
}

/// The catalog's entries for this test: Redis 7.0 is what runs; 8.0 is reached from 7.2 only.
async fn catalog(stage: &ClusterStage) -> Result<impl Fn(&str) -> String> {
    let prefix = stage.namespace.clone();
    let named = move |name: &str| format!("{prefix}-{name}");
    let entries = [
        (
            "old",
            json!({"version": "6.2.14", "deprecated": "6.2 gets no fixes"}),
        ),
        (
            "now",
            json!({"version": "7.0.15", "endOfLife": "2024-07-29"}),
        ),
        (
            "next",
            json!({"version": "7.2.4", "upgradesFrom": ["7.0.x"]}),
        ),
        (
            "far",
            json!({"version": "8.0.2", "upgradesFrom": ["7.2.x"]}),
        ),
    ];
    let api: Api<RedisVersion> = Api::all(stage.server.client.clone());
    for (name, mut spec) in entries {
        spec["distribution"] = json!("Redis");
        spec["image"] = json!(format!("redis:{name}"));
        let entry = json!({"metadata": {"name": named(name)}, "spec": spec});
        let entry: RedisVersion = serde_json::from_value(entry)?;
        api.create(&PostParams::default(), &entry).await?;
    }
    Ok(named)
}

/// The image in the pod template of every StatefulSet.
async fn images(stage: &ClusterStage) -> Result<BTreeSet<String>> {
    let sets = stage.api::<StatefulSet>();
    let sets = sets.list(&ListParams::default()).await?.items;
    let templates = sets.into_iter().filter_map(|set| set.spec.template.spec);
    let containers = templates.flat_map(|spec| spec.containers);
    Ok(containers.filter_map(|one| one.image).collect())
}

/// A version that the servers cannot change to changes no pod template; the spec that is set back is Ready again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_without_a_path_changes_no_template() -> Result<()> {
    let stage = ClusterStage::new().await?;
    let entry = catalog(&stage).await?;
    let replica = stage.replica("a", None);
    stage
        .create(json!({"image": null, "version": entry("now")}))
        .await?;
    stage.run_pods().await?;
    let slots = stage.fill().await?;
    let warned = |status: &RedisClusterStatus| {
        reason(status, "VersionSupported") == "VersionEndOfLife" && status.phase.is_some()
    };
    let status = stage.until("the end of life is reported", warned).await?;
    let kept = status.version.clone();
    ensure!(kept.image.as_deref() == Some("redis:now"), "{kept:?}");
    for (name, refusal, cure) in [
        (
            "old",
            "DowngradeRefused",
            "Redis 6.2.14 cannot read the data of Redis 7.0.15",
        ),
        ("far", "UpgradePathMissing", "reached from 7.2.x"),
    ] {
        stage.change(json!({"version": entry(name)})).await?;
        let refused = |status: &RedisClusterStatus| {
            reason(status, "UpToDate") == refusal
                && reason(status, "Ready") == refusal
                && holds(&status.conditions, "Stalled")
        };
        let status = stage.until("the version is refused", refused).await?;
        let words = message(&status, "Ready");
        ensure!(words.contains(cure), "{words}");
        ensure!(
            words.ends_with(&format!("back to {}", entry("now"))),
            "{words}"
        );
        ensure!(status.version == kept, "{:?}", status.version);
        ensure!(serves(&status) && warned(&status));
        // A set that is lost meanwhile is made again with the image that runs.
        let sets = stage.api::<StatefulSet>();
        sets.delete("shop-1", &DeleteParams::default()).await?;
        within(LIMIT, "the StatefulSet is made again", async || {
            let set = sets.get_opt("shop-1").await?;
            Ok(set.is_some_and(|set| set.metadata.deletion_timestamp.is_none()))
        })
        .await?;
        ensure!(images(&stage).await? == ["redis:now".to_owned()].into());
    }
    stage.change(json!({"version": entry("now")})).await?;
    // Pods of this stage have no hash of their template, so `UpToDate` calls them outdated.
    let ready = |status: &RedisClusterStatus| {
        holds(&status.conditions, "Ready") && reason(status, "UpToDate") == "PodsOutdated"
    };
    stage
        .until("the spec that was set back is kept to", ready)
        .await?;

    // One step of the path is allowed.
    stage.change(json!({"version": entry("next")})).await?;
    stage.tried(0, "").await?;
    let taken = |status: &RedisClusterStatus| {
        status.version.image.as_deref() == Some("redis:next")
            && reason(status, "VersionSupported") == "Supported"
    };
    stage.until("the next version is taken", taken).await?;
    ensure!(images(&stage).await? == ["redis:next".to_owned()].into());
    let events = stage.api::<Event>().list(&ListParams::default()).await?;
    let events = events.items.into_iter().filter_map(|event| event.reason);
    let events: Vec<String> = events.collect();
    for reason in ["VersionEndOfLife", "DowngradeRefused", "UpgradePathMissing"] {
        ensure!(events.iter().any(|one| one == reason), "{events:?}");
    }
    stage.nodes.unharmed(&slots, KEYS).await?;
    replica.end(ReplicaEnd::Orderly)
}

/// All pods go, and come back with the same ids, the same primaries, and every value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_hibernated_comes_back_as_it_was() -> Result<()> {
    let mut stage = ClusterStage::with(PodStorage::Volume).await?;
    let replica = stage.replica("a", None);
    let storage = json!({"size": "1Gi"});
    stage.create(json!({ "storage": storage })).await?;
    stage.run_pods().await?;
    let slots = stage.fill().await?;
    let ids = stage.nodes.ids().await?;
    let recorded = stage.until("ready", serves).await?.nodes;
    let mut primaries = Vec::new();
    for shard in 0..PodCluster::SHARDS {
        primaries.push(stage.nodes.primary_of(shard).await?);
    }

    stage.change(json!({"hibernate": true})).await?;
    let sets = stage.api::<StatefulSet>();
    let pods_wanted = async |pods: i32| {
        within(LIMIT, "the size of the StatefulSets", async || {
            let sets = sets.list(&ListParams::default()).await?.items;
            let mut sizes = sets.iter().map(|set| set.spec.replicas);
            Ok(sets.len() == PodCluster::SHARDS && sizes.all(|size| size == Some(pods)))
        })
        .await
    };
    pods_wanted(0).await?;
    // No write is acknowledged any more that a replica may not get.
    let write = async |primary: usize| {
        let written = stage.nodes.server(primary).call::<()>("SET late 1");
        tokio::time::timeout(Duration::from_secs(1), written).await
    };
    for primary in &primaries {
        let written = write(*primary).await;
        ensure!(
            written.is_err() || written.is_ok_and(|answer| answer.is_err()),
            "a primary accepts writes while its pods go"
        );
    }
    stage.nodes.kill_all().await?;
    let pods = stage.api::<Pod>();
    for index in 0..stage.nodes.len() {
        let parameters = DeleteParams::default().grace_period(0);
        pods.delete(&pod_name(index), &parameters).await?;
    }
    let phase = |status: &RedisClusterStatus| status.phase.as_deref() == Some("Hibernated");
    let asleep = stage.until("it hibernates", phase).await?;
    ensure!(reason(&asleep, "Ready") == "Hibernated");
    let recorded_ids = |nodes: &[crds::KnownNode]| {
        let ids = nodes.iter().map(|node| node.node_id.clone());
        ids.collect::<Vec<_>>()
    };
    ensure!(recorded_ids(&asleep.nodes) == recorded_ids(&recorded));

    stage.change(json!({"hibernate": false})).await?;
    pods_wanted(2).await?;
    stage.nodes.restart_all().await?;
    stage.run_pods().await?;
    let ready = |status: &RedisClusterStatus| holds(&status.conditions, "Ready");
    stage.until("it is back", ready).await?;
    ensure!(stage.nodes.ids().await? == ids, "other ids");
    for (shard, primary) in primaries.into_iter().enumerate() {
        ensure!(
            stage.nodes.primary_of(shard).await? == primary,
            "shard {shard} has another primary"
        );
    }
    stage.nodes.unharmed(&slots, KEYS).await?;
    replica.end(ReplicaEnd::Orderly)
}

impl ClusterStage {
    /// Waits for the pod that tries a configuration, and says as a kubelet would how its container has ended.
    async fn tried(&self, exit_code: i32, message: &str) -> Result<String> {
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
    async fn named(&self) -> Result<BTreeSet<String>> {
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
    async fn setting(&self, name: &str) -> Result<BTreeSet<String>> {
        let mut values = BTreeSet::new();
        for index in 0..self.nodes.len() {
            let server = self.nodes.server(index);
            let answer: Vec<String> = server.call(&format!("CONFIG GET {name}")).await?;
            values.extend(answer.into_iter().nth(1));
        }
        Ok(values)
    }

    async fn uids(&self) -> Result<BTreeSet<Option<String>>> {
        let selector = ListParams::default().labels(&format!("{LABEL_CLUSTER}=shop"));
        let pods = self.api::<Pod>().list(&selector).await?.items;
        Ok(pods.into_iter().map(|pod| pod.metadata.uid).collect())
    }
}

/// A server that has no pod of the cluster starts with a configuration first. What it refuses reaches no StatefulSet and no server; what it
/// takes is set on the running servers, and set again; pods are replaced for nothing but what servers take only at their start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_is_tried_before_the_pods_get_it() -> Result<()> {
    let stage = ClusterStage::new().await?;
    let replica = stage.replica("a", None);
    stage.create(json!({})).await?;
    stage.run_pods().await?;
    let slots = stage.fill().await?;
    let is = |kind: &'static str, wanted: &'static str| {
        move |status: &RedisClusterStatus| reason(status, kind) == wanted
    };
    let applied = is("ConfigApplied", "Applied");
    stage
        .until("the first one needs no trial", &applied)
        .await?;
    let (before, pods) = (stage.named().await?, stage.uids().await?);
    ensure!(before.len() == 1, "{before:?}");

    stage
        .change(json!({"config": {"maxclients": "many"}}))
        .await?;
    let trying = stage
        .until("it is tried", is("ConfigApplied", "Trying"))
        .await?;
    ensure!(trying.phase.as_deref() == Some("Updating"), "{trying:?}");
    ensure!(stage.named().await? == before);
    let words = "*** FATAL CONFIG FILE ERROR (Redis 7.0.15) ***\nReading the configuration file, at line 3\n>>> 'maxclients many'\n\
                 argument couldn't be parsed into an integer\n";
    let first = stage.tried(1, words).await?;
    let refused = is("ConfigApplied", "SettingRefused");
    let status = stage.until("it is named", refused).await?;
    let said = message(&status, "ConfigApplied");
    ensure!(said.contains("maxclients many: argument"), "{said}");
    ensure!(holds(&status.conditions, "Available") && !holds(&status.conditions, "Ready"));
    ensure!(stage.named().await? == before && stage.uids().await? == pods);

    stage
        .change(json!({"config": {"maxclients": "2000"}}))
        .await?;
    let second = stage.tried(0, "").await?;
    ensure!(first != second);
    stage.until("it is applied", &applied).await?;
    let named = stage.named().await?;
    ensure!(named.len() == 1 && named != before, "{named:?}");
    let has = async |value: &str| {
        anyhow::Ok(stage.setting("maxclients").await? == BTreeSet::from([value.to_owned()]))
    };
    ensure!(has("2000").await?);
    let changed = "CONFIG SET maxclients 3000";
    stage.nodes.server(1).call::<()>(changed).await?;
    within(LIMIT, "drift is undone", async || has("2000").await).await?;

    // What the StatefulSets name needs no other trial.
    stage
        .change(json!({"config": {"maxclients": "many"}}))
        .await?;
    stage.tried(1, words).await?;
    stage.until("it is refused again", refused).await?;
    stage
        .change(json!({"config": {"maxclients": "2000"}}))
        .await?;
    stage.until("it is applied again", &applied).await?;

    stage
        .change(json!({"config": {"maxclients": "2000", "databases": "20"}}))
        .await?;
    stage.tried(0, "").await?;
    let status = stage
        .until("a restart is needed", is("ConfigApplied", "RestartNeeded"))
        .await?;
    let said = message(&status, "ConfigApplied");
    ensure!(
        said.contains("6 pods") && said.contains("databases"),
        "{said}"
    );
    stage
        .until("the pods are outdated", is("UpToDate", "PodsOutdated"))
        .await?;
    ensure!(stage.uids().await? == pods, "pods were replaced");
    let events = stage.api::<Event>().list(&ListParams::default()).await?;
    let reasons: BTreeSet<String> = events
        .items
        .into_iter()
        .filter_map(|event| event.reason)
        .collect();
    for reason in ["SettingChanged", "SettingDrifted", "SettingRefused"] {
        ensure!(reasons.contains(reason), "{reasons:?}");
    }
    stage.nodes.unharmed(&slots, KEYS).await?;
    replica.end(ReplicaEnd::Orderly)
}
