//! The whole cluster-controller between a real API server and real servers. There is no kubelet: the test says what runs where.

use anyhow::{Context, Result, ensure};
use common::kubernetes::conditions::{find, holds};
use crds::{CLIENT_PORT, LABEL_CLUSTER, RedisCluster, RedisClusterStatus};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Pod},
        events::v1::Event,
        policy::v1::PodDisruptionBudget,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Resource,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddr},
    process,
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};
use tests::{
    api_proxy::ApiProxy,
    kubernetes::{ApiServer, api_server},
    redis::{NODE_TIMEOUT, PodCluster, PodStorage, ShardSlots, executed},
    replica::{Replica, ReplicaEnd, ReplicaSettings},
    wait::{eventually, within},
};

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
}

impl ClusterStage {
    async fn new() -> Result<Self> {
        let server = api_server().await?;
        let namespace = server.namespace("cluster").await?;
        Ok(Self {
            server,
            namespace,
            nodes: PodCluster::start_at(addresses(), PodStorage::Memory).await?,
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
            "spec": {"image": "redis", "shards": 3, "replicasPerShard": 1, "config": {"cluster-node-timeout": timeout}},
        });
        if let (Some(spec), Value::Object(more)) = (object["spec"].as_object_mut(), more) {
            spec.extend(more);
        }
        let object: RedisCluster = serde_json::from_value(object)?;
        self.api().create(&PostParams::default(), &object).await?;
        Ok(())
    }

    /// Creates every pod, with its server running.
    async fn run_pods(&self) -> Result<()> {
        for index in 0..self.nodes.len() {
            let pod = json!({
                "metadata": {"name": pod_name(index), "labels": {LABEL_CLUSTER: "shop"}},
                "spec": {"nodeName": "node", "containers": [{"name": crds::CONTAINER, "image": "redis"}]},
            });
            let pod: Pod = serde_json::from_value(pod)?;
            self.api().create(&PostParams::default(), &pod).await?;
            self.started(index, 0).await?;
        }
        Ok(())
    }

    /// Says, as a kubelet would, that the pod's server has just been started.
    async fn started(&self, index: usize, restarts: u32) -> Result<()> {
        let ip = self.nodes.server(index).address().ip().to_string();
        let now = Timestamp::now().to_string();
        let status = json!({"status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
            "containerStatuses": [{"name": crds::CONTAINER, "image": "redis", "imageID": "", "ready": true,
                                   "restartCount": restarts, "state": {"running": {"startedAt": now}}}],
        }});
        let (name, parameters) = (pod_name(index), PatchParams::default());
        let patch = Patch::Merge(status);
        self.api::<Pod>()
            .patch_status(&name, &parameters, &patch)
            .await?;
        Ok(())
    }

    async fn change(&self, spec: Value) -> Result<()> {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let parameters = PatchParams::default();
        self.api::<RedisCluster>()
            .patch("shop", &parameters, &patch)
            .await?;
        Ok(())
    }

    /// Waits for a status that answers the present spec.
    async fn until(
        &self,
        what: &str,
        is_so: impl Fn(&RedisClusterStatus) -> bool,
    ) -> Result<RedisClusterStatus> {
        let mut last = None;
        let found = within(LIMIT, what, async || {
            let object = self.api::<RedisCluster>().get("shop").await?;
            let generation = object.metadata.generation;
            last.clone_from(&object.status);
            Ok(object
                .status
                .filter(|status| status.observed_generation == generation && is_so(status)))
        });
        let found = found.await;
        found.with_context(|| format!("the status is {last:#?}"))
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
    stage.api::<ConfigMap>().get("shop-config").await?;
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
