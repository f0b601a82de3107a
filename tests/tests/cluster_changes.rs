//! Changes of the spec, from the API server to real servers, by the whole cluster-controller: pod templates, versions, hibernation,
//! configuration.

use anyhow::{Result, ensure};
use common::kubernetes::conditions::holds;
use crds::{RedisClusterStatus, RedisVersion};
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod, events::v1::Event};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};
use tests::{
    cluster_stage::{ClusterStage, KEYS, LIMIT, message, pod_name, reason, serves},
    pod_template,
    redis::{PodCluster, PodStorage},
    replica::ReplicaEnd,
    wait::{eventually, within},
};

/// What a server says of `maxclients many` before it ends.
const REFUSAL: &str = "*** FATAL CONFIG FILE ERROR (Redis 7.0.15) ***\nReading the configuration file, at line 3\n\
                       >>> 'maxclients many'\nargument couldn't be parsed into an integer\n";

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

    // A configuration that is refused keeps no pod running.
    stage
        .change(json!({"config": {"maxclients": "many"}}))
        .await?;
    stage.tried(1, REFUSAL).await?;
    let refused = |status: &RedisClusterStatus| reason(status, "ConfigApplied") == "SettingRefused";
    stage.until("it is refused", refused).await?;
    stage.change(json!({"hibernate": true})).await?;
    pods_wanted(0).await?;
    replica.end(ReplicaEnd::Orderly)
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
    let first = stage.tried(1, REFUSAL).await?;
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
    stage.tried(1, REFUSAL).await?;
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
