//! Under `--watch-namespace` no controller touches the objects of another namespace.

use anyhow::{Context, Result, ensure};
use crds::{
    LocalRef, RedisBackup, RedisBackupSpec, RedisCluster, RedisClusterSpec, RedisRestore,
    RedisRestoreSpec, RestoreSource, RestoreTarget,
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Secret, Service},
        events::v1::Event,
    },
};
use kube::{
    Api, Client, Resource,
    api::{ListParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt::Debug, time::Duration};
use tests::{
    kubernetes::api_server,
    replica::{Replica, ReplicaEnd, ReplicaSettings},
    wait::eventually,
};

const LEASE: Duration = Duration::from_secs(10);

fn cluster() -> RedisCluster {
    let spec = RedisClusterSpec {
        image: Some("redis".into()),
        shards: 3,
        ..RedisClusterSpec::default()
    };
    RedisCluster::new("cart", spec)
}

fn named(name: &str) -> LocalRef {
    LocalRef { name: name.into() }
}

fn backup() -> RedisBackup {
    let spec = RedisBackupSpec {
        cluster_ref: named("cart"),
        storage_name: Some("s3".into()),
        attempts: 3,
        ..RedisBackupSpec::default()
    };
    RedisBackup::new("cart", spec)
}

fn restore() -> RedisRestore {
    let spec = RedisRestoreSpec {
        source: RestoreSource {
            backup_ref: Some(named("cart")),
            location: None,
        },
        target: RestoreTarget {
            cluster_ref: Some(named("other")),
            new_cluster: None,
        },
        attempts: 3,
    };
    RedisRestore::new("cart", spec)
}

fn settings(program: &'static str, namespace: &str) -> ReplicaSettings {
    ReplicaSettings {
        program,
        identity: "a".into(),
        namespace: namespace.into(),
        lease: LEASE,
        proxy: None,
    }
}

async fn create<K>(client: &Client, namespace: &str, object: &K) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + Debug + Serialize + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    api.create(&PostParams::default(), object).await?;
    Ok(())
}

async fn is_empty<K>(client: &Client, namespace: &str) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let found = api.list(&ListParams::default()).await?.items;
    ensure!(found.is_empty(), "{found:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_namespace_is_left_alone() -> Result<()> {
    let server = api_server().await?;
    let client = &server.client;
    let watched = server.namespace("watched").await?;
    let other = server.namespace("other").await?;
    // The other namespace first: what is watched is reconciled later.
    for namespace in [&other, &watched] {
        create(client, namespace, &cluster()).await?;
        create(client, namespace, &backup()).await?;
        create(client, namespace, &restore()).await?;
    }
    let replicas = [
        Replica::start(
            settings("cluster-controller", &watched),
            cluster_controller::run::start,
        ),
        Replica::start(settings("backup-controller", &watched), |runtime| {
            let arguments = backup_controller::arguments::ControllerArguments {
                streams: 1,
                image: None,
                storage: common::storage::StorageArguments::default(),
            };
            backup_controller::run::control(runtime, arguments)
        }),
        Replica::start(settings("restore-controller", &watched), |runtime| {
            let arguments = restore_controller::arguments::ControllerArguments {
                streams: 1,
                memory_limit: None,
                storage: common::storage::StorageArguments::default(),
            };
            restore_controller::run::control(runtime, arguments)
        }),
    ];
    let clusters: Api<RedisCluster> = Api::namespaced(client.clone(), &watched);
    let backups: Api<RedisBackup> = Api::namespaced(client.clone(), &watched);
    let restores: Api<RedisRestore> = Api::namespaced(client.clone(), &watched);
    eventually("the watched namespace is reconciled", async || {
        Ok(clusters.get("cart").await?.status.is_some()
            && backups.get("cart").await?.status.is_some()
            && restores.get("cart").await?.status.is_some())
    })
    .await?;

    let metas = [
        Api::<RedisCluster>::namespaced(client.clone(), &other)
            .get("cart")
            .await?
            .metadata,
        Api::<RedisBackup>::namespaced(client.clone(), &other)
            .get("cart")
            .await?
            .metadata,
        Api::<RedisRestore>::namespaced(client.clone(), &other)
            .get("cart")
            .await?
            .metadata,
    ];
    for meta in metas {
        let managers = meta.managed_fields.context("no managed fields")?;
        ensure!(
            managers.len() == 1,
            "not only the test wrote: {managers:#?}"
        );
    }
    is_empty::<StatefulSet>(client, &other).await?;
    is_empty::<ConfigMap>(client, &other).await?;
    is_empty::<Service>(client, &other).await?;
    is_empty::<Secret>(client, &other).await?;
    is_empty::<Lease>(client, &other).await?;
    is_empty::<Event>(client, &other).await?;
    for replica in replicas {
        replica.end(ReplicaEnd::Orderly)?;
    }
    Ok(())
}
