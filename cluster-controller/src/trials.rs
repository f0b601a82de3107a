//! Carries out the trial of a configuration: the pod that tries it, and what its ConfigMap remembers.

use crate::{
    build::{configuration_name, redis_conf, trial_pod},
    children::{configurations, one},
    context::Context,
    pods::{Pods, is_terminating},
    settings::{
        file::{Configurations, TrialRecord},
        template::NamedTemplates,
        trial::{TrialDecision, TrialInputs, decide, with_record},
    },
    validate::{Shape, ValidatedCluster},
};
use common::kubernetes::{
    call::{self, ApiError},
    expectations::OwnerKey,
    hash::canonical_hash,
};
use crds::{ANNOTATION_TRIALS, MANAGER_CLUSTER};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Pod},
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use std::sync::Arc;

/// What is known of the configurations of a cluster, and what follows from it for the wanted one.
#[derive(Default)]
pub struct Trial {
    /// The ConfigMaps that exist.
    pub configurations: Configurations,
    /// Name of the wanted one.
    pub name: String,
    /// What the StatefulSets name.
    pub templates: NamedTemplates,
    /// What follows.
    pub decision: TrialDecision,
}

/// Decides whether the pods may get the wanted configuration. While they may not, the cluster holds what its StatefulSets name.
pub fn gate(
    context: &Context,
    shape: &Shape,
    cluster: Option<&mut ValidatedCluster>,
    (templates, pods): (NamedTemplates, &Pods),
) -> Trial {
    let Some(cluster) = cluster else {
        return Trial::default();
    };
    let configurations = configurations(context, shape);
    let name = configuration_name(cluster);
    // Never an error: nothing in a pod is no JSON.
    let pod = || canonical_hash(&trial_pod(cluster, "", &name)).unwrap_or_default();
    let mut decision = decide(
        &TrialInputs {
            cluster: &shape.name,
            formed: cluster.formed,
            image: &cluster.server.image,
            name: &name,
            pod: &pod,
            text: &redis_conf(cluster),
            certificates: cluster.shape.encryption.has_certificates(),
            memory_by_limit: cluster.default_maxmemory.is_some(),
            templates: &templates,
            configurations: &configurations,
            trials: &own_trials(context, shape, &cluster.owner.uid),
            pods,
        },
        Timestamp::now(),
    );
    if shape.hibernate {
        // No pod runs; the trial waits for them.
        decision.create = None;
    }
    if !decision.gate.is_open() {
        cluster.held.clone_from(&templates);
    }
    Trial {
        configurations,
        name,
        templates,
        decision,
    }
}

/// The pods that try a configuration of the cluster and that it owns.
fn own_trials(context: &Context, shape: &Shape, uid: &str) -> Vec<Arc<Pod>> {
    let cache = &context.caches.trials;
    let mut pods = cache.of(&shape.namespace, &shape.name);
    pods.retain(|pod| pod.owner_references().iter().any(|owner| owner.uid == uid));
    pods
}

/// Makes the pod that is to try it, remembers how another one ended, and removes those that are not needed any more.
pub async fn carry_out(
    context: &Context,
    owner: &OwnerKey,
    cluster: &ValidatedCluster,
    Trial {
        configurations,
        name,
        decision,
        ..
    }: &Trial,
) -> Result<(), ApiError> {
    if let Some(record) = decision.record.clone() {
        let known = configurations.get(name);
        let known = known.map(|known| known.trials.as_slice());
        let records = with_record(known.unwrap_or_default(), record);
        remember(context, owner, name, &records).await?;
    }
    let stale = decision.delete.iter();
    for pod in stale.filter(|pod| !is_terminating(pod)) {
        context.applier.delete(owner, pod.as_ref()).await?;
    }
    if let Some(pod) = &decision.create {
        let pod = trial_pod(cluster, pod, name);
        Box::pin(one(context, owner, &context.caches.trials, pod)).await?;
    }
    Ok(())
}

async fn remember(
    context: &Context,
    owner: &OwnerKey,
    name: &str,
    records: &[TrialRecord],
) -> Result<(), ApiError> {
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &owner.namespace);
    let parameters = PatchParams {
        field_manager: Some(MANAGER_CLUSTER.to_owned()),
        ..PatchParams::default()
    };
    let what = format!(
        "annotate ConfigMap {}/{name} with {ANNOTATION_TRIALS}",
        owner.namespace
    );
    let text = json!(records).to_string();
    let body = json!({"metadata": {"annotations": {ANNOTATION_TRIALS: text}}});
    call::write(what, api.patch(name, &parameters, &Patch::Merge(&body))).await?;
    Ok(())
}
