//! Each controller's account may do what the controller does, and nothing else: the rights of deploy/kustomize, asked of the API
//! server one by one; its admission policies, by a refusal and an acceptance each; and what the objects of a tenant cannot reach
//! through the controllers.

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    core::v1::{PersistentVolumeClaim, Pod, Secret},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tests::{
    kubernetes::{ApiServer, api_server},
    wait::eventually,
};

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
    let none = |group, resource| some(group, resource, ["", "", ""]);
    let ours = |resource, verbs| some(crds::GROUP, resource, verbs);
    let leases = |namespace, verbs| in_namespace(namespace, "coordination.k8s.io", "leases", verbs);

    let reads = "get list watch";
    let applies_and_deletes = "get list watch create patch delete";
    let keeps = "get list create patch delete";
    let whole_life = "get list create update delete";
    let events = "create patch";
    let rbac = "rbac.authorization.k8s.io";
    vec![
        ours("redisclusters", [reads, reads, "get list watch create"]),
        ours("redisclusters/status", ["patch", "patch", ""]),
        ours("redisclusters/finalizers", ["", "", ""]),
        ours("redisversions", ["list watch", "", ""]),
        ours("redisbackups", ["", "get list watch patch", reads]),
        ours("redisbackups/status", ["", "patch", ""]),
        ours("redisrestores", ["", "", reads]),
        ours("redisrestores/status", ["", "", "patch"]),
        some("", "pods", [applies_and_deletes, "list", "list"]),
        in_namespace(
            SYSTEM,
            "",
            "pods",
            [applies_and_deletes, "get list", "list"],
        ),
        some("", "pods/status", ["patch", "", ""]),
        none("", "pods/attach"),
        none("", "pods/ephemeralcontainers"),
        none("", "pods/eviction"),
        none("", "pods/exec"),
        none("", "pods/log"),
        none("", "pods/portforward"),
        some("", "secrets", ["get create update delete", "get", "get"]),
        some("", "services", [applies_and_deletes, "", ""]),
        some("", "configmaps", [applies_and_deletes, "", ""]),
        some("", "serviceaccounts", ["", keeps, ""]),
        none("", "serviceaccounts/token"),
        some("", "persistentvolumeclaims", ["list watch patch", "", ""]),
        none("", "namespaces"),
        some("", "nodes", ["get", "", ""]),
        none("", "users"),
        some("apps", "statefulsets", [applies_and_deletes, "", ""]),
        none("apps", "deployments"),
        none("apps", "daemonsets"),
        some(
            "policy",
            "poddisruptionbudgets",
            [applies_and_deletes, "", ""],
        ),
        some(
            "networking.k8s.io",
            "networkpolicies",
            [applies_and_deletes, "", ""],
        ),
        some("batch", "cronjobs", ["", keeps, ""]),
        none("batch", "jobs"),
        none(rbac, "roles"),
        some(rbac, "rolebindings", ["", keeps, ""]),
        none(rbac, "clusterroles"),
        none(rbac, "clusterrolebindings"),
        none("apiextensions.k8s.io", "customresourcedefinitions"),
        some("events.k8s.io", "events", [events, events, events]),
        some("", "events", ["list", "", ""]),
        // All Leases are in the operator's own namespace.
        leases("shop", ["", "", ""]),
        leases("kube-node-lease", ["", "", ""]),
        leases(SYSTEM, [whole_life, whole_life, whole_life]),
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

/// Installs the accounts, their rights and the policies, but no controller.
async fn installed() -> Result<ApiServer> {
    let server = api_server().await?;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize");
    let rendered = server.kubectl(&["kustomize", folder], "").await?;
    let is_deployment = |text: &&str| format!("\n{text}\n").contains("\nkind: Deployment\n");
    let documents: Vec<&str> = rendered.split("\n---\n").collect();
    let kept: Vec<&str> = documents
        .into_iter()
        .filter(|text| !is_deployment(text))
        .collect();
    let apply = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--filename",
        "-",
    ];
    server.kubectl(&apply, &kept.join("\n---\n")).await?;
    Ok(server)
}

#[tokio::test]
async fn every_controller_has_the_rights_it_needs_and_no_other() -> Result<()> {
    let server = installed().await?;
    // The API server learns of new rights a moment later.
    let mut left = Vec::new();
    let settled = eventually("the rights are as they should be", async || {
        left = wrong(&server.client).await?;
        Ok(left.is_empty().then_some(()))
    })
    .await;
    settled.with_context(|| left.join("\n"))
}

/// What kubectl answers to one of our accounts.
async fn as_account(server: &ApiServer, account: &str, command: &str, input: &Value) -> Result<()> {
    let user = format!("--as=system:serviceaccount:{SYSTEM}:{account}");
    let mut arguments = vec![user.as_str()];
    arguments.extend(command.split(' '));
    server.kubectl(&arguments, &input.to_string()).await?;
    Ok(())
}

/// Waits until a command is refused with these words: a new policy is enforced a moment later.
async fn is_refused(
    server: &ApiServer,
    account: &str,
    command: &str,
    input: &Value,
    words: &str,
) -> Result<()> {
    eventually(&format!("`{command}` is refused: {words}"), async || {
        let refusal = as_account(server, account, command, input).await;
        let refusal = refusal.err().map(|error| format!("{error:#}"));
        Ok(refusal.filter(|text| text.contains(words)).map(|_| ()))
    })
    .await
}

#[tokio::test]
async fn the_cluster_controller_changes_and_deletes_only_redis_pods() -> Result<()> {
    let server = installed().await?;
    let namespace = server.namespace("pods").await?;
    let admin = |input: Value| {
        let server = &server;
        async move {
            server
                .kubectl(&["create", "--filename", "-"], &input.to_string())
                .await
        }
    };
    admin(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}})).await?;
    for (name, labels) in [
        ("ours", json!({crds::LABEL_CLUSTER: "cart"})),
        ("other", json!({"app": "web"})),
    ] {
        admin(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"automountServiceAccountToken": false, "containers": [{"name": "redis", "image": "redis:7"}]}}))
        .await?;
    }
    // Not by kubectl, which reads the pod first: the account has no right to.
    let account = server.as_account(SYSTEM, ACCOUNTS[0]).await?;
    let pods = Api::<Pod>::namespaced(account.client, &namespace);
    let write = async |pod: &str, patch: &Value| {
        let written = pods
            .patch(pod, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        written.map(drop).map_err(|error| error.to_string())
    };
    let write_status = async |pod: &str, patch: &Value| {
        let (parameters, patch) = (PatchParams::default(), Patch::Strategic(patch));
        let written = pods.patch_status(pod, &parameters, &patch).await;
        written.map(drop).map_err(|error| error.to_string())
    };
    let is_refused = async |pod: &str, patch: &Value, words: &str| {
        eventually(&format!("{pod}: {words}"), async || {
            let refusal = write(pod, patch).await.err();
            Ok(refusal.filter(|text| text.contains(words)).map(drop))
        })
        .await
    };
    let status_is_refused = async |pod: &str, patch: &Value, words: &str| {
        eventually(&format!("the status of {pod}: {words}"), async || {
            let refusal = write_status(pod, patch).await.err();
            Ok(refusal.filter(|text| text.contains(words)).map(drop))
        })
        .await
    };
    let label = json!({"metadata": {"labels": {crds::LABEL_ROLE: "primary"}}});
    let image = json!({"spec": {"containers": [{"name": "redis", "image": "miner:1"}]}});
    let other_label = json!({"metadata": {"labels": {"app": "web"}}});
    let no_label = json!({"metadata": {"labels": {crds::LABEL_CLUSTER: null}}});
    let annotation = json!({"metadata": {"annotations": {"team": "web"}}});
    let finalizer = json!({"metadata": {"finalizers": ["example.com/kept"]}});
    let owner = json!({"metadata": {"ownerReferences":
        [{"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": "1"}]}});
    is_refused("other", &label, "only pods with the label").await?;
    is_refused("ours", &image, "not their spec").await?;
    for patch in [&other_label, &no_label] {
        is_refused("ours", patch, "no label but the role").await?;
    }
    is_refused("ours", &annotation, "no annotation but").await?;
    for patch in [&finalizer, &owner] {
        is_refused("ours", patch, "not their finalizers").await?;
    }
    let own = json!({"metadata": {"annotations": {crds::ANNOTATION_LIVE_SETTINGS: "{}", crds::ANNOTATION_RESTART_HASH: "1"}}});
    for patch in [&label, &own] {
        write("ours", patch).await.map_err(anyhow::Error::msg)?;
    }
    // A pod that was replaced is recognized by this answer (`pod_patch`).
    let replaced = json!({"metadata": {"uid": "of-an-earlier-pod"}});
    is_refused("ours", &replaced, "metadata.uid").await?;

    let condition = |kind: &str| json!({"status": {"conditions": [{"type": kind, "status": "True", "reason": "Serving"}]}});
    let gate = condition(crds::CONDITION_SERVING);
    status_is_refused("other", &gate, "only pods with the label").await?;
    let mut address = gate.clone();
    address["status"]["podIP"] = json!("10.0.0.7");
    let started = json!({"status": {"phase": "Running"}});
    for patch in [&address, &started] {
        status_is_refused("ours", patch, "no status of pods but a condition").await?;
    }
    let ready = condition("Ready");
    let words = "no condition of pods but redis.danieldorado.github.io/serving";
    status_is_refused("ours", &ready, words).await?;
    // Labels can be changed by way of the status as well.
    status_is_refused("ours", &other_label, "no label but the role").await?;
    // As it is in life: with the conditions and the address that a kubelet has written.
    let kubelet = Api::<Pod>::namespaced(server.client.clone(), &namespace);
    let scheduled = json!({"status": {"phase": "Running", "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}], "conditions":
        [{"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady"}, {"type": "ContainersReady", "status": "True"}]}});
    let parameters = PatchParams::default();
    kubelet
        .patch_status("ours", &parameters, &Patch::Strategic(&scheduled))
        .await?;
    status_is_refused("ours", &ready, words).await?;
    for status in ["True", "False"] {
        let mut patch = gate.clone();
        patch["status"]["conditions"][0]["status"] = json!(status);
        write_status("ours", &patch)
            .await
            .map_err(anyhow::Error::msg)?;
        let pod = kubelet.get("ours").await?.status.unwrap_or_default();
        let conditions = pod.conditions.unwrap_or_default();
        let written = conditions
            .iter()
            .find(|one| one.type_ == crds::CONDITION_SERVING);
        ensure!(written.is_some_and(|one| one.status == status));
        ensure!(conditions.len() == 3, "{conditions:?}");
    }
    let delete = async |pod: &str| {
        let deleted = pods.delete(pod, &DeleteParams::default()).await;
        deleted.map(drop).map_err(|error| error.to_string())
    };
    eventually("other pods are not deleted", async || {
        let refusal = delete("other").await.err();
        Ok(refusal
            .filter(|text| text.contains("only pods with the label"))
            .map(drop))
    })
    .await?;
    delete("ours").await.map_err(anyhow::Error::msg)
}

#[tokio::test]
async fn the_cluster_controller_changes_only_owner_and_size_of_claims() -> Result<()> {
    let server = installed().await?;
    let namespace = server.namespace("claims").await?;
    let claims = Api::<PersistentVolumeClaim>::namespaced(server.client.clone(), &namespace);
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "rights-grow"},
        "provisioner": "example.com/none", "allowVolumeExpansion": true});
    let create = ["create", "--filename", "-"];
    server.kubectl(&create, &class.to_string()).await?;
    for (name, labels) in [
        ("ours", json!({crds::LABEL_CLUSTER: "cart"})),
        ("other", json!({"app": "web"})),
    ] {
        let claim = json!({"metadata": {"name": name, "labels": labels}, "spec": {"accessModes": ["ReadWriteOnce"],
            "storageClassName": "rights-grow", "resources": {"requests": {"storage": "1Gi"}}}});
        let claim: PersistentVolumeClaim = serde_json::from_value(claim)?;
        claims.create(&PostParams::default(), &claim).await?;
        let bound = json!({"status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}});
        let parameters = PatchParams::default();
        claims
            .patch_status(name, &parameters, &Patch::Merge(bound))
            .await?;
    }
    let account = server.as_account(SYSTEM, ACCOUNTS[0]).await?;
    let theirs = Api::<PersistentVolumeClaim>::namespaced(account.client, &namespace);
    let write = async |claim: &str, patch: &Value| {
        let (parameters, patch) = (PatchParams::default(), Patch::Strategic(patch));
        let written = theirs.patch(claim, &parameters, &patch).await;
        written.map(drop).map_err(|error| error.to_string())
    };
    let is_refused = async |claim: &str, patch: &Value, words: &str| {
        eventually(&format!("{claim}: {words}"), async || {
            let refusal = write(claim, patch).await.err();
            Ok(refusal.filter(|text| text.contains(words)).map(drop))
        })
        .await
    };
    let owner = |kind: &str, uid: &str| {
        let owner = json!({"apiVersion": "redis.danieldorado.github.io/v1alpha1", "kind": kind, "name": "cart", "uid": uid});
        json!({"metadata": {"ownerReferences": [owner]}})
    };
    let larger = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    is_refused("other", &larger, "only volume claims with the label").await?;
    for patch in [
        json!({"metadata": {"labels": {"app": "web"}}}),
        json!({"metadata": {"labels": {crds::LABEL_CLUSTER: null}}}),
        json!({"metadata": {"annotations": {"team": "web"}}}),
        json!({"metadata": {"finalizers": ["example.com/kept"]}}),
    ] {
        is_refused("ours", &patch, "no labels, annotations or finalizers").await?;
    }
    is_refused("ours", &owner("Pod", "1"), "no owner of volume claims").await?;
    let quality = json!({"spec": {"volumeAttributesClassName": "gold"}});
    is_refused("ours", &quality, "nothing of volume claims but their size").await?;
    for patch in [
        &owner("RedisCluster", "2"),
        &larger,
        &json!({"metadata": {"ownerReferences": [{"$patch": "delete", "uid": "2"}]}}),
    ] {
        write("ours", patch).await.map_err(anyhow::Error::msg)?;
    }
    let claim = claims.get("ours").await?;
    ensure!(claim.metadata.owner_references.is_none(), "{claim:?}");
    server
        .kubectl(&["delete", "storageclass", "rights-grow"], "")
        .await?;
    Ok(())
}

#[tokio::test]
async fn the_cluster_controller_writes_only_its_own_secrets() -> Result<()> {
    let server = installed().await?;
    let namespace = server.namespace("secrets").await?;
    let account = server.as_account(SYSTEM, ACCOUNTS[0]).await?;
    let theirs = Api::<Secret>::namespaced(account.client, &namespace);
    let of_others = Api::<Secret>::namespaced(server.client.clone(), &namespace);
    let secret = |name: &str, cluster: Option<&str>| -> Result<Secret> {
        let labels = cluster.map(|cluster| json!({crds::LABEL_CLUSTER: cluster}));
        let metadata = json!({"name": name, "labels": labels});
        Ok(serde_json::from_value(json!({ "metadata": metadata }))?)
    };
    let (post, delete) = (PostParams::default(), DeleteParams::default());
    for (name, cluster, words) in [
        ("shop-users", None, "only Secrets with the label"),
        (
            "passwords",
            Some("shop"),
            "only the Secrets with the users and certificates of a cluster",
        ),
        (
            "shop-users",
            Some("cart"),
            "only the Secrets with the users and certificates of a cluster",
        ),
        (
            "shop-certificates",
            Some("cart"),
            "only the Secrets with the users and certificates of a cluster",
        ),
        (
            "shop-user-other",
            Some("shop"),
            "only the Secrets with the users and certificates of a cluster",
        ),
    ] {
        let wanted = secret(name, cluster)?;
        eventually(&format!("{name}: {words}"), async || {
            let refusal = theirs.create(&post, &wanted).await.err();
            let refusal = refusal.map(|error| error.to_string());
            // A policy takes a moment after it was applied.
            let _ = of_others.delete(name, &delete).await;
            Ok(refusal.filter(|text| text.contains(words)).map(drop))
        })
        .await?;
    }
    let names = crds::OwnUser::ALL.map(|user| user.secret_name("shop"));
    let more = [
        crds::users_secret_name("shop"),
        crds::certificates_secret_name("shop"),
    ];
    for name in names.into_iter().chain(more) {
        let created = theirs.create(&post, &secret(&name, Some("shop"))?).await?;
        theirs.replace(&name, &post, &created).await?;
        theirs.delete(&name, &delete).await?;
    }
    // A Secret of others is neither changed nor deleted.
    let others = of_others.create(&post, &secret("passwords", None)?).await?;
    ensure!(theirs.replace("passwords", &post, &others).await.is_err());
    ensure!(theirs.delete("passwords", &delete).await.is_err());
    of_others.get("passwords").await?;
    Ok(())
}

#[tokio::test]
async fn the_cluster_controller_creates_only_pods_that_try_configurations() -> Result<()> {
    let server = installed().await?;
    let namespace = server.namespace("trials").await?;
    let default = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}});
    server
        .kubectl(&["create", "--filename", "-"], &default.to_string())
        .await?;
    let account = server.as_account(SYSTEM, ACCOUNTS[0]).await?;
    let pods = Api::<Pod>::namespaced(account.client, &namespace);
    let trial = json!({
        "metadata": {"name": "shop-trial-1", "labels": {crds::LABEL_TRIAL: "shop"}, "ownerReferences":
            [{"apiVersion": format!("{}/v1alpha1", crds::GROUP), "kind": "RedisCluster", "name": "shop", "uid": "1"}]},
        "spec": {"automountServiceAccountToken": false, "restartPolicy": "Never", "activeDeadlineSeconds": 60,
                 "containers": [{"name": "redis", "image": "redis:7"}]},
    });
    let create = async |pod: &Value| {
        let pod: Pod = serde_json::from_value(pod.clone())?;
        anyhow::Ok(pods.create(&PostParams::default(), &pod).await.map(drop))
    };
    for (pointer, value, words) in [
        (
            "/metadata/labels",
            json!({crds::LABEL_CLUSTER: "shop"}),
            "only pods with the label",
        ),
        (
            "/metadata/ownerReferences/0/kind",
            json!("ConfigMap"),
            "that a RedisCluster owns",
        ),
        (
            "/spec/automountServiceAccountToken",
            json!(true),
            "only pods that end",
        ),
        ("/spec/restartPolicy", json!("Always"), "only pods that end"),
    ] {
        let mut other = trial.clone();
        *other.pointer_mut(pointer).context("no such field")? = value;
        eventually(&format!("refused: {words}"), async || {
            let refusal = create(&other).await?.err().map(|error| error.to_string());
            Ok(refusal.filter(|text| text.contains(words)).map(drop))
        })
        .await?;
    }
    create(&trial).await??;
    pods.delete("shop-trial-1", &DeleteParams::default())
        .await?;
    Ok(())
}

/// By name, with all others, and with its namespace; and afterwards all of that is possible again.
#[tokio::test]
async fn a_protected_cluster_is_not_deleted() -> Result<()> {
    let server = installed().await?;
    let namespace = server.namespace("protected").await?;
    let in_namespace = format!("--namespace={namespace}");
    let cluster = |name: &str, protected: bool| {
        json!({"apiVersion": "redis.danieldorado.github.io/v1alpha1", "kind": "RedisCluster",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"image": "redis:7", "shards": 3, "deletionProtection": protected}})
        .to_string()
    };
    let create = ["create", "--filename", "-"];
    for name in ["shop", "cart"] {
        server
            .kubectl(&create, &cluster(name, name == "shop"))
            .await?;
    }
    let all = ["delete", "redisclusters", "--all", &in_namespace];
    let whole = ["delete", "namespace", namespace.as_str(), "--wait=false"];
    let one = ["delete", "rediscluster", "shop", &in_namespace];
    for (command, words) in [
        (&one[..], "RedisCluster shop is protected from deletion"),
        (&all[..], "RedisCluster shop is protected from deletion"),
        (&whole[..], "RedisCluster shop in it is protected"),
    ] {
        // A new policy is enforced a moment later. Not really deleted: the first answers may come before that.
        let mut dry = command.to_vec();
        dry.push("--dry-run=server");
        let mut last = String::new();
        let refused = eventually("the deletion is refused", async || {
            let answer = server.kubectl(&dry, "").await;
            last = answer.unwrap_or_else(|error| format!("{error:#}"));
            Ok(last.contains(words))
        });
        refused.await.with_context(|| last.clone())?;
        ensure!(server.kubectl(command, "").await.is_err(), "{command:?}");
    }
    let clusters = ["get", "redisclusters", "--output=name", &in_namespace];
    let left = server.kubectl(&clusters, "").await?;
    ensure!(left.contains("/shop"), "{left}");
    // Other namespaces are none of its business.
    let empty = server.namespace("unprotected").await?;
    server
        .kubectl(&["delete", "namespace", &empty, "--wait=false"], "")
        .await?;

    let off = r#"{"spec":{"deletionProtection":false}}"#;
    let patch = [
        "patch",
        "rediscluster",
        "shop",
        &in_namespace,
        "--type=merge",
        "--patch",
        off,
    ];
    server.kubectl(&patch, "").await?;
    eventually("the namespace may go", async || {
        let mut dry = whole.to_vec();
        dry.push("--dry-run=server");
        Ok(server.kubectl(&dry, "").await.is_ok())
    })
    .await?;
    server.kubectl(&one, "").await?;
    Ok(())
}

#[tokio::test]
async fn the_backup_controller_writes_only_objects_of_schedules() -> Result<()> {
    let server = installed().await?;
    let namespace = server.namespace("schedules").await?;
    let account = ACCOUNTS[1];
    let ours = json!({crds::LABEL_CLUSTER: "cart", "app.kubernetes.io/component": "backup-schedule",
        "app.kubernetes.io/managed-by": crds::MANAGED_BY});
    let object = |kind: &str, group: &str, name: &str, labels: &Value, rest: Value| {
        let mut object = json!({"apiVersion": group, "kind": kind,
            "metadata": {"name": name, "namespace": namespace, "labels": labels}});
        if let (Some(object), Value::Object(rest)) = (object.as_object_mut(), rest) {
            object.extend(rest);
        }
        object
    };
    let cron_job = |name: &str, labels: &Value, account: &str| {
        let pod = json!({"spec": {"serviceAccountName": account, "restartPolicy": "Never",
            "containers": [{"name": "create-backup", "image": "controller:1"}]}});
        let spec =
            json!({"spec": {"schedule": "0 3 * * *", "jobTemplate": {"spec": {"template": pod}}}});
        object("CronJob", "batch/v1", name, labels, spec)
    };
    let binding = |name: &str, role: &str, (account, home): (&str, &str)| {
        let rest = json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": home}]});
        object(
            "RoleBinding",
            "rbac.authorization.k8s.io/v1",
            name,
            &ours,
            rest,
        )
    };
    let create = "create --validate=false --filename=-";
    let foreign = json!({"app": "web"});
    let unlabelled = "only objects with the labels of a backup schedule";
    let right = "cart-backup-schedule";

    let job = cron_job("foreign", &foreign, right);
    is_refused(&server, account, create, &job, unlabelled).await?;
    let job = cron_job("other-account", &ours, "deployer");
    is_refused(&server, account, create, &job, "only under the account").await?;
    as_account(&server, account, create, &cron_job("nightly", &ours, right)).await?;

    let someones = cron_job("report", &foreign, "deployer").to_string();
    server
        .kubectl(&["create", "--filename", "-"], &someones)
        .await?;
    let delete = format!("--namespace={namespace} delete cronjobs report");
    is_refused(&server, account, &delete, &Value::Null, unlabelled).await?;
    let delete = format!("--namespace={namespace} delete cronjobs nightly");
    as_account(&server, account, &delete, &Value::Null).await?;

    let foreign = object("ServiceAccount", "v1", "deployer", &foreign, Value::Null);
    is_refused(&server, account, create, &foreign, unlabelled).await?;
    as_account(
        &server,
        account,
        create,
        &object("ServiceAccount", "v1", right, &ours, Value::Null),
    )
    .await?;

    let subject = (right, namespace.as_str());
    for (role, words) in [
        ("cluster-admin", "is attempting to grant"),
        (
            "redis-operator-restore-controller",
            "is attempting to grant",
        ),
        // RBAC lets an account grant what it has itself.
        (
            "redis-operator-backup-controller",
            "binds only the ClusterRole",
        ),
    ] {
        let more = binding("more", role, subject);
        is_refused(&server, account, create, &more, words).await?;
    }
    let role = "redis-operator-backup-schedule";
    for other in [("deployer", namespace.as_str()), (right, "elsewhere")] {
        let more = binding("more", role, other);
        is_refused(&server, account, create, &more, "binds only the account").await?;
    }
    let wanted = binding(right, role, subject);
    as_account(&server, account, create, &wanted).await
}

#[tokio::test]
async fn controllers_write_only_leases_of_their_own() -> Result<()> {
    let server = installed().await?;
    let lease = |name: &str, labels: Value| {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": SYSTEM, "labels": labels}})
    };
    let create = "create --validate=false --filename=-";
    for account in ACCOUNTS {
        let other = lease("deploy-lock", json!({"app": "web"}));
        is_refused(&server, account, create, &other, "only Leases of their own").await?;
        let name = format!("operation-of-{account}");
        let ours = lease(
            &name,
            json!({"app.kubernetes.io/managed-by": crds::MANAGED_BY}),
        );
        as_account(&server, account, create, &ours).await?;
        as_account(&server, account, create, &lease(account, json!({}))).await?;
    }
    Ok(())
}
