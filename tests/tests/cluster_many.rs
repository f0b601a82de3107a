//! Many clusters under one controller: what they cost while nothing happens, and what those that hang do to the others. The API server is real;
//! the servers are made up, and the test is their kubelet. `CLUSTERS` says how many; with 500 and optimised it is `make test-many`.

use anyhow::{Context, Result, ensure};
use common::kubernetes::conditions::holds;
use crds::{CONDITION_SERVING, LABEL_CLUSTER, RedisCluster, stateful_set_name};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::{
    env,
    io::Read,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tests::{
    cluster_stage::running,
    kubernetes::{api_server, no_users},
    made_up::{MadeUpCluster, MadeUpNode, MadeUpServers, be_servers, node_id},
    memory::{ALLOCATOR, MIB, anonymous_of},
    processor::used_by_process,
    replica::{Replica, ReplicaEnd, ReplicaSettings},
    wait::at_intervals,
};
use tokio::time::sleep;

/// Says to this program that it is to be the controller of this namespace.
const CONTROLLED: &str = "CONTROLLED_NAMESPACE";
const SHARDS: usize = 3;
/// Requests of the test at the same time.
const AT_ONCE: usize = 16;
/// What a controller may hold: 200 MiB with 500 clusters. An unoptimised one is not measured.
const MEMORY: (u64, u64) = (64 * MIB, 278 << 10);
/// Half a processor for 500; an unoptimised controller is not measured.
const CLUSTERS_A_PROCESSOR: u32 = 1000;
/// No look at a cluster is older.
const OLDEST: Duration = Duration::from_secs(30);
/// After an outage of all clusters each is looked at within this time.
const ATTENDED: Duration = Duration::from_mins(1);
/// More than a controller reconciles at the same time by default.
const HANGING: usize = 20;
/// This machine may have other work.
const LIMIT: Duration = Duration::from_mins(5);

#[test]
fn many_clusters_under_one_controller() -> Result<()> {
    if be_servers()? {
        return Ok(());
    }
    if let Ok(namespace) = env::var(CONTROLLED) {
        return control(namespace);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(measure())
}

/// Is the controller until the input ends.
fn control(namespace: String) -> Result<()> {
    let settings = ReplicaSettings {
        program: "cluster-controller",
        identity: "many".to_owned(),
        namespace,
        lease: Duration::from_secs(15),
        proxy: None,
    };
    let replica = Replica::start(settings, cluster_controller::run::start);
    std::io::stdin().read_to_end(&mut Vec::new())?;
    replica.end(ReplicaEnd::Kill)
}

/// The process of the controller, which ends with this value.
struct Controller(Child);

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn measure() -> Result<()> {
    let count: usize = env::var("CLUSTERS").map_or(Ok(60), |count| count.parse())?;
    let period = Duration::from_secs(if count < 500 { 15 } else { 60 });
    let server = api_server().await?;
    let namespace = server.namespace("many").await?;
    let world = World {
        clusters: Api::namespaced(server.client.clone(), &namespace),
        sets: Api::namespaced(server.client.clone(), &namespace),
        pods: Api::namespaced(server.client.clone(), &namespace),
        namespace: namespace.clone(),
        count,
    };
    world.create().await?;
    let controller = Command::new(env::current_exe()?)
        .arg("--nocapture")
        .env(CONTROLLED, &namespace)
        .env("TEST_KUBECONFIG", &server.kubeconfig)
        .envs(ALLOCATOR)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let controller = Controller(controller);
    let clusters = world.run_pods().await?;
    let began = Instant::now();
    let mut servers = MadeUpServers::start(&clusters)?;
    world.until_ready("all clusters are ready").await?;
    println!(
        "{count} clusters are ready {:.1?} after their servers have started",
        began.elapsed()
    );

    // What was done for them is over.
    sleep(period).await;
    let process = controller.0.id();
    let before = used_by_process(process)?;
    let oldest = oldest_within(&mut servers, period, 0).await?;
    let used = used_by_process(process)?.saturating_sub(before);
    let share = used.as_secs_f64() / period.as_secs_f64();
    let memory = anonymous_of(process)?;
    println!(
        "idle: {share:.2} processors, {} MiB, the oldest look {oldest:.1?}",
        memory / MIB
    );
    let most = MEMORY.0 + MEMORY.1 * count as u64;
    ensure!(
        cfg!(debug_assertions) || memory < most,
        "{memory} bytes, more than {most}"
    );
    let most = period * u32::try_from(count)? / CLUSTERS_A_PROCESSOR;
    ensure!(
        cfg!(debug_assertions) || used < most,
        "{share} of a processor"
    );
    ensure!(
        oldest < OLDEST,
        "a cluster was not looked at for {oldest:?}"
    );

    servers.hang((0..HANGING).collect())?;
    let oldest = oldest_within(&mut servers, period, HANGING).await?;
    println!("while {HANGING} hang: the oldest look at another one {oldest:.1?}");
    ensure!(
        oldest < OLDEST,
        "a cluster was not looked at for {oldest:?}"
    );

    servers.hang((0..count).collect())?;
    world.until("none is ready", |ready| ready == 0).await?;
    sleep(period).await;
    servers.hang(Vec::new())?;
    let back = Instant::now();
    at_intervals(
        Duration::from_millis(200),
        LIMIT,
        "all are looked at",
        async || {
            let since = back.elapsed();
            Ok(servers.ages()?.into_iter().all(|age| age < since))
        },
    )
    .await?;
    let attended = back.elapsed();
    world.until_ready("all are ready again").await?;
    println!(
        "after an outage of all: looked at within {attended:.1?}, ready within {:.1?}",
        back.elapsed()
    );
    ensure!(attended < ATTENDED, "{attended:?}");
    Ok(())
}

/// The oldest look at any time of the period, at one of the clusters from this on.
async fn oldest_within(
    servers: &mut MadeUpServers,
    period: Duration,
    from: usize,
) -> Result<Duration> {
    let (began, mut oldest) = (Instant::now(), Duration::ZERO);
    while began.elapsed() < period {
        sleep(Duration::from_millis(500)).await;
        let ages = servers.ages()?;
        oldest = ages.into_iter().skip(from).fold(oldest, Duration::max);
    }
    Ok(oldest)
}

/// The objects of all clusters.
struct World {
    clusters: Api<RedisCluster>,
    sets: Api<StatefulSet>,
    pods: Api<Pod>,
    namespace: String,
    count: usize,
}

fn name(cluster: usize) -> String {
    format!("shop-{cluster}")
}

/// An address of its own on loopback: several runs share the machine.
fn address(cluster: usize, shard: usize) -> Result<SocketAddr> {
    let number = u16::try_from(cluster * SHARDS + shard + 1)?;
    let [high, low] = number.to_be_bytes();
    let run = 2 + u8::try_from(std::process::id() % 60)? * 4;
    let ip = Ipv4Addr::new(127, run + high / 128, high, low);
    Ok(SocketAddr::new(IpAddr::V4(ip), crds::CLIENT_PORT))
}

impl World {
    /// Clusters that were formed before.
    async fn create(&self) -> Result<()> {
        let create = |cluster: usize| async move {
            let name = name(cluster);
            let object = json!({
                "apiVersion": "redis.danieldorado.github.io/v1alpha1", "kind": "RedisCluster", "metadata": {"name": name},
                "spec": {"image": "redis", "shards": SHARDS, "replicasPerShard": 0, "config": {"cluster-node-timeout": "5000"}, "auth": no_users()},
            });
            let object: RedisCluster = serde_json::from_value(object)?;
            self.clusters
                .create(&PostParams::default(), &object)
                .await?;
            let nodes = (0..SHARDS).map(|shard| json!({"pod": format!("{name}-{shard}-0"), "nodeId": node_id(&name, shard)}));
            let formed = json!({"type": "Formed", "status": "True", "reason": "Formed", "message": "", "lastTransitionTime": jiff::Timestamp::now()});
            let status =
                json!({"status": {"conditions": [formed], "nodes": nodes.collect::<Vec<_>>()}});
            let (parameters, patch) = (PatchParams::default(), Patch::Merge(status));
            self.clusters
                .patch_status(&name, &parameters, &patch)
                .await?;
            anyhow::Ok(())
        };
        let all = stream::iter(0..self.count).map(create);
        all.buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Makes the pod of every StatefulSet, as soon as there is one, and says that it runs.
    async fn run_pods(&self) -> Result<Vec<MadeUpCluster>> {
        at_intervals(
            Duration::from_secs(1),
            LIMIT,
            "all StatefulSets are there",
            async || {
                let sets = self.sets.list_metadata(&ListParams::default()).await?;
                Ok(sets.items.len() == self.count * SHARDS)
            },
        )
        .await?;
        let clusters = stream::iter(0..self.count).map(async |cluster| {
            let name = name(cluster);
            let mut nodes = Vec::new();
            for shard in 0..SHARDS {
                nodes.push(self.run_pod(&name, shard, address(cluster, shard)?).await?);
            }
            anyhow::Ok(MadeUpCluster {
                namespace: self.namespace.clone(),
                name,
                per_shard: 1,
                ranges: 1,
                nodes,
            })
        });
        clusters.buffered(AT_ONCE).try_collect().await
    }

    async fn run_pod(
        &self,
        cluster: &str,
        shard: usize,
        address: SocketAddr,
    ) -> Result<MadeUpNode> {
        let set = stateful_set_name(cluster, i32::try_from(shard)?);
        let template = self.sets.get(&set).await?.spec.template;
        let name = format!("{set}-0");
        let metadata = template.metadata.context("no metadata")?;
        ensure!(
            metadata
                .labels
                .as_ref()
                .is_some_and(|labels| labels.contains_key(LABEL_CLUSTER))
        );
        let mut pod = Pod {
            metadata,
            spec: template.spec,
            status: None,
        };
        pod.metadata.name = Some(name.clone());
        pod.spec.as_mut().context("no spec")?.node_name = Some("node-of-many".to_owned());
        let pod = self.pods.create(&PostParams::default(), &pod).await?;
        let now = jiff::Timestamp::now();
        let condition =
            |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
        let kinds = [
            "PodScheduled",
            "ContainersReady",
            CONDITION_SERVING,
            "Ready",
        ];
        let conditions = json!(kinds.map(condition));
        let state = json!({"running": {"startedAt": now}});
        let status = running(&address.ip().to_string(), &conditions, (0, true, &state));
        let (parameters, patch) = (PatchParams::default(), Patch::Strategic(status));
        self.pods.patch_status(&name, &parameters, &patch).await?;
        let uid = pod.metadata.uid.context("no uid")?;
        Ok(MadeUpNode {
            address,
            proof: format!("{}/{name}/{uid}", self.namespace),
        })
    }

    async fn until_ready(&self, what: &str) -> Result<()> {
        self.until(what, |ready| ready == self.count).await
    }

    /// Waits for a number of clusters that are ready.
    async fn until(&self, what: &str, is_wanted: impl Fn(usize) -> bool) -> Result<()> {
        let mut last = String::new();
        let waited = at_intervals(Duration::from_secs(1), LIMIT, what, async || {
            let all = self.clusters.list(&ListParams::default()).await?.items;
            let is_ready = |cluster: &&RedisCluster| {
                let status = cluster.status.as_ref();
                status.is_some_and(|status| holds(&status.conditions, "Ready"))
            };
            let ready = all.iter().filter(is_ready).count();
            let other = all.iter().find(|cluster| !is_ready(cluster));
            last = format!(
                "{ready} are ready; one that is not: {:#?}",
                other.and_then(|one| one.status.as_ref())
            );
            Ok(is_wanted(ready))
        });
        let waited = waited.await;
        waited.with_context(|| last)
    }
}
