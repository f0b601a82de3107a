//! A RedisCluster that is created again over the volumes of more shards than its spec asks for, between a real API server and real servers.
//! There is no kubelet and no StatefulSet controller: the test runs the pods that StatefulSets ask for.

use anyhow::{Context, Result, ensure};
use common::kubernetes::conditions::holds;
use crds::{CLIENT_PORT, LABEL_CLUSTER, RedisCluster, RedisClusterStatus};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service},
        policy::v1::PodDisruptionBudget,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fmt::Debug,
    net::{Ipv4Addr, SocketAddr},
    process,
    time::Duration,
};
use tests::{
    client::ClusterClient,
    dataset,
    kubernetes::{ApiServer, api_server, no_users},
    redis::{MountedUsers, NODE_TIMEOUT, PodCluster, PodStorage},
    replica::{Replica, ReplicaSettings},
    verify,
    wait::within,
};
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_mins(2);
const LEASE: Duration = Duration::from_secs(3);
/// Shards of the volumes, and of the spec later.
const BEFORE: usize = 5;
const AFTER: usize = 3;
const KEYS: u64 = 3000;

struct Stage {
    server: ApiServer,
    namespace: String,
    nodes: PodCluster,
    collector: JoinHandle<()>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.collector.abort();
    }
}

/// Deletes what a cluster owned that is gone, as a garbage collector does: a reconcile that was under way may have made some of it since.
async fn collect_garbage(client: Client, namespace: String) {
    let clusters: Api<RedisCluster> = Api::namespaced(client.clone(), &namespace);
    loop {
        // A list that fails is tried again.
        if let Ok(found) = clusters.list(&ListParams::default()).await {
            let living = found.items.iter().filter_map(ResourceExt::uid).collect();
            delete_orphans::<StatefulSet>(&client, &namespace, &living).await;
            delete_orphans::<Service>(&client, &namespace, &living).await;
            delete_orphans::<ConfigMap>(&client, &namespace, &living).await;
            delete_orphans::<PodDisruptionBudget>(&client, &namespace, &living).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn delete_orphans<K>(client: &Client, namespace: &str, living: &BTreeSet<String>)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let listed = api.list(&ListParams::default()).await;
    for object in listed.into_iter().flatten() {
        let owners = object.owner_references();
        let is_orphan = !owners.is_empty() && owners.iter().all(|one| !living.contains(&one.uid));
        if is_orphan {
            let at_once = DeleteParams::default().grace_period(0);
            // One that fails is tried again.
            let _ = api.delete(&object.name_any(), &at_once).await;
        }
    }
}

/// Pods have the port of the product; the second and third number keep runs apart.
fn addresses() -> Vec<SocketAddr> {
    let [.., high, low] = process::id().to_be_bytes();
    let numbers = (1..).take(BEFORE);
    let addresses = numbers.map(|last| (Ipv4Addr::new(127, high | 0x80, low, last), CLIENT_PORT));
    addresses.map(SocketAddr::from).collect()
}

fn pod_name(shard: usize) -> String {
    format!("shop-{shard}-0")
}

impl Stage {
    async fn new() -> Result<Self> {
        let server = api_server().await?;
        let namespace = server.namespace("kept").await?;
        let nodes =
            PodCluster::start_at(addresses(), PodStorage::Volume, MountedUsers::None).await?;
        let collector = collect_garbage(server.client.clone(), namespace.clone());
        Ok(Self {
            collector: tokio::spawn(collector),
            server,
            namespace,
            nodes,
        })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.server.client.clone(), &self.namespace)
    }

    fn controller(&self) -> Replica {
        let settings = ReplicaSettings {
            program: "cluster-controller",
            identity: "a".to_owned(),
            namespace: self.namespace.clone(),
            lease: LEASE,
            proxy: None,
        };
        Replica::start(settings, cluster_controller::run::start)
    }

    async fn client(&self) -> Result<ClusterClient> {
        ClusterClient::connect(&self.nodes.server(0).address().to_string()).await
    }

    async fn create_cluster(&self, shards: usize) -> Result<()> {
        let timeout = NODE_TIMEOUT.as_millis().to_string();
        let object = json!({
            "apiVersion": "redis.danieldorado.github.io/v1alpha1", "kind": "RedisCluster", "metadata": {"name": "shop"},
            "spec": {"image": "redis", "shards": shards, "replicasPerShard": 0, "config": {"cluster-node-timeout": timeout},
                     "storage": {"size": "1Gi", "whenDeleted": "Retain"}, "update": {"strategy": "OnDelete"}, "auth": no_users()},
        });
        let object: RedisCluster = serde_json::from_value(object)?;
        self.api().create(&PostParams::default(), &object).await?;
        Ok(())
    }

    /// Creates the pod of a shard, whose server runs, as a StatefulSet controller and a kubelet would.
    async fn run_pod(&self, shard: usize) -> Result<()> {
        let pod = json!({
            "metadata": {"name": pod_name(shard), "labels": {LABEL_CLUSTER: "shop"}},
            "spec": {"nodeName": format!("node-of-{}", self.namespace),
                     "containers": [{"name": crds::CONTAINER, "image": "redis"}]},
        });
        let pod: Pod = serde_json::from_value(pod)?;
        self.api().create(&PostParams::default(), &pod).await?;
        let ip = self.nodes.server(shard).address().ip().to_string();
        let conditions: Vec<Value> = ["ContainersReady", "Ready"]
            .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": Timestamp::now()}))
            .into();
        let status = json!({"status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": conditions,
            "containerStatuses": [{"name": crds::CONTAINER, "image": "redis", "imageID": "", "ready": true, "restartCount": 0,
                                   "state": {"running": {"startedAt": Timestamp::now()}}}],
        }});
        let (name, parameters) = (pod_name(shard), PatchParams::default());
        self.api::<Pod>()
            .patch_status(&name, &parameters, &Patch::Strategic(status))
            .await?;
        Ok(())
    }

    /// The claim that a StatefulSet controller would have made for the pod of a shard.
    async fn create_claim(&self, shard: usize) -> Result<()> {
        let claim = json!({
            "metadata": {"name": format!("data-{}", pod_name(shard)), "labels": {LABEL_CLUSTER: "shop"}},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        });
        let claim: PersistentVolumeClaim = serde_json::from_value(claim)?;
        self.api().create(&PostParams::default(), &claim).await?;
        Ok(())
    }

    /// Deletes the cluster, with what a garbage collector would delete after it.
    async fn delete_cluster(&mut self) -> Result<()> {
        let clusters = self.api::<RedisCluster>();
        clusters.delete("shop", &DeleteParams::default()).await?;
        within(LIMIT, "the cluster is gone", async || {
            Ok(clusters.get_opt("shop").await?.is_none())
        })
        .await?;
        within(LIMIT, "its StatefulSets are gone", async || {
            Ok(self.sets().await?.is_empty())
        })
        .await?;
        // No StatefulSet controller has made them.
        let at_once = DeleteParams::default().grace_period(0);
        let labels = ListParams::default().labels(&format!("{LABEL_CLUSTER}=shop"));
        let pods = self.api::<Pod>();
        pods.delete_collection(&at_once, &labels).await?;
        self.nodes.kill_all().await
    }

    /// Names of the StatefulSets, with how many pods each asks for.
    async fn sets(&self) -> Result<Vec<(String, i32)>> {
        let api = self.api::<StatefulSet>();
        let sets = api.list(&ListParams::default()).await?.items.into_iter();
        let sets = sets.map(|set| (set.name_any(), set.spec.replicas.unwrap_or(1)));
        Ok(sets.collect())
    }

    async fn has_sets(&self, what: &str, pods: &[i32]) -> Result<()> {
        let named = pods.iter().enumerate();
        let wanted: Vec<(String, i32)> = named
            .map(|(shard, pods)| (format!("shop-{shard}"), *pods))
            .collect();
        let mut last = Vec::new();
        let found = within(LIMIT, what, async || {
            last = self.sets().await?;
            Ok(last == wanted)
        });
        let found = found.await;
        found.with_context(|| format!("the StatefulSets are {last:?}"))
    }

    async fn until(
        &self,
        what: &str,
        is_so: impl Fn(&RedisClusterStatus) -> bool,
    ) -> Result<RedisClusterStatus> {
        let mut last = None;
        let found = within(LIMIT, what, async || {
            let object = self.api::<RedisCluster>().get("shop").await?;
            last.clone_from(&object.status);
            Ok(object.status.filter(&is_so))
        });
        let found = found.await;
        found.with_context(|| format!("the status is {last:#?}"))
    }

    async fn has_every_key(&self) -> Result<()> {
        let compared = verify::data_set(&self.client().await?, KEYS).await?;
        ensure!(
            compared.keys == KEYS && compared.different == 0,
            "{compared:?}"
        );
        Ok(())
    }
}

fn serves(status: &RedisClusterStatus) -> bool {
    holds(&status.conditions, "Available") && status.slots.ok == 16384
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_shards_of_volumes_become_three() -> Result<()> {
    let mut stage = Stage::new().await?;
    let controller = stage.controller();
    stage.create_cluster(BEFORE).await?;
    for shard in 0..BEFORE {
        stage.create_claim(shard).await?;
        stage.run_pod(shard).await?;
    }
    stage.until("formed", serves).await?;
    dataset::fill(&stage.client().await?, KEYS).await?;
    stage.delete_cluster().await?;

    stage.create_cluster(AFTER).await?;
    for shard in 0..AFTER {
        stage.nodes.restart(shard).await?;
        stage.run_pod(shard).await?;
    }
    stage.has_sets("the volumes get pods", &[1; BEFORE]).await?;
    let status = stage.until("nothing serves yet", |status| !serves(status));
    ensure!(!holds(&status.await?.conditions, "Ready"));
    for shard in AFTER..BEFORE {
        stage.nodes.restart(shard).await?;
        stage.run_pod(shard).await?;
    }
    stage.has_sets("two pods leave", &[1, 1, 1, 0, 0]).await?;
    for shard in AFTER..BEFORE {
        let keys: u64 = stage.nodes.server(shard).call("DBSIZE").await?;
        ensure!(keys == 0, "shard {shard} leaves with {keys} keys");
        let at_once = DeleteParams::default().grace_period(0);
        let pods = stage.api::<Pod>();
        pods.delete(&pod_name(shard), &at_once).await?;
        stage.nodes.kill(shard).await?;
    }
    stage.has_sets("three are left", &[1; AFTER]).await?;
    let three = |status: &RedisClusterStatus| {
        serves(status) && status.shards == 3 && status.ready_shards == 3 && status.ready_nodes == 3
    };
    stage.until("three shards serve", three).await?;
    stage.has_every_key().await?;
    drop(controller);
    Ok(())
}
