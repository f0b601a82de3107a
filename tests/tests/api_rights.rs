//! Each controller's account may do what the controller does, and nothing else: the rights of deploy/kustomize, asked of the API
//! server one by one.

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tests::{kubernetes::api_server, wait::eventually};

const SYSTEM: &str = "redis-operator-system";
const ACCOUNTS: [&str; 3] = [
    "cluster-controller",
    "backup-controller",
    "restore-controller",
];
const VERBS: [&str; 11] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
    "bind",
    "escalate",
    "impersonate",
];

/// What each of [`ACCOUNTS`] may do with a resource. Verbs that are not named here are asked for as well, and have to be refused.
struct Rights {
    group: &'static str,
    /// The plural; a subresource follows after a slash.
    resource: &'static str,
    namespace: &'static str,
    verbs: [&'static str; 3],
}

fn rights() -> Vec<Rights> {
    let in_namespace = |namespace, group, resource, verbs| Rights {
        group,
        resource,
        namespace,
        verbs,
    };
    let some = |group, resource, verbs| in_namespace("shop", group, resource, verbs);
    let nobody = |group, resource| some(group, resource, ["", "", ""]);
    let ours = |resource, verbs| some(crds::GROUP, resource, verbs);
    let leases = |namespace, verbs| in_namespace(namespace, "coordination.k8s.io", "leases", verbs);

    let reads = "get list watch";
    let applies = "get list watch create patch";
    let keeps = "get list create patch delete";
    let leader = "get create update";
    let members = "get list create update delete";
    let events = "create patch";
    let rbac = "rbac.authorization.k8s.io";
    vec![
        ours("redisclusters", [reads, reads, "get list watch create"]),
        ours("redisclusters/status", ["patch", "patch", ""]),
        ours("redisclusters/finalizers", ["", "", ""]),
        ours("redisversions", ["list watch", "", ""]),
        ours("redisbackups", ["", applies, reads]),
        ours("redisbackups/status", ["", "patch", ""]),
        ours("redisrestores", ["", "", reads]),
        ours("redisrestores/status", ["", "", "patch"]),
        some("", "pods", ["list watch patch", "list", "list"]),
        nobody("", "pods/attach"),
        nobody("", "pods/ephemeralcontainers"),
        nobody("", "pods/eviction"),
        nobody("", "pods/exec"),
        nobody("", "pods/log"),
        nobody("", "pods/portforward"),
        some("", "secrets", ["", "get", "get"]),
        some("", "services", [applies, "", ""]),
        some("", "configmaps", [applies, "", ""]),
        some("", "serviceaccounts", ["", keeps, ""]),
        nobody("", "serviceaccounts/token"),
        nobody("", "persistentvolumeclaims"),
        nobody("", "namespaces"),
        nobody("", "nodes"),
        nobody("", "users"),
        some("apps", "statefulsets", [applies, "", ""]),
        nobody("apps", "deployments"),
        nobody("apps", "daemonsets"),
        some(
            "policy",
            "poddisruptionbudgets",
            ["get list watch create patch delete", "", ""],
        ),
        some("batch", "cronjobs", ["", keeps, ""]),
        nobody("batch", "jobs"),
        some(rbac, "roles", ["", keeps, ""]),
        some(rbac, "rolebindings", ["", keeps, ""]),
        nobody(rbac, "clusterroles"),
        nobody(rbac, "clusterrolebindings"),
        nobody("apiextensions.k8s.io", "customresourcedefinitions"),
        some("events.k8s.io", "events", [events, events, events]),
        some("", "events", ["list", "", ""]),
        // All Leases are in the operator's own namespace.
        leases("shop", ["", "", ""]),
        leases("kube-node-lease", ["", "", ""]),
        leases(SYSTEM, [leader, members, members]),
    ]
}

/// One question to the API server.
struct Question {
    account: &'static str,
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    namespace: &'static str,
    allowed: bool,
}

fn questions() -> Vec<Question> {
    let mut all = Vec::new();
    for Rights {
        group,
        resource,
        namespace,
        verbs,
    } in rights()
    {
        for (account, allowed) in ACCOUNTS.into_iter().zip(verbs) {
            all.extend(VERBS.map(|verb| Question {
                account,
                verb,
                group,
                resource,
                namespace,
                allowed: allowed.split(' ').any(|word| word == verb),
            }));
        }
    }
    all
}

/// A sentence where the API server answers otherwise.
async fn ask(client: &Client, question: Question) -> Result<Option<String>> {
    let Question {
        account,
        verb,
        group,
        resource,
        namespace,
        allowed,
    } = question;
    let (plural, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let attributes = ResourceAttributes {
        verb: Some(verb.to_owned()),
        group: Some(group.to_owned()),
        resource: Some(plural.to_owned()),
        subresource: Some(subresource.to_owned()),
        namespace: Some(namespace.to_owned()),
        ..ResourceAttributes::default()
    };
    let review = SubjectAccessReview {
        metadata: ObjectMeta::default(),
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{SYSTEM}:{account}")),
            groups: Some(vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{SYSTEM}"),
                "system:authenticated".to_owned(),
            ]),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        },
        status: None,
    };
    let answer = Api::<SubjectAccessReview>::all(client.clone())
        .create(&PostParams::default(), &review)
        .await?;
    let status = answer.status.context("a review without an answer")?;
    Ok((status.allowed != allowed).then(|| {
        let may = if status.allowed { "may" } else { "may not" };
        format!("{account} {may} {verb} {resource} in {namespace}")
    }))
}

async fn wrong(client: &Client) -> Result<Vec<String>> {
    let asked = stream::iter(questions()).map(|question| ask(client, question));
    let answers: Vec<Option<String>> = asked.buffer_unordered(16).try_collect().await?;
    Ok(answers.into_iter().flatten().collect())
}

#[tokio::test]
async fn every_controller_has_the_rights_it_needs_and_no_other() -> Result<()> {
    let server = api_server().await?;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize");
    let rendered = server.kubectl(&["kustomize", folder], "").await?;
    let documents = rendered.split("\n---\n");
    let kept: Vec<&str> = documents
        .filter(|document| !format!("\n{document}\n").contains("\nkind: Deployment\n"))
        .collect();
    ensure!(
        kept.len() == 1 + 3 * 5,
        "a namespace and five objects an account, not:\n{rendered}"
    );
    let apply = ["apply", "--server-side", "--filename", "-"];
    server.kubectl(&apply, &kept.join("\n---\n")).await?;
    // The API server learns of new rights a moment later.
    let mut left = Vec::new();
    let settled = eventually("the rights are as they should be", async || {
        left = wrong(&server.client).await?;
        Ok(left.is_empty().then_some(()))
    })
    .await;
    settled.with_context(|| left.join("\n"))
}
