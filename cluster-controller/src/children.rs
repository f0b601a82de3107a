//! Puts the rendered objects into the cluster, in an order that lets pods start at once.

use crate::{
    build::Children,
    context::Context,
    errors::Failure,
    leftovers::{unused_config_maps, unused_services},
    pods::Pods,
    sets::{ExistingSet, SetSize},
    settings::{
        file::{Configuration, Configurations},
        template::{NamedTemplate, NamedTemplates},
    },
    validate::{Shape, ValidatedCluster},
    volumes::{applicable, is_outgrown},
};
use common::kubernetes::{
    apply::Child,
    call::ApiError,
    expectations::{Freshness, OwnerKey},
};
use crds::{LABEL_SHARD, stateful_set_name};
use k8s_openapi::{NamespaceResourceScope, api::apps::v1::StatefulSet};
use kube::{
    Resource, ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
use std::{sync::Arc, time::Instant};

/// The StatefulSets of a cluster, as the cache shows them.
pub fn existing_sets(context: &Context, shape: &Shape) -> Vec<ExistingSet> {
    let sets = &context.caches.stateful_sets;
    let sets = sets.of(&shape.namespace, &shape.name);
    let size = |set: &Arc<StatefulSet>| {
        let shard = set.labels().get(LABEL_SHARD)?.parse().ok()?;
        let pods = set.spec.replicas?;
        (set.name_any() == stateful_set_name(&shape.name, shard))
            .then_some(ExistingSet { shard, pods })
    };
    sets.iter().filter_map(size).collect()
}

/// What the StatefulSets of a cluster name, as the cache shows them.
pub fn templates(context: &Context, shape: &Shape) -> NamedTemplates {
    let sets = &context.caches.stateful_sets;
    let sets = sets.of(&shape.namespace, &shape.name);
    let named = sets.iter().filter_map(|set| {
        let shard = set.labels().get(LABEL_SHARD)?.parse().ok()?;
        Some((shard, NamedTemplate::of(set)?))
    });
    named.collect()
}

/// The configurations of a cluster, as the cache shows them.
pub fn configurations(context: &Context, shape: &Shape) -> Configurations {
    let maps = &context.caches.config_maps;
    let maps = maps.of(&shape.namespace, &shape.name);
    let read = maps
        .iter()
        .filter_map(|map| Some((map.name_any(), Configuration::of(map)?)));
    read.collect()
}

/// Makes the children what they are wanted to be, and deletes the StatefulSets of these shards and what nothing uses any more. One that
/// is refused does not keep the others from being made.
pub async fn apply(
    context: &Context,
    owner: &OwnerKey,
    children: Children,
    removed: &[i32],
    pods: &Pods,
) -> Result<(), ApiError> {
    let configuration = children.config_map.name_any();
    let Children {
        config_map,
        headless_service,
        client_service,
        access_services,
        keeps_access,
        disruption_budget,
        network_policy,
        stateful_sets,
    } = children;
    let caches = &context.caches;
    // The pods need the ConfigMap to start and the headless Service for their names; the rest can follow.
    let mut results = vec![
        one(context, owner, &caches.config_maps, config_map).await,
        one(context, owner, &caches.services, headless_service).await,
    ];
    let sets = stateful_sets.into_iter().filter_map(|set| {
        let observed = ObjectRef::<StatefulSet>::new(&set.name_any()).within(&owner.namespace);
        let observed = caches.stateful_sets.get(&observed);
        let set = applicable(set, observed.as_deref())?;
        Some(one(context, owner, &caches.stateful_sets, set))
    });
    results.extend(futures::future::join_all(sets).await);
    results.push(one(context, owner, &caches.services, client_service).await);
    let wanted: Vec<String> = access_services.iter().map(ResourceExt::name_any).collect();
    let services = access_services.into_iter();
    let services = services.map(|service| one(context, owner, &caches.services, service));
    results.extend(futures::future::join_all(services).await);
    let keeping = keeps_access.then_some(pods);
    let services = caches.services.of(&owner.namespace, &owner.name);
    let services = unused_services(&owner.name, &services, &wanted, keeping);
    results.push(delete_all(context, owner, &caches.services, services).await);
    results.push(
        optional(
            context,
            owner,
            &caches.disruption_budgets,
            disruption_budget,
        )
        .await,
    );
    results.push(optional(context, owner, &caches.network_policies, network_policy).await);
    let removed = removed.iter();
    let removed = removed.map(|shard| stateful_set_name(&owner.name, *shard));
    let removed = removed.collect();
    results.push(delete_all(context, owner, &caches.stateful_sets, removed).await);
    let maps = unused_maps(context, owner, &configuration, pods);
    results.push(delete_all(context, owner, &caches.config_maps, maps).await);
    // What the user has to correct is reported before what ends by itself.
    let (transient, refused): (Vec<_>, Vec<_>) = results
        .into_iter()
        .filter_map(Result::err)
        .partition(|error| Failure::of(error).transient);
    match refused.into_iter().chain(transient).next() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Makes one child what it is wanted to be.
pub async fn one<K>(
    context: &Context,
    owner: &OwnerKey,
    cache: &Store<K>,
    wanted: K,
) -> Result<(), ApiError>
where
    K: Child + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let name = wanted.name_any();
    let reference = ObjectRef::<K>::new(&name).within(&owner.namespace);
    let cached = cache.get(&reference);
    let freshness = context
        .expectations
        .check(owner, &name, cache, Instant::now());
    let observed = match (freshness, cached) {
        // The watch will trigger the next reconcile.
        (Freshness::Behind(_), _) => return Ok(()),
        (Freshness::Current, Some(cached)) => Some(cached.as_ref().clone()),
        // The cache holds only what carries our label: look whether the name is taken.
        (Freshness::Current, None) | (Freshness::Unknown, _) => {
            context.applier.find(&wanted).await?
        }
    };
    context
        .applier
        .apply(owner, wanted, observed.as_ref())
        .await
        .map(drop)
}

/// Deletes a StatefulSet whose claims have another size, so that the next reconcile creates it again. Its pods run on. One at a time, and
/// none while another one is away.
pub async fn recreate_outgrown(
    context: &Context,
    owner: &OwnerKey,
    cluster: &ValidatedCluster,
    sizes: &[SetSize],
) -> Result<(), ApiError> {
    let cache = &context.caches.stateful_sets;
    let mut sets = cache.of(&owner.namespace, &owner.name);
    let now = Instant::now();
    let is_settled = |set: &Arc<StatefulSet>| {
        let freshness = context
            .expectations
            .check(owner, &set.name_any(), cache, now);
        set.metadata.deletion_timestamp.is_none() && freshness == Freshness::Current
    };
    if sets.len() < sizes.len() || !sets.iter().all(is_settled) {
        return Ok(());
    }
    sets.retain(|set| is_outgrown(cluster, set));
    match sets.iter().min_by_key(|set| set.name_any()) {
        Some(set) => {
            let (namespace, name) = (&owner.namespace, set.name_any());
            tracing::info!(
                namespace,
                name,
                "StatefulSet is created again: its volumes have grown"
            );
            context.applier.orphan(owner, set.as_ref()).await
        }
        None => Ok(()),
    }
}

fn unused_maps(context: &Context, owner: &OwnerKey, current: &str, pods: &Pods) -> Vec<String> {
    let caches = &context.caches;
    let (namespace, name) = (&owner.namespace, &owner.name);
    let maps = caches.config_maps.of(namespace, name);
    let sets = caches.stateful_sets.of(namespace, name);
    let unused = unused_config_maps(current, maps, pods, &sets);
    unused.iter().map(|map| map.name_any()).collect()
}

/// Deletes the cached objects of these names, as far as the cluster owns them.
async fn delete_all<K>(
    context: &Context,
    owner: &OwnerKey,
    cache: &Store<K>,
    names: Vec<String>,
) -> Result<(), ApiError>
where
    K: Child + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    for name in names {
        delete_owned(context, owner, cache, &name).await?;
    }
    Ok(())
}

/// Deletes a cached object, if the cluster owns it.
async fn delete_owned<K>(
    context: &Context,
    owner: &OwnerKey,
    cache: &Store<K>,
    name: &str,
) -> Result<(), ApiError>
where
    K: Child + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let reference = ObjectRef::<K>::new(name).within(&owner.namespace);
    let ours = cache.get(&reference).filter(|object| {
        let mut owners = object.owner_references().iter();
        owners.any(|reference| reference.uid == owner.uid)
    });
    match ours {
        Some(object) => context.applier.delete(owner, object.as_ref()).await,
        None => Ok(()),
    }
}

/// Makes a child of the cluster's name what it is wanted to be, or deletes it.
async fn optional<K>(
    context: &Context,
    owner: &OwnerKey,
    cache: &Store<K>,
    wanted: Option<K>,
) -> Result<(), ApiError>
where
    K: Child + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match wanted {
        Some(wanted) => one(context, owner, cache, wanted).await,
        None => delete_owned(context, owner, cache, &owner.name).await,
    }
}
