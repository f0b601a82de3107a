//! Server-side apply of typed child objects, skipped when the cache already shows what is wanted.

use super::{
    call::{self, ApiError},
    drift,
    expectations::{Expectations, OwnerKey},
    hash,
};
use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{fmt::Debug, sync::Arc};

/// A child object as the server has it.
#[derive(Clone, Debug)]
pub struct Applied<K> {
    /// What the server answered, or the observed object where nothing had to be written.
    pub object: K,
    /// Whether a write was made.
    pub written: bool,
}

/// Applies objects under one field manager.
#[derive(Clone)]
pub struct Applier {
    client: Client,
    manager: &'static str,
    expectations: Option<Arc<Expectations>>,
}

/// What a child object has to be able to do.
pub trait Child:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Serialize
    + DeserializeOwned
    + Clone
    + Debug
    + Send
    + Sync
    + 'static
{
}

impl<K> Child for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Serialize
        + DeserializeOwned
        + Clone
        + Debug
        + Send
        + Sync
        + 'static
{
}

impl Applier {
    /// `manager` is the field manager: one name for each binary. Who decides on caches gives the expectations it checks before; who
    /// reads live before every write needs none.
    pub fn new(
        client: Client,
        manager: &'static str,
        expectations: impl Into<Option<Arc<Expectations>>>,
    ) -> Self {
        Self {
            client,
            manager,
            expectations: expectations.into(),
        }
    }

    /// Makes the server's object what is wanted. `observed` is the cache's copy. No call is made when it carries the hash
    /// of what is wanted and still shows every wanted field. An object of another owner is never taken over.
    pub fn apply<'a, K: Child>(
        &'a self,
        owner: &'a OwnerKey,
        wanted: K,
        observed: Option<&'a K>,
    ) -> BoxFuture<'a, Result<Applied<K>, ApiError>> {
        // Boxed: a typed StatefulSet would make the future of every caller many kilobytes long.
        self.apply_if_needed(owner, wanted, observed).boxed()
    }

    async fn apply_if_needed<K: Child>(
        &self,
        owner: &OwnerKey,
        mut wanted: K,
        observed: Option<&K>,
    ) -> Result<Applied<K>, ApiError> {
        let what = describe("apply", &wanted);
        let rendered = to_json(&what, &wanted)?;
        let hash = hash::hash_value(&rendered);
        if let Some(observed) = observed {
            if let Some(owner) = foreign_owner(&wanted, observed) {
                return Err(ApiError::Foreign { what, owner });
            }
            if applied_hash(observed) == Some(&hash)
                && drift::contains(&rendered, &to_json(&what, observed)?)
            {
                return Ok(Applied {
                    object: observed.clone(),
                    written: false,
                });
            }
        }
        wanted
            .annotations_mut()
            .insert(crds::ANNOTATION_APPLIED_HASH.to_string(), hash);
        let parameters = PatchParams::apply(self.manager).force().validation_strict();
        let api = self.api(&wanted);
        let name = wanted.name_any();
        let patch = Patch::Apply(&wanted);
        let object = call::write(what, api.patch(&name, &parameters, &patch)).await?;
        if let Some(expectations) = &self.expectations {
            expectations.wrote(owner, &object);
        }
        Ok(Applied {
            object,
            written: true,
        })
    }

    /// The server's object of that name, ours or not: for one that what we watch or list does not show.
    pub async fn find<K: Child>(&self, wanted: &K) -> Result<Option<K>, ApiError> {
        let (api, name) = (self.api(wanted), wanted.name_any());
        call::read_optional(describe("get", wanted), api.get(&name)).await
    }

    /// Deletes an object if it is still the one that was observed; gone already is fine. Its own children go in the background.
    pub async fn delete<K: Child>(&self, owner: &OwnerKey, observed: &K) -> Result<(), ApiError> {
        let children = PropagationPolicy::Background;
        self.delete_with(owner, observed, children).await
    }

    /// The same, and its own children stay.
    pub async fn orphan<K: Child>(&self, owner: &OwnerKey, observed: &K) -> Result<(), ApiError> {
        let children = PropagationPolicy::Orphan;
        self.delete_with(owner, observed, children).await
    }

    async fn delete_with<K: Child>(
        &self,
        owner: &OwnerKey,
        observed: &K,
        children: PropagationPolicy,
    ) -> Result<(), ApiError> {
        let name = observed.name_any();
        let uid = observed.uid();
        let parameters = DeleteParams {
            propagation_policy: Some(children),
            preconditions: Some(Preconditions {
                uid: uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let api = self.api(observed);
        let what = describe("delete", observed);
        match call::write(what, api.delete(&name, &parameters)).await {
            Ok(_) => {
                if let Some(expectations) = &self.expectations {
                    expectations.deleted::<K>(owner, &name, &uid.unwrap_or_default());
                }
                Ok(())
            }
            // Not found, or another object by now has the name: the observed one is gone.
            Err(ApiError::NotFound { .. } | ApiError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn api<K: Child>(&self, object: &K) -> Api<K> {
        match object.namespace() {
            Some(namespace) => Api::namespaced(self.client.clone(), &namespace),
            None => Api::default_namespaced(self.client.clone()),
        }
    }
}

fn describe<K: Child>(verb: &str, object: &K) -> String {
    let namespace = object.namespace().unwrap_or_default();
    format!("{verb} {} {namespace}/{}", K::kind(&()), object.name_any())
}

fn to_json<K: Serialize>(what: &str, object: &K) -> Result<Value, ApiError> {
    serde_json::to_value(object).map_err(|error| ApiError::Malformed {
        what: what.to_string(),
        message: error.to_string(),
    })
}

fn applied_hash<K: Resource>(object: &K) -> Option<&String> {
    object.annotations().get(crds::ANNOTATION_APPLIED_HASH)
}

/// The owner of the observed object, when it is not ours. Ours is what our owner controls, or what has no controller and carries
/// our hash.
fn foreign_owner<K: Resource>(wanted: &K, observed: &K) -> Option<String> {
    let controller = |object: &K| {
        let mut owners = object.owner_references().iter();
        owners.find(|owner| owner.controller == Some(true)).cloned()
    };
    match (controller(wanted), controller(observed)) {
        (Some(ours), Some(theirs)) if ours.uid == theirs.uid => None,
        (_, Some(theirs)) => Some(format!("controlled by {} {}", theirs.kind, theirs.name)),
        (_, None) if applied_hash(observed).is_some() => None,
        (_, None) => Some("not created by this operator".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::{
        api::core::v1::ConfigMap,
        apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    };

    fn config_map(owner: Option<&str>, hash: bool) -> ConfigMap {
        let owner_reference = |uid: &str| OwnerReference {
            api_version: "redis.danieldorado.github.io/v1alpha1".into(),
            kind: "RedisCluster".into(),
            name: "cache".into(),
            uid: uid.into(),
            controller: Some(true),
            block_owner_deletion: None,
        };
        let mut object = ConfigMap {
            metadata: ObjectMeta {
                name: Some("cache-config".into()),
                namespace: Some("shop".into()),
                owner_references: owner.map(|uid| vec![owner_reference(uid)]),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        };
        if hash {
            object
                .annotations_mut()
                .insert(crds::ANNOTATION_APPLIED_HASH.into(), "v1-0".into());
        }
        object
    }

    #[test]
    fn an_object_of_another_owner_is_not_ours() {
        let wanted = config_map(Some("u1"), false);
        assert_eq!(foreign_owner(&wanted, &config_map(Some("u1"), false)), None);
        assert_eq!(foreign_owner(&wanted, &config_map(None, true)), None);
        assert!(foreign_owner(&wanted, &config_map(Some("u2"), true)).is_some());
        assert!(foreign_owner(&wanted, &config_map(None, false)).is_some());
        let unowned = config_map(None, false);
        assert_eq!(foreign_owner(&unowned, &config_map(None, true)), None);
        assert!(foreign_owner(&unowned, &config_map(Some("u1"), true)).is_some());
    }

    #[test]
    fn calls_are_named_by_object() {
        assert_eq!(
            describe("apply", &config_map(None, false)),
            "apply ConfigMap shop/cache-config"
        );
    }
}
