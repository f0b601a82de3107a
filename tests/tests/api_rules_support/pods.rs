//! New RedisClusters with something said of their pods.

use super::{Case, merged, refused, taken};
use serde_json::{Value, json};
use tests::pod_template;

/// Changes of a cluster's podTemplate and placement.
pub fn pod_creations() -> Vec<Case> {
    let kind = "RedisCluster";
    let pods = |template: Value| json!({"spec": {"podTemplate": template}});
    let placement = |placement: Value| json!({"spec": {"placement": placement}});
    let volume = |more: Value| {
        let base = json!({"name": "notes", "mountPath": "/notes", "configMap": {"name": "notes"}});
        pods(json!({"extraVolumes": [merged(base, &more)]}))
    };
    let here = |name: &str| json!({"name": name, "mountPath": "/notes", "emptyDir": {}});
    let zones = json!({"maxSkew": 1, "topologyKey": crds::LABEL_ZONE, "whenUnsatisfiable": "DoNotSchedule"});
    let racks = json!({"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"});
    let spread = json!({"zones": {"spread": true}});
    let long = "a".repeat(64);
    let mut cases = vec![
        taken(kind, "empty pod template", pods(json!({}))),
        taken(kind, "every part of a pod", pods(pod_template::complete())),
        taken(
            kind,
            "labels with and without a domain",
            pods(
                json!({"labels": {"team": "web", "example.com/cost-centre": "a.b_c", "empty": ""}}),
            ),
        ),
        refused(
            kind,
            "a label that is no name",
            pods(json!({"labels": {"two words": "web"}})),
            "podTemplate.labels: a name has letters",
        ),
        refused(
            kind,
            "a long label",
            pods(json!({"labels": {"team": long}})),
            "Too long",
        ),
        refused(
            kind,
            "a node selector that is no name",
            pods(json!({"nodeSelector": {"-": "web"}})),
            "podTemplate.nodeSelector: a name has letters",
        ),
        refused(
            kind,
            "a toleration for a time in words",
            pods(json!({"tolerations": [{"tolerationSeconds": "soon"}]})),
            "must be of type integer",
        ),
        refused(
            kind,
            "a server as root",
            pods(json!({"securityContext": {"runAsUser": 0}})),
            "or runAsNonRoot: false as well",
        ),
        taken(
            kind,
            "a server as root on purpose",
            pods(json!({"securityContext": {"runAsUser": 0, "runAsNonRoot": false}})),
        ),
        taken(kind, "a volume", volume(json!({}))),
        refused(
            kind,
            "a volume of two sources",
            volume(json!({"secret": {"secretName": "keys"}})),
            "exactly one of configMap",
        ),
        refused(
            kind,
            "a volume without a source",
            volume(json!({"configMap": null})),
            "exactly one of configMap",
        ),
        refused(
            kind,
            "a path with dots",
            volume(json!({"mountPath": "/notes/../data"})),
            "a path has no part . or ..",
        ),
        refused(
            kind,
            "a path of no root",
            volume(json!({"mountPath": "notes"})),
            "should match",
        ),
        refused(
            kind,
            "two volumes at one path",
            pods(json!({"extraVolumes": [here("one"), here("two")]})),
            "mounted at the same path",
        ),
        taken(
            kind,
            "placement",
            placement(
                json!({"shardAntiAffinity": "Required", "topologyKey": crds::LABEL_ZONE, "zones": {"spread": true}}),
            ),
        ),
        refused(
            kind,
            "an anti-affinity that does not exist",
            placement(json!({"shardAntiAffinity": "Sometimes"})),
            "Unsupported value",
        ),
        refused(
            kind,
            "a topology key of two words",
            placement(json!({"topologyKey": "a rack"})),
            "should match",
        ),
        refused(
            kind,
            "two constraints for the zones",
            json!({"spec": {"placement": spread, "podTemplate": {"topologySpreadConstraints": [zones]}}}),
            "either placement.zones.spread or a topologySpreadConstraint",
        ),
        taken(
            kind,
            "a constraint for zones and one for racks",
            json!({"spec": {"placement": spread, "podTemplate": {"topologySpreadConstraints": [racks]}}}),
        ),
        taken(
            kind,
            "a constraint of the pod template for the zones",
            pods(json!({"topologySpreadConstraints": [zones]})),
        ),
    ];
    for prefix in crds::OWN_PREFIXES {
        for field in ["labels", "annotations"] {
            let change = pods(json!({field: {format!("{prefix}name"): "shop"}}));
            cases.push(refused(kind, prefix, change, "use another domain"));
        }
    }
    for name in crds::OWN_VOLUMES {
        let change = volume(json!({"name": name}));
        cases.push(refused(kind, name, change, "choose another name"));
    }
    for folder in crds::OWN_FOLDERS {
        let below = format!("{folder}/more");
        for path in [folder, below.as_str()] {
            let change = volume(json!({"mountPath": path}));
            cases.push(refused(kind, folder, change, "choose another mountPath"));
        }
        let beside = volume(json!({"mountPath": format!("{folder}-more")}));
        cases.push(taken(kind, folder, beside));
    }
    cases
}
