//! New RedisClusters with users.

use super::{Case, refused, taken};
use serde_json::{Value, json};

pub fn user_creations() -> Vec<Case> {
    let kind = "RedisCluster";
    let auth = |auth: Value| json!({"spec": {"auth": auth}});
    let password = json!([{"name": "passwords"}]);
    let user = |name: &str, rules: &str| json!({"name": name, "rules": rules, "passwordSecretRefs": password});
    let exporter = |exporter: Value| json!({"spec": {"monitoring": {"exporter": exporter}}});
    let users = |users: Value| auth(json!({ "users": users }));
    let mut cases = vec![
        taken(kind, "users are left to the controllers", auth(json!({}))),
        taken(kind, "no users", auth(json!({"enabled": false}))),
        taken(
            kind,
            "a user",
            users(json!([user(
                "shop",
                "~shop:* +@read -@dangerous (~a* +set)"
            )])),
        ),
        taken(
            kind,
            "an open default user",
            auth(json!({"defaultUser": {"noPassword": true}})),
        ),
        taken(
            kind,
            "a default user",
            auth(json!({"defaultUser": {"passwordSecretRefs": password, "rules": "~* +get"}})),
        ),
        taken(kind, "an overlap", auth(json!({"overlap": "1h"}))),
        taken(
            kind,
            "encryption",
            json!({"spec": {"tls": {"secretName": "internal", "clientAuth": "Required"}}}),
        ),
        refused(
            kind,
            "the controller's own Secret for encryption",
            json!({"metadata": {"name": "shop"}, "spec": {"tls": {"secretName": "shop-certificates"}}}),
            "choose another name",
        ),
        taken(
            kind,
            "clients of some networks",
            json!({"spec": {"networkPolicy": {"clients": [
                {"podSelector": {}},
                {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}},
                {"ipBlock": {"cidr": "10.0.0.0/8"}},
            ]}}}),
        ),
        taken(
            kind,
            "no clients at all",
            json!({"spec": {"networkPolicy": {}}}),
        ),
        refused(
            kind,
            "clients of no network",
            json!({"spec": {"networkPolicy": {"clients": [{}]}}}),
            "or ipBlock alone",
        ),
        refused(
            kind,
            "addresses of pods",
            json!({"spec": {"networkPolicy": {"clients": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]}}}),
            "or ipBlock alone",
        ),
        taken(
            kind,
            "a load balancer for each pod",
            json!({"spec": {"access": {
                "type": "LoadBalancer", "annotations": {"pool": "outside"}, "loadBalancerClass": "example.com/lb",
                "sourceRanges": ["203.0.113.0/24"],
            }}}),
        ),
        taken(
            kind,
            "no load balancers, and names for clients",
            json!({"spec": {"access": {}, "config": {"cluster-preferred-endpoint-type": "hostname"}}}),
        ),
        refused(
            kind,
            "load balancers without their type",
            json!({"spec": {"access": {"sourceRanges": ["203.0.113.0/24"]}}}),
            "need access.type LoadBalancer",
        ),
        refused(
            kind,
            "load balancers, and addresses of pods for clients",
            json!({"spec": {"access": {"type": "LoadBalancer"}, "config": {"cluster-preferred-endpoint-type": "ip"}}}),
            "follows from access.type LoadBalancer",
        ),
        taken(
            kind,
            "an exporter with arguments",
            exporter(
                json!({"image": "exporter:1", "extraArgs": ["--export-client-list", "--redis.address-of"], "resources": {"limits": {"memory": "64Mi"}}}),
            ),
        ),
        taken(kind, "no exporter", json!({"spec": {"monitoring": {}}})),
        refused(
            kind,
            "an exporter without an image",
            exporter(json!({"image": ""})),
            "should be at least 1 chars long",
        ),
        refused(
            kind,
            "an exporter that connects elsewhere",
            exporter(
                json!({"image": "exporter:1", "extraArgs": ["-redis.addr=redis://other:6379"]}),
            ),
            "are set by the controller: remove them",
        ),
        refused(
            kind,
            "a password among arguments",
            exporter(json!({"image": "exporter:1", "extraArgs": ["--redis.password", "secret"]})),
            "are set by the controller: remove them",
        ),
        refused(
            kind,
            "clients that encrypt in another way",
            json!({"spec": {"tls": {"secretName": "internal", "clientAuth": "Sometimes"}}}),
            "Unsupported value",
        ),
        refused(
            kind,
            "a default user without a word about passwords",
            auth(json!({"defaultUser": {}})),
            "exactly one of noPassword",
        ),
        refused(
            kind,
            "a default user with and without a password",
            auth(json!({"defaultUser": {"noPassword": true, "passwordSecretRefs": password}})),
            "exactly one of noPassword",
        ),
        refused(
            kind,
            "two users of one name",
            users(json!([user("a", "+get"), user("a", "+set")])),
            "Duplicate value",
        ),
        refused(
            kind,
            "an overlap that is too short",
            auth(json!({"overlap": "10s"})),
            "auth.overlap is 3m to 24h",
        ),
        refused(
            kind,
            "an overlap that is none",
            auth(json!({"overlap": "soon"})),
            "auth.overlap",
        ),
        refused(
            kind,
            "a user without a password",
            users(json!([{"name": "a", "rules": "+get"}])),
            "passwordSecretRefs",
        ),
        refused(
            kind,
            "two lines of rules",
            users(json!([user("a", "+get\nuser b on nopass +@all")])),
            "rules",
        ),
        refused(
            kind,
            "a name with a space",
            users(json!([user("a b", "+get")])),
            "name",
        ),
    ];
    for name in [
        "default",
        "Default",
        "redis-operator",
        "redis-operator-backup",
    ] {
        cases.push(refused(
            kind,
            "a name of ours",
            users(json!([user(name, "+get")])),
            "belong to the controllers",
        ));
    }
    for rules in [
        ">secret",
        "+get >secret",
        "nopass +get",
        "+get NoPass",
        "#aa",
        "on +get",
        "+get off",
        "reset +get",
        "resetpass",
        "+get !aa",
        "<a",
    ] {
        cases.push(refused(
            kind,
            "more than rights",
            users(json!([user("a", rules)])),
            "rules say what the user may do",
        ));
    }
    for rules in [
        "resetchannels +get",
        "&off +get",
        "~on +get",
        "+@all -@dangerous",
    ] {
        cases.push(taken(kind, "rights", users(json!([user("a", rules)]))));
    }
    cases
}
