//! Server-side apply, status, finalizers and expectations on a real API server.

use anyhow::{Context, Result};
use common::kubernetes::{
    apply::{Applier, Child},
    call::ApiError,
    conditions::{self, ConditionUpdate},
    expectations::{Expectations, Freshness, OwnerKey},
    finalizer, status,
};
use crds::{LocalRef, RedisBackup, RedisBackupSpec, RedisBackupStatus};
use futures::StreamExt;
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Service},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, reflector, watcher},
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Instant};
use tests::{
    kubernetes::{ApiServer, api_server},
    wait::eventually,
};

struct World {
    client: Client,
    namespace: String,
    owner: RedisBackup,
    key: OwnerKey,
    applier: Applier,
    expectations: Arc<Expectations>,
}

/// A namespace with an object that owns things.
async fn world(server: &ApiServer) -> Result<World> {
    let namespace = server.namespace("apply").await?;
    let owner = owner(server, &namespace, "owner").await?;
    let expectations = Arc::new(Expectations::new());
    Ok(World {
        client: server.client.clone(),
        key: OwnerKey::of(&owner),
        applier: Applier::new(server.client.clone(), "tests", Arc::clone(&expectations)),
        namespace,
        owner,
        expectations,
    })
}

async fn owner(server: &ApiServer, namespace: &str, name: &str) -> Result<RedisBackup> {
    let spec = RedisBackupSpec {
        cluster_ref: LocalRef {
            name: "cache".into(),
        },
        storage_name: Some("s3".into()),
        attempts: 3,
        ..RedisBackupSpec::default()
    };
    let api: Api<RedisBackup> = Api::namespaced(server.client.clone(), namespace);
    let object = RedisBackup::new(name, spec);
    Ok(api.create(&PostParams::default(), &object).await?)
}

impl World {
    fn owner_reference(&self) -> OwnerReference {
        self.owner.controller_owner_ref(&()).unwrap_or_default()
    }

    fn child<K: Child>(&self, name: &str, mut body: Value) -> Result<K> {
        body["metadata"] = json!({
            "name": name,
            "namespace": self.namespace,
            "labels": {"app": "cache"},
            "ownerReferences": [self.owner_reference()],
        });
        Ok(serde_json::from_value(body)?)
    }

    fn api<K: Child>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Applies, and again over what a fresh read shows: the second time must make no write.
    async fn settles<K: Child>(&self, name: &str, body: Value) -> Result<K> {
        let wanted: K = self.child(name, body)?;
        let first = self.applier.apply(&self.key, wanted.clone(), None).await?;
        assert!(first.written);
        let observed = self.api::<K>().get(name).await?;
        let second = self
            .applier
            .apply(&self.key, wanted, Some(&observed))
            .await?;
        assert!(
            !second.written,
            "{} {name} is written again and again",
            K::kind(&())
        );
        Ok(second.object)
    }
}

fn stateful_set() -> Value {
    json!({"spec": {
        "replicas": 2, "serviceName": "cache-nodes", "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": {"app": "cache"}},
        "updateStrategy": {"type": "OnDelete"},
        "template": {
            "metadata": {"labels": {"app": "cache"}},
            "spec": {
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 30,
                "securityContext": {"runAsNonRoot": true, "fsGroup": 999, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "redis", "image": "redis:7",
                    "env": [{"name": "EMPTY", "value": ""}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                    "ports": [{"name": "client", "containerPort": 6379}],
                    "resources": {"requests": {"cpu": "0.25", "memory": "1024Mi"}, "limits": {"memory": "1.5Gi"}},
                    "readinessProbe": {"exec": {"command": ["ready"]}, "periodSeconds": 2},
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}]
                }],
                "volumes": [{"name": "tmp", "emptyDir": {}}]
            }
        },
        "volumeClaimTemplates": [{
            "metadata": {"name": "data"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1024Mi"}}}
        }]
    }})
}

#[tokio::test]
async fn a_second_apply_makes_no_write() -> Result<()> {
    let server = api_server().await?;
    let world = world(&server).await?;
    let config = json!({"data": {"redis.conf": "appendonly yes\n", "empty": ""}});
    world.settles::<ConfigMap>("config", config).await?;
    world.settles::<StatefulSet>("set", stateful_set()).await?;
    let headless = json!({"spec": {"clusterIP": "None", "publishNotReadyAddresses": true, "selector": {"app": "cache"}, "ports": [{"name": "client", "port": 6379}, {"name": "bus", "port": 16379, "targetPort": 16379}]}});
    world.settles::<Service>("nodes", headless).await?;
    let clients = json!({"spec": {"selector": {"app": "cache"}, "ports": [{"name": "client", "port": 6379, "targetPort": "client"}]}});
    world.settles::<Service>("clients", clients).await?;
    let budget =
        json!({"spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "cache"}}}});
    world
        .settles::<PodDisruptionBudget>("budget", budget)
        .await?;
    let policy = json!({"spec": {"podSelector": {"matchLabels": {"app": "cache"}}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 6379, "protocol": "TCP"}]}]}});
    world.settles::<NetworkPolicy>("policy", policy).await?;
    Ok(())
}

#[tokio::test]
async fn an_edit_by_another_user_is_undone_and_additions_stay() -> Result<()> {
    let server = api_server().await?;
    let world = world(&server).await?;
    let body = json!({"data": {"a": "1"}});
    world.settles::<ConfigMap>("config", body.clone()).await?;
    let edit = json!({"data": {"a": "2", "b": "theirs"}});
    let edited = world
        .api::<ConfigMap>()
        .patch("config", &PatchParams::default(), &Patch::Merge(edit))
        .await?;
    let wanted = world.child("config", body)?;
    let applied = world
        .applier
        .apply(&world.key, wanted, Some(&edited))
        .await?;
    assert!(applied.written);
    let data = applied.object.data.context("no data")?;
    assert_eq!((data["a"].as_str(), data["b"].as_str()), ("1", "theirs"));
    Ok(())
}

#[tokio::test]
async fn what_is_no_longer_wanted_goes() -> Result<()> {
    let server = api_server().await?;
    let world = world(&server).await?;
    let before = json!({"data": {"a": "1", "b": "2"}});
    let observed = world.settles::<ConfigMap>("config", before).await?;
    let wanted = world.child("config", json!({"data": {"a": "1"}}))?;
    let applied = world
        .applier
        .apply(&world.key, wanted, Some(&observed))
        .await?;
    assert!(!applied.object.data.context("no data")?.contains_key("b"));
    Ok(())
}

#[tokio::test]
async fn an_object_of_another_owner_is_not_taken_over() -> Result<()> {
    let server = api_server().await?;
    let world = world(&server).await?;
    let theirs: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "config"}, "data": {"precious": "1"}}))?;
    let observed = world
        .api::<ConfigMap>()
        .create(&PostParams::default(), &theirs)
        .await?;
    let wanted = world.child("config", json!({"data": {}}))?;
    let error = world
        .applier
        .apply(&world.key, wanted, Some(&observed))
        .await
        .unwrap_err();
    assert!(matches!(error, ApiError::Foreign { .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn deletion_is_of_the_observed_object_only() -> Result<()> {
    let server = api_server().await?;
    let world = world(&server).await?;
    let old = world
        .settles::<ConfigMap>("config", json!({"data": {"a": "1"}}))
        .await?;
    world.applier.delete(&world.key, &old).await?;
    world.applier.delete(&world.key, &old).await?;
    let new = world
        .settles::<ConfigMap>("config", json!({"data": {"a": "1"}}))
        .await?;
    world.applier.delete(&world.key, &old).await?;
    let found = world.api::<ConfigMap>().get("config").await?;
    assert_eq!(found.uid(), new.uid());
    Ok(())
}

#[tokio::test]
async fn caches_catch_up_with_what_was_written() -> Result<()> {
    let server = api_server().await?;
    let world = world(&server).await?;
    let (store, writer) = reflector::store::<ConfigMap>();
    let events = watcher(world.api::<ConfigMap>(), watcher::Config::default())
        .default_backoff()
        .reflect(writer);
    let mut events = std::pin::pin!(events);
    while !matches!(events.next().await, Some(Ok(watcher::Event::InitDone))) {}
    let mut check = async |name: &str| -> Result<()> {
        let look = || {
            let (key, now) = (&world.key, Instant::now());
            world.expectations.check(key, name, &store, now)
        };
        let first = look();
        assert!(matches!(first, Freshness::Behind(_)), "{name}: {first:?}");
        while look() != Freshness::Current {
            events.next().await.context("the watch ended")??;
        }
        Ok(())
    };
    for name in ["a", "b"] {
        let wanted: ConfigMap = world.child(name, json!({"data": {"k": "1"}}))?;
        world.applier.apply(&world.key, wanted, None).await?;
    }
    // Newest first: the watch shows writes in order.
    check("b").await?;
    assert_eq!(
        world
            .expectations
            .check(&world.key, "a", &store, Instant::now()),
        Freshness::Current
    );
    let observed = world.api::<ConfigMap>().get("a").await?;
    world.applier.delete(&world.key, &observed).await?;
    check("a").await?;
    assert_eq!(
        store.len(),
        1 + usize::from(store.find(|c| c.name_any() == "kube-root-ca.crt").is_some())
    );
    Ok(())
}

#[tokio::test]
async fn a_status_is_written_only_over_the_one_it_read() -> Result<()> {
    let server = api_server().await?;
    let world = world(&server).await?;
    let api = world.api::<RedisBackup>();
    let found = |reason| ConditionUpdate::no("Complete", reason, "for a test");
    let mut wanted = RedisBackupStatus {
        phase: Some("Waiting".into()),
        message: Some("for a replica".into()),
        conditions: conditions::merge(&[], &[found("Waiting")], Some(1), Timestamp::now()),
        ..RedisBackupStatus::default()
    };
    let first = status::write(&api, &world.owner, &wanted)
        .await?
        .context("no write")?;
    assert_eq!(
        first.status.as_ref().and_then(|s| s.phase.as_deref()),
        Some("Waiting")
    );
    // The same updates a moment later, over what the server answered.
    let seen = first.status.clone().unwrap_or_default();
    wanted.conditions = conditions::merge(
        &seen.conditions,
        &[found("Waiting")],
        Some(1),
        Timestamp::now(),
    );
    assert!(status::write(&api, &first, &wanted).await?.is_none());
    wanted.message = None;
    let second = status::write(&api, &first, &wanted)
        .await?
        .context("no write")?;
    assert_eq!(second.status.as_ref().and_then(|s| s.message.clone()), None);
    wanted.phase = Some("Failed".into());
    let error = status::write(&api, &first, &wanted).await.unwrap_err();
    assert!(matches!(error, ApiError::Conflict { .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn finalizers_come_and_go_beside_those_of_others() -> Result<()> {
    let server = api_server().await?;
    let world = world(&server).await?;
    let api = world.api::<RedisBackup>();
    let ours = crds::FINALIZER_ARTIFACTS;
    let bare = world.owner.clone();
    finalizer::add(&api, &bare, ours).await?;
    let error = finalizer::add(&api, &bare, ours).await.unwrap_err();
    assert!(matches!(error, ApiError::Conflict { .. }), "{error}");
    let theirs = json!({"metadata": {"finalizers": [ours, "example.com/theirs"]}});
    let both = api
        .patch("owner", &PatchParams::default(), &Patch::Merge(theirs))
        .await?;
    finalizer::add(&api, &both, ours).await?;
    finalizer::remove(&api, &both, ours).await?;
    let left = api.get("owner").await?;
    assert_eq!(left.finalizers(), ["example.com/theirs"]);
    finalizer::add(&api, &left, ours).await?;
    let both = api.get("owner").await?;
    assert_eq!(both.finalizers(), ["example.com/theirs", ours]);
    api.delete("owner", &kube::api::DeleteParams::default())
        .await?;
    let deleting = api.get("owner").await?;
    assert!(deleting.metadata.deletion_timestamp.is_some() && finalizer::is_set(&deleting, ours));
    finalizer::remove(&api, &deleting, ours).await?;
    let last = json!({"metadata": {"finalizers": null}});
    api.patch("owner", &PatchParams::default(), &Patch::Merge(last))
        .await?;
    eventually("it is gone", async || {
        Ok(api.get_opt("owner").await?.is_none().then_some(()))
    })
    .await?;
    finalizer::remove(&api, &deleting, ours).await?;
    Ok(())
}
