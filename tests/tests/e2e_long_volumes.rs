//! What becomes of volumes: hibernation and back, a StatefulSet that is deleted, growth, and the volumes of another cluster.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tests::{
    kubectl::Kubectl,
    scenario::{self, Area, FilledCluster, LIMIT, ScenarioRow, Volumes},
};

const KEYS: u64 = 20_000;
const NODES: usize = 6;

async fn spec(kubectl: &Kubectl, change: Value) -> Result<()> {
    scenario::spec(kubectl, "shop", change).await
}

/// Uids by name.
async fn uids(kubectl: &Kubectl, what: &str) -> Result<BTreeMap<String, String>> {
    scenario::uids_by_name(&kubectl.list(what).await?)
}

async fn claims(kubectl: &Kubectl) -> Result<BTreeMap<String, String>> {
    uids(kubectl, "persistentvolumeclaims").await
}

/// Twice: no pod is left meanwhile, and the same nodes come back with every value. At last its volumes go with it while it sleeps.
#[tokio::test]
async fn a_cluster_hibernates_and_comes_back() -> Result<()> {
    scenario::run("e2e-hibernate", async |kubectl| {
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        let before = claims(kubectl).await?;
        ensure!(before.len() == NODES, "{before:?}");
        let sleeps = async || {
            spec(kubectl, json!({"hibernate": true})).await?;
            let asleep = ("Ready", "False", "Hibernated");
            scenario::condition(kubectl, "shop", asleep).await?;
            let pods = scenario::pods(kubectl, "shop").await?;
            ensure!(pods.is_empty(), "{} pods are left", pods.len());
            ensure!(claims(kubectl).await? == before, "volumes changed");
            let phase = kubectl.get("rediscluster shop").await?["status"]["phase"].clone();
            ensure!(phase == "Hibernated", "{phase}");
            anyhow::Ok(())
        };
        for step in ["first", "second"] {
            scenario::no_data_was_dropped(kubectl, "shop").await?;
            sleeps().await?;
            spec(kubectl, json!({"hibernate": false})).await?;
            let resumed = scenario::formed(kubectl, "shop", NODES).await?;
            shop.has_its_ids(step).await?;
            shop.is_intact(step).await?;
            let scenario = format!("hibernation, the {step} time");
            let done = "spec.hibernate is set to true, which deletes all pods, and back to false";
            ScenarioRow::new(Area::Volumes, &scenario, done)
                .healthy_after(resumed)
                .lost(0)
                .note("since it was set back")
                .record()?;
        }
        sleeps().await?;
        kubectl.run("delete rediscluster shop").await?;
        let gone = async || Ok(claims(kubectl).await?.is_empty());
        kubectl.until("the volumes are gone", LIMIT, gone).await?;
        Ok(())
    })
    .await
}

/// By mistake, one after another, with their pods: their volumes stay, and so do all keys.
#[tokio::test]
async fn a_deleted_stateful_set_takes_no_volume_with_it() -> Result<()> {
    scenario::run("e2e-deleted-set", async |kubectl| {
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        let before = claims(kubectl).await?;
        let mut slowest = Duration::ZERO;
        for set in ["shop-0", "shop-1", "shop-2"] {
            let old = uids(kubectl, "pods -l redis.danieldorado.github.io/cluster=shop").await?;
            scenario::no_data_was_dropped(kubectl, "shop").await?;
            let begun = Instant::now();
            kubectl.run(&format!("delete statefulset {set}")).await?;
            let replaced = async || {
                let new =
                    uids(kubectl, "pods -l redis.danieldorado.github.io/cluster=shop").await?;
                let kept = new.iter().filter(|(pod, uid)| old.get(*pod) == Some(*uid));
                Ok(new.len() == NODES && kept.count() == NODES - 2)
            };
            let wait = format!("the pods of {set} are created again");
            kubectl.until(&wait, LIMIT, replaced).await?;
            shop.recovered().await?;
            slowest = slowest.max(begun.elapsed());
        }
        scenario::formed(kubectl, "shop", NODES).await?;
        ensure!(claims(kubectl).await? == before, "volumes changed");
        shop.has_its_ids("sets").await?;
        shop.is_intact("sets").await?;
        let done = "the StatefulSets are deleted one after another, each with its pods";
        ScenarioRow::new(Area::Volumes, "StatefulSets deleted", done)
            .healthy_after(slowest)
            .lost(0)
            .note("the slowest of three")
            .record()
    })
    .await
}

/// The StorageClass has to allow it. The storage of the local cluster cannot do it, so this test says in its place how large volumes are.
#[tokio::test]
async fn volumes_grow_without_a_restart() -> Result<()> {
    scenario::run("e2e-growth", async |kubectl| {
        let class = format!("{}-growing", kubectl.namespace());
        let mut object = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": class},
            "provisioner": "rancher.io/local-path", "volumeBindingMode": "WaitForFirstConsumer"});
        kubectl.apply(&object.to_string()).await?;
        let other = Volumes::DeletedWithCluster;
        let mut cluster = scenario::cluster(kubectl, "other", 3, other).await?;
        kubectl.run("delete rediscluster other").await?;
        cluster["metadata"]["name"] = json!("shop");
        cluster["spec"]["storage"]["storageClassName"] = json!(class);
        kubectl.apply(&cluster.to_string()).await?;
        let shop = FilledCluster::fill(kubectl, "shop", NODES, KEYS).await?;
        let pods = "pods -l redis.danieldorado.github.io/cluster=shop";
        let (old_pods, old_sets) = (uids(kubectl, pods).await?, uids(kubectl, "statefulsets").await?);

        spec(kubectl, json!({"storage": {"size": "2Gi"}})).await?;
        let refused = ("VolumesResized", "False", "RefusedByStorageClass");
        let words = scenario::condition(kubectl, "shop", refused).await?;
        ensure!(words.contains("allowVolumeExpansion: true"), "{words}");
        let smaller = spec(kubectl, json!({"storage": {"size": "1Mi"}})).await;
        let words = smaller.map_or_else(|error| format!("{error:#}"), |()| String::new());
        ensure!(words.contains("storage.size can only grow"), "{words}");

        object["allowVolumeExpansion"] = json!(true);
        kubectl.apply(&object.to_string()).await?;
        let resizing = ("VolumesResized", "False", "Resizing");
        scenario::condition(kubectl, "shop", resizing).await?;
        let again = async || {
            let sets = kubectl.list("statefulsets").await?;
            let is_new = |set: &Value| {
                let (name, uid) = (&set["metadata"]["name"], &set["metadata"]["uid"]);
                let claim = &set["spec"]["volumeClaimTemplates"][0]["spec"];
                let old = name.as_str().and_then(|name| old_sets.get(name));
                old != Some(&uid.to_string()) && claim["resources"]["requests"]["storage"] == "2Gi"
            };
            Ok(sets.len() == 3 && sets.iter().all(is_new))
        };
        kubectl.until("every StatefulSet is created again", LIMIT, again).await?;
        for claim in claims(kubectl).await?.keys() {
            let status = json!({"status": {"capacity": {"storage": "2Gi"}, "conditions": []}});
            let status = status.to_string();
            let patch = ["patch", "persistentvolumeclaim", claim, "--subresource=status", "--type=merge", "--patch", &status];
            kubectl.call(&patch, None).await?;
        }
        let resized = ("VolumesResized", "True", "Resized");
        scenario::condition(kubectl, "shop", resized).await?;
        scenario::formed(kubectl, "shop", NODES).await?;
        ensure!(uids(kubectl, pods).await? == old_pods, "pods were replaced");
        let controlled = kubectl.list(pods).await?;
        let owned = controlled.iter().filter(|pod| {
            let owner = &pod["metadata"]["ownerReferences"][0];
            owner["kind"] == "StatefulSet" && owner["controller"] == true
        });
        ensure!(owned.count() == NODES, "pods belong to no StatefulSet");
        shop.is_intact("grown").await?;
        kubectl.run(&format!("delete storageclass {class}")).await?;
        let done = "spec.storage.size grows; the StatefulSets are created again, and no pod is replaced";
        ScenarioRow::new(Area::Volumes, "volumes grow", done)
            .lost(0)
            .note("the test reports the larger capacity: the storage of the local cluster cannot grow")
            .record()
    })
    .await
}

/// The volumes of one cluster are given to another: its servers refuse them with the cure in the status, and take them over when asked to.
#[tokio::test]
async fn volumes_of_another_cluster_are_adopted_only_when_asked() -> Result<()> {
    scenario::run("e2e-adoption", async |kubectl| {
        FilledCluster::create(kubectl, "old", 3, Volumes::Kept, KEYS).await?;
        let ids = scenario::node_ids(kubectl, "old").await?;
        kubectl.run("delete rediscluster old").await?;
        let gone = async || Ok(scenario::pods(kubectl, "old").await?.is_empty());
        kubectl.until("the pods are gone", LIMIT, gone).await?;
        for claim in kubectl.list("persistentvolumeclaims").await? {
            let name = claim["metadata"]["name"].as_str().context("no name")?;
            let volume = claim["spec"]["volumeName"].as_str().context("no volume")?;
            let object = format!("persistentvolume {volume}");
            let reclaim = async |policy: &str, more: Value| {
                let mut change = json!({"spec": {"persistentVolumeReclaimPolicy": policy}});
                if let (Some(spec), Value::Object(more)) = (change["spec"].as_object_mut(), more) {
                    spec.extend(more);
                }
                kubectl.patch(&object, &change).await
            };
            reclaim("Retain", json!({})).await?;
            kubectl.run(&format!("delete persistentvolumeclaim {name}")).await?;
            reclaim("Retain", json!({"claimRef": null})).await?;
            let name = name.replace("data-old-", "data-shop-");
            let labels = json!({crds::LABEL_CLUSTER: "shop"});
            let mut new = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "labels": labels},
                "spec": claim["spec"]});
            new["spec"]["volumeName"] = json!(volume);
            kubectl.apply(&new.to_string()).await?;
            let bound = async || {
                let claim = kubectl.get(&format!("persistentvolumeclaim {name}")).await?;
                Ok(claim["status"]["phase"] == "Bound")
            };
            kubectl.until("the claim is bound", LIMIT, bound).await?;
            reclaim("Delete", json!({})).await?;
        }
        scenario::cluster(kubectl, "shop", 3, Volumes::DeletedWithCluster).await?;
        let owner = format!("{}/old", kubectl.namespace());
        let named = async || {
            let status = kubectl.get("rediscluster shop").await?["status"].clone();
            Ok(status["message"].to_string().contains(&format!("adopt-volumes={owner}")))
        };
        kubectl.until("the refusal is in the status", LIMIT, named).await?;
        let begun = Instant::now();
        kubectl
            .run(&format!(
                "annotate rediscluster shop {}={owner}",
                crds::ANNOTATION_ADOPT_VOLUMES
            ))
            .await?;
        scenario::formed(kubectl, "shop", NODES).await?;
        let adopted = begun.elapsed();
        ensure!(scenario::node_ids(kubectl, "shop").await? == ids, "other ids");
        let keys = KEYS.to_string();
        let verify = ["verify", "shop:6379", "--keys", &keys];
        scenario::workload(kubectl, "verify-shop", &verify).await?;
        // From now on they are its own: the annotation is not needed any more.
        kubectl
            .run(&format!(
                "annotate rediscluster shop {}-",
                crds::ANNOTATION_ADOPT_VOLUMES
            ))
            .await?;
        scenario::lose_all_pods(kubectl, "shop", NODES, false).await?;
        ensure!(scenario::node_ids(kubectl, "shop").await? == ids, "other ids");
        scenario::workload(kubectl, "verify-again", &verify).await?;
        let done = "the volumes of another cluster are refused, and taken over once the annotation names their owner";
        ScenarioRow::new(Area::Volumes, "volumes adopted", done)
            .healthy_after(adopted)
            .lost(0)
            .note("since the annotation; also after all pods were deleted")
            .record()
    })
    .await
}
