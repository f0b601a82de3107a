//! What the schemas have to say of every field, those of tomorrow included.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a schema that is not as expected fails the test

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray,
};
use std::collections::BTreeSet;

fn schema(kind: &str, part: &str) -> JSONSchemaProps {
    let definition = crds::definitions()
        .into_iter()
        .find(|definition| definition.spec.names.kind == kind)
        .unwrap();
    let version = definition.spec.versions[0].schema.clone().unwrap();
    let properties = version.open_api_v3_schema.unwrap().properties.unwrap();
    properties[part].clone()
}

fn fields(schema: &JSONSchemaProps) -> BTreeSet<String> {
    schema
        .properties
        .iter()
        .flatten()
        .map(|(name, _)| name.clone())
        .collect()
}

#[test]
fn a_new_field_is_immutable_until_named() {
    for (kind, mutable) in [
        ("RedisBackup", BTreeSet::from(["deletionPolicy".to_owned()])),
        ("RedisRestore", BTreeSet::new()),
    ] {
        let spec = schema(kind, "spec");
        let rules = spec.x_kubernetes_validations.clone().unwrap();
        let guarded: BTreeSet<String> = rules
            .iter()
            .filter(|rule| rule.rule.contains("oldSelf"))
            .map(|rule| {
                rule.field_path
                    .clone()
                    .unwrap()
                    .trim_matches('.')
                    .to_owned()
            })
            .collect();
        let wanted = &fields(&spec) - &mutable;
        assert!(wanted.len() > 2, "{kind}: {wanted:?}");
        assert_eq!(guarded, wanted, "{kind}");
    }
}

#[test]
fn a_new_object_is_not_observed() {
    for kind in ["RedisCluster", "RedisBackup", "RedisRestore"] {
        let default = schema(kind, "status").default.unwrap().0;
        assert_eq!(default["observedGeneration"], -1, "{kind}");
        assert!(fields(&schema(kind, "status")).contains("observedGeneration"));
    }
}

#[test]
fn every_reserved_setting_is_in_the_rule() {
    let config = schema("RedisCluster", "spec").properties.unwrap()["config"].clone();
    let rules = config.x_kubernetes_validations.unwrap();
    for name in crds::RESERVED_SETTINGS {
        let quoted = format!("'{name}'");
        assert!(
            rules.iter().any(|rule| rule.rule.contains(&quoted)),
            "{name}"
        );
    }
}

/// Two slashes that are not those of an address: a comment's marker that a torn line left in the text.
fn has_comment_marker(text: &str) -> bool {
    text.replace("://", "").contains("//")
}

/// `kubectl explain` of a field without a text says nothing; the texts of embedded Kubernetes types are not ours.
fn undocumented(path: &str, schema: &JSONSchemaProps, found: &mut Vec<String>) {
    for (name, field) in schema.properties.iter().flatten() {
        let path = format!("{path}.{name}");
        match field.description.as_deref() {
            None | Some("") => found.push(path.clone()),
            Some(text) if text.len() > 400 => found.push(format!("{path} ({} bytes)", text.len())),
            Some(text) if has_comment_marker(text) => found.push(format!("{path} (//)")),
            Some(_) => {}
        }
        if !matches!(name.as_str(), "resources" | "conditions") {
            undocumented(&path, field, found);
            if let Some(JSONSchemaPropsOrArray::Schema(items)) = &field.items {
                undocumented(&path, items, found);
            }
        }
    }
}

#[test]
fn every_field_is_explained_briefly() {
    assert!(has_comment_marker("in namespaces th /// operator"));
    assert!(!has_comment_marker("s3://bucket/prefix/"));
    let mut found = Vec::new();
    for kind in [
        "RedisVersion",
        "RedisCluster",
        "RedisBackup",
        "RedisRestore",
    ] {
        undocumented(kind, &schema(kind, "spec"), &mut found);
        if kind != "RedisVersion" {
            undocumented(kind, &schema(kind, "status"), &mut found);
        }
    }
    assert!(
        found.is_empty(),
        "no text, one over 400 bytes, or one with a comment's marker: {}",
        found.join(", ")
    );
}
