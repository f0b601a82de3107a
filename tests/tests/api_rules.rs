//! Every rule of the API: an example that the API server accepts, and one that it refuses with the right sentence.

mod api_rules_support;

use anyhow::{Context, Result};
use api_rules_support::{
    Case,
    clusters::cluster_creations,
    good, merged,
    others::other_creations,
    pods::pod_creations,
    updates::{existing, updates},
    users::user_creations,
};
use common::kubernetes::kstatus::{Kstatus, evaluate};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use std::fs;
use tests::pod_template;

fn api(client: &Client, namespace: &str, kind: &str) -> Api<DynamicObject> {
    let kind_of = GroupVersionKind::gvk(crds::GROUP, crds::VERSION, kind);
    let plural = format!("{}s", kind.to_lowercase());
    let resource = ApiResource::from_gvk_with_plural(&kind_of, &plural);
    match kind {
        "RedisVersion" => Api::all_with(client.clone(), &resource),
        _ => Api::namespaced_with(client.clone(), namespace, &resource),
    }
}

fn judge(case: &Case, answer: Result<DynamicObject, kube::Error>) -> Option<String> {
    let Case { name, kind, .. } = case;
    match (case.refused, answer) {
        (None, Ok(_)) => None,
        (None, Err(error)) => Some(format!("{kind} '{name}' is refused: {error}")),
        (Some(_), Ok(_)) => Some(format!("{kind} '{name}' is taken")),
        (Some(words), Err(error)) => (!error.to_string().contains(words))
            .then(|| format!("{kind} '{name}' is refused with other words: {error}")),
    }
}

/// Names of the fields of a kind's spec.
fn fields(kind: &str) -> Vec<String> {
    let definition = crds::definitions()
        .into_iter()
        .find(|definition| definition.spec.names.kind == kind);
    let definition = serde_json::to_value(definition).unwrap_or_default();
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let fields = definition.pointer(spec).and_then(Value::as_object);
    fields
        .into_iter()
        .flatten()
        .map(|(name, _)| name.clone())
        .collect()
}

#[test]
fn a_change_of_every_field_is_tried() {
    for kind in ["RedisBackup", "RedisRestore"] {
        let fields = fields(kind);
        assert!(fields.len() > 2, "{kind}: {fields:?}");
        for field in fields {
            let mut cases = updates().into_iter().map(|(_, case)| case);
            assert!(
                cases.any(|case| case.kind == kind && !case.change["spec"][&field].is_null()),
                "add a change of spec.{field} of {kind} to updates()"
            );
        }
    }
}

/// [`pod_template::complete`] is what the API server and a StatefulSet are tried with.
#[test]
fn every_part_of_a_pod_is_tried() {
    let definition = crds::definitions()
        .into_iter()
        .find(|definition| definition.spec.names.kind == "RedisCluster");
    let definition = serde_json::to_value(definition).unwrap_or_default();
    let template =
        "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/podTemplate/properties";
    let names = |value: Option<&Value>| -> Vec<String> {
        let members = value.and_then(Value::as_object).into_iter().flatten();
        members.map(|(name, _)| name.clone()).collect()
    };
    let fields = names(definition.pointer(template));
    assert!(fields.len() > 5, "{fields:?}");
    assert_eq!(names(Some(&pod_template::complete())), fields);
}

/// A tool that reads a new object before its controller has seen it must not take it for finished.
#[tokio::test]
async fn a_new_object_is_in_progress() -> Result<()> {
    let server = tests::kubernetes::api_server().await?;
    let namespace = server.namespace("unobserved").await?;
    for (kind, expected) in [
        ("RedisCluster", Kstatus::InProgress),
        ("RedisBackup", Kstatus::InProgress),
        ("RedisRestore", Kstatus::InProgress),
        ("RedisVersion", Kstatus::Current),
    ] {
        let change = json!({"metadata": {"name": namespace}});
        let object: DynamicObject = serde_json::from_value(merged(good(kind), &change))?;
        let api = api(&server.client, &namespace, kind);
        api.create(&PostParams::default(), &object).await?;
        let stored = serde_json::to_value(api.get(&namespace).await?)?;
        assert_eq!(evaluate(&stored), expected, "{stored:#}");
        api.delete(&namespace, &DeleteParams::default()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn rules_hold_on_the_api_server() -> Result<()> {
    let server = tests::kubernetes::api_server().await?;
    let namespace = server.namespace("rules").await?;
    let mut wrong = Vec::new();
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let clusters = cluster_creations()
        .into_iter()
        .chain(pod_creations())
        .chain(user_creations());
    for case in clusters.chain(other_creations()) {
        let object: DynamicObject = serde_json::from_value(merged(good(case.kind), &case.change))?;
        wrong.extend(judge(
            &case,
            api(&server.client, &namespace, case.kind)
                .create(&dry, &object)
                .await,
        ));
    }
    for (kind, name, spec) in existing() {
        let change = json!({"metadata": {"name": name}, "spec": spec});
        let object: DynamicObject = serde_json::from_value(merged(good(kind), &change))?;
        api(&server.client, &namespace, kind)
            .create(&PostParams::default(), &object)
            .await?;
    }
    for (object, case) in updates() {
        let params = PatchParams {
            dry_run: true,
            ..PatchParams::default()
        };
        let patch = Patch::Merge(&case.change);
        wrong.extend(judge(
            &case,
            api(&server.client, &namespace, case.kind)
                .patch(object, &params, &patch)
                .await,
        ));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// What users copy is taken as it stands, down to the last document: an unknown member is a mistake.
#[tokio::test]
async fn the_api_server_takes_every_sample() -> Result<()> {
    let server = tests::kubernetes::api_server().await?;
    let namespace = server.namespace("samples").await?;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/samples");
    let mut documents = 0;
    for file in fs::read_dir(folder)? {
        let text = fs::read_to_string(file?.path())?;
        let kinds = text.lines().filter(|line| line.starts_with("kind: "));
        documents += kinds.count();
    }
    let dry_run = [
        "apply",
        "--server-side",
        "--dry-run=server",
        "--namespace",
        &namespace,
        "--filename",
        folder,
    ];
    let taken = server.kubectl(&dry_run, "").await?;
    assert!(
        documents > 0 && taken.lines().count() == documents,
        "{documents} documents, and the API server took:\n{taken}"
    );
    Ok(())
}

/// The first thing that a newcomer copies.
#[tokio::test]
async fn the_api_server_takes_the_cluster_of_the_readme() -> Result<()> {
    let server = tests::kubernetes::api_server().await?;
    let namespace = server.namespace("readme").await?;
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))?;
    let fenced = readme.split_once("```yaml\n");
    let document = fenced.and_then(|(_, rest)| Some(rest.split_once("```")?.0));
    let document = document.context("README.md has no block of YAML")?;
    let lines = document.lines().count();
    assert!(lines <= 12, "{lines} lines are no short example");
    let dry_run = [
        "apply",
        "--server-side",
        "--dry-run=server",
        "--namespace",
        &namespace,
        "--filename",
        "-",
    ];
    let taken = server.kubectl(&dry_run, document).await?;
    assert!(
        taken.starts_with("rediscluster.") && taken.lines().count() == 1,
        "the API server took:\n{taken}"
    );
    Ok(())
}
