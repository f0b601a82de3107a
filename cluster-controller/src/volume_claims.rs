//! Reads and writes the volume claims of a cluster.

use crate::{
    context::Context,
    validate::Shape,
    volumes::{self, ClaimChange, ClaimPatch, Claims, Growth, Refusal},
};
use common::{
    errors::{Classified, ErrorClass},
    kubernetes::call::{self, ApiError},
};
use crds::MANAGER_CLUSTER;
use futures::{StreamExt, stream};
use k8s_openapi::{
    api::core::v1::PersistentVolumeClaim,
    apimachinery::pkg::api::resource::Quantity,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

/// Patches sent at the same time.
const CONCURRENCY: usize = 8;
/// A size that was refused is asked for again after this time: what refuses it is changed by a person.
const RETRY: SignedDuration = SignedDuration::from_mins(1);

/// The claims that the cache has.
pub fn cached(context: &Context, shape: &Shape) -> Claims {
    let claims = &context.caches.claims;
    let claims = claims.of(&shape.namespace, &shape.name);
    volumes::of_cluster(&shape.name, claims)
}

/// Writes owner references. A claim that was deleted or created again in the meantime is left alone.
pub async fn write_ties(
    context: &Context,
    namespace: &str,
    patches: Vec<ClaimPatch>,
) -> Result<(), ApiError> {
    let results: Vec<Result<(), ApiError>> = stream::iter(patches)
        .map(|ClaimPatch { claim, change }| async move {
            let (verb, owner) = match change {
                ClaimChange::Tie(owner) => ("tie", json!(owner)),
                ClaimChange::Untie { uid } => ("untie", json!({"$patch": "delete", "uid": uid})),
            };
            let body = json!({"metadata": {"uid": claim.metadata.uid, "ownerReferences": [owner]}});
            let written = send(context, namespace, verb, &claim, body).await;
            written.or_else(|error| {
                let is_another =
                    matches!(error, ApiError::NotFound { .. } | ApiError::Conflict { .. });
                if is_another { Ok(()) } else { Err(error) }
            })
        })
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await;
    results.into_iter().collect()
}

/// Lets the claims ask for more. What the API server refuses is remembered and becomes a part of what is known of the growth.
pub async fn ask_for_more(
    context: &Context,
    place: (&str, &str),
    growth: &mut Growth,
) -> Result<(), ApiError> {
    let Some(size) = growth.ask.clone() else {
        return Ok(());
    };
    for claim in growth.small.clone() {
        let body = json!({
            "metadata": {"uid": claim.metadata.uid},
            "spec": {"resources": {"requests": {"storage": size}}},
        });
        match send(context, place.0, "grow", &claim, body).await {
            Ok(()) => {}
            Err(error) => {
                let refusal = refusal(&claim, size, error)?;
                context.resizes.refused(place, refusal.clone());
                growth.refused(refusal);
                return Ok(());
            }
        }
    }
    context.resizes.forget(place.0, place.1);
    Ok(())
}

/// What a person has to change; an error that may end by itself is given back.
fn refusal(
    claim: &PersistentVolumeClaim,
    size: Quantity,
    error: ApiError,
) -> Result<Refusal, ApiError> {
    let (reason, words) = if let ApiError::Denied { message, .. } = &error
        && message.contains("storageclass")
    {
        let cure = "set allowVolumeExpansion: true in its StorageClass";
        ("RefusedByStorageClass", format!("{message}; {cure}"))
    } else {
        (error.reason(), error.to_string())
    };
    match error.class() {
        ErrorClass::Forbidden | ErrorClass::InvalidSpec | ErrorClass::Bug => Ok(Refusal {
            claim: claim.name_any(),
            size,
            reason,
            words,
            retry: Timestamp::now() + RETRY,
        }),
        ErrorClass::Transient | ErrorClass::Conflict | ErrorClass::Fenced => Err(error),
    }
}

async fn send(
    context: &Context,
    namespace: &str,
    verb: &str,
    claim: &PersistentVolumeClaim,
    body: Value,
) -> Result<(), ApiError> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    let name = claim.name_any();
    let parameters = PatchParams {
        field_manager: Some(MANAGER_CLUSTER.to_owned()),
        ..PatchParams::default()
    };
    let what = format!("{verb} PersistentVolumeClaim {namespace}/{name}");
    // Strategic: the owner references of others stay.
    let patch = Patch::Strategic(&body);
    call::write(what, api.patch(&name, &parameters, &patch)).await?;
    tracing::info!(namespace, claim = name, verb, "volume claim changed");
    Ok(())
}
