//! The installation for one namespace, and the removal of everything: what an administrator types, against a real API server.

use anyhow::{Context, Result, bail, ensure};
use backup_controller::own_image;
use k8s_openapi::api::{
    apps::v1::Deployment,
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    core::v1::{Namespace, NamespaceSpec, Pod},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tests::{
    kubernetes::{ApiServer, api_server},
    wait::eventually,
};
use tokio::{
    process::Command,
    sync::Mutex,
    time::{sleep, timeout},
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize");
const SYSTEM: &str = "redis-operator-system";
/// Both installations have ClusterRoles and policies of the same names, and the removal of either deletes the definitions.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

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

/// Waits until an account of the namespace is refused with these words: a new policy is enforced a moment later.
async fn is_refused(
    server: &ApiServer,
    account: &str,
    command: &[&str],
    input: &Value,
    words: &str,
) -> Result<()> {
    let user = format!("--as=system:serviceaccount:redis:{account}");
    let arguments = [&[user.as_str(), "--namespace=redis"], command].concat();
    let mut last = String::new();
    let what = format!("{account} is refused");
    let refused = eventually(&what, async || {
        let answer = server.kubectl(&arguments, &input.to_string()).await;
        last = answer.map_or_else(|error| format!("{error:#}"), |done| format!("done: {done}"));
        Ok(last.contains(words))
    });
    let refused = refused.await;
    refused.with_context(|| format!("{words}: {last}"))
}

const CREATE: [&str; 4] = ["create", "--validate=false", "--filename", "-"];

/// The policies know the accounts of this namespace: one refusal by each, and the one binding that the backup-controller may make.
async fn policies_hold_in_the_namespace(server: &ApiServer) -> Result<()> {
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "deploy-lock"}});
    let words = "only Leases of their own";
    is_refused(server, "restore-controller", &CREATE, &lease, words).await?;
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "deployer"}});
    let words = "only objects with the labels of a backup schedule";
    is_refused(server, "backup-controller", &CREATE, &account, words).await?;

    // By a client, not by kubectl: that reads the pod first, which the account has no right to.
    for (kind, name) in [("ServiceAccount", "default"), ("Pod", "web")] {
        let pod = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "redis"},
            "spec": {"automountServiceAccountToken": false, "containers": [{"name": "web", "image": "web:1"}]}});
        server.kubectl(&CREATE, &pod.to_string()).await?;
    }
    let controller = server.as_account("redis", "cluster-controller").await?;
    let pods = Api::<Pod>::namespaced(controller.client, "redis");
    let label = json!({"metadata": {"labels": {crds::LABEL_ROLE: "primary"}}});
    let (label, parameters) = (Patch::Merge(&label), PatchParams::default());
    eventually("the cluster-controller is refused", async || {
        let written = pods.patch("web", &parameters, &label).await;
        let refusal = written.err().map(|error| error.to_string());
        Ok(refusal.is_some_and(|text| text.contains("only pods with the label")))
    })
    .await?;

    // It holds the right to bind, not those that it binds.
    let name = "cart-backup-schedule";
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": "redis", "labels": {crds::LABEL_CLUSTER: "cart",
            "app.kubernetes.io/component": "backup-schedule", "app.kubernetes.io/managed-by": crds::MANAGED_BY}},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "redis-operator-backup-schedule"},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "redis"}]});
    let mut other = binding.clone();
    other["roleRef"]["name"] = "redis-operator-versions".into();
    let words = "is attempting to grant";
    is_refused(server, "backup-controller", &CREATE, &other, words).await?;
    let user = "--as=system:serviceaccount:redis:backup-controller";
    let create = [&[user], CREATE.as_slice()].concat();
    server.kubectl(&create, &binding.to_string()).await?;
    Ok(())
}

/// Its prefix is a tenant's: no word of it is a finalizer or a command.
const DESTINATION: &str = "s3://store/a \"b\" $(false) redis.danieldorado.github.io/artifacts";

/// A RedisBackup whose data was to be deleted by a controller that is gone.
async fn guarded_backup(server: &ApiServer, namespace: &str) -> Result<()> {
    let backup = json!({"apiVersion": format!("{}/{}", crds::GROUP, crds::VERSION), "kind": "RedisBackup",
        "metadata": {"name": "nightly", "namespace": namespace, "finalizers": [crds::FINALIZER_ARTIFACTS]},
        "spec": {"clusterRef": {"name": "cart"}, "storageName": "main", "deletionPolicy": "Delete"}});
    server
        .kubectl(&["create", "--filename", "-"], &backup.to_string())
        .await?;
    let status = json!({"status": {"destination": DESTINATION}}).to_string();
    let namespace = format!("--namespace={namespace}");
    let patch = [
        namespace.as_str(),
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
    let _one = ONE_AT_A_TIME.lock().await;
    let server = api_server().await?;
    server
        .kubectl(&["create", "namespace", "redis"], "")
        .await?;
    let folder = format!("{FOLDER}/one-namespace");
    let apply = ["apply", "--server-side", "--kustomize", &folder];
    server.kubectl(&apply, "").await?;
    rights_end_at_the_namespace(&server).await?;
    policies_hold_in_the_namespace(&server).await?;

    guarded_backup(&server, "redis").await?;
    let delete = ["delete", "--kustomize", &folder];
    server.kubectl(&delete, "").await?;
    let said = make(&server, &["uninstall"]).await?;
    ensure!(
        said.contains("RedisBackup redis/nightly") && said.contains(DESTINATION),
        "it is not said what stays: {said}"
    );
    no_definition_is_left(&server).await
}

async fn no_definition_is_left(server: &ApiServer) -> Result<()> {
    let left = server
        .kubectl(&["get", "customresourcedefinitions", "--output=name"], "")
        .await?;
    ensure!(
        !left.contains(crds::GROUP),
        "CustomResourceDefinitions stay: {left}"
    );
    Ok(())
}

/// A folder with an overlay of deploy/kustomize, as a user writes one; removed at the end.
struct Overlay(PathBuf);

impl Overlay {
    fn write(name: &str, rest: &str) -> Result<Self> {
        let folder =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        // kustomize takes folders elsewhere by relative paths only.
        let up = "../".repeat(folder.components().count() - 1);
        let base = fs::canonicalize(FOLDER)?;
        let base = up + base.to_string_lossy().trim_start_matches('/');
        let text = rest.replace("BASE", &base);
        fs::write(folder.join("kustomization.yaml"), text)?;
        Ok(Self(folder))
    }

    async fn apply(&self, server: &ApiServer, more: &[&str]) -> Result<String> {
        let folder = self.0.to_string_lossy();
        let apply = ["apply", "--server-side", "--kustomize", &folder];
        server.kubectl(&[&apply, more].concat(), "").await
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Does what kube-controller-manager does for namespaces that are deleted: without it they stay.
async fn finalize_namespaces(server: &ApiServer) -> Result<()> {
    let api = Api::<Namespace>::all(server.client.clone());
    loop {
        for mut namespace in api.list(&ListParams::default()).await? {
            if namespace.metadata.deletion_timestamp.is_none() {
                continue;
            }
            namespace.spec = Some(NamespaceSpec::default());
            let path = format!("/api/v1/namespaces/{}/finalize", namespace.name_any());
            let body = serde_json::to_string(&namespace)?;
            let finalize = ["replace", "--raw", &path, "--filename", "-"];
            server.kubectl(&finalize, &body).await?;
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// The backup-controller's pods run the image that the overlay names, and so do the pods of schedules.
async fn the_image_follows_the_overlay(server: &ApiServer, image: &str) -> Result<()> {
    let deployments = Api::<Deployment>::namespaced(server.client.clone(), SYSTEM);
    let deployment = deployments.get("backup-controller").await?;
    let template = deployment.spec.template;
    let mut pod = Pod {
        spec: template.spec,
        ..Pod::default()
    };
    // What the ReplicaSet would create.
    pod.metadata.name = Some("backup-controller-0".to_owned());
    let pods = Api::<Pod>::namespaced(server.client.clone(), SYSTEM);
    pods.create(&PostParams::default(), &pod).await?;
    let account = server.as_account(SYSTEM, "backup-controller").await?;
    let runtime = account.runtime(
        "backup-controller",
        "backup-controller-0",
        SYSTEM,
        Duration::from_secs(5),
    )?;
    let found = timeout(Duration::from_secs(30), own_image::find(&runtime)).await?;
    ensure!(found.as_deref() == Some(image), "{found:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_namespaces_are_installed_with_another_image_and_everything_removed() -> Result<()> {
    let _one = ONE_AT_A_TIME.lock().await;
    let server = api_server().await?;
    let images = "resources: [BASE]\nimages:\n- name: docker.io/local/redis-operator-backup-controller\n  \
        newName: registry.example.com/team/backups\n  newTag: v9\n";
    Overlay::write("images", images)?
        .apply(&server, &[])
        .await?;
    // Boxed: it holds a whole RedisCluster.
    Box::pin(the_image_follows_the_overlay(
        &server,
        "registry.example.com/team/backups:v9",
    ))
    .await?;

    let policies = "resources: [BASE]\ncomponents: [BASE/network-policies]\n";
    let policies = Overlay::write("network-policies", policies)?;
    let said = policies
        .apply(&server, &["--dry-run=server", "--force-conflicts"])
        .await?;
    for name in ["redis-operator-controllers", "redis-operator-storage"] {
        let line = format!("networkpolicy.networking.k8s.io/{name} serverside-applied");
        ensure!(said.contains(&line), "{said}");
    }

    let namespace = server.namespace("shop").await?;
    guarded_backup(&server, &namespace).await?;
    let said = tokio::select! {
        said = make(&server, &["undeploy", "uninstall"]) => said?,
        failed = finalize_namespaces(&server) => bail!("namespaces are not finalized: {failed:?}"),
    };
    ensure!(
        said.contains(&format!("RedisBackup {namespace}/nightly")) && said.contains(DESTINATION),
        "it is not said what stays: {said}"
    );
    let deployments = Api::<Deployment>::namespaced(server.client.clone(), SYSTEM);
    let left = deployments.list(&ListParams::default()).await?;
    ensure!(left.items.is_empty(), "Deployments stay");
    no_definition_is_left(&server).await
}
