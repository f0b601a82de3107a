//! The API of the Redis Cluster operator suite: `redis.danieldorado.github.io/v1alpha1`.
//!
//! Types as they are sent: what a user writes (`spec`) and what the controllers report (`status`). Rules are in the schemas, so that
//! `kubectl apply` refuses a mistake with a sentence that names field and cure. `make manifests` generates the YAML beside `src/`.

// kube's derive takes one `type_ = "string"` for each column.
#![allow(clippy::duplicated_attributes)]

mod access;
mod auth;
mod monitoring;
mod names;
mod network_policy;
mod own_user;
mod placement;
mod pod_template;
mod redis_backup;
mod redis_cluster;
mod redis_restore;
mod redis_version;
mod reserved_settings;
mod s3;
mod shared;
mod tls;

pub use access::*;
pub use auth::*;
pub use monitoring::*;
pub use names::*;
pub use network_policy::*;
pub use own_user::*;
pub use placement::*;
pub use pod_template::*;
pub use redis_backup::*;
pub use redis_cluster::*;
pub use redis_restore::*;
pub use redis_version::*;
pub use reserved_settings::RESERVED_SETTINGS;
pub use s3::*;
pub use shared::*;
pub use tls::*;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use serde_json::Value;
use std::collections::BTreeMap;

/// Every CustomResourceDefinition of the suite, in the order in which they are applied.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut definitions = vec![
        RedisVersion::crd(),
        RedisCluster::crd(),
        RedisBackup::crd(),
        RedisRestore::crd(),
    ];
    for version in definitions
        .iter_mut()
        .flat_map(|definition| &mut definition.spec.versions)
    {
        let schema = version.schema.as_mut();
        if let Some(schema) = schema.and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            simplify(schema);
        }
    }
    definitions
}

/// An optional field is absent, never null: the API server then removes a null that a patch writes, and `kubectl describe` shows
/// no `<nil>`. Texts are one paragraph, because `kubectl explain`
/// breaks the lines itself.
fn simplify(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    if let Some(text) = &mut schema.description {
        *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    schema
        .properties
        .iter_mut()
        .flat_map(BTreeMap::values_mut)
        .for_each(simplify);
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => simplify(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(simplify),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        simplify(values);
    }
}

/// The YAML file of a CustomResourceDefinition: its name and its text.
pub fn manifest(
    definition: &CustomResourceDefinition,
) -> Result<(String, String), DefinitionError> {
    let mut value = serde_json::to_value(definition)?;
    whole_numbers(&mut value);
    let text = serde_saphyr::to_string(&value)?;
    let file = format!("{}.yaml", definition.spec.names.plural);
    Ok((
        file,
        format!("# Generated from crds/src by `make manifests`.\n{text}"),
    ))
}

/// Why a manifest cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// The definition does not serialise to JSON.
    #[error("a CustomResourceDefinition does not serialise to JSON")]
    Json(#[from] serde_json::Error),
    /// The definition does not serialise to YAML.
    #[error("a CustomResourceDefinition does not serialise to YAML")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

/// The schema types hold bounds as floating point numbers. Whole numbers are written without a fraction: `3`, not `3.0`.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|_| number.is_f64()) {
                #[allow(clippy::cast_possible_truncation)] // bounds are small
                let whole = float as i64;
                #[allow(clippy::cast_precision_loss, clippy::float_cmp)]
                // a bound that is not whole stays as it is
                if whole as f64 == float {
                    *value = whole.into();
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(members) => members.values_mut().for_each(whole_numbers),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}
