//! Replaces pods: deletes them, and their StatefulSets create new ones.

use crate::{context::Context, pods::replace::ReplacePod};
use common::kubernetes::call::{self, ApiError};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, Preconditions},
};

/// Deletes a pod in its time of grace. One that was replaced meanwhile is left alone. Whether it was deleted now.
pub async fn replace(
    context: &Context,
    namespace: &str,
    pod: &ReplacePod,
) -> Result<bool, ApiError> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let parameters = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(pod.uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let what = format!("delete Pod {namespace}/{}", pod.pod);
    match call::write(what, api.delete(&pod.pod, &parameters)).await {
        Ok(_) => {
            tracing::info!(namespace, pod = pod.pod, why = %pod, "pod replaced");
            Ok(true)
        }
        Err(ApiError::NotFound { .. } | ApiError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
