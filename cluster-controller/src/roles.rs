//! The role labels of the pods, kept to what the nodes themselves say.

use crate::{
    context::Context,
    observe::Observed,
    pods::{is_terminating, role_label},
    redis::assess::{Assessment, ShardNode},
};
use common::kubernetes::call::{self, ApiError};
use crds::{LABEL_ROLE, MANAGER_CLUSTER, ROLE_PRIMARY, ROLE_REPLICA};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use std::sync::Arc;

/// Patches sent at the same time.
const CONCURRENCY: usize = 8;

/// A pod and what its label has to be.
#[derive(Clone, Debug)]
pub struct Relabel {
    pod: Arc<Pod>,
    role: &'static str,
}

/// Pods whose label differs. Pure.
pub fn differing(observed: &Observed, assessment: &Assessment) -> Vec<Relabel> {
    let relabel = |node: &ShardNode, role| {
        let pod = observed.pods.get(&node.pod)?.clone();
        Some(Relabel { pod, role })
    };
    assessment
        .shards
        .iter()
        .flat_map(|shard| {
            let primary = shard.primary.iter().map(|one| (one, ROLE_PRIMARY));
            let replicas = shard.replicas.iter().map(|one| (one, ROLE_REPLICA));
            primary.chain(replicas)
        })
        .filter_map(|(one, role)| relabel(one, role))
        .filter(|one| !is_terminating(&one.pod) && role_label(&one.pod) != Some(one.role))
        .collect()
}

/// Writes the labels. A pod that was replaced in the meantime is left alone.
pub async fn write(
    context: &Context,
    namespace: &str,
    differing: Vec<Relabel>,
) -> Result<(), ApiError> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let results: Vec<Result<(), ApiError>> = stream::iter(differing)
        .map(|one| label(api.clone(), one))
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await;
    results.into_iter().collect()
}

async fn label(api: Api<Pod>, Relabel { pod, role }: Relabel) -> Result<(), ApiError> {
    let name = pod.name_any();
    let body = json!({"metadata": {"uid": pod.metadata.uid, "labels": {LABEL_ROLE: role}}});
    let parameters = PatchParams {
        field_manager: Some(MANAGER_CLUSTER.to_owned()),
        ..PatchParams::default()
    };
    let what = format!(
        "label Pod {}/{name} as {role}",
        pod.namespace().unwrap_or_default()
    );
    match call::write(what, api.patch(&name, &parameters, &Patch::Merge(&body))).await {
        // Replaced or deleted meanwhile: the next reconcile sees the new one.
        Ok(_) | Err(ApiError::NotFound { .. } | ApiError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
