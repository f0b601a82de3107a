//! The installation for one namespace, and the removal of everything: what an administrator types, against a real API server.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::{Api, Client, api::PostParams};
use serde_json::json;
use std::{process::Stdio, time::Duration};
use tests::{
    kubernetes::{ApiServer, api_server},
    wait::eventually,
};
use tokio::{process::Command, time::timeout};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize");

async fn may(
    client: &Client,
    account: &str,
    verb: &str,
    (group, resource): (&str, &str),
    namespace: &str,
) -> Result<bool> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:redis:{account}")),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource: Some(subresource.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api = Api::<SubjectAccessReview>::all(client.clone());
    let answer = api.create(&PostParams::default(), &review).await?;
    Ok(answer.status.context("a review without an answer")?.allowed)
}

/// Each account can do its work in the namespace, and nothing in another or in all.
async fn rights_end_at_the_namespace(server: &ApiServer) -> Result<()> {
    let ours = crds::GROUP;
    for (account, verb, resource) in [
        ("cluster-controller", "watch", (ours, "redisclusters")),
        ("cluster-controller", "create", ("apps", "statefulsets")),
        ("cluster-controller", "patch", ("", "pods")),
        ("cluster-controller", "patch", ("", "pods/status")),
        ("backup-controller", "watch", (ours, "redisbackups")),
        ("backup-controller", "get", ("", "secrets")),
        ("backup-controller", "create", ("batch", "cronjobs")),
        ("restore-controller", "create", (ours, "redisclusters")),
        ("restore-controller", "get", ("", "secrets")),
        (
            "restore-controller",
            "create",
            ("coordination.k8s.io", "leases"),
        ),
    ] {
        let plural = resource.1;
        let may =
            async |namespace: &str| may(&server.client, account, verb, resource, namespace).await;
        eventually(
            &format!("{account} may {verb} {plural} in redis"),
            async || Ok(may("redis").await?.then_some(())),
        )
        .await?;
        for elsewhere in ["shop", "kube-system", ""] {
            let allowed = may(elsewhere).await?;
            ensure!(!allowed, "{account} may {verb} {plural} in {elsewhere:?}");
        }
    }
    Ok(())
}

/// Its prefix is a tenant's: no word of it is a finalizer or a command.
const DESTINATION: &str = "s3://store/a \"b\" $(false) redis.danieldorado.github.io/artifacts";

/// A RedisBackup whose data was to be deleted by a controller that is gone.
async fn guarded_backup(server: &ApiServer) -> Result<()> {
    let backup = json!({"apiVersion": format!("{}/{}", crds::GROUP, crds::VERSION), "kind": "RedisBackup",
        "metadata": {"name": "nightly", "namespace": "redis", "finalizers": [crds::FINALIZER_ARTIFACTS]},
        "spec": {"clusterRef": {"name": "cart"}, "storageName": "main", "deletionPolicy": "Delete"}});
    server
        .kubectl(&["create", "--filename", "-"], &backup.to_string())
        .await?;
    let status = json!({"status": {"destination": DESTINATION}}).to_string();
    let patch = [
        "--namespace=redis",
        "patch",
        "redisbackups",
        "nightly",
        "--subresource=status",
        "--type=merge",
        "--patch",
        &status,
    ];
    server.kubectl(&patch, "").await?;
    Ok(())
}

async fn make(server: &ApiServer, goals: &[&str]) -> Result<String> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let running = Command::new("make")
        .args(goals)
        .args([
            "--no-print-directory",
            "--directory",
            root,
            "CLUSTER=existing",
        ])
        .env("KUBECONFIG", &server.kubeconfig)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let limit = Duration::from_mins(2);
    let output = timeout(limit, running)
        .await
        .context("make did not end")??;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "make {goals:?}: {said}{errors}");
    Ok(said)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_namespace_is_installed_and_everything_removed() -> Result<()> {
    let server = api_server().await?;
    server
        .kubectl(&["create", "namespace", "redis"], "")
        .await?;
    let folder = format!("{FOLDER}/one-namespace");
    let apply = ["apply", "--server-side", "--kustomize", &folder];
    server.kubectl(&apply, "").await?;
    rights_end_at_the_namespace(&server).await?;

    guarded_backup(&server).await?;
    let delete = ["delete", "--kustomize", &folder];
    server.kubectl(&delete, "").await?;
    let said = make(&server, &["uninstall"]).await?;
    ensure!(
        said.contains("RedisBackup redis/nightly") && said.contains(DESTINATION),
        "it is not said what stays: {said}"
    );
    let left = server
        .kubectl(&["get", "customresourcedefinitions", "--output=name"], "")
        .await?;
    ensure!(
        !left.contains(crds::GROUP),
        "CustomResourceDefinitions stay: {left}"
    );
    Ok(())
}
