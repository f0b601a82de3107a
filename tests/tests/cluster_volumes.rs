//! The volumes of clusters between the cluster-controller and a real API server. Nothing runs here: the test creates claims as the
//! StatefulSet controller does, says how large they are as a storage driver does, and lets objects go as the garbage collector does.

use anyhow::{Context, Result, ensure};
use common::kubernetes::{
    conditions::find,
    leases::{Holder, OperationLeases},
};
use crds::{LABEL_CLUSTER, RedisCluster, RedisClusterStatus};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, Pod},
        storage::v1::StorageClass,
    },
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tests::{
    kubernetes::{ApiServer, api_server, no_users, status_within},
    replica::{Replica, ReplicaEnd, ReplicaSettings},
    wait::within,
};

const LEASE: Duration = Duration::from_secs(3);
/// A size that was refused is asked for once a minute.
const LIMIT: Duration = Duration::from_mins(3);
const SHARDS: usize = 3;

struct VolumeStage {
    server: ApiServer,
    namespace: String,
    class: String,
    replica: Replica,
}

impl VolumeStage {
    async fn new(name: &str) -> Result<Self> {
        let server = api_server().await?;
        let namespace = server.namespace(name).await?;
        let settings = ReplicaSettings {
            program: "cluster-controller",
            identity: "a".to_owned(),
            namespace: namespace.clone(),
            lease: LEASE,
            proxy: None,
        };
        let stage = Self {
            class: namespace.clone(),
            replica: Replica::start(settings, cluster_controller::run::start),
            server,
            namespace,
        };
        let class = json!({"metadata": {"name": stage.class}, "provisioner": "example.com/none"});
        let class: StorageClass = serde_json::from_value(class)?;
        let classes = Api::<StorageClass>::all(stage.server.client.clone());
        classes.create(&PostParams::default(), &class).await?;
        Ok(stage)
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.server.client.clone(), &self.namespace)
    }

    /// A cluster with its StatefulSets, and the claims of its pods, bound to volumes of that size.
    async fn create(&self, when_deleted: &str) -> Result<RedisCluster> {
        let storage =
            json!({"size": "1Gi", "storageClassName": self.class, "whenDeleted": when_deleted});
        let object = json!({
            "apiVersion": "redis.danieldorado.github.io/v1alpha1", "kind": "RedisCluster", "metadata": {"name": "shop"},
            "spec": {"image": "redis", "shards": SHARDS, "replicasPerShard": 1, "storage": storage, "auth": no_users()},
        });
        let object: RedisCluster = serde_json::from_value(object)?;
        let object = self.api().create(&PostParams::default(), &object).await?;
        let sets = within(LIMIT, "the StatefulSets are there", async || {
            let sets = self.sets().await?;
            Ok((sets.len() == SHARDS).then_some(sets))
        });
        for (set, set_object) in sets.await? {
            let claims = set_object.spec.volume_claim_templates.into_iter();
            let template = claims.flatten().next();
            let template = template.context("no claim in the StatefulSet")?;
            for ordinal in 0..2 {
                let mut claim = template.clone();
                claim.metadata.name = Some(format!("data-{set}-{ordinal}"));
                self.api::<PersistentVolumeClaim>()
                    .create(&PostParams::default(), &claim)
                    .await?;
            }
        }
        self.volumes_have("1Gi").await?;
        Ok(object)
    }

    async fn change(&self, spec: Value) -> Result<()> {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let clusters = self.api::<RedisCluster>();
        clusters
            .patch("shop", &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    async fn sets(&self) -> Result<BTreeMap<String, StatefulSet>> {
        let sets = self.api::<StatefulSet>();
        let sets = sets.list(&ListParams::default()).await?.items.into_iter();
        Ok(sets.map(|set| (set.name_any(), set)).collect())
    }

    async fn claims(&self) -> Result<Vec<PersistentVolumeClaim>> {
        let claims = self.api::<PersistentVolumeClaim>();
        Ok(claims.list(&ListParams::default()).await?.items)
    }

    /// Says, as a storage driver would, that every volume has this size.
    async fn volumes_have(&self, size: &str) -> Result<()> {
        for claim in self.claims().await? {
            let status = json!({"status": {"phase": "Bound", "capacity": {"storage": size}}});
            let (name, parameters) = (claim.name_any(), PatchParams::default());
            let patch = Patch::Merge(status);
            self.api::<PersistentVolumeClaim>()
                .patch_status(&name, &parameters, &patch)
                .await?;
        }
        Ok(())
    }

    /// Waits until every claim has these owners besides its StatefulSet, by uid.
    async fn owners_are(&self, owners: &[&str]) -> Result<()> {
        let wait = format!("the owners of the claims are {owners:?}");
        let mut last = Vec::new();
        let found = within(LIMIT, &wait, async || {
            last.clear();
            for claim in self.claims().await? {
                let uids = claim.owner_references().iter();
                last.push(uids.map(|owner| owner.uid.clone()).collect::<Vec<_>>());
            }
            Ok(last.len() == SHARDS * 2 && last.iter().all(|uids| uids == owners))
        });
        found.await.with_context(|| format!("they are {last:?}"))
    }

    /// Waits for a status that answers the present spec.
    async fn until(
        &self,
        what: &str,
        is_so: impl Fn(&RedisClusterStatus) -> bool,
    ) -> Result<RedisClusterStatus> {
        status_within(LIMIT, (&self.api(), "shop"), what, is_so).await
    }

    /// Waits until `VolumesResized` has this reason; its message.
    async fn resizing_is(&self, reason: &str) -> Result<String> {
        let found = |status: &RedisClusterStatus| {
            let condition = find(&status.conditions, "VolumesResized").cloned();
            condition.filter(|condition| condition.reason == reason)
        };
        let wait = format!("VolumesResized is {reason}");
        let status = self.until(&wait, |status| found(status).is_some()).await?;
        Ok(found(&status).context("no condition")?.message)
    }

    /// Waits until the StatefulSets have so many pods each.
    async fn sets_have(&self, pods: i32) -> Result<()> {
        let mut last = BTreeMap::new();
        let wait = format!("{pods} pods in each set");
        let found = within(LIMIT, &wait, async || {
            last = self.sets().await?;
            let mut sets = last.values();
            Ok(last.len() == SHARDS && sets.all(|set| set.spec.replicas == Some(pods)))
        });
        found.await.with_context(|| format!("{last:#?}"))
    }
}

fn requested(size: &str) -> impl Fn(&PersistentVolumeClaim) -> bool {
    move |claim| {
        let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
        let requests = resources.and_then(|resources| resources.requests.as_ref());
        let storage = requests.and_then(|requests| requests.get("storage"));
        storage.is_some_and(|storage| storage.0 == size)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_belong_to_their_cluster_as_the_spec_says() -> Result<()> {
    let stage = VolumeStage::new("tied").await?;
    let other = json!({"metadata": {"name": "data-shop-9", "labels": {LABEL_CLUSTER: "shop"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let cluster = stage.create("Delete").await?;
    let uid = cluster.metadata.uid.context("no uid")?;
    stage.owners_are(&[&uid]).await?;
    for set in stage.sets().await?.values() {
        let spec = &set.spec;
        let retention = spec.persistent_volume_claim_retention_policy.as_ref();
        let when_deleted = retention.and_then(|one| one.when_deleted.as_deref());
        ensure!(when_deleted == Some("Retain"), "{retention:?}");
    }
    // The claim of no pod is not touched.
    let other: PersistentVolumeClaim = serde_json::from_value(other)?;
    let claims = stage.api::<PersistentVolumeClaim>();
    claims.create(&PostParams::default(), &other).await?;
    stage
        .change(json!({"storage": {"whenDeleted": "Retain"}}))
        .await?;
    within(LIMIT, "no claim has an owner", async || {
        let claims = stage.claims().await?;
        Ok(claims
            .iter()
            .all(|claim| claim.owner_references().is_empty()))
    })
    .await?;
    stage
        .change(json!({"storage": {"whenDeleted": "Delete"}}))
        .await?;
    within(LIMIT, "they have their owner again", async || {
        let claims = stage.claims().await?;
        let tied = claims.iter().filter(|claim| {
            let mut owners = claim.owner_references().iter();
            owners.any(|owner| owner.uid == uid)
        });
        Ok(tied.count() == SHARDS * 2)
    })
    .await?;
    let other = claims.get("data-shop-9").await?;
    ensure!(other.owner_references().is_empty(), "{other:?}");
    stage.replica.end(ReplicaEnd::Orderly)
}

/// A refusal is named with its cure; then claims grow, and every StatefulSet is created again without its pods being deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_grow_while_pods_run() -> Result<()> {
    let stage = VolumeStage::new("grow").await?;
    stage.create("Retain").await?;
    stage.resizing_is("Resized").await?;
    let before = stage.sets().await?;
    stage.change(json!({"storage": {"size": "2Gi"}})).await?;
    let refused = stage.resizing_is("RefusedByStorageClass").await?;
    ensure!(refused.contains("allowVolumeExpansion: true"), "{refused}");
    ensure!(stage.claims().await?.iter().all(requested("1Gi")));
    let same = stage.sets().await?;
    ensure!(
        same.iter()
            .all(|(name, set)| set.uid() == before[name].uid()),
        "a StatefulSet was created again although no volume grows"
    );

    let classes = Api::<StorageClass>::all(stage.server.client.clone());
    let allow = Patch::Merge(json!({"allowVolumeExpansion": true}));
    classes
        .patch(&stage.class, &PatchParams::default(), &allow)
        .await?;
    let waiting = stage.resizing_is("Resizing").await?;
    ensure!(waiting.contains("6 volume claims"), "{waiting}");
    ensure!(stage.claims().await?.iter().all(requested("2Gi")));

    // The garbage collector lets one go when it has made orphans of its pods.
    let sets = stage.api::<StatefulSet>();
    let mut most_away = 0;
    within(LIMIT, "every StatefulSet was created again", async || {
        let now = stage.sets().await?;
        let away = now
            .values()
            .filter(|set| set.metadata.deletion_timestamp.is_some());
        let away: Vec<&StatefulSet> = away.collect();
        most_away = most_away.max(away.len() + SHARDS - now.len());
        for set in away {
            ensure!(set.finalizers() == ["orphan"], "its pods would go: {set:?}");
            let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
            sets.patch(&set.name_any(), &PatchParams::default(), &patch)
                .await?;
        }
        let mut all = now.iter();
        Ok(now.len() == SHARDS && all.all(|(name, set)| set.uid() != before[name].uid()))
    })
    .await?;
    ensure!(
        most_away == 1,
        "{most_away} StatefulSets were away at a time"
    );
    for set in stage.sets().await?.values() {
        let spec = &set.spec;
        let claims = spec.volume_claim_templates.as_ref();
        ensure!(claims.is_some_and(|claims| claims.iter().all(requested("2Gi"))));
        ensure!(spec.replicas == Some(2));
    }
    stage.volumes_have("2Gi").await?;
    stage.resizing_is("Resized").await?;
    stage.replica.end(ReplicaEnd::Orderly)
}

/// It waits for a backup, keeps volumes and their owner, and ends as it began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_hibernates_once_nothing_needs_its_pods() -> Result<()> {
    let stage = VolumeStage::new("hibernate").await?;
    let cluster = stage.create("Delete").await?;
    let uid = cluster.metadata.uid.context("no uid")?;
    stage.owners_are(&[&uid]).await?;
    for (set, _) in stage.sets().await? {
        let labels = json!({LABEL_CLUSTER: "shop"});
        let pod = json!({"metadata": {"name": format!("{set}-0"), "labels": labels},
            "spec": {"containers": [{"name": crds::CONTAINER, "image": "redis"}]}});
        let pod: Pod = serde_json::from_value(pod)?;
        stage.api().create(&PostParams::default(), &pod).await?;
    }
    let runtime = stage
        .server
        .runtime("backup-controller", "b", &stage.namespace, LEASE)?;
    let leases = OperationLeases::new(&runtime);
    let backup = Holder {
        kind: "RedisBackup".to_owned(),
        name: "nightly".to_owned(),
        uid: "1".to_owned(),
    };
    let hour = Duration::from_hours(1);
    leases
        .acquire(&stage.namespace, "shop", &backup, hour)
        .await?;
    stage.change(json!({"hibernate": true})).await?;
    let waits = |status: &RedisClusterStatus| {
        let operation = status.operation.as_ref();
        operation.is_some_and(|one| one.message.contains("RedisBackup/nightly"))
    };
    stage.until("it waits for the backup", waits).await?;
    stage.sets_have(2).await?;

    leases.release(&stage.namespace, "shop", &backup).await?;
    stage.sets_have(0).await?;
    let phase = |phase: &'static str| {
        move |status: &RedisClusterStatus| status.phase.as_deref() == Some(phase)
    };
    stage.until("it stops", phase("Hibernating")).await?;
    let holder = leases.holder(&stage.namespace, "shop").await?;
    let holder = holder.context("a backup could begin while pods stop")?;
    ensure!(holder.kind == "RedisCluster", "{holder}");
    for pod in stage.api::<Pod>().list(&ListParams::default()).await? {
        let parameters = DeleteParams::default().grace_period(0);
        let pods = stage.api::<Pod>();
        pods.delete(&pod.name_any(), &parameters).await?;
    }
    let asleep = stage.until("it hibernates", phase("Hibernated")).await?;
    let ready = find(&asleep.conditions, "Ready").context("no condition")?;
    ensure!(
        ready.status == "False" && ready.message.contains("spec.hibernate"),
        "{ready:?}"
    );
    within(LIMIT, "the cluster is released", async || {
        Ok(leases.holder(&stage.namespace, "shop").await?.is_none())
    })
    .await?;
    stage.owners_are(&[&uid]).await?;
    // Volumes can grow meanwhile, and the size of the cluster change.
    stage.change(json!({"shards": 4})).await?;
    within(LIMIT, "the set of the fourth shard", async || {
        let sets = stage.sets().await?;
        let fourth = sets.get("shop-3").map(|set| &set.spec);
        Ok(fourth.is_some_and(|spec| spec.replicas == Some(0)))
    })
    .await?;
    stage.change(json!({"shards": 3})).await?;
    stage.until("it sleeps on", phase("Hibernated")).await?;

    stage.change(json!({"hibernate": false})).await?;
    stage.until("it resumes", phase("Resuming")).await?;
    within(LIMIT, "two pods in each wanted set", async || {
        let sets = stage.sets().await?;
        let wanted = ["shop-0", "shop-1", "shop-2"].map(|name| sets.get(name));
        Ok(wanted.into_iter().all(|set| {
            let spec = set.map(|set| &set.spec);
            spec.is_some_and(|spec| spec.replicas == Some(2))
        }))
    })
    .await?;
    ensure!(stage.claims().await?.len() == SHARDS * 2);
    stage.owners_are(&[&uid]).await?;
    stage.replica.end(ReplicaEnd::Orderly)
}
