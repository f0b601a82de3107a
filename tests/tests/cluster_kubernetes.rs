//! The whole cluster-controller between a real API server and real servers. There is no kubelet: the test says what runs where.

mod cluster_processes;

use anyhow::{Context, Result, ensure};
use cluster_processes::{Cluster, NODE_TIMEOUT, Persistence};
use common::{
    cluster::topology::NodeAddress,
    kubernetes::conditions::{find, holds},
    runtime::Runtime,
};
use crds::{CLIENT_PORT, LABEL_CLUSTER, RedisCluster, RedisClusterStatus};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Pod},
        events::v1::Event,
        policy::v1::PodDisruptionBudget,
    },
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use std::{net::Ipv4Addr, process, time::Duration};
use tests::kubernetes::{ApiServer, api_server, eventually};
use tokio::task::JoinHandle;

const LEASE: Duration = Duration::from_secs(3);
const NODES: u8 = 6;

/// Pods have the port of the product; the second and third number keep runs apart.
fn addresses() -> Vec<NodeAddress> {
    let [.., high, low] = process::id().to_be_bytes();
    let ip = |last| Ipv4Addr::new(127, high | 0x80, low, last);
    (1..=NODES)
        .map(|last| NodeAddress::new(ip(last).into(), CLIENT_PORT))
        .collect()
}

fn pod_name(index: usize) -> String {
    format!("shop-{}-{}", index / 2, index % 2)
}

struct Stage {
    clusters: Api<RedisCluster>,
    pods: Api<Pod>,
    runtime: Runtime,
    controller: JoinHandle<()>,
    server: ApiServer,
    namespace: String,
}

impl Stage {
    async fn set() -> Result<Self> {
        let server = api_server().await?;
        let namespace = server.namespace("cluster").await?;
        let runtime = server.runtime("cluster-controller", "a", &namespace, LEASE)?;
        let started = cluster_controller::run::start(runtime.clone());
        Ok(Self {
            clusters: Api::namespaced(server.client.clone(), &namespace),
            pods: Api::namespaced(server.client.clone(), &namespace),
            controller: tokio::spawn(async move { started.await.unwrap() }),
            runtime,
            server,
            namespace,
        })
    }

    async fn pod(&self, index: usize, address: NodeAddress) -> Result<()> {
        let pod = json!({
            "metadata": {"name": pod_name(index), "labels": {LABEL_CLUSTER: "shop"}},
            "spec": {"nodeName": "node", "containers": [{"name": crds::CONTAINER, "image": "redis"}]},
        });
        let pod: Pod = serde_json::from_value(pod)?;
        self.pods.create(&PostParams::default(), &pod).await?;
        self.started(index, address, 0).await
    }

    /// Says, as a kubelet would, that the pod's server has just been started.
    async fn started(&self, index: usize, address: NodeAddress, restarts: u32) -> Result<()> {
        let (ip, now) = (address.ip.to_string(), Timestamp::now().to_string());
        let status = json!({"status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
            "containerStatuses": [{"name": crds::CONTAINER, "image": "redis", "imageID": "", "ready": true,
                                   "restartCount": restarts, "state": {"running": {"startedAt": now}}}],
        }});
        let (name, parameters) = (pod_name(index), PatchParams::default());
        let patch = Patch::Merge(status);
        self.pods.patch_status(&name, &parameters, &patch).await?;
        Ok(())
    }

    async fn change(&self, spec: Value) -> Result<()> {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let parameters = PatchParams::default();
        self.clusters.patch("shop", &parameters, &patch).await?;
        Ok(())
    }

    /// Waits for a status that answers the present spec.
    async fn until(
        &self,
        what: &str,
        is_so: impl Fn(&RedisClusterStatus) -> bool,
    ) -> Result<RedisClusterStatus> {
        let mut last = None;
        let found = eventually(what, async || {
            let object = self.clusters.get("shop").await?;
            let generation = object.metadata.generation;
            last.clone_from(&object.status);
            Ok(object
                .status
                .filter(|status| status.observed_generation == generation && is_so(status)))
        });
        let found = found.await;
        found.with_context(|| format!("the status is {last:#?}"))
    }

    async fn end(self) -> Result<()> {
        self.runtime.shutdown.cancel();
        Ok(tokio::time::timeout(Duration::from_secs(5), self.controller).await??)
    }
}

fn reason(status: &RedisClusterStatus, kind: &str) -> String {
    let condition = find(&status.conditions, kind);
    condition.map_or_else(String::new, |condition| condition.reason.clone())
}

fn message(status: &RedisClusterStatus, kind: &str) -> String {
    let condition = find(&status.conditions, kind);
    condition.map_or_else(String::new, |condition| condition.message.clone())
}

/// What the API server refuses, and what nobody can understand, is told; the nodes are looked after all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_mistake_in_the_spec_keeps_the_nodes_from_being_healed() -> Result<()> {
    let stage = Stage::set().await?;
    let too_much = json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}});
    let timeout = NODE_TIMEOUT.as_millis().to_string();
    let object = json!({
        "apiVersion": "redis.danieldorado.github.io/v1alpha1", "kind": "RedisCluster", "metadata": {"name": "shop"},
        "spec": {"image": "redis", "shards": 3, "replicasPerShard": 1, "resources": too_much,
                 "config": {"cluster-node-timeout": timeout}},
    });
    let object: RedisCluster = serde_json::from_value(object)?;
    stage
        .clusters
        .create(&PostParams::default(), &object)
        .await?;
    let refused = stage
        .until("the refusal is told", |status| {
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
    let (client, namespace) = (&stage.server.client, &stage.namespace);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), namespace);
    maps.get("shop-config").await?;
    budgets.get("shop").await?;
    let words = message(&refused, "Formed");
    ensure!(words.contains("there is no such pod"), "{words}");

    let places = addresses();
    let mut nodes = Cluster::start_at(places.clone(), 3, Persistence::None).await?;
    for (index, address) in places.iter().enumerate() {
        stage.pod(index, *address).await?;
    }
    let serving = |status: &RedisClusterStatus| {
        holds(&status.conditions, "Available")
            && holds(&status.conditions, "ReplicationHealthy")
            && status.slots.ok == 16384
    };
    let formed = stage.until("formed nevertheless", serving).await?;
    ensure!(holds(&formed.conditions, "Formed"));
    ensure!(!holds(&formed.conditions, "Ready"));

    stage.change(json!({"resources": null})).await?;
    let ready = |status: &RedisClusterStatus| holds(&status.conditions, "Ready");
    stage.until("ready once it is corrected", ready).await?;
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    ensure!(sets.list(&ListParams::default()).await?.items.len() == 3);

    // A version that does not exist; and then a replica is lost.
    stage
        .change(json!({"image": null, "version": "nowhere"}))
        .await?;
    let wrong = |status: &RedisClusterStatus| reason(status, "Ready") == "VersionNotFound";
    stage.until("the mistake is told", wrong).await?;
    let before = nodes.ids().await?;
    let victim = nodes.replica_of(1).await?;
    nodes.kill(victim);
    nodes.wipe(victim)?;
    nodes.restart(victim).await?;
    stage.started(victim, places[victim], 1).await?;
    let after = nodes.ids().await?;
    let healed = stage
        .until("healed nevertheless", |status| {
            let mut replicas = status.shard_statuses.iter().flat_map(|one| &one.replicas);
            serving(status)
                && replicas.any(|one| one.linked && one.node_id == after[victim].to_string())
        })
        .await?;
    ensure!(after[victim] != before[victim]);
    ensure!(wrong(&healed));
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let told = events.list(&ListParams::default()).await?.items;
    let told: Vec<String> = told.into_iter().filter_map(|event| event.reason).collect();
    for reason in ["RefusedByServer", "VersionNotFound"] {
        ensure!(told.iter().any(|one| one == reason), "{told:?}");
    }
    stage.end().await
}
