//! Writes to pods: the role label, the serving condition, which is their readiness gate, and annotations about settings.

use crate::context::Context;
use common::kubernetes::call::{self, ApiError};
use crds::{LABEL_ROLE, MANAGER_CLUSTER};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use std::sync::Arc;

/// Patches sent at the same time.
const CONCURRENCY: usize = 8;

/// A pod and what has to be written into it.
#[derive(Clone, Debug, PartialEq)]
pub struct PodPatch {
    /// The pod as it was looked at.
    pub pod: Arc<Pod>,
    /// What is written into it.
    pub change: PodChange,
}

/// What is written into a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum PodChange {
    /// The value of the role label.
    Role(&'static str),
    /// The serving condition.
    Serving(PodCondition),
    /// An annotation: its name and its value.
    Annotation(&'static str, String),
}

/// Writes them all. A pod that was replaced in the meantime is left alone.
pub async fn write(
    context: &Context,
    namespace: &str,
    patches: Vec<PodPatch>,
) -> Result<(), ApiError> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let results: Vec<Result<(), ApiError>> = stream::iter(patches)
        .map(|one| send(api.clone(), namespace, one))
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await;
    results.into_iter().collect()
}

async fn send(api: Api<Pod>, namespace: &str, one: PodPatch) -> Result<(), ApiError> {
    let (name, uid) = (one.pod.name_any(), &one.pod.metadata.uid);
    let parameters = PatchParams {
        field_manager: Some(MANAGER_CLUSTER.to_owned()),
        ..PatchParams::default()
    };
    let written = match &one.change {
        PodChange::Role(role) => {
            let what = format!("label Pod {namespace}/{name} as {role}");
            let body = json!({"metadata": {"uid": uid, "labels": {LABEL_ROLE: role}}});
            call::write(what, api.patch(&name, &parameters, &Patch::Merge(&body))).await
        }
        PodChange::Annotation(key, value) => {
            let what = format!("annotate Pod {namespace}/{name} with {key}");
            let body = json!({"metadata": {"uid": uid, "annotations": {*key: value}}});
            call::write(what, api.patch(&name, &parameters, &Patch::Merge(&body))).await
        }
        PodChange::Serving(condition) => {
            let reason = condition.reason.as_deref().unwrap_or_default();
            let what = format!("report Pod {namespace}/{name} as {reason}");
            let body = json!({"metadata": {"uid": uid}, "status": {"conditions": [condition]}});
            // Strategic: the conditions of others stay.
            let patch = Patch::Strategic(&body);
            call::write(what, api.patch_status(&name, &parameters, &patch)).await
        }
    };
    match written {
        Err(error) if !is_outdated(&error) => Err(error),
        // The next reconcile sees the new pod.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Whether the pod was deleted or replaced meanwhile. The API server calls another uid a value that cannot be changed (422).
fn is_outdated(error: &ApiError) -> bool {
    let gone = matches!(error, ApiError::NotFound { .. } | ApiError::Conflict { .. });
    let replaced =
        matches!(error, ApiError::Invalid { message, .. } if message.contains("metadata.uid"));
    gone || replaced
}
