//! Puts the rendered objects into the cluster, in an order that lets pods start at once.

use crate::{build::Children, context::Context, errors::Failure};
use common::kubernetes::{
    apply::Child,
    call::ApiError,
    expectations::{Freshness, OwnerKey},
};
use k8s_openapi::{NamespaceResourceScope, api::policy::v1::PodDisruptionBudget};
use kube::{
    Resource, ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
use std::time::Instant;

/// Makes the children what they are wanted to be. One that is refused does not keep the others from being made.
pub async fn apply(
    context: &Context,
    owner: &OwnerKey,
    children: Children,
) -> Result<(), ApiError> {
    let Children {
        config_map,
        headless_service,
        client_service,
        disruption_budget,
        stateful_sets,
    } = children;
    let caches = &context.caches;
    // The pods need the ConfigMap to start and the headless Service for their names; the rest can follow.
    let mut results = vec![
        one(context, owner, &caches.config_maps, config_map).await,
        one(context, owner, &caches.services, headless_service).await,
    ];
    let sets = stateful_sets
        .into_iter()
        .map(|set| one(context, owner, &caches.stateful_sets, set));
    results.extend(futures::future::join_all(sets).await);
    results.push(one(context, owner, &caches.services, client_service).await);
    results.push(budget(context, owner, disruption_budget).await);
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

async fn one<K>(
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

async fn budget(
    context: &Context,
    owner: &OwnerKey,
    wanted: Option<PodDisruptionBudget>,
) -> Result<(), ApiError> {
    let cache = &context.caches.disruption_budgets;
    if let Some(wanted) = wanted {
        return one(context, owner, cache, wanted).await;
    }
    let reference = ObjectRef::<PodDisruptionBudget>::new(&owner.name).within(&owner.namespace);
    let ours = cache.get(&reference).filter(|budget| {
        budget
            .owner_references()
            .iter()
            .any(|reference| reference.uid == owner.uid)
    });
    match ours {
        Some(budget) => context.applier.delete(owner, budget.as_ref()).await,
        None => Ok(()),
    }
}
